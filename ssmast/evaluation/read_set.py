"""Read a labelled set: the columns of a table become clips, labels and honest splits.

A task (`task_spec.py`) names a set and, where wanted, other columns. What is left open comes from a
`task.json` beside metadata.csv, as `ssmast prepare task=` writes it, or from the layout. Where
nothing says what tests, a fifth of each class does, by a hash of the names; with `group=`, whole
groups of a column, or of what the brackets of a pattern take of each path, such as `group='(.*)_'`.
"""

import logging
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ssmast.audio.corpus.table import find_column, find_table, plain_name, read_task_file
from ssmast.audio.read import split_excerpt
from ssmast.classifier import Head
from ssmast.evaluation.class_folders import Table, set_name, warn_of_class_folders
from ssmast.evaluation.find_set import (
    are_class_folders,
    asked_task,
    check_columns,
    find_folder,
    is_pattern,
    read_columns,
    table_of,
)
from ssmast.evaluation.labelled_set import LabelledSet, check_splits, with_class_names
from ssmast.evaluation.task_spec import TaskSpec, filled
from ssmast.progress import say_once
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

# What programs and people write into an empty cell.
_EMPTY_WORDS = ("nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nil", "?", "-", "--")

# Columns that say who is heard end so.
_WHO = ("speaker", "speakerid", "clientid", "subject", "subjectid", "patient", "patientid")
_WHO += ("actor", "actorid", "singer", "individual", "artistid", "songid", "fsid")
_RECORDING = "the recording"
_FEWEST_RECORDINGS = 5


# What people write between the labels of a clip.
_MARKS = ";,|/+& "


