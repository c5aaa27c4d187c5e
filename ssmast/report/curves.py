"""Training curves as small SVG pictures that take the page's colours, light or dark."""

import html
import io
import itertools
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

# Stand-ins that matplotlib writes into the SVG and the page's own colours then replace.
_TEXT, _LINE = "#010203", "#040506"
_SERIES = {
    "#070809": "accent", "#0a0b0c": "fourth", "#0d0e0f": "fifth", "#101112": "sixth",
    "#131415": "second",
}  # fmt: skip
SERIES_STYLES = ("c0", "c3", "c4", "c5", "c1")
"""Classes of page.css that have the colours of the series."""
_COLOURS = {_TEXT: "currentColor", _LINE: "var(--line)"} | {
    stand_in: f"var(--{name})" for stand_in, name in _SERIES.items()
}
MOST_RUNS = len(_SERIES)  # that one picture can hold

# Key of metrics.jsonl -> what to call it; these come first, in this order. What a loss and an
# accuracy are of depends on the objective; nothing is claimed of one that is not known here.
KNOWN = {
    "loss": "loss",
    "accuracy": "accuracy while training",
    "rank_embedding": "effective rank of the embeddings",
    "rank_projection": "effective rank of the projections",
    "alignment": "alignment: distance\u00b2 of a clip's two views",
    "uniformity": "uniformity of the projections (0: collapsed)",
    "lr": "learning rate",
    "clips_per_second": "clips a second",
}
_BY_OBJECTIVE = {
    "ss_mast": {
        "loss": "InfoNCE loss (nats)",
        "accuracy": "positive found among the negatives (rate)",
    },
    "ss_mast_mosaic": {
        "loss": "NT-Xent loss (nats)",
        "accuracy": "positive found among the batch (rate)",
    },
    "ssast": {"loss": "loss (nats)", "accuracy": "masked patches matched (rate)"},
    "finetune": {"loss": "loss on the training part (nats)"},
}
# The same for the curves that come after the others.
_MORE = {
    "loss_discriminative": "loss of matching masked patches (nats)",
    "loss_generative": "loss of reconstructing masked patches (mean square error)",
    "feature_std": "std of the embeddings (1: spread, 0: collapsed)",
    "grad_norm": "gradient norm before clipping",
    "teacher_distance": "teacher\u2013student distance (relative to the weights' norm)",
    "momentum": "momentum of the teacher",
    "data_wait": "fraction of the time spent waiting for data",
    "queue_fill": "queue of negatives: fraction filled",
    "queue_age": "queue of negatives: mean age (steps)",
    "queue_std": "queue of negatives: std of its keys",
    "key_std": "std of a step's keys",
    "queue_newest": "queue of negatives: holds the newest keys (1: yes)",
}
# `valid/<metric>`: the validation part of fine-tuning.
_VALID = "valid/"
# `probe/<set>/<what>`: a score while training, or what guessing would score.
_PROBE, _CHANCE, _SECONDS = "probe/", "chance", "probe/seconds"
_PROTOCOLS = {"knn": "nearest neighbours", "linear": "linear layer"}
_HIDDEN = {"step", "epoch", "seconds", "time", "chance_loss", "processor_seconds", _SECONDS}
_HIDDEN |= {f"{_VALID}n"}


def curves(
    rows: list[dict[str, Any]], *, others: Sequence[list[dict[str, Any]]] = (), objective: str = ""
) -> list[tuple[str, str, bool]]:
    """One picture for each number that was logged.

    `others` are drawn beside it in colours of their own, `MOST_RUNS` in all.

    Returns:
        (title, svg, whether it is one of the main curves), main ones first.
    """
    logged = {key for row in rows for key, value in row.items() if _is_number(value)} - _HIDDEN
    probes = sorted(k for k in logged if k.startswith(_PROBE) and not k.endswith(f"/{_CHANCE}"))
    valid = sorted(key for key in logged if key.startswith(_VALID))
    first = [*valid, *(key for key in KNOWN if key in logged), *probes]
    rest = {key for key in logged if not key.startswith(_PROBE)} - KNOWN.keys() - set(valid)
    order = [*(key for key in _MORE if key in rest), *sorted(rest - _MORE.keys())]
    pictures = []
    for key in [*first, *order]:
        points = _points(rows, key)
        if points:
            levels = _levels(rows, key, points)
            series = [points, *(_points(other, key) for other in others[: MOST_RUNS - 1])]
            pictures.append((_title(key, objective), curve(key, series, levels), key in first))
    return pictures


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [
        (float(row["step"]), float(row[key]))
        for row in rows
        if _is_number(row.get(key)) and _is_number(row.get("step"))
    ]


