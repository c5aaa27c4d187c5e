"""Sounds for the figures: a few clips made on the spot, and their views as training makes them."""

import functools
import tempfile
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssmast.audio import open_corpus, read_audio, write_synthetic_corpus
from ssmast.model import PatchDrop
from ssmast.training.build import build_log_mel
from ssmast.training.config import PatchDropConfig, PretrainConfig, Views
from ssmast.training.show_views import step_views

_SECONDS = 6.0


class Shown(NamedTuple):
    """One clip of a step.

    Attributes:
        clip: its whole log-mel, normalised (F, T).
        starts: first frame of each segment.
        frames: of a segment.
        views: both views (F, T).
        dropped: patches of each view that the student does not get, bool (f, t).
        stride: (freq, time) of a patch in mel bins and frames.
    """

    clip: Tensor
    starts: list[int]
    frames: int
    views: list[Tensor]
    dropped: list[Tensor]
    stride: tuple[int, int]


@functools.cache
def one_clip(*, mode: str = "structured", frames: int = 256) -> Shown:
    """What step 1 of a run shows the networks of the clip that moves most in pitch."""
    config = PretrainConfig(
        batch_size=16,
        workers=0,
        views=Views(frames=frames, waveform_augment=0.0),
        patch_drop=PatchDropConfig(mode=mode),
    )
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_synthetic_corpus(folder, num_clips=48, seed=3, seconds=_SECONDS)
        log_mel = build_log_mel(config, mean=-9.6, std=3.4)
        opened = open_corpus(corpus)
        shown = step_views(config, opened, log_mel=log_mel, step=1)
        chosen = int(_pitch(shown.segments).std(dim=-1).mean(dim=1).argmax())
        waveform = read_audio(corpus / opened.name(int(shown.batch.ids[chosen])))
    starts = [_find(waveform, shown.waveform[chosen, k].numpy()) for k in (0, 1)]
    return Shown(
        clip=log_mel(torch.from_numpy(waveform)[None])[0, 0],
        starts=[round(start / log_mel.hop_length) for start in starts],
        frames=frames,
        views=[view[chosen, 0] for view in shown.batch.views],
        dropped=[dropped_patches(drop, chosen) for drop in shown.drops[mode]],
        stride=shown.stride,
    )


def dropped_patches(drop: PatchDrop | None, clip: int = 0) -> Tensor:
    """Which patches of one clip a draw takes away, bool (f, t)."""
    assert drop is not None
    if drop.keep is not None:
        return ~drop.keep[clip].unflatten(0, drop.grid[:])
    kept = torch.zeros(drop.grid[:], dtype=torch.bool)
    assert drop.rows is not None
    assert drop.columns is not None
    kept[drop.rows[:, None], drop.columns] = True
    return ~kept


def _pitch(log_mel: Tensor) -> Tensor:
    """Centre of gravity along frequency: (..., F, T) -> (..., T)."""
    rows = torch.arange(log_mel.shape[-2], dtype=torch.float32)[:, None]
    weight = (2 * log_mel).exp()
    return (weight * rows).sum(dim=-2) / weight.sum(dim=-2)


def _find(whole: np.ndarray, part: np.ndarray) -> int:
    """Sample at which `part` begins in `whole`."""
    errors = [
        (float(np.abs(whole[start : start + 64] - part[:64]).max()), start)
        for start in range(len(whole) - len(part) + 1)
        if abs(whole[start] - part[0]) < 1e-3
    ]
    return min(errors)[1]
