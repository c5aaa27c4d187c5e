import math
from itertools import pairwise

import pytest

from ssmast.training.config import Optim
from ssmast.training.optim import learning_rate


def test_warmup_is_linear_then_cosine_to_the_end():
    optim = Optim(lr=1.0, min_lr=0.01, warmup=0.1)
    values = [learning_rate(optim, step, steps=100) for step in range(100)]
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert values[10] == pytest.approx(1.0)
    assert values[-1] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(values[9:]))
    quarter = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 30 / 89))
    assert values[40] == pytest.approx(quarter)


def test_one_step_run_has_a_learning_rate():
    assert learning_rate(Optim(lr=0.5, min_lr=0.0), 0, steps=1) == 0.5
