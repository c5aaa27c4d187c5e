import math
from itertools import pairwise

import pytest

from ssmast.training.optim import cosine, warmup_cosine


def test_cosine_reaches_both_ends_and_the_middle():
    assert cosine(0, steps=101, start=0.99, end=1.0) == pytest.approx(0.99)
    assert cosine(50, steps=101, start=0.99, end=1.0) == pytest.approx(0.995)
    assert cosine(100, steps=101, start=0.99, end=1.0) == 1.0


def test_cosine_equals_lightly():
    from lightly.utils.scheduler import cosine_schedule

    for step in (0, 3, 10, 19):
        expected = cosine_schedule(step, 20, 0.9, 1.0)
        assert cosine(step, steps=20, start=0.9, end=1.0) == pytest.approx(expected)


def test_warmup_is_linear_then_cosine_to_the_end():
    values = [
        warmup_cosine(step, steps=100, warmup_steps=10, peak=1.0, end=0.01) for step in range(100)
    ]
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert values[10] == pytest.approx(1.0)
    assert values[-1] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(values[9:]))
    quarter = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 30 / 89))
    assert values[40] == pytest.approx(quarter)


def test_one_step_run_has_a_learning_rate():
    assert warmup_cosine(0, steps=1, warmup_steps=1, peak=0.5, end=0.0) == 0.5
