"""Clusters on the page: their scores, and the picture as a scatter that names and plays clips.

A clip's sound is inside the page while there is room, else behind a relative link.
"""

import base64
import html
import json
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ssmast.audio import AudioError, Corpus, RemoteError, open_corpus, read_audio
from ssmast.audio.encode import encode_sound
from ssmast.audio.read import Excerpt, split_excerpt
from ssmast.audio.read import Source as Sound
from ssmast.evaluation.cluster_task import CLUSTER_TITLES, SILHOUETTES, cluster_rows, clusters_note
from ssmast.evaluation.results import TITLES, ClusterResult
from ssmast.html import section, table, text
from ssmast.report.scores import PUBLISHED_CLUSTERS
from ssmast.report.sources import Source

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16000
# Without a seed of its own the order would favour the first classes of the list.
_ORDER_SEED = 0


def playable(
    folder: str | Path | Corpus,
    clips: Sequence[str],
    rows: Sequence[int],
    *,
    page: Path,
    max_bytes: int,
    max_seconds: float,
) -> list[str]:
    """What an audio element can play for each clip; empty where there is nothing.

    Clips are called as metadata.csv has them, or are windows of those; links are relative to the
    page. The sounds inside it, `max_seconds` of each, take `max_bytes` as they are written.
    """
    sources = [""] * len(clips)
    corpus = folder if isinstance(folder, Corpus) else _open(folder, clips, rows)
    if corpus is None:
        return sources
    used, full = 0, False
    for i in map(int, np.random.default_rng(_ORDER_SEED).permutation(len(clips))):
        if not full and max_bytes > 0:
            inside = _inside(corpus, rows[i], clips[i], max_seconds)
            if used + len(inside) <= max_bytes:
                sources[i], used = inside, used + len(inside)
                continue
            full = True
        sources[i] = _link(corpus, rows[i], clips[i], page)
    return sources


def _open(folder: str | Path, clips: Sequence[str], rows: Sequence[int]) -> Corpus | None:
    """The corpus, if it still is the one that was clustered."""
    try:
        corpus = open_corpus(folder, spans="spans")
    except (OSError, ValueError) as error:
        logger.warning("no clip can be played: %s", error)
        return None
    same = all(
        row < len(corpus) and corpus.name(row).endswith(Path(clip).name)
        for clip, row in zip(clips, rows, strict=True)
    )
    if not same:
        logger.warning("no clip can be played: %s holds other clips than were clustered", folder)
        return None
    return corpus


def _window(corpus: Corpus, row: int, clip: str) -> Sound | Excerpt:
    """The sound of a clip, or of the window of it that the name says."""
    source, (_, span) = corpus.source(row), split_excerpt(clip)
    origin = corpus.origins([row])[0]
    if span is None or clip in (corpus.name(row), origin):
        return source
    if isinstance(source, Excerpt):
        return Excerpt(source.source, *span, channel=source.channel)
    begin = (split_excerpt(origin)[1] or (0.0,))[0]  # prepared: a file of its own now
    return Excerpt(source, span[0] - begin, span[1] - begin)


def _inside(corpus: Corpus, row: int, clip: str, max_seconds: float) -> str:
    try:
        source = _window(corpus, row, clip)
        audio = read_audio(source, sample_rate=SAMPLE_RATE, name=corpus.name(row))
    except (AudioError, RemoteError, OSError) as error:
        logger.warning("%s cannot be played: %s", corpus.name(row), error)
        return ""
    audio = audio[: round(max_seconds * SAMPLE_RATE)]
    samples = audio / max(float(np.abs(audio).max()), 1.0)
    data = encode_sound(samples.astype(np.float32), sample_rate=SAMPLE_RATE, codec="opus")
    return f"data:audio/ogg;base64,{base64.b64encode(data).decode('ascii')}"


