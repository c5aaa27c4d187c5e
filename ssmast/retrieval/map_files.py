"""Draw a map of sounds without labels: a page whose points can be played, and a table.

    ssmast map FOLDER encoder=runs/mine/encoder out=map
    ssmast map RECORDINGS window=5 out=map          windows of long recordings
    ssmast map FOLDER embeddings=e.npz out=map      what `ssmast embed FOLDER` wrote

Sounds are embedded, put in groups by k-means and drawn in the plane by UMAP (pip install
'ssmast[umap]'), without it by t-SNE. `out` gets map.html and map.csv: file, start, stop, group and
place of every sound. With more than `points` sounds a random sample is drawn.
"""

import logging
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssmast.audio import Corpus, open_words
from ssmast.audio.read import split_excerpt
from ssmast.encoder import load_encoder
from ssmast.evaluation import clusters
from ssmast.evaluation.embedding_cache import Embeddings
from ssmast.evaluation.processes import process_state
from ssmast.files import check_output, csv_lines, write_atomic
from ssmast.html import PAGE_BEGINS
from ssmast.report import write_map
from ssmast.retrieval.embed_files import (
    WindowSettings,
    embed_in_parts,
    event_of,
    left_out,
    names_of,
    read_embeddings,
    sole_writer,
)
from ssmast.settings import SEEDS, UsageError, command, setting, several_names, wants_dry_run
from ssmast.weights import DEFAULT

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MapConfig(WindowSettings):
    """`ssmast map`: sounds to a page with a map of them."""

    embeddings: str = setting(
        "", "what `ssmast embed` wrote of the same sounds, .npz or .parquet; empty: embed them"
    )
    out: str = setting("map", "folder to write map.html and map.csv to")
    groups: int = setting(8, "groups of k-means, the colours of the map", range="[1, 20]")
    points: int = setting(
        2000, "most sounds on the map; of more, a random sample is drawn", range="[4, inf)"
    )
    layout: str = setting(
        "auto", "auto: umap where it is installed, else tsne", choices=("auto", "umap", "tsne")
    )
    seed: int = setting(0, "of the groups, the sample and the layout", range=SEEDS)
    audio_mb: float = setting(
        6.0, "most MB of sound put inside the page; 0: only links", range="[0, inf)"
    )
    audio_seconds: float = setting(
        5.0, "seconds of each sound put inside the page", range="(0, inf)"
    )


@command(MapConfig, "ssmast map", dry_run=True, positional="data", several=True)
def main(config: MapConfig, argv: list[str]) -> int:
    """`ssmast map`: parse, embed, draw, write page and table."""
    check_output(config.out, folder=True)
    check_output(Path(config.out) / "map.html", begins=PAGE_BEGINS)
    check_output(Path(config.out) / "map.csv", begins="file,start,stop,group,")
    if config.layout == "umap" and not clusters.can_draw():
        raise UsageError(f"layout=umap needs umap-learn, which is missing; {clusters.INSTALL}")
    if config.embeddings and config.window:
        raise UsageError("window= is for sounds to be embedded; leave it or embeddings= out")
    if config.embeddings and config.encoder != DEFAULT:
        raise UsageError("encoder= is for sounds to be embedded; leave it or embeddings= out")
    corpus = open_words(config.data).with_channel(config.channel)
    device = process_state().device
    encoder = None if config.embeddings else load_encoder(config.encoder).to(device)
    if wants_dry_run(argv):
        logger.info("%d clips, to %s", len(corpus), config.out)
        return 0
    out = Path(config.out)
    with sole_writer(out):
        out.mkdir(parents=True, exist_ok=True)
        if encoder is None:
            found = _embedded(config.embeddings, corpus)
        else:
            found = embed_in_parts(encoder, corpus, config.to_embed(out / "map.npz"))
        if found is None:
            return 0
        drawn = map_of(found, corpus, config)
        drawn["folder"] = corpus
        title = f"Map of {Path(several_names(config.data)[0]).name}"
        write_map(
            out / "map.html", drawn, title=title, audio_mb=config.audio_mb,
            audio_seconds=config.audio_seconds,
        )  # fmt: skip
        write_atomic(out / "map.csv", _table(drawn))
        shutil.rmtree(out / "map.npz.parts", ignore_errors=True)
    if config.embeddings:
        missing = len(corpus) - len(np.unique(found.rows))
        said = f"{missing} clips are not in {config.embeddings}"
    else:
        said = left_out(found, out / "map.npz")
    logger.info("%d sounds, %s; %s", len(drawn["clips"]), said, out / "map.html")
    return 0


