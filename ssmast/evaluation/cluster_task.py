"""Score an encoder by the clusters of a labelled set, and draw them.

    ssmast cluster encoder=runs/mine/encoder data=FOLDER_OF_LABELLED_SETS task=fsdd
    ssmast cluster encoder=DIR data=DIR task=esc50 part=all classes='[Dog bark,Rain]'

k-means looks for as many clusters as the set has classes. Beside the encoder stand an untrained
twin and log-mel statistics, and beside every number its chance level. TASK.clusters.json and
TASK.clusters.md go to `out`; `ssmast report` makes a page of them. Embeddings are shared with
`ssmast probe`.

Scores of clusters as a Markdown table, and how they are put into words.
"""

import hashlib
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmast.audio import open_corpus
from ssmast.evaluation import picture
from ssmast.evaluation.baselines import LOG_MEL, make_columns
from ssmast.evaluation.clusters import NORMALISATIONS, normalise, score_clusters
from ssmast.evaluation.embed import TaskEmbeddings, embed_corpus, rejected_clips
from ssmast.evaluation.labelled_set import Task, load_task
from ssmast.evaluation.processes import process_state, scoring_seconds
from ssmast.evaluation.results import TITLES, beside, result_file, write_text
from ssmast.settings import Settings, UsageError, parse, setting, wants_dry_run
from ssmast.version import __version__

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


def clusters_table(results: list[dict[str, Any]]) -> str:
    """Markdown of what `run_clusters` returns: one row an encoder, chance below each task."""
    lines = [
        markdown_row(["task", "encoder", *CLUSTER_TITLES.values(), *SILHOUETTES.values()]),
        markdown_row(["---"] * 2 + ["---:"] * (len(CLUSTER_TITLES) + len(SILHOUETTES))),
    ]
    for result in results:
        task = str(result["task"])
        for name, column in result["columns"].items():
            cells = [spread_text(column, key) for key in CLUSTER_TITLES]
            cells += [f"{column['silhouette'][labels][by]:.3f}" for labels, by in SILHOUETTES]
            lines.append(markdown_row([task, str(TITLES.get(name, name)), *cells]))
        first = result["columns"][result["column"]]
        chance = [f"{first['random'][key]:.3f}" for key in CLUSTER_TITLES]
        chance += [f"{first['silhouette']['random'][by]:.3f}" for _, by in SILHOUETTES]
        lines.append(markdown_row([task, "random labels", *chance]))
    return "\n".join(lines) + "\n" + "".join(f"\n{clusters_note(one)}\n" for one in results)


def clusters_note(result: dict[str, Any]) -> str:
    """What was clustered and how, in one paragraph."""
    first = result["columns"][result["column"]]
    how = {"l2": "scaled to unit length", "standard": "standardised", "raw": "as they are"}
    return (
        f"{result['task']}: {result['n']} clips ({result['part']}) of {result['num_classes']} "
        f"classes; embeddings {how[result['normalisation']]}, {first['dim']} dimensions, pooling "
        f"{result['pooling']}. k-means with {result['num_classes']} clusters from "
        f"{result['num_seeds']} beginnings, the one of least inertia counts; in brackets the least "
        "and the greatest over them. Random labels: the same partitions shuffled; homogeneity and "
        "completeness are not nought by chance."
    )


def spread_text(column: dict[str, Any], key: str) -> str:
    """`0.412 (0.380 to 0.431)`: of the best clustering, and over all seeds."""
    values = [row[key] for row in column["seeds"]]
    text = f"{column['kmeans'][key]:.3f}"
    return text if len(values) < 2 else f"{text} ({min(values):.3f} to {max(values):.3f})"


