"""A labelled set as fine-tuning sees it: one or several labels a clip, one or several heads."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmast.evaluation.labelled_set import TaskSpec, find_tasks, read_labelled
from ssmast.evaluation.splits import HELD_OUT, Split, label_set, trained_labels


@dataclass(frozen=True, kw_only=True)
class Head:
    """What one classification layer tells apart.

    Attributes:
        name: of the column.
        classes: names; a name's position is its class number.
    """

    name: str
    classes: list[str]


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Clips with their labels and splits.

    Attributes:
        spec: as asked for.
        folder: of the set.
        clips: path of each clip that takes part.
        rows: its row in metadata.csv, which is its number in the corpus of the folder.
        heads: one a label column.
        numbers: of each head, the class numbers of every clip.
        multi_label: clips have any number of labels, else one of each head.
        splits: one, or one a fold; they hold positions in `clips`.
        left_out: how many rows were left out, by reason.
        origin: what the task.json of the set says.
    """

    spec: TaskSpec
    folder: Path
    clips: list[str]
    rows: NDArray[np.int64]
    heads: list[Head]
    numbers: list[list[NDArray[np.int64]]]
    multi_label: bool
    splits: list[Split]
    left_out: dict[str, int] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def num_outputs(self) -> int:
        """Classes of all heads."""
        return sum(len(head.classes) for head in self.heads)

    def split(self, fold: str) -> Split:
        """The split of a fold by its name; the only one, or the first, where none is named.

        Raises:
            ValueError: naming the folds there are.
        """
        names = [split.name.split(" ")[-1] for split in self.splits]
        if not fold:
            return self.splits[0]
        if fold not in names or len(names) == 1:
            has = f"the folds {', '.join(names)}" if len(names) > 1 else "one split and no folds"
            raise ValueError(f"{self.folder.name} has {has}, got fold={fold}")
        return self.splits[names.index(fold)]

    def one_hot(self, positions: NDArray[np.int64] | Tensor) -> Tensor:
        """Zeros and ones (n, classes of all heads) of some clips."""
        where = np.asarray(positions)
        targets = torch.zeros(len(where), self.num_outputs)
        first = 0
        for head, numbers in zip(self.heads, self.numbers, strict=True):
            for row, position in enumerate(where.tolist()):
                known = numbers[position][numbers[position] >= 0]
                targets[row, first + known] = 1.0
            first += len(head.classes)
        return targets

    def class_numbers(self, head: int, positions: NDArray[np.int64]) -> Tensor:
        """The one class of each clip, int64 (n,); -1 for one that the heads do not know."""
        return torch.tensor([int(self.numbers[head][position][0]) for position in positions])

    def ids_sha256(self, positions: NDArray[np.int64]) -> str:
        """Hash of the sorted names of some clips: equal if the same ones were scored."""
        lines = sorted(f"{self.clips[position]}\n" for position in positions)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def weights(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """How often to draw each clip for all classes to come alike: the sum of 1 / clips of class.

        Source: Gong et al. 2021 (PSLA), the sampling that AST trains full AudioSet with.
        """
        total = np.zeros(len(positions))
        for head, numbers in zip(self.heads, self.numbers, strict=True):
            counts = np.zeros(len(head.classes))
            for position in positions:
                counts[numbers[position]] += 1
            total += [float((1 / counts[numbers[position]]).sum()) for position in positions]
        return total


def load_labelled(
    data: str | Path, task: str = "", *, labels: list[str] | None = None, share: float = HELD_OUT
) -> LabelledSet:
    """Read a labelled set.

    Args:
        data: the set, or a folder of sets of which `task` names one.
        task: name, or `name:label=COLUMN,split=COLUMN,...`; empty where `data` is one set.
        labels: columns, one head each; by default the set's own label column.
        share: of the training clips held out for validation, where the set has no such part.

    Raises:
        FileNotFoundError: if the set is not there.
        ValueError: if a column is missing or empty everywhere, or a part is empty.
    """
    table = read_labelled(data, task or _only(data), columns=labels or (), share=share)
    names = [[label_set(cell, table.separator) for cell in cells] for cells in table.labels]
    heads = [
        Head(name=column, classes=_classes(own, column, table.origin))
        for column, own in zip(table.columns, names, strict=True)
    ]
    for column, own in zip(table.columns, names, strict=True):
        for split in table.splits:
            trained_labels(split, own, name=f"{table.folder}, column {column!r},")
    return LabelledSet(
        spec=table.spec,
        folder=table.folder,
        clips=table.clips,
        rows=table.rows,
        heads=heads,
        numbers=[_numbers(own, head) for own, head in zip(names, heads, strict=True)],
        multi_label=bool(table.separator),
        splits=table.splits,
        left_out=table.left_out,
        origin=table.origin,
    )


def with_heads(found: LabelledSet, heads: list[Head]) -> LabelledSet:
    """The set in the class numbers of a trained classifier; classes that it lacks become -1.

    Raises:
        ValueError: if there are more or fewer heads, or none of a head's classes is in the set.
    """
    if len(heads) != len(found.heads):
        raise ValueError(
            f"the classifier has the heads {', '.join(h.name for h in heads)}; the set was read "
            f"by {', '.join(h.name for h in found.heads)}; give labels=[...] to match"
        )
    numbers = []
    for head, old, own in zip(heads, found.heads, found.numbers, strict=True):
        place = {name: i for i, name in enumerate(head.classes)}
        new = np.array([place.get(name, -1) for name in old.classes], dtype=np.int64)
        if (new < 0).all():
            raise ValueError(
                f"none of the classes of {found.folder} is known to the classifier's head "
                f"{head.name!r} ({', '.join(head.classes[:5])}, ...)"
            )
        numbers.append([new[of_clip] for of_clip in own])
    return replace(found, heads=heads, numbers=numbers)


def _only(data: str | Path) -> str:
    names = find_tasks(data)
    if len(names) > 1:
        raise ValueError(f"{data} holds {len(names)} sets, give one: task={' or '.join(names)}")
    return names[0]


def _classes(names: list[tuple[str, ...]], column: str, origin: dict[str, Any]) -> list[str]:
    """The official classes in their order, where the set knows them; else those found, sorted."""
    found = {name for own in names for name in own}
    official = origin.get("classes") if column == origin.get("label") else None
    if isinstance(official, list) and found <= set(official):
        return [str(name) for name in official]
    return sorted(found)


def _numbers(names: list[tuple[str, ...]], head: Head) -> list[NDArray[np.int64]]:
    number = {name: i for i, name in enumerate(head.classes)}
    return [np.array([number[name] for name in own], dtype=np.int64) for own in names]
