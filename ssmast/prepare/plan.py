"""The plan of a preparation, written before it begins: settings, source clips, and their jobs."""

import functools
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ssmast.audio.corpus.corpus import Corpus, Mixture
from ssmast.audio.corpus.entries import ArrayEntries, IndexFile, write_index
from ssmast.audio.corpus.remote import is_url
from ssmast.files import write_atomic, write_json

FORMAT = 2
"""Raise it when the same settings would give other bytes."""

_JOB_CLIPS = 256
_JOB_BYTES = 64 << 20
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a source clip becomes clips: plain values, as `prepare_corpus` explains them."""

    sample_rate: int
    segment_seconds: float
    min_seconds: float
    min_peak: float
    max_abs: float
    codec: str
    channel: str = "mean"

    def __post_init__(self) -> None:
        """Refuse what makes no corpus."""
        if self.codec not in ("flac", "opus"):
            raise ValueError(f"codec must be flac or opus, got {self.codec!r}")
        if self.codec == "opus" and self.sample_rate not in _OPUS_RATES:
            rates = ", ".join(map(str, _OPUS_RATES))
            raise ValueError(f"Opus has rates of {rates} Hz, got {self.sample_rate}; use flac")
        if self.sample_rate < 1000:
            raise ValueError(f"sample_rate must be 1000 Hz or more, got {self.sample_rate}")
        if self.min_seconds <= 0:
            raise ValueError(f"min_seconds must be above 0, got {self.min_seconds:g}")
        if self.segment_seconds and self.segment_seconds < self.min_seconds:
            raise ValueError(
                f"segment_seconds must be at least min_seconds={self.min_seconds:g}, or 0 for "
                f"whole clips, got {self.segment_seconds:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan, as written.

    Args:
        work: folder of the unfinished work.
        cut: how a source clip becomes clips.
        corpus: of the source clips.
        ends: source clip after the last of each job, int64.
    """

    work: Path
    cut: Cut
    corpus: Corpus
    ends: np.ndarray

    def sources_of(self, job: int) -> range:
        """Numbers of the source clips of a job."""
        return range(int(self.ends[job - 1]) if job else 0, int(self.ends[job]))

    def tar_of(self, job: int) -> Path:
        """The clips of a job."""
        return self.work / "jobs" / f"{job:07d}.tar"

    def facts_of(self, job: int) -> Path:
        """What is known of the clips of a job; the job is done when this exists."""
        return self.work / "jobs" / f"{job:07d}.parquet"

    def rejected_of(self, job: int) -> Path:
        """Source clips that a job rejected: JSON, a list of [name, kind, reason]."""
        return self.work / "jobs" / f"{job:07d}.json"


def write_plan(work: Path, corpus: Corpus, cut: Cut, extra: dict[str, Any]) -> None:
    """Write a plan, or check that the one there is the same.

    Raises:
        ValueError: if the work there was begun with other settings or other audio.
    """
    if isinstance(corpus, Mixture):
        raise ValueError("a mixture cannot be prepared; prepare its corpora and mix the results")
    wanted = {
        "format": FORMAT,
        "root": str(corpus.root) if is_url(str(corpus.root)) else os.path.abspath(corpus.root),
        "cut": asdict(cut),
        "fingerprint": corpus.listing_hash,
        "stamp": corpus.files_hash,
        **extra,
    }
    read_plan.cache_clear()
    path = work / "plan.json"
    (work / "jobs").mkdir(parents=True, exist_ok=True)
    if path.is_file():
        _compare(json.loads(path.read_text(encoding="utf-8")), wanted, work)
        return
    entries = corpus.entries
    if not isinstance(entries, ArrayEntries):
        entries = entries.take(np.arange(len(corpus)))
    if not isinstance(entries, ArrayEntries):
        raise TypeError(f"clips of {corpus.root} cannot be listed")
    write_index(
        work / "source.index",
        entries,
        shards=[p if isinstance(p, str) else os.path.abspath(p) for p in corpus.shards],
        listing_hash=corpus.listing_hash,
    )
    write_json(work / "ends.json", _job_ends(entries.sizes), indent=None)
    write_json(path, wanted)


@functools.lru_cache(maxsize=2)
def read_plan(work: Path) -> Plan:
    """The plan in a folder, once a process."""
    written = json.loads((work / "plan.json").read_text(encoding="utf-8"))
    index = IndexFile(work / "source.index")
    root = written["root"]
    corpus = Corpus(
        root=root if is_url(root) else Path(root),
        entries=index,
        shards=[shard if is_url(shard) else Path(shard) for shard in index.shards],
        listing_hash=index.listing_hash,
        channel=written["cut"]["channel"],
    )
    ends = np.array(json.loads((work / "ends.json").read_bytes()), dtype=np.int64)
    return Plan(work=work, cut=Cut(**written["cut"]), corpus=corpus, ends=ends)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as a Parquet file, whole or not at all."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def _job_ends(sizes: np.ndarray) -> list[int]:
    """Clip after the last of each job: at most 256 clips and, unless it is one clip, 64 MB."""
    ends: list[int] = []
    first = held = 0
    for i, size in enumerate(sizes.tolist()):
        if i > first and (i - first >= _JOB_CLIPS or held + size > _JOB_BYTES):
            ends.append(i)
            first, held = i, 0
        held += size
    return [*ends, len(sizes)]


def _compare(written: dict[str, Any], wanted: dict[str, Any], work: Path) -> None:
    for key, value in wanted.items():
        if written.get(key) == value:
            continue
        audio = key in ("fingerprint", "stamp")
        what = "the audio has changed since" if audio else f"{key} was different"
        raise ValueError(
            f"{work.parent} holds unfinished work, but {what} ({written.get(key)}, now {value}); "
            f"give the settings it was begun with, or another out="
        )
