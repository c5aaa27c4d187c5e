"""The first day on a GPU: what one person with one card runs once, in under ten minutes.

    python benchmarks/gpu.py out=gpu.json                      # mast_base
    python benchmarks/gpu.py out=gpu.json minutes=20 model=mast_small
    python benchmarks/gpu.py out=gpu.json parts=[attention]    # one part again

The most telling parts come first, so that time cuts off the least. Each is caught on its own: one
that fails costs its own rows, which then say why. `out` is written after every part; the same
command again runs what is missing or failed. Ends with the Markdown that belongs into
benchmarks/README.md.

exactness: the CPU's numbers against the card's: model, gradient, embedding, log-mel.
step: `ssmast pretrain` itself, by batch: clips a second, memory, waits, kernels, share of the peak.
attention: every path with every kernel at the model's shapes, forward and backward.
compile: a step eager and compiled; depthwise pooling in two layouts of memory.
embedding: seconds of sound embedded a second, as shipped, with TF32, in bfloat16.
commands: the commands end to end, and whether the same command gives the same bits.
scaling: two processes against one, where there are two cards.
"""

import copy
import gc
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from attention import attention_inputs, shapes_of
from timing import Timer, count
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile

from ssmast.audio import LogMel, write_synthetic_corpus
from ssmast.cli import main as ssmast
from ssmast.command import run_command
from ssmast.encoder import Encoder
from ssmast.model import create_model
from ssmast.model.attention import relative_attention
from ssmast.settings import Settings, UsageError, parse, setting

Row = dict[str, Any]

MELS = 128
PATHS = ("augmented", "mask", "reference")
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    model: str = setting("mast_base", "MAST of which size")
    frames: int = setting(512, "input length; 512 frames are 5.12 s")
    batches: list[int] = setting([64, 256, 16], "batch sizes of a step")
    minutes: float = setting(9.5, "no part begins and no row is added after so long")
    parts: list[str] = setting([], "parts to run, even if they are done; empty: what is missing")
    workers: int = setting(8, "data workers of a step")
    tiny: bool = setting(False, "a run of seconds, to see that the script itself works")
    out: str = setting("gpu.json", "JSON file; what it holds is not run again")


def main(argv: list[str]) -> int:
    """Run the parts, write after each, print the tables."""
    settings = parse(Keys, argv, command="benchmarks/gpu.py", description=__doc__ or "")
    if settings is None:
        return 0
    if not torch.cuda.is_available():
        raise ValueError("benchmarks/gpu.py needs a CUDA card; `ssmast doctor` says what is found")
    if unknown := set(settings.parts) - set(PARTS):
        raise UsageError(f"parts must be of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if settings.tiny:
        settings = replace(settings, model="mast_nano", frames=32, batches=[4], workers=0)
    logging.getLogger("ssmast").setLevel(logging.WARNING)
    started, out = time.monotonic(), Path(settings.out)
    found: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    for name, part in PARTS.items():
        done = name in found and not any("failed" in row for row in found[name])
        if (settings.parts and name not in settings.parts) or (done and not settings.parts):
            continue
        if time.monotonic() - started > 60 * settings.minutes:
            sys.stderr.write(f"{name}: no time left; the same command again goes on here\n")
            continue
        begun = time.monotonic()
        found[name] = _rows(part, settings, until=started + 60 * settings.minutes)
        out.write_text(json.dumps(found, indent=1))
        sys.stderr.write(f"{name}: {time.monotonic() - begun:.0f} s\n")
        gc.collect()
        torch.cuda.empty_cache()
    sys.stdout.write(report(found))
    return 0


def _rows(part: Callable[[Keys], Iterator[Row]], settings: Keys, *, until: float) -> list[Row]:
    """The rows of a part; the last one says why it ended early, if it did."""
    rows: list[Row] = []
    try:
        for row in part(settings):
            rows.append(row)
            sys.stderr.write(f"  {row}\n")
            if time.monotonic() > until:
                rows.append({"failed": "no time left"})
                break
    except Exception as error:  # the other parts are worth as much
        traceback.print_exc(limit=-3)
        rows.append({"failed": _reason(error)})
    return rows


def _reason(error: Exception) -> str:
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[0][:200]}"


