"""Prepare audio for training: tar shards of short, clean, unique clips, with a manifest.

    ssmast prepare FOLDER out=DIR            a folder, list, CSV, tars or URL of audio; or several
    ssmast prepare task=NAME root=DIR        a published data set to a labelled set

If interrupted, the same command resumes. It writes shard-*.tar (WebDataset reads them too),
manifest.parquet, rejected.csv, corpus.json and report.html to DIR; `ssmast pretrain data=DIR`
trains on it.
"""

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path

from ssmast.files import check_output
from ssmast.settings import (
    CHANNEL,
    Settings,
    parse,
    setting,
    several_names,
    to_dict,
    wants_dry_run,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Settings):
    """`ssmast prepare`: any audio to shards and a manifest."""

    src: str = setting(
        "", "folder, list, CSV, tar(s) or URL of audio; of several [A, B]", required=True
    )
    out: str = setting("", "folder to write", required=True)
    sample_rate: int = setting(16000, "sample rate in Hz")
    channel: str = setting("mean", CHANNEL)
    segment_seconds: float = setting(
        10.0, "longer files are cut into clips of this many seconds; 0: not cut", range="[0, inf)"
    )
    min_seconds: float = setting(0.1, "shorter files are left out")
    min_peak: float = setting(
        1e-4, "clips whose peak is lower are silent and left out", range="[0, inf)"
    )
    codec: str = setting("flac", "flac (16 bits) or opus", choices=("flac", "opus"))
    near_duplicates: float = setting(
        0.99, "drop clips whose cosine to an earlier one is higher; 0: drop exact copies only"
    )
    shard_mb: int = setting(256, "size of a shard in MB", range="[1, inf)")
    max_bad_fraction: float = setting(
        0.1, "stop if more than this fraction of the clips is unreadable", range="[0, 1]"
    )
    engine: str = setting("local", "local (processes) or ray", choices=("local", "ray"))
    workers: int = setting(0, "processes; 0: one for each core", range="[0, inf)")
    ray_address: str = setting(
        "", "running Ray cluster that can read src and write out; empty: start one here"
    )


def main(argv: list[str]) -> int:
    """`ssmast prepare`: parse, prepare, write the page."""
    if any(word.startswith("task=") for word in argv):
        return importlib.import_module("ssmast.datasets.builder").main(argv)
    config = parse(
        PrepareConfig,
        argv,
        command="ssmast prepare",
        description=__doc__ or "",
        dry_run=True,
        positional="src",
        several=True,
    )
    if config is None:
        return 0
    run(config, dry_run=wants_dry_run(argv))
    return 0


def run(config: PrepareConfig, *, dry_run: bool = False) -> None:
    """Prepare as the settings say."""
    from ssmast.audio import open_words
    from ssmast.prepare import prepare_corpus
    from ssmast.prepare.pipeline import write_page

    check_output(config.out, folder=True)
    corpus = open_words(config.src).with_channel(config.channel)
    names = several_names(config.src)
    others = f" and {len(names) - 3} more" if len(names) > 3 else ""
    logger.info("%d clips in %s%s", len(corpus), ", ".join(names[:3]), others)
    if dry_run:
        return
    out = Path(config.out)
    keywords = to_dict(config)
    for key in ("src", "out", "channel"):
        del keywords[key]
    keywords["shard_bytes"] = keywords.pop("shard_mb") << 20
    about = prepare_corpus(corpus, out, **keywords)
    page = write_page(out)
    left_out = ", ".join(f"{count} {kind}" for kind, count in about["rejected"].items())
    logger.info("%.2f hours in %d clips, %s", about["seconds"] / 3600, about["clips"], out)
    logger.info("left out: %s (%s)", left_out or "nothing", out / "rejected.csv")
    logger.info("report: %s", page)
