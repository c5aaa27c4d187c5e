"""Training items of labelled clips: one segment each, now and then mixed with another clip's."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ssmast.audio.order import keyed_uniform, sample_at
from ssmast.audio.segments import SegmentDataset

_MIX_STREAM = -2000
_PARTNER_SEED = 0xA17A5  # another order than the stream's, so that partners are no neighbours


class MixedItem(TypedDict):
    """One item of `MixedSegments`."""

    waveform: Tensor
    clip: int
    partner: int
    share: float
    epoch: int
    position: int
    rejected: list[tuple[str, str]]


class MixedBatch(TypedDict):
    """Items of `MixedSegments` stacked by `collate_mixed`."""

    waveform: Tensor
    samples: Tensor
    clip: Tensor
    partner: Tensor
    share: Tensor
    epoch: Tensor
    position: Tensor
    rejected: list[tuple[str, str]]


class MixedSegments(Dataset[MixedItem]):
    """One segment a clip; with some probability the waveform of another clip is mixed in.

    `share` of an item is how much of it, and of its label, is the partner's. Whether, with whom and
    how much follows from (seed, epoch, clip) and the position alone.

    Args:
        segments: with one segment a clip.
        rate: probability that an item is mixed.
        alpha: the share is drawn from Beta(alpha, alpha); 10 keeps it near one half.

    Raises:
        ValueError: if a number is out of its range.

    Source: Tokozume et al. 2018 (between-class learning); Gong et al. 2021 (PSLA, AST): rate 0.5,
    alpha 10, waveforms less their mean.
    """

    def __init__(self, segments: SegmentDataset, *, rate: float, alpha: float = 10.0) -> None:
        if segments.num_segments != 1:
            raise ValueError(f"mixing wants 1 segment a clip, got {segments.num_segments}")
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rate must lie in [0, 1], got {rate}")
        if not alpha > 0:
            raise ValueError(f"alpha must be above 0, got {alpha}")
        self.segments, self.rate, self.alpha = segments, rate, alpha

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, position: int) -> MixedItem:
        """Item at a position of the endless stream, waveform (S,).

        Raises:
            AudioError: if 32 clips in a row were bad.
        """
        item = self.segments[position]
        waveform, seed = item["waveform"][0], self.segments.seed
        draws = keyed_uniform(seed, item["epoch"], item["clip"], _MIX_STREAM, 2)
        partner, share, rejected = item["clip"], 0.0, item["rejected"]
        if draws[0] < self.rate:
            place = sample_at(int(position), size=len(self.segments), seed=seed ^ _PARTNER_SEED)
            other, partner, more = self.segments.read(*place)
            share, rejected = self._share(float(draws[1])), rejected + more
            waveform = mix(waveform, torch.from_numpy(other[0]), share=share)
        return MixedItem(
            waveform=waveform,
            clip=item["clip"],
            partner=partner,
            share=share,
            epoch=item["epoch"],
            position=item["position"],
            rejected=rejected,
        )

    def _share(self, draw: float) -> float:
        from scipy.special import betaincinv

        return float(betaincinv(self.alpha, self.alpha, np.float64(draw)))


def mix(waveform: Tensor, other: Tensor, *, share: float) -> Tensor:
    """(1 - share) waveform + share other, each less its mean, both from the first sample on.

    Args:
        waveform: (S,).
        other: (R,).
        share: of the other, in [0, 1].

    Returns:
        As long as the longer of the two.
    """
    mixed = waveform.new_zeros(max(len(waveform), len(other)))
    mixed[: len(waveform)] += (1 - share) * (waveform - waveform.mean())
    mixed[: len(other)] += share * (other - other.mean())
    return mixed


def collate_mixed(items: Sequence[MixedItem]) -> MixedBatch:
    """Stack items into a batch.

    Args:
        items: from `MixedSegments`.

    Returns:
        waveform (B, S), with zeros behind the shorter ones; samples, how many are theirs, clip,
        partner, epoch and position int64 (B,); share float32 (B,); rejected, one flat list.
    """
    numbers = {
        key: torch.tensor([item[key] for item in items], dtype=torch.int64)
        for key in ("clip", "partner", "epoch", "position")
    }
    return MixedBatch(
        waveform=pad_sequence([item["waveform"] for item in items], batch_first=True),
        samples=torch.tensor([len(item["waveform"]) for item in items]),
        share=torch.tensor([item["share"] for item in items]),
        rejected=[pair for item in items for pair in item["rejected"]],
        clip=numbers["clip"],
        partner=numbers["partner"],
        epoch=numbers["epoch"],
        position=numbers["position"],
    )
