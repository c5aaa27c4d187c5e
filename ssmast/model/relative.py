"""Decomposed relative positions: which table row belongs to a query and a key, for any length.

One axis at a time. Positions are cells of the block's input. The table holds one row for each
distance that occurs at the training length, in units of the smaller of the two strides.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def table_length(size: int, stride_q: int, stride_k: int) -> int:
    """Rows of the table for a training input of `size` cells."""
    return 2 * -(-size // min(stride_q, stride_k)) - 1


def zero_index(size: int, stride_q: int, stride_k: int) -> int:
    """Row of distance zero; below it lie the distances to later keys."""
    last_key = (-(-size // stride_k) - 1) * stride_k
    return last_key // min(stride_q, stride_k)


def relative_rows(
    table: Tensor,
    positions: Tensor,
    *,
    size: int,
    train_size: int,
    stride_q: int,
    stride_k: int,
    stretch: float | Tensor | None = None,
) -> Tensor:
    """Table rows for every (query, key) of one axis.

    Queries sit at every `stride_q`-th position, keys at every `stride_k`-th. A shorter input uses
    the middle of the table. A longer one reads the table at zero + distance / stretch, linearly
    between rows; without stretch, distances beyond the table use its last row.

    Args:
        table: (L, D).
        positions: of the block's input cells, int64 (n,); gaps where structured patch-drop removed.
        size: cells of the whole input, the removed ones included.
        train_size: cells of the training input, for which the table was made.
        stride_q: of the queries, in cells.
        stride_k: of the keys, in cells.
        stretch: input length / training length where that is above 1: one number (in an exported
            graph a tensor without axes, which may be 1), or one per clip (B,) so that a clip in a
            batch reads the same rows as alone.

    Returns:
        (Q, K, D), or (B, Q, K, D) with a stretch per clip.

    Source: Li et al. 2022 (MViTv2), §4.1, and its released code for the zero row.
    Differs from the released code: odd lengths are exact, as positions come from strides and not
    from the ratio of the pooled lengths; and any length is accepted.
    """
    unit = min(stride_q, stride_k)
    zero = zero_index(train_size, stride_q, stride_k)
    distance = (positions[::stride_q, None] - positions[None, ::stride_k]) // unit  # (Q, K)
    if stretch is None:
        return F.embedding((distance + zero).clamp(0, len(table) - 1), table)
    reach = (size - 1) // unit
    reachable = torch.arange(-reach, reach + 1, device=table.device)
    if isinstance(stretch, Tensor) and stretch.ndim:
        stretch = stretch[:, None]  # (B, 1): a table for each clip
    rows = read_rows(table, zero + reachable.to(exact_dtype(table.device)) / stretch)
    return rows[..., distance + reach, :]  # (..., 2 reach + 1, D) -> (..., Q, K, D)


def exact_dtype(device: torch.device) -> torch.dtype:
    """float64 for table indices, so that a batch and a clip alone agree; Apple's GPUs lack it."""
    return torch.float32 if device.type == "mps" else torch.float64


def read_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of `table` (L, D) at fractional `index` (...), linear between rows, held at the ends."""
    index = index.clamp(0, len(table) - 1)
    low = index.floor().long()
    high = (low + 1).clamp(max=len(table) - 1)
    share = (index - low).to(table.dtype)[..., None]
    return torch.lerp(table[low], table[high], share)