def _title(key: str, objective: str) -> str:
    if key.startswith(_PROBE):
        name, _, protocol = key.removeprefix(_PROBE).rpartition("/")
        return f"{name}: {_PROTOCOLS.get(protocol, protocol)} while training (accuracy)"
    if key.startswith(_VALID):
        return f"validation: {key.removeprefix(_VALID).replace('_', ' ')}"
    if key in _BY_OBJECTIVE.get(objective, {}):
        return _BY_OBJECTIVE[objective][key]
    return KNOWN.get(key) or _MORE.get(key) or key.replace("_", " ")


def _levels(
    rows: list[dict[str, Any]], key: str, points: list[tuple[float, float]]
) -> dict[str, float]:
    """Name -> height of the lines that a curve is to be compared with."""
    if key == "loss":
        guessed = _points(rows, "chance_loss")
        return {"guessing": guessed[-1][1]} if guessed else {}
    if not key.startswith(_PROBE):
        return {}
    levels = {"untrained": points[0][1]} if points[0][0] == 0 else {}
    chance = _points(rows, f"{key.rpartition('/')[0]}/{_CHANCE}")
    return levels | ({"chance": chance[-1][1]} if chance else {})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curve(
    key: str,
    series: list[list[tuple[float, float]]],
    levels: dict[str, float],
    *,
    along: str = "step",
) -> str:
    """The SVG of one number; the first series lies on top.

    A key's number over `along`: points of up to `MOST_RUNS` runs, and names of heights to compare
    with.
    """
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
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(3.6, 1.9), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for points, colour in reversed(list(zip(series, _SERIES, strict=False))):
            marker = "o" if len(points) == 1 else ""
            steps, values = zip(*points, strict=True) if points else ((), ())
            axes.plot(steps, values, color=colour, linewidth=1.2, marker=marker)
        for (name, height), dashes in zip(levels.items(), ("--", ":"), strict=False):
            axes.axhline(height, color=_TEXT, linewidth=0.9, linestyle=dashes)
            axes.annotate(
                name, (1, height), (0, 2), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="bottom",
            )  # fmt: skip
        steps = _thinned(sorted({step for points in series for step, _ in points}))
        foot = axes.get_xaxis_transform()
        axes.scatter(steps, [0] * len(steps), s=1, transform=foot, clip_on=False, gid=_HOVER)
        axes.grid(axis="y", linewidth=0.5, alpha=0.6)
        axes.set_xlabel(along)
        axes.margins(x=0.01)
        buffer = io.StringIO()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        canvas.print_figure(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    by_step = [dict(points) for points in series]
    svg = _hoverable(svg, [_said(by_step, step, along) for step in steps])
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    # Metadata names matplotlib's site; a page without network has no use for addresses.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)


_HOVER = "hover"  # marks the points whose places become the bands
_MOST_BANDS = 120


def _thinned(steps: list[float]) -> list[float]:
    """Evenly chosen ones of many, the last among them."""
    apart = -(-len(steps) // _MOST_BANDS) or 1
    return steps[::-1][::apart][::-1]


def _said(series: Sequence[dict[float, float]], step: float, along: str) -> str:
    """`step 100: 0.53`, of several runs with commas between; what is not there is a dash."""
    found = [values.get(step) for values in series]
    shown = ", ".join("\u2013" if value is None else f"{value:.4g}" for value in found)
    return f"{along} {step:g}: {shown}"


def _hoverable(svg: str, said: Sequence[str]) -> str:
    """Bands from top to bottom that tell the values of their step to a pointer; no script."""
    marked = re.search(rf'<g id="{_HOVER}">.*?</g>\s*</g>', svg, flags=re.DOTALL)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert marked is not None
    assert size is not None
    places = [float(x) for x in re.findall(r'<use [^>]*?\bx="([-\d.]+)"', marked[0])]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(places)]
    edges = [(0.0, *middles, float(size[1]))[i : i + 2] for i in range(len(places))]
    bands = "".join(
        f'<rect class="hover" x="{a:.1f}" y="0" width="{b - a:.1f}" height="{size[2]}">'
        f"<title>{html.escape(words)}</title></rect>"
        for (a, b), words in zip(edges, said, strict=True)
    )
    return svg.replace(marked[0], "").replace("</svg>", f"{bands}</svg>")
