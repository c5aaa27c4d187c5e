"""Pooling attention and the transformer block around it."""

from typing import Any, NamedTuple, cast

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ssmast.model.attention import relative_attention, relative_rows, table_length
from ssmast.model.patch import Grid, Tokens, pool_mask

Stride = tuple[int, int]


class Stretch(NamedTuple):
    """Input length over training length for each axis where it is above 1, else None."""

    freq: float | None = None
    time: float | Tensor | None = None


class PoolingAttention(nn.Module):
    """Self-attention whose queries, keys and values are pooled by strided depthwise convolution.

    Source: Li et al. 2022 (MViTv2), §4.1; its code for the details.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        num_heads: int,
        train_grid: Grid,
        stride_q: Stride,
        stride_kv: Stride,
        kernel: Stride = (3, 3),
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        path: str = "auto",
    ):
        super().__init__()
        if dim_out % num_heads:
            raise ValueError(f"num_heads must divide the width {dim_out}, got {num_heads}")
        head_dim = dim_out // num_heads
        self.num_heads, self.head_dim, self.train_grid = num_heads, head_dim, train_grid
        self.stride_q, self.stride_kv, self.path = stride_q, stride_kv, path
        self.qkv = nn.Linear(dim, 3 * dim_out, bias=qkv_bias)
        self.proj = nn.Linear(dim_out, dim_out)
        self.pool_q, self.norm_q = _pooling(head_dim, kernel, stride_q, norm_eps)
        self.pool_k, self.norm_k = _pooling(head_dim, kernel, stride_kv, norm_eps)
        self.pool_v, self.norm_v = _pooling(head_dim, kernel, stride_kv, norm_eps)
        self.rel_pos_freq = nn.Parameter(torch.empty(self._table_length(0), head_dim))
        self.rel_pos_time = nn.Parameter(torch.empty(self._table_length(1), head_dim))

    def _table_length(self, axis: int) -> int:
        stride_q, stride_k = self.stride_q[axis], self.stride_kv[axis]
        if max(stride_q, stride_k) % min(stride_q, stride_k):
            raise ValueError(
                f"query and key strides must divide one another, got {stride_q} and {stride_k}"
            )
        return table_length(self.train_grid[axis], stride_q, stride_k)

    def forward(self, x: Tensor, grid: Grid, mask: Tensor | None, stretch: Stretch) -> Tokens:
        """(B, N, dim) -> (B, N', dim_out) with the pooled grid and mask.

        Args:
            x: normalised tokens.
            grid: of the N tokens.
            mask: bool (B, N), True where a token is valid.
            stretch: of this input against the training input.
        """
        q, k, v = self._queries_keys_values(x, grid, mask)
        bias_freq, bias_time = self._bias(q, grid, stretch)
        key_mask = pool_mask(mask, grid, self.stride_kv)
        out = relative_attention(q, k, v, bias_freq, bias_time, key_mask=key_mask, path=self.path)
        out = (out + q).transpose(1, 2).flatten(2)  # residual pooling; (B, H, N', D) -> (B, N', HD)
        mask = pool_mask(mask, grid, self.stride_q)
        return Tokens(self.proj(out), grid.pool(self.stride_q), mask)

    def _queries_keys_values(
        self, x: Tensor, grid: Grid, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled q, k, v, each (B, H, N', D)."""
        qkv = self.qkv(x)
        if mask is not None:  # nothing of an invalid token leaks through the convolutions
            qkv = qkv.masked_fill(~mask[..., None], 0.0)
        qkv = qkv.unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = _head_by_head(qkv)
        q = _pool(q, grid, self.pool_q)
        k = _pool(k, grid, self.pool_k)
        v = _pool(v, grid, self.pool_v)
        q, k, v = (part.unflatten(0, (x.shape[0], self.num_heads)) for part in (q, k, v))
        return self.norm_q(q), self.norm_k(k), self.norm_v(v)

    def _bias(self, q: Tensor, grid: Grid, stretch: Stretch) -> tuple[Tensor, Tensor]:
        """Query · relative position for each row and each column of keys."""
        pooled = grid.pool(self.stride_q)
        q = q.unflatten(2, pooled[:])  # (B, H, N', D) -> (B, H, f, t, D)
        freq = self._rows(0, grid, stretch.freq)
        time = self._rows(1, grid, stretch.time)
        bias_freq = torch.einsum("bhftd,fkd->bhftk", q, freq)
        clip = "b" if time.ndim == 4 else ""
        bias_time = torch.einsum(f"bhftd,{clip}tkd->bhftk", q, time)
        return bias_freq.flatten(2, 3), bias_time.flatten(2, 3)

    def _rows(self, axis: int, grid: Grid, stretch: float | Tensor | None) -> Tensor:
        table = (self.rel_pos_freq, self.rel_pos_time)[axis]
        return relative_rows(
            table,
            grid,
            axis=axis,
            train_size=self.train_grid[axis],
            stride_q=self.stride_q[axis],
            stride_k=self.stride_kv[axis],
            stretch=stretch,
        )


class _HeadByHead(torch.autograd.Function):
    """`_laid_head_by_head` whose gradients are laid back at once.

    Autograd would stack the three gradients first: of a step on a CPU, 2.5 % of the bytes.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> tuple[Tensor, ...]:
        """The parts."""
        ctx.shape = qkv.shape
        return _laid_head_by_head(qkv)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient (B, N, 3, H, D)."""
        clips, _, _, heads, _ = ctx.shape
        out = grads[0].new_empty(ctx.shape)
        for part, grad in zip(out.unbind(2), grads, strict=True):  # (B, N, H, D)
            part.copy_(grad.unflatten(0, (clips, heads)).transpose(1, 2))
        return out


def _laid_head_by_head(qkv: Tensor) -> tuple[Tensor, ...]:
    """(B, N, 3, H, D) -> queries, keys and values, each (B * H, N, D)."""
    return qkv.permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2).unbind()


