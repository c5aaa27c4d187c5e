"""Labelled sets: a folder with `metadata.csv` becomes clips, labels and honest splits.

    metadata.csv      path,label,split,...   split is train, valid or test
    metadata.csv      path,label,fold,...    one score a fold
    audio.tar         or the audio files themselves, named by `path`

A task names a set and, where wanted, other columns:
`fsdd`, `speech:label=speaker,split=split_speaker`, `fsdd:protocol=leave_one_out:speaker`,
`events:multi_label=true` where the label column holds several labels a clip, `dog;rain`.
What is left open comes from a `task.json` beside metadata.csv, as `ssmast prepare task=` writes it.

What to score on: the text a user writes, and what it means.

`fsdd`, `speech:label=speaker,split=split_speaker`, `fsdd:protocol=leave_one_out:speaker`.

What is scored: clips, labels and splits of a labelled set, and what may be done to them.
"""

import hashlib
import logging
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmast.audio.corpus.table import read_header, read_table, read_task_file
from ssmast.evaluation.metrics import METRICS
from ssmast.evaluation.splits import (
    HELD_OUT,
    Split,
    group_folds,
    hold_out,
    label_set,
    leave_one_out,
    named_parts,
    rarest_labels,
    trained_labels,
)

OPTIONS = ("label", "split", "fold", "protocol", "group", "multi_label", "separator")
# What a task.json may decide; whether a clip has several labels belongs to its label column.
_FROM_FILE = OPTIONS[:5]


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What to learn from which columns of which labelled set.

    Attributes:
        name: folder of the set.
        label: column with the classes.
        split: column of train, valid, test.
        fold: column of folds, used when the split column is empty or `protocol` is "folds".
        protocol: "auto", "split", "folds" or "leave_one_out:COLUMN".
        group: column that validation clips held out of the training part must not share with
            it, such as the speaker; empty for none.
        multi_label: "true" where the label column holds several, "false" where it does not; empty
            for what the task.json of the set says of that column.
        separator: between the labels of a clip.
    """

    name: str
    label: str = "label"
    split: str = "split"
    fold: str = "fold"
    protocol: str = "auto"
    group: str = ""
    multi_label: str = ""
    separator: str = ";"

    def __str__(self) -> str:
        """The spec as text, only what differs from the defaults; `parse_task` reads it back."""
        defaults = TaskSpec(name=self.name)
        options = ",".join(
            f"{key}={getattr(self, key)}"
            for key in OPTIONS
            if getattr(self, key) != getattr(defaults, key)
        )
        return f"{self.name}:{options}" if options else self.name


def filled(spec: TaskSpec, facts: Mapping[str, Any]) -> TaskSpec:
    """The spec with what the user left open taken from the task.json of the set.

    Args:
        spec: as asked for.
        facts: from `read_task_file`.

    >>> filled(TaskSpec(name="a"), {"label": "class", "protocol": "folds"}).label
    'class'
    """
    usual = TaskSpec(name=spec.name)
    left_open = [key for key in _FROM_FILE if getattr(spec, key) == getattr(usual, key)]
    if not {"split", "fold"} <= set(left_open) and "protocol" in left_open:
        left_open.remove("protocol")  # another column was asked for: it decides
    return replace(spec, **{key: str(facts[key]) for key in left_open if facts.get(key)})


def split_names(text: str) -> list[str]:
    """Task specs in `[a,b:label=speaker,split=c]`, `a,b` or `a`.

    >>> split_names("[a, b:label=speaker,split=c, d]")
    ['a', 'b:label=speaker,split=c', 'd']
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    names: list[str] = []
    for word in (word.strip().strip("'\"") for word in text.split(",")):
        # A word such as `split=c` belongs to the task before it.
        if names and re.match(rf"({'|'.join(OPTIONS)})=", word):
            names[-1] += "," + word
        elif word:
            names.append(word)
    return names


