"""One optimiser step of any objective, and the state that a checkpoint keeps.

A checkpoint holds all that the next step depends on, and nothing else. Every process has the same
state: the same weights, the same queues (they take in the clips of all processes), and no generator
(every draw follows from seed and position). So one set of files serves any number of processes.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ssmast.audio.segments import SegmentBatch
from ssmast.settings import to_dict
from ssmast.training.checkpoint import Tensors, load_checkpoint, save_checkpoint
from ssmast.training.objective import Objective, Step, StepLoss
from ssmast.training.optim import (
    GradientSum,
    build_optimizer,
    learning_rate,
    load_optimizer_,
    optimizer_tensors,
)
from ssmast.training.run_folder import RunFolder, changed_settings
from ssmast.version import __version__


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did.

    Attributes:
        loss: of the whole step, without graph.
        grad_norm: before it was clipped.
        lr: learning rate.
        skipped: loss or gradient was not finite, so nothing moved.
        rescaled: with fp16, the gradient was too large for its scale, which has been halved; no
            fault of the clips, and the run needs no attention.
    """

    loss: StepLoss
    grad_norm: Tensor
    lr: float
    skipped: bool
    rescaled: bool = False


class TrainingState:
    """An objective with its optimiser and its place in the run; `loop.run_loop` makes time pass.

    Args:
        objective: moved to the accelerator's device.
        accelerator: device, processes, precision.

    Attributes:
        step: optimiser steps done, the run's only counter.
    """

    def __init__(self, objective: Objective[Any, Any, Any], accelerator: Accelerator) -> None:
        self.objective, self.accelerator = objective.to(accelerator.device), accelerator
        self.config = objective.config
        self.steps, self.step = objective.run.steps, 0
        if wants_compile(self.config.compile, accelerator.device):
            objective.compile_()
        # Looked for once: each look goes through all modules, and a step has milliseconds.
        self._parameters = list(objective.parameters())
        self._norms = [part for part in objective.modules() if isinstance(part, _BATCH_NORMS)]
        self.optimizer = build_optimizer(objective.parameter_groups(), self.config.optim)
        # With fp16 alone: small gradients would be zero there. `train_step` skips what the scaler
        # would skip, and reads it once: both see the same gradients.
        self.scaler: torch.amp.GradScaler | None = accelerator.scaler

    # -- one step --------------------------------------------------------------------------------

    def train_step(self, segments: SegmentBatch) -> StepResult:
        """One optimiser step on this process' share of the batch.

        A step whose loss or gradient is not finite (on all processes alike) is skipped: it counts,
        since the place in the data moves on, but nothing that is learnt does.
        """
        objective = self.objective
        micros = segments.split(self.config.optim.gradient_accumulation_steps)
        views = [objective.views(micro, self.step) for micro in micros]
        step = self._place(segments)
        objective.train()
        objective.before_step(views, step)
        self.optimizer.zero_grad(set_to_none=True)
        statistics = [(each, each.clone()) for norm in self._norms for each in norm.buffers()]
        run = self._per_clip if objective.per_clip else self._whole_batch
        loss = run(micros, views, step)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        limit = self.config.optim.max_grad_norm or float("inf")
        grad_norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        lr = learning_rate(self.config.optim, self.step, steps=self.steps)
        skipped = not bool(loss.loss.isfinite() & grad_norm.isfinite())
        if skipped:
            for buffer, before in statistics:
                buffer.copy_(before)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            self.optimizer.step()
            with torch.no_grad():
                objective.after_step(loss, views, step)
        rescaled = False
        if self.scaler is not None:
            # Below 1 the gradient itself is at fault, not its scale.
            rescaled = skipped and bool(loss.loss.isfinite()) and self.scaler.get_scale() > 1
            self.scaler.update()
        self.step += 1
        return StepResult(loss=loss, grad_norm=grad_norm, lr=lr, skipped=skipped, rescaled=rescaled)

    def _backward(self, loss: Tensor) -> None:
        """Gradient of a loss, times the scale where there is one."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def numbers(self, result: StepResult) -> dict[str, float]:
        """What is logged of a step."""
        if result.rescaled:
            assert self.scaler is not None
            return {"loss": float(result.loss.loss), "loss_scale": self.scaler.get_scale()}
        if result.skipped:
            return {"skipped": True}
        found = self.objective.numbers(result.loss, self.step)
        return {**found, "grad_norm": float(result.grad_norm), "lr": result.lr}

    def _whole_batch(self, micros: list[SegmentBatch], views: list[Any], step: Step) -> StepLoss:
        """Loss of all rows at once, and its gradient.

        The encoder sees the batch in pieces (processes, micro-batches), heads and loss see it
        whole, and targets are frozen within the step: any cut gives the same numbers. Ours and not
        lightly's `gather`, which carries no gradient through micro-batches.

        Source: Gao et al. 2021 (GradCache), section 3.2.
        """
        targets = self._targets(views)  # first: what it needs is free before there is a graph
        # All but the last go without their graph; they run with gradient all the same, for it may
        # choose another attention kernel.
        pairs = list(zip(micros, views, strict=True))
        pieces = [self._embed(*pair).detach() for pair in pairs[:-1]]
        pieces.append(self._embed(*pairs[-1]))
        embeddings = self.gather(torch.cat(pieces).detach()).requires_grad_()
        loss = self.objective.loss(embeddings, targets, step)
        self._backward(loss.loss)
        assert embeddings.grad is not None, "the loss must depend on the embeddings"
        if not self.accelerator.is_main_process:
            self.optimizer.zero_grad(set_to_none=True)  # the heads': every process has the same
        share = sum(len(piece) for piece in pieces)
        first = self.accelerator.process_index * share
        gradients = embeddings.grad[first : first + share].split([len(p) for p in pieces])
        sums = GradientSum(self._parameters)
        # The last piece first: it alone kept its graph, and no other is made before that is freed.
        for pair, gradient in zip(reversed(pairs), reversed(gradients), strict=True):
            piece = pieces.pop()
            again = piece if piece.requires_grad else self._embed(*pair)
            del piece
            again.backward(gradient)
            del again
            sums.add_()
        sums.write_(over_processes=self.accelerator.num_processes > 1)
        return _detached(loss, embeddings.detach())

    def _per_clip(self, micros: list[SegmentBatch], views: list[Any], step: Step) -> StepLoss:
        """Mean loss of the clips, a micro-batch at a time, and its gradient."""
        objective, losses = self.objective, []
        sums = GradientSum(self._parameters)
        num = len(micros) * self.accelerator.num_processes
        for micro, view in zip(micros, views, strict=True):
            embeddings = self._embed(micro, view)
            with torch.no_grad(), self.accelerator.autocast():
                targets = objective.targets(view)
            loss = objective.loss(embeddings, targets, self._place(micro, gathered=False))
            self._backward(loss.loss / num)
            sums.add_()
            losses.append(_detached(loss))
        sums.write_(over_processes=self.accelerator.num_processes > 1)
        return _merged(losses, self.gather)

    def _embed(self, micro: SegmentBatch, views: Any) -> Tensor:
        """Float32 embeddings of a micro-batch; called twice it gives the same.

        Layers draw (stochastic depth) from a seed of the place in the stream, so a second pass sees
        the first one's draws and a resumed run needs no saved generator.
        """
        torch.manual_seed(((self.config.seed << 44) ^ int(micro.position[0])) % 2**63)
        with self.accelerator.autocast():
            return self.objective.embed(views).float()

    @torch.no_grad()
    def _targets(self, views: list[Any]) -> Tensor | None:
        """Targets of the whole step over all processes, float32."""
        with self.accelerator.autocast():
            pieces = [self.objective.targets(view) for view in views]
        return None if pieces[0] is None else self.gather(torch.cat(pieces).float())

    def _place(self, segments: SegmentBatch, *, gathered: bool = True) -> Step:
        ids = segments.clip.to(self.accelerator.device, non_blocking=True)
        return Step(number=self.step, ids=self.gather(ids) if gathered else ids, gather=self.gather)

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows of all processes, one after the other."""
        if self.accelerator.num_processes == 1:
            return tensor
        return cast(Tensor, self.accelerator.gather(tensor))

    # -- checkpoints -----------------------------------------------------------------------------

    def save(self, folder: RunFolder) -> None:
        """Write a checkpoint; of one process alone."""
        places = self.objective.encoder_places()
        save_checkpoint(
            folder.checkpoints,
            self.step,
            tensors=self.tensors(),
            state={
                **self._facts(),
                "version": __version__,
                "encoders": places,
                "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            },
            keep=self.config.keep_checkpoints,
        )

    def load_(self, path: Path) -> None:
        """Resume from a checkpoint.

        Raises:
            ValueError: if it is damaged, of a run with other settings, or of another version.
        """
        state, tensors = load_checkpoint(path)
        if "encoders" not in state:
            raise ValueError(
                f"checkpoint {path} was written by ssmast {state.get('version', '0.1.0')} and "
                f"cannot be resumed by ssmast {__version__}; finish it with that version, or start "
                "from its encoder with init= in another run="
            )
        check_state(state, self._facts(), path=path)
        load_optimizer_(self.optimizer, self.objective, tensors.pop("optimizer", {}))
        own = tensors.pop(_OWN, {})
        named = {f"{child}.{n}": t for child, group in tensors.items() for n, t in group.items()}
        try:
            self.objective.load_state_dict({**own, **named})
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"checkpoint {path} does not fit the networks of this run: {reason}"
            ) from error
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])

    def tensors(self) -> Tensors:
        """One group a child of the objective, and the optimiser's: name -> name -> tensor."""
        groups: Tensors = {}
        for name, tensor in self.objective.state_dict().items():
            child, _, rest = name.partition(".")
            groups.setdefault(child if rest else _OWN, {})[rest or name] = tensor
        return {**groups, "optimizer": optimizer_tensors(self.optimizer, self.objective)}

    def _facts(self) -> dict[str, Any]:
        precision = self.accelerator.mixed_precision
        settings = to_dict(self.config)
        return {"steps": self.steps, "mixed_precision": precision, "settings": settings}