def _head_by_head(qkv: Tensor) -> tuple[Tensor, ...]:
    """`_laid_head_by_head`, the quickest way."""
    is_eager = not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # pyright: ignore[reportPrivateImportUsage]
    if is_eager and qkv.requires_grad and torch.is_grad_enabled() and qkv.device.type == "cpu":
        return cast(tuple[Tensor, ...], _HeadByHead.apply(qkv))
    return _laid_head_by_head(qkv)


def _pool(x: Tensor, grid: Grid, conv: nn.Module) -> Tensor:
    """(B, N, C) -> (B, N', C) by a strided depthwise convolution.

    The image is a channels-last view, before and after: no copy, twice as fast on a CPU.
    """
    image = x.unflatten(1, grid[:]).permute(0, 3, 1, 2)  # (B, C, f, t)
    trains_on_cpu = image.device.type == "cpu" and torch.is_grad_enabled()
    if trains_on_cpu and image.dtype == torch.bfloat16:
        if _is_float32(conv):
            # The CPU's backward pass of this convolution is six times slower in bfloat16, half a
            # step, so autocast leaves it out. Weights that are in bfloat16 themselves stay so.
            with torch.autocast("cpu", enabled=False):
                return conv(image.float()).permute(0, 2, 3, 1).flatten(1, 2)
        # Of a channels-last image oneDNN 3 does not write the gradients of weights that see padding
        # alone, as beside a grid of one column.
        image = image.contiguous()
    return conv(image).permute(0, 2, 3, 1).flatten(1, 2)


def _max_pool(image: Tensor, kernel: Stride, stride: Stride, reach: Stride) -> Tensor:
    """Max-pooling of (B, C, f, t).

    On a GPU the backward pass of PyTorch's own adds in any order; where the bits are to be the
    same, equal maxima share a gradient instead.
    """
    if not (image.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return F.max_pool2d(image, kernel, stride, reach)
    sides = (reach[1], reach[1], reach[0], reach[0])
    padded = F.pad(image, sides, value=float("-inf"))
    return padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).amax((4, 5))


def _is_float32(module: nn.Module) -> bool:
    return all(parameter.dtype == torch.float32 for parameter in module.parameters())


def _pooling(
    dim: int, kernel: Stride, stride: Stride, norm_eps: float
) -> tuple[nn.Conv2d, nn.LayerNorm]:
    """Depthwise convolution that keeps the centre of each stride cell, and the norm after it."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(dim, dim, kernel, stride, padding, groups=dim, bias=False)
    return conv, nn.LayerNorm(dim, eps=norm_eps)


class Block(nn.Module):
    """Pooling attention and MLP, each around a shortcut; the first shortcut is max-pooled.

    The width changes in attention (`expand_attn`) or in the MLP.

    Source: Li et al. 2022 (MViTv2), fig. 2; Zhu & Omar 2023 (MAST), eq. 1.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        num_heads: int,
        train_grid: Grid,
        stride_q: Stride,
        stride_kv: Stride,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        expand_attn: bool = True,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        path: str = "auto",
    ):
        super().__init__()
        attn_dim = dim_out if expand_attn else dim
        self.stride_q, self.dim_out = stride_q, dim_out
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        widen = dim != dim_out
        self.shortcut_proj_attn = nn.Linear(dim, dim_out) if widen and expand_attn else None
        self.attn = PoolingAttention(
            dim,
            attn_dim,
            num_heads=num_heads,
            train_grid=train_grid,
            stride_q=stride_q,
            stride_kv=stride_kv,
            qkv_bias=qkv_bias,
            norm_eps=norm_eps,
            path=path,
        )
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(attn_dim, eps=norm_eps)
        self.shortcut_proj_mlp = nn.Linear(dim, dim_out) if widen and not expand_attn else None
        self.mlp = Mlp(attn_dim, hidden_features=int(attn_dim * mlp_ratio), out_features=dim_out)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, grid: Grid, mask: Tensor | None, stretch: Stretch) -> Tokens:
        """(B, N, dim) -> (B, N', dim_out) with the pooled grid and mask."""
        normed = self.norm1(x)
        # As MViTv2: the shortcut takes the normalised tokens where it is projected, else the raw.
        shortcut = x if self.shortcut_proj_attn is None else self.shortcut_proj_attn(normed)
        shortcut = self._pool_shortcut(shortcut, grid, mask)
        attended, grid, mask, _ = self.attn(normed, grid, mask, stretch)
        x = shortcut + self.drop_path1(attended)
        normed = self.norm2(x)
        shortcut = x if self.shortcut_proj_mlp is None else self.shortcut_proj_mlp(normed)
        return Tokens(shortcut + self.drop_path2(self.mlp(normed)), grid, mask)

    def _pool_shortcut(self, x: Tensor, grid: Grid, mask: Tensor | None) -> Tensor:
        """Max-pool (B, N, C) by the query stride, windows centred on each stride cell's start."""
        if self.stride_q == (1, 1):
            return x
        if mask is not None:
            x = x.masked_fill(~mask[..., None], float("-inf"))
        reach = (self.stride_q[0] // 2, self.stride_q[1] // 2)
        kernel = (2 * reach[0] + 1, 2 * reach[1] + 1)
        image = x.transpose(1, 2).unflatten(2, grid[:])  # (B, N, C) -> (B, C, f, t)
        pooled = _max_pool(image, kernel, self.stride_q, reach).flatten(2).transpose(1, 2)
        if mask is not None:
            pooled = pooled.masked_fill(pooled == float("-inf"), 0.0)  # windows without any token
        return pooled
