"""Where each clip of a corpus lies: in a few arrays, or in an index file that is read by the row.

The index file is what keeps ten million clips out of every process. It is read with pread and not
mapped: a shuffled epoch would touch every page of a map, and so hold the whole of it after all.

    8 bytes   b"SSMASTIX"
    8 bytes   length of the header, little-endian
    header    JSON: clips, shards, suffixes, fingerprint
    32 bytes  a clip: offset, size, end of its name (int64), number of its shard (int32), 4 unused
    names     one after the other

A stretch of a longer sound file as a clip of its own: `P01_01.wav#t=12.5,14.25`.

The notation is that of W3C Media Fragments: seconds from the start of the file, first included,
second excluded. `&id=NAME` after it tells apart clips that cover the same stretch.
"""

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FRAGMENT = re.compile(r"#t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)(?:&id=[^&#]+)?$")


@dataclass(frozen=True)
class Span:
    """What `read_audio` and `read_segments` take for a stretch of a file.

    Attributes:
        path: of the file.
        start: its first moment in seconds.
        stop: its end in seconds; one beyond the end of the file means the end of the file.
    """

    path: Path
    start: float
    stop: float

    def __str__(self) -> str:
        return span_name(str(self.path), self.start, self.stop)

    def samples(self, total: int, sample_rate: int) -> tuple[int, int]:
        """First sample and end of the span in a file of `total` samples; equal if it is empty."""
        last = min(math.floor(self.stop * sample_rate + 0.5), total)
        return min(math.floor(self.start * sample_rate + 0.5), last), last


def span_name(path: str, start: float, stop: float, *, clip: str = "") -> str:
    """The name of a span.

    Args:
        path: of the file.
        start: in seconds.
        stop: in seconds.
        clip: what else names the clip, where several cover the same stretch; no `&` or `#`.

    >>> span_name("a.wav", 0.5, 2)
    'a.wav#t=0.5,2'
    """
    name = f"{path}#t={_seconds(start)},{_seconds(stop)}"
    return f"{name}&id={clip}" if clip else name


def split_span(name: str) -> tuple[str, tuple[float, float] | None]:
    """The file of a clip and its (start, stop) in seconds, or None if the clip is a whole file.

    >>> split_span("a.wav#t=0.5,2&id=x"), split_span("a#1.wav")
    (('a.wav', (0.5, 2.0)), ('a#1.wav', None))
    """
    found = _FRAGMENT.search(name)
    if found is None:
        return name, None
    return name[: found.start()], (float(found[1]), float(found[2]))


def _seconds(value: float) -> str:
    # Microseconds are finer than a sample; trailing zeros would give one span two names.
    return f"{value:.6f}".rstrip("0").rstrip(".")


LOOSE = -1
"""Number of the shard of a clip that is a file of its own."""

SPAN = -2
"""Number of the shard of a clip that is a span of a loose file, `a.wav#t=1.5,3`."""

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
    """One clip: its name, and the byte range of a shard, or shard LOOSE or SPAN."""

    name: bytes
    shard: int
    offset: int
    size: int


class Entries(Protocol):
    """Clips by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Entry: ...

    def suffixes(self) -> set[str]:
        """Every extension that a name has, lower case."""
        ...

    def take(self, rows: np.ndarray) -> "Entries":
        """Some of the clips, in the order of `rows`."""
        ...

    def used_shards(self) -> Iterable[int]:
        """Numbers of the shards that hold a clip, ascending."""
        ...


class ArrayEntries:
    """Clips in memory: 20 bytes and a name each.

    Args:
        names: binary, UTF-8 with undecodable bytes kept.
        sizes: in bytes, int64.
        shard: number of the shard of each clip, LOOSE or SPAN; None if all are loose files.
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
    def empty(cls) -> "ArrayEntries":
        """No clip."""
        return cls(pa.array([], type=pa.large_binary()), np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Entry:
        name = self.names[i].as_py()
        return Entry(name, int(self.shard[i]), int(self.offset[i]), int(self.sizes[i]))

    def suffixes(self) -> set[str]:
        """Every extension that a name has, lower case."""
        return {_suffix(name.as_py()) for name in self.names}

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

    Args:
        path: of the index file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no index, or cut short.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._open()

    def _open(self) -> None:
        # Closed with this object, which lives as long as the corpus.
        self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115
        head = self._file.read(16)
        length = int.from_bytes(head[8:], "little")
        if head[:8] != _MAGIC or not 0 < length < 1 << 30:
            raise ValueError(f"{self.path} is no index of a prepared corpus; run prepare again")
        header: dict[str, Any] = json.loads(self._file.read(length))
        self.shards: list[str] = header["shards"]
        self.fingerprint: str = header["fingerprint"]
        self._suffixes = set(header["suffixes"])
        self._len = int(header["clips"])
        self._rows = 16 + length
        self._names = self._rows + self._len * _ROW.size
        wanted = self._names + (self._row(self._len - 1)[2] if self._len else 0)
        size = os.fstat(self._file.fileno()).st_size
        if size != wanted:
            raise ValueError(f"{self.path} must be {wanted} bytes, got {size}; run prepare again")

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.path = state["path"]
        self._open()

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
        return ArrayEntries(
            pa.array([entry.name for entry in found], type=pa.large_binary()),
            np.array([entry.size for entry in found], dtype=np.int64),
            np.array([entry.shard for entry in found], dtype=np.int32),
            np.array([entry.offset for entry in found], dtype=np.int64),
        )

    def used_shards(self) -> Iterable[int]:
        """Numbers of the shards that hold a clip: all of them."""
        return range(len(self.shards))


def write_index(
    path: Path,
    *,
    names: pa.LargeBinaryArray,
    sizes: np.ndarray,
    shard: np.ndarray,
    offset: np.ndarray,
    shards: Sequence[str],
    suffixes: Iterable[str],
    fingerprint: str,
) -> None:
    """Write an index file, aside first and then under its name.

    Args:
        path: of the index.
        names: of the clips, binary.
        sizes: in bytes.
        shard: number of the shard of each clip.
        offset: of each clip inside its shard.
        shards: names of the shards, relative to the folder of the index.
        suffixes: of the names.
        fingerprint: of the corpus.
    """
    header = {"clips": len(names), "shards": list(shards), "suffixes": sorted(suffixes)}
    text = json.dumps({**header, "fingerprint": fingerprint}).encode()
    rows = np.zeros(len(names), dtype=_ROWS)
    rows["offset"], rows["size"], rows["shard"] = offset, sizes, shard
    rows["name_end"] = np.cumsum(np.asarray(pc.call_function("binary_length", [names])))
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("wb") as file:
        file.write(_MAGIC + len(text).to_bytes(8, "little") + text)
        file.write(rows.tobytes())
        for start in range(0, len(names), 1 << 16):
            file.write(b"".join(names[start : start + (1 << 16)].to_pylist()))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _suffix(name: bytes) -> str:
    return os.path.splitext(split_span(os.fsdecode(name))[0])[1].lower()
