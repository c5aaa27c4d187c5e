"""Does it learn? The tables of RESULTS.md: pretrain in every way, several seeds each, and score.

    python benchmarks/results.py                                      on the built-in corpus
    python benchmarks/results.py pool=FOLDER data=SETS page=RESULTS.md
    python benchmarks/results.py pool=FOLDER data=SETS parts=[modes]  one of its tables

`pool` is audio without labels, `data` a folder of labelled sets. Every run is `recipe=real_nano`
and the words that its row names, on one thread; `jobs` of them run side by side. What is done
is not done again. Two cores take 140 minutes by the sum of its pieces. Writes
results.json, and the tables into `page` between the comments that name them.
"""

import json
import logging
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssmast.command import run_command
from ssmast.encoder import load_encoder
from ssmast.evaluation.baselines import random_twin
from ssmast.evaluation.metrics import t_interval
from ssmast.evaluation.suite import ProbeConfig, run_suite
from ssmast.files import write_atomic
from ssmast.settings import Settings, UsageError, parse, setting
from ssmast.training.inputs import built_in_corpus

logger = logging.getLogger(__name__)

# What each part pretrains: row -> words beside the recipe's. "" is the untrained encoder.
PARTS: dict[str, dict[str, list[str]]] = {
    "modes": {
        "SS-MAST": ["patch_drop.rate=0"],
        "SS-MAST + patch-drop, random": ["patch_drop.mode=random"],
        "SS-MAST + patch-drop, structured": [],
    },
    "settings": {
        "the recipe": [],
        "the poster's head, loss, teacher, optimiser, views": [
            *("head.kind=linear", "head.predictor=0", "head.norm=none"),
            *("loss.temperature=0.07", "loss.batch_negatives=false"),
            *("teacher.momentum=0.999", "teacher.final_momentum=0.999"),
            *("optim.name=sgd", "optim.lr=0.03", "optim.min_lr=0.03", "optim.warmup=0"),
            *("optim.weight_decay=1e-4", "optim.max_grad_norm=0"),
            *("views.segments=1", "views.mixup_rate=0.4", "views.mixup_memory=2048"),
            *("views.crop_freq=[0.6,1.5]", "patch_drop.mode=random"),
        ],
        "views stretched in frequency too (BYOL-A)": ["views.crop_freq=[0.6,1.5]"],
        "one segment for both views": ["views.segments=1"],
        "negatives: batch alone": ["loss.queue_size=0"],
        "negatives: queue of 576 alone": ["loss.batch_negatives=false"],
        "negatives: queue of 4096 and batch": ["loss.queue_size=4096"],
    },
    "long": {"SS-MAST + patch-drop, structured": []},
}


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    pool: str = setting("", "audio to pretrain on, as `ssmast pretrain data=` takes it")
    data: str = setting("", "folder of labelled sets; empty, as pool: the built-in corpus")
    tasks: str = setting("all", "all or [a,b:label=COLUMN], as `ssmast probe` takes them")
    parts: list[str] = setting(list(PARTS), "tables to make", choices=PARTS)
    steps: int = setting(150, "optimiser steps of a row of modes and settings")
    long_steps: int = setting(3200, "steps of part long")
    seeds: int = setting(3, "pretraining seeds of a row of modes; settings have one")
    long_seeds: int = setting(1, "pretraining seeds of part long")
    jobs: int = setting(2, "pretraining runs side by side, one thread each")
    out: str = setting("runs/results", "folder of runs, probes and results.json")
    page: str = setting("", "page whose tables are written; empty: none")


@dataclass(frozen=True)
class Run:
    """One pretraining: its folder, and the words that make it."""

    folder: Path
    words: tuple[str, ...]


def main(argv: list[str]) -> int:
    """Make the tables."""
    settings = parse(Keys, argv, command="results.py", description=__doc__ or "")
    if settings is None:
        return 0
    if bool(settings.pool) != bool(settings.data):
        raise UsageError("pool= (audio to pretrain on) and data= (labelled sets) go together")
    data = settings.data or str(built_in_corpus(Path(settings.out)))
    settings = replace(settings, data=data)
    plan = {part: planned(settings, part) for part in settings.parts}
    # The long run first: the short ones fill the other places beside it.
    order = sorted(plan, key=lambda part: part != "long")
    runs = {run.folder: run for part in order for row in plan[part].values() for run in row}
    with ThreadPoolExecutor(settings.jobs) as pool:
        list(pool.map(pretrain, runs.values()))
    found = {part: scored(settings, part, rows) for part, rows in plan.items()}
    out = Path(settings.out) / "results.json"
    known = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    write_atomic(out, json.dumps({**known, **found}, indent=1) + "\n")
    tables = {part: table(rows) for part, rows in found.items()}
    for part, markdown in tables.items():
        sys.stdout.write(f"\n{part}\n\n{markdown}")
    if settings.page:
        page = Path(settings.page)
        text = page.read_text(encoding="utf-8")
        for part, markdown in tables.items():
            text = replaced(text, part, markdown)
        write_atomic(page, text)
    return 0


