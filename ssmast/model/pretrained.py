"""Weights of other code and other input sizes: their names, shapes and positions made to fit.

A MAST takes timm's MViTv2 (ImageNet) and a MAST of another input size; an AST takes those of AST's
and SSAST's code, of transformers, and timm's distilled DeiT.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmast.model.ast import AST, resize_positions
from ssmast.model.attention import read_rows, zero_index
from ssmast.model.block import PoolingAttention
from ssmast.model.mast import MAST
from ssmast.model.patch import Grid

_RENAMES = {"rel_pos_h": "rel_pos_freq", "rel_pos_w": "rel_pos_time"}


class LoadReport(NamedTuple):
    """What was used of a state dict; each entry is one of its keys.

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


class _Axis(NamedTuple):
    """The axis that a position table was trained for, as one block sees it.

    Attributes:
        size: cells of the block's input.
        stride_q: of its queries.
        stride_k: of its keys.
        cells: how many of these cells one cell of our model covers.
    """

    size: int
    stride_q: int
    stride_k: int
    cells: float


# (table, our attention, its name, axis 0 freq or 1 time) -> the axis that the table is for.
_AxisOf = Callable[[Tensor, PoolingAttention, str, int], _Axis]


def is_timm_state_dict(state_dict: Mapping[str, Tensor]) -> bool:
    """True if the tensors have the names of timm's MViTv2."""
    return any(key.rpartition(".")[2] in _RENAMES for key in state_dict)


def mast_name(key: str) -> str:
    """Our name of a parameter of timm's MViTv2."""
    prefix, _, last = key.rpartition(".")
    return f"{prefix}.{_RENAMES[last]}" if last in _RENAMES else key


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
    fitted, report = _fit(model, state_dict, axis_of=_timm_axis, skip=skip)
    model.load_state_dict(fitted)
    return report


def fit_timm_state_dict(
    state_dict: dict[str, Tensor], model: MAST
) -> tuple[dict[str, Tensor], LoadReport]:
    """A complete state dict for `model` with the weights of timm's MViTv2, all but the head."""
    return _fit(model, state_dict, axis_of=_timm_axis, skip=("head.",))


def load_mast_state_dict(
    model: MAST, state_dict: Mapping[str, Tensor], *, source: MAST
) -> LoadReport:
    """Load the weights of a MAST that was trained on inputs of another size.

    Afterwards `model` computes at its own training size what `source` would: a shorter axis gets
    the middle of the position table, a longer one the table stretched.

    Args:
        model: written in place.
        state_dict: of `source`.
        source: the model that the weights are from; only its numbers count, so it may be on the
            meta device.

    Raises:
        ValueError: if a tensor does not fit or any of the model's stays without one.
    """

    def axis_of(table: Tensor, own: PoolingAttention, block: str, axis: int) -> _Axis:
        theirs = source.get_submodule(block)
        assert isinstance(theirs, PoolingAttention)
        longer = model.train_grid[axis] / source.train_grid[axis]
        stretch = max(1.0, longer) if source.long_input == "interpolate" else 1.0
        size, stride_q = theirs.train_grid[axis], theirs.stride_q[axis]
        return _Axis(size, stride_q, theirs.stride_kv[axis], 1 / stretch)

    fitted, report = _fit(model, state_dict, axis_of=axis_of, skip=())
    model.load_state_dict(fitted)
    return report


class _Entry(NamedTuple):
    """A tensor of a state dict under our name, with its own keys and how it was put together."""

    tensor: Tensor
    keys: list[str]
    how: str = ""


def _fit(
    model: MAST, state_dict: Mapping[str, Tensor], *, axis_of: _AxisOf, skip: Sequence[str]
) -> tuple[dict[str, Tensor], LoadReport]:
    """A MAST's own state dict with every tensor replaced that `state_dict` has."""

    def positions(name: str, table: Tensor, own: Tensor) -> tuple[Tensor, str] | None:
        if "rel_pos_" not in name:
            return None
        block, _, which = name.rpartition(".")
        attention = model.get_submodule(block)
        assert isinstance(attention, PoolingAttention)
        axis = ("rel_pos_freq", "rel_pos_time").index(which)
        origin = axis_of(table, attention, block, axis)
        return _resize_table(table, own, attention, origin, axis=axis)

    entries = {mast_name(key): _Entry(tensor, [key]) for key, tensor in state_dict.items()}
    return _fitted(model, entries, positions=positions, skip=skip)


