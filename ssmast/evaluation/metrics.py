"""Scores of predictions: accuracy, mAP, ROC AUC, d', their chance levels and their intervals.

Every score is vectorised over any number of models: it takes scores (..., n, C), higher is surer,
and class numbers (n,), or targets (n, C) of zeros and ones where a clip has any number of labels.
Clips of equal score share one threshold, as in scikit-learn, so the order of clips never matters.

Of several labels: a class without a positive clip has no average precision, one without a positive
or a negative clip no AUC; per class they are NaN, and the macro means leave them out.
(scikit-learn calls such an average precision 0, which lowers the mean.) `classes_scored` counts
what is left. Average precision and AUC are our own because scikit-learn's, equal to 2e-16, take 3
and 6 times as long for the grid of models that a linear probe chooses from.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Area under the precision-recall curve of each class, as a sum over thresholds.

    Returns:
        (..., C) float64; NaN for a class without positives.

    Source: scikit-learn's `average_precision_score`; AudioSet, FSD50K and VGGSound report its mean.
    """
    return _by_model(_average_precision, scores, targets)


def roc_auc(scores: Tensor, targets: Tensor) -> Tensor:
    """Chance that a positive clip scores above a negative one of each class; ties count half.

    Returns:
        (..., C) float64; NaN for a class without positives or without negatives.
    """
    return _by_model(_roc_auc, scores, targets)


def mean_average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Macro mAP (...): the mean of `average_precision` over the classes that have positives."""
    return average_precision(scores, targets).nanmean(dim=-1)


def mean_roc_auc(scores: Tensor, targets: Tensor) -> Tensor:
    """Macro ROC AUC (...): the mean of `roc_auc` over the classes that have one."""
    return roc_auc(scores, targets).nanmean(dim=-1)


def d_prime(scores: Tensor, targets: Tensor) -> Tensor:
    """The d' of the mean AUC (...): sqrt(2) z(mean over classes of AUC), z the normal quantile.

    Source: as AST and VGGSound report it. `mean_d_prime` is HEAR's, usually larger.
    """
    return separation(mean_roc_auc(scores, targets))


def mean_d_prime(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean of the classes' own d' (...): mean over classes of sqrt(2) z(AUC of the class).

    Infinite as soon as one class is separated without a mistake.

    Source: HEAR (Turian et al. 2022). `d_prime` is that of AST and VGGSound.
    """
    return separation(roc_auc(scores, targets)).nanmean(dim=-1)


def separation(auc: Tensor) -> Tensor:
    """The d' of an AUC: how many std apart two normal distributions of equal width would lie.

    >>> separation(torch.tensor([0.5, 0.9213503964748575], dtype=torch.float64)).round(decimals=6)
    tensor([0., 2.], dtype=torch.float64)
    """
    return math.sqrt(2) * torch.special.ndtri(auc)


def classes_scored(targets: Tensor) -> Tensor:
    """Which classes of (n, C) targets have both a positive and a negative clip, bool (C,)."""
    positives = targets.sum(dim=0)
    return (positives > 0) & (positives < len(targets))


def _by_model(
    function: Callable[[Tensor, Tensor], Tensor], scores: Tensor, targets: Tensor
) -> Tensor:
    """`function` of (C, n) scores for one model after the other, which bounds the memory."""
    if scores.shape[-2:] != targets.shape:
        raise ValueError(
            f"targets must be (clips, classes) as the last two dimensions of scores are, "
            f"{tuple(scores.shape[-2:])}, got {tuple(targets.shape)}"
        )
    if not scores.isfinite().all():
        raise ValueError("scores must be finite, got NaN or infinity")
    positive = targets.T.to(torch.float64)
    models = scores.flatten(0, -3) if scores.ndim > 2 else scores[None]
    found = torch.stack([function(model.T.contiguous(), positive) for model in models])
    return found.reshape(*scores.shape[:-2], targets.shape[1])


def _average_precision(scores: Tensor, positive: Tensor) -> Tensor:
    values, order = scores.sort(dim=1, descending=True)
    positive = positive.gather(1, order)
    _, last = _ties(values)
    found = positive.cumsum(dim=1).gather(1, last)  # positives at this threshold and above
    precision = found / (last + 1)
    return (precision * positive).sum(dim=1) / positive.sum(dim=1)


