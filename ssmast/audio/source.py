"""Where the bytes of a sound lie: a path, bytes, or a part of a file; read by slice or as a file.

Also the errors of a sound file that cannot be used, and the endings of file names that are sounds.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Union

Source = Union[str, os.PathLike[str], bytes, "Stream"]

# fmt: off
AUDIO_EXTENSIONS = frozenset(
    [".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc",
     ".au", ".snd", ".caf", ".w64", ".rf64", ".sph"]
)
"""Files that libsndfile decodes, lower case."""

FOREIGN_EXTENSIONS = frozenset(
    [".m4a", ".m4b", ".aac", ".mp4", ".m4v", ".mov", ".mkv", ".mka", ".webm", ".wma", ".wmv",
     ".avi", ".ac3", ".amr", ".ape", ".wv", ".3gp"]
)
"""Audio and video that torchcodec decodes where it is installed, lower case."""
# fmt: on

SOUND_EXTENSIONS = AUDIO_EXTENSIONS | FOREIGN_EXTENSIONS
"""File names that a corpus takes in, lower case."""


class AudioError(ValueError):
    """A sound file that cannot be used; the message is one sentence that names the file."""


class SeekError(AudioError):
    """A sound file that cannot be sought; it may be read from its start."""


def label_of(source: Source, name: str | None) -> str:
    """The name of a source in an error: as given, its path, or its number of bytes."""
    if name is not None:
        return name
    if isinstance(source, bytes):
        return f"audio of {len(source)} bytes"
    path = source.path if isinstance(source, Stream) else source
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Stream:
    """Bytes of a file that are a file of their own.

    Attributes:
        path: of the file.
        start: first byte.
        stop: byte after the last.
        patch: bytes that stand for those from some byte of the stream on.
    """

    path: str | os.PathLike[str]
    start: int
    stop: int
    patch: tuple[int, bytes] = (0, b"")


def patched(data: bytes, patch: tuple[int, bytes], at: int = 0) -> bytes:
    """Bytes of a stream, from byte `at` of it on, with those of a patch in their place."""
    place, new = patch
    first, last = max(place, at), min(place + len(new), at + len(data))
    if first >= last:
        return data
    return data[: first - at] + new[first - place : last - place] + data[last - at :]


class View:
    """Bytes that are read where they are asked for: `view[a:b]`, `len(view)`.

    No mapping: that would end the process where a file shrinks or its disk goes away.

    It is bytes [start, stop) of those that `read(first, last)` gives.
    """

    def __init__(self, read: Callable[[int, int], bytes], start: int, stop: int) -> None:
        self._read, self._start, self._size = read, start, max(0, stop - start)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        first, last, _ = where.indices(self._size)
        return self._read(self._start + first, self._start + max(first, last))

    def part(self, first: int, last: int) -> "View":
        """Bytes [first, last) of it, as a view of their own."""
        return View(self._read, self._start + first, self._start + last)


@contextmanager
def viewed(source: Source) -> Iterator[View]:
    """The bytes of a source; an OSError if it cannot be opened."""
    if isinstance(source, bytes):
        yield View(lambda first, last: source[first:last], 0, len(source))
        return
    if not isinstance(source, Stream):
        source = Stream(source, 0, os.stat(source).st_size)
    stream = source
    with open(stream.path, "rb") as file:

        def read(first: int, last: int) -> bytes:
            data = os.pread(file.fileno(), last - first, stream.start + first)
            return patched(data, stream.patch, first)

        yield View(read, 0, stream.stop - stream.start)


class Sliced(Protocol):
    """What has a length in bytes and gives slices of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> bytes: ...


class SlicedFile(io.RawIOBase):
    """Bytes that can be sliced, as an open file.

    A damaged header may send libsndfile before the start. An exception inside its callback would be
    printed with a traceback and not reach us; staying at the start gives libsndfile bytes that do
    not fit, which it reports as an error.
    """

    def __init__(self, data: Sliced) -> None:
        super().__init__()
        self._data, self._at = data, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset, or to the start instead of before it."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._data)}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the bytes go."""
        view = memoryview(buffer).cast("B")
        found = self._data[self._at : self._at + len(view)]
        view[: len(found)] = found
        self._at += len(found)
        return len(found)


def source_size(source: Source) -> int:
    """Bytes of a source."""
    if isinstance(source, Stream):
        return source.stop - source.start
    return len(source) if isinstance(source, bytes) else os.stat(source).st_size


def first_bytes(source: Source, count: int) -> bytes:
    """The first `count` bytes of a source, or what there is."""
    with viewed(source) as data:
        return data[:count]


def bytes_hash(source: Source, most: int | None = None) -> str:
    """SHA-256 (hex) of a source, or of at most so many bytes of its middle; empty if unreadable."""
    digest, step = hashlib.sha256(), 1 << 20
    try:
        with viewed(source) as data:
            size = len(data) if most is None else min(most, len(data))
            start = (len(data) - size) // 2
            for at in range(start, start + size, step):
                digest.update(data[at : min(at + step, start + size)])
    except OSError:
        return ""
    return digest.hexdigest()
