"""SS-MAST in one picture: from a clip to the loss and back to the queue."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from paper import LIGHT, arrow, board, box, inset, note, picture
from sounds import Shown, one_clip


def method() -> Figure:
    """Clip, two segments, two views, student and teacher, heads, symmetric InfoNCE, queue."""
    figure, axes = board(980, 560)
    shown = one_clip()
    _clip(axes, shown)
    for row, colour in enumerate(("blue", "amber")):
        _view(axes, shown, row, colour)
    _networks(axes)
    _loss(axes)
    return figure


def _clip(axes: Axes, shown: Shown) -> None:
    note(axes, 24, 22, "1  a clip of any length", colour="ink", size=11, weight="bold")
    room = inset(axes, 24, 56, 200, 110)
    picture(room, shown.clip, colour="line")
    mels = shown.clip.shape[0]
    for start, colour, height in zip(shown.starts, ("blue", "amber"), (2, 10), strict=True):
        for width, edge in ((4.5, "#ffffff"), (2.4, LIGHT[colour])):
            room.add_patch(
                Rectangle(
                    (start, height), shown.frames, mels - 1 - 2 * height, fill=False,
                    linewidth=width, edgecolor=edge,
                )
            )  # fmt: skip
    note(axes, 24, 183, "two random segments of it")
    note(axes, 24, 42, "log-mel: frequency over time", size=9)


def _view(axes: Axes, shown: Shown, row: int, colour: str) -> None:
    top = 250 + 150 * row
    if row == 0:
        note(axes, 24, 216, "2  two views", colour="ink", size=11, weight="bold")
        note(axes, 24, 233, "mixup, random resized crop", size=9)
        arrow(axes, (66, 192), (66, 206))
    picture(inset(axes, 24, top, 200, 110), shown.views[row], colour=colour)
    note(axes, 24, top + 122, f"view {row + 1}", colour=colour, weight="bold")
    arrow(axes, (224, top + 40), (292, 170 + 36 * row), colour=colour)
    arrow(axes, (224, top + 70), (292, 396 + 36 * row), colour=colour)


def _networks(axes: Axes) -> None:
    note(axes, 296, 22, "3  both views through both networks", colour="ink", size=11, weight="bold")
    drop = inset(axes, 306, 66, 150, 62)
    shown = one_clip()
    picture(drop, shown.views[0], colour="blue")
    cover = shown.dropped[0].numpy()[..., None] * [0.62, 0.66, 0.72, 1.0]
    rows, columns = shown.dropped[0].shape
    drop.imshow(
        cover, origin="lower", aspect="auto", interpolation="nearest",
        extent=(-0.5, columns * shown.stride[1] - 0.5, -0.5, rows * shown.stride[0] - 0.5),
    )  # fmt: skip
    drop.set_xlim(-0.5, shown.frames - 0.5)
    note(axes, 306, 50, "patch-drop: about 20 % of the tokens", size=9)
    box(
        axes,
        296,
        140,
        170,
        90,
        colour="blue",
        text="student  f\nMAST, 4 scales\ntrained by the gradient",
    )
    box(
        axes,
        296,
        366,
        170,
        90,
        colour="amber",
        text="teacher  h\nthe same network, sees all\nno gradient",
    )
    arrow(axes, (381, 230), (381, 366), colour="amber", dashed=True)
    note(axes, 391, 290, "moving average of\nthe student's weights,\nonce a step", colour="amber")
    box(axes, 508, 152, 122, 66, colour="blue", text="heads\nprojector, predictor", size=10.5)
    box(axes, 508, 378, 122, 66, colour="amber", text="head\nprojector", size=10.5)
    for y in (185, 411):
        arrow(axes, (466, y), (508, y), colour="blue" if y < 300 else "amber")


def _loss(axes: Axes) -> None:
    note(
        axes,
        672,
        22,
        "4  find the other view of the same clip",
        colour="ink",
        size=11,
        weight="bold",
    )
    box(axes, 690, 226, 262, 116, colour="green")
    note(axes, 821, 248, "symmetric InfoNCE", colour="ink", size=11.5, weight="bold", ha="center")
    note(
        axes,
        821,
        281,
        r"$\mathcal{L} = \mathcal{L}(f,h) + \mathcal{L}(h,f)$",
        colour="ink",
        size=14,
        ha="center",
    )
    note(
        axes,
        821,
        318,
        "query: view 1, key: view 2, and the reverse\nsoftmax over cosines / temperature",
        size=9,
        ha="center",
    )
    arrow(axes, (630, 185), (752, 226), colour="blue")
    note(axes, 700, 176, "queries", colour="blue", weight="bold")
    arrow(axes, (630, 400), (752, 342), colour="amber")
    note(axes, 640, 362, "keys", colour="amber", weight="bold")
    note(axes, 690, 432, "5  queue of earlier keys", colour="ink", size=11, weight="bold")
    width = 262 / 13
    for cell in range(13):
        fresh = cell < 2
        axes.add_patch(
            Rectangle(
                (690 + cell * width, 452), width - 3, 40, linewidth=1.2,
                facecolor=LIGHT["amber_fill" if fresh else "grey_fill"],
                edgecolor=LIGHT["amber" if fresh else "line"],
            )
        )  # fmt: skip
    arrow(axes, (630, 425), (686, 470), colour="amber", dashed=True)
    note(axes, 690, 508, "new keys enter after the step", size=9)
    note(axes, 952, 508, "the oldest leave", size=9, ha="right")
    arrow(axes, (880, 448), (880, 342), colour="quiet")
    note(axes, 888, 392, "negatives;\nthe own clip\nis masked", size=9)
    note(
        axes,
        24,
        542,
        "Drawn by the code that trains: segments, views and dropped patches are those of a step.",
        size=9,
    )
