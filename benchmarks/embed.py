"""Embedding an hour of sound and many short files, against librosa and the same network.

    python benchmarks/embed.py                  # an hour of stereo at 44.1 kHz, 400 short files
    python benchmarks/embed.py minutes=10 files=100 rounds=1
    python benchmarks/embed.py 'workers=[1,2]' minutes=2 files=400   # cores: n of each for ours

The other side is what a person writes down first: `librosa.load` of the file at the encoder's rate,
then `encoder(waveform)` without gradient, file by file; of the long file, window by window, and the
mean of the vectors. Both sides take turns in one process, with the same encoder.
Medians of the seconds of CPU and of the clock; the vectors of the short files are compared.

Prints Markdown; writes every number as JSON where `out` says.
"""

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from timing import take_turns, turns_table
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ssmast import load_encoder
from ssmast.audio import open_corpus
from ssmast.audio.synthetic import CLASSES, make_sound
from ssmast.command import run_command
from ssmast.encoder import Encoder
from ssmast.evaluation.embed import embed_corpus
from ssmast.settings import Settings, parse, setting
from ssmast.weights import DEFAULT

RATE = 44100


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    encoder: str = setting(DEFAULT, "encoder folder; default: the one of the package")
    minutes: float = setting(60.0, "of the long file, a stereo WAV")
    files: int = setting(400, "short files of 1 to 6 s, mono FLAC")
    rounds: int = setting(3, "turns; the median counts")
    workers: list[int] = setting(
        [1], "cores of our side: threads of the network, and as many that decode; one row each"
    )
    out: str = setting("", "JSON file of every number")


def main(argv: list[str]) -> int:
    """Measure and print."""
    config = parse(Keys, argv, command="benchmarks/embed.py", description=__doc__ or "")
    if config is None:
        return 0
    encoder = load_encoder(config.encoder)
    with tempfile.TemporaryDirectory() as folder:
        long_file, short = Path(folder) / "long.wav", Path(folder) / "short"
        write_long(long_file, config.minutes)
        write_short(short, config.files)
        corpus = open_corpus(str(short))

        def whole(number: int) -> None:
            torch.set_num_threads(number)
            encoder.embed(str(long_file), batch_seconds=20)

        def each(number: int) -> None:
            torch.set_num_threads(number)
            embed_corpus(encoder, corpus, workers=number)

        long = take_turns(
            {
                **{_name(number): partial(whole, number) for number in config.workers},
                "librosa": lambda: windows_one_by_one(encoder, long_file),
            },
            rounds=config.rounds,
        )
        many = take_turns(
            {
                **{_name(number): partial(each, number) for number in config.workers},
                "librosa": lambda: torch.cat([vector_of(encoder, f) for f in corpus.files()]),
            },
            rounds=config.rounds,
        )
        ours = embed_corpus(encoder, corpus).values
        theirs = torch.cat([vector_of(encoder, file) for file in corpus.files()])
    print(f"{config.minutes:g} min of stereo at 44.1 kHz\n")
    print(turns_table(long, against="librosa"))
    print(f"\n{config.files} files of 1 to 6 s\n")
    print(turns_table(many, against="librosa"))
    cosines = cosine_similarity(ours, theirs)
    lowest, middle = float(cosines.min()), float(cosines.median())
    # librosa rounds lengths up: a clip may get a column of silence more.
    print(f"\ncosine of the two vectors of a short file: median {middle:.6f}, lowest {lowest:.6f}")
    if config.out:
        facts = {"settings": asdict(config), "long": long, "files": many, "lowest_cosine": lowest}
        Path(config.out).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


def write_long(file: Path, minutes: float) -> None:
    """A stereo WAV of 16 bits; ten seconds of each class, over and over."""
    sounds = [_sound(name, RATE * 10, seed) for seed, name in enumerate(CLASSES)]
    left = RATE * 60 * minutes
    with soundfile.SoundFile(file, "w", RATE, 2, "PCM_16") as writer:
        while left > 0:
            for sound in sounds:
                block = sound[: max(0, round(left))]
                writer.write(np.stack([block, 0.7 * np.roll(block, 5)], axis=1))
                left -= len(block)


def write_short(folder: Path, files: int) -> None:
    """FLAC files of 1 to 6 s."""
    folder.mkdir()
    names = list(CLASSES)
    for seed in range(files):
        samples = int(RATE * np.random.default_rng(seed).uniform(1, 6))
        sound = _sound(names[seed % len(names)], samples, seed)
        soundfile.write(folder / f"{seed:06d}.flac", sound, RATE)


def _sound(name: str, samples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return make_sound(name, rng=rng, num_samples=samples, sample_rate=RATE)


def _name(cores: int) -> str:
    return f"ssmast, {cores} core(s)"


@torch.inference_mode()
def vector_of(encoder: Encoder, file: object) -> Tensor:
    """One short file by librosa and the network, on one core."""
    torch.set_num_threads(1)
    waveform, _ = librosa.load(str(file), sr=encoder.sample_rate)
    return encoder(torch.from_numpy(waveform)[None])


@torch.inference_mode()
def windows_one_by_one(encoder: Encoder, file: Path) -> Tensor:
    """The mean of a long file's windows by librosa and the network, on one core."""
    torch.set_num_threads(1)
    waveform, _ = librosa.load(str(file), sr=encoder.sample_rate)
    windows = torch.from_numpy(waveform).split(round(encoder.window_seconds * encoder.sample_rate))
    return torch.cat([encoder(window[None]) for window in windows]).mean(dim=0)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="benchmarks/embed.py"))
