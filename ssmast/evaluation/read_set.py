"""Read a labelled set: a folder with `metadata.csv` becomes clips, labels and honest splits.

    metadata.csv      path,label,split,...   split is train, valid or test
    metadata.csv      path,label,fold,...    one score a fold
    no table          a folder a class: frog/a.wav, rain/night 1/b.flac; or train/frog/a.wav, ...
    other layouts     Hugging Face's, Kaldi's, Raven's and others, see `audio/corpus/open.py`
    audio.tar         or the audio files themselves, named by `path`

A task (`task_spec.py`) names a set and, where wanted, other columns. What is left open comes from a
`task.json` beside metadata.csv, as `ssmast prepare task=` writes it, or from the layout. Where
nothing says what tests, a fifth of each class does, by a hash of the names; with `group=`, whole
groups of a column, or of what the brackets of a pattern take of each path, such as `group='(.*)_'`.
Spans of five or more recordings are drawn in whole recordings.
"""

import logging
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ssmast.audio import Corpus, open_corpus
from ssmast.audio.corpus.open import MANIFEST, layout_of
from ssmast.audio.corpus.table import (
    METADATA,
    find_column,
    find_table,
    read_header,
    read_table,
    read_task_file,
    said_of,
)
from ssmast.audio.read import split_excerpt
from ssmast.classifier import Head
from ssmast.evaluation.labelled_set import LabelledSet, check_splits, with_class_names
from ssmast.evaluation.task_spec import TaskSpec, filled, parse_task
from ssmast.splits import (
    HELD_OUT,
    few_names,
    group_folds,
    label_set,
    leave_one_out,
    look_alikes,
    named_parts,
    part_of,
    rarest_labels,
    with_test_part,
)

logger = logging.getLogger(__name__)

# What programs and people write into an empty cell.
_NO_LABEL = ("nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nil", "?", "-", "--")

_RECORDING = "the recording"
_FEWEST_RECORDINGS = 5

Table = dict[str, list[str]]
"""Columns by name, a value a row."""


# -- which sets there are --------------------------------------------------------------------------


def find_sets(data: str | Path) -> list[str]:
    """Names of the labelled sets in `data`: sub-folders whose metadata.csv has a label column.

    If `data` is such a set itself, the answer is its own name.

    Raises:
        FileNotFoundError: if `data` is no folder or holds no labelled set.
        ValueError: if a metadata.csv is not UTF-8, or has no label column where there is no other.
    """
    data = Path(data)
    if not data.exists():
        raise FileNotFoundError(f"no folder of labelled sets at {data}; give data=FOLDER")
    if _is_set(data):
        if not has_layout(data) and find_table(data) is not None:
            _check_columns(read_header(_table_of(data)), TaskSpec(name=set_name(data)), data)
        return [set_name(data)]
    if not data.is_dir():
        raise FileNotFoundError(
            f"{data} is no labelled set; give data=FOLDER, or a table with labels"
        )
    tables = {folder.name: find_table(folder) for folder in sorted(data.iterdir())}
    columns = {name: read_header(table) for name, table in tables.items() if table is not None}
    names = [name for name, has in columns.items() if find_column(has, "label") in has]
    names += [name for name, table in tables.items() if not table and _may_be_set(data / name)]
    if not names:
        other = "".join(
            f"; {name}/{METADATA} has the columns {', '.join(has)}, of which tasks=[{name}:label="
            "COLUMN] or task= names one"
            for name, has in list(columns.items())[:3]
        )
        raise FileNotFoundError(
            f"no labelled set in {data}: wanted sub-folders with a metadata.csv of "
            f"path,label,split, or a folder of sounds for each class{other or _other_tables(data)}"
        )
    return sorted(names)


def _is_set(place: Path) -> bool:
    """Whether a path is a set: a table, another program's layout, or a folder a class."""
    if not place.exists():
        return False
    if find_table(place) is not None or has_layout(place):
        return True
    if not place.is_dir() or any(
        find_table(one) or ((one.is_dir() or _is_table(one)) and _may_be_set(one))
        for one in place.iterdir()
    ):
        return False
    try:
        corpus = open_corpus(place)
    except ValueError:  # no sound
        return False
    return len(set(filter(None, _class_folders(place, corpus)["label"]))) > 1


def has_layout(place: Path) -> bool:
    """Whether a path has a layout of another program, or is a tar or table that may have labels."""
    if _is_table(place) or (place.is_file() and place.suffix.lower() == ".tar"):
        return True
    return layout_of(place) is not None or _is_of_tars(place)


