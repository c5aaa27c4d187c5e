"""Frozen embeddings of a labelled set -> a score with its interval, by one of the protocols.

A protocol says how embeddings are made, what is fitted to them, and how often. How they differ, and
where each stands to the evaluation that it reproduces: docs/protocols.md.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssmast.evaluation.fitting import Fitted, PreparedSplit, Problem
from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.evaluation.linear import fit_linear
from ssmast.evaluation.metrics import (
    METRICS,
    Metric,
    bootstrap_interval,
    classes_scored,
    confusion_matrix,
    t_interval,
)
from ssmast.evaluation.results import Score
from ssmast.evaluation.simple import fit_few_shot, fit_knn, fit_logreg
from ssmast.evaluation.trained_heads import fit_attentive, fit_evar, fit_hear, fit_superb, fit_xares

# Seconds of the crops in the published evaluations, by the name of the built set.
# Source: EVAR's configurations; LAPE's loaders where it has one, EVAR's unit else.
EVAR_SECONDS = {
    "speech_commands_v1": 1.0, "speech_commands_v2": 1.0, "speech_commands_v2_12": 1.0,
    "voxceleb1": 8.2, "voxforge": 5.8, "nsynth_family": 4.0, "urbansound8k": 4.0, "esc50": 5.0,
    "fsd50k": 7.6358,
}  # fmt: skip
LAPE_SECONDS = EVAR_SECONDS | {"voxceleb1": 8.0, "voxforge": 6.0, "iemocap": 4.0}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to score an encoder.

    Attributes:
        fit: the probes of a split, one a seed; None for a protocol that trains the encoder too, so
            that there are no embeddings to fit to (`finetuned_probe.py`).
        num_seeds: repetitions where the user says nothing.
        first_seed: of them, to which the user's seed is added.
        standardise: features get mean 0 and std 1 on the training part.
        pooling: of the embeddings, where the user says nothing; empty for the encoder's own.
        layers: the same.
        crops: seconds by set: training and validation clips are embedded from one random crop, test
            clips from their head, shorter ones with zeros after them; None for whole clips.
        random_valid: fraction of the training clips that validates where a set has folds; 0: the
            fold after the test fold does.
        fixed_rate: one learning rate is given, which `lr=` replaces.
        shots: training clips drawn of each class, which `shots=` replaces; 0: all are used.
    """

    name: str
    fit: Callable[[Problem], Fitted] | None
    num_seeds: int = 1
    first_seed: int = 0
    standardise: bool = True
    pooling: str = ""
    layers: str = ""
    crops: dict[str, float] | None = None
    random_valid: float = 0.0
    fixed_rate: bool = False
    shots: int = 0

    @property
    def updates_encoder(self) -> bool:
        """Whether the encoder is trained too."""
        return self.fit is None

    def crop_seconds(self, built: str, asked: float) -> float:
        """Length of the crops on a set; 0 for whole clips.

        `built` is what `ssmast prepare task=` calls the set, empty for another; `asked` is 0 for
        the published length.

        Raises:
            ValueError: if the protocol crops and no length is known, or does not and one is asked.
        """
        if self.crops is None:
            if asked:
                raise ValueError(
                    f"protocol {self.name} embeds whole clips; leave crop_seconds={asked:g} out"
                )
            return 0.0
        if not asked and built not in self.crops:
            raise ValueError(
                f"protocol {self.name} cuts crops, and of this set no published length is known; "
                "give crop_seconds=SECONDS"
            )
        return asked or self.crops[built]


