"""List the blocks of a model with parameters and cost, measured on the model itself."""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from timm import create_model, list_models
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssmast.model.ast import VitBlock
from ssmast.model.backbone import Backbone
from ssmast.model.block import Block, PoolingAttention
from ssmast.model.patch import Grid, Tokens
from ssmast.settings import Settings, command, setting

# Gong et al. 2021; counted by Zhu & Omar 2023, Table 5. Of the parameters 1.54 M are the two
# ImageNet classifiers of DeiT, which AST's code keeps and never calls.
AST_PARAMETERS, AST_MACS = 88.1e6, 103.4e9


@dataclass(frozen=True, kw_only=True)
class DescribeSettings(Settings):
    """`ssmast describe`."""

    model: str = setting("mast_base", "name of a model")
    mels: int = setting(128, "mel bins of the input", range="[1, inf)")
    frames: int = setting(1024, "frames of the input", range="[1, inf)")
    num_classes: int = setting(527, "outputs of the head; 0: no head", range="[0, inf)")


class Cost(NamedTuple):
    """Multiply-accumulates of one forward pass of one clip.

    Attributes:
        papers: as the papers count (ptflops): layers alone, attention's products left out.
        full: every matrix product and convolution, attention's products and biases too.
    """

    papers: int
    full: int


class _Row(NamedTuple):
    channels: int
    tokens: int
    grid: Grid | None
    what: str
    macs: int


class _Facts(NamedTuple):
    name: str
    parameters: int
    rows: dict[str, _Row]
    cost: Cost


@command(DescribeSettings, "ssmast describe", positional="model")
def main(config: DescribeSettings, argv: list[str]) -> int:
    """`ssmast describe`: print the table of one model."""
    size, classes = (config.mels, config.frames), config.num_classes
    with torch.device("meta"):
        model = create_model(_known(config.model), num_classes=classes, input_size=size)
    sys.stdout.write(describe(cast(Backbone, model)) + "\n")
    return 0


def count_macs(model: Backbone, *, freq_bins: int, frames: int) -> Cost:
    """Cost of one clip of `freq_bins` mel bins x `frames` frames; nothing is computed."""
    return _trace(model, freq_bins, frames)[1]


def describe(model: str | Backbone) -> str:
    """Table of a model's blocks with parameters and cost, next to the other family's.

    Args:
        model: a registered name such as "mast_base", or a model; its training input is described.
            A MAST stands next to the AST of its size and the other way round, both on that input.

    Returns:
        Markdown.

    Raises:
        ValueError: for a name that is not of these families.
    """
    if isinstance(model, str):
        with torch.device("meta"):
            return describe(cast(Backbone, create_model(_known(model))))
    freq_bins, frames = model.input_size
    sides = [_facts(model), *(_facts(rival) for rival in _rival(model))]
    lines = []
    for side in sides:
        lines += [
            f"{side.name}: input {model.in_chans} x {freq_bins} x {frames} "
            "(channels x mel bins x frames)",
            "",
            "| block | channels x tokens (freq x time) | what | MACs (M) |",
            "|---|---|---|---|",
            *(_format(label, row) for label, row in _merge(side.rows)),
            "",
        ]
    lines += [
        "| | parameters (M) | MACs (G), papers' counter | MACs (G), attention products too "
        "| tokens, first to last block |",
        "|---|---|---|---|---|",
        *(_summary(side) for side in sides),
        f"| AST, as published | {AST_PARAMETERS / 1e6:.1f} | {AST_MACS / 1e9:.1f} | | 1214 |",
        "",
        "AST as published: AudioSet, 1 x 128 x 1024; 1.54 M of its parameters are two ImageNet "
        "classifiers that are never called.",
    ]
    return "\n".join(lines)


def _facts(model: Backbone) -> _Facts:
    name = getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return _Facts(name, parameters, *_trace(model, *model.input_size))


def _rival(model: Backbone) -> list[Backbone]:
    """The other family's model of the same size, input and classes; none where it cannot be."""
    name = getattr(model, "pretrained_cfg", {}).get("architecture", "")
    family, _, size = name.partition("_")
    other = {"mast": "ast", "ast": "mast"}.get(family)
    if other is None:
        return []
    rival = f"{other}_{size}" if f"{other}_{size}" in list_models() else f"{other}_base"
    numbers = {
        "num_classes": model.num_classes,
        "input_size": model.input_size,
        "in_chans": model.in_chans,
    }
    try:
        with torch.device("meta"):
            return [cast(Backbone, create_model(rival, **numbers))]
    except ValueError:  # an input smaller than AST's patch
        return []


def _summary(side: _Facts) -> str:
    tokens = [row.tokens for row in side.rows.values() if row.tokens]
    counts = f"{tokens[0]}" if tokens[0] == tokens[-1] else f"{tokens[0]} to {tokens[-1]}"
    papers, full = (macs / 1e9 for macs in side.cost)
    return f"| {side.name} | {side.parameters / 1e6:.2f} | {papers:.2f} | {full:.2f} | {counts} |"