def parse_task(text: str) -> TaskSpec:
    """A task from `name` or `name:key=value,key=value`.

    Raises:
        ValueError: if a key is unknown or the name is missing.
    """
    name, _, rest = text.partition(":")
    if not name:
        raise ValueError(f"a task needs the name of a labelled set before ':', got {text!r}")
    options: dict[str, str] = {}
    for word in filter(None, rest.split(",")):
        key, equals, value = word.partition("=")
        if key not in OPTIONS or not equals:
            raise ValueError(
                f"task {text!r}: after ':' come key=value pairs with the keys "
                f"{', '.join(OPTIONS)}, got {word!r}"
            )
        if key == "multi_label" and value not in ("true", "false"):
            raise ValueError(f"task {text!r}: multi_label must be true or false, got {value!r}")
        if key == "separator" and not value:
            raise ValueError(f"task {text!r}: separator must not be empty")
        options[key] = value
    return TaskSpec(name=name, **options)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A labelled set, read.

    Attributes:
        spec: as asked for.
        folder: of the labelled set.
        clips: path of each clip that takes part, as metadata.csv has it.
        rows: its row in metadata.csv, which is its number in the corpus of the folder.
        labels: class name of each clip.
        classes: sorted names, or the official order of task.json where clips have several labels;
            a label's position is its class number.
        splits: one, or one a fold; they hold positions in `clips`.
        left_out: how many rows were left out, by reason.
        num_unseen: test clips, over all splits, whose class the training part lacks; they count
            as wrong. With several labels a clip: those of which the training part lacks any.
        separator: between the labels of a clip; empty where each has one.
        origin: what the task.json of the set says; empty for a set made by hand.
    """

    spec: TaskSpec
    folder: Path
    clips: list[str]
    rows: NDArray[np.int64]
    labels: list[str]
    classes: list[str]
    splits: list[Split]
    left_out: dict[str, int] = field(default_factory=dict)
    num_unseen: int = 0
    separator: str = ""
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several labels."""
        return bool(self.separator)

    @property
    def label_sets(self) -> list[tuple[str, ...]]:
        """The labels of each clip."""
        return [label_set(text, self.separator) for text in self.labels]

    def targets(self) -> Tensor:
        """Class numbers (n,), or zeros and ones (n, C) float32 where a clip may have several."""
        number = {name: index for index, name in enumerate(self.classes)}
        if not self.multi_label:
            return torch.tensor([number[label] for label in self.labels])
        targets = torch.zeros(len(self.clips), len(self.classes))
        for row, labels in zip(targets, self.label_sets, strict=True):
            row[[number[label] for label in labels]] = 1.0
        return targets

    @property
    def metric(self) -> str:
        """What the set is scored by where the user says nothing."""
        usual = "map" if self.multi_label else "accuracy"
        named = str(self.origin.get("metric") or usual)
        # Another column of a multi-label set may have one label a clip.
        fits = named not in METRICS or METRICS[named].multi_label == self.multi_label
        return named if fits else usual

    @property
    def ids_sha256(self) -> str:
        """Hash of the sorted (clip, part) lines: equal if the same clips play the same parts."""
        lines = sorted(
            f"{self.clips[index]}\t{split.name}\t{part}\n"
            for split in self.splits
            for part, indices in split.parts().items()
            for index in indices
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def labels_sha256(self) -> str:
        """Hash of the (clip, label) lines."""
        lines = sorted(
            f"{clip}\t{label}\n" for clip, label in zip(self.clips, self.labels, strict=True)
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def without(task: Task, clips: Collection[str], *, reason: str = "unreadable") -> Task:
    """The task less some clips, counted under `left_out` by the reason.

    Raises:
        ValueError: if a part is empty then.
    """
    gone = set(clips)
    keep = np.array([clip not in gone for clip in task.clips])
    if keep.all():
        return task
    new = np.cumsum(keep) - 1  # new position of each clip that stays
    splits = [
        replace(split, **{part: new[where[keep[where]]] for part, where in split.parts().items()})
        for split in task.splits
    ]
    labels = [label for label, kept in zip(task.labels, keep, strict=True) if kept]
    smaller = replace(
        task,
        clips=[clip for clip, kept in zip(task.clips, keep, strict=True) if kept],
        rows=task.rows[keep],
        labels=labels,
        classes=class_names(labels, task.separator, task.origin),
        splits=splits,
        left_out={**task.left_out, reason: int((~keep).sum())},
    )
    return checked(smaller)


def shuffled(task: Task, *, seed: int) -> Task:
    """The task with the labels of all its clips permuted: no encoder can score above chance.

    Raises:
        ValueError: if a part then has no class of the training part.
    """
    order = np.random.default_rng(seed).permutation(len(task.labels))
    return checked(replace(task, labels=[task.labels[index] for index in order]))


def random_validation(task: Task, *, share: float) -> Task:
    """The task with a share of all clips that are not tested for validation, in every split.

    Source: EVAR, which takes a random tenth where a set has folds; here the clips' names decide.
    """
    splits = []
    first = [names[0] if names else "" for names in task.label_sets]
    for split in task.splits:
        rest = np.sort(np.concatenate([split.train, split.valid]))
        strata = [first[index] for index in rest]
        held = hold_out([task.clips[index] for index in rest], strata, share=share)
        splits.append(replace(split, train=rest[~held], valid=rest[held]))
    return checked(replace(task, splits=splits))


def class_names(labels: list[str], separator: str, origin: dict[str, Any]) -> list[str]:
    """Names of all classes; the order of task.json where it names those of a multi-label set."""
    if not separator:
        return sorted(set(labels))
    found = {label for text in labels for label in label_set(text, separator)}
    official = [str(name) for name in origin.get("classes", [])]
    return official if found <= set(official) else sorted(found)


def checked(task: Task) -> Task:
    """The task with `num_unseen` counted, refused if a split cannot be scored."""
    return replace(task, num_unseen=sum(_check_split(split, task) for split in task.splits))


def _check_split(split: Split, task: Task) -> int:
    """How many test clips have a class that the training part lacks."""
    name, labels = f"task {str(task.spec)!r}", task.label_sets
    trained = trained_labels(split, labels, name=name, least=2 - task.multi_label)
    for part, indices in (("valid", split.valid), ("test", split.test)):
        if not any(trained.intersection(labels[index]) for index in indices):
            raise ValueError(
                f"{name}: no class of the {part} part of {split.name} is in its "
                "training part, so nothing can be scored"
            )
    return sum(not trained.issuperset(labels[index]) for index in split.test)


_log = logging.getLogger(__name__)


def find_tasks(data: str | Path) -> list[str]:
    """Names of the labelled sets in `data`: sub-folders whose metadata.csv has a label column.

    If `data` is such a set itself, the answer is its own name.

    Raises:
        FileNotFoundError: if `data` is no folder or holds no labelled set.
        ValueError: if a metadata.csv is not UTF-8.
    """
    data = Path(data)
    if not data.is_dir():
        raise FileNotFoundError(f"no folder of labelled sets at {data}; give data=FOLDER")
    if _has_labels(data):
        return [data.resolve().name]
    names = sorted(folder.name for folder in data.iterdir() if _has_labels(folder))
    if not names:
        raise FileNotFoundError(
            f"no labelled set in {data}: wanted sub-folders with a metadata.csv of path,label,split"
        )
    return names


def load_task(data: str | Path, spec: TaskSpec | str) -> Task:
    """Read one task of the labelled sets in `data`.

    Raises:
        FileNotFoundError: if the set is not there.
        ValueError: if a column is missing, a split value unknown, or a part empty.
    """
    table = read_labelled(data, spec)
    task = Task(
        spec=table.spec,
        folder=table.folder,
        clips=table.clips,
        rows=table.rows,
        labels=table.labels[0],
        classes=class_names(table.labels[0], table.separator, table.origin),
        splits=table.splits,
        left_out=table.left_out,
        separator=table.separator,
        origin=table.origin,
    )
    return checked(task)


@dataclass(frozen=True, kw_only=True)
class LabelledTable:
    """What metadata.csv and task.json say of the clips that take part.

    Attributes:
        spec: as asked for.
        folder: of the set.
        clips: path of each clip.
        rows: its row in metadata.csv, which is its number in the corpus of the folder.
        columns: names of the label columns.
        labels: of each label column, the cell of every clip.
        separator: between the labels in a cell; empty where it holds one.
        splits: one, or one a fold; they hold positions in `clips`.
        left_out: how many rows were left out, by reason.
        origin: what the task.json of the set says; empty for a set made by hand.
    """

    spec: TaskSpec
    folder: Path
    clips: list[str]
    rows: NDArray[np.int64]
    columns: list[str]
    labels: list[list[str]]
    separator: str
    splits: list[Split]
    left_out: dict[str, int]
    origin: dict[str, Any]


def read_labelled(
    data: str | Path,
    spec: TaskSpec | str,
    *,
    columns: Sequence[str] = (),
    share: float = HELD_OUT,
) -> LabelledTable:
    """Read a labelled set: columns, rows that have them all, and splits.

    Args:
        data: the set, or a folder of sets.
        spec: which set, by which columns.
        columns: of labels; none for that of the spec. Several have one label a cell each.
        share: of the training clips held out for validation, where the set has no such part.

    Raises:
        FileNotFoundError: if the set is not there.
        ValueError: if a column is missing, a split value unknown, a clip listed twice, or several
            columns are asked to hold several labels a clip.
    """
    asked = parse_task(spec) if isinstance(spec, str) else spec
    folder = _find_folder(Path(data), asked.name)
    origin = read_task_file(folder)
    spec = filled(asked, origin)
    columns = list(columns) or [spec.label]
    if len(columns) > 1 and spec.multi_label == "true":
        raise ValueError(
            f"multi_label=true needs one label column, got {', '.join(columns)}; give one of them"
        )
    separator = "" if len(columns) > 1 else _separator(replace(spec, label=columns[0]), origin)
    table = _read_columns(folder)
    for name in columns:
        _check_columns(table, replace(spec, label=name), folder)
    kind, column = _protocol_of(table, spec, folder)
    left_out: Counter[str] = Counter()
    kept: list[int] = []
    for index in range(len(table["path"])):
        empty = next((name for name in (*columns, column) if not table[name][index]), None)
        if empty:
            left_out[f"empty {empty}"] += 1
        else:
            kept.append(index)
    clips = [table["path"][index] for index in kept]
    # `a.wav` and `./a.wav` are one clip, which must not be trained and tested on.
    counts = Counter(posixpath.normpath(clip) for clip in clips)
    repeated = next((clip for clip, count in counts.items() if count > 1), None)
    if repeated is not None:
        raise ValueError(f"{folder / 'metadata.csv'} lists {repeated!r} twice; keep one row a clip")
    labels = [[table[name][index] for index in kept] for name in columns]
    _warn_of_odd_labels(labels, separator, folder)
    values = [table[column][index] for index in kept]
    try:
        if kind == "split":
            groups = [table[spec.group][index] for index in kept] if spec.group else None
            strata = rarest_labels(labels[0], separator) if separator else labels[0]
            splits = [named_parts(clips, strata, values, groups=groups, share=share)]
        else:
            splits = (group_folds if kind == "folds" else leave_one_out)(values)
    except ValueError as error:  # among twenty sets, which one?
        raise ValueError(f"{folder / 'metadata.csv'}, column {column!r}: {error}") from error
    return LabelledTable(
        spec=asked,
        folder=folder,
        clips=clips,
        rows=np.array(kept, dtype=np.int64),
        columns=columns,
        labels=labels,
        separator=separator,
        splits=splits,
        left_out=dict(left_out),
        origin=origin,
    )


def _has_labels(folder: Path) -> bool:
    table = folder / "metadata.csv"
    return table.is_file() and "label" in read_header(table)


def _warn_of_odd_labels(labels: list[list[str]], separator: str, folder: Path) -> None:
    """Say what is read as it stands, but was hardly meant."""
    where = folder / "metadata.csv"
    missing = sum(cell.lower() == "nan" for cells in labels for cell in cells)
    if missing:
        _log.warning(
            "%s: %d labels are the word nan, taken as a class; leave the cell empty where none is "
            "known",
            *(where, missing),
        )
    if separator and not any(separator in cell for cell in labels[0]):
        _log.warning(
            "%s: no clip has more than one label by the separator %r; give another by separator=",
            *(where, separator),
        )


def _find_folder(data: Path, name: str) -> Path:
    """The folder of one labelled set.

    Args:
        data: folder of labelled sets, or the set itself.
        name: of the set's folder.

    Raises:
        FileNotFoundError: naming the sets that are there.
    """
    for folder in (data / name, data if data.resolve().name == name else None):
        if folder is not None and (folder / "metadata.csv").is_file():
            return folder
    found = ", ".join(find_tasks(data))
    raise FileNotFoundError(f"no labelled set {name!r} in {data}; found: {found}")


def _read_columns(folder: Path) -> dict[str, list[str]]:
    """Columns of metadata.csv by name, a value a row, without the space around it.

    Raises:
        ValueError: if there is no row.
    """
    table = read_table(folder / "metadata.csv")
    if not len(table):
        raise ValueError(f"{folder / 'metadata.csv'} has no rows below its header")
    return {
        name: [value.strip() for value in table[name].to_pylist()] for name in table.column_names
    }


def _separator(spec: TaskSpec, origin: dict[str, Any]) -> str:
    """What stands between the labels of a clip, empty where each has one."""
    if spec.multi_label:
        return spec.separator if spec.multi_label == "true" else ""
    if origin.get("multi_label") and spec.label == origin.get("label"):
        return str(origin.get("label_separator") or spec.separator)
    return ""


def _check_columns(table: dict[str, list[str]], spec: TaskSpec, folder: Path) -> None:
    """Refuse a table that lacks a column which the task names.

    Raises:
        ValueError: naming the columns there are.
    """
    wanted = ["path", spec.label, *filter(None, [spec.group])]
    if spec.split != "split" or spec.protocol == "split":
        wanted.append(spec.split)
    if spec.fold != "fold" or spec.protocol == "folds":
        wanted.append(spec.fold)
    for column in wanted:
        if column not in table:
            raise ValueError(
                f"{folder / 'metadata.csv'} has no column {column!r}; it has: {', '.join(table)}"
            )


def _protocol_of(table: dict[str, list[str]], spec: TaskSpec, folder: Path) -> tuple[str, str]:
    """Which rule makes the splits ("split", "folds", "leave_one_out"), and of which column."""
    if spec.protocol.startswith("leave_one_out:"):
        column = spec.protocol.partition(":")[2]
        if column not in table:
            raise ValueError(
                f"{folder / 'metadata.csv'} has no column {column!r} to leave out; "
                f"it has: {', '.join(table)}"
            )
        return "leave_one_out", column
    columns = {"split": spec.split, "folds": spec.fold}
    if spec.protocol in columns:
        return spec.protocol, columns[spec.protocol]
    if spec.protocol != "auto":
        raise ValueError(
            "protocol of a task must be auto, split, folds or leave_one_out:COLUMN, "
            f"got {spec.protocol!r}"
        )
    for kind, column in columns.items():
        if any(table.get(column, [])):
            return kind, column
    raise ValueError(
        f"{folder / 'metadata.csv'} has neither a filled column {spec.split!r} nor {spec.fold!r}; "
        "add one of train, valid, test"
    )
