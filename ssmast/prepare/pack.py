"""From the pieces of all units to the finished corpus: what stays, shards, manifest, index."""

import csv
import hashlib
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssmast.audio.corpus.corpus import Corpus
from ssmast.audio.corpus.index import write_index
from ssmast.audio.corpus.open import FACTS, INDEX, MANIFEST
from ssmast.audio.corpus.tar import TarReader
from ssmast.prepare.duplicates import exact_duplicates, near_duplicates
from ssmast.prepare.plan import Plan, write_atomic, write_table
from ssmast.prepare.unit import BLOCK, Rejected, end_tar, front_end, read_rejected, write_member

REJECTED = "rejected.csv"


def pack(
    plan: Plan,
    source: Corpus,
    out: Path,
    *,
    shard_bytes: int,
    near: float,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Write the finished corpus; what an interrupted call left is gone on with.

    Args:
        plan: all of whose units are done.
        source: corpus it was made for, whose table goes into the manifest.
        out: folder.
        shard_bytes: a shard ends where the next piece would pass this.
        near: smallest cosine of near duplicates; 0 to keep them.
        settings: for the record.

    Returns:
        What `corpus.json` holds.

    Raises:
        ValueError: if no piece is left.
    """
    units = range(len(plan.ends))
    rejected = [row for unit in units for row in read_rejected(plan, unit)]
    facts = pa.concat_tables([pq.read_table(plan.facts_of(unit)) for unit in units])
    unit_of = np.repeat(units, [pq.read_metadata(plan.facts_of(u)).num_rows for u in units])
    facts = facts.append_column("unit", pa.array(unit_of, type=pa.int64()))
    facts, duplicates = _without_duplicates(facts, near)
    rejected += duplicates
    if not facts.num_rows:
        reason = f"; the first: {rejected[0][2]}" if rejected else ""
        raise ValueError(f"nothing in {source.root} can be used{reason}")
    shard, offset, names = _places(plan, facts, shard_bytes)
    shards = [f"shard-{number:06d}.tar" for number in range(int(shard[-1]) + 1)]
    _write_shards(plan, facts, out, shard, names, shards)
    manifest = _manifest(plan, facts, shard, offset, names, shards, source.table)
    write_table(out / MANIFEST, manifest)
    _write_rejected(out / REJECTED, rejected)
    digest = hashlib.sha256()
    for name, size in zip(names, facts["size"].to_pylist(), strict=True):
        digest.update(f"{name}\t{size}\n".encode())
    write_index(
        out / INDEX,
        names=pa.array([name.encode() for name in names], type=pa.large_binary()),
        sizes=facts["size"].to_numpy(),
        shard=shard,
        offset=offset,
        shards=shards,
        suffixes=[f".{plan.cut.codec}"],
        fingerprint=digest.hexdigest(),
    )
    about = _about(plan, facts, rejected, len(shards), out, settings)
    write_atomic(out / FACTS, json.dumps(about, indent=1).encode())
    return about


def _without_duplicates(facts: pa.Table, near: float) -> tuple[pa.Table, Rejected]:
    """The pieces that stay, and the others with what they repeat."""
    names = [
        f"{source}@{start}" for source, start in zip(*_lists(facts, "source", "start"), strict=True)
    ]
    rejected: Rejected = []
    exact = exact_duplicates(facts["hash"].to_pylist())
    for i in np.flatnonzero(exact >= 0):
        reason = f"{names[i]} holds the same samples as {names[exact[i]]}"
        rejected.append((names[i], "duplicate", reason))
    rows = np.flatnonzero(exact < 0)
    if near and len(rows):
        kept = facts.take(pa.array(rows))
        prints = np.frombuffer(b"".join(kept["fingerprint"].to_pylist()), dtype=np.int8)
        samples = kept["samples"].to_numpy()
        of = near_duplicates(prints.reshape(len(rows), -1), samples, similarity=near)
        for i in np.flatnonzero(of >= 0):
            name, other = names[rows[i]], names[rows[of[i]]]
            rejected.append((name, "near duplicate", f"{name} sounds like {other}"))
        rows = rows[of < 0]
    return facts.take(pa.array(rows)), rejected


def _places(
    plan: Plan, facts: pa.Table, shard_bytes: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Shard, offset of the data and name of every piece."""
    shard, offset = np.zeros(facts.num_rows, np.int32), np.zeros(facts.num_rows, np.int64)
    number = at = 0
    for i, size in enumerate(facts["size"].to_pylist()):
        length = BLOCK + size + -size % BLOCK
        if at and at + length > shard_bytes:
            number, at = number + 1, 0
        shard[i], offset[i] = number, at + BLOCK
        at += length
    names = [
        f"{clip:09d}-{piece:05d}.{plan.cut.codec}"
        for clip, piece in zip(*_lists(facts, "clip", "piece"), strict=True)
    ]
    return shard, offset, names


def _write_shards(
    plan: Plan,
    facts: pa.Table,
    out: Path,
    shard: np.ndarray,
    names: list[str],
    shards: list[str],
) -> None:
    """Copy pieces out of the tars of the units; a shard that is there is whole."""
    reader = TarReader([plan.tar_of(unit) for unit in range(len(plan.ends))])
    units, offsets, sizes = _lists(facts, "unit", "offset", "size")
    ends = np.searchsorted(shard, np.arange(len(shards)), side="right")
    for number, name in enumerate(shards):
        if (out / name).is_file():
            continue
        partial = out / f".{name}.{os.getpid()}.tmp"
        with partial.open("wb") as file:
            for i in range(int(ends[number - 1]) if number else 0, int(ends[number])):
                data = reader.read(units[i], offsets[i], sizes[i], names[i])
                write_member(file, names[i], data)
            end_tar(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, out / name)


def _manifest(
    plan: Plan,
    facts: pa.Table,
    shard: np.ndarray,
    offset: np.ndarray,
    names: list[str],
    shards: list[str],
    table: pa.Table | None,
) -> pa.Table:
    """One row a piece; what is known of its clip comes along."""
    columns: dict[str, Any] = {
        "key": [name.rpartition(".")[0] for name in names],
        "shard": pa.array(shards).take(pa.array(shard)),
        "offset": offset,
        "size": facts["size"],
        "samples": facts["samples"],
        "rate": pa.array(np.full(facts.num_rows, plan.cut.sample_rate, np.int32)),
        "hash": [digest.hex() for digest in facts["hash"].to_pylist()],
    }
    for name in ("source", "start", "source_rate", "decoder", "gain", "peak", "rms"):
        columns[name] = facts[name]
    if table is not None:
        rows = table.take(facts["clip"])
        columns |= {
            name: rows[name] for name in table.column_names if name not in {*columns, "path"}
        }
    return pa.table(columns)


def _write_rejected(path: Path, rejected: Rejected) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["name", "kind", "reason"])
    writer.writerows(rejected)
    write_atomic(path, text.getvalue().encode())


