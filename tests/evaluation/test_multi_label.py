import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from scipy.stats import norm

from ssmast.evaluation.metrics import (
    average_precision,
    classes_scored,
    d_prime,
    mean_average_precision,
    mean_d_prime,
    mean_roc_auc,
    roc_auc,
)

REFERENCES = (
    (average_precision, sklearn.metrics.average_precision_score),
    (roc_auc, sklearn.metrics.roc_auc_score),
)


def some_clips(*, levels: int = 0, n: int = 60, classes: int = 7) -> tuple[torch.Tensor, ...]:
    """Scores of 3 x 2 models, of which many are equal where there are few `levels`."""
    targets = (torch.rand(n, classes) < 0.2).long()
    targets[0], targets[1] = 1, 0
    scores = torch.randn(3, 2, n, classes) + targets
    return (scores * levels).round() / levels if levels else scores, targets


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize(("ours", "reference"), REFERENCES)
def test_every_class_of_every_model_equals_sklearn_with_and_without_ties(ours, reference, levels):
    scores, targets = some_clips(levels=levels)
    found = ours(scores, targets)
    assert found.shape == (3, 2, 7)
    for i in range(3):
        for j in range(2):
            wanted = reference(targets.numpy(), scores[i, j].numpy(), average=None)
            np.testing.assert_allclose(found[i, j], wanted, atol=1e-12)


def test_macro_means_equal_sklearns():
    scores, targets = some_clips(levels=3)
    means = zip((mean_average_precision, mean_roc_auc), REFERENCES, strict=True)
    for ours, (_, reference) in means:
        wanted = reference(targets.numpy(), scores[2, 1].numpy(), average="macro")
        assert float(ours(scores, targets)[2, 1]) == pytest.approx(wanted, abs=1e-12)


def test_the_two_definitions_of_d_prime_differ():
    scores, targets = some_clips()
    aucs = sklearn.metrics.roc_auc_score(targets.numpy(), scores[1, 0].numpy(), average=None)
    of_mean, mean_of = d_prime(scores, targets)[1, 0], mean_d_prime(scores, targets)[1, 0]
    assert float(of_mean) == pytest.approx(math.sqrt(2) * norm.ppf(np.mean(aucs)))
    assert float(mean_of) == pytest.approx(np.mean(math.sqrt(2) * norm.ppf(aucs)))
    assert abs(float(of_mean) - float(mean_of)) > 1e-3


def test_a_class_told_apart_perfectly_makes_hears_d_prime_infinite():
    targets = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])
    scores = targets.float() - torch.tensor([[0.0, 0.0], [0.0, 0.9], [0.0, 0.0], [0.0, 0.0]])
    scores[3, 1] = 0.5
    assert math.isinf(float(mean_d_prime(scores, targets)))
    assert math.isfinite(float(d_prime(scores, targets)))


def test_classes_that_cannot_be_scored_are_left_out_of_the_mean():
    scores, targets = some_clips()
    targets[:, 2], targets[:, 4] = 0, 1  # nobody, everybody
    precision, auc = average_precision(scores, targets), roc_auc(scores, targets)
    assert precision.isnan().any(dim=(0, 1)).nonzero().flatten().tolist() == [2]
    assert auc.isnan().any(dim=(0, 1)).nonzero().flatten().tolist() == [2, 4]
    assert float(precision[0, 0, 4]) == 1.0
    kept = [0, 1, 3, 5, 6]
    assert classes_scored(targets).nonzero().flatten().tolist() == kept
    assert float(mean_roc_auc(scores, targets)[0, 0]) == pytest.approx(
        sklearn.metrics.roc_auc_score(targets[:, kept].numpy(), scores[0, 0][:, kept].numpy())
    )
    assert float(mean_average_precision(scores, targets)[0, 0]) == pytest.approx(
        float(precision[0, 0, [*kept, 4]].mean())
    )
    assert mean_average_precision(scores, torch.zeros_like(targets)).isnan().all()


def test_one_score_for_all_is_chance_and_the_order_of_clips_does_not_matter():
    scores, targets = some_clips(levels=2)
    constant = torch.zeros(60, 7)
    np.testing.assert_allclose(average_precision(constant, targets), targets.double().mean(dim=0))
    np.testing.assert_allclose(roc_auc(constant, targets), 0.5)
    assert float(d_prime(constant, targets)) == 0.0
    order = torch.randperm(60)
    for score in (average_precision, roc_auc):
        moved = score(scores[..., order, :], targets[order])
        np.testing.assert_allclose(moved, score(scores, targets), atol=1e-12)


def test_what_does_not_fit_is_refused():
    scores, targets = some_clips()
    with pytest.raises(ValueError, match=r"targets must be \(clips, classes\)"):
        roc_auc(scores, targets[:-1])
    scores[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="scores must be finite"):
        average_precision(scores, targets)
