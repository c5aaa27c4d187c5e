"""Uncompressed tar archives, indexed through their headers and read by byte range.

Nothing is extracted: a member is a name, an offset and a size. Only regular files with the name of
a sound file are taken; links, devices and names that lead out of the archive are ignored. `walk`
lists the files below a folder.
"""

import logging
import os
import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa

from ssmast.audio.corpus.remote import RemoteError, RemoteFile, is_url, read_range
from ssmast.audio.decode import SOUND_EXTENSIONS, AudioError

_log = logging.getLogger(__name__)

_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_BLOCK = 512
_MAX_OPEN = 64


def names_several(text: str) -> bool:
    """Whether a path or URL has a range of numbers in it, `{000..127}`."""
    return bool(_RANGE.search(text))


def names_of_tars(text: str) -> Iterator[str]:
    """`a-{000..127}.tar` as 128 names; WebDataset's way to name shards.

    Raises:
        ValueError: if they are more than a million.
    """
    found = _RANGE.search(text)
    if found is None:
        yield text
        return
    first, last = found.groups()
    if int(last) - int(first) > 1_000_000:
        raise ValueError(f"{text} names more than a million tars")
    for number in range(int(first), int(last) + 1):
        yield from names_of_tars(
            f"{text[: found.start()]}{number:0{len(first)}}{text[found.end() :]}"
        )


@dataclass(frozen=True, kw_only=True)
class TarIndex:
    """The sound files inside one tar, in its order.

    Args:
        path: of the tar, or its URL.
        names: of the members, binary (UTF-8, undecodable bytes kept).
        offsets: of the first byte of each member, int64.
        sizes: of the members in bytes, int64.
        num_ignored: regular files that are no sound file by name.
        num_refused: links, devices, sparse files and names that lead out of the archive.
        complete: whether the archive ends as it should.
    """

    path: Path | str
    names: pa.Array
    offsets: np.ndarray
    sizes: np.ndarray
    num_ignored: int
    num_refused: int
    complete: bool


def index_tar(path: Path | str, *, endings: Collection[str] = SOUND_EXTENSIONS) -> TarIndex:
    """Index the sound files of an uncompressed tar by reading its headers only.

    Of a truncated or damaged archive, the whole members are indexed, and the damage is logged.

    Args:
        path: of the tar, or its URL.
        endings: of the members to index, lower case; those of sound.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is compressed, or no tar at all.
        RemoteError: if a URL cannot be reached.
    """
    if isinstance(path, str) and not is_url(path):
        path = Path(path)
    if isinstance(path, Path) and not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; an uncompressed tar was wanted")
    with RemoteFile(path) if isinstance(path, str) else path.open("rb") as file:
        head = file.read(_BLOCK) or b""
        for magic, what in _COMPRESSED:
            if head.startswith(magic):
                raise ValueError(
                    f"{path} is a tar compressed with {what}, whose members cannot be read by byte "
                    f"range; decompress it once"
                )
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=cast(BinaryIO, file), mode="r:") as tar:
                return _walk(path, tar, cast(BinaryIO, file), length, endings)
        except tarfile.TarError as error:
            raise ValueError(f"{path} is not a tar archive: {error}") from error


