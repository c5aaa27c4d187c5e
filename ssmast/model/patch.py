"""Log-mel spectrogram -> tokens on a grid of frequency rows and time columns, and patch-drop."""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn


class Grid(NamedTuple):
    """Rows (frequency) and columns (time) of a clip's tokens, which lie row by row.

    Attributes:
        freq: number of rows.
        time: number of columns.
    """

    freq: int
    time: int

    @property
    def full(self) -> "Grid":
        """The grid before structured patch-drop removed rows and columns."""
        return self

    def positions(self, axis: int, device: torch.device | None = None) -> Tensor:
        """Where each row (axis 0) or column (axis 1) lies in `full`, int64."""
        return torch.arange(self[axis], device=device)

    def pool(self, stride: tuple[int, int]) -> "Grid":
        """Grid after pooling by `stride` (freq, time); a rest at the end makes one more token."""
        # Counted as convolutions count, so that torch.export sees one expression.
        return Grid((self.freq - 1) // stride[0] + 1, (self.time - 1) // stride[1] + 1)

    def once(self, make: Callable[..., Tensor], *key: Hashable) -> Tensor:
        """`make(self, *key)`: made once, and kept for all grids of this size.

        Blocks ask for the same few tables of places, each of which is several kernels of a GPU.
        """
        return make(self, *key) if _is_traced() else _made_once(make, self, key)


class KeptGrid(Grid):
    """What structured patch-drop left of a grid: close ranks, original positions.

    Two numbers like any `Grid`, so `tokens == grid.freq * grid.time` holds; the positions serve
    relative attention (distances stay those of the whole clip) and pooling by row.
    """

    _rows: Tensor
    _columns: Tensor
    _full: Grid
    _made: dict[Hashable, Any]

    def __new__(cls, rows: Tensor, columns: Tensor, full: Grid) -> "KeptGrid":
        """Grid of the kept `rows` and `columns` (increasing positions) of `full`."""
        grid = super().__new__(cls, len(rows), len(columns))
        grid._rows, grid._columns, grid._full, grid._made = rows, columns, full, {}
        return grid

    def __getnewargs__(self):  # for copy.deepcopy
        return self._rows, self._columns, self._full

    @property
    def full(self) -> Grid:
        """The grid before structured patch-drop removed rows and columns."""
        return self._full

    def positions(self, axis: int, device: torch.device | None = None) -> Tensor:
        """Where each row (axis 0) or column (axis 1) lies in `full`, int64."""
        return (self._rows, self._columns)[axis].to(device)

    def pool(self, stride: tuple[int, int]) -> "KeptGrid":
        """Pooled grid; whole stride cells were kept, so a cell's first position stands for it."""
        return self if stride == (1, 1) else self._once(_pooled, stride)

    def once(self, make: Callable[..., Tensor], *key: Hashable) -> Tensor:
        """`make(self, *key)`: made once, and kept for this grid."""
        return self._once(make, *key)

    def _once(self, make: Callable[..., Any], *key: Hashable) -> Any:
        if _is_traced():
            return make(self, *key)
        if (make, key) not in self._made:
            self._made[make, key] = make(self, *key)
        return self._made[make, key]


def _pooled(grid: KeptGrid, stride: tuple[int, int]) -> KeptGrid:
    rows, columns = (grid.positions(axis)[:: stride[axis]] // stride[axis] for axis in (0, 1))
    return KeptGrid(rows, columns, grid.full.pool(stride))


def _is_traced() -> bool:
    """Whether a graph is being made, which holds what makes a tensor and not the tensor."""
    is_traced = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return is_traced or torch.compiler.is_compiling()


@functools.lru_cache(maxsize=256)
def _made_once(make: Callable[..., Tensor], grid: Grid, key: tuple[Hashable, ...]) -> Tensor:
    with torch.inference_mode(False):  # a later call may train
        return make(grid, *key)


class Tokens(NamedTuple):
    """Tokens of a batch of clips: what an encoder returns, and what its blocks pass on.

    Attributes:
        x: (B, N, D), row after row of the grid.
        grid: of the N tokens.
        mask: bool (B, N), True where a token is valid; None where all are.
        cls: class tokens (B, n, D), which stand for whole clips and belong to no row or column;
            None for a model without.
    """

    x: Tensor
    grid: Grid
    mask: Tensor | None = None
    cls: Tensor | None = None


def pool_mask(mask: Tensor | None, grid: Grid, stride: tuple[int, int]) -> Tensor | None:
    """Validity after pooling: a stride cell that holds any valid token is valid.

    Args:
        mask: bool (B, N), True where the token is valid; None if all are.
        grid: of the N tokens.
        stride: (freq, time).
    """
    if mask is None or stride == (1, 1):
        return mask
    cells = mask.to(torch.float32).unflatten(1, (1, grid.freq, grid.time))
    cells = nn.functional.max_pool2d(cells, stride, stride, ceil_mode=True)
    return cells.flatten(1) > 0


Lengths = Sequence[int] | Tensor | None
Size = TypeVar("Size", int, Tensor)


class PatchEmbed(nn.Module):
    """The stem: one strided convolution from the spectrogram to tokens.

    Raises:
        ValueError: if it has no input channels.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        *,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
    ):
        super().__init__()
        if in_chans < 1:
            raise ValueError(f"in_chans must be at least 1, got {in_chans}")
        self.in_chans, self.kernel, self.stride, self.padding = in_chans, kernel, stride, padding
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=kernel, stride=stride, padding=padding)

    def forward(self, log_mel: Tensor, lengths: Lengths = None) -> tuple[Tokens, Tensor | None]:
        """Tokens of (B, C, F, T), and how many columns of each clip are valid.

        Args:
            log_mel: (B, C, F, T).
            lengths: frames of each clip, where clips were padded to one width.

        Returns:
            Tokens, and columns int64 (B,), or None where all are valid. In an exported graph, which
            holds no choice between lengths, the columns are a tensor without axes instead.

        Raises:
            ValueError: for another shape, an input smaller than the kernel, or wrong lengths.
        """
        if log_mel.ndim != 4 or log_mel.shape[1] != self.in_chans:
            raise ValueError(
                f"log_mel must have shape (B, {self.in_chans}, mel bins, frames), "
                f"got {tuple(log_mel.shape)}"
            )
        log_mel = log_mel.to(self.proj.weight.dtype)  # after `encoder.half()`
        if lengths is not None:
            lengths = self._check_lengths(lengths, log_mel)
            frames = torch.arange(log_mel.shape[-1], device=log_mel.device)
            padded = frames >= lengths[:, None]  # (B, T)
            log_mel = log_mel.masked_fill(padded[:, None, None, :], 0.0)
        grid = self.grid(log_mel.shape[-2], log_mel.shape[-1])
        x = self.proj(log_mel).flatten(2).transpose(1, 2)  # (B, D, f, t) -> (B, N, D)
        x = x.contiguous()
        if lengths is None:
            exporting = torch.compiler.is_exporting()
            columns = torch.scalar_tensor(grid.time, dtype=torch.int64) if exporting else None
            return Tokens(x, grid), columns
        columns = self.length(1, lengths)
        mask = torch.arange(grid.time, device=x.device) < columns[:, None]
        return Tokens(x, grid, mask.repeat(1, grid.freq)), columns  # (B, t) -> (B, f * t)

    def grid(self, freq_bins: int, frames: int) -> Grid:
        """Grid of an input of `freq_bins` mel bins and `frames` frames.

        Raises:
            ValueError: if the input is smaller than the kernel.
        """
        freq, time = (self.length(axis, size) for axis, size in enumerate((freq_bins, frames)))
        if freq < 1 or time < 1:
            raise ValueError(
                f"log_mel must be at least as large as the stem's kernel {self.kernel} less twice "
                f"its padding {self.padding}, got {freq_bins} mel bins x {frames} frames"
            )
        return Grid(freq, time)

    def length(self, axis: int, size: Size) -> Size:
        """Tokens along `axis` (0 freq, 1 time) for an input of `size` (int, or int tensor)."""
        return (size + 2 * self.padding[axis] - self.kernel[axis]) // self.stride[axis] + 1

    @property
    def fewest_frames(self) -> int:
        """Frames that an input needs at least."""
        return max(1, self.kernel[1] - 2 * self.padding[1])

    def _check_lengths(self, lengths: Sequence[int] | Tensor, log_mel: Tensor) -> Tensor:
        lengths = torch.as_tensor(lengths)
        if lengths.shape != log_mel.shape[:1]:
            raise ValueError(
                f"lengths must be one number for each of {len(log_mel)} clips, "
                f"got shape {tuple(lengths.shape)}"
            )
        # On another device the check would have to wait for it.
        if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(lengths.min()), int(lengths.max())
            if low < self.fewest_frames or high > log_mel.shape[-1]:
                raise ValueError(
                    f"lengths must lie in {self.fewest_frames}..{log_mel.shape[-1]} frames, "
                    f"got {low}..{high}"
                )
        return lengths.to(log_mel.device)


class PatchDrop(NamedTuple):
    """Which stem tokens one forward pass keeps; drawn by `draw_patch_drop`.

    Attributes:
        grid: the stem grid it was drawn for.
        keep: bool (B, N), mode "random".
        rows: kept rows, int64, mode "structured".
        columns: kept columns, int64, mode "structured".
        num_kept: patches kept of every clip, mode "random"; of the mask on a GPU the host would
            have to wait for it.
    """

    grid: Grid
    keep: Tensor | None = None
    rows: Tensor | None = None
    columns: Tensor | None = None
    num_kept: int = 0


def patch_drop_draws(
    grid: Grid, *, mode: str, batch: int, group: tuple[int, int] | None = None
) -> tuple[int, ...]:
    """Shape of the uniform numbers that `draw_patch_drop` wants."""
    if mode == "random":
        return batch, grid.freq * grid.time
    if mode == "structured":
        return (sum(_groups(grid, group)) + 1,)
    raise ValueError(f'patch-drop mode must be "random" or "structured", got {mode!r}')


def draw_patch_drop(
    grid: Grid,
    *,
    rate: float,
    mode: str,
    batch: int,
    group: tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
) -> PatchDrop:
    """Choose the patches that one forward pass drops.

    "random" drops single patches, round(rate x N) of every clip, each clip its own. Grid and cost
    stay; a dropped patch influences nothing.

    "structured" drops whole frequency rows and time columns in groups of the encoder's total
    stride, the same for the batch; the kept ones close ranks, so compute falls. How many groups of
    each is chosen by `_structured_counts`.

    Args:
        grid: of the stem, `MAST.grid_of(freq_bins, frames)[0]`.
        rate: share of patches to drop, 0 to 0.9.
        mode: "random" or "structured".
        batch: number of clips.
        group: rows x columns that fall together, `MAST.drop_group`; mode "structured" only.
        generator: source of the draws where `uniforms` is not given; never the global one.
        uniforms: numbers in [0, 1) of the shape that `patch_drop_draws` tells.

    Raises:
        ValueError: for an unknown mode, a rate out of range, draws of a wrong shape, or neither
            `generator` nor `uniforms`.

    Source: poster of SS-MAST (20 % of patches, pretraining only).
    Differs from the poster: mode "structured" drops groups, not single patches.
    """
    if not 0.0 <= rate <= 0.9:
        raise ValueError(f"patch-drop rate must lie in 0..0.9, got {rate}")
    shape = patch_drop_draws(grid, mode=mode, batch=batch, group=group)
    if rate == 0.0:
        return PatchDrop(grid)
    if uniforms is None:
        if generator is None:
            raise ValueError("patch-drop draws need generator= or uniforms=, got neither")
        uniforms = torch.rand(shape, generator=generator, device=generator.device)
    uniforms = torch.as_tensor(uniforms)
    if tuple(uniforms.shape) != shape:
        raise ValueError(f"uniforms must have shape {shape}, got {tuple(uniforms.shape)}")
    if mode == "random":
        num_kept = max(1, shape[1] - round(rate * shape[1]))
        kept = uniforms.argsort(dim=1)[:, :num_kept]
        keep = torch.zeros(shape, dtype=torch.bool, device=uniforms.device)
        return PatchDrop(grid, keep=keep.scatter_(1, kept, True), num_kept=num_kept)
    assert group is not None
    num_rows, num_columns = _groups(grid, group)
    uniforms = uniforms.cpu()
    row_draws, column_draws, choice = uniforms.split([num_rows, num_columns, 1])
    kept_rows, kept_columns = _structured_counts(
        num_rows, num_columns, rate=rate, uniform=float(choice)
    )
    return PatchDrop(
        grid,
        rows=_members(row_draws, kept_rows, size=group[0], length=grid.freq),
        columns=_members(column_draws, kept_columns, size=group[1], length=grid.time),
    )


def _groups(grid: Grid, group: tuple[int, int] | None) -> tuple[int, int]:
    if group is None:
        raise ValueError('patch-drop mode "structured" needs group=, which is model.drop_group')
    return grid.pool(group)


def _structured_counts(
    num_rows: int, num_columns: int, *, rate: float, uniform: float
) -> tuple[int, int]:
    """How many row groups and column groups to keep, so that the kept share averages 1 - rate.

    Of all (rows, columns) the best pair at or above the wanted share and the best at or below are
    taken: near the share, and with rows and columns thinned alike. The draw picks one of the two
    with the odds that make the mean exact. Time is thinned with frequency where it is fine enough;
    at 96 frames (3 column groups) only frequency is, as losing a third of the time is far off 20 %.
    """
    wanted = 1.0 - rate

    def cost(pair: tuple[int, int]) -> float:
        row_share, column_share = pair[0] / num_rows, pair[1] / num_columns
        return abs(row_share * column_share - wanted) + 0.25 * abs(row_share - column_share)

    def share(pair: tuple[int, int]) -> float:
        return pair[0] * pair[1] / (num_rows * num_columns)

    pairs = [(r, c) for r in range(1, num_rows + 1) for c in range(1, num_columns + 1)]
    above = min((pair for pair in pairs if share(pair) >= wanted), key=cost)
    # A grid of few groups cannot go below the wanted share: then the smallest share is kept.
    below = min((pair for pair in pairs if share(pair) <= wanted), key=cost, default=above)
    if math.isclose(share(above), share(below)):
        return above
    odds = (wanted - share(below)) / (share(above) - share(below))
    return above if uniform < odds else below


def _members(draws: Tensor, num_kept: int, *, size: int, length: int) -> Tensor:
    """Positions of the `num_kept` groups with the smallest draws, in order."""
    groups = draws.argsort()[:num_kept].sort().values
    members = (groups[:, None] * size + torch.arange(size)).flatten()
    return members[members < length]


def drop_patches(tokens: Tokens, patch_drop: PatchDrop) -> Tokens:
    """Stem tokens without the dropped ones: masked ("random") or taken out ("structured").

    Raises:
        ValueError: for a drop drawn for another grid or batch, or a structured one with a mask.
    """
    x, grid, mask, _ = tokens
    if patch_drop.grid != grid:
        raise ValueError(
            f"patch_drop must be drawn for the stem grid {tuple(grid)}, "
            f"got one for {tuple(patch_drop.grid)}"
        )
    if patch_drop.keep is not None:
        keep = patch_drop.keep.to(x.device)
        if keep.shape != x.shape[:2]:
            raise ValueError(
                f"patch_drop must be drawn for {len(x)} clips, got one for {len(keep)}"
            )
        if mask is not None:
            # A padded clip may lose its every patch; it then keeps them all.
            kept = keep & mask
            keep = torch.where(kept.any(dim=1, keepdim=True), kept, mask)
        return tokens._replace(mask=keep)
    if patch_drop.rows is not None and patch_drop.columns is not None:
        if mask is not None:
            raise ValueError(
                'patch-drop mode "structured" needs clips of one length, got lengths=; '
                'cut the clips to one length or use mode "random"'
            )
        rows, columns = patch_drop.rows.to(x.device), patch_drop.columns.to(x.device)
        image = x.unflatten(1, grid[:])  # (B, N, D) -> (B, f, t, D)
        image = image.index_select(1, rows).index_select(2, columns)
        return Tokens(image.flatten(1, 2), KeptGrid(rows, columns, grid))
    return tokens
