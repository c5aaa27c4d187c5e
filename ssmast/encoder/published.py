"""Published ASTs: a folder or file that transformers wrote, as an encoder with its front end."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ssmast.audio.mel import AUDIOSET, KaldiMel
from ssmast.encoder.folder import CONFIG, EXTRACTOR, WEIGHTS, read_json
from ssmast.model import AST, ast_numbers, create_model, load_ast_state_dict, read_tensors

PUBLISHED = "published AST"
"""What the info of such an encoder calls its network."""

_KIND = "audio-spectrogram-transformer"
# AudioSet's classes: a clip has several, which the published files do not say.
_AUDIOSET_CLASSES = 527


def is_published(folder: Path) -> bool:
    """Whether a folder holds an AST as transformers writes it."""
    try:
        return read_json(folder / CONFIG).get("model_type") == _KIND
    except (FileNotFoundError, ValueError):
        return False


def read_published(source: Path) -> dict[str, Any]:
    """Arguments of an `Encoder`: the AST in a folder (config.json, model.safetensors) or a file.

    Its vector is what its head sees; longer clips are cut to what the model has positions for.

    preprocessor_config.json beside the weights states the front end; without it, it is AudioSet's.
    A file on its own must have a position table of a published size.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: in one sentence, if the files do not fit each other or are damaged.
    """
    folder, file = (source, source / WEIGHTS) if source.is_dir() else (source.parent, source)
    if not file.is_file():
        raise FileNotFoundError(f"{source} has no {WEIGHTS}; wanted the safetensors of the AST")
    tensors = read_tensors(file)
    if is_published(folder):
        numbers, config = _configured(folder), read_json(folder / CONFIG)
    else:
        numbers, config = ast_numbers(tensors), {}
    log_mel = _front_end(folder, numbers["input_size"])
    width = numbers["embed_dim"]
    name = {192: "ast_tiny", 384: "ast_small"}.get(width, "ast_base")
    classes = _classes(tensors)
    backbone = create_model(name, **numbers, num_classes=classes)
    assert isinstance(backbone, AST)
    load_ast_state_dict(backbone, tensors, source_grid=backbone.train_grid[:])
    frames = backbone.train_grid.time * backbone.patch_embed.stride[1]
    return {
        "backbone": backbone,
        "log_mel": log_mel,
        "pooling": "cls",
        "window_seconds": math.floor(1000 * frames * log_mel.hop_length / log_mel.sample_rate)
        / 1000,
        "info": _info(config, classes, frames=log_mel.pad_frames),
    }


def _configured(folder: Path) -> dict[str, Any]:
    """Arguments of `create_model` of a config.json."""
    config = {**_USUAL, **read_json(folder / CONFIG)}
    activation, patch = config["hidden_act"], config["patch_size"]
    if activation != "gelu":
        raise ValueError(f"{folder / CONFIG} must have hidden_act gelu, got {activation!r}")
    return {
        "input_size": (config["num_mel_bins"], config["max_length"]),
        "embed_dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        "qkv_bias": config["qkv_bias"],
        "patch_size": (patch, patch) if isinstance(patch, int) else tuple(patch),
        "patch_stride": (config["frequency_stride"], config["time_stride"]),
        "norm_eps": config["layer_norm_eps"],
    }


# transformers' defaults, which its files may leave out.
_USUAL = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "patch_size": 16,
    "qkv_bias": True, "frequency_stride": 10, "time_stride": 10, "max_length": 1024,
    "num_mel_bins": 128,
}  # fmt: skip


def _front_end(folder: Path, size: tuple[int, int]) -> KaldiMel:
    """What preprocessor_config.json states, else AudioSet's; clips padded to the model's length."""
    mels, frames = size
    stated = read_json(folder / EXTRACTOR) if (folder / EXTRACTOR).is_file() else {}
    found = stated.get("num_mel_bins", mels), stated.get("max_length", frames)
    if found != size:
        raise ValueError(
            f"{folder / EXTRACTOR} must have the {mels} mel bins x {frames} frames of {CONFIG}, "
            f"got {found[0]} x {found[1]}"
        )
    rate = stated.get("sampling_rate", 16000)
    # transformers' "std" is the standard deviation, by twice which it divides.
    mean, std = stated.get("mean", AUDIOSET["mean"]), 2 * stated.get("std", AUDIOSET["std"] / 2)
    if not stated.get("do_normalize", True):
        mean, std = 0.0, 1.0
    return KaldiMel(
        sample_rate=rate, hop_length=rate // 100, num_mels=mels, f_max=rate / 2, mean=mean,
        std=std, pad_frames=frames,
    )  # fmt: skip


def _classes(tensors: Mapping[str, Tensor]) -> int:
    """Classes of the head, 0 without one."""
    names = ("classifier.dense.weight", "mlp_head.1.weight", "module.mlp_head.1.weight")
    return next((len(tensors[name]) for name in names if name in tensors), 0)


def _info(config: Mapping[str, Any], classes: int, *, frames: int) -> dict[str, Any]:
    """Facts of the encoder: that it is published, and its classes as a fine-tuned folder's."""
    info: dict[str, Any] = {"network": PUBLISHED}
    if not classes:
        return info
    stated = config.get("id2label") or {}
    names = [str(stated.get(str(number), f"class {number}")) for number in range(classes)]
    kind = config.get("problem_type")
    several = kind == "multi_label_classification" or (not kind and classes == _AUDIOSET_CLASSES)
    head = {"name": "label", "classes": names}
    info["classifier"] = {
        "heads": [head], "multi_label": several, "frames": frames, "max_windows": 0,
    }  # fmt: skip
    return info
