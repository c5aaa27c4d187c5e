"""Pooling of tokens to one vector a clip."""

import pytest
import torch

from ssmast.model.patch import Grid, KeptGrid, Tokens
from ssmast.model.pool import POOL_MODES, AttentionPool, pool_tokens, pooled_dim


def test_modes_are_what_their_names_say():
    x = torch.randn(2, 12, 5)
    classes = torch.randn(2, 2, 5)
    tokens = Tokens(x, Grid(3, 4), cls=classes)
    rows = x.unflatten(1, (3, 4)).mean(2)
    top = x.max(1).values
    spread = (x.unflatten(1, (3, 4)).var(2, correction=0) + 1e-6).sqrt().flatten(1)
    time = x.unflatten(1, (3, 4)).mean(1)  # (2, 4, 5)
    expected = {
        "mean": x.mean(1),
        "mean+max": torch.cat([x.mean(1), top], 1),
        "freq": torch.cat([rows[:, 0], rows[:, 1], rows[:, 2]], 1),
        "freq+max": torch.cat([rows[:, 0], rows[:, 1], rows[:, 2], top], 1),
        "freq+max+std": torch.cat([rows.flatten(1), top, spread], 1),
        "max+time2": torch.cat([top, time[:, :2].mean(1), time[:, 2:].mean(1)], 1),
        "time4": time.flatten(1),
        "cls": (classes[:, 0] + classes[:, 1]) / 2,
    }
    assert set(POOL_MODES) <= set(expected)
    for mode in expected:
        out = pool_tokens(tokens, mode=mode)
        torch.testing.assert_close(out, expected[mode])
        assert out.shape == (2, pooled_dim(mode, 3, 5))


def test_a_column_counts_in_two_parts_of_a_clip_by_its_overlap_with_each():
    columns = torch.tensor([1.0, 2.0, 6.0])
    out = pool_tokens(Tokens(columns.view(1, 3, 1), Grid(1, 3)), mode="time2")
    torch.testing.assert_close(out, torch.tensor([[(1 + 2 / 2) / 1.5, (2 / 2 + 6) / 1.5]]))


def test_the_gradient_of_a_standard_deviation_is_finite_where_all_tokens_are_alike():
    x = torch.ones(1, 4, 3, requires_grad=True)
    pool_tokens(Tokens(x, Grid(2, 2)), mode="std").sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("mode", ["median", "max+max", "cls+max", "freq+", ""])
def test_a_statistic_that_does_not_exist_is_refused(mode):
    with pytest.raises(ValueError, match="pooling must be mean, freq, max, std, time2, time4"):
        pool_tokens(Tokens(torch.ones(1, 4, 3), Grid(2, 2)), mode=mode)


@pytest.mark.parametrize("mode", ["mean", "mean+max", "freq+max", "std+time4", "time2+max+mean"])
def test_a_padded_clip_pools_as_it_would_alone(mode):
    x = torch.randn(1, 3, 6, 5)
    x[:, :, 4:] = float("nan")  # whatever lies in the padding
    mask = (torch.arange(6) < 4).repeat(3)[None]
    padded = pool_tokens(Tokens(x.flatten(1, 2), Grid(3, 6), mask), mode=mode)
    alone = pool_tokens(Tokens(x[:, :, :4].flatten(1, 2), Grid(3, 4)), mode=mode)
    torch.testing.assert_close(padded, alone)


def test_a_row_without_a_valid_token_gives_zeros():
    x = torch.randn(1, 6, 5)
    mask = torch.tensor([[True, True, True, False, False, False]])
    out = pool_tokens(Tokens(x, Grid(2, 3), mask), mode="freq+max")
    assert (out[:, 5:10] == 0).all()
    torch.testing.assert_close(out[:, 10:], x[:, :3].amax(1))


def test_rows_that_structured_drop_removed_stay_in_the_vector_as_zeros():
    x = torch.randn(2, 4, 5)
    grid = KeptGrid(torch.tensor([1, 3]), torch.tensor([0, 1]), Grid(4, 3))
    out = pool_tokens(Tokens(x, grid), mode="freq+max").unflatten(1, (5, 5))
    assert (out[:, [0, 2]] == 0).all()
    torch.testing.assert_close(out[:, [1, 3]], x.unflatten(1, (2, 2)).mean(2))


def test_attention_pool_sees_only_valid_tokens_and_mixes_them_by_weight():
    pool = AttentionPool(8, 2)
    torch.nn.init.normal_(pool.query)
    x = torch.randn(3, 7, 8)
    mask = torch.arange(7) < 5
    other = x.masked_fill(~mask[:, None], 9.0)
    masks = mask.expand(3, -1)
    torch.testing.assert_close(pool(x, masks), pool(other, masks), rtol=0, atol=0)
    torch.testing.assert_close(pool(x, masks), pool(x[:, :5]))
    same = pool(x[:, :1].expand(-1, 4, -1))
    torch.testing.assert_close(same, pool.proj(pool.value(x[:, 0])))


def test_class_tokens_that_are_not_there_cannot_be_pooled():
    with pytest.raises(ValueError, match="needs class tokens, which only ast_"):
        pool_tokens(Tokens(torch.randn(1, 4, 2), Grid(2, 2)), mode="cls")
