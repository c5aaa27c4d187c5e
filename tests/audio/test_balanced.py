"""A stream in which clips come by their weights: shares, epochs, and the same draw for all."""

import numpy as np
import pytest

from ssmast.audio import BalancedOrder


def _epoch(order: BalancedOrder, epoch: int, *, seed: int = 3) -> list[tuple[int, int]]:
    return [order(epoch * order.size + i, seed=seed) for i in range(order.size)]


def test_every_epoch_holds_each_clip_its_expected_number_of_times():
    weights = np.array([1.0, 1.0, 6.0, 0.0, 2.0, 0.5] * 20)
    order = BalancedOrder(weights)
    expected = weights / weights.sum() * len(weights)
    total = np.zeros(len(weights))
    for epoch in range(50):
        counts = np.bincount([clip for _, clip in _epoch(order, epoch)], minlength=len(weights))
        assert counts.sum() == len(weights)
        assert (np.abs(counts - expected) < 2).all()  # a clip may straddle the edge of a cell
        assert counts[weights == 0].sum() == 0
        total += counts
    assert np.abs(total / 50 - expected).max() < 0.35


def test_equal_weights_give_every_clip_once():
    order = BalancedOrder(np.full(37, 0.2))
    assert sorted(clip for _, clip in _epoch(order, 5)) == list(range(37))


def test_a_clip_never_comes_twice_under_one_epoch_number():
    order = BalancedOrder(np.array([10.0, 1.0, 1.0, 1.0]))
    drawn = [pair for epoch in range(30) for pair in _epoch(order, epoch)]
    assert len(set(drawn)) == len(drawn)
    assert min(epoch for epoch, _ in drawn) >= 0


def test_where_a_position_leads_needs_nothing_but_weights_and_seed():
    weights = np.random.default_rng(0).uniform(0, 1, 50)
    forwards = [BalancedOrder(weights)(i, seed=1) for i in range(200)]
    order = BalancedOrder(weights)
    assert [order(i, seed=1) for i in reversed(range(200))] == forwards[::-1]
    assert [order(i, seed=2) for i in range(200)] != forwards
    epochs, clips = order(np.arange(200), seed=1)  # a batch at once
    assert list(zip(epochs.tolist(), clips.tolist(), strict=True)) == forwards


@pytest.mark.parametrize("weights", [[], [1.0, -0.1], [np.nan, 1.0], [0.0, 0.0]])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        BalancedOrder(np.array(weights))
