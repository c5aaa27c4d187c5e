"""From sound file to log-mel: clips a second; memory of a huge corpus; batches of its order.

    python benchmarks/data.py                                  # all of it, about two minutes
    python benchmarks/data.py entries=[100000] rounds=3         # quickly
    python benchmarks/data.py parts=[speed] audio=FILE.flac     # on a recording of one's own

speed: random crops of 2 s out of clips of 10 s at 44.1 kHz and at 16 kHz, as WAV, FLAC, Opus and
mp3, log-mel included, against the pipeline that earlier code for these models uses: librosa.load of
the whole clip at 16 kHz, librosa's mel spectrogram of it, its logarithm, then the crop. One thread;
both take turns in one process, round by round; medians.
memory: opening prepared corpora of `entries` clips in this process and in four workers that then
each draw and look up 100,000 clips; what that adds to their private memory and proportional share.
order: a batch of 4096 out of 10^9 clips, and the same out of a mixture of three corpora.

Prints Markdown; writes every number as JSON where `out` says.
"""

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import torch
from huge import memory

from ssmast.audio import Corpus, LogMel, read_segments, sample_at
from ssmast.audio.corpus.corpus import Mixture
from ssmast.command import run_command
from ssmast.settings import Settings, parse, setting

RATE = 16000
CROP = 2 * RATE
FORMATS = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
}


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    parts: list[str] = setting(["speed", "memory", "order"], "what to measure")
    rounds: int = setting(15, "turns that both pipelines take; the median counts")
    clips: int = setting(8, "clips of 10 s, of noise and tones unless `audio` is given")
    audio: str = setting("", "recording to cut the clips from")
    entries: list[int] = setting([1000, 100_000, 10_000_000], "clips of each prepared corpus")
    workers: int = setting(4, "processes that open it")
    out: str = setting("", "JSON file to write")


def clips_of(settings: Keys, rate: int) -> list[np.ndarray]:
    """Clips of 10 s at a rate: cut from a recording, or made of gliding tones and noise."""
    if settings.audio:
        from ssmast.audio import read_audio

        whole = read_audio(settings.audio, sample_rate=rate)
        starts = np.linspace(0, len(whole) - 10 * rate, settings.clips).astype(int)
        return [whole[start : start + 10 * rate] for start in starts]
    clips = []
    for seed in range(settings.clips):
        rng = np.random.default_rng(seed)
        time_ = np.arange(10 * rate) / rate
        sound = 0.05 * rng.standard_normal(len(time_))
        for _ in range(6):
            pitch, glide = rng.uniform(100, 4000), rng.uniform(-100, 100)
            swell = np.sin(np.pi * rng.uniform(0.2, 4) * time_) ** 2
            sound += 0.1 * swell * np.sin(2 * np.pi * (pitch + glide * time_) * time_)
        clips.append(sound.astype(np.float32))
    return clips


def ours(log_mel: LogMel) -> Callable[[Path, float], np.ndarray]:
    """Crop, then log-mel, as training does."""

    def run(path: Path, position: float) -> np.ndarray:
        segment = read_segments(
            path, sample_rate=RATE, num_samples=CROP, positions=[position], check=False
        )
        with torch.no_grad():
            return log_mel.log_mel(torch.from_numpy(segment), fast=True)[0, 0].numpy()

    return run


def librosa_pipeline(log_mel: LogMel) -> Callable[[Path, float], np.ndarray]:
    """Load all, log-mel of all, then crop."""
    import librosa

    frames = CROP // log_mel.hop_length + 1

    def run(path: Path, position: float) -> np.ndarray:
        audio, _ = librosa.load(path, sr=RATE)
        mel = librosa.feature.melspectrogram(
            y=audio,
            sr=RATE,
            n_fft=log_mel.n_fft,
            hop_length=log_mel.hop_length,
            n_mels=log_mel.num_mels,
            fmin=log_mel.f_min,
            fmax=log_mel.f_max,
        )
        full = np.log(mel + np.finfo(np.float32).eps)
        start = int(position * (full.shape[1] - frames + 1))
        return full[:, start : start + frames]

    return run


