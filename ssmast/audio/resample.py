"""Resampling of a whole clip, or of a region that comes out as it does within the whole."""

import math

import numpy as np
import soxr

from ssmast.audio.decode import scaled
from ssmast.audio.source import AudioError

LOUDEST = 100.0
"""Largest magnitude of a sample: 40 dB over full scale, which no recording means."""


def region_of(start: int, stop: int, rate: int, sample_rate: int, frames: int) -> tuple[int, int]:
    """Input frames that decide output samples [start, stop), from a whole number of periods on.

    Resampling a:b repeats its phase every a / gcd input frames; starting there, a region comes out
    as it would within the whole. 256 frames (times a/b going down) cover soxr's filter.

    `rate` and `frames` are of the input, `sample_rate` of the output.
    """
    if rate == sample_rate:
        return start, stop
    period = rate // math.gcd(rate, sample_rate)
    context = math.ceil(256 * max(1.0, rate / sample_rate))
    first = max(0, start * rate // sample_rate - context) // period * period
    last = min(frames, math.ceil(stop * rate / sample_rate) + context)
    return first, last


def check_samples(audio: np.ndarray, label: str, *, is_whole: bool = True) -> None:
    """Refuse samples that no log-mel can be made of; there may be more unless `is_whole`."""
    if not audio.size:
        return
    peak = max(float(audio.max()), -float(audio.min()))  # NaN if there is one; nothing is copied
    if peak <= LOUDEST:
        return
    bad = int(np.count_nonzero(~np.isfinite(audio)))
    if bad:
        more = "" if is_whole else " or more"
        raise AudioError(f"{label} holds {bad} samples{more} that are NaN or infinite")
    raise AudioError(
        f"{label} has a sample of {peak:.3g}, above {LOUDEST:g} (full scale is 1); divide it by "
        "its full scale, or see whether its bytes were taken for numbers of another type"
    )


def finished(
    audio: np.ndarray, rate: int, sample_rate: int, label: str
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Check decoded samples (`check_samples`), then resample them (soxr, high quality)."""
    check_samples(audio, label)
    if rate == sample_rate:
        return audio
    try:
        resampled = soxr.resample(audio, rate, sample_rate, quality="HQ")
    except (ValueError, RuntimeError) as error:
        raise AudioError(f"{label} cannot be resampled from {rate} to {sample_rate} Hz") from error
    if not len(resampled):
        raise AudioError(
            f"{label} is too short: {len(audio)} frames at {rate} Hz make no sample at "
            f"{sample_rate} Hz"
        )
    return np.ascontiguousarray(resampled, dtype=np.float32)


def resample(audio: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Samples (S,) at `rate` Hz as float32 samples at `sample_rate` Hz (soxr, high quality).

    They are of any type that `scaled` takes, one sample at least.

    Raises:
        ValueError: if a rate is not positive.
        AudioError: if a sample is not finite or beyond `LOUDEST`, the scale is not certain, or
            there are too few samples for one.
    """
    positive(sample_rate, "sample_rate")
    samples = scaled(np.asarray(audio), "the waveform")
    return finished(samples, positive(rate, "rate"), sample_rate, "the waveform")


def resampled_length(frames: int, rate: int, sample_rate: int) -> int:
    """Samples that soxr makes of a clip: rounded to nearest, at least one here."""
    return frames if rate == sample_rate else max(1, int(frames * sample_rate / rate + 0.5))


def positive(value: int, what: str) -> int:
    """The value, unless it is below 1: a ValueError then."""
    if value < 1:
        raise ValueError(f"{what} must be at least 1, got {value}")
    return value
