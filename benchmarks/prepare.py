"""`ssmast prepare` of many short files against a loop of librosa and soundfile, and its memory.

    python benchmarks/prepare.py                 # 10,000 files, two processes
    python benchmarks/prepare.py files=400 rounds=3 workers=1

The other side loads each file with `librosa.load` at 16 kHz and writes FLAC with soundfile: no
statistics, no hashes, no check for copies. Both take turns in one process. Memory: the most that
`ssmast prepare workers=1` holds for a quarter of the files, and for all.

Prints Markdown; writes every number as JSON where `out` says.
"""

import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import librosa
import numpy as np
import soundfile
from timing import peak_mb, take_turns, turns_table

from ssmast.audio import open_corpus
from ssmast.audio.synthetic import CLASSES, make_sound
from ssmast.command import run_command
from ssmast.prepare import prepare_corpus
from ssmast.settings import Settings, parse, setting

RATE = 44100


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    files: int = setting(10_000, "WAV files of 1 to 4 s at 44.1 kHz")
    workers: int = setting(2, "processes of ours")
    rounds: int = setting(1, "turns; the median counts")
    out: str = setting("", "JSON file of every number")


def main(argv: list[str]) -> int:
    """Measure and print."""
    keys = parse(Keys, argv, command="benchmarks/prepare.py", description=__doc__ or "")
    if keys is None:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        sounds, some = Path(folder) / "sounds", Path(folder) / "some"
        write_files(sounds, keys.files)
        some.mkdir()
        for file in sorted(sounds.iterdir())[: max(1, keys.files // 4)]:
            os.link(file, some / file.name)
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        found = take_turns(
            {
                "ssmast prepare": lambda: prepare(sounds, ours, workers=keys.workers),
                "librosa and soundfile": lambda: one_by_one(sounds, theirs),
            },
            rounds=keys.rounds,
        )
        memory = {
            len(list(f.iterdir())): peak_mb("prepare", str(f), f"out={f}-held", "workers=1")
            for f in (some, sounds)
        }
    print(f"{keys.files} files of 1 to 4 s at 44.1 kHz, {keys.workers} workers\n")
    print(turns_table(found, against="librosa and soundfile"))
    for files, megabytes in memory.items():
        print(f"\n{files} files: at most {megabytes:.0f} MB")
    if keys.out:
        facts = {"settings": asdict(keys), "seconds": found, "peak_mb": memory}
        Path(keys.out).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


def write_files(folder: Path, files: int) -> None:
    """WAV files of 16 bits, all different."""
    folder.mkdir()
    names = list(CLASSES)
    for seed in range(files):
        rng = np.random.default_rng(seed)
        samples = int(RATE * rng.uniform(1, 4))
        name = names[seed % len(names)]
        sound = make_sound(name, rng=rng, num_samples=samples, sample_rate=RATE)
        soundfile.write(folder / f"{seed:06d}.wav", sound, RATE)


def prepare(sounds: Path, out: Path, *, workers: int) -> None:
    """Ours, from the listing to the shards."""
    shutil.rmtree(out, ignore_errors=True)
    prepare_corpus(open_corpus(str(sounds)), out, workers=workers)


def one_by_one(sounds: Path, out: Path) -> None:
    """Theirs."""
    out.mkdir(exist_ok=True)
    for file in sorted(sounds.iterdir()):
        waveform, rate = librosa.load(file, sr=16000)
        soundfile.write(out / f"{file.stem}.flac", waveform, int(rate))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="benchmarks/prepare.py"))
