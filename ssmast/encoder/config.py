"""What an encoder folder says in config.json, in timm's words and ours, and its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from timm.models import is_model

from ssmast.audio import LogMel
from ssmast.model import Backbone, create_model

FORMAT = 1
_LOADING_ARGS = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
}  # fmt: skip


def config_of(
    backbone: Backbone, *, settings: Mapping[str, Any], info: Mapping[str, Any]
) -> dict[str, Any]:
    """What config.json holds.

    Args:
        backbone: made by `ssmast.create_model`.
        settings: of the encoder, `front_end` among them.
        info: facts for the model card.

    Raises:
        ValueError: if the backbone was made otherwise.
    """
    pretrained_cfg = dict(getattr(backbone, "pretrained_cfg", None) or {})
    architecture = pretrained_cfg.pop("architecture", None)
    if architecture is None:
        raise ValueError("only a backbone made by ssmast.create_model can be saved")
    # Regularisation of the training run does not belong to the weights.
    args = dict(getattr(backbone, "_model_args", {}))
    args.pop("drop_path_rate", None)
    args.update(input_size=backbone.input_size, in_chans=backbone.in_chans)
    args["global_pool"] = backbone.global_pool
    front = settings["front_end"]
    kept = ("first_conv", "classifier", "license", "fixed_input_size")
    return {
        "architecture": architecture,
        "num_classes": backbone.num_classes,
        "num_features": backbone.num_features,
        "model_args": {**args, "num_classes": backbone.num_classes},
        "pretrained_cfg": {
            **{key: pretrained_cfg[key] for key in kept if key in pretrained_cfg},
            "input_size": [backbone.in_chans, *backbone.input_size],
            "num_classes": backbone.num_classes,
            "mean": [front["mean"]],
            "std": [front["std"]],
        },
        "ssmast": {"format": FORMAT, **settings, "info": dict(info)},
    }


def check_config(config: Mapping[str, Any], *, folder: Path) -> None:
    """Refuse a config.json that is not ours, or would have something else loaded.

    Raises:
        ValueError: in one sentence.
    """
    found, architecture = config["ssmast"].get("format"), config["architecture"]
    # A folder from elsewhere may name a model of ours and its sizes, not further files to load.
    foreign = sorted(config["model_args"].keys() & _LOADING_ARGS)
    if found != FORMAT or foreign or not is_model(architecture):
        raise ValueError(
            f"{folder} is not for this version: wanted format {FORMAT} and a model of this "
            f"family, got format {found} and {architecture!r} {foreign or ''}"
        )


def build_parts(config: Mapping[str, Any]) -> tuple[Backbone, LogMel]:
    """The backbone, with fresh weights, and the front end of what `config_of` gave."""
    args = json.loads(json.dumps(config["model_args"]))
    backbone = cast(Backbone, create_model(config["architecture"], **args))
    return backbone, LogMel(**config["ssmast"]["front_end"])


def weights_of(backbone: Backbone) -> bytes:
    """Content of model.safetensors."""
    from safetensors.torch import save

    state = {name: value.contiguous() for name, value in backbone.state_dict().items()}
    return save(state, metadata={"format": "pt"})
