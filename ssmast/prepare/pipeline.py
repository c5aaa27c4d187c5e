"""Preparing a corpus: plan, jobs, packing, each of which can be interrupted and resumed.

Jobs run in this process, in a pool of processes, or on Ray; the bytes are the same.
"""

import csv
import json
import logging
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssmast.audio.corpus.corpus import Corpus, Mixture, joined
from ssmast.audio.corpus.open import CORPUS_FILE
from ssmast.audio.corpus.quarantine import Quarantine
from ssmast.audio.stats import warn_of_lost_energy
from ssmast.command import num_cores
from ssmast.engine import run_jobs
from ssmast.files import locked, write_atomic
from ssmast.html import details, key_table, page, section, table, text, tiles
from ssmast.prepare.job import (
    FORMAT,
    Cut,
    Plan,
    Rejected,
    front_end,
    read_plan,
    read_rejected,
    run_job,
    write_plan,
)
from ssmast.prepare.pack import pack
from ssmast.progress import Progress

_log = logging.getLogger(__name__)

WORK = ".work"


def prepare_corpus(
    source: Corpus,
    out: Path,
    *,
    sample_rate: int = 16000,
    segment_seconds: float = 10.0,
    min_seconds: float = 0.1,
    min_peak: float = 1e-4,
    codec: str = "flac",
    near_duplicates: float = 0.99,
    shard_bytes: int = 256 << 20,
    max_bad_fraction: float = 0.1,
    engine: str = "local",
    workers: int = 0,
    ray_address: str = "",
) -> dict[str, Any]:
    """Decode, resample, cut, filter and pack a corpus into tar shards with a manifest.

    Arguments are the keys of `ssmast prepare`. Done in jobs of at most 256 clips. Interrupted at
    any point, the same call resumes; the result is the same to the byte, also with another engine.
    While it runs, `out` holds the audio twice.

    Returns:
        What `corpus.json` holds: clips, seconds, mean, std and more.

    Raises:
        ValueError: if a setting makes no sense, the folder holds something else, was begun with
            other settings or other audio, or too many clips are bad.
        BlockingIOError: if another process is preparing the folder.
    """
    if not 0 <= near_duplicates <= 1:
        raise ValueError(f"near_duplicates must lie in [0, 1], got {near_duplicates:g}")
    if isinstance(source, Mixture):
        if not source.is_even:
            raise ValueError(
                "weights say how often clips are trained on; prepare each part of the mixture on "
                "its own and mix what comes out, or leave the weights out"
            )
        source = joined(source.corpora)
    cut = Cut(
        sample_rate=sample_rate,
        segment_seconds=segment_seconds,
        min_seconds=min_seconds,
        min_peak=min_peak,
        codec=codec,
        channel=source.channel,
    )
    extra = {"near_duplicates": near_duplicates, "shard_bytes": shard_bytes}
    settings = {**asdict(cut), **extra, "source": source.listing_hash, "format": FORMAT}
    work = out / WORK
    if (out / CORPUS_FILE).is_file():
        return _finished(source, out, work, settings)
    for root in source.roots:
        _check_folder(out, root)
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / "lock", doing=f"preparing {out}"):
        if (out / CORPUS_FILE).is_file():  # the other process has finished
            return _finished(source, out, work, settings)
        write_plan(work, source, cut, extra)
        plan = read_plan(work.resolve())
        _remove_partial(out)
        warn_of_lost_energy(source, front_end(sample_rate))
        workers = workers or num_cores()
        _run_jobs(
            plan, engine=engine, workers=workers, address=ray_address, most_bad=max_bad_fraction
        )
        about = pack(
            plan, source, out, shard_bytes=shard_bytes, near=near_duplicates, settings=settings
        )
        shutil.rmtree(work)
    return about


def _run_jobs(plan: Plan, *, engine: str, workers: int, address: str, most_bad: float) -> None:
    """Run what is not done yet, and stop where too many clips are bad."""
    bad = plan.work / "bad.csv"
    bad.unlink(missing_ok=True)  # counted again, so that too many stop the next call as well
    quarantine = Quarantine(bad, corpus_size=len(plan.corpus), max_fraction=most_bad)
    todo: list[int] = []
    for job in range(len(plan.ends)):
        if plan.is_done(job):
            quarantine.add(_bad(read_rejected(plan, job)))
        else:
            todo.append(job)
    if 0 < len(todo) < len(plan.ends):
        _log.info("%d of %d jobs are done already", len(plan.ends) - len(todo), len(plan.ends))
    with Progress("preparing", total=sum(len(plan.sources_of(job)) for job in todo)) as progress:
        call = partial(run_job, plan.work)
        for job, rejected in run_jobs(call, todo, engine=engine, workers=workers, address=address):
            quarantine.add(_bad(rejected))
            progress.advance(len(plan.sources_of(job)))


def _bad(rejected: Rejected) -> list[tuple[str, str]]:
    """Short, silent and duplicate clips are not bad."""
    return [(name, reason) for name, kind, reason in rejected if kind == "unreadable"]


