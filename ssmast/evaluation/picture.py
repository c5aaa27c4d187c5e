"""Embeddings drawn in the plane by UMAP, with the nearest neighbours of each clip.

A picture only: distances in it are not the embedding's, so nothing is measured on it.
"""

import importlib.util
import warnings
from collections import Counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

N_NEIGHBORS, MIN_DIST = 15, 0.1
MOST_CLASSES = 20  # drawn where none are named: more colours cannot be distinguished
INSTALL = "install it with: pip install 'ssmast[umap]'"


def can_draw() -> bool:
    """True if umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def draw_umap(features: Tensor, *, seed: int) -> NDArray[np.float32]:
    """Points (n, 2) of embeddings (n, D); the same seed draws the same picture.

    Args:
        features: normalised as they were clustered; n >= 4.
        seed: of the layout, which then runs in one thread.

    Raises:
        ValueError: if umap-learn is not installed, or for fewer than four clips.

    Source: McInnes et al. 2018; 15 neighbours and a least distance of 0.1 as Zhu & Omar, figure 2.
    """
    if not can_draw():
        raise ValueError(f"the picture needs umap-learn, which is not installed; {INSTALL}")
    if len(features) < 4:
        raise ValueError(f"a picture needs at least 4 clips, got {len(features)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba, and of fewer clips than neighbours
        from umap import UMAP

        layout = UMAP(
            n_neighbors=min(N_NEIGHBORS, len(features) - 1),
            min_dist=MIN_DIST,
            random_state=seed,
            n_jobs=1,
            # A spectral initialisation needs more points than dimensions of its eigenproblem.
            init="spectral" if len(features) > N_NEIGHBORS else "random",
        )
        points = layout.fit_transform(features.cpu().numpy())
    return np.asarray(points, dtype=np.float32)


def draw_tsne(features: Tensor, *, seed: int) -> NDArray[np.float32]:
    """Points (n, 2) by t-SNE, which scikit-learn has: for where umap-learn is not installed.

    Args:
        features: normalised; n >= 4.
        seed: of the layout.

    Raises:
        ValueError: for fewer than four clips.

    Source: van der Maaten & Hinton 2008; perplexity 30, or a third of the clips.
    """
    if len(features) < 4:
        raise ValueError(f"a picture needs at least 4 clips, got {len(features)}")
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    layout = TSNE(perplexity=perplexity, random_state=seed, init="pca")
    points = layout.fit_transform(features.double().cpu().numpy())
    return np.asarray(points, dtype=np.float32)


def nearest(features: Tensor, *, limit: int = 8) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The clips most like each clip, itself left out: numbers and cosine similarities (n, limit).

    Args:
        features: (n, D).
        limit: neighbours of each; fewer where there are fewer clips.
    """
    points = F.normalize(features.float(), dim=1)
    limit = min(limit, len(points) - 1)
    numbers, similarities = [], []
    for start in range(0, len(points), 1024):
        cosine = points[start : start + 1024] @ points.T
        own = torch.arange(len(cosine))
        cosine[own, start + own] = -torch.inf
        best = cosine.topk(limit, dim=1)
        numbers.append(best.indices)
        similarities.append(best.values)
    return torch.cat(numbers).numpy(), torch.cat(similarities).numpy()


def chosen_classes(labels: list[str], wanted: list[str]) -> list[str]:
    """The classes to draw: those that were named, else the most frequent ones.

    Raises:
        ValueError: if a class is unknown, naming those there are.
    """
    counts = Counter(labels)
    unknown = [name for name in wanted if name not in counts]
    if unknown:
        known = ", ".join(sorted(counts)[:40]) + (", ..." if len(counts) > 40 else "")
        raise ValueError(f"classes has {unknown[0]!r}, which no clip has; there are: {known}")
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    return sorted(wanted or ranked[:MOST_CLASSES])


def chosen_clips(labels: list[str], classes: list[str], *, limit: int, seed: int) -> list[int]:
    """Positions of the clips to draw: all of the classes, or a random `limit` of them, in order."""
    inside = np.flatnonzero(np.isin(labels, classes))
    if len(inside) > limit:
        inside = np.random.default_rng(seed).choice(inside, size=limit, replace=False)
    return sorted(inside.tolist())


def draw(
    features: dict[str, Tensor], *, seed: int, method: str = "umap"
) -> dict[str, dict[str, Any]]:
    """Points and neighbours of the same clips in each of several embeddings, as plain values.

    Args:
        features: of each embedding, (n, D).
        seed: of the layout.
        method: umap or tsne.
    """
    drawn = {}
    for name, values in features.items():
        points = (draw_umap if method == "umap" else draw_tsne)(values, seed=seed)
        numbers, similarities = nearest(values)
        drawn[name] = {
            "x": [round(float(value), 3) for value in points[:, 0]],
            "y": [round(float(value), 3) for value in points[:, 1]],
            "neighbours": numbers.tolist(),
            "similarity": [[round(float(v), 3) for v in row] for row in similarities],
        }
    return drawn
