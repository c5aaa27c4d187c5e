"""The plan of a preparation, and its jobs, each of which makes a tar of some source clips.

A plan is written before the work begins: settings, source clips, and which job takes which. A job
decodes its source clips, cuts, checks and encodes them, and writes what is known of each.
"""

import functools
import hashlib
import json
import os
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ssmast.audio.corpus.corpus import Corpus
from ssmast.audio.corpus.entries import IndexFile, write_index
from ssmast.audio.corpus.remote import is_url
from ssmast.audio.encode import CODECS, encode_sound
from ssmast.audio.long import finished
from ssmast.audio.mel import LogMel
from ssmast.audio.read import (
    AudioError,
    Excerpt,
    LongSound,
    decode_whole,
    libsndfile_version,
    open_long,
    swing,
)
from ssmast.files import replacing, write_atomic, write_json
from ssmast.prepare.duplicates import changes, fingerprint

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
    codec: str
    channel: str = "mean"

    def __post_init__(self) -> None:
        """Refuse what makes no corpus."""
        if self.codec not in CODECS:
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
    """A plan, as written; `ends` has the source clip after the last of each job, int64."""

    work: Path
    cut: Cut
    corpus: Corpus
    ends: np.ndarray

    def sources_of(self, job: int) -> range:
        """Numbers of the source clips of a job."""
        return range(int(self.ends[job - 1]) if job else 0, int(self.ends[job]))

    def file_of(self, job: int, ending: str) -> Path:
        """A file of a job.

        `tar` holds its clips, `json` the source clips that it rejected, [name, kind, reason], and
        `parquet` what is known of its clips: the job is done when that exists.
        """
        return self.work / "jobs" / f"{job:07d}.{ending}"

    def is_done(self, job: int) -> bool:
        """Whether a job is done."""
        return self.file_of(job, "parquet").is_file()


def write_plan(work: Path, corpus: Corpus, cut: Cut, extra: dict[str, Any]) -> None:
    """Write a plan, or check that the one there is the same."""
    wanted = {
        "format": FORMAT,
        "root": str(corpus.root) if is_url(str(corpus.root)) else os.path.abspath(corpus.root),
        "cut": asdict(cut),
        "fingerprint": corpus.listing_hash,
        "stamp": corpus.copied_hash,
        **extra,
    }
    read_plan.cache_clear()
    path = work / "plan.json"
    (work / "jobs").mkdir(parents=True, exist_ok=True)
    if path.is_file():
        written = json.loads(path.read_text(encoding="utf-8"))
        for key in (key for key, value in wanted.items() if written.get(key) != value):
            audio = key in ("fingerprint", "stamp")
            what = "the audio has changed since" if audio else f"{key} was different"
            raise ValueError(
                f"{work.parent} holds unfinished work, but {what} ({written.get(key)}, now "
                f"{wanted[key]}); give the settings it was begun with, or another out="
            )
        return
    entries = corpus.entries.take(np.arange(len(corpus)))
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


# -- jobs ------------------------------------------------------------------------------------------

BLOCK = 512
_LARGE = 64 << 20  # a smaller member of a tar is read at once, which takes fewer calls

CLIP_SCHEMA = pa.schema(
    [
        ("source_clip", pa.int64()),  # number in the source corpus
        ("number", pa.int32()),  # of the clip in its source clip
        ("start", pa.int64()),  # in samples of the resampled source clip
        ("offset", pa.int64()),  # in the tar of the job
        ("size", pa.int64()),
        ("samples", pa.int64()),
        ("source", pa.large_string()),
        ("source_rate", pa.int32()),
        ("decoder", pa.large_string()),
        ("gain", pa.float32()),
        ("peak", pa.float32()),
        ("rms", pa.float32()),
        ("hash", pa.binary(32)),
        ("fingerprint", pa.large_binary()),
        ("changes", pa.large_binary()),
        ("cells", pa.int64()),
        ("sum", pa.float64()),
        ("sum_of_squares", pa.float64()),
    ]
)

Rejected = list[tuple[str, str, str]]


def run_job(work: Path, job: int) -> Rejected:
    """Run a job, unless it is done: write its tar, rejected source clips, and last its facts.

    Returns:
        Rejected source clips: (name, kind, reason).
    """
    plan = read_plan(work)
    if plan.is_done(job):
        return read_rejected(plan, job)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that sums are the same in every process
    try:
        with replacing(plan.file_of(job, "tar")) as partial, partial.open("wb") as file:
            rows, rejected = _write_clips(plan, job, file)
    finally:
        torch.set_num_threads(threads)
    write_json(plan.file_of(job, "json"), rejected, indent=None)
    write_table(plan.file_of(job, "parquet"), pa.Table.from_pylist(rows, schema=CLIP_SCHEMA))
    return rejected


def read_rejected(plan: Plan, job: int) -> Rejected:
    """Source clips that a finished job rejected."""
    return [(a, b, c) for a, b, c in json.loads(plan.file_of(job, "json").read_bytes())]


def write_member(file: BinaryIO, name: str, data: bytes) -> int:
    """Append a member to a tar; the same bytes at any time and in any process.

    Its name is ASCII, at most 100 characters.

    Returns:
        Offset of the data.
    """
    info = tarfile.TarInfo(name)
    info.size = len(data)
    header = info.tobuf(tarfile.USTAR_FORMAT)
    offset = file.tell() + len(header)
    file.write(header)
    file.write(data)
    file.write(bytes(-len(data) % BLOCK))
    return offset


