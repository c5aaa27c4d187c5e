"""Sets inside Parquet and Arrow files, as Hugging Face's `datasets` writes them.

A Parquet shard is read by the row group, never whole. An Arrow file of `save_to_disk` holds the
bytes as they are, so there a clip is a byte range, as in a tar. `datasets` itself is not needed.

Source: https://huggingface.co/docs/datasets/audio_dataset
"""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ssmast.audio.corpus.corpus import Corpus
from ssmast.audio.corpus.entries import ArrayEntries
from ssmast.audio.corpus.shards import (
    audio_column,
    features_of,
    kind_of,
    open_parquet,
    part_of_struct,
    place_of,
)
from ssmast.audio.corpus.table import (
    LABELS_BETWEEN,
    Listing,
    find_column,
    joined,
    split_word,
    table_of,
)

_LARGEST_GROUP = 2 << 30


class _Batch(NamedTuple):
    """Some clips of a file: where they lie, and what is known of them."""

    shard: int
    offsets: np.ndarray
    sizes: np.ndarray
    paths: list[str | None]  # as the audio column has them
    columns: pa.Table


def parquet_corpus(root: Path | str, files: Sequence[Path | str], splits: Sequence[str]) -> Corpus:
    """A corpus of the rows of Parquet files, whose sound is not read.

    `splits` names the part that each file is of, empty for none.
    """
    batches = (one for number, path in enumerate(files) for one in _row_groups(number, path))
    return _corpus(root, files, splits, batches)


def arrow_corpus(root: Path, files: Sequence[Path], splits: Sequence[str]) -> Corpus:
    """A corpus of the rows of Arrow files, as `Dataset.save_to_disk` writes them.

    Each clip is a byte range; `splits` as of `parquet_corpus`.
    """
    batches = (one for number, path in enumerate(files) for one in _arrow_batches(number, path))
    return _corpus(root, files, splits, batches)


def _corpus(
    root: Path | str, files: Sequence[Path | str], splits: Sequence[str], batches: Iterable[_Batch]
) -> Corpus:
    found, features, lists = Listing(root), dict[str, Any](), set[str]()
    places = list[_Batch]()
    for batch in batches:
        path = files[batch.shard]
        features = features or features_of(batch.columns.schema)
        lists |= {field.name for field in batch.columns.schema if _holds_lists(field.type)}
        texts = {
            name: _texts(batch.columns[name], features.get(name), path, name)
            for name in batch.columns.column_names
        }
        if any(splits):
            texts["split"] = [splits[batch.shard]] * len(batch.columns)
        if places and list(texts) != list(found.columns):
            raise ValueError(
                f"{path} has the columns {', '.join(texts)}, another file of the set has "
                f"{', '.join(found.columns)}; give one set alone"
            )
        names = [os.path.basename((one or "").replace("\\", "/")) for one in batch.paths]
        found.add(names, texts)
        places.append(batch)
    if not found.names:
        raise ValueError(f"{root} has no row; wanted one a clip")
    shard = np.repeat([one.shard for one in places], [len(one.paths) for one in places])
    if not all(found.names) or len(set(found.names)) < len(found.names):
        # Where two clips share a path: file and row instead.
        stems = [os.path.basename(str(file)) for file in files]
        found.names = [
            f"{stems[number]}/{i:07d}{os.path.splitext(name)[1]}"
            for i, (name, number) in enumerate(zip(found.names, shard.tolist(), strict=True))
        ]
    entries = ArrayEntries.of(
        found.names,
        np.concatenate([one.sizes for one in places]),
        shard,
        np.concatenate([one.offsets for one in places]),
    )
    table = table_of(found.columns, _said(found, features, lists)) if found.columns else None
    return Corpus(root=root, entries=entries, shards=files, table=table)


