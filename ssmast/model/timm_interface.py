"""What timm asks of a model beside its forward pass: heads, features, layer decay, memory."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from timm.layers.weight_init import trunc_normal_tf_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmast.model.block import Block, Stretch
from ssmast.model.grid import Grid
from ssmast.model.patch import PatchEmbed
from ssmast.model.pool import AttentionPool, pool_tokens, pooled_dim

# Tokens (B, N, D), their grid, and which are valid: bool (B, N), or None for all.
Tokens = tuple[Tensor, Grid, Tensor | None]


class Stage(nn.Module):
    """The blocks of one resolution; the first one pools."""

    def __init__(self, blocks: Sequence[Block]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor, grid: Grid, mask: Tensor | None, stretch: Stretch) -> Tokens:
        """(B, N, D) -> the last block's tokens, grid and mask."""
        for outcome in self.each(x, grid, mask, stretch):
            x, grid, mask = outcome
        return x, grid, mask

    def each(
        self, x: Tensor, grid: Grid, mask: Tensor | None, stretch: Stretch
    ) -> Iterator[Tokens]:
        """Outcome of every block in turn."""
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x, grid, mask = checkpoint(block, x, grid, mask, stretch, use_reentrant=False)
            else:
                x, grid, mask = block(x, grid, mask, stretch)
            yield x, grid, mask


class State(NamedTuple):
    """What goes from level to level of an encoder: `Tokens` and what the family needs beside."""

    x: Tensor
    grid: Grid
    mask: Tensor | None
    extra: Any


