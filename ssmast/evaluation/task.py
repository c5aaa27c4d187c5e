"""What is scored: clips, labels and splits of a labelled set, and what may be done to them."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmast.evaluation.labels import label_set
from ssmast.evaluation.metrics import METRICS
from ssmast.evaluation.splits import Split, hold_out, trained_labels
from ssmast.evaluation.task_spec import TaskSpec


@dataclass(frozen=True, kw_only=True)
class Task:
    """A labelled set, read.

    Attributes:
        spec: as asked for.
        folder: of the labelled set.
        clips: path of each clip that takes part, as metadata.csv has it.
        rows: its row in metadata.csv, which is its number in the corpus of the folder.
        labels: class name of each clip.
        classes: sorted names, or the official order of task.json where clips have several labels;
            a label's position is its class number.
        splits: one, or one a fold; they hold positions in `clips`.
        left_out: how many rows were left out, by reason.
        num_unseen: test clips, over all splits, whose class the training part lacks; they count
            as wrong. With several labels a clip: those of which the training part lacks any.
        separator: between the labels of a clip; empty where each has one.
        origin: what the task.json of the set says; empty for a set made by hand.
    """

    spec: TaskSpec
    folder: Path
    clips: list[str]
    rows: NDArray[np.int64]
    labels: list[str]
    classes: list[str]
    splits: list[Split]
    left_out: dict[str, int] = field(default_factory=dict)
    num_unseen: int = 0
    separator: str = ""
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several labels."""
        return bool(self.separator)

    @property
    def label_sets(self) -> list[tuple[str, ...]]:
        """The labels of each clip."""
        return [label_set(text, self.separator) for text in self.labels]

    def targets(self) -> Tensor:
        """Class numbers (n,), or zeros and ones (n, C) float32 where a clip may have several."""
        number = {name: index for index, name in enumerate(self.classes)}
        if not self.multi_label:
            return torch.tensor([number[label] for label in self.labels])
        targets = torch.zeros(len(self.clips), len(self.classes))
        for row, labels in zip(targets, self.label_sets, strict=True):
            row[[number[label] for label in labels]] = 1.0
        return targets

    @property
    def metric(self) -> str:
        """What the set is scored by where the user says nothing."""
        usual = "map" if self.multi_label else "accuracy"
        named = str(self.origin.get("metric") or usual)
        # Another column of a multi-label set may have one label a clip.
        fits = named not in METRICS or METRICS[named].multi_label == self.multi_label
        return named if fits else usual

    @property
    def ids_sha256(self) -> str:
        """Hash of the sorted (clip, part) lines: equal if the same clips play the same parts."""
        lines = sorted(
            f"{self.clips[index]}\t{split.name}\t{part}\n"
            for split in self.splits
            for part, indices in split.parts().items()
            for index in indices
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def labels_sha256(self) -> str:
        """Hash of the (clip, label) lines."""
        lines = sorted(
            f"{clip}\t{label}\n" for clip, label in zip(self.clips, self.labels, strict=True)
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def without(task: Task, clips: Collection[str], *, reason: str = "unreadable") -> Task:
    """The task less some clips, counted under `left_out` by the reason.

    Raises:
        ValueError: if a part is empty then.
    """
    gone = set(clips)
    keep = np.array([clip not in gone for clip in task.clips])
    if keep.all():
        return task
    new = np.cumsum(keep) - 1  # new position of each clip that stays
    splits = [
        replace(split, **{part: new[where[keep[where]]] for part, where in split.parts().items()})
        for split in task.splits
    ]
    labels = [label for label, kept in zip(task.labels, keep, strict=True) if kept]
    smaller = replace(
        task,
        clips=[clip for clip, kept in zip(task.clips, keep, strict=True) if kept],
        rows=task.rows[keep],
        labels=labels,
        classes=class_names(labels, task.separator, task.origin),
        splits=splits,
        left_out={**task.left_out, reason: int((~keep).sum())},
    )
    return checked(smaller)


def shuffled(task: Task, *, seed: int) -> Task:
    """The task with the labels of all its clips permuted: no encoder can score above chance.

    Raises:
        ValueError: if a part then has no class of the training part.
    """
    order = np.random.default_rng(seed).permutation(len(task.labels))
    return checked(replace(task, labels=[task.labels[index] for index in order]))


def random_validation(task: Task, *, share: float) -> Task:
    """The task with a share of all clips that are not tested for validation, in every split.

    Source: EVAR, which takes a random tenth where a set has folds; here the clips' names decide.
    """
    splits = []
    first = [names[0] if names else "" for names in task.label_sets]
    for split in task.splits:
        rest = np.sort(np.concatenate([split.train, split.valid]))
        strata = [first[index] for index in rest]
        held = hold_out([task.clips[index] for index in rest], strata, share=share)
        splits.append(replace(split, train=rest[~held], valid=rest[held]))
    return checked(replace(task, splits=splits))


def class_names(labels: list[str], separator: str, origin: dict[str, Any]) -> list[str]:
    """Names of all classes; the order of task.json where it names those of a multi-label set."""
    if not separator:
        return sorted(set(labels))
    found = {label for text in labels for label in label_set(text, separator)}
    official = [str(name) for name in origin.get("classes", [])]
    return official if found <= set(official) else sorted(found)


def checked(task: Task) -> Task:
    """The task with `num_unseen` counted, refused if a split cannot be scored."""
    return replace(task, num_unseen=sum(_check_split(split, task) for split in task.splits))


def _check_split(split: Split, task: Task) -> int:
    """How many test clips have a class that the training part lacks."""
    name, labels = f"task {str(task.spec)!r}", task.label_sets
    trained = trained_labels(split, labels, name=name, least=2 - task.multi_label)
    for part, indices in (("valid", split.valid), ("test", split.test)):
        if not any(trained.intersection(labels[index]) for index in indices):
            raise ValueError(
                f"{name}: no class of the {part} part of {split.name} is in its "
                "training part, so nothing can be scored"
            )
    return sum(not trained.issuperset(labels[index]) for index in split.test)
