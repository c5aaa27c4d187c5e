"""From a grid of tokens to one vector a clip."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.model.patch import Grid, Tokens

# What a pooling may join by "+", each at most once; "cls" stands alone.
STATISTICS = ("mean", "freq", "max", "std", "time2", "time4", "time16", "cls")
# Some of the ways to join them: those that pooling=best tries.
POOL_MODES = ("mean", "mean+max", "freq", "freq+max", "freq+max+std", "cls")
# Added to a variance, so that the gradient of its root is finite where all tokens are alike.
_LEAST_VARIANCE = 1e-6


def statistics_of(mode: str) -> list[str]:
    """The statistics that a pooling joins, in their order.

    Raises:
        ValueError: naming those that there are.
    """
    parts = mode.split("+")
    known = all(part in STATISTICS for part in parts)
    if not known or len(set(parts)) < len(parts) or ("cls" in parts and len(parts) > 1):
        raise ValueError(
            f"pooling must be {', '.join(STATISTICS[:-1])}, several of them joined by + such as "
            f"freq+max+std, or cls, got {mode!r}"
        )
    return parts


def statistic_dims(mode: str, freq: int, dim: int) -> dict[str, int]:
    """Length of each statistic's part of a pooled vector.

    Raises:
        ValueError: for an unknown mode.
    """
    vectors = {"freq": freq, "std": freq, "time2": 2, "time4": 4, "time16": 16}
    return {part: vectors.get(part, 1) * dim for part in statistics_of(mode)}


def pooled_dim(mode: str, freq: int, dim: int) -> int:
    """Length of the vector that `pool_tokens` makes from `freq` rows of `dim` channels.

    Raises:
        ValueError: for an unknown mode.
    """
    return sum(statistic_dims(mode, freq, dim).values())


def pool_tokens(tokens: Tokens, *, mode: str) -> Tensor:
    """One vector a clip.

    Args:
        tokens: (B, N, D) on their grid. Rows that structured patch-drop removed count as zeros, so
            that the vector's length does not depend on the draw; so does a row without a valid
            token.
        mode: one or several of these, joined by "+" and in that order in the vector: "mean" and
            "max" over all tokens; "freq", the time mean of each frequency row, row after row;
            "std", the standard deviation over time of each row; "time2", "time4" and "time16", the
            means of as many equal parts of the clip, one after the other. Or "cls": the mean of the
            class tokens.

    Returns:
        (B, pooled_dim(mode, grid.full.freq, D)).

    Raises:
        ValueError: for an unknown mode, or "cls" without class tokens.

    Source: "freq+max" after Niizumi et al. 2022 (BYOL-A v2; M2D), frequency kept apart; "cls" as
    Gong et al. 2021 (AST) average their two.
    """
    parts = statistics_of(mode)
    if parts == ["cls"]:
        if tokens.cls is None:
            raise ValueError('pooling "cls" needs class tokens, which only ast_* models have')
        return tokens.cls.mean(dim=1)
    found = [_STATISTICS[part](tokens) for part in parts]
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


def _mean_of_all(tokens: Tokens) -> Tensor:
    return _mean(tokens.x, tokens.mask)


def _max_of_all(tokens: Tokens) -> Tensor:
    x, mask = tokens.x, tokens.mask
    return (x if mask is None else x.masked_fill(~mask[..., None], float("-inf"))).amax(dim=1)


def _row_means(tokens: Tokens) -> Tensor:
    rows, mask = _rows(tokens)
    return _whole(_mean(rows, mask), tokens.grid).flatten(1)


def _row_stds(tokens: Tokens) -> Tensor:
    rows, mask = _rows(tokens)
    off = (rows - _mean(rows, mask)[..., None, :]).square()
    return _whole((_mean(off, mask) + _LEAST_VARIANCE).sqrt(), tokens.grid).flatten(1)


def _part_means(tokens: Tokens, *, parts: int) -> Tensor:
    """Means of equal parts of the clip (B, parts x D): a column counts in each by its overlap."""
    rows, mask = _rows(tokens)
    columns = _mean(rows.transpose(1, 2), None if mask is None else mask.transpose(1, 2))
    number = torch.arange(columns.shape[1], device=columns.device, dtype=columns.dtype)
    if mask is None:
        total = torch.full_like(columns[:, 0, 0], columns.shape[1])
    else:
        total = mask.any(dim=1).sum(dim=1).to(columns.dtype)
    start = torch.arange(parts, device=columns.device, dtype=columns.dtype)
    start = start * total[:, None] / parts  # (B, parts), in columns
    end = start + total[:, None] / parts
    last, first = torch.minimum(number + 1, end[..., None]), torch.maximum(number, start[..., None])
    overlap = (last - first).clamp(min=0.0)  # (B, parts, t)
    return (overlap / (end - start)[..., None] @ columns).flatten(1)


_STATISTICS: dict[str, Callable[[Tokens], Tensor]] = {
    "mean": _mean_of_all,
    "max": _max_of_all,
    "freq": _row_means,
    "std": _row_stds,
    "time2": partial(_part_means, parts=2),
    "time4": partial(_part_means, parts=4),
    "time16": partial(_part_means, parts=16),
}


def _rows(tokens: Tokens) -> tuple[Tensor, Tensor | None]:
    """Tokens (B, f, t, D) and their mask (B, f, t)."""
    grid, mask = tokens.grid, tokens.mask
    return tokens.x.unflatten(1, grid[:]), None if mask is None else mask.unflatten(1, grid[:])


def _whole(rows: Tensor, grid: Grid) -> Tensor:
    """Rows (B, f, D) -> those of the full grid, where those that were dropped are zeros."""
    if grid.full.freq == grid.freq:
        return rows
    whole = rows.new_zeros(len(rows), grid.full.freq, rows.shape[-1])
    return whole.index_copy(1, grid.positions(0, rows.device), rows)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the last axis but one of the valid tokens."""
    if mask is None:
        return x.mean(dim=-2)
    count = mask.sum(dim=-1, keepdim=True).clamp(min=1)
    # masked_fill and not a product: a masked token may hold anything, infinity too.
    return x.masked_fill(~mask[..., None], 0.0).sum(dim=-2) / count


class AttentionPool(nn.Module):
    """Attention of one learned query per head over all tokens; for classification heads."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(num_heads, 1, dim // num_heads))
        self.key = nn.Linear(dim, dim, bias=False)  # a bias would shift all logits alike
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D) -> (B, D); `mask` bool (B, N) is True where a token is valid."""
        heads = (self.num_heads, -1)
        key = self.key(x).unflatten(-1, heads).transpose(1, 2)  # (B, N, D) -> (B, H, N, D/H)
        value = self.value(x).unflatten(-1, heads).transpose(1, 2)
        query = self.query.expand(x.shape[0], -1, -1, -1)
        mask = None if mask is None else mask[:, None, None, :]
        pooled = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(pooled.transpose(1, 2).flatten(1))  # (B, H, 1, D/H) -> (B, D)


def pool_for_head(tokens: Tokens, *, mode: str, attention: AttentionPool | None) -> Tensor:
    """What a classification head sees: the vectors (B, D), or for mode "" the tokens (B, N, D)."""
    if attention is not None:
        return attention(tokens.x, tokens.mask)
    return pool_tokens(tokens, mode=mode) if mode else tokens.x
