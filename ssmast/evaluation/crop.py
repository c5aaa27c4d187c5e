"""Crops of one length, as published evaluations cut them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Crop(NamedTuple):
    """What is cut out of every clip; shorter clips have zeros after them.

    Attributes:
        seconds: length.
        place: "head", or "random": anywhere, all places alike.
        seed: of the random places.
    """

    seconds: float
    place: str
    seed: int = 0


def cut(waveform: Tensor, crop: Crop, *, sample_rate: int, clip: int) -> Tensor:
    """(S,) -> (S',) of `crop.seconds`; the place follows from seed and the clip's number."""
    samples = max(1, round(crop.seconds * sample_rate))
    spare = len(waveform) - samples
    if spare <= 0:
        return F.pad(waveform, (0, -spare))
    start = 0
    if crop.place == "random":
        # One generator a clip: threads and processes cut the same whatever their order.
        generator = torch.Generator().manual_seed(crop.seed * 1_000_003 + clip)
        start = int(torch.randint(spare + 1, (), generator=generator))
    return waveform[start : start + samples]
