"""Attention with decomposed relative positions: exact, on several paths, for any length.

`relative_attention` adds a bias of frequency and one of time to the logits, without the N x K bias
where that pays. `relative_rows` reads the rows that make those biases from a table, one axis at a
time: positions are cells of the block's input, and the table holds one row for each distance that
occurs at the training length, in units of the smaller of the two strides.

Letters: B clips, H heads, N queries, K keys (K = f x t, row by row), D channels of a head.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ssmast.model.patch import Grid

PATHS = ("auto", "reference", "mask", "augmented", "tiled")

# Fused CUDA kernels stop at this head size.
MAX_FUSED_HEAD = 256

# Logits of one head from which tiles train faster than the plain form on a CPU.
MIN_TILED_LOGITS = 2**17


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_freq: Tensor,
    bias_time: Tensor,
    *,
    key_mask: Tensor | None = None,
    path: str = "auto",
) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v, where the bias of key (i, j) is freq[i] + time[j].

    Args:
        q: (B, H, N, D).
        k: (B, H, K, D).
        v: (B, H, K, D).
        bias_freq: (B, H, N, f), one number for each row of keys.
        bias_time: (B, H, N, t), one number for each column of keys.
        key_mask: bool (B, K), True where the key takes part; each clip needs at least one.
        path: how to compute it, never what: "reference" writes the formula out; "mask" hands
            the summed bias to fused attention as its mask; "augmented" hides the bias in longer
            heads, so that the N x K bias never exists; "tiled" goes tile by tile with its own
            backward pass; "auto" takes the fastest for the device.

    Returns:
        (B, H, N, D).

    Raises:
        ValueError: for an unknown path.

    Source: Li et al. 2022 (MViTv2), eq. 4, as in its released code: the bias is not divided by
    sqrt(D).
    Differs from Zhu & Omar 2023 (MAST), eq. 2, which divides the bias by sqrt(D) too: ImageNet
    weights only fit the released code.
    """
    if path == "auto":
        path = choose_path(
            q.device.type,
            head_dim=q.shape[-1],
            queries=q.shape[-2],
            freq=bias_freq.shape[-1],
            time=bias_time.shape[-1],
            trains=q.requires_grad and torch.is_grad_enabled(),
            one_type=_one_type(q, k, v, bias_freq, bias_time),
        )
    if path == "reference":
        return _reference(q, k, v, bias_freq, bias_time, key_mask)
    if path == "mask":
        bias = _full_bias(bias_freq, bias_time, key_mask)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    if path == "augmented":
        return _augmented(q, k, v, bias_freq, bias_time, key_mask)
    if path == "tiled":
        out = TiledAttention.apply(q, k, v, bias_freq, bias_time, key_mask)
        assert isinstance(out, Tensor)
        return out
    raise ValueError(f"attention path must be one of {', '.join(PATHS)}, got {path!r}")


def choose_path(
    device: str,
    *,
    head_dim: int,
    queries: int,
    freq: int,
    time: int,
    trains: bool,
    one_type: bool = True,
) -> str:
    """Fastest path on a kind of device for these numbers of queries and keys (`freq` x `time`).

    CUDA: "augmented" within the head size of the fused kernels, else "mask"; by their documented
    limits, `benchmarks/encoder.py` measures.
    CPU, measured on shapes of mast_nano and mast_base from 1 s to 15 s: without gradient "mask"
    is the fastest (fused; up to 2x). With gradient a mask is no longer fused there: the plain form
    is the fastest while the logits of a head are few, then tiles are (`one_type`: the tensors share
    their data type, which tiles need; torch.compile makes its own). A trace must not depend on
    whether gradients are wanted.
    """
    if device == "cuda":
        fits = _head_size(head_dim, freq, time) <= MAX_FUSED_HEAD
        return "augmented" if fits else "mask"
    is_traced = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if device == "cpu" and trains and not is_traced:
        many = queries * freq * time >= MIN_TILED_LOGITS
        return "tiled" if many and one_type and not torch.compiler.is_compiling() else "reference"
    return "mask"


def _one_type(*tensors: Tensor) -> bool:
    """Whether these tensors agree in their type, and autocast on the CPU leaves it to them."""
    same = all(tensor.dtype == tensors[0].dtype for tensor in tensors)
    return same and not torch.is_autocast_enabled("cpu")