def _known(name: str) -> str:
    names = [*list_models("mast_*", module="family"), *list_models("ast_*", module="family")]
    if name not in names:
        raise ValueError(f"model must be one of {', '.join(names)}, got {name!r}")
    return name


@torch.no_grad()
def _trace(model: Backbone, freq_bins: int, frames: int) -> tuple[dict[str, _Row], Cost]:
    """Run a weightless copy under hooks: one row for the stem, each block and the head."""
    model = copy.deepcopy(model).to("meta").eval()
    for attention in model.modules():
        if isinstance(attention, PoolingAttention):
            attention.path = "reference"  # the products as written, not a kernel's padded ones
    macs: dict[nn.Module, int] = {}
    rows: dict[str, _Row] = {}
    for module in model.modules():
        if type(module) in _MACS:
            module.register_forward_hook(_counter(macs))

    stem_grid = model.patch_embed.grid(freq_bins, frames)

    def note(label: str, what: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], outcome: Any) -> None:
            tokens, grid, *_ = _tokens_of(outcome, stem_grid)
            cost = sum(macs.get(part, 0) for part in module.modules())
            if tokens.ndim == 3:
                rows[label] = _Row(tokens.shape[-1], tokens.shape[1], grid, what, cost)
            else:
                rows[label] = _Row(tokens.shape[-1], 0, None, what, cost)

        return hook

    kernel, stride = model.patch_embed.kernel, model.patch_embed.stride
    stem = f"{kernel[0]}x{kernel[1]} convolution, stride {stride[0]}x{stride[1]}"
    model.patch_embed.register_forward_hook(note("patch embed", stem))
    blocks = [module for module in model.modules() if isinstance(module, Block | VitBlock)]
    for index, block in enumerate(blocks):
        block.register_forward_hook(note(str(index), _what(block)))
    model.head.register_forward_hook(note("head", f"{model.global_pool or 'no'} pooling, linear"))
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.zeros(1, model.in_chans, freq_bins, frames, device="meta"))
    return rows, Cost(papers=sum(macs.values()), full=counter.get_total_flops() // 2)


def _tokens_of(outcome: Any, stem_grid: Grid) -> Tokens:
    """What a stem, a block of either family or a head returned."""
    if isinstance(outcome, Tokens):
        return outcome
    if isinstance(outcome, tuple):  # a stem's tokens, and columns
        return outcome[0]
    return Tokens(outcome, stem_grid)  # AST's blocks keep the stem's grid


def _what(block: Block | VitBlock) -> str:
    if isinstance(block, VitBlock) or block.stride_q == (1, 1):
        return "attention + MLP"
    freq, time = block.stride_q
    kind = "2-D" if freq > 1 and time > 1 else "1-D, time" if time > 1 else "1-D, freq"
    return f"pooling attention ({kind}, stride {freq}x{time}) + MLP"


def _merge(rows: dict[str, _Row]) -> list[tuple[str, _Row]]:
    """Runs of equal blocks as one row, labelled first-last."""
    merged: list[tuple[str, _Row]] = []
    for label, row in rows.items():
        if merged and merged[-1][1] == row:
            label, _ = f"{merged[-1][0].split('-')[0]}-{label}", merged.pop()
        merged.append((label, row))
    return merged


def _format(label: str, row: _Row) -> str:
    size = str(row.channels)
    if row.grid is not None:
        beside = row.tokens - row.grid.freq * row.grid.time
        size += f" x {row.tokens} ({row.grid.freq}x{row.grid.time}"
        size += f" + {beside} class tokens)" if beside else ")"
    runs = [int(number) for number in label.split("-") if number.isdigit()]
    each = " each" if len(runs) == 2 else ""
    return f"| {label} | {size} | {row.what} | {row.macs / 1e6:.1f}{each} |"


def _counter(macs: dict[nn.Module, int]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        macs[module] = macs.get(module, 0) + _MACS[type(module)](module, output)

    return hook


def _conv_macs(module: nn.Conv2d, output: Tensor) -> int:
    weights = module.weight[0].numel() + (module.bias is not None)
    return output.numel() * weights


def _linear_macs(module: nn.Linear, output: Tensor) -> int:
    return output.numel() * (module.in_features + (module.bias is not None))


def _elementwise_macs(module: nn.Module, output: Tensor) -> int:
    return output.numel()


# What ptflops counts, and how.
_MACS: dict[type[nn.Module], Callable[..., int]] = {
    nn.Conv2d: _conv_macs,
    nn.Linear: _linear_macs,
    nn.LayerNorm: _elementwise_macs,
    nn.GELU: _elementwise_macs,
}
