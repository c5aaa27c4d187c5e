import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.cluster import KMeans

from ssmast.evaluation.clusters import (
    AGREEMENTS,
    agreement,
    kmeans,
    normalise,
    score_clusters,
    silhouette,
)


def blobs(*, n=300, dim=12, num_classes=5, spread=1.5, offset=0.0, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), generator.integers(num_classes, size=n)])
    centres = generator.standard_normal((num_classes, dim))
    points = centres[labels] + spread * generator.standard_normal((len(labels), dim))
    return torch.from_numpy((points + offset).astype(np.float32)), labels


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_silhouettes_are_those_of_their_definition(distance):
    features, labels = blobs(n=40, offset=20.0)
    gaps = np.arange(len(labels)) % 7 * 3
    alone = np.where(np.arange(len(labels)) == 4, 99, labels)  # a cluster of one clip
    apart = metrics.pairwise_distances(features.double().numpy(), metric=distance)
    for part in (labels, gaps, alone):
        wanted = []
        for i, own in enumerate(part):
            same = np.flatnonzero((part == own) & (np.arange(len(part)) != i))
            others = [apart[i, part == other].mean() for other in set(part) - {own}]
            a, b = (apart[i, same].mean() if len(same) else 0.0), min(others)
            wanted.append((b - a) / max(a, b) if len(same) else 0.0)
        # A common offset of 20 leaves float32 cosines four digits.
        found = silhouette(features, part, distance=distance)
        assert found == pytest.approx(
            np.mean(wanted), abs=2e-5 if distance == "euclidean" else 2e-4
        )


def test_copies_of_one_clip_lie_at_distance_zero():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    labels = np.array([0, 0, 1, 1])
    for distance in ("euclidean", "cosine"):
        assert silhouette(features, labels, distance=distance) == pytest.approx(1.0)
        mixed = silhouette(features, labels[[0, 2, 1, 3]], distance=distance)
        assert mixed == pytest.approx(-0.5)


def test_agreement_is_scikit_learns_and_the_order_of_numbers_does_not_matter():
    _, labels = blobs()
    clusters = (labels + np.arange(len(labels)) % 3) % 5
    scores = agreement(labels, clusters)
    assert scores == pytest.approx(
        {
            "adjusted_rand": metrics.adjusted_rand_score(labels, clusters),
            "homogeneity": metrics.homogeneity_score(labels, clusters),
            "completeness": metrics.completeness_score(labels, clusters),
            "adjusted_mutual_info": metrics.adjusted_mutual_info_score(labels, clusters),
        }
    )
    assert agreement(labels, (4 - clusters)) == pytest.approx(scores)
    assert agreement(labels, labels) == pytest.approx(dict.fromkeys(AGREEMENTS, 1.0))


def test_kmeans_reaches_scikit_learns_inertia():
    features, _ = blobs(n=500, spread=0.5)
    ours = min(kmeans(features, 5, seed=seed).inertia for seed in range(5))
    theirs = KMeans(5, n_init=5, random_state=0).fit(features.numpy())
    assert ours == pytest.approx(theirs.inertia_, rel=1e-3)
    one = kmeans(features, 5, seed=3)
    centres = np.stack([features.numpy()[one.labels == k].mean(axis=0) for k in range(5)])
    inertia = ((features.numpy() - centres[one.labels]) ** 2).sum()
    assert one.inertia == pytest.approx(inertia, rel=1e-3)
    assert (kmeans(features, 5, seed=3).labels == one.labels).all()


def test_separated_classes_are_found_and_shuffled_ones_are_at_chance():
    features, labels = blobs(spread=0.02)
    scores = score_clusters(features, labels, num_seeds=3)
    assert scores["kmeans"] == pytest.approx(dict.fromkeys(AGREEMENTS, 1.0))
    assert scores["silhouette"]["true"] == pytest.approx(scores["silhouette"]["kmeans"])
    assert scores["silhouette"]["true"]["cosine"] > 0.9
    assert abs(scores["silhouette"]["random"]["euclidean"]) < 0.1
    assert abs(scores["random"]["adjusted_rand"]) < 0.02
    best = min(scores["seeds"], key=lambda row: row["inertia"])
    assert scores["best_seed"] == best["seed"]
    assert [row["seed"] for row in scores["seeds"]] == [0, 1, 2]


def test_homogeneity_of_random_labels_is_above_zero_with_few_clips_a_class():
    features, labels = blobs(n=60, num_classes=20, spread=3.0)
    scores = score_clusters(features, labels, num_seeds=2)
    assert scores["random"]["homogeneity"] > 0.3
    assert abs(scores["random"]["adjusted_mutual_info"]) < 0.1


def test_normalisations():
    features, _ = blobs(offset=3.0)
    features[:, 0] = 5.0
    assert normalise(features, "l2").norm(dim=1).numpy() == pytest.approx(1.0, abs=1e-6)
    standard = normalise(features, "standard")
    assert standard[:, 0].abs().max() == 0
    assert standard[:, 1:].std(dim=0, correction=0).numpy() == pytest.approx(1.0, abs=1e-5)
    assert normalise(features, "raw") is features
    with pytest.raises(ValueError, match="l2, standard, raw, got 'l1'"):
        normalise(features, "l1")
    with pytest.raises(ValueError, match="finite"):
        normalise(features.log(), "raw")


def test_what_cannot_be_clustered_is_refused():
    features = torch.eye(4)
    with pytest.raises(ValueError, match="4 clips of 1 classes"):
        score_clusters(features, np.zeros(4, dtype=np.int64))
    with pytest.raises(ValueError, match="more clips than classes"):
        score_clusters(features, np.arange(4))
    with pytest.raises(ValueError, match="2 to n - 1 clusters, got 4 of 4"):
        silhouette(features, np.arange(4), distance="cosine")
    with pytest.raises(ValueError, match="euclidean, cosine"):
        silhouette(features, np.array([0, 0, 1, 1]), distance="manhattan")
