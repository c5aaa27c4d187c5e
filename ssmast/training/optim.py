"""Step -> learning rate, parameters -> optimiser, and weights and gradients of several passes."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed
from lightly.utils.scheduler import cosine_warmup_schedule
from torch import Tensor, nn

from ssmast.model.attention import product_type
from ssmast.model.block import PoolingAttention
from ssmast.training.config import Optim


def learning_rate(optim: Optim, step: int, *, steps: int) -> float:
    """Linear warm-up to `optim.lr`, then a cosine down to `optim.min_lr` at the last step.

    A pure function: a resumed run asks for the same step and gets the same value.
    """
    return cosine_warmup_schedule(
        step,
        max_steps=steps,
        start_value=optim.lr,
        end_value=optim.min_lr,
        warmup_steps=max(1, round(optim.warmup * steps)),
        warmup_start_value=0.0,
    )


class PassWeights:
    """A network's weights for several passes: cast once, and their gradients added at once.

    Autocast casts weight by weight, those without a gradient again in each pass, and autograd adds
    the gradients of two passes weight by weight: of a base model these are 1,400 kernels in a step,
    here fifty. The numbers are the same, but for tables of positions, whose gradient is rounded to
    the type of the products, as that of every other weight is.
    """

    def __init__(self, network: nn.Module, passes: int) -> None:
        places = [
            (module, name, weight)
            for module in network.modules()
            for name, weight in module._parameters.items()
            if weight is not None
        ]
        # Those that learn first: only they go through the graph.
        self._places = sorted(places, key=lambda place: not place[2].requires_grad)
        weights = [weight for *_, weight in self._places]
        num = sum(weight.requires_grad for weight in weights)
        types = [
            product_type(weight) if isinstance(module, _IN_PRODUCTS) else weight.dtype
            for module, _, weight in self._places
        ]
        fixed = _cast(weights[num:], types[num:])
        handed = cast(Sequence[Tensor], _Handed.apply(passes, types[:num], *weights[:num]))
        self._sets = [
            [*handed[num * number : num * (number + 1)], *fixed] for number in range(passes)
        ]

    @contextlib.contextmanager
    def of(self, number: int) -> Iterator[None]:
        """Within it the network computes with the weights of that pass."""
        # What torch.func.functional_call does, without its checks, which take milliseconds.
        for (module, name, _), weight in zip(self._places, self._sets[number], strict=True):
            module._parameters[name] = cast(nn.Parameter, weight)
        try:
            yield
        finally:
            for module, name, weight in self._places:
                module._parameters[name] = weight


_IN_PRODUCTS = (nn.Linear, nn.Conv2d, PoolingAttention)  # modules whose own weights autocast casts


class _Handed(torch.autograd.Function):
    """Weights -> those of each pass, cast; the gradients of all passes, added and cast back."""

    @staticmethod
    def forward(
        ctx: Any, passes: int, types: list[torch.dtype], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.passes, ctx.types = passes, [weight.dtype for weight in weights]
        ctx.set_materialize_grads(False)
        ready = _cast(weights, types)
        return tuple(weight.detach() for _ in range(passes) for weight in ready)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        num = len(ctx.types)
        total = list(grads[:num])
        for start in range(num, num * ctx.passes, num):
            total = _added(total, grads[start : start + num])
        found = [index for index, grad in enumerate(total) if grad is not None]
        ready = _cast([cast(Tensor, total[i]) for i in found], [ctx.types[i] for i in found])
        for index, grad in zip(found, ready, strict=True):
            total[index] = grad
        return None, None, *total


def _cast(tensors: Sequence[Tensor], types: Sequence[torch.dtype]) -> list[Tensor]:
    """Each in its type, all in a few kernels."""
    ready = [
        each.detach() if each.dtype == dtype else torch.empty_like(each, dtype=dtype)
        for each, dtype in zip(tensors, types, strict=True)
    ]
    pairs = [(new, old) for new, old in zip(ready, tensors, strict=True) if new.dtype != old.dtype]
    if pairs:
        copy_ = cast(Any, torch)._foreach_copy_  # as torch's own optimisers call it
        copy_([new for new, _ in pairs], [old.detach() for _, old in pairs])
    return ready


def _added(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Sums of two lists, those of a type in a few kernels; None is nothing."""
    total: list[Tensor | None] = []
    both: dict[torch.dtype, list[tuple[int, Tensor, Tensor]]] = {}
    for place, (one, other) in enumerate(zip(first, second, strict=True)):
        total.append(one if other is None else other)
        if one is not None and other is not None:
            both.setdefault(one.dtype, []).append((place, one, other))
    for triples in both.values():
        places, ones, others = zip(*triples, strict=True)
        for place, value in zip(places, cast(Any, torch)._foreach_add(ones, others), strict=True):
            total[place] = value
    return total


class GradientSum:
    """Adds gradients in float64, so that their order does not matter.

    A float64 holds the sum of a few float32 numbers nearly always exactly. So a step gives the
    same bits whichever process computed which micro-batch; a sum in float32, as that of
    DistributedDataParallel, depends on how the clips are shared out, and for three or more
    processes also on how its buckets happen to lie.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._total: Tensor | None = None
        self._only: list[Tensor] | None = None  # the first pass', as long as there is no other

    def add_(self) -> None:
        """Take the gradients away from the parameters and add them to the sum."""
        pieces = [_gradient(parameter) for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        if self._total is None and self._only is None:
            self._only = pieces
            return
        for part, piece in zip(self._split(self._sum()), pieces, strict=True):
            part += piece.flatten()

    def _sum(self) -> Tensor:
        if self._only is not None:
            self._total = torch.cat([piece.double().flatten() for piece in self._only])
            self._only = None
        assert self._total is not None
        return self._total

    def write_(self, *, over_processes: bool) -> None:
        """Put the sum, of all processes if asked, back into the parameters' `grad`."""
        if self._only is not None and not over_processes:  # a sum of one is itself
            for parameter, piece in zip(self.parameters, self._only, strict=True):
                parameter.grad = piece
            self._only = None
            return
        total = self._sum()
        if over_processes:
            torch.distributed.all_reduce(total)
        for parameter, part in zip(self.parameters, self._split(total), strict=True):
            parameter.grad = part.to(parameter.dtype).view_as(parameter)
        self._total = None

    def _split(self, flat: Tensor) -> list[Tensor]:
        return list(flat.split([parameter.numel() for parameter in self.parameters]))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def decay_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
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


def build_optimizer(groups: list[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    """The optimiser of `optim.*` over groups of parameters, fused where the device has it.

    Weight decay is decoupled for AdamW and added to the gradient for SGD, as the papers that use
    them do.
    """
    fused = next(tensor for group in groups for tensor in group["params"]).is_cuda
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, fused=fused)
    first, second = optim.betas
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(first, second), fused=fused)


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
