"""Score a frozen encoder on labelled sets, beside an untrained twin and log-mel statistics.

    ssmast probe encoder=runs/mine/encoder data=FOLDER_OF_LABELLED_SETS
    python linear_eval/run.py encoder=DIR data=DIR tasks=[fsdd,speech:label=speaker,split=by_speaker]
    python linear_eval/run.py encoder=DIR data=DIR tasks=fsdd:protocol=leave_one_out:speaker

One JSON file a task, results.md and report.html go to `out`; tasks done there are not done again.
"""

import hashlib
import json
import logging
import os
import re
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ssmast.audio import Corpus, open_corpus
from ssmast.encoder import Encoder, load_encoder, random_twin
from ssmast.evaluation.baselines import LogMelStatistics
from ssmast.evaluation.embed import Embedder, embed_corpus
from ssmast.evaluation.metrics import get_metric
from ssmast.evaluation.probe import PROTOCOLS, run_probe
from ssmast.evaluation.processes import process_state
from ssmast.evaluation.report import write_report
from ssmast.evaluation.table import results_table
from ssmast.evaluation.tasks import Task, find_tasks, load_task, split_names, without
from ssmast.settings import UsageError, parse, setting, wants_dry_run

logger = logging.getLogger(__name__)

# Part of what decides whether a result still stands: raise it when a probe would give another.
VERSION = 1
LOG_MEL = "log_mel"
_MOST_CLASSES_SHOWN = 100


@dataclass
class ProbeConfig:
    """`ssmast probe`: frozen encoder -> numbers."""

    encoder: str = setting("", "encoder folder, Hub name, or log_mel for the statistics alone")
    data: str = setting("", "folder of labelled sets (sub-folders with metadata.csv), or one set")
    tasks: str = setting("all", "all, or [a,b:label=COLUMN,split=COLUMN,group=COLUMN]")
    out: str = setting("", "folder of results; empty: probe/ beside the encoder folder")
    protocol: str = setting("linear", "linear, logreg, knn or evar")
    metric: str = setting("accuracy", "accuracy or balanced_accuracy")
    seeds: int = setting(5, "repetitions of the linear probes")
    seed: int = setting(0, "the first of them; also that of the untrained twin's weights")
    baselines: bool = setting(True, "score an untrained twin and log-mel statistics too")
    pooling: str = setting("", "another pooling than the encoder folder's: mean, mean+max, freq+max")
    layers: str = setting("", "other layers than the folder's: last, stages, blocks")
    workers: int = setting(0, "threads that decode audio; 0: one a core, at most 8")
    batch_seconds: float = setting(0.0, "audio embedded at once; 0: 60, on a GPU 600")
    cache: str = setting("", "folder of kept embeddings; empty: embeddings/ in out")

    def __post_init__(self) -> None:
        """Refuse what no run can mean."""
        if self.protocol not in PROTOCOLS:
            raise UsageError(
                f"protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}"
            )
        if self.seeds < 1:
            raise UsageError(f"seeds must be at least 1, got {self.seeds}")
        try:
            get_metric(self.metric)
        except ValueError as error:
            raise UsageError(str(error)) from error


def main(argv: list[str]) -> int:
    """`ssmast probe`: parse, run, print the table."""
    config = parse(ProbeConfig, argv, command="ssmast probe", description=__doc__ or "")
    if config is None:
        return 0
    if wants_dry_run(argv):
        for task in _load_tasks(config):
            parts = " + ".join(
                f"{len(split.train)}/{len(split.valid)}/{len(split.test)}" for split in task.splits
            )
            sys.stdout.write(f"{task.spec}: {len(task.classes)} classes, train/valid/test {parts}\n")
        return 0
    results = run_suite(config)
    if process_state().is_main_process:
        sys.stdout.write(results_table(results))
    return 0


def run_suite(config: ProbeConfig) -> list[dict[str, Any]]:
    """Score the encoder on every task; returns what the JSON files hold.

    Under `accelerate launch` the processes share the embedding; the first one probes and has the
    results, the others return an empty list.

    Raises:
        ValueError, FileNotFoundError: one sentence saying what to change.
    """
    tasks = _load_tasks(config)
    state = process_state()
    embedders = _embedders(config, state.device)
    out = out_folder(config)
    cache = Path(config.cache) if config.cache else out / "embeddings"
    if state.num_processes > 1:
        # Embed all first: nobody then waits for the first process to fit its probes.
        for task in tasks:
            _embed_all(config, embedders, task, open_corpus(task.folder), cache)
        if not state.is_main_process:
            return []
    results = []
    for number, task in enumerate(tasks, start=1):
        corpus = open_corpus(task.folder)
        inputs = _inputs_sha256(config, embedders, task, corpus)
        file = out / f"{_slug(str(task.spec))}.{config.protocol}.json"
        result = _read_result(file, inputs)
        if result is None:
            logger.info("task %d of %d: %s", number, len(tasks), task.spec)
            result = _score(config, embedders, task, corpus, cache)
            _write(file, json.dumps({**result, "inputs_sha256": inputs}, indent=1) + "\n")
        else:
            logger.info("task %d of %d: %s, done before", number, len(tasks), task.spec)
        results.append(result)
    _write(out / "results.md", results_table(results))
    write_report(out / "report.html", results=results, title=f"Probe of {config.encoder}")
    logger.info("results: %s", out)
    return results


def out_folder(config: ProbeConfig) -> Path:
    """Where results go: `out`, or probe/ beside the encoder folder."""
    if config.out:
        return Path(config.out)
    folder = Path(config.encoder)
    return folder.resolve().parent / "probe" if folder.is_dir() else Path("probe")


