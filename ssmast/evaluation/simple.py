"""Probes without a learning rate: logistic regression, nearest neighbours, and few labels.

The first cross-checks the linear probe; the second trains nothing, so nothing but the embedding is
measured; the third asks how far a few labelled clips of each class go.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssmast.evaluation.fitting import Fitted, Part, mean_and_std
from ssmast.evaluation.metrics import Metric

C_GRID = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)


def fit_logreg(
    train: Part,
    valid: Part,
    *,
    num_classes: int,
    metric: Metric,
    c_grid: tuple[float, ...] = C_GRID,
    max_iter: int = 1000,
) -> Fitted:
    """scikit-learn's LogisticRegression, its C chosen on `valid`, fitted on `train` alone.

    Args:
        train: standardised features (n, D) and class numbers (n,), each of the C classes there; or
            zeros and ones (n, C), of which every class is fitted against the rest.
        valid: the same; the stronger regularisation wins ties.
        num_classes: C.
        metric: what to choose by.
        c_grid: inverse strengths of the L2 penalty to try.
        max_iter: steps of L-BFGS.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    models, values = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported in `chosen`
        for c in c_grid:

            def regression(c: float = c) -> LogisticRegression:
                return LogisticRegression(C=c, max_iter=max_iter)

            model = (_OneByOne if train[1].ndim == 2 else _AllAtOnce)(train, regression)
            if model.num_classes != num_classes:
                raise ValueError(
                    f"logreg needs clips of all {num_classes} classes to train on, "
                    f"got {model.num_classes}"
                )
            models.append(model)
            values.append(float(metric.score(model(valid[0]), valid[1])))
    index = values.index(max(values))
    best = models[index]
    return Fitted(
        scores=best,
        chosen={"C": c_grid[index], "converged": best.steps < max_iter},
        valid=[values[index]],
    )


class _AllAtOnce:
    """One multinomial regression; features (n, D) -> (1, n, C)."""

    def __init__(self, train: Part, regression: Callable[[], Any]) -> None:
        self._model = regression().fit(train[0].cpu().numpy(), train[1].cpu().numpy())
        self.num_classes = len(self._model.classes_)
        self.steps = int(max(self._model.n_iter_))

    def __call__(self, features: Tensor) -> Tensor:
        logits = torch.from_numpy(self._model.decision_function(features.cpu().numpy())).float()
        if logits.ndim == 1:  # two classes have one logit
            logits = torch.stack([-logits, logits], dim=1)
        return logits[None].to(features.device)


class _OneByOne:
    """A regression for each class against the rest; features (n, D) -> (1, n, C).

    A class that all training clips have, or none, has nothing to be fitted to: its score is 0.
    """

    def __init__(self, train: Part, regression: Callable[[], Any]) -> None:
        features, truth = train[0].cpu().numpy(), train[1].cpu().numpy()
        self.num_classes = truth.shape[1]
        varied = [c for c in range(self.num_classes) if 0 < truth[:, c].sum() < len(truth)]
        self._models = {c: regression().fit(features, truth[:, c] > 0) for c in varied}
        self.steps = max((int(max(model.n_iter_)) for model in self._models.values()), default=0)

    def __call__(self, features: Tensor) -> Tensor:
        logits = torch.zeros(1, len(features), self.num_classes)
        for column, model in self._models.items():
            logits[0, :, column] = torch.from_numpy(model.decision_function(features.cpu().numpy()))
        return logits.to(features.device)


# Penalty of `fit_few_shot` over the mean squared length of a standardised vector.
_FEW_SHOT_PENALTY = 0.1


def fit_few_shot(
    train: Part, valid: Part, *, num_classes: int, metric: Metric, seeds: range, shots: int
) -> Fitted:
    """Ridge regression of each class against the rest on `shots` clips of each, one draw a seed.

    The features are standardised by the drawn clips alone, and the penalty is fixed: so few labels
    leave nothing to choose it by. The validation part is only scored.

    Args:
        train: features (n, D) and class numbers (n,), each of the C classes there.
        valid: the same.
        num_classes: C.
        metric: of the validation scores.
        seeds: one draw each.
        shots: clips of each class.

    Raises:
        ValueError: if clips have several labels, or a class has fewer clips.
    """
    features, truth = train
    if truth.ndim == 2:
        raise ValueError("few_shot draws clips of each class, and these have several labels each")
    counts = truth.bincount(minlength=num_classes)
    if int(counts.min()) < shots:
        raise ValueError(
            f"few_shot wants {shots} training clips of each class, and one has "
            f"{int(counts.min())}; give shots={int(counts.min())}"
        )
    models = []
    for seed in seeds:
        drawn = np.random.default_rng(seed).random(len(truth))
        order = torch.from_numpy(drawn).argsort()
        own = [order[truth.cpu()[order] == number][:shots] for number in range(num_classes)]
        rows = torch.cat(own).to(features.device)
        models.append(_ridge(features[rows], truth[rows], num_classes=num_classes))
    return Fitted(
        scores=lambda features: torch.stack([model(features) for model in models]),
        chosen={"shots": shots, "draws": len(seeds)},
        valid=metric.score(torch.stack([model(valid[0]) for model in models]), valid[1]).tolist(),
    )


def _ridge(features: Tensor, truth: Tensor, *, num_classes: int) -> Callable[[Tensor], Tensor]:
    """Features (n, D) -> scores (n, C); solved in clips, as there are fewer of them than numbers.

    Source: Saunders et al. 1998 (ridge regression in dual variables).
    """
    mean, std = mean_and_std(features)
    x = (features.double() - mean) / std
    targets = 2 * F.one_hot(truth, num_classes).double() - 1
    gram, level = x @ x.T, targets.mean(dim=0)
    penalty = _FEW_SHOT_PENALTY * gram.diagonal().mean().clamp(min=1e-12)
    eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
    weights = x.T @ torch.linalg.solve(gram + penalty * eye, targets - level)
    return lambda others: (((others.double() - mean) / std) @ weights + level).float()


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
            each class's score is the neighbours' fraction of it.
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
