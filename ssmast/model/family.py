"""The families' names and numbers, registered with timm; importing this module registers them."""

import contextlib
import json
import logging
from typing import Any, TypeVar

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from ssmast.model.ast import AST
from ssmast.model.mast import MAST
from ssmast.model.pretrained import (
    fit_ast_state_dict,
    fit_timm_state_dict,
    is_timm_state_dict,
    load_mast_state_dict,
    read_tensors,
)
from ssmast.weights import FOLDER

logger = logging.getLogger(__name__)

# Model -> timm's ImageNet weights of the same blocks. The two smallest have no such sibling.
IMAGENET = {f"mast_{size}": f"mvitv2_{size}.fb_in1k" for size in ("tiny", "small", "base", "large")}
IMAGENET |= {
    "ast_tiny": "deit_tiny_distilled_patch16_224.fb_in1k",
    "ast_small": "deit_small_distilled_patch16_224.fb_in1k",
    "ast_base": "deit_base_distilled_patch16_384.fb_in1k",
    "ssast_base": "deit_base_distilled_patch16_384.fb_in1k",  # the same, patches side by side
}

Family = TypeVar("Family", MAST, AST)


def _cfg(**weights: Any) -> dict[str, Any]:
    """A model's entry for timm: mel bins x frames stand for its image size."""
    return {
        "num_classes": 527,
        "input_size": (1, 128, 1024),
        "fixed_input_size": False,
        "mean": (0.0,),
        "std": (1.0,),
        "first_conv": "patch_embed.proj",
        "classifier": "head.fc",
        "license": "apache-2.0",
        **weights,
    }


default_cfgs = generate_default_cfgs(
    {
        "mast_nano": _cfg(file=str(FOLDER / "model.safetensors")),  # comes with the package
        "mast_micro": _cfg(),
        **{
            f"{name}.fb_in1k": _cfg(hf_hub_id=f"timm/{tag}")
            for name, tag in IMAGENET.items()
            if name.startswith("mast_")
        },
    }
)
default_cfgs |= generate_default_cfgs(
    {
        **{
            f"ast_{size}": _cfg(min_input_size=(1, 16, 16))
            for size in ("nano", "tiny", "small", "base")
        },
        **{f"ssast_{size}": _cfg(min_input_size=(1, 16, 16)) for size in ("nano", "base")},
        # Patches of whole frames: fewer mel bins than those of the training are no patch.
        **{f"ssast_frame_{size}": _cfg(min_input_size=(1, 128, 2)) for size in ("nano", "base")},
    }
)


def _fitting(state_dict: dict[str, Tensor], model: MAST | AST) -> dict[str, Tensor]:
    """Timm's hook for checkpoints: converts MViTv2's, DeiT's and AST's, leaves our own.

    Raises:
        ValueError: if a tensor is missing, which timm would leave random for another head's sake.
    """
    own = [name for name in model.state_dict() if not name.startswith(("head.", "attn_pool."))]
    missing = [name for name in own if name not in state_dict]
    if isinstance(model, MAST) and is_timm_state_dict(state_dict):
        fitted, report = fit_timm_state_dict(state_dict, model)
    elif isinstance(model, AST) and (missing or "head_dist.weight" in state_dict):
        fitted, report = fit_ast_state_dict(state_dict, model)
    elif missing:
        raise ValueError(
            f"the weights must hold every tensor of {type(model).__name__}, got none for "
            f"{len(missing)} ({', '.join(missing[:3])}, ...)"
        )
    else:
        return state_dict
    logger.info("weights of another program: %s", report)
    return fitted


