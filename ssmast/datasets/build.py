"""An official layout -> a labelled set that points at it, checked against the published numbers.

Nothing is copied: `metadata.csv` has paths below the root, and `task.json` says where that is.

What was found of a data set, held against what was published of it.

All tasks by name.
"""

import csv
import difflib
import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssmast.audio.corpus.index import split_span
from ssmast.audio.corpus.table import FORMAT, TASK_FILE, read_task_file
from ssmast.datasets import (
    audioset,
    environment,
    epic_kitchens,
    fsd50k,
    iemocap,
    nsynth,
    pretraining,
    speech_commands,
    video,
    voxceleb1,
    voxforge,
)
from ssmast.datasets.download import Progress, fetch, file_sha256
from ssmast.datasets.published_counts import Published, published_of
from ssmast.datasets.task import LABEL_SEPARATOR, DataTask, Ledger, Row
from ssmast.datasets.tree import Tree
from ssmast.version import __version__

_PARTS = ("train", "valid", "test")


class Counted:
    """What was counted while the rows went by.

    Args:
        definition: of the task.
        ledger: that its builder writes in.
    """

    def __init__(self, definition: DataTask, ledger: Ledger) -> None:
        self.definition, self.ledger = definition, ledger
        self.found: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.lost: list[tuple[str, str]] = []
        self.labels: Counter[str] = Counter()
        self.lines: list[str] = []
        self.seen: set[str] = set()
        self.parts_of: dict[str, int] = {}  # one bit a part: sets would weigh a gigabyte
        self.bits: dict[str, int] = {}

    def add(self, row: Row) -> None:
        """Count a row whose file is there."""
        self.found[row.part] += 1
        self.labels.update(row.labels)
        self.lines.append(f"{row.path}\t{row.part}\n")
        if self.definition.apart:
            value = row.extra[self.definition.columns.index(self.definition.apart)]
            if value:
                bit = self.bits.setdefault(row.part, 1 << len(self.bits))
                self.parts_of[value] = self.parts_of.get(value, 0) | bit

    @property
    def ids_sha256(self) -> str:
        """Hash of the sorted (path, part) lines."""
        digest = hashlib.sha256()
        for line in sorted(self.lines):
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def facts_of(
    definition: DataTask, root: Path, out: Path, options: dict[str, str], counted: Counted
) -> dict[str, Any]:
    """What task.json says of a set.

    Args:
        definition: of its task.
        root: folder of the data set.
        out: folder of the labelled set.
        options: all, with their values.
        counted: after all rows.
    """
    ledger, published = counted.ledger, published_of(definition.name, options)
    part = "fold" if definition.folds else "split"
    notes = list(ledger.notes)
    if definition.apart:
        shared = sum(parts.bit_count() > 1 for parts in counted.parts_of.values())
        notes.append(
            f"{shared:,} of {len(counted.parts_of):,} values of {definition.apart} are in more "
            "than one part"
        )
    absent = [name for name in ledger.classes if not counted.labels[name]]
    if absent:
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        notes.append(f"{len(absent):,} classes have no clip here: {shown}")
    return {
        "format": FORMAT,
        "task": definition.name,
        "title": definition.title,
        "homepage": definition.homepage,
        "licence": definition.licence,
        "options": options,
        "audio": _audio(root, out),
        "label": "label" if definition.labelled else "",
        part: part,
        "protocol": "folds" if definition.folds else "split",
        "group": definition.group,
        "metric": definition.metric,
        "multi_label": definition.multi_label,
        "label_separator": LABEL_SEPARATOR,
        "classes": ledger.classes or sorted(counted.labels),
        "counts": {name: counted.found[name] for name in _ordered(counted.found)},
        "missing": {name: counted.missing[name] for name in _ordered(counted.missing)},
        "left_out": dict(ledger.left_out),
        "published": published.to_dict() if published else {},
        "differences": _differences(published, counted),
        "notes": notes,
        "ids_sha256": counted.ids_sha256,
        "version": __version__,
    }


def _differences(published: Published | None, counted: Counted) -> list[str]:
    """Where the set is not what was published, one sentence each; missing files always are."""
    wanted = published.counts if published else {}
    lines = []
    for part in _ordered(set(wanted) | set(counted.found) | set(counted.missing)):
        here, missing = counted.found[part], counted.missing[part]
        if missing or (wanted and here != wanted.get(part, here)):
            said = f"{wanted[part]:,} published, " if part in wanted else ""
            lost = f" ({missing:,} listed clips have no file, see missing.csv)" if missing else ""
            lines.append(f"{part}: {said}{here:,} here{lost}")
    if published:
        for label, count in published.labels.items():
            if counted.labels[label] != count:
                lines.append(f"class {label}: {count:,} published, {counted.labels[label]:,} here")
        names = len(counted.ledger.classes or counted.labels)
        if published.num_classes and names != published.num_classes:
            lines.append(f"classes: {published.num_classes} published, {names} here")
    return lines


def _ordered(parts: Mapping[str, int] | set[str]) -> list[str]:
    """Train, valid, test, then folds by number."""
    known = {name: f"{i}" for i, name in enumerate(_PARTS)}
    return sorted(parts, key=lambda name: (known.get(name, "9"), name.zfill(8)))


