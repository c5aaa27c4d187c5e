"""Every way to compute pooling attention, at each shape that one MAST has; interleaved medians.

    python benchmarks/attention.py                                  # mast_base, 10 s
    python benchmarks/attention.py frames=96 batch=8 flex=true
    python benchmarks/attention.py device=cuda dtype=bfloat16 flex=true

The first table is attention with the relative bias: the paths of `ssmast.model.attention`, and with
`flex=true` PyTorch's FlexAttention, compiled. The second is the depthwise pooling of keys with the
norm after it: as it is, and both as one kernel that torch.compile makes. All give the same numbers
before anything is timed. `choose_path` follows these tables.
"""

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from rivals import MELS
from timing import Timer
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from ssmast.command import run_command
from ssmast.model import Grid, create_model
from ssmast.model import block as block_room
from ssmast.model.attention import choose_path, relative_attention
from ssmast.settings import Settings, parse, setting

Call = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    model: str = setting("mast_base", "MAST of which size")
    frames: int = setting(1024, "input length; 1024 frames are 10.23 s")
    batch: int = setting(1, "clips at once")
    runs: int = setting(9, "timed runs of each; the median counts")
    device: str = setting("cpu", "cpu or cuda")
    dtype: str = setting("float32", "float32 or bfloat16")
    threads: int = setting(1, "CPU threads")
    paths: list[str] = setting(["reference", "mask", "augmented", "tiled"], "paths to time")
    flex: bool = setting(False, "time FlexAttention and the compiled pooling too (compiles long)")
    out: str = setting("", "JSON file to write")


@dataclass(frozen=True)
class Shape:
    """One kind of attention: heads, queries, rows and columns of keys, channels of a head."""

    heads: int
    queries: int
    freq: int
    time: int
    dim: int


def shapes_of(model: str, frames: int) -> dict[Shape, int]:
    """How often each shape comes up in one forward pass, in the order of the blocks."""
    found: dict[Shape, int] = {}

    def seen(q: Tensor, k: Tensor, v: Tensor, bias_freq: Tensor, bias_time: Tensor, **kw: object):
        _, heads, queries, dim = q.shape
        shape = Shape(heads, queries, bias_freq.shape[-1], bias_time.shape[-1], dim)
        found[shape] = found.get(shape, 0) + 1
        return relative_attention(q, k, v, bias_freq, bias_time)

    backbone = create_model(model, num_classes=0, input_size=(MELS, frames)).eval()
    with mock.patch.object(block_room, "relative_attention", seen), torch.no_grad():
        backbone(torch.zeros(1, 1, MELS, frames))
    return found