def _link(corpus: Corpus, row: int, clip: str, page: Path) -> str:
    """Relative address of a clip that is a file of its own; none inside a tar or at a URL."""
    span, fragment = split_excerpt(clip)[1], ""
    try:
        source = corpus.source(row)
    except (AudioError, RemoteError, OSError):
        return ""
    if not isinstance(source, Path):
        return ""
    if span is not None and clip != corpus.name(row):
        fragment = f"#t={span[0]:g},{span[1]:g}"  # players know it
    relative = os.path.relpath(source.resolve(), page.resolve().parent)
    return quote(Path(relative).as_posix().encode("utf-8", "surrogateescape")) + fragment


# Ten colours that differ on light and dark ground (Category10, greys lifted), four shapes.
_COLOURS = (
    "#3b82c4", "#f07f1b", "#2f9e44", "#e0413f", "#9a6fd0",
    "#a0674f", "#e078c0", "#7f8893", "#b3a51a", "#17a6b8",
)  # fmt: skip
_SHAPES = (("circle", "●"), ("triangle", "▲"), ("square", "■"), ("diamond", "◆"))


def clusters(
    sources: Sequence[Source], *, page: Path, audio_bytes: int, audio_seconds: float
) -> tuple[str, bool]:
    """The section about clusters, and whether it needs scripts."""
    results = [(source, result) for source in sources for result in source.clusters]
    pictures = [result for _, result in results if result.picture is not None]
    parts, drawn = [], 0
    for source, result in results:
        name = "" if len(sources) < 2 else f", {source.name}"
        parts.append(f"<h3>{text(result.task + name)}</h3>")
        if result.picture is not None:
            room = audio_bytes // len(pictures)
            parts.append(scatter(result.picture, result.task, drawn, page, room, audio_seconds))
            drawn += 1
        parts.append(_table(result))
    return section("Clusters", *parts), bool(drawn)


def _table(result: ClusterResult) -> str:
    rows = cluster_rows(result)
    for task, name, silhouette, adjusted_rand, homogeneity in PUBLISHED_CLUSTERS["rows"]:
        if task == result.task.partition(":")[0]:
            cells = [f"{adjusted_rand:.3f}", f"{homogeneity:.3f}", "", ""]
            cells += [f"{silhouette:.3f} (labels and distance not stated)", "", "", ""]
            rows.append([f"{name}: {PUBLISHED_CLUSTERS['source']}", *cells])
    titles = ("", *CLUSTER_TITLES.values(), *SILHOUETTES.values())
    shown = table(rows, head=titles, first_is_head=True, name="cluster scores", style="numbers")
    return f'{shown}<p class="soft">{text(clusters_note(result))}</p>'


def scatter(
    picture: dict[str, Any], task: str, number: int, page: Path, audio_bytes: int, seconds: float
) -> str:
    """A picture as a scatter that names and plays clips; it needs the page's scripts.

    The picture is one of `ssmast cluster` or `ssmast map`; see `playable` for its sound.
    """
    sound = playable(
        picture["folder"],
        picture["clips"],
        picture["rows"],
        page=page,
        max_bytes=audio_bytes,
        max_seconds=seconds,
    )
    columns = picture["columns"]
    data = {
        "plot": _plot(picture, columns[next(iter(columns))]),
        "clips": picture["clips"],
        "classes": picture["classes"],
        "labels": picture["labels"],
        "columns": columns,
        "sound": sound,
    }
    inside = sum(one.startswith("data:") for one in sound)
    linked = sum(bool(one) for one in sound) - inside
    is_map = "grouping" in picture  # of `ssmast map`: no labels, and one embedding
    made_by = "ssmast map" if is_map else "ssmast report"
    how = f"UMAP ({picture['n_neighbors']} neighbours, least distance {picture['min_dist']}, seed "
    if picture.get("method") == "tsne":
        how = "t-SNE (seed "
    note = (
        f"{how}{picture['seed']}) of {len(sound)} of {picture['num_candidates']} clips. Distances "
        "in the picture are not the embedding's; neighbours below it are (cosine). "
        f"Sound: {inside} clips inside this page (their first {seconds:g} s), {linked} linked, "
        f"{len(sound) - inside - linked} without"
        + (f" (`audio_mb=` of `{made_by}` makes room)." if not all(sound) else ".")
    )
    options = "".join(
        f'<option value="{text(name)}">{text(TITLES.get(name, name))}</option>' for name in columns
    )
    legend = "".join(_legend(i, name, picture) for i, name in enumerate(picture["classes"]))
    clips = "".join(
        f'<option value="{i}">{text(clip)} ({text(picture["classes"][label])})</option>'
        for i, (clip, label) in enumerate(zip(picture["clips"], picture["labels"], strict=True))
    )
    name = html.escape(task)
    hidden = " hidden" * (len(columns) == 1)
    shown = text(f"Shown: {picture['grouping']}" if is_map else "Classes shown")
    # ruff sees SQL in the word select.
    return f"""
<div class="scatter" id="scatter-{number}">
<p class="soft">{text(note)}</p>
<p{hidden}><label>Embedding <select class="column">{options}</select></label></p>
<fieldset class="legend"><legend class="soft">{shown}</legend>{legend}</fieldset>
<div class="plot" id="scatter-{number}-plot" tabindex="0" role="application"
 aria-label="Scatter of {name}: arrow keys go from clip to clip, Enter plays"></div>
<p class="soft">Point at a clip for its name, click to play it. Arrow keys and Enter do the same;
so does the list.</p>
<div class="chosen">
<div><label>Find a clip <input type="search" class="find"></label>
<select class="clips" size="8" aria-label="Clips">{clips}</select></div>
<div><p class="name" aria-live="polite">No clip chosen.</p>
<p><button type="button" class="play" disabled>Play</button></p>
<audio controls preload="none"></audio>
<p class="soft">Nearest neighbours in the embedding</p><ol class="near"></ol></div>
</div>
<script type="application/json">{_json(data)}</script>
</div>"""  # noqa: S608


