"""Training curves as small SVG pictures that take the page's colours, light or dark."""

import io
import math
import re
import warnings
from typing import Any

# Stand-ins that matplotlib writes into the SVG and the page's own colours then replace.
_TEXT, _LINE, _SERIES = "#010203", "#040506", "#070809"
_COLOURS = {_TEXT: "currentColor", _LINE: "var(--line)", _SERIES: "var(--accent)"}

# Key of metrics.jsonl -> what to call it; these come first, in this order.
KNOWN = {
    "loss": "loss (nats)",
    "accuracy": "positive found among negatives (share)",
    "rank_embedding": "effective rank of the embeddings",
    "rank_projection": "effective rank of the projections",
    "lr": "learning rate",
    "clips_per_second": "clips a second",
}
_HIDDEN = {"step", "epoch", "seconds", "time"}


def curves(rows: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """One picture for each number that was logged.

    Args:
        rows: objects of metrics.jsonl.

    Returns:
        (title, svg, whether it is one of the main curves), main ones first.
    """
    keys = [key for key in KNOWN if any(key in row for row in rows)]
    others = sorted(
        {
            key
            for row in rows
            for key, value in row.items()
            if key not in KNOWN and key not in _HIDDEN and _is_number(value)
        }
    )
    pictures = []
    for key in keys + others:
        points = [
            (float(row["step"]), float(row[key]))
            for row in rows
            if _is_number(row.get(key)) and _is_number(row.get("step"))
        ]
        if points:
            title = KNOWN.get(key, key.replace("_", " "))
            pictures.append((title, _curve(key, points), key in KNOWN))
    return pictures


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _curve(key: str, points: list[tuple[float, float]]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: small, selectable, in the reader's font
        "svg.hashsalt": key,
        "font.size": 8,
        "font.family": "sans-serif",
        "text.color": _TEXT,
        "axes.edgecolor": _LINE,
        "axes.labelcolor": _TEXT,
        "xtick.color": _LINE,
        "ytick.color": _LINE,
        "xtick.labelcolor": _TEXT,
        "ytick.labelcolor": _TEXT,
        "grid.color": _LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    steps, values = zip(*points, strict=True)
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(3.6, 1.9), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        marker = "o" if len(points) == 1 else ""
        axes.plot(steps, values, color=_SERIES, linewidth=1.2, marker=marker)
        axes.grid(axis="y", linewidth=0.5, alpha=0.6)
        axes.set_xlabel("step")
        axes.margins(x=0.01)
        buffer = io.StringIO()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        canvas.print_figure(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    # Metadata names matplotlib's site; a page without network has no use for addresses.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
