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
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from ssmast.audio.corpus.remote import is_sound, is_url, read_whole
from ssmast.files import encoding_of
from ssmast.settings import in_home

METADATA = "metadata.csv"
_SAID = b"ssmast"
LABELS_BETWEEN = ";"
"""Between the labels of a clip that has several."""
_DELIMITERS = ",;\t|"
# Other names of a column, without case, spaces and marks.
_ALSO_CALLED = {
    "path": ("filename", "filepath", "audiopath", "audiofilepath", "audiofilename"),
    "label": ("labels",),
}
# Where it is called none of these, the only column of such a name.
_OR_ELSE = {
    "path": ("file", "files", "fname", "wav", "audio"),
    "label": ("class", "classname", "category", "species"),
}
# And of none of these, the only column whose name ends so: slice_file_name, primary_label.
_ENDS_IN = {"path": ("filename", "path"), "label": ("label",)}


def find_table(folder: Path) -> Path | None:
    """The metadata.csv of a folder, in whatever case a program wrote its name; None without one."""
    path = folder / METADATA
    if path.is_file():
        return path
    names = (METADATA, "metadata.tsv")
    found = [
        one
        for one in (folder.iterdir() if folder.is_dir() else ())
        if one.name.casefold() in names and one.is_file()
    ]
    return found[0] if len(found) == 1 else None


def find_column(columns: Sequence[str], wanted: str) -> str:
    """The column that is meant by a name: of that name, or the only one that differs in its form.

    >>> find_column(["File Name", "Label", "label "], "path"), find_column(["a"], "label")
    ('File Name', 'label')
    >>> find_column(["file", "Category"], "label"), find_column(["class", "species"], "label")
    ('Category', 'label')
    >>> find_column(["mp3_path", "x"], "path"), find_column(["my_label", "its_label"], "label")
    ('mp3_path', 'label')
    """
    if wanted in columns:
        return wanted
    for called in ((plain_name(wanted), *_ALSO_CALLED.get(wanted, ())), _OR_ELSE.get(wanted, ())):
        found = [name for name in columns if plain_name(name) in called]
        if found:
            return found[0] if len(found) == 1 else wanted
    found = [name for name in columns if plain_name(name).endswith(_ENDS_IN.get(wanted, ()))]
    return found[0] if len(found) == 1 else wanted


def plain_name(name: str) -> str:
    """The name of a column without case, spaces and marks.

    >>> plain_name("Begin Time (s)")
    'begintimes'
    """
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", name)).casefold()


def split_word(name: str) -> str:
    """The part of a set that the name of a file or folder says; empty where it says none.

    >>> split_word("train-00000-of-00002.parquet"), split_word("esc_eval_data"), split_word("a.wav")
    ('train', 'test', '')
    """
    for word in re.split(r"[^a-z]+", name.lower()):
        if word in ("train", "training", "valid", "validation", "val", "dev", "test", "testing"):
            return word
        if word in ("eval", "evaluation", "evaluate"):
            return "test"
        if word == "development":
            return "dev"
    return ""


def without_part(name: str) -> str:
    """The words of a name less those that say a part.

    >>> without_part("nsynth-train"), without_part("fold1_evaluate")
    ('nsynth', 'fold1')
    """
    words = re.split(r"[\W_]+", name.lower())
    return " ".join(word for word in words if word and not split_word(word))


def read_table(path: str | PathLike[str]) -> pa.Table:
    """Read a CSV file, here or at a URL, as a table in which every column is text.

    A byte order mark is dropped; empty lines are skipped, and so are columns without a name or a
    value, as spreadsheets leave them; the delimiter is the one that a first line `sep=;` names, or
    that of comma, semicolon, tab and bar which the header holds most of. In a .tsv that cannot be
    read so, or only with line breaks in its cells, quotes are letters.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty, not UTF-8, or a row has more or fewer fields than the header.
    """
    try:
        columns, fields = _read_fields(path)
        broken = None
    except ValueError as error:
        columns, fields, broken = [], [], error
    is_odd = broken or any("\n" in cell for own in fields for cell in own)
    if is_odd and os.fspath(path).lower().endswith(".tsv"):
        with suppress(ValueError):  # as Common Voice writes its tables
            columns, fields = _read_fields(path, quoted=False)
            broken = None
    if broken:
        raise broken
    fields = fields or [() for _ in columns]
    kept = [i for i, name in enumerate(columns) if name or any(map(str.strip, fields[i]))]
    columns, fields = [columns[i] for i in kept], [fields[i] for i in kept]
    _check_header(path, columns)
    arrays = [pa.array(values, type=pa.large_string()) for values in fields]
    return pa.table(dict(zip(columns, arrays, strict=True)))