LINEAR = Protocol(name="linear", fit=fit_linear, num_seeds=5)
KNN = Protocol(name="knn", fit=fit_knn)
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        LINEAR,
        Protocol(name="logreg", fit=fit_logreg),
        KNN,
        Protocol(name="few_shot", fit=fit_few_shot, num_seeds=20, standardise=False, shots=8),
        Protocol(
            name="evar_strict", fit=fit_evar, num_seeds=3, first_seed=42, crops=EVAR_SECONDS,
            random_valid=0.1, fixed_rate=True,
        ),
        Protocol(name="hear_mlp", fit=fit_hear, first_seed=42, standardise=False),
        Protocol(
            name="xares", fit=fit_xares, first_seed=42, standardise=False, pooling="freq",
            fixed_rate=True,
        ),
        Protocol(
            name="superb", fit=fit_superb, standardise=False, pooling="mean", layers="blocks"
        ),
        Protocol(
            name="attentive", fit=fit_attentive, num_seeds=3, standardise=False,
            pooling="time16", layers="stages",
        ),
        Protocol(
            name="lape_finetune", fit=None, pooling="mean", layers="last", crops=LAPE_SECONDS,
            fixed_rate=True,
        ),
    )
}  # fmt: skip


def slots_of(pooling: str) -> int:
    """Parts of a clip that a pooling gives one after the other: 16 for time16, else 1."""
    number = pooling.removeprefix("time")
    return int(number) if pooling.startswith("time") and number.isdigit() else 1


def run_probe(
    features: Tensor,
    labelled: LabelledSet,
    *,
    protocol: Protocol = LINEAR,
    metric: Metric | None = None,
    num_seeds: int = 0,
    seed: int = 0,
    test_features: Tensor | None = None,
    widths: Sequence[int] = (),
    lr: float = 0.0,
    slots: int = 1,
) -> Score:
    """Fit on train, choose on valid, touch test once; for every split of the set.

    Row i of the features (n, D), and of `test_features` where the test parts are embedded
    otherwise, is of `labelled.clips[i]`. Where `metric` is None it is the set's own, where
    `num_seeds` is 0 the protocol's. See `Problem` for widths, lr and slots.

    Raises:
        ValueError: for a protocol that trains the encoder, or features that do not fit.
    """
    if protocol.fit is None:
        raise ValueError(
            f"protocol {protocol.name} trains the encoder; embeddings cannot be probed so"
        )
    if num_seeds < 0:
        raise ValueError(f"seeds must not be negative, got {num_seeds}")
    for given in (features, features if test_features is None else test_features):
        _check_features(given, labelled)
    metric = metric or metric_of(labelled)
    first = protocol.first_seed + seed
    seeds = range(first, first + (num_seeds or protocol.num_seeds))
    tally, started = Tally(labelled, metric), time.monotonic()
    for split in labelled.splits:
        prepared = PreparedSplit(
            *(features, labelled, split),
            standardise=protocol.standardise,
            test_features=test_features,
        )
        train, valid = prepared.part("train"), prepared.part("valid")
        fitted = protocol.fit(
            Problem(
                *(train, valid, len(prepared.classes), metric, seeds, widths, lr),
                shots=protocol.shots,
                slots=slots,
            )
        )
        tally.add(
            fitted.scores(prepared.part("test")[0]),
            prepared,
            valid=fitted.valid,
            chosen={"split": split.name, **fitted.chosen},
        )
    return tally.score(seed=seed, seconds=time.monotonic() - started)


def metric_of(labelled: LabelledSet, name: str = "") -> Metric:
    """The metric asked for, or the set's own, or what its labels suggest.

    Raises:
        ValueError: if there is none of that name, or it does not fit the set's labels.
    """
    fitting = [m.name for m in METRICS.values() if m.multi_label == labelled.multi_label]
    usual = fitting[0]  # accuracy, or mAP
    own = str(labelled.origin.get("metric") or usual)
    if own in METRICS and own not in fitting:
        own = usual  # another column than the set's own may have one label a clip
    if (name or own) not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {name or own!r}")
    metric = METRICS[name or own]
    if metric.name not in fitting:
        kind = "several labels" if labelled.multi_label else "one label"
        raise ValueError(
            f"the clips of {labelled.spec} have {kind} each, which metric={metric.name} does not "
            f"score; take one of {', '.join(fitting)}"
        )
    return metric


