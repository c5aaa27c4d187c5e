"""MAST against timm's MViTv2 and AST: forward, training step, memory; one process, interleaved.

    python benchmarks/encoder.py                                  # mast_base, 1 s, 5 s, 10 s
    python benchmarks/encoder.py model=mast_nano frames=[96] batches=[1,16] runs=5
    python benchmarks/encoder.py device=cuda dtype=bfloat16 batches=[1,0] compile=true out=gpu.json

timm's MViTv2 takes square images only. Here its check is passed by and its position tables are
built for each axis, so that it computes the same function as MAST: before anything is timed, both
get the same weights and must give the same numbers.
The share of the peak is that of a large matrix product in the same data type on the same device,
counted with attention's products. Prints Markdown; writes every run as JSON where `out` says.
"""

import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from rivals import MELS, NUM_CLASSES, check_twin, timm_twin
from timing import Timer, count, saved_megabytes
from torch import Tensor, nn

from ssmast.command import run_command
from ssmast.model import MAST, create_model
from ssmast.settings import Settings, parse, setting


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    model: str = setting("mast_base", "MAST of which size")
    frames: list[int] = setting([96, 512, 1024], "input lengths; 1024 frames are 10.23 s")
    batches: list[int] = setting([1, 8], "clips at once; 0 for the most that fit on a CUDA device")
    runs: int = setting(7, "timed runs of each; the median counts")
    device: str = setting("auto", "cpu, cuda, or auto for cuda where there is one")
    dtype: str = setting("float32", "float32, or bfloat16 for autocast")
    threads: int = setting(0, "CPU threads, 0 for torch's choice")
    paths: list[str] = setting(["reference", "mask", "augmented"], "attention paths beside auto")
    patch_drop: float = setting(0.2, "also time with this structured patch-drop; 0 for none")
    compile: bool = setting(False, "also time ours and timm's under torch.compile")
    mvit: bool = setting(True, "time timm's MViTv2 too")
    ast: bool = setting(True, "time AST too")
    out: str = setting("", "JSON file to write")


def contenders(settings: Keys, frames: int, batch: int) -> dict[str, tuple[nn.Module, Any]]:
    """Name -> (model, patch-drop draw or None), all on the CPU still."""
    mast = create_model(settings.model, num_classes=NUM_CLASSES, input_size=(MELS, frames))
    assert isinstance(mast, MAST)
    models: dict[str, tuple[nn.Module, Any]] = {f"{settings.model}, auto": (mast, None)}
    for path in settings.paths:
        same = create_model(
            settings.model,
            num_classes=NUM_CLASSES,
            input_size=(MELS, frames),
            attention_path=path,
        )
        same.load_state_dict(mast.state_dict())
        models[f"{settings.model}, {path}"] = (same, None)
    if settings.patch_drop:

        def draw(generator: torch.Generator) -> Any:
            return mast.draw_patch_drop(
                MELS,
                frames,
                rate=settings.patch_drop,
                mode="structured",
                batch=batch,
                generator=generator,
            )

        models[f"{settings.model}, structured drop {settings.patch_drop:.0%}"] = (mast, draw)
    if settings.mvit:
        twin = timm_twin(mast)
        check_twin(mast, twin)
        models["timm MViTv2, non-square"] = (twin, None)
    if settings.ast:
        ast = create_model("ast_base", num_classes=NUM_CLASSES, input_size=(MELS, frames))
        models["ast_base"] = (ast, None)
    if settings.compile:
        for name in (f"{settings.model}, auto", "timm MViTv2, non-square", "ast_base"):
            if name in models:
                compiled = cast(nn.Module, torch.compile(models[name][0]))
                models[f"{name}, compiled"] = (compiled, None)
    return models


def largest_batch(settings: Keys, frames: int, timer: Timer) -> int:
    """The largest power of two with which every contender takes a training step."""
    if timer.device.type != "cuda":
        raise ValueError(
            "batches=0 (the most that fit) needs a CUDA device; give a number of clips"
        )
    models = contenders(settings, frames, 1)
    batch = 1
    while True:
        try:
            for model, _ in models.values():
                model.to(timer.device).train()
                x = torch.randn(2 * batch, 1, MELS, frames, device=timer.device)
                timer.run(partial(model, x), backward=True)
                model.zero_grad()
                model.cpu()
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return batch
        batch *= 2