def report(found: dict[str, list[Row]]) -> str:
    """Markdown: a table for rows of the same columns."""
    lines = []
    for name, rows in found.items():
        if not rows:
            continue
        lines += ["", f"**{name}**"]
        columns: list[str] = []
        for row in rows:
            if list(row) != columns:
                columns = list(row)
                lines += ["", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
            lines.append("| " + " | ".join(_cell(value) for value in row.values()) + " |")
    return "\n".join(lines).strip() + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_cell(each)}" for key, each in value.items())
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value).replace("|", "/")


def _milliseconds(call: Callable[[], object], settings: Keys) -> float:
    """Median by the card's own clock."""
    times = []
    for number in range(2 if settings.tiny else 8):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if number >= (1 if settings.tiny else 3):
            times.append(begin.elapsed_time(end))
    return round(statistics.median(times), 3)


def _difference(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = on
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


# -- the parts -------------------------------------------------------------------------------------


def machine(settings: Keys) -> Iterator[Row]:
    """What card, driver and libraries; what it reaches in products of bfloat16."""
    card = torch.cuda.get_device_properties(0)
    size = 64 if settings.tiny else 8192
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    yield {
        "card": card.name,
        "compute capability": f"{card.major}.{card.minor}",
        "GiB": card.total_memory / 2**30,
        "cards": torch.cuda.device_count(),
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "driver": _driver(),
        "cores": os.cpu_count() or 0,
        "CPU": platform.processor() or platform.machine(),
        "bf16 TFLOP/s": 2 * size**3 / _milliseconds(lambda: a @ a, settings) / 1e9,
    }


def _driver() -> str:
    try:
        words = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def exactness(settings: Keys) -> Iterator[Row]:
    """Norm of the difference to the CPU over the norm, forward and gradient."""
    torch.manual_seed(0)
    x = torch.randn(2, 1, MELS, settings.frames)
    names = [settings.model, *([] if settings.tiny else ["ast_base"])]
    for name in names:
        network = create_model(name, num_classes=0, input_size=(MELS, settings.frames)).eval()
        wanted, gradient = _forward_and_gradient(network, x)
        for path in PATHS if name.startswith("mast") else ("auto",):
            for kind in ("float32", "TF32", "bfloat16"):
                on_card = copy.deepcopy(network).to("cuda")
                for module in on_card.modules():
                    if hasattr(module, "rel_pos_freq"):
                        module.path = path
                low = torch.autocast("cuda", torch.bfloat16, enabled=kind == "bfloat16")
                with _tf32(kind == "TF32"), low:
                    out, got = _forward_and_gradient(on_card, x.to("cuda"))
                yield {
                    "model": name,
                    "path": path,
                    "kind": kind,
                    "forward": _difference(out, wanted),
                    "gradient": _difference(got, gradient),
                }
    backbone = create_model("mast_nano", num_classes=0, input_size=(MELS, settings.frames))
    encoder = Encoder(backbone, LogMel(mean=-8.0, std=4.0))
    clips = [0.1 * torch.randn(n) for n in (5000, 16000, 40000)]
    on_card = copy.deepcopy(encoder).to("cuda")
    wanted = encoder.embed(clips, 16000)
    yield {"embedding of three clips, as shipped": _difference(on_card.embed(clips, 16000), wanted)}
    clip = clips[2][None]
    log_mel = on_card.log_mel.log_mel(clip.to("cuda"))
    yield {"log-mel": _difference(log_mel, encoder.log_mel.log_mel(clip))}


def _forward_and_gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    network.zero_grad(set_to_none=True)
    out = network(x)
    out.float().square().mean().backward()
    gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    return out, torch.cat(gradients)


class _Enough(Exception):  # noqa: N818 (no error)
    """The steps that are timed are over."""


class Steps:
    """Follows a run by the moves of its optimiser: speed, memory, waits, kernels.

    Args:
        warm: steps before the clock starts.
        timed: steps that are timed; then one is watched for waits, one for kernels.
    """

    def __init__(self, *, warm: int, timed: int, kernels: bool) -> None:
        self.warm, self.timed, self.kernels = warm, timed, kernels
        self.moves = 0
        self.found: Row = {}
        self._seen: list[warnings.WarningMessage] = []

    def moved(self, *_: Any) -> None:
        """The hook of the optimiser."""
        self.moves += 1
        after = self.moves - self.warm
        if after == 0:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._begin = time.perf_counter()
        elif after == self.timed:
            torch.cuda.synchronize()
            self.found["seconds a step"] = (time.perf_counter() - self._begin) / self.timed
            self.found["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
            self.found["reserved GiB"] = torch.cuda.max_memory_reserved() / 2**30
            self._watch = warnings.catch_warnings(record=True)
            self._seen = self._watch.__enter__() or []
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        elif after == self.timed + 1:
            torch.cuda.set_sync_debug_mode("default")
            self._watch.__exit__(None, None, None)
            waits = [w for w in self._seen if "synchroniz" in str(w.message)]
            lines = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits)
            self.found["waits"] = len(waits)
            self.found["waiting lines"] = dict(lines.most_common(12))
            if not self.kernels:
                raise _Enough
            self._profile = profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU])
            self._profile.__enter__()
            self._begin = time.perf_counter()
        elif after == self.timed + 2:
            torch.cuda.synchronize()
            wall = time.perf_counter() - self._begin
            self._profile.__exit__(None, None, None)
            events = [e for e in self._profile.events() or [] if e.device_type.name == "CUDA"]
            longest: Counter[str] = Counter()
            for event in events:
                longest[event.name[:60]] += event.device_time / 1e3
            self.found["kernels"] = len(events)
            self.found["card busy"] = sum(e.device_time for e in events) / 1e6 / wall
            self.found["longest, ms"] = dict(longest.most_common(6))
            raise _Enough

    def run(self, *words: str) -> Row:
        """`ssmast pretrain` with these words, as far as needed."""
        hook = register_optimizer_step_post_hook(self.moved)
        try:
            status = ssmast(["pretrain", *words])
        except _Enough:
            return self.found
        finally:
            hook.remove()
            torch.cuda.set_sync_debug_mode("default")
        raise ValueError(f"`ssmast pretrain` ended with status {status} after {self.moves} steps")