def chance(labelled: LabelledSet, metric: Metric, *, shuffled: bool = False) -> float:
    """The score of an encoder that knows nothing, mean over the splits.

    Where labels were `shuffled`, which class is the commonest of a part is an accident; on average
    every part has the frequencies of the whole set, so the commonest class of the set is the best
    guess.
    """
    if metric.name == "accuracy" and shuffled:
        return max(Counter(labelled.labels).values()) / len(labelled.labels)
    targets = labelled.targets()
    levels = [metric.chance(targets[split.train], targets[split.test]) for split in labelled.splits]
    return sum(levels) / len(levels)


class Tally:
    """Scores of a set's splits, put together to one."""

    def __init__(self, labelled: LabelledSet, metric: Metric) -> None:
        self._labelled, self._metric = labelled, metric
        self._others = [m for m in METRICS.values() if m.multi_label == metric.multi_label]
        self._others.remove(metric)
        size = len(labelled.classes)
        self._confusion = torch.zeros(size, size, dtype=torch.long)
        self._fold_scores: list[list[float]] = []
        self._valid: list[float] = []
        self._also: dict[str, list[float]] = {other.name: [] for other in self._others}
        self._scored: list[int] = []
        self._chosen: list[dict[str, Any]] = []
        self._right: list[Tensor] = []

    def add(
        self, logits: Tensor, prepared: PreparedSplit, *, valid: list[float], chosen: dict[str, Any]
    ) -> None:
        """One split.

        Scores (S, n, C) of its test part and validation metrics of the S models.
        """
        targets, truth = prepared.part("test")[1], prepared.truth("test")
        self._fold_scores.append(self._metric.score(logits, targets).tolist())
        for other in self._others:
            self._also[other.name].append(float(other.score(logits, targets).mean()))
        self._valid.append(sum(valid) / len(valid))
        self._chosen.append(chosen)
        if self._labelled.multi_label:
            self._scored.append(int(classes_scored(truth).sum()))
            return
        self._scored.append(len(truth.unique()))
        predictions = prepared.classes[logits.argmax(dim=2)].cpu()
        self._right.append((predictions == truth).float().mean(dim=0))
        self._confusion += confusion_matrix(predictions, truth, num_classes=len(self._confusion))

    def score(self, *, seed: int, seconds: float) -> Score:
        """All splits together.

        Raises:
            ValueError: if the test clips do not decide the metric.
        """
        folds = self._fold_scores
        by_seed = [sum(column) / len(column) for column in zip(*folds, strict=True)]
        by_fold = [sum(row) / len(row) for row in folds]
        has_folds = len(folds) > 1
        mean, ci95 = t_interval(by_fold if has_folds else by_seed)
        if not math.isfinite(mean):
            raise ValueError(
                f"{self._metric.name} of {self._labelled.spec} is {mean} on the test clips: no "
                "class has both clips that are of it and others, or one is separated without a "
                "mistake; choose another metric="
            )
        interval = None
        if self._metric.name == "accuracy":
            interval = bootstrap_interval(torch.cat(self._right), seed=seed)
        return Score(
            mean=mean,
            ci95=ci95,
            scores=by_seed,
            fold_scores=folds if has_folds else None,
            valid=sum(self._valid) / len(self._valid),
            test_interval95=interval,
            also={name: sum(values) / len(values) for name, values in self._also.items()},
            classes_scored=sum(self._scored) / len(self._scored),
            chosen=self._chosen,
            confusion=None if self._labelled.multi_label else self._confusion.tolist(),
            seconds=round(seconds, 2),
        )


def _check_features(features: Tensor, labelled: LabelledSet) -> None:
    if features.ndim != 2 or len(features) != len(labelled.clips):
        raise ValueError(
            f"features must be one row for each of {len(labelled.clips)} clips, "
            f"got shape {tuple(features.shape)}"
        )
    if not features.isfinite().all():
        raise ValueError("features must be finite, got NaN or infinity")
