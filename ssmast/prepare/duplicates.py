"""Duplicate clips: equal to the sample, or up to level, codec and a little noise."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

SIZE = (32, 16)
"""Bands and time steps of a fingerprint."""

# Below the loudest cell, natural logarithm of power: 30 dB. With 50 dB, the faint noise that a
# codec leaves out counted: an mp3 had a cosine of 0.94 with its original, with 30 dB of 0.995.
_FLOOR = 7.0
_SCALE = 256.0
# Of `changes`: their smallest cosine in copies, and the std of cells (natural logarithm of power)
# below which nothing changes but for what a codec adds. Measured by benchmarks/duplicates.py.
_ALIKE = 0.8
_STILL = 0.03
_BLOCK = 512
_NEIGHBOURS = 8
_EXACT_UP_TO = 100_000


def fingerprint(log_mel: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """The sound of a clip in 512 bytes, the same at any level.

    The log-mel, not below 30 dB under its loudest cell, is averaged to 32 bands and 16 time
    steps, and becomes a vector of mean 0 and length 256, rounded. In whole numbers the products of
    two vectors are exact in float32, so the order of adding cannot decide who is a duplicate.

    Of a log-mel (F, T) in natural logarithms.
    """
    pooled = _pooled(log_mel)
    return _whole_numbers(pooled - pooled.mean())


def changes(log_mel: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """What happens in a clip, in 512 bytes: its fingerprint's cells less the mean of each band.

    A steady background, which all pieces of a recording share, is not in it; its chance
    fluctuations are, and copies have them in common. All zeros where nothing changes.
    """
    pooled = _pooled(log_mel)
    moving = pooled - pooled.mean(dim=1, keepdim=True)
    still = float(moving.square().mean().sqrt()) < _STILL
    return _whole_numbers(torch.zeros_like(moving) if still else moving)


def _pooled(log_mel: Tensor) -> Tensor:
    """Means of 32 bands x 16 time steps, not below 30 dB under the loudest cell."""
    cells = log_mel.double()
    cells = cells.clamp(min=float(cells.max()) - _FLOOR)
    return torch.nn.functional.adaptive_avg_pool2d(cells[None], SIZE)[0]


def _whole_numbers(values: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    unit = values.flatten() / values.norm().clamp(min=1e-9)
    return (unit * _SCALE).round().clamp(-127, 127).to(torch.int8).numpy()


def exact_duplicates(hashes: list[bytes]) -> np.ndarray:
    """For each clip, the number of the first one with the same samples; -1 for a first one."""
    first: dict[bytes, int] = {}
    of = np.array([first.setdefault(digest, i) for i, digest in enumerate(hashes)], dtype=np.int64)
    return np.where(of < np.arange(len(of)), of, -1)


def near_duplicates(
    fingerprints: np.ndarray,
    samples: np.ndarray,
    *,
    similarity: float,
    changes: np.ndarray | None = None,
) -> np.ndarray:
    """For each clip, the number of an earlier, kept one that sounds the same; -1 if there is none.

    Clips are taken in order; one is kept if none of its nearest kept ones has a cosine of
    `similarity`, a length within 5 %, and the same changes, as far as either changes at all. Above
    100,000 clips the nearest ones are searched in 16 of the cells of a faiss inverted file,
    below in all.

    Args:
        fingerprints: int8 (N, 512).
        samples: lengths (N,).
        similarity: smallest cosine of duplicates, in (0, 1].
        changes: int8 (N, 512), see the function of that name; None to leave them out.
    """
    if changes is None:
        changes = np.zeros_like(fingerprints)
    of = np.full(len(fingerprints), -1, dtype=np.int64)
    if not len(fingerprints):
        return of
    # Searched by both: of a steady background, hundreds of clips have nearly one fingerprint.
    joint, dim = np.concatenate([fingerprints, changes], axis=1), fingerprints.shape[1]
    index = _index(joint)
    norms = np.array([np.linalg.norm(row.astype(np.float64)) for row in fingerprints])
    moves = np.array([np.linalg.norm(row.astype(np.float64)) for row in changes])
    kept = np.zeros(0, dtype=np.int64)
    for start in range(0, len(fingerprints), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(fingerprints)))
        vectors = joint[rows].astype(np.float32)
        nearest = np.full((len(rows), 1), -1, dtype=np.int64)
        if index.ntotal:
            _, nearest = index.search(vectors, min(_NEIGHBOURS, index.ntotal))  # (B, K) in kept
        before = kept[nearest] if len(kept) else np.zeros((len(rows), 0), dtype=np.int64)

        def alike(
            dots: np.ndarray, moved: np.ndarray, other: np.ndarray, rows: np.ndarray = rows
        ) -> np.ndarray:
            ratio = samples[rows][:, None] / samples[other]
            cosine = dots / (norms[rows][:, None] * norms[other]).clip(1e-9)
            still = (moves[rows][:, None] == 0) & (moves[other] == 0)
            same = still | (moved >= _ALIKE * moves[rows][:, None] * moves[other])
            same &= still | ((moves[rows][:, None] > 0) & (moves[other] > 0))
            return (cosine >= similarity) & same & (ratio > 0.95) & (ratio < 1 / 0.95)

        others = joint[before].astype(np.float32)
        first, second = (
            np.einsum("bd,bkd->bk", vectors[:, part], others[:, :, part])
            for part in (slice(dim), slice(dim, None))
        )
        known = alike(first, second, before) & (nearest >= 0)
        levels, turns = vectors[:, :dim], vectors[:, dim:]
        inside = alike(levels @ levels.T, turns @ turns.T, rows[None])
        for i, row in enumerate(rows):
            twins = before[i][known[i]]
            if not len(twins):
                twins = rows[:i][inside[i, :i] & (of[rows[:i]] < 0)]
            of[row] = twins.min() if len(twins) else -1
        new = rows[of[rows] < 0]
        index.add(joint[new].astype(np.float32))
        kept = np.concatenate([kept, new])
    return of


def _index(fingerprints: np.ndarray) -> Any:
    import faiss

    dim = fingerprints.shape[1]
    if len(fingerprints) <= _EXACT_UP_TO:
        return faiss.IndexFlatIP(dim)
    cells = int(4 * np.sqrt(len(fingerprints)))
    sample = fingerprints[:: max(1, len(fingerprints) // (64 * cells))].astype(np.float32)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = 16
    index.train(sample)
    return index