def _load_tasks(config: ProbeConfig) -> list[Task]:
    if not config.data:
        raise UsageError("data= is missing; give a folder of labelled sets")
    names = find_tasks(config.data) if config.tasks == "all" else split_names(config.tasks)
    if not names:
        raise UsageError(f"tasks={config.tasks} names no task; give tasks=all or tasks=[a,b]")
    return [load_task(config.data, name) for name in names]


def _embedders(config: ProbeConfig, device: torch.device) -> dict[str, Embedder]:
    """What is scored, by its column of the table; the first is the one asked for."""
    if not config.encoder:
        raise UsageError("encoder= is missing; give an encoder folder, a Hub name, or log_mel")
    log_mel = LogMelStatistics().to(device)
    if config.encoder == LOG_MEL:
        return {"log_mel": log_mel}
    encoder = load_encoder(config.encoder)
    if config.pooling or config.layers:
        encoder = Encoder(
            encoder.backbone,
            encoder.log_mel,
            pooling=config.pooling or encoder.pooling,
            layers=config.layers or encoder.layers,
            chunk_seconds=encoder.chunk_seconds,
            info=encoder.info,
        )
    encoder = encoder.to(device).eval()
    if not config.baselines:
        return {"pretrained": encoder}
    twin = random_twin(encoder, seed=config.seed)
    return {"pretrained": encoder, "untrained": twin, "log_mel": log_mel}


def _embed_all(
    config: ProbeConfig, embedders: dict[str, Embedder], task: Task, corpus: Corpus, cache: Path
) -> dict[str, tuple[torch.Tensor, dict[int, int], list[tuple[str, str]]]]:
    """Vectors of the task's clips for each embedder."""
    on_gpu = process_state().device.type == "cuda"
    found = {}
    for column, embedder in embedders.items():
        embeddings = embed_corpus(
            embedder,
            corpus,
            title=f"{task.spec.name}, {column}",
            cache=cache,
            workers=config.workers,
            batch_seconds=config.batch_seconds or (600.0 if on_gpu else 60.0),
        )
        where = {int(row): index for index, row in enumerate(embeddings.rows)}
        found[column] = (embeddings.values, where, embeddings.rejected)
    return found


def _score(
    config: ProbeConfig, embedders: dict[str, Embedder], task: Task, corpus: Corpus, cache: Path
) -> dict[str, Any]:
    embedded = _embed_all(config, embedders, task, corpus, cache)
    # All columns are scored on the same clips: those that every one of them could embed.
    lost = {
        clip
        for clip, row in zip(task.clips, task.rows, strict=True)
        if any(int(row) not in where for _, where, _ in embedded.values())
    }
    names = {corpus.name(int(row)) for row in task.rows}
    rejected = sorted(
        {(name, reason) for _, _, bad in embedded.values() for name, reason in bad if name in names}
    )
    if lost:
        logger.warning("%s: %d clips are left out, e.g. %s", task.spec, len(lost), rejected[0])
    task = without(task, lost)
    rows: dict[str, dict[str, Any]] = {}
    for column, (values, where, _) in embedded.items():
        picked = values[torch.tensor([where[int(row)] for row in task.rows])]
        result = run_probe(
            picked.to(process_state().device),
            task,
            protocol=config.protocol,
            metric=config.metric,
            num_seeds=config.seeds,
            seed=config.seed,
        )
        rows[column] = {
            **result.to_dict(),
            "encoder_sha256": embedders[column].sha256,
            "dim": embedders[column].dim,
        }
        logger.info("%s, %s: %.1f %%", task.spec, column, 100 * result.mean)
    main, *others = rows
    for column in others:
        del rows[column]["confusion"]
    facts = _facts(config, embedders[main], task)
    if len(task.classes) > _MOST_CLASSES_SHOWN:
        del rows[main]["confusion"]
        del facts["classes"]
    return {
        **facts,
        **rows[main],
        "column": main,
        "rejected": [list(pair) for pair in rejected],
        "baselines": {column: rows[column] for column in others},
    }


def _facts(config: ProbeConfig, embedder: Embedder, task: Task) -> dict[str, Any]:
    """What was scored on what; counts over folds are means of train and valid, the sum of test."""
    parts = [
        {"name": split.name, **{f"n_{part}": len(rows) for part, rows in split.parts().items()}}
        for split in task.splits
    ]
    counts = {key: [cast(int, part[key]) for part in parts] for key in parts[0] if key != "name"}
    settings = embedder.settings()
    return {
        "task": str(task.spec),
        "protocol": config.protocol,
        "metric": config.metric,
        "encoder": config.encoder,
        "version": version("ssmast"),
        "pooling": settings.get("pooling", "mean+std over time"),
        "layers": settings.get("layers", ""),
        "seed": config.seed,
        "n_train": round(float(np.mean(counts["n_train"]))),
        "n_valid": round(float(np.mean(counts["n_valid"]))),
        "n_test": sum(counts["n_test"]),
        "splits": parts,
        "num_classes": len(task.classes),
        "classes": task.classes,
        "ids_sha256": task.ids_sha256,
        "left_out": task.left_out,
        "num_unseen": task.num_unseen,
    }


def _inputs_sha256(
    config: ProbeConfig, embedders: dict[str, Embedder], task: Task, corpus: Corpus
) -> str:
    """Hash of all that decides the result of a task."""
    parts = {
        "embedders": {
            column: [embedder.sha256, embedder.settings()] for column, embedder in embedders.items()
        },
        "task": [str(task.spec), task.ids_sha256, task.labels_sha256, corpus.fingerprint],
        "probe": [config.protocol, config.metric, config.seeds, config.seed],
        "encoder": config.encoder,
        "version": [VERSION, version("ssmast")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_result(file: Path, inputs: str) -> dict[str, Any] | None:
    """The result of an earlier run with the very same inputs."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("inputs_sha256") == inputs else None


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