def _audio(root: Path, out: Path) -> str:
    """The root as task.json has it: relative where one folder lies in the other."""
    root, out = root.resolve(), out.resolve()
    if out.is_relative_to(root) or root.is_relative_to(out):
        return Path(os.path.relpath(root, out)).as_posix()
    return str(root)


_MODULES = (
    speech_commands, voxceleb1, iemocap, voxforge, nsynth, environment, fsd50k, audioset, video,
    epic_kitchens, pretraining,
)  # fmt: skip
TASKS: dict[str, DataTask] = {task.name: task for module in _MODULES for task in module.TASKS}
"""By name, in the order of the papers."""


def get_task(name: str) -> DataTask:
    """The task called `name`.

    Raises:
        ValueError: if there is none, naming the nearest and all.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"unknown task {name!r}; {hint}the tasks are {', '.join(TASKS)}")
    return TASKS[name]


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """What `prepare_task` found and did.

    Attributes:
        task: its name.
        out: the labelled set; None if it could not be built yet.
        facts: what task.json holds.
        unpack: commands that unpack what was fetched.
        messages: what is still to do, and where what was not fetched comes from.
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
        download: fetch what is openly there into `root` first.
        progress: called with (what, done, of how many).

    Returns:
        The report; its `out` is None where archives were fetched that are to be unpacked first.

    Raises:
        ValueError: for an unknown task or option, an index that is damaged, or an `out` that holds
            something else.
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
    """Where a set goes by default: `sets/NAME`, with the options that differ from the usual."""
    name = definition.name
    for key, value in definition.chosen(options).items():
        if value != definition.options[key].default:
            name += f"-{key}-{value}"
    return Path("sets") / name.replace("/", "_")


def _build(
    definition: DataTask,
    root: Path,
    out: Path,
    options: dict[str, str],
    progress: Progress | None,
) -> dict[str, Any]:
    """Write the set; returns the facts in its task.json."""
    tree, ledger = Tree(root), Ledger()
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    partial = out / ".metadata.csv.partial"
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            counted = Counted(definition, ledger)
            writer = csv.writer(file, lineterminator="\n")
            part = "fold" if definition.folds else "split"
            header = ["path", "label", part, *definition.columns]
            unlabelled = 0 if definition.labelled else 1
            writer.writerow([name for name in header if name != "label" or not unlabelled])
            for row in _present(definition.build(tree, options, ledger), tree, counted, progress):
                label = LABEL_SEPARATOR.join(row.labels)
                labels = [] if unlabelled else [label]
                writer.writerow([row.path, *labels, row.part, *row.extra])
        if not counted.found:
            raise FileNotFoundError(
                f"none of the {sum(counted.missing.values()):,} clips that {definition.title} "
                f"lists lies below {root}; wanted {definition.layout}"
            )
        facts = facts_of(definition, root, out, options, counted)
        _write_missing(out, counted)
        # task.json first: without it the paths of metadata.csv would lead nowhere.
        _write_text(out / TASK_FILE, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        os.replace(partial, out / "metadata.csv")
    finally:
        partial.unlink(missing_ok=True)
        if made and not any(out.iterdir()):
            out.rmdir()
    return facts


def _present(
    rows: Iterator[Row], tree: Tree, counted: Counted, progress: Progress | None
) -> Iterator[Row]:
    """The rows whose file is there, each path once; all are counted."""
    multi = counted.definition.multi_label
    for number, row in enumerate(rows, start=1):
        if progress and number % 10_000 == 0:
            progress("looking for clips", number, 0)
        if any(LABEL_SEPARATOR in label for label in row.labels) and multi:
            raise ValueError(f"a class name holds {LABEL_SEPARATOR!r}: {row.labels}")
        if row.path in counted.seen:
            counted.ledger.left_out["listed twice"] += 1
            continue
        counted.seen.add(row.path)
        if not tree.has(row.path) and not tree.has(split_span(row.path)[0]):
            counted.missing[row.part] += 1
            counted.lost.append((row.path, row.part))
            continue
        counted.add(row)
        yield row


def _check_out(out: Path, task: str) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is no folder; give another out=")
    built = read_task_file(out).get("task")
    if built != task and (built or (out / "metadata.csv").exists()):
        what = f"the set of task {built}" if built else "a metadata.csv that was not built here"
        raise ValueError(f"{out} holds {what}; give another out=")


def _write_missing(out: Path, counted: Counted) -> None:
    path = out / "missing.csv"
    if not counted.lost:
        path.unlink(missing_ok=True)
        return
    temporary = out / ".missing.csv.partial"
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "part"])
        writer.writerows(counted.lost)
    os.replace(temporary, path)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _download(
    definition: DataTask, root: Path, progress: Progress | None
) -> tuple[list[str], list[str]]:
    """Fetch what is openly there; returns the commands that unpack it, and messages."""
    unpack, messages = [], []
    for remote in definition.downloads:
        path = fetch(remote, root, progress=progress)
        if not remote.checksum:
            messages.append(f"{path}: no checksum is published; its SHA-256 is {file_sha256(path)}")
        if remote.unpack:
            words = {"file": shlex.quote(str(path)), "root": shlex.quote(str(root))}
            unpack.append(remote.unpack.format(**words))
    if definition.request:
        messages.append(f"{definition.request} ({definition.homepage})")
    return unpack, messages