def speed(settings: Keys) -> list[dict[str, Any]]:
    """Rows of rate and format: clips a second of both pipelines, and where our time goes."""
    log_mel = LogMel()
    pipelines = {"ssmast": ours(log_mel), "librosa": librosa_pipeline(log_mel)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for rate in (44100, RATE):
            clips = clips_of(settings, rate)
            for kind, how in FORMATS.items():
                paths = []
                stored = 48000 if kind == "opus" and rate == 44100 else rate
                for number, clip in enumerate(
                    clips_of(settings, stored) if stored != rate else clips
                ):
                    paths.append(Path(folder) / f"{number}-{rate}.{kind}")
                    soundfile.write(paths[-1], clip, stored, **how)
                rows.append(compare(pipelines, paths, settings.rounds, log_mel, stored, kind))
                sys.stderr.write(f"{kind} at {stored} Hz: {rows[-1]['ratio']:.1f} times\n")
    return rows


def compare(
    pipelines: dict[str, Callable[[Path, float], np.ndarray]],
    paths: list[Path],
    rounds: int,
    log_mel: LogMel,
    rate: int,
    kind: str,
) -> dict[str, Any]:
    """One row: every round times each pipeline on the same crops; the log-mel alone as well."""
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in [*pipelines, "mel"]}
    crop = torch.zeros(1, CROP)
    for number in range(-1, rounds):  # round -1 warms up
        positions = rng.uniform(0, 1, len(paths))
        for name, run in pipelines.items():
            begin = time.perf_counter()
            for path, position in zip(paths, positions, strict=True):
                run(path, float(position))
            seconds[name].append((time.perf_counter() - begin) / len(paths))
        begin = time.perf_counter()
        with torch.no_grad():
            for _ in paths:
                log_mel.log_mel(crop, fast=True)
        seconds["mel"].append((time.perf_counter() - begin) / len(paths))
        if number < 0:
            seconds = {name: [] for name in seconds}
    ratios = [b / a for a, b in zip(seconds["ssmast"], seconds["librosa"], strict=True)]
    return {
        "format": kind,
        "rate": rate,
        "ssmast": median(seconds["ssmast"]),
        "librosa": median(seconds["librosa"]),
        "mel": median(seconds["mel"]),
        "ratio": median(ratios),
    }


def order(rounds: int) -> dict[str, float]:
    """Median seconds to draw 4096 positions out of 10^9 clips, single and mixed."""

    class Large(Corpus):
        def __init__(self, size: int) -> None:
            self.size = size

        def __len__(self) -> int:
            return self.size

    mixture = Mixture([(Large(9 * 10**8), 3), (Large(9 * 10**7), 2), (Large(10**7), 1)])
    ways: dict[str, Callable[[np.ndarray], Any]] = {
        "one corpus": lambda positions: sample_at(positions, size=10**9, seed=0),
        "mixture of three": lambda positions: mixture.sample_at(positions, seed=0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        positions = np.arange(4096) + number * 123_456_789
        for name, draw in ways.items():
            begin = time.perf_counter()
            draw(positions)
            seconds[name].append(time.perf_counter() - begin)
    return {name: median(values[1:]) for name, values in seconds.items()}


def report(found: dict[str, Any]) -> str:
    """Markdown."""
    lines: list[str] = []
    if "speed" in found:
        lines += [
            "| format | rate (Hz) | ssmast (clips/s) | librosa (clips/s) | ratio | our time in "
            "the mel |",
            "|---|---|---|---|---|---|",
        ]
        for row in found["speed"]:
            lines.append(
                f"| {row['format']} | {row['rate']} | {1 / row['ssmast']:.0f} "
                f"| {1 / row['librosa']:.1f} | {row['ratio']:.1f} x "
                f"| {row['mel'] / row['ssmast']:.0%} |"
            )
    if "memory" in found:
        lines += [
            "",
            "| clips | index (MB) | opened in (ms) | added to the main process, private / "
            "proportional (MB) | at most to a worker, after 100,000 look-ups | one look-up (µs) |",
            "|---:|---:|---:|---:|---:|---:|",
        ]
        for row in found["memory"]:
            main, workers = row["main_added"], row["workers_added"]
            worst = {k: max(one[k] for one in workers) for k in ("private", "pss")}
            lines.append(
                f"| {row['entries']:,} | {row['index_mb']:.1f} | {1000 * row['open_seconds']:.1f} "
                f"| {main['private']:.1f} / {main['pss']:.1f} "
                f"| {worst['private']:.1f} / {worst['pss']:.1f} "
                f"| {1e6 * row['lookup_seconds']:.1f} |"
            )
    if "order" in found:
        lines += ["", "4096 draws out of 10^9 clips: "] + [
            f"- {name}: {1000 * seconds:.2f} ms" for name, seconds in found["order"].items()
        ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print, write."""
    settings = parse(Keys, argv, command="python benchmarks/data.py", description=__doc__ or "")
    if settings is None:
        return 0
    unknown = set(settings.parts) - {"speed", "memory", "order"}
    if unknown:
        raise ValueError(f"parts must be of speed, memory, order, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if "memory" in settings.parts:  # first, while little else is held
        found["memory"] = [memory(entries, settings.workers) for entries in settings.entries]
    if "order" in settings.parts:
        found["order"] = order(settings.rounds)
    if "speed" in settings.parts:
        found["speed"] = speed(settings)
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "libsndfile": soundfile.__libsndfile_version__,
    }
    print(f"{machine}; one thread; medians of {settings.rounds} interleaved rounds\n")
    print(report(found))
    if settings.out:
        Path(settings.out).write_text(json.dumps({"machine": machine, **found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="benchmarks/data.py"))
