"""MAST: the multiscale audio spectrogram transformer, for spectrograms of any size."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmast.model.attention import PATHS, exact_dtype
from ssmast.model.backbone import Backbone, Pair, init_weights, pair
from ssmast.model.block import Block, Stretch
from ssmast.model.patch import Grid, Lengths, PatchDrop, PatchEmbed, Tokens, drop_patches

LONG_INPUTS = ("interpolate", "clamp")


class Stage(nn.Module):
    """The blocks of one resolution; the first one pools."""

    def __init__(self, blocks: Sequence[Block]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        mask: Tensor | None,
        stretch: Stretch,
        every: list[Tokens] | None = None,
    ) -> Tokens:
        """(B, N, D) -> the last block's tokens; those of every block are appended to `every`."""
        tokens = Tokens(x, grid, mask)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                # The grid not as an argument: `checkpoint` takes tuples apart, and a `KeptGrid` is
                # more than its two numbers.
                rest = {"grid": tokens.grid, "mask": tokens.mask, "stretch": stretch}
                tokens = checkpoint(partial(block, **rest), tokens.x, use_reentrant=False)
            else:
                tokens = block(*tokens[:3], stretch)
            if every is not None:
                every.append(tokens)
        return tokens


class MAST(Backbone):
    """Multiscale audio spectrogram transformer.

    A variant is a set of plain numbers; the defaults are Table 1 of Zhu & Omar 2023 ("mast_base").

    Args:
        input_size: mel bins x frames of the training input; sizes the position tables. Any other
            input works too.
        in_chans: input channels, 1 for a spectrogram.
        num_classes: outputs of the head; 0 leaves the pooled embedding.
        embed_dim: width of the first stage; doubles with each stage.
        depths: blocks of each stage.
        num_heads: attention heads of the first stage; doubles with each stage.
        stride_q: the pooling schedule: (freq, time) stride of each stage's first block.
        stride_kv: key and value stride of the first stage; each query stride divides it, rounded
            down to 1 at least, so (3, 3) gives 3, 1, 1, 1.
        stem_kernel: (freq, time) kernel of the patch embedding.
        stem_stride: its stride.
        stem_padding: its padding.
        mlp_ratio: hidden width of the MLP over its input.
        qkv_bias: whether queries, keys and values have a bias.
        expand_attn: the width grows in attention (True) or in the MLP before (mast_large).
        global_pool: a mode of `pool_tokens` or "attention" before the head; "" for none.
        pool_layers: layers that the head sees, see `blocks_of`.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block, rising from 0 at the first.
        long_input: position tables for inputs beyond the training length: "interpolate" stretches
            them over the clip, "clamp" uses the last row for distances beyond.
        attention_path: see `relative_attention`.

    Source: Zhu & Omar 2023 (MAST), Table 1, on Li et al. 2022 (MViTv2).
    """

    LEVELS = "stages"

    def __init__(
        self,
        *,
        input_size: Sequence[int] = (128, 1024),
        in_chans: int = 1,
        num_classes: int = 527,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 3, 16, 3),
        num_heads: int = 1,
        stride_q: Sequence[Sequence[int]] = ((1, 1), (2, 2), (2, 2), (1, 2)),
        stride_kv: Sequence[int] = (4, 4),
        stem_kernel: Sequence[int] = (7, 7),
        stem_stride: Sequence[int] = (4, 4),
        stem_padding: Sequence[int] = (3, 3),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        expand_attn: bool = True,
        global_pool: str = "mean",
        pool_layers: str = "last",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        long_input: str = "interpolate",
        attention_path: str = "auto",
    ):
        super().__init__()
        if len(depths) != len(stride_q):
            raise ValueError(
                f"stride_q must give one stride for each of the {len(depths)} stages, "
                f"got {len(stride_q)}"
            )
        _check_choice("long_input", long_input, LONG_INPUTS)
        _check_choice("attention_path", attention_path, PATHS)
        self.input_size, self.in_chans = pair(input_size), in_chans
        self.depths, self.long_input, self.drop_rate = tuple(depths), long_input, drop_rate
        self.stride_q = tuple(pair(stride) for stride in stride_q)
        self.stride_kv = _stage_strides(pair(stride_kv), self.stride_q)
        self.patch_embed = PatchEmbed(
            in_chans,
            embed_dim,
            kernel=pair(stem_kernel),
            stride=pair(stem_stride),
            padding=pair(stem_padding),
        )
        self.train_grid = self.patch_embed.grid(*self.input_size)
        widths = [embed_dim * 2**stage for stage in range(len(depths))]
        drop_paths = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(self.depths)
        self.stages, self.feature_info = nn.ModuleList(), []
        grid, dim, reduction = self.train_grid, embed_dim, self.patch_embed.stride
        for stage, depth in enumerate(depths):
            dims_out = [widths[stage]] * depth
            if not expand_attn:  # a stage's last MLP already makes the next stage's width
                dims_out[-1] = widths[min(stage + 1, len(widths) - 1)]
            blocks = []
            for index, dim_out in enumerate(dims_out):
                block = Block(
                    dim,
                    dim_out,
                    num_heads=num_heads * 2**stage,
                    train_grid=grid,
                    stride_q=self.stride_q[stage] if index == 0 else (1, 1),
                    stride_kv=self.stride_kv[stage],
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    expand_attn=expand_attn,
                    drop_path=float(drop_paths[stage][index]),
                    path=attention_path,
                )
                blocks.append(block)
                grid, dim = grid.pool(block.stride_q), dim_out
            self.stages.append(Stage(blocks))
            freq, time = self.stride_q[stage]
            reduction = reduction[0] * freq, reduction[1] * time
            self.feature_info.append(
                {"module": f"stages.{stage}", "num_chs": dim, "reduction": min(reduction)}
            )
        self.num_features, self.last_heads = dim, num_heads * 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn_pool, self.pool_layers = None, pool_layers
        self.reset_classifier(num_classes, global_pool)
        self.apply(init_weights)

    # -- log-mel -> tokens -> embedding ------------------------------------------------------------

    def encode(
        self,
        log_mel: Tensor,
        *,
        lengths: Lengths = None,
        patch_drop: PatchDrop | None = None,
        every: list[Tokens] | None = None,
        stop: int | None = None,
    ) -> Tokens:
        """Tokens of a batch of spectrograms.

        Args:
            log_mel: (B, C, F, T).
            lengths: frames of each clip, where clips were padded to one width; a clip gets the
                tokens that it would get alone.
            patch_drop: patches to leave out, from `draw_patch_drop`.
            every: a list that gets the tokens after every block, before the final norm.
            stop: stages to go through; None for all, which the final norm then follows.

        Raises:
            ValueError: for an input smaller than the stem, or lengths or a drop that do not fit.
        """
        tokens, columns = self.patch_embed(log_mel, lengths)
        stretch = self._stretch(tokens.grid, columns)
        if patch_drop is not None:
            tokens = drop_patches(tokens, patch_drop)
        for stage in list(self.stages)[:stop]:
            tokens = stage(*tokens[:3], stretch, every)
        if stop is None or stop >= len(self.stages):
            tokens = tokens._replace(x=self.norm(tokens.x))
        return tokens

    def _stretch(self, grid: Grid, columns: Tensor | None) -> Stretch:
        """Length of each axis over that of the training input, in stem tokens."""
        if self.long_input == "clamp":
            return Stretch()
        trained = self.train_grid
        freq = grid.freq / trained.freq if grid.freq > trained.freq else None
        # In an exported graph `columns` has no axes, and the length is not asked for.
        if columns is not None and (columns.ndim == 0 or grid.time > trained.time):
            columns = columns.to(exact_dtype(columns.device))
            return Stretch(freq, (columns / trained.time).clamp(min=1.0))
        if columns is None and grid.time > trained.time:
            return Stretch(freq, grid.time / trained.time)
        return Stretch(freq)

    # -- sizes and patch-drop ----------------------------------------------------------------------

    @property
    def stage_ends(self) -> list[int]:
        """Index of each stage's last block in `encode_blocks`."""
        return [sum(self.depths[: stage + 1]) - 1 for stage in range(len(self.stages))]

    def grid_of(self, freq_bins: int, frames: int) -> list[Grid]:
        """Grid after the stem and after each stage for an input of that size."""
        grids = [self.patch_embed.grid(freq_bins, frames)]
        for stride in self.stride_q:
            grids.append(grids[-1].pool(stride))
        return grids

    @property
    def block_channels(self) -> list[int]:
        """Channels of the tokens after every block."""
        return [module.dim_out for module in self.stages.modules() if isinstance(module, Block)]

    def time_stride(self, level: int = -1) -> int:
        """Frames from one column to the next of the tokens after a stage, by default the last."""
        stages = range(len(self.stride_q))[level] + 1
        return self.patch_embed.stride[1] * math.prod(time for _, time in self.stride_q[:stages])

    @property
    def drop_group(self) -> Pair:
        """Rows x columns of stem tokens that structured patch-drop removes together.

        The smallest group that no pooling of queries or keys straddles: 4 x 8 for mast_base.
        """
        group = [1, 1]
        for axis in range(2):
            cell = 1  # stem tokens in a token, along the axis
            for stride_q, stride_kv, depth in zip(
                self.stride_q, self.stride_kv, self.depths, strict=True
            ):
                first_key = cell * stride_kv[axis]
                cell *= stride_q[axis]
                later_key = cell * stride_kv[axis] if depth > 1 else cell
                group[axis] = math.lcm(group[axis], cell, first_key, later_key)
        return group[0], group[1]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, a third more time."""
        for stage in self.modules():
            if isinstance(stage, Stage):
                stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Depth of each parameter for layer-wise decay: by block, or by stage where coarse."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)"
        return {"stem": r"^patch_embed", "blocks": [(blocks, None), (r"^norm", (99999,))]}


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _stage_strides(stride_kv: Pair, stride_q: tuple[Pair, ...]) -> tuple[Pair, ...]:
    """Key stride of each stage: divided by every query stride on the way, at least 1."""
    strides = []
    for freq, time in stride_q:
        stride_kv = max(stride_kv[0] // freq, 1), max(stride_kv[1] // time, 1)
        strides.append(stride_kv)
    return tuple(strides)
