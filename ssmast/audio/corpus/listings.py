"""Lists that other programs keep beside their sound: of Kaldi, AST, AudioFolder and WebDataset.

    wav.scp, utt2spk, text, segments    a folder of Kaldi, or one for each part
    {"data": [{"wav", "labels"}]}       AST and PSLA, with class_labels_indices.csv
    train.tsv, dev.tsv, test.tsv        a table for each part, as Common Voice and BEANS have them
    metadata.csv, .jsonl, .parquet      Hugging Face's AudioFolder, in the folder or in each part
    000.wav, 000.cls, 000.json, 000.txt members of a WebDataset tar, of one key up to the first dot

Sources: kaldi-asr.org/doc/data_prep.html; github.com/YuanGongND/ast, egs;
huggingface.co/docs/datasets/audio_load; github.com/webdataset/webdataset.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ssmast.audio.corpus.shards import TarReader, index_tar
from ssmast.audio.corpus.table import (
    LABELS_BETWEEN,
    METADATA,
    Listing,
    column_of,
    columns_of,
    find_column,
    joined,
    read_columns,
    read_header,
    read_table,
    said_of,
    split_word,
    table_of,
    without_part,
)
from ssmast.audio.read import excerpt_name
from ssmast.files import as_text
from ssmast.progress import say_once

_log = logging.getLogger(__name__)

WAV_SCP = "wav.scp"
_CLASS_INDEX = "class_labels_indices.csv"
_OF_VALUES = ("metadata.jsonl", "metadata.parquet")  # of JSON's values, where CSV has text
_TABLES = (METADATA, "metadata.tsv", *_OF_VALUES)
_BESIDE = (".cls", ".json", ".txt")
_LARGEST = 1 << 20


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(as_text(path.read_bytes(), path).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _json(text: str, what: object) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{what} is no valid JSON: {error}") from error


# -- Kaldi -----------------------------------------------------------------------------------------


def list_kaldi(root: Path, folders: Sequence[Path]) -> Listing:
    """The utterances of Kaldi's folders.

    Columns are utterance, speaker, text, and one for each other `utt2...` file; the split is the
    name of the folder, where it says one.
    """
    found = Listing(folders[0] / WAV_SCP)
    for folder in folders:
        utterances = recordings = _recordings(folder / WAV_SCP, root)
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
        found.add(list(utterances.values()), own)
    label = next((one for one in ("speaker", "text") if one in found.columns), "")
    found.said = {"label": label} if label else {}
    return found


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
        # Relative to where Kaldi is run from, which nothing says: two folders above data/train.
        for above in [] if os.path.isabs(place) else path.absolute().parents[:4]:
            if (above / place).is_file():
                is_below = above.is_relative_to(root.absolute())
                found[key] = (
                    os.path.relpath(above / place, root) if is_below else f"{above / place}"
                )
                break
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


# -- JSON lists of AST -----------------------------------------------------------------------------


def is_json_list(path: Path) -> bool:
    """Whether a .json file looks like one of AST's: `data` and `wav` stand near its beginning."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(4096)
    return head.lstrip().startswith(b"{") and b'"data"' in head and b'"wav"' in head


def list_json(files: Sequence[Path]) -> Listing:
    """The clips of AST's JSON lists; the split is what the name of a list says.

    Labels are the display names of class_labels_indices.csv, in the folder of the list or the one
    above, where there is one; else as the list writes them.
    """
    found = Listing(files[0])
    classes: dict[str, str] = {}
    for path in files:
        classes = classes or _classes_beside(path)
        names, cells = list[str](), list[str]()
        for number, entry in enumerate(_entries(path), start=1):
            names.append(entry["wav"])
            labels = [word.strip() for word in str(entry.get("labels", "")).split(",")]
            for label in filter(None, labels):
                if classes and label not in classes:
                    raise ValueError(
                        f"{path}, entry {number}: {label!r} is no label of {_CLASS_INDEX}"
                    )
            cells.append(joined([classes.get(one, one) for one in labels], path))
        split = split_word(path.stem) if len(files) > 1 else ""
        found.add(names, {"label": cells, "split": [split] * len(names)})
    if not any(found.columns["split"]):
        del found.columns["split"]
    several = any(LABELS_BETWEEN in cell for cell in found.columns["label"])
    found.said = {"label": "label", "multi_label": several, "label_separator": LABELS_BETWEEN}
    if classes:
        found.said["classes"] = list(classes.values())
    return found