def _create(
    family: type[Family], variant: str, pretrained: bool, numbers: dict[str, Any], *, levels: int
) -> Family:
    """Build through timm, so that features_only, local folders and the Hub work.

    `device` and `dtype` are timm's factory keywords: of the weights.
    """
    numbers = _with_size(numbers)
    overlay = dict(numbers.pop("pretrained_cfg_overlay", None) or {})
    ours = pretrained and variant == "mast_nano" and not (overlay or numbers.get("pretrained_cfg"))
    source: dict[str, Any] = {}
    if ours:  # a file that timm would take as it is, whatever the size of the input
        source = _shipped_arguments()
        numbers, pretrained = {"input_size": source["input_size"], **numbers}, False
    if not pretrained:  # with weights, the configuration says what they were made for
        size = numbers.get("input_size", (128, 1024))
        overlay.setdefault("input_size", (numbers.get("in_chans", 1), *size))
    out_indices = numbers.pop("out_indices", levels)
    device, dtype = numbers.pop("device", None), numbers.pop("dtype", None)
    with contextlib.nullcontext() if device is None else torch.device(device):
        model = build_model_with_cfg(
            family,
            variant,
            pretrained,
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=_fitting,
            feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
            **numbers,
        )
    if ours:
        _load_shipped_(model, source)
    return model if dtype is None else model.to(dtype)


def _shipped_arguments() -> dict[str, Any]:
    """Of the encoder that comes with the package."""
    arguments = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))["model_args"]
    return {**arguments, "input_size": tuple(arguments["input_size"])}


def _load_shipped_(model: Any, arguments: dict[str, Any]) -> None:
    """Put the weights that come with the package into a mast_nano; its head stays fresh."""
    with torch.device("meta"):
        source = _create(MAST, "mast_nano", False, dict(arguments), levels=4)
    whole = model if isinstance(model, MAST) else model.model
    weights = read_tensors(FOLDER / "model.safetensors")
    report = load_mast_state_dict(whole, weights, source=source)
    logger.info("weights of the encoder that comes with the package: %s", report)


def _with_size(numbers: dict[str, Any]) -> dict[str, Any]:
    """Numbers with `input_size` as mel bins x frames, in whichever of timm's forms it came.

    Those are `img_size`, one number for a square, and (channels, mel bins, frames).

    Raises:
        ValueError: for any other, or channels that contradict `in_chans`.
    """
    numbers = dict(numbers)
    if "img_size" in numbers:
        numbers["input_size"] = numbers.pop("img_size")
    size = numbers.get("input_size")
    if size is None:
        numbers.pop("input_size", None)
        return numbers
    size = (size, size) if isinstance(size, int) else tuple(size)
    if len(size) == 3:
        chans, *size = size
        if numbers.setdefault("in_chans", chans) != chans:
            raise ValueError(
                f"input_size has {chans} channels and in_chans is {numbers['in_chans']}; give one"
            )
    if len(size) != 2:
        raise ValueError(f"input_size must be (mel bins, frames), got {size}")
    return {**numbers, "input_size": tuple(size)}


def _mast(variant: str, pretrained: bool, numbers: dict[str, Any]) -> MAST:
    return _create(MAST, variant, pretrained, numbers, levels=len(numbers["depths"]))


def _ast(variant: str, pretrained: bool, numbers: dict[str, Any]) -> AST:
    return _create(AST, variant, pretrained, numbers, levels=numbers["depth"])


@register_model
def mast_nano(pretrained: bool = False, **kwargs: Any) -> MAST:
    """1.2 M parameters, heads of 32 channels: trains on a CPU."""
    numbers = {"embed_dim": 32, "depths": (1, 1, 2, 1)}
    return _mast("mast_nano", pretrained, {**numbers, **kwargs})


@register_model
def mast_micro(pretrained: bool = False, **kwargs: Any) -> MAST:
    """2.6 M parameters, heads of 48 channels: for a CPU that multiplies bfloat16."""
    numbers = {"embed_dim": 48, "depths": (1, 1, 2, 1)}
    return _mast("mast_micro", pretrained, {**numbers, **kwargs})


