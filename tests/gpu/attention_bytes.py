"""Bytes that attention's two ways on a card read and write in a training step of mast_base.

    python -m tests.gpu.run compute=false -m tests.gpu.attention_bytes 96 1024

For each number of frames: MiB of a clip in bfloat16, forward and backward, of all blocks. What a
kernel is given and what it returns counts once; what it keeps to itself, and views, do not.
"""

import sys
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssmast.model import block, create_model
from ssmast.model.attention import relative_attention

_BATCH = 16


class Moved(TorchDispatchMode):
    """Sums the bytes of operands and results of what is computed within."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and count."""
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in str(func) and "detach" not in str(func):
            found = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            is_whole = [x.is_cuda and 0 not in x.stride() for x in found]  # not expanded
            self.bytes += sum(x.nbytes for x, whole in zip(found, is_whole, strict=True) if whole)
        return out


def shapes_of(frames: int) -> Counter[tuple[torch.Size, ...]]:
    """Shapes of queries, keys and biases in the blocks of mast_base, and how often each occurs."""
    shapes: Counter[tuple[torch.Size, ...]] = Counter()

    def noted(q: Any, k: Any, v: Any, freq: Any, time: Any, **keywords: Any) -> Any:
        shapes[tuple(x.shape[1:] for x in (q, k, v, freq, time))] += 1
        return relative_attention(q, k, v, freq, time, **keywords)

    block.relative_attention = noted
    with torch.no_grad():
        create_model("mast_base", input_size=(128, frames)).eval()(torch.zeros(1, 1, 128, frames))
    block.relative_attention = relative_attention
    return shapes


def mib_a_clip(frames: int, path: str) -> float:
    """MiB that one way moves, in all blocks."""
    total = 0
    for shapes, times in shapes_of(frames).items():
        with torch.device("cuda"):
            parts = [torch.zeros(_BATCH, *shape, dtype=torch.bfloat16) for shape in shapes]
        for part in parts:
            part.requires_grad_()
        with Moved() as moved:
            out = relative_attention(*parts, path=path)
            out.backward(torch.zeros_like(out))
        total += times * moved.bytes
    return total / _BATCH / 2**20


def main(argv: list[str]) -> int:
    """A line for each number of frames."""
    for frames in map(int, argv):
        found = {path: mib_a_clip(frames, path) for path in ("mask", "augmented")}
        told = ", ".join(f"{path} {mib:.1f} MiB a clip" for path, mib in found.items())
        sys.stdout.write(f"{frames} frames: {told}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