def measure(settings: Keys, frames: int, batch: int, timer: Timer) -> list[dict[str, Any]]:
    """Rows of one input length and batch; every run times all contenders in turn."""
    batch = batch or largest_batch(settings, frames, timer)
    x = torch.randn(batch, 1, MELS, frames).to(timer.device)
    draws = torch.Generator().manual_seed(0)
    models = contenders(settings, frames, batch)
    rows: dict[str, dict[str, Any]] = {}
    for run in range(-1, settings.runs):  # run -1 warms up
        for name, (model, draw) in models.items():
            keywords = {} if draw is None else {"patch_drop": draw(draws)}
            call = partial(model.to(timer.device).train(), x, **keywords)
            model.zero_grad()
            step = timer.run(call, backward=True)
            model.eval()
            forward = timer.run(call, backward=False)
            if run < 0:
                rows[name] = first_row(name, frames, model, call, timer) | {"batch": batch}
                continue
            rows[name]["forward_seconds"].append(forward)
            rows[name]["step_seconds"].append(step)
    return list(rows.values())


def first_row(
    name: str, frames: int, model: nn.Module, call: Callable[[], Tensor], timer: Timer
) -> dict[str, Any]:
    """What is measured once."""
    compiled = name.endswith("compiled")
    row: dict[str, Any] = {"name": name, "frames": frames}
    row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    row["forward_seconds"], row["step_seconds"] = [], []
    row["forward_mb"] = timer.peak_megabytes(call, backward=False)
    # Counting sees through what is compiled or dropped only in the plain model.
    row["macs"] = None if compiled else count(model, call)
    model.train()
    model.zero_grad()
    row["step_mb"] = timer.peak_megabytes(call, backward=True)
    row["saved_mb"] = None if compiled else saved_megabytes(model, call)
    return row


def table(rows: list[dict[str, Any]], peak_rate: float) -> str:
    """Markdown of medians; factors against timm's MViTv2 where it ran."""
    lines = [
        "| frames | batch | model | forward (clips/s) | against timm | step (clips/s) "
        "| against timm | step, share of peak | peak forward (MB) | peak step (MB) |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [row["frames"], row["batch"], row["name"]]
        for kind in ("forward_seconds", "step_seconds"):
            seconds, rival = median(row[kind]), timm_seconds(rows, row, kind)
            cells += [f"{row['batch'] / seconds:.2f}", f"{rival / seconds:.2f} x" if rival else ""]
        share = 3 * (row["macs"] or 0) / median(row["step_seconds"]) / peak_rate
        cells += [f"{share:.0%}" if share else ""]
        cells += [f"{row[key]:.0f}" for key in ("forward_mb", "step_mb")]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def timm_seconds(rows: list[dict[str, Any]], row: dict[str, Any], kind: str) -> float | None:
    """Median of timm's twin for the same input, if it ran."""
    for other in rows:
        same = (other["frames"], other["batch"]) == (row["frames"], row["batch"])
        if same and other["name"] == "timm MViTv2, non-square":
            return median(other[kind])
    return None


def main(argv: list[str]) -> int:
    """Measure, print, write."""
    settings = parse(Keys, argv, command="python benchmarks/encoder.py", description=__doc__ or "")
    if settings is None:
        return 0
    if settings.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {settings.dtype!r}")
    for frames in settings.frames:
        if frames % 32:
            raise ValueError(
                f"frames must be multiples of 32, as timm's MViTv2 needs, got {frames}"
            )
    if settings.threads:
        torch.set_num_threads(settings.threads)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if settings.device == "auto" else settings.device)
    timer = Timer(device, getattr(torch, settings.dtype))
    peak_rate = timer.peak_rate()
    rows: list[dict[str, Any]] = []
    for frames in settings.frames:
        for batch in settings.batches:
            torch.manual_seed(0)
            rows += measure(settings, frames, batch, timer)
            sys.stderr.write(f"{frames} frames, batch {batch}: done\n")
    machine = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": settings.dtype,
        "gmacs_a_second": round(peak_rate / 1e9, 1),
    }
    print(f"{machine}; medians of {settings.runs} interleaved runs; step = forward + backward\n")
    print(table(rows, peak_rate))
    if settings.out:
        Path(settings.out).write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="benchmarks/encoder.py"))
