"""A process group as strict as NCCL's, carried by gloo.

NCCL takes contiguous tensors of the card in certain types, nothing else. Here every collective is
checked for that, then done on the same memory by gloo. `collectives` keeps their order, which must
be the same on all processes.
"""

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.gpu.emulation import line_of_project, on_host

collectives: list[str] = []
_OF_TENSORS = (
    "all_reduce", "all_gather_into_tensor", "all_gather", "broadcast", "reduce", "gather",
    "reduce_scatter_tensor",
)  # fmt: skip
_OF_OBJECTS = (
    "broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list", "barrier",
)  # fmt: skip
_TYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int8, torch.uint8, torch.bool,
}  # fmt: skip


def be_strict_() -> None:
    """Replace PyTorch's collectives, and the backend that is asked for by gloo."""
    start = dist.init_process_group

    def init_process_group(backend: Any = None, **words: Any) -> None:
        if backend is None or "nccl" not in str(backend):
            raise RuntimeError(f"with a card the process group must be NCCL's, got {backend}")
        words.pop("device_id", None)
        start("gloo", **words)

    dist.init_process_group = init_process_group
    for name in _OF_TENSORS:
        setattr(dist, name, _checked(name, getattr(dist, name)))
    for name in _OF_OBJECTS:
        setattr(dist, name, _noted(name, getattr(dist, name)))


def _checked(name: str, original: Any) -> Any:
    @functools.wraps(original)
    def call(*args: Any, **words: Any) -> Any:
        if words.get("group") is not None:  # one of gloo's, which takes the CPU's
            collectives.append(name)
            return original(*args, **words)
        for tensor in tree_leaves((args, words)):
            if not isinstance(tensor, Tensor):
                continue
            said = f"{name} at {line_of_project()}"
            if not tensor.is_cuda:
                raise RuntimeError(f"NCCL takes tensors of the card alone: {said}")
            if not tensor.is_contiguous():
                raise RuntimeError(f"NCCL takes contiguous tensors: {said}")
            if tensor.dtype not in _TYPES:
                raise RuntimeError(f"NCCL does not know {tensor.dtype}: {said}")
        collectives.append(name)
        # gloo wants one shape where NCCL wants one number of elements.
        flat = name == "all_gather_into_tensor"
        with _disable_current_modes():
            args, words = tree_map_only(
                Tensor, lambda t: on_host(t).view(-1) if flat else on_host(t), (args, words)
            )
            return original(*args, **words)

    return call


def _noted(name: str, original: Any) -> Any:
    @functools.wraps(original)
    def call(*args: Any, **words: Any) -> Any:
        collectives.append(name)
        return original(*args, **words)

    return call