def _walk(
    path: Path | str,
    tar: tarfile.TarFile,
    file: BinaryIO,
    length: int,
    endings: Collection[str],
) -> TarIndex:
    names: list[bytes] = []
    offsets: list[int] = []
    sizes: list[int] = []
    num_ignored = num_refused = 0
    end, problem = 0, ""
    while True:
        try:
            member = tar.next()
        except RemoteError:
            raise
        except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
            problem = str(error) or type(error).__name__
            break
        if member is None:
            break
        # Else a million-member tar would hold a million TarInfo objects.
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
        # A size below zero, from an extended header, would send the reader round in a circle.
        if member.size < 0 or member.offset < end:
            problem = f"member {member.name!r} has an impossible size"
            break
        whole = member.isreg() and not member.issparse()
        if whole and member.offset_data + member.size > length:
            problem = f"member {member.name!r} is cut off"
            break
        end = member.offset_data
        if member.isdir():
            continue
        name = safe_member_name(member.name)
        if name is None or not whole:
            num_refused += 1
        elif PurePosixPath(name).suffix.lower() not in endings or is_hidden(name):
            num_ignored += 1
        else:
            names.append(os.fsencode(name))
            offsets.append(member.offset_data)
            sizes.append(member.size)
    problem = problem or _damage_at(file, tar.offset)
    if problem:
        _log.warning("%s is damaged, %d sound files kept: %s", path, len(names), problem)
    if num_refused:
        _log.warning("%s: ignored %d links, devices or unsafe names", path, num_refused)
    return TarIndex(
        path=path,
        names=pa.array(names, type=pa.large_binary()),
        offsets=np.array(offsets, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
        num_ignored=num_ignored,
        num_refused=num_refused,
        complete=not problem,
    )


def _damage_at(file: BinaryIO, offset: int) -> str:
    """Why reading stopped at an offset; empty where the end mark, a block of zeros, is there."""
    file.seek(max(offset - _BLOCK, 0))
    blocks = file.read(2 * _BLOCK)
    # tarfile stands either before or behind the first block of the end mark.
    if bytes(_BLOCK) in (blocks[:_BLOCK], blocks[_BLOCK:]):
        return ""
    return "the archive ends early or has an unreadable header"


def safe_member_name(name: str) -> str | None:
    """Name of a tar member without a leading "./"; None where it leads out of the archive."""
    parts = PurePosixPath(name).parts
    if name.startswith(("/", "\\")) or ".." in parts or not parts or "\x00" in name:
        return None
    return "/".join(parts)


def is_hidden(name: str) -> bool:
    """Whether a relative name, or a folder in it, starts with a dot (as macOS's "._" files do)."""
    return any(part.startswith(".") for part in name.split("/"))


class _Handle:
    """An open file that closes with its last user, so that threads may share and drop it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class TarReader:
    """Reads byte ranges of tars, opened when first needed and at most 64 at a time.

    Safe to pickle, to fork and to share between threads: pread keeps no position.

    Args:
        paths: of the tars, or their URLs, addressed by number.
    """

    def __init__(self, paths: list[Path | str]) -> None:
        self.paths = paths
        self._handles: dict[int, _Handle] = {}

    def __getstate__(self) -> dict[str, list[Path | str]]:
        return {"paths": self.paths}

    def __setstate__(self, state: dict[str, list[Path | str]]) -> None:
        self.paths = state["paths"]
        self._handles = {}

    def read(self, tar: int, offset: int, size: int, name: str) -> bytes:
        """Bytes [offset, offset + size) of a tar.

        Args:
            tar: number of the tar.
            offset: first byte.
            size: number of bytes.
            name: of the member, for the error.

        Raises:
            AudioError: if the tar is gone, cannot be read, or has become shorter.
            RemoteError: if a URL cannot be reached.
        """
        path = self.paths[tar]
        if isinstance(path, str):
            data = read_range(path, offset, size)
        else:
            try:
                # Held by name until the bytes are here: another thread may open the same tar at the
                # same moment and put its own handle in the place of this one.
                handle = self._opened(tar, path)
                data = os.pread(handle.number, size, offset)
            except OSError as error:
                raise AudioError(f"{name} in {path} cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise AudioError(
                f"{name} is cut off in {path}: {size} bytes were indexed, {len(data)} are there"
            )
        return data

    def _opened(self, tar: int, path: Path) -> _Handle:
        handle = self._handles.get(tar)
        if handle is None:
            handle = self._handles[tar] = _Handle(path)
            while len(self._handles) > _MAX_OPEN:
                self._handles.pop(next(iter(self._handles)), None)
        return handle


def walk(root: Path, *, others: list[str] | None = None) -> Iterator[tuple[str, int]]:
    """Relative path and size of every file below a folder, sorted; hidden ones left out.

    Links to folders are followed. A folder that was already seen, by device and inode, is not
    entered again, so a link to a parent ends there.

    Args:
        root: the folder.
        others: gets the names of what is left out: hidden files and folders, links to nothing,
            and with a / at the end links to folders that were seen.
    """
    others = [] if others is None else others
    found: list[tuple[str, int]] = []
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        below = pending.pop()
        folder = os.path.join(root, below)
        try:
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in seen:
                others.append(f"{below}/")
                continue
            seen.add((info.st_dev, info.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            _log.warning("cannot look into %s: %s", folder, error.strerror)
            continue
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                others.append(name)
                continue
            try:
                if entry.is_dir():
                    pending.append(name)
                elif entry.is_file():
                    found.append((name, entry.stat().st_size))
                else:
                    others.append(name)
            except OSError as error:  # a link to itself, or a file gone since
                _log.warning("cannot look at %s: %s", os.path.join(root, name), error.strerror)
    return iter(sorted(found))