def _embedded(file: str, corpus: Corpus) -> Embeddings:
    """The vectors in a file of `ssmast embed`, as those of the corpus."""
    names, values, _ = read_embeddings(file)
    origins = corpus.origins(range(len(corpus)))
    places = {name: row for row, name in enumerate(origins)}
    places |= {corpus.name(row): row for row in range(len(corpus))}
    cut: dict[str, list[tuple[int, float, float]]] = {}
    for row, origin in enumerate(origins):
        of, span = split_excerpt(origin)
        cut.setdefault(of, []).append((row, *(span or (0.0, math.inf))))
    rows, spans = list[int](), list[tuple[float, float]]()
    for name in names:
        row, span = _place_of(name, places, cut)
        if row is None:
            raise ValueError(
                f"{file} has {name}, which is not among the sounds that are given, such as "
                f"{corpus.name(0)}; give those that were embedded, in the same way"
            )
        rows.append(row)
        spans += [span] if span else []
    return Embeddings(
        values=torch.from_numpy(values), rows=np.array(rows), rejected=[],
        spans=np.array(spans) if spans else None,
    )  # fmt: skip


def _place_of(
    name: str, places: dict[str, int], cut: dict[str, list[tuple[int, float, float]]]
) -> tuple[int | None, tuple[float, float] | None]:
    """Row of the clip that a name is of, and where in the clip; None for the whole."""
    if name in places:
        return places[name], None
    file, span = split_excerpt(name)
    for row, start, stop in cut.get(file, ()) if span else ():
        if span and start - 1e-6 <= span[0] and span[1] <= stop + 1e-6:
            return row, (span[0] - start, span[1] - start)
    return None, None


def map_of(found: Embeddings, corpus: Corpus, config: MapConfig) -> dict[str, Any]:
    """Groups, points and neighbours of embeddings, as a page's scatter takes them.

    Raises:
        ValueError: for fewer than four sounds.
    """
    names, total = names_of(found, corpus), len(found.rows)
    if total < 4:
        raise ValueError(f"a map needs at least 4 sounds, got {total}; window= cuts long ones")
    features = clusters.normalise(found.values, "l2")
    groups = clusters.kmeans(features, min(config.groups, total), seed=config.seed).labels
    if config.groups > total:
        logger.warning("groups=%d of %d sounds: each is a group of its own", config.groups, total)
    if total > config.points:
        logger.info("%d of %d sounds are drawn", config.points, total)
    method = config.layout
    if method == "auto":
        method = "umap" if clusters.can_draw() else "tsne"
    logger.info("%d sounds embedded; drawing the map by %s", total, method)
    where, drawn = clusters.draw(
        {"pretrained": found.values}, np.arange(total), limit=config.points, seed=config.seed,
        method=method,
    )  # fmt: skip
    return {
        **drawn,
        "grouping": "groups of k-means, which are no classes",
        "classes": [f"group {number + 1}" for number in range(int(groups.max()) + 1)],
        "clips": [names[i] for i in where],
        "rows": found.rows[where].tolist(),
        "labels": groups[where].tolist(),
    }


def _table(drawn: dict[str, Any]) -> str:
    rows: list[tuple[object, ...]] = [("file", "start", "stop", "group", "x", "y")]
    (points,) = drawn["columns"].values()
    for name, label, x, y in zip(
        drawn["clips"], drawn["labels"], points["x"], points["y"], strict=True
    ):
        event = event_of(name, drawn["classes"][label])
        span = (event.start, event.stop) if event.stop else ("", "")
        rows.append((event.file, *span, event.label, x, y))
    return csv_lines(rows)
