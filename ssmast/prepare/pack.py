"""From the clips of all jobs to the finished corpus: duplicates out, shards, manifest, index."""

import csv
import io
import math
from collections import Counter
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
from ssmast.prepare.job import (
    BLOCK,
    Plan,
    Rejected,
    end_tar,
    front_end,
    read_rejected,
    write_member,
    write_table,
)

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

    All jobs of the plan are done; the table of the source goes into the manifest. A shard ends
    where the next clip would pass `shard_bytes`; `near` is the smallest cosine of near duplicates,
    0 to keep them.

    Returns:
        What `corpus.json` holds, the settings among it.

    Raises:
        ValueError: if no clip is left.
    """
    jobs = range(len(plan.ends))
    rejected = [row for job in jobs for row in read_rejected(plan, job)]
    tables = [pq.read_table(plan.file_of(job, "parquet")) for job in jobs]
    job_of = np.repeat(jobs, [table.num_rows for table in tables])
    facts = pa.concat_tables(tables).append_column("job", pa.array(job_of, type=pa.int64()))
    facts, duplicates = _without_duplicates(facts, near)
    rejected += duplicates
    if not facts.num_rows:
        reason = f"; the first: {rejected[0][2]}" if rejected else ""
        raise ValueError(f"nothing in {source.root} can be used{reason}")
    facts = _placed(plan, facts, shard_bytes)
    names, number = facts["name"].to_pylist(), facts["shard"].to_numpy()
    shards = [f"shard-{shard:06d}.tar" for shard in range(int(number[-1]) + 1)]
    _write_shards(plan, facts, out, shards)
    write_table(out / MANIFEST, _manifest(plan, facts, shards, source.table))
    _write_rejected(out / REJECTED, rejected)
    sizes, places = facts["size"].to_numpy(), facts["place"].to_numpy()
    entries = ArrayEntries.of(names, sizes, number, places)
    listing_hash = Corpus(root=out, entries=entries).listing_hash
    write_index(out / INDEX, entries, shards=shards, listing_hash=listing_hash)
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


def _placed(plan: Plan, facts: pa.Table, shard_bytes: int) -> pa.Table:
    """The clips with the number of their shard, the offset of the data in it, and their name."""
    shard, place = np.zeros(facts.num_rows, np.int32), np.zeros(facts.num_rows, np.int64)
    number = at = 0
    for i, size in enumerate(facts["size"].to_pylist()):
        length = BLOCK + size + -size % BLOCK
        if at and at + length > shard_bytes:
            number, at = number + 1, 0
        shard[i], place[i] = number, at + BLOCK
        at += length
    names = [
        f"{source:09d}-{number:05d}.{plan.cut.codec}"
        for source, number in zip(*_lists(facts, "source_clip", "number"), strict=True)
    ]
    for column, values in (("shard", shard), ("place", place), ("name", names)):
        facts = facts.append_column(column, pa.array(values))
    return facts


def _write_shards(plan: Plan, facts: pa.Table, out: Path, shards: list[str]) -> None:
    """Copy clips out of the tars of the jobs; a shard that exists is whole."""
    reader = TarReader([plan.file_of(job, "tar") for job in range(len(plan.ends))])
    rows = list(zip(*_lists(facts, "job", "offset", "size", "name"), strict=True))
    ends = np.searchsorted(facts["shard"].to_numpy(), np.arange(len(shards)), side="right")
    for begin, end, shard in zip([0, *ends[:-1]], ends, shards, strict=True):
        if (out / shard).is_file():
            continue
        with replacing(out / shard) as partial, partial.open("wb") as file:
            for job, offset, size, name in rows[begin:end]:
                write_member(file, name, reader.read(job, offset, size, name))
            end_tar(file)


def _manifest(plan: Plan, facts: pa.Table, shards: list[str], table: pa.Table | None) -> pa.Table:
    """One row a clip, with the columns of its source clip."""
    columns: dict[str, Any] = {
        "key": [name.rpartition(".")[0] for name in facts["name"].to_pylist()],
        "shard": pa.array(shards).take(facts["shard"].combine_chunks()),
        "offset": facts["place"],
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
    cells, sum_, squares = (
        math.fsum(facts[k].to_pylist()) for k in ("cells", "sum", "sum_of_squares")
    )
    mean = sum_ / cells
    kinds = Counter(kind for _, kind, _ in rejected)
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


def _lists(facts: pa.Table, *columns: str) -> list[list[Any]]:
    return [facts[column].to_pylist() for column in columns]
