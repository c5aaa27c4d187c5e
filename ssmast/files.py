"""Files that are there whole or not at all, the hash of what one holds, and text as people save it.

What cannot be read as text or YAML is refused in one sentence.
"""

import codecs
import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_LONGEST = 200
_OF_FILES = {".html", ".csv", ".json", ".md", ".npz", ".parquet", ".png", ".txt", ".onnx"}


def check_output(
    path: str | Path, *, key: str = "out", folder: bool = False, begins: str = ""
) -> None:
    """Refuse a place that nothing can be written to, before the work rather than after it.

    Also one that holds a file of another kind: a recording, or the table of a set, is not replaced.

    Nothing is left there: a file without a name is opened in the nearest folder that exists.

    Args:
        path: file to write, or folder.
        key: that names it, for the message.
        folder: whether a folder is to be written.
        begins: regular expression of how files that this command writes begin; empty for any.

    Raises:
        FileExistsError, NotADirectoryError: if something else is there, or above it.
        ValueError: for a folder that is called as a file is, such as map.html, or a name that is
            too long or not UTF-8.
        PermissionError, OSError: if it cannot be written.
    """
    path = Path(path)
    try:
        too_long = len(path.name.encode()) > _LONGEST
    except UnicodeEncodeError:  # safetensors, for one, reads from no such path
        raise ValueError(f"{key}={path} is not UTF-8; give another {key}=") from None
    if too_long:  # a file that is being written has a longer one
        raise ValueError(f"the name of {key}={path} is longer than {_LONGEST} bytes; shorten it")
    what, other = ("folder", "file") if folder else ("file", "folder")
    if path.exists() and path.is_dir() != folder:
        raise FileExistsError(f"{key}={path} is a {other}; a {what} is to be written: give another")
    if folder and not path.exists() and path.suffix.lower() in _OF_FILES:
        raise ValueError(
            f"{key}={path} is called as a file is; a folder is to be written: give {key}="
            f"{path.with_suffix('')}"
        )
    if begins and path.is_file():
        with path.open("rb") as file:
            start = file.read(4096).decode("latin-1")
        if start and not re.match(begins, start, re.IGNORECASE):
            raise FileExistsError(
                f"{key}={path} was not written by this command, and is not replaced; give another "
                f"{key}="
            )
    place = path if folder else path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{key}={path} lies below the file {place}; give another {key}=")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise type(error)(
            f"nothing can be written to {key}={path} ({error.strerror}); give another {key}="
        ) from error


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write a file so that it is there whole or not at all, whatever happens.

    Folders above it are made. Text is written as UTF-8.

    Raises:
        OSError: if it cannot be written; an earlier file is then untouched.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    with replacing(path) as partial:
        partial.write_bytes(data)


