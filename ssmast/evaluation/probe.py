"""Frozen embeddings and a task -> a score with its interval."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ssmast.evaluation.fitting import PreparedSplit
from ssmast.evaluation.labelled_set import Task
from ssmast.evaluation.metrics import (
    METRICS,
    Metric,
    bootstrap_interval,
    classes_scored,
    confusion_matrix,
    get_metric,
    t_interval,
)
from ssmast.evaluation.protocols import fit, get_protocol


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
        also: the other metrics of the same predictions, means; None for an infinite d'.
        classes_scored: classes that the test part has positives and negatives of, mean over folds;
            with one label a clip, those it has clips of.
        chosen: what the validation part decided, one entry a split.
        confusion: counts (true, predicted) added up over seeds and folds; None where clips have
            several labels.
        seconds: that it took.
    """

    mean: float
    ci95: float | None
    scores: list[float]
    fold_scores: list[list[float]] | None
    valid: float
    test_interval95: tuple[float, float] | None
    also: dict[str, float | None]
    classes_scored: float
    chosen: list[dict[str, Any]]
    confusion: list[list[int]] | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, as they come back from it."""
        return json.loads(json.dumps(asdict(self)))


def run_probe(
    features: Tensor,
    task: Task,
    *,
    protocol: str = "linear",
    metric: str = "",
    num_seeds: int = 0,
    seed: int = 0,
    test_features: Tensor | None = None,
    widths: Sequence[int] = (),
    lr: float = 0.0,
) -> ProbeResult:
    """Fit on train, choose on valid, touch test once; for every split of the task.

    Args:
        features: embeddings (n, D), row i of `task.clips[i]`.
        task: with its splits.
        protocol: one of `PROTOCOLS` that leave the encoder as it is.
        metric: one of `METRICS` that fits the task; empty for the task's own.
        num_seeds: repetitions; 0 for the protocol's own number.
        seed: of the first.
        test_features: of the test parts, where they are embedded otherwise; (n, D) as `features`.
        widths: lengths of the layers' vectors that lie one after the other in the features.
        lr: another rate for the protocols that have one fixed rate.

    Raises:
        ValueError: for an unknown protocol or metric, or features that do not fit.
    """
    settings = get_protocol(protocol)
    if settings.updates_encoder:
        raise ValueError(f"protocol {protocol} trains the encoder; embeddings cannot be probed so")
    if num_seeds < 0:
        raise ValueError(f"seeds must not be negative, got {num_seeds}")
    for given in (features, features if test_features is None else test_features):
        _check_features(given, task)
    by = metric_of(task, metric)
    tally, started = Tally(task, by), time.monotonic()
    for split in task.splits:
        prepared = PreparedSplit(
            features, task, split, standardise=settings.standardise, test_features=test_features
        )
        found = fit(
            protocol,
            prepared.part("train"),
            prepared.part("valid"),
            num_classes=len(prepared.classes),
            metric=by,
            num_seeds=num_seeds or settings.num_seeds,
            seed=seed,
            widths=widths,
            lr=lr,
        )
        test, targets = prepared.part("test")
        tally.add(
            found.scores(test), targets, truth=prepared.truth("test"), classes=prepared.classes,
            valid=found.valid, chosen={"split": split.name, **found.chosen},
        )  # fmt: skip
    return tally.result(seed=seed, seconds=time.monotonic() - started)


def metric_of(task: Task, name: str = "") -> Metric:
    """The metric asked for, or the task's own.

    Raises:
        ValueError: if there is none of that name, or it does not fit the task's labels.
    """
    metric = get_metric(name or task.metric)
    if metric.multi_label != task.multi_label:
        fitting = [m.name for m in METRICS.values() if m.multi_label == task.multi_label]
        kind = "several labels" if task.multi_label else "one label"
        raise ValueError(
            f"the clips of {task.spec} have {kind} each, which metric={metric.name} does not "
            f"score; take one of {', '.join(fitting)}"
        )
    return metric


class Tally:
    """Scores of a task's splits, put together to a result."""

    def __init__(self, task: Task, metric: Metric) -> None:
        self._task, self._metric = task, metric
        self._others = [
            m for m in METRICS.values() if m.multi_label == metric.multi_label and m != metric
        ]
        size = len(task.classes)
        self._confusion = torch.zeros(size, size, dtype=torch.long)
        self._fold_scores: list[list[float]] = []
        self._valid: list[float] = []
        self._also: dict[str, list[float]] = {other.name: [] for other in self._others}
        self._scored: list[int] = []
        self._chosen: list[dict[str, Any]] = []
        self._right: list[Tensor] = []

    def add(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        truth: Tensor,
        classes: Tensor,
        valid: list[float],
        chosen: dict[str, Any],
    ) -> None:
        """One split.

        Args:
            logits: (S, n, C) scores of the test part.
            targets: of the test part, as the probe numbers classes.
            truth: the same in numbers of all classes.
            classes: number among all classes of each of the C.
            valid: validation metric of the S models.
            chosen: for the result.
        """
        self._fold_scores.append(self._metric.score(logits, targets).tolist())
        for other in self._others:
            self._also[other.name].append(float(other.score(logits, targets).mean()))
        self._valid.append(sum(valid) / len(valid))
        self._chosen.append(chosen)
        if self._task.multi_label:
            self._scored.append(int(classes_scored(truth).sum()))
            return
        self._scored.append(len(truth.unique()))
        predictions = classes[logits.argmax(dim=2)].cpu()
        self._right.append((predictions == truth).float().mean(dim=0))
        self._confusion += confusion_matrix(predictions, truth, num_classes=len(self._confusion))

    def result(self, *, seed: int, seconds: float) -> ProbeResult:
        """All splits together; `seed` is that of the bootstrap."""
        folds = self._fold_scores
        by_seed = [sum(column) / len(column) for column in zip(*folds, strict=True)]
        by_fold = [sum(row) / len(row) for row in folds]
        has_folds = len(folds) > 1
        mean, ci95 = t_interval(by_fold if has_folds else by_seed)
        also = {name: sum(values) / len(values) for name, values in self._also.items()}
        is_accuracy = self._metric.name == "accuracy"
        return ProbeResult(
            mean=mean,
            ci95=ci95,
            scores=by_seed,
            fold_scores=folds if has_folds else None,
            valid=sum(self._valid) / len(self._valid),
            test_interval95=(
                bootstrap_interval(torch.cat(self._right), seed=seed) if is_accuracy else None
            ),
            also={name: value if math.isfinite(value) else None for name, value in also.items()},
            classes_scored=sum(self._scored) / len(self._scored),
            chosen=self._chosen,
            confusion=None if self._task.multi_label else self._confusion.tolist(),
            seconds=round(seconds, 2),
        )


def _check_features(features: Tensor, task: Task) -> None:
    if features.ndim != 2 or len(features) != len(task.clips):
        raise ValueError(
            f"features must be one row for each of {len(task.clips)} clips, "
            f"got shape {tuple(features.shape)}"
        )
    if not features.isfinite().all():
        raise ValueError("features must be finite, got NaN or infinity")