def flex(q: Tensor, k: Tensor, v: Tensor, bias_freq: Tensor, bias_time: Tensor) -> Tensor:
    """The same attention, its bias looked up for every pair by FlexAttention."""
    columns = bias_time.shape[-1]

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias_freq[b, h, i, j // columns] + bias_time[b, h, i, j % columns]

    out = flex_attention(q, k, v, score_mod=biased)
    assert isinstance(out, Tensor)
    return out


def attention_inputs(shape: Shape, settings: Keys) -> list[Tensor]:
    """q, k, v and the two biases, at random."""
    keys = shape.freq * shape.time
    sizes = [(shape.queries, shape.dim), (keys, shape.dim), (keys, shape.dim)]
    sizes += [(shape.queries, shape.freq), (shape.queries, shape.time)]
    made = [torch.randn(settings.batch, shape.heads, *size) for size in sizes]
    return [tensor.to(settings.device, getattr(torch, settings.dtype)) for tensor in made]


class PoolNorm(nn.Module):
    """Depthwise 3 x 3 pooling of the keys' grid, then the norm."""

    def __init__(self, dim: int, grid: Grid, stride: tuple[int, int]) -> None:
        super().__init__()
        self.conv, self.norm = block_room._pooling(dim, (3, 3), stride, 1e-6)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N', D)."""
        return self.norm(block_room._pool(x, self.grid, self.conv))


def measured(
    calls: dict[str, Call], inputs: list[Tensor], settings: Keys, *, backward: bool
) -> dict[str, float | str]:
    """Median milliseconds of each call, one after the other in turn; why not, where it cannot.

    Raises:
        ValueError: if a call differs from the first one, taken in float32. In bfloat16 the root
            mean square counts: single numbers are off by as much as a bias is rounded.
    """
    exact = settings.dtype == "float32"
    timer = Timer(torch.device(settings.device), torch.float32)  # the inputs have their type
    tensors = [tensor.detach().requires_grad_(backward) for tensor in inputs]
    times: dict[str, list[float]] = {}
    cannot: dict[str, float | str] = {}
    first_name, first = next(iter(calls.items()))
    with torch.no_grad():
        wanted = first(*(tensor.detach().float() for tensor in tensors))
    for name, call in calls.items():
        try:
            timer.run(functools.partial(call, *tensors), backward=backward)
            out = call(*tensors).detach()
        except Exception as error:  # no kernel, no compiler, no memory: the others are timed
            said = str(error).split(".")[0].splitlines() or [""]
            cannot[name] = f"cannot: {said[0] or type(error).__name__}"
            continue
        off = out.float() - wanted
        worst = off.abs().max().item() if exact else off.square().mean().sqrt().item()
        if not worst <= (1e-4 if exact else 5e-2):
            raise ValueError(f"{name} differs by {worst:.1e} from {first_name}")
        times[name] = []
    for _ in range(settings.runs):
        for name, found in times.items():
            for tensor in tensors:
                tensor.grad = None
            call = functools.partial(calls[name], *tensors)
            found.append(1e3 * timer.run(call, backward=backward))
    return {name: cannot[name] if name in cannot else median(times[name]) for name in calls}


def table(
    title: str, rows: dict[str, dict[str, float | str]], chosen: dict[str, str] | None = None
) -> str:
    """Markdown, a row a shape; the fastest in bold, and what `choose_path` takes beside it."""
    names = list(next(iter(rows.values())))
    last = ["auto takes"] if chosen else []
    lines = [f"| {title} | " + " | ".join(names + last) + " |", "|---|" + "---:|" * len(names)]
    lines[1] += "---|" * len(last)
    for name, row in rows.items():
        timed = [value for value in row.values() if not isinstance(value, str)]
        best = min(timed, default=None)
        cells = [
            value if isinstance(value, str) else f"**{value:.2f}**" if value == best
            else f"{value:.2f}" for value in row.values()
        ]  # fmt: skip
        cells += [chosen[name]] if chosen else []
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Print both tables."""
    settings = parse(Keys, argv, command="benchmarks/attention.py", description=__doc__ or "")
    if settings is None:
        return 0
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    shapes = shapes_of(settings.model, settings.frames)
    found: dict[str, dict[str, dict[str, float | str]]] = {}
    for backward, kind in ((False, "forward"), (True, "forward and backward")):
        rows, chosen, pools = {}, {}, {}
        for shape, count in shapes.items():
            name = (
                f"{count} x: {shape.heads} heads, {shape.queries} queries, "
                f"{shape.freq} x {shape.time} keys"
            )
            calls: dict[str, Call] = {
                path: functools.partial(relative_attention, path=path) for path in settings.paths
            }
            if settings.flex:
                calls["FlexAttention"] = torch.compile(flex, dynamic=False)
            rows[name] = measured(
                calls, attention_inputs(shape, settings), settings, backward=backward
            )
            chosen[name] = choose_path(
                settings.device, head_dim=shape.dim, queries=shape.queries,
                freq=shape.freq, time=shape.time, trains=backward,
            )  # fmt: skip
            if settings.flex and shape.queries > shape.freq * shape.time:
                pools[name] = _pooled(shape, settings, backward=backward)
        found[kind] = rows
        sys.stdout.write(f"\n{kind}, ms\n\n{table('attention', rows, chosen)}")
        if pools:
            found[f"pooling, {kind}"] = pools
            sys.stdout.write(f"\n{table('pooling and norm of the keys', pools)}")
    if settings.out:
        Path(settings.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def _pooled(shape: Shape, settings: Keys, *, backward: bool) -> dict[str, float | str]:
    """Pooling and norm of keys from a grid of the queries' size, as it is and compiled."""
    factor = int((shape.queries / (shape.freq * shape.time)) ** 0.5)
    grid = Grid(shape.freq * factor, shape.time * factor)
    module = PoolNorm(shape.dim, grid, (factor, factor)).to(settings.device)
    module = module.to(getattr(torch, settings.dtype))
    x = torch.randn(settings.batch * shape.heads, grid.freq * grid.time, shape.dim)
    x = x.to(settings.device, getattr(torch, settings.dtype))
    calls: dict[str, Call] = {"as it is": module, "torch.compile": torch.compile(module)}
    return measured(calls, [x], settings, backward=backward)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="attention.py"))
