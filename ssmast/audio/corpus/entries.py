"""Where each clip of a corpus lies: in a few arrays, or in an index file that is read by the row.

The index file is what keeps ten million clips out of every process. It is read with pread and not
mapped: a shuffled epoch would touch every page of a map, and so hold the whole of it after all.

    8 bytes   b"SSMASTIX"
    8 bytes   length of the header, little-endian
    header    JSON: clips, shards, suffixes, fingerprint (`Corpus.listing_hash`)
    32 bytes  a clip: offset, size, end of its name (int64), number of its shard (int32), 4 unused
    names     one after the other
"""

import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssmast.audio.read import split_excerpt
from ssmast.files import replacing

LOOSE = -1
"""Number of the shard of a clip that is a file of its own."""

EXCERPT = -2
"""Number of the shard of a clip that is an excerpt of a loose file, `a.wav#t=1.5,3`."""

_MAGIC = b"SSMASTIX"
_ROW = struct.Struct("<qqqi4x")
_ROWS = np.dtype(
    {
        "names": ["offset", "size", "name_end", "shard"],
        "formats": ["<i8", "<i8", "<i8", "<i4"],
        "itemsize": _ROW.size,
    }
)


class Entry(NamedTuple):
    """One clip: its name, and the byte range of a shard, or shard LOOSE or EXCERPT."""

    name: bytes
    shard: int
    offset: int
    size: int


class ArrayEntries:
    """Clips in memory: 20 bytes and a name each.

    Args:
        names: binary, UTF-8 with undecodable bytes kept.
        sizes: in bytes, int64.
        shard: number of the shard of each clip, LOOSE or EXCERPT; None if all are loose files.
        offset: of each clip inside its shard.
    """

    def __init__(
        self,
        names: pa.LargeBinaryArray,
        sizes: np.ndarray,
        shard: np.ndarray | None = None,
        offset: np.ndarray | None = None,
    ) -> None:
        self.names = names
        self.sizes = sizes
        self.shard = np.full(len(names), LOOSE, dtype=np.int32) if shard is None else shard
        self.offset = np.zeros(len(names), dtype=np.int64) if offset is None else offset

    @classmethod
    def of(
        cls,
        names: Iterable[str | bytes],
        sizes: np.ndarray,
        shard: np.ndarray | None = None,
        offset: np.ndarray | None = None,
    ) -> "ArrayEntries":
        """Clips whose names may be text, as Python spells those of files."""
        encoded = pa.array([os.fsencode(name) for name in names], type=pa.large_binary())
        shard = None if shard is None else shard.astype(np.int32)
        return cls(encoded, np.asarray(sizes).astype(np.int64), shard, offset)

    @classmethod
    def joined(cls, parts: "Sequence[ArrayEntries]") -> "ArrayEntries":
        """Clips of several, one behind the other."""
        names = pa.concat_arrays([part.names for part in parts])
        columns = zip(*((part.sizes, part.shard, part.offset) for part in parts), strict=True)
        return cls(names, *map(np.concatenate, columns))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Entry:
        name = self.names[i].as_py()
        return Entry(name, int(self.shard[i]), int(self.offset[i]), int(self.sizes[i]))

    def texts(self) -> list[str]:
        """The names as text."""
        return [os.fsdecode(name) for name in self.names.to_pylist()]

    def suffixes(self) -> set[str]:
        """Every extension that a name has, lower case."""
        return {os.path.splitext(split_excerpt(name)[0])[1].lower() for name in self.texts()}

    def take(self, rows: np.ndarray) -> "ArrayEntries":
        """Some of the clips, in the order of `rows`."""
        names = self.names.take(pa.array(rows))
        return ArrayEntries(names, self.sizes[rows], self.shard[rows], self.offset[rows])

    def used_shards(self) -> Iterable[int]:
        """Numbers of the shards that hold a clip, ascending."""
        return (int(number) for number in np.unique(self.shard) if number >= 0)


class IndexFile:
    """Clips of a prepared corpus, read from its index by the row: a process holds the header only.

    Safe to pickle and to fork: pread keeps no position.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no index, or cut short.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        # Closed with this object, which lives as long as the corpus.
        self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115
        head = self._file.read(16)
        length = int.from_bytes(head[8:], "little")
        if head[:8] != _MAGIC or not 0 < length < 1 << 30:
            raise ValueError(f"{self.path} is no index of a prepared corpus; run prepare again")
        # A length that a flipped bit made huge is not read: the memory for it may be missing.
        size = os.fstat(self._file.fileno()).st_size
        try:
            header: dict[str, Any] = json.loads(self._file.read(min(length, size)))
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged; run prepare again") from error
        self.shards: list[str] = header["shards"]
        self.listing_hash: str = header["fingerprint"]
        self._suffixes = set(header["suffixes"])
        self._len = int(header["clips"])
        self._rows = 16 + length
        self._names = self._rows + self._len * _ROW.size
        wanted = self._names + (self._row(self._len - 1)[2] if self._len else 0)
        if size != wanted:
            raise ValueError(f"{self.path} must be {wanted} bytes, got {size}; run prepare again")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, i: int) -> Entry:
        offset, size, end, shard = self._row(i)
        begin = self._row(i - 1)[2] if i else 0
        name = os.pread(self._file.fileno(), end - begin, self._names + begin)
        return Entry(name, shard, offset, size)

    def _row(self, i: int) -> tuple[int, int, int, int]:
        data = os.pread(self._file.fileno(), _ROW.size, self._rows + i * _ROW.size)
        if len(data) < _ROW.size:
            raise ValueError(f"{self.path} is cut short; run prepare again")
        return _ROW.unpack(data)

    def suffixes(self) -> set[str]:
        """Every extension that a name has, lower case."""
        return self._suffixes

    def take(self, rows: np.ndarray) -> ArrayEntries:
        """Some of the clips, in the order of `rows`, in memory."""
        found = [self[int(i)] for i in rows]
        sizes, shard, offset = (
            np.array([getattr(entry, what) for entry in found])
            for what in ("size", "shard", "offset")
        )
        return ArrayEntries.of([entry.name for entry in found], sizes, shard, offset.astype(int))

    def used_shards(self) -> Iterable[int]:
        """Numbers of the shards that hold a clip: all of them."""
        return range(len(self.shards))


Entries = ArrayEntries | IndexFile
"""Clips by number."""


def write_index(
    path: Path, entries: ArrayEntries, *, shards: Sequence[str], listing_hash: str
) -> None:
    """Write an index file, whole or not at all; shards are named relative to its folder."""
    names, suffixes = entries.names, sorted(entries.suffixes())
    header = {"clips": len(names), "shards": list(shards), "suffixes": suffixes}
    text = json.dumps({**header, "fingerprint": listing_hash}).encode()
    rows = np.zeros(len(names), dtype=_ROWS)
    rows["offset"], rows["size"], rows["shard"] = entries.offset, entries.sizes, entries.shard
    rows["name_end"] = np.cumsum(np.asarray(pc.call_function("binary_length", [names])))
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(_MAGIC + len(text).to_bytes(8, "little") + text)
        file.write(rows.tobytes())
        for start in range(0, len(names), 1 << 16):
            file.write(b"".join(names[start : start + (1 << 16)].to_pylist()))
