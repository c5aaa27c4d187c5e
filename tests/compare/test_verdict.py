"""The verdict as a function of scores: how often it is wrong, what it finds, what it says."""

import numpy as np
import pytest
from scipy import stats

from ssmast.compare.verdict import difference, judge


def _drawn(rng, names, *, seeds=3, tasks=4, gain=0.0, noise=0.01):
    """Scores whose seeds and tasks have effects that all share; the first is better by `gain`."""
    of_seed, of_task = rng.normal(0, 0.02, seeds), rng.uniform(0.4, 0.9, tasks)
    return {
        name: {
            seed: {
                f"t{task}": of_seed[seed] + of_task[task] + rng.normal(0, noise)
                + (0 if number else gain)
                for task in range(tasks)
            }
            for seed in range(seeds)
        }
        for number, name in enumerate(names)
    }  # fmt: skip


def test_two_that_are_the_same_are_told_apart_in_at_most_one_of_twenty():
    rng = np.random.default_rng(3)
    draws = 2000
    wrong = sum(judge(_drawn(rng, "ab")).differences[0].is_apart for _ in range(draws))
    assert 0.03 < wrong / draws <= 0.05


def test_of_four_that_are_the_same_any_two_are_told_apart_in_at_most_one_of_twenty():
    rng = np.random.default_rng(0)
    draws = 500
    wrong = sum(
        any(pair.is_apart for pair in judge(_drawn(rng, "abcd")).differences) for _ in range(draws)
    )
    assert wrong / draws <= 0.05


def test_one_that_is_better_is_found_with_its_gain_inside_the_interval():
    rng, inside = np.random.default_rng(1), 0
    for _ in range(200):
        pair = judge(_drawn(rng, "ab", gain=0.05, seeds=4)).differences[0]
        assert (pair.first, pair.is_apart) == ("a", True)
        inside += pair.low < 0.05 < pair.high
    assert 0.9 < inside / 200 < 0.99


def test_what_learns_nothing_is_worse():
    """As with optim.lr=0: the untrained scores, whatever the seed does."""
    rng = np.random.default_rng(2)
    found = judge(_drawn(rng, ["learns", "lr_0"], gain=0.1))
    assert found.sentence.startswith("learns is better than lr_0 by ")
    assert list(found.means) == ["learns", "lr_0"]


def test_the_interval_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(4)
    scores = _drawn(rng, "ab", seeds=5)
    means = {n: [np.mean(list(of.values())) for of in scores[n].values()] for n in "ab"}
    wanted = stats.ttest_rel(means["a"], means["b"])
    found = difference("a", "b", scores)
    assert found.p == pytest.approx(wanted.pvalue)
    interval = wanted.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def _by_seed(**values):
    return {n: {s: {"t": x} for s, x in enumerate(of)} for n, of in values.items()}


def test_what_all_variants_gain_from_a_seed_does_not_hide_their_difference():
    scores = _by_seed(a=[0.52, 0.73, 0.911], b=[0.50, 0.71, 0.89])
    assert judge(scores).differences[0].is_apart


def test_p_is_adjusted_over_the_pairs_as_holm_says():
    scores = _by_seed(
        a=[0.80, 0.82, 0.81], b=[0.70, 0.723, 0.707], c=[0.69, 0.725, 0.712]
    )  # fmt: skip
    plain = {
        (p.first, p.second): difference(p.first, p.second, scores).p
        for p in judge(scores).differences
    }
    order = sorted(plain, key=lambda pair: plain[pair])
    found = {(p.first, p.second): p.p for p in judge(scores).differences}
    assert found[order[0]] == pytest.approx(3 * plain[order[0]])
    assert found[order[1]] == pytest.approx(max(2 * plain[order[1]], found[order[0]]))
    assert found[order[2]] == pytest.approx(max(plain[order[2]], found[order[1]]))


def test_the_number_of_seeds_it_asks_for_tells_them_apart_four_times_of_five():
    scores = _by_seed(a=[0.52, 0.50, 0.54], b=[0.50, 0.52, 0.51])
    pair = judge(scores).differences[0]
    differences = np.array([0.02, -0.02, 0.03])
    std, mean, num = differences.std(ddof=1), differences.mean(), 3 + pair.more_seeds
    rng = np.random.default_rng(0)
    draws = rng.normal(mean, std, (4000, num))
    found = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.04)
    assert f"needs about {pair.more_seeds} more seeds" in judge(scores).sentence


def test_one_seed_is_judged_over_tasks_and_says_so():
    scores = _drawn(np.random.default_rng(0), "ab", seeds=1, gain=0.2)
    found = judge(scores)
    assert (found.differences[0].over, found.differences[0].num) == ("tasks", 4)
    assert found.differences[0].is_apart
    assert "1 seed, which says nothing about other seeds" in found.sentence


def test_one_value_or_one_without_spread_tells_nothing():
    """Scores of few clips are coarse: the same difference twice is no proof."""
    for scores in (_by_seed(a=[0.6], b=[0.5]), _by_seed(a=[0.6, 0.7], b=[0.5, 0.6])):
        found = judge(scores)
        assert not found.differences[0].is_apart
        assert found.differences[0].p is None
        assert "a cannot be told apart from b (+10.0 points): needs more seeds" in found.sentence


def test_equal_scores_are_called_so():
    assert "their scores are the same" in judge(_by_seed(a=[0.6, 0.7], b=[0.6, 0.7])).sentence


def test_only_seeds_that_all_have_are_compared():
    found = judge(_by_seed(a=[0.9, 0.5], b=[0.4]))
    assert found.means == pytest.approx({"a": 0.9, "b": 0.4})
    assert "over 1 task and 1 seed" in found.sentence
    with pytest.raises(ValueError, match="no seed and task in common"):
        judge({"a": {0: {"t": 1.0}}, "b": {1: {"t": 1.0}}})
    with pytest.raises(ValueError, match="nothing to compare"):
        judge({})


def test_what_is_worse_is_named_before_what_cannot_be_told_apart():
    scores = _by_seed(a=[0.80, 0.82, 0.81], b=[0.79, 0.822, 0.812], c=[0.5, 0.519, 0.511])
    said = judge(scores).sentence
    assert said.startswith("a is better than c by 30.0 points, 95 % interval +29.8 to +30.2; it ")
    assert "; it cannot be told apart from b (" in said


def test_one_alone_is_told_with_its_score():
    assert judge(_by_seed(a=[0.5, 0.7])).sentence.startswith("a scores 60.0 and has no other")