def _is_table(place: Path) -> bool:
    return place.is_file() and place.suffix.lower() in (".csv", ".tsv")


def _may_be_set(place: Path) -> bool:
    """Whether what lies in a folder is a set of its own, and no table of something else."""
    if not _is_table(place) or layout_of(place) is not None:
        return has_layout(place)
    columns = read_header(place)
    return all(find_column(columns, usual) in columns for usual in ("path", "label"))


def _is_of_tars(place: Path) -> bool:
    """Whether a folder holds tars and neither sounds nor folders but those of its parts."""
    if not place.is_dir() or (place / MANIFEST).is_file():
        return False
    found = [one for one in place.iterdir() if not one.name.startswith(".")]
    parts = [one for one in found if one.is_dir() and part_of(one.name)]
    found = [one for one in found if one not in parts] + [o for p in parts for o in p.iterdir()]
    kinds = {"/" if one.is_dir() else one.suffix.lower() for one in found}
    return ".tar" in kinds and find_table(place) is None and kinds <= {".tar", ".md", ".txt"}


def set_name(place: Path) -> str:
    """What a set is called: its folder, or its file without the ending."""
    return place.resolve().name if place.is_dir() else place.stem


def _other_tables(folder: Path) -> str:
    """Tables in a folder, or one below it, that may be the one that is missed."""
    kinds = {".csv", ".tsv", ".xlsx", ".xls", ".ods", ".json", ".parquet"}
    found = [
        file.relative_to(folder).as_posix()
        for file in (*sorted(folder.glob("*")), *sorted(folder.glob("*/*")))
        if file.suffix.lower() in kinds and not file.name.startswith(".")
    ]
    shown = few_names(found)
    cure = f"save the table with the labels as {METADATA}, or give a .csv as data="
    return f"; found {shown}: {cure}" if found else ""


def _find_folder(data: Path, name: str) -> Path:
    """The folder of one labelled set, in a folder of them or that folder itself.

    Raises:
        FileNotFoundError: naming the sets that are there.
    """
    for folder in (data / name, data if set_name(data) == name else None):
        if folder is not None and _is_set(folder):
            return folder
    found = ", ".join(find_sets(data))
    raise FileNotFoundError(f"no labelled set {name!r} in {data}; found: {found}")


def _asked(data: Path, task: TaskSpec | str) -> TaskSpec:
    """The task that is meant; where none is named, the only set."""
    if isinstance(task, TaskSpec):
        return task
    if not task:
        # Which of its columns are labels may be said elsewhere.
        names = [set_name(data)] if _is_set(data) else find_sets(data)
        if len(names) > 1:
            raise ValueError(f"{data} holds {len(names)} sets, give one: task={' or '.join(names)}")
        return TaskSpec(name=names[0])
    # A set that is called exactly so is meant, whatever its name looks like.
    folders = [one for one in sorted(data.iterdir()) if one.is_dir()] if data.is_dir() else []
    named = {set_name(place) for place in (data, *folders) if place.exists()}
    return TaskSpec(name=task) if task in named else parse_task(task)


# -- one set --------------------------------------------------------------------------------------


