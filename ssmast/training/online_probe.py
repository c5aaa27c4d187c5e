"""Nearest neighbours and a linear layer on a small labelled set, every so many steps of training.

The scores are those of `ssmast probe` on fewer clips, never on its test part. Every process embeds
a share of the clips and then fits the same probes, so none waits for another for longer than the
machines differ, however long it takes.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ssmast.audio import Corpus
from ssmast.encoder import Encoder
from ssmast.evaluation.baselines import LogMelStatistics
from ssmast.evaluation.embed import embed_corpus
from ssmast.evaluation.find_set import named_tasks
from ssmast.evaluation.labelled_set import LabelledSet, small_sample, without
from ssmast.evaluation.metrics import METRICS
from ssmast.evaluation.probe import KNN, LINEAR, chance, run_probe
from ssmast.evaluation.processes import process_state
from ssmast.evaluation.read_set import load_set

logger = logging.getLogger(__name__)

_PROTOCOLS = (KNN, LINEAR)
_PREFIX = "probe/"


class Watcher(Protocol):
    """What scores the networks now and then, and changes nothing that trains."""

    def is_due(self, step: int, *, steps: int) -> bool:
        """Whether to score after `step` of `steps`."""
        ...

    def run(self, *, step: int) -> dict[str, float]:
        """Scores by name; all processes call it."""
        ...

    def shown(self, scores: dict[str, float]) -> dict[str, str]:
        """The most telling of them, for the progress line."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """A task and the clips it is scored on, row i of the corpus for `task.clips[i]`."""

    task: LabelledSet
    corpus: Corpus


class OnlineProbe:
    """Scores the encoder as it would be exported now; nothing that trains notices.

    Args:
        data: labelled set, or a folder of them.
        tasks: "all" or names of sets, as `ssmast probe` takes them.
        every: steps between scores.
        max_clips: of each set.
        make_encoder: the encoder to export, of the weights as they are.
        channel: of clips that have several.
        history: lines of metrics.jsonl so far; steps that have scores are not scored again.

    Raises:
        ValueError, FileNotFoundError: if a set cannot be used; its audio is read to find out.
    """

    def __init__(
        self,
        *,
        data: str,
        tasks: str,
        every: int,
        max_clips: int,
        make_encoder: Callable[[], Encoder],
        channel: str = "mean",
        history: Iterable[dict[str, Any]] = (),
    ) -> None:
        self._make_encoder, self.every, self._channel = make_encoder, every, channel
        self._samples = [
            self._readable(task) for task in small_tasks(data, tasks=tasks, max_clips=max_clips)
        ]
        self._done = {row["step"] for row in history if any(key.startswith(_PREFIX) for key in row)}

    def is_due(self, step: int, *, steps: int) -> bool:
        """True before the first step, at every multiple of `every` and at the end, once each."""
        return step not in self._done and (step % self.every == 0 or step == steps)

    def run(self, *, step: int) -> dict[str, float]:
        """Test accuracy by protocol and task, 0 to 1, what guessing gives, and the time it took."""
        started = time.monotonic()
        scores: dict[str, float] = {}
        with _generators_kept():
            encoder = self._make_encoder()
            for sample in self._samples:
                name = f"{_PREFIX}{sample.task.spec}"
                scores[f"{name}/chance"] = chance(sample.task, METRICS["accuracy"])
                try:
                    found = self._score(encoder, sample)
                except ValueError as error:  # weights gone astray must not end what watches them
                    logger.warning("no score of %s at step %d: %s", sample.task.spec, step, error)
                    continue
                scores |= {f"{name}/{protocol}": value for protocol, value in found.items()}
        self._done.add(step)
        seconds = time.monotonic() - started
        shown = " ".join(f"{key}={text}" for key, text in scores_shown(scores).items())
        logger.info("probe at step %d: %s (%.1f s)", step, shown, seconds)
        return {**scores, f"{_PREFIX}seconds": round(seconds, 2)}

    def shown(self, scores: dict[str, float]) -> dict[str, str]:
        """`knn=0.52 linear=0.61`, means over the sets."""
        return scores_shown(scores)

    def _score(self, encoder: Encoder, sample: _Sample) -> dict[str, float]:
        """Accuracy by protocol; all processes have the same vectors, so the same errors too."""
        found = embed_corpus(encoder, sample.corpus, title=f"probe {sample.task.spec}")
        task = _without_rejected(sample, found.rows)
        features = found.values.to(process_state().device)
        return {
            protocol.name: run_probe(
                features, task, protocol=protocol, metric=METRICS["accuracy"], num_seeds=1
            ).mean
            for protocol in _PROTOCOLS
        }

    def _readable(self, task: LabelledSet) -> _Sample:
        """The clips of a task that can be read."""
        corpus = task.corpus(channel=self._channel)
        sample = _Sample(task=task, corpus=corpus.take(task.rows))
        found = embed_corpus(LogMelStatistics(), sample.corpus, title=f"reading {task.spec}")
        if found.rejected:
            logger.warning(
                "probe set %s: %d of %d clips are left out; the first: %s",
                *(task.spec, len(found.rejected), len(task.clips), found.rejected[0][1]),
            )
        return _Sample(
            task=_without_rejected(sample, found.rows), corpus=sample.corpus.take(found.rows)
        )


def small_tasks(data: str, *, tasks: str, max_clips: int) -> list[LabelledSet]:
    """What is scored while training; reads tables, no audio.

    Raises:
        ValueError, FileNotFoundError: if a set cannot be used.
    """
    names = named_tasks(data, tasks, key="probe.tasks")
    return [small_sample(load_set(data, name), max_clips=max_clips) for name in names]


def scores_shown(scores: dict[str, float]) -> dict[str, str]:
    """Scores for the progress line: `knn=0.52 linear=0.61`, means over the sets."""
    shown = {}
    for protocol in _PROTOCOLS:
        values = [value for key, value in scores.items() if key.endswith(f"/{protocol.name}")]
        if values:
            shown[protocol.name] = f"{sum(values) / len(values):.3f}"
    return shown


def _without_rejected(sample: _Sample, rows: np.ndarray) -> LabelledSet:
    """The task on the clips that were embedded, `rows` of its corpus."""
    kept = set(rows.tolist())
    return without(sample.task, [c for i, c in enumerate(sample.task.clips) if i not in kept])


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Every global generator of random numbers is afterwards where it was before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
