"""Kernels of a card that is not there: worked out on the CPU, or left out; waits are recorded.

With `fakecuda.c` preloaded PyTorch believes that there is a card, and its own C++ code for CUDA
runs up to the launch of a kernel, which does nothing. `Emulation` is the mode that stands where
kernels would run. With `compute=True` the CPU does each kernel's work in the same memory, so that
values are right. With `compute=False` kernels of floating-point numbers do nothing and are counted:
for memory and launches of models too large to be computed here. Those of whole numbers and masks
are computed even then, since sizes follow from them.

Limits: no kernel's speed, bits or workspace, no stream that races another, and neither cuBLAS,
cuDNN, NCCL nor Triton is run.
"""

import ctypes
import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.flop_counter import flop_registry

from tests.gpu.build import ROOT

aten = torch.ops.aten
CPU = torch.device("cpu")

# What is PyTorch's own host code on a card too.
_NATIVE = {
    aten.empty.memory_format, aten.empty_strided.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten.empty_like.default, aten._fused_sdp_choice.default,
    aten.is_pinned.default, aten._pin_memory.default, aten.record_stream.default,
    aten.set_.source_Storage_storage_offset, aten.resize_.default, aten.detach.default,
    aten.alias.default, aten._has_compatible_shallow_copy_type.default,
}  # fmt: skip

# Their CUDA form waits for the card before it returns, mostly to learn the size of its result.
_WAITING = {
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal",
    "repeat_interleave", "_linalg_eigh", "_linalg_svd", "allclose", "histc",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}

# Of libraries that need a card to start: with compute=False their results have shapes alone.
_LIBRARIES = {
    "mm", "bmm", "addmm", "baddbmm", "addmm_", "addbmm", "mv", "addmv", "dot", "convolution",
    "convolution_backward", "_fft_r2c", "_fft_c2c", "_fft_c2r", "_linalg_eigh", "_linalg_svd",
}  # fmt: skip

# Of floating-point numbers too: what they give are places, and no others may be looked up.
_ORDERS = {"sort", "argsort", "topk"}


# A second, by NVIDIA's data sheet: bytes of memory, operations in half precision and in float32.
_H200_BYTES, _H200_HALF, _H200_FLOAT = 4.8e12, 989e12, 67e12


def _no_products(*_: Any, **__: Any) -> int:
    return 0


def launches() -> int:
    """Kernels that PyTorch launched so far."""
    return ctypes.c_long.in_dll(ctypes.CDLL(None), "fake_launches").value


def native_waits() -> int:
    """Calls of the runtime that wait for a stream, an event or the device."""
    return ctypes.c_long.in_dll(ctypes.CDLL(None), "fake_waits").value


def line_of_project() -> str:
    """`room/file.py:line` of the innermost frame of the project, without tests."""
    frame = sys._getframe(1)
    while frame is not None:  # in a thread of autograd there may be none
        file = frame.f_code.co_filename
        if file.startswith(str(ROOT)) and "/tests/gpu/" not in file and "/.venv/" not in file:
            return f"{file[len(str(ROOT)) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "PyTorch"


class Event(NamedTuple):
    """A copy between host and card, or something the host reads from the card.

    Attributes:
        kind: "read" of a number, "size" that the card must tell, "to card" and "to host".
        line: of the project, see `line_of_project`.
        waits: whether the host waits for the card; copies of pinned memory need not.
        detail: operation, or shape and type.
        num_bytes: of a copy.
    """

    kind: str
    line: str
    waits: bool
    detail: str
    num_bytes: int = 0


class MixedDevicesError(RuntimeError):
    """Tensors of the CPU and of the card in one operation, as the kernel would have refused."""


def on_host(t: Tensor) -> Tensor:
    """The same memory as a CPU tensor."""
    storage = t.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype)
    memory = torch._C._construct_storage_from_data_pointer(
        storage.data_ptr(), CPU, storage.nbytes()
    )
    out = torch.empty(0, dtype=t.dtype).set_(memory, t.storage_offset(), t.size(), t.stride())
    out = torch._conj(out) if t.is_conj() else out
    return torch._neg_view(out) if t.is_neg() else out


