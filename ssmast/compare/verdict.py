"""Which variant is better, by how much, and whether that can be told: a function of scores alone.

The runs of one seed see the same clips in the same order, so differences are taken seed by seed,
and over the tasks of a seed averaged. Their mean over the seeds has Student's t interval.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr, stdtrit  # Student's t: distribution and quantile, freedom first

ALPHA, POWER = 0.05, 0.8
MOST_SEEDS = 1000
"""More than so many further seeds are not counted out."""
_SAME = 1e-9  # scores that differ by less are the same but for rounding

Scores = Mapping[int, Mapping[str, float]]
"""Score (0 to 1) of a variant by seed and task."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better the first is than the second.

    Attributes:
        mean: of the difference, over tasks and seeds.
        low: lower end of its 95 % interval; None where there is none, because there is one value
            or because all are the same.
        high: upper end.
        p: of a difference of 0, two-sided; adjusted by `judge` for the number of pairs.
        over: "seeds", or "tasks" where there is one seed.
        num: how many of them.
        is_apart: the two can be told apart.
        more_seeds: that would probably tell them apart; None if unknown or not needed.
    """

    first: str
    second: str
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    over: str = "seeds"
    num: int = 0
    is_apart: bool = False
    more_seeds: int | None = None

    @property
    def text(self) -> str:
        """`+2.1 points, 95 % interval +0.8 to +3.4`."""
        if self.low is None or self.high is None:
            return f"{100 * self.mean:+.1f} points"
        interval = f"{100 * self.low:+.1f} to {100 * self.high:+.1f}"
        return f"{100 * self.mean:+.1f} points, 95 % interval {interval}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the scores say.

    Attributes:
        sentence: which is better by how much, or that it cannot be told.
        means: average score of each variant over tasks and seeds, the best first.
        differences: of every pair, the better one first.
    """

    sentence: str
    means: dict[str, float]
    differences: list[Difference]


def judge(scores: Mapping[str, Scores]) -> Verdict:
    """Compare all pairs on the seeds and tasks that every variant has been scored on.

    Raises:
        ValueError: if there is no variant, or no seed and task that all of them have.

    Source: Holm 1979 for the adjustment over pairs: over all of them, the chance of telling apart
    two that are the same stays below 5 %.
    """
    seeds, tasks = shared(scores)
    means = {
        name: float(np.mean([[of[seed][task] for task in tasks] for seed in seeds]))
        for name, of in scores.items()
    }
    ranked = sorted(scores, key=lambda name: -means[name])
    pairs = _holm([difference(*pair, scores) for pair in itertools.combinations(ranked, 2)])
    return Verdict(
        sentence=_sentence(ranked, pairs, means, num_seeds=len(seeds), num_tasks=len(tasks)),
        means={name: means[name] for name in ranked},
        differences=pairs,
    )


def difference(first: str, second: str, scores: Mapping[str, Scores]) -> Difference:
    """First minus second, on the seeds and tasks that all of `scores` have; not adjusted."""
    seeds, tasks = shared(scores)
    table = np.array(
        [[scores[first][seed][t] - scores[second][seed][t] for t in tasks] for seed in seeds]
    )  # (seeds, tasks)
    over = "seeds" if len(seeds) > 1 else "tasks"
    values = table.mean(axis=1) if len(seeds) > 1 else table[0]
    mean, num = float(values.mean()), len(values)
    found = {"first": first, "second": second, "mean": mean, "over": over, "num": num}
    if np.abs(values).max() < _SAME:
        return Difference(**found, low=0.0, high=0.0, p=1.0)
    std = float(values.std(ddof=1)) if num > 1 else 0.0
    if std < _SAME:  # one value, or scores so coarse that they hide how much they vary
        return Difference(**found)
    error = std / math.sqrt(num)
    reach = float(stdtrit(num - 1, 1 - ALPHA / 2)) * error
    p = 2 * float(stdtr(num - 1, -abs(mean) / error))
    return Difference(
        **found,
        low=mean - reach,
        high=mean + reach,
        p=p,
        is_apart=p <= ALPHA,
        more_seeds=_more_seeds(abs(mean), std, num) if over == "seeds" and p > ALPHA else None,
    )


def shared(scores: Mapping[str, Scores]) -> tuple[list[int], list[str]]:
    """Seeds, and tasks of all of them, that every variant has.

    Raises:
        ValueError: if there is none.
    """
    if not scores:
        raise ValueError("no variant has a score, so there is nothing to compare")
    seeds = sorted(set.intersection(*(set(of) for of in scores.values())))
    first = next(iter(scores.values()))
    tasks = [
        task
        for task in (first[seeds[0]] if seeds else ())
        if all(task in of[seed] for of in scores.values() for seed in seeds)
    ]
    if not tasks:
        raise ValueError(f"{', '.join(scores)} have no seed and task in common to be compared by")
    return seeds, tasks


def _holm(pairs: Sequence[Difference]) -> list[Difference]:
    """The pairs with p adjusted for their number, and what can then be told apart."""
    order = sorted(
        (number for number, pair in enumerate(pairs) if pair.p is not None),
        key=lambda number: pairs[number].p or 0.0,
    )
    adjusted, lowest = list(pairs), 0.0
    for rank, number in enumerate(order):
        pair = pairs[number]
        lowest = max(lowest, min(1.0, (len(pairs) - rank) * (pair.p or 0.0)))
        is_apart, more = lowest <= ALPHA, pair.more_seeds
        if pair.is_apart and not is_apart and pair.over == "seeds":
            more = 1  # alone it would be told apart
        adjusted[number] = replace(pair, p=lowest, is_apart=is_apart, more_seeds=more)
    return adjusted


def _more_seeds(mean: float, std: float, num: int) -> int:
    """Seeds beyond `num` that tell such a difference apart four times of five; at most 1000."""
    more = np.arange(1, MOST_SEEDS)
    freedom = num + more - 1
    reach = stdtrit(freedom, 1 - ALPHA / 2) + stdtrit(freedom, POWER)
    enough = more[mean * np.sqrt(num + more) >= reach * std]
    return int(enough[0]) if len(enough) else MOST_SEEDS


def _sentence(
    ranked: Sequence[str],
    pairs: Sequence[Difference],
    means: Mapping[str, float],
    *,
    num_seeds: int,
    num_tasks: int,
) -> str:
    best = ranked[0]
    others = sorted((pair for pair in pairs if pair.first == best), key=lambda p: not p.is_apart)
    parts = [_said(pair) for pair in others]
    if not parts:
        parts = [f"scores {100 * means[best]:.1f} and has no other to be compared with"]
    basis = f"{_count(num_tasks, 'task')} and {_count(num_seeds, 'seed')}"
    if num_seeds == 1:
        basis += ", which says nothing about other seeds"
    return f"{best} {'; it '.join(parts)} (over {basis})."


def _said(pair: Difference) -> str:
    if pair.is_apart:
        return f"is better than {pair.second} by {pair.text.removeprefix('+')}"
    if pair.mean == 0 or (pair.p == 1.0 and pair.low == pair.high):
        return f"cannot be told apart from {pair.second}: their scores are the same"
    more = "more seeds"
    if pair.more_seeds is not None:
        beyond = "more than" if pair.more_seeds == MOST_SEEDS else "about"
        more = f"{beyond} {_count(pair.more_seeds, 'more seed')}"
    return f"cannot be told apart from {pair.second} ({pair.text}): needs {more}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
