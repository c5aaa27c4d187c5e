"""Throughput of the whole pretraining loop, and the share of each of its parts.

    python benchmarks/pretrain.py                            real_nano on FLAC clips made here
    python benchmarks/pretrain.py data=FOLDER recipe=ss_mast_base set=[batch_size=64] out=x.json

It runs `ssmast pretrain` itself, from the files to the metrics, and measures the steps after the
warm-up. Two passes: one untouched, for clips a second; one with a clock around each part, which on
a GPU waits for it at every part's end and so is a little slower. Prints Markdown; writes JSON.
"""

import json
import logging
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ssmast.audio import write_synthetic_corpus
from ssmast.command import num_cores, run_command
from ssmast.settings import Settings, parse, setting
from ssmast.training import pretrain, run
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.objectives import ss_mast

# In the order of the table. "wait" is what the loop waits for the workers.
PARTS = (
    "wait for data", "mel", "augment", "student forward", "heads and loss", "backward", "teacher",
    "optimiser", "queue and EMA", "metrics", "rest",
)  # fmt: skip
ENCODER_AND_HEADS = ("student forward", "heads and loss", "backward", "teacher")


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    recipe: str = setting("real_nano", "recipe to time")
    data: str = setting("", "audio to train on; empty: FLAC clips made here")
    set: list[str] = setting([], "further key=value of `ssmast pretrain`")
    workers: list[int] = setting([2], "data workers, one row each")
    threads: list[int] = setting([0], "CPU threads of the training process, one row each; 0: auto")
    warmup: int = setting(10, "steps before the clock starts")
    steps: int = setting(40, "steps that are timed")
    clips: int = setting(600, "clips of the corpus made here")
    seconds: float = setting(10.0, "length of each of them")
    out: str = setting("", "JSON file to write")


