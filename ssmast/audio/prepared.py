"""A prepared corpus: `manifest.parquet`, its index and tar shards, here or at a URL."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ssmast.audio.clips import Corpus
from ssmast.audio.entries import ArrayEntries, IndexFile
from ssmast.audio.remote import read_whole
from ssmast.audio.table import read_columns

MANIFEST = "manifest.parquet"
INDEX = "manifest.index"
FACTS = "corpus.json"


def open_prepared(root: Path | str) -> Corpus:
    """Open what `ssmast prepare` wrote, without holding it: rows are read from its index.

    The index of a corpus at a URL is fetched once, checked, and kept in the user's cache folder. A
    manifest without an index (of another tool) is held in memory.

    Args:
        root: folder, or its URL.

    Raises:
        FileNotFoundError: if it was never finished.
        ValueError: if a part is damaged or of another corpus.
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
        fingerprint=index.fingerprint,
        facts=facts,
    )


def read_facts(root: Path | str) -> dict[str, Any]:
    """What is known of a prepared corpus as a whole; empty where it was not written by prepare.

    Args:
        root: folder, or its URL.
    """
    try:
        place = _below(root, FACTS)
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
            raise ValueError(f"{root}/{INDEX} does not belong to its {FACTS}; copy both again")
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_bytes(data)
        os.replace(partial, path)
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
