r"""Annotated spans of long recordings: Raven, Audacity, and tables with start and end.

Each span is a clip, an excerpt of its recording. What a table of another form means:

    Raven       selection tables, tab-separated; `File Offset (s)` is the begin inside `Begin File`
                where a table covers several files; the two rows of two views are one selection
    BirdNET     its Raven tables and CSV tables
    Audacity    `start TAB end TAB label`, without a header; lines of frequencies begin with `\`
    other       a header with start (or onset), end (or stop, offset, or duration), in seconds

Sources: Raven Pro 1.6 user's manual, chapter 6; Audacity manual, Importing and Exporting Labels.
"""

import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ssmast.audio.corpus.corpus import Corpus
from ssmast.audio.corpus.named import is_sound, of_files
from ssmast.audio.corpus.table import (
    LABELS_BETWEEN,
    encoding_of,
    joined,
    plain_name,
    read_table,
    read_text,
    table_of,
)
from ssmast.audio.corpus.tar import walk
from ssmast.audio.read import excerpt_name, split_excerpt

_log = logging.getLogger(__name__)

_STARTS = ("start", "starts", "startseconds", "starttime", "starttimes", "onset", "begin")
_STARTS += ("begins", "begintime", "begintimes", "onsets", "onsetseconds")
_ENDS = ("end", "ends", "endseconds", "endtime", "endtimes", "stop", "stops", "offset", "offsets")
_ENDS += ("offsetseconds", "stoptime")
_LENGTHS = ("duration", "durations", "durationseconds", "deltatimes")
_FILES = (
    "beginpath",
    "beginfile",
    "path",
    "file",
    "filename",
    "filepath",
    "recording",
    "audiofile",
)
# What programs write of a span beside its label.
_NO_LABELS = {
    *("selection", "view", "channel", "beginfile", "beginpath", "endfile", "endpath"),
    *("fileoffsets", "confidence", "score", "occupancy", "split", "fold", "group", "index"),
    *(*_STARTS, *_ENDS, *_LENGTHS, *_FILES),
}
_LABELS = ("label", "labels", "annotation", "species", "commonname", "scientificname", "class")
_LABELS += ("speciescode", "eventlabel", "event", "call", "type", "sound")
_AUDACITY = re.compile(r"\s*-?[\d.,]+\t-?[\d.,]+(\t|$)")
_TABLES = (".txt", ".tsv", ".csv")


@dataclass(kw_only=True)
class _Spans:
    """Spans of one or more tables.

    Attributes:
        names: of the excerpts.
        columns: what else is known of each, by column.
        label: column with the labels; empty where none is clear.
        several: some excerpt has several labels.
        without_length: how many were left out since they end where they begin.
        repeated: how many were there before, with the same label.
    """

    names: list[str] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)
    label: str = ""
    several: bool = False
    without_length: int = 0
    repeated: int = 0

    def add(self, other: "_Spans") -> None:
        """Add those of another table; a column that one lacks is empty there."""
        for name in {**self.columns, **other.columns}:
            mine = self.columns.get(name, [""] * len(self.names))
            self.columns[name] = mine + other.columns.get(name, [""] * len(other.names))
        self.names += other.names
        self.label = self.label or other.label
        self.several |= other.several
        self.without_length += other.without_length
        self.repeated += other.repeated


def kind_of_spans(path: Path) -> str:
    """Which program's table of spans a file is, by its first lines; empty for none."""
    if path.suffix.lower() not in _TABLES:
        return ""
    try:
        with path.open("rb") as file:
            encoding = encoding_of(file.read(2))
        with path.open(encoding=encoding) as file:
            first = next((line for line in file if line.strip()), "")
    except (OSError, UnicodeError):
        return ""
    if _AUDACITY.match(first) and path.suffix.lower() == ".txt":
        return "Audacity label track"
    columns = [plain_name(name) for name in re.split(r"[\t,;|]", first)]
    if {"begintimes", "endtimes"} <= set(columns):
        return "Raven selection table"
    ends = set(columns) & {*_ENDS, *_LENGTHS}
    return "table of spans" if set(columns) & set(_STARTS) and ends else ""


