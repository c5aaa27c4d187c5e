"""Probes without a learning rate: logistic regression, nearest neighbours, ridge regression.

Logistic regression cross-checks the linear probe; nearest neighbours train nothing, so nothing but
the embedding is measured; ridge regression is for few labelled clips.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from ssmast.evaluation.fitting import Fitted, Problem, mean_and_std

_MOST_STEPS = 1000  # of L-BFGS
C_GRID = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)


def fit_logreg(of: Problem) -> Fitted:
    """scikit-learn's LogisticRegression, its C chosen on `valid`, fitted on `train` alone.

    Features are standardised; the stronger regularisation wins ties. Where a clip has several
    labels, every class is fitted against the rest; one that all training clips have, or none, has
    nothing to be fitted to and one score for every clip.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    def scores(model: Any, features: Tensor) -> Tensor:
        """(1, n, C)."""
        logits = torch.from_numpy(model.decision_function(features.cpu().numpy())).float()
        logits = logits.reshape(len(features), -1).to(features.device)
        if logits.shape[1] < of.num_classes:  # two classes have one logit
            logits = torch.cat([-logits, logits], dim=1)
        return logits[None]

    x, y = of.train[0].cpu().numpy(), of.train[1].cpu().numpy()
    models, values = [], []
    for c in C_GRID:
        model: Any = LogisticRegression(C=c, max_iter=_MOST_STEPS)
        model = OneVsRestClassifier(model) if of.multi_label else model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # ends too early: reported in `chosen`
            models.append(model.fit(x, y))
        values.append(float(of.metric.score(scores(model, of.valid[0]), of.valid[1])))
    index = values.index(max(values))
    fitted = models[index].estimators_ if of.multi_label else [models[index]]
    steps = max((max(one.n_iter_) for one in fitted if hasattr(one, "n_iter_")), default=0)
    return Fitted(
        scores=partial(scores, models[index]),
        chosen={"C": C_GRID[index], "converged": bool(steps < _MOST_STEPS)},
        valid=[values[index]],
    )


K_GRID = (1, 3, 5, 10, 20, 50, 100, 200)


def fit_knn(of: Problem, *, k_grid: tuple[int, ...] = K_GRID, temperature: float = 0.07) -> Fitted:
    """Vote of the k training clips of highest cosine similarity, by exp(similarity / temperature).

    The features are standardised; k is chosen on `valid`, the smaller one winning ties. Where a
    clip has several labels, each class's score is the neighbours' fraction of it.

    Source: Wu et al. 2018 (instance discrimination), section 3.4; the defaults of DINO.
    """
    import faiss

    features, truth = of.train
    truth = (truth if of.multi_label else F.one_hot(truth, of.num_classes).float()).cpu()
    index = faiss.IndexFlatIP(features.shape[1])  # of unit vectors: the cosine
    index.add(F.normalize(features, dim=1).cpu().numpy())
    grid = tuple(k for k in k_grid if k <= len(truth))

    def votes(features: Tensor, ks: tuple[int, ...]) -> Tensor:
        """(K, n, C)."""
        parts = []
        for part in F.normalize(features, dim=1).cpu().split(1024):  # bounds (n, k, C)
            similarity, neighbours = map(torch.from_numpy, index.search(part.numpy(), max(ks)))
            # Relative to the nearest one: no weight of a clip can overflow or all of them vanish.
            weights = ((similarity - similarity[:, :1]) / temperature).exp()
            tally = torch.zeros(len(ks), len(part), of.num_classes)
            for row, k in enumerate(ks):
                near = weights[:, :k] / weights[:, :k].sum(dim=1, keepdim=True)
                tally[row] = torch.einsum("nk,nkc->nc", near, truth[neighbours[:, :k]])
            parts.append(tally)
        return torch.cat(parts, dim=1).to(features.device)

    scores = of.metric.score(votes(of.valid[0], grid), of.valid[1]).tolist()
    chosen = grid[scores.index(max(scores))]
    return Fitted(
        scores=lambda features: votes(features, (chosen,)),
        chosen={"k": chosen, "temperature": temperature},
        valid=[max(scores)],
    )


# Penalty of `fit_few_shot` over the mean squared length of a standardised vector.
_FEW_SHOT_PENALTY = 0.1


def fit_few_shot(of: Problem) -> Fitted:
    """Ridge regression of each class against the rest on `shots` clips of each, one draw a seed.

    The features are standardised by the drawn clips alone, and the penalty is fixed: so few labels
    leave nothing to choose it by. The validation part is only scored.

    Raises:
        ValueError: if clips have several labels, or a class has fewer clips.
    """
    if of.multi_label:
        raise ValueError("few_shot draws clips of each class, and these have several labels each")
    features, truth = of.train
    fewest = int(truth.bincount(minlength=of.num_classes).min())
    if fewest < of.shots:
        raise ValueError(
            f"few_shot wants {of.shots} training clips of each class, and one has {fewest}; give "
            f"shots={fewest}"
        )
    models = []
    for seed in of.seeds:
        drawn = np.random.default_rng(seed).random(len(truth))
        order = torch.from_numpy(drawn).argsort()
        own = [order[truth.cpu()[order] == number][: of.shots] for number in range(of.num_classes)]
        rows = torch.cat(own).to(features.device)
        models.append(_ridge(features[rows], 2 * F.one_hot(truth[rows], of.num_classes) - 1))

    def scores(features: Tensor) -> Tensor:
        return torch.stack([model(features) for model in models])

    return Fitted(
        scores=scores,
        chosen={"shots": of.shots, "draws": len(of.seeds)},
        valid=of.metric.score(scores(of.valid[0]), of.valid[1]).tolist(),
    )


