"""Lists that other programs keep beside their sound: Kaldi's, JSON lists, and metadata.jsonl.

    wav.scp, utt2spk, text, segments    a folder of Kaldi, or one for each part
    {"data": [{"wav", "labels"}]}       AST and PSLA, with class_labels_indices.csv
    metadata.csv, metadata.jsonl        Hugging Face's AudioFolder, in the folder or in each part

Sources: kaldi-asr.org/doc/data_prep.html; github.com/YuanGongND/ast, egs;
huggingface.co/docs/datasets/audio_load.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ssmast.audio.corpus.corpus import Corpus
from ssmast.audio.corpus.named import of_files
from ssmast.audio.corpus.table import (
    LABELS_BETWEEN,
    METADATA,
    column_of,
    find_column,
    joined,
    read_table,
    read_text,
    said_of,
    table_of,
)
from ssmast.audio.read import excerpt_name

_log = logging.getLogger(__name__)

WAV_SCP = "wav.scp"
CLASS_INDEX = "class_labels_indices.csv"
TABLES = (METADATA, "metadata.tsv", "metadata.jsonl")


def split_word(name: str) -> str:
    """The part of a set that the name of a file or folder says; empty where it says none.

    >>> split_word("train-00000-of-00002.parquet"), split_word("esc_eval_data"), split_word("a.wav")
    ('train', 'test', '')
    """
    for word in re.split(r"[^a-z]+", name.lower()):
        if word in ("train", "training", "valid", "validation", "val", "dev", "test", "testing"):
            return word
        if word in ("eval", "evaluation"):
            return "test"
    return ""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _pairs(path: Path) -> dict[str, str]:
    """A file of Kaldi: a key and the rest of its line."""
    found: dict[str, str] = {}
    for number, line in _lines(path):
        key, _, rest = line.replace("\t", " ").partition(" ")
        if not rest.strip():
            raise ValueError(f"{path}, line {number}: wanted a key and what it stands for")
        if key in found:
            raise ValueError(f"{path}, line {number}: {key!r} is there twice")
        found[key] = rest.strip()
    return found


def of_kaldi(root: Path, folders: Sequence[Path]) -> Corpus:
    """A corpus of the utterances of Kaldi's folders.

    Columns are utterance, speaker, text, and one for each other `utt2...` file; the split is the
    name of the folder, where it says one.

    Args:
        root: above the folders, or the only one.
        folders: each with a wav.scp.

    Raises:
        ValueError: if an entry is a command, which is never run, or a line cannot be read.
        FileNotFoundError: if a recording is not there.
    """
    names: list[str] = []
    columns: dict[str, list[str]] = {}
    for folder in folders:
        recordings = _recordings(folder / WAV_SCP, root)
        utterances = recordings
        if (folder / "segments").is_file():
            utterances = _segments(folder / "segments", recordings)
        own = {"utterance": list(utterances)}
        for file in sorted([*folder.glob("utt2*"), folder / "text"]):
            if file.is_file():
                about = _pairs(file)
                column = {"utt2spk": "speaker"}.get(file.name, file.name.removeprefix("utt2"))
                own[column] = [about.get(key, "") for key in utterances]
                if not any(own[column]):
                    raise ValueError(f"{file} names none of the utterances of {folder / WAV_SCP}")
        if folder != root:
            own["split"] = [split_word(folder.name)] * len(utterances)
        for column in {**columns, **own}:
            before = columns.get(column, [""] * len(names))
            columns[column] = before + own.get(column, [""] * len(utterances))
        names += utterances.values()
    label = next((one for one in ("speaker", "text") if one in columns), "")
    said = {"label": label} if label else {}
    return of_files(folders[0] / WAV_SCP, names, table_of(columns, said), root)


def _recordings(path: Path, root: Path) -> dict[str, str]:
    found = _pairs(path)
    for key, place in found.items():
        if place.endswith("|") or place.startswith("|"):
            raise ValueError(
                f"{path}: the entry {key!r} is a command, {place!r}, and commands are never run; "
                "write its sound to a file and name that"
            )
        if re.search(r"\.ark(:\d+)?$", place):
            raise ValueError(f"{path}: the entry {key!r} lies in an archive of Kaldi; write files")
        # Relative to where Kaldi is run from, which nothing says; mostly it is above.
        if not os.path.isabs(place) and (path.parent / place).is_file():
            found[key] = os.path.relpath(path.parent / place, root)
    return found


def _segments(path: Path, recordings: dict[str, str]) -> dict[str, str]:
    found = {}
    for key, rest in _pairs(path).items():
        try:
            recording, start, end = rest.split()[:3]
            begin, stop = float(start), float(end)
        except ValueError as error:
            raise ValueError(f"{path}: {key!r} must have a recording, start and end") from error
        if recording not in recordings:
            raise ValueError(f"{path}: {key!r} is of {recording!r}, which wav.scp lacks")
        if not 0 <= begin < stop:
            raise ValueError(f"{path}: {key!r} goes from {begin:g} to {stop:g} s")
        found[key] = excerpt_name(recordings[recording], begin, stop)
    return found


def is_json_list(path: Path) -> bool:
    """Whether a .json file looks like one of AST's: `data` and `wav` stand near its beginning."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(4096)
    return head.lstrip().startswith(b"{") and b'"data"' in head and b'"wav"' in head