def end_tar(file: BinaryIO) -> None:
    """Append the end mark."""
    file.write(bytes(2 * BLOCK))


def front_end(sample_rate: int) -> LogMel:
    """The log-mel that statistics and fingerprints are made of."""
    return LogMel(sample_rate=sample_rate, f_max=min(7800.0, 0.4875 * sample_rate))


def _write_clips(plan: Plan, job: int, file: BinaryIO) -> tuple[list[dict[str, Any]], Rejected]:
    log_mel = front_end(plan.cut.sample_rate)
    rows: list[dict[str, Any]] = []
    rejected: Rejected = []
    for source in plan.sources_of(job):
        name, begin = plan.corpus.name(source), file.tell()
        try:
            found, silent = _write_source(plan, source, file, log_mel)
        except (AudioError, _TooShortError) as error:
            file.seek(begin)
            file.truncate()  # what was written of it before that showed
            kind = "short" if isinstance(error, _TooShortError) else "unreadable"
            rejected.append((name, kind, str(error)))
            continue
        rows += found
        if silent:
            some = f"{silent} of {silent + len(found)} clips" if found else "it is silent"
            reason = f"{name}: {some}: below a peak of {plan.cut.min_peak:g} about the middle"
            rejected.append((name, "silent", reason))
    end_tar(file)
    return rows, rejected


class _TooShortError(Exception):
    pass


def _write_source(
    plan: Plan, source: int, file: BinaryIO, log_mel: LogMel
) -> tuple[list[dict[str, Any]], int]:
    """Write the clips of a source clip; gives their rows, and how many more are silent."""
    cut, name = plan.cut, plan.corpus.name(source)
    begin = file.tell()
    sound, about = _open_source(plan, source, name)
    if len(sound) < cut.min_seconds * cut.sample_rate:
        seconds = len(sound) / cut.sample_rate
        raise _TooShortError(f"{name} is {seconds:.3g} s, shorter than {cut.min_seconds:g} s")
    bounds, gain, peak = clip_bounds(len(sound), cut), 1.0, 0.0
    for is_second in (False, True):
        rows: list[dict[str, Any]] = []
        for number, (start, stop) in enumerate(bounds):
            audio = sound[start:stop]
            peak = max(peak, float(np.abs(audio).max()))
            if not is_second and peak > 1.0:
                continue  # all of it is to be scaled by a peak that is not known yet
            scaled = np.rint(audio * np.float32(32768.0 * gain))
            samples = scaled.clip(-32768, 32767).astype(np.int16)
            if swing(samples) < cut.min_peak * 32768:
                continue
            data = encode_sound(samples, sample_rate=cut.sample_rate, codec=cut.codec)
            offset = write_member(file, f"{source:09d}-{number:05d}.{cut.codec}", data)
            place = {"source_clip": source, "number": number, "start": start, "offset": offset}
            about_clip = {"source": name, **about, "gain": gain, **_facts(samples, log_mel)}
            rows.append({**place, "size": len(data), **about_clip})
        if is_second or peak <= 1.0:
            return rows, len(bounds) - len(rows)
        gain = 1.0 / peak  # 16 bits end at full scale
        file.seek(begin)
        file.truncate()
        sound, _ = _open_source(plan, source, name)
    raise AssertionError


def _open_source(
    plan: Plan, source: int, name: str
) -> tuple[np.ndarray | LongSound, dict[str, Any]]:
    """Samples of a source clip, those of a long file read as they are asked for; and of what."""
    cut, corpus = plan.cut, plan.corpus
    is_large = corpus.entries[source].size > _LARGE
    found = corpus.sought(source) if is_large else corpus.source(source)
    if not isinstance(found, Excerpt):
        found = Excerpt(found, channel=corpus.channel)
    long = None
    if found.is_whole:
        long = open_long(
            found.source, sample_rate=cut.sample_rate, name=name, channel=found.channel
        )
    if long is not None:
        decoder = libsndfile_version()
        return long, {"source_rate": long.source_rate, "decoder": decoder}
    audio, rate, decoder = decode_whole(found, name=name)
    audio = finished(audio, rate, cut.sample_rate, name)
    return audio, {"source_rate": rate, "decoder": decoder}


def clip_bounds(length: int, cut: Cut) -> list[tuple[int, int]]:
    """First sample and sample after the last of every clip; together they cover the source clip."""
    step = round(cut.segment_seconds * cut.sample_rate) or length
    starts = list(range(0, length, step))
    if len(starts) > 1 and length - starts[-1] < cut.min_seconds * cut.sample_rate:
        starts.pop()
    return list(zip(starts, [*starts[1:], length], strict=True))


def _facts(samples: np.ndarray, log_mel: LogMel) -> dict[str, Any]:
    waveform = samples.astype(np.float32) / 32768
    with torch.no_grad():
        cells = log_mel.log_mel(torch.from_numpy(waveform)[None])[0, 0]  # (F, T)
    double = cells.double()
    return {
        "samples": len(samples),
        "peak": float(np.abs(waveform).max()),
        "rms": float(np.sqrt(np.mean(waveform.astype(np.float64) ** 2))),
        "hash": hashlib.sha256(samples.astype("<i2").tobytes()).digest(),
        "fingerprint": fingerprint(cells).tobytes(),
        "changes": changes(cells).tobytes(),
        "cells": double.numel(),
        "sum": float(double.sum()),
        "sum_of_squares": float(double.square().sum()),
    }


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as a Parquet file, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())
