"""A synthetic labelled corpus of twelve classes, for tests, the demo and the smoke recipe.

Pitch, timbre, level, tempo, onset, room and background are drawn for each clip alone, the same way
for every class, so only what happens in a sound tells its class; three pairs of classes differ in
the order of time alone (up and down, even and paired).
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ssmast.files import csv_lines

_TABLE_SIZE = 4096
_ECHO_SECONDS = 0.4


def _table(rng: np.random.Generator, highest_hz: float, rate: int, *, odd: bool) -> np.ndarray:
    """One period of a tone with harmonics below the highest frequency that will not alias."""
    num = int(np.clip(0.45 * rate / highest_hz, 1, 24))
    harmonic = np.arange(1, num + 1)
    level = harmonic ** -rng.uniform(0.3, 1.3) * rng.uniform(0.5, 1.0, num)
    if odd:
        level[1::2] *= 0.02
    spectrum = np.zeros(_TABLE_SIZE // 2 + 1, dtype=complex)
    spectrum[1 : num + 1] = level * np.exp(2j * np.pi * rng.uniform(size=num))
    table = np.fft.irfft(spectrum)
    return table / np.abs(table).max()


def _tone(rng: np.random.Generator, hz: np.ndarray, rate: int, *, odd: bool = False) -> np.ndarray:
    """A tone that follows a frequency in Hz (S,)."""
    phase = rng.uniform() + np.cumsum(hz) / rate
    place = (phase % 1.0) * _TABLE_SIZE
    table = _table(rng, float(hz.max()), rate, odd=odd)
    return table[place.astype(np.int64) % _TABLE_SIZE]


def _pitch(rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(150.0), np.log(600.0))))


def _events(rng: np.random.Generator, num: int, rate: int) -> tuple[np.ndarray, int]:
    """Seconds since the last onset (S,), and samples from one onset to the next."""
    period = int(rate * rng.uniform(0.45, 0.9))
    since = (np.arange(num) + int(rng.integers(period))) % period
    return since / rate, period


def _envelope(rng: np.random.Generator, since: np.ndarray, seconds: float) -> np.ndarray:
    """Attack, slow decay and release of a note that is repeated every `seconds`."""
    attack, release = rng.uniform(0.005, 0.06), rng.uniform(0.03, 0.1)
    length = seconds * rng.uniform(0.75, 1.0)
    ends = np.clip((length - since) / release, 0, 1)
    return np.clip(since / attack, 0, 1) * ends * np.exp(-since * rng.uniform(0, 1.5))


def _note(rng: np.random.Generator, num: int, rate: int, *, odd: bool) -> np.ndarray:
    """Notes with all harmonics, or the odd ones."""
    since, period = _events(rng, num, rate)
    tone = _tone(rng, np.full(num, _pitch(rng)), rate, odd=odd)
    return tone * _envelope(rng, since, period / rate)


def _swinging(rng: np.random.Generator, num: int, rate: int, *, pitch: bool) -> np.ndarray:
    """Notes whose pitch, or else level, swings 4 to 8 times a second."""
    since, period = _events(rng, num, rate)
    swing = np.sin(2 * np.pi * (rng.uniform(4, 8) * np.arange(num) / rate + rng.uniform()))
    if pitch:
        tone = _tone(rng, _pitch(rng) * 2 ** (rng.uniform(0.8, 1.8) / 12 * swing), rate)
    else:
        tone = _tone(rng, np.full(num, _pitch(rng)), rate) * (1 + rng.uniform(0.6, 0.95) * swing)
    return tone * _envelope(rng, since, period / rate)


def _bell(rng: np.random.Generator, num: int, rate: int) -> np.ndarray:
    """Struck sounds with inharmonic partials, by frequency modulation that dies away."""
    since, _ = _events(rng, num, rate)
    carrier = _pitch(rng)
    ratio = rng.choice([1.41, 1.73, 2.24, 2.76, 3.36]) * rng.uniform(0.97, 1.03)
    decay = np.exp(-since * rng.uniform(3, 9))
    turn = 2 * np.pi * carrier * since
    return decay * np.sin(turn + rng.uniform(1, 4) * decay * np.sin(ratio * turn))


def _pluck(rng: np.random.Generator, num: int, rate: int) -> np.ndarray:
    """Plucked strings. Source: Karplus & Strong 1983."""
    from scipy.signal import lfilter

    since, period = _events(rng, num, rate)
    delay = max(2, round(rate / _pitch(rng)))
    burst = np.zeros(period)
    burst[:delay] = rng.uniform(-1, 1, delay)
    bright = rng.uniform(0.5, 0.9)
    # y[n] = x[n] + loss (bright y[n - delay] + (1 - bright) y[n - delay - 1])
    feedback = np.zeros(delay + 2)
    feedback[0] = 1
    feedback[delay:] = -rng.uniform(0.985, 0.998) * np.array([bright, 1 - bright])
    string = lfilter([1.0], feedback, burst)
    return string[np.round(since * rate).astype(np.int64)]


def _glide(rng: np.random.Generator, num: int, rate: int, *, direction: int) -> np.ndarray:
    """Tones that rise or fall, again and again."""
    since, period = _events(rng, num, rate)
    along = since / (period / rate) - 0.5
    hz = _pitch(rng) * 2 ** (direction * rng.uniform(0.3, 1.0) * along)
    # As loud at the end as at the start: the shape must not tell the direction.
    shape = np.sin(np.pi * (along + 0.5)) ** rng.uniform(0.2, 0.6)
    return _tone(rng, hz, rate) * shape


def _notes(rng: np.random.Generator, num: int, rate: int, *, direction: int) -> np.ndarray:
    """Three notes, each higher or lower than the last, again and again."""
    since, period = _events(rng, num, rate)
    third = period / rate / 3
    step = np.minimum(since // third, 2)  # three notes, then again
    interval = rng.choice([2, 3, 4])
    hz = _pitch(rng) * 2 ** (direction * interval * (step - 1) / 12)
    return _tone(rng, hz, rate) * _envelope(rng, since - step * third, third)


def _pulses(rng: np.random.Generator, num: int, rate: int, *, paired: bool) -> np.ndarray:
    """Bursts of noise at equal distances, or in pairs."""
    between = rate * rng.uniform(0.09, 0.2)
    place = np.arange(num) / between + 2 * rng.uniform()
    since = place % 1.0 * between / rate
    if paired:  # every second pulse comes early, close behind the first of its pair
        early = rng.uniform(0.3, 0.5)
        within = place % 2.0
        since = np.where(within < 1 - early, within, within - (1 - early)) * between / rate
    noise = rng.standard_normal(num)
    low, high = np.sort(np.exp(rng.uniform(np.log(300), np.log(6000), 2)))
    noise = _band(noise, rate, low, 1.5 * high)
    return noise * np.exp(-since * rng.uniform(25, 70))


CLASSES: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "bell": _bell,
    "glide_down": partial(_glide, direction=-1),
    "glide_up": partial(_glide, direction=1),
    "notes_down": partial(_notes, direction=-1),
    "notes_up": partial(_notes, direction=1),
    "pluck": _pluck,
    "pulses_even": partial(_pulses, paired=False),
    "pulses_paired": partial(_pulses, paired=True),  # as many bursts, as a gallop
    "tone_all": partial(_note, odd=False),
    "tone_odd": partial(_note, odd=True),  # odd harmonics only, as a clarinet's
    "tremolo": partial(_swinging, pitch=False),
    "vibrato": partial(_swinging, pitch=True),
}
"""Functions (generator, number of samples, rate in Hz) -> samples, by label."""


def make_sound(
    label: str, *, rng: np.random.Generator, num_samples: int, sample_rate: int
) -> np.ndarray:
    """One clip of a class.

    Everything about it is drawn from `rng`, which is of this clip alone.

    Returns:
        Float64 samples (S,), with a peak below 1.

    Raises:
        ValueError: if there is no such class.
    """
    if label not in CLASSES:
        raise ValueError(f"label must be one of {', '.join(CLASSES)}, got {label!r}")
    dry = CLASSES[label](rng, num_samples, sample_rate)
    size = num_samples + int(_ECHO_SECONDS * sample_rate)
    sound = np.fft.rfft(dry, size) * _room(rng, size, sample_rate)
    sound = _unit(sound * _colour(rng, size, sample_rate, tilt=(-0.6, 0.6)))
    hiss = rng.standard_normal(2 * len(sound)).view(np.complex128)
    hiss = _unit(hiss * _colour(rng, size, sample_rate, tilt=(-2.0, 0.5)))
    snr_db = rng.uniform(10, 35)
    mixed = np.fft.irfft(sound + hiss * 10 ** (-snr_db / 20), size)[:num_samples]
    mixed *= 10 ** (rng.uniform(-40, -14) / 20) / (np.sqrt(np.mean(np.square(mixed))) + 1e-12)
    return mixed / max(1.0, np.abs(mixed).max() / 0.99)


def _unit(spectrum: np.ndarray) -> np.ndarray:
    return spectrum / (np.sqrt(np.sum(np.abs(spectrum) ** 2)) + 1e-12)


def _band(x: np.ndarray, rate: int, low_hz: float, high_hz: float) -> np.ndarray:
    spectrum = np.fft.rfft(x)
    hz = np.fft.rfftfreq(len(x), 1 / rate)
    return np.fft.irfft(spectrum * ((hz >= low_hz) & (hz <= high_hz)), len(x))


def _room(rng: np.random.Generator, size: int, rate: int) -> np.ndarray:
    """Spectrum of a room: an echo of noise that dies away in 0.05 to 0.4 s."""
    num = int(_ECHO_SECONDS * rate)
    time = np.arange(num) / rate
    echo = rng.standard_normal(num) * np.exp(-time * 6.9 / rng.uniform(0.05, 0.4))
    echo *= rng.uniform(0, 0.5) / np.sqrt(np.sum(np.square(echo)))
    echo[0] += 1  # the sound itself
    return np.fft.rfft(echo, size)


def _colour(
    rng: np.random.Generator, size: int, rate: int, *, tilt: tuple[float, float]
) -> np.ndarray:
    """Gains of a random smooth filter: a tilt, and six bands up or down by some 3 dB."""
    octave = np.log2(np.fft.rfftfreq(size, 1 / rate).clip(50.0) / 1000.0)
    knots = np.linspace(np.log2(0.05), np.log2(8.0), 6)
    gain_db = 6.02 * rng.uniform(*tilt) * octave + np.interp(octave, knots, rng.normal(0, 3, 6))
    return np.exp(gain_db * (np.log(10) / 20))


_FORMAT = 1  # raise it when the sounds change, so that an old corpus is not taken for this one
_MARKER = "synthetic.json"
_SPLITS = (("train", 0.60), ("valid", 0.15), ("test", 0.25))


def write_synthetic_corpus(
    out: str | os.PathLike[str],
    *,
    num_clips: int,
    seed: int,
    seconds: float = 2.0,
    sample_rate: int = 16000,
) -> Path:
    """Write a labelled set of twelve classes of synthetic sound.

    Clips are FLAC files with `metadata.csv` (path, label, split: about 60 % train, 15 % valid,
    25 % test of every class). The same arguments give the same samples. The folder appears when all
    is written; one that holds the same corpus already is checked and kept.

    Args:
        out: folder to write.
        num_clips: clips in all, the classes taking turns.
        seed: of everything drawn.
        seconds: length of a clip.
        sample_rate: in Hz.

    Raises:
        ValueError: if `num_clips` is too small, or the folder holds something else.
    """
    out = Path(out)
    if num_clips < len(CLASSES):
        raise ValueError(
            f"num_clips must be at least {len(CLASSES)}, one for each class, got {num_clips}"
        )
    if seconds * sample_rate < 2000:
        raise ValueError(f"clips must be 2000 samples or more, got {seconds:g} s, {sample_rate} Hz")
    settings = {
        "format": _FORMAT,
        "num_clips": num_clips,
        "seed": seed,
        "seconds": float(seconds),
        "sample_rate": sample_rate,
    }
    if _is_there(out, settings):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    # Not `files.new_folder`: it waits for the disk after each of many files, and would replace the
    # corpus of a process that was first.
    name = {"prefix": f".{out.name}.", "suffix": ".partial"}
    with tempfile.TemporaryDirectory(**name, dir=out.parent, ignore_cleanup_errors=True) as folder:
        partial = Path(folder) / out.name
        partial.mkdir()
        _write(partial, settings)
        try:
            partial.rename(out)  # one step, and only onto nothing or an empty folder
        except OSError:
            if not _is_there(out, settings):  # another process may have been first
                raise
    return out


def _is_there(out: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds this very corpus, whole; False where there is nothing yet."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    if {name: found.get(name) for name in settings} != settings:
        raise ValueError(
            f"{out} holds something else than the synthetic corpus with {settings}; choose another "
            f"folder or remove it"
        )
    if found.get("sha256") != _hash_of(out):
        raise ValueError(f"{out} is a damaged synthetic corpus; remove it to have it written anew")
    return True


def _write(folder: Path, settings: dict[str, Any]) -> None:
    num_clips, sample_rate = settings["num_clips"], settings["sample_rate"]
    rows = _rows(num_clips, settings["seed"])
    (folder / "audio").mkdir()
    for i, (path, label, _) in enumerate(rows):
        audio = make_sound(
            label,
            rng=np.random.default_rng([settings["seed"] % 2**64, i]),
            num_samples=int(settings["seconds"] * sample_rate),
            sample_rate=sample_rate,
        )
        samples = np.round(audio * 32767).astype(np.int16)
        encoded = io.BytesIO()  # written to a path, libsndfile would wait for the disk each time
        soundfile.write(encoded, samples, sample_rate, format="FLAC", subtype="PCM_16")
        (folder / path).write_bytes(encoded.getvalue())
    table = csv_lines([("path", "label", "split"), *rows])
    (folder / "metadata.csv").write_text(table, encoding="utf-8")
    marker = {**settings, "sha256": _hash_of(folder)}
    (folder / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _rows(num_clips: int, seed: int) -> list[tuple[str, str, str]]:
    """(path, label, split) of every clip; names and order tell nothing of the class."""
    rng = np.random.default_rng([seed % 2**64, num_clips, _FORMAT])
    labels = list(CLASSES)
    number = rng.permutation(np.arange(num_clips) % len(labels))
    split = np.empty(num_clips, dtype=object)
    for of_class in range(len(labels)):
        members = rng.permutation(np.flatnonzero(number == of_class))
        edges = np.round(np.cumsum([0.0, *(fraction for _, fraction in _SPLITS)]) * len(members))
        for (name, _), first, last in zip(_SPLITS, edges[:-1], edges[1:], strict=True):
            split[members[int(first) : int(last)]] = name
    return [(f"audio/{i:06d}.flac", labels[number[i]], split[i]) for i in range(num_clips)]


def _hash_of(folder: Path) -> str:
    """SHA-256 (hex) over the table and every sound file, name by name."""
    digest = hashlib.sha256()
    for path in [folder / "metadata.csv", *sorted((folder / "audio").glob("*.flac"))]:
        if path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
