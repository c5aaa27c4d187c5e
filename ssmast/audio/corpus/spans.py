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
from pathlib import Path

import pyarrow as pa

from ssmast.audio.corpus.remote import is_sound, walk
from ssmast.audio.corpus.table import (
    LABELS_BETWEEN,
    Listing,
    columns_of,
    joined,
    plain_name,
    read_table,
    split_word,
)
from ssmast.audio.read import excerpt_name, split_excerpt
from ssmast.files import as_text, encoding_of
from ssmast.progress import say_once

_STARTS = (
    *("start", "starts", "startseconds", "starttime", "starttimes", "onset", "begin", "begins"),
    *("begintime", "begintimes", "onsets", "onsetseconds"),
)
_ENDS = (
    *("end", "ends", "endseconds", "endtime", "endtimes", "stop", "stops", "offset", "offsets"),
    *("offsetseconds", "stoptime"),
)
_LENGTHS = ("duration", "durations", "durationseconds", "deltatimes")
_FILES = (
    *("beginpath", "beginfile", "path", "file", "filename", "filepath", "recording", "audiofile"),
    *("audiopath", "audiofilepath", "audiofilename", "audio", "wav", "wavfile", "wavpath"),
    *("soundfile", "recordingfile", "recordingname"),
)
# What programs write of a span beside its label.
_NO_LABELS = {
    *("selection", "view", "channel", "beginfile", "beginpath", "endfile", "endpath"),
    *("fileoffsets", "confidence", "score", "occupancy", "split", "fold", "group", "index"),
    *(*_STARTS, *_ENDS, *_LENGTHS, *_FILES),
}
_LABELS = (
    *("label", "labels", "annotation", "species", "commonname", "scientificname", "class"),
    *("speciescode", "eventlabel", "event", "call", "type", "sound"),
)
_AUDACITY = re.compile(r"\s*-?[\d.,]+\t-?[\d.,]+(\t|$)")
_TABLES = (".txt", ".tsv", ".csv")

_Span = tuple[str, float, float, dict[str, str]]
"""Recording, start and end in seconds, and what else is known of it."""


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
    if "slicefilename" in columns:  # of UrbanSound8K, whose clips are cut at start and end already
        return ""
    return "table of spans" if set(columns) & set(_STARTS) and ends else ""


def tables_of_spans(folder: Path) -> list[str]:
    """The tables of spans in a folder of recordings, relative to it, sorted."""
    found = [name for name, _ in walk(folder) if name.lower().endswith(_TABLES)]
    return [name for name in found if kind_of_spans(folder / name)]


def list_spans(root: Path, tables: Sequence[str]) -> Listing:
    """The spans that tables below the folder of the recordings name, in their order."""
    sounds = [name for name, _ in walk(root) if is_sound(name)]
    what = root / tables[0] if len(tables) == 1 else root
    parts = {name: split_word(os.path.splitext(name)[0]) for name in tables}
    are_of_parts = all(parts.values()) and len({*parts.values()}) > 1
    rows: dict[str, list[dict[str, str]]] = {}  # of the spans with the same bounds
    label, without_length = "", 0
    for name in tables:
        own_label, found = _read(root, name, sounds)
        label = label or own_label
        for i, (file, begin, end, row) in enumerate(found, start=1):
            if not 0 <= begin <= end < math.inf:
                raise ValueError(
                    f"{root / name}: span {i} goes from {begin:g} to {end:g} s; wanted 0 <= start "
                    "<= end"
                )
            if are_of_parts:
                row.setdefault("split", parts[name])
            excerpt = excerpt_name(file, begin, end)
            if excerpt == excerpt_name(file, begin, begin):
                without_length += 1
            else:
                rows.setdefault(excerpt, []).append(row)
    if without_length:
        say_once(
            f"{what}: {without_length} spans end where they begin, left out", level=logging.WARNING
        )
    if not rows:
        raise ValueError(f"{what} names no span; wanted rows with a start and a later end")
    found = Listing(what)
    found.add(list(rows), columns_of([own[0] for own in rows.values()]))
    labels = [list(dict.fromkeys(row.get(label, "") for row in own)) for own in rows.values()]
    if label in found.columns:  # spans of the same bounds are one clip, with the labels of all
        found.columns[label] = [joined(own, what) for own in labels]
    repeated = sum(map(len, rows.values())) - sum(map(len, labels))
    if repeated:
        say_once(f"{what}: {repeated} spans are there twice, taken once")
    files = len({split_excerpt(name)[0] for name in rows})
    say_once(f"{what}: {len(rows)} spans of {files} recordings")
    if files == len(rows) > 1 and kind_of_spans(root / tables[0]) == "table of spans":
        # As UrbanSound8K's start and end, which are places in another file.
        say_once(
            f"{what}: each recording has one span; where the files are cut already, rename the "
            "columns of start and end",
            level=logging.WARNING,
        )
    several = any(len(own) > 1 for own in labels)
    found.said = {"multi_label": several, "label_separator": LABELS_BETWEEN}
    if label:
        found.said["label"] = label
    return found


