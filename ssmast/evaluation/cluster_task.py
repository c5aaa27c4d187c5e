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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssmast.evaluation import clusters
from ssmast.evaluation.baselines import BASELINES, BASELINES_HELP, UNTRAINED, Column, make_columns
from ssmast.evaluation.clusters import NORMALISATIONS, score_clusters
from ssmast.evaluation.embed import embed_corpus, rejected_clips
from ssmast.evaluation.embedding_cache import Embeddings
from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.evaluation.probe import LINEAR
from ssmast.evaluation.processes import process_state, scoring_seconds
from ssmast.evaluation.read_set import load_set
from ssmast.evaluation.results import (
    TITLES,
    ClusterResult,
    beside,
    check_results,
    result_file,
    result_notes,
    write_result,
)
from ssmast.files import check_output, write_atomic
from ssmast.html import markdown_table
from ssmast.settings import (
    SEEDS,
    SoundSettings,
    UsageError,
    command,
    require,
    setting,
    wants_dry_run,
)
from ssmast.weights import DEFAULT

logger = logging.getLogger(__name__)

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


def clusters_table(result: ClusterResult) -> str:
    """Markdown of what `run_clusters` returns: one row an encoder, chance below them."""
    titles = [*CLUSTER_TITLES.values(), *SILHOUETTES.values()]
    rows = [[result.task, *row] for row in cluster_rows(result)]
    table = markdown_table(["task", "encoder", *titles], rows, numbers=len(titles))
    return f"{table}\n{clusters_note(result)}\n"


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


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(SoundSettings):
    """`ssmast cluster`: a frozen encoder and classes to scores and a map."""

    encoder: str = setting(
        DEFAULT, "encoder folder or Hub name; default: the one that comes with the package"
    )
    data: str = setting("", "folder of labelled sets, or one set", required=True)
    task: str = setting(
        "",
        "set in `data`, with other columns if wanted: NAME:label=COLUMN; empty: the only one there",
    )
    part: str = setting(
        "test", "clips to use: test (with folds: every clip) or all", choices=("test", "all")
    )
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
    seed: int = setting(
        0, "first seed, also that of the untrained encoder and of the map", range=SEEDS
    )
    baselines: str = setting("true", BASELINES_HELP, choices=BASELINES)
    umap: str = setting(
        "auto", "draw the map; auto: if umap-learn is installed", choices=("auto", "true", "false")
    )
    points: int = setting(
        2000, "most clips on the map; of more, a random sample is drawn", range="[4, inf)"
    )
    out: str = setting(
        "",
        "folder of results; empty: clusters/ beside encoder/, of another folder NAME-clusters/",
    )
    cache: str = setting("", "folder where embeddings are kept; empty: that of `ssmast probe`")

    def __post_init__(self) -> None:
        """Refuse classes of a map that is not drawn."""
        super().__post_init__()
        if self.umap == "false" and (self.classes or self.first_classes):
            raise UsageError("classes= and first_classes= are about the map; leave umap=false out")


@command(ClusterConfig, "ssmast cluster", dry_run=True, positional="task")
def main(config: ClusterConfig, argv: list[str]) -> int:
    """`ssmast cluster`: parse, run, print the table."""
    if config.encoder in UNTRAINED:
        raise UsageError(
            f"encoder= must be an encoder folder or a Hub name, got {config.encoder}; it stands "
            "beside every encoder with baselines=all"
        )
    if wants_dry_run(argv):
        labelled = _load(config)
        num_clips, num_classes = len(_positions(labelled, config)), len(labelled.classes)
        sys.stdout.write(
            f"{labelled.spec}: {num_classes} classes, {num_clips} clips, to {_out(config)}\n"
        )
        return 0
    result = run_clusters(config)
    if result is not None:
        sys.stdout.write(clusters_table(result))
    return 0


def _load(config: ClusterConfig) -> LabelledSet:
    """The set; parts that are not clustered may be empty.

    Raises:
        ValueError: for several labels a clip.
    """
    scored = () if config.part == "all" else [config.part]
    labelled = load_set(config.data, config.task, scored=scored)
    if labelled.multi_label:
        raise ValueError(
            f"the clips of {str(labelled.spec)!r} have several labels each, so they are no "
            "partition to compare clusters with; choose another label column or set"
        )
    return labelled