def step(settings: Keys) -> Iterator[Row]:
    """`ssmast pretrain` by batch size, micro-batches and patch-drop."""
    peak, products = 0.0, 0
    timer = Timer(torch.device("cuda"), torch.bfloat16)
    if not settings.tiny:
        peak = timer.peak_rate()
        network = create_model(settings.model, num_classes=0, input_size=(MELS, settings.frames))
        x = torch.zeros(1, 1, MELS, settings.frames)
        products = count(network.eval(), lambda: network(x))
    warm, timed = (1, 1) if settings.tiny else (6, 10)
    first = settings.batches[0]
    cases = [(batch, 1, 0.2) for batch in settings.batches]
    cases += [(first, 4, 0.2), (first, 1, 0.0)]
    with tempfile.TemporaryDirectory() as folder:
        seconds = settings.frames / 100 + 1
        clips = 12 if settings.tiny else 600
        write_synthetic_corpus(Path(folder) / "clips", num_clips=clips, seed=0, seconds=seconds)
        for number, (batch, micro, drop) in enumerate(cases):
            row: Row = {"batch": batch, "micro-batches": micro, "patch-drop": drop}
            words = [
                f"model={settings.model}", f"views.frames={settings.frames}",
                f"batch_size={batch}", f"optim.gradient_accumulation_steps={micro}",
                f"patch_drop.rate={drop}", f"data={folder}/clips", f"run={folder}/{number}",
                f"workers={settings.workers}", "loss.queue_size=64", "steps=1000",
                "log_every=1000", "show_views=0", "tensorboard=false", "views.waveform_augment=0",
                "front_end.stats_clips=8", "checkpoint_every=1000",
            ]  # fmt: skip
            steps = Steps(warm=warm, timed=timed, kernels=not settings.tiny)
            try:
                found = steps.run(*words)
            except torch.cuda.OutOfMemoryError:
                yield {**row, "failed": "out of memory"}
                continue
            except Exception as error:
                yield {**row, "failed": _reason(error)}
                continue
            finally:
                gc.collect()
                torch.cuda.empty_cache()
            row["clips/s"] = batch / found["seconds a step"]
            if peak:  # two views: the student's forward and backward, the teacher's forward
                row["share of peak"] = 8 * products * row["clips/s"] / peak
            yield row | found