def load_set(
    data: str | Path,
    task: TaskSpec | str = "",
    *,
    labels: Sequence[str] | None = None,
    group: str = "",
    held_out: float = HELD_OUT,
) -> LabelledSet:
    """Read a labelled set: columns, the rows that have them all, and splits.

    Args:
        data: the set, or a folder of sets.
        task: which set, by which columns: a spec, or NAME:label=COLUMN,split=COLUMN,...; empty
            where `data` is one set.
        labels: label columns, one head each; None for that of the spec. Several have one label a
            cell each.
        group: column of what belongs together, or a pattern, in place of the spec's.
        held_out: fraction of the training clips that validates, where the set has no such part.

    Raises:
        FileNotFoundError: if the set is not there.
        ValueError: if a column is missing, a split value unknown, a clip listed twice, a part
            empty, or several columns are asked to hold several labels a clip.
    """
    asked = _asked(Path(data), task)
    asked = replace(asked, group=group) if group else asked
    folder = _find_folder(Path(data), asked.name)
    where = _table_of(folder)
    table, said = _read_columns(folder)
    origin = {**said, **read_task_file(folder)}
    spec = filled(asked, origin)
    path = find_column(list(table), "path")
    if spec.group and spec.group not in table and "(" in spec.group:
        table[spec.group] = _groups_by(spec.group, table[path])
    meant = {
        key: find_column(list(table), name)
        for key in ("label", "split", "fold", "group")
        if (name := getattr(spec, key))
    }
    spec = replace(spec, **meant)
    columns = [find_column(list(table), name) for name in labels or ()] or [spec.label]
    if len(columns) > 1 and spec.multi_label == "true":
        raise ValueError(
            f"multi_label=true needs one label column, got {', '.join(columns)}; give one of them"
        )
    separator = "" if len(columns) > 1 else _separator(replace(spec, label=columns[0]), origin)
    for name in columns:
        _check_columns(list(table), replace(spec, label=name), folder)
    kind, column = _protocol_of(table, spec, folder)
    if not spec.group and (recordings := _recordings_of(table[path], table.get(column), where)):
        table[_RECORDING] = recordings
        spec = replace(spec, group=_RECORDING)
    if kind == "drawn":
        asked_of = replace(spec, label=columns[0])
        kind, table = "split", _with_drawn_parts(table, asked_of, separator, folder)
    # With several labels a clip, an empty cell is a clip with none of the classes.
    kept, left_out = _complete_rows(table, [*([] if separator else columns), column])
    if left_out:
        counts = ", ".join(f"{count} ({why})" for why, count in left_out.items())
        logger.info("%s: rows left out: %s", where, counts)
    table = {name: [own[index] for index in kept] for name, own in table.items()}
    clips, values, cells = table[path], table[column], [table[name] for name in columns]
    # `a.wav` and `./a.wav` are one clip, which must not be trained and tested on.
    counts = Counter(posixpath.normpath(clip) for clip in clips)
    repeated = next((clip for clip, count in counts.items() if count > 1), None)
    if repeated is not None:
        raise ValueError(f"{where} lists {repeated!r} twice; keep one row a clip")
    _warn_of_odd_labels(cells, separator, where)
    groups = table[spec.group] if spec.group else None
    strata = rarest_labels(cells[0], separator) if separator else cells[0]
    try:
        if kind == "split":
            splits = [named_parts(clips, strata, values, groups=groups, fraction=held_out)]
        else:
            splits = (group_folds if kind == "folds" else leave_one_out)(values)
    except ValueError as error:  # among twenty sets, which one?
        raise ValueError(f"{where}, column {column!r}: {error}") from error
    labelled = with_class_names(
        LabelledSet(
            spec=asked,
            folder=folder,
            clips=clips,
            rows=np.array(kept, dtype=np.int64),
            heads=[Head(name=name, classes=[]) for name in columns],
            cells=cells,
            separator=separator,
            splits=splits,
            groups=groups or [],
            left_out=left_out,
            origin=origin,
        )
    )
    for name, own in (
        (spec.group, groups or ()),
        (column, values if kind == "leave_one_out" else ()),
        *((head.name, head.classes) for head in labelled.heads),
    ):
        _warn_of_look_alikes(own, f"{where}, column {name!r}")
    check_splits(labelled)
    _warn_of_absent_classes(labelled)
    return labelled


def _table_of(folder: Path) -> Path:
    """The table of a set, or the folder itself where its sub-folders are the classes."""
    return find_table(folder) or folder


def _complete_rows(table: Table, columns: Sequence[str]) -> tuple[list[int], dict[str, int]]:
    """Rows that have a value in every column, and how many were left out for which column."""
    left_out: Counter[str] = Counter()
    kept: list[int] = []
    for index in range(len(next(iter(table.values())))):
        empty = next((name for name in columns if not table[name][index]), None)
        if empty:
            left_out[f"empty {empty}"] += 1
        else:
            kept.append(index)
    return kept, dict(left_out)


def _warn_of_odd_labels(labels: list[list[str]], separator: str, where: Path) -> None:
    """Say what is read as it stands, but was hardly meant."""
    missing = Counter(cell for cells in labels for cell in cells if cell.lower() in _NO_LABEL)
    if missing:
        logger.warning(
            "%s: %d labels are the word %s, taken as a class; leave the cell empty where none is "
            "known",
            *(where, missing.total(), few_names(list(missing), between=" or ")),
        )
    names = {cell for cells in labels for cell in cells}
    several = [
        repr(name)
        for name in sorted(names)
        if any(len(own := {*label_set(name, mark)}) > 1 and own <= names for mark in ";,|")
    ]
    if several and not separator:
        logger.warning(
            "%s: %s taken as one class each, though its parts are classes too; multi_label=true "
            "makes several labels of a cell",
            *(where, few_names(several)),
        )
    unlabelled = sum(not label_set(cell, separator) for cell in labels[0]) if separator else 0
    if unlabelled:
        logger.info(
            "%s: %d of %d clips have an empty label cell, taken as clips with none of the classes",
            *(where, unlabelled, len(labels[0])),
        )
    if separator and not any(separator in cell for cell in labels[0]):
        logger.warning(
            "%s: no clip has more than one label by the separator %r; give another by separator=",
            *(where, separator),
        )