def _read_fields(
    path: str | PathLike[str], *, quoted: bool = True
) -> tuple[list[str], list[tuple[str, ...]]]:
    with _rows_of(path, quoted=quoted) as (columns, rows):
        # As columns: a million rows would take a gigabyte.
        return columns, list(zip(*_full_rows(path, rows, columns), strict=True))


def read_header(path: str | PathLike[str]) -> list[str]:
    """Names of the columns of a CSV file, as `read_table` finds them; none of an empty file."""
    with _rows_of(path, header_alone=True) as (columns, _):
        return [name for name in columns if name]


def read_columns(path: Path | str, columns: list[str] | None = None) -> pa.Table:
    """Read columns (None: all) of a Parquet file, such as the manifest of a prepared corpus."""
    import pyarrow.parquet as pq

    if isinstance(path, Path) and not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a Parquet file was wanted")
    try:
        file = pa.BufferReader(read_whole(path)) if isinstance(path, str) else path
        return pq.read_table(file, columns=columns)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error


def table_of(columns: Mapping[str, Sequence[str]], said: Mapping[str, Any]) -> pa.Table:
    """A table of text, with what its layout says of the set in the words of a task.json.

    Args:
        columns: by name, a value a clip.
        said: label, multi_label, label_separator, classes; none has to be there.
    """
    arrays = {name: pa.array(values, type=pa.large_string()) for name, values in columns.items()}
    return pa.table(arrays).replace_schema_metadata({_SAID: json.dumps(dict(said)).encode()})


