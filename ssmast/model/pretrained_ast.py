"""Weights for an AST from elsewhere: AST's own, transformers', SSAST's, and timm's DeiT."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ssmast.model.ast import AST
from ssmast.model.grid import Grid
from ssmast.model.position_table import resize_positions
from ssmast.model.pretrained import LoadReport

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


@torch.no_grad()
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
    if source_grid is None:
        source_grid = _find_grid(model, state_dict)
    own = model.state_dict()
    report, found = LoadReport([], {}, {}), set[str]()
    for name, (tensor, keys, how) in _in_our_names(state_dict).items():
        unused = next((why for start, why in _UNUSED.items() if name.startswith(start)), "")
        if name.startswith(tuple(skip)):
            unused = "skipped on request"
        elif not unused and name not in own:
            unused = "AST has no such parameter"
        elif not unused and name.startswith("head.") and tensor.shape != own[name].shape:
            unused = f"head of {len(tensor)} classes, the model has {model.num_classes}"
        if unused:
            report.left.update(dict.fromkeys(keys, unused))
            continue
        value, change = _adapt(model, name, tensor, own[name], source_grid)
        own[name].copy_(value)
        found.add(name)
        changes = "; ".join(filter(None, (how, change)))
        if changes:
            report.adapted.update(dict.fromkeys(keys, changes))
        else:
            report.used.extend(keys)
    optional = ("head.", "attn_pool.", *skip)
    missing = [name for name in own if name not in found and not name.startswith(optional)]
    if missing:
        raise ValueError(
            f"state dict must hold every tensor of AST, got none for {len(missing)} "
            f"({', '.join(missing[:3])}, ...); build the model with the same depth, and of DeiT "
            "take a distilled one"
        )
    return report


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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(file).is_file():
        raise FileNotFoundError(f"weights {file} do not exist; wanted a .safetensors file")
    try:
        state_dict = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} cannot be read as safetensors ({error}); a .pth may run code when it is read: "
            "save its state dict with safetensors.torch.save_file where you trust it"
        ) from error
    return load_ast_state_dict(model, state_dict, skip=skip, source_grid=source_grid)


def is_ast_state_dict(state_dict: Mapping[str, Tensor]) -> bool:
    """True if the tensors have the names of AST's code, transformers' AST or timm's DeiT."""
    names = _in_our_names(state_dict, join=False)
    return {"cls_token", "dist_token", "pos_embed"} <= names.keys()


def _in_our_names(
    state_dict: Mapping[str, Tensor], *, join: bool = True
) -> dict[str, tuple[Tensor, list[str], str]]:
    """Our name -> tensor, the keys that it is from, and how they were put together."""
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
        names[name] = (tensor, [key], "")
    if join:
        for name in [name for name in names if ".attn.query." in name]:
            parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if all(part in names for part in parts):
                tensors, sources = zip(*(names.pop(part)[:2] for part in parts), strict=True)
                joined = torch.cat(tensors), [key for source in sources for key in source]
                names[name.replace(".query.", ".qkv.")] = (*joined, "query, key and value joined")
    return names


def _adapt(
    model: AST, name: str, tensor: Tensor, own: Tensor, source_grid: tuple[int, int]
) -> tuple[Tensor, str]:
    """Tensor in our shape and what was done to it ("" for nothing)."""
    if name == "pos_embed" and tensor.ndim == 3 and tensor.shape[2] == own.shape[2]:
        return _fit_positions(model, tensor, source_grid)
    if tensor.shape == own.shape:
        return tensor, ""
    if name == "patch_embed.proj.weight" and tensor.sum(1, keepdim=True).shape == own.shape:
        return tensor.sum(1, keepdim=True), f"{tensor.shape[1]} input channels summed"
    raise ValueError(
        f"{name} must have shape {tuple(own.shape)}, got {tuple(tensor.shape)}; "
        f"build the model with the same numbers or pass skip=({name.rpartition('.')[0] or name!r},)"
    )


def _find_grid(model: AST, state_dict: Mapping[str, Tensor]) -> tuple[int, int]:
    """Grid of a state dict's position table: DeiT's square, the model's own, or a published one."""
    names = _in_our_names(state_dict, join=False)
    if "pos_embed" not in names:
        return 0, 0  # the missing table is told later, with whatever else is missing
    num_patches = names["pos_embed"][0].shape[1] - 2
    stem = names.get("patch_embed.proj.weight")
    side = round(max(num_patches, 0) ** 0.5)
    if "head_dist.weight" in state_dict or (stem is not None and stem[0].shape[1] == 3):
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
