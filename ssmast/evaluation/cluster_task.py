"""Score an encoder by clustering a labelled set, and draw a map of it.

    ssmast cluster encoder=runs/mine/encoder data=FOLDER_OF_LABELLED_SETS task=fsdd
    ssmast cluster encoder=DIR data=FOLDER_WITH_A_FOLDER_A_CLASS
    ssmast cluster encoder=DIR data=DIR task=esc50 part=all classes='[Dog bark,Rain]'

k-means searches as many clusters as the set has classes. The same encoder untrained and log-mel
statistics are scored too, and every score has its chance level. It writes TASK.clusters.json and
TASK.clusters.md to `out`; `ssmast report` makes a page of them. Embeddings are shared with
`ssmast probe`.
"""

import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssmast.evaluation import picture
from ssmast.evaluation.baselines import BASELINES, UNTRAINED, Column, make_columns
from ssmast.evaluation.clusters import NORMALISATIONS, normalise, score_clusters
from ssmast.evaluation.embed import SetEmbeddings, embed_corpus, rejected_clips
from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.evaluation.processes import process_state, scoring_seconds
from ssmast.evaluation.protocols import LINEAR
from ssmast.evaluation.read_set import load_set
from ssmast.evaluation.results import (
    TITLES,
    ClusterResult,
    beside,
    markdown_row,
    result_file,
    result_notes,
    write_result,
)
from ssmast.files import check_output, write_atomic
from ssmast.settings import (
    BATCH_SECONDS,
    CHANNEL,
    WORKERS,
    Settings,
    UsageError,
    parse,
    require,
    setting,
    wants_dry_run,
)
from ssmast.weights import DEFAULT

CLUSTER_TITLES = {
    "adjusted_rand": "adjusted Rand",
    "homogeneity": "homogeneity",
    "completeness": "completeness",
    "adjusted_mutual_info": "adjusted mutual information",
}
SILHOUETTES = {
    ("true", "euclidean"): "silhouette, classes, Euclidean",
    ("true", "cosine"): "classes, cosine",
    ("kmeans", "euclidean"): "k-means, Euclidean",
    ("kmeans", "cosine"): "k-means, cosine",
}


def clusters_table(results: list[ClusterResult]) -> str:
    """Markdown of what `run_clusters` returns: one row an encoder, chance below each task."""
    titles = [*CLUSTER_TITLES.values(), *SILHOUETTES.values()]
    lines = [
        markdown_row(["task", "encoder", *titles]),
        markdown_row(["---"] * 2 + ["---:"] * len(titles)),
    ]
    for result in results:
        lines += [markdown_row([result.task, *row]) for row in cluster_rows(result)]
    return "\n".join(lines) + "\n" + "".join(f"\n{clusters_note(one)}\n" for one in results)


def cluster_rows(result: ClusterResult) -> list[list[str]]:
    """Name and numbers of each column, then those of random labels."""
    rows = []
    for name, column in result.columns.items():
        cells = [_spread_text(column, key) for key in CLUSTER_TITLES]
        cells += [f"{column['silhouette'][labels][by]:.3f}" for labels, by in SILHOUETTES]
        rows.append([TITLES.get(name, name), *cells])
    first = result.columns[result.column]
    chance = [f"{first['random'][key]:.3f}" for key in CLUSTER_TITLES]
    chance += [f"{first['silhouette']['random'][by]:.3f}" for _, by in SILHOUETTES]
    return [*rows, ["random labels", *chance]]


def clusters_note(result: ClusterResult) -> str:
    """What was clustered and how, in one paragraph."""
    first = result.columns[result.column]
    how = {"l2": "scaled to unit length", "standard": "standardised", "raw": "as they are"}
    seeds = f"{result.num_seeds} seed" + ("s" if result.num_seeds != 1 else "")
    return (
        f"{result.task}: {result.n} clips ({result.part}) of {result.num_classes} classes; "
        f"embeddings {how[result.normalisation]}, {first['dim']} dimensions, pooling "
        f"{result.pooling}, layers {result.layers}. k-means with {result.num_classes} clusters and "
        f"{seeds}, of which the one of least inertia counts; in brackets the least and the "
        "greatest over them. Random "
        "labels: the same partitions shuffled; homogeneity and completeness are above 0 by chance."
        + "".join(f" {said[0].upper()}{said[1:]}." for said in result_notes(result))
    )


def _spread_text(column: dict[str, Any], key: str) -> str:
    """`0.412 (0.380 to 0.431)`: of the best clustering, and over all seeds."""
    values = [row[key] for row in column["seeds"]]
    text = f"{column['kmeans'][key]:.3f}"
    return text if len(values) < 2 else f"{text} ({min(values):.3f} to {max(values):.3f})"


logger = logging.getLogger(__name__)