def attention(settings: Keys) -> Iterator[Row]:
    """Milliseconds forward and backward of every path by every kernel of PyTorch."""
    batch = 1 if settings.tiny else 64
    for shape in shapes_of(settings.model, settings.frames):
        wanted = AttentionInputs(batch=batch)
        row: Row = {
            "heads, queries, keys": f"{shape.heads}, {shape.queries}, {shape.freq} x {shape.time}"
        }
        inputs = [tensor.requires_grad_() for tensor in attention_inputs(shape, wanted)]
        for path in PATHS:
            for backend in BACKENDS if path != "reference" else ("MATH",):

                def both(path: str = path, backend: str = backend) -> None:
                    with sdpa_kernel(getattr(SDPBackend, backend)):
                        out = relative_attention(*inputs, path=path)  # noqa: B023
                        out.sum().backward()

                try:
                    took: Any = _milliseconds(both, settings)
                except Exception as error:  # this kernel does not take this shape
                    took = f"cannot ({type(error).__name__})"
                row[f"{path}, {backend.split('_')[0].lower()}"] = took
        yield row


@dataclass
class AttentionInputs:
    """What `attention_inputs` asks of settings."""

    batch: int
    device: str = "cuda"
    dtype: str = "bfloat16"


def compile_(settings: Keys) -> Iterator[Row]:
    """A step eager and compiled; depthwise pooling in both layouts of memory."""
    batch = 1 if settings.tiny else 64
    image = torch.randn(batch * 4, 96, 16, 64, device="cuda", dtype=torch.bfloat16)
    pool = nn.Conv2d(96, 96, 3, 1, 1, groups=96, bias=False).to("cuda", torch.bfloat16)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = image.contiguous(memory_format=layout).requires_grad_()
        took = _milliseconds(lambda x=x: pool(x).sum().backward(), settings)
        yield {"what": f"depthwise 3 x 3, {layout}", "ms": took, "compiling, s": 0.0}
    network = create_model(settings.model, num_classes=0, input_size=(MELS, settings.frames))
    network = network.to("cuda").train()
    x = torch.randn(batch, 1, MELS, settings.frames, device="cuda")

    def one(call: Callable[[Tensor], Tensor]) -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            out = call(x)
        out.float().square().mean().backward()

    took = _milliseconds(lambda: one(network), settings)
    yield {"what": f"{settings.model}, batch {batch}, eager", "ms": took, "compiling, s": 0.0}
    if settings.tiny:  # the stand-in of a card has no Triton
        return
    compiled, begin = torch.compile(network), time.monotonic()
    one(compiled)  # type: ignore[arg-type]
    first = time.monotonic() - begin
    took = _milliseconds(lambda: one(compiled), settings)  # type: ignore[arg-type]
    yield {"what": f"{settings.model}, batch {batch}, compiled", "ms": took, "compiling, s": first}