def _head_size(dim: int, freq: int, time: int) -> int:
    """Channels of an augmented head: with bias and key-mask columns, in multiples of 8."""
    return -(-(dim + freq + time + 1) // 8) * 8


def _full_bias(bias_freq: Tensor, bias_time: Tensor, key_mask: Tensor | None) -> Tensor:
    bias = (bias_freq[..., :, None] + bias_time[..., None, :]).flatten(-2)  # (B, H, N, K)
    if key_mask is not None:
        bias = bias.masked_fill(~key_mask[:, None, None, :], float("-inf"))
    return bias


def _reference(
    q: Tensor, k: Tensor, v: Tensor, bias_freq: Tensor, bias_time: Tensor, key_mask: Tensor | None
) -> Tensor:
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, N, K)
    logits = logits.unflatten(-1, (bias_freq.shape[-1], bias_time.shape[-1]))
    logits = (logits + bias_freq[..., :, None] + bias_time[..., None, :]).flatten(-2)
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask[:, None, None, :], float("-inf"))
    return logits.softmax(dim=-1) @ v


def _augmented(
    q: Tensor, k: Tensor, v: Tensor, bias_freq: Tensor, bias_time: Tensor, key_mask: Tensor | None
) -> Tensor:
    """Q' = [q / sqrt(D), freq bias, time bias, 1], K' = [k, onehot(row), onehot(column), mask]."""
    freq, time, dim = bias_freq.shape[-1], bias_time.shape[-1], q.shape[-1]
    size = _head_size(dim, freq, time)
    spare = size - dim - freq - time
    # In the type that the product is in: joined before the cast, they would be copied one by one.
    dtype = product_type(q)
    scaled, k, v, bias_freq, bias_time = (
        part.to(dtype) for part in (q * dim**-0.5, k, v, bias_freq, bias_time)
    )
    codes = Grid(freq, time).once(_codes, spare, dtype, k.device).expand(*k.shape[:3], -1)
    if key_mask is not None:
        # Finite in every float type, and far below any logit: exp of it is exactly zero.
        closed = (~key_mask).to(dtype)[:, None, :, None] * -3e4
        codes = torch.cat([codes[..., :-1], closed.expand(*k.shape[:3], 1)], dim=-1)
    ones = Grid(1, spare).once(_filled, 1.0, dtype, k.device).expand(*q.shape[:3], -1)
    queries = torch.cat([scaled, bias_freq, bias_time, ones], dim=-1)
    keys = torch.cat([k, codes], dim=-1)
    # Fused kernels want one head size for all three.
    zeros = Grid(1, size - dim).once(_filled, 0.0, dtype, k.device).expand(*v.shape[:3], -1)
    values = torch.cat([v, zeros], dim=-1)
    return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., :dim]


def product_type(x: Tensor) -> torch.dtype:
    """Type that a product with `x` is computed in: autocast's where that is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _codes(grid: Grid, spare: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One-hot row and column of each key, and zeros: (freq x time, freq + time + spare)."""
    freq, time = grid
    rows = torch.eye(freq, device=device, dtype=dtype)[:, None].expand(-1, time, -1).flatten(0, 1)
    columns = torch.eye(time, device=device, dtype=dtype).repeat(freq, 1)
    empty = torch.zeros(freq * time, spare, device=device, dtype=dtype)
    return torch.cat([rows, columns, empty], dim=-1)


