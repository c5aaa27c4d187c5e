"""The order of training: a shuffled, endless stream of clips that is computed, not stored.

The clip at position t of the stream depends on (seed, t, number of clips) alone. Ranks and workers
only choose which t they read, so a run resumes from its step, with any number of either.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_NUM_ROUNDS = 4
_BALANCED_STREAM = -1000  # of keyed numbers; segments count down from -1, views up from 0
_NUM_ROUNDS_SMALL = 12  # below 2**16 clips: with 4, the orders of 10 clips are visibly not equal


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64-bit words, one to one.

    Source: Steele, Lea & Flood 2014 (SplitMix), the finaliser of Stafford's variant 13.
    """
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def _key(*parts: int | np.ndarray) -> np.ndarray:
    """Hash integers (each broadcast, negative ones taken modulo 2**64) into 64-bit words."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        if isinstance(part, int):
            part = np.array([part & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
        # The golden step keeps a part of zero from passing through unchanged.
        state = _mix((state ^ _mix(part.astype(np.uint64) + _GOLDEN)) + _GOLDEN)
    return state


def _permute(values: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Keyed bijection of [0, size): a Feistel network, walked until it lands inside."""
    if size == 1:
        return np.zeros_like(values)
    bits = max(2, (size - 1).bit_length())
    out = values.copy()
    todo = np.arange(len(values))
    while len(todo):
        out[todo] = _feistel(out[todo], bits, key[todo])
        todo = todo[out[todo] >= np.uint64(size)]  # at most half are outside, on average
    return out


def _feistel(values: np.ndarray, bits: int, key: np.ndarray) -> np.ndarray:
    """Feistel rounds over `bits` bits; halves of unequal width trade places every round."""
    width_left, width_right = bits - bits // 2, bits // 2
    left = values >> np.uint64(width_right)
    right = values & np.uint64((1 << width_right) - 1)
    for _ in range(_NUM_ROUNDS if bits > 16 else _NUM_ROUNDS_SMALL):
        key = _mix(key + _GOLDEN)  # a fresh key each round
        noise = _mix(key ^ _mix(right))
        mixed = left ^ (noise >> np.uint64(64 - width_left))
        left, right = right, mixed
        width_left, width_right = width_right, width_left
    return (left << np.uint64(width_right)) | right


Position = TypeVar("Position", int, np.ndarray)