def _entries(path: Path) -> list[dict[str, Any]]:
    content = _json(as_text(path.read_bytes(), path), path)
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
        files = [folder / _CLASS_INDEX]
        # AST's own of other sets than AudioSet: esc_class_labels_indices.csv
        files = files if files[0].is_file() else sorted(folder.glob(f"*_{_CLASS_INDEX}"))
        for file in files if len(files) == 1 else ():
            table = read_table(file)
            mids, shown = (column_of(table, name, file) for name in ("mid", "display_name"))
            return dict(zip(mids, shown, strict=True))
    return {}


# -- AudioFolder -----------------------------------------------------------------------------------


def audio_folder_tables(root: Path) -> list[Path]:
    """The metadata files of an AudioFolder: in the folder, or one in each part; empty for none.

    Where the folder has a metadata.csv, it is no AudioFolder but that table. Where a sub-folder
    that is no part has a table too, or a part's table has parts of its own, it is none either, but
    a folder of sets, one of which is called such as speech_commands_test.
    """
    for name in _OF_VALUES:
        if (root / name).is_file():
            return [root / name]
    if any((root / name).is_file() for name in _TABLES):
        return []
    folders = [one for top in (root, root / "data") for one in sorted(top.glob("*/"))]
    if not any(split_word(one.name) for one in folders):
        return []
    found = [one / name for one in folders for name in _TABLES if (one / name).is_file()]
    is_one_each = len({path.parent for path in found}) == len(found)
    return found if is_one_each and all(map(_is_of_part, found)) else []


def _is_of_part(path: Path) -> bool:
    """Whether a table is of one part of an AudioFolder: its folder says so, and it no other."""
    part = split_word(path.parent.name)
    if not part or path.name in _OF_VALUES:
        return bool(part)
    columns = read_header(path)
    said = {find_column(columns, name) for name in ("split", "fold")} & set(columns)
    return all(len(set(read_table(path)[name].to_pylist()) - {""}) < 2 for name in said)


def list_audio_folder(root: Path, tables: Sequence[Path], column: str) -> Listing:
    """The rows of an AudioFolder's metadata."""
    found = Listing(tables[0])
    for path in tables:
        table = read_table(path) if path.name.endswith(("csv", "tsv")) else _read_values(path)
        found.said |= said_of(table)
        above = os.path.relpath(path.parent, root)
        names, cells = _named_rows(table, column, path)
        if above != ".":
            names = [f"{above}/{name}" for name in names]
            cells.setdefault("split", [split_word(path.parent.name)] * len(names))
        found.add(names, cells)
    return found


def _named_rows(table: pa.Table, column: str, path: Path) -> tuple[list[str], dict[str, list[Any]]]:
    """The clips that the rows of a table name, and its other columns."""
    cells = {name: table[name].to_pylist() for name in table.column_names}
    names = column_of(table, column, path)
    cells.pop(find_column(table.column_names, column))
    return names, cells


# -- a table for each part -------------------------------------------------------------------------


def tables_of_parts(folder: Path) -> list[Path]:
    """The tables of a folder that are one of each part: train.tsv, dev.tsv, test.tsv; or none.

    Their names differ by the part alone, or no other table there has paths and labels.
    """
    columns: dict[Path, list[str]] = {}
    for path in sorted([*folder.glob("*.csv"), *folder.glob("*.tsv")]):
        if path.name[0] != "." and split_word(path.stem):
            columns[path] = read_header(path)
    with_path = [one for one, has in columns.items() if find_column(has, "path") in has]
    labelled = [one for one in with_path if find_column(columns[one], "label") in columns[one]]
    alike: dict[str, list[Path]] = {}
    for one in labelled or with_path:
        alike.setdefault(without_part(one.stem), []).append(one)
    found = [own for own in alike.values() if len(own) > 1] or [labelled]
    words = [split_word(one.stem) for one in found[0]]
    return found[0] if len(found) == 1 and 1 < len(words) == len({*words}) else []