class Clock:
    """Exclusive seconds of each part: a part called inside another one counts for itself."""

    def __init__(self, device: torch.device, *, waits: bool):
        self.waits = waits and device.type == "cuda"
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = time.perf_counter()

    def _lap(self) -> None:
        if self.waits:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._stack[-1] if self._stack else "rest"] += now - self._since
        self._since = now

    def reset(self) -> None:
        """Start at zero."""
        self._lap()
        self.seconds.clear()

    def stop(self) -> dict[str, float]:
        """Seconds of each part so far."""
        self._lap()
        return dict(self.seconds)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` with its time counted for `part`."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._lap()
            self._stack.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._lap()
                self._stack.pop()

        return wrapper


def put_clocks(state: Any, clock: Clock) -> None:
    """Time the parts of a step, by their names there."""
    objective, student = state.objective, state.objective.student
    teacher = objective.teacher
    heads = [student.branch.projector, student.predictor, teacher.branch.projector]
    parts = [
        (objective.log_mel, "log_mel", "mel"),
        (objective, "views", "augment"),
        (student.branch.backbone, "encode", "student forward"),
        (teacher.branch.backbone, "encode", "teacher"),
        *((head, "forward", "heads and loss") for head in heads),
        (state.optimizer, "step", "optimiser"),
        (state.optimizer, "zero_grad", "optimiser"),
        (teacher, "ema_update_", "queue and EMA"),
        (objective.queue, "snapshot", "queue and EMA"),
        (objective.queue, "enqueue_", "queue and EMA"),
        (objective.mixup_memory, "enqueue_", "queue and EMA"),
        (objective, "numbers", "metrics"),
    ]
    for owner, name, part in parts:
        setattr(owner, name, clock.timed(part, getattr(owner, name)))


class _Done(Exception):  # noqa: N818 (no error)
    """The timed steps are over."""


def measure(config: PretrainConfig, settings: Keys, *, with_parts: bool) -> dict[str, float]:
    """Seconds of each part over the timed steps; without parts only the wait for data and rest."""
    found: dict[str, float] = {}
    run_loop = run.run_loop

    def timed_loop(state: Any, batches: Iterator[Any], instruments: Any) -> None:
        clock = Clock(state.accelerator.device, waits=with_parts)
        if with_parts:
            put_clocks(state, clock)
        train_step = state.train_step

        def step(segments: Any) -> Any:
            result = train_step(segments)
            if state.step == settings.warmup:
                clock.reset()
            if state.step == settings.warmup + settings.steps:
                found.update(clock.stop())
                raise _Done
            return result

        state.train_step = step
        next_batch = clock.timed("wait for data", batches.__next__)
        backward, loss = torch.Tensor.backward, ss_mast.info_nce
        if with_parts:
            backward = clock.timed("backward", backward)
            loss = clock.timed("heads and loss", loss)
        with (
            mock.patch.object(torch.Tensor, "backward", backward),
            mock.patch.object(ss_mast, "info_nce", loss),
        ):
            run_loop(state, iter(next_batch, None), instruments)

    with mock.patch.object(run, "run_loop", timed_loop):
        try:
            pretrain.run(config)
        except _Done:
            return found
    raise ValueError(f"the run ended before {settings.warmup + settings.steps} steps")


def measure_row(settings: Keys, data: Path, runs: Path, *, workers: int, threads: int) -> Any:
    """One row of the table: clips a second and the share of each part."""
    steps = settings.warmup + settings.steps + 1  # the last one is never reached
    words = [
        f"recipe={settings.recipe}", f"data={data}", f"steps={steps}",
        "checkpoint_every=0", "show_views=0", "tensorboard=false", *settings.set,
        f"workers={workers}", f"threads={threads}",
    ]  # fmt: skip
    passes = [False, True] if torch.cuda.is_available() else [True]
    seconds = {}
    for with_parts in passes:
        words.append(f"run={runs / f'{workers}-{threads}-{with_parts}'}")
        config = parse(PretrainConfig, words, command="ssmast pretrain", recipes=RECIPES)
        assert config is not None
        seconds[with_parts] = measure(config, settings, with_parts=with_parts)
    total, clocked = (sum(seconds[key].values()) for key in (passes[0], True))
    return {
        "workers": workers,
        "threads": torch.get_num_threads(),
        "model": config.model,
        "batch_size": config.batch_size,
        "frames": config.views.frames,
        "clips_per_second": settings.steps * config.batch_size / total,
        "wait": seconds[passes[0]]["wait for data"] / total,
        "shares": {part: seconds[True].get(part, 0.0) / clocked for part in PARTS},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one column a run."""
    names = [f"{row['workers']} workers, {row['threads']} threads" for row in rows]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(rows)]

    def line(name: str, cells: list[str]) -> str:
        return f"| {name} | " + " | ".join(cells) + " |"

    lines.append(line("**clips a second**", [f"**{row['clips_per_second']:.1f}**" for row in rows]))
    for part in PARTS:
        lines.append(line(part, [f"{row['shares'][part]:.1%}" for row in rows]))
    inside = [sum(row["shares"][part] for part in ENCODER_AND_HEADS) for row in rows]
    lines.append(line("outside encoder and heads", [f"{1 - share:.1%}" for share in inside]))
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print, write."""
    settings = parse(Keys, argv, command="python benchmarks/pretrain.py", description=__doc__ or "")
    if settings is None:
        return 0
    logging.getLogger("ssmast").setLevel(logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(settings.data) if settings.data else Path(folder) / "flac"
        if not settings.data:
            write_synthetic_corpus(data, num_clips=settings.clips, seed=0, seconds=settings.seconds)
        for workers in settings.workers:
            for threads in settings.threads:
                runs = Path(folder) / "runs"
                rows.append(measure_row(settings, data, runs, workers=workers, threads=threads))
                sys.stderr.write(f"{workers} workers, {rows[-1]['threads']} threads: done\n")
    has_gpu = torch.cuda.is_available()
    machine = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if has_gpu else platform.machine(),
        "cores": num_cores(),
    }
    first = rows[0]
    print(
        f"{settings.recipe}: {first['model']}, {first['frames']} frames, batch "
        f"{first['batch_size']}; {settings.steps} steps after {settings.warmup}; {machine}\n"
    )
    print(table(rows))
    if settings.out:
        Path(settings.out).write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="benchmarks/pretrain.py"))