def finite(value: Any) -> Any:
    """The value as JSON has it: None for a number that is infinite or undefined."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, content: Any, *, indent: int | None = 1) -> None:
    """Write plain values as JSON, whole or not at all; a number that JSON lacks is refused.

    Raises:
        TypeError, ValueError: for what JSON cannot hold.
    """
    write_atomic(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def csv_lines(rows: Iterable[Iterable[Any]]) -> str:
    r"""Rows as CSV whose lines end in a line feed; a cell with a line break of any kind is quoted.

    >>> csv_lines([("a\rb", 1), ("c,d", "e")])
    '"a\rb",1\n"c,d",e\n'
    """
    lines: list[str] = []
    for row in rows:
        line = io.StringIO(newline="")
        # With a line feed alone at its end, Python up to 3.12 leaves a carriage return unquoted.
        csv.writer(line, lineterminator="\r\n").writerow(row)
        lines.append(line.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


def json_lines(file: Path) -> tuple[list[Any], int]:
    """Values of a file of JSON lines, none if it is missing, and how many lines are cut short."""
    lines = [line for line in file.read_bytes().splitlines() if line] if file.is_file() else []
    found = []
    for line in lines:
        with suppress(ValueError):  # what a kill cut short, or what is no UTF-8 any more
            found.append(json.loads(line))
    return found, len(lines) - len(found)


def append_lines(file: Path, lines: bytes) -> None:
    """Add whole lines to a file; one that a kill cut short before is ended first."""
    with file.open("ab+") as opened:
        if opened.tell():
            opened.seek(-1, os.SEEK_END)
            if opened.read(1) != b"\n":
                opened.write(b"\r\n" if lines.endswith(b"\r\n") else b"\n")
        opened.write(lines)


NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def oserror_if_full(path: Path) -> Iterator[None]:
    """Say alike that a disk is full: Python names no file, safetensors and faiss raise others."""
    try:
        yield
    except Exception as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        if said and any(os.strerror(number) in said for number in NO_ROOM):
            raise OSError(f"{path} cannot be written: {said}") from error
        raise


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends well.

    Folders above it are made. The content is on the disk before the name changes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with oserror_if_full(path):
            yield partial
        flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder beside `folder` to fill; it takes its place when the block ends well.

    An older folder is moved aside first, so there is never half of one.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(
        tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent)
    )
    try:
        partial.chmod(0o777 & ~_umask())  # mkdtemp's is for the owner alone
        with oserror_if_full(folder):
            yield partial
        for file in partial.rglob("*"):
            flush(file)
        replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; an older folder is moved aside first and comes back on failure."""
    if not folder.exists():
        new.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    try:
        folder.rename(aside / "old")
        new.rename(folder)
    except BaseException:  # a signal too: else neither would be left
        if (aside / "old").exists() and not folder.exists():
            (aside / "old").rename(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def locked(file: Path, *, doing: str, key: str = "out") -> Iterator[None]:
    """Keep other processes out while the block runs.

    A record lock: it goes with this process, however that ends, and data workers do not inherit it.

    Args:
        file: hidden, removed at the end.
        doing: what this process does, for the sentence that others get.
        key: that names another place.

    Raises:
        BlockingIOError: if another process holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Otherwise one that ended just now has removed the file that was opened.
            is_taken = not os.path.samestat(os.fstat(opened.fileno()), file.stat())
        except (BlockingIOError, PermissionError, FileNotFoundError):
            is_taken = True
        if is_taken:
            raise BlockingIOError(
                f"another process is {doing}; wait until it has ended or choose another {key}="
            )
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def lock_of(out: str | Path) -> Path:
    """The file that is locked while `out` is written: beside it, hidden."""
    out = Path(out)
    return out.with_name(f".{out.name}.lock")


def flush(path: Path) -> None:
    """Have a file's or folder's content on the disk before going on.

    A file of the owner's alone, as safetensors makes them, is opened to whom any new file is.
    """
    if path.is_file() and not path.stat().st_mode & 0o077:
        path.chmod(0o666 & ~_umask())
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encoding_of(start: bytes) -> str:
    """The encoding of a text that begins so: UTF-16, as spreadsheets save it, says itself.

    >>> encoding_of("a".encode("utf-16")), encoding_of(b"a")
    ('utf-16', 'utf-8-sig')
    """
    return "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def as_text(data: bytes, what: object) -> str:
    """UTF-8, or UTF-16 that says so, as text without a byte order mark.

    Raises:
        ValueError: if `what` is neither.
    """
    try:
        return data.decode(encoding_of(data))
    except UnicodeError as error:
        raise ValueError(f"{what} is not UTF-8 text; save it as UTF-8") from error


def plain_yaml(text: str, what: object) -> Any:
    """What YAML or JSON says, as plain values.

    Raises:
        ValueError: if `what` is neither.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{what} cannot be read as plain YAML: {reason}") from error


def yaml_list(text: str, what: object, wanted: str) -> list[Any]:
    """The entries of a list in YAML or JSON.

    Raises:
        ValueError: if it is none, or empty; it "must {wanted}".
    """
    content = plain_yaml(text, what)
    if not isinstance(content, list) or not content:
        raise ValueError(f"{what} must {wanted}, got {type(content).__name__}")
    return content


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