class TimmInterface(nn.Module, ABC):
    """Head and bookkeeping of an encoder; a family adds the way of the tensor.

    A family that lacks one of the abstract methods cannot be made.

    The levels are what timm takes features from: MAST's stages, AST's blocks.
    """

    LEVELS: ClassVar[str]  # attribute that holds them
    GLOBAL_POOLS: ClassVar[tuple[str, ...]] = ("mean", "mean+max", "freq+max", "attention", "")
    TIMM_POOLS: ClassVar[dict[str, str]] = {"avg": "mean"}  # timm's words for them

    patch_embed: PatchEmbed
    norm: nn.Module
    head: nn.Sequential
    attn_pool: AttentionPool | None
    feature_info: list[dict[str, str | int]]
    input_size: tuple[int, int]
    num_features: int
    last_heads: int
    drop_rate: float
    global_pool: str = ""

    @property
    def levels(self) -> nn.ModuleList:
        """The modules that `advance` goes through, one after the other."""
        return getattr(self, self.LEVELS)

    @abstractmethod
    def embed_patches(self, log_mel: Tensor) -> State:
        """Stem tokens with grid, mask and what the family needs beside."""
        ...

    @abstractmethod
    def advance(self, level: nn.Module, state: State) -> State:
        """One level further."""
        ...

    @abstractmethod
    def grid_of(self, freq_bins: int, frames: int) -> list[Grid]:
        """Grid after the stem and after each stage for an input of that size."""
        ...

    @abstractmethod
    def tokens_of(self, state: State, *, norm: bool = False) -> Tokens:
        """The grid's tokens, after the final norm where asked."""
        ...

    def forward_head(
        self,
        x: Tensor,
        pre_logits: bool = False,
        *,
        grid: Grid | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, N, D) -> logits; with `pre_logits` the embedding before the head."""
        if self.attn_pool is not None:
            x = self.attn_pool(x, mask)
        elif self.global_pool:
            if grid is None and self.global_pool == "freq+max":
                raise ValueError('global_pool "freq+max" needs the grid of the tokens: pass grid=')
            grid = grid or Grid(1, x.shape[1])  # no other mode of the head looks at rows
            x = pool_tokens(x, grid, mode=self.global_pool, mask=mask)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Tokens after chosen levels, as timm's models give them.

        Args:
            x: log-mel (B, C, F, T).
            indices: levels; an int for the last so many, None for all.
            norm: apply the final norm to the last level's.
            stop_early: leave out the levels after the last one wanted.
            output_fmt: "NCHW" for maps (B, D, f, t), "NLC" for tokens (B, N, D).
            intermediates_only: return the list alone.

        Raises:
            ValueError: for an unknown format.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f'output_fmt must be "NCHW" or "NLC", got {output_fmt!r}')
        take, last_wanted = _take_levels(len(self.levels), indices)
        state = self.embed_patches(x)
        intermediates: list[Tensor] = []
        for index, level in enumerate(self.levels):
            state = self.advance(level, state)
            is_last = index == len(self.levels) - 1
            if index in take:
                kept, grid, _ = self.tokens_of(state, norm=norm and is_last)
                if output_fmt == "NCHW":
                    kept = kept.transpose(1, 2).unflatten(2, grid[:])  # (B, N, D) -> (B, D, f, t)
                intermediates.append(kept)
            if stop_early and index == last_wanted and not is_last:
                return intermediates if intermediates_only else (state.x, intermediates)
        return intermediates if intermediates_only else (self.norm(state.x), intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove levels after the last one wanted, and norm and head with them."""
        take, last_wanted = _take_levels(len(self.levels), indices)
        cut = last_wanted < len(self.levels) - 1
        setattr(self, self.LEVELS, self.levels[: last_wanted + 1])
        if prune_norm or cut:
            self.norm = nn.Identity()
        if cut:
            self.num_features = int(self.feature_info[last_wanted]["num_chs"])
        if prune_head or cut:
            self.reset_classifier(0, "")
        return take

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Fresh head of `num_classes` outputs (0: none), and another pooling where given.

        Raises:
            ValueError: for an unknown pooling.
        """
        if global_pool is not None:
            global_pool = self.TIMM_POOLS.get(global_pool, global_pool)
            if global_pool not in self.GLOBAL_POOLS:
                allowed = ", ".join(repr(pool) for pool in self.GLOBAL_POOLS)
                raise ValueError(f"global_pool must be one of {allowed}, got {global_pool!r}")
            if global_pool != self.global_pool:
                attends = global_pool == "attention"
                self.attn_pool = (
                    AttentionPool(self.num_features, self.last_heads) if attends else None
                )
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features
        if self.global_pool not in ("attention", ""):
            rows = self.grid_of(*self.input_size)[-1].freq
            self.head_hidden_size = pooled_dim(self.global_pool, rows, self.num_features)
        fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        parts = OrderedDict(**self._head_norm(), drop=nn.Dropout(self.drop_rate), fc=fc)
        self.head = nn.Sequential(parts)
        weight = self.patch_embed.proj.weight
        for module in filter(None, (self.head, self.attn_pool)):
            module.apply(init_weights).to(device=weight.device, dtype=weight.dtype)
            module.train(self.training)

    def _head_norm(self) -> dict[str, nn.Module]:
        """What stands before the head's dropout, by name."""
        return {}

    def get_classifier(self) -> nn.Module:
        """The head's linear layer."""
        return self.head.get_submodule("fc")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, a third more time."""
        for stage in self.modules():
            if isinstance(stage, Stage):
                stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay spares: positions, class tokens, pooling query."""
        return {name for name, _ in self.named_parameters() if _is_table(name)}

    @abstractmethod
    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Depth of each parameter for layer-wise decay: by block, or by level where coarse."""
        ...


def init_weights(module: nn.Module) -> None:
    """As MViTv2 and DeiT: linear layers, positions, tokens truncated normal 0.02, biases zero."""
    if isinstance(module, nn.Linear):
        trunc_normal_tf_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if _is_table(name):
            trunc_normal_tf_(parameter, std=0.02)


def _is_table(name: str) -> bool:
    """True for parameters that are looked up or concatenated, not multiplied."""
    last = name.rpartition(".")[2]
    return last.startswith("rel_pos_") or last in {"query", "pos_embed", "cls_token", "dist_token"}


def _take_levels(num_levels: int, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
    """Levels wanted (an int: the last so many; None: all), and the last of them."""
    if indices is None or isinstance(indices, int):
        indices = range(-(num_levels if indices is None else indices), 0)
    take = [range(num_levels)[index] for index in indices]
    return take, max(take)
