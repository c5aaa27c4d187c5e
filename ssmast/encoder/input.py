"""Files, arrays and tensors of a caller -> clips at the encoder's rate."""

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmast.audio import LongSound, open_audio, scaled
from ssmast.audio.decode import LEAST_HZ, check_channel
from ssmast.audio.long import finished
from ssmast.audio.read import Excerpt, mix, named_excerpt

Samples = np.ndarray[Any, np.dtype[Any]]
# Enough to find neighbours of like length among them; 32 MB.
_GROUP_SAMPLES = 8_000_000
_MOST_CHANNELS = 64  # so few samples are no clip: 4 ms at 16 kHz

Clip = str | os.PathLike[str] | Samples | Tensor


def read_clips(
    waveform: Clip | Sequence[Clip],
    sample_rate: int | None,
    *,
    wanted: int,
    channel: str | int = "mean",
) -> list[Tensor | LongSound]:
    """Float32 clips (S,) at `wanted` Hz; files of over a minute are read from front to back later.

    Args:
        waveform: a file or a part of one, `a.wav#t=0.5,2`, samples (S,) or (B, S), or a list of
            files and samples (S,). Full scale is that of `scaled`.
        sample_rate: Hz of the samples; files know their own.
        wanted: Hz of the clips.
        channel: of files that have several, see `Excerpt`.

    Raises:
        ValueError: if samples come without their rate, are empty, not finite, far too large, not
            numbers, or not (S,) or (B, S). AudioError, a kind of it, if a file cannot be read.
    """
    channel = check_channel(channel)
    if isinstance(waveform, list | tuple):
        if not waveform:
            raise ValueError("embed wants at least one clip, got an empty list")
        return [_single(item, sample_rate, wanted, channel) for item in waveform]
    if isinstance(waveform, str | os.PathLike):
        return [open_clip(named_excerpt(waveform, channel=channel), sample_rate=wanted)]
    names = isinstance(waveform, np.ndarray) and waveform.dtype.kind not in "biufc"
    if names or not isinstance(waveform, np.ndarray | Tensor):
        found = f"{type(waveform).__name__} {getattr(waveform, 'dtype', '')}".rstrip()
        raise ValueError(
            f"a clip must be a file, a numpy array or a torch tensor, got {found}; give a list of "
            "files, or samples and their sample_rate"
        )
    if channel != "mean":
        raise ValueError(
            f"channel={channel} is of files, and samples are one clip (S,) or clips (B, S): give "
            "the samples of that channel"
        )
    rate = _whole_hz(sample_rate)
    clips = [finished(row, rate, wanted, "the waveform") for row in batch_of(waveform)]
    return [torch.from_numpy(_plain(clip)) for clip in clips]


def open_clip(source: Excerpt, *, sample_rate: int) -> Tensor | LongSound:
    """A sound (S,) at `sample_rate` Hz; one of over a minute is read from front to back later.

    Raises:
        AudioError: if it cannot be read.
    """
    sound = open_audio(source, sample_rate=sample_rate)
    return sound if isinstance(sound, LongSound) else torch.from_numpy(sound)


def check_clips(clips: Sequence[Tensor | LongSound], *, rate: int) -> None:
    """Refuse what would be taken for other sound: integers, which are far beyond full scale.

    Raises:
        ValueError: for a clip that is not float samples (S,).
    """
    for clip in clips:
        kind = str(getattr(clip, "dtype", type(clip).__name__))
        shape = tuple(getattr(clip, "shape", ()))
        if isinstance(clip, LongSound) or ("float" in kind and len(shape) == 1 and shape[0] > 0):
            continue
        raise ValueError(
            f"a clip must be float samples (S,) at {rate} Hz, full scale 1, got {kind} {shape}; "
            "read_audio of ssmast.audio makes them of a file, its resample of other samples"
        )


