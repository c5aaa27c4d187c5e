"""From the clips of all jobs to the finished corpus: duplicates out, shards, manifest, index."""

import csv
import hashlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssmast.audio.corpus.corpus import Corpus
from ssmast.audio.corpus.entries import ArrayEntries, write_index
from ssmast.audio.corpus.open import CORPUS_FILE, INDEX, MANIFEST
from ssmast.audio.corpus.shards import TarReader
from ssmast.files import replacing, sha256_of, write_atomic, write_json
from ssmast.prepare.duplicates import exact_duplicates, near_duplicates
from ssmast.prepare.job import BLOCK, Rejected, end_tar, front_end, read_rejected, write_member
from ssmast.prepare.plan import Plan, write_table

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
    """Write the finished corpus; resumes an interrupted call.

    Args:
        plan: all of whose jobs are done.
        source: corpus it was made for, whose table goes into the manifest.
        out: folder.
        shard_bytes: a shard ends where the next clip would pass this.
        near: smallest cosine of near duplicates; 0 to keep them.
        settings: for the record.

    Returns:
        What `corpus.json` holds.

    Raises:
        ValueError: if no clip is left.
    """
    jobs = range(len(plan.ends))
    rejected = [row for job in jobs for row in read_rejected(plan, job)]
    facts = pa.concat_tables([pq.read_table(plan.facts_of(job)) for job in jobs])
    job_of = np.repeat(jobs, [pq.read_metadata(plan.facts_of(u)).num_rows for u in jobs])
    facts = facts.append_column("job", pa.array(job_of, type=pa.int64()))
    facts, duplicates = _without_duplicates(facts, near)
    rejected += duplicates
    if not facts.num_rows:
        reason = f"; the first: {rejected[0][2]}" if rejected else ""
        raise ValueError(f"nothing in {source.root} can be used{reason}")
    shard, offset, names = _locations(plan, facts, shard_bytes)
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
        ArrayEntries.of(names, facts["size"].to_numpy(), shard, offset),
        shards=shards,
        listing_hash=digest.hexdigest(),
    )
    about = _about(plan, facts, rejected, len(shards), out, settings)
    write_json(out / CORPUS_FILE, about)
    return about


def _without_duplicates(facts: pa.Table, near: float) -> tuple[pa.Table, Rejected]:
    """The clips that are kept, and the others with what they duplicate."""
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
        prints, changes = (
            np.frombuffer(b"".join(kept[name].to_pylist()), dtype=np.int8).reshape(len(rows), -1)
            for name in ("fingerprint", "changes")
        )
        samples = kept["samples"].to_numpy()
        of = near_duplicates(prints, samples, similarity=near, changes=changes)
        for i in np.flatnonzero(of >= 0):
            name, other = names[rows[i]], names[rows[of[i]]]
            rejected.append((name, "near duplicate", f"{name} sounds like {other}"))
        rows = rows[of < 0]
    return facts.take(pa.array(rows)), rejected


def _locations(
    plan: Plan, facts: pa.Table, shard_bytes: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Shard, offset of the data and name of every clip."""
    shard, offset = np.zeros(facts.num_rows, np.int32), np.zeros(facts.num_rows, np.int64)
    number = at = 0
    for i, size in enumerate(facts["size"].to_pylist()):
        length = BLOCK + size + -size % BLOCK
        if at and at + length > shard_bytes:
            number, at = number + 1, 0
        shard[i], offset[i] = number, at + BLOCK
        at += length
    names = [
        f"{source:09d}-{number:05d}.{plan.cut.codec}"
        for source, number in zip(*_lists(facts, "source_clip", "number"), strict=True)
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
    """Copy clips out of the tars of the jobs; a shard that exists is whole."""
    reader = TarReader([plan.tar_of(job) for job in range(len(plan.ends))])
    jobs, offsets, sizes = _lists(facts, "job", "offset", "size")
    ends = np.searchsorted(shard, np.arange(len(shards)), side="right")
    for number, name in enumerate(shards):
        if (out / name).is_file():
            continue
        with replacing(out / name) as partial, partial.open("wb") as file:
            for i in range(int(ends[number - 1]) if number else 0, int(ends[number])):
                data = reader.read(jobs[i], offsets[i], sizes[i], names[i])
                write_member(file, names[i], data)
            end_tar(file)


def _manifest(
    plan: Plan,
    facts: pa.Table,
    shard: np.ndarray,
    offset: np.ndarray,
    names: list[str],
    shards: list[str],
    table: pa.Table | None,
) -> pa.Table:
    """One row a clip, with the columns of its source clip."""
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
        rows = table.take(facts["source_clip"])
        columns |= {
            name: rows[name] for name in table.column_names if name not in {*columns, "path"}
        }
    return pa.table(columns)


def _write_rejected(path: Path, rejected: Rejected) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["name", "kind", "reason"])
    writer.writerows(rejected)
    write_atomic(path, text.getvalue())


def _about(
    plan: Plan,
    facts: pa.Table,
    rejected: Rejected,
    num_shards: int,
    out: Path,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The corpus in a few numbers. Sums are in the order of the clips, so they always agree."""
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
        "manifest_sha256": sha256_of(out / MANIFEST),
        "index_sha256": sha256_of(out / INDEX),
    }


_SUMS = ("cells", "sum", "sum_of_squares")


def _lists(facts: pa.Table, *columns: str) -> list[list[Any]]:
    return [facts[column].to_pylist() for column in columns]
