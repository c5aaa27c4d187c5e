import math

import pytest
import scipy.stats
import sklearn.metrics
import torch

from ssmast.evaluation.metrics import (
    METRICS,
    accuracy,
    balanced_accuracy,
    bootstrap_interval,
    confusion_matrix,
    t_interval,
)
from ssmast.report.scores import worst_pairs


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy"])
def test_scores_of_many_models_at_once_equal_sklearn(name):
    scores, targets = torch.randn(3, 2, 50, 4), torch.randint(4, (50,))
    reference = getattr(sklearn.metrics, f"{name}_score")
    found = METRICS[name].score(scores, targets)
    assert found.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            wanted = reference(targets, scores[i, j].argmax(dim=1))
            assert float(found[i, j]) == pytest.approx(wanted, abs=1e-6)


def test_a_class_the_model_does_not_know_is_never_right():
    scores, targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, -1])
    assert float(accuracy(scores, targets)) == 0.5
    assert float(balanced_accuracy(scores, targets)) == 0.5


def test_confusion_of_several_seeds_is_the_sum():
    predictions, targets = torch.randint(5, (3, 40)), torch.randint(5, (40,))
    wanted = sum(
        sklearn.metrics.confusion_matrix(targets, row, labels=range(5)) for row in predictions
    )
    assert confusion_matrix(predictions, targets, num_classes=5).tolist() == wanted.tolist()
    targets[:10] = -1
    assert int(confusion_matrix(predictions, targets, num_classes=5).sum()) == 3 * 30


def test_worst_pairs_come_by_rate_in_the_true_class():
    confusion = [[90, 10, 0], [3, 5, 2], [0, 0, 7]]
    pairs = worst_pairs(confusion, ["a", "b", "c"])
    assert [(p["true"], p["predicted"], p["count"]) for p in pairs] == [
        ("b", "a", 3),
        ("b", "c", 2),
        ("a", "b", 10),
    ]
    assert pairs[0]["rate"] == pytest.approx(0.3)


def test_t_interval_equals_scipy():
    values = [0.71, 0.74, 0.69, 0.75, 0.72]
    mean, half = t_interval(values)
    low, high = scipy.stats.t.interval(0.95, 4, loc=mean, scale=scipy.stats.sem(values))
    assert half is not None
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert t_interval([0.5]) == (0.5, None)


def test_bootstrap_interval_is_near_the_binomial_one():
    right = torch.zeros(400)
    right[:300] = 1.0
    low, high = bootstrap_interval(right, seed=0)
    reach = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - reach, abs=0.01)
    assert high == pytest.approx(0.75 + reach, abs=0.01)
    assert bootstrap_interval(right, seed=0) == (low, high)