def on_card(t: Tensor, device: torch.device) -> Tensor:
    """A tensor of the card with the numbers and strides of `t`."""
    out = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=device)
    if t.numel():
        on_host(out).copy_(t)
    return out


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return views or torch.Tag.inplace_view in func.tags


def _writes(func: Any) -> bool:
    """Whether it returns the tensors that it writes to."""
    return any(r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns)


def trace_without_mode_() -> None:
    """`torch.jit.trace` and what it gives work under no mode; they are for the CPU here."""
    kind = torch.jit.TopLevelTracedModule
    torch.jit.trace = _without_mode(torch.jit.trace)
    kind.__call__ = _without_mode(kind.__call__)


def enter_in_threads_(*, compute: bool) -> None:
    """Threads that Python starts are in a mode too, as each is one thread's.

    What a thread of the loader copies while a step runs is so no part of the step's own events.
    """
    run = threading.Thread.run

    def inside(thread: threading.Thread) -> None:
        with Emulation(compute=compute):
            run(thread)

    threading.Thread.run = inside


def print_from_host_() -> None:
    """Let tensors of the card be printed from the host's memory: `repr` leaves every mode."""
    numbers = torch._tensor_str._tensor_str
    torch._tensor_str._tensor_str = lambda t, indent: numbers(
        on_host(t) if t.is_cuda else t, indent
    )


def _without_mode(original: Any) -> Any:
    @functools.wraps(original)
    def call(*args: Any, **words: Any) -> Any:
        with _disable_current_modes():
            return original(*args, **words)

    return call


def current() -> "Emulation":
    """The mode that this process runs in."""
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    return next(mode for mode in modes if isinstance(mode, Emulation))


