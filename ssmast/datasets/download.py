"""Downloads over HTTP: resumed, checked, never unpacked.

Unpacking is left to the user, since an archive can write anywhere; the command is printed.
"""

import functools
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

Progress = Callable[[str, int, int], None]
"""Called with (what, done, of how many); 0 for a number that is not known."""

_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 60
_ATTEMPTS = 5
_PASSING = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


@dataclass(frozen=True)
class Remote:
    """A file to fetch.

    Attributes:
        url: http or https.
        checksum: "md5:..." or "sha256:..."; empty where none is published.
        unpack: the command that unpacks it, with {file} and {root}; empty if it is no archive, or
            not the last file of one.
        name: of the file; that of the URL by default.
    """

    url: str
    checksum: str = ""
    unpack: str = ""
    name: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file on disk."""
        return self.name or urlsplit(self.url).path.rpartition("/")[2]


def fetch(
    remote: Remote, folder: Path, *, progress: Progress | None = None, pause_seconds: float = 2.0
) -> Path:
    """Fetch a file, unless it exists and is whole.

    What has arrived is kept as NAME.partial, where the next call resumes (HTTP Range). The file
    gets its name once its checksum is right.

    The pause comes before the second attempt and is doubled for each further one.

    Raises:
        ValueError: for a URL that is not http(s), or a wrong checksum.
        OSError: if the server cannot be reached or the disk is full.
    """
    if urlsplit(remote.url).scheme not in ("http", "https"):
        raise ValueError(f"only http and https can be fetched, got {remote.url}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / remote.file_name
    if path.is_file():
        if remote.checksum and not _is_whole(path, remote):
            raise ValueError(
                f"{path} exists but its checksum is not {remote.checksum}; move it away to fetch "
                f"it again"
            )
        return path
    partial = path.with_name(path.name + ".partial")
    for attempt in range(_ATTEMPTS):
        try:
            _append(remote, partial, progress)
            break
        except _RefusedError as error:
            raise OSError(f"{remote.url} cannot be fetched: {error}") from error
        except _PASSING as error:
            if attempt == _ATTEMPTS - 1:
                raise OSError(
                    f"{remote.url} cannot be fetched: {error}; what arrived is kept, run the same "
                    f"command again to resume"
                ) from error
            time.sleep(pause_seconds * 2**attempt)
    if remote.checksum and not _is_whole(partial, remote):
        partial.unlink()
        raise ValueError(
            f"{remote.url} arrived with a wrong checksum (wanted {remote.checksum}) and was "
            f"deleted; run the same command again, and if it stays wrong the file has changed"
        )
    os.replace(partial, path)
    return path


class _RefusedError(Exception):
    """An answer that no retry will change."""


def _append(remote: Remote, partial: Path, progress: Progress | None) -> None:
    """Ask for the missing bytes and append them."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "ssmast"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(remote.url, headers=headers)  # noqa: S310 - scheme is checked
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == 416 and _total(error.headers.get("Content-Range")) == have:
            return  # it is complete
        if error.code == 416:
            partial.unlink(missing_ok=True)  # not the file that was begun
        elif 400 <= error.code < 500:
            raise _RefusedError(f"{error.code} {error.reason}") from error
        raise
    with answer:
        have = have if answer.status == 206 else 0
        total = have + int(answer.headers.get("Content-Length") or 0)
        free = shutil.disk_usage(partial.parent).free
        if total - have > free:
            raise _RefusedError(
                f"it takes {(total - have) / 1e9:.1f} GB and {partial.parent} has "
                f"{free / 1e9:.1f} GB"
            )
        with partial.open("r+b" if have else "wb") as file:
            file.seek(have)
            while block := answer.read(_BLOCK):
                file.write(block)
                have += len(block)
                if progress:
                    progress(remote.file_name, have, total)
        if have < total:
            raise http.client.IncompleteRead(b"", total - have)


def _total(content_range: str | None) -> int:
    found = re.search(r"/(\d+)$", content_range or "")
    return int(found[1]) if found else -1


def _is_whole(path: Path, remote: Remote) -> bool:
    kind, _, wanted = remote.checksum.partition(":")
    digest = functools.partial(hashlib.new, kind, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, digest).hexdigest() == wanted
