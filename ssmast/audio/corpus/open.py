"""Opens a corpus: a folder, list, table, tars, prepared corpus or mixture, here or at a URL."""

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ssmast.audio.corpus.corpus import Corpus, Mixture, read_mixture
from ssmast.audio.corpus.entries import EXCERPT, LOOSE, ArrayEntries, IndexFile
from ssmast.audio.corpus.remote import check_url, exists, is_url, join_url, list_files, read_whole
from ssmast.audio.corpus.table import (
    METADATA,
    TASK_FILE,
    FileFinder,
    audio_root,
    column_of,
    find_table,
    read_columns,
    read_table,
)
from ssmast.audio.corpus.tar import (
    index_tar,
    is_hidden,
    names_of_tars,
    names_several,
    safe_member_name,
    walk,
)
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


def open_corpus(path: str | os.PathLike[str], *, column: str = "path") -> Corpus:
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
            a `.yaml` file, or its text: a mixture, `[{path: A, weight: 7}, {path: B, weight: 3}]`.
        column: of the table, with the paths.

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
        return Mixture([(open_corpus(one, column=column), weight) for one, weight in weighted])
    if not is_there and (is_url(text) or text.split(":", 1)[0].strip().lower() == "pipe"):
        check_url(text)
        return _open_url(text, column)
    path = Path(text)
    if names_several(path.name) and not path.exists():
        tars = [path.parent / name for name in names_of_tars(path.name)]
        return _of_tars(path.parent, tars, text)
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return open_prepared(path)
        table = find_table(path)
        return _open_folder(path) if table is None else _open_table(table, column)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; wanted {_WANTED}")
    return _open_file(path, column)


def corpus_of_files(files: Sequence[str]) -> Corpus:
    """A corpus of sound files named one by one, in their order.

    Args:
        files: paths or URLs.

    Raises:
        FileNotFoundError: if one does not exist.
    """
    names = [file if is_url(file) else os.path.abspath(in_home(file)) for file in files]
    return _of_files(Path("the command line"), names, None, Path())


def _open_file(path: Path | str, column: str) -> Corpus:
    """One file, by the end of its name."""
    kind = os.path.splitext(str(path))[1].lower()
    if kind in (".csv", ".tsv"):
        return _open_table(path, column)
    if kind in (".txt", ".lst"):
        return _open_list(path)
    if os.path.basename(str(path)) == MANIFEST:
        return open_prepared(_folder_of(path))
    if re.search(r"\.(tar(\..*)?|tgz)$", str(path).lower()):
        return _of_tars(_folder_of(path), [path], f"{path}")
    raise ValueError(f"{path} is no corpus: wanted {_WANTED}")


def _open_url(url: str, column: str) -> Corpus:
    if names_several(url):
        return _of_tars(_folder_of(url), list(names_of_tars(url)), url)
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


def _folder_of(path: Path | str) -> Path | str:
    return path.rpartition("/")[0] if isinstance(path, str) else path.parent


def _beside(path: Path | str, name: str) -> Path | str:
    """A file in the same folder."""
    return join_url(path.rpartition("/")[0], name) if isinstance(path, str) else path.parent / name


def _open_folder(root: Path) -> Corpus:
    others: list[str] = []
    return _of_listing(root, walk(root, others=others), others)


def _of_listing(
    root: Path | str, files: Iterator[tuple[str, int]], others: Sequence[str] = ()
) -> Corpus:
    """The sound files of a listing (relative path, size), and the members of its tars."""
    found = list(files)
    _say_unused(
        root,
        [name for name, _ in found if not _is_sound(name) and not name.lower().endswith(".tar")],
        others,
    )
    names: list[bytes] = []
    sizes: list[int] = []
    tars: list[Path | str] = []
    for name, size in found:
        if _is_sound(name):
            names.append(os.fsencode(name))
            sizes.append(size)
        elif name.lower().endswith(".tar"):
            tars.append(join_url(root, name) if isinstance(root, str) else root / name)
    return _of_tars(root, tars, f"{root}", names, sizes)