def _roc_auc(scores: Tensor, positive: Tensor) -> Tensor:
    values, order = scores.sort(dim=1)
    positive = positive.gather(1, order)
    first, last = _ties(values)
    rank = (first + last).double() / 2 + 1  # mean rank of those that tie
    num_positive = positive.sum(dim=1)
    num_negative = positive.shape[1] - num_positive
    # Mann-Whitney: ranks of the positives, less what they would be among themselves.
    wins = (rank * positive).sum(dim=1) - num_positive * (num_positive + 1) / 2
    return wins / (num_positive * num_negative)


def _ties(values: Tensor) -> tuple[Tensor, Tensor]:
    """First and last position of the equal values around each, of sorted (C, n)."""
    changes = values[:, 1:] != values[:, :-1]
    edge = torch.ones_like(values[:, :1], dtype=torch.bool)
    position = torch.arange(values.shape[1], device=values.device).expand_as(values)
    first = torch.where(torch.cat([edge, changes], dim=1), position, 0).cummax(dim=1).values
    is_last = torch.cat([changes, edge], dim=1)
    last = torch.where(is_last, position, values.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    return first, last


def accuracy(scores: Tensor, targets: Tensor) -> Tensor:
    """Fraction of clips whose highest score is the right class.

    Args:
        scores: (..., n, C), one row a clip, higher is surer.
        targets: (n,) class numbers; -1 stands for a class the model does not know, never right.

    Returns:
        (...) float32.
    """
    return (scores.argmax(dim=-1) == targets).float().mean(dim=-1)


def balanced_accuracy(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean recall of the classes present in `targets`; shapes as `accuracy`."""
    right = (scores.argmax(dim=-1) == targets).float()
    present, inverse, counts = targets.unique(return_inverse=True, return_counts=True)
    found = torch.zeros(*right.shape[:-1], len(present), device=right.device)
    found.index_add_(-1, inverse, right)
    return (found / counts).mean(dim=-1)


def _commonest_class(train: Tensor, scored: Tensor) -> float:
    """Accuracy of naming the most frequent class of the training part for every scored clip.

    Ties go to the class that is rarest among the scored clips: a guess knows no better.
    """
    counts = torch.bincount(train)
    guesses = (counts == counts.max()).nonzero().flatten()
    return min(float((scored == guess).double().mean()) for guess in guesses)


def _one_of_trained(train: Tensor, scored: Tensor) -> float:
    return 1 / len(train.unique())


def _mean_frequency(train: Tensor, scored: Tensor) -> float:
    """Average precision of a guess: the frequency of a class, mean over those that have clips."""
    frequency = scored.double().mean(dim=0)
    return float(frequency[frequency > 0].mean())


@dataclass(frozen=True)
class Metric:
    """A score to be maximised.

    Attributes:
        score: (..., n, C) scores and the targets -> (...).
        chance: targets of the training part and of the scored clips -> the score of an encoder
            that knows nothing.
        multi_label: targets are (n, C) zeros and ones instead of (n,) class numbers.
    """

    name: str
    score: Callable[[Tensor, Tensor], Tensor]
    chance: Callable[[Tensor, Tensor], float]
    multi_label: bool = False


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, _commonest_class),
        Metric("balanced_accuracy", balanced_accuracy, _one_of_trained),
        Metric("map", mean_average_precision, _mean_frequency, multi_label=True),
        Metric("auc", mean_roc_auc, lambda *_: 0.5, multi_label=True),
        Metric("d_prime", d_prime, lambda *_: 0.0, multi_label=True),
        Metric("mean_d_prime", mean_d_prime, lambda *_: 0.0, multi_label=True),
    )
}


def confusion_matrix(predictions: Tensor, targets: Tensor, *, num_classes: int) -> Tensor:
    """Counts (true class, predicted class); clips of unknown class (-1) are left out.

    Of class numbers (..., n), whose leading dimensions (seeds) are added up, and true ones (n,).
    """
    targets = targets.expand_as(predictions)
    known = targets >= 0
    cells = targets[known] * num_classes + predictions[known]
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def t_interval(values: list[float]) -> tuple[float, float | None]:
    """Mean and half-width of Student's 95 % interval of the mean; None for a single value.

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
    half_width = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1)
    return mean, float(half_width) / math.sqrt(len(values))


def bootstrap_interval(right: Tensor, *, seed: int) -> tuple[float, float]:
    """Ends of the 95 % percentile bootstrap interval of a mean over clips, by scipy.

    How far a fresh test set might move it. Clips of one speaker or recording are not independent,
    so the truth is wider still.

    Of the score of each clip (n,), e.g. the fraction of seeds that were right.
    """
    from scipy.stats import bootstrap

    values = right.double().cpu().numpy()
    if len(values) == 1:  # nothing to resample
        return float(values[0]), float(values[0])
    found = bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", batch=100,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
