"""What guessing scores: the line that any number has to be read against."""

from collections import Counter

import numpy as np

from ssmast.evaluation.small_task import chance_accuracy
from ssmast.evaluation.task import Task


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