def tables_of_spans(folder: Path) -> list[str]:
    """The tables of spans in a folder of recordings, relative to it, sorted."""
    found = [name for name, _ in walk(folder) if name.lower().endswith(_TABLES)]
    return [name for name in found if kind_of_spans(folder / name)]


def of_spans(root: Path, tables: Sequence[str]) -> Corpus:
    """A corpus of the spans that tables name, in their order.

    Args:
        root: folder of the recordings.
        tables: relative to it.

    Raises:
        FileNotFoundError: if a recording is not there.
        ValueError: if a table is damaged, does not say of which recording it is, or has no span.
    """
    sounds = [name for name, _ in walk(root) if is_sound(name)]
    found = _Spans()
    for name in tables:
        found.add(_read(root, name, sounds))
    what = root / tables[0] if len(tables) == 1 else root
    found = _merged(found, what)
    if found.without_length:
        _log.warning("%s: %d spans end where they begin, left out", what, found.without_length)
    if found.repeated:
        _log.info("%s: %d spans are there twice, taken once", what, found.repeated)
    if not found.names:
        raise ValueError(f"{what} names no span; wanted rows with a start and a later end")
    files = len({split_excerpt(name)[0] for name in found.names})
    _log.info("%s: %d spans of %d recordings", what, len(found.names), files)
    if files == len(found.names) > 1 and kind_of_spans(root / tables[0]) == "table of spans":
        # As UrbanSound8K's start and end, which are places in another file.
        _log.warning(
            "%s: each recording has one span; where the files are cut already, rename the columns "
            "of start and end",
            what,
        )
    said: dict[str, Any] = {"multi_label": found.several, "label_separator": LABELS_BETWEEN}
    if found.label:
        said["label"] = found.label
    return of_files(what, found.names, table_of(found.columns, said), root)


def _read(root: Path, name: str, sounds: Sequence[str]) -> _Spans:
    """The spans of one table."""
    path = root / name
    if kind_of_spans(path) == "Audacity label track":
        return _read_audacity(path, _recording_of(path, name, sounds))
    table = read_table(path)
    columns = {plain_name(column): column for column in reversed(table.column_names)}
    begins = _numbers(table, _first(columns, _STARTS), path)
    if end := _first(columns, _ENDS):
        ends = _numbers(table, end, path)
    else:
        lengths = _numbers(table, _first(columns, _LENGTHS), path)
        ends = [b + length for b, length in zip(begins, lengths, strict=True)]
    if inside := columns.get("fileoffsets"):  # Raven counts through all files of a table
        offsets = _numbers(table, inside, path)
        ends = [o + e - b for o, b, e in zip(offsets, begins, ends, strict=True)]
        begins = offsets
    file = _first(columns, _FILES)
    if file:
        files = [cell.strip().replace("\\", "/") for cell in table[file].to_pylist()]
        above = os.path.dirname(name)
        files = [f"{above}/{one}" if f"{above}/{one}" in set(sounds) else one for one in files]
    else:
        files = [_recording_of(path, name, sounds)] * len(begins)
    kept = {
        column: [cell.strip() for cell in table[column].to_pylist()]
        for column in table.column_names
        if column != file
    }
    return _spans(path, files, begins, ends, kept, _label_column(table.column_names))


def _read_audacity(path: Path, recording: str) -> _Spans:
    begins, ends, labels, scores = [], [], [], []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("\\"):  # frequencies of the line above
            continue
        cells = line.split("\t")
        try:
            begins.append(_number(cells[0]))
            ends.append(_number(cells[1]))
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{path}, line {number}: a label track has start, end and label with tabs between, "
                f"got {line!r}"
            ) from error
        labels.append(cells[2].strip() if len(cells) > 2 else "")
        scores.append(cells[3].strip() if len(cells) > 3 else "")
    columns = {"label": labels} | ({"confidence": scores} if any(scores) else {})
    return _spans(path, [recording] * len(begins), begins, ends, columns, "label")


