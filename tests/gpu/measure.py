"""What the steps of a run ask of host and card: waits, kernels, memory.

    python -m tests.gpu.run -m tests.gpu.measure pretrain recipe=smoke steps=9 log_every=9
    python -m tests.gpu.run compute=false -m tests.gpu.measure last=3 pretrain recipe=ss_mast_base

    last=4          optimiser steps after which the run is ended
    lines=12        lines named of each kind
    json=FILE       the same, to be read by tests; of process 1 in FILE1, and so on

A step is what lies between two moves of the optimiser, so all that the loop does is in it. The
first ones are told too: they build caches, and log. Kernels are counted with compute=false, where
a base model at batch 256 takes seconds and little memory; waits and memory are the same in both.
Bytes and the least time too: what kernels are given and return, at the rates of a data sheet.
"""

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from ssmast.cli import main as ssmast
from tests.gpu.emulation import Emulation, current

GIB = 2**30


class Steps:
    """Takes the numbers of a step whenever the optimiser has moved.

    Attributes:
        steps: those of each step, the first from the start of the program on.
    """

    def __init__(self, mode: Emulation, *, last: int) -> None:
        self.mode, self.last, self.steps = mode, last, list[dict[str, Any]]()
        mode.by_line = not mode.compute
        self._begin()

    def _begin(self) -> None:
        self.mode.events.clear()
        self.mode.lines.clear()
        self._kernels, self._time = self.mode.num_kernels, time.perf_counter()
        self.mode.num_bytes, self.mode.least_seconds = 0, 0.0
        if torch.cuda.is_initialized():  # else the allocator is set up too early
            torch.cuda.reset_peak_memory_stats()

    def moved(self, *_: Any) -> None:
        """The hook."""
        waits = Counter(f"{e.line} {e.kind}" for e in self.mode.events if e.waits)
        self.steps.append(
            {
                "waits": dict(waits.most_common()),
                "num_waits": waits.total(),
                "sent": [f"{e.line} {e.detail}" for e in self.mode.events if e.kind == "to card"],
                "kernels": self.mode.num_kernels - self._kernels,
                "lines": dict(Counter(f"{a} {b}" for a, b in self.mode.lines.elements()))
                if self.mode.by_line
                else {},
                "gigabytes": self.mode.num_bytes / 1e9,
                "least_seconds": self.mode.least_seconds,
                "allocated_gib": torch.cuda.max_memory_allocated() / GIB,
                "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
                "seconds": time.perf_counter() - self._time,
            }
        )
        if len(self.steps) == self.last:
            raise SystemExit(0)
        self._begin()


def main(argv: list[str]) -> int:
    """Run the command and tell of its steps."""
    options = {"last": "4", "lines": "12", "json": ""}
    while argv and argv[0].partition("=")[0] in options:
        key, _, value = argv.pop(0).partition("=")
        options[key] = value
    steps = Steps(current(), last=int(options["last"]))
    hook = register_optimizer_step_post_hook(steps.moved)
    try:
        status = ssmast(argv)
    except SystemExit:
        status = 0
    hook.remove()
    for number, step in enumerate(steps.steps):
        sys.stdout.write(_told(number, step, int(options["lines"])))
    if options["json"]:
        rank = int(os.environ.get("RANK", 0))
        Path(f"{options['json']}{rank or ''}").write_text(json.dumps(steps.steps))
    return status


def _told(number: int, step: dict[str, Any], num_lines: int) -> str:
    head = (
        f"step {number}: {step['num_waits']} waits, {step['kernels']} kernels, "
        f"{step['allocated_gib']:.2f} GiB allocated, {step['reserved_gib']:.2f} reserved, "
        f"{step['gigabytes']:.0f} GB moved, on an H200 {step['least_seconds']:.3f} s at least, "
        f"{step['seconds']:.1f} s here"
    )
    lines = [head]
    for kind in ("waits", "lines"):
        most = sorted(step[kind].items(), key=lambda item: -item[1])[:num_lines]
        lines += [f"  {kind[:-1]:<6}{count:6d} x {line}" for line, count in most]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