@register_model
def mast_tiny(pretrained: bool = False, **kwargs: Any) -> MAST:
    """Widths and depths of MViTv2-T."""
    return _mast("mast_tiny", pretrained, {"depths": (1, 2, 5, 2), **kwargs})


@register_model
def mast_small(pretrained: bool = False, **kwargs: Any) -> MAST:
    """Widths and depths of MViTv2-S."""
    return _mast("mast_small", pretrained, {"depths": (1, 2, 11, 2), **kwargs})


@register_model
def mast_base(pretrained: bool = False, **kwargs: Any) -> MAST:
    """Widths and depths of MViTv2-B; Table 1 of Zhu & Omar 2023."""
    return _mast("mast_base", pretrained, {"depths": (2, 3, 16, 3), **kwargs})


@register_model
def mast_large(pretrained: bool = False, **kwargs: Any) -> MAST:
    """Widths and depths of MViTv2-L."""
    numbers = {"embed_dim": 144, "num_heads": 2, "depths": (2, 6, 36, 4), "expand_attn": False}
    return _mast("mast_large", pretrained, {**numbers, **kwargs})


@register_model
def ast_nano(pretrained: bool = False, **kwargs: Any) -> AST:
    """1.2 M parameters and heads of 32 channels, as mast_nano, which it is compared with."""
    numbers = {"embed_dim": 128, "depth": 5, "num_heads": 4}
    return _ast("ast_nano", pretrained, {**numbers, **kwargs})


@register_model
def ast_tiny(pretrained: bool = False, **kwargs: Any) -> AST:
    """Width and depth of DeiT-Ti."""
    numbers = {"embed_dim": 192, "depth": 12, "num_heads": 3}
    return _ast("ast_tiny", pretrained, {**numbers, **kwargs})


@register_model
def ast_small(pretrained: bool = False, **kwargs: Any) -> AST:
    """Width and depth of DeiT-S."""
    numbers = {"embed_dim": 384, "depth": 12, "num_heads": 6}
    return _ast("ast_small", pretrained, {**numbers, **kwargs})


@register_model
def ast_base(pretrained: bool = False, **kwargs: Any) -> AST:
    """Width and depth of DeiT-B: the AST of Gong et al. 2021."""
    return _ast("ast_base", pretrained, {"depth": 12, **kwargs})


@register_model
def ssast_nano(pretrained: bool = False, **kwargs: Any) -> AST:
    """ast_nano with patches that do not overlap, so that they can be masked."""
    numbers = {"embed_dim": 128, "depth": 5, "num_heads": 4, "patch_stride": (16, 16)}
    return _ast("ssast_nano", pretrained, {**numbers, **kwargs})


@register_model
def ssast_base(pretrained: bool = False, **kwargs: Any) -> AST:
    """ast_base with patches that do not overlap: what Gong et al. 2022 (SSAST) pretrain."""
    return _ast("ssast_base", pretrained, {"depth": 12, "patch_stride": (16, 16), **kwargs})


@register_model
def ssast_frame_nano(pretrained: bool = False, **kwargs: Any) -> AST:
    """ssast_nano with patches of two whole frames."""
    numbers = {"embed_dim": 128, "depth": 5, "num_heads": 4, **_two_frames(kwargs)}
    return _ast("ssast_frame_nano", pretrained, {**numbers, **kwargs})


@register_model
def ssast_frame_base(pretrained: bool = False, **kwargs: Any) -> AST:
    """ssast_base with patches of two whole frames: Gong et al. 2022's frame-based SSAST."""
    return _ast("ssast_frame_base", pretrained, {"depth": 12, **_two_frames(kwargs), **kwargs})


def _two_frames(numbers: dict[str, Any]) -> dict[str, Any]:
    """Patches of all mel bins x 2 frames."""
    mels, _ = _with_size(numbers).get("input_size", (128, 1024))
    return {"patch_size": (mels, 2), "patch_stride": (mels, 2)}