_OWN = "objective"  # file of the tensors that the objective holds itself
# A forward pass moves their buffers.
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_state(state: dict[str, Any], now: dict[str, Any], *, path: Path) -> None:
    """Refuse a checkpoint that this run would not resume to the same bits.

    Args:
        state: of the checkpoint: `steps`, `mixed_precision`, `settings`.
        now: the same of this run.
        path: of the checkpoint, for the message.

    Raises:
        ValueError: naming every setting that differs.
    """
    changed = changed_settings(state["settings"], now["settings"])
    changed += changed_settings({**state, "settings": 0}, {**now, "settings": 0})
    if changed:
        raise ValueError(
            f"checkpoint {path} belongs to a run with other settings: {'; '.join(changed)}; "
            "use those again or start afresh with resume=never in another run="
        )


def wants_compile(asked: str, device: torch.device) -> bool:
    """Whether `compile=` comes to yes: "auto" where Triton makes kernels for the device."""
    if asked == "auto":
        has_triton = importlib.util.find_spec("triton") is not None
        return (
            device.type == "cuda"
            and has_triton
            and torch.cuda.get_device_capability(device) >= (7, 0)
        )
    return asked == "true"


def _detached(loss: StepLoss, embeddings: Tensor | None = None) -> StepLoss:
    """Without graph; the embeddings of all views one after the other where it has none."""
    values = {field.name: getattr(loss, field.name) for field in fields(loss)}
    tensors = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
    if embeddings is not None and loss.embeddings is None:
        rows = embeddings if embeddings.ndim == 2 else torch.cat(embeddings.unbind(1))
        tensors["embeddings"] = rows.flatten(1)
    return replace(loss, **tensors)


def _merged(losses: list[StepLoss], gather: Callable[[Tensor], Tensor]) -> StepLoss:
    """Of the micro-batches of all processes: numbers averaged, rows one after the other."""
    merged: dict[str, Tensor] = {}
    for field in fields(losses[0]):
        values = [getattr(loss, field.name) for loss in losses]
        if isinstance(values[0], Tensor):
            rows = torch.cat(values) if values[0].ndim else torch.stack(values)
            merged[field.name] = gather(rows) if values[0].ndim else gather(rows).mean()
    return replace(losses[0], **merged)
