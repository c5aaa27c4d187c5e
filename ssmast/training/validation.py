"""The validation part, scored every so many steps; the best weights by it alone are kept."""

import logging
import time
from collections.abc import Iterable
from typing import Any

import torch

from ssmast.audio import Corpus
from ssmast.evaluation.evaluate import PartScores, part_scores
from ssmast.evaluation.labelled import LabelledSet
from ssmast.training.finetune_network import classification_loss
from ssmast.training.finetuning import Finetuning

logger = logging.getLogger(__name__)

_PREFIX = "valid/"


class Validation:
    """Scores the network as it would be kept; a `Watcher` of the loop.

    Args:
        trainer: keeps the best weights.
        found: the labelled set.
        corpus: of the whole set.
        positions: in the set, of the validation clips.
        metric: that decides.
        every: steps between scores.
        batch_seconds: audio scored at once.
        from_start: score before the first step too.
        history: lines of metrics.jsonl so far; steps that have scores are not scored again.
    """

    def __init__(
        self,
        trainer: Finetuning,
        *,
        found: LabelledSet,
        corpus: Corpus,
        positions: Any,
        metric: str,
        every: int,
        batch_seconds: float,
        from_start: bool = False,
        history: Iterable[dict[str, Any]] = (),
    ) -> None:
        self.trainer, self.found, self.corpus, self.positions = trainer, found, corpus, positions
        self.metric, self.every, self.batch_seconds = metric, every, batch_seconds
        self.from_start = from_start
        self._done = {row["step"] for row in history if any(key.startswith(_PREFIX) for key in row)}

    def is_due(self, step: int, *, steps: int) -> bool:
        """True at every multiple of `every` and at the end, once each."""
        if step in self._done or (step == 0 and not self.from_start):
            return False
        return step % self.every == 0 or step == steps

    def run(self, *, step: int) -> dict[str, float]:
        """Score, keep the weights if they are the best, take them into the average."""
        started = time.monotonic()
        numbers = self.score()
        trainer = self.trainer
        kept, optim = trainer.kept, trainer.config.optim
        kept.keep_if_best_(
            trainer.scored, score=numbers[self.metric], loss=numbers["loss"], step=step
        )
        if step > (1 - optim.average) * trainer.steps:
            kept.average_(trainer.scored)
        self._done.add(step)
        best = kept.best
        assert best is not None
        logger.info(
            "validation at step %d: %s %.4f, best %.4f at step %d (%.1f s)",
            *(step, self.metric, numbers[self.metric], best.score, best.step),
            time.monotonic() - started,
        )
        return {f"{_PREFIX}{name}": value for name, value in numbers.items()}

    def score(self) -> dict[str, float]:
        """The numbers of the network that is scored, as its weights are now, and its `loss`."""
        trainer = self.trainer
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            part = part_scores(
                trainer.classifier(trainer.scored),
                self.found,
                self.corpus,
                self.positions,
                title="validation",
                batch_seconds=self.batch_seconds,
            )
        return {**part.numbers, "loss": self._loss(part)}

    def _loss(self, part: PartScores) -> float:
        """Mean over the clips in nats, the heads' summed; of the mean probability of windows."""
        outputs = self.trainer.outputs
        losses = classification_loss(
            part.scores,
            self.found.one_hot(part.positions),
            sizes=outputs.sizes,
            multi_label=outputs.multi_label,
        )
        return float(losses.mean())

    def shown(self, scores: dict[str, float]) -> dict[str, str]:
        """`valid=0.81`."""
        value = scores.get(f"{_PREFIX}{self.metric}")
        return {} if value is None else {"valid": f"{value:.3f}"}