def mixed(channels: Sequence[Tensor | LongSound]) -> Tensor:
    """The mean (S,) of the channels (S,) of a clip.

    Raises:
        ValueError: if they cancel each other.
    """
    frames = np.stack([np.asarray(channel[:]) for channel in channels], axis=1)
    return torch.from_numpy(mix(frames, "the waveform"))


def read_groups(
    waveform: Clip | Sequence[Clip],
    sample_rate: int | None,
    *,
    wanted: int,
    channel: str | int = "mean",
) -> Iterator[list[Tensor | LongSound]]:
    """`read_clips` in groups, so that the files of a long list are not all in memory.

    Raises:
        ValueError: as `read_clips`.
    """
    if not isinstance(waveform, list | tuple) or not waveform:
        yield read_clips(waveform, sample_rate, wanted=wanted, channel=channel)
        return
    group: list[Tensor | LongSound] = []
    held = 0
    for item in waveform:
        clip = _single(item, sample_rate, wanted, channel)
        group.append(clip)
        held += len(clip) if isinstance(clip, Tensor) else 0
        if held >= _GROUP_SAMPLES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _plain(clip: Samples) -> Samples:
    """A copy where PyTorch refuses the memory (`x[::-1]`) or warns of it (`np.frombuffer`)."""
    return clip if clip.flags.writeable and clip.strides[0] > 0 else clip.copy()


def _whole_hz(sample_rate: object) -> int:
    """A whole number of Hz, and not True."""
    rate = math.nan
    if isinstance(sample_rate, np.ndarray | Tensor) and sample_rate.ndim == 0:
        sample_rate = sample_rate.item()  # of an .npz, or of a DataLoader
    if isinstance(sample_rate, int | float | np.integer | np.floating):
        rate = math.nan if isinstance(sample_rate, bool) else float(sample_rate)
    if not rate >= LEAST_HZ or not rate.is_integer():
        raise ValueError(
            f"samples need their sample_rate, a whole number of Hz of at least {LEAST_HZ}, got "
            f"{sample_rate!r}"
        )
    return int(rate)


def _single(
    item: Clip, sample_rate: int | None, wanted: int, channel: str | int
) -> Tensor | LongSound:
    clips = (
        []
        if isinstance(item, list | tuple)
        else read_clips(item, sample_rate, wanted=wanted, channel=channel)
    )
    if len(clips) != 1:
        shape = tuple(item.shape) if isinstance(item, np.ndarray | Tensor) else type(item).__name__
        raise ValueError(f"a clip in a list must be a file or samples (S,), got {shape}")
    return clips[0]


def batch_of(samples: Samples | Tensor) -> Samples:
    """Samples (S,) or (B, S) of any number type -> finite float32 (B, S), see `scaled`.

    Raises:
        ValueError: as `read_clips`.
    """
    if isinstance(samples, Tensor):
        if samples.layout is not torch.strided or samples.is_meta:
            kind = "meta" if samples.is_meta else samples.layout
            raise ValueError(f"waveform must be a dense tensor with values, got a {kind} one")
        # Forced: off its device, its graph, and views that are negated or conjugated.
        samples = (samples.float() if samples.is_floating_point() else samples).numpy(force=True)
    if np.ma.is_masked(samples):
        raise ValueError("waveform must not be masked; leave out or fill what the mask hides")
    samples = np.asarray(samples)  # a row of np.matrix would stay a matrix
    if samples.ndim not in (1, 2):
        raise ValueError(f"waveform must be (S,) or (B, S), got shape {samples.shape}")
    rows = np.atleast_2d(samples)
    if rows.size == 0:
        raise ValueError(f"waveform must hold at least one sample, got shape {samples.shape}")
    if rows.shape[1] <= _MOST_CHANNELS and rows.shape[0] > rows.shape[1]:
        raise ValueError(
            f"waveform must be (batch, samples), got shape {samples.shape}, which looks like "
            "(samples, channels); average the channels first, or transpose it"
        )
    rows = scaled(rows, "waveform")
    if not np.isfinite(rows).all():
        raise ValueError("waveform must be finite, got NaN or infinity")
    return rows