class Emulation(TorchDispatchMode):
    """The mode that stands where kernels run; see the module.

    Args:
        compute: whether kernels of floating-point numbers are worked out.

    Attributes:
        events: copies and waits, in order.
        num_ops: operations on the card.
        mixed: (operation, line) -> how often it was given tensors of both.
        library_launches: kernels of cuBLAS, cuDNN and cuFFT, with compute=False.
        lines: (line, operation) -> kernels, with compute=False and `by_line` set.
        num_bytes: that kernels were given and returned, then too.
        least_seconds: no H200 takes less: the longer of bytes and products of each kernel, summed.
    """

    def __init__(self, *, compute: bool = True) -> None:
        super().__init__()
        self.compute, self.by_line = compute, False
        self.events: list[Event] = []
        self.num_ops = self.library_launches = self.num_bytes = 0
        self.least_seconds = 0.0
        self.mixed: Counter[tuple[str, str]] = Counter()
        self.lines: Counter[tuple[str, str]] = Counter()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Else `torch.compile` refuses, of tensors of the CPU too."""
        return True

    @property
    def num_kernels(self) -> int:
        """Kernels launched so far, of PyTorch and of libraries."""
        return launches() + self.library_launches

    def _note(self, kind: str, detail: str, *, waits: bool = True, num_bytes: int = 0) -> None:
        self.events.append(Event(kind, line_of_project(), waits, detail, num_bytes))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        kwargs = kwargs or {}
        flat, spec = tree_flatten((args, kwargs))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        wanted = next((x for x in flat if isinstance(x, torch.device)), None)
        if not any(x.is_cuda for x in tensors) and (wanted is None or wanted.type != "cuda"):
            return func(*args, **kwargs)
        if torch._C._cuda_isInBadFork():
            raise RuntimeError(
                "CUDA error: initialization error: the parent of this process used it"
            )
        self.num_ops += 1
        name = func.overloadpacket.__name__
        before = self.num_kernels if self.by_line else 0
        out = self._run(func, name, args, kwargs, flat, spec, tensors, wanted)
        if self.by_line and (launched := self.num_kernels - before):
            self.lines[line_of_project(), name] += launched
            self._weigh(func, args, kwargs, out)
        return out

    def _weigh(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        leaves = tree_leaves((args, kwargs) if _writes(func) else (args, kwargs, out))
        found = [x for x in leaves if isinstance(x, Tensor) and x.is_cuda]
        moved = sum(x.nbytes for x in found if 0 not in x.stride())  # not expanded
        products = flop_registry.get(func.overloadpacket, _no_products)
        half = any(x.dtype in (torch.bfloat16, torch.float16) for x in found)
        rate = _H200_HALF if half else _H200_FLOAT
        self.num_bytes += moved
        operations = products(*args, **kwargs, out_val=out)
        self.least_seconds += max(moved / _H200_BYTES, operations / rate)

    def _run(
        self, func: Any, name: str, args: Any, kwargs: Any, flat: list[Any], spec: Any,
        tensors: list[Tensor], wanted: torch.device | None,
    ) -> Any:  # fmt: skip
        if func in _NATIVE or func.namespace == "c10d":
            return func(*args, **kwargs)
        if func is aten.lift_fresh.default:
            self._note("to card", "torch.tensor(..., device=cuda)", num_bytes=tensors[0].nbytes)
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            self._note("read", name)
            return self._number(args[0])
        if func is aten._to_copy.default:
            return self._to_copy(*args, **kwargs)
        if func is aten.copy_.default:
            return self._copy_(*args, **kwargs)
        if _is_view(func):
            return func(*args, **kwargs)
        self._check_devices(name, args, tensors)
        self._note_waits(name, args)
        device = _device_of(tensors, wanted)
        if func in _SPECIAL:
            return _SPECIAL[func](self, device, *args, **kwargs)
        if not self.compute and name not in _ORDERS and _is_float(name, tensors, kwargs):
            if name in _LIBRARIES:
                return self._shapes(func, args, kwargs, device)
            if name not in _WAITING:
                return func(*args, **kwargs)  # launched, and nothing happens
        changed = [_as_on_host(x) for x in flat]
        host_args, host_kwargs = tree_unflatten(changed, spec)
        if "pin_memory" in host_kwargs:
            host_kwargs["pin_memory"] = False
        if not self.compute:
            self.library_launches += 1
        here = _conv_back if func is aten.convolution_backward.default else func
        return _returned(func, here(*host_args, **host_kwargs), args, kwargs, device)

    # -- numbers, copies, checks -----------------------------------------------------------------

    def _number(self, x: Tensor) -> Any:
        if self.compute or not x.is_floating_point():
            value = on_host(x).item()
            return value or (not self.compute and x.dtype == torch.bool)  # no step is skipped
        return 0.25  # in the range of a temperature, a loss, a norm

    def _to_copy(
        self, x: Tensor, *, dtype: Any = None, device: Any = None, non_blocking: bool = False,
        memory_format: Any = None, **_: Any,
    ) -> Tensor:  # fmt: skip
        device = _with_index(x.device if device is None else torch.device(device))
        dtype = dtype or x.dtype
        self._note_copy(x, to=device, dtype=dtype, non_blocking=non_blocking)
        floats = x.is_floating_point() or dtype.is_floating_point
        if not self.compute and floats and x.is_cuda and device.type == "cuda":
            self.library_launches += 1
            kept = memory_format or torch.preserve_format
            return torch.empty_like(x, dtype=dtype, device=device, memory_format=kept)
        here = on_host(x) if x.is_cuda else x
        out = aten._to_copy.default(here, dtype=dtype, memory_format=memory_format)
        return on_card(out, device) if device.type == "cuda" else out

    def _copy_(self, to: Tensor, x: Tensor, non_blocking: bool = False) -> Tensor:
        pinned = not to.is_cuda and to.is_pinned()
        self._note_copy(x, to=to.device, dtype=to.dtype, non_blocking=non_blocking, pinned=pinned)
        if self.compute or not (x.is_cuda and to.is_cuda and x.is_floating_point()):
            (on_host(to) if to.is_cuda else to).copy_(on_host(x) if x.is_cuda else x)
        if not self.compute:
            self.library_launches += 1
        return to

    def _note_copy(
        self, x: Tensor, *, to: torch.device, dtype: Any, non_blocking: bool, pinned: bool = False
    ) -> None:
        if x.is_cuda == (to.type == "cuda"):
            return
        if x.is_cuda:
            waits = not (non_blocking and pinned)
        else:  # from pageable memory, or in another type, the copy is staged and waited for
            plain = x.is_contiguous() and x.dtype == dtype
            waits = not (non_blocking and x.is_pinned() and plain)
        kind = "to host" if x.is_cuda else "to card"
        detail = f"{tuple(x.shape)} {str(x.dtype)[6:]}"
        self._note(kind, detail, waits=waits, num_bytes=x.nbytes)

    def _check_devices(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        """As the kernels do: a CPU tensor may only be a number, or an index."""
        if name in _INDEXING:
            tensors = [args[0], *args[2:3]]
            wrong = [x for x in tensors if not x.is_cuda and (x.ndim or x is args[0])]
        else:
            wrong = [x for x in tensors if not x.is_cuda and x.ndim]
        if wrong:
            line = line_of_project()
            self.mixed[name, line] += 1
            shapes = [tuple(x.shape) for x in wrong]
            raise MixedDevicesError(f"{name} at {line}: CPU tensors {shapes} beside the card's")

    def _note_waits(self, name: str, args: Any) -> None:
        if name in _WAITING:
            self._note("size", name)
        if name in _INDEXING:
            for index in args[1]:
                if not isinstance(index, Tensor):
                    continue
                is_one_value = len(args) > 2 and args[2].numel() == 1
                if index.dtype in (torch.bool, torch.uint8) and not is_one_value:
                    self._note("size", f"{name} by a mask")
                if not index.is_cuda:
                    self._note("to card", f"{name} by an index of the CPU", num_bytes=index.nbytes)

    def _shapes(self, func: Any, args: Any, kwargs: Any, device: torch.device) -> Any:
        """Results of the right shapes, by the operation's form for no device."""

        def meta(x: Any) -> Any:
            if isinstance(x, Tensor):
                return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="meta")
            return torch.device("meta") if isinstance(x, torch.device) else x

        flat, spec = tree_flatten((args, kwargs))
        meta_args, meta_kwargs = tree_unflatten([meta(x) for x in flat], spec)
        found = func(*meta_args, **meta_kwargs)
        self.library_launches += 1
        if _writes(func):
            return _returned(func, found, args, kwargs, device)
        return tree_map_only(Tensor, lambda t: torch.empty_like(t, device=device), found)


