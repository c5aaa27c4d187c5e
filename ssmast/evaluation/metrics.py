"""Scores of predictions, each vectorised over any number of models at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssmast.evaluation import multi_label


def accuracy(scores: Tensor, targets: Tensor) -> Tensor:
    """Share of clips whose highest score is the right class.

    Args:
        scores: (..., n, C), one row a clip, higher is surer.
        targets: (n,) class numbers; -1 stands for a class the model does not know, never right.

    Returns:
        (...) float32.
    """
    return (scores.argmax(dim=-1) == targets).float().mean(dim=-1)


def balanced_accuracy(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean over the classes present in `targets` of the share found right; shapes as `accuracy`."""
    right = (scores.argmax(dim=-1) == targets).float()
    present, inverse, counts = targets.unique(return_inverse=True, return_counts=True)
    found = torch.zeros(*right.shape[:-1], len(present), device=right.device)
    found.index_add_(-1, inverse, right)
    return (found / counts).mean(dim=-1)


@dataclass(frozen=True)
class Metric:
    """A score to be maximised.

    Attributes:
        name: what users write.
        score: (..., n, C) scores and the targets -> (...).
        multi_label: targets are (n, C) zeros and ones instead of (n,) class numbers.
    """

    name: str
    score: Callable[[Tensor, Tensor], Tensor]
    multi_label: bool = False


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy),
        Metric("balanced_accuracy", balanced_accuracy),
        Metric("map", multi_label.mean_average_precision, multi_label=True),
        Metric("auc", multi_label.mean_roc_auc, multi_label=True),
        Metric("d_prime", multi_label.d_prime, multi_label=True),
        Metric("mean_d_prime", multi_label.mean_d_prime, multi_label=True),
    )
}


def get_metric(name: str) -> Metric:
    """The metric called `name`.

    Raises:
        ValueError: if there is none, listing those there are.
    """
    if name not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {name!r}")
    return METRICS[name]


def confusion_matrix(predictions: Tensor, targets: Tensor, *, num_classes: int) -> Tensor:
    """Counts (true class, predicted class); clips of unknown class (-1) are left out.

    Args:
        predictions: (..., n) class numbers; leading dimensions (seeds) are added up.
        targets: (n,) class numbers.
        num_classes: C.
    """
    targets = targets.expand_as(predictions)
    known = targets >= 0
    cells = targets[known] * num_classes + predictions[known]
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def worst_pairs(
    confusion: list[list[int]], classes: list[str], *, limit: int = 8
) -> list[dict[str, Any]]:
    """The most frequent mistakes, worst first: true, predicted, count, share of the true class."""
    pairs = []
    for true, row in enumerate(confusion):
        total = max(sum(row), 1)
        pairs += [
            {
                "true": classes[true],
                "predicted": classes[column],
                "count": int(count),
                "share": count / total,
            }
            for column, count in enumerate(row)
            if column != true and count > 0
        ]
    pairs.sort(key=lambda pair: (-pair["share"], -pair["count"], pair["true"], pair["predicted"]))
    return pairs[:limit]


def t_interval(values: list[float], *, confidence: float = 0.95) -> tuple[float, float | None]:
    """Mean and half-width of Student's t interval of the mean; None for a single value.

    >>> mean, half = t_interval([0.8, 0.9, 1.0])
    >>> round(mean, 3), round(half, 3)
    (0.9, 0.248)
    """
    from scipy.stats import t

    if not values:
        raise ValueError("an interval needs at least one value, got none")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    quantile = float(t.ppf(0.5 + confidence / 2, len(values) - 1))
    return mean, quantile * math.sqrt(variance / len(values))


def bootstrap_interval(
    right: Tensor, *, seed: int, num_draws: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """Ends of the bootstrap interval of a mean over clips: how far a fresh test set might move it.

    Args:
        right: (n,) score of each clip, e.g. its share of seeds that were right.
        seed: of the resampling.
        num_draws: resampled test sets.
        confidence: share of them between the two ends.

    Clips of one speaker or recording are not independent, so the truth is wider still.
    """
    generator = torch.Generator().manual_seed(seed)
    right = right.double().cpu()
    means = torch.stack(
        [
            right[torch.randint(len(right), (len(right),), generator=generator)].mean()
            for _ in range(num_draws)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