def _is_sound(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SOUND_EXTENSIONS


# What ssmast writes beside a set's table: the task, and what the built-in corpus was made with.
_NOTES = (TASK_FILE, "synthetic.json")
_said: set[str] = set()  # a command opens a folder more than once


def _say_unused(root: Path | str, unused: Sequence[str], others: Sequence[str] = ()) -> None:
    """Count what a folder holds and nothing is made of, by kind, once a process.

    Args:
        root: the folder.
        unused: files that are no sound, or sounds that the table does not name.
        others: hidden files and folders, links to nothing.
    """
    kinds = Counter(os.path.splitext(name)[1].lower() or "without an ending" for name in unused)
    for name in others:
        kinds["hidden" if os.path.basename(name).startswith(".") else "links to nothing"] += 1
    if not kinds:
        return
    first = [*unused, *others][0]
    shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(8))
    message = f"{root}: {kinds.total():,} files are not used: {shown}; the first is {first!r}"
    if message not in _said:
        _said.add(message)
        _log.info("%s", message)


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
    return Corpus(root=root, entries=entries, shards=list(tars))


def _relative(tar: Path | str, root: Path | str) -> str:
    if isinstance(tar, str):
        return tar.removeprefix(f"{root}/")
    return os.fspath(tar.relative_to(root))


def _open_list(path: Path | str) -> Corpus:
    try:
        data = read_whole(path) if isinstance(path, str) else path.read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    return _of_files(path, names, None, _folder_of(path))


def _open_table(path: Path | str, column: str) -> Corpus:
    table = read_table(path)
    names = column_of(table, column, path)
    if "shard" in table.column_names:
        return _of_members(path, names, column_of(table, "shard", path), table)
    audio = _beside(path, "audio.tar")
    if exists(audio) if isinstance(audio, str) else audio.is_file():
        return _of_members(path, names, ["audio.tar"] * len(names), table)
    root = _folder_of(path)
    if isinstance(root, Path) and path == find_table(root):
        home, root = root, audio_root(root)
        corpus = _of_files(path, names, table, root)
        if root.samefile(home):  # of audio elsewhere, a set may be a small part
            others: list[str] = []
            used = {*_own_names(corpus), os.path.basename(path), *_NOTES}
            _say_unused(root, [n for n, _ in walk(root, others=others) if n not in used], others)
        return corpus
    return _of_files(path, names, table, root)


def _own_names(corpus: Corpus) -> Iterator[str]:
    """Of each clip the path of its file below the folder, as a listing has it."""
    for i in range(len(corpus)):
        yield os.path.normpath(split_excerpt(corpus.name(i))[0])


def _of_files(
    path: Path | str, names: list[str], table: pa.Table | None, root: Path | str
) -> Corpus:
    if not names:
        raise ValueError(f"{path} names no clip; wanted one path a line")
    sizes = np.zeros(len(names), dtype=np.int64)
    shard = np.full(len(names), LOOSE, dtype=np.int32)
    missing: list[int] = []
    for i, name in enumerate(names):
        file = _safe_path(path, name)
        if isinstance(root, str) or is_url(file):
            continue  # one request a clip would take hours; what is missing shows when it is used
        if file.startswith("~"):
            file = names[i] = in_home(file)
        size = _size(root / file)
        if size is None:  # a file that really is called so comes first
            file, seconds = split_excerpt(file)
            size = None if seconds is None else _size(root / file)
            shard[i] = LOOSE if size is None else EXCERPT
        if size is None:
            missing.append(i)
        else:
            sizes[i] = size
    if missing and isinstance(root, Path):
        listing = [] if root == Path() else [name for name, _ in walk(root) if _is_sound(name)]
        where = "" if root == Path() else f" in {root}"
        names = _otherwise_written(path, names, missing, FileFinder(listing), where)
        for i in missing:
            file, seconds = split_excerpt(names[i])
            sizes[i], shard[i] = _size(root / file) or 0, LOOSE if seconds is None else EXCERPT
    encoded = pa.array([os.fsencode(name) for name in names], type=pa.large_binary())
    return Corpus(root=root, entries=ArrayEntries(encoded, sizes, shard), table=table)


def _size(file: Path) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:
        return None


