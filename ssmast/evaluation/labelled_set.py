"""A labelled set: clips with the classes of one or more label columns, and honest splits.

What probes, fine-tuning, clustering, `ssmast evaluate` and the scores while training all work on;
`read_set.py` reads one from a folder.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmast.audio import Corpus, open_corpus
from ssmast.classifier import Head
from ssmast.evaluation.task_spec import TaskSpec
from ssmast.splits import Split, hold_out, ids_sha256, label_set, look_alikes, name_hash

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Of each class of a sample: one clip to train on, one to choose by, one to score.
_LEAST_PER_CLASS = 3


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Clips with their labels and splits.

    Attributes:
        spec: as asked for.
        folder: of the set, or its file.
        clips: path of each clip that takes part, as metadata.csv has it.
        rows: its row in metadata.csv, which is its number in the corpus of the folder.
        heads: one a label column.
        cells: of each head, the cell of every clip: one class name, or several.
        separator: between the labels in a cell; empty where it holds one.
        splits: one, or one a fold; they hold positions in `clips`.
        groups: what each clip belongs to, such as its speaker; empty where that is not asked for.
        left_out: how many rows were left out, by reason.
        origin: what the task.json of the set says; empty for a set made by hand.
    """

    spec: TaskSpec
    folder: Path
    clips: list[str]
    rows: NDArray[np.int64]
    heads: list[Head]
    cells: list[list[str]]
    separator: str = ""
    splits: list[Split]
    groups: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several labels."""
        return bool(self.separator)

    @property
    def classes(self) -> list[str]:
        """Class names of the first head, which probes and clusters are of."""
        return self.heads[0].classes

    @property
    def labels(self) -> list[str]:
        """Cell of the first head of each clip."""
        return self.cells[0]

    @property
    def num_outputs(self) -> int:
        """Classes of all heads."""
        return sum(len(head.classes) for head in self.heads)

    @cached_property
    def label_sets(self) -> list[list[tuple[str, ...]]]:
        """Of each head, the labels of every clip."""
        return [[label_set(cell, self.separator) for cell in own] for own in self.cells]

    @cached_property
    def numbers(self) -> list[list[NDArray[np.int64]]]:
        """Of each head, the class numbers of every clip; -1 for a class that the head lacks."""
        found = []
        for head, own in zip(self.heads, self.label_sets, strict=True):
            number = {name: i for i, name in enumerate(head.classes)}
            found.append(
                [np.array([number.get(n, -1) for n in names], dtype=np.int64) for names in own]
            )
        return found

    @cached_property
    def num_unseen(self) -> int:
        """Test clips, over all splits, with a class that the training part lacks.

        They count as wrong. With several labels a clip: those of which the training part lacks any.
        """
        unseen = 0
        for split in self.splits:
            trained = self.labels_of(split.train)
            unseen += sum(
                any(not names.issuperset(own[p]) for names, own in self._each(trained))
                for p in split.test
            )
        return unseen

    @cached_property
    def untrained(self) -> dict[str, int]:
        """Classes without a training clip in some split -> test clips of them in those splits."""
        found: Counter[str] = Counter()
        for split in self.splits:
            trained = self.labels_of(split.train)
            for head, names, own in zip(self.heads, trained, self.label_sets, strict=True):
                tested = Counter(label for position in split.test for label in own[position])
                gone = {*head.classes, *tested} - names
                found.update({self._named(head, name): tested[name] for name in gone})
        return dict(sorted(found.items()))

    @cached_property
    def untested(self) -> list[str]:
        """Classes without a test clip in any split."""
        return self.missing_from(np.concatenate([split.test for split in self.splits]))

    @cached_property
    def shared(self) -> dict[str, str]:
        """Test clips with the bytes of a clip that is trained on or chosen by in the same split.

        Of each that clip. What was learnt by heart counts as right there.
        """
        position_of = {int(row): position for position, row in enumerate(self.rows)}
        found: dict[str, str] = {}
        for rows in self.corpus().same_bytes(self.rows.tolist()):
            group = [position_of[row] for row in rows]
            for split in self.splits:
                test = set(split.test.tolist()).intersection(group)
                other = set(np.concatenate([split.train, split.valid]).tolist())
                learnt = sorted(other.intersection(group))
                found.update({self.clips[p]: self.clips[learnt[0]] for p in test if learnt})
        return dict(sorted(found.items()))

    def missing_from(self, positions: NDArray[np.int64]) -> list[str]:
        """Classes of the heads that none of some clips has."""
        return [
            self._named(head, name)
            for head, names in zip(self.heads, self.labels_of(positions), strict=True)
            for name in sorted(set(head.classes) - names)
        ]

    def unknown_in(self, positions: NDArray[np.int64]) -> dict[str, int]:
        """Labels of some clips that the heads lack -> how many of these clips have them."""
        found = Counter(
            self._named(head, name)
            for head, own in self._each(self.heads)
            for position in positions
            for name in set(own[position]).difference(head.classes)
        )
        return dict(sorted(found.items()))

    def labels_of(self, positions: NDArray[np.int64]) -> list[set[str]]:
        """Of each head, the labels that some clips have."""
        return [{name for p in positions for name in own[p]} for own in self.label_sets]

    def _each(self, of_heads: Sequence[T]) -> Iterator[tuple[T, list[tuple[str, ...]]]]:
        """Something of each head, and the labels of every clip."""
        return zip(of_heads, self.label_sets, strict=True)

    def _named(self, head: Head, name: str) -> str:
        return f"{head.name} {name}" if len(self.heads) > 1 else name

    def corpus(self, *, channel: str = "mean") -> Corpus:
        """The sounds of the set, row i of its table as clip i."""
        return open_corpus(self.folder, spans="spans").with_channel(channel)

    @property
    def folds(self) -> list[str]:
        """Names of the folds, a split each; empty where there is one split."""
        names = [split.name.split(" ")[-1] for split in self.splits]
        return names if len(names) > 1 else []

    def split(self, fold: str) -> Split:
        """The split of a fold by its name; the only one, or the first, where none is named.

        Raises:
            ValueError: naming the folds there are.
        """
        if not fold:
            return self.splits[0]
        if fold not in self.folds:
            has = f"the folds {', '.join(self.folds)}" if self.folds else "one split and no folds"
            raise ValueError(f"{self.folder.name} has {has}, got fold={fold}")
        return self.splits[self.folds.index(fold)]

    def targets(self) -> Tensor:
        """What a probe of the first head learns, of every clip.

        Returns:
            Class numbers (n,) int64; where a clip may have several labels, zeros and ones (n, C)
            float32.
        """
        everything = np.arange(len(self.clips))
        return self.one_hot(everything) if self.multi_label else self.class_numbers(0, everything)

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
        """The one class of each clip, int64 (n,); -1 for one that the head lacks."""
        return torch.tensor([int(self.numbers[head][position][0]) for position in positions])

    def ids_sha256(self, positions: NDArray[np.int64] | None = None) -> str:
        """`splits.ids_sha256` of the set, or of some of its clips."""
        return ids_sha256(self.clips, self.splits, positions)

    def labels_sha256(self) -> str:
        """Hash of the sorted (clip, labels) lines."""
        lines = sorted("\t".join(line) + "\n" for line in zip(self.clips, *self.cells, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def weights(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """How often to draw each clip for all classes to be equally frequent.

        The sum of 1 / (clips of the class) over the classes of the clip; clips with none of the
        classes count as a class of their own.

        Source: Gong et al. 2021 (PSLA), the sampling that AST trains full AudioSet with.
        """
        total = np.zeros(len(positions))
        for head, numbers in zip(self.heads, self.numbers, strict=True):
            counts = np.zeros(len(head.classes))
            for position in positions:
                counts[numbers[position]] += 1
            total += [float((1 / counts[numbers[position]]).sum()) for position in positions]
        unlabelled = np.array([not any(own[p].size for own in self.numbers) for p in positions])
        total[unlabelled] = 1 / max(1, unlabelled.sum())
        return total


def with_class_names(labelled: LabelledSet) -> LabelledSet:
    """The set with the classes that its clips have as those of its heads, sorted.

    Where its task.json has the official classes of a column, those in their order.
    """
    origin, classes = labelled.origin, []
    for head, names in zip(
        labelled.heads, labelled.labels_of(np.arange(len(labelled.clips))), strict=True
    ):
        official = origin.get("classes") if head.name == origin.get("label", head.name) else None
        if isinstance(official, list) and names <= set(official):
            classes.append([str(name) for name in official])
        else:
            classes.append(sorted(names))
    return _with_classes(labelled, classes)


def with_trained_classes(labelled: LabelledSet, split: Split) -> LabelledSet:
    """The set with heads that have a training clip of each class; the others become -1.

    An output that is never trained would be predicted by chance.
    """
    trained = labelled.labels_of(split.train)
    kept = zip(labelled.heads, trained, strict=True)
    return _with_classes(labelled, [[n for n in head.classes if n in own] for head, own in kept])


def _with_classes(labelled: LabelledSet, classes: list[list[str]]) -> LabelledSet:
    pairs = zip(labelled.heads, classes, strict=True)
    return replace(labelled, heads=[head._replace(classes=own) for head, own in pairs])


def check_splits(labelled: LabelledSet, *, scored: Collection[str] = ("valid", "test")) -> None:
    """Refuse a set of which a split cannot be scored on some parts.

    Raises:
        ValueError: if such a part is empty, there are too few classes to train on, or no class of
            the training part is in one that is scored.
    """
    least = 2 - labelled.multi_label
    for split in labelled.splits:
        parts = {part: labelled.labels_of(where) for part, where in split.parts().items()}
        for number, head in enumerate(labelled.heads):
            name = f"task {str(labelled.spec)!r}"
            if len(labelled.heads) > 1 or head.name != labelled.spec.label:
                name += f", column {head.name!r}"
            for part, where in split.parts().items():
                if part in ("train", *scored) and not len(where):
                    raise ValueError(f"{name}: no clip in the {part} part of {split.name}")
            trained = parts["train"][number]
            if len(trained) < least:
                raise ValueError(
                    f"{name}: trains on {len(trained)} class in {split.name}; wanted at least "
                    f"{least}"
                )
            for part in scored:
                if not trained & parts[part][number]:
                    raise ValueError(
                        f"{name}: no class of the {part} part of {split.name} is in its "
                        "training part, so nothing can be scored"
                    )


def without(
    labelled: LabelledSet, clips: Collection[str], *, reason: str = "unreadable"
) -> LabelledSet:
    """The set less some clips, counted under `left_out` by the reason.

    Raises:
        ValueError: if a part is empty then.
    """
    gone = set(clips)
    keep = np.array([clip not in gone for clip in labelled.clips])
    if keep.all():
        return labelled
    new = np.cumsum(keep) - 1  # new position of each clip that stays
    kept = np.flatnonzero(keep)
    smaller = replace(
        labelled,
        clips=[labelled.clips[i] for i in kept],
        rows=labelled.rows[keep],
        cells=[[own[i] for i in kept] for own in labelled.cells],
        groups=[labelled.groups[i] for i in kept] if labelled.groups else [],
        splits=[
            replace(split, **{p: new[where[keep[where]]] for p, where in split.parts().items()})
            for split in labelled.splits
        ],
        left_out={**labelled.left_out, reason: int((~keep).sum())},
    )
    smaller = with_class_names(smaller)
    check_splits(smaller)
    return smaller


def shuffled(labelled: LabelledSet, *, seed: int) -> LabelledSet:
    """The set with the labels of all its clips permuted: no encoder can score above chance.

    Raises:
        ValueError: if a part then has no class of the training part.
    """
    order = np.random.default_rng(seed).permutation(len(labelled.clips))
    mixed = replace(labelled, cells=[[own[index] for index in order] for own in labelled.cells])
    check_splits(mixed)
    return mixed


def random_validation(labelled: LabelledSet, *, fraction: float) -> LabelledSet:
    """The set with a fraction of all clips that are not tested for validation, in every split.

    Source: EVAR, which takes a random tenth where a set has folds; here the clips' names decide.
    """
    splits = []
    first = [names[0] if names else "" for names in labelled.label_sets[0]]
    for split in labelled.splits:
        rest = np.sort(np.concatenate([split.train, split.valid]))
        held = hold_out(labelled.clips, first, fraction=fraction, rows=rest)
        splits.append(replace(split, train=rest[~held], valid=rest[held]))
    drawn = replace(labelled, splits=splits)
    check_splits(drawn)
    return drawn


def with_heads(labelled: LabelledSet, heads: Sequence[Head]) -> LabelledSet:
    """The set in the class numbers of a trained classifier; classes that it lacks become -1.

    Raises:
        ValueError: if there are more or fewer heads, or none of a head's classes is in the set.
    """
    if len(heads) != len(labelled.heads):
        raise ValueError(
            f"the classifier has the heads {', '.join(h.name for h in heads)}; the set was read "
            f"by {', '.join(h.name for h in labelled.heads)}; give labels=[...] to match"
        )
    for head, old in zip(heads, labelled.heads, strict=True):
        if not set(head.classes).intersection(old.classes):
            raise ValueError(
                f"none of the classes of {labelled.folder} is known to the classifier's head "
                f"{head.name!r} ({', '.join(head.classes[:5])}, ...)"
            )
        unknown = set(old.classes) - set(head.classes)
        for group in look_alikes({*unknown, *head.classes}):
            if unknown.intersection(group):
                logger.warning(
                    "%s, column %r: the classifier writes a class of the set otherwise, and does "
                    "not know it so: %s; write it as the classifier does",
                    *(labelled.folder, old.name, ", ".join(map(repr, group))),
                )
    return replace(labelled, heads=list(heads))


def small_sample(labelled: LabelledSet, *, max_clips: int) -> LabelledSet:
    """At most `max_clips` clips of the training and validation parts, in one split.

    To be scored again and again while an encoder trains. The test part stays out, so that a run
    chosen by these scores can still be tested: what was the validation part is scored, and a
    fraction of the training part takes over choosing. With folds, the first split alone is used.
    Which clips stay follows from their names, and every class keeps as many as any other, as far
    as it has them.

    Raises:
        ValueError: if clips have several labels, `max_clips` is too few for the classes, or a part
            is empty.
    """
    if labelled.multi_label:
        raise ValueError(
            f"the clips of {labelled.spec} have several labels each, which are not scored while "
            "training; leave it out with probe.tasks=[...]"
        )
    if max_clips < _LEAST_PER_CLASS * len(labelled.classes):
        raise ValueError(
            f"probe.max_clips={max_clips} is too few for the {len(labelled.classes)} classes of "
            f"{labelled.spec}; give at least {_LEAST_PER_CLASS} a class"
        )
    split = labelled.splits[0]
    # A third is scored: a score of 17 clips would move in steps of 6 %.
    scored = _thinned(labelled, split.valid, max_clips // 3)
    train = _thinned(labelled, split.train, max_clips - len(scored))
    held = hold_out(labelled.clips, labelled.labels, rows=train)
    small = Split(name="while training", train=train[~held], valid=train[held], test=scored)
    kept = set(np.concatenate([train, scored]).tolist())
    gone = [clip for i, clip in enumerate(labelled.clips) if i not in kept]
    return without(replace(labelled, splits=[small]), gone, reason="not in the sample")


def _thinned(labelled: LabelledSet, part: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """Clips of a part, taken from its classes in turn, in the order of their names' hashes."""
    if len(part) <= wanted:
        return part
    turn_of: Counter[str] = Counter()
    turns: dict[int, list[int]] = defaultdict(list)
    for index in sorted(part.tolist(), key=lambda i: name_hash(labelled.clips[i])):
        label = labelled.labels[index]
        turns[turn_of[label]].append(index)  # within a turn, by the hashes too
        turn_of[label] += 1
    ranked = [index for turn in sorted(turns) for index in turns[turn]]
    return np.array(sorted(ranked[:wanted]), dtype=np.int64)