@torch.no_grad()
def _fitted(
    model: MAST | AST,
    entries: Mapping[str, _Entry],
    *,
    positions: Callable[[str, Tensor, Tensor], tuple[Tensor, str] | None],
    skip: Sequence[str],
) -> tuple[dict[str, Tensor], LoadReport]:
    """The model's own state dict with every tensor replaced that there is an entry for.

    Args:
        model: whose state dict it is.
        entries: by our names.
        positions: (name, tensor, own) -> a position table in our shape and what was done to it;
            None for another tensor.
        skip: beginnings of our names that stay as they are.

    Raises:
        ValueError: if a tensor does not fit or any of the model's stays without one.
    """
    own = model.state_dict()
    fitted, found, report = dict(own), set[str](), LoadReport([], {}, {})
    for name, (tensor, keys, how) in entries.items():
        why = _why_unused(model, name, tensor, own, skip)
        if why:
            report.left.update(dict.fromkeys(keys, why))
            continue
        fitted[name], change = positions(name, tensor, own[name]) or _summed(
            name, tensor, own[name]
        )
        found.add(name)
        changes = "; ".join(filter(None, (how, change)))
        if changes:
            report.adapted.update(dict.fromkeys(keys, changes))
        else:
            report.used.extend(keys)
    optional = ("head.", "attn_pool.", *skip)
    missing = [name for name in own if name not in found and not name.startswith(optional)]
    if missing:
        deit = ", and of DeiT take a distilled one" if isinstance(model, AST) else ""
        raise ValueError(
            f"state dict must hold every tensor of {type(model).__name__}, got none for "
            f"{len(missing)} ({', '.join(missing[:3])}, ...); build the model with the same "
            f"depths{deit}"
        )
    return fitted, report


def _why_unused(
    model: MAST | AST, name: str, tensor: Tensor, own: Mapping[str, Tensor], skip: Sequence[str]
) -> str:
    """Why a tensor is left out, or "" where it is used."""
    if name.startswith(tuple(skip)):
        return "skipped on request"
    if name not in own:
        family = type(model).__name__
        known = (why for start, why in _UNUSED.items() if name.startswith(start))
        return next(known, f"{family} has no such parameter")
    if name.startswith("head.") and tensor.shape != own[name].shape:
        return f"head of {len(tensor)} classes, the model has {model.num_classes}"
    return ""


def _summed(name: str, tensor: Tensor, own: Tensor) -> tuple[Tensor, str]:
    """The tensor itself, or an RGB stem summed to one channel, and what was done ("": nothing)."""
    if tensor.shape == own.shape:
        return tensor, ""
    if name == "patch_embed.proj.weight" and tensor.sum(1, keepdim=True).shape == own.shape:
        return tensor.sum(1, keepdim=True), f"{tensor.shape[1]} input channels summed"
    raise ValueError(
        f"{name} must have shape {tuple(own.shape)}, got {tuple(tensor.shape)}; "
        f"build the model with the same numbers or pass skip=({name.rpartition('.')[0] or name!r},)"
    )