def planned(settings: Keys, part: str) -> dict[str, list[Run]]:
    """The pretraining runs of each row; rows with the same words share theirs."""
    steps = settings.long_steps if part == "long" else settings.steps
    seeds = {"modes": settings.seeds, "long": settings.long_seeds}.get(part, 1)
    rows: dict[str, list[Run]] = {}
    for name, words in PARTS[part].items():
        slug = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:60] or "recipe"
        rows[name] = [
            Run(
                Path(settings.out) / f"{slug}-{steps}-{seed}",
                (
                    *([f"data={settings.pool}"] if settings.pool else []),
                    f"steps={steps}",
                    f"seed={seed}",
                    f"checkpoint_every={max(50, steps // 10)}",
                    *words,
                ),
            )
            for seed in range(seeds)
        ]
    return rows


def pretrain(run: Run) -> None:
    """Pretrain in a process of its own, from where it was broken off, unless it is done.

    Raises:
        ValueError: with the end of what it said, if it fails.
    """
    if (run.folder / "encoder" / "checksums.json").is_file():
        return
    logger.info("pretraining %s", run.folder.name)
    words = ["recipe=real_nano", "threads=1", "resume=auto", f"run={run.folder}"]
    words += [
        "export.pooling=freq+max",
        "export.layers=last",
        *run.words,
    ]  # as the tables were made
    command = [sys.executable, "-m", "ssmast", "pretrain", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: {done.stderr.strip()[-800:]}")


def scored(
    settings: Keys, part: str, rows: dict[str, list[Run]]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Row -> task -> result of each seed; the untrained encoder and log-mel statistics first."""
    first = next(iter(rows.values()))
    twins = []
    for seed in range(max(len(runs) for runs in rows.values())):
        folder = Path(settings.out) / f"untrained-{seed}"
        if not (folder / "checksums.json").is_file():
            random_twin(load_encoder(first[0].folder / "encoder"), seed=seed).save(folder)
        twins.append(folder)
    encoders: dict[str, list[str]] = {
        "log-mel statistics": ["log_mel"],
        "untrained": [str(folder) for folder in twins],
        **{name: [str(run.folder / "encoder") for run in runs] for name, runs in rows.items()},
    }
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, seeds in encoders.items():
        found[name] = {}
        for encoder in seeds:
            slug = Path(encoder).parent.name if encoder.endswith("/encoder") else Path(encoder).name
            logger.info("%s: scoring %s (%s)", part, name, slug)
            results = run_suite(
                ProbeConfig(
                    encoder=encoder,
                    data=settings.data,
                    tasks=settings.tasks,
                    out=str(Path(settings.out) / "probe" / slug),
                    cache=str(Path(settings.out) / "embeddings"),
                    baselines="false",
                )
            )
            for result in (one.to_dict() for one in results):
                kept = (
                    "mean",
                    "ci95",
                    "valid",
                    "n_train",
                    "n_test",
                    "num_classes",
                    "ids_sha256",
                    "dim",
                )
                short = {key: result[key] for key in kept}
                found[name].setdefault(result["task"], []).append(short)
    return found


def table(rows: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Markdown: a row a way to pretrain, a column a task; the interval is over its seeds."""
    tasks = next(iter(rows.values()))
    facts = [results[0] for results in tasks.values()]
    sizes = [
        f"{fact['num_classes']} classes, {fact['n_train']} / {fact['n_test']}" for fact in facts
    ]
    lines = [
        "| | " + " | ".join(map(_narrow, tasks)) + " | **average** | validation |",
        "|---|" + "---:|" * (len(tasks) + 2),
        "| train / test clips | " + " | ".join(sizes) + " | | |",
    ]
    for name, found in rows.items():
        count = len(next(iter(found.values())))
        cells = [
            _cell([result["mean"] for result in results], results[0]["ci95"])
            for results in found.values()
        ]
        average = _cell(_averages(found, "mean"), None)
        valid = _cell(_averages(found, "valid"), None)
        title = f"{name} ({count} seeds)" if count > 1 else name
        lines.append(f"| {title} | " + " | ".join(cells) + f" | **{average}** | {valid} |")
    return "\n".join(lines) + "\n"


def _narrow(task: str) -> str:
    """A task's name on several lines."""
    return re.sub("[:,]", "<br>", task)


def _averages(row: dict[str, list[dict[str, Any]]], key: str) -> list[float]:
    """The average of `key` over the tasks of each seed."""
    seeds = zip(*row.values(), strict=True)
    return [sum(result[key] for result in results) / len(results) for results in seeds]


def _cell(values: list[float], ci95: float | None) -> str:
    """The mean of seeds with its interval; of one seed the interval that its probe gave."""
    mean, half = t_interval(values)
    half = ci95 if len(values) == 1 else half
    return f"{100 * mean:.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def replaced(text: str, part: str, markdown: str) -> str:
    """The page with another table between `<!-- part -->` and `<!-- end of part -->`.

    Raises:
        ValueError: if the page lacks these comments.
    """
    start, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    before, found, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the page needs the lines {start} and {end}, between which a table goes")
    return f"{before}{start}\n\n{markdown}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="results.py"))
