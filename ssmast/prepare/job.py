"""One job: some source clips decoded, cut, checked and encoded into one tar, with their facts."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import torch

from ssmast.audio.encode import encode_sound
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
from ssmast.audio.resample import finished
from ssmast.files import replacing, write_json
from ssmast.prepare.duplicates import changes, fingerprint
from ssmast.prepare.plan import Cut, Plan, read_plan, write_table

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
    if plan.facts_of(job).is_file():
        return read_rejected(plan, job)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that sums are the same in every process
    try:
        with replacing(plan.tar_of(job)) as partial, partial.open("wb") as file:
            rows, rejected = _write_clips(plan, job, file)
    finally:
        torch.set_num_threads(threads)
    write_json(plan.rejected_of(job), rejected, indent=None)
    write_table(plan.facts_of(job), pa.Table.from_pylist(rows, schema=CLIP_SCHEMA))
    return rejected


def read_rejected(plan: Plan, job: int) -> Rejected:
    """Source clips that a finished job rejected."""
    return [(a, b, c) for a, b, c in json.loads(plan.rejected_of(job).read_bytes())]


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
        except (AudioError, _RejectedError) as error:
            file.seek(begin)
            file.truncate()  # what was written of it before that showed
            kind = error.kind if isinstance(error, _RejectedError) else "unreadable"
            rejected.append((name, kind, str(error)))
            continue
        rows += found
        if silent:
            some = f"{silent} of {silent + len(found)} clips" if found else "it is silent"
            reason = f"{name}: {some}: below a peak of {plan.cut.min_peak:g} about the middle"
            rejected.append((name, "silent", reason))
    end_tar(file)
    return rows, rejected


class _RejectedError(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def _write_source(
    plan: Plan, source: int, file: BinaryIO, log_mel: LogMel
) -> tuple[list[dict[str, Any]], int]:
    """Write the clips of a source clip; gives their rows, and how many more are silent."""
    cut, name = plan.cut, plan.corpus.name(source)
    begin = file.tell()
    sound, about = _open_source(plan, source, name)
    if len(sound) < cut.min_seconds * cut.sample_rate:
        seconds = len(sound) / cut.sample_rate
        raise _RejectedError(
            "short", f"{name} is {seconds:.3g} s, shorter than {cut.min_seconds:g} s"
        )
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
        if peak > cut.max_abs:
            raise _RejectedError(
                "wild", f"{name} has a sample of {peak:.3g}, above {cut.max_abs:g}"
            )
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
