"""Parameters -> optimiser."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn


def decay_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices and kernels decay; norms, biases, scalars and positions do not.

    The names that `model.no_weight_decay()` lists (of any submodule having it) do not decay.
    """
    exempt = _spared(model)
    decay, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_plain = parameter.ndim < 2 or name in exempt
            (plain if is_plain else decay).append(parameter)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def layer_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    layer_decay: float,
    scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """`decay_groups` by depth, each with the `lr_scale` that multiplies its learning rate.

    Args:
        model: with timm's `group_matcher`.
        weight_decay: as in `decay_groups`.
        layer_decay: factor from each block to the one before it; 1 for none. The head has 1, the
            final norm one factor, the last block two.
        scales: beginnings of names -> further factor of those parameters.

    Source: Clark et al. 2020 (ELECTRA) and Bao et al. 2022 (BEiT); depths as timm counts them.
    """
    from timm.models import group_parameters

    matcher = cast(Any, model).group_matcher(coarse=False)
    depth = cast(dict[str, int], group_parameters(model, matcher, reverse=True))
    last, exempt = max(depth.values()), _spared(model)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = [factor for start, factor in (scales or {}).items() if name.startswith(start)]
        scale = layer_decay ** (last - depth[name]) * (own[0] if own else 1.0)
        is_plain = parameter.ndim < 2 or name in exempt
        group = groups.setdefault(
            (scale, is_plain),
            {"params": [], "weight_decay": 0.0 if is_plain else weight_decay, "lr_scale": scale},
        )
        group["params"].append(parameter)
    return list(groups.values())


def _spared(model: nn.Module) -> set[str]:
    """Names that any submodule's `no_weight_decay` lists."""
    spared: set[str] = set()
    for prefix, module in model.named_modules():
        names = getattr(module, "no_weight_decay", None)
        if callable(names):
            listed = cast(Iterable[str], names())
            spared |= {f"{prefix}.{name}" if prefix else name for name in listed}
    return spared


def build_optimizer(
    model: nn.Module,
    *,
    name: str,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    momentum: float,
    groups: list[dict[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """The optimiser over `groups` or `decay_groups`, fused where the device has it.

    Args:
        model: whose parameters it moves.
        name: "adamw" or "sgd".
        lr: learning rate, which the schedule then sets anew every step.
        weight_decay: for matrices and kernels; decoupled for "adamw", added to the gradient for
            "sgd", as the papers that use them do.
        betas: decay rates of "adamw".
        momentum: of "sgd".
        groups: of parameters, by default those of `decay_groups`.

    Raises:
        ValueError: for another name.
    """
    fused = next(model.parameters()).is_cuda
    chosen: Any = groups or decay_groups(model, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(chosen, lr=lr, betas=betas, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(chosen, lr=lr, momentum=momentum, fused=fused)
    raise ValueError(f"optimiser must be adamw or sgd, got {name!r}")


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> dict[str, torch.Tensor]:
    """The optimiser's state by parameter name, as flat tensors for a checkpoint."""
    return {
        f"{name}|{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None  # SGD without momentum keeps nothing
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