def _ridge(features: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Features (n, D) -> scores (n, C) by scikit-learn's ridge regression."""
    from sklearn.linear_model import Ridge

    mean, std = mean_and_std(features)
    x = (features.double() - mean) / std
    penalty = _FEW_SHOT_PENALTY * float(x.square().sum(dim=1).mean().clamp(min=1e-12))
    model = Ridge(alpha=penalty).fit(x.cpu().numpy(), targets.cpu().numpy())
    weight = torch.from_numpy(model.coef_.T.copy()).to(x)
    level = torch.from_numpy(model.intercept_).to(x)
    return lambda others: (((others.double() - mean) / std) @ weight + level).float()


# Times the mean squared length of a standardised vector.
PENALTIES = tuple(float(10.0**power) for power in np.arange(-3, 2.01, 0.5))


class RidgeFit(NamedTuple):
    """One linear layer, and what it says of the clips that it was fitted to.

    Attributes:
        weight: (C, D) float64 on features as they come; `bias` (C,) as well.
        left_out: logits (n, C) float64 of each clip, by a fit without its group.
        penalty: that was chosen, in units of `PENALTIES`.
    """

    weight: Tensor
    bias: Tensor
    left_out: Tensor
    penalty: float


def fit_ridge(
    features: Tensor,
    targets: Tensor,
    *,
    multi_label: bool,
    groups: Sequence[str] | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> RidgeFit:
    """Ridge regression of each class against the rest, its outputs scaled to be logits.

    Features are standardised. The penalty is the one whose scores of left-out clips have the lowest
    cross-entropy, after one scale and one offset that make them logits; so probabilities are those
    of clips that were not fitted.

    Of finite features (n, D) and targets of zeros and ones (n, C), any number of ones a clip where
    `multi_label`, else one. Clips of one of the `groups` are left out together, as those of one
    recording are alike; where there are none, one clip after the other.

    Raises:
        ValueError: if there are fewer than two groups, so that nothing can be left out.

    Source: Golub, Heath and Wahba 1979 for leaving out one; blocks of the hat matrix for groups;
    Platt 1999 for the scale and the offset.
    """
    names = [str(i) for i in range(len(features))] if groups is None else list(groups)
    if len(set(names)) < 2:
        raise ValueError(f"leaving clips out needs two or more groups, found {sorted(set(names))}")
    mean, std = mean_and_std(features)
    x, y = (features.double() - mean) / std, targets.double()
    level = y.mean(dim=0)
    # Of few clips the n x n products, of many the D x D ones: the same hat matrix.
    wide = len(x) <= x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    values = values.clamp(min=0)
    size = float(x.square().sum(dim=1).mean())
    # (n, r): the hat matrix is basis diag(s / (s + p)) basis'.
    basis = vectors if wide else x @ vectors / values.clamp(min=1e-9 * float(values[-1])).sqrt()
    best: tuple[float, Tensor, Tensor, float] | None = None
    for penalty in penalties:
        shrunk = values / (values + penalty * max(size, 1e-12))
        held = _left_out(basis, shrunk, y, names)
        scale, loss = _scaling(held, y, multi_label=multi_label)
        if best is None or loss < best[0]:
            best = (loss, scale, held, penalty)
    assert best is not None
    _, (slope, offset), held, penalty = best
    inverse = 1 / (values + penalty * max(size, 1e-12))
    if wide:
        weight = x.T @ (vectors * inverse) @ (vectors.T @ (y - level))
    else:
        weight = (vectors * inverse) @ (vectors.T @ (x.T @ (y - level)))
    weight = slope * weight.T / std
    bias = slope * level + offset - weight @ mean
    return RidgeFit(weight, bias, slope * held + offset, penalty)


def _left_out(basis: Tensor, shrunk: Tensor, targets: Tensor, groups: Sequence[str]) -> Tensor:
    """Scores (n, C) of each group by the fit to all others.

    With hat matrix H and residuals r, those of a group that was left out are (I - H_gg)^-1 r_g.
    """
    level = targets.mean(dim=0)
    residual = targets - level - (basis * shrunk) @ (basis.T @ (targets - level))
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(groups):
        rows.setdefault(name, []).append(row)
    found = torch.empty_like(targets)
    for own in rows.values():
        part = basis[own]
        hat = (part * shrunk) @ part.T + 1 / len(targets)  # 1/n: of the level, which is fitted too
        rest = torch.eye(len(own), dtype=hat.dtype) - hat
        found[own] = targets[own] - torch.linalg.solve(rest, residual[own])
    return found


def _scaling(scores: Tensor, targets: Tensor, *, multi_label: bool) -> tuple[Tensor, float]:
    """Slope and offset (2,) that make scores logits, and the cross-entropy then, in nats."""

    def loss(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(numbers, requires_grad=True)
        logits = free[0].exp() * scores + free[1]
        if multi_label:
            value = F.binary_cross_entropy_with_logits(logits, targets)
        else:
            value = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
        (slopes,) = torch.autograd.grad(value, free)
        return float(value.detach()), slopes.numpy()

    start = np.array([np.log(4.0), -2.0 if multi_label else 0.0])
    # Clips that are told apart without error would ask for a slope without end.
    found = minimize(loss, start, jac=True, bounds=[(-5.0, 5.0), (-50.0, 50.0)])
    slope, offset = found.x
    return torch.tensor([np.exp(slope), offset if multi_label else 0.0]), float(found.fun)
