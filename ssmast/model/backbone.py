"""The base of every encoder: head, sizes, and the interface that timm asks of a model.

How log-mels become tokens is each family's own, in one method: `MAST.encode`, `AST.encode`.
"""

import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch
from timm.layers.weight_init import trunc_normal_tf_
from torch import Tensor, nn

from ssmast.model.patch import Grid, Lengths, PatchDrop, PatchEmbed, Tokens, draw_patch_drop
from ssmast.model.pool import AttentionPool, pool_for_head, pool_tokens, pooled_dim, statistics_of

Pair = tuple[int, int]
# The last tokens, those at the end of every stage, or those of every block; numbers beside them.
LAYERS = ("last", "stages", "blocks")
BEFORE_LAST = "before_last"
"""The tokens that the last block is given, by name among the layers."""
_NUMBERS = re.compile(r"[1-9]\d*(-[1-9]\d*)?(\+[1-9]\d*(-[1-9]\d*)?)*")


class Backbone(nn.Module, ABC):
    """An encoder of log-mel spectrograms of any size: MAST or AST.

    A family that lacks one of the abstract methods cannot be made. Its levels are what timm takes
    features from: MAST's stages, AST's blocks.

    Attributes:
        input_size: mel bins x frames of the training input.
        in_chans: input channels.
        num_features: channels of the last tokens.
        num_class_tokens: tokens beside the grid, `Tokens.cls`.
    """

    LEVELS: ClassVar[str]  # attribute that holds them
    TIMM_POOLS: ClassVar[dict[str, str]] = {"avg": "mean"}  # timm's words for them

    patch_embed: PatchEmbed
    norm: nn.Module
    head: nn.Sequential
    attn_pool: AttentionPool | None
    feature_info: list[dict[str, str | int]]
    input_size: Pair
    in_chans: int
    num_features: int
    last_heads: int
    drop_rate: float
    global_pool: str = ""
    pool_layers: str = "last"
    num_class_tokens: int = 0

    # -- log-mel -> tokens -> embedding ------------------------------------------------------------

    def forward(
        self, log_mel: Tensor, *, lengths: Lengths = None, patch_drop: PatchDrop | None = None
    ) -> Tensor:
        """(B, C, F, T) -> logits (B, num_classes), or the pooled embedding without a head."""
        return self.head(self.before_head(log_mel, lengths=lengths, patch_drop=patch_drop))

    @abstractmethod
    def encode(
        self,
        log_mel: Tensor,
        *,
        lengths: Lengths = None,
        patch_drop: PatchDrop | None = None,
        every: list[Tokens] | None = None,
        stop: int | None = None,
    ) -> Tokens:
        """Tokens of a batch of spectrograms; see `MAST.encode`."""
        ...

    def encode_blocks(self, log_mel: Tensor, *, lengths: Lengths = None) -> list[Tokens]:
        """What `encode` returns, after every block; the last one is normed, the others are not.

        `stage_ends` gives the indices of the stages' last blocks.
        """
        every: list[Tokens] = []
        last = self.encode(log_mel, lengths=lengths, every=every)
        return [*every[:-1], last]

    def encode_layers(
        self,
        log_mel: Tensor,
        *,
        layers: str,
        lengths: Lengths = None,
        patch_drop: PatchDrop | None = None,
    ) -> list[Tokens]:
        """Tokens after each of some layers; those of the last block of all are normed.

        What comes after the deepest of them is not computed.

        Args:
            log_mel: (B, C, F, T).
            layers: see `blocks_of`.
            lengths: frames of each clip, where clips were padded to one width.
            patch_drop: patches to leave out.
        """
        if layers == "last":
            return [self.encode(log_mel, lengths=lengths, patch_drop=patch_drop)]
        every: list[Tokens] = []
        stop = self.deepest_level(layers) + 1
        last = self.encode(log_mel, lengths=lengths, patch_drop=patch_drop, every=every, stop=stop)
        every[-1] = last  # normed, if that was the last block of all
        return [every[block] for block in self.blocks_of(layers)]

    def embed(
        self,
        log_mel: Tensor,
        *,
        layers: str,
        pooling: str,
        lengths: Lengths = None,
        patch_drop: PatchDrop | None = None,
    ) -> Tensor:
        """The pooled vectors of some layers, joined (B, D): `encode_layers`, then `pool_tokens`."""
        found = self.encode_layers(log_mel, layers=layers, lengths=lengths, patch_drop=patch_drop)
        return torch.cat([pool_tokens(tokens, mode=pooling) for tokens in found], dim=1)

    def before_head(
        self, log_mel: Tensor, *, lengths: Lengths = None, patch_drop: PatchDrop | None = None
    ) -> Tensor:
        """What the head sees: vectors (B, D), or the tokens (B, N, D) for global_pool ""."""
        if self.global_pool in ("attention", ""):
            return self.pool(self.encode(log_mel, lengths=lengths, patch_drop=patch_drop))
        return self.embed(
            log_mel,
            layers=self.pool_layers,
            pooling=self.global_pool,
            lengths=lengths,
            patch_drop=patch_drop,
        )

    def pool(self, tokens: Tokens) -> Tensor:
        """What the head sees of the last tokens, where it sees no others; see `before_head`."""
        return pool_for_head(tokens, mode=self.global_pool, attention=self.attn_pool)

    # -- sizes -------------------------------------------------------------------------------------

    @abstractmethod
    def grid_of(self, freq_bins: int, frames: int) -> list[Grid]:
        """Grid after the stem and after each stage for an input of that size."""
        ...

    def level_grid(self, freq_bins: int, frames: int, level: int = -1) -> Grid:
        """Grid of the tokens after a level, by default the last."""
        grids = self.grid_of(freq_bins, frames)
        stages = [_first_at(self.stage_ends, end) for end in self.level_ends]
        return grids[1 + stages[level]]

    @property
    @abstractmethod
    def stage_ends(self) -> list[int]:
        """Index of each stage's last block in `encode_blocks`."""
        ...

    @property
    def level_ends(self) -> list[int]:
        """Index of each level's last block in `encode_blocks`."""
        return self.stage_ends

    @property
    @abstractmethod
    def block_channels(self) -> list[int]:
        """Channels of the tokens after every block."""
        ...

    @abstractmethod
    def time_stride(self, level: int = -1) -> int:
        """Frames from one column to the next of the tokens after a level, by default the last."""
        ...

    @property
    def fewest_frames(self) -> int:
        """Frames that an input needs at least."""
        return self.patch_embed.fewest_frames

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

    # -- layers that are pooled --------------------------------------------------------------------

    def blocks_of(self, layers: str) -> list[int]:
        """Blocks whose tokens are pooled, by number and in their order.

        Args:
            layers: "last"; "before_last", the block before it; "stages", the ends of all; "blocks";
                or numbers of stages (of an AST: of blocks) from 1 on, such as "2-3" or "1+3".

        Raises:
            ValueError: for what this model does not have.
        """
        if layers == "blocks":
            return list(range(len(self.block_channels)))
        if layers == BEFORE_LAST and len(self.block_channels) > 1:
            return [len(self.block_channels) - 2]
        if layers in LAYERS:
            return self.stage_ends[-1:] if layers == "last" else self.stage_ends
        ends = self.level_ends
        wanted: set[int] = set()
        if _NUMBERS.fullmatch(layers):
            for part in layers.split("+"):
                first, _, last = part.partition("-")
                own = range(int(first), int(last or first) + 1)
                # A falling part, such as 3-2, holds none: that is no stage of this model either.
                wanted |= set(own or [len(ends) + 1])
        if not wanted or max(wanted) > len(ends):
            raise ValueError(
                f"layers must be {', '.join(LAYERS)}, {BEFORE_LAST}, or numbers from 1 to "
                f"{len(ends)} such as "
                f"{max(1, len(ends) - 2)}-{len(ends)} or 1+{len(ends)}, got {layers!r}"
            )
        return [ends[number - 1] for number in sorted(wanted)]

    def deepest_level(self, layers: str) -> int:
        """Number from 0 on of the level that the network has to run to."""
        return _first_at(self.level_ends, self.blocks_of(layers)[-1])

    def layer_sizes(self, layers: str, *, num_mels: int) -> list[tuple[int, int]]:
        """(frequency rows, channels) of each layer that is pooled."""
        frames, sizes = max(self.input_size[1], 1), []
        for block in self.blocks_of(layers):
            grid = self.level_grid(num_mels, frames, _first_at(self.level_ends, block))
            sizes.append((grid.freq, self.block_channels[block]))
        return sizes

    def check_pooling(self, mode: str) -> None:
        """Refuse a mode of `pool_tokens` that does not exist or not for this model.

        Raises:
            ValueError: naming those that do.
        """
        if statistics_of(mode) == ["cls"] and not self.num_class_tokens:
            raise ValueError(
                f'pooling "cls" needs class tokens, which only ast_* models have; give another '
                f"such as mean for {type(self).__name__}"
            )

    # -- timm's interface --------------------------------------------------------------------------

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, F, T) -> normed tokens (B, N, D), class tokens first where there are any."""
        return _as_timm(self.encode(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` returns -> logits; with `pre_logits` what the head sees.

        Raises:
            ValueError: for a global_pool such as "freq+max", which needs the grid of the tokens, or
                pool_layers other than the last.
        """
        simple = set(self.global_pool.split("+")) <= {"mean", "max", "cls", "attention", ""}
        if not simple or self.pool_layers != "last":
            raise ValueError(
                f"global_pool {self.global_pool!r} of layers {self.pool_layers!r} needs more than "
                "the last tokens; call the model, or model.before_head(log_mel)"
            )
        if self.global_pool:
            n = self.num_class_tokens
            grid = Grid(1, x.shape[1] - n)  # no other mode of the head looks at rows
            x = self.pool(Tokens(x[:, n:], grid, cls=x[:, :n] if n else None))
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
        """Tokens after chosen levels, as timm's models return them.

        Args:
            x: log-mel (B, C, F, T).
            indices: levels; an int n for the last n, None for all.
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
        every: list[Tokens] = []
        last = self.encode(x, every=every, stop=last_wanted + 1 if stop_early else None)
        intermediates: list[Tensor] = []
        for index in take:
            is_last = index == len(self.levels) - 1
            tokens = last if norm and is_last else every[self.level_ends[index]]
            found = tokens.x
            if output_fmt == "NCHW":
                found = found.transpose(1, 2).unflatten(2, tokens.grid[:])  # (B, D, f, t)
            intermediates.append(found)
        return intermediates if intermediates_only else (_as_timm(last), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
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

    @property
    def levels(self) -> nn.ModuleList:
        """The stages of a MAST, the blocks of an AST."""
        return getattr(self, self.LEVELS)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Fresh head of `num_classes` outputs (0: none), and another pooling where given.

        Raises:
            ValueError: for an unknown pooling, or fewer than 0 classes.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0 (no classes), got {num_classes}")
        if global_pool is not None:
            global_pool = self.TIMM_POOLS.get(global_pool, global_pool)
            if global_pool not in ("attention", ""):
                self.check_pooling(global_pool)
            if global_pool != self.global_pool:
                attends = global_pool == "attention"
                self.attn_pool = (
                    AttentionPool(self.num_features, self.last_heads) if attends else None
                )
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features
        if self.global_pool not in ("attention", ""):
            sizes = self.layer_sizes(self.pool_layers, num_mels=self.input_size[0])
            self.head_hidden_size = sum(pooled_dim(self.global_pool, *size) for size in sizes)
        elif self.pool_layers != "last":
            raise ValueError(
                f"pool_layers must be last with global_pool {self.global_pool!r}, got "
                f"{self.pool_layers!r}"
            )
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

    @abstractmethod
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, a third more time."""
        ...

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay spares: positions, class tokens, pooling query."""
        return {name for name, _ in self.named_parameters() if _is_table(name)}

    @abstractmethod
    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Depth of each parameter for layer-wise decay: by block, or by level where coarse."""
        ...


def _first_at(ends: Sequence[int], block: int) -> int:
    """Number of the first that ends at the block or later; `bisect` cannot be compiled."""
    return sum(end < block for end in ends)


def _as_timm(tokens: Tokens) -> Tensor:
    """(B, N, D), class tokens first where there are any."""
    return tokens.x if tokens.cls is None else torch.cat([tokens.cls, tokens.x], dim=1)


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
    """Levels wanted (an int n: the last n; None: all), and the last of them."""
    if indices is None or isinstance(indices, int):
        indices = range(-(num_levels if indices is None else indices), 0)
    take = [range(num_levels)[index] for index in indices]
    return take, max(take)


def pair(numbers: int | Sequence[int]) -> Pair:
    """Two numbers as a tuple; JSON knows only lists. One number stands for both axes."""
    if isinstance(numbers, int):
        return numbers, numbers
    freq, time = numbers
    return int(freq), int(time)
