"""Opens a corpus: a folder, list, table, tars, prepared corpus or mixture, here or at a URL."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ssmast.audio.corpus.corpus import Corpus, Mixture, read_mixture
from ssmast.audio.corpus.entries import LOOSE, ArrayEntries, IndexFile
from ssmast.audio.corpus.layouts import layout_of, parquet_corpus
from ssmast.audio.corpus.named import (
    beside,
    folder_of,
    is_sound,
    of_files,
    of_members,
    say_unnamed,
    say_unused,
)
from ssmast.audio.corpus.remote import check_url, exists, is_url, join_url, list_files, read_whole
from ssmast.audio.corpus.table import (
    METADATA,
    audio_root,
    column_of,
    find_table,
    read_columns,
    read_table,
    read_text,
)
from ssmast.audio.corpus.tar import (
    index_tar,
    is_hidden,
    names_of_tars,
    names_several,
    walk,
)
from ssmast.audio.corpus.webdataset import read_labels
from ssmast.audio.read import SOUND_EXTENSIONS, split_excerpt
from ssmast.files import write_atomic
from ssmast.settings import in_home

_log = logging.getLogger(__name__)

MANIFEST = "manifest.parquet"
INDEX = "manifest.index"
CORPUS_FILE = "corpus.json"
"""Files of a prepared corpus: its clips, their index, and what is known of all of them."""


def open_prepared(root: Path | str) -> Corpus:
    """Open what `ssmast prepare` wrote, without holding it: rows are read from its index.

    The index of a corpus at a URL is fetched once, checked, and kept in the user's cache folder. A
    manifest without an index (of another tool) is held in memory.

    Args:
        root: folder, or its URL.

    Raises:
        FileNotFoundError: if it was never finished.
        ValueError: if one of its files is damaged or of another corpus.
        RemoteError: if a URL cannot be reached.
    """
    facts = read_facts(root)
    if not facts:
        return _without_index(root)
    index = IndexFile(_index_here(root, facts))
    return Corpus(
        root=root,
        entries=index,
        shards=_shards(root, index.shards),
        table=_below(root, MANIFEST),
        listing_hash=index.listing_hash,
        facts=facts,
    )


def read_facts(root: Path | str) -> dict[str, Any]:
    """What is known of a prepared corpus as a whole; empty where it was not written by prepare.

    Args:
        root: folder, or its URL.
    """
    try:
        place = _below(root, CORPUS_FILE)
        return json.loads(read_whole(place) if isinstance(place, str) else place.read_bytes())
    except (FileNotFoundError, ValueError):  # AudioError, of a URL, is a ValueError
        return {}


def _index_here(root: Path | str, facts: dict[str, Any]) -> Path:
    """Path of the index, fetched if it lies elsewhere."""
    if isinstance(root, Path):
        return root / INDEX
    wanted = str(facts["index_sha256"])
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


def _without_index(root: Path | str) -> Corpus:
    table = read_columns(_below(root, MANIFEST))
    missing = {"key", "shard", "offset", "size"} - set(table.column_names)
    if missing:
        raise ValueError(
            f"{root}/{MANIFEST} has no column {', '.join(sorted(missing))}; it has "
            f"{', '.join(table.column_names)}"
        )
    shards, number = np.unique(np.array(table["shard"].to_pylist(), object), return_inverse=True)
    names = [str(key).encode() for key in table["key"].to_pylist()]
    entries = ArrayEntries(
        pa.array(names, type=pa.large_binary()),
        table["size"].to_numpy().astype(np.int64),
        number.astype(np.int32),
        table["offset"].to_numpy().astype(np.int64),
    )
    return Corpus(root=root, entries=entries, shards=_shards(root, list(shards)), table=table)


def _shards(root: Path | str, names: list[str]) -> list[Path | str]:
    for name in names:
        if ".." in Path(name).parts or Path(name).is_absolute() or ":" in name:
            raise ValueError(f"{root}/{MANIFEST} names the shard {name!r} outside its folder")
    return [_below(root, name) for name in names]


def _below(root: Path | str, name: str) -> Path | str:
    return f"{root}/{name}" if isinstance(root, str) else root / name


__all__ = ["Corpus", "open_corpus", "read_table"]

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
            one of the layouts of other programs in `layouts.py`.
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
            return open_prepared(path)
        table = find_table(path)
        return _open_folder(path) if table is None else _open_table(table, column)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; wanted {_WANTED}")
    return _open_file(path, column)


def _recordings(corpus: Corpus) -> Corpus:
    """The recordings that the spans of a corpus are of, each once."""
    files = dict.fromkeys(split_excerpt(corpus.name(i))[0] for i in range(len(corpus)))
    return of_files(Path(corpus.root), list(files), None, corpus.root)


def corpus_of_files(files: Sequence[str]) -> Corpus:
    """A corpus of sound files named one by one, in their order.

    Args:
        files: paths or URLs.

    Raises:
        FileNotFoundError: if one does not exist.
    """
    names = [file if is_url(file) else os.path.abspath(in_home(file)) for file in files]
    return of_files(Path("the command line"), names, None, Path())


def _open_file(path: Path | str, column: str) -> Corpus:
    """One file, by the end of its name."""
    kind = os.path.splitext(str(path))[1].lower()
    if kind in (".csv", ".tsv"):
        return _open_table(path, column)
    if kind in (".txt", ".lst"):
        return _open_list(path)
    if os.path.basename(str(path)) == MANIFEST:
        return open_prepared(folder_of(path))
    if re.search(r"\.(tar(\..*)?|tgz)$", str(path).lower()):
        return _of_tars(folder_of(path), [path], f"{path}")
    if kind == ".parquet":
        return parquet_corpus(path)
    raise ValueError(f"{path} is no corpus: wanted {_WANTED}")


def _open_url(url: str, column: str) -> Corpus:
    if names_several(url):
        return _of_tars(folder_of(url), list(names_of_tars(url)), url)
    last = url.rstrip("/").rpartition("/")[2]
    if re.search(r"\.(csv|tsv|txt|lst|parquet|tar(\..*)?|tgz)$", last.lower()):
        return _open_file(url, column)
    url = url.rstrip("/")
    if exists(f"{url}/{MANIFEST}"):
        return open_prepared(url)
    if exists(f"{url}/{METADATA}"):
        return _open_table(f"{url}/{METADATA}", column)
    found = list_files(url)
    return _of_listing(url, (pair for pair in found if not is_hidden(pair[0])))


def _open_folder(root: Path) -> Corpus:
    others: list[str] = []
    return _of_listing(root, walk(root, others=others), others)


def _of_listing(
    root: Path | str, files: Iterator[tuple[str, int]], others: Sequence[str] = ()
) -> Corpus:
    """The sound files of a listing (relative path, size), and the members of its tars."""
    found = list(files)
    say_unused(
        root,
        [name for name, _ in found if not is_sound(name) and not name.lower().endswith(".tar")],
        others,
    )
    names: list[bytes] = []
    sizes: list[int] = []
    tars: list[Path | str] = []
    for name, size in found:
        if is_sound(name):
            names.append(os.fsencode(name))
            sizes.append(size)
        elif name.lower().endswith(".tar"):
            tars.append(join_url(root, name) if isinstance(root, str) else root / name)
    return _of_tars(root, tars, f"{root}", names, sizes)


def _of_tars(
    root: Path | str,
    tars: Sequence[Path | str],
    what: str,
    loose: Sequence[bytes] = (),
    loose_sizes: Sequence[int] = (),
) -> Corpus:
    """A corpus of loose files, if any, and then all members of the tars.

    Where there are several tars, the tar's own name comes before that of its members.
    """
    indexes = [index_tar(tar) for tar in tars]
    for tar, index in zip(tars, indexes, strict=True):
        if index.num_ignored:
            _log.info("%s: %d members are not used as sound", tar, index.num_ignored)
    names = [pa.array(loose, type=pa.large_binary())]
    for tar, index in zip(tars, indexes, strict=True):
        if len(tars) == 1:
            names.append(index.names)
        else:
            prefix = os.fsencode(_relative(tar, root)) + b"/"
            full = [prefix + name.as_py() for name in index.names]
            names.append(pa.array(full, type=pa.large_binary()))
    joined = pa.concat_arrays(names)
    if not len(joined):
        known = " ".join(sorted(SOUND_EXTENSIONS))
        raise ValueError(f"no sound file was found in {what}; known are {known}")
    numbers = [np.full(len(index.names), i, dtype=np.int32) for i, index in enumerate(indexes)]
    zeros = np.zeros(len(loose), dtype=np.int64)
    entries = ArrayEntries(
        joined,
        np.concatenate([zeros + loose_sizes, *(index.sizes for index in indexes)]),
        np.concatenate([np.full(len(loose), LOOSE, dtype=np.int32), *numbers]),
        np.concatenate([zeros, *(index.offsets for index in indexes)]),
    )
    beside = None if loose else partial(read_labels, list(tars))
    return Corpus(root=root, entries=entries, shards=list(tars), table=beside)


def _relative(tar: Path | str, root: Path | str) -> str:
    if isinstance(tar, str):
        return tar.removeprefix(f"{root}/")
    return os.fspath(tar.relative_to(root))


def _open_list(path: Path | str) -> Corpus:
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    return of_files(path, names, None, folder_of(path))


def _open_table(path: Path | str, column: str) -> Corpus:
    table = read_table(path)
    names = column_of(table, column, path)
    if "shard" in table.column_names:
        return of_members(path, names, column_of(table, "shard", path), table)
    audio = beside(path, "audio.tar")
    if exists(audio) if isinstance(audio, str) else audio.is_file():
        return of_members(path, names, ["audio.tar"] * len(names), table)
    root = folder_of(path)
    if isinstance(root, Path) and path == find_table(root):
        home, root = root, audio_root(root)
        corpus = of_files(path, names, table, root)
        if root.samefile(home):  # of audio elsewhere, a set may be a small part
            say_unnamed(root, corpus, os.path.basename(path))
        return corpus
    return of_files(path, names, table, root)
