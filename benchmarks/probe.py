"""The linear probe's whole grid, as one batched problem, against scikit-learn on the same split.

    python benchmarks/probe.py                                # 100,000 x 768, 50 classes
    python benchmarks/probe.py clips=5000 dim=256 rounds=3    # quickly
    python benchmarks/probe.py device=cuda

The embeddings are made: classes around random centres, with noise whose directions differ in
strength as those of real embeddings do; `clips` to train on, a tenth as many each to choose by and
to test on. Ours: 8 points of the grid (learning rate and penalty) x 5 seeds. scikit-learn's:
LogisticRegression with each C of `c_grid`, the best on the validation part, on standardised
features as ours. Both take turns, round by round; medians.

Prints Markdown; writes every number as JSON where `out` says.
"""

import json
import os
import platform
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmast.command import run_command
from ssmast.evaluation.fitting import Part, Problem
from ssmast.evaluation.linear import GRID, LR_GRID, fit_linear
from ssmast.evaluation.metrics import METRICS
from ssmast.settings import Settings, parse, setting


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    clips: int = setting(100_000, "clips of the training part")
    dim: int = setting(768, "length of an embedding")
    classes: int = setting(50, "classes")
    seeds: int = setting(5, "seeds of our probe")
    grid: str = setting("default", "default (2 rates x 4 penalties) or rates (8 learning rates)")
    apart: float = setting(4.0, "distance of the classes; larger is easier")
    c_grid: list[float] = setting([0.003, 0.03, 0.3], "of scikit-learn")
    max_iter: int = setting(100, "of scikit-learn's L-BFGS")
    rounds: int = setting(1, "turns; the median time counts")
    threads: int = setting(0, "0: all cores")
    device: str = setting("cpu", "of our probe; scikit-learn stays on the CPU")
    out: str = setting("", "JSON file of every number")


def main(argv: list[str]) -> int:
    """Measure and print."""
    config = parse(Keys, argv, command="benchmarks/probe.py", description=__doc__ or "")
    if config is None:
        return 0
    if config.threads:
        torch.set_num_threads(config.threads)
    parts = make_parts(config)
    rows: list[dict[str, Any]] = []
    for number in range(config.rounds):
        for measure in (ours, sklearns):
            row = {**measure(config, parts), "round": number}
            rows.append(row)
            sys.stderr.write(f"{row}\n")
    print(table(config, rows))
    if config.out:
        facts = {"settings": asdict(config), "machine": machine(config), "rows": rows}
        Path(config.out).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


def make_parts(config: Keys) -> tuple[Part, Part, Part]:
    """Training, validation and test part, standardised on the first."""
    generator = torch.Generator().manual_seed(0)
    sizes = (config.clips, config.clips // 10, config.clips // 10)
    targets = torch.randint(config.classes, (sum(sizes),), generator=generator)
    centres = config.apart * torch.randn(config.classes, config.dim, generator=generator)
    noise = torch.randn(sum(sizes), config.dim, generator=generator)
    strength = torch.linspace(0, -2, config.dim).exp()  # a factor of 7 between directions
    features = (centres[targets] / config.dim**0.5 + noise) * strength
    train = features[: sizes[0]]
    features = (features - train.mean(dim=0)) / train.std(dim=0)
    one, two, three = zip(features.split(sizes), targets.split(sizes), strict=True)
    return one, two, three


def ours(config: Keys, parts: tuple[Part, Part, Part]) -> dict[str, Any]:
    """The whole grid at once."""
    on_device = [(x.to(config.device), y.to(config.device)) for x, y in parts]
    train, valid, test = on_device
    started = time.perf_counter()
    problem = Problem(train, valid, config.classes, METRICS["accuracy"], seeds=range(config.seeds))
    fitted = fit_linear(problem, grid=LR_GRID if config.grid == "rates" else GRID)
    accuracies = (fitted.scores(test[0]).argmax(dim=2) == test[1]).float().mean(dim=1)
    scores = accuracies.tolist()  # waits for the device
    seconds = time.perf_counter() - started
    return {
        "what": "ssmast", "seconds": seconds, "accuracy": float(np.mean(scores)),
        "scores": scores, "models": 8 * config.seeds, "chosen": fitted.chosen,
    }  # fmt: skip


def sklearns(config: Keys, parts: tuple[Part, Part, Part]) -> dict[str, Any]:
    """One fit for each C."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    def score(model: LogisticRegression, part: tuple[Tensor, Tensor]) -> float:
        return float(model.score(part[0].numpy(), part[1].numpy()))

    train, valid, test = parts
    started, models, each = time.perf_counter(), [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for c in config.c_grid:
            begun = time.perf_counter()
            model = LogisticRegression(C=c, max_iter=config.max_iter)
            models.append(model.fit(train[0].numpy(), train[1].numpy()))
            each.append(time.perf_counter() - begun)
    values = [score(model, valid) for model in models]
    best = values.index(max(values))
    accuracy = score(models[best], test)
    return {
        "what": "scikit-learn", "seconds": time.perf_counter() - started, "accuracy": accuracy,
        "models": len(models), "seconds_each": each, "chosen": {"C": config.c_grid[best]},
        "iterations": [int(max(model.n_iter_)) for model in models],
    }  # fmt: skip


def table(config: Keys, rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        f"{config.clips:,} x {config.dim} embeddings, {config.classes} classes, "
        f"{machine(config)['threads']} threads, ours on {config.device}, rounds: {config.rounds}.",
        "",
        "| | models | seconds | seconds a model | test accuracy (%) | chosen |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for what in ("ssmast", "scikit-learn"):
        mine = [row for row in rows if row["what"] == what]
        seconds, last = median(row["seconds"] for row in mine), mine[-1]
        lines.append(
            f"| {what} | {last['models']} | {seconds:.1f} | {seconds / last['models']:.2f} | "
            f"{100 * last['accuracy']:.2f} | {last['chosen']} |"
        )
    n = max(config.clips // 10, 1)
    first, second = rows[0]["accuracy"], rows[1]["accuracy"]
    spread = 196 * (second * (1 - second) / n) ** 0.5
    lines += ["", f"Difference {100 * (first - second):+.2f}, 95 % interval of {n:,} test clips "
              f"±{spread:.2f} points."]  # fmt: skip
    return "\n".join(lines)


def machine(config: Keys) -> dict[str, Any]:
    """What was measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if config.device.startswith("cuda") else "",
    }


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="benchmarks/probe.py"))
