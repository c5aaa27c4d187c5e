"""Find the sounds in an index that are most similar to one.

ssmast search QUERY.wav index=DIR top=10
"""

import json
import sys
from dataclasses import dataclass

from ssmast.encoder import load_encoder
from ssmast.retrieval.index import Index
from ssmast.settings import CHANNEL, Settings, parse, setting, wants_dry_run


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Settings):
    """`ssmast search`: a sound to its nearest neighbours."""

    query: str = setting("", "sound file", required=True)
    index: str = setting("", "folder that `ssmast index` wrote", required=True)
    top: int = setting(10, "neighbours to print", range="[1, inf)")
    encoder: str = setting("", "encoder folder, if it has moved since")
    channel: str = setting("mean", CHANNEL)
    json: bool = setting(False, "print JSON")


def main(argv: list[str]) -> int:
    """`ssmast search`: parse, embed the query, print names and cosines."""
    config = parse(
        SearchConfig,
        argv,
        command="ssmast search",
        description=__doc__ or "",
        dry_run=True,
        positional="query",
    )
    if config is None:
        return 0
    index = Index.load(config.index)
    if wants_dry_run(argv):
        return 0
    encoder = load_encoder(config.encoder or index.about["encoder"])
    wanted = (index.about["encoder_sha256"], index.about["settings"])
    if (encoder.sha256, json.loads(json.dumps(encoder.settings()))) != wanted:
        raise ValueError(
            f"{config.index} was made with another encoder than "
            f"{config.encoder or index.about['encoder']}; index again, or give that one"
        )
    (found,) = index.search(encoder.embed(config.query, channel=config.channel).numpy(), config.top)
    if config.json:
        sys.stdout.write(json.dumps([{"name": n, "cosine": round(c, 6)} for n, c in found]) + "\n")
    else:
        sys.stdout.writelines(f"{cosine:.4f}  {name}\n" for name, cosine in found)
    return 0
