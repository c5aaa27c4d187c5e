"""A labelled set as fine-tuning sees it: one or several labels a clip, one or several heads."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmast.audio import read_task_file
from ssmast.evaluation.splits import (
    HELD_OUT,
    Split,
    group_folds,
    hold_out,
    leave_one_out,
    named_parts,
)
from ssmast.evaluation.task_spec import TaskSpec, filled, parse_task
from ssmast.evaluation.tasks import (
    check_columns,
    find_folder,
    find_tasks,
    protocol_of,
    read_columns,
)


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
    asked = parse_task(task or _only(data))
    folder = find_folder(Path(data), asked.name)
    origin = read_task_file(folder)
    spec = filled(asked, origin)
    table = read_columns(folder)
    columns = labels or [spec.label]
    for column in columns:
        check_columns(table, _with_label(spec, column), folder)
    kind, part_column = protocol_of(table, spec, folder)
    multi = bool(origin.get("multi_label")) and columns == [origin.get("label")]
    separator = origin.get("label_separator", ";") if multi else None
    kept, left_out = _complete_rows(table, [*columns, part_column])
    clips = [table["path"][row] for row in kept]
    repeated = next((clip for clip, count in Counter(clips).items() if count > 1), None)
    if repeated is not None:
        raise ValueError(f"{folder / 'metadata.csv'} lists {repeated!r} twice; keep one row a clip")
    names = [
        [table[column][row].split(separator) if separator else [table[column][row]] for row in kept]
        for column in columns
    ]
    heads = [
        Head(name=column, classes=_classes(own, column, origin))
        for column, own in zip(columns, names, strict=True)
    ]
    values = [table[part_column][row] for row in kept]
    if kind == "split":
        groups = [table[spec.group][row] for row in kept] if spec.group else None
        splits = [_named_parts(clips, names[0], values, groups=groups, share=share)]
    else:
        splits = (group_folds if kind == "folds" else leave_one_out)(values)
    found = LabelledSet(
        spec=asked,
        folder=folder,
        clips=clips,
        rows=np.array(kept, dtype=np.int64),
        heads=heads,
        numbers=[_numbers(own, head) for own, head in zip(names, heads, strict=True)],
        multi_label=multi,
        splits=splits,
        left_out=left_out,
        origin=origin,
    )
    _check_parts(found)
    return found


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


def _with_label(spec: TaskSpec, column: str) -> TaskSpec:
    """The spec with another label column."""
    return replace(spec, label=column)


def _only(data: str | Path) -> str:
    names = find_tasks(data)
    if len(names) > 1:
        raise ValueError(f"{data} holds {len(names)} sets, give one: task={' or '.join(names)}")
    return names[0]


def _complete_rows(
    table: dict[str, list[str]], columns: list[str]
) -> tuple[list[int], dict[str, int]]:
    """Rows with all columns filled, and how many were left out by reason."""
    left_out: Counter[str] = Counter()
    kept: list[int] = []
    for row in range(len(table["path"])):
        empty = next((name for name in columns if not table[name][row]), None)
        if empty:
            left_out[f"empty {empty}"] += 1
        else:
            kept.append(row)
    return kept, dict(left_out)


def _classes(names: list[list[str]], column: str, origin: dict[str, Any]) -> list[str]:
    """The official classes in their order, where the set knows them; else those found, sorted."""
    found = {name for own in names for name in own}
    official = origin.get("classes") if column == origin.get("label") else None
    if isinstance(official, list) and found <= set(official):
        return [str(name) for name in official]
    return sorted(found)


def _numbers(names: list[list[str]], head: Head) -> list[NDArray[np.int64]]:
    number = {name: i for i, name in enumerate(head.classes)}
    return [np.array([number[name] for name in own], dtype=np.int64) for own in names]


def _named_parts(
    clips: list[str],
    names: list[list[str]],
    values: list[str],
    *,
    groups: list[str] | None,
    share: float,
) -> Split:
    """`named_parts`, with a chosen share held out; a clip of many labels counts by its rarest."""
    counts = Counter(name for own in names for name in own)
    labels = [min(own, key=lambda name: (counts[name], name)) for own in names]
    parts = named_parts(clips, labels, values, groups=groups)
    if share == HELD_OUT or any(value.lower().startswith(("val", "dev")) for value in values):
        return parts
    train = np.sort(np.concatenate([parts.train, parts.valid]))
    held = hold_out(
        [clips[i] for i in train],
        [labels[i] for i in train],
        groups=None if groups is None else [groups[i] for i in train],
        share=share,
    )
    return Split(name=parts.name, train=train[~held], valid=train[held], test=parts.test)


def _check_parts(found: LabelledSet) -> None:
    for split in found.splits:
        for part, positions in split.parts().items():
            if not len(positions):
                raise ValueError(f"{found.folder} has no clip in the {part} part of {split.name}")
        for head, numbers in zip(found.heads, found.numbers, strict=True):
            trained = {int(number) for i in split.train for number in numbers[i]}
            if len(trained) < 2:
                raise ValueError(
                    f"{found.folder} trains on {len(trained)} class of {head.name} in "
                    f"{split.name}; wanted at least 2"
                )
