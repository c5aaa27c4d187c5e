"""Frozen embeddings and a task -> a score with its interval."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ssmast.evaluation.classifier import Fitted, Part
from ssmast.evaluation.knn import fit_knn
from ssmast.evaluation.linear import GRID, LR_GRID, fit_linear
from ssmast.evaluation.logreg import fit_logreg
from ssmast.evaluation.metrics import (
    bootstrap_interval,
    confusion_matrix,
    get_metric,
    t_interval,
)
from ssmast.evaluation.splits import Split
from ssmast.evaluation.tasks import Task

PROTOCOLS = ("linear", "logreg", "knn", "evar")


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What a probe of one task found.

    Attributes:
        mean: test metric, mean over seeds, of folds over folds too.
        ci95: half-width of the 95 % t interval over seeds, with several folds over folds; None
            for a single value.
        scores: test metric of each seed, over folds the mean.
        fold_scores: (folds, seeds), or None without folds.
        valid: validation metric of what was chosen, mean.
        test_interval95: where the accuracy may lie on other test clips (bootstrap over clips);
            None for another metric.
        chosen: what the validation part decided, one entry a split.
        confusion: counts (true, predicted) added up over seeds and folds.
        seconds: that it took.
    """

    mean: float
    ci95: float | None
    scores: list[float]
    fold_scores: list[list[float]] | None
    valid: float
    test_interval95: tuple[float, float] | None
    chosen: list[dict[str, Any]]
    confusion: list[list[int]]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, as they come back from it."""
        return json.loads(json.dumps(asdict(self)))


def run_probe(
    features: Tensor,
    task: Task,
    *,
    protocol: str = "linear",
    metric: str = "accuracy",
    num_seeds: int = 5,
    seed: int = 0,
) -> ProbeResult:
    """Fit on train, choose on valid, touch test once; for every split of the task.

    Args:
        features: embeddings (n, D), row i of `task.clips[i]`.
        task: with its splits.
        protocol: "linear" (Adam with a cosine, learning rate and L2 penalty chosen), "logreg"
            (L-BFGS, C chosen), "knn" (k chosen), or "evar" (Adam at a constant rate, best epoch).
        metric: "accuracy" or "balanced_accuracy".
        num_seeds: repetitions; logreg and knn have no chance in them and run once.
        seed: of the first.

    Raises:
        ValueError: for an unknown protocol or metric, or features that do not fit.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if num_seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {num_seeds}")
    if features.ndim != 2 or len(features) != len(task.clips):
        raise ValueError(
            f"features must be one row for each of {len(task.clips)} clips, "
            f"got shape {tuple(features.shape)}"
        )
    if not features.isfinite().all():
        raise ValueError("features must be finite, got NaN or infinity")
    score = get_metric(metric).score
    started = time.monotonic()
    num_classes = len(task.classes)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)
    fold_scores, valid, chosen, right = [], [], [], []
    for split in task.splits:
        prepared = _Prepared(features, task, split)
        fitted = prepared.fit(protocol, metric=metric, num_seeds=num_seeds, seed=seed)
        test_features, targets = prepared.part("test")
        logits = fitted.scores(test_features)  # (S, n, C of this split)
        fold_scores.append(score(logits, targets).tolist())
        valid.append(sum(fitted.valid) / len(fitted.valid))
        chosen.append({"split": split.name, **fitted.chosen})
        predictions = prepared.classes[logits.argmax(dim=2)]  # in numbers of all classes
        truth = prepared.numbers[torch.from_numpy(split.test)]
        right.append((predictions.cpu() == truth).float().mean(dim=0))
        confusion += confusion_matrix(predictions.cpu(), truth, num_classes=num_classes)
    by_seed = [sum(column) / len(column) for column in zip(*fold_scores, strict=True)]
    by_fold = [sum(row) / len(row) for row in fold_scores]
    has_folds = len(fold_scores) > 1
    mean, ci95 = t_interval(by_fold if has_folds else by_seed)
    return ProbeResult(
        mean=mean,
        ci95=ci95,
        scores=by_seed,
        fold_scores=fold_scores if has_folds else None,
        valid=sum(valid) / len(valid),
        test_interval95=(
            bootstrap_interval(torch.cat(right), seed=seed) if metric == "accuracy" else None
        ),
        chosen=chosen,
        confusion=confusion.tolist(),
        seconds=round(time.monotonic() - started, 2),
    )


class _Prepared:
    """One split with features standardised on its training part and classes numbered by it."""

    def __init__(self, features: Tensor, task: Task, split: Split) -> None:
        self.split, self.features = split, features
        number = {name: index for index, name in enumerate(task.classes)}
        self.numbers = torch.tensor([number[label] for label in task.labels])
        train = torch.from_numpy(split.train)
        device = features.device
        # Classes of this training part, as numbers of all classes; -1 for those it lacks.
        self.classes = self.numbers[train].unique().to(device)
        self.targets = torch.full((len(task.classes),), -1)
        self.targets[self.classes.cpu()] = torch.arange(len(self.classes))
        part = features[train.to(device)].double()
        self.mean, std = part.mean(dim=0), part.std(dim=0, correction=0)
        # A feature that does not vary but for rounding must not be blown up.
        constant = std <= 1e-6 * self.mean.abs() + 1e-12
        self.std = torch.where(constant, 1.0, std)

    def part(self, name: str) -> Part:
        """Standardised features and class numbers of train, valid or test."""
        where = torch.from_numpy(self.split.parts()[name])
        device = self.features.device
        features = (self.features[where.to(device)].double() - self.mean) / self.std
        return features.float(), self.targets[self.numbers[where]].to(device)

    def fit(self, protocol: str, *, metric: str, num_seeds: int, seed: int) -> Fitted:
        """The probe, which sees train and valid only."""
        train, valid = self.part("train"), self.part("valid")
        num_classes, by = len(self.classes), get_metric(metric)
        if protocol == "logreg":
            return fit_logreg(train, valid, num_classes=num_classes, metric=by)
        if protocol == "knn":
            return fit_knn(train, valid, num_classes=num_classes, metric=by)
        return fit_linear(
            train,
            valid,
            num_classes=num_classes,
            metric=by,
            num_seeds=num_seeds,
            seed=seed,
            grid=LR_GRID if protocol == "evar" else GRID,
            num_epochs=200 if protocol == "evar" else 50,
            patience=20 if protocol == "evar" else None,
        )
