"""AST: the audio spectrogram transformer, a ViT on overlapping patches, for inputs of any size."""

from collections.abc import Sequence

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ssmast.model.attention import exact_dtype, read_rows
from ssmast.model.backbone import Backbone, Pair, init_weights, pair
from ssmast.model.patch import Grid, Lengths, PatchDrop, PatchEmbed, Tokens, drop_patches


def resize_positions(
    table: Tensor, source: Grid, target: Grid, *, columns: Tensor | None = None
) -> Tensor:
    """Position table of one grid for another: per axis its middle, or all of it stretched.

    Args:
        table: (source.freq x source.time, D).
        source: grid that it is for.
        target: grid that is wanted.
        columns: valid columns of each clip (B,), where clips were padded to `target.time`; or of
            all of them, without axes.

    Returns:
        (target.freq x target.time, D), or (B, ..., D) with columns of each clip.

    Source: Gong et al. 2021 (AST), section 2.2.
    """
    freq = _table_index(target.freq, target.freq, source.freq, table.device)
    size = target.time if columns is None else columns[:, None] if columns.ndim else columns
    time = _table_index(target.time, size, source.time, table.device)
    rows = read_rows(table.unflatten(0, source[:]).flatten(1), freq)  # (f0, t0 * D) -> (f, t0 * D)
    cells = rows.unflatten(1, (source.time, -1)).transpose(0, 1).flatten(1)  # (t0, f * D)
    cells = read_rows(cells, time).unflatten(-1, (target.freq, -1))  # (..., t, f, D)
    return cells.transpose(-3, -2).flatten(-3, -2)  # (..., f * t, D)