def list_tables_of_parts(tables: Sequence[Path]) -> Listing:
    """The rows of a table for each part; without one called train, dev is what trains."""
    found = Listing(tables[0])
    words = [split_word(path.stem) for path in tables]
    without_train = not {"train", "training"} & {*words}
    for path, word in zip(tables, words, strict=True):
        names, cells = _named_rows(read_table(path), "path", path)
        word = "train" if without_train and word == "dev" else word
        cells.setdefault(find_column(list(cells), "split"), [word] * len(names))
        found.add(names, cells)
    return found


def _read_values(path: Path) -> pa.Table:
    """A table of the rows of Parquet or of JSON lines; what is nested in them is left out."""
    lists: set[str] = set()
    objects = read_columns(path).to_pylist() if path.suffix == ".parquet" else _json_lines(path)
    rows, nested = list[dict[str, str]](), set[str]()
    for row in objects:
        rows.append(_cells(row, path, lists))
        nested |= row.keys() - rows[-1].keys()
    if not rows:
        raise ValueError(f"{path} has no row")
    if nested:
        say_once(f"{path}: nested values are left out, of {', '.join(sorted(nested)[:5])}")
    columns = columns_of(rows)
    label = find_column(list(columns), "label")
    said = {"label": label, "multi_label": True, "label_separator": LABELS_BETWEEN}
    return table_of(columns, said if label in lists else {})


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in _lines(path):
        row = _json(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} must be a JSON object, got {line:.80}")
        yield row


def _cells(row: dict[str, Any], path: Path | str, lists: set[str]) -> dict[str, str]:
    """JSON values as the text of cells: lists of words joined, and noted; nested ones left out."""
    cells = {}
    for name, value in row.items():
        if value is None:
            cells[name] = ""
        elif isinstance(value, str | int | float):
            cells[name] = str(value)
        elif isinstance(value, list):
            lists.add(name)
            if all(isinstance(one, str | int | float) for one in value):
                cells[name] = joined(map(str, value), path)
    return cells


# -- WebDataset ------------------------------------------------------------------------------------


def key_of(name: str) -> str:
    """The key of a member of a WebDataset tar.

    >>> key_of("a.b/000.left.wav")
    'a.b/000'
    """
    folder, file = os.path.split(name)
    return os.path.join(folder, file.split(".")[0])


def read_labels(tars: Sequence[Path | str]) -> pa.Table | None:
    """What stands beside the sounds of some tars, a row a sound, in their order; None for nothing.

    The column `label` is what .cls holds, else what `label` in .json says, else what .txt holds;
    other values in .json are columns of their own. A number in .cls stays a number, since nothing
    in a tar names the classes. With a word such as train in the names of the tars there is a column
    `split`.
    """
    rows: list[dict[str, str]] = []
    lists: set[str] = set()
    splits: list[str] = []
    reader = TarReader(list(tars))
    num_large = 0
    for number, tar in enumerate(tars):
        about: dict[str, dict[str, str]] = {}
        beside = index_tar(tar, endings=_BESIDE)
        for member, offset, size in zip(
            beside.texts(), beside.offset.tolist(), beside.sizes.tolist(), strict=True
        ):
            if size > _LARGEST:
                num_large += 1
                continue
            what, ending = f"{member} in {tar}", os.path.splitext(member)[1].lower()
            text = as_text(reader.read(number, offset, size, member), what).strip()
            row = _json(text, what) if ending == ".json" else {ending: text}
            if isinstance(row, dict):
                about.setdefault(key_of(member), {}).update(_cells(row, tar, lists))
        sounds = index_tar(tar).texts()
        rows += [about.get(key_of(name), {}) for name in sounds]
        *_, above, name = ("", *str(tar).split("/"))
        splits += [split_word(name) or split_word(above)] * len(sounds)
    if num_large:
        _log.warning(
            "%s: %d members beside sounds are larger than 1 MiB, unread", tars[0], num_large
        )
    table = columns_of(rows)
    if not table:
        return None
    named = find_column([name for name in table if name not in (".cls", ".txt")], "label")
    label = next((name for name in (".cls", named, ".txt") if name in table), "")
    said = {"multi_label": label in lists, "label_separator": LABELS_BETWEEN}
    if label:
        said["label"] = "label"
        table = {"label": table.pop(label), **table}
    table = {{".txt": "text", ".cls": "cls"}.get(name, name): own for name, own in table.items()}
    if any(splits):
        table["split"] = splits
    return table_of(table, said)
