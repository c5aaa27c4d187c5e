"""From a grid of tokens to one vector a clip."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.model.patch import Tokens

POOL_MODES = ("mean", "mean+max", "freq", "freq+max", "cls")
# The modes whose vector ends with a maximum over tokens, one for each channel.
MAX_MODES = ("mean+max", "freq+max")


def pooled_dim(mode: str, freq: int, dim: int) -> int:
    """Length of the vector that `pool_tokens` makes from `freq` rows of `dim` channels.

    Raises:
        ValueError: for an unknown mode.
    """
    factors = {"mean": 1, "mean+max": 2, "freq": freq, "freq+max": freq + 1, "cls": 1}
    if mode not in factors:
        raise ValueError(f"pooling must be one of {', '.join(POOL_MODES)}, got {mode!r}")
    return factors[mode] * dim


def pool_tokens(tokens: Tokens, *, mode: str) -> Tensor:
    """One vector a clip.

    Args:
        tokens: (B, N, D) on their grid. Rows that structured patch-drop removed count as zeros, so
            that the vector's length does not depend on the draw; so does a row without a valid
            token.
        mode: "mean"; "mean+max"; "freq": the time mean of each frequency row, row after row;
            "freq+max": the same, then the maximum over all tokens; "cls": the mean of the class
            tokens.

    Returns:
        (B, pooled_dim(mode, grid.full.freq, D)).

    Raises:
        ValueError: for an unknown mode, or "cls" without class tokens.

    Source: "freq+max" after Niizumi et al. 2022 (BYOL-A v2; M2D), frequency kept apart; "cls" as
    Gong et al. 2021 (AST) average their two.
    """
    x, grid, mask, cls = tokens
    pooled_dim(mode, grid.full.freq, x.shape[-1])
    if mode == "cls":
        if cls is None:
            raise ValueError('pooling "cls" needs class tokens, which only ast_* models have')
        return cls.mean(dim=1)
    if mode == "mean":
        return _mean(x, mask)
    top = x if mask is None else x.masked_fill(~mask[..., None], float("-inf"))
    top = top.amax(dim=1)
    if mode == "mean+max":
        return torch.cat([_mean(x, mask), top], dim=-1)
    rows = x.unflatten(1, grid[:])  # (B, N, D) -> (B, f, t, D)
    rows = _mean(rows, None if mask is None else mask.unflatten(1, grid[:]))
    if grid.full.freq != grid.freq:
        whole = rows.new_zeros(len(rows), grid.full.freq, rows.shape[-1])
        rows = whole.index_copy(1, grid.positions(0, rows.device), rows)
    return rows.flatten(1) if mode == "freq" else torch.cat([rows.flatten(1), top], dim=-1)


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
