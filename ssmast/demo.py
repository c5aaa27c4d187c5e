"""From audio to scores in a few minutes: make a corpus, pretrain on it, score the encoder, report.

    ssmast demo [key=value ...]        any key of `ssmast pretrain`, on top of the smoke recipe

It needs no data, no network and no GPU. The same command gives the same numbers.
"""

import logging
import sys
import time
from pathlib import Path

from ssmast.evaluation.results import results_table
from ssmast.evaluation.suite import ProbeConfig, run_suite
from ssmast.report import write_report
from ssmast.settings import parse, wants_dry_run
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.inputs import built_in_corpus
from ssmast.training.pretrain import run

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """`ssmast demo`."""
    words = argv if any(word.startswith("run=") for word in argv) else [*argv, _free_run()]
    config = parse(
        PretrainConfig,
        words,
        command="ssmast demo",
        description=__doc__ or "",
        dry_run=True,
        recipes=RECIPES,
        default_recipe="smoke",
    )
    if config is None:
        return 0
    started = time.monotonic()
    folder = run(config, dry_run=wants_dry_run(argv))
    if wants_dry_run(argv):
        return 0
    results = run_suite(
        ProbeConfig(
            encoder=str(folder / "encoder"),
            data=str(built_in_corpus(folder.parent)),
            out=str(folder / "probe"),
        )
    )
    write_report(folder / "report.html", run=folder, results=results)
    sys.stdout.write("\n" + results_table(results) + "\n")
    sys.stdout.flush()
    logger.info("encoder  %s", folder / "encoder")
    logger.info("report   %s", (folder / "report.html").resolve())
    logger.info("time     %.0f s", time.monotonic() - started)
    return 0


def _free_run() -> str:
    names = (Path("runs") / ("demo" if i == 1 else f"demo-{i}") for i in range(1, 10_000))
    return f"run={next(path for path in names if not path.exists())}"
