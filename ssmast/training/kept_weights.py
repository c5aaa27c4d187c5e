"""Weights set aside while a network trains: the first, the best so far, and a plain average."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssmast.training.checkpoint import Tensors


class Best(NamedTuple):
    """The weights that scored best on the validation part so far.

    Attributes:
        weights: name -> tensor of the network.
        score: theirs.
        loss: theirs; decides between scores that are not told apart.
        step: optimiser steps done by then.
    """

    weights: dict[str, Tensor]
    score: float
    loss: float
    step: int


class KeptWeights:
    """What a validation may keep, on the CPU.

    Args:
        num_clips: that a score is of.
        slack: standard errors of the highest score within which the loss decides; 0: the highest
            score, the loss only between equals. Few clips say little by the share they get right,
            and more by how sure of it they are.

    Attributes:
        best: of all validations; None before the first.
        first: before the first step, where they were scored; else None.
        num_averaged: networks in the average.
    """

    def __init__(self, *, num_clips: int = 1, slack: float = 0.0) -> None:
        self._num_clips, self._slack, self._highest = num_clips, slack, -math.inf
        self.best: Best | None = None
        self.first: dict[str, Tensor] | None = None
        self.num_averaged = 0
        self._average: dict[str, Tensor] = {}

    def keep_if_best_(self, network: nn.Module, *, score: float, loss: float, step: int) -> None:
        """Keep the weights that were just scored, if nothing before was as good.

        Args:
            network: that was scored.
            score: of it, the higher the better, at most 1.
            loss: of it, the lower the better.
            step: optimiser steps done.

        Source: Breiman et al. 1984, the rule of one standard error; that of a share of n clips.
        """
        if step == 0:
            self.first = _copy(network)
        self._highest = max(self._highest, score)
        spread = math.sqrt(max(0.0, self._highest * (1 - self._highest)) / self._num_clips)
        lowest = self._highest - self._slack * spread
        if score < lowest:
            return
        if self.best is not None and self.best.score >= lowest:
            if self._slack and loss >= self.best.loss:
                return
            if not self._slack and (score, -loss) <= (self.best.score, -self.best.loss):
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

    def tensors(self) -> Tensors:
        """For a checkpoint."""
        parts: Tensors = {} if self.first is None else {"first": self.first}
        if self.best is not None:
            facts = torch.tensor([self._highest, *self.best[1:]], dtype=torch.float64)
            parts["best"] = {**self.best.weights, "|highest,score,loss,step": facts}
        if self.num_averaged:
            parts["average"] = {**self._average, "|count": torch.tensor([self.num_averaged])}
        return parts

    def load_(self, tensors: Tensors) -> None:
        """Take over what `tensors` gave."""
        self.first = tensors.get("first")
        best, average = dict(tensors.get("best", {})), dict(tensors.get("average", {}))
        if best:
            facts = best.pop("|highest,score,loss,step").tolist()
            self._highest, score, loss, step = facts
            self.best = Best(best, score, loss, int(step))
        if average:
            self.num_averaged = int(average.pop("|count"))
            self._average = average


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
