"""Step -> learning rate, parameters -> optimiser, and weights and gradients of several passes."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed
from lightly.utils.scheduler import cosine_warmup_schedule
from torch import Tensor, nn

from ssmast.model import Backbone
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
        sets: list[list[Tensor]] = [[] for _ in range(passes)]
        for start, stop in _groups(weights[:num]):
            own = weights[start:stop]
            handed = cast(Sequence[Tensor], _Handed.apply(passes, types[start:stop], *own))
            for number, ready in enumerate(sets):
                ready += handed[len(own) * number : len(own) * (number + 1)]
            if handed[0].grad_fn is not None:
                # As early as that of any weight: a step made before the network's would wait for
                # all of them, and no gradient could travel while others are computed.
                cast(Any, handed[0].grad_fn)._set_sequence_nr(_FIRST)
        self._sets = [[*ready, *fixed] for ready in sets]

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


_FIRST = 2**64 - 1  # what PyTorch gives the step that adds to a weight's gradient


def _groups(weights: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """(start, stop) of neighbours, about as many numbers each as travel at once."""
    start = size = 0
    for stop, weight in enumerate(weights, start=1):
        size += weight.numel()
        if size >= _BUCKET or stop == len(weights):
            yield start, stop
            start, size = stop, 0


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
    """Adds gradients of micro-batches in float64, so that their order does not matter.

    A float64 holds the sum of a few float32 numbers nearly always exactly. So on a CPU, where
    processes are added up in float64 too, a step gives the same bits whichever process computed
    which micro-batch; a sum in float32, as that of DistributedDataParallel, depends on how the
    clips are shared out. On a GPU, whose kernels round as they like, processes are added up in
    float32, half as many bytes; the sum of two is the same for all that.

    Args:
        parameters: those that learn are summed.
        over_processes: `write_` gives the sum of all processes. Each bucket of parameters travels
            as soon as its gradients are there, while the backward pass goes on.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, over_processes: bool = False) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.over_processes = over_processes
        self._total: Tensor | None = None
        self._only: list[Tensor] | None = None  # the first pass', as long as there is no other
        self._sent: list[tuple[list[int], Tensor, Any]] = []

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

    @contextlib.contextmanager
    def piece(self, *, last: bool) -> Iterator[None]:
        """Within it is the backward pass of a micro-batch; its gradients are taken away."""
        if not (last and self.over_processes):
            yield
            self.add_()
            return
        gone = {place for places, *_ in self._sent for place in places}
        left = [place for place in range(len(self.parameters)) if place not in gone]
        waiting = self._buckets(left)
        missing = [set(bucket) for bucket in waiting]

        def arrived(number: int, place: int) -> None:
            missing[number].discard(place)
            # In one order, whatever arrives first: it must be that of all processes.
            while waiting and not missing[len(missing) - len(waiting)]:
                self._send(waiting.pop(0))

        handles = [
            self.parameters[place].register_post_accumulate_grad_hook(
                lambda _, number=number, place=place: arrived(number, place)
            )
            for number, bucket in enumerate(waiting)
            for place in bucket
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for bucket in waiting:  # with parameters that this pass did not reach
            self._send(bucket)

    def send_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up over processes what is there of these already; nothing where there is but one."""
        if self.over_processes:
            wanted = set(map(id, parameters))
            places = [i for i, own in enumerate(self.parameters) if id(own) in wanted]
            for bucket in self._buckets(places):
                self._send(bucket)

    def write_(self) -> None:
        """Put the sum back into the parameters' `grad`."""
        if self.over_processes:
            # What is sent early may be reached again, on all processes alike.
            late = [i for i, own in enumerate(self.parameters) if own.grad is not None]
            for bucket in self._buckets(late):
                self._send(bucket)
            for places, flat, work in self._sent:
                work.wait()
                self._put(places, flat)
        elif self._only is not None:  # a sum of one is itself
            for parameter, piece in zip(self.parameters, self._only, strict=True):
                parameter.grad = piece
        else:
            self._put(list(range(len(self.parameters))), self._sum())
        self._total, self._only, self._sent = None, None, []

    def _sum(self) -> Tensor:
        if self._only is not None:
            self._total = torch.cat([piece.double().flatten() for piece in self._only])
            self._only = None
        assert self._total is not None
        return self._total

    def _buckets(self, places: Sequence[int]) -> list[list[int]]:
        """Places in buckets of about one size; the last first, as a backward pass comes by them."""
        buckets: list[list[int]] = []
        size = _BUCKET
        for place in reversed(places):
            if size >= _BUCKET:
                buckets.append([])
                size = 0
            buckets[-1].append(place)
            size += self.parameters[place].numel()
        return buckets

    def _send(self, places: list[int]) -> None:
        """Begin to add up a bucket over all processes."""
        own = [self.parameters[place] for place in places]
        flat = torch.cat([_gradient(parameter).flatten() for parameter in own])
        for parameter in own:
            parameter.grad = None
        if self._total is not None or self._only is not None:
            parts = self._split(self._sum())
            flat = flat.double().add_(torch.cat([parts[place] for place in places]))
            for place in places:
                parts[place].zero_()
        flat = flat.to(torch.float32 if flat.is_cuda else torch.float64)
        self._sent.append((places, flat, torch.distributed.all_reduce(flat, async_op=True)))

    def _put(self, places: list[int], flat: Tensor) -> None:
        own = [self.parameters[place] for place in places]
        parts = flat.split([parameter.numel() for parameter in own])
        for parameter, part in zip(own, parts, strict=True):
            part = part.to(parameter.dtype).view_as(parameter)
            parameter.grad = part if parameter.grad is None else parameter.grad + part

    def _split(self, flat: Tensor) -> list[Tensor]:
        return list(flat.split([parameter.numel() for parameter in self.parameters]))


# Numbers that travel at once: enough to be quick, few enough to be many in a pass (as PyTorch's
# DistributedDataParallel).
_BUCKET = 1 << 22


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
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


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
    groups: list[dict[str, Any]], optim: Optim, *, matrices: Iterable[Tensor] = ()
) -> torch.optim.Optimizer:
    """The optimiser of `optim.*` over groups of parameters, fused where the device has it.

    Weight decay is decoupled for AdamW and Muon and added to the gradient for SGD, as the papers
    that use them do.

    Args:
        groups: of parameters, as `decay_groups` makes them.
        optim: the settings.
        matrices: parameters that Muon moves, see `encoder_matrices`.
    """
    fused = next(tensor for group in groups for tensor in group["params"]).is_cuda
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, fused=fused)
    if optim.name == "muon":
        return Muon(groups, optim, matrices=matrices, fused=fused)
    return _adamw(groups, optim, fused=fused)


