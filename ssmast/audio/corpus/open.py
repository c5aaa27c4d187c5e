"""Opens a corpus: a folder, list, table, tars, prepared corpus or mixture, here or at a URL.

Also tells which of other programs' layouts a path is: Hugging Face's, Kaldi's, AST's, Raven's.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssmast.audio.corpus.corpus import Corpus, Mixture, joined, read_mixture
from ssmast.audio.corpus.entries import ArrayEntries, IndexFile
from ssmast.audio.corpus.huggingface import arrow_corpus, parquet_corpus, saved_corpus
from ssmast.audio.corpus.listings import (
    WAV_SCP,
    audio_folder_tables,
    is_json_list,
    list_audio_folder,
    list_json,
    list_kaldi,
    list_tables_of_parts,
    read_labels,
    tables_of_parts,
)
from ssmast.audio.corpus.named import of_files, of_listing, of_members, say_unnamed, say_unused
from ssmast.audio.corpus.remote import (
    Place,
    below,
    check_url,
    folder_of,
    is_file,
    is_hidden,
    is_sound,
    is_url,
    list_files,
    read_whole,
    walk,
)
from ssmast.audio.corpus.shards import index_tar, names_of_tars, names_several
from ssmast.audio.corpus.spans import kind_of_spans, list_spans, tables_of_spans
from ssmast.audio.corpus.table import (
    METADATA,
    TASK_FILE,
    Listing,
    audio_root,
    column_of,
    find_table,
    plain_name,
    read_columns,
    read_header,
    read_table,
    split_word,
)
from ssmast.audio.read import SOUND_EXTENSIONS, split_excerpt
from ssmast.files import as_text, sha256_of, write_atomic
from ssmast.settings import in_home, several_names

_log = logging.getLogger(__name__)

__all__ = ["Corpus", "open_corpus", "read_table"]

MANIFEST = "manifest.parquet"
INDEX = "manifest.index"
CORPUS_FILE = "corpus.json"
"""Files of a prepared corpus: its clips, their index, and what is known of all of them."""

# fmt: off
_LISTS = (".csv", ".tsv", ".txt", ".lst", ".tar", ".yaml", ".yml", ".json", ".jsonl", ".scp",
          ".parquet", ".arrow")
# fmt: on
_WANTED = "a folder of audio, a list (.txt, .lst), a .csv, a .tar or a mixture (.yaml)"


def open_corpus(
    path: str | os.PathLike[str], *, column: str = "path", spans: str = "auto"
) -> Corpus:
    """Open a set of clips.

    Args:
        path: a path, or a URL that fsspec reads (http, s3, gs, hf, memory and others), of
            a folder: what was prepared into it, where it holds a `manifest.parquet`; the rows of
            its `metadata.csv`, where it holds one, whose files may lie in another folder that a
            `task.json` beside it names; else every sound file below it, at any depth,
            sorted by path, and the members of every tar;
            a `.csv` file: clips relative to its folder, in its order. They are members of the tar
            named in a column `shard`, else of `audio.tar` beside it where there is one, else files
            or excerpts of files (`a.wav#t=1.5,3`, seconds);
            a `.txt` or `.lst` file: one path or URL a line, relative to its folder;
            an uncompressed `.tar`, or several: `clips-{000..127}.tar`;
            a `.yaml` file, or its text: a mixture, `[{path: A, weight: 7}, {path: B, weight: 3}]`;
            one of the layouts of other programs, see docs/layouts.md.
        column: of the table, with the paths.
        spans: of recordings with annotations: "spans" for a clip a span, "whole" for the
            recordings; "auto" for the spans where the path is a table, the recordings where the
            tables lie beside them.

    Raises:
        FileNotFoundError: if the path, or a clip that a table or list names, does not exist.
        ValueError: if no sound file is found, the table has no such column, a path leads out of
            the folder, a tar is compressed, or a URL is one that would do more than be read.
        RemoteError: if a URL cannot be reached.
    """
    text = in_home(os.fspath(path))
    is_there = os.path.exists(text)  # then it is meant, whatever its name looks like
    listed = text.lower().endswith((".yaml", ".yml")) and not os.path.isdir(text)
    weighted = None if is_there and not listed else read_mixture(text)
    if weighted is not None:
        words = {"column": column, "spans": spans}
        return Mixture([(open_corpus(one, **words), weight) for one, weight in weighted])
    if not is_there and (is_url(text) or text.split(":", 1)[0].strip().lower() == "pipe"):
        check_url(text)
        return _open_url(text, column)
    path = Path(text)
    if names_several(path.name) and not path.exists():
        tars = [path.parent / name for name in names_of_tars(path.name)]
        return _of_tars(path.parent, tars, text)
    layout = layout_of(path, column=column) if path.exists() else None
    if layout is not None and (layout.spans != "beside" or spans == "spans"):
        corpus = layout.open()
        return _recordings(corpus) if layout.spans and spans == "whole" else corpus
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return _open_prepared(path)
        table = find_table(path)
        return _open_folder(path) if table is None else _open_table(table, column)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; wanted {_WANTED}")
    return _open_file(path, column)


def _recordings(corpus: Corpus) -> Corpus:
    """The recordings that the spans of a corpus are of, each once."""
    files = dict.fromkeys(split_excerpt(corpus.name(i))[0] for i in range(len(corpus)))
    return of_files(Path(corpus.root), list(files), None, corpus.root)


def open_words(words: str) -> Corpus:
    """Open what the words of a command name, joined by new lines.

    Each is a sound file, an excerpt of one, or what `open_corpus` opens; several are `joined`.
    Among several a file of another kind is taken for a sound file, and so rejected by name.
    """
    names = several_names(words)
    if len(names) == 1 and not _is_sound_file(names[0]):
        return open_corpus(names[0])
    is_file = [_is_sound_file(name) or _is_of_no_corpus(name) for name in names]
    if all(is_file):
        return _of_sound_files(names)
    opened = [
        _of_sound_files([name]) if one else open_corpus(name)
        for name, one in zip(names, is_file, strict=True)
    ]
    return joined([corpus for one in opened for corpus in one.corpora])


def _is_sound_file(word: str) -> bool:
    return is_sound(split_excerpt(word)[0]) and not os.path.isdir(word)


def _is_of_no_corpus(word: str) -> bool:
    return os.path.isfile(word) and not word.lower().endswith(_LISTS)


def _of_sound_files(files: Sequence[str]) -> Corpus:
    names = [file if is_url(file) else os.path.abspath(in_home(file)) for file in files]
    corpus = of_files(Path("the command line"), names, None, Path())
    corpus.roots = []
    return corpus


def _open_file(path: Place, column: str) -> Corpus:
    """One file, by the end of its name."""
    kind = os.path.splitext(str(path))[1].lower()
    if kind in (".csv", ".tsv"):
        return _open_table(path, column)
    if kind in (".txt", ".lst"):
        lines = as_text(read_whole(path), path).splitlines()
        names = [line.strip() for line in lines if line.strip()]
        if names and all("\t" in name for name in names):
            raise ValueError(
                f"{path} has several columns; wanted one path a line, or a .tsv whose first line "
                "names the columns, such as path and label"
            )
        return of_files(path, names, None, folder_of(path))
    if os.path.basename(str(path)) == MANIFEST:
        return _open_prepared(folder_of(path))
    if re.search(r"\.(tar(\..*)?|tgz)$", str(path).lower()):
        return _of_tars(folder_of(path), [path], f"{path}")
    if kind == ".parquet":
        return parquet_corpus(folder_of(path), [path], [""])
    raise ValueError(f"{path} is no corpus: wanted {_WANTED}")


def _open_url(url: str, column: str) -> Corpus:
    if names_several(url):
        return _of_tars(folder_of(url), list(names_of_tars(url)), url)
    url = url.rstrip("/")
    if re.search(r"\.(csv|tsv|txt|lst|parquet|tar(\..*)?|tgz)$", url.rpartition("/")[2].lower()):
        return _open_file(url, column)
    if is_file(f"{url}/{MANIFEST}"):
        return _open_prepared(url)
    if is_file(f"{url}/{METADATA}"):
        return _open_table(f"{url}/{METADATA}", column)
    return _of_listing(url, (pair for pair in list_files(url) if not is_hidden(pair[0])))


def _open_folder(root: Path) -> Corpus:
    others: list[str] = []
    return _of_listing(root, walk(root, others=others), others)


def _of_listing(
    root: Place, files: Iterator[tuple[str, int]], others: Sequence[str] = ()
) -> Corpus:
    """The sound files of a listing (relative path, size), and the members of its tars."""
    sounds, tars, unused = list[tuple[str, int]](), list[Place](), list[str]()
    for name, size in files:
        if is_sound(name):
            sounds.append((name, size))
        elif name.lower().endswith(".tar"):
            tars.append(below(root, name))
        else:
            unused.append(name)
    say_unused(root, unused, others)
    return _of_tars(root, tars, f"{root}", sounds)


def _of_tars(
    root: Place, tars: Sequence[Place], what: str, loose: Sequence[tuple[str, int]] = ()
) -> Corpus:
    """A corpus of loose files, if any, and then all members of the tars.

    Where there are several tars, the tar's own name comes before that of its members.
    """
    entries = [ArrayEntries.of([name for name, _ in loose], np.array([size for _, size in loose]))]
    for number, tar in enumerate(tars):
        index = index_tar(tar, number=number)
        if len(tars) > 1:
            prefix = f"{tar}".removeprefix(f"{root}/")
            names = (f"{prefix}/{name}" for name in index.texts())
            index = ArrayEntries.of(names, index.sizes, index.shard, index.offset)
        entries.append(index)
    joined = ArrayEntries.joined(entries)
    if not len(joined):
        known = " ".join(sorted(SOUND_EXTENSIONS))
        raise ValueError(f"no sound file was found in {what}; known are {known}")
    labels = None if loose else partial(read_labels, list(tars))
    return Corpus(root=root, entries=joined, shards=list(tars), table=labels)


def _open_table(path: Place, column: str) -> Corpus:
    table = read_table(path)
    names, root = column_of(table, column, path), folder_of(path)
    if "shard" in table.column_names:
        return of_members(path, names, column_of(table, "shard", path), table)
    if is_file(below(root, "audio.tar")):
        return of_members(path, names, ["audio.tar"] * len(names), table)
    if isinstance(root, Path):
        home, is_of_folder = root, path == find_table(root)
        root = audio_root(home) if is_of_folder else home
        if root == home / "." and not any(_lies_in(root, name) for name in names):
            root = _with_sounds(root)
        corpus = of_files(path, names, table, root)
        if is_of_folder and root.samefile(home):  # of audio elsewhere, a set may be a small part
            say_unnamed(root, corpus, os.path.basename(path))
        return corpus
    return of_files(path, names, table, root)


def _lies_in(folder: Path, name: str) -> bool:
    return is_url(name) or os.path.isabs(name) or (folder / split_excerpt(name)[0]).exists()


# -- prepared corpora ------------------------------------------------------------------------------


def _open_prepared(root: Place) -> Corpus:
    """Open what `ssmast prepare` wrote, without holding it: rows are read from its index.

    The index of a corpus at a URL is fetched once, checked, and kept in the user's cache folder. A
    manifest without an index (of another tool) is held in memory.
    """
    try:
        facts: dict[str, Any] = json.loads(read_whole(below(root, CORPUS_FILE)))
    except (FileNotFoundError, ValueError):  # AudioError, of a URL, is a ValueError
        return _without_index(root)
    if not isinstance(facts, dict):
        raise ValueError(
            f"{below(root, CORPUS_FILE)} is damaged: it holds no object; copy it again"
        )
    index = IndexFile(_index_here(root, facts))
    return Corpus(
        root=root,
        entries=index,
        shards=_shards(root, index.shards),
        table=below(root, MANIFEST),
        listing_hash=index.listing_hash,
        facts=facts,
    )


def _index_here(root: Place, facts: dict[str, Any]) -> Path:
    """Path of the index, fetched if it lies elsewhere."""
    wanted = str(facts.get("index_sha256", ""))
    if isinstance(root, Path):
        path = root / INDEX
        if not path.is_file() or (wanted and sha256_of(path) != wanted):
            raise ValueError(
                f"{path} is missing or does not belong to its {CORPUS_FILE}; copy both again"
            )
        return path
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssmast"
    path = cache / f"{hashlib.sha256(wanted.encode()).hexdigest()[:32]}.index"
    if not path.is_file():
        data = read_whole(f"{root}/{INDEX}")
        if hashlib.sha256(data).hexdigest() != wanted:
            raise ValueError(
                f"{root}/{INDEX} does not belong to its {CORPUS_FILE}; copy both again"
            )
        write_atomic(path, data)
    return path


def _without_index(root: Place) -> Corpus:
    table = read_columns(below(root, MANIFEST))
    missing = {"key", "shard", "offset", "size"} - set(table.column_names)
    if missing:
        raise ValueError(
            f"{root}/{MANIFEST} has no column {', '.join(sorted(missing))}; it has "
            f"{', '.join(table.column_names)}"
        )
    shards, number = np.unique(np.array(table["shard"].to_pylist(), object), return_inverse=True)
    names, sizes = [str(key) for key in table["key"].to_pylist()], table["size"].to_numpy()
    entries = ArrayEntries.of(names, sizes, number, table["offset"].to_numpy())
    return Corpus(root=root, entries=entries, shards=_shards(root, list(shards)), table=table)


def _shards(root: Place, names: list[str]) -> list[Place]:
    for name in names:
        if ".." in Path(name).parts or Path(name).is_absolute() or ":" in name:
            raise ValueError(f"{root}/{MANIFEST} names the shard {name!r} outside its folder")
    return [below(root, name) for name in names]


# -- layouts of other programs ---------------------------------------------------------------------


@dataclass(frozen=True)
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
    """The layout of another program that a path has; None for none."""
    return _of_folder(path, column) if path.is_dir() else _of_file(path, column)


def _of_folder(path: Path, column: str) -> Layout | None:
    if (path / MANIFEST).is_file():
        return None
    if table := find_table(path):
        return None if (path / TASK_FILE).is_file() else _of_file(table, column)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        name = "a folder of datasets' save_to_disk (Arrow)"
        return Layout(name, lambda: saved_corpus(path))
    if tables := audio_folder_tables(path):
        name = f"an AudioFolder with {tables[0].relative_to(path)}"
        return _listed(name, path, list_audio_folder, path, tables, column)
    folders = [path] if (path / WAV_SCP).is_file() else []
    folders = folders or [one.parent for one in sorted(path.glob(f"*/{WAV_SCP}"))]
    if folders and (folders == [path] or all(split_word(one.name) for one in folders)):
        return _listed("a folder of Kaldi (wav.scp)", path, list_kaldi, path, folders)
    if shards := _parquet_in(path):
        name = f"Parquet shards with the sound in them ({len(shards)} files)"
        return Layout(name, lambda: _of_parquet(path, shards))
    if lists := [one for one in sorted(path.glob("*.json")) if is_json_list(one)]:
        return _listed("JSON lists of AST", _beside_lists(path), list_json, lists)
    if tables := [one for one in tables_of_parts(path) if not kind_of_spans(one)]:
        return _of_parts(path, tables)
    if spans := tables_of_spans(path):
        kinds = ", ".join(sorted({kind_of_spans(path / name) for name in spans}))
        name = f"recordings with annotations ({kinds})"
        return _listed(name, path, list_spans, path, spans, spans="beside")
    return None


def _of_file(path: Path, column: str) -> Layout | None:
    root, ending = path.parent, path.suffix.lower()
    if ending == ".parquet" and path.name != MANIFEST:
        return Layout("a Parquet file with the sound in it", lambda: _open_file(path, column))
    if ending == ".arrow":
        return Layout("an Arrow file of datasets", lambda: arrow_corpus(root, [path], [""]))
    if ending == ".scp":
        return _listed("a list of Kaldi (wav.scp)", root, list_kaldi, root, [root])
    if ending == ".jsonl":
        return _listed("a table of JSON lines", root, list_audio_folder, root, [path], column)
    if ending == ".json":
        return _listed("a JSON list of AST", _beside_lists(root), list_json, [path])
    if column == "path" and (kind := kind_of_spans(path)) and not _has_clips(path):
        name = f"annotated recordings ({kind})"
        return _listed(name, root, list_spans, root, [path.name], spans="named")
    return None


def _listed(
    name: str, root: Path, read: Callable[..., Listing], *args: Any, spans: str = ""
) -> Layout:
    """A layout whose clips are files below a folder, listed by `read(*args)`."""
    return Layout(name, lambda: of_listing(read(*args), root), spans)


def _of_parts(folder: Path, tables: list[Path]) -> Layout:
    """A folder with a table for each part, of sounds in it or, if it has none, beside it."""
    root = _with_sounds(folder)

    def opened() -> Corpus:
        corpus = of_listing(list_tables_of_parts(tables), root)
        say_unnamed(root, corpus, *(os.path.relpath(one, root) for one in tables))
        return corpus

    name = f"a table for each part ({', '.join(one.name for one in tables)})"
    return Layout(name, opened, spans="beside" if root == folder else "")


def _with_sounds(folder: Path) -> Path:
    """A folder that holds sound: this one, or if it does not, the one above if that does."""
    above = folder.absolute().parent
    for one in (folder, above):
        if any(is_sound(name) for name, _ in walk(one)):
            return one
    return folder


def _beside_lists(folder: Path) -> Path:
    """Where the sounds of AST's lists lie: beside its folder `datafiles`, if that holds none."""
    if folder.name == "datafiles" and not any(is_sound(name) for name, _ in walk(folder)):
        return folder.absolute().parent
    return folder