def _timm_axis(table: Tensor, attention: PoolingAttention, block: str, axis: int) -> _Axis:
    """Side of the square image that timm's table was trained for."""
    stage, index = (int(part) for part in block.split(".")[1:4:2])
    # timm's MViTv2 pools by 2 x 2 at the start of every stage but the first; keys by 4, 2, 1, 1.
    stride_q = 2 if stage > 0 and index == 0 else 1
    stride_k = max(1, 4 // 2**stage)
    size = (len(table) + 1) // 2 * min(stride_q, stride_k)
    return _Axis(size, stride_q, stride_k, size / attention.train_grid[axis])


def _resize_table(
    table: Tensor, own: Tensor, attention: PoolingAttention, origin: _Axis, *, axis: int
) -> tuple[Tensor, str]:
    """Read a position table that was trained for `origin` for one axis of our input."""
    if table.shape[1] != own.shape[1]:
        raise ValueError(
            f"position rows must have {own.shape[1]} channels, got {table.shape[1]}; "
            "build the model with the same widths and heads"
        )
    to_q, to_k = attention.stride_q[axis], attention.stride_kv[axis]
    rows = torch.arange(len(own), device=table.device, dtype=torch.float64)
    distance = (rows - zero_index(attention.train_grid[axis], to_q, to_k)) * min(to_q, to_k)
    positions = zero_index(origin.size, origin.stride_q, origin.stride_k)
    positions = positions + distance * origin.cells / min(origin.stride_q, origin.stride_k)
    if len(table) == len(own) and bool((positions == rows).all()):
        return table, ""
    return read_rows(table, positions), f"position rows {len(table)} -> {len(own)}"


# Grids of the published AST and SSAST checkpoints by number of patches: 128 x 1024 with strides
# 10, 12, 14 and 16, and 128 x 128 with 10.
_PUBLISHED_GRIDS = {
    freq * time: Grid(freq, time)
    for freq, time in ((12, 101), (10, 85), (9, 73), (8, 64), (12, 12))
}

# transformers' names -> timm's. Files have the longer ones, models since version 5 the shorter.
_TRANSFORMERS = [
    (r"^audio_spectrogram_transformer\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"(?<!attention)\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(?<!attention)\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.layernorm\.", "head.norm."),
    (r"^classifier\.dense\.", "head.fc."),
    (r"\.attn\.q\.", ".attn.query."),
    (r"\.attn\.k\.", ".attn.key."),
    (r"\.attn\.v\.", ".attn.value."),
]

# Names of AST's and SSAST's code -> timm's. `v` is DeiT, with classifiers that AST never calls.
_ORIGINAL = [
    (r"^module\.", ""),
    (r"^mlp_head\.0\.", "head.norm."),
    (r"^mlp_head\.1\.", "head.fc."),
    (r"^v\.(head|head_dist)\.", r"imagenet_\1."),
    (r"^v\.", ""),
]
_TIMM = [(r"^(head|head_dist)\.(weight|bias)$", r"imagenet_\1.\2")]

_UNUSED = {
    "imagenet_": "ImageNet's classifier",
    "cpredlayer.": "SSAST's prediction head",
    "gpredlayer.": "SSAST's prediction head",
    "mask_embed": "SSAST's mask token",
    "p_input_": "SSAST's note of its input size",
}


def load_ast_state_dict(
    model: AST,
    state_dict: Mapping[str, Tensor],
    *,
    skip: Sequence[str] = (),
    source_grid: tuple[int, int] | None = None,
) -> LoadReport:
    """Load a state dict of AST's code, of transformers' AST, or of timm's distilled DeiT.

    The RGB stem is summed over its channels for a one-channel model. The position table is cut to
    its middle on an axis where the model is shorter and interpolated where it is longer. A head of
    another size keeps its random weights.

    Args:
        model: written in place.
        state_dict: with the names of one of the three.
        skip: beginnings of our names that stay as they are, such as "head".
        source_grid: rows and columns of patches that the position table is for; by default the
            model's own, a published AST's, or for DeiT a square.

    Raises:
        ValueError: if a tensor does not fit or any of the model's stays without one.

    Source: Gong et al. 2021 (AST), section 2.2.
    """
    fitted, report = fit_ast_state_dict(state_dict, model, skip=skip, source_grid=source_grid)
    model.load_state_dict(fitted)
    return report


def fit_ast_state_dict(
    state_dict: Mapping[str, Tensor],
    model: AST,
    *,
    skip: Sequence[str] = (),
    source_grid: tuple[int, int] | None = None,
) -> tuple[dict[str, Tensor], LoadReport]:
    """A complete state dict for `model`, as `load_ast_state_dict` loads it."""
    grid = _find_grid(model, state_dict) if source_grid is None else source_grid

    def positions(name: str, table: Tensor, own: Tensor) -> tuple[Tensor, str] | None:
        is_table = name == "pos_embed" and table.ndim == 3 and table.shape[2] == own.shape[2]
        return _fit_positions(model, table, grid) if is_table else None

    return _fitted(model, _in_our_names(state_dict), positions=positions, skip=skip)


def read_tensors(file: str | Path, *, named: str = "") -> dict[str, Tensor]:
    """Tensors of a safetensors file, by name, on the CPU.

    Args:
        file: to read.
        named: what errors call it; empty: its path.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(file).is_file():
        raise FileNotFoundError(f"{named or file} does not exist; wanted a .safetensors file")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{named or file} cannot be read as safetensors ({error}); of a .pth, which may run "
            "code when it is read, save the state dict with safetensors.torch.save_file where you "
            "trust it"
        ) from error


def load_ast_file(
    model: AST,
    file: str | Path,
    *,
    skip: Sequence[str] = (),
    source_grid: tuple[int, int] | None = None,
) -> LoadReport:
    """`load_ast_state_dict` from a safetensors file on this machine.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no safetensors file, or its tensors do not fit.
    """
    return load_ast_state_dict(model, read_tensors(file), skip=skip, source_grid=source_grid)


def is_ast_state_dict(state_dict: Mapping[str, Tensor]) -> bool:
    """True if the tensors have the names of AST's code, transformers' AST or timm's DeiT."""
    names = _in_our_names(state_dict, join=False)
    return {"cls_token", "dist_token", "pos_embed"} <= names.keys()


def ast_numbers(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `create_model` that make the AST of a state dict of a published size.

    Raises:
        ValueError: if it has none: its length and stride cannot be told from its weights.
    """
    names = {name: entry.tensor for name, entry in _in_our_names(state_dict).items()}
    if "pos_embed" not in names or "patch_embed.proj.weight" not in names:
        raise ValueError("wanted the weights of an AST, got none of its position table and stem")
    stem, num_patches = names["patch_embed.proj.weight"], names["pos_embed"].shape[1] - 2
    grid, width = _PUBLISHED_GRIDS.get(num_patches), len(stem)
    if grid is None or stem.shape[1:] != (1, 16, 16):
        raise ValueError(
            f"an AST of {num_patches} patches of {tuple(stem.shape[1:])} is of no published size; "
            "put the config.json that transformers writes beside its weights"
        )
    stride = (128 - 16) // (grid.freq - 1)
    return {
        "input_size": (128, 128 if grid.time == grid.freq else 1024),
        "embed_dim": width,
        "depth": 1 + max(int(name.split(".")[1]) for name in names if name.startswith("blocks.")),
        "num_heads": width // 64,  # DeiT's
        "mlp_ratio": len(names["blocks.0.mlp.fc1.weight"]) / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in names,
        "patch_stride": (stride, stride),
        "norm_eps": 1e-12 if any("embeddings." in key for key in state_dict) else 1e-6,
    }


def is_published_ast(state_dict: Mapping[str, Tensor]) -> bool:
    """True for an AST or SSAST trained on sound: one input channel, where DeiT has three."""
    stem = _in_our_names(state_dict, join=False).get("patch_embed.proj.weight")
    return is_ast_state_dict(state_dict) and stem is not None and stem.tensor.shape[1] == 1


def _in_our_names(state_dict: Mapping[str, Tensor], *, join: bool = True) -> dict[str, _Entry]:
    """Our name -> tensor of an AST's state dict, query, key and value joined if asked."""
    keys = list(state_dict)
    if any(".embeddings." in f".{key}" for key in keys):
        renames = _TRANSFORMERS
    else:
        renames = _ORIGINAL if any(re.match(r"(module\.)?v\.", key) for key in keys) else _TIMM
    names = {}
    for key, tensor in state_dict.items():
        name = key
        for pattern, ours in renames:
            name = re.sub(pattern, ours, name)
        names[name] = _Entry(tensor, [key])
    if join:
        for name in [name for name in names if ".attn.query." in name]:
            parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if all(part in names for part in parts):
                tensors, sources = zip(*(names.pop(part)[:2] for part in parts), strict=True)
                keys = [key for source in sources for key in source]
                whole = _Entry(torch.cat(tensors), keys, "query, key and value joined")
                names[name.replace(".query.", ".qkv.")] = whole
    return names


def _find_grid(model: AST, state_dict: Mapping[str, Tensor]) -> tuple[int, int]:
    """Grid of a state dict's position table: DeiT's square, the model's own, or a published one."""
    names = _in_our_names(state_dict, join=False)
    if "pos_embed" not in names:
        return 0, 0  # the missing table is reported later, with all else that is missing
    num_patches = names["pos_embed"].tensor.shape[1] - 2
    stem = names.get("patch_embed.proj.weight")
    side = round(max(num_patches, 0) ** 0.5)
    if "head_dist.weight" in state_dict or (stem is not None and stem.tensor.shape[1] == 3):
        return side, side
    target = model.train_grid
    own = target if target.freq * target.time == num_patches else Grid(side, side)
    return _PUBLISHED_GRIDS.get(num_patches, own) if own != target else target


def _fit_positions(model: AST, tensor: Tensor, source_grid: tuple[int, int]) -> tuple[Tensor, str]:
    num_patches, grid, target = tensor.shape[1] - 2, Grid(*source_grid), model.train_grid
    if grid.freq * grid.time != num_patches:
        raise ValueError(
            f"pos_embed holds two class tokens and {num_patches} patches, which are not "
            f"{grid.freq} x {grid.time}; pass the rows and columns that it is for as source_grid="
        )
    if grid == target:
        return tensor, ""
    table = resize_positions(tensor[0, 2:], grid, target)
    change = f"position table {grid.freq}x{grid.time} -> {target.freq}x{target.time}"
    return torch.cat([tensor[:, :2], table[None]], dim=1), change
