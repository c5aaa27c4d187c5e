"""Build a labelled set from the official, unpacked layout of one of the papers' data sets.

    ssmast prepare task=esc50 root=DATA/ESC-50-master
    ssmast prepare task=voxforge root=DATA/voxforge options=rule=archive
    ssmast prepare task=nsynth_family root=DATA/nsynth download=true

No audio is copied: it writes metadata.csv (paths below the root), task.json (where the root is,
split rule, published counts, differences) and missing.csv to `out`. `ssmast probe data=sets` then
scores on all sets in `sets`.
"""

import difflib
import itertools
import logging
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssmast.audio.corpus.table import FORMAT, LABELS_BETWEEN, METADATA, TASK_FILE, read_task_file
from ssmast.audio.read import split_excerpt
from ssmast.datasets import sound_sets, speech_sets, video_sets
from ssmast.datasets.download import Progress, fetch
from ssmast.datasets.task import (
    COPIES,
    Build,
    DatasetFiles,
    DataTask,
    Published,
    Row,
    data_task,
    published_of,
)
from ssmast.files import check_output, csv_lines, replacing, sha256_of, write_json
from ssmast.settings import Settings, UsageError, command, setting, wants_dry_run
from ssmast.splits import (
    Split,
    group_folds,
    ids_sha256,
    named_parts,
    ordered_parts,
    other_copies,
    rarest_labels,
)
from ssmast.version import __version__

_MISSING = "missing.csv"


class SetStatistics:
    """What is counted over the rows of a set."""

    def __init__(self, definition: DataTask, build: Build) -> None:
        self.definition, self.build = definition, build
        self.found: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.lost: list[tuple[str, str]] = []
        self.labels: Counter[str] = Counter()
        self.clips: list[tuple[str, str, str, str]] = []  # path, part, labels, group
        self.seen: set[str] = set()
        self.splits_of: dict[str, int] = {}  # one bit a split: sets would take a gigabyte
        self.bits: dict[str, int] = {}

    def add(self, row: Row) -> None:
        """Count a row whose file is there."""
        self.found[row.split] += 1
        self.labels.update(row.labels)
        extra = dict(zip(self.definition.columns, row.extra, strict=True))
        group = extra.get(self.definition.group, "")
        self.clips.append((row.path, row.split, LABELS_BETWEEN.join(row.labels), group))
        if value := extra.get(self.definition.disjoint_by):
            bit = self.bits.setdefault(row.split, 1 << len(self.bits))
            self.splits_of[value] = self.splits_of.get(value, 0) | bit

    @property
    def ids_sha256(self) -> str:
        """That of a probe of the set, see `ssmast.splits`; clips without a label take no part."""
        labelled = self.definition.labelled
        clips = [clip for clip in self.clips if clip[2] or not labelled]
        paths, parts, labels, groups = map(list, zip(*clips, strict=True)) if clips else ([],) * 4
        if self.definition.multi_label:
            labels = rarest_labels(labels, LABELS_BETWEEN)
        by = groups if self.definition.group else None
        try:
            folds = self.definition.folds
            splits = group_folds(parts) if folds else [named_parts(paths, labels, parts, groups=by)]
        except ValueError:  # too few folds or groups to be split, so no probe has a hash either
            rows = {part: np.flatnonzero(np.array(parts) == part) for part in sorted(set(parts))}
            splits = [Split.of_test(part, own) for part, own in rows.items()]
        return ids_sha256(paths, splits)


def facts_of(definition: DataTask, root: Path, out: Path, stats: SetStatistics) -> dict[str, Any]:
    """What task.json says of a set."""
    built = stats.build
    published = published_of(definition.name, built.options)
    split = "fold" if definition.folds else "split"
    root, out = root.resolve(), out.resolve()
    inside = out.is_relative_to(root) or root.is_relative_to(out)  # of one another
    notes = list(built.remarks)
    if definition.disjoint_by:
        shared = sum(splits.bit_count() > 1 for splits in stats.splits_of.values())
        of = f"{len(stats.splits_of):,} values of {definition.disjoint_by}"
        notes.append(f"{shared:,} of {of} are in more than one split")
    absent = [name for name in built.classes if not stats.labels[name]]
    if absent:
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        notes.append(f"{len(absent):,} classes have no clip here: {shown}")
    return {
        "format": FORMAT,
        "task": definition.name,
        **{key: getattr(definition, key) for key in ("title", "homepage", "licence")},
        "options": dict(built.options),
        "audio": Path(os.path.relpath(root, out)).as_posix() if inside else str(root),
        "label": "label" if definition.labelled else "",
        split: split,
        "protocol": "folds" if definition.folds else "split",
        **{key: getattr(definition, key) for key in ("group", "metric", "multi_label")},
        "label_separator": LABELS_BETWEEN,
        "classes": built.classes or sorted(stats.labels),
        "counts": {name: stats.found[name] for name in ordered_parts(stats.found)},
        "missing": {name: stats.missing[name] for name in ordered_parts(stats.missing)},
        "left_out": dict(built.left_out),
        "published": published.to_dict() if published else {},
        "copies": COPIES.get(definition.name, {}),
        "differences": _differences(published, stats),
        "notes": notes,
        "ids_sha256": stats.ids_sha256,
        "version": __version__,
    }