def load_set(
    data: str | Path,
    task: TaskSpec | str = "",
    *,
    labels: Sequence[str] | None = None,
    group: str = "",
    held_out: float = HELD_OUT,
    scored: Collection[str] = ("valid", "test"),
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
        scored: parts that must not be empty, beside the training part.

    Raises:
        FileNotFoundError: if the set is not there.
        ValueError: if a column is missing, a split value unknown, a clip listed twice, a part
            empty, or several columns are asked to hold several labels a clip.
    """
    asked, folder = _asked_set(Path(data), task, labels or (), group)
    where = table_of(folder)
    table, said = read_columns(folder)
    origin = {**said, **read_task_file(folder)}
    path = find_column(list(table), "path")
    spec, columns = _with_real_columns(filled(asked, origin), table, labels or ())
    if len(columns) > 1 and spec.multi_label == "true":
        raise ValueError(
            f"multi_label=true needs one label column, got {', '.join(columns)}; give one of them"
        )
    separator = "" if len(columns) > 1 else _separator(replace(spec, label=columns[0]), origin)
    for name in columns:
        check_columns(list(table), replace(spec, label=name), folder)
    if len(columns) == 1 and spec.multi_label != "false":
        _refuse_annotations(table[columns[0]], columns[0], where)
        table, separator = _with_lists_unpacked(table, columns[0], separator, spec.separator)
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
        say_once("%s: rows left out: %s", where, counts)
    table = {name: [own[index] for index in kept] for name, own in table.items()}
    clips, values, cells = table[path], table[column], [table[name] for name in columns]
    _refuse_repeated(clips, where)
    _warn_of_odd_labels(cells, separator, where)
    if are_class_folders(folder) and columns == ["label"]:
        warn_of_class_folders(folder, sorted({*cells[0]}))
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
    check_splits(labelled, scored=scored)
    _warn_of_absent_classes(labelled, folder)
    return labelled


def _asked_set(
    data: Path, task: TaskSpec | str, labels: Sequence[str], group: str
) -> tuple[TaskSpec, Path]:
    """The set that is meant, by which columns, and its folder."""
    patterns = "".join(filter(is_pattern, labels))
    name = set_name(data) if patterns and not task else ""
    asked = TaskSpec(name=name) if name else asked_task(data, task)
    asked = replace(asked, group=group) if group else asked
    return asked, find_folder(data, asked.name, label=patterns or asked.label)


def _with_real_columns(
    spec: TaskSpec, table: dict[str, list[str]], labels: Sequence[str]
) -> tuple[TaskSpec, list[str]]:
    """The spec and the label columns by the names of the table, which gets those of patterns."""
    path = find_column(list(table), "path")
    for what, name in (("group", spec.group), *(("label", one) for one in labels or [spec.label])):
        if is_pattern(name) and name not in table:
            table[name] = _taken_of(table[path], name, what)
    meant = {
        key: find_column(list(table), name)
        for key in ("label", "split", "fold", "group")
        if (name := getattr(spec, key))
    }
    spec = replace(spec, **meant)
    return spec, [find_column(list(table), name) for name in labels] or [spec.label]


def _refuse_repeated(clips: Sequence[str], where: Path) -> None:
    """`a.wav` and `./a.wav` are one clip, which must not be trained and tested on."""
    counts = Counter(posixpath.normpath(clip) for clip in clips)
    repeated = next((clip for clip, count in counts.items() if count > 1), None)
    if repeated is not None:
        raise ValueError(f"{where} lists {repeated!r} twice; keep one row a clip")


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
    missing = Counter(cell for cells in labels for cell in cells if cell.lower() in _EMPTY_WORDS)
    if missing:
        say_once(
            "%s: %d labels are the word %s, taken as a class; leave the cell empty where none is "
            "known",
            *(where, missing.total(), few_names(list(missing), between=" or ")),
            level=logging.WARNING,
        )
    names = {cell for cells in labels for cell in cells}
    # `dog;rain` and `cat;rain` tell, though no clip has rain alone; commas stand in names as well.
    # As FSD50K has them, Bark,Dog; in a name, a space follows.
    marks = ";|" + "," * (not any(", " in name for name in names))
    parts = Counter(one for n in names for m in marks if m in n for one in label_set(n, m))
    parts.update(names if marks[2:] else ())
    several = [
        repr(name)
        for name in sorted(names)
        if any(len(own := {*label_set(name, mark)}) > 1 and own <= names for mark in _MARKS)
        or any(parts[one] > 1 for mark in marks if mark in name for one in label_set(name, mark))
    ]
    if several and not separator:
        mark = next((mark for mark in _MARKS if all(mark in name for name in several)), ";")
        say_once(
            "%s: %s taken as one class each, though its parts are classes too, or come again; "
            "multi_label=true%s makes several labels of a cell",
            *(where, few_names(several), f",separator='{mark}'" if mark != ";" else ""),
            level=logging.WARNING,
        )
    unlabelled = sum(not label_set(cell, separator) for cell in labels[0]) if separator else 0
    if unlabelled:
        say_once(
            "%s: %d of %d clips have an empty label cell, taken as clips with none of the classes",
            *(where, unlabelled, len(labels[0])),
        )
    if separator and not any(separator in cell for cell in labels[0]):
        say_once(
            "%s: no clip has more than one label by the separator %r; give another by separator=",
            *(where, separator),
            level=logging.WARNING,
        )


def _warn_of_absent_classes(labelled: LabelledSet, folder: Path) -> None:
    """Name the classes that clips have, but none to train on or none to test on."""
    several = " of some fold" if len(labelled.splits) > 1 else ""
    for names, part in (
        ([name for name, tested in labelled.untrained.items() if tested], f"training{several}"),
        (set(labelled.untested).difference(labelled.untrained), "test"),
    ):
        if names:
            say_once(
                "%s: classes without a clip in the %s part: %s",
                *(folder, part, few_names(sorted(names))),
                level=logging.WARNING,
            )


def _warn_of_look_alikes(names: Iterable[str], where: str) -> None:
    groups = look_alikes(names)
    if groups:
        shown = few_names([", ".join(map(repr, group)) for group in groups], between="; ")
        say_once(
            "%s: names that look like one are taken as different ones: %s; write each in one way",
            *(where, shown),
            level=logging.WARNING,
        )


def _taken_of(paths: Sequence[str], pattern: str, what: str) -> list[str]:
    """Group or label of each clip: what the first brackets of a pattern take of its path."""
    try:
        searched = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{what}={pattern} is neither a column nor a pattern: {error}") from error
    found = [searched.search(path) for path in paths]
    taken = [one[1] or "" if one and searched.groups else "" for one in found]
    if not all(taken):
        first = paths[taken.index("")]
        raise ValueError(
            f"{what}={pattern} takes nothing of the path {first!r}; every clip needs a {what}, "
            "which the first brackets of the pattern take"
        )
    return taken


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
    say_once(
        "%s: parts are drawn among the spans of %d recordings, so that spans of one recording are "
        "in several parts, which flatters a score; from %d recordings on each is in one part",
        *(where, len(drawn_from), _FEWEST_RECORDINGS),
        level=logging.WARNING,
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
    if not spec.group:
        _warn_of_shared(table, drawn, spec, place)
    by_name = is_pattern(spec.label)
    say_once(
        "%s: %s; %d of %d clips test, chosen %s by a hash of %s",
        table_of(place),
        "classes are its folders" if are_class_folders(place) and not by_name else "no parts",
        *(drawn.count("test"), len(clips)),
        *(("in whole groups", "the groups") if spec.group else ("in each class", "their names")),
    )
    return {**table, spec.split: drawn}


def _warn_of_shared(table: Table, drawn: Sequence[str], spec: TaskSpec, place: Path) -> None:
    """Say which speakers are trained on and tested on, where a column names them."""
    columns = [name for name in table if plain_name(name).endswith(_WHO) and name != spec.label]
    for name in columns:
        trained = {who for who, part in zip(table[name], drawn, strict=True) if part == "train"}
        tested = [who for who, part in zip(table[name], drawn, strict=True) if part == "test"]
        shared = sum(bool(who) and who in trained for who in tested)
        if shared:
            asked = replace(spec, group=name)
            say_once(
                "%s: %d of %d test clips have a %s that is trained on too; task %s keeps each in "
                "one part",
                *(table_of(place), shared, len(tested), name, asked),
                level=logging.WARNING,
            )


def _separator(spec: TaskSpec, origin: dict[str, Any]) -> str:
    """What stands between the labels of a clip, empty where each has one."""
    if spec.multi_label:
        return spec.separator if spec.multi_label == "true" else ""
    if origin.get("multi_label") and spec.label == origin.get("label"):
        return str(origin.get("label_separator") or spec.separator)
    return ""


def _refuse_annotations(cells: Sequence[str], column: str, where: Path) -> None:
    """Refuse a column of JSON objects, as Label Studio writes the spans of a recording."""
    found = next((cell for cell in cells if re.match(r"\[?\s*\{\s*[\"']\w+[\"']\s*:", cell)), None)
    if found is not None:
        raise ValueError(
            f"{where}, column {column!r}: wanted labels, got annotations, {found[:60]!r}; write a "
            "row for each span: path,start,end,label"
        )


def _with_lists_unpacked(
    table: Table, column: str, separator: str, usual: str
) -> tuple[Table, str]:
    """Cells such as `['dog', 'rain']`, as pandas writes lists of labels, with a separator instead.

    So too `('dog', 'rain')`, `{'dog', 'rain'}`, `()` and `set()`.

    Returns:
        The table, and what stands between the labels; unchanged where not every cell is a list.
    """
    cells = [re.sub(r"^(frozenset|set)\((.*)\)$", r"\2", cell.strip()) for cell in table[column]]
    around = {cell[0] + cell[-1] for cell in filter(None, cells)}
    # `[dog]` in every row may be how a class is called, and so may `(dog, barking)`.
    marks = r"['\",]|\[\]" if around == {"[]"} else r"[\[({]['\"]"
    if not around or not around <= {"[]", "()", "{}"} or not re.search(marks, "".join(cells)):
        return table, separator
    names = [["".join(found).strip() for found in _LISTED.findall(cell[1:-1])] for cell in cells]
    every = "".join(name for own in names for name in own)
    mark = separator or next(m for m in (usual, "|", "\t", "\x1f") if m not in every)
    several = any(len(own) != 1 for own in names)
    return {**table, column: [mark.join(own) for own in names]}, mark if several else separator


_LISTED = re.compile(r"""'([^']*)'|"([^"]*)"|([^,'"\s][^,'"]*)""")  # a name in a list of them


def _protocol_of(table: Table, spec: TaskSpec, folder: Path) -> tuple[str, str]:
    """Which rule makes the splits ("split", "folds", "leave_one_out"), and of which column."""
    if spec.protocol.startswith("leave_one_out:"):
        column = spec.protocol.partition(":")[2]
        if column not in table:
            raise ValueError(
                f"{table_of(folder)} has no column {column!r} to leave out; "
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
        say_once("%s: column %r has the parts", table_of(folder), named[0])
        return "split", named[0]
    if not any(column in table for column in columns.values()):
        return "drawn", spec.split
    raise ValueError(
        f"{table_of(folder)} has neither a filled column {spec.split!r} nor {spec.fold!r}; "
        "add one of train, valid, test"
    )
