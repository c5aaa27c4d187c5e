"""What every encoder of ours does: spectrograms of any size in, a grid of tokens out.

What timm asks of a model beside its forward pass: heads, features, layer decay, memory.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from timm.layers.weight_init import trunc_normal_tf_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmast.model.block import Block, Stretch
from ssmast.model.patch import Grid, PatchDrop, PatchEmbed, draw_patch_drop
from ssmast.model.pool import POOL_MODES, AttentionPool, pool_tokens, pooled_dim

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


Pair = tuple[int, int]
Lengths = Sequence[int] | Tensor | None


class Backbone(TimmInterface):
    """An encoder of log-mel spectrograms, whatever its family: MAST or AST.

    Attributes:
        input_size: mel bins x frames of the training input.
        in_chans: input channels.
        num_features: channels of the last tokens.
        num_class_tokens: tokens beside the grid, which `Grid.class_tokens` then holds.
    """

    in_chans: int
    num_features: int
    num_class_tokens: int = 0

    # -- the way of the tensor -------------------------------------------------------------------

    def forward(
        self, log_mel: Tensor, *, lengths: Lengths = None, patch_drop: PatchDrop | None = None
    ) -> Tensor:
        """(B, C, F, T) -> logits (B, num_classes), or the pooled embedding without a head."""
        x, grid, mask = self.encode(log_mel, lengths=lengths, patch_drop=patch_drop)
        return self.forward_head(x, grid=grid, mask=mask)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, F, T) -> normed tokens (B, N, D), class tokens first where there are any."""
        state = self.embed_patches(x)
        for level in self.levels:
            state = self.advance(level, state)
        return self.norm(state.x)

    def encode(
        self, log_mel: Tensor, *, lengths: Lengths = None, patch_drop: PatchDrop | None = None
    ) -> Tokens:
        """Tokens of a batch of spectrograms.

        Args:
            log_mel: (B, C, F, T).
            lengths: frames of each clip, where clips were padded to one width; a clip gets the
                tokens that it would get alone.
            patch_drop: patches to leave out, from `draw_patch_drop`.

        Returns:
            tokens (B, N, D) of the grid after the final norm, their Grid (with the class tokens of
            a model that has them), and a mask bool (B, N), True where a token is valid, or None
            where all are.

        Raises:
            ValueError: for an input smaller than the stem, or lengths or a drop that do not fit.
        """
        state = self.embed_patches(log_mel, lengths, patch_drop)
        for level in self.levels:
            state = self.advance(level, state)
        return self.tokens_of(state, norm=True)

    def encode_blocks(self, log_mel: Tensor, *, lengths: Lengths = None) -> list[Tokens]:
        """What `encode` returns, after every block; the last one is normed, the others are not.

        `stage_ends` gives the indices of the stages' last blocks.
        """
        state = self.embed_patches(log_mel, lengths)
        states: list[State] = []
        for level in self.levels:
            states += self.each_block(level, state)
            state = states[-1]
        return [
            *(self.tokens_of(state) for state in states[:-1]),
            self.tokens_of(states[-1], norm=True),
        ]

    @abstractmethod
    def embed_patches(
        self, log_mel: Tensor, lengths: Lengths = None, patch_drop: PatchDrop | None = None
    ) -> State:
        """Stem tokens, their grid and mask after patch-drop, and what the family needs beside."""
        ...

    def each_block(self, level: nn.Module, state: State) -> Iterator[State]:
        """State after every block of one level."""
        yield self.advance(level, state)

    # -- sizes -----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def stage_ends(self) -> list[int]:
        """Index of each stage's last block in `encode_blocks`."""
        ...

    @property
    @abstractmethod
    def block_channels(self) -> list[int]:
        """Channels of the tokens after every block."""
        ...

    @property
    @abstractmethod
    def time_stride(self) -> int:
        """Frames from one column of the last grid to the next."""
        ...

    @property
    def fewest_frames(self) -> int:
        """Frames that an input needs at least."""
        return max(1, self.patch_embed.kernel[1] - 2 * self.patch_embed.padding[1])

    @property
    @abstractmethod
    def drop_group(self) -> Pair:
        """Rows x columns of stem tokens that structured patch-drop removes together."""
        ...

    def draw_patch_drop(
        self,
        freq_bins: int,
        frames: int,
        *,
        rate: float,
        mode: str,
        batch: int,
        generator: torch.Generator | None = None,
        uniforms: Tensor | None = None,
    ) -> PatchDrop:
        """`draw_patch_drop` for inputs of that size, in groups of this encoder's stride."""
        return draw_patch_drop(
            self.patch_embed.grid(freq_bins, frames),
            rate=rate,
            mode=mode,
            batch=batch,
            group=self.drop_group,
            generator=generator,
            uniforms=uniforms,
        )

    def check_pooling(self, mode: str) -> None:
        """Refuse a mode of `pool_tokens` that does not exist or not for this model.

        Raises:
            ValueError: naming those that do.
        """
        modes = [known for known in POOL_MODES if known != "cls" or self.num_class_tokens]
        if mode not in modes:
            why = " (only ast_* models have class tokens)" if mode == "cls" else ""
            raise ValueError(f"pooling must be one of {', '.join(modes)}, got {mode!r}{why}")

    # -- parts -----------------------------------------------------------------------------------

    def _stem(
        self, log_mel: Tensor, lengths: Lengths
    ) -> tuple[Tensor, Grid, Tensor | None, Tensor | None]:
        """Stem tokens (B, N, D), grid, mask (B, N) and valid columns (B,) of clips with lengths."""
        if log_mel.ndim != 4 or log_mel.shape[1] != self.in_chans:
            raise ValueError(
                f"log_mel must have shape (B, {self.in_chans}, mel bins, frames), "
                f"got {tuple(log_mel.shape)}"
            )
        log_mel = log_mel.to(self.patch_embed.proj.weight.dtype)  # after `encoder.half()`
        if lengths is None:
            return *self.patch_embed(log_mel), None, None
        lengths = self._check_lengths(lengths, log_mel)
        frames = torch.arange(log_mel.shape[-1], device=log_mel.device)
        padded = frames >= lengths[:, None]  # (B, T)
        x, grid = self.patch_embed(log_mel.masked_fill(padded[:, None, None, :], 0.0))
        columns = self.patch_embed.length(1, lengths)  # valid stem columns of each clip
        mask = torch.arange(grid.time, device=x.device) < columns[:, None]
        return x, grid, mask.repeat(1, grid.freq), columns  # (B, t) -> (B, f * t)

    def _check_lengths(self, lengths: Sequence[int] | Tensor, log_mel: Tensor) -> Tensor:
        lengths = torch.as_tensor(lengths)
        shortest = self.fewest_frames
        if lengths.shape != log_mel.shape[:1]:
            raise ValueError(
                f"lengths must be one number for each of {len(log_mel)} clips, "
                f"got shape {tuple(lengths.shape)}"
            )
        # On another device the check would have to wait for it.
        if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(lengths.min()), int(lengths.max())
            if low < shortest or high > log_mel.shape[-1]:
                raise ValueError(
                    f"lengths must lie in {shortest}..{log_mel.shape[-1]} frames, got {low}..{high}"
                )
        return lengths.to(log_mel.device)


def pair(numbers: Sequence[int]) -> Pair:
    """Two numbers as a tuple; JSON knows only lists."""
    freq, time = numbers
    return int(freq), int(time)
