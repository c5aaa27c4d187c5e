"""Build a labelled set from the official, unpacked layout of one of the papers' data sets.

    ssmast prepare task=esc50 root=DATA/ESC-50-master
    ssmast prepare task=voxforge root=DATA/voxforge options=rule=archive
    ssmast prepare task=nsynth_family root=DATA/nsynth download=true

No audio is copied: it writes metadata.csv, task.json (split rule, published counts, differences)
and missing.csv to `out`. `ssmast probe data=sets` then scores on all sets in `sets`.
"""

import logging
import sys
import time
from dataclasses import dataclass

from ssmast.datasets.builder import TASKS, get_task, out_folder, prepare_task
from ssmast.files import check_output
from ssmast.settings import Settings, UsageError, command, setting, wants_dry_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrepareTaskConfig(Settings):
    """`ssmast prepare task=NAME`: a published data set to a labelled set."""

    task: str = setting("", f"data set to build: {', '.join(TASKS)}", required=True)
    root: str = setting("", "folder of the data set as its archives unpack", required=True)
    out: str = setting("", "folder of the labelled set; empty: sets/TASK")
    options: str = setting("", "options of the data set: NAME=VALUE, joined by commas")
    download: bool = setting(False, "download into root first what is freely available")


@command(PrepareTaskConfig, "ssmast prepare", dry_run=True)
def main(config: PrepareTaskConfig, argv: list[str]) -> int:
    """`ssmast prepare task=NAME`: parse, build, report."""
    return run(config, dry_run=wants_dry_run(argv))


def run(config: PrepareTaskConfig, *, dry_run: bool = False) -> int:
    """Build the set of a task and print the report."""
    options = parse_options(config.options)
    definition = get_task(config.task)
    chosen = definition.chosen(options)
    out = config.out or out_folder(definition, options)
    check_output(out, folder=True)
    if dry_run:
        words = "".join(f", {key}={value}" for key, value in chosen.items())
        sys.stdout.write(f"{config.task}{words}: {config.root} -> {out}\n")
        return 0
    report = prepare_task(
        config.task,
        root=config.root,
        out=config.out or None,
        options=options,
        download=config.download,
        progress=_Lines(),
    )
    sys.stdout.write("\n".join(report.lines()) + "\n")
    return 0


def parse_options(text: str) -> dict[str, str]:
    """The pairs of `NAME=VALUE,NAME=VALUE`, in brackets or not.

    Raises:
        UsageError: for a word without `=`.

    >>> parse_options("[rule=archive, seed=1]")
    {'rule': 'archive', 'seed': '1'}
    """
    options = {}
    for word in filter(None, (word.strip() for word in text.strip().strip("[]").split(","))):
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"options= takes NAME=VALUE with commas between, got {word!r}")
        options[name.strip()] = value.strip()
    return options


class _Lines:
    """Progress as a line every few seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self._last < 5:
            return
        self._last = time.monotonic()
        of = f" of {total:,} ({100 * done / total:.0f} %)" if total else ""
        logger.info("%s: %s%s", what, f"{done:,}", of)
