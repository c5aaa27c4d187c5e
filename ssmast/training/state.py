"""What a training is made of, and what a checkpoint keeps of it.

A checkpoint holds all that the next step depends on, and nothing else. Every process has the same
state: the same weights, the same queues (they take in the clips of all processes), and no generator
(every draw follows from seed and position). So one set of files serves any number of processes.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ssmast.settings import to_dict
from ssmast.training.checkpoint import Tensors, load_checkpoint, save_checkpoint
from ssmast.training.objective import Objective
from ssmast.training.optim import (
    build_optimizer,
    encoder_matrices,
    load_optimizer_,
    optimizer_tensors,
)
from ssmast.training.run_folder import RunFolder, changed_settings
from ssmast.version import __version__

_OWN = "objective"  # file of the tensors that the objective holds itself


class SavedState:
    """An objective (moved to the accelerator's device), its optimiser and its place in the run.

    Attributes:
        step: optimiser steps done, the run's only counter.
    """

    def __init__(self, objective: Objective[Any, Any, Any], accelerator: Accelerator) -> None:
        self.objective, self.accelerator = objective.to(accelerator.device), accelerator
        self.config = objective.config
        self.steps, self.step = objective.run.steps, 0
        if wants_compile(self.config.compile, accelerator.device):
            objective.compile_()
        self.optimizer = build_optimizer(
            objective.parameter_groups(), self.config.optim, matrices=encoder_matrices(objective)
        )
        # With fp16 alone: small gradients would be zero there. `train_step` skips what the scaler
        # would skip, and reads it once: both see the same gradients.
        self.scaler: torch.amp.GradScaler | None = accelerator.scaler

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
        facts = {"steps": self.steps, "mixed_precision": precision, "settings": settings}
        return {**facts, **self._data_hashes}

    @functools.cached_property
    def _data_hashes(self) -> dict[str, str]:
        """Hashes of what the run learns from; empty in an objective that is tried without data."""
        data = self.objective.run.data
        if data is None:
            return {}
        return {"corpus": data.clips.listing_hash, "labels": data.labels_sha256}


def check_state(state: dict[str, Any], now: dict[str, Any], *, path: Path) -> None:
    """Refuse a checkpoint that this run would not resume to the same bits.

    Args:
        state: of the checkpoint: `steps`, `mixed_precision`, `settings`; `corpus` and `labels`,
            which checkpoints of earlier versions lack.
        now: the same of this run.
        path: of the checkpoint, for the message.

    Raises:
        ValueError: naming every setting that differs, or saying that the data do.
    """
    changed = changed_settings(state["settings"], now["settings"])
    if state["steps"] != now["steps"]:
        changed.append(f"steps (was {state['steps']}, now {now['steps']})")
    was, comes_to = ({"no": "fp32"}.get(p := each["mixed_precision"], p) for each in (state, now))
    if was != comes_to:  # "auto" of another device
        changed.append(f"precision (came to {was}, now to {comes_to})")
    if changed:
        raise ValueError(
            f"checkpoint {path} belongs to a run with other settings: {'; '.join(changed)}; "
            "use those again or start afresh with resume=never in another run="
        )
    for key, what in (("corpus", "other audio"), ("labels", "other labels or another split")):
        if key in state and key in now and state[key] != now[key]:
            raise ValueError(
                f"checkpoint {path} belongs to a run on {what}; give the data= that it was "
                "trained on, or start afresh with resume=never in another run="
            )


def wants_compile(asked: str, device: torch.device) -> bool:
    """Whether `compile=` comes to yes: "auto" where Triton makes kernels for the device."""
    if asked != "auto":
        return asked == "true"
    has_triton = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return has_triton and torch.cuda.get_device_capability(device) >= (7, 0)