def _table_index(
    num: int, size: int | Tensor, train_size: int, device: torch.device | None
) -> Tensor:
    """Row of the position table, fractional, for each of `num` cells along one axis.

    Args:
        num: cells asked for.
        size: cells of the clip's axis, one number or (B, 1); the cells beyond are padding.
        train_size: rows of the table. A shorter axis gets its middle, a longer one all of it,
            stretched.
        device: of the result.

    Source: Gong et al. 2021 (AST), section 2.2, and its released code for the middle;
    `F.interpolate(mode="bilinear", align_corners=False)` for the stretch.
    """
    if not isinstance(size, Tensor):  # in an exported graph a symbol, which as_tensor refuses
        size = torch.scalar_tensor(size, dtype=torch.int64, device=device)
    cells = torch.arange(num, device=device, dtype=exact_dtype(torch.device(device or "cpu")))
    cut = cells + (train_size // 2 - size // 2)
    stretched = (cells + 0.5) * (train_size / size.to(cells.dtype)) - 0.5
    return torch.where(size <= train_size, cut, stretched)


class SelfAttention(nn.Module):
    """Multi-head self-attention through PyTorch's fused kernels.

    Parameters have timm's names. timm's own class is not used as ptflops counts of it the products
    alone and none of its linear layers.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide the width {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); `key_mask` bool (B, 1, 1, N) is True where a key takes part."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, D/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # each (B, H, N, D/H)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class VitBlock(nn.Module):
    """Attention and MLP, each normed before and with a shortcut around.

    Source: Dosovitskiy et al. 2021 (ViT), eq. 2 and 3.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = SelfAttention(dim, num_heads, qkv_bias=qkv_bias)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio))
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); see `SelfAttention` for the mask."""
        x = x + self.drop_path1(self.attn(self.norm1(x), key_mask))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class AST(Backbone):
    """Audio spectrogram transformer: patches, class and distillation token, equal ViT blocks.

    A variant is a set of plain numbers; the defaults are those of Gong et al. 2021 ("ast_base").
    Class and distillation token go through the blocks with the patches. `encode` returns them as
    `Tokens.cls`, beside the tokens of the grid; `forward_features` puts them first, as timm's
    models do. The head takes their mean.

    Args:
        input_size: mel bins x frames of the training input; sizes the position table. Any other
            input of at least one patch works too: on a shorter axis the middle of the table is
            used, on a longer one it is interpolated.
        in_chans: input channels, 1 for a spectrogram.
        num_classes: outputs of the head; 0 leaves the pooled embedding.
        embed_dim: width.
        depth: blocks.
        num_heads: attention heads.
        patch_size: mel bins x frames of a patch.
        patch_stride: from one patch to the next; smaller than a patch where they overlap.
        mlp_ratio: hidden width of the MLP over its input.
        qkv_bias: whether queries, keys and values have a bias.
        global_pool: "cls" (mean of the two class tokens), or one of MAST's, before
            the head; "" for none.
        pool_layers: layers that the head sees, see `blocks_of`.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block, rising from 0 at the first.
        norm_eps: of every LayerNorm. DeiT's 1e-6; transformers' copy of AST has 1e-12.

    Source: Gong et al. 2021 (AST), on Touvron et al. 2021 (DeiT), with the blocks of ViT.
    """

    LEVELS = "blocks"
    TIMM_POOLS = {"token": "cls", "avg": "mean"}  # noqa: RUF012 (declared as ClassVar above)

    def __init__(
        self,
        *,
        input_size: Sequence[int] = (128, 1024),
        in_chans: int = 1,
        num_classes: int = 527,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch_size: Sequence[int] = (16, 16),
        patch_stride: Sequence[int] = (10, 10),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        global_pool: str = "cls",
        pool_layers: str = "last",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.input_size, self.in_chans = pair(input_size), in_chans
        self.num_features, self.last_heads, self.num_class_tokens = embed_dim, num_heads, 2
        self.drop_rate, self.norm_eps, self.grad_checkpointing = drop_rate, norm_eps, False
        self.patch_embed = PatchEmbed(
            in_chans, embed_dim, kernel=pair(patch_size), stride=pair(patch_stride), padding=(0, 0)
        )
        self.train_grid = self.patch_embed.grid(*self.input_size)
        num_patches = self.train_grid.freq * self.train_grid.time
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 2 + num_patches, embed_dim))
        drop_paths = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            VitBlock(
                embed_dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path=drop_path,
                norm_eps=norm_eps,
            )
            for drop_path in drop_paths
        )
        reduction = min(self.patch_embed.stride)
        self.feature_info = [
            {"module": f"blocks.{index}", "num_chs": embed_dim, "reduction": reduction}
            for index in range(depth)
        ]
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
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
        """Tokens of a batch of spectrograms, as `MAST.encode`; `stop` counts blocks.

        Dropped patches leave the sequence; they come back as zeros that the mask names.
        """
        tokens, columns = self.patch_embed(log_mel, lengths)
        tokens = tokens._replace(x=tokens.x + self._positions(tokens.grid, columns))
        where = None
        if patch_drop is not None:
            tokens = drop_patches(tokens, patch_drop)
            if patch_drop.keep is not None:
                padded = lengths is not None or not patch_drop.num_kept
                tokens, where = _close_ranks(tokens, None if padded else patch_drop.num_kept)
        return self._through_blocks(tokens, where, every=every, stop=stop)

    def encode_masked(self, log_mel: Tensor, *, masked: Tensor, mask_token: Tensor) -> Tokens:
        """`encode` with some patches masked: SSAST's pretraining.

        Args:
            log_mel: (B, C, F, T).
            masked: bool (B, N), True for the patches of the grid to mask; their content changes
                nothing.
            mask_token: (D,), takes the place of a masked patch before its position is added.

        Raises:
            ValueError: if patches overlap, so that neighbours would show what is masked, or the
                mask does not fit the grid.

        Source: Gong et al. 2022 (SSAST), section 2.3.
        """
        stem = self.patch_embed
        if stem.stride[0] < stem.kernel[0] or stem.stride[1] < stem.kernel[1]:
            raise ValueError(
                f"masked patches must not overlap with others, got patches of {stem.kernel} "
                f"every {stem.stride}; use model=ssast_base, or patch_stride equal to patch_size"
            )
        tokens, _ = stem(log_mel)
        shape = tokens.x.shape[:2]
        if masked.shape != shape:
            raise ValueError(f"masked must be {tuple(shape)}, got {tuple(masked.shape)}")
        x = torch.where(masked[..., None], mask_token.to(tokens.x.dtype), tokens.x)
        return self._through_blocks(
            tokens._replace(x=x + self._positions(tokens.grid, None)), where=None
        )

    def _through_blocks(
        self,
        tokens: Tokens,
        where: Tensor | None,
        *,
        every: list[Tokens] | None = None,
        stop: int | None = None,
    ) -> Tokens:
        """Patches with positions -> what `encode` returns; `where` as `_close_ranks` returns it."""
        classes = torch.cat([self.cls_token, self.dist_token], dim=1) + self.pos_embed[:, :2]
        x = torch.cat([classes.expand(tokens.x.shape[0], -1, -1), tokens.x], dim=1)
        key_mask = None
        if tokens.mask is not None:  # the class tokens take part in any case
            key_mask = F.pad(tokens.mask, (2, 0), value=True)[:, None, None]
        for block in list(self.blocks)[:stop]:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, key_mask, use_reentrant=False)
            else:
                x = block(x, key_mask)
            if every is not None:
                every.append(_on_grid(x, tokens, where))
        if stop is None or stop >= len(self.blocks):
            x = self.norm(x)
        return _on_grid(x, tokens, where)

    def _positions(self, grid: Grid, columns: Tensor | None) -> Tensor:
        """Position rows (N, D) of the grid, or (B, N, D) where clips have columns of their own."""
        table = self.pos_embed[0, 2:]
        if columns is None and grid == self.train_grid:
            return table
        return resize_positions(table, self.train_grid, grid, columns=columns)

    # -- sizes and bookkeeping ---------------------------------------------------------------------

    def grid_of(self, freq_bins: int, frames: int) -> list[Grid]:
        """Grid after the stem and after the blocks, which all keep it."""
        return [self.patch_embed.grid(freq_bins, frames)] * 2

    @property
    def stage_ends(self) -> list[int]:
        """Index of the last block: all blocks have one resolution, so they are one stage."""
        return [len(self.blocks) - 1]

    @property
    def level_ends(self) -> list[int]:
        """Every block is a level."""
        return list(range(len(self.blocks)))

    @property
    def block_channels(self) -> list[int]:
        """Channels of the tokens after every block."""
        return [self.num_features] * len(self.blocks)

    def time_stride(self, level: int = -1) -> int:
        """Frames from one column of patches to the next, the same after every block."""
        return self.patch_embed.stride[1]

    @property
    def drop_group(self) -> Pair:
        """One patch: without pooling, each row and column may fall alone."""
        return 1, 1

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, a third more time."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Depth of each parameter for layer-wise decay, by block."""
        stem = r"^(?:cls_token|dist_token|pos_embed|patch_embed)"
        return {"stem": stem, "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def _head_norm(self) -> dict[str, nn.Module]:
        """AST's head has a norm of its own before the linear layer."""
        norm = nn.LayerNorm(self.head_hidden_size, eps=self.norm_eps)
        return {"norm": norm} if self.num_classes else {}


def _close_ranks(tokens: Tokens, num_kept: int | None) -> tuple[Tokens, Tensor]:
    """Take what is not valid out of the sequence, clip by clip.

    `num_kept` are valid of every clip; None where clips keep different numbers.

    Returns:
        Tokens (B, K, D) in order, K as many as the fullest clip keeps, with a mask where clips keep
        different numbers; and their cells among the N, int64 (B, K).
    """
    x, keep = tokens.x, tokens.mask
    assert keep is not None
    low = high = num_kept
    if num_kept is None:
        low, high = torch.stack(keep.sum(dim=1).aminmax()).tolist()
    where = keep.int().argsort(dim=1, descending=True, stable=True)[:, :high]
    x = x.gather(1, where[..., None].expand(-1, -1, x.shape[-1]))
    return tokens._replace(x=x, mask=None if low == high else keep.gather(1, where)), where


def _on_grid(x: Tensor, tokens: Tokens, where: Tensor | None) -> Tokens:
    """Class tokens and patches (B, 2 + K, D) -> tokens of the whole grid, dropped ones zero."""
    classes, x, grid, mask = x[:, :2], x[:, 2:], tokens.grid, tokens.mask
    if where is not None:
        cells = x.new_zeros(len(x), grid.freq * grid.time, x.shape[-1])
        x = cells.scatter(1, where[..., None].expand_as(x), x)
        kept = torch.ones_like(where, dtype=torch.bool) if mask is None else mask
        mask = kept.new_zeros(cells.shape[:2]).scatter(1, where, kept)
    return Tokens(x, grid, mask, classes)
