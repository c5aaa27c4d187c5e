"""Sounds for the figures: a few clips made on the spot, and their views as training makes them."""

import functools
import tempfile
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssmast.audio import open_corpus, read_audio, write_synthetic_corpus
from ssmast.training.config import PatchDropConfig, PretrainConfig, Views
from ssmast.training.inputs import build_log_mel
from ssmast.training.objective import RunFacts
from ssmast.training.objectives.ss_mast import SSMAST
from ssmast.training.show_views import at_step, dropped_patches

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
        objective = SSMAST(config, RunFacts(log_mel=log_mel, num_clips=10**6, steps=2))
        items = SSMAST.items(config, opened, None)
        twin, segments = at_step(objective, items, step=1)
        views, backbone = twin.views(segments, 1), twin.encoders()["student"]
        log_mels = log_mel(segments.waveform.flatten(0, 1)).unflatten(0, (-1, 2))[:, :, 0]
        chosen = int(_pitch(log_mels).std(dim=-1).mean(dim=1).argmax())
        waveform = read_audio(corpus / opened.name(int(segments.clip[chosen])))
    starts = [_find(waveform, segments.waveform[chosen, k].numpy()) for k in (0, 1)]
    return Shown(
        clip=log_mel(torch.from_numpy(waveform)[None])[0, 0],
        starts=[round(start / log_mel.hop_length) for start in starts],
        frames=frames,
        views=[view[chosen, 0] for view in views.log_mels],
        dropped=[dropped_patches(drop, chosen) for drop in views.drops if drop is not None],
        stride=backbone.patch_embed.stride,
    )


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