def _spans(
    path: Path,
    files: Sequence[str],
    begins: Sequence[float],
    ends: Sequence[float],
    columns: dict[str, list[str]],
    label: str,
) -> _Spans:
    found = _Spans(label=label, columns={name: [] for name in columns})
    for i, (file, begin, end) in enumerate(zip(files, begins, ends, strict=True)):
        if not 0 <= begin <= end < math.inf:
            raise ValueError(
                f"{path}: span {i + 1} goes from {begin:g} to {end:g} s; wanted 0 <= start <= end"
            )
        name = excerpt_name(file, begin, end)
        if name == excerpt_name(file, begin, begin):
            found.without_length += 1
            continue
        found.names.append(name)
        for column, values in columns.items():
            found.columns[column].append(values[i])
    return found


def _merged(spans: _Spans, path: Path) -> _Spans:
    """Spans of the same bounds as one clip, with the labels of all."""
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(spans.names):
        rows.setdefault(name, []).append(i)
    if len(rows) == len(spans.names):
        return spans
    merged = _Spans(label=spans.label, without_length=spans.without_length)
    merged.names = list(rows)
    for name, values in spans.columns.items():
        if name == spans.label:
            merged.columns[name] = [joined((values[i] for i in own), path) for own in rows.values()]
            merged.several = any(len({values[i] for i in own}) > 1 for own in rows.values())
        else:
            merged.columns[name] = [values[own[0]] for own in rows.values()]
    labels = spans.columns.get(spans.label, [""] * len(spans.names))
    merged.repeated = sum(len(own) - len({labels[i] for i in own}) for own in rows.values())
    return merged


def _recording_of(path: Path, name: str, sounds: Sequence[str]) -> str:
    """The recording that a table without a column of files is of: the longest that begins its name.

    `rec1.Table.1.selections.txt` and `rec1.BirdNET.results.txt` are of `rec1.wav`.
    """
    folder, file = os.path.split(name)
    called: dict[str, list[str]] = {}
    for sound in sounds:
        stem = os.path.splitext(os.path.basename(sound))[0]
        if re.match(rf"{re.escape(stem)}(?![A-Za-z0-9])", file):
            called.setdefault(stem, []).append(sound)
    if called:
        best = called[max(called, key=len)]
        beside = [sound for sound in best if os.path.dirname(sound) == folder] or best
        if len(beside) == 1:
            return beside[0]
    there = f"; {len(sounds)} recordings are there, such as {sounds[0]!r}" if sounds else ""
    raise FileNotFoundError(
        f"{path} does not say of which recording it is; wanted a column Begin File, or a recording "
        f"by the name that its own begins with{there}"
    )


def _label_column(columns: Sequence[str]) -> str:
    """The column that labels are in: by a usual name, or the only one that is nothing else."""
    by_name = {plain_name(column): column for column in reversed(columns)}
    if usual := _first(by_name, _LABELS):
        return usual
    left = [c for c in columns if "(" not in c and plain_name(c) not in _NO_LABELS]
    return left[0] if len(left) == 1 else ""


def _first(columns: dict[str, str], wanted: Sequence[str]) -> str:
    return next((columns[name] for name in wanted if name in columns), "")


def _numbers(table: pa.Table, column: str, path: Path) -> list[float]:
    numbers = []
    for row, cell in enumerate(table[column].to_pylist(), start=2):
        try:
            numbers.append(_number(cell))
        except ValueError as error:
            raise ValueError(
                f"{path}, row {row}: {column} must be seconds, got {cell!r}"
            ) from error
    return numbers


def _number(text: str) -> float:
    return float(text.strip().replace(",", "."))
