"""AST's table of positions for grids of another size."""

import torch
from torch import Tensor

from ssmast.model.grid import Grid
from ssmast.model.relative import exact_dtype, read_rows


def resize_positions(
    table: Tensor, source: Grid, target: Grid, *, columns: Tensor | None = None
) -> Tensor:
    """Position table of one grid for another: per axis its middle, or all of it stretched.

    Args:
        table: (source.freq x source.time, D).
        source: grid that it is for.
        target: grid that is wanted.
        columns: valid columns of each clip (B,), where clips were padded to `target.time`.

    Returns:
        (target.freq x target.time, D), or (B, ..., D) with columns.

    Source: Gong et al. 2021 (AST), section 2.2.
    """
    freq = _table_index(target.freq, target.freq, source.freq, table.device)
    size = target.time if columns is None else columns[:, None]
    time = _table_index(target.time, size, source.time, table.device)
    rows = read_rows(table.unflatten(0, source[:]).flatten(1), freq)  # (f0, t0 * D) -> (f, t0 * D)
    cells = rows.unflatten(1, (source.time, -1)).transpose(0, 1).flatten(1)  # (t0, f * D)
    cells = read_rows(cells, time).unflatten(-1, (target.freq, -1))  # (..., t, f, D)
    return cells.transpose(-3, -2).flatten(-3, -2)  # (..., f * t, D)


def _table_index(
    num: int, size: int | Tensor, train_size: int, device: torch.device | None
) -> Tensor:
    """Which row of an axis of the position table each of `num` cells reads, fractional.

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
