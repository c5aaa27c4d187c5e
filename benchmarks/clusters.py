"""Scores of clusters at the size of VGGSound's test part: seconds, and against scikit-learn.

    python benchmarks/clusters.py                       # 13,000 x 768, 309 classes
    python benchmarks/clusters.py clips=4000 seeds=1    # quickly

Prints Markdown; writes every number as JSON where `out` says.
"""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssmast.command import run_command
from ssmast.evaluation.clusters import kmeans, normalise, score_clusters, silhouette
from ssmast.settings import Settings, parse, setting


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    clips: int = setting(13_000, "embeddings")
    dim: int = setting(768, "numbers in each")
    classes: int = setting(309, "classes, and clusters looked for")
    seeds: int = setting(5, "beginnings of k-means")
    threads: int = setting(2, "CPU threads")
    rival: bool = setting(True, "time scikit-learn's silhouette and k-means too")
    out: str = setting("", "JSON file")


def main(argv: list[str]) -> int:
    settings = parse(Keys, argv, command="benchmarks/clusters.py", description=__doc__ or "")
    if settings is None:
        return 0
    import faiss

    torch.set_num_threads(settings.threads)
    faiss.omp_set_num_threads(settings.threads)
    features, labels = clouds(settings)
    rows: dict[str, tuple[float, float]] = {}
    start = time.perf_counter()
    scores = score_clusters(features, labels, num_seeds=settings.seeds)
    total = time.perf_counter() - start
    unit = normalise(features, "l2")
    rows["silhouette, Euclidean"] = timed(lambda: silhouette(unit, labels, distance="euclidean"))
    rows["k-means, one beginning"] = timed(lambda: kmeans(unit, settings.classes, seed=0).inertia)
    rivals = sklearn_rows(settings, unit.numpy(), labels) if settings.rival else {}
    size = f"{settings.clips:,} x {settings.dim}, {settings.classes} classes"
    print(f"All scores of {size}, {settings.seeds} beginnings, {settings.threads} threads: "
          f"**{total:.1f} s**\n")  # fmt: skip
    print("| step | ssmast (s) | scikit-learn (s) | ssmast's value | scikit-learn's value |")
    print("|---|---:|---:|---:|---:|")
    for name, (seconds, value) in rows.items():
        theirs = rivals.get(name)
        other = (f"{theirs[0]:.1f}", f"{theirs[1]:.5g}") if theirs else ("", "")
        print(f"| {name} | {seconds:.1f} | {other[0]} | {value:.5g} | {other[1]} |")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    found, chance = scores["kmeans"], scores["random"]["homogeneity"]
    print(f"\nadjusted Rand index {found['adjusted_rand']:.3f}; homogeneity "
          f"{found['homogeneity']:.3f}, by chance {chance:.3f}; "
          f"most memory {memory:,.0f} MB")  # fmt: skip
    if settings.out:
        facts = {"cpu": platform.processor(), "cores": os.cpu_count(), "torch": torch.__version__}
        content = {"settings": vars(settings), **facts, "seconds": total, "steps": rows,
                   "rivals": rivals, "scores": scores}  # fmt: skip
        Path(settings.out).write_text(json.dumps(content, indent=1) + "\n")
    return 0


def clouds(settings: Keys) -> tuple[torch.Tensor, np.ndarray]:
    """Classes as normal clouds that overlap."""
    generator = np.random.default_rng(0)
    labels = np.concatenate(
        [
            np.arange(settings.classes),
            generator.integers(settings.classes, size=settings.clips - settings.classes),
        ]
    )
    centres = generator.standard_normal((settings.classes, settings.dim), dtype=np.float32)
    noise = generator.standard_normal((settings.clips, settings.dim), dtype=np.float32)
    return torch.from_numpy(centres[labels] + 2.5 * noise), labels


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """Seconds and the value."""
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, float(value)


def sklearn_rows(
    settings: Keys, features: np.ndarray, labels: np.ndarray
) -> dict[str, tuple[float, float]]:
    """The same two steps by scikit-learn."""
    from sklearn import metrics
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    def fit() -> Any:
        return KMeans(settings.classes, n_init=1, random_state=0).fit(features).inertia_

    with threadpool_limits(settings.threads):
        return {
            "silhouette, Euclidean": timed(
                lambda: float(metrics.silhouette_score(features, labels))
            ),
            "k-means, one beginning": timed(fit),
        }


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="benchmarks/clusters.py"))
