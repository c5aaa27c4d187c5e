"""Sets inside Parquet and Arrow files, as Hugging Face's `datasets` writes them.

A Parquet shard is read by the row group, never whole. An Arrow file of `save_to_disk` holds the
bytes as they are, so there a clip is a byte range, as in a tar. `datasets` itself is not needed.

Source: https://huggingface.co/docs/datasets/audio_dataset
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ssmast.audio.corpus.corpus import Corpus
from ssmast.audio.corpus.entries import ArrayEntries
from ssmast.audio.corpus.row_groups import (
    audio_column,
    features_of,
    kind_of,
    open_parquet,
    part_of_struct,
    place_of,
)
from ssmast.audio.corpus.table import LABELS_BETWEEN, joined, table_of

_LARGEST_GROUP = 2 << 30


class Rows:
    """Clips of Parquet or Arrow files: where each lies, its name, and what is known of it.

    Args:
        shards: the files.
        splits: name of the part that each file is of, empty for none.
    """

    def __init__(self, shards: Sequence[Path | str], splits: Sequence[str]) -> None:
        self.shards, self.splits = shards, splits
        self.shard: list[np.ndarray] = []
        self.offsets: list[np.ndarray] = []
        self.sizes: list[np.ndarray] = []
        self._paths: list[str] = []
        self._columns: dict[str, list[str]] = {}
        self._features: dict[str, Any] = {}

    def add(
        self, number: int, offsets: np.ndarray, sizes: np.ndarray, paths: Sequence[str | None]
    ) -> None:
        """Add clips of a file; then `add_columns` what is known of them.

        Args:
            number: of the file.
            offsets: of the clips in it, int64.
            sizes: in bytes, int64.
            paths: as the audio column has them.
        """
        self.shard.append(np.full(len(offsets), number, dtype=np.int32))
        self.offsets.append(offsets)
        self.sizes.append(sizes)
        self._paths += [os.path.basename((path or "").replace("\\", "/")) for path in paths]

    def add_columns(self, columns: pa.Table, number: int) -> None:
        """Add the other columns of the clips, as text.

        Raises:
            ValueError: if the files have different columns, or a class has no name.
        """
        self._features = self._features or features_of(columns.schema)
        texts = {
            name: _texts(columns[name], self._features.get(name), self.shards[number], name)
            for name in columns.column_names
        }
        if any(self.splits):
            texts["split"] = [self.splits[number]] * len(columns)
        if self.shard[1:] and list(texts) != list(self._columns):
            raise ValueError(
                f"{self.shards[number]} has the columns {', '.join(texts)}, another file of the "
                f"set has {', '.join(self._columns)}; give one set alone"
            )
        for name, values in texts.items():
            self._columns.setdefault(name, []).extend(values)

    def names(self) -> list[str]:
        """The paths that the audio column has; where two clips share one, file and row instead."""
        if all(self._paths) and len(set(self._paths)) == len(self._paths):
            return self._paths
        ends = np.cumsum([len(one) for one in self.shard])
        names = []
        for i, path in enumerate(self._paths):
            batch = int(np.searchsorted(ends, i, side="right"))
            stem = os.path.basename(str(self.shards[int(self.shard[batch][0])]))
            names.append(f"{stem}/{i:07d}{os.path.splitext(path)[1]}")
        return names

    def corpus(self, root: Path | str) -> Corpus:
        """The clips, with the other columns as their table.

        Raises:
            ValueError: if there is none.
        """
        names = self.names()
        if not names:
            raise ValueError(f"{root} has no row; wanted one a clip")
        entries = ArrayEntries(
            pa.array([name.encode() for name in names], type=pa.large_binary()),
            np.concatenate(self.sizes),
            np.concatenate(self.shard),
            np.concatenate(self.offsets),
        )
        table = table_of(self._columns, self._said()) if self._columns else None
        return Corpus(root=root, entries=entries, shards=self.shards, table=table)

    def _said(self) -> dict[str, Any]:
        """What the schema says of the labels, in the words of a task.json."""
        classes = {
            name: found for name, one in self._features.items() if (found := _class_names(one))
        }
        label = next((name for name in ("label", "labels") if name in self._columns), "")
        label = label or (next(iter(classes)) if len(classes) == 1 else "")
        if not label:
            return {}
        several = _is_list(self._features.get(label))
        facts = {"label": label, "multi_label": several, "label_separator": LABELS_BETWEEN}
        return {**facts, "classes": classes[label]} if label in classes else facts


def parquet_rows(files: Sequence[Path | str], splits: Sequence[str]) -> Rows:
    """Clips of Parquet files; their sound is not read.

    Raises:
        ValueError: if a file is no Parquet, has no sound, or a row group is too large to be read.
    """
    rows = Rows(files, splits)
    for number, path in enumerate(files):
        with open_parquet(path) as file:
            audio = audio_column(file.schema_arrow, path)
            other = [field.name for field in file.schema_arrow if _is_told(field.type)]
            column, inside = audio.split(".")[0], audio.endswith(".bytes")
            has_path = inside and file.schema_arrow.field(column).type.get_field_index("path") >= 0
            leaf = [c.path for c in map(file.schema.column, range(len(file.schema.names)))]
            for group in range(file.num_row_groups):
                about = file.metadata.row_group(group)
                chunk = about.column(leaf.index(audio))
                if chunk.total_uncompressed_size > _LARGEST_GROUP:
                    raise ValueError(
                        f"{path} has {about.num_rows:,} clips, {chunk.total_uncompressed_size:,} "
                        "bytes, in one row group, which is read whole for each; write it with "
                        "row groups of 100 rows"
                    )
                stated = chunk.statistics
                if stated and stated.has_null_count and stated.null_count == about.num_rows > 0:
                    raise ValueError(
                        f"{path} names files and holds no sound in row group {group}; save the set "
                        "with its sound in it, or give a metadata.csv beside the files"
                    )
                paths: list[str | None] = [None] * about.num_rows
                if has_path:
                    named = file.read_row_group(group, columns=[f"{column}.path"])[column]
                    paths = [one and one["path"] for one in named.to_pylist()]
                mean = chunk.total_uncompressed_size // max(1, about.num_rows)
                sizes = np.full(about.num_rows, mean, dtype=np.int64)
                rows.add(number, place_of(group, about.num_rows), sizes, paths)
                rows.add_columns(file.read_row_group(group, columns=other), number)
    return rows


def arrow_rows(files: Sequence[Path], splits: Sequence[str]) -> Rows:
    """Clips of Arrow files, as `Dataset.save_to_disk` writes them, each a byte range.

    Raises:
        ValueError: if a file is no Arrow, has no sound, or is compressed inside.
    """
    rows = Rows(files, splits)
    for number, path in enumerate(files):
        with pa.memory_map(str(path)) as file:
            whole = file.read_buffer()
            try:
                for batch in _batches(whole):
                    table = pa.Table.from_batches([batch])
                    audio = audio_column(batch.schema, path)
                    column = batch.column(batch.schema.get_field_index(audio.split(".")[0]))
                    paths: list[str | None] = [None] * len(column)
                    values = column
                    if pa.types.is_struct(column.type):
                        values = part_of_struct(column, "bytes")
                        if column.type.get_field_index("path") >= 0:
                            paths = part_of_struct(column, "path").to_pylist()
                    rows.add(number, *_ranges(values, whole, path), paths)
                    told = [field.name for field in batch.schema if _is_told(field.type)]
                    rows.add_columns(table.select(told), number)
            except (pa.ArrowInvalid, OSError) as error:  # a body that is cut off is an OSError
                raise ValueError(f"{path} is no Arrow file, or cut short: {error}") from error
    return rows


def _batches(whole: pa.Buffer) -> Iterator[pa.RecordBatch]:
    """Batches of the stream that `datasets` writes, or of Arrow's file format."""
    if whole[:6].to_pybytes() == b"ARROW1":
        file = pa.ipc.open_file(pa.BufferReader(whole))
        yield from (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        yield from pa.ipc.open_stream(pa.BufferReader(whole))


def _ranges(values: pa.Array, whole: pa.Buffer, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Offset in the file, and size, of each value of a binary array that lies in it."""
    _, ends, data = values.buffers()
    if ends is None or data is None or not len(values):
        if values.null_count < len(values):
            raise ValueError(f"{path} is compressed inside; load it with datasets and save it anew")
        if len(values):
            raise ValueError(
                f"{path} names files and holds no sound; save the set with its sound in it, or "
                "give a metadata.csv beside the files"
            )
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    kind = np.dtype("<i8" if pa.types.is_large_binary(values.type) else "<i4")
    bounds = np.frombuffer(ends, dtype=kind)[values.offset : values.offset + len(values) + 1]
    bounds = bounds.astype(np.int64) + (data.address - whole.address)
    if bounds[0] < 0 or bounds[-1] > whole.size:
        raise ValueError(f"{path} is compressed inside; load it with datasets and save it anew")
    return bounds[:-1], np.diff(bounds)


def _is_told(kind: pa.DataType) -> bool:
    """Whether a column is of words or numbers, or lists of them, which a table can show."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
    )


def _is_list(feature: object) -> bool:
    return isinstance(feature, list) or kind_of(feature) in ("Sequence", "List", "LargeList")


def _class_names(feature: object) -> list[str]:
    """The classes of a column of ClassLabel, or of lists of it; empty for any other."""
    if isinstance(feature, list):
        feature = feature[0] if feature else None
    elif isinstance(feature, dict) and _is_list(feature):
        feature = feature.get("feature")
    if not isinstance(feature, dict) or kind_of(feature) != "ClassLabel":
        return []
    return [str(name) for name in feature.get("names") or ()]


def _texts(column: pa.ChunkedArray, feature: object, path: Path | str, name: str) -> list[str]:
    classes = _class_names(feature)

    def text(value: Any) -> str:
        if value is None or (classes and value == -1):  # datasets' mark of no label
            return ""
        if classes and isinstance(value, int):
            if not 0 <= value < len(classes):
                raise ValueError(
                    f"{path}, column {name!r}: class {value} has no name; its schema names "
                    f"{len(classes)}"
                )
            return classes[value]
        return str(value)

    values: Iterable[Any] = column.to_pylist()
    return [joined(map(text, v), path) if isinstance(v, list) else text(v) for v in values]


def saved_shards(folder: Path) -> list[Path]:
    """The Arrow files of a folder of `Dataset.save_to_disk`, in the order of its state.json.

    Raises:
        ValueError: if state.json is damaged or names a file elsewhere.
        FileNotFoundError: if a file that it names is gone.
    """
    path = folder / "state.json"
    try:
        state: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = [str(one["filename"]) for one in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not what datasets writes beside Arrow files: it must list _data_files"
        ) from error
    for name in names:
        if os.path.basename(name) != name:
            raise ValueError(f"{path} names {name!r}, which is not in its folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}, which {path} lists, is gone; copy it again")
    return [folder / name for name in names]
