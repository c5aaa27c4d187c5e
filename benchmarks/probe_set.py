"""`ssmast probe` of one labelled set of 2,000 clips, from the files to the report.

    python benchmarks/probe_set.py                   # 2,000 clips of 2 s, the shipped encoder
    python benchmarks/probe_set.py clips=200 rounds=3

The set is made: sounds of the built-in classes in noise. The command embeds it with the encoder and
with its untrained twin, and fits the probe for both and for log-mel statistics. There is no other
side. Prints Markdown; writes every number as JSON where `out` says.
"""

import csv
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from timing import take_turns, turns_table

from ssmast.audio.synthetic import CLASSES, make_sound
from ssmast.command import run_command
from ssmast.settings import Settings, parse, setting
from ssmast.weights import DEFAULT

RATE = 16000


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    encoder: str = setting(DEFAULT, "encoder folder; default: the one of the package")
    clips: int = setting(2000, "clips of 2 s at 16 kHz")
    rounds: int = setting(1, "turns; the median counts")
    out: str = setting("", "JSON file of every number")


def main(argv: list[str]) -> int:
    """Measure and print."""
    keys = parse(Keys, argv, command="benchmarks/probe_set.py", description=__doc__ or "")
    if keys is None:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder) / "sets" / "sounds", keys.clips)
        words = ["probe", f"encoder={keys.encoder}", f"data={folder}/sets"]

        def probe() -> None:
            with tempfile.TemporaryDirectory() as out:
                command = [sys.executable, "-m", "ssmast", *words, f"out={out}/scores"]
                subprocess.run(command, check=True, capture_output=True)

        found = take_turns({"ssmast probe": probe}, rounds=keys.rounds)
    print(f"{keys.clips} clips of 2 s\n")
    print(turns_table(found, against="ssmast probe"))
    if keys.out:
        facts = {"settings": asdict(keys), "seconds": found}
        Path(keys.out).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


def write_set(folder: Path, clips: int) -> None:
    """Sounds and metadata.csv with label and split."""
    folder.mkdir(parents=True)
    names, parts = list(CLASSES), ("train", "train", "train", "valid", "test")
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for number in range(clips):
            rng, name = np.random.default_rng(number), names[number % len(names)]
            sound = make_sound(name, rng=rng, num_samples=2 * RATE, sample_rate=RATE)
            noisy = sound + 0.3 * rng.standard_normal(len(sound))
            soundfile.write(folder / f"{number:05d}.wav", noisy, RATE)
            writer.writerow((f"{number:05d}.wav", name, parts[number // len(names) % len(parts)]))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="benchmarks/probe_set.py"))
