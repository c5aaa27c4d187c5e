"""The tables of a corpus: metadata.csv, a Parquet manifest, and task.json.

`task.json` beside the metadata.csv of a labelled set says where its audio lies and how it is
scored. The builders in `ssmast.datasets` write it; a set made by hand needs none. Its keys:

    audio            folder that the paths in metadata.csv are relative to; itself absolute, or
                     relative to the folder of task.json
    label, split, fold, group, protocol, metric     what a task means where a user says nothing
    multi_label, label_separator                    several labels in the label column
    classes          names of all classes, in the official order
    ids_sha256, counts, published, differences      what the set holds, and what it should hold
"""

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from ssmast.audio.corpus.remote import is_url, read_whole

_DELIMITERS = ",;\t|"


def read_table(path: str | PathLike[str]) -> pa.Table:
    """Read a CSV file, here or at a URL, as a table in which every column is text.

    A byte order mark is dropped and empty lines are skipped; the delimiter is the one of comma,
    semicolon, tab and bar that the header holds most of.

    Args:
        path: of the CSV file, UTF-8, with a header.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty, not UTF-8, or a row has more or fewer fields than the header.
    """
    with _rows_of(path) as (columns, rows):
        _check_header(path, columns)
        # As columns: a million rows would take a gigabyte.
        fields = list(zip(*_full_rows(path, rows, len(columns)), strict=True))
    fields = fields or [() for _ in columns]
    arrays = [pa.array(values, type=pa.large_string()) for values in fields]
    return pa.table(dict(zip(columns, arrays, strict=True)))


def read_header(path: str | PathLike[str]) -> list[str]:
    """Names of the columns of a CSV file, as `read_table` finds them; none of an empty file.

    Args:
        path: of the CSV file, UTF-8.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8.
    """
    with _rows_of(path) as (columns, _):
        return columns


def read_columns(path: Path | str) -> pa.Table:
    """Read a Parquet file, such as the manifest of a prepared corpus.

    Args:
        path: of the file, or its URL.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no Parquet file.
    """
    import pyarrow.parquet as pq

    if isinstance(path, Path) and not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a Parquet file was wanted")
    try:
        return pq.read_table(pa.BufferReader(read_whole(path)) if isinstance(path, str) else path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error


def column_of(table: pa.Table, column: str, path: str | PathLike[str]) -> list[str]:
    """One column of a table as a list.

    Args:
        table: from `read_table`.
        column: its name.
        path: of the table, for the error.

    Raises:
        ValueError: if there is no such column; the message lists those there are.
    """
    if column not in table.column_names:
        known = ", ".join(table.column_names)
        hint = "; rename one, or give a folder of audio without this file"
        raise ValueError(
            f"{path} has no column {column!r}; it has {known}{hint if column == 'path' else ''}"
        )
    return table[column].to_pylist()


@contextmanager
def _rows_of(path: str | PathLike[str]) -> Iterator[tuple[list[str], Iterator[list[str]]]]:
    """Columns and rows of an open CSV file; what is wrong with it comes out as one sentence."""
    remote = isinstance(path, str) and is_url(path)
    path = path if isinstance(path, str) and remote else Path(path)
    if isinstance(path, Path) and not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a CSV file with a header was wanted")
    try:
        with _opened(path) as file:
            header = file.readline()
            delimiter = max(_DELIMITERS, key=header.count)
            file.seek(0)
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            yield [name.strip() for name in next(rows, [])], rows
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path} is no valid CSV file: {error}") from error


def _opened(path: Path | str) -> TextIO:
    raw = io.BytesIO(read_whole(path)) if isinstance(path, str) else path.open("rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def _check_header(path: str | PathLike[str], columns: list[str]) -> None:
    if not any(columns):
        raise ValueError(f"{path} is empty; a header with the column names was wanted")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise ValueError(f"{path} names a column twice in its header: {', '.join(twice)}")


def _full_rows(
    path: str | PathLike[str], rows: Iterator[list[str]], width: int
) -> Iterator[list[str]]:
    # csv readers count lines, not rows, which is what an editor shows.
    for row in rows:
        if not row:
            continue
        if len(row) != width:
            line = getattr(rows, "line_num", "?")
            raise ValueError(f"{path} has {len(row)} fields in line {line}; its header has {width}")
        yield row


TASK_FILE = "task.json"
FORMAT = "ssmast task 1"


def read_task_file(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What task.json in a folder says; empty where there is none, or one of another program.

    Raises:
        ValueError: if it is ours and damaged.
    """
    path = Path(folder) / TASK_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no valid JSON: {error}; build the set again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return {}
    return content


def audio_root(folder: Path) -> Path:
    """The folder that relative paths in a labelled set start from.

    Raises:
        ValueError: if task.json names something that is no path.
        FileNotFoundError: if the folder it names is gone.
    """
    named = read_task_file(folder).get("audio", ".")
    if not isinstance(named, str) or not named.strip() or "\x00" in named:
        raise ValueError(f"{folder / TASK_FILE} must name a folder as `audio`, got {named!r}")
    root = folder / named
    if not root.is_dir():
        raise FileNotFoundError(
            f"the audio of the labelled set {folder} was in {root}, which is no folder now; build "
            f"the set again, or correct `audio` in {folder / TASK_FILE}"
        )
    return root