def _read(root: Path, name: str, sounds: Sequence[str]) -> tuple[str, list[_Span]]:
    """The column with the labels, empty where none is clear, and the spans of one table."""
    path = root / name
    if kind_of_spans(path) == "Audacity label track":
        return "label", _read_audacity(path, _recording_of(path, name, sounds))
    table = _with_spans(read_table(path), path)
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
    rows = [{key: cell.strip() for key, cell in row.items()} for row in table.to_pylist()]
    if file := _first(columns, _FILES):
        files = [row.pop(file).replace("\\", "/") for row in rows]
        above, there = os.path.dirname(name), set(sounds)
        files = [f"{above}/{one}" if f"{above}/{one}" in there else one for one in files]
    else:
        files = [_recording_of(path, name, sounds)] * len(rows)
    label = _label_column(table.column_names)
    return label, list(zip(files, begins, ends, rows, strict=True))


def _with_spans(table: pa.Table, path: Path) -> pa.Table:
    """The rows less those without a start and an end: recordings in which nothing happens."""
    columns = {plain_name(column): column for column in reversed(table.column_names)}
    bounds = [columns[name] for name in (*_STARTS, *_ENDS, *_LENGTHS) if name in columns]
    cells = zip(*(table[column].to_pylist() for column in bounds), strict=True)
    kept = [i for i, own in enumerate(cells) if any(cell.strip() for cell in own)]
    if len(kept) < len(table):
        say_once(f"{path}: {len(table) - len(kept)} rows without a start and an end are left out")
    return table.take(kept) if len(kept) < len(table) else table


def _read_audacity(path: Path, recording: str) -> list[_Span]:
    spans = list[_Span]()
    for number, line in enumerate(as_text(path.read_bytes(), path).splitlines(), start=1):
        if not line.strip() or line.startswith("\\"):  # frequencies of the line above
            continue
        start, *rest = line.split("\t")
        try:
            begin, end = _number(start), _number(rest[0])
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{path}, line {number}: a label track has start, end and label with tabs between, "
                f"got {line!r}"
            ) from error
        label, score, *_ = (*map(str.strip, rest[1:]), "", "")
        spans.append((recording, begin, end, {"label": label, "confidence": score}))
    if not any(row["confidence"] for *_, row in spans):
        for *_, row in spans:
            del row["confidence"]
    elif all(row["label"].isdecimal() for *_, row in spans):  # as of the ICBHI sounds
        say_once(
            f"{path.parent}: the third column of its tracks, a number, is taken as label, the "
            "fourth as confidence; if both are labels, write one table of path, start, end, label",
            level=logging.WARNING,
        )
    return spans


def _recording_of(path: Path, name: str, sounds: Sequence[str]) -> str:
    """The recording that a table without a column of files is of: the longest that begins its name.

    `rec1.Table.1.selections.txt` and `rec1.BirdNET.results.txt` are of `rec1.wav`.
    """
    folder, file = os.path.split(name)
    called: dict[str, list[str]] = {}
    for sound in sounds:
        stem = os.path.splitext(os.path.basename(sound))[0]
        if re.match(rf"{re.escape(stem)}(?![A-Za-z0-9])", file, re.IGNORECASE):
            called.setdefault(stem, []).append(sound)
    if called:
        best = called[max(called, key=lambda stem: (len(stem), file.startswith(stem)))]
        beside = [sound for sound in best if os.path.dirname(sound) == folder] or best
        if len(beside) == 1:
            return beside[0]
    beside = [sound for sound in sounds if os.path.dirname(sound) == folder]
    # As Audacity calls a track that has no name of its own.
    if len(beside) == 1 and re.fullmatch(r"labels?([ _-]*track)?[ _-]*\d*\.txt", file.lower()):
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
