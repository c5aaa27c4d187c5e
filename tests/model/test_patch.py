"""Grid, stem and the draws of patch-drop."""

import copy

import pytest
import torch

from ssmast.model import create_model
from ssmast.model.patch import (
    Grid,
    KeptGrid,
    PatchEmbed,
    draw_patch_drop,
    patch_drop_draws,
    pool_mask,
)

GROUP = (4, 8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_grid_is_a_pair_and_pools_with_a_rest_as_one_more_token():
    grid = Grid(5, 7)
    freq, time = grid
    assert (freq, time) == grid == (5, 7)
    assert grid.pool((2, 4)) == (3, 2)
    assert grid.full is grid
    assert grid.positions(1).tolist() == list(range(7))


def test_kept_grid_pools_positions_with_the_tokens_and_survives_a_copy():
    rows, columns = torch.tensor([4, 5, 6, 7]), torch.tensor([0, 1, 2, 3, 8, 9])
    grid = KeptGrid(rows, columns, Grid(8, 10))
    assert grid == (4, 6)
    pooled = copy.deepcopy(grid).pool((2, 4))
    assert pooled == (2, 2)
    assert pooled.full == (4, 3)
    assert pooled.positions(0).tolist() == [2, 3]
    assert pooled.positions(1).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((7, 7), (4, 4), (3, 3)), ((16, 16), (10, 10), (0, 0))]
)
@pytest.mark.parametrize("size", [(128, 1024), (128, 97), (65, 21), (16, 16)])
def test_stem_grid_is_told_before_it_is_computed(kernel, stride, padding, size):
    stem = PatchEmbed(1, 8, kernel=kernel, stride=stride, padding=padding)
    (tokens, grid, mask, cls), columns = stem(torch.randn(2, 1, *size))
    assert (mask, cls, columns) == (None, None, None)
    assert tokens.shape == (2, grid.freq * grid.time, 8)
    assert grid == stem.grid(*size)


def test_an_input_smaller_than_the_stem_is_refused():
    stem = PatchEmbed(1, 8, kernel=(16, 16), stride=(10, 10), padding=(0, 0))
    with pytest.raises(ValueError, match="at least as large as the stem's kernel"):
        stem(torch.randn(1, 1, 128, 15))


def test_a_pooled_token_is_valid_where_its_stride_cell_holds_any_valid_token():
    mask = torch.zeros(1, 3, 5, dtype=torch.bool)
    mask[0, 0, 1] = mask[0, 2, 4] = True
    pooled = pool_mask(mask.flatten(1), Grid(3, 5), (2, 2))
    assert pooled.unflatten(1, (2, 3)).int().tolist() == [[[1, 0, 0], [0, 0, 1]]]


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_random_drop_takes_the_exact_number_from_every_clip_and_not_the_same(rate):
    grid = Grid(32, 24)
    drop = draw_patch_drop(grid, rate=rate, mode="random", batch=4, generator=generator())
    assert drop.keep.sum(1).tolist() == [768 - round(rate * 768)] * 4
    assert not torch.equal(drop.keep[0], drop.keep[1])


def test_random_drop_of_one_patch_keeps_it():
    drop = draw_patch_drop(Grid(1, 1), rate=0.9, mode="random", batch=2, generator=generator())
    assert drop.keep.all()


@pytest.mark.parametrize("mode", ["random", "structured"])
def test_draws_come_from_the_numbers_given_and_never_from_the_global_generator(mode):
    grid = Grid(32, 24)
    state = torch.get_rng_state()
    shape = patch_drop_draws(grid, mode=mode, batch=3, group=GROUP)
    uniforms = torch.rand(shape, generator=generator())
    drop = draw_patch_drop(grid, rate=0.3, mode=mode, batch=3, group=GROUP, uniforms=uniforms)
    again = draw_patch_drop(grid, rate=0.3, mode=mode, batch=3, group=GROUP, generator=generator())
    assert torch.equal(state, torch.get_rng_state())
    for ours, theirs in zip(drop[1:], again[1:], strict=True):
        same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
        assert same


