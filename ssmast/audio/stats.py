"""Mean and standard deviation of the log-mel of a corpus, and the energy that it leaves out."""

import contextlib
import logging
import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from ssmast.audio.corpus.corpus import Corpus, Mixture
from ssmast.audio.mel import LogMel
from ssmast.audio.order import keyed_uniform
from ssmast.audio.read import (
    MIN_PEAK,
    AudioError,
    Excerpt,
    hear,
    read_audio,
    read_segments,
    swing,
    unpadded,
)

_log = logging.getLogger(__name__)


def known_mean_std(corpus: Corpus, log_mel: LogMel) -> tuple[float, float] | None:
    """Mean and std that `ssmast prepare` measured over all of a corpus; None where it did not.

    They are of the clips without padding, and of this front end, whose own mean and std do not
    matter. A selection or a mixture of prepared corpora knows nothing.
    """
    front = {k: v for k, v in log_mel.settings().items() if k not in ("mean", "std")}
    theirs = corpus.facts.get("log_mel") or {}
    if any(theirs.get(key) != value for key, value in front.items()):
        return None
    mean, std = (corpus.facts.get(key, math.nan) for key in ("mean", "std"))
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (mean, std)):
        raise ValueError(
            f"corpus.json of {corpus.root} is damaged: mean {mean} and std {std} must be finite; "
            "run prepare again"
        )
    return (float(mean), float(std)) if std > 0 else None


def measure_mean_std(
    corpus: Corpus, log_mel: LogMel, *, num_samples: int, seed: int, max_clips: int = 1000
) -> tuple[float, float]:
    """Mean and standard deviation over all cells of the log-mel of one segment a clip.

    Bad and silent clips are skipped. The same arguments give the same numbers.

    Args:
        corpus: of the clips.
        log_mel: front end; its own mean and std do not matter.
        num_samples: length of a segment, as in training.
        seed: chooses clips and segments.
        max_clips: how many clips at most, the first that training with this seed would draw.

    Returns:
        (mean, std) of the log-mel before normalisation.

    Raises:
        ValueError: if no clip could be used, or all of them are constant.
    """
    total = min(max_clips, len(corpus))
    epoch, clips = corpus.sample_at(np.arange(total), seed=seed)
    positions = keyed_uniform(seed, epoch, clips, 0, 1)
    device = log_mel.filterbank.device
    count, sum_, sum_of_squares, num_bad, last = 0, 0.0, 0.0, 0, ""
    for clip, position in zip(clips.tolist(), positions, strict=True):
        try:
            waveform = read_segments(
                corpus.source(clip),
                sample_rate=log_mel.sample_rate,
                num_samples=num_samples,
                positions=position,
                name=corpus.name(clip),
            )
            if swing(unpadded(waveform[0])) < MIN_PEAK:
                raise AudioError(f"{corpus.name(clip)} is silent or constant in the segment drawn")
        except AudioError as error:
            num_bad, last = num_bad + 1, str(error)
        else:
            with torch.no_grad():
                cells = log_mel.log_mel(torch.from_numpy(waveform).to(device)).double()
            count += cells.numel()
            sum_ += float(cells.sum())
            sum_of_squares += float(cells.square().sum())
    if num_bad:
        _log.warning("%d of %d clips not used for mean and std, the last: %s", num_bad, total, last)
    if not count:
        raise ValueError(f"none of {total} clips could be used to measure mean and std; {last}")
    mean = sum_ / count
    std = math.sqrt(max(sum_of_squares / count - mean**2, 0.0))
    if not std > 0:
        raise ValueError(
            f"the log-mel of {total - num_bad} clips has no spread; is it all silence?"
        )
    return mean, std


_LOOKED_AT = 64


def look_at_lengths(corpus: Corpus, *, sample_rate: int) -> tuple[list[int], int]:
    """Samples of 64 clips spread over a corpus, where they can be read; and how many it tried."""
    chosen = np.unique(np.linspace(0, len(corpus) - 1, _LOOKED_AT).round().astype(int))
    lengths = []
    for clip in chosen.tolist():
        with contextlib.suppress(AudioError, OSError):  # whatever reads it all will name it
            lengths.append(len(read_audio(corpus.source(clip), sample_rate=sample_rate)))
    return lengths, len(chosen)


_HEARD, _HEARD_SECONDS, _MUCH = 48, 10.0, 0.2


def warn_of_lost_energy(corpus: Corpus, log_mel: LogMel) -> None:
    """Say how much of the sound lies where a front end does not look, if that is a fifth or more.

    48 moments of 10 s are heard at their own rate.
    """
    if isinstance(corpus, Mixture):
        for one in corpus.corpora:
            warn_of_lost_energy(one, log_mel)
        return
    found: list[tuple[float, float]] = []
    chosen = np.linspace(0, len(corpus) - 1, min(_HEARD, len(corpus))).round().astype(int)
    for i in chosen.tolist():
        try:
            source = corpus.sought(i)
            if not isinstance(source, Excerpt):
                source = Excerpt(source, channel=corpus.channel)
            sounds, rate = hear(
                source,
                seconds=_HEARD_SECONDS,
                places=max(1, _HEARD // len(chosen)),
                name=corpus.name(i),
            )
        except (AudioError, OSError):
            continue  # it is rejected, with its reason, where it is used
        shares = [energy_outside(sound, rate, log_mel) for sound in sounds]
        found += [share for share in shares if share is not None]
    for message in lost_energy(found, log_mel):
        _log.warning("%s: %s", corpus.root, message)


def energy_outside(
    sound: np.ndarray, sample_rate: int, log_mel: LogMel
) -> tuple[float, float] | None:
    """Shares (0..1) of a sound's energy above a front end's `f_max` and below its `f_min`.

    Returns:
        None for a constant, which has no energy, and for what no sound may hold.
    """
    from scipy.fft import next_fast_len

    if not len(sound) or not np.isfinite(sound).all():
        return None
    sound = sound.astype(np.float64)
    size = cast(int, next_fast_len(len(sound), real=True))  # a large prime factor takes longer
    power = np.abs(np.fft.rfft(sound - sound.mean(), n=size)) ** 2
    total = float(power.sum())
    if not total:
        return None
    hertz, front = np.fft.rfftfreq(size, 1 / sample_rate), log_mel.settings()
    above, below = power[hertz > front["f_max"]].sum(), power[hertz < front["f_min"]].sum()
    return float(above / total), float(below / total)


def lost_energy(shares: Sequence[tuple[float, float]], log_mel: LogMel) -> list[str]:
    """Sentences on the mean of `energy_outside` over clips, for each side where that is much."""
    if not shares:
        return []
    front, said = log_mel.settings(), []
    for share, side, key in zip(
        np.mean(shares, axis=0), ("above", "below"), ("f_max", "f_min"), strict=True
    ):
        if share > _MUCH:
            said.append(
                f"{share:.0%} of the energy lies {side} front_end.{key}={front[key]:g} Hz, which "
                "the front end throws away; see docs/own_data.md"
            )
    return said