def _has_clips(path: Path) -> bool:
    """Whether the rows of a table with a start and an end are clips already: excerpts, members."""
    if (path.parent / "audio.tar").is_file():
        return True
    head = as_text(path.read_bytes(), path)[:4096]
    return "#t=" in head or "shard" in {plain_name(name) for name in read_header(path)}


def _parquet_in(folder: Path) -> list[Path]:
    """Parquet shards with sound, in a folder, its data/, or a folder for each part.

    The parts may lie in the only folder that is there: the Hub's own copies are default/train.
    Where a folder that is no part has shards too, it is a folder of sets, one called as a part is.
    """
    folders = [one for one in sorted(folder.iterdir()) if one.is_dir() and one.name[0] != "."]
    if len(folders) == 1:
        folders += [one for one in sorted(folders[0].iterdir()) if one.is_dir()]
    places = [folder, *(one for one in folders if one.name == "data" or split_word(one.name))]
    found = [shard for place in places for shard in _shards_of(place)]
    others = [one for one in folders if one not in places and _shards_of(one)]
    is_of_sets = others and all(shard.parent not in (folder, folder / "data") for shard in found)
    if not found or is_of_sets or any(is_sound(one.name) for one in folder.rglob("*")):
        return []  # beside sounds, such as the embeddings of a folder
    return found


def _shards_of(folder: Path) -> list[Path]:
    files = sorted(folder.iterdir())
    return [one for one in files if one.suffix.lower() == ".parquet" and one.name != MANIFEST]


def _of_parquet(root: Path, shards: list[Path]) -> Corpus:
    above = ["" if one.parent == root else split_word(one.parent.name) for one in shards]
    splits = [split_word(one.name) or folder for one, folder in zip(shards, above, strict=True)]
    return parquet_corpus(root, shards, splits if len(set(splits)) > 1 else [""] * len(shards))