def of_json_lists(root: Path, files: Sequence[Path]) -> Corpus:
    """A corpus of the clips of AST's JSON lists; the split is what the name of a list says.

    Labels are the display names of class_labels_indices.csv, in the folder of the list or the one
    above, where there is one; else as the list writes them.

    Args:
        root: folder of the sound.
        files: the lists.

    Raises:
        ValueError: if a list is damaged, or a label is none of the classes.
        FileNotFoundError: if a clip is not there.
    """
    names: list[str] = []
    columns: dict[str, list[str]] = {"label": [], "split": []}
    classes: dict[str, str] = {}
    for path in files:
        classes = classes or _classes_beside(path)
        for number, entry in enumerate(_entries(path), start=1):
            names.append(entry["wav"])
            labels = [word.strip() for word in str(entry.get("labels", "")).split(",")]
            for label in filter(None, labels):
                if classes and label not in classes:
                    raise ValueError(
                        f"{path}, entry {number}: {label!r} is no label of {CLASS_INDEX}"
                    )
            columns["label"].append(joined([classes.get(one, one) for one in labels], path))
            columns["split"].append(split_word(path.stem) if len(files) > 1 else "")
    if not any(columns["split"]):
        del columns["split"]
    several = any(LABELS_BETWEEN in cell for cell in columns["label"])
    said: dict[str, Any] = {"label": "label", "multi_label": several}
    said["label_separator"] = LABELS_BETWEEN
    if classes:
        said["classes"] = list(classes.values())
    return of_files(files[0], names, table_of(columns, said), root)


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # UnicodeDecodeError too
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(
            f'{path} is no corpus: wanted a folder of audio, or in a .json file {{"data": '
            '[{"wav": PATH, "labels": ...}]}'
        )
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("wav"), str):
            raise ValueError(f"{path}, entry {number}: wanted wav and labels, got {entry!r:.80}")
    return entries


def _classes_beside(path: Path) -> dict[str, str]:
    """Display name of each label, in the order of the index; empty without the file."""
    for folder in (path.parent, path.parent.parent):
        file = folder / CLASS_INDEX
        if file.is_file():
            table = read_table(file)
            mids, shown = (column_of(table, name, file) for name in ("mid", "display_name"))
            return dict(zip(mids, shown, strict=True))
    return {}


def read_json_lines(path: Path) -> pa.Table:
    """A table of the JSON objects of a file, one a line; what is nested in them is left out.

    Raises:
        ValueError: if a line is no JSON object.
    """
    rows: list[dict[str, str]] = []
    lists: set[str] = set()
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} must be a JSON object, got {line:.80}")
        lists |= {name for name, value in row.items() if isinstance(value, list)}
        rows.append(
            {str(k): text for k, v in row.items() if (text := cell_of(v, path)) is not None}
        )
    if not rows:
        raise ValueError(f"{path} has no line")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    label = find_column(columns, "label")
    said = {"label": label, "multi_label": True, "label_separator": LABELS_BETWEEN}
    said = said if label in lists else {}
    return table_of({name: [row.get(name, "") for row in rows] for name in columns}, said)


def cell_of(value: Any, path: Path | str) -> str | None:
    """A JSON value as the text of a cell: a list of words joined, None for what is nested."""
    if value is None:
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return joined(map(str, value), path)
    return None


def audio_folder_tables(root: Path) -> list[Path]:
    """The metadata files of an AudioFolder: metadata.jsonl, or one in each part; empty for none."""
    if (root / "metadata.jsonl").is_file():
        return [root / "metadata.jsonl"]
    if any((root / name).is_file() for name in TABLES):
        return []
    parts = [one for one in sorted(root.iterdir()) if one.is_dir() and split_word(one.name)]
    found = [one / name for one in parts for name in TABLES if (one / name).is_file()]
    return found if len({path.parent for path in found}) == len(found) else []


def of_audio_folder(root: Path, tables: Sequence[Path], column: str) -> Corpus:
    """A corpus of the rows of an AudioFolder's metadata.

    Args:
        root: the folder.
        tables: in it, or in a folder for each part.
        column: with the paths.

    Raises:
        ValueError: if a table is damaged, or lacks the column.
        FileNotFoundError: if a file is not there.
    """
    names: list[str] = []
    columns: dict[str, list[str]] = {}
    said: dict[str, Any] = {}
    for path in tables:
        is_json = path.suffix == ".jsonl"
        table = read_json_lines(path) if is_json else read_table(path)
        if is_json:
            said |= said_of(table)
        above = os.path.relpath(path.parent, root)
        own = column_of(table, column, path)
        names += own if above == "." else [f"{above}/{name}" for name in own]
        cells = {name: table[name].to_pylist() for name in table.column_names}
        cells.pop(find_column(table.column_names, column))
        if above != ".":
            cells.setdefault("split", [split_word(above)] * len(own))
        for name in {**columns, **cells}:
            before = columns.get(name, [""] * (len(names) - len(own)))
            columns[name] = before + cells.get(name, [""] * len(own))
    return of_files(tables[0], names, table_of(columns, said), root)
