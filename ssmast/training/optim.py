"""Parameters -> optimiser."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn


def decay_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices and kernels decay; norms, biases, scalars and positions do not.

    The names that `model.no_weight_decay()` lists (of any submodule having it) do not decay.
    """
    exempt: set[str] = set()
    for prefix, module in model.named_modules():
        names = getattr(module, "no_weight_decay", None)
        if callable(names):
            listed = cast(Iterable[str], names())
            exempt |= {f"{prefix}.{name}" if prefix else name for name in listed}
    decay, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_plain = parameter.ndim < 2 or name in exempt
            (plain if is_plain else decay).append(parameter)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def build_adamw(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW over `decay_groups`, fused where the device has it."""
    fused = next(model.parameters()).is_cuda
    groups = decay_groups(model, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> dict[str, torch.Tensor]:
    """The optimiser's state by parameter name, as flat tensors for a checkpoint."""
    return {
        f"{name}|{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Take over what `optimizer_tensors` gave.

    Raises:
        ValueError: if a parameter of the checkpoint is not one of the model.
    """
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("|")
        if name not in parameters:
            raise ValueError(f"the checkpoint's optimiser has {name!r}, which the model lacks")
        parameter = parameters[name]
        # AdamW keeps its step counter on the CPU unless it is fused on a GPU.
        on_cpu = key == "step" and not optimizer.defaults.get("fused")
        optimizer.state[parameter][key] = value if on_cpu else value.to(parameter.device)
