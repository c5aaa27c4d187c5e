import math

import pytest
import torch
from torch.nn import functional as F

from ssmast.contrastive.monitors import alignment, effective_rank, feature_std, uniformity


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