def _about(
    plan: Plan,
    facts: pa.Table,
    rejected: Rejected,
    num_shards: int,
    out: Path,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The corpus in a few numbers. Sums are in the order of the pieces, so they always agree."""
    cells, sum_, squares = (math.fsum(facts[k].to_pylist()) for k in _SUMS)
    mean = sum_ / cells
    kinds: dict[str, int] = {}
    for _, kind, _ in rejected:
        kinds[kind] = kinds.get(kind, 0) + 1
    samples = int(facts["samples"].to_numpy().sum())
    return {
        "clips": facts.num_rows,
        "source_clips": len(plan.corpus),
        "seconds": samples / plan.cut.sample_rate,
        "shards": num_shards,
        "bytes": int(facts["size"].to_numpy().sum()),
        "mean": mean,
        "std": math.sqrt(max(squares / cells - mean**2, 0.0)),
        "log_mel": front_end(plan.cut.sample_rate).settings(),
        "rejected": dict(sorted(kinds.items())),
        "settings": settings,
        "manifest_sha256": hashlib.sha256((out / MANIFEST).read_bytes()).hexdigest(),
        "index_sha256": hashlib.sha256((out / INDEX).read_bytes()).hexdigest(),
    }


_SUMS = ("cells", "sum", "sum_of_squares")


def _lists(facts: pa.Table, *columns: str) -> list[list[Any]]:
    return [facts[column].to_pylist() for column in columns]
