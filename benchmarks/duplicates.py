"""How many made copies `ssmast prepare` finds, and how many distinct pieces it takes for copies.

    python benchmarks/duplicates.py data=[FOLDER_OF_SOUND] clips=150
    python benchmarks/duplicates.py

Of clips of each folder, or without one of made nights with steady noise, with and without a
call in every piece, it makes copies (re-encoded as Opus, Vorbis and MP3, quieter, louder, shifted
by 3 and by 8 ms). A copy counts as found if it is called one of its own original. Goals: at least
95 % found, at most 2 % of the distinct clips dropped.
"""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from ssmast.audio import AudioError, LogMel, open_corpus, read_audio
from ssmast.prepare.duplicates import changes, fingerprint, near_duplicates
from ssmast.settings import Settings, parse, setting

RATE = 16000


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """What to look for copies in."""

    data: list[str] = setting([], "folders of sound; none: made nights")
    clips: int = setting(150, "clips of a folder, evenly spaced", range="[2, inf)")
    pieces: int = setting(120, "pieces of 10 s of a made night", range="[2, inf)")


def through(kind: str, subtype: str, level: float = 0.5) -> Callable[[np.ndarray], np.ndarray]:
    def recoded(audio: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        soundfile.write(buffer, audio, RATE, format=kind, subtype=subtype, compression_level=level)
        return read_audio(buffer.getvalue())[: len(audio)]

    return recoded


def shifted(milliseconds: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda audio: audio[round(RATE * milliseconds / 1000) :]


COPIES = {
    "Opus": through("OGG", "OPUS"),
    "Vorbis": through("OGG", "VORBIS"),
    "MP3": through("MP3", "MPEG_LAYER_III"),
    "quieter": lambda audio: 0.2 * audio,
    "louder": lambda audio: 0.99 * audio / np.abs(audio).max(),
    "3 ms later": shifted(3),
    "8 ms later": shifted(8),
}


def night(pieces: int = 120, seconds: int = 10, *, calls: bool = True) -> list[np.ndarray]:
    """One place: steady noise falling with frequency, and in every piece one call of its own."""
    rng = np.random.default_rng(1)
    n = RATE * seconds * pieces
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum /= np.maximum(np.fft.rfftfreq(n, 1 / RATE), 50)
    sound = np.fft.irfft(spectrum, n)
    sound /= sound.std()
    for k in range(pieces if calls else 0):
        length = int(rng.uniform(0.2, 1.0) * RATE)
        start = int((seconds * k + rng.uniform(0, seconds - 1)) * RATE)
        t = np.arange(length) / RATE
        glide = rng.uniform(1500, 6500) * t + rng.uniform(-800, 800) * t * t
        sound[start : start + length] += 0.45 * np.hanning(length) * np.sin(2 * np.pi * glide)
    sound = (0.5 * sound / np.abs(sound).max()).astype(np.float32)
    return list(sound.reshape(pieces, -1))


def clips_of(folder: str, most: int) -> list[np.ndarray]:
    corpus = open_corpus(folder)
    found = []
    for i in np.unique(np.linspace(0, len(corpus) - 1, most).astype(int)).tolist():
        try:
            audio = read_audio(corpus.source(i))
        except AudioError:
            continue
        if np.abs(audio).max() > 1e-4:
            found.append(audio[: 10 * RATE])
    return found


def score(clips: list[np.ndarray]) -> tuple[float, dict[str, float]]:
    """Fraction of distinct clips dropped, and of the copies of each kind found."""
    log_mel = LogMel()

    def prints(sounds: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with torch.no_grad():
            cells = [log_mel.log_mel(torch.from_numpy(np.float32(s))[None])[0, 0] for s in sounds]
        return (
            np.stack([fingerprint(one) for one in cells]),
            np.stack([changes(one) for one in cells]),
            np.array([len(s) for s in sounds]),
        )

    own = prints(clips)
    dropped = near_duplicates(own[0], own[2], similarity=0.99, changes=own[1]) >= 0
    kept = np.flatnonzero(~dropped)
    found = {}
    for name, change in COPIES.items():
        copies = prints([change(clips[i]) for i in kept])
        both = [
            np.concatenate([mine[kept], theirs]) for mine, theirs in zip(own, copies, strict=True)
        ]
        of = near_duplicates(both[0], both[2], similarity=0.99, changes=both[1])[len(kept) :]
        found[name] = float((of == np.arange(len(kept))).mean())
    return float(dropped.mean()), found


def main(argv: list[str]) -> int:
    keys = parse(Keys, argv, command="benchmarks/duplicates.py", description=__doc__ or "")
    if keys is None:
        return 0
    sets = {Path(folder).name: clips_of(folder, keys.clips) for folder in keys.data}
    sets = sets or {
        "night with calls": night(keys.pieces),
        "night of noise": night(keys.pieces // 2, calls=False),
    }
    print("| clips | distinct | dropped | " + " | ".join(COPIES) + " |")
    print("|---|---:|---:|" + "---:|" * len(COPIES))
    for name, clips in sets.items():
        dropped, found = score(clips)
        cells = [f"{100 * value:.0f}" for value in found.values()]
        print(f"| {name} | {len(clips)} | {100 * dropped:.1f} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