def _legend(index: int, name: str, picture: dict[str, Any]) -> str:
    count = picture["labels"].count(index)
    shape, colour = _SHAPES[index % len(_SHAPES)][1], _COLOURS[index % len(_COLOURS)]
    return (
        f'<label><input type="checkbox" value="{index}" checked>'
        f'<span style="color:{colour}" aria-hidden="true">{shape}</span> {text(name)} '
        f'<span class="soft">{count}</span></label>'
    )


def _plot(picture: dict[str, Any], column: dict[str, Any]) -> Any:
    """The scatter as Bokeh's JSON; its colours of text and ground are set by the page."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bokeh.embed import json_item
        from bokeh.models import (
            BooleanFilter,
            CDSView,
            ColumnDataSource,
            HoverTool,
            Range1d,
            TapTool,
        )
        from bokeh.plotting import figure

        labels = picture["labels"]
        source = ColumnDataSource(
            {
                "x": column["x"],
                "y": column["y"],
                "clip": picture["clips"],
                "class": [picture["classes"][label] for label in labels],
                "colour": [_COLOURS[label % len(_COLOURS)] for label in labels],
                "shape": [_SHAPES[label % len(_SHAPES)][0] for label in labels],
            },
            name="clips",
        )
        ring = ColumnDataSource({"x": [], "y": [], "size": []}, name="around")
        shown = BooleanFilter(booleans=[True] * len(labels), name="shown")
        plot = figure(
            height=480, sizing_mode="stretch_width", tools="pan,box_zoom,wheel_zoom,reset",
            x_range=Range1d(start=0, end=1), y_range=Range1d(start=0, end=1), active_drag=None,
            name="plot",
        )  # fmt: skip
        dots = plot.scatter(
            "x", "y", source=source, view=CDSView(filter=shown), marker="shape", size=9,
            fill_color="colour", line_color=None, fill_alpha=0.8,
            nonselection_fill_alpha=0.6, nonselection_line_alpha=0,
        )  # fmt: skip
        plot.scatter("x", "y", source=ring, size="size", fill_color=None, line_width=2, name="ring")
        named = "<div>@clip</div><div>@class</div>"
        # Always on, so no buttons: the toolbar has only what moves the picture.
        plot.add_tools(HoverTool(renderers=[dots], tooltips=named, visible=False))
        plot.add_tools(TapTool(visible=False))
        plot.axis.visible = False
        plot.toolbar.logo = None
        return json_item(plot)


def _json(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