def _warn_of_absent_classes(labelled: LabelledSet) -> None:
    """Name the classes that clips have, but none to train on or none to test on."""
    several = " of some fold" if len(labelled.splits) > 1 else ""
    for names, part in (
        ([name for name, tested in labelled.untrained.items() if tested], f"training{several}"),
        (set(labelled.untested).difference(labelled.untrained), "test"),
    ):
        if names:
            logger.warning(
                "%s: classes without a clip in the %s part: %s",
                *(labelled.spec, part, few_names(sorted(names))),
            )


def _warn_of_look_alikes(names: Iterable[str], where: str) -> None:
    groups = look_alikes(names)
    if groups:
        shown = few_names([", ".join(map(repr, group)) for group in groups], between="; ")
        logger.warning(
            "%s: names that look like one are taken as different ones: %s; write each in one way",
            *(where, shown),
        )


def _read_columns(place: Path) -> tuple[Table, dict[str, Any]]:
    """Columns of a set, without the space around their values; and what it says of itself.

    Raises:
        ValueError: if there is no row.
    """
    if _are_class_folders(place):
        table = _class_folders(place, open_corpus(place))
        if "test" in table.get("split", ()):
            logger.info("%s: parts and classes are its folders", place)
        return table, {}
    if layout_of(place) is None and place.is_dir() and find_table(place) is not None:
        table = read_table(_table_of(place))
        if not len(table):
            raise ValueError(f"{_table_of(place)} has no rows below its header")
        return _stripped(table), {}
    corpus = open_corpus(place, spans="spans")
    if corpus.table is None:
        raise ValueError(
            f"{place} has no labels; wanted a table with them, or members .cls, .json or .txt of a "
            "tar beside each sound"
        )
    columns = _stripped(corpus.table)
    columns.pop(find_column(list(columns), "path"), None)
    return {"path": _names(corpus), **columns}, said_of(corpus.table)


def _are_class_folders(place: Path) -> bool:
    return place.is_dir() and find_table(place) is None and not has_layout(place)


def _class_folders(folder: Path, corpus: Corpus) -> Table:
    """Path, label and, where folders say it, split of sounds whose folders are their classes.

    Sounds that lie in no class folder have an empty label.

    Raises:
        ValueError: if some folders are parts and others are not.
    """
    paths = _names(corpus)
    levels = [path.split("/")[:-1] for path in paths]
    if not _other_tables(folder):  # beside a table, folders are hardly the classes
        while all(above[1:] for above in levels) and len({above[0] for above in levels}) == 1:
            levels = [above[1:] for above in levels]
    tops = sorted({above[0] for above in levels if above})
    parts = [top for top in tops if part_of(top)]
    others = [top for top in tops if not part_of(top)]
    # A class may be called train, but hardly one train and another test.
    if others and {"train", "test"} <= set(map(part_of, parts)):
        raise ValueError(
            f"{folder} holds the parts {', '.join(parts)} and beside them {few_names(others)}: "
            "are these parts or classes? Move the others elsewhere, or write a metadata.csv of "
            "path,label,split"
        )
    has_parts = not others and any(len(above) > 1 for above in levels)
    first = [[*above, "", ""][:2] for above in levels]
    if not has_parts:
        return {"path": paths, "label": [top for top, _ in first]}
    split = [part_of(top) for top, _ in first]
    return {"path": paths, "label": [below for _, below in first], "split": split}


def _names(corpus: Corpus) -> list[str]:
    return [corpus.name(i) for i in range(len(corpus))]


def _stripped(table: pa.Table) -> Table:
    return {
        name: [value.strip() for value in table[name].to_pylist()] for name in table.column_names
    }


def _groups_by(pattern: str, paths: Sequence[str]) -> list[str]:
    """Group of each clip: what the first brackets of a pattern take of its path.

    Raises:
        ValueError: if it is no pattern, or a path does not fit it.
    """
    try:
        searched = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"group={pattern} is neither a column nor a pattern: {error}") from error
    found = [searched.search(path) for path in paths]
    groups = [one[1] or "" if one and searched.groups else "" for one in found]
    if not all(groups):
        first = paths[groups.index("")]
        raise ValueError(
            f"group={pattern} takes nothing of the path {first!r}; every clip needs a group, which "
            "the first brackets of the pattern take"
        )
    return groups


