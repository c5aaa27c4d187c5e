"""Supervised fine-tuning as a trainer: its state, its step, its numbers, its checkpoint.

Weights set aside while a network trains: the first, the best so far, and a plain average.
"""

import copy
import math
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ssmast.audio import ClipAugment, LogMel, keyed_uniform
from ssmast.classifier import Classifier, Outputs, window_log_mels
from ssmast.contrastive import ema_update_
from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.model import Backbone
from ssmast.training.build import optimizer_of
from ssmast.training.checkpoint import Tensors
from ssmast.training.finetune.config import FinetuneConfig, settled
from ssmast.training.finetune.network import (
    HEAD_PARTS,
    HeadLayers,
    classification_loss,
    features_of,
)
from ssmast.training.objective import BaseTrainer
from ssmast.training.optim import GradientSum, layer_groups, load_optimizer_, optimizer_tensors


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


_AUGMENT_STREAM = 0


class Inputs(NamedTuple):
    """One micro-batch, ready for the network.

    Attributes:
        log_mel: normalised (B, 1, F, T).
        lengths: frames of each clip int64 (B,); None where all have T.
        targets: shares of each class (B, C).
    """

    log_mel: Tensor
    lengths: Tensor | None
    targets: Tensor


class Finetuning(BaseTrainer[FinetuneConfig]):
    """A network with heads on labelled clips.

    Args:
        config: settings of the run, resolved.
        accelerator: device, processes, precision.
        log_mel: front end with mean and std.
        network: backbone with `HeadLayers`.
        found: the labelled set.
        positions: in the set, of the clips that are trained on, in the corpus' order.
        num_valid: clips that are validated on.
        steps: optimiser steps of the whole run.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        *,
        accelerator: Accelerator,
        log_mel: LogMel,
        network: Backbone,
        found: LabelledSet,
        positions: Tensor,
        num_valid: int,
        steps: int,
    ) -> None:
        super().__init__(config, accelerator=accelerator, log_mel=log_mel, steps=steps)
        self.found, self.positions = found, positions
        self.network = self.model = network.to(self.device)
        self.ema = copy.deepcopy(self.network).requires_grad_(False) if config.optim.ema else None
        self.outputs = Outputs(
            [(head.name, head.classes) for head in found.heads], found.multi_label
        )
        clips = config.clips
        self.augment = ClipAugment(
            time_shift=clips.time_shift,
            noise_std=clips.noise_std,
            freq_mask=settled(clips.freq_mask),
            time_mask=clips.time_mask,
        )
        groups = layer_groups(
            self.network,
            weight_decay=config.optim.weight_decay,
            layer_decay=settled(config.optim.layer_decay),
            scales=_head_scales(config.heads.lr_scale, self.outputs.sizes),
        )
        self.optimizer = optimizer_of(config, self.network, groups=groups)
        self.kept = KeptWeights(num_clips=num_valid, slack=config.scoring.one_se_rule)

    # -- one step ------------------------------------------------------------------------------

    @property
    def is_frozen(self) -> bool:
        """True while only the heads learn."""
        return self.step < round(self.config.heads.freeze * self.steps)

    def train_step(self, micro_batches: list[dict[str, Any]]) -> dict[str, Any]:
        """One optimiser step on this process' share of the batch; returns values to log.

        No clip looks at another one, and gradients are summed exactly: any cut of the batch into
        processes and micro-batches gives the same numbers.
        """
        frozen = self.is_frozen
        self.network.train(not frozen)
        self.optimizer.zero_grad(set_to_none=True)
        inputs = [self.make_inputs(micro) for micro in micro_batches]
        if self.config.heads.standardize and not self.layers.is_calibrated:
            self._calibrate_(inputs)
        total = sum(len(one.log_mel) for one in inputs) * self.accelerator.num_processes
        sums = GradientSum(self.network.parameters())
        losses, hits = [], []
        for micro, (log_mel, lengths, targets) in zip(micro_batches, inputs, strict=True):
            self.seed_draws_(int(micro["position"][0]))
            with self.accelerator.autocast():
                features = features_of(self.network, log_mel, lengths=lengths, frozen=frozen)
                logits = self.layers(features)
            loss = classification_loss(
                logits,
                targets,
                sizes=self.outputs.sizes,
                multi_label=self.outputs.multi_label,
                smoothing=settled(self.config.heads.smoothing),
            )
            (loss.sum() / total).backward()
            sums.add_()
            losses.append(loss.detach())
            hits.append(self._hits(logits.detach(), targets))
        sums.write_(over_processes=self.accelerator.num_processes > 1)
        if frozen:  # zeros would still decay the weights and age the optimiser's averages
            for name, parameter in self.network.named_parameters():
                if not name.startswith(HEAD_PARTS):
                    parameter.grad = None
        loss = self.gather(torch.cat(losses)).mean()
        moved = self.move_(loss)
        if moved["skipped"]:
            return moved
        self.step += 1
        if self.ema is not None:
            ema_update_(self.ema, self.network, self._ema_decay())
        return {"loss": loss, "train_accuracy": self.gather(torch.cat(hits)).mean(), **moved}

    @torch.no_grad()
    def make_inputs(self, micro: dict[str, Any]) -> Inputs:
        """Waveforms (B, S) -> augmented, normalised log-mels and their targets."""
        log_mel, lengths = window_log_mels(
            self.log_mel,
            micro["waveform"].to(self.device, non_blocking=True),
            micro["samples"],
            fewest=self.network.fewest_frames,
            fast=True,
        )
        draws = keyed_uniform(
            self.config.seed,
            micro["epoch"].numpy(),
            micro["clip"].numpy(),
            _AUGMENT_STREAM,
            self.augment.num_draws,
        )
        log_mel = self.augment(log_mel, draws=torch.from_numpy(draws), lengths=lengths)
        own, other = (self.found.one_hot(self.positions[micro[key]]) for key in ("clip", "partner"))
        share = micro["share"][:, None]
        return Inputs(log_mel, lengths, ((1 - share) * own + share * other).to(self.device))

    @torch.no_grad()
    def _calibrate_(self, inputs: list[Inputs]) -> None:
        """Centre and scale what the heads see by the whole first batch, over all processes."""
        features = [
            features_of(self.network, one.log_mel, lengths=one.lengths, frozen=True).float()
            for one in inputs
        ]
        self.layers.calibrate_(self.gather(torch.cat(features)))
        self.start_average_()

    def start_average_(self) -> None:
        """Let the moving average begin at the network as it is."""
        if self.ema is not None:
            self.ema.load_state_dict(self.network.state_dict())

    def _hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """1 for each clip whose highest score, of every head, is its largest share; float (B,)."""
        sizes = [targets.shape[1]] if self.outputs.multi_label else self.outputs.sizes
        rows = zip(logits.split(sizes, 1), targets.split(sizes, 1), strict=True)
        right = [
            wanted.gather(1, own.argmax(1, keepdim=True))[:, 0] >= wanted.amax(1)
            for own, wanted in rows
        ]
        return torch.stack(right).all(dim=0).float()

    def _ema_decay(self) -> float:
        """Smaller in the first steps, so that the random heads are soon forgotten."""
        return min(self.config.optim.ema, (1 + self.step) / (10 + self.step))

    def measure(self, values: dict[str, Any]) -> dict[str, Any]:
        """A step's tensors as numbers."""
        names = ("loss", "train_accuracy", "grad_norm")
        return {**{name: float(values[name]) for name in names}, "lr": values["lr"]}

    # -- what is scored and kept -----------------------------------------------------------------

    @property
    def layers(self) -> HeadLayers:
        """The linear layers of the network."""
        return cast(HeadLayers, self.network.get_classifier())

    @property
    def scored(self) -> Backbone:
        """The network that is validated and kept: the average of the weights where there is one."""
        return self.network if self.ema is None else self.ema

    def classifier(self, network: Backbone) -> Classifier:
        """A network in use."""
        return Classifier(
            network,
            self.log_mel,
            outputs=self.outputs,
            frames=self.config.clips.frames,
            max_windows=self.config.scoring.max_windows,
        )

    # -- checkpoints -----------------------------------------------------------------------------

    def tensors(self) -> Tensors:
        """Networks, optimiser, the best weights and the average."""
        parts = {
            "network": self.network.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.network),
        }
        if self.ema is not None:
            parts["ema"] = self.ema.state_dict()
        return parts | self.kept.tensors()

    def load_tensors_(self, tensors: Tensors) -> None:
        """Take over what `tensors` gave."""
        self.network.load_state_dict(tensors["network"])
        load_optimizer_(self.optimizer, self.network, tensors["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(tensors["ema"])
        self.kept.load_(tensors)


def _head_scales(scales: list[float], sizes: list[int]) -> dict[str, float]:
    """Beginning of the names of each head's parameters -> factor of their learning rate.

    Raises:
        ValueError: if there are neither one nor as many as heads.
    """
    if len(scales) not in (1, len(sizes)):
        raise ValueError(
            f"heads.lr_scale must be one number or {len(sizes)}, one for each head, got {scales}"
        )
    each = scales if len(scales) == len(sizes) else scales * len(sizes)
    heads = {f"head.fc.layers.{i}.": scale for i, scale in enumerate(each)}
    return {**heads, "head.": max(each), "attn_pool.": max(each)}
