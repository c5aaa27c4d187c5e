"""Nearest neighbours: no training at all, so nothing but the embedding is measured."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmast.evaluation.classifier import Fitted, Part
from ssmast.evaluation.metrics import Metric

K_GRID = (1, 3, 5, 10, 20, 50, 100, 200)


def fit_knn(
    train: Part,
    valid: Part,
    *,
    num_classes: int,
    metric: Metric,
    k_grid: tuple[int, ...] = K_GRID,
    temperature: float = 0.07,
) -> Fitted:
    """Vote of the k training clips of highest cosine similarity, by exp(similarity / temperature).

    Args:
        train: standardised features (n, D) and class numbers (n,).
        valid: the same; k is chosen on it, the smaller k winning ties.
        num_classes: C.
        metric: what to choose by.
        k_grid: numbers of neighbours to try; those above n are left out.
        temperature: divides the similarity.

    Source: Wu et al. 2018 (instance discrimination), section 3.4; the defaults of DINO.
    """
    bank, targets = F.normalize(train[0], dim=1), train[1]
    grid = tuple(k for k in k_grid if k <= len(bank))

    def votes(features: Tensor, ks: tuple[int, ...]) -> Tensor:
        """(K, n, C)."""
        parts = []
        for part in F.normalize(features, dim=1).split(1024):  # bounds n x n_train
            similarity, neighbours = (part @ bank.T).topk(max(ks), dim=1)
            weights = (similarity / temperature).exp()
            empty = torch.zeros(len(part), num_classes, device=part.device)
            classes = targets[neighbours]
            parts.append(
                torch.stack([empty.scatter_add(1, classes[:, :k], weights[:, :k]) for k in ks])
            )
        return torch.cat(parts, dim=1)

    scores = metric.score(votes(valid[0], grid), valid[1]).tolist()
    chosen = grid[scores.index(max(scores))]
    return Fitted(
        scores=lambda features: votes(features, (chosen,)),
        chosen={"k": chosen, "temperature": temperature},
        valid=[max(scores)],
    )
