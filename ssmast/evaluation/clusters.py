"""How far the classes lie together in a frozen embedding, with nothing trained on their names.

Zhu & Omar, Table 6 compare encoders by silhouette, adjusted Rand index and homogeneity.
Differs from Zhu & Omar: they state neither normalisation, distance, nor which labels the silhouette
is of; here both silhouettes, both distances and the chance level are given.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ssmast.evaluation.fitting import mean_and_std

NORMALISATIONS = ("l2", "standard", "raw")
DISTANCES = ("euclidean", "cosine")
AGREEMENTS = ("adjusted_rand", "homogeneity", "completeness", "adjusted_mutual_info")


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """One k-means: the cluster of each clip (n,) and the sum of squared distances."""

    labels: NDArray[np.int64]
    inertia: float


@dataclass(frozen=True, kw_only=True)
class ClusterScores:
    """Agreement of one embedding with the classes.

    Attributes:
        silhouette: of the "true" labels, the "kmeans" labels, and "random" labels (the true ones
            shuffled), each by "euclidean" and "cosine" distance; -1 to 1.
        kmeans: agreement of the clustering of least inertia with the classes: adjusted Rand index,
            homogeneity, completeness, adjusted mutual information.
        random: the same for that clustering shuffled, mean over the seeds: what chance gives.
        seeds: seed, inertia and agreement of every clustering.
        best_seed: whose inertia is least.
    """

    silhouette: dict[str, dict[str, float]]
    kmeans: dict[str, float]
    random: dict[str, float]
    seeds: list[dict[str, float]]
    best_seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def score_clusters(
    features: Tensor,
    labels: NDArray[np.int64],
    *,
    normalisation: str = "l2",
    num_seeds: int = 5,
    seed: int = 0,
) -> ClusterScores:
    """Score an embedding by its clusters; k-means looks for as many as there are classes.

    Args:
        features: float32 (n, D).
        labels: class number of each (n,), each of 0 .. K - 1 at least once.
        normalisation: "l2" (unit length), "standard" (each feature to mean 0, std 1), or "raw".
        num_seeds: k-means from that many starting points.
        seed: the first of them.

    Raises:
        ValueError: if there are fewer than two classes, or no two clips of one class.
    """
    num_classes = int(labels.max()) + 1 if len(labels) else 0
    if not 2 <= num_classes < len(labels):
        raise ValueError(
            f"clusters need at least 2 classes and more clips than classes, got {len(labels)} "
            f"clips of {num_classes} classes"
        )
    if num_seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {num_seeds}")
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
    return ClusterScores(
        silhouette={
            name: {by: silhouette(features, one, distance=by) for by in DISTANCES}
            for name, one in partitions.items()
        },
        kmeans=agreement(labels, clusters),
        random={
            name: float(np.mean([scores[name] for scores in by_chance])) for name in AGREEMENTS
        },
        seeds=[
            {"seed": number, "inertia": one.inertia, **agreement(labels, one.labels)}
            for number, one in found.items()
        ],
        best_seed=best,
    )


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


def kmeans(
    features: Tensor, num_clusters: int, *, seed: int, max_iterations: int = 50
) -> Clustering:
    """Lloyd's k-means with k-means++ seeding, by faiss.

    Args:
        features: float32 (n, D).
        num_clusters: K.
        seed: of the k-means++ seeding.
        max_iterations: of Lloyd's algorithm; it stops before where nothing moves.
    """
    import faiss

    points = np.ascontiguousarray(features.cpu().numpy())
    # Distances lose digits to a common offset; clusters do not change without it.
    points = points - points.mean(axis=0, keepdims=True)
    settings = faiss.ClusteringParameters()
    settings.seed, settings.niter = seed, max_iterations
    settings.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    settings.early_stop_threshold = 0.0
    # faiss would draw a sample, and warn of few points; every clip counts here.
    settings.max_points_per_centroid, settings.min_points_per_centroid = len(points), 1
    index = faiss.IndexFlatL2(points.shape[1])
    faiss.Clustering(points.shape[1], num_clusters, settings).train(points, index)
    distances, nearest = index.search(points, 1)
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

    Args:
        features: (n, D).
        labels: cluster number of each clip (n,).
        distance: "euclidean" or "cosine".

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
