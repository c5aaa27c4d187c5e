"""What a call costs: seconds, memory, products; on a CPU or a CUDA device."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def take_turns(
    calls: Mapping[str, Callable[[], object]], *, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of CPU (child processes included) and of the clock of each call in each round."""
    found = {name: {"cpu": list[float](), "clock": list[float]()} for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            before, begin = _cpu_seconds(), time.perf_counter()
            call()
            found[name]["clock"].append(time.perf_counter() - begin)
            found[name]["cpu"].append(_cpu_seconds() - before)
    return found


def peak_mb(*words: str) -> float:
    """MB that `ssmast` with these words, a process of its own, holds at most.

    Raises:
        RuntimeError: with what it said, if it failed.
    """
    code = (
        "import re, sys; from ssmast.cli import main; status = main(sys.argv[1:]);"
        # Not ru_maxrss: that keeps the size of the process that started this one.
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]);"
        "sys.exit(status)"
    )
    argv = [sys.executable, "-c", code, *words]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ssmast {' '.join(words)} failed: {done.stderr[-2000:]}")
    return int(done.stdout.split()[-1]) / 1024


def _cpu_seconds() -> float:
    return time.process_time() + sum(os.times()[2:4])  # the second: of children that have ended


def turns_table(found: Mapping[str, Mapping[str, list[float]]], *, against: str) -> str:
    """Markdown of what `take_turns` gave: medians, and each time as a part of another side's."""
    lines = [
        f"| | CPU (s) | of {against} | clock (s) | of {against} |",
        "|---|---:|---:|---:|---:|",
    ]
    median = {
        name: {k: statistics.median(v) for k, v in one.items()} for name, one in found.items()
    }
    for name, one in median.items():
        cells = [
            cell
            for kind in ("cpu", "clock")
            for cell in (f"{one[kind]:.3g}", f"{one[kind] / median[against][kind]:.2f} x")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


class Timer:
    """Seconds and memory of one call on one device."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype

    def run(self, call: Callable[[], Tensor], *, backward: bool) -> float:
        """Seconds of one call."""
        self._wait()
        begin = time.perf_counter()
        self._call(call, backward)
        self._wait()
        return time.perf_counter() - begin

    def peak_megabytes(self, call: Callable[[], Tensor], *, backward: bool) -> float:
        """Most memory that one call holds beyond what lay there before."""
        if self.device.type == "cuda":
            self._wait()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._call(call, backward)
            self._wait()
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        with torch.profiler.profile(profile_memory=True) as profiler:
            self._call(call, backward)
        assert profiler.profiler is not None
        assert profiler.profiler.kineto_results is not None
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        return peak / 2**20

    def peak_rate(self) -> float:
        """Multiplications (with addition) a second of a large matrix product on this device."""
        size = 16384 if self.device.type == "cuda" else 2048
        left = torch.randn(size, size, device=self.device, dtype=self.dtype)
        seconds = [self.run(lambda: left @ left, backward=False) for _ in range(6)]
        return size**3 / min(seconds[1:])

    def _call(self, call: Callable[[], Tensor], backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            with torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
                out = call()
            if backward:
                out.float().square().mean().backward()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def count(model: nn.Module, call: Callable[[], Tensor]) -> int:
    """Multiplications (with addition) of one forward pass, attention's products among them."""
    # The counter knows products; it does not know the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops() // 2


def saved_megabytes(model: nn.Module, call: Callable[[], Tensor]) -> float:
    """What autograd keeps for the backward pass, parameters left out; a measure for any device."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    held = []  # so that no freed address is counted twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
            held.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    del out
    return sum(storages.values()) / 2**20
