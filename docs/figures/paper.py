"""What all figures share: colours for light and dark pages, boxes, arrows, and the SVG writer."""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

# name -> colour on a light page, on a dark page
PALETTE = {
    "paper": ("#ffffff", "#14171c"),
    "ink": ("#1f2430", "#e7eaf0"),
    "quiet": ("#5b6472", "#a3adbb"),
    "line": ("#c9cfd8", "#3c4553"),
    "blue": ("#1d63b8", "#6cb0ff"),
    "blue_fill": ("#e3effc", "#16304f"),
    "amber": ("#a35a00", "#f0ac4e"),
    "amber_fill": ("#fdf0dc", "#45300f"),
    "green": ("#17744a", "#58c48f"),
    "green_fill": ("#e0f4ea", "#123a29"),
    "red": ("#b3303a", "#ff8a8f"),
    "red_fill": ("#fde7e8", "#4b1b20"),
    "grey_fill": ("#eef1f5", "#232a34"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
assert len(set(LIGHT.values())) == len(LIGHT)  # a light colour names its dark one

_SCALE = 1.15  # of all letters on boards: readers see them at two thirds of their size

_STYLE = {
    "svg.fonttype": "path",  # letters as curves: no reader lacks the font
    "svg.hashsalt": "ssmast",  # the same names of clip paths each time
    "font.family": "DejaVu Sans",
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["quiet"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.facecolor": LIGHT["paper"],
    "xtick.color": LIGHT["quiet"],
    "ytick.color": LIGHT["quiet"],
    "figure.facecolor": LIGHT["paper"],
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "font.size": 10,
}


def style() -> Any:
    """Context in which a figure is drawn and saved."""
    return matplotlib.rc_context(_STYLE)


def board(width: int, height: int) -> tuple[Figure, Axes]:
    """A figure of so many points, with one pair of axes in points over all of it, y downwards."""
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return figure, axes


def inset(axes: Axes, x: float, y: float, width: float, height: float) -> Axes:
    """Axes inside a board, their upper left corner at (x, y)."""
    whole = (axes.get_xlim()[1], axes.get_ylim()[0])
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure.add_axes(
        (x / whole[0], 1 - (y + height) / whole[1], width / whole[0], height / whole[1])
    )


def picture(axes: Axes, log_mel: Any, *, colour: str) -> None:
    """A normalised log-mel (F, T) in a coloured frame without ticks."""
    axes.imshow(
        log_mel, origin="lower", aspect="auto", cmap="magma", vmin=-2.2, vmax=2.5,
        interpolation="nearest",
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=LIGHT[colour], linewidth=1.8)


def box(
    axes: Axes, x: float, y: float, width: float, height: float, *, colour: str, text: str = "",
    size: float = 11,
) -> None:  # fmt: skip
    """A rounded box with text in its middle; the first line is bold."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=6", linewidth=1.4,
            facecolor=LIGHT[f"{colour}_fill"],
            edgecolor=LIGHT["line" if colour == "grey" else colour],
        )
    )  # fmt: skip
    size *= _SCALE
    lines = text.split("\n") if text else []
    for number, line in enumerate(lines):
        axes.text(
            x + width / 2, y + height / 2 + (number - (len(lines) - 1) / 2) * size * 1.45, line,
            ha="center", va="center", size=size if number == 0 else size - 1.5,
            weight="bold" if number == 0 else "normal",
            color=LIGHT["ink" if number == 0 else "quiet"],
        )  # fmt: skip


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], *, colour: str = "quiet",
    dashed: bool = False, bend: float = 0.0,
) -> None:  # fmt: skip
    """From `start` to `end`."""
    axes.annotate(
        "", xy=end, xytext=start,
        arrowprops={
            "arrowstyle": "-|>", "color": LIGHT[colour], "linewidth": 1.5, "shrinkA": 0,
            "shrinkB": 0, "mutation_scale": 12, "linestyle": "--" if dashed else "-",
            "connectionstyle": f"arc3,rad={bend}",
        },
    )  # fmt: skip


def note(axes: Axes, x: float, y: float, text: str, **keywords: Any) -> None:
    """Small text; `colour` names one of the palette."""
    colour = keywords.pop("colour", "quiet")
    keywords = {"size": 9.5, "ha": "left", "va": "center", **keywords}
    keywords["size"] *= _SCALE
    axes.text(x, y, text, color=LIGHT[colour], linespacing=1.3, **keywords)


def save(figure: Figure, path: Path) -> None:
    """Write an SVG that takes its colours from the reader's light or dark page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(two_faced(buffer.getvalue()), encoding="utf-8")


def two_faced(svg: str) -> str:
    """Each colour of the palette as a variable, which a dark page sets to its dark one."""
    names = {light: name for name, light in LIGHT.items()}

    def variable(found: re.Match[str]) -> str:
        name = names.get(found[2])
        # The plain colour first: some programs know no variables.
        return f"{found[0]}; {found[1]}: var(--{name})" if name else found[0]

    svg = re.sub(r"\b(fill|stroke): (#[0-9a-f]{6})", variable, svg)
    light = "".join(f"--{name}:{value[0]};" for name, value in PALETTE.items())
    dark = "".join(f"--{name}:{value[1]};" for name, value in PALETTE.items())
    rules = f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    head, mark, rest = svg.partition("<defs>")
    return f"{head}<style>{rules}</style>\n {mark}{rest}"