def _is_float(name: str, tensors: list[Tensor], kwargs: Any) -> bool:
    """Whether an operation takes or makes floating-point numbers."""
    if tensors:
        return any(x.is_floating_point() or x.is_complex() for x in tensors)
    dtype = kwargs.get("dtype")
    return name != "arange" if dtype is None else dtype.is_floating_point


def _with_index(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _device_of(tensors: list[Tensor], wanted: torch.device | None) -> torch.device:
    if wanted is not None and wanted.type == "cuda":
        return _with_index(wanted)
    return next((x.device for x in tensors if x.is_cuda), _with_index(torch.device("cuda")))


def _as_on_host(x: Any) -> Any:
    if isinstance(x, Tensor):
        return on_host(x) if x.is_cuda else x
    if isinstance(x, torch.device):
        return CPU
    return None if isinstance(x, torch.Generator) and x.device.type == "cuda" else x


def _returned(func: Any, found: Any, args: Any, kwargs: Any, device: torch.device) -> Any:
    """What was written to as the caller's own tensors, everything else onto the card."""
    if _writes(func):
        written = [
            args[i] if i < len(args) else kwargs[argument.name]
            for i, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        return written[0] if isinstance(found, Tensor) else tuple(written[: len(found)])
    if not func._schema.returns:
        return None
    return tree_map_only(Tensor, lambda t: t if t.is_cuda else on_card(t, device), found)


def _conv_back(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> list[Tensor | None]:
    """In float32: the CPU's own in bfloat16 leaves some of the weights' gradients unwritten."""
    found = aten.convolution_backward.default(grad.float(), x.float(), weight.float(), *rest)
    return [None if t is None else t.to(grad.dtype) for t in found]


# -- operations that exist for CUDA alone, in terms of plain ones --------------------------------


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: Any) -> Any:
    """Softmax attention, and the logarithm of each row's sum."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = (q.float() @ k.float().transpose(-2, -1)) * scale
    logits = logits if bias is None else logits + bias.float()
    sums = torch.logsumexp(logits, dim=-1)
    return ((logits - sums[..., None]).exp().to(v.dtype) @ v).to(q.dtype), sums


def _attend_back(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, sums: Tensor,
    scale: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of q, k, v and the bias."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = (q.float() @ k.float().transpose(-2, -1)) * scale
    logits = logits if bias is None else logits + bias.float()
    weights, grad = (logits - sums[..., None]).exp(), grad.float()
    moved = grad @ v.float().transpose(-2, -1) - (grad * out.float()).sum(-1, keepdim=True)
    inner = weights * moved
    dq, dk = inner @ k.float() * scale, inner.transpose(-2, -1) @ q.float() * scale
    dv = (weights.transpose(-2, -1) @ grad).to(v.dtype)
    return dq.to(q.dtype), dk.to(k.dtype), dv, None if bias is None else inner.to(bias.dtype)


def _heads_inside(t: Tensor, device: torch.device) -> Tensor:
    """(B, H, N, D) with heads side by side in memory, as the fused kernels leave it."""
    batch, heads, num, dim = t.shape
    out = torch.empty(batch, num, heads, dim, dtype=t.dtype, device=device).transpose(1, 2)
    on_host(out).copy_(t)
    return out


def _maybe(t: Tensor | None) -> Tensor | None:
    return None if t is None else on_host(t)


def _nothing(device: torch.device, dtype: torch.dtype = torch.int64, size: int = 0) -> Tensor:
    return torch.empty(size, dtype=dtype, device=device)


def _flash(mode: Emulation, device: Any, q: Any, k: Any, v: Any, *rest: Any, scale: Any = None):
    if not mode.compute:
        run = aten._scaled_dot_product_flash_attention.default
        return run(q, k, v, *rest, scale=scale)
    out, sums = _attend(on_host(q), on_host(k), on_host(v), None, scale)
    seed, offset = _nothing(device, torch.uint64, 2), _nothing(device, torch.uint64)
    mask = _nothing(device, torch.float32)
    sizes = q.shape[2], k.shape[2]
    return _heads_inside(out, device), on_card(sums, device), None, None, *sizes, seed, offset, mask


def _flash_back(
    mode: Emulation, device: Any, grad: Any, q: Any, k: Any, v: Any, out: Any, sums: Any,
    *rest: Any, scale: Any = None,
):  # fmt: skip
    if not mode.compute:
        run = aten._scaled_dot_product_flash_attention_backward.default
        return run(grad, q, k, v, out, sums, *rest, scale=scale)
    inputs = map(on_host, (grad, q, k, v))
    found = _attend_back(*inputs, None, on_host(out), on_host(sums), scale)
    return tuple(on_card(t, device) for t in found[:3] if t is not None)


def _efficient(
    mode: Emulation, device: Any, q: Any, k: Any, v: Any, bias: Any, *rest: Any, scale: Any = None
):
    if not mode.compute:
        run = aten._scaled_dot_product_efficient_attention.default
        return run(q, k, v, bias, *rest, scale=scale)
    out, sums = _attend(on_host(q), on_host(k), on_host(v), _maybe(bias), scale)
    empty = _nothing(device)
    return _heads_inside(out, device), on_card(sums, device), empty, empty


def _efficient_back(
    mode: Emulation, device: Any, grad: Any, q: Any, k: Any, v: Any, bias: Any, out: Any,
    sums: Any, *rest: Any, scale: Any = None,
):  # fmt: skip
    if not mode.compute:
        run = aten._scaled_dot_product_efficient_attention_backward.default
        return run(grad, q, k, v, bias, out, sums, *rest, scale=scale)
    inputs = map(on_host, (grad, q, k, v))
    found = _attend_back(*inputs, _maybe(bias), on_host(out), on_host(sums), scale)
    return tuple(None if t is None else on_card(t, device) for t in found)


def _cudnn(
    mode: Emulation, device: Any, q: Any, k: Any, v: Any, bias: Any, *rest: Any, scale: Any = None
):
    empty, sizes = _nothing(device), (q.shape[2], k.shape[2])
    if not mode.compute:
        mode.library_launches += 1
        batch, heads, num, _ = q.shape
        out = torch.empty(batch, num, heads, v.shape[-1], dtype=q.dtype, device=device)
        sums = torch.empty(batch, heads, num, 1, device=device)
        return out.transpose(1, 2), sums, None, None, *sizes, empty, empty, empty
    out, sums = _attend(on_host(q), on_host(k), on_host(v), _maybe(bias), scale)
    out, sums = _heads_inside(out, device), on_card(sums, device)
    return out, sums, None, None, *sizes, empty, empty, empty


def _cudnn_back(
    mode: Emulation, device: Any, grad: Any, q: Any, k: Any, v: Any, out: Any, sums: Any,
    seed: Any, offset: Any, bias: Any, *rest: Any, scale: Any = None,
):  # fmt: skip
    if not mode.compute:
        mode.library_launches += 1
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    inputs = map(on_host, (grad, q, k, v))
    found = _attend_back(*inputs, _maybe(bias), on_host(out), on_host(sums), scale)
    return tuple(on_card(t, device) for t in found[:3] if t is not None)


def _batch_norm(mode: Emulation, device: Any, x: Any, *rest: Any):
    reserved = _nothing(device, torch.uint8)
    if not mode.compute:
        mode.library_launches += 1
        sums = [torch.empty(x.shape[1], device=device) for _ in range(2)]
        return torch.empty_like(x), *sums, reserved
    tensors, others = rest[:4], rest[4:]
    found = aten.native_batch_norm.default(on_host(x), *map(_maybe, tensors), *others)
    return *(on_card(t, device) for t in found), reserved


def _batch_norm_back(
    mode: Emulation, device: Any, x: Any, grad: Any, weight: Any, mean: Any, var: Any,
    batch_mean: Any, batch_var: Any, eps: float, _: Any,
):  # fmt: skip
    if not mode.compute:
        mode.library_launches += 1
        return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    tensors = map(_maybe, (grad, x, weight, mean, var, batch_mean, batch_var))
    found = aten.native_batch_norm_backward.default(*tensors, True, eps, [True, True, True])
    return tuple(on_card(t, device) for t in found)


_SPECIAL: dict[Any, Callable[..., Any]] = {
    aten._scaled_dot_product_flash_attention.default: _flash,
    aten._scaled_dot_product_flash_attention_backward.default: _flash_back,
    aten._scaled_dot_product_efficient_attention.default: _efficient,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_back,
    aten._scaled_dot_product_cudnn_attention.default: _cudnn,
    aten._scaled_dot_product_cudnn_attention_backward.default: _cudnn_back,
    aten.cudnn_batch_norm.default: _batch_norm,
    aten.cudnn_batch_norm_backward.default: _batch_norm_back,
}