def columns_of(rows: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Rows as columns, in the order in which they come up; empty where a row has nothing."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, "") for row in rows] for name in names}


class Listing:
    """Clips by the names of their files: what every layout of other programs is read to.

    Attributes:
        path: of the list, for messages.
        names: of the files, or of excerpts of them.
        columns: what is known of each clip.
        said: what the layout says of the labels, in the words of a task.json.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.names: list[str] = []
        self.columns: dict[str, list[str]] = {}
        self.said: dict[str, Any] = {}

    def add(self, names: Sequence[str], columns: Mapping[str, Sequence[str]]) -> None:
        """Add clips; a column that only some have is empty for the others."""
        for column in {**self.columns, **columns}:
            cells = self.columns.setdefault(column, [""] * len(self.names))
            cells += columns.get(column, [""] * len(names))
        self.names += names


def said_of(table: pa.Table) -> dict[str, Any]:
    """What the layout of a table says of the set; empty for a table of another origin."""
    return json.loads((table.schema.metadata or {}).get(_SAID, b"{}"))


def joined(labels: Iterable[str], path: Path | str) -> str:
    """Several labels as the text of one cell."""
    found = list(dict.fromkeys(filter(None, labels)))
    for label in found:
        if LABELS_BETWEEN in label and len(found) > 1:
            raise ValueError(f"{path}: the label {label!r} holds {LABELS_BETWEEN!r}; rename it")
    return LABELS_BETWEEN.join(found)


def column_of(table: pa.Table, column: str, path: str | PathLike[str]) -> list[str]:
    """One column of a table as a list.

    Raises:
        ValueError: if there is no such column; the message lists those there are.
    """
    column = find_column(table.column_names, column)
    if column not in table.column_names:
        known = ", ".join(table.column_names)
        hint = header_hint(table.column_names) or "; rename one"
        hint += ", or give a folder of audio without this file"
        raise ValueError(
            f"{path} has no column {column!r}; it has {known}{hint if column == 'path' else ''}"
        )
    return table[column].to_pylist()


@contextmanager
def _rows_of(
    path: str | PathLike[str], *, header_alone: bool = False, quoted: bool = True
) -> Iterator[tuple[list[str], Iterator[list[str]]]]:
    """Columns and rows of an open CSV file; what is wrong with it comes out as one sentence."""
    remote = isinstance(path, str) and is_url(path)
    path = path if isinstance(path, str) and remote else Path(path)
    if isinstance(path, Path) and not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a CSV file with a header was wanted")
    try:
        with _opened(path, header_alone) as file:
            lines = itertools.dropwhile(lambda line: not line.strip(), file)
            header = next(lines, "")
            said = re.fullmatch(r'"?sep=(.)"?\s*', header)  # as spreadsheets write it
            if "\0" in header:
                raise ValueError(f"{path} holds zero bytes, so it is no text; save it as CSV")
            if said is None:
                lines = itertools.chain([header], lines)
            delimiter = said[1] if said else max(_DELIMITERS, key=header.count)
            marks = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
            rows = csv.reader(lines, delimiter=delimiter, strict=True, quoting=marks)
            yield [name.strip() for name in next(rows, [])], rows
    except UnicodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path} is no valid CSV file: {error}") from error


def _opened(path: Path | str, header_alone: bool) -> TextIO:
    raw = io.BytesIO(read_whole(path)) if isinstance(path, str) else path.open("rb")
    encoding = encoding_of(raw.read(2))
    raw.seek(0)
    if header_alone and encoding != "utf-16":  # what is wrong below is said where rows are read
        with raw:
            lines = [raw.readline()]
            while lines[-1] and (not lines[-1].strip() or b"sep=" in lines[-1][:9]):
                lines.append(raw.readline())
            raw = io.BytesIO(b"".join(lines))
    return io.TextIOWrapper(raw, encoding=encoding, newline="")


def _check_header(path: str | PathLike[str], columns: list[str]) -> None:
    if not any(columns):
        raise ValueError(f"{path} is empty; a header with the column names was wanted")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        named = ", ".join(name or "one without a name" for name in twice)
        raise ValueError(
            f"{path} names a column twice in its header: {named}; the first line must be the header"
        )


def _full_rows(
    path: str | PathLike[str], rows: Iterator[list[str]], columns: Sequence[str]
) -> Iterator[list[str]]:
    # csv readers count lines, not rows, which is what an editor shows.
    for row in rows:
        if not any(map(str.strip, row)):
            continue
        if len(row) != len(columns):
            line = getattr(rows, "line_num", "?")
            hint = "; delete the comment lines above the header" * columns[0].startswith("#")
            if not hint and len(row) > len(columns):  # as tags in MTG-Jamendo's tables
                hint = header_hint(columns) or (
                    "; put what belongs to one column into one cell, labels with ; between them"
                )
            raise ValueError(
                f"{path} has {len(row)} fields in line {line}; its header has {len(columns)}: "
                f"{', '.join(columns)}{hint or header_hint(columns)}"
            )
        yield row


def header_hint(columns: Sequence[str]) -> str:
    """What to do where the first line of a table looks like a row: a number, a file, a sentence."""
    of_row = (len(one) > 60 or is_sound(one) or one.isdecimal() for one in columns)
    if any(of_row):
        return "; that looks like a row: write a line with the names of the columns above it"
    return ""


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
    """The folder that relative paths in a labelled set start from."""
    named = read_task_file(folder).get("audio", ".")
    if not isinstance(named, str) or not named.strip() or "\x00" in named:
        raise ValueError(f"{folder / TASK_FILE} must name a folder as `audio`, got {named!r}")
    root = folder / named
    if not root.is_dir():
        root = folder / in_home(named)
    if not root.is_dir():
        raise FileNotFoundError(
            f"the audio of the labelled set {folder} was in {root}, which is no folder now; build "
            f"the set again, or correct `audio` in {folder / TASK_FILE}"
        )
    return root