PARTS = ("test", "all")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Settings):
    """`ssmast cluster`: a frozen encoder and classes to scores and a map."""

    encoder: str = setting(
        DEFAULT, "encoder folder or Hub name; default: the one that comes with the package"
    )
    data: str = setting("", "folder of labelled sets, or one set", required=True)
    task: str = setting(
        "",
        "set in `data`, with other columns if wanted: NAME:label=COLUMN; empty: the only one there",
    )
    part: str = setting("test", "clips to use: test (with folds: every clip) or all", choices=PARTS)
    classes: list[str] = setting([], "classes on the map; empty: the 20 most frequent")
    first_classes: int = setting(
        0, "draw the first classes by name, so many, in place of classes=", range="[0, inf)"
    )
    layer: str = setting(
        "",
        "other layers than the encoder folder's, as layers= of `ssmast probe`; before_last: the "
        "tokens that the last block is given, as figure 2 of Zhu & Omar",
    )
    normalise: str = setting("l2", "normalisation of the embeddings", choices=NORMALISATIONS)
    seeds: int = setting(5, "runs of k-means; the one of lowest inertia counts", range="[1, inf)")
    seed: int = setting(0, "first seed, also that of the untrained encoder and of the map")
    baselines: str = setting(
        "true",
        "also score the same encoder untrained (random weights) and log-mel statistics; all: a "
        "fixed random convolution too",
        choices=BASELINES,
    )
    umap: str = setting(
        "auto",
        "draw the map; auto: if umap-learn is installed",
        choices=("auto", "true", "false"),
    )
    points: int = setting(
        2000, "most clips on the map; of more, a random sample is drawn", range="[4, inf)"
    )
    out: str = setting("", "folder of results; empty: clusters/ beside the encoder folder")
    cache: str = setting("", "folder where embeddings are kept; empty: that of `ssmast probe`")
    channel: str = setting("mean", CHANNEL)
    workers: int = setting(0, WORKERS, range="[0, inf)")
    batch_seconds: float = setting(0.0, BATCH_SECONDS, range="[0, inf)")


def main(argv: list[str]) -> int:
    """`ssmast cluster`: parse, run, print the table."""
    config = parse(
        ClusterConfig,
        argv,
        command="ssmast cluster",
        description=__doc__ or "",
        dry_run=True,
        positional="task",
    )
    if config is None:
        return 0
    if config.encoder in UNTRAINED:
        raise UsageError(
            f"encoder= must be an encoder folder or a Hub name, got {config.encoder}; it stands "
            "beside every encoder with baselines=all"
        )
    if wants_dry_run(argv):
        labelled = load_set(config.data, config.task)
        sys.stdout.write(
            f"{labelled.spec}: {len(labelled.classes)} classes, {len(_taken(labelled, config))} "
            f"clips, to {_out(config)}\n"
        )
        return 0
    result = run_clusters(config)
    if result is not None:
        sys.stdout.write(clusters_table([result]))
    return 0


def run_clusters(config: ClusterConfig) -> ClusterResult | None:
    """Embed, cluster, score and draw one task; returns what the JSON file holds.

    Under `accelerate launch` the processes divide the embedding, and all but the first return None.

    Raises:
        ValueError, FileNotFoundError: one sentence saying what to change.
    """
    wants_picture = _wants_picture(config)
    check_output(_out(config), folder=True)
    check_output(_cache(config), key="cache", folder=True)
    labelled = load_set(config.data, config.task)
    if labelled.multi_label:
        raise ValueError(
            f"the clips of {str(labelled.spec)!r} have several labels each, so they are no "
            "partition to compare clusters with; choose another label column or set"
        )
    named = config.classes
    if config.first_classes:
        require(not named, "classes", named, "left out where first_classes= is given")
        named = sorted(set(labelled.labels))[: config.first_classes]
    classes = picture.chosen_classes(labelled.labels, named) if wants_picture else []
    embedded = _embed(config, labelled)
    if not process_state().is_main:
        return None
    labels = [labelled.labels[position] for position in embedded.positions]
    names, numbers = np.unique(labels, return_inverse=True)
    columns: dict[str, dict[str, Any]] = {}
    for column, features in zip(embedded.columns, embedded.features.values(), strict=True):
        started = time.monotonic()
        scores = score_clusters(
            features,
            numbers,
            normalisation=config.normalise,
            num_seeds=config.seeds,
            seed=config.seed,
        )
        columns[column.name] = {
            "dim": column.variants[0].dim,
            "encoder_sha256": column.sha256,
            **scores.to_dict(),
            "seconds": round(time.monotonic() - started, 2),
        }
        logger.info(
            "%s, %s: adjusted Rand index %.3f",
            *(labelled.spec, column.name, scores.kmeans["adjusted_rand"]),
        )
    main = embedded.columns[0]
    kept = np.array([clip not in embedded.unread for clip in labelled.clips])
    result = ClusterResult(
        task=str(labelled.spec),
        part=config.part,
        n=len(labels),
        num_classes=len(names),
        classes=names.tolist(),
        ids_sha256=labelled.ids_sha256(np.flatnonzero(kept)),
        normalisation=config.normalise,
        num_seeds=config.seeds,
        seed=config.seed,
        encoder=config.encoder,
        data=config.data,
        pooling=main.variants[0].pooling,
        layers=main.variants[0].layers,
        column=main.name,
        rejected=embedded.rejected,
        left_out=labelled.left_out,
        columns=columns,
        picture=_picture(config, labelled, embedded, classes) if wants_picture else None,
    )
    file = result_file(_out(config), labelled, "clusters")
    write_result(file, result)
    write_atomic(file.with_suffix(".md"), clusters_table([result]))
    logger.info("results: %s", file)
    return result


