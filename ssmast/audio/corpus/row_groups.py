"""Reads the sound of single rows of Parquet files, by the row group and never whole."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssmast.audio.corpus.remote import RemoteFile
from ssmast.audio.corpus.tar import TarReader
from ssmast.audio.source import AudioError

_ROW_BITS = 32


class RowGroupReader(TarReader):
    """Reads the sound of single rows of Parquet files; it keeps the row group it read last.

    The place of a clip is the number of its row group, shifted by 32 bits, and that of its row.
    """

    def __init__(self, paths: list[Path | str]) -> None:
        super().__init__(paths)
        self._last: tuple[tuple[int, int], pa.ChunkedArray] | None = None

    def __setstate__(self, state: dict[str, list[Path | str]]) -> None:
        super().__setstate__(state)
        self._last = None

    def read(self, tar: int, offset: int, size: int, name: str) -> bytes:
        """Bytes of the sound of one row.

        Args:
            tar: number of the file.
            offset: row group and row, see above.
            size: not used: a row knows its own.
            name: of the clip, for the error.

        Raises:
            AudioError: if the file is gone or damaged, or the row holds no bytes.
        """
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


def reader_of(shards: Sequence[Path | str]) -> TarReader:
    """What reads clips from archives: by row group from Parquet, else by byte range."""
    by_row = bool(shards) and all(str(path).lower().endswith(".parquet") for path in shards)
    return (RowGroupReader if by_row else TarReader)(list(shards))


def place_of(group: int, rows: int) -> np.ndarray:
    """Places of all rows of a row group, for `RowGroupReader`."""
    return (group << _ROW_BITS) + np.arange(rows, dtype=np.int64)


def open_parquet(path: Path | str) -> pq.ParquetFile:
    """An open Parquet file, here or at a URL.

    Raises:
        ValueError: if it is none.
    """
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


def audio_column(schema: pa.Schema, path: Path | str) -> str:
    """The column with the bytes of sounds: `audio.bytes`, or a binary column of its own.

    Raises:
        ValueError: if there is none, or several.
    """
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
