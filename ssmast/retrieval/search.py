"""Finds the sounds in an index that are most similar to one.

ssmast search QUERY.wav index=DIR top=10
"""

import json
import sys
from dataclasses import dataclass

from ssmast.encoder import load_encoder
from ssmast.retrieval.index import Index
from ssmast.settings import COUNT, UsageError, in_range, parse, setting, wants_dry_run


@dataclass
class SearchConfig:
    """`ssmast search`: a sound -> the nearest ones."""

    query: str = setting("", "sound file")
    index: str = setting("", "folder that `ssmast index` wrote")
    top: int = setting(10, "how many to name")
    encoder: str = setting("", "encoder folder, if it is no longer where it was")
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
    if not config.query or not config.index:
        raise UsageError("usage: ssmast search QUERY.wav index=DIR; see `ssmast search --help`")
    in_range(config, {"top": COUNT})
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
    (found,) = index.search(encoder.embed(config.query).numpy(), config.top)
    if config.json:
        sys.stdout.write(json.dumps([{"name": n, "cosine": round(c, 6)} for n, c in found]) + "\n")
    else:
        sys.stdout.writelines(f"{cosine:.4f}  {name}\n" for name, cosine in found)
    return 0
