"""A training step of mast_nano against the same step put together from timm and lightly.

    python benchmarks/step.py                          # real_nano: batch 96, 0.95 s, one core
    python benchmarks/step.py 'threads=[1,2]' rounds=3 # two cores against one
    python benchmarks/step.py 'threads=[1,2]' profile=true # operator by operator
    python benchmarks/step.py bf16=true                # both sides in bfloat16 too
    python benchmarks/step.py compile=true             # with compile=true too, and when that pays

The other side is what a person would write: timm's MViTv2 with our numbers (its square assertion
passed by; the same weights), lightly's MoCo heads, momentum update and NTXentLoss with a memory
bank, AdamW, the same clips in memory through the same log-mel, and no augmentation. Ours is
`train_step` of the recipe, with its augmentation: without patch-drop as theirs, and with the
recipe's. The sides take turns in one process. The share of the peak counts every product of a step
against a 2048 x 2048 product.

Prints Markdown; writes every number as JSON where `out` says.
"""

import copy
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import MoCoProjectionHead
from lightly.models.utils import update_momentum
from rivals import timm_twin
from timing import take_turns, turns_table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ssmast import create_model
from ssmast.audio import LogMel
from ssmast.audio.segments import SegmentBatch
from ssmast.command import run_command
from ssmast.html import markdown_table
from ssmast.model import MAST
from ssmast.settings import Settings, parse, setting
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.objective import RunFacts
from ssmast.training.objectives.ss_mast import SSMAST
from ssmast.training.step import TrainingState

RECIPE = "ssmast, patch-drop 20 %"
THEIRS = "timm and lightly"
COMPILED = RECIPE + ", compiled"
_SHOWN = 14  # operators of a profile
WARM_STEPS = 8  # structured patch-drop draws a few sizes, each a graph of its own


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    batch_size: int = setting(96, "clips, two segments of each")
    rounds: int = setting(5, "turns after one to warm up; the median counts")
    threads: list[int] = setting([1], "of PyTorch; several numbers take turns")
    compile: bool = setting(
        False, "the recipe compiled too: a turn more, after minutes of compiling"
    )
    bf16: bool = setting(False, "both sides in bfloat16 too: products alone, as precision=bf16")
    profile: bool = setting(False, "where our step without patch-drop takes its time, by operator")
    out: str = setting("", "JSON file of every number")


def main(argv: list[str]) -> int:
    """Measure and print."""
    keys = parse(Keys, argv, command="benchmarks/step.py", description=__doc__ or "")
    if keys is None:
        return 0
    log_mel = LogMel(num_mels=64, mean=-8.0, std=4.5)
    ids = torch.arange(keys.batch_size)
    segments = SegmentBatch(
        waveform=0.1 * torch.randn(keys.batch_size, 2, log_mel.samples(96)),
        clip=ids, epoch=torch.zeros_like(ids), position=ids,
    )  # fmt: skip
    sides = {
        "ssmast": _ours(log_mel, segments, drop=0.0),
        RECIPE: _ours(log_mel, segments, drop=0.2),
        THEIRS: _theirs(log_mel, segments),
    }
    if keys.bf16:
        low = partial(torch.autocast, "cpu", torch.bfloat16)
        sides[f"{RECIPE}, bf16"] = _ours(log_mel, segments, drop=0.2, autocast=low)
        sides[f"{THEIRS}, bf16"] = _theirs(log_mel, segments, autocast=low)
    warm = list[float]()
    if keys.compile:
        sides[COMPILED] = _ours(log_mel, segments, drop=0.2, compile=True)
        warm = take_turns({COMPILED: sides[COMPILED]}, rounds=WARM_STEPS)[COMPILED]["clock"]
    turns = {
        _name(name, num): partial(_with_threads, step, num)
        for num in keys.threads
        for name, step in sides.items()
    }
    take_turns(turns, rounds=1)
    found = take_turns(turns, rounds=keys.rounds)
    print(f"batch {keys.batch_size}; seconds a step\n")
    print(turns_table(found, against=_name(THEIRS, keys.threads[0])))
    torch.set_num_threads(1)
    left = torch.randn(2048, 2048)
    product = take_turns({"": lambda: left @ left}, rounds=10)[""]["cpu"]
    peak, shares = 2048**3 / median(product), {}
    for name, step in sides.items():
        if name == COMPILED or name.endswith("bf16"):
            continue  # the counter sees no product of a compiled graph; the peak is of float32
        # The counter knows products; it does not know the CPU's fused attention.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            step()
        for num in keys.threads:
            row = _name(name, num)
            turn = found[row]
            # Of CPU time where one core computes: a neighbour on it does not count.
            seconds = median(turn["cpu"] if num == 1 else turn["clock"])
            rate = keys.batch_size / seconds
            share = counter.get_total_flops() / 2 / seconds / (peak * num)
            shares[row] = share
            print(f"\n{row}: {rate:.1f} clips/s, {share:.0%} of the matrix peak", end="")
    print(f"\n\npeak of a core: {peak / 1e9:.0f} G multiplications (with addition) a second")
    for num in keys.threads[1:]:
        for name in sides:
            one, more = (
                median(found[_name(name, each)]["clock"]) for each in (keys.threads[0], num)
            )
            print(f"\n{name}: {one / more:.2f} x on {num} threads", end="")
    if keys.compile:
        eager, compiled = (
            median(found[_name(name, keys.threads[0])]["clock"]) for name in (RECIPE, COMPILED)
        )
        spent, saved = sum(warm) - WARM_STEPS * compiled, eager - compiled
        pays = f"pays after {spent / saved:.0f} steps" if saved > 0 else "never pays"
        print(f"\ncompiling took {spent:.0f} s and saves {saved:.3f} s a step: it {pays}", end="")
    print()
    if keys.profile:
        print(f"\nssmast, no patch-drop\n\n{_profile_table(sides['ssmast'], keys)}")
    if keys.out:
        facts = {"settings": asdict(keys), "peak": peak, "shares": shares, "seconds": found}
        Path(keys.out).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


