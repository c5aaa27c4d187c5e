"""Archives of many clips: tars, read by byte range, and Parquet files, read by the row group.

Nothing is extracted: a member of a tar is a name, an offset and a size, found through the headers
of an uncompressed archive. Only regular files with the name of a sound file are taken; links,
devices and names that lead out of the archive are ignored. No Parquet file is read whole.
"""

import json
import logging
import os
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssmast.audio.corpus.entries import ArrayEntries
from ssmast.audio.corpus.remote import Place, RemoteError, RemoteFile, is_hidden, is_url, read_range
from ssmast.audio.source import SOUND_EXTENSIONS, AudioError

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
    """`a-{000..127}.tar` as 128 names; WebDataset's way to name shards."""
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


def index_tar(
    path: Place, *, number: int = 0, endings: Collection[str] = SOUND_EXTENSIONS
) -> ArrayEntries:
    """The sound files in an uncompressed tar, in its order, found by reading its headers only.

    Of a truncated or damaged archive, the whole members are indexed, and the damage is logged.

    `number` is that of the tar among the shards of a corpus; endings are lower case.

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
                found = _members(path, tar, cast(BinaryIO, file), length, endings)
        except tarfile.TarError as error:
            raise ValueError(f"{path} is not a tar archive: {error}") from error
    names, offsets, sizes = zip(*found, strict=True) if found else ([], [], [])
    shard = np.full(len(found), number, dtype=np.int32)
    return ArrayEntries.of(names, np.array(sizes), shard, np.array(offsets, dtype=np.int64))


def _members(
    path: Place, tar: tarfile.TarFile, file: BinaryIO, length: int, endings: Collection[str]
) -> list[tuple[str, int, int]]:
    """Name, offset and size of the members with some endings."""
    found: list[tuple[str, int, int]] = []
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
            found.append((name, member.offset_data, member.size))
    problem = problem or _damage_at(file, tar.offset)
    if problem:
        _log.warning("%s is damaged, %d sound files kept: %s", path, len(found), problem)
    if num_refused:
        _log.warning("%s: ignored %d links, devices or unsafe names", path, num_refused)
    if num_ignored and endings is SOUND_EXTENSIONS:
        _log.info("%s: %d members are not used as sound", path, num_ignored)
    return found


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
    """

    def __init__(self, paths: list[Place]) -> None:
        self.paths = paths
        self._handles: dict[int, _Handle] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.paths,)

    def read(self, tar: int, offset: int, size: int, name: str) -> bytes:
        """Bytes [offset, offset + size) of a tar."""
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


# -- Parquet ---------------------------------------------------------------------------------------

_ROW_BITS = 32


class RowGroupReader(TarReader):
    """Reads the sound of single rows of Parquet files; it keeps the row group it read last.

    The place of a clip is the number of its row group, shifted by 32 bits, and that of its row.
    """

    def __init__(self, paths: list[Place]) -> None:
        super().__init__(paths)
        self._last: tuple[tuple[int, int], pa.ChunkedArray] | None = None

    def read(self, tar: int, offset: int, size: int, name: str) -> bytes:
        """Bytes of the sound of one row."""
        path = self.paths[tar]
        group, row = offset >> _ROW_BITS, offset & ((1 << _ROW_BITS) - 1)
        last = self._last
        try:
            if last is None or last[0] != (tar, group):
                with open_parquet(path) as file:
                    column = audio_column(file.schema_arrow, path)
                    found = file.read_row_group(group, columns=[column])[column.split(".")[0]]
                last = (tar, group), bytes_of(found)
                self._last = last
            data = last[1][row].as_py()
        except (OSError, ValueError, IndexError) as error:  # ArrowInvalid is a ValueError
            raise AudioError(f"{name} in {path} cannot be read: {error}") from error
        if data is None:
            raise AudioError(f"{name} has no bytes in {path}, which names a file instead")
        return data


def reader_of(shards: Sequence[Place]) -> TarReader:
    """What reads clips from archives: by row group from Parquet, else by byte range."""
    by_row = bool(shards) and all(str(path).lower().endswith(".parquet") for path in shards)
    return (RowGroupReader if by_row else TarReader)(list(shards))


def place_of(group: int, rows: int) -> np.ndarray:
    """Places of all rows of a row group, for `RowGroupReader`."""
    return (group << _ROW_BITS) + np.arange(rows, dtype=np.int64)


def open_parquet(path: Place) -> pq.ParquetFile:
    """An open Parquet file, here or at a URL."""
    try:
        return pq.ParquetFile(RemoteFile(path) if isinstance(path, str) else path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` wrote of each column into a schema; empty where another program wrote it."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return dict(said.get("info", {}).get("features") or {})
    except (ValueError, AttributeError, TypeError):
        return {}


def audio_column(schema: pa.Schema, path: Place) -> str:
    """The column with the bytes of sounds: `audio.bytes`, or a binary column of its own."""
    structs = [
        f"{field.name}.bytes"
        for field in schema
        if pa.types.is_struct(field.type)
        and field.type.get_field_index("bytes") >= 0
        and is_binary(field.type.field("bytes").type)
    ]
    features = features_of(schema)
    declared = [one for one in structs if kind_of(features.get(one.split(".")[0])) == "Audio"]
    binary = [field.name for field in schema if is_binary(field.type)]
    found = declared or structs or binary
    if len(found) != 1:
        what = f"{len(found)} columns of sound, {', '.join(found)}" if found else "no sound"
        raise ValueError(
            f"{path} has {what}; wanted one column of bytes and path, as datasets writes an Audio "
            f"column, or one binary column; it has {', '.join(schema.names)}"
        )
    return found[0]


def is_binary(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def kind_of(feature: object) -> str:
    """The type that `datasets` gives a column, such as ClassLabel."""
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def bytes_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The binary part of an audio column."""
    if not pa.types.is_struct(column.type):
        return column
    chunks = [part_of_struct(chunk, "bytes") for chunk in column.chunks]
    return pa.chunked_array(chunks, type=column.type.field("bytes").type)


def part_of_struct(values: pa.StructArray, name: str) -> pa.Array:
    """One field of an array of structs; null where the struct is."""
    return values.flatten()[values.type.get_field_index(name)]
