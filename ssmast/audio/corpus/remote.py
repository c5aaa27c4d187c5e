"""Places: a path here, or a URL as text; whose files are read, looked up and listed alike.

URLs are read through fsspec, whole or by byte range, with retries. What is not there is a
FileNotFoundError, a clip that is not there an AudioError, and a URL that cannot be reached a
RemoteError.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ssmast.audio.source import SOUND_EXTENSIONS, AudioError, SlicedFile

_log = logging.getLogger(__name__)

_URL = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*::)*([A-Za-z][A-Za-z0-9+.-]*)://")
# fmt: off
_PROTOCOLS = frozenset(
    ["http", "https", "s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss", "adl", "oss",
     "webdav", "webhdfs", "ftp", "sftp", "file", "memory"]
)
# fmt: on
"""Protocols that only read bytes. fsspec knows others, which unpack archives or fill templates."""

_WAITS = (0.2, 1.0, 4.0)  # seconds before the second, third and last attempt

_SILENCE = 60.0  # seconds without a byte after which an attempt on a web server has failed

_READ_AHEAD = 1 << 18

Found = TypeVar("Found")

Place = Path | str
"""A path here, or a URL."""


class RemoteError(OSError):
    """A URL that cannot be reached: the run stops, since its clips are not bad."""


def is_url(text: str) -> bool:
    """Whether a text has the form of a URL."""
    return bool(_URL.match(text))


def check_url(url: str) -> None:
    """Refuse what would do more than read bytes.

    Raises:
        ValueError: for a chain of file systems, or a protocol that is not in the list.
    """
    found = _URL.match(url)
    if found is None or "::" in url or found[1].lower() not in _PROTOCOLS:
        raise ValueError(
            f"{url!r} cannot be read; wanted a path or a URL with one of "
            f"{', '.join(sorted(_PROTOCOLS))}, no command and no chain of file systems"
        )


def below(folder: Place, name: str) -> Place:
    """A file in a folder; a name that is a URL itself stays."""
    if isinstance(folder, Path):
        return name if is_url(name) else folder / name
    return name if is_url(name) else f"{folder.rstrip('/')}/{name}"


def folder_of(file: Place) -> Place:
    """The folder of a file."""
    return file.rpartition("/")[0] if isinstance(file, str) else file.parent


def read_whole(file: Place) -> bytes:
    """All bytes of a file."""
    if isinstance(file, Path):
        return file.read_bytes()
    return _clip(file, lambda system, path: system.cat_file(path))


def read_range(url: str, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of a file."""
    data = _clip(url, lambda system, path: system.cat_file(path, start=offset, end=offset + size))
    if len(data) > size:
        raise RemoteError(f"{url} is on a server that gives no byte ranges; copy the file here")
    return data


def list_files(url: str) -> list[tuple[str, int]]:
    """Relative path and size of every file below a folder, sorted."""

    def find(system: Any, path: str) -> list[tuple[str, int]]:
        found = system.find(path, detail=True)
        top = system._strip_protocol(path).rstrip("/") + "/"
        return sorted(
            (name.removeprefix(top), int(info.get("size") or 0))
            for name, info in found.items()
            if name.startswith(top)
        )

    return _retried(url, find)


def is_file(file: Place) -> bool:
    """Whether there is a file."""
    if isinstance(file, Path):
        return file.is_file()
    try:
        return _retried(file, lambda system, path: system.info(path)["type"] == "file")
    except FileNotFoundError:
        return False


def walk(root: Path, *, others: list[str] | None = None) -> Iterator[tuple[str, int]]:
    """Relative path and size of every file below a folder, sorted; hidden ones left out.

    Links to folders are followed. A folder that was already seen, by device and inode, is not
    entered again, so a link to a parent ends there. `others` gets the names of what is left out:
    hidden files and folders, links to nothing, pipes and devices, and with a / at the end links to
    folders seen before.
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
            if is_hidden(entry.name):
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


def is_sound(name: str) -> bool:
    """Whether a name has the ending of a sound file."""
    return os.path.splitext(name)[1].lower() in SOUND_EXTENSIONS


# Of Windows, macOS and Linux, and of Synology's thumbnails: what was deleted, or is no recording.
_BINS = ("$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found", "@eaDir")


def is_hidden(name: str) -> bool:
    """Whether a relative name, or a folder in it, is hidden, or a bin of the file system.

    Hidden ones start with a dot, as macOS's "._" files do.
    """
    return any(part.startswith(".") or part in _BINS for part in name.split("/"))


class _RemoteBytes:
    """The bytes of a URL by slice, at least 256 kB at a time."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._size = int(_retried(url, lambda system, path: system.size(path)) or 0)
        self._from, self._block = 0, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        first, last, _ = where.indices(self._size)
        if not self._from <= first <= last <= self._from + len(self._block):
            length = min(max(last - first, _READ_AHEAD), self._size - first)
            self._block = read_range(self.url, first, length) if last > first else b""
            self._from = first
        return self._block[first - self._from : max(first, last) - self._from]


class RemoteFile(SlicedFile):
    """A file at a URL that seeks, and reads at least 256 kB at a time."""

    def __init__(self, url: str) -> None:
        super().__init__(_RemoteBytes(url))


def _clip(url: str, call: Callable[[Any, str], bytes]) -> bytes:
    try:
        return _retried(url, call)
    except FileNotFoundError as error:
        raise AudioError(f"{url} does not exist") from error


def _retried(url: str, call: Callable[[Any, str], Found]) -> Found:
    """The result of `call(file system, path)`, tried four times with growing pauses."""
    check_url(url)
    import fsspec

    reason = ""
    for wait in (*_WAITS, None):
        try:
            # Looked up each time: fsspec keeps one per process, so a fork gets its own.
            return call(*fsspec.core.url_to_fs(url, **_options(url)))
        except FileNotFoundError as error:
            if _is_gone(error):
                raise FileNotFoundError(f"{url} does not exist") from error
            reason = str(error.__cause__) or type(error.__cause__).__name__
        except (ImportError, PermissionError) as error:
            raise RemoteError(f"{url} cannot be read: {error}") from error
        except Exception as error:  # each file system raises kinds of its own
            reason = str(error) or type(error).__name__
        if wait is not None:
            _log.warning("%s: %s; trying again in %g s", url, reason, wait)
            time.sleep(wait)
    raise RemoteError(
        f"{url} could not be read in {len(_WAITS) + 1} attempts ({reason}); check the network and "
        f"start again"
    )


def _options(url: str) -> dict[str, Any]:
    """Time limits for a server that sends nothing, and none for a slow one.

    aiohttp's own limit is five minutes for a whole answer, however much has arrived.
    """
    if not url.lower().startswith(("http://", "https://")):
        return {}
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    return {"client_kwargs": {"timeout": limits}}


def _is_gone(error: FileNotFoundError) -> bool:
    """Whether a file does not exist; fsspec raises the same error for a failing server."""
    cause = error.__cause__
    status = getattr(cause, "status", None)
    return cause is None or status in (404, 410) or isinstance(cause, KeyError | FileNotFoundError)
