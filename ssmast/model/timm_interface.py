"""What timm asks of a model beside its forward pass: heads, features, layer decay, memory."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from timm.layers.weight_init import trunc_normal_tf_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmast.model.block import Block, Stretch
from ssmast.model.grid import Grid
from ssmast.model.patch import PatchEmbed
from ssmast.model.pool import AttentionPool, pool_tokens, pooled_dim

GLOBAL_POOLS = ("mean", "mean+max", "attention", "")

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


class TimmInterface(nn.Module):
    """Head and bookkeeping of a staged encoder; MAST adds the way of the tensor."""

    patch_embed: PatchEmbed
    stages: nn.ModuleList
    norm: nn.Module
    head: nn.Sequential
    attn_pool: AttentionPool | None
    feature_info: list[dict[str, str | int]]
    num_features: int
    last_heads: int
    drop_rate: float
    global_pool: str = ""

    def embed_patches(self, log_mel: Tensor) -> tuple[Tensor, Grid, Tensor | None, Stretch]:
        """Stem tokens with grid, mask and stretch."""
        raise NotImplementedError

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
            grid = grid or Grid(1, x.shape[1])  # no mode of the head looks at rows
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
        """Tokens after chosen stages, as timm's models give them.

        Args:
            x: log-mel (B, C, F, T).
            indices: stages; an int for the last so many, None for all.
            norm: apply the final norm to the last stage's.
            stop_early: leave out the stages after the last one wanted.
            output_fmt: "NCHW" for maps (B, D, f, t), "NLC" for tokens (B, N, D).
            intermediates_only: return the list alone.

        Raises:
            ValueError: for an unknown format.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f'output_fmt must be "NCHW" or "NLC", got {output_fmt!r}')
        take, last_wanted = _take_stages(len(self.stages), indices)
        tokens, grid, mask, stretch = self.embed_patches(x)
        intermediates: list[Tensor] = []
        for index, stage in enumerate(self.stages):
            tokens, grid, mask = stage(tokens, grid, mask, stretch)
            is_last = index == len(self.stages) - 1
            if index in take:
                kept = self.norm(tokens) if norm and is_last else tokens
                if output_fmt == "NCHW":
                    kept = kept.transpose(1, 2).unflatten(2, grid[:])  # (B, N, D) -> (B, D, f, t)
                intermediates.append(kept)
            if stop_early and index == last_wanted and not is_last:
                return intermediates if intermediates_only else (tokens, intermediates)
        return intermediates if intermediates_only else (self.norm(tokens), intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove stages after the last one wanted, and norm and head with them."""
        take, last_wanted = _take_stages(len(self.stages), indices)
        cut = last_wanted < len(self.stages) - 1
        self.stages = self.stages[: last_wanted + 1]
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
            global_pool = "mean" if global_pool == "avg" else global_pool  # timm's word for it
            if global_pool not in GLOBAL_POOLS:
                allowed = ", ".join(repr(pool) for pool in GLOBAL_POOLS)
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
            self.head_hidden_size = pooled_dim(self.global_pool, 1, self.num_features)
        fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        self.head = nn.Sequential(OrderedDict(drop=nn.Dropout(self.drop_rate), fc=fc))
        weight = self.patch_embed.proj.weight
        for module in filter(None, (self.head, self.attn_pool)):
            module.apply(init_weights).to(device=weight.device, dtype=weight.dtype)
            module.train(self.training)

    def get_classifier(self) -> nn.Module:
        """The head's linear layer."""
        return self.head.get_submodule("fc")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, a third more time."""
        for stage in self.modules():
            if isinstance(stage, Stage):
                stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay spares: position tables and the pooling query."""
        return {
            name
            for name, _ in self.named_parameters()
            if "rel_pos_" in name or name == "attn_pool.query"
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Depth of each parameter for layer-wise decay: by block, or by stage where coarse."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)"
        return {"stem": r"^patch_embed", "blocks": [(blocks, None), (r"^norm", (99999,))]}


def init_weights(module: nn.Module) -> None:
    """As MViTv2: linear layers and position tables truncated normal 0.02, biases zero."""
    if isinstance(module, nn.Linear):
        trunc_normal_tf_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith("rel_pos_") or name == "query":
            trunc_normal_tf_(parameter, std=0.02)


def _take_stages(num_stages: int, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
    """Stages wanted (an int: the last so many; None: all), and the last of them."""
    if indices is None or isinstance(indices, int):
        indices = range(-(num_stages if indices is None else indices), 0)
    take = [range(num_stages)[index] for index in indices]
    return take, max(take)
