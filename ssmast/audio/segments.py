"""Training items: segments of clips, each fixed by (seed, epoch, clip, segment) alone.

`SegmentDataset` gives the segments of pretraining; `MixedSegments` mixes two for fine-tuning.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Self, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ssmast.audio.corpus.corpus import Corpus
from ssmast.audio.order import keyed_uniform, sample_at
from ssmast.audio.read import (
    LOUDEST,
    MIN_PEAK,
    AudioError,
    read_audio,
    read_segments,
    segment_at,
    segment_start,
    swing,
    unpadded,
)
from ssmast.audio.transforms import WaveformAugment

_MAX_FAILURES = 32
_ALIGNED = 16  # bytes; the ends of tensors that travel are, and so their beginnings by their type


class SegmentItem(TypedDict):
    """One item of `SegmentDataset`."""

    waveform: Tensor
    clip: int
    epoch: int
    position: int
    rejected: list[tuple[str, str]]


@dataclass(kw_only=True)
class SegmentBatch:
    """Items of `SegmentDataset` stacked by `collate_segments`.

    Attributes:
        waveform: (B, K, S), K segments of each clip.
        clip: number of each clip, int64 (B,), as epoch and position.
        epoch: that the draws belong to.
        position: in the endless stream.
        rejected: (name, reason) of clips that could not be used.
        ids: `clip` where the waveforms are; None where nobody has sent them there.
    """

    waveform: Tensor
    clip: Tensor
    epoch: Tensor
    position: Tensor
    rejected: list[tuple[str, str]] = field(default_factory=list)
    ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.clip)

    def split(self, num: int) -> list[Self]:
        """Equal micro-batches in order; the list of rejected clips stays with the first."""
        chunks = {name: value.chunk(num) for name, value in self._tensors().items()}
        rejected = [self.rejected, *([] for _ in range(num - 1))]
        return [
            replace(self, rejected=rejected[i], **{name: own[i] for name, own in chunks.items()})
            for i in range(num)
        ]

    def uniform(self, seed: int, stream: int, num: int) -> Tensor:
        """Draws (B, num) on the CPU that follow from (seed, epoch, clip, stream), one row each."""
        draws = keyed_uniform(seed, self.epoch.numpy(), self.clip.numpy(), stream, num)
        return torch.from_numpy(draws)

    def pin_memory(self) -> Self:
        """In page-locked memory, for a `DataLoader` that pins."""
        return replace(self, **{k: value.pin_memory() for k, value in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def sent(*tensors: Tensor, device: torch.device) -> list[Tensor]:
    """Tensors of the CPU on the device; on a GPU all in one copy, which the host need not wait for.

    That takes page-locked memory.
    """
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    ends = list(accumulate(-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in tensors))
    places = [slice(end - tensor.nbytes, end) for tensor, end in zip(tensors, ends, strict=True)]
    locked = torch.empty(ends[-1] if ends else 0, dtype=torch.uint8, pin_memory=True)
    for tensor, place in zip(tensors, places, strict=True):
        locked[place].view(tensor.dtype).copy_(tensor.flatten())
    placed = locked.to(device, non_blocking=True)
    return [
        placed[place].view(tensor.dtype).view(tensor.shape)
        for tensor, place in zip(tensors, places, strict=True)
    ]


def collate_segments(items: Sequence[SegmentItem]) -> SegmentBatch:
    """Stack items of `SegmentDataset`; rejected clips in one flat list."""
    waveform = torch.stack([item["waveform"] for item in items])
    return SegmentBatch(waveform=waveform, **_common(items))


def _common(items: Sequence[SegmentItem]) -> dict[str, Any]:
    """What every batch has of its items beside the waveforms."""
    numbers = {
        key: torch.tensor([item[key] for item in items], dtype=torch.int64)
        for key in ("clip", "epoch", "position")
    }
    return {**numbers, "rejected": [pair for item in items for pair in item["rejected"]]}


_Item = TypeVar("_Item")


class _Stream(Dataset[_Item]):
    """Items by their position in the endless stream; the places of a batch are computed at once."""

    def _items(self, positions: Sequence[int]) -> list[_Item]:
        raise NotImplementedError

    def __getitem__(self, position: int) -> _Item:
        """Item at a position of the endless stream."""
        return self._items([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[_Item]:
        """Items of a batch, as `DataLoader` asks for them."""
        if type(self).__getitem__ is not _Stream.__getitem__:  # a subclass has its own
            return [self[position] for position in positions]
        return self._items(positions)


class SegmentDataset(_Stream[SegmentItem]):
    """Random segments of the clips of a corpus, addressed by position in the endless stream.

    Everything random in an item follows from (seed, epoch, clip, segment): not from the batch, the
    worker, or what was read before. A segment that came out silent is moved to where the clip has
    sound. A clip that cannot be read or has no sound is rejected with a reason, and a stand-in is
    chosen by the position.

    Args:
        corpus: of the clips.
        num_samples: length of a segment.
        sample_rate: in Hz.
        seed: of the run.
        num_segments: segments of a clip, at independent positions.
        same_segment: cut one segment and give it `num_segments` times (each with its own waveform
            augmentation).
        waveform_augment: probability that a segment goes through the augmentation of the waveform.
        transforms: file of that augmentation (`WaveformAugment`); None for the built-in one.
        order: (positions (N,), seed) -> epochs (N,), clips (N,); by default the corpus' own.
        pad: fill up a clip shorter than `num_samples`; else it is given as it is, whole.

    Raises:
        ValueError: if a number is out of its range.
    """

    collate = staticmethod(collate_segments)

    def __init__(
        self,
        corpus: Corpus,
        *,
        num_samples: int,
        sample_rate: int,
        seed: int,
        num_segments: int = 2,
        same_segment: bool = False,
        waveform_augment: float = 0.0,
        transforms: str | os.PathLike[str] | None = None,
        order: Callable[..., tuple[Any, Any]] | None = None,
        pad: bool = True,
    ) -> None:
        for what, value in (("num_samples", num_samples), ("num_segments", num_segments)):
            if value < 1:
                raise ValueError(f"{what} must be at least 1, got {value}")
        if not 0.0 <= waveform_augment <= 1.0:
            raise ValueError(f"waveform_augment must lie in [0, 1], got {waveform_augment}")
        self.corpus = corpus
        self.num_samples, self.sample_rate, self.seed = num_samples, sample_rate, seed
        self.num_segments, self.same_segment = num_segments, same_segment
        self.waveform_augment = waveform_augment
        self.order, self.pad = order or corpus.sample_at, pad
        self._augment = WaveformAugment(transforms)
        self._whole = bytearray()

    def __len__(self) -> int:
        """Clips in one epoch; positions go on beyond it, into the next."""
        return len(self.corpus)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_whole": bytearray()}

    def _items(self, positions: Sequence[int]) -> list[SegmentItem]:
        epochs, clips = self.order(np.asarray(positions, dtype=np.int64), seed=self.seed)
        places = zip(positions, epochs.tolist(), clips.tolist(), strict=True)
        return [self._item(int(position), epoch, clip) for position, epoch, clip in places]

    def _item(self, position: int, epoch: int, clip: int) -> SegmentItem:
        waveform, found, rejected = self.read(epoch, clip)
        return SegmentItem(
            waveform=torch.from_numpy(waveform),
            clip=found,
            epoch=epoch,
            position=position,
            rejected=rejected,
        )

    def read(self, epoch: int, clip: int) -> tuple[np.ndarray, int, list[tuple[str, str]]]:
        """Segments (num_segments, S) of a clip or its stand-in, its number, and rejected clips."""
        rejected: list[tuple[str, str]] = []
        for attempt in range(_MAX_FAILURES):
            stand_in = self.corpus.stand_in(epoch, clip, attempt, seed=self.seed)
            try:
                return self._segments(epoch, stand_in), stand_in, rejected
            except AudioError as error:
                rejected.append((self.corpus.reported(stand_in), str(error)))
        raise AudioError(
            f"{_MAX_FAILURES} clips in a row could not be used; the last was {rejected[-1][0]}: "
            f"{rejected[-1][1]}"
        )

    def _segments(self, epoch: int, clip: int) -> np.ndarray:
        number = np.zeros(1, np.int64) if self.same_segment else np.arange(self.num_segments)
        draws = keyed_uniform(self.seed, epoch, clip, number, 2)  # (K, 2): place, second place
        source, name = self.corpus.source(clip), self.corpus.name(clip)
        waveform = read_segments(
            source,
            sample_rate=self.sample_rate,
            num_samples=self.num_samples,
            positions=draws[:, 0],
            name=name,
            check=not self._is_whole(clip),
            pad=self.pad,
        )
        self._whole[clip >> 3] |= 1 << (clip & 7)
        silent = np.array([swing(unpadded(row)) < MIN_PEAK for row in waveform])
        if silent.any():
            audio = read_audio(source, sample_rate=self.sample_rate, name=name)
            for k in np.flatnonzero(silent):
                waveform[k] = self._sounding_segment(audio, draws[k], name)
        if self.same_segment:
            waveform = np.repeat(waveform, self.num_segments, axis=0)
        for k in range(self.num_segments):
            waveform[k] = self._augmented(waveform[k], epoch, clip, k)
        return waveform

    def _is_whole(self, clip: int) -> bool:
        """Whether this process has found a clip not to be truncated: one bit a clip."""
        if not self._whole:
            self._whole = bytearray(len(self.corpus) // 8 + 1)
        return bool(self._whole[clip >> 3] & 1 << (clip & 7))

    def _sounding_segment(self, audio: np.ndarray, draws: np.ndarray, name: str) -> np.ndarray:
        """Segment around one sample, drawn evenly from those that are loud enough."""
        loud = np.flatnonzero(np.abs(audio) >= MIN_PEAK)
        if not len(loud):
            peak = float(np.abs(audio).max())
            raise AudioError(f"{name} is silent: its peak of {peak:.2g} is below {MIN_PEAK:g}")
        anchor = int(loud[int(draws[0] * len(loud))])
        num = self.num_samples if self.pad else min(self.num_samples, len(audio))
        slack = len(audio) - num
        start = min(max(anchor - int(draws[1] * num), 0), slack)
        if slack <= 0:
            start = segment_start(len(audio), num, float(draws[1]))
        if swing(audio[max(start, 0) : max(start, 0) + num]) < MIN_PEAK:
            raise AudioError(f"{name} holds a constant, no sound")
        return segment_at(audio, start, num)

    def _augmented(self, segment: np.ndarray, epoch: int, clip: int, number: int) -> np.ndarray:
        if self.waveform_augment == 0.0:
            return segment
        # Views below zero: the draws must not be those that chose the place.
        draws = keyed_uniform(self.seed, epoch, clip, -1 - number, 3)
        if draws[0] >= self.waveform_augment:
            return segment
        seed = int(draws[1] * 2**24) << 8 | int(draws[2] * 2**8)
        out = self._augment(segment, sample_rate=self.sample_rate, seed=seed)
        return np.clip(out, -LOUDEST, LOUDEST)


_MIX_STREAM = -2000
_PARTNER_SEED = 0xA17A5  # another order than the stream's, so that partners are no neighbours


class MixedItem(SegmentItem):
    """One item of `MixedSegments`."""

    partner: int
    partner_weight: float


@dataclass(kw_only=True)
class MixedBatch(SegmentBatch):
    """Items of `MixedSegments` stacked by `collate_mixed`; `waveform` is (B, S).

    Attributes:
        samples: length of each waveform, int64 (B,); zeros follow.
        partner: number of the clip that is mixed in, int64 (B,).
        partner_weight: how much of the item is the partner's, float32 (B,).
    """

    samples: Tensor
    partner: Tensor
    partner_weight: Tensor


def collate_mixed(items: Sequence[MixedItem]) -> MixedBatch:
    """Pad and stack items of `MixedSegments`; rejected clips in one flat list."""
    return MixedBatch(
        waveform=pad_sequence([item["waveform"] for item in items], batch_first=True),
        samples=torch.tensor([len(item["waveform"]) for item in items]),
        partner=torch.tensor([item["partner"] for item in items], dtype=torch.int64),
        partner_weight=torch.tensor([item["partner_weight"] for item in items]),
        **_common(items),
    )


class MixedSegments(_Stream[MixedItem]):
    """One segment (S,) a clip; with some probability another clip's waveform is mixed in.

    `partner_weight` of an item is the fraction of it, and of its label, that is the partner's. It,
    the partner and whether there is one follow from (seed, epoch, clip) and the position alone.

    Args:
        segments: with one segment a clip.
        rate: probability that an item is mixed.
        alpha: the weight is drawn from Beta(alpha, alpha); 10 keeps it near one half.

    Raises:
        ValueError: if a number is out of its range.

    Source: Tokozume et al. 2018 (between-class learning); Gong et al. 2021 (PSLA, AST): rate 0.5,
    alpha 10, waveforms less their mean.
    """

    collate = staticmethod(collate_mixed)

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

    def _items(self, positions: Sequence[int]) -> list[MixedItem]:
        where, seed = np.asarray(positions, dtype=np.int64), self.segments.seed ^ _PARTNER_SEED
        epochs, clips = sample_at(where, size=len(self.segments), seed=seed)
        items = self.segments.__getitems__(positions)
        places = zip(items, epochs.tolist(), clips.tolist(), strict=True)
        return [self._mixed(item, epoch, clip) for item, epoch, clip in places]

    def _mixed(self, item: SegmentItem, epoch: int, clip: int) -> MixedItem:
        """An item with what the partner at (epoch, clip) gives it, where it is to have one."""
        waveform, seed = item["waveform"][0], self.segments.seed
        draws = keyed_uniform(seed, item["epoch"], item["clip"], _MIX_STREAM, 2)
        partner, weight, rejected = item["clip"], 0.0, item["rejected"]
        if draws[0] < self.rate:
            other, partner, more = self.segments.read(epoch, clip)
            weight, rejected = self._weight(float(draws[1])), rejected + more
            waveform = mix(waveform, torch.from_numpy(other[0]), weight=weight)
        mixed: SegmentItem = {**item, "waveform": waveform, "rejected": rejected}
        return {**mixed, "partner": partner, "partner_weight": weight}

    def _weight(self, draw: float) -> float:
        from scipy.special import betaincinv

        return float(betaincinv(self.alpha, self.alpha, np.float64(draw)))


def mix(waveform: Tensor, other: Tensor, *, weight: float) -> Tensor:
    """(1 - weight) waveform + weight other, each less its mean, both from the first sample on.

    Of samples (S,) and (R,): as long as the longer of the two.
    """
    mixed = waveform.new_zeros(max(len(waveform), len(other)))
    mixed[: len(waveform)] += (1 - weight) * (waveform - waveform.mean())
    mixed[: len(other)] += weight * (other - other.mean())
    return mixed