def run_clusters(config: ClusterConfig) -> ClusterResult | None:
    """Embed, cluster, score and draw one task; returns what the JSON file holds.

    Under `accelerate launch` the processes divide the embedding, and all but the first return None.
    """
    wants_picture = _wants_picture(config)
    check_output(_out(config), folder=True)
    check_output(_cache(config), key="cache", folder=True)
    labelled = _load(config)
    file = result_file(_out(config), labelled, "clusters")
    if process_state().is_main:
        check_results(file, encoder=config.encoder)
    drawn = _classes_on_map(labelled, config) if wants_picture else []
    columns = make_columns(
        config.encoder, protocol=LINEAR, layers=config.layer, baselines=config.baselines,
        seed=config.seed, device=process_state().device,
    )  # fmt: skip
    found, unread = _embedded(labelled, columns, config)
    if not process_state().is_main:
        return None
    readable = np.array([clip not in unread for clip in labelled.clips])
    taken = _positions(labelled, config)
    positions = taken[readable[taken]]
    rows = labelled.rows[positions]
    features = {column.name: one.of(rows) for column, one in zip(columns, found, strict=True)}
    labels = [labelled.labels[position] for position in positions]
    names, numbers = np.unique(labels, return_inverse=True)
    scores = {}
    for column in columns:
        scores[column.name] = own = _scored(column, features[column.name], numbers, config)
        rand = own["kmeans"]["adjusted_rand"]
        logger.info("%s, %s: adjusted Rand index %.3f", labelled.spec, column.name, rand)
    main = columns[0]
    result = ClusterResult(
        task=str(labelled.spec),
        part=config.part,
        n=len(labels),
        num_classes=len(names),
        classes=names.tolist(),
        ids_sha256=labelled.ids_sha256(np.flatnonzero(readable)),
        normalisation=config.normalise,
        num_seeds=config.seeds,
        seed=config.seed,
        encoder=config.encoder,
        data=config.data,
        pooling=main.variants[0].pooling,
        layers=main.variants[0].layers,
        column=main.name,
        rejected=sorted(
            (clip, unread[clip])
            for clip in (labelled.clips[position] for position in taken[~readable[taken]])
        ),
        left_out=labelled.left_out,
        columns=scores,
        picture=_picture(labelled, positions, features, drawn, config) if wants_picture else None,
    )
    write_result(file, result)
    write_atomic(file.with_suffix(".md"), clusters_table(result))
    logger.info("results: %s", file)
    return result


def _embedded(
    labelled: LabelledSet, columns: Sequence[Column], config: ClusterConfig
) -> tuple[list[Embeddings], dict[str, str]]:
    """The embeddings of each column, and why clips could not be read."""
    corpus = labelled.corpus(channel=config.channel)
    found = [
        embed_corpus(
            column.variants[0],
            corpus,
            title=f"{labelled.spec.name}, {column.name}",
            cache=_cache(config),
            workers=config.workers,
            batch_seconds=config.batch_seconds or scoring_seconds(),
            sha256=column.sha256,
        )
        for column in columns
    ]
    return found, dict(rejected_clips(labelled, corpus, found))


def _scored(
    column: Column, features: Tensor, numbers: NDArray[np.int64], config: ClusterConfig
) -> dict[str, Any]:
    """Scores of one column, of clips (n, D) with the numbers of their classes (n,)."""
    started = time.monotonic()
    own = score_clusters(
        features,
        numbers,
        normalisation=config.normalise,
        num_seeds=config.seeds,
        seed=config.seed,
    )
    return {
        "dim": column.variants[0].dim,
        "encoder_sha256": column.sha256,
        **own,
        "seconds": round(time.monotonic() - started, 2),
    }


def _classes_on_map(labelled: LabelledSet, config: ClusterConfig) -> list[str]:
    """Those of `classes` or `first_classes`; the most frequent where neither is given."""
    named = config.classes
    if config.first_classes:
        require(not named, "classes", named, "left out where first_classes= is given")
        named = sorted(set(labelled.labels))[: config.first_classes]
    return clusters.chosen_classes(labelled.labels, named)


def _picture(
    labelled: LabelledSet,
    positions: NDArray[np.int64],
    features: dict[str, Tensor],
    classes: list[str],
    config: ClusterConfig,
) -> dict[str, Any]:
    """The map of those clips, of the features (n, D) of each column, whose class is drawn."""
    labels = [labelled.labels[position] for position in positions]
    where = np.flatnonzero(np.isin(labels, classes))
    logger.info("UMAP of %d clips of %d classes", min(len(where), config.points), len(classes))
    where, picture = clusters.draw(
        features, where, limit=config.points, normalisation=config.normalise, seed=config.seed
    )
    return picture | {
        "classes": classes,
        "clips": [labelled.clips[position] for position in positions[where]],
        "rows": labelled.rows[positions[where]].tolist(),
        "labels": [classes.index(labels[i]) for i in where],
        "folder": str(labelled.folder.resolve()),
    }


def _out(config: ClusterConfig) -> Path:
    return Path(config.out) if config.out else beside(config.encoder, "clusters")


def _cache(config: ClusterConfig) -> Path:
    return Path(config.cache) if config.cache else beside(config.encoder, "probe") / "embeddings"


def _wants_picture(config: ClusterConfig) -> bool:
    if config.umap == "auto":
        if not clusters.can_draw() and process_state().is_main:
            logger.warning("no picture is drawn: umap-learn is missing; %s", clusters.INSTALL)
        return clusters.can_draw()
    if config.umap == "true" and not clusters.can_draw():
        raise ValueError(
            f"umap=true needs umap-learn, which is not installed; {clusters.INSTALL}, or leave it "
            "out with umap=false"
        )
    return config.umap == "true"


def _positions(labelled: LabelledSet, config: ClusterConfig) -> NDArray[np.int64]:
    """Positions of the clips that take part, in the order of the corpus."""
    taken = np.arange(len(labelled.clips))
    if config.part != "all":
        taken = np.unique(np.concatenate([split.test for split in labelled.splits]))
    return taken[np.argsort(labelled.rows[taken], kind="stable")]