def _out(config: ClusterConfig) -> Path:
    return Path(config.out) if config.out else beside(config.encoder, "clusters")


def _cache(config: ClusterConfig) -> Path:
    return Path(config.cache) if config.cache else beside(config.encoder, "probe") / "embeddings"


def _wants_picture(config: ClusterConfig) -> bool:
    if config.umap == "auto":
        if not picture.can_draw() and process_state().is_main:
            logger.warning("no picture is drawn: umap-learn is missing; %s", picture.INSTALL)
        return picture.can_draw()
    if config.umap == "true" and not picture.can_draw():
        raise ValueError(
            f"umap=true needs umap-learn, which is not installed; {picture.INSTALL}, or leave it "
            "out with umap=false"
        )
    return config.umap == "true"


class _Embedded(NamedTuple):
    """Vectors of the clips that every column could embed.

    Attributes:
        columns: what was embedded with, the encoder asked for first.
        features: of each, by name, (n, D).
        positions: of the n clips in the set.
        unread: names of all clips of the set that some column could not embed.
        rejected: (name, reason) of those that would have taken part.
    """

    columns: list[Column]
    features: dict[str, Tensor]
    positions: list[int]
    unread: set[str]
    rejected: list[tuple[str, str]]


def _taken(labelled: LabelledSet, config: ClusterConfig) -> list[int]:
    """Positions of the clips that take part, in the order of the corpus."""
    everything = range(len(labelled.clips))
    if config.part != "all":
        everything = {int(position) for split in labelled.splits for position in split.test}
    return sorted(everything, key=lambda position: labelled.rows[position])


def _embed(config: ClusterConfig, labelled: LabelledSet) -> _Embedded:
    columns = make_columns(
        config.encoder, protocol=LINEAR, layers=config.layer, baselines=config.baselines,
        seed=config.seed, device=process_state().device,
    )  # fmt: skip
    corpus = labelled.corpus(channel=config.channel)
    found = {
        column.name: embed_corpus(
            column.variants[0],
            corpus,
            title=f"{labelled.spec.name}, {column.name}",
            cache=_cache(config),
            workers=config.workers,
            batch_seconds=config.batch_seconds or scoring_seconds(),
            sha256=column.sha256,
        )
        for column in columns
    }
    unread = dict(rejected_clips(labelled, corpus, [SetEmbeddings(v) for v in found.values()]))
    taken = _taken(labelled, config)
    positions = [position for position in taken if labelled.clips[position] not in unread]
    gone = sorted(labelled.clips[position] for position in set(taken) - set(positions))
    rejected = [(clip, unread[clip]) for clip in gone]
    if rejected:
        logger.warning(
            "%s: %d clips are left out; the first: %s",
            *(labelled.spec, len(rejected), rejected[0][1]),
        )
    rows = labelled.rows[positions]
    features = {
        name: vectors.values[torch.from_numpy(np.searchsorted(vectors.rows, rows))]
        for name, vectors in found.items()
    }
    return _Embedded(columns, features, positions, set(unread), rejected)


def _picture(
    config: ClusterConfig, labelled: LabelledSet, embedded: _Embedded, classes: list[str]
) -> dict[str, Any]:
    """What the scatter on the page shows."""
    labels = [labelled.labels[position] for position in embedded.positions]
    where = picture.chosen_clips(labels, classes, limit=config.points, seed=config.seed)
    number = {name: index for index, name in enumerate(classes)}
    logger.info("UMAP of %d clips of %d classes", len(where), len(classes))
    features = {
        name: normalise(values[torch.tensor(where)], config.normalise)
        for name, values in embedded.features.items()
    }
    positions = [embedded.positions[i] for i in where]
    return {
        "n_neighbors": picture.N_NEIGHBORS,
        "min_dist": picture.MIN_DIST,
        "seed": config.seed,
        "classes": classes,
        "clips": [labelled.clips[position] for position in positions],
        "rows": labelled.rows[positions].tolist(),
        "labels": [number[labels[i]] for i in where],
        "num_candidates": sum(label in number for label in labels),
        "folder": str(labelled.folder.resolve()),
        "columns": picture.draw(features, seed=config.seed),
    }
