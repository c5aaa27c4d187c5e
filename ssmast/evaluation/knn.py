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
        train: standardised features (n, D) and class numbers (n,), or zeros and ones (n, C): then
            each class's score is the neighbours' share of it.
        valid: the same; k is chosen on it, the smaller k winning ties.
        num_classes: C.
        metric: what to choose by.
        k_grid: numbers of neighbours to try; those above n are left out.
        temperature: divides the similarity.

    Source: Wu et al. 2018 (instance discrimination), section 3.4; the defaults of DINO.
    """
    import faiss

    truth = train[1] if train[1].ndim == 2 else F.one_hot(train[1], num_classes).float()
    truth = truth.cpu()
    index = faiss.IndexFlatIP(train[0].shape[1])  # of unit vectors: the cosine
    index.add(F.normalize(train[0], dim=1).cpu().numpy())
    grid = tuple(k for k in k_grid if k <= len(truth))

    def votes(features: Tensor, ks: tuple[int, ...]) -> Tensor:
        """(K, n, C)."""
        parts = []
        for part in F.normalize(features, dim=1).cpu().split(1024):  # bounds (n, k, C)
            similarity, neighbours = map(torch.from_numpy, index.search(part.numpy(), max(ks)))
            # Relative to the nearest one: no weight of a clip can overflow or all of them vanish.
            weights = ((similarity - similarity[:, :1]) / temperature).exp()
            tally = torch.zeros(len(ks), len(part), num_classes)
            for row, k in enumerate(ks):
                near = weights[:, :k] / weights[:, :k].sum(dim=1, keepdim=True)
                tally[row] = torch.einsum("nk,nkc->nc", near, truth[neighbours[:, :k]])
            parts.append(tally)
        return torch.cat(parts, dim=1).to(features.device)

    scores = metric.score(votes(valid[0], grid), valid[1]).tolist()
    chosen = grid[scores.index(max(scores))]
    return Fitted(
        scores=lambda features: votes(features, (chosen,)),
        chosen={"k": chosen, "temperature": temperature},
        valid=[max(scores)],
    )