def _recordings_of(clips: Sequence[str], parts: Sequence[str] | None, where: Path) -> list[str]:
    """The recording of each clip that is a span of one; empty where parts may be drawn by clip.

    Spans of one recording are alike, so that one part has them all: else a test flatters.
    """
    spans = [split_excerpt(clip) for clip in clips]
    files = [file for file, span in spans if span is not None]
    values = [part_of(value) for value in parts or [""] * len(clips)]
    if len(files) < len(clips) or len(set(files)) == len(files) or {"valid", "test"} <= {*values}:
        return []
    drawn_from = {file for file, part in zip(files, values, strict=True) if part in ("", "train")}
    if len(drawn_from) >= _FEWEST_RECORDINGS:
        return files
    logger.warning(
        "%s: parts are drawn among the spans of %d recordings, so that spans of one recording are "
        "in several parts, which flatters a score; from %d recordings on each is in one part",
        *(where, len(drawn_from), _FEWEST_RECORDINGS),
    )
    return []


def _with_drawn_parts(table: Table, spec: TaskSpec, separator: str, place: Path) -> Table:
    """The table with a test part that a hash of the names, or of the groups, draws."""
    clips = table[find_column(list(table), "path")]
    labels = table[spec.label]
    parts = table.get(spec.split, [""] * len(clips))
    groups = table[spec.group] if spec.group else None
    strata = rarest_labels(labels, separator) if separator else labels
    drawn = with_test_part(clips, strata, parts, groups=groups)
    logger.info(
        "%s: %s; %d of %d clips test, chosen %s by a hash of %s",
        *(_table_of(place), "classes are its folders" if _are_class_folders(place) else "no parts"),
        *(drawn.count("test"), len(clips)),
        *(("in whole groups", "the groups") if spec.group else ("in each class", "their names")),
    )
    return {**table, spec.split: drawn}


def _separator(spec: TaskSpec, origin: dict[str, Any]) -> str:
    """What stands between the labels of a clip, empty where each has one."""
    if spec.multi_label:
        return spec.separator if spec.multi_label == "true" else ""
    if origin.get("multi_label") and spec.label == origin.get("label"):
        return str(origin.get("label_separator") or spec.separator)
    return ""


def _check_columns(columns: Sequence[str], spec: TaskSpec, folder: Path) -> None:
    """Refuse a table that lacks a column which the task names.

    Raises:
        ValueError: naming the columns there are.
    """
    wanted = [find_column(columns, "path"), find_column(columns, spec.label)]
    wanted += filter(None, [spec.group])
    if spec.split != "split" or spec.protocol == "split":
        wanted.append(spec.split)
    if spec.fold != "fold" or spec.protocol == "folds":
        wanted.append(spec.fold)
    for column in wanted:
        if column not in columns:
            hint = ""
            if column == "label":
                hint = (
                    f"; name the one with the labels: tasks=[{spec.name}:label=COLUMN] for probes, "
                    "labels=[COLUMN] to fine-tune, else task="
                    f"{spec.name}:label=COLUMN"
                )
            raise ValueError(
                f"{_table_of(folder)} has no column {column!r}; it has: {', '.join(columns)}{hint}"
            )


def _protocol_of(table: Table, spec: TaskSpec, folder: Path) -> tuple[str, str]:
    """Which rule makes the splits ("split", "folds", "leave_one_out"), and of which column."""
    if spec.protocol.startswith("leave_one_out:"):
        column = spec.protocol.partition(":")[2]
        if column not in table:
            raise ValueError(
                f"{_table_of(folder)} has no column {column!r} to leave out; "
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
            structural = kind == "split" and find_table(folder) is None
            if structural and "test" not in map(part_of, table[column]):
                return "drawn", column
            return kind, column
    named = [name for name, own in table.items() if {"train", "test"} <= set(map(part_of, own))]
    if len(named) == 1 and not any(column in table for column in columns.values()):
        logger.info("%s: column %r has the parts", _table_of(folder), named[0])
        return "split", named[0]
    if not any(column in table for column in columns.values()):
        return "drawn", spec.split
    raise ValueError(
        f"{_table_of(folder)} has neither a filled column {spec.split!r} nor {spec.fold!r}; "
        "add one of train, valid, test"
    )
