"""Which of other programs' layouts a path is: Hugging Face's, Kaldi's, AST's, Raven's and others.

What has none of these is a folder of sound, a metadata.csv, a list or a tar: see `open.py`.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssmast.audio.corpus.corpus import Corpus
from ssmast.audio.corpus.huggingface import arrow_rows, parquet_rows, saved_shards
from ssmast.audio.corpus.listings import (
    WAV_SCP,
    audio_folder_tables,
    is_json_list,
    of_audio_folder,
    of_json_lists,
    of_kaldi,
    split_word,
)
from ssmast.audio.corpus.named import is_sound
from ssmast.audio.corpus.spans import kind_of_spans, of_spans, tables_of_spans
from ssmast.audio.corpus.table import TASK_FILE, find_table, plain_name, read_header, read_text


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a path is, and what opens it.

    Attributes:
        name: in words.
        open: reads it.
        spans: whether the clips are spans of recordings: "" if not, "named" where the table of
            spans is what the path names, "beside" where tables lie beside recordings.
    """

    name: str
    open: Callable[[], Corpus]
    spans: str = ""


def layout_of(path: Path, *, column: str = "path") -> Layout | None:
    """The layout of another program that a path has; None for none.

    Args:
        path: a file or a folder.
        column: of a table, with the paths.

    Raises:
        ValueError: if it has one and a file of it is damaged.
        FileNotFoundError: if a file that it names is gone.
    """
    return _of_folder(path, column) if path.is_dir() else _of_file(path, column)


def _of_folder(path: Path, column: str) -> Layout | None:
    if (path / "manifest.parquet").is_file():
        return None
    if table := find_table(path):
        return None if (path / TASK_FILE).is_file() else _of_file(table, column)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return Layout(name="a folder of datasets' save_to_disk (Arrow)", open=lambda: _saved(path))
    if tables := audio_folder_tables(path):
        name = f"an AudioFolder with {tables[0].relative_to(path)}"
        return Layout(name=name, open=lambda: of_audio_folder(path, tables, column))
    folders = [path] if (path / WAV_SCP).is_file() else []
    folders = folders or [one.parent for one in sorted(path.glob(f"*/{WAV_SCP}"))]
    if folders and (folders == [path] or all(split_word(one.name) for one in folders)):
        return Layout(name="a folder of Kaldi (wav.scp)", open=lambda: of_kaldi(path, folders))
    if shards := _parquet_in(path):
        return Layout(
            name=f"Parquet shards with the sound in them ({len(shards)} files)",
            open=lambda: _of_parquet(path, shards),
        )
    if lists := [one for one in sorted(path.glob("*.json")) if is_json_list(one)]:
        return Layout(name="JSON lists of AST", open=lambda: of_json_lists(path, lists))
    if spans := tables_of_spans(path):
        kinds = sorted({kind_of_spans(path / name) for name in spans})
        return Layout(
            name=f"recordings with annotations ({', '.join(kinds)})",
            open=lambda: of_spans(path, spans),
            spans="beside",
        )
    return None


def _of_file(path: Path, column: str) -> Layout | None:
    ending = path.suffix.lower()
    if ending == ".parquet" and path.name != "manifest.parquet":
        return Layout(name="a Parquet file with the sound in it", open=lambda: parquet_corpus(path))
    if ending == ".arrow":
        return Layout(
            name="an Arrow file of datasets",
            open=lambda: arrow_rows([path], [""]).corpus(path.parent),
        )
    if ending == ".scp":
        return Layout(
            name="a list of Kaldi (wav.scp)", open=lambda: of_kaldi(path.parent, [path.parent])
        )
    if ending == ".jsonl":
        return Layout(
            name="a table of JSON lines",
            open=lambda: of_audio_folder(path.parent, [path], column),
        )
    if ending == ".json":
        return Layout(name="a JSON list of AST", open=lambda: of_json_lists(path.parent, [path]))
    if column == "path" and (kind := kind_of_spans(path)) and not _has_clips(path):
        return Layout(
            name=f"annotated recordings ({kind})",
            open=lambda: of_spans(path.parent, [path.name]),
            spans="named",
        )
    return None


def _has_clips(path: Path) -> bool:
    """Whether the rows of a table with a start and an end are clips already: excerpts, members."""
    if (path.parent / "audio.tar").is_file():
        return True
    return "#t=" in read_text(path)[:4096] or "shard" in {
        plain_name(name) for name in read_header(path)
    }


def _parquet_in(folder: Path) -> list[Path]:
    """Parquet shards with sound, in a folder, its data/, or a folder for each part."""
    places = [folder, folder / "data"]
    places += [one for one in sorted(folder.iterdir()) if one.is_dir() and split_word(one.name)]
    found = [file for place in places for file in sorted(place.glob("*.parquet"))]
    if not found or any(is_sound(one.name) for one in folder.rglob("*")):
        return []  # beside sounds, such as the embeddings of a folder
    return found


def parquet_corpus(path: Path | str) -> Corpus:
    """A corpus of one Parquet file, here or at a URL."""
    root = path.rpartition("/")[0] if isinstance(path, str) else path.parent
    return parquet_rows([path], [""]).corpus(root)


def _of_parquet(root: Path, shards: list[Path]) -> Corpus:
    splits = [split_word(one.name) or _part_above(one, root) for one in shards]
    return parquet_rows(shards, splits if len(set(splits)) > 1 else [""] * len(shards)).corpus(root)


def _part_above(file: Path, root: Path) -> str:
    return "" if file.parent == root else split_word(file.parent.name)


def _saved(root: Path) -> Corpus:
    """A Dataset or a DatasetDict."""
    if (root / "state.json").is_file():
        shards = saved_shards(root)
        return arrow_rows(shards, [""] * len(shards)).corpus(root)
    path = root / "dataset_dict.json"
    try:
        names = [str(name) for name in json.loads(path.read_text(encoding="utf-8"))["splits"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must list splits, as datasets writes it") from error
    shards: list[Path] = []
    splits: list[str] = []
    for name in names:
        if os.path.basename(name) != name or not (root / name / "state.json").is_file():
            raise FileNotFoundError(f"{path} lists the split {name!r}, which has no state.json")
        own = saved_shards(root / name)
        shards += own
        splits += [split_word(name) or name] * len(own)
    return arrow_rows(shards, splits if len(names) > 1 else [""] * len(shards)).corpus(root)
