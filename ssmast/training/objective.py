"""What every objective's trainer is made of: learning rate, guarded step, checkpoint.

An objective adds its networks, its `train_step` and its numbers; `loop.run_loop` makes time pass.

What a checkpoint of SS-MAST holds: all that the next step depends on, and nothing else.

Every process has the same state: the same weights, the same queue and mixup memory (both take in
the clips of all processes), and no generator (every draw follows from seed and position). So one
set of files serves any number of processes.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ssmast.audio import LogMel, MixupMemory
from ssmast.contrastive import KeyQueue, Student, Teacher
from ssmast.settings import to_dict
from ssmast.training.checkpoint import Tensors, load_checkpoint, save_checkpoint
from ssmast.training.config import TrainConfig
from ssmast.training.launch import on_main
from ssmast.training.optim import load_optimizer_, optimizer_tensors, warmup_cosine
from ssmast.training.run_folder import RunFolder, changed_settings


def state_tensors(
    *,
    student: Student,
    teacher: Teacher,
    optimizer: torch.optim.Optimizer,
    queue: KeyQueue,
    memory: MixupMemory,
) -> dict[str, dict[str, Tensor]]:
    """Name of a part -> name -> tensor."""
    return {
        "student": student.state_dict(),
        "teacher": teacher.state_dict(),
        "optimizer": optimizer_tensors(optimizer, student),
        "queue": queue.state(),
        "mixup_memory": memory.state(),
    }


def load_tensors_(
    tensors: dict[str, dict[str, Tensor]],
    *,
    student: Student,
    teacher: Teacher,
    optimizer: torch.optim.Optimizer,
    queue: KeyQueue,
    memory: MixupMemory,
) -> None:
    """Take over what `state_tensors` gave.

    Raises:
        ValueError, RuntimeError: if it was made for other shapes.
    """
    student.load_state_dict(tensors["student"])
    teacher.load_state_dict(tensors["teacher"])
    load_optimizer_(optimizer, student, tensors["optimizer"])
    queue.load_(tensors["queue"])
    memory.load_(tensors["mixup_memory"])


def check_state(state: dict[str, Any], now: dict[str, Any], *, path: Path) -> None:
    """Refuse a checkpoint that this run would not go on from to the same bits.

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


Config = TypeVar("Config", bound=TrainConfig)


class BaseTrainer(ABC, Generic[Config]):
    """The state of a run and its step; `loop.run_loop` makes time pass.

    Networks that an objective builds in its own constructor begin alike on every process.

    Args:
        config: settings of the run.
        accelerator: device, processes, precision.
        log_mel: front end with mean and std.
        steps: optimiser steps of the whole run.

    Attributes:
        model: whose parameters the optimiser moves; set by the objective.
        optimizer: set by the objective; a group's `lr_scale` multiplies the learning rate.
        step: optimiser steps done.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(
        self, config: Config, *, accelerator: Accelerator, log_mel: LogMel, steps: int
    ) -> None:
        self.config, self.accelerator, self.device = config, accelerator, accelerator.device
        self.log_mel = log_mel.to(self.device)
        self.steps, self.step = steps, 0
        torch.manual_seed(config.seed)

    # -- what an objective is --------------------------------------------------------------------

    @abstractmethod
    def train_step(self, micro_batches: list[dict[str, Any]]) -> dict[str, Any]:
        """One optimiser step; `skipped` is True when a non-finite value made it stand still."""

    @abstractmethod
    def measure(self, values: dict[str, Any]) -> dict[str, Any]:
        """Numbers to log, from what `train_step` returned."""

    @abstractmethod
    def tensors(self) -> Tensors:
        """All that the next step depends on: name of a part -> name -> tensor."""

    @abstractmethod
    def load_tensors_(self, tensors: Tensors) -> None:
        """Take over what `tensors` gave."""

    # -- small parts of a step -------------------------------------------------------------------

    @property
    def lr(self) -> float:
        """The learning rate at this step."""
        optim = self.config.optim
        return warmup_cosine(
            self.step,
            steps=self.steps,
            warmup_steps=max(1, round(optim.warmup * self.steps)),
            peak=optim.lr,
            end=optim.min_lr,
        )

    def move_(self, loss: Tensor) -> dict[str, Any]:
        """Clip the gradients and let the optimiser move, unless loss or gradient is not finite.

        Both are the same on all processes, and so is what is decided here. A step that is skipped
        counts: the place in the data moves on; nothing that is learnt does.

        Returns:
            `skipped` and `grad_norm`; of a skipped step also the `loss`, of any other the `lr`.
        """
        limit = self.config.optim.max_grad_norm or float("inf")
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        if not (torch.isfinite(loss) and torch.isfinite(grad_norm)):
            self.step += 1
            return {"skipped": True, "loss": float(loss), "grad_norm": float(grad_norm)}
        lr = self.lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.step()
        return {"skipped": False, "grad_norm": grad_norm, "lr": lr}

    def seed_draws_(self, position: int) -> None:
        """Seed the layers' own draws (stochastic depth) by the place in the stream.

        Every draw then follows from the seed and the place, so a second pass sees the first one's,
        and a resumed run needs no saved generator.
        """
        torch.manual_seed(((self.config.seed << 44) ^ position) % 2**63)

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows of all processes, one after the other."""
        if self.accelerator.num_processes == 1:
            return tensor
        return cast(Tensor, self.accelerator.gather(tensor))

    # -- checkpoints -----------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        precision = self.accelerator.mixed_precision
        settings = to_dict(self.config)
        return {"steps": self.steps, "mixed_precision": precision, "settings": settings}

    def save(self, folder: RunFolder) -> None:
        """Write a checkpoint (main process); all wait for it, and all raise if it fails."""
        on_main(
            self.accelerator,
            lambda: save_checkpoint(
                folder.checkpoints,
                self.step,
                tensors=self.tensors(),
                state=self._facts(),
                keep=self.config.keep_checkpoints,
            ),
        )

    def load_(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: if it is damaged, or of a run with other settings.
        """
        state, tensors = load_checkpoint(path)
        check_state(state, self._facts(), path=path)
        self.load_tensors_(tensors)
        self.step = int(state["step"])