def _differences(published: Published | None, stats: SetStatistics) -> list[str]:
    """Where the set is not what was published, one sentence each; missing files always are."""
    wanted = published.counts if published else {}
    lines = []
    for split in ordered_parts(set(wanted) | set(stats.found) | set(stats.missing)):
        here, missing = stats.found[split], stats.missing[split]
        if missing or (wanted and here != wanted.get(split, here)):
            said = f"{wanted[split]:,} published, " if split in wanted else ""
            lost = f" ({missing:,} listed clips have no file, see missing.csv)" if missing else ""
            lines.append(f"{split}: {said}{here:,} here{lost}")
    if published:
        for label, count in published.labels.items():
            if stats.labels[label] != count:
                lines.append(f"class {label}: {count:,} published, {stats.labels[label]:,} here")
        names = len(stats.build.classes or stats.labels)
        if published.num_classes and names != published.num_classes:
            lines.append(f"classes: {published.num_classes} published, {names} here")
    return lines


_BUILDERS = speech_sets.BUILDERS | sound_sets.BUILDERS | video_sets.BUILDERS
TASKS = {name: data_task(name, build) for name, build in _BUILDERS.items()}
"""By name, in the order of the papers."""


def get_task(name: str) -> DataTask:
    """The task called `name`.

    Raises:
        UsageError: if there is none, naming the nearest and all.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"unknown task {name!r}; {hint}the tasks are {', '.join(TASKS)}")
    return TASKS[name]


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """What `prepare_task` found and did.

    Attributes:
        task: its name.
        out: the labelled set; None if it could not be built yet.
        facts: what task.json holds.
        unpack: commands that unpack what was fetched.
        messages: what is left to do, and where to get what was not fetched.
    """

    task: str
    out: Path | None
    facts: dict[str, Any] = field(default_factory=dict)
    unpack: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as text."""
        text = list(self.messages)
        if self.unpack:
            text += ["Unpack with:", *(f"    {command}" for command in self.unpack)]
        if self.out is None:
            return text
        facts = self.facts
        fold = "fold " if "fold" in facts else ""
        counts = " + ".join(f"{count:,} {fold}{name}" for name, count in facts["counts"].items())
        chosen = "".join(f", {key}={value}" for key, value in facts["options"].items())
        classes = f", {len(facts['classes'])} classes" if facts["label"] else ""
        text.append(f"{self.task}{chosen}: {counts} clips{classes} in {self.out}")
        text += [f"  differs: {line}" for line in facts["differences"]]
        if facts["published"] and not facts["differences"]:
            text.append(f"  as published ({facts['published']['source']})")
        text += [f"  other copies: {one}" for one in other_copies(facts["counts"], facts["copies"])]
        text += [f"  left out: {count:,} {why}" for why, count in facts["left_out"].items()]
        text += [f"  note: {line}" for line in facts["notes"]]
        text.append(f"  ids_sha256 {facts['ids_sha256']}")
        return text


