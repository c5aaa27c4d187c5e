"""Ridge regression with an exact score of every clip by a fit that has not seen it.

For few labels, where a validation part would take most of them: the penalty, and how sure a score
is, are told by leaving out one clip, or one group of clips, after the other, without fitting again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from ssmast.evaluation.fitting import mean_and_std

# Times the mean squared length of a standardised vector.
PENALTIES = tuple(float(10.0**power) for power in np.arange(-3, 2.01, 0.5))


class RidgeFit(NamedTuple):
    """One linear layer, and what it says of the clips that it was fitted to.

    Attributes:
        weight: (C, D) float64 on features as they come.
        bias: (C,) float64.
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

    Args:
        features: (n, D), finite.
        targets: zeros and ones (n, C).
        multi_label: clips have any number of classes, else exactly one.
        groups: clips of one name are left out together, as those of one recording are alike; None
            for one clip after the other.
        penalties: to choose from.

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