def _adamw(groups: list[dict[str, Any]], optim: Optim, *, fused: bool) -> torch.optim.Optimizer:
    first, second = optim.betas
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(first, second), fused=fused)


def encoder_matrices(model: nn.Module) -> list[Tensor]:
    """Weights of the linear layers of all encoders in a model.

    Heads are left out: they are thrown away in the end, and one wide matrix of theirs would take
    Muon longer than the encoder.
    """
    encoders = [module for module in model.modules() if isinstance(module, Backbone)]
    layers = [layer for each in encoders for layer in each.modules()]
    return [layer.weight for layer in layers if isinstance(layer, nn.Linear)]


class Muon(torch.optim.Optimizer):
    """Muon for some matrices, AdamW for what is left; one state, one schedule.

    A matrix moves by its momentum with all singular values near one, scaled to the size of a usual
    step of AdamW, so that rate and decay mean the same for both.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025, section 2.2 (the scale).
    """

    def __init__(
        self, groups: list[dict[str, Any]], optim: Optim, *, matrices: Iterable[Tensor], fused: bool
    ) -> None:
        moved = set(map(id, matrices))
        muon, others = list[dict[str, Any]](), list[dict[str, Any]]()
        for group in groups:
            for part, wanted in ((muon, True), (others, False)):
                own = [each for each in group["params"] if (id(each) in moved) is wanted]
                part += [{**group, "params": own}] if own else []
        self._parts = [_adamw(others, optim, fused=fused)] if others else []
        if muon:
            self._parts.append(
                torch.optim.Muon(
                    muon, lr=optim.lr, momentum=optim.momentum, adjust_lr_fn="match_rms_adamw"
                )
            )
        both = [group for part in self._parts for group in part.param_groups]
        super().__init__(both, {"fused": fused})
        for part in self._parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter by its gradient."""
        for part in self._parts:
            part.step()


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
