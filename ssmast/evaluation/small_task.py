"""A small part of a labelled set, to be scored again and again while an encoder trains.

What guessing scores: the line that any number has to be read against.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ssmast.evaluation.labelled_set import Task, without
from ssmast.evaluation.splits import hold_out, name_hash

# Of each class: one clip to train on, one to choose by, one to score.
_LEAST_PER_CLASS = 3


def small_task(task: Task, *, max_clips: int) -> Task:
    """At most `max_clips` clips of the training and validation parts, in one split.

    The test part stays out, so that a run chosen by these scores can still be tested: what was the
    validation part is scored, and a share of the training part takes over choosing. With folds, the
    first split alone is used. Which clips stay follows from their names, and every class keeps as
    many as any other, as far as it has them.

    Raises:
        ValueError: if clips have several labels, `max_clips` is too few for the classes, or a part
            is empty.
    """
    if task.multi_label:
        raise ValueError(
            f"the clips of {task.spec} have several labels each, which are not scored while "
            "training; leave it out with probe.tasks=[...]"
        )
    if max_clips < _LEAST_PER_CLASS * len(task.classes):
        raise ValueError(
            f"probe.max_clips={max_clips} is too few for the {len(task.classes)} classes of "
            f"{task.spec}; give at least {_LEAST_PER_CLASS} a class"
        )
    split = task.splits[0]
    # A third is scored where there are so many: a score of 17 clips moves in steps of 6 %.
    scored = _thinned(task, split.valid, max_clips // 3)
    train = _thinned(task, split.train, max_clips - len(scored))
    held = hold_out([task.clips[i] for i in train], [task.labels[i] for i in train])
    small = replace(split, name="while training", train=train[~held], valid=train[held])
    small = replace(small, test=scored)
    kept = set(np.concatenate([train, scored]).tolist())
    gone = [clip for i, clip in enumerate(task.clips) if i not in kept]
    return without(replace(task, splits=[small]), gone, reason="not in the sample")


def chance_accuracy(task: Task) -> float:
    """What naming the training part's most frequent class for every clip scores, over the splits.

    Ties go to the class that is rarest among the scored clips: a guess knows no better.
    """
    scores = []
    for split in task.splits:
        labels = np.array(task.labels, dtype=object)
        names, counts = np.unique(labels[split.train].astype(str), return_counts=True)
        scored = labels[split.test].astype(str)
        guesses = names[counts == counts.max()]
        scores.append(min(float((scored == guess).mean()) for guess in guesses))
    return float(np.mean(scores))


def _thinned(task: Task, part: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """Clips of a part, taken from its classes in turn, in the order of their names' hashes."""
    if len(part) <= wanted:
        return part
    members: dict[str, list[int]] = defaultdict(list)
    for index in sorted(part.tolist(), key=lambda i: name_hash(task.clips[i])):
        members[task.labels[index]].append(index)
    turns: Sequence[tuple[int, bytes, int]] = sorted(
        (turn, name_hash(task.clips[index]), index)
        for indices in members.values()
        for turn, index in enumerate(indices)
    )
    return np.array(sorted(index for _, _, index in turns[:wanted]), dtype=np.int64)


def chance(task: Task, metric: str, *, shuffled: bool = False) -> float:
    """The score of an encoder that knows nothing, mean over the splits.

    Of accuracy, what naming the commonest class of the training part gives; of balanced accuracy,
    1 / classes; of mAP, the mean share of positive clips of the classes that have any; of AUC 0.5.

    Args:
        task: with its splits.
        metric: name.
        shuffled: whether its labels were permuted. Which class is then the commonest of a part is
            an accident; on average every part has the shares of the whole set, so the commonest
            class of the set is the best guess.
    """
    if metric == "accuracy" and shuffled:
        return max(Counter(task.labels).values()) / len(task.labels)
    if metric == "accuracy":
        return chance_accuracy(task)
    if metric == "balanced_accuracy":
        return 1 / len(task.classes)
    if metric == "auc":
        return 0.5
    if metric != "map":
        return 0.0  # d' of either definition
    targets = task.targets()
    shares = [targets[split.test].mean(dim=0) for split in task.splits]
    return float(np.mean([float(share[share > 0].mean()) for share in shares]))
