"""What a probe is fitted to and what comes out; the code that fits never sees the test part.

One split of a labelled set: features standardised, classes numbered by the training part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.evaluation.metrics import Metric
from ssmast.splits import Split

# Features (n, D) float32, and class numbers (n,) int64 or, where a clip may have several labels,
# zeros and ones (n, C) float32.
Part = tuple[Tensor, Tensor]


class Problem(NamedTuple):
    """What a protocol fits its probes to: the training and the validation part of one split.

    Attributes:
        train: features and targets; of class numbers, each of the C classes is there.
        valid: the same; class -1 (not in train) is never right.
        metric: what validation decides by.
        widths: lengths of the layers' vectors that lie one after the other in the features; empty
            for one layer.
        lr: asked for in place of the protocol's fixed rate; 0 for that one.
        shots: labelled clips of each class, where few are drawn.
        slots: parts of a clip whose vectors lie one after the other in each layer's.
    """

    train: Part
    valid: Part
    num_classes: int
    metric: Metric
    seeds: range = range(1)
    widths: Sequence[int] = ()
    lr: float = 0.0
    shots: int = 0
    slots: int = 1

    @property
    def dim(self) -> int:
        """D."""
        return self.train[0].shape[1]

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several labels."""
        return self.train[1].ndim == 2


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fitted probe.

    Attributes:
        scores: features (n, D) -> (S, n, C) class scores, one model a seed.
        chosen: what the validation part decided, plain values for JSON.
        valid: validation metric of each of the S models.
    """

    scores: Callable[[Tensor], Tensor]
    chosen: dict[str, Any]
    valid: list[float]


def mean_and_std(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of features (n, D), float64.

    The deviation is 1 for a feature that does not vary but for rounding, which must not be blown
    up.
    """
    wide = features.double()
    mean, std = wide.mean(dim=0), wide.std(dim=0, correction=0)
    return mean, torch.where(std <= 1e-6 * mean.abs() + 1e-12, 1.0, std)


class PreparedSplit:
    """Parts of a split as probes take them.

    Args:
        features: embeddings (n, D), row i of `labelled.clips[i]`.
        standardise: mean 0 and std 1 on the training part.
        test_features: of the test part, where it is embedded otherwise; None for `features`.

    Attributes:
        classes: numbers of the classes that a probe gives scores for: those of the training part,
            or all of them where clips have several labels.
    """

    def __init__(
        self,
        features: Tensor,
        labelled: LabelledSet,
        split: Split,
        *,
        standardise: bool = True,
        test_features: Tensor | None = None,
    ) -> None:
        self._parts, self._truth = split.parts(), labelled.targets()
        tested = features if test_features is None else test_features
        self._features = {"train": features, "valid": features, "test": tested}
        device = features.device
        train = torch.from_numpy(split.train)
        if labelled.multi_label:
            self.classes = torch.arange(len(labelled.classes), device=device)
            self._targets = self._truth
        else:
            # -1 for classes that this training part lacks.
            self.classes = self._truth[train].unique().to(device)
            numbers = torch.full((len(labelled.classes),), -1)
            numbers[self.classes.cpu()] = torch.arange(len(self.classes))
            self._targets = numbers[self._truth]
        self._scale = mean_and_std(features[train.to(device)]) if standardise else None

    def part(self, name: str) -> Part:
        """Features and targets of train, valid or test."""
        where, features = torch.from_numpy(self._parts[name]), self._features[name]
        features = features[where.to(features.device)]
        if self._scale is not None:
            mean, std = self._scale
            features = ((features.double() - mean) / std).float()
        return features, self._targets[where].to(features.device)

    def truth(self, name: str) -> Tensor:
        """Targets of a part in the numbers of all classes, on the CPU."""
        return self._truth[torch.from_numpy(self._parts[name])]