def prepare_task(
    task: str,
    *,
    root: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    options: Mapping[str, str] | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> TaskReport:
    """Build the labelled set of a task out of an unpacked data set.

    Args:
        task: one of `TASKS`.
        root: folder of the data set as its archives unpack, or the folder above it.
        out: folder of the labelled set; by default `sets/` and the name of the task.
        options: choices of the task by name.
        download: fetch what is openly available into `root` first.
        progress: called with (what, done, of how many).

    Returns:
        The report; its `out` is None where archives were fetched that must be unpacked first.

    Raises:
        UsageError: for an unknown task or option.
        ValueError: for an index that is damaged, or an `out` that holds something else.
        FileNotFoundError: if `root` does not hold the layout, or no clip at all.
        OSError: if a download fails.
    """
    definition = get_task(task)
    chosen = definition.chosen(options or {})
    folder = out_folder(definition, options or {}) if out is None else Path(out)
    _check_out(folder, task)
    unpack, messages = [], []
    if download:
        unpack, messages = _download(definition, Path(root), progress)
    try:
        located = definition.locate(Path(root))
        facts = _build(definition, located, folder, chosen, progress)
    except FileNotFoundError as error:
        if not download:
            raise
        messages.append(f"not built yet: {error}")
        return TaskReport(task=task, out=None, unpack=unpack, messages=messages)
    return TaskReport(task=task, out=folder, facts=facts, messages=messages)


def out_folder(definition: DataTask, options: Mapping[str, str]) -> Path:
    """The default folder of a set: `sets/NAME`, with the options that differ from the default."""
    name = definition.name
    for key, value in definition.chosen(options).items():
        if value != definition.options[key].default:
            name += f"-{key}-{value}"
    return Path("sets") / name.replace("/", "_")


def _build(
    definition: DataTask, root: Path, out: Path, options: dict[str, str], progress: Progress | None
) -> dict[str, Any]:
    """Write the set; returns the facts in its task.json."""
    build = Build(files=DatasetFiles(root), options=options)
    stats, made = SetStatistics(definition, build), not out.exists()
    rows = _present(definition.build(build), stats, progress)
    header = ["label"] * definition.labelled + ["fold" if definition.folds else "split"]
    try:
        with replacing(out / METADATA) as partial:
            _write_rows(partial, ["path", *header, *definition.columns], rows)
            if not stats.found:
                raise FileNotFoundError(
                    f"none of the {sum(stats.missing.values()):,} clips that {definition.title} "
                    f"lists lies below {root}; wanted {definition.layout}"
                )
            facts = facts_of(definition, root, out, stats)
            (out / _MISSING).unlink(missing_ok=True)
            if stats.lost:
                with replacing(out / _MISSING) as lost:
                    _write_rows(lost, ["path", "split"], stats.lost)
            # task.json first: without it the paths of metadata.csv would lead nowhere.
            write_json(out / TASK_FILE, facts)
    finally:
        if made and not any(out.iterdir()):
            out.rmdir()
    return facts


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(csv_lines([row]) for row in itertools.chain([header], rows))


def _present(
    rows: Iterator[Row], stats: SetStatistics, progress: Progress | None
) -> Iterator[list[str]]:
    """The rows whose file exists, each path once, as written; all are counted."""
    multi, files = stats.definition.multi_label, stats.build.files
    for number, row in enumerate(rows, start=1):
        if progress and number % 10_000 == 0:
            progress("looking for clips", number, 0)
        if any(LABELS_BETWEEN in label for label in row.labels) and multi:
            raise ValueError(f"a class name holds {LABELS_BETWEEN!r}: {row.labels}")
        if row.path in stats.seen:
            stats.build.left_out["listed twice"] += 1
            continue
        stats.seen.add(row.path)
        if not files.has(row.path) and not files.has(split_excerpt(row.path)[0]):
            stats.missing[row.split] += 1
            stats.lost.append((row.path, row.split))
            continue
        stats.add(row)
        label = [LABELS_BETWEEN.join(row.labels)] if stats.definition.labelled else []
        yield [row.path, *label, row.split, *row.extra]


def _check_out(out: Path, task: str) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is no folder; give another out=")
    built = read_task_file(out).get("task")
    if built != task and (built or (out / METADATA).exists()):
        what = f"the set of task {built}" if built else "a metadata.csv that was not built here"
        raise ValueError(f"{out} holds {what}; give another out=")


def _download(
    definition: DataTask, root: Path, progress: Progress | None
) -> tuple[list[str], list[str]]:
    """Fetch what is openly available; returns the commands that unpack it, and messages."""
    unpack, messages = [], []
    for remote in definition.downloads:
        path = fetch(remote, root, progress=progress)
        if not remote.checksum:
            messages.append(f"{path}: no checksum is published; its SHA-256 is {sha256_of(path)}")
        if remote.unpack:
            words = {"file": shlex.quote(str(path)), "root": shlex.quote(str(root))}
            unpack.append(remote.unpack.format(**words))
    if definition.request:
        messages.append(f"{definition.request} ({definition.homepage})")
    return unpack, messages


# -- the command -----------------------------------------------------------------------------------

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