def _of_members(path: Path | str, names: list[str], shards: list[str], table: pa.Table) -> Corpus:
    """Clips of a table that lie in tars, each row looked up in the index of its own."""
    if not names:
        raise ValueError(f"{path} names no clip; wanted one row each")
    used = sorted(set(shards))
    tars = [_beside(path, _safe_path(path, shard)) for shard in used]
    indexes = [index_tar(tar) for tar in tars]
    where = [
        {os.fsdecode(name): i for i, name in enumerate(index.names.to_pylist())}
        for index in indexes
    ]
    number = {shard: i for i, shard in enumerate(used)}
    tar = np.array([number[shard] for shard in shards], dtype=np.int32)
    row = np.full(len(names), -1, dtype=np.int64)
    for i, name in enumerate(names):
        row[i] = where[tar[i]].get(safe_member_name(_safe_path(path, name)) or "", -1)
    missing = np.flatnonzero(row < 0).tolist()
    for number_of_tar in sorted({int(tar[i]) for i in missing}):
        mine = [i for i in missing if tar[i] == number_of_tar]
        finder, shown = FileFinder(where[number_of_tar]), f" in {used[number_of_tar]}"
        names = _otherwise_written(path, names, mine, finder, shown)
        row[mine] = [where[number_of_tar][names[i]] for i in mine]
    if len(tars) > 1:
        names = [f"{shard}/{name}" for shard, name in zip(shards, names, strict=True)]
    entries = ArrayEntries(
        pa.array([os.fsencode(name) for name in names], type=pa.large_binary()),
        np.array([indexes[t].sizes[r] for t, r in zip(tar, row, strict=True)], np.int64),
        tar,
        np.array([indexes[t].offsets[r] for t, r in zip(tar, row, strict=True)], np.int64),
    )
    return Corpus(root=_folder_of(path), entries=entries, shards=tars, table=table)


def _safe_path(path: Path | str, name: str) -> str:
    """The name of a clip, unless it is empty, a command, or climbs out of the folder."""
    if not name.strip() or "\x00" in name:
        raise ValueError(f"{path} has a row without a path")
    if is_url(name) or name.split(":", 1)[0].strip().lower() == "pipe":
        try:
            check_url(name)
        except ValueError as error:
            raise ValueError(f"{path} names a clip that cannot be: {error}") from error
        return name
    if isinstance(path, str) and os.path.isabs(name):
        raise ValueError(f"{path} names {name!r}, a file of this machine; write a relative path")
    if not os.path.isabs(name) and os.path.normpath(name).split(os.sep)[0] == "..":
        raise ValueError(
            f"{path} names {name!r}, which leads out of its folder; write an absolute path or move "
            f"the table"
        )
    return name


def _otherwise_written(
    path: Path | str, names: list[str], missing: list[int], finder: FileFinder, where: str
) -> list[str]:
    """The names with those that are not there replaced by the files that they can only mean.

    Args:
        path: of the table or list.
        names: of all clips.
        missing: positions of those that are not there as they are written.
        finder: of the files there are.
        where: they were looked for, for messages.

    Raises:
        FileNotFoundError: if some name means no file, or could mean several.
        ValueError: if two names would be one file.
    """
    found = list(names)
    lost: list[str] = []
    for i in missing:
        file = split_excerpt(names[i])[0]
        meant = finder.find(file)
        if meant is None:
            lost.append(names[i])
        else:
            found[i] = meant + names[i][len(file) :]
    if lost:
        there = "".join(
            f"; {len(finder.names)} files are there, such as {name!r}" for name in finder.names[:1]
        )
        raise FileNotFoundError(
            f"{len(lost)} of {len(names)} files of {path} not found{where}; the first is "
            f"{lost[0]!r}{there}"
        )
    first_of: dict[str, int] = {}
    for i, name in enumerate(found):
        other = first_of.setdefault(name, i)
        if other != i and names[other] != names[i]:
            raise ValueError(
                f"{path}: {names[other]!r} and {names[i]!r} can only mean {name!r}; write each "
                "path as the file is called"
            )
    _log.warning(
        "%s: %d of %d paths are written otherwise than their files are called; the first, %r, is "
        "taken as %r",
        *(path, len(missing), len(names), names[missing[0]], found[missing[0]]),
    )
    return found
