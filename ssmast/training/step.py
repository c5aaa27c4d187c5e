"""One optimiser step of any objective."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ssmast.audio.segments import SegmentBatch
from ssmast.training.objective import Objective, Step, StepLoss
from ssmast.training.optim import GradientSum, learning_rate
from ssmast.training.state import SavedState

# A forward pass moves their buffers.
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


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


class TrainingState(SavedState):
    """`SavedState` that moves on, a step at a time; `loop.run_loop` makes time pass."""

    def __init__(self, objective: Objective[Any, Any, Any], accelerator: Accelerator) -> None:
        super().__init__(objective, accelerator)
        # Looked for once: each look goes through all modules, and a step has milliseconds.
        self._parameters = list(objective.parameters())
        self._norms = [part for part in objective.modules() if isinstance(part, _BATCH_NORMS)]
        objective.train()
        self._training = [part for part in objective.modules() if part.training]

    def train_step(self, segments: SegmentBatch) -> StepResult:
        """One optimiser step on this process' share of the batch.

        A step whose loss or gradient is not finite (on all processes alike) is skipped: it counts,
        since the place in the data moves on, but nothing that is learnt does.
        """
        objective = self.objective
        micros = segments.split(self.config.optim.gradient_accumulation_steps)
        views = [objective.views(micro, self.step) for micro in micros]
        step = self._place(segments)
        if not all(part.training for part in self._training):  # a score in between left some so
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
        heads = [parameter for parameter in self._parameters if parameter.grad is not None]
        if not self.accelerator.is_main_process:
            self.optimizer.zero_grad(set_to_none=True)  # the heads': every process has the same
        sums = self._gradient_sum()
        sums.send_(heads)
        share = sum(len(piece) for piece in pieces)
        first = self.accelerator.process_index * share
        gradients = embeddings.grad[first : first + share].split([len(p) for p in pieces])
        # The last piece first: it alone kept its graph, and no other is made before that is freed.
        for pair, gradient in zip(reversed(pairs), reversed(gradients), strict=True):
            piece = pieces.pop()
            again = piece if piece.requires_grad else self._embed(*pair)
            del piece
            with sums.piece(last=not pieces):
                again.backward(gradient)
                del again
        sums.write_()
        return _detached(loss, embeddings.detach())

    def _per_clip(self, micros: list[SegmentBatch], views: list[Any], step: Step) -> StepLoss:
        """Mean loss of the clips, a micro-batch at a time, and its gradient."""
        objective, losses = self.objective, []
        sums = self._gradient_sum()
        num = len(micros) * self.accelerator.num_processes
        for micro, view in zip(micros, views, strict=True):
            embeddings = self._embed(micro, view)
            with torch.no_grad(), self.accelerator.autocast():
                targets = objective.targets(view)
            loss = objective.loss(embeddings, targets, self._place(micro, gathered=False))
            with sums.piece(last=micro is micros[-1]):
                self._backward(loss.loss / num)
            losses.append(_detached(loss))
        sums.write_()
        return _merged(losses, self.gather)

    def _gradient_sum(self) -> GradientSum:
        return GradientSum(self._parameters, over_processes=self.accelerator.num_processes > 1)

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
        ids = segments.clip if segments.ids is None else segments.ids
        ids = ids.to(self.accelerator.device, non_blocking=True)
        return Step(number=self.step, ids=self.gather(ids) if gathered else ids, gather=self.gather)

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows of all processes, one after the other."""
        if self.accelerator.num_processes == 1:
            return tensor
        return cast(Tensor, self.accelerator.gather(tensor))


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
