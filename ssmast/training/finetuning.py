"""Supervised fine-tuning as a trainer: its state, its step, its numbers, its checkpoint."""

import copy
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from ssmast.audio import ClipAugment, LogMel, keyed_uniform
from ssmast.classifier import Classifier, Outputs
from ssmast.contrastive import ema_update_
from ssmast.evaluation.labelled import LabelledSet
from ssmast.model import Backbone
from ssmast.training.build import optimizer_of
from ssmast.training.checkpoint import Tensors
from ssmast.training.finetune_config import FinetuneConfig
from ssmast.training.finetune_network import (
    HEAD_PARTS,
    HeadLayers,
    classification_loss,
    features_of,
)
from ssmast.training.gradients import GradientSum
from ssmast.training.optim import layer_groups, load_optimizer_, optimizer_tensors
from ssmast.training.trainer import BaseTrainer

_AUGMENT_STREAM = 0


class Best(NamedTuple):
    """The weights that scored best on the validation part so far.

    Attributes:
        weights: name -> tensor of the network.
        score: theirs.
        step: optimiser steps done by then.
    """

    weights: dict[str, Tensor]
    score: float
    step: int


class Finetuning(BaseTrainer):
    """The state of a run and its step; `loop.run_loop` makes time pass.

    Args:
        config: settings of the run, resolved.
        accelerator: device, processes, precision.
        log_mel: front end with mean and std.
        network: backbone with `HeadLayers`.
        found: the labelled set.
        positions: in the set, of the clips that are trained on, in the corpus' order.
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
        steps: int,
    ) -> None:
        super().__init__(config, accelerator=accelerator, steps=steps)
        self.config, self.device = config, accelerator.device
        self.log_mel = log_mel.to(self.device)
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
            freq_mask=clips.freq_mask,
            time_mask=clips.time_mask,
        )
        groups = layer_groups(
            self.network,
            weight_decay=config.optim.weight_decay,
            layer_decay=config.optim.layer_decay,
            scales=_head_scales(config.heads.lr_scale, self.outputs.sizes),
        )
        self.optimizer = optimizer_of(config, self.network, groups=groups)
        self.best: Best | None = None
        self.average: dict[str, Tensor] = {}
        self.num_averaged = 0

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
        if self.step == 0 and self.config.heads.standardize:
            self._calibrate_([log_mel for log_mel, _ in inputs])
        total = sum(len(log_mel) for log_mel, _ in inputs) * self.accelerator.num_processes
        sums = GradientSum(self.network.parameters())
        losses, hits = [], []
        for micro, (log_mel, targets) in zip(micro_batches, inputs, strict=True):
            self.seed_draws_(int(micro["position"][0]))
            with self.accelerator.autocast():
                features = features_of(self.network, log_mel, frozen=frozen)
                logits = self.network.get_classifier()(features)
            loss = classification_loss(
                logits,
                targets,
                sizes=self.outputs.sizes,
                multi_label=self.outputs.multi_label,
                smoothing=self.config.heads.smoothing,
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
    def make_inputs(self, micro: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) -> augmented, normalised log-mels and targets (B, C)."""
        waveform = micro["waveform"].to(self.device, non_blocking=True)
        log_mel = self.log_mel.normalize(self.log_mel.log_mel(waveform, fast=True))
        draws = keyed_uniform(
            self.config.seed,
            micro["epoch"].numpy(),
            micro["clip"].numpy(),
            _AUGMENT_STREAM,
            self.augment.num_draws,
        )
        log_mel = self.augment(log_mel, draws=torch.from_numpy(draws))
        own, other = (self.found.one_hot(self.positions[micro[key]]) for key in ("clip", "partner"))
        share = micro["share"][:, None]
        return log_mel, ((1 - share) * own + share * other).to(self.device)

    @torch.no_grad()
    def _calibrate_(self, log_mels: list[Tensor]) -> None:
        """Centre and scale what the heads see by the whole first batch, over all processes."""
        features = [features_of(self.network, log_mel, frozen=True).float() for log_mel in log_mels]
        layers = self.network.get_classifier()
        assert isinstance(layers, HeadLayers)
        layers.calibrate_(self.gather(torch.cat(features)))
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
        return {**{name: float(values[name]) for name in names}, "lr": self.lr}

    # -- what is scored and kept -----------------------------------------------------------------

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

    def keep_if_best_(self, score: float) -> None:
        """Keep the weights that were just scored, if nothing before was as good."""
        if self.best is None or score > self.best.score:
            self.best = Best(_copy(self.scored), score, self.step)

    def average_(self) -> None:
        """Take the weights that are scored into their plain average over validations."""
        if self.step <= (1 - self.config.optim.average) * self.steps:
            return
        self.num_averaged += 1
        for name, tensor in _copy(self.scored).items():
            mean = self.average.setdefault(name, torch.zeros_like(tensor, dtype=torch.float64))
            mean += (tensor.double() - mean) / self.num_averaged

    def averaged(self) -> dict[str, Tensor]:
        """The average of the weights in their own type; empty where there is none."""
        own = self.scored.state_dict()
        return {name: mean.to(own[name].dtype) for name, mean in self.average.items()}

    # -- checkpoints -----------------------------------------------------------------------------

    def tensors(self) -> Tensors:
        """Networks, optimiser, the best weights and the average."""
        parts = {
            "network": self.network.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.network),
        }
        if self.ema is not None:
            parts["ema"] = self.ema.state_dict()
        if self.best is not None:
            facts = torch.tensor([self.best.score, self.best.step], dtype=torch.float64)
            parts["best"] = {**self.best.weights, "|score,step": facts}
        if self.num_averaged:
            parts["average"] = {**self.average, "|count": torch.tensor([self.num_averaged])}
        return parts

    def load_tensors_(self, tensors: Tensors) -> None:
        """Take over what `tensors` gave."""
        self.network.load_state_dict(tensors["network"])
        load_optimizer_(self.optimizer, self.network, tensors["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(tensors["ema"])
        best, average = dict(tensors.get("best", {})), dict(tensors.get("average", {}))
        if best:
            score, step = best.pop("|score,step").tolist()
            self.best = Best(best, score, int(step))
        if average:
            self.num_averaged = int(average.pop("|count"))
            self.average = average


def _copy(network: Backbone) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _head_scales(scales: list[float], sizes: list[int]) -> dict[str, float]:
    """Beginning of the names of each head's parameters -> factor of their learning rate.

    Raises:
        ValueError: if there are neither one nor as many as heads.
    """
    if len(scales) not in (1, len(sizes)) or min(scales) <= 0:
        raise ValueError(
            f"heads.lr_scale must be one number above 0 or {len(sizes)}, one for each head, got "
            f"{scales}"
        )
    each = scales if len(scales) == len(sizes) else scales * len(sizes)
    heads = {f"head.fc.layers.{i}.": scale for i, scale in enumerate(each)}
    return {**heads, "head.": max(each), "attn_pool.": max(each)}
