import math

import pytest
import torch
from torch.nn import functional as F

from ssmast.contrastive.info_nce import info_nce
from ssmast.contrastive.monitors import (
    MAX_ROWS,
    alignment,
    chance_loss,
    effective_rank,
    feature_std,
    matched_fraction,
    relative_distance,
    spaced_rows,
    uniformity,
)


def test_effective_rank_counts_equal_directions():
    # +- e_i for i < 4: four equal singular values, centred already.
    points = torch.cat([torch.eye(8)[:4], -torch.eye(8)[:4]])
    assert effective_rank(points) == pytest.approx(4, rel=1e-4)


def test_effective_rank_is_one_for_a_constant_and_for_a_line():
    assert effective_rank(torch.ones(10, 4)) == 1
    assert effective_rank(torch.linspace(-1, 1, 9)[:, None] * torch.ones(4)) == pytest.approx(
        1, rel=1e-3
    )


def test_alignment_is_squared_distance():
    a = F.normalize(torch.randn(5, 3), dim=1)
    assert alignment(a, a) == 0
    assert alignment(a, -a) == pytest.approx(4, rel=1e-5)


def test_uniformity_is_zero_at_collapse_and_known_for_two_poles():
    assert uniformity(torch.ones(5, 4) / 2) == pytest.approx(0, abs=1e-6)
    poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(poles) == pytest.approx(math.log(math.exp(-8)), rel=1e-5)


def test_feature_std_is_near_one_for_a_sphere_and_zero_at_collapse():
    assert feature_std(torch.randn(4000, 64)) == pytest.approx(1, abs=0.02)
    assert feature_std(torch.ones(10, 64)) == pytest.approx(0, abs=1e-6)


def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values():
    # Columns of +-3 and +-1, orthogonal: singular values in the ratio 3 to 1.
    points = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [3.0, -1.0], [-3.0, -1.0]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(points) == pytest.approx(math.exp(entropy), rel=1e-6)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_effective_rank_equals_the_one_by_singular_values(shape):
    points = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    values = torch.linalg.svdvals(points - points.mean(dim=0))
    share = values[values > 1e-9] / values.sum()
    expected = math.exp(-float((share * share.log()).sum()))
    assert effective_rank(points.float()) == pytest.approx(expected, rel=1e-4)
    assert effective_rank(100 + points.float()) == pytest.approx(expected, rel=1e-3)  # offset


def test_rounding_has_no_rank():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(32, 64, generator=generator)
    assert effective_rank(1 + 1e-7 * noise) == 1
    assert effective_rank(1 + 1e-3 * noise) > 15


def test_uniformity_is_the_mean_over_pairs():
    # Three unit vectors at right angles: every squared distance is 2.
    assert uniformity(torch.eye(3)) == pytest.approx(-4)


def test_distance_of_weights_is_relative_to_the_average():
    weights = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    average = [torch.tensor([0.0, 0.0]), torch.tensor([[2.0]])]
    assert relative_distance(weights, average) == pytest.approx(math.sqrt(9 + 4) / 2)
    assert relative_distance(weights, weights) == 0


def test_loss_of_guessing_is_that_of_coinciding_keys():
    one = F.normalize(torch.ones(4, 8), dim=1)
    negatives = F.normalize(torch.ones(9, 8), dim=1)
    loss, _ = info_nce(one, one, negatives, temperature=0.1)
    assert chance_loss(9) == pytest.approx(2 * float(loss), rel=1e-6)


def test_large_batches_are_measured_on_spaced_rows():
    rows = torch.arange(4 * MAX_ROWS)[:, None].float()
    spaced = spaced_rows(rows)
    assert len(spaced) == MAX_ROWS
    assert (spaced[0], spaced[-1]) == (0, 4 * MAX_ROWS - 1)
    assert torch.equal(spaced_rows(rows[:7]), rows[:7])


def test_clips_are_matched_by_their_own_other_view_and_a_tie_is_a_miss():
    views = torch.eye(4)
    assert matched_fraction(views, 3 * views) == 1
    assert matched_fraction(views, views[[1, 0, 2, 3]]) == 0.5
    assert matched_fraction(torch.ones(4, 8), torch.ones(4, 8)) == 0
