"""Ideas inside the encoder: fused attention, patch-drop on a pooled grid, pooling."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paper import LIGHT, arrow, board, box, inset, note, picture
from sounds import one_clip
from torch import Tensor

from ssmast.model import MAST, Grid, Tokens, create_model, draw_patch_drop, pool_tokens, pooled_dim
from ssmast.model.attention import relative_attention
from ssmast.training.show_views import dropped_patches


def attention() -> Figure:
    """The bias of a key as row + column, the longer heads that hide it, and what they save."""
    figure, axes = board(980, 430)
    torch.manual_seed(0)
    grid, dim = Grid(4, 9), 16
    q, k, v = (torch.randn(1, 1, grid.freq * grid.time, dim) for _ in range(3))
    bias_freq = torch.randn(1, 1, q.shape[2], grid.freq)
    bias_time = torch.randn(1, 1, q.shape[2], grid.time)
    note(
        axes,
        24,
        22,
        "the bias of a key: its row + its column",
        colour="ink",
        size=11,
        weight="bold",
    )
    row, column = bias_freq[0, 0, 0], bias_time[0, 0, 0]
    _matrix(inset(axes, 40, 84, 30, 120), row[:, None], "blue")
    _matrix(inset(axes, 84, 216, 250, 30), column[None], "amber")
    _matrix(inset(axes, 84, 84, 250, 120), row[:, None] + column, "line")
    note(axes, 40, 68, r"$B^f$", colour="blue", size=12)
    note(axes, 84, 264, r"$B^t$", colour="amber", size=12)
    note(axes, 84, 68, "one query's bias over a grid of 4 × 9 keys", size=9)
    note(axes, 24, 300, "4 + 9 numbers for a query, not 4 × 9;", size=9.5)
    note(axes, 24, 317, "both follow from the query and two short tables", size=9.5)

    note(
        axes,
        386,
        22,
        "longer heads hold it: no matrix is built",
        colour="ink",
        size=11,
        weight="bold",
    )
    _heads(axes, q, k, bias_freq, bias_time, grid)
    outcomes = {
        path: relative_attention(q, k, v, bias_freq, bias_time, path=path)
        for path in ("reference", "mask", "augmented", "tiled")
    }
    far = max(float((out - outcomes["reference"]).abs().max()) for out in outcomes.values())
    assert far < 2e-6
    note(axes, 386, 352, "any fused kernel then computes softmax(Q'K'ᵀ) v;", size=9.5)
    note(axes, 386, 369, f"here all four ways agree to {far:.0e}", size=9.5)

    note(axes, 716, 22, "numbers of bias for a head", colour="ink", size=11, weight="bold")
    _sizes(inset(axes, 766, 58, 186, 250))
    note(
        axes,
        716,
        352,
        "mast_base's first block, float32; time\nand memory: benchmarks/README.md",
        size=9.5,
        va="top",
    )
    return figure


def _matrix(axes: Axes, values: Tensor, colour: str) -> None:
    axes.imshow(values, cmap="PuOr", vmin=-3, vmax=3, aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=LIGHT[colour], linewidth=1.6)


def _heads(axes: Axes, q: Tensor, k: Tensor, freq: Tensor, time: Tensor, grid: Grid) -> None:
    codes = [
        torch.eye(grid.freq).repeat_interleave(grid.time, dim=0),
        torch.eye(grid.time).repeat(grid.freq, 1),
    ]
    parts = {
        "Q'": (
            [q[0, 0] * q.shape[-1] ** -0.5, freq[0, 0], time[0, 0]],
            ("q / √d", "$B^f$", "$B^t$"),
        ),
        "K'": ([k[0, 0] * 0.5, *(3 * code for code in codes)], ("k", "row", "column")),
    }
    for number, (name, (blocks, titles)) in enumerate(parts.items()):
        top, left = 84 + 138 * number, 416
        note(axes, 386, top + 48, name, colour="ink", size=12)
        for block, title, colour in zip(blocks, titles, ("line", "blue", "amber"), strict=True):
            width = 8.2 * block.shape[1]
            _matrix(inset(axes, left, top, width, 96), block, colour)
            note(axes, left + width / 2, top - 10, title, size=9.5, ha="center",
                 colour="quiet" if colour == "line" else colour)  # fmt: skip
            left += width + 8


def _sizes(axes: Axes) -> None:
    with torch.device("meta"):
        net = create_model("mast_base", num_classes=0)
    assert isinstance(net, MAST)
    seconds = [1, 2, 5, 10, 20, 40, 60]
    whole, split = [], []
    for length in seconds:
        queries = net.grid_of(128, 100 * length)[0]
        keys = queries.pool(net.stride_kv[0])
        tokens = queries.freq * queries.time
        whole.append(tokens * keys.freq * keys.time)
        split.append(tokens * (keys.freq + keys.time))
    for values, colour, name in (
        (whole, "red", "N × keys"),
        (split, "green", "N × (rows + columns)"),
    ):
        axes.plot(seconds, values, color=LIGHT[colour], linewidth=2.2, marker="o", markersize=4)
        axes.text(1.05, values[-1] * 1.25, name, color=LIGHT[colour], size=9.5, va="bottom")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xticks([1, 10, 60], ["1", "10", "60"])
    axes.set_xlabel("seconds of audio")


def patch_drop() -> Figure:
    """What either mode takes away, and how many tokens are left at each scale."""
    figure, axes = board(980, 480)
    frames = 512
    with torch.device("meta"):
        net = create_model("mast_base", num_classes=0)
    assert isinstance(net, MAST)
    stem = net.grid_of(128, frames)[0]
    draws = {
        mode: draw_patch_drop(
            stem, rate=0.2, mode=mode, batch=1, group=net.drop_group,
            generator=torch.Generator().manual_seed(4),
        )
        for mode in ("random", "structured")
    }  # fmt: skip
    texts = {
        "random": ("random (the poster's): single patches, of every clip its own",
                   "holes stay in the rectangle that pooling needs: nothing saved"),
        "structured": ("structured (default): rows and columns in groups of the total stride",
                       "what is kept closes ranks and keeps its original distances"),
    }  # fmt: skip
    log_mel = one_clip(frames=frames).views[0]
    for number, (mode, (title, below)) in enumerate(texts.items()):
        top = 48 + 224 * number
        note(axes, 24, top - 26, title, colour="ink", size=11, weight="bold")
        dropped = dropped_patches(draws[mode])
        _grid_picture(inset(axes, 24, top, 330, 150), log_mel, dropped)
        note(
            axes,
            24,
            top + 163,
            f"{float(dropped.float().mean()):.1%} of {dropped.numel()} tokens dropped",
            size=9.5,
        )
        arrow(axes, (364, top + 75), (394, top + 75))
        _kept(axes, log_mel, dropped if mode == "structured" else None, dropped, top)
        note(axes, 404, top + 163, below, size=9.5)
    _scales(inset(axes, 826, 74, 130, 330), net, frames, draws["structured"])
    note(axes, 794, 22, "tokens at each scale", colour="ink", size=11, weight="bold")
    return figure


def _grid_picture(axes: Axes, log_mel: Tensor, dropped: Tensor) -> None:
    picture(axes, log_mel, colour="line")
    cover = dropped.numpy()[..., None] * [0.62, 0.66, 0.72, 1.0]
    bounds = (-0.5, log_mel.shape[1] - 0.5, -0.5, log_mel.shape[0] - 0.5)
    axes.imshow(cover, origin="lower", aspect="auto", interpolation="nearest", extent=bounds)


def _kept(axes: Axes, log_mel: Tensor, closed: Tensor | None, dropped: Tensor, top: float) -> None:
    """What the blocks get: the same rectangle with holes, or a smaller one."""
    if closed is None:
        room = inset(axes, 404, top, 330, 150)
        _grid_picture(room, log_mel, dropped)
        return
    step = (log_mel.shape[0] // closed.shape[0], log_mel.shape[1] // closed.shape[1])
    rows = ~closed.all(dim=1)
    columns = ~closed.all(dim=0)
    kept = log_mel[rows.repeat_interleave(step[0])][:, columns.repeat_interleave(step[1])]
    width, height = 330 * kept.shape[1] / log_mel.shape[1], 150 * kept.shape[0] / log_mel.shape[0]
    picture(inset(axes, 404, top, width, height), kept, colour="line")


def _scales(axes: Axes, net: MAST, frames: int, drop: object) -> None:
    grids = net.grid_of(128, frames)
    assert hasattr(drop, "rows")
    left = Grid(len(drop.rows), len(drop.columns))
    kept = [left, *_pooled(left, net)]
    names = ["stem", *(f"stage {number + 1}" for number in range(len(grids) - 1))]
    for number, (whole, less) in enumerate(zip(grids, kept, strict=True)):
        for offset, grid, colour in ((-0.2, whole, "grey"), (0.2, less, "green")):
            value = grid.freq * grid.time
            edge = LIGHT["quiet" if colour == "grey" else "green"]
            axes.barh(number + offset, value, 0.36, color=LIGHT[f"{colour}_fill"], edgecolor=edge)
            axes.text(
                value + 60, number + offset, f"{value}", va="center", size=8.5, color=LIGHT["quiet"]
            )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, 4700)
    axes.set_title("grey: random, green: structured", size=8.5, color=LIGHT["quiet"], loc="right")


def _pooled(grid: Grid, net: MAST) -> list[Grid]:
    grids = []
    for stride in net.stride_q:
        grid = grid.pool(stride)
        grids.append(grid)
    return grids


def pooling() -> Figure:
    """From a grid of tokens to one vector, in three ways that the encoder folder can hold."""
    figure, axes = board(980, 330)
    torch.manual_seed(1)
    net = create_model("mast_nano", num_classes=0, input_size=(128, 256)).eval()
    assert isinstance(net, MAST)
    clip = one_clip().views[0][None, None]
    with torch.inference_mode():
        tokens, grid = _tokens(net, clip)
    dim = tokens.shape[-1]
    note(axes, 24, 22, "the last grid of tokens", colour="ink", size=11, weight="bold")
    for number in range(3, -1, -1):
        layer = tokens[0].unflatten(0, grid[:])[..., number * 7]
        room = inset(axes, 40 + 12 * number, 92 - 12 * number, 200, 110)
        _matrix(room, layer - layer.mean(), "line")
    note(
        axes,
        40,
        218,
        f"{grid.freq} frequency rows × {grid.time} columns × {dim} channels",
        size=9.5,
    )
    arrow(axes, (292, 120), (330, 120))
    modes = {
        "mean": "over all tokens: frequency is forgotten",
        "mean+max": "and the largest value of each channel",
        "freq+max": "the time mean of every frequency row, and the maximum (default)",
    }
    for number, (mode, text) in enumerate(modes.items()):
        top = 62 + 84 * number
        vector = pool_tokens(Tokens(tokens, grid), mode=mode)[0]
        assert len(vector) == pooled_dim(mode, grid.freq, dim)
        centred = (vector - vector.mean()) / vector.std()
        width = 560 * len(vector) / pooled_dim("freq+max", grid.freq, dim)
        _matrix(inset(axes, 350, top, width, 26), centred[None], "line")
        note(axes, 350, top - 13, mode, colour="ink", size=10.5, weight="bold")
        note(axes, 430, top - 13, text, size=9.5)
        note(axes, 350 + width + 8, top + 13, f"{len(vector)}", size=9.5)
    box(
        axes,
        350,
        278,
        330,
        42,
        colour="green",
        text="saved in the encoder folder\nand stated with every score",
        size=10.5,
    )
    return figure


def _tokens(net: MAST, clip: Tensor) -> tuple[Tensor, Grid]:
    return net.encode(clip)[:2]
