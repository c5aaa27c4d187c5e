import time

import numpy as np
import pytest

from ssmast.audio.order import StepSampler, keyed_uniform, sample_at


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000, 4096, 4097])
def test_every_epoch_is_a_permutation(size):
    epoch, index = sample_at(np.arange(3 * size), size=size, seed=7)
    for number in range(3):
        np.testing.assert_array_equal(np.sort(index[epoch == number]), np.arange(size))


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = (sample_at(np.arange(1000) + 1000 * e, size=1000, seed=0)[1] for e in (0, 1))
    other = sample_at(np.arange(1000), size=1000, seed=1)[1]
    assert (first == second).sum() < 10
    assert (first == other).sum() < 10
    assert (first == np.arange(1000)).sum() < 10


def test_one_position_agrees_with_an_array_of_them():
    positions = np.array([[0, 5, 999], [1000, 12345, 10**12]])
    epoch, index = sample_at(positions, size=1000, seed=3)
    for place in np.ndindex(positions.shape):
        pair = sample_at(int(positions[place]), size=1000, seed=3)
        assert pair == (epoch[place], index[place])
        assert all(isinstance(number, int) for number in pair)
    assert epoch.dtype == index.dtype == np.int64
    assert epoch[1, 2] == 10**9


@pytest.mark.parametrize("size", [2, 3, 5, 10, 40])
def test_places_in_a_small_corpus_are_equally_likely(size):
    num_epochs = 400 * size
    _, index = sample_at(np.arange(size * num_epochs), size=size, seed=0)
    places = index.reshape(num_epochs, size).T
    counts = np.stack([np.bincount(place, minlength=size) for place in places])
    chi_square = ((counts - 400) ** 2 / 400).sum()
    freedom = (size - 1) ** 2
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_neighbours_in_the_stream_are_not_neighbours_in_the_corpus():
    _, index = sample_at(np.arange(4097), size=4097, seed=0)
    assert abs(np.corrcoef(index[:-1], index[1:])[0, 1]) < 0.06
    assert abs(np.corrcoef(index, np.arange(4097))[0, 1]) < 0.06
    assert np.mean(np.abs(np.diff(index)) == 1) < 0.005


def test_a_batch_out_of_a_billion_takes_milliseconds():
    sample_at(np.arange(4096), size=10**9, seed=0)
    start = time.perf_counter()
    _, index = sample_at(np.arange(4096) + 123_456_789_000, size=10**9, seed=0)
    assert time.perf_counter() - start < 0.05
    assert len(np.unique(index)) > 4090
    assert index.max() < 10**9


def test_impossible_positions_are_refused():
    with pytest.raises(ValueError, match="size must be at least 1 clip, got 0"):
        sample_at(0, size=0, seed=0)
    with pytest.raises(ValueError, match="position must not be negative, got -1"):
        sample_at(np.array([3, -1]), size=10, seed=0)


def test_draws_are_uniform():
    draws = keyed_uniform(0, 0, np.arange(20000), 0, 4)
    assert draws.dtype == np.float32
    assert draws.shape == (20000, 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(draws.var(axis=0), 1 / 12, atol=0.003)
    counts = np.bincount((draws.ravel() * 64).astype(int), minlength=64)
    expected = draws.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * np.sqrt(126)


def test_draws_of_neighbouring_keys_are_unrelated():
    index = np.arange(20000)
    base = keyed_uniform(5, 2, index, 0, 2)
    others = {
        "clip": keyed_uniform(5, 2, index + 1, 0, 2),
        "epoch": keyed_uniform(5, 3, index, 0, 2),
        "view": keyed_uniform(5, 2, index, 1, 2),
        "negative view": keyed_uniform(5, 2, index, -1, 2),
        "seed": keyed_uniform(6, 2, index, 0, 2),
        "swapped": keyed_uniform(2, 5, index, 0, 2),
    }
    for other in others.values():
        assert abs(np.corrcoef(base[:, 0], other[:, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(base[:, 0], base[:, 1])[0, 1]) < 0.03
    assert abs(np.corrcoef(base[:-1, 0], base[1:, 0])[0, 1]) < 0.03


def test_draws_do_not_depend_on_the_batch_around_them():
    index = np.array([5, 900, 17])
    together = keyed_uniform(1, np.array([0, 1, 2]), index, 3, 5)
    for row, (epoch, clip) in zip(together, enumerate(index), strict=True):
        alone = keyed_uniform(1, epoch, int(clip), 3, 5)
        assert alone.shape == (5,)
        np.testing.assert_array_equal(row, alone)
    np.testing.assert_array_equal(keyed_uniform(1, 0, 5, 3, 2), together[0, :2])
    views = keyed_uniform(1, 0, index[:, None], np.arange(2), 4)
    assert views.shape == (3, 2, 4)
    np.testing.assert_array_equal(views[1, 1], keyed_uniform(1, 0, 900, 1, 4))


def test_draws_are_the_same_on_every_machine():
    draws = keyed_uniform(0, 1, 2, 3, 3)
    np.testing.assert_array_equal((draws * 2**24).astype(np.int64), KEYED_UNIFORM_0_1_2_3)
    assert sample_at(5, size=1000, seed=0) == SAMPLE_AT_5_OF_1000


# Written down once: a run resumes with another version only while these stay as they are.
KEYED_UNIFORM_0_1_2_3 = [1750990, 1039251, 13890179]
SAMPLE_AT_5_OF_1000 = (0, 272)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 6])
def test_a_step_is_the_same_for_any_number_of_ranks(num_ranks):
    ranks = [
        list(StepSampler(start=4, stop=7, batch_size=12, rank=rank, num_ranks=num_ranks))
        for rank in range(num_ranks)
    ]
    for number, parts in enumerate(zip(*ranks, strict=True)):
        first = (4 + number) * 12
        assert [p for part in parts for p in part] == list(range(first, first + 12))


def test_a_sampler_resumes_from_its_step():
    whole = list(StepSampler(start=0, stop=10, batch_size=4))
    assert list(StepSampler(start=6, stop=10, batch_size=4)) == whole[6:]
    assert len(StepSampler(start=6, stop=10, batch_size=4)) == 4


def test_ranks_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="multiple of the number of processes, got 10 clips for 4"):
        StepSampler(start=0, stop=1, batch_size=10, rank=0, num_ranks=4)
    with pytest.raises(ValueError, match=r"rank must lie in \[0, 2\), got 2"):
        StepSampler(start=0, stop=1, batch_size=10, rank=2, num_ranks=2)
    with pytest.raises(ValueError, match="0 <= start <= stop, got 3 and 2"):
        StepSampler(start=3, stop=2, batch_size=10)
