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
_BLOCK = 512
_NEIGHBOURS = 8
_EXACT_UP_TO = 100_000


def fingerprint(log_mel: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """The sound of a clip in 512 bytes, the same at any level.

    The log-mel, not below 30 dB under its loudest cell, is averaged to 32 bands and 16 time
    steps, and becomes a vector of mean 0 and length 256, rounded. In whole numbers the products of
    two vectors are exact in float32, so the order of adding cannot decide who is a duplicate.

    Args:
        log_mel: (F, T), natural logarithm.

    Returns:
        (512,)
    """
    cells = log_mel.double()
    cells = cells.clamp(min=float(cells.max()) - _FLOOR)
    pooled = torch.nn.functional.adaptive_avg_pool2d(cells[None], SIZE).flatten()
    pooled = pooled - pooled.mean()
    unit = pooled / pooled.norm().clamp(min=1e-9)
    return (unit * _SCALE).round().clamp(-127, 127).to(torch.int8).numpy()


def exact_duplicates(hashes: list[bytes]) -> np.ndarray:
    """For each clip, the number of the first one with the same samples; -1 for a first one.

    Args:
        hashes: of the samples.
    """
    first: dict[bytes, int] = {}
    of = np.full(len(hashes), -1, dtype=np.int64)
    for i, digest in enumerate(hashes):
        earlier = first.setdefault(digest, i)
        if earlier != i:
            of[i] = earlier
    return of


def near_duplicates(
    fingerprints: np.ndarray, samples: np.ndarray, *, similarity: float
) -> np.ndarray:
    """For each clip, the number of an earlier, kept one that sounds the same; -1 if there is none.

    Clips are taken in order; one is kept if none of its nearest kept ones has a cosine of
    `similarity` and a length within 5 %. Above 100,000 clips the nearest ones are searched in 16 of
    the cells of a faiss inverted file, below in all.

    Args:
        fingerprints: int8 (N, 512).
        samples: lengths (N,).
        similarity: smallest cosine of duplicates, in (0, 1].
    """
    of = np.full(len(fingerprints), -1, dtype=np.int64)
    if not len(fingerprints):
        return of
    index = _index(fingerprints)
    norms = np.array([np.linalg.norm(row.astype(np.float64)) for row in fingerprints])
    kept = np.zeros(0, dtype=np.int64)
    for start in range(0, len(fingerprints), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(fingerprints)))
        vectors = fingerprints[rows].astype(np.float32)
        nearest = _nearest(index, vectors)  # (B, K) in kept
        before = kept[nearest] if len(kept) else np.zeros((len(rows), 0), dtype=np.int64)

        def alike(dots: np.ndarray, other: np.ndarray, rows: np.ndarray = rows) -> np.ndarray:
            ratio = samples[rows][:, None] / samples[other]
            cosine = dots / (norms[rows][:, None] * norms[other]).clip(1e-9)
            return (cosine >= similarity) & (ratio > 0.95) & (ratio < 1 / 0.95)

        dots = np.einsum("bd,bkd->bk", vectors, fingerprints[before].astype(np.float32))
        known = alike(dots, before) & (nearest >= 0)
        inside = alike(vectors @ vectors.T, rows[None])
        for i, row in enumerate(rows):
            twins = before[i][known[i]]
            if not len(twins):
                twins = rows[:i][inside[i, :i] & (of[rows[:i]] < 0)]
            of[row] = twins.min() if len(twins) else -1
        new = rows[of[rows] < 0]
        index.add(fingerprints[new].astype(np.float32))
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


def _nearest(index: Any, block: np.ndarray) -> np.ndarray:
    if not index.ntotal:
        return np.full((len(block), 1), -1, dtype=np.int64)
    _, found = index.search(block, min(_NEIGHBOURS, index.ntotal))
    return found