def _finished(source: Corpus, out: Path, work: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The facts of a finished folder, unless it was made with other settings."""
    about: dict[str, Any] = json.loads((out / CORPUS_FILE).read_text(encoding="utf-8"))
    made = about["settings"]
    for key in (key for key, value in settings.items() if made.get(key) != value):
        what = f"made with {key}={made.get(key)}, now {settings[key]}"
        what = "of other audio" if key == "source" else what
        raise ValueError(f"{out} holds a corpus {what}; choose another out=")
    if work.is_dir():  # killed during its removal
        shutil.rmtree(work)
    _log.info("%s is finished", out)
    _warn_of_newer_files(source, out)
    return about


def _warn_of_newer_files(source: Corpus, out: Path) -> None:
    """Warn of files written since: samples may change and leave names and sizes as they were."""
    made = (out / CORPUS_FILE).stat().st_mtime
    newer = [
        file
        for file in source.files()
        if isinstance(file, Path) and file.is_file() and file.stat().st_mtime > made
    ]
    if newer:
        _log.warning(
            "%d files in %s were written after %s was finished, the first is %s; if their samples "
            "have changed, delete %s and prepare again",
            *(len(newer), source.root, out, newer[0], out),
        )


def _check_folder(out: Path, root: Path | str) -> None:
    """Refuse a folder that holds other files, or lies inside that of the audio."""
    if isinstance(root, Path) and out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{out} lies inside {root}, the audio to prepare; choose another out=")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; out= must be a folder")
    if out.is_dir() and not (out / WORK).is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds other files; choose an empty or new folder as out=")


def _remove_partial(out: Path) -> None:
    """Remove what a killed process was writing."""
    for folder in (out, out / WORK, out / WORK / "jobs"):
        for path in folder.glob(".*.partial"):
            path.unlink(missing_ok=True)


# -- the page about a prepared corpus --------------------------------------------------------------

_EXAMPLES = 20  # rejected clips shown of each kind
_BARS = 24


def write_page(out: Path) -> Path:
    """Write `report.html` into a prepared corpus; the same corpus gives the same page."""
    about = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
    columns = ["samples", "rate", "source_rate", "decoder", "rms"]
    manifest = pq.read_table(out / "manifest.parquet", columns=columns)
    seconds = manifest["samples"].to_numpy() / manifest["rate"].to_numpy()
    loudness = 20 * np.log10(np.maximum(manifest["rms"].to_numpy(), 1e-6))
    html = page(
        "Prepared corpus",
        tiles(
            {
                "hours": f"{about['seconds'] / 3600:.2f}",
                "clips": f"{about['clips']:,}",
                "source clips": f"{about['source_clips']:,}",
                "shards": f"{about['shards']:,}",
                "MB": f"{about['bytes'] / 2**20:,.1f}",
                "log-mel mean": f"{about['mean']:.3f}",
                "log-mel std": f"{about['std']:.3f}",
            }
        ),
        section(
            "Clips",
            '<div class="curves">',
            _histogram(seconds, "length in seconds"),
            _histogram(loudness, "loudness, RMS in dB of full scale"),
            "</div>",
        ),
        section("Rates of the source in Hz", _counts(manifest["source_rate"])),
        section("Decoders", _counts(manifest["decoder"])),
        section("Left out", _rejected(out / "rejected.csv")),
        section("Settings", details("all", key_table(about["settings"]))),
    )
    path = out / "report.html"
    write_atomic(path, html)
    return path


def _histogram(values: np.ndarray, title: str) -> str:
    """Bars of counts as an SVG with its range and the highest count written out."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(values, bins=_BARS, range=(low, high))
    top = max(int(counts.max()), 1)
    bars = "".join(
        f'<rect x="{10 * i + 1}" y="{80 - 76 * count / top:.1f}" width="8" '
        f'height="{76 * count / top:.1f}" fill="var(--accent)"/>'
        for i, count in enumerate(counts.tolist())
    )
    return (
        f"<figure><figcaption>{text(title)}: median {np.median(values):.3g}, "
        f"tallest bar {top:,}</figcaption>"
        f'<svg viewBox="0 0 {10 * _BARS} 94" role="img"><line x1="0" y1="80" x2="{10 * _BARS}" '
        f'y2="80" stroke="var(--line)"/>{bars}'
        f'<text x="0" y="92" font-size="9" fill="currentColor">{low:.3g}</text>'
        f'<text x="{10 * _BARS}" y="92" font-size="9" fill="currentColor" '
        f'text-anchor="end">{high:.3g}</text></svg></figure>'
    )


def _counts(column: pa.ChunkedArray) -> str:
    """Rows of a value and its number of clips, the most frequent first."""
    found: list[dict[str, Any]] = column.value_counts().to_pylist()
    found.sort(key=lambda row: (-row["counts"], str(row["values"])))
    return table([(str(row["values"]), f"{row['counts']:,}") for row in found], head=("", "clips"))


def _rejected(path: Path) -> str:
    """Each kind with its count, and some of its clips."""
    kinds: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            kinds.setdefault(row["kind"], []).append(row["reason"])
    if not kinds:
        return "<p>Nothing.</p>"
    parts = []
    for kind, reasons in sorted(kinds.items()):
        items = "".join(f"<li>{text(reason)}</li>" for reason in reasons[:_EXAMPLES])
        more = len(reasons) - _EXAMPLES
        rest = f"<p class='soft'>and {more:,} more in {text(path.name)}</p>" if more > 0 else ""
        parts.append(details(f"{kind}: {len(reasons):,}", f"<ul>{items}</ul>{rest}"))
    return "".join(parts)