def _said(found: Listing, features: Mapping[str, Any], lists: Collection[str]) -> dict[str, Any]:
    """What the schema says of the labels, in the words of a task.json."""
    classes = {name: names for name, one in features.items() if (names := _class_names(one))}
    label = find_column(list(found.columns), "label")
    if label not in found.columns:
        label = next(iter(classes)) if len(classes) == 1 else ""
    if not label:
        return {}
    facts = {"label": label, "multi_label": label in lists, "label_separator": LABELS_BETWEEN}
    return {**facts, "classes": classes[label]} if label in classes else facts


def _row_groups(number: int, path: Path | str) -> Iterator[_Batch]:
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
                raise ValueError(_no_sound(f"{path}, row group {group}"))
            paths: list[str | None] = [None] * about.num_rows
            if has_path:
                named = file.read_row_group(group, columns=[f"{column}.path"])[column]
                paths = [one and one["path"] for one in named.to_pylist()]
            mean = chunk.total_uncompressed_size // max(1, about.num_rows)
            sizes = np.full(about.num_rows, mean, dtype=np.int64)
            columns = file.read_row_group(group, columns=other)
            yield _Batch(number, place_of(group, about.num_rows), sizes, paths, columns)


def _no_sound(what: str) -> str:
    return (
        f"{what} names files and holds no sound; save the set with its sound in it, or give a "
        "metadata.csv beside the files"
    )


def _arrow_batches(number: int, path: Path) -> Iterator[_Batch]:
    with pa.memory_map(str(path)) as file:
        whole = file.read_buffer()
        try:
            for batch in _batches(whole):
                audio = audio_column(batch.schema, path)
                values = batch.column(batch.schema.get_field_index(audio.split(".")[0]))
                paths: list[str | None] = [None] * len(values)
                if pa.types.is_struct(values.type):
                    if values.type.get_field_index("path") >= 0:
                        paths = part_of_struct(values, "path").to_pylist()
                    values = part_of_struct(values, "bytes")
                told = [field.name for field in batch.schema if _is_told(field.type)]
                columns = pa.Table.from_batches([batch]).select(told)
                yield _Batch(number, *_ranges(values, whole, path), paths, columns)
        except (pa.ArrowInvalid, OSError) as error:  # a body that is cut off is an OSError
            raise ValueError(f"{path} is no Arrow file, or cut short: {error}") from error


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
            raise ValueError(_no_sound(str(path)))
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    kind = np.dtype("<i8" if pa.types.is_large_binary(values.type) else "<i4")
    bounds = np.frombuffer(ends, dtype=kind)[values.offset : values.offset + len(values) + 1]
    bounds = bounds.astype(np.int64) + (data.address - whole.address)
    if bounds[0] < 0 or bounds[-1] > whole.size:
        raise ValueError(f"{path} is compressed inside; load it with datasets and save it anew")
    return bounds[:-1], np.diff(bounds)


def _is_told(kind: pa.DataType) -> bool:
    """Whether a column is of words or numbers, or lists of them, which a table can show."""
    if _holds_lists(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
    )


def _holds_lists(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


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


def saved_corpus(root: Path) -> Corpus:
    """A corpus of what `save_to_disk` of a Dataset or a DatasetDict wrote."""
    if (root / "state.json").is_file():
        shards = _saved_shards(root)
        return arrow_corpus(root, shards, [""] * len(shards))
    path = root / "dataset_dict.json"
    try:
        names = [str(name) for name in json.loads(path.read_text(encoding="utf-8"))["splits"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must list splits, as datasets writes it") from error
    shards, splits = list[Path](), list[str]()
    for name in names:
        if os.path.basename(name) != name or not (root / name / "state.json").is_file():
            raise FileNotFoundError(f"{path} lists the split {name!r}, which has no state.json")
        own = _saved_shards(root / name)
        shards += own
        splits += [split_word(name) or name] * len(own)
    return arrow_corpus(root, shards, splits if len(names) > 1 else [""] * len(shards))


def _saved_shards(folder: Path) -> list[Path]:
    """The Arrow files of a folder of `Dataset.save_to_disk`, in the order of its state.json."""
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
