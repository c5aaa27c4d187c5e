"""Weights of timm's MViTv2 for MAST: ImageNet checkpoints heard as spectrograms."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssmast.model.block import PoolingAttention
from ssmast.model.mast import MAST
from ssmast.model.relative import read_rows, zero_index

_RENAMES = {"rel_pos_h": "rel_pos_freq", "rel_pos_w": "rel_pos_time"}


class LoadReport(NamedTuple):
    """What became of a state dict; each entry is a key of that state dict.

    Attributes:
        used: copied as they are.
        adapted: key -> how it was changed to fit.
        left: key -> why it was not used.
    """

    used: list[str]
    adapted: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        text = f"{len(self.used)} tensors used as they are, {len(self.adapted)} adapted"
        if self.left:
            text += "; left: " + "; ".join(f"{key} ({why})" for key, why in self.left.items())
        return text


@torch.no_grad()
def load_timm_state_dict(
    model: MAST, state_dict: Mapping[str, Tensor], *, skip: Sequence[str] = ()
) -> LoadReport:
    """Load a state dict of timm's `mvitv2_{tiny,small,base,large}` into a MAST of the same blocks.

    The RGB stem is summed over its channels for a one-channel model. Relative positions are read
    anew for each axis: distance zero stays at zero, a distance covers the same share of the input.
    A head of another size keeps its random weights.

    Args:
        model: written in place.
        state_dict: for example `timm.create_model("mvitv2_base", pretrained=True).state_dict()`.
        skip: beginnings of our names that stay as they are, such as "patch_embed" for another stem.

    Raises:
        ValueError: if a tensor does not fit or any of the model's stays without one.

    Differs from timm's resize of position tables, which stretches the table end to end and so
    moves distance zero where queries and keys have different strides.
    """
    own = model.state_dict()
    report = LoadReport([], {}, {})
    found = set()
    for key, tensor in state_dict.items():
        prefix, _, last = key.rpartition(".")
        name = f"{prefix}.{_RENAMES[last]}" if last in _RENAMES else key
        if any(name.startswith(beginning) for beginning in skip):
            report.left[key] = "skipped on request"
            continue
        if name not in own:
            report.left[key] = "MAST has no such parameter"
            continue
        value, change = _adapt(model, name, tensor, own[name])
        if value is None:
            report.left[key] = change
            continue
        own[name].copy_(value)
        found.add(name)
        if change:
            report.adapted[key] = change
        else:
            report.used.append(key)
    optional = ("head.", "attn_pool.", *skip)
    missing = [name for name in own if name not in found and not name.startswith(optional)]
    if missing:
        raise ValueError(
            f"state dict must hold every block of the model, got none for {len(missing)} tensors "
            f"({', '.join(missing[:3])}, ...); build the model with the same depths"
        )
    return report


def _adapt(model: MAST, name: str, tensor: Tensor, own: Tensor) -> tuple[Tensor | None, str]:
    """Tensor in our shape and what was done to it ("" for nothing), or None and why not."""
    if "rel_pos_" in name:
        block, _, table = name.rpartition(".")
        attention = model.get_submodule(block)
        assert isinstance(attention, PoolingAttention)
        stage, index = (int(part) for part in block.split(".")[1:4:2])
        axis = ("rel_pos_freq", "rel_pos_time").index(table)
        return _resize_table(tensor, own, attention, axis=axis, stage=stage, index=index)
    if tensor.shape == own.shape:
        return tensor, ""
    if name.startswith("head."):
        return None, f"head of {len(tensor)} classes, the model has {model.num_classes}"
    if name == "patch_embed.proj.weight" and tensor.sum(1, keepdim=True).shape == own.shape:
        return tensor.sum(1, keepdim=True), f"{tensor.shape[1]} input channels summed"
    raise ValueError(
        f"{name} must have shape {tuple(own.shape)}, got {tuple(tensor.shape)}; "
        f"build the model with the same numbers or pass skip=({name.rpartition('.')[0]!r},)"
    )


def _resize_table(
    table: Tensor, own: Tensor, attention: PoolingAttention, *, axis: int, stage: int, index: int
) -> tuple[Tensor, str]:
    """Read the position table of a block trained on a square image for one axis of our input."""
    if table.shape[1] != own.shape[1]:
        raise ValueError(
            f"position rows must have {own.shape[1]} channels, got {table.shape[1]}; "
            "build the model with the same widths and heads"
        )
    # timm's MViTv2 pools by 2 x 2 at the start of every stage but the first; keys by 4, 2, 1, 1.
    from_q = 2 if stage > 0 and index == 0 else 1
    from_k = max(1, 4 // 2**stage)
    from_unit = min(from_q, from_k)
    from_size = (len(table) + 1) // 2 * from_unit
    to_q, to_k = attention.stride_q[axis], attention.stride_kv[axis]
    to_unit, to_size = min(to_q, to_k), attention.train_grid[axis]
    rows = torch.arange(len(own), device=table.device, dtype=torch.float64)
    distance = (rows - zero_index(to_size, to_q, to_k)) * to_unit * from_size / to_size
    positions = zero_index(from_size, from_q, from_k) + distance / from_unit
    if len(table) == len(own) and bool((positions == rows).all()):
        return table, ""
    return read_rows(table, positions), f"position rows {len(table)} -> {len(own)}"
