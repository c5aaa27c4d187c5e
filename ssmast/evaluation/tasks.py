"""Labelled sets: a folder with `metadata.csv` becomes clips, labels and honest splits.

    metadata.csv      path,label,split,...   split is train, valid or test
    metadata.csv      path,label,fold,...    one score a fold
    audio.tar         or the audio files themselves, named by `path`

A task names a set and, where wanted, other columns:
`fsdd`, `speech:label=speaker,split=split_speaker`, `fsdd:protocol=leave_one_out:speaker`,
`events:multi_label=true` where the label column holds several labels a clip, `dog;rain`.
What is left open comes from a `task.json` beside metadata.csv, as `ssmast prepare task=` writes it.
"""

import logging
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmast.audio import read_header, read_table, read_task_file
from ssmast.evaluation.labels import rarest_labels
from ssmast.evaluation.splits import HELD_OUT, Split, group_folds, leave_one_out, named_parts
from ssmast.evaluation.task import Task, checked, class_names
from ssmast.evaluation.task_spec import TaskSpec, filled, parse_task

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
