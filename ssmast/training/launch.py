"""How many processes, which device, how many threads - and a clean way to be stopped."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from ssmast.command import StoppedError, num_cores, stop_signals
from ssmast.evaluation.processes import broadcast, prepare_group, set_tf32

logger = logging.getLogger(__name__)

T = TypeVar("T")

# PyTorch's variables for settings of its allocator, by its versions; what a user set is kept.
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_LAUNCHERS = ("accelerate", "torchrun", "torch.distributed")


def start_accelerator(
    *,
    precision: str,
    processes: int,
    threads: int,
    tf32: bool = False,
    deterministic: bool = False,
    cudnn_attention: bool = True,
) -> Accelerator:
    """The accelerator of this process, once it is sure that the launch is the one asked for.

    Args:
        precision: "fp32", "bf16", "fp16", or "auto", see `gpu_precision`.
        processes: processes that must take part; 0 accepts any number the launcher started.
        threads: CPU threads for this process; 0 for its share of the cores. `accelerate launch`
            sets one thread, which would leave the other cores idle.
        tf32: float32 products and convolutions on a GPU may round their inputs to TF32.
        deterministic: the same command gives the same bits on a GPU too.
        cudnn_attention: PyTorch may choose cuDNN's attention on a GPU.

    Raises:
        ValueError: if more processes were asked for than take part, or a precision that is not
            there.
    """
    has_gpu = torch.cuda.is_available()
    if has_gpu and not any(name in os.environ for name in _ALLOCATOR):
        # Structured patch-drop takes turns between two sizes, whose memory does not fit one
        # another: 111 GiB are reserved for 89 in use without this. Read at the first allocation.
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"
    best = gpu_precision() if has_gpu else "fp32"
    precision = best if precision == "auto" else precision
    if precision == "bf16" and has_gpu and best != "bf16":
        raise ValueError(
            f"precision=bf16 needs a GPU of compute capability 8.0 or newer, "
            f"{torch.cuda.get_device_name()} is older; use precision={best}"
        )
    if precision == "fp16" and not has_gpu:
        raise ValueError("precision=fp16 needs a GPU; use precision=bf16 or fp32 on a CPU")
    set_tf32(tf32)
    if deterministic:
        # cuBLAS reads it at its first call; the value is NVIDIA's.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)
    # Nothing here reads memory that nobody has written, and to fill it doubles the kernels.
    filled = sys.modules["torch.utils.deterministic"]
    filled.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    # A run before this one in the same process may have had another precision; the group stays.
    AcceleratorState._reset_state()  # pyright: ignore[reportPrivateUsage]
    accelerator = Accelerator(
        cpu=not has_gpu, mixed_precision="no" if precision == "fp32" else precision
    )
    wanted = max(processes, _requested_by_launcher())
    if wanted > accelerator.num_processes:
        raise ValueError(
            f"{wanted} processes were asked for but {accelerator.num_processes} is running; "
            "without a GPU use `accelerate launch --multi_gpu --num_processes N`, "
            "since `--cpu` starts only one"
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes)
    share = threads or max(1, num_cores() // local)
    torch.set_num_threads(min(share, _openmp_limit()))
    prepare_group()
    return accelerator


def gpu_precision() -> str:
    """What a GPU trains fastest with: bf16 from compute capability 8.0 on, fp16 from 7.0 on.

    Older ones emulate bf16: slower than float32, and without any of the fused attention kernels.
    """
    major, _ = torch.cuda.get_device_capability(0)
    if major >= 8 and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if major == 7 else "fp32"


def _openmp_limit() -> int:
    """Threads that OMP_THREAD_LIMIT allows.

    With more, PyTorch adds up parts that no thread has computed: a gradient norm became infinite.
    """
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    return max(1, int(limit)) if limit.isdigit() else 1 << 20


def _launcher() -> list[str]:
    """Command line of the launcher that started this process, if one did."""
    parent = psutil.Process().parent()
    try:
        words = parent.cmdline() if parent else []
    except psutil.Error:
        return []
    return words if any(name in word for word in words[:4] for name in _LAUNCHERS) else []


def _requested_by_launcher() -> int:
    words = _launcher()
    for i, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in {"--num_processes", "--num-processes", "--nproc_per_node", "--nproc-per-node"}:
            value = value or (words[i + 1] if i + 1 < len(words) else "")
            machines = [w for w in words if w.startswith(("--num_machines", "--nnodes"))]
            if value.isdigit() and not machines:
                return int(value)
    return 1


def on_main(accelerator: Accelerator | PartialState, make: Callable[[], T]) -> T:
    """What `make` gives on the main process, on all of them; its error too, whatever it is.

    What it gives travels as an object, so it must be plain: paths, numbers, dataclasses. The others
    may wait for days.
    """
    box: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            box[0] = make()
        except (ValueError, OSError) as error:
            box[1] = error
        except BaseException as error:
            why = f"the main process ended: {type(error).__name__}: {error}"
            broadcast([None, ValueError(why)], size=accelerator.num_processes)
            raise
    box = broadcast(box, size=accelerator.num_processes)
    if box[1] is not None:
        raise box[1]
    return box[0]


class StopRequest:
    """What to do on Ctrl-C, SIGTERM, SIGHUP and the launcher's death: finish the step, save, stop.

    Inside `with stop.deferred():` a signal sets a flag that the loop polls; elsewhere nothing is
    to be saved, so it raises `StoppedError` at once, as a second signal does anywhere.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._is_deferred = False
        self._previous: dict[int, object] = {}
        self._parent = os.getppid() if _launcher() or "LOCAL_RANK" in os.environ else None

    def __enter__(self) -> "StopRequest":
        """Take over the signals; only the main thread may, so in another one do without."""
        if threading.current_thread() is not threading.main_thread():
            logger.warning(
                "training in a thread: Ctrl-C and SIGTERM are left to the program around it, so a "
                "stopped run resumes from its last checkpoint"
            )
            return self
        for number in (signal.SIGINT, *stop_signals()):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While there is a state to save."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number or not self._is_deferred:
            raise StoppedError(number, "resume=auto resumes from the last checkpoint")
        self.signal_number = number
        logger.warning("stopping after this step; the state will be saved (again to stop at once)")

    def poll(self) -> int:
        """0, or the number of the signal that asks this process to stop."""
        if not self.signal_number and self._parent not in (None, os.getppid()):
            logger.warning("the launcher is gone; stopping after this step")
            self.signal_number = signal.SIGTERM
        return self.signal_number
