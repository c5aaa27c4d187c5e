import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ssmast.contrastive import info_nce


def _unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


@pytest.mark.parametrize("num_negatives", [1, 7, 100])
def test_loss_equals_log_queue_plus_one_when_keys_coincide(num_negatives):
    key = _unit(1, 16)
    loss, accuracy = info_nce(
        _unit(4, 16), key.expand(4, -1), key.expand(num_negatives, -1), temperature=0.1
    )
    assert loss.item() == pytest.approx(math.log(num_negatives + 1), abs=1e-5)
    assert accuracy.item() == 0  # a tie is not a hit


def test_loss_follows_the_formula_of_the_poster():
    queries, positives, negatives = _unit(5, 8), _unit(5, 8, seed=1), _unit(9, 8, seed=2)
    loss, _ = info_nce(queries, positives, negatives, temperature=0.2)
    expected = 0.0
    for i in range(5):
        up = math.exp(float(queries[i] @ positives[i]) / 0.2)
        down = up + sum(math.exp(float(queries[i] @ negative) / 0.2) for negative in negatives)
        expected -= math.log(up / down) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_in_batch_loss_equals_lightly_ntxent_where_both_are_defined():
    # NT-Xent takes all other views of the batch as negatives, for both directions.
    from lightly.loss import NTXentLoss

    view_1, view_2 = _unit(6, 8), _unit(6, 8, seed=1)
    ids = torch.arange(6)
    both, both_ids = torch.cat([view_1, view_2]), torch.cat([ids, ids])
    ours = [
        info_nce(q, k, both, temperature=0.5, query_ids=ids, negative_ids=both_ids)[0]
        for q, k in ((view_1, view_2), (view_2, view_1))
    ]
    oracle = NTXentLoss(temperature=0.5)(view_1, view_2)
    assert torch.stack(ours).mean().item() == pytest.approx(oracle.item(), rel=1e-5)


def test_queue_loss_equals_lightly_ntxent_with_a_memory_bank():
    from lightly.loss import NTXentLoss

    queries, keys, negatives = _unit(4, 8), _unit(4, 8, seed=1), _unit(16, 8, seed=2)
    oracle = NTXentLoss(temperature=0.3, memory_bank_size=(16, 8))
    oracle.memory_bank.bank = negatives.clone()
    oracle.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    queries.requires_grad_()
    expected = oracle(queries, keys)
    loss, _ = info_nce(queries, keys, negatives, temperature=0.3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_own_clip_is_no_negative():
    queries, positives = _unit(2, 8), _unit(2, 8, seed=1)
    negatives = torch.cat([positives, _unit(3, 8, seed=2)])
    ids = torch.tensor([10, 11])
    masked, _ = info_nce(
        queries, positives, negatives,
        temperature=0.1, query_ids=ids, negative_ids=torch.tensor([10, 11, 1, 2, 3]),
    )  # fmt: skip
    expected = [
        info_nce(queries[i : i + 1], positives[i : i + 1], negatives[[1 - i, 2, 3, 4]],
                 temperature=0.1)[0]
        for i in (0, 1)
    ]  # fmt: skip
    assert masked.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_a_learnt_temperature_gets_the_gradient_of_the_formula_with_own_clips_masked():
    queries, positives, negatives = _unit(2, 8), _unit(2, 8, seed=1), _unit(5, 8, seed=2)
    ids = {"query_ids": torch.tensor([3, 4]), "negative_ids": torch.arange(5)}

    def loss_at(temperature):
        return info_nce(queries, positives, negatives, temperature=temperature, **ids)[0]

    temperature = torch.tensor(0.3, requires_grad=True)
    loss_at(temperature).backward()
    slope = (loss_at(0.301) - loss_at(0.299)) / 0.002
    assert temperature.grad.item() == pytest.approx(slope.item(), rel=1e-2)


def test_gradient_flows_to_queries_only_through_their_own_row():
    queries = _unit(3, 8).requires_grad_()
    loss, _ = info_nce(queries, _unit(3, 8, seed=1), _unit(4, 8, seed=2), temperature=0.1)
    loss.backward()
    assert (queries.grad.abs().sum(dim=1) > 0).all()


def test_loss_is_float32_under_bfloat16_autocast():
    queries, keys, negatives = _unit(4, 8), _unit(4, 8, seed=1), _unit(6, 8, seed=2)
    plain, _ = info_nce(queries, keys, negatives, temperature=0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = info_nce(queries, keys, negatives, temperature=0.07)
    assert mixed.dtype == torch.float32
    assert mixed.item() == plain.item()


def test_without_negatives_the_loss_is_zero():
    loss, accuracy = info_nce(_unit(2, 4), _unit(2, 4), torch.zeros(0, 4), temperature=0.1)
    assert loss.item() == 0
    assert accuracy.item() == 1


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        info_nce(_unit(2, 4), _unit(2, 4), _unit(2, 4), temperature=0.0)


def test_a_learnt_temperature_has_a_finite_gradient_though_the_own_clip_is_masked():
    torch.manual_seed(3)
    queries, keys = (F.normalize(torch.randn(4, 8), dim=1) for _ in range(2))
    ids = torch.arange(4)
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)

    def loss(t):
        return info_nce(queries, keys, keys, temperature=t, query_ids=ids, negative_ids=ids)[0]

    loss(temperature).backward()
    assert temperature.grad is not None
    step = 1e-3
    slope = (loss(0.2 + step) - loss(0.2 - step)) / (2 * step)
    assert float(temperature.grad) == pytest.approx(float(slope), rel=1e-2)


def test_with_several_positives_it_is_the_mean_of_one_at_a_time():
    queries, positives, negatives = _unit(3, 8), _unit(3, 2, 8, seed=1), _unit(6, 8, seed=2)
    ids = {"query_ids": torch.tensor([0, 1, 9]), "negative_ids": torch.arange(6)}
    loss, accuracy = info_nce(queries, positives, negatives, temperature=0.2, **ids)
    single = [
        info_nce(queries, positives[:, m], negatives, temperature=0.2, **ids) for m in range(2)
    ]
    assert loss.item() == pytest.approx(np.mean([float(one) for one, _ in single]), rel=1e-6)
    assert accuracy.item() == pytest.approx(np.mean([float(hit) for _, hit in single]))
    swapped, _ = info_nce(queries, positives.flip(1), negatives, temperature=0.2, **ids)
    assert swapped.item() == pytest.approx(loss.item(), rel=1e-6)


def test_several_positives_that_coincide_with_all_keys_are_guessed():
    key = _unit(1, 16)
    loss, accuracy = info_nce(
        _unit(4, 16), key.expand(4, 3, -1), key.expand(5, -1), temperature=0.1
    )
    assert loss.item() == pytest.approx(math.log(6), abs=1e-5)
    assert accuracy.item() == 0
