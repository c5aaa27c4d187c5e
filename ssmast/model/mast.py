"""MAST: the multiscale audio spectrogram transformer, for spectrograms of any size."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssmast.model.attention import PATHS
from ssmast.model.block import Block, Stretch
from ssmast.model.grid import Grid
from ssmast.model.patch import PatchDrop, PatchEmbed, draw_patch_drop, drop_patches
from ssmast.model.relative import exact_dtype
from ssmast.model.timm_interface import Stage, TimmInterface, Tokens, init_weights

LONG_INPUTS = ("interpolate", "clamp")

Pair = tuple[int, int]


class MAST(TimmInterface):
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
        global_pool: "mean", "mean+max" or "attention" before the head; "" for none.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block, rising from 0 at the first.
        long_input: position tables for inputs beyond the training length: "interpolate" stretches
            them over the clip, "clamp" uses the last row for distances beyond.
        attention_path: see `relative_attention`.

    Source: Zhu & Omar 2023 (MAST), Table 1, on Li et al. 2022 (MViTv2).
    """

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
        self.input_size, self.in_chans = _pair(input_size), in_chans
        self.depths, self.long_input, self.drop_rate = tuple(depths), long_input, drop_rate
        self.stride_q = tuple(_pair(stride) for stride in stride_q)
        self.stride_kv = _stage_strides(_pair(stride_kv), self.stride_q)
        self.patch_embed = PatchEmbed(
            in_chans,
            embed_dim,
            kernel=_pair(stem_kernel),
            stride=_pair(stem_stride),
            padding=_pair(stem_padding),
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

    def forward(
        self,
        log_mel: Tensor,
        *,
        lengths: Sequence[int] | Tensor | None = None,
        patch_drop: PatchDrop | None = None,
    ) -> Tensor:
        """(B, C, F, T) -> logits (B, num_classes), or the pooled embedding without a head."""
        x, grid, mask = self.encode(log_mel, lengths=lengths, patch_drop=patch_drop)
        return self.forward_head(x, grid=grid, mask=mask)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, F, T) -> normed tokens (B, N, D)."""
        return self.encode(x)[0]

    def encode(
        self,
        log_mel: Tensor,
        *,
        lengths: Sequence[int] | Tensor | None = None,
        patch_drop: PatchDrop | None = None,
    ) -> Tokens:
        """Tokens of a batch of spectrograms.

        Args:
            log_mel: (B, C, F, T).
            lengths: frames of each clip, where clips were padded to one width; a clip gets the
                tokens that it would get alone.
            patch_drop: patches to leave out, from `draw_patch_drop`.

        Returns:
            tokens (B, N, D) after the final norm, their Grid, and a mask bool (B, N), True where
            a token is valid, or None where all are.

        Raises:
            ValueError: for an input smaller than the stem, or lengths or a drop that do not fit.
        """
        x, grid, mask, stretch = self.embed_patches(log_mel, lengths, patch_drop)
        for stage in self.stages:
            x, grid, mask = stage(x, grid, mask, stretch)
        return self.norm(x), grid, mask

    def encode_blocks(
        self, log_mel: Tensor, *, lengths: Sequence[int] | Tensor | None = None
    ) -> list[Tokens]:
        """What `encode` returns, after every block; the last one is normed, the others are not.

        `stage_ends` gives the indices of the stages' last blocks.
        """
        x, grid, mask, stretch = self.embed_patches(log_mel, lengths)
        outcomes: list[Tokens] = []
        for stage in self.stages:
            assert isinstance(stage, Stage)
            outcomes += stage.each(x, grid, mask, stretch)
            x, grid, mask = outcomes[-1]
        return [*outcomes[:-1], (self.norm(x), grid, mask)]

    @property
    def stage_ends(self) -> list[int]:
        """Index of each stage's last block in `encode_blocks`."""
        return [sum(self.depths[: stage + 1]) - 1 for stage in range(len(self.depths))]

    def embed_patches(
        self,
        log_mel: Tensor,
        lengths: Sequence[int] | Tensor | None = None,
        patch_drop: PatchDrop | None = None,
    ) -> tuple[Tensor, Grid, Tensor | None, Stretch]:
        """Stem tokens (B, N, D), their grid and mask after patch-drop, and the input's stretch."""
        if log_mel.ndim != 4 or log_mel.shape[1] != self.in_chans:
            raise ValueError(
                f"log_mel must have shape (B, {self.in_chans}, mel bins, frames), "
                f"got {tuple(log_mel.shape)}"
            )
        mask = columns = None
        if lengths is not None:
            lengths = self._check_lengths(lengths, log_mel)
            frames = torch.arange(log_mel.shape[-1], device=log_mel.device)
            padded = frames >= lengths[:, None]  # (B, T)
            log_mel = log_mel.masked_fill(padded[:, None, None, :], 0.0)
        x, grid = self.patch_embed(log_mel)
        if lengths is not None:
            columns = self.patch_embed.length(1, lengths)  # valid stem columns of each clip
            mask = torch.arange(grid.time, device=x.device) < columns[:, None]
            mask = mask.repeat(1, grid.freq)  # (B, t) -> (B, f * t)
        stretch = self._stretch(grid, columns)
        if patch_drop is not None:
            x, grid, mask = drop_patches(x, grid, mask, patch_drop)
        return x, grid, mask, stretch

    def _check_lengths(self, lengths: Sequence[int] | Tensor, log_mel: Tensor) -> Tensor:
        lengths = torch.as_tensor(lengths)
        shortest = max(1, self.patch_embed.kernel[1] - 2 * self.patch_embed.padding[1])
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

    def _stretch(self, grid: Grid, columns: Tensor | None) -> Stretch:
        """How much longer than the training input each axis is, counted in stem tokens."""
        if self.long_input == "clamp":
            return Stretch()
        freq = grid.freq / self.train_grid.freq
        time = grid.time / self.train_grid.time
        longer: float | Tensor | None = time if time > 1 else None
        if longer is not None and columns is not None:
            columns = columns.to(exact_dtype(columns.device))
            longer = (columns / self.train_grid.time).clamp(min=1.0)
        return Stretch(freq if freq > 1 else None, longer)

    # -- sizes and patch-drop --------------------------------------------------------------------

    def grid_of(self, freq_bins: int, frames: int) -> list[Grid]:
        """Grid after the stem and after each stage for an input of that size."""
        grids = [self.patch_embed.grid(freq_bins, frames)]
        for stride in self.stride_q:
            grids.append(grids[-1].pool(stride))
        return grids

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


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _pair(numbers: Sequence[int]) -> Pair:
    """Two numbers as a tuple; JSON knows only lists."""
    freq, time = numbers
    return int(freq), int(time)


def _stage_strides(stride_kv: Pair, stride_q: tuple[Pair, ...]) -> tuple[Pair, ...]:
    """Key stride of each stage: divided by every query stride on the way, at least 1."""
    strides = []
    for freq, time in stride_q:
        stride_kv = max(stride_kv[0] // freq, 1), max(stride_kv[1] // time, 1)
        strides.append(stride_kv)
    return tuple(strides)
