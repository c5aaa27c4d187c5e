"""Which weights of a fine-tuning are kept: the validation part decides, and it alone."""

import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ssmast.audio import Corpus
from ssmast.classifier import Classifier, Outputs
from ssmast.evaluation.evaluate import EventRules, PartScores, part_scores
from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.model import Backbone
from ssmast.training.finetune.network import classification_loss

logger = logging.getLogger(__name__)

_PREFIX = "valid/"


class Best(NamedTuple):
    """The weights that scored best on the validation part so far.

    Attributes:
        weights: name -> tensor of the network.
        score: theirs.
        loss: theirs; decides between scores that are equal.
        step: optimiser steps done by then.
    """

    weights: dict[str, Tensor]
    score: float
    loss: float
    step: int


_BEST_FACTS, _COUNT = "|highest,score,loss,step", "|count"


class KeptWeights(nn.Module):
    """What a validation may keep, on the CPU whatever trains; its state dict holds all of it.

    Args:
        num_clips: that a score is of.
        standard_errors: below the highest score within which the loss decides; 0: the highest
            score, the loss only between equals. Few clips say little by the share they get right,
            and more by how sure of it they are.

    Attributes:
        best: of all validations; None before the first.
        first: before the first step, where they were scored; else None.
        num_averaged: networks in the average.
    """

    def __init__(self, *, num_clips: int = 1, standard_errors: float = 0.0) -> None:
        super().__init__()
        self._num_clips, self._standard_errors = num_clips, standard_errors
        self._highest = -math.inf
        self.best: Best | None = None
        self.first: dict[str, Tensor] | None = None
        self.num_averaged = 0
        self._average: dict[str, Tensor] = {}

    def keep_if_best_(self, network: nn.Module, *, score: float, loss: float, step: int) -> None:
        """Keep the weights that were just scored, if nothing before was as good.

        The score is at most 1, and the higher the better; the loss the lower the better.

        Source: Breiman et al. 1984, the rule of one standard error; that of a share of n clips.
        """
        if step == 0:
            self.first = _copy(network)
        self._highest = max(self._highest, score)
        spread = math.sqrt(max(0.0, self._highest * (1 - self._highest)) / self._num_clips)
        lowest = self._highest - self._standard_errors * spread
        if score < lowest:
            return
        if self.best is not None and self.best.score >= lowest:
            if self._standard_errors and loss >= self.best.loss:
                return
            if not self._standard_errors and (score, -loss) <= (self.best.score, -self.best.loss):
                return
        self.best = Best(_copy(network), score, loss, step)

    def average_(self, network: nn.Module) -> None:
        """Take the weights into the plain average."""
        self.num_averaged += 1
        for name, tensor in _copy(network).items():
            mean = self._average.setdefault(name, torch.zeros_like(tensor, dtype=torch.float64))
            mean += (tensor.double() - mean) / self.num_averaged

    def averaged(self, network: nn.Module) -> dict[str, Tensor]:
        """The average, in the network's own types; empty where there is none."""
        own = network.state_dict()
        return {name: mean.to(own[name].dtype) for name, mean in self._average.items()}

    def between(self, weights: dict[str, Tensor], *, share: float) -> dict[str, Tensor]:
        """Weights on the straight line from the first ones to others, a share of the way along."""
        assert self.first is not None
        return {
            name: torch.lerp(first, weights[name].to(first), share)
            if first.is_floating_point()
            else weights[name]
            for name, first in self.first.items()
        }

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """`best.NAME`, `first.NAME`, `average.NAME` and their numbers, as far as there are any."""
        parts: dict[str, dict[str, Tensor]] = {}
        if self.first is not None:
            parts["first"] = self.first
        if self.best is not None:
            facts = torch.tensor([self._highest, *self.best[1:]], dtype=torch.float64)
            parts["best"] = {**self.best.weights, _BEST_FACTS: facts}
        if self.num_averaged:
            parts["average"] = {**self._average, _COUNT: torch.tensor([self.num_averaged])}
        for part, tensors in parts.items():
            destination.update({f"{prefix}{part}.{name}": t for name, t in tensors.items()})

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take over what `state_dict` gave."""
        parts: dict[str, dict[str, Tensor]] = {"first": {}, "best": {}, "average": {}}
        for key, tensor in state_dict.items():
            if key.startswith(prefix):
                part, _, name = key.removeprefix(prefix).partition(".")
                parts[part][name] = tensor
        self.first, best, average = parts["first"] or None, parts["best"], parts["average"]
        if best:
            self._highest, score, loss, step = best.pop(_BEST_FACTS).tolist()
            self.best = Best(best, score, loss, int(step))
        if average:
            self.num_averaged, self._average = int(average.pop(_COUNT)), average


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


class Tuned(Protocol):
    """What a validation needs of what is trained."""

    kept: KeptWeights
    outputs: Outputs

    @property
    def scored(self) -> Backbone:
        """The network that is validated and kept."""
        ...

    def classifier(self, network: Backbone) -> Classifier:
        """A network in use."""
        ...


class Validation:
    """Scores the network as it would be kept; a `Watcher` of the loop.

    Args:
        tuned: what is trained, and keeps the best weights.
        found: the labelled set.
        corpus: of the whole set.
        positions: in the set, of the validation clips.
        metric: that decides.
        every: steps between scores.
        average_from: step after which weights go into the average.
        batch_seconds: audio scored at once.
        from_start: score before the first step too.
        events: rules by which events are scored too; None to leave them out.
        history: lines of metrics.jsonl so far; steps that have scores are not scored again.
    """

    def __init__(
        self,
        tuned: Tuned,
        *,
        found: LabelledSet,
        corpus: Corpus,
        positions: Any,
        metric: str,
        every: int,
        average_from: float,
        batch_seconds: float,
        from_start: bool = False,
        events: EventRules | None = None,
        history: Iterable[dict[str, Any]] = (),
    ) -> None:
        self.tuned, self.found, self.corpus, self.positions = tuned, found, corpus, positions
        self.metric, self.every, self.batch_seconds = metric, every, batch_seconds
        self.average_from = average_from
        self.from_start, self.events = from_start, events
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
        kept, scored = self.tuned.kept, self.tuned.scored
        kept.keep_if_best_(scored, score=numbers[self.metric], loss=numbers["loss"], step=step)
        if step > self.average_from:
            kept.average_(scored)
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
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            part = part_scores(
                self.tuned.classifier(self.tuned.scored),
                self.found,
                self.corpus,
                self.positions,
                title="validation",
                batch_seconds=self.batch_seconds,
                events=self.events,
            )
        return {**part.numbers, "loss": self._loss(part)}

    def _loss(self, part: PartScores) -> float:
        """Mean over the clips in nats, the heads' summed; of the mean probability of windows."""
        outputs = self.tuned.outputs
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
