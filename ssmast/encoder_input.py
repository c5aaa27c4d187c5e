"""What a caller may hand to an encoder -> clips at its rate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmast.audio import LongSound, open_audio, resample

Samples = np.ndarray[Any, np.dtype[Any]]
Clip = str | Path | Samples | Tensor


def read_clips(
    waveform: Clip | Sequence[Clip], sample_rate: int | None, *, wanted: int
) -> list[Tensor | LongSound]:
    """Float32 clips (S,) at `wanted` Hz; files of over a minute to be read from front to back.

    Args:
        waveform: a file, samples (S,) or (B, S), or a list of files and samples (S,). Integers
            are scaled by their type's range.
        sample_rate: Hz of the samples; files know their own.
        wanted: Hz of the clips.

    Raises:
        ValueError: if samples come without their rate, are empty, not finite, not numbers, or not
            (S,) or (B, S). AudioError, a kind of it, if a file cannot be read.
    """
    if isinstance(waveform, list | tuple):
        if not waveform:
            raise ValueError("embed wants at least one clip, got an empty list")
        return [_single(item, sample_rate, wanted) for item in waveform]
    if isinstance(waveform, str | Path):
        sound = open_audio(waveform, sample_rate=wanted)
        return [sound if isinstance(sound, LongSound) else torch.from_numpy(sound)]
    if isinstance(waveform, Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    if not isinstance(waveform, np.ndarray):
        raise ValueError(
            f"a clip must be a file, a numpy array or a torch tensor, got {type(waveform).__name__}"
        )
    if sample_rate is None or not sample_rate > 0:
        raise ValueError(f"samples need their sample_rate in Hz, got {sample_rate}")
    return [torch.from_numpy(resample(row, int(sample_rate), wanted)) for row in _rows(waveform)]


def _single(item: Clip, sample_rate: int | None, wanted: int) -> Tensor | LongSound:
    clips = [] if isinstance(item, list | tuple) else read_clips(item, sample_rate, wanted=wanted)
    if len(clips) != 1:
        shape = tuple(item.shape) if isinstance(item, np.ndarray | Tensor) else type(item).__name__
        raise ValueError(f"a clip in a list must be a file or samples (S,), got {shape}")
    return clips[0]


def _rows(samples: Samples) -> Samples:
    """Samples (S,) or (B, S) of any number type -> finite float32 (B, S)."""
    if samples.ndim not in (1, 2):
        raise ValueError(f"waveform must be (S,) or (B, S), got shape {samples.shape}")
    rows = np.atleast_2d(samples)
    if rows.size == 0:
        raise ValueError(f"waveform must hold at least one sample, got shape {samples.shape}")
    if rows.shape[1] <= 8 and rows.shape[0] >= 1000:
        raise ValueError(
            f"waveform must be (batch, samples), got shape {samples.shape}, which looks like "
            "(samples, channels); average the channels first"
        )
    if rows.dtype.kind == "i" and rows.dtype.itemsize > 1:
        return rows.astype(np.float32) / -float(np.iinfo(rows.dtype).min)
    if rows.dtype.kind != "f":
        raise ValueError(
            f"waveform must hold floats or signed integers of 16 bits or more, got {rows.dtype}"
        )
    rows = rows.astype(np.float32, copy=False)
    if not np.isfinite(rows).all():
        raise ValueError("waveform must be finite, got NaN or infinity")
    return rows
