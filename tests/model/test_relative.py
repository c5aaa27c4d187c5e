"""Relative position rows against the definition, cell by cell."""

import math

import pytest
import torch

from ssmast.model.attention import read_rows, relative_rows, table_length, zero_index
from ssmast.model.patch import Grid, KeptGrid

# The strides of MViTv2's blocks: (query, key).
STRIDES = [(1, 4), (2, 2), (1, 2), (2, 1), (1, 1)]


def released_index(size: int, stride_q: int, stride_k: int) -> torch.Tensor:
    """Table index by the lengths of the pooled axes, as MViTv2's released code has it."""
    num_q, num_k = size // stride_q, size // stride_k
    ratio_q, ratio_k = max(num_k / num_q, 1.0), max(num_q / num_k, 1.0)
    distance = torch.arange(num_q)[:, None] * ratio_q - torch.arange(num_k)[None] * ratio_k
    return (distance + (num_k - 1) * ratio_k).long()


@pytest.mark.parametrize(("stride_q", "stride_k"), STRIDES)
def test_rows_are_those_of_the_released_code_where_strides_divide_the_length(stride_q, stride_k):
    table = torch.arange(table_length(24, stride_q, stride_k), dtype=torch.float32)[:, None]
    assert len(table) == 2 * max(24 // stride_q, 24 // stride_k) - 1
    rows = relative_rows(
        table,
        Grid(1, 24),
        axis=1,
        train_size=24,
        stride_q=stride_q,
        stride_k=stride_k,
    )
    assert torch.equal(rows[..., 0].long(), released_index(24, stride_q, stride_k))


@pytest.mark.parametrize(("stride_q", "stride_k"), STRIDES)
@pytest.mark.parametrize("train_size", [1, 2, 9, 21, 101])
def test_every_distance_of_an_odd_training_length_has_its_own_row(stride_q, stride_k, train_size):
    length = table_length(train_size, stride_q, stride_k)
    zero = zero_index(train_size, stride_q, stride_k)
    unit = min(stride_q, stride_k)
    for query in range(0, train_size, stride_q):
        for key in range(0, train_size, stride_k):
            assert 0 <= zero + (query - key) / unit < length


@pytest.mark.parametrize(("stride_q", "stride_k"), STRIDES)
@pytest.mark.parametrize("size", [3, 13, 21, 40, 65])
def test_rows_follow_the_definition_for_any_length(stride_q, stride_k, size):
    train_size = 21
    length = table_length(train_size, stride_q, stride_k)
    table = torch.randn(length, 3, dtype=torch.float64)
    zero = zero_index(train_size, stride_q, stride_k)
    stretch = max(1.0, size / train_size)
    rows = relative_rows(
        table,
        Grid(1, size),
        axis=1,
        train_size=train_size,
        stride_q=stride_q,
        stride_k=stride_k,
        stretch=stretch if stretch > 1 else None,
    )
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            distance = (i * stride_q - j * stride_k) / min(stride_q, stride_k)
            index = min(max(zero + distance / stretch, 0), length - 1)
            low, high = table[math.floor(index)], table[math.ceil(index)]
            expected = low + (index - math.floor(index)) * (high - low)
            torch.testing.assert_close(rows[i, j], expected)


def test_a_stretch_for_each_clip_gives_each_clip_its_own_rows():
    table = torch.randn(table_length(20, 1, 2), 4)
    grid = Grid(1, 50)
    strides = {"axis": 1, "train_size": 20, "stride_q": 1, "stride_k": 2}
    stretch = torch.tensor([1.0, 2.5, 1.3], dtype=torch.float64)
    together = relative_rows(table, grid, **strides, stretch=stretch)
    for rows, own in zip(together, stretch.tolist(), strict=True):
        alone = relative_rows(table, grid, **strides, stretch=own)
        assert torch.equal(rows, alone)


def test_without_stretch_distances_beyond_the_table_use_its_last_row():
    table = torch.arange(table_length(4, 1, 1), dtype=torch.float32)[:, None]
    rows = relative_rows(table, Grid(1, 9), axis=1, train_size=4, stride_q=1, stride_k=1)[..., 0]
    assert rows[0].tolist() == [3, 2, 1, 0, 0, 0, 0, 0, 0]
    assert rows[8].tolist() == [6, 6, 6, 6, 6, 6, 5, 4, 3]


def test_removed_positions_leave_the_distances_of_the_others_alone():
    table = torch.randn(table_length(16, 1, 2), 4)
    whole = {"axis": 1, "train_size": 16, "stride_q": 1, "stride_k": 2}
    rows = relative_rows(table, Grid(1, 16), **whole)
    kept = torch.tensor([0, 1, 2, 3, 12, 13, 14, 15])
    grid = KeptGrid(torch.tensor([0]), kept, Grid(1, 16))
    for _ in range(2):  # once made, and once as it was kept
        assert torch.equal(relative_rows(table, grid, **whole), rows[kept][:, kept[::2] // 2])


def test_rows_between_two_are_their_mixture_and_the_ends_hold():
    table = torch.tensor([[0.0], [10.0], [40.0]])
    index = torch.tensor([-3.0, 0.25, 1.5, 2.0, 9.0], dtype=torch.float64)
    assert read_rows(table, index)[:, 0].tolist() == [0.0, 2.5, 25.0, 40.0, 40.0]
