"""MAST: the multiscale audio spectrogram transformer, for spectrograms of any size."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ssmast.model.attention import PATHS, exact_dtype
from ssmast.model.backbone import Backbone, Lengths, Pair, Stage, State, Tokens, init_weights, pair
from ssmast.model.block import Block, Stretch
from ssmast.model.patch import Grid, PatchDrop, PatchEmbed, drop_patches

LONG_INPUTS = ("interpolate", "clamp")


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
        stride_kv: key and value stride of the first stage; each query stride divides it.
        stem_kernel: (freq, time) kernel of the patch embedding.
        stem_stride: its stride.
        stem_padding: its padding.
        mlp_ratio: hidden width of the MLP over its input.
        qkv_bias: whether queries, keys and values have a bias.
        expand_attn: the width grows in attention (True) or in the MLP before (mast_large).
        global_pool: "mean", "mean+max", "freq+max" or "attention" before the head; "" for none.
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
        grid, dim, reduction = self.train_grid, embed_dim, max(self.patch_embed.stride)
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
            reduction *= max(self.stride_q[stage])
            self.feature_info.append(
                {"module": f"stages.{stage}", "num_chs": dim, "reduction": reduction}
            )
        self.num_features, self.last_heads = dim, num_heads * 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn_pool = None
        self.reset_classifier(num_classes, global_pool)
        self.apply(init_weights)

    # -- the way of the tensor -------------------------------------------------------------------

    def embed_patches(
        self, log_mel: Tensor, lengths: Lengths = None, patch_drop: PatchDrop | None = None
    ) -> State:
        """Stem tokens (B, N, D), their grid and mask after patch-drop, and the input's stretch."""
        x, grid, mask, columns = self._stem(log_mel, lengths)
        stretch = self._stretch(grid, columns)
        if patch_drop is not None:
            x, grid, mask = drop_patches(x, grid, mask, patch_drop)
        return State(x, grid, mask, stretch)

    def advance(self, level: nn.Module, state: State) -> State:
        """Through one stage."""
        x, grid, mask = level(*state)
        return State(x, grid, mask, state.extra)

    def each_block(self, level: nn.Module, state: State) -> Iterator[State]:
        """State after every block of one stage."""
        assert isinstance(level, Stage)
        for outcome in level.each(*state):
            yield State(*outcome, state.extra)

    def tokens_of(self, state: State, *, norm: bool = False) -> Tokens:
        """Tokens, grid and mask, after the final norm where asked."""
        return self.norm(state.x) if norm else state.x, state.grid, state.mask

    def _stretch(self, grid: Grid, columns: Tensor | None) -> Stretch:
        """How much longer than the training input each axis is, counted in stem tokens."""
        if self.long_input == "clamp":
            return Stretch()
        freq = grid.freq / self.train_grid.freq
        if torch.compiler.is_exporting() and columns is None:
            # An exported graph takes any length, so it holds no choice between lengths.
            columns = torch.scalar_tensor(grid.time, dtype=torch.float64)
            return Stretch(
                freq if freq > 1 else None, (columns / self.train_grid.time).clamp(min=1.0)
            )
        time = grid.time / self.train_grid.time
        longer: float | Tensor | None = time if time > 1 else None
        if longer is not None and columns is not None:
            columns = columns.to(exact_dtype(columns.device))
            longer = (columns / self.train_grid.time).clamp(min=1.0)
        return Stretch(freq if freq > 1 else None, longer)

    # -- sizes and patch-drop --------------------------------------------------------------------

    @property
    def stage_ends(self) -> list[int]:
        """Index of each stage's last block in `encode_blocks`."""
        return [sum(self.depths[: stage + 1]) - 1 for stage in range(len(self.depths))]

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

    @property
    def time_stride(self) -> int:
        """Frames from one column of the last grid to the next."""
        return self.patch_embed.stride[1] * math.prod(time for _, time in self.stride_q)

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