def _filled(grid: Grid, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(tuple(grid), value, dtype=dtype, device=device)


def table_length(size: int, stride_q: int, stride_k: int) -> int:
    """Rows of the table for a training input of `size` cells."""
    return 2 * -(-size // min(stride_q, stride_k)) - 1


def zero_index(size: int, stride_q: int, stride_k: int) -> int:
    """Row of distance zero; below it lie the distances to later keys."""
    last_key = (-(-size // stride_k) - 1) * stride_k
    return last_key // min(stride_q, stride_k)


def relative_rows(
    table: Tensor,
    grid: Grid,
    *,
    axis: int,
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
        grid: of the block's input cells; with gaps where structured patch-drop removed some.
        axis: 0 for rows, 1 for columns.
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
    zero, device = zero_index(train_size, stride_q, stride_k), table.device
    if stretch is None:
        index = grid.once(_table_rows, axis, stride_q, stride_k, zero, len(table), device)
        return F.embedding(index, table)
    distance = _distances(grid, axis, stride_q, stride_k, device)
    reach = (grid.full[axis] - 1) // min(stride_q, stride_k)
    reachable = torch.arange(-reach, reach + 1, device=table.device)
    if isinstance(stretch, Tensor) and stretch.ndim:
        stretch = stretch[:, None]  # (B, 1): a table for each clip
    rows = read_rows(table, zero + reachable.to(exact_dtype(table.device)) / stretch)
    return rows[..., distance + reach, :]  # (..., 2 reach + 1, D) -> (..., Q, K, D)


def _distances(grid: Grid, axis: int, stride_q: int, stride_k: int, device: torch.device) -> Tensor:
    """From each key to each query, int64 (Q, K), in units of the smaller stride."""
    positions = grid.positions(axis, device)
    away = positions[::stride_q, None] - positions[None, ::stride_k]
    return away // min(stride_q, stride_k)


def _table_rows(
    grid: Grid,
    axis: int,
    stride_q: int,
    stride_k: int,
    zero: int,
    length: int,
    device: torch.device,
) -> Tensor:
    """Row of a table of `length` rows for each (query, key), int64 (Q, K)."""
    return (_distances(grid, axis, stride_q, stride_k, device) + zero).clamp(0, length - 1)


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


# -- tile by tile ----------------------------------------------------------------------------------
#
# No fused CPU kernel gives the gradient of a bias. Here a tile of queries goes through product,
# bias, softmax and product, and back, while its logits are still in the cache; heads are read where
# they lie, without copies. The weights are kept for the backward pass, as autograd would.

# Logits in a tile: 2 MB in float32, about a core's second-level cache.
TILE_LOGITS = 2**19


class TiledAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(D) + bias) v for the shapes of `relative_attention`; no double backward.

    Letters: B clips, H heads, N queries, K = f x t keys, D channels of a head.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias_freq: Tensor,
        bias_time: Tensor,
        key_mask: Tensor | None,
    ) -> Tensor:
        """(B, H, N, D), its heads side by side in memory."""
        freq, time = bias_freq.shape[-1], bias_time.shape[-1]
        out = _heads_side_by_side(q)
        weights = q.new_empty(*q.shape[:3], freq * time)
        for clip, head, rows in _tiles(weights):
            tile = weights[clip, head, rows]  # (n, K)
            torch.add(
                bias_freq[clip, head, rows, :, None],
                bias_time[clip, head, rows, None, :],
                out=tile.unflatten(1, (freq, time)),
            )
            tile.addmm_(q[clip, head, rows], k[clip, head].t(), alpha=q.shape[-1] ** -0.5)
            if key_mask is not None:
                tile.masked_fill_(~key_mask[clip], float("-inf"))
            torch.softmax(tile, dim=-1, out=tile)
            out[clip, head, rows].addmm_(tile, v[clip, head], beta=0)
        ctx.save_for_backward(q, k, v, weights)
        ctx.grid = freq, time
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and the two biases."""
        q, k, v, weights = ctx.saved_tensors
        grad_q = _heads_side_by_side(q)
        grad_k, grad_v = _heads_side_by_side(k).zero_(), _heads_side_by_side(v).zero_()
        grad_freq, grad_time = (q.new_empty(*q.shape[:3], size) for size in ctx.grid)
        for clip, head, rows in _tiles(weights):
            tile, out_grad = weights[clip, head, rows], grad[clip, head, rows]
            grad_v[clip, head].addmm_(tile.t(), out_grad)
            tile_grad = torch.ops.aten._softmax_backward_data(
                out_grad @ v[clip, head].t(), tile, -1, tile.dtype
            )
            grad_q[clip, head, rows].addmm_(tile_grad, k[clip, head], beta=0)
            grad_k[clip, head].addmm_(tile_grad.t(), q[clip, head, rows])
            cells = tile_grad.unflatten(1, ctx.grid)  # (n, f, t)
            torch.sum(cells, dim=2, out=grad_freq[clip, head, rows])
            torch.sum(cells, dim=1, out=grad_time[clip, head, rows])
        scale = q.shape[-1] ** -0.5
        return grad_q.mul_(scale), grad_k.mul_(scale), grad_v, grad_freq, grad_time, None


def _heads_side_by_side(like: Tensor) -> Tensor:
    """Empty (B, H, N, D) that flattens to tokens (B, N, H D) without a copy."""
    clips, heads, tokens, dim = like.shape
    return like.new_empty(clips, tokens, heads, dim).transpose(1, 2)


def _tiles(weights: Tensor) -> Iterator[tuple[int, int, slice]]:
    """(clip, head, queries) of each tile of weights (B, H, N, K)."""
    clips, heads, queries, keys = weights.shape
    step = max(TILE_LOGITS // keys, 1)
    for clip in range(clips):
        for head in range(heads):
            for start in range(0, queries, step):
                yield clip, head, slice(start, start + step)