def test_random_draws_of_a_clip_do_not_depend_on_the_others():
    grid = Grid(8, 8)
    uniforms = torch.rand(3, 64, generator=generator())
    drop = draw_patch_drop(grid, rate=0.5, mode="random", batch=3, uniforms=uniforms)
    alone = draw_patch_drop(grid, rate=0.5, mode="random", batch=1, uniforms=uniforms[1:2])
    assert torch.equal(drop.keep[1:2], alone.keep)


@pytest.mark.parametrize(
    ("grid", "rate", "tolerance"),
    [
        (Grid(32, 256), 0.2, 0.004),
        (Grid(32, 24), 0.2, 0.01),
        (Grid(32, 24), 0.5, 0.01),
        (Grid(32, 25), 0.2, 0.02),
        (Grid(64, 128), 0.9, 0.01),
        (Grid(16, 6), 0.3, 0.02),
    ],
)
def test_structured_drop_keeps_the_wanted_share_on_average(grid, rate, tolerance):
    shares = []
    source = generator()
    for _ in range(1500):
        drop = draw_patch_drop(
            grid, rate=rate, mode="structured", batch=1, group=GROUP, generator=source
        )
        shares.append(len(drop.rows) * len(drop.columns) / (grid.freq * grid.time))
    assert sum(shares) / len(shares) == pytest.approx(1 - rate, abs=tolerance)


def test_structured_drop_takes_whole_groups_and_keeps_their_order():
    source = generator()
    seen_rows, seen_columns = set(), set()
    for _ in range(50):
        drop = draw_patch_drop(
            Grid(30, 251), rate=0.4, mode="structured", batch=1, group=GROUP, generator=source
        )
        for kept, size, length in ((drop.rows, 4, 30), (drop.columns, 8, 251)):
            groups = (kept // size).unique()
            whole = [p for g in groups.tolist() for p in range(g * size, (g + 1) * size)]
            assert kept.tolist() == [p for p in whole if p < length]
        seen_rows |= set(drop.rows.tolist())
        seen_columns |= set(drop.columns.tolist())
    assert seen_rows == set(range(30))
    assert seen_columns == set(range(251))


@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(3, 2), Grid(4, 9), Grid(32, 6)])
@pytest.mark.parametrize("rate", [0.2, 0.9])
def test_structured_drop_of_a_small_grid_keeps_at_least_one_group(grid, rate):
    for seed in range(20):
        drop = draw_patch_drop(
            grid, rate=rate, mode="structured", batch=1, group=GROUP, generator=generator(seed)
        )
        assert 1 <= len(drop.rows) <= grid.freq
        assert 1 <= len(drop.columns) <= grid.time


def test_the_group_is_the_encoders_total_stride():
    assert create_model("mast_nano").drop_group == (4, 8)
    assert create_model("mast_nano", stride_q=((1, 1), (2, 2), (2, 2), (2, 2))).drop_group == (8, 8)
    # Without any query pooling the keys of every stage still pool by 4 x 4.
    assert create_model("mast_nano", stride_q=((1, 1),) * 4).drop_group == (4, 4)


def test_no_rate_drops_nothing():
    drop = draw_patch_drop(Grid(4, 4), rate=0.0, mode="random", batch=2)
    assert drop.keep is None
    assert drop.rows is None


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"mode": "some"}, 'must be "random" or "structured", got \'some\''),
        ({"rate": 0.95}, "must lie in 0..0.9, got 0.95"),
        ({"rate": -0.1}, "must lie in 0..0.9"),
        ({}, "need generator= or uniforms="),
        ({"uniforms": torch.rand(2, 3)}, r"must have shape \(2, 16\), got \(2, 3\)"),
        ({"mode": "structured", "generator": generator()}, "needs group="),
    ],
)
def test_wrong_requests_say_what_was_wanted(numbers, message):
    with pytest.raises(ValueError, match=message):
        draw_patch_drop(Grid(4, 4), **{"rate": 0.5, "mode": "random", "batch": 2, **numbers})
