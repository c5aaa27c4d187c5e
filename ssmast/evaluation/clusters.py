"""How far the classes lie together in a frozen embedding, with nothing trained on their names.

Zhu & Omar, Table 6 compare encoders by silhouette, adjusted Rand index and homogeneity.
Differs from Zhu & Omar: they state neither normalisation, distance, nor which labels the silhouette
is of; here both silhouettes, both distances and the chance level are given.

Below: embeddings drawn in the plane, with the nearest neighbours of each clip. A picture only:
distances in it are not the embedding's, so nothing is measured on it.
"""

import importlib.util
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ssmast.evaluation.fitting import mean_and_std

NORMALISATIONS = ("l2", "standard", "raw")
DISTANCES = ("euclidean", "cosine")
AGREEMENTS = ("adjusted_rand", "homogeneity", "completeness", "adjusted_mutual_info")
N_NEIGHBORS, MIN_DIST = 15, 0.1
MOST_CLASSES = 20  # drawn where none are named: more colours cannot be distinguished
INSTALL = "install it with: pip install 'ssmast[umap]'"


class Clustering(NamedTuple):
    """One k-means: the cluster of each clip (n,) and the sum of squared distances."""

    labels: NDArray[np.int64]
    inertia: float


def score_clusters(
    features: Tensor,
    labels: NDArray[np.int64],
    *,
    normalisation: str = "l2",
    num_seeds: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Score an embedding by its clusters; k-means looks for as many as there are classes.

    Of float32 features (n, D) and the class number of each, 0 .. K - 1; k-means starts from
    `num_seeds` points. See `normalise`.

    Returns:
        Plain values for JSON. silhouette: of the "true" labels, the "kmeans" labels, and "random"
        labels (the true ones shuffled), each by "euclidean" and "cosine" distance; -1 to 1.
        kmeans: `agreement` of the clustering of least inertia with the classes. random: the same
        for that clustering shuffled, mean over the seeds: what chance gives. seeds: seed, inertia
        and agreement of every clustering. best_seed: whose inertia is least.

    Raises:
        ValueError: if there are fewer than two classes, or no two clips of one class.
    """
    num_classes = int(labels.max()) + 1 if len(labels) else 0
    if not 2 <= num_classes < len(labels):
        raise ValueError(
            f"clusters need at least 2 classes and more clips than classes, got {len(labels)} "
            f"clips of {num_classes} classes"
        )
    features = normalise(features, normalisation)
    found = {
        number: kmeans(features, num_classes, seed=number)
        for number in range(seed, seed + num_seeds)
    }
    best = min(found, key=lambda number: found[number].inertia)
    clusters = found[best].labels
    shuffled = [np.random.default_rng(number).permutation(len(labels)) for number in found]
    by_chance = [agreement(labels, clusters[order]) for order in shuffled]
    partitions = {"true": labels, "kmeans": clusters, "random": labels[shuffled[0]]}
    return {
        "silhouette": {
            name: {by: silhouette(features, one, distance=by) for by in DISTANCES}
            for name, one in partitions.items()
        },
        "kmeans": agreement(labels, clusters),
        "random": {
            name: float(np.mean([scores[name] for scores in by_chance])) for name in AGREEMENTS
        },
        "seeds": [
            {"seed": number, "inertia": one.inertia, **agreement(labels, one.labels)}
            for number, one in found.items()
        ],
        "best_seed": best,
    }


def normalise(features: Tensor, how: str) -> Tensor:
    """Embeddings (n, D) as they are compared: "l2", "standard" or "raw".

    Raises:
        ValueError: for another name, or features that are not finite.
    """
    if how not in NORMALISATIONS:
        raise ValueError(f"normalise must be one of {', '.join(NORMALISATIONS)}, got {how!r}")
    if not features.isfinite().all():
        raise ValueError("features must be finite, got NaN or infinity")
    features = features.float()
    if how == "l2":
        return F.normalize(features, dim=1)
    if how == "raw":
        return features
    mean, std = mean_and_std(features)
    return ((features.double() - mean) / std).float()


def kmeans(features: Tensor, num_clusters: int, *, seed: int) -> Clustering:
    """Lloyd's k-means with k-means++ seeding of features (n, D), by faiss; at most 50 rounds."""
    import faiss

    points = np.ascontiguousarray(features.cpu().numpy())
    # Distances lose digits to a common offset; clusters do not change without it.
    points = points - points.mean(axis=0, keepdims=True)
    found = faiss.Kmeans(
        points.shape[1],
        num_clusters,
        niter=50,
        seed=seed,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        early_stop_threshold=0.0,
        # faiss would draw a sample, and warn of few points; every clip counts here.
        max_points_per_centroid=len(points),
        min_points_per_centroid=1,
    )
    found.train(points)
    distances, nearest = found.index.search(points, 1)
    return Clustering(
        labels=nearest[:, 0].astype(np.int64), inertia=float(distances.sum(dtype=np.float64))
    )


def agreement(labels: NDArray[np.int64], clusters: NDArray[np.int64]) -> dict[str, float]:
    """How well clusters match classes: 1 for the same partition.

    Chance gives 0 in the adjusted Rand index and the adjusted mutual information, but not in
    homogeneity and completeness, which rise with the number of clusters.
    """
    from sklearn import metrics

    homogeneity, completeness, _ = metrics.homogeneity_completeness_v_measure(labels, clusters)
    return {
        "adjusted_rand": float(metrics.adjusted_rand_score(labels, clusters)),
        "homogeneity": float(homogeneity),
        "completeness": float(completeness),
        "adjusted_mutual_info": float(metrics.adjusted_mutual_info_score(labels, clusters)),
    }


def silhouette(features: Tensor, labels: NDArray[np.int64], *, distance: str) -> float:
    """Mean silhouette of a partition of the clips, over all pairs, by scikit-learn; -1 to 1.

    Of features (n, D) and the cluster number of each (n,).

    Raises:
        ValueError: for another distance, or a partition into one cluster or into single clips.

    Source: Rousseeuw 1987.
    """
    from sklearn.metrics import silhouette_score

    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
    found = len(np.unique(labels))
    if not 2 <= found < len(features):
        raise ValueError(
            f"a silhouette needs 2 to n - 1 clusters, got {found} of {len(features)} clips"
        )
    return float(silhouette_score(features.cpu().numpy(), labels, metric=distance))


# -- pictures -------------------------------------------------------------------------------------


def can_draw() -> bool:
    """True if umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def draw_umap(features: Tensor, *, seed: int) -> NDArray[np.float32]:
    """Points (n, 2) of embeddings (n, D); the same seed draws the same picture.

    Normalised as they were clustered. One thread, so that the seed decides all.

    Raises:
        ValueError: if umap-learn is not installed, or for fewer than four clips.

    Source: McInnes et al. 2018; 15 neighbours and a least distance of 0.1 as Zhu & Omar, figure 2.
    """
    if not can_draw():
        raise ValueError(f"the picture needs umap-learn, which is not installed; {INSTALL}")
    _check_enough(features)
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

    Raises:
        ValueError: for fewer than four clips.

    Source: van der Maaten & Hinton 2008; perplexity 30, or a third of the clips.
    """
    _check_enough(features)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    values = features.double().cpu().numpy()
    # Clips that are all the same, such as silence, have no principal axes: scikit-learn divides by
    # 0 there and ends in a segmentation fault.
    init = "pca" if np.ptp(values, axis=0).any() else "random"
    layout = TSNE(perplexity=perplexity, random_state=seed, init=init)
    points = layout.fit_transform(values)
    return np.asarray(points, dtype=np.float32)


def _check_enough(features: Tensor) -> None:
    if len(features) < 4:
        raise ValueError(f"a picture needs at least 4 clips, got {len(features)}")


def nearest(features: Tensor, *, limit: int = 8) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The clips most like each clip, without itself: numbers and cosine similarities (n, limit)."""
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


def chosen_classes(labels: Sequence[str], wanted: Sequence[str]) -> list[str]:
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


def draw(
    features: dict[str, Tensor],
    where: NDArray[np.int64],
    *,
    limit: int,
    normalisation: str = "l2",
    seed: int,
    method: str = "umap",
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Clips drawn in each of several embeddings; at most `limit`, a random sample of more.

    Clips are numbers below n, of features (n, D); normalised as `score_clusters` does.

    Returns:
        Numbers of the clips that are drawn (m,), and plain values: how it was drawn, and under
        `columns` of each embedding points, neighbours and their similarity.
    """
    total = len(where)
    if total > limit:
        where = np.sort(np.random.default_rng(seed).choice(where, size=limit, replace=False))
    columns = {}
    for name, values in features.items():
        chosen = normalise(values, normalisation)[torch.from_numpy(where)]
        points = (draw_umap if method == "umap" else draw_tsne)(chosen, seed=seed)
        numbers, similarities = nearest(chosen)
        columns[name] = {
            "x": [round(float(value), 3) for value in points[:, 0]],
            "y": [round(float(value), 3) for value in points[:, 1]],
            "neighbours": numbers.tolist(),
            "similarity": [[round(float(v), 3) for v in row] for row in similarities],
        }
    about = {"method": method, "n_neighbors": N_NEIGHBORS, "min_dist": MIN_DIST, "seed": seed}
    return where, {**about, "num_candidates": total, "columns": columns}