def markdown_row(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


logger = logging.getLogger(__name__)

PARTS = ("test", "all")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Settings):
    """`ssmast cluster`: a frozen encoder and classes to scores and a map."""

    encoder: str = setting("", "encoder folder or Hub name", required=True)
    data: str = setting("", "folder of labelled sets, or one set", required=True)
    task: str = setting(
        "", "set in `data`, with other columns if wanted: NAME:label=COLUMN", required=True
    )
    part: str = setting("test", "clips to use: test (with folds: every clip) or all", choices=PARTS)
    classes: list[str] = setting([], "classes on the map; empty: the 20 most frequent")
    normalise: str = setting("l2", "normalisation of the embeddings", choices=NORMALISATIONS)
    seeds: int = setting(5, "runs of k-means; the one of lowest inertia counts", range="[1, inf)")
    seed: int = setting(0, "first seed, also that of the untrained encoder and of the map")
    baselines: bool = setting(
        True, "also score the same encoder untrained (random weights) and log-mel statistics"
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
    workers: int = setting(
        0, "threads that decode audio; 0: one for each core, at most 8", range="[0, inf)"
    )
    batch_seconds: float = setting(
        0.0, "seconds of audio embedded at once; 0: 20, on a GPU 600", range="[0, inf)"
    )


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
    if config.encoder == LOG_MEL:
        raise UsageError(
            "encoder= must be an encoder folder or a Hub name, got log_mel; its statistics stand "
            "beside every encoder anyway"
        )
    if wants_dry_run(argv):
        task = load_task(config.data, config.task)
        sys.stdout.write(f"{task.spec}: {len(task.classes)} classes, {len(_taken(task, config))} "
                         f"clips, to {_out(config)}\n")  # fmt: skip
        return 0
    result = run_clusters(config)
    if process_state().is_main:
        sys.stdout.write(clusters_table([result]))
    return 0


def run_clusters(config: ClusterConfig) -> dict[str, Any]:
    """Embed, cluster, score and draw one task; returns what the JSON file holds.

    Raises:
        ValueError, FileNotFoundError: one sentence saying what to change.
    """
    wants_picture = _wants_picture(config)
    task = load_task(config.data, config.task)
    if task.multi_label:
        raise ValueError(
            f"the clips of {config.task!r} have several labels each, so they are no partition to "
            "compare clusters with; choose another label column or set"
        )
    classes = picture.chosen_classes(task.labels, config.classes) if wants_picture else []
    embedded, rows, facts = _embed(config, task)
    if not process_state().is_main:
        return {}
    label_of = dict(zip(task.rows.tolist(), task.labels, strict=True))
    labels = [label_of[row] for row in rows]
    names, numbers = np.unique(labels, return_inverse=True)
    columns: dict[str, dict[str, Any]] = {}
    for name, features in embedded.items():
        started = time.monotonic()
        scores = score_clusters(
            features,
            numbers,
            normalisation=config.normalise,
            num_seeds=config.seeds,
            seed=config.seed,
        )
        seconds = round(time.monotonic() - started, 2)
        columns[name] = {**facts["columns"][name], **scores.to_dict(), "seconds": seconds}
        logger.info(
            "%s, %s: adjusted Rand index %.3f", task.spec, name, scores.kmeans["adjusted_rand"]
        )
    result = {
        "kind": "clusters",
        "task": str(task.spec),
        "part": config.part,
        "n": len(labels),
        "num_classes": len(names),
        "classes": names.tolist(),
        "normalisation": config.normalise,
        "num_seeds": config.seeds,
        "seed": config.seed,
        "encoder": config.encoder,
        "data": config.data,
        "version": __version__,
        **facts,
        "columns": columns,
    }
    if wants_picture:
        result["picture"] = _picture(config, task, embedded, rows, labels, classes)
    file = result_file(_out(config), task, "clusters")
    write_text(file, json.dumps(result) + "\n")
    write_text(file.with_suffix(".md"), clusters_table([result]))
    logger.info("results: %s", file)
    return result


def _out(config: ClusterConfig) -> Path:
    return Path(config.out) if config.out else beside(config.encoder, "clusters")


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


def _taken(task: Task, config: ClusterConfig) -> list[int]:
    """Rows of the corpus that take part, in order."""
    if config.part == "all":
        return sorted(task.rows.tolist())
    return sorted({int(task.rows[index]) for split in task.splits for index in split.test})


def _embed(
    config: ClusterConfig, task: Task
) -> tuple[dict[str, Tensor], list[int], dict[str, Any]]:
    """Vectors of the clips that every column could embed, their rows, and what to say of them."""
    columns = make_columns(
        config.encoder, protocol="linear", pooling="", layers="", baselines=config.baselines,
        seed=config.seed, device=process_state().device,
    )  # fmt: skip
    corpus = open_corpus(task.folder)
    cache = Path(config.cache) if config.cache else beside(config.encoder, "probe") / "embeddings"
    found = {
        column.name: embed_corpus(
            column.variants[0],
            corpus,
            title=f"{task.spec.name}, {column.name}",
            cache=cache,
            workers=config.workers,
            batch_seconds=config.batch_seconds or scoring_seconds(),
            sha256=column.sha256,
        )
        for column in columns
    }
    lost = dict(rejected_clips(task, corpus, [TaskEmbeddings(one) for one in found.values()]))
    name_of = dict(zip(task.rows.tolist(), task.clips, strict=True))
    taken = _taken(task, config)
    rows = [row for row in taken if name_of[row] not in lost]
    rejected = sorted([name_of[row], lost[name_of[row]]] for row in set(taken) - set(rows))
    if rejected:
        logger.warning("%s: %d clips are left out; the first: %s", task.spec, len(rejected),
                       rejected[0][1])  # fmt: skip
    vectors = {
        name: one.values[torch.from_numpy(np.searchsorted(one.rows, rows))]
        for name, one in found.items()
    }
    ids = "".join(f"{corpus.name(row)}\n" for row in rows)
    settings = columns[0].variants[0].settings()
    return vectors, rows, {
        "ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
        "pooling": settings["pooling"],
        "layers": settings["layers"],
        "column": columns[0].name,
        "columns": {
            column.name: {"dim": column.variants[0].dim, "encoder_sha256": column.sha256}
            for column in columns
        },
        "rejected": rejected,
    }  # fmt: skip


def _picture(
    config: ClusterConfig,
    task: Task,
    embedded: dict[str, Tensor],
    rows: list[int],
    labels: list[str],
    classes: list[str],
) -> dict[str, Any]:
    """What the scatter on the page shows."""
    where = picture.chosen_clips(labels, classes, limit=config.points, seed=config.seed)
    clips = dict(zip(task.rows.tolist(), task.clips, strict=True))
    number = {name: index for index, name in enumerate(classes)}
    logger.info("UMAP of %d clips of %d classes", len(where), len(classes))
    features = {
        name: normalise(values[torch.tensor(where)], config.normalise)
        for name, values in embedded.items()
    }
    return {
        "n_neighbors": picture.N_NEIGHBORS,
        "min_dist": picture.MIN_DIST,
        "seed": config.seed,
        "classes": classes,
        "clips": [clips[rows[i]] for i in where],
        "rows": [rows[i] for i in where],
        "labels": [number[labels[i]] for i in where],
        "num_candidates": sum(label in number for label in labels),
        "folder": str(task.folder.resolve()),
        "columns": picture.draw(features, seed=config.seed),
    }