def embedding(settings: Keys) -> Iterator[Row]:
    """Seconds of sound a second, and what each kind changes of the embedding."""
    backbone = create_model(settings.model, num_classes=0, input_size=(MELS, settings.frames))
    encoder = Encoder(backbone, LogMel(mean=-8.0, std=4.0)).to("cuda")
    seconds, number = (1, 2) if settings.tiny else (10, 60)
    clips = [0.1 * torch.randn(16000 * seconds) for _ in range(number)]
    first: Tensor | None = None
    for kind in ("as shipped", "TF32", "bfloat16"):
        low = torch.autocast("cuda", torch.bfloat16, enabled=kind == "bfloat16")
        with _tf32(kind == "TF32"), low:
            out = encoder.embed_clips(clips, batch_seconds=600.0)
            begin = time.perf_counter()
            out = encoder.embed_clips(clips, batch_seconds=600.0)
            took = time.perf_counter() - begin
        first = out if first is None else first
        row: Row = {"kind": kind, "seconds of sound a second": seconds * number / took}
        yield row | {"difference": _difference(out, first)}


def commands(settings: Keys) -> Iterator[Row]:
    """Each command's exit status and time; whether two runs of one command give the same bits."""
    steps = 2 if settings.tiny else 40
    few = [f"steps={steps}", "front_end.stats_clips=8"]
    small = ["batch_size=4", "views.frames=32"] if settings.tiny else []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a",) if settings.tiny else ("a", "b"):
            yield _command(folder, "pretrain", "recipe=smoke", *few, *small, f"run=runs/{name}")
        if settings.tiny:
            return
        files = [Path(folder, f"runs/{name}/encoder/model.safetensors") for name in ("a", "b")]
        bits = {file.read_bytes() if file.is_file() else str(file).encode() for file in files}
        yield {"the same command twice, the same bits": len(bits) == 1}
        frames = ["batch_size=32", "views.frames=128"]
        yield _command(folder, "pretrain", "recipe=ssast_nano", *few, *frames, "run=runs/c")
        tuned = ["recipe=finetune_small", "init=runs/a", "data=runs/synthetic", "run=runs/d"]
        yield _command(folder, "finetune", *tuned, f"steps={steps}")
        where = ["encoder=runs/a/encoder", "data=runs", "tasks=[synthetic]", "out=runs/e"]
        yield _command(folder, "probe", *where)
        where = ["runs/synthetic", "encoder=runs/a/encoder", "out=runs/e.npz"]
        yield _command(folder, "embed", *where)


def _command(folder: str, *words: str) -> Row:
    begin = time.monotonic()
    line = [sys.executable, "-m", "ssmast", *words]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    last = (done.stderr.strip().splitlines() or [""])[-1][:120]
    seconds = time.monotonic() - begin
    row: Row = {"command": " ".join(words), "exit status": done.returncode, "s": seconds}
    return row | {"last line": last}


def scaling(settings: Keys) -> Iterator[Row]:
    """Clips a second of one and of two processes on the same batch."""
    if torch.cuda.device_count() < 2:
        return
    with tempfile.TemporaryDirectory() as folder:
        for size in (1, 2):
            flags = ["--num_processes", str(size), *(["--multi_gpu"] if size > 1 else [])]
            words = [
                *("-m", "ssmast", "pretrain", f"model={settings.model}", "steps=30"),
                *(f"views.frames={settings.frames}", f"batch_size={settings.batches[0]}"),
                *("log_every=10", "show_views=0", f"run={folder}/{size}", "loss.queue_size=64"),
                *(f"workers={settings.workers}", f"processes={size}"),
            ]
            launch = [sys.executable, "-m", "accelerate.commands.launch", *flags, *words]
            done = subprocess.run(launch, capture_output=True, text=True)
            if done.returncode:
                yield {"processes": size, "failed": done.stderr.strip()[-200:]}
                continue
            rows = Path(folder, str(size), "metrics.jsonl").read_text().splitlines()
            logged = json.loads(rows[-1])
            rate = next(value for key, value in logged.items() if key.startswith("clips"))
            yield {"processes": size, "clips/s": rate, "loss": logged["loss"]}


PARTS: dict[str, Callable[[Keys], Iterator[Row]]] = {
    "machine": machine,
    "exactness": exactness,
    "step": step,
    "attention": attention,
    "compile": compile_,
    "embedding": embedding,
    "commands": commands,
    "scaling": scaling,
}


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="benchmarks/gpu.py"))