def _profile_table(step: Callable[[], object], keys: Keys) -> str:
    """Milliseconds a step in each operator itself, least of the rounds, Markdown."""
    least = defaultdict[str, list[float]](lambda: [math.inf] * len(keys.threads))
    for i, num in enumerate(keys.threads):
        for _ in range(keys.rounds):
            with profile(activities=[ProfilerActivity.CPU]) as found:
                _with_threads(step, num)
            for event in found.key_averages():
                ms = event.self_cpu_time_total / 1e3
                least[event.key][i] = min(least[event.key][i], ms)
    for ms in least.values():  # an operator may be used with one number of threads alone
        ms[:] = [value if math.isfinite(value) else 0.0 for value in ms]
    ordered = sorted(least.items(), key=lambda item: -item[1][0])
    shown, rest = ordered[:_SHOWN], ordered[_SHOWN:]
    rows = list(shown)
    for name, some in (("the rest", rest), ("all", ordered)):
        rows.append((name, [sum(ms[i] for _, ms in some) for i in range(len(keys.threads))]))
    head = ["", *(f"{num} thread(s)" for num in keys.threads), ""]
    cells = [(n, *(f"{v:.0f}" for v in ms), f"{ms[0] / max(ms[-1], 1e-9):.2f} x") for n, ms in rows]
    return markdown_table(head, cells, numbers=len(head) - 1)


def _name(side: str, threads: int) -> str:
    return f"{side}, {threads} thread(s)"


def _with_threads(step: Callable[[], object], threads: int) -> None:
    torch.set_num_threads(threads)
    step()


def _ours(
    log_mel: LogMel,
    segments: SegmentBatch,
    *,
    drop: float,
    compile: bool = False,
    autocast: Callable[[], Any] = nullcontext,
) -> Callable[[], object]:
    words = ["recipe=real_nano", f"batch_size={len(segments)}", f"patch_drop.rate={drop}"]
    words.append(f"compile={str(compile).lower()}")
    config = parse(PretrainConfig, words, command="ssmast pretrain", recipes=RECIPES)
    assert config is not None
    run = RunFacts(log_mel=log_mel, num_clips=10_000, steps=1000)
    accelerator = Accelerator(cpu=True)
    accelerator.autocast = autocast  # one accelerator alone in a process has a precision
    state = TrainingState(SSMAST(config, run), accelerator)
    return lambda: state.train_step(segments)


def _theirs(
    log_mel: LogMel, segments: SegmentBatch, *, autocast: Callable[[], Any] = nullcontext
) -> Callable[[], object]:
    mast = create_model("mast_nano", input_size=(64, 96))
    assert isinstance(mast, MAST)
    backbone = timm_twin(mast)
    backbone.reset_classifier(0)
    projector = MoCoProjectionHead(backbone.num_features, 1024, 256, num_layers=3, batch_norm=True)
    student = nn.Sequential(backbone, projector)
    predictor = MoCoProjectionHead(256, 1024, 256, num_layers=2, batch_norm=True)
    teacher = copy.deepcopy(student).requires_grad_(False)
    criterion = NTXentLoss(temperature=0.2, memory_bank_size=(576, 256))
    parameters = [*student.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        update_momentum(student, teacher, m=0.99)
        views = [log_mel(segments.waveform[:, k]) for k in (0, 1)]
        with autocast():
            queries = [predictor(student(view)).float() for view in views]
        with torch.no_grad(), autocast():
            keys = [teacher(view).float() for view in views]
        loss = criterion(queries[0], keys[1]) + criterion(queries[1], keys[0])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="benchmarks/step.py"))