def sample_at(position: Position, *, size: int, seed: int) -> tuple[Position, Position]:
    """Epoch and clip at a position of the endless shuffled stream.

    Every epoch is its own keyed permutation of all clips: each comes exactly once.

    Args:
        position: one position, or an array of them of any shape; not negative.
        size: number of clips.
        seed: of the run.

    Returns:
        (epoch, clip): two ints, or two int64 arrays of the shape of `position`.

    Raises:
        ValueError: if `size` is below 1 or a position is negative.

    Source: Black & Rogaway 2002, ciphers with arbitrary finite domains (cycle walking).
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 clip, got {size}")
    positions = np.atleast_1d(np.asarray(position, dtype=np.int64))
    if positions.size and positions.min() < 0:
        raise ValueError(f"position must not be negative, got {positions.min()}")
    epoch, offset = np.divmod(positions, size)
    key = np.broadcast_to(_key(seed, epoch), epoch.shape)
    index = _permute(offset.ravel().astype(np.uint64), size, key.ravel())
    return like(position, epoch, index.astype(np.int64).reshape(positions.shape))


def like(position: Position, *values: np.ndarray) -> tuple[Position, Position]:
    """Arrays (N,), or numbers where the position is one."""
    found: Any = values if isinstance(position, np.ndarray) else (int(one[0]) for one in values)
    return tuple(found)


class BalancedOrder:
    """A stream in which clips come in proportion to their weights, computed like `sample_at`.

    An epoch has as many positions as there are clips. The weights are laid end to end over that
    length; every position draws one point in a cell of its own of length one, so in each epoch a
    clip comes its expected number of times, rounded down or up. Its n-th time in an epoch counts as
    an epoch of its own for all that is drawn for it, so that it is never augmented twice alike.

    Raises:
        ValueError: if a weight, one a clip (n,), is negative or not finite, or all are zero.

    Source: Kong et al. 2020 (PANNs) and Gong et al. 2021 (PSLA) for balanced sampling.
    Differs from PSLA: cells instead of independent draws, so that proportions hold each epoch.
    """

    def __init__(self, weights: np.ndarray) -> None:
        weights = np.asarray(weights, dtype=np.float64)
        if not len(weights) or not np.isfinite(weights).all() or weights.min() < 0:
            raise ValueError("weights must be finite numbers of at least 0, one for each clip")
        if not weights.sum() > 0:
            raise ValueError("all weights are zero; at least one clip must be drawn")
        self.size = len(weights)
        ends = np.cumsum(weights) / weights.sum() * self.size
        ends[np.flatnonzero(weights)[-1] :] = self.size  # rounding must not leave a gap at the end
        self._ends = ends
        starts = np.concatenate([[0.0], ends[:-1]])
        self._starts = np.floor(starts).astype(np.int64)
        self._most = int((np.ceil(ends).astype(np.int64) - self._starts).max())

    def __call__(self, position: Position, *, seed: int) -> tuple[Position, Position]:
        """(epoch for draws, clip) at a position of the endless stream, or at an array of them."""
        positions = np.atleast_1d(np.asarray(position, dtype=np.int64))
        epoch, cell = sample_at(positions, size=self.size, seed=seed)
        draws = keyed_uniform(seed, epoch, cell, _BALANCED_STREAM, 1)[..., 0]
        clip = np.searchsorted(self._ends, cell + draws.astype(np.float64), side="right")
        return like(position, epoch * self._most + cell - self._starts[clip], clip)


def keyed_uniform(
    seed: int, epoch: int | np.ndarray, index: int | np.ndarray, view: int | np.ndarray, num: int
) -> np.ndarray:
    """Uniform numbers that follow from (seed, epoch, clip, view) alone, in any batch and process.

    Epoch, index of the clip, and view (or segment) are numbers or arrays that broadcast.

    Returns:
        Float32 array (..., num) in [0, 1), with 24 random bits each.
    """
    epoch, index, view = (np.asarray(part, dtype=np.int64) for part in (epoch, index, view))
    shape = np.broadcast_shapes(epoch.shape, index.shape, view.shape)
    key = np.broadcast_to(_key(seed, *np.atleast_1d(epoch, index, view)), shape or (1,))
    counter = np.arange(1, num + 1, dtype=np.uint64) * _GOLDEN
    words = _mix(_mix(key[..., None] + counter))  # (..., num)
    return ((words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)).reshape(*shape, num)


class StepSampler:
    """Positions of the stream that one rank reads, step by step: a `batch_sampler`.

    Step s consists of positions [s * batch_size, (s + 1) * batch_size), whatever the number of
    ranks; rank r takes the r-th of `num_ranks` equal slices. Its whole state is the step.

    Steps [start, stop) are read; the batch size is that over all ranks.

    Raises:
        ValueError: if the ranks do not divide the batch.
    """

    def __init__(
        self, *, start: int, stop: int, batch_size: int, rank: int = 0, num_ranks: int = 1
    ) -> None:
        if batch_size < 1 or batch_size % num_ranks:
            raise ValueError(
                f"batch_size must be a multiple of the number of processes, got {batch_size} clips "
                f"for {num_ranks} processes"
            )
        if not 0 <= rank < num_ranks:
            raise ValueError(f"rank must lie in [0, {num_ranks}), got {rank}")
        if not 0 <= start <= stop:
            raise ValueError(f"steps must satisfy 0 <= start <= stop, got {start} and {stop}")
        self.start = start
        self.stop = stop
        self.batch_size = batch_size
        self.local_batch_size = batch_size // num_ranks
        self.rank = rank

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            first = step * self.batch_size + self.rank * self.local_batch_size
            yield list(range(first, first + self.local_batch_size))
