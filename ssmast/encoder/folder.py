"""The encoder folder, on disk and on the Hugging Face Hub: written whole, checked when read.

config.json is in timm's form, with what this package adds under "ssmast"; the weights are those of
the backbone.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from timm.models import is_model
from torch import Tensor

from ssmast.audio import LogMel
from ssmast.audio.mel import front_end_of
from ssmast.encoder.whitening import Whitening
from ssmast.files import new_folder, sha256_of
from ssmast.model import Backbone, create_model
from ssmast.weights import DEFAULT, FOLDER

CONFIG, WEIGHTS, CARD, CHECKSUMS, WHITENING = (
    "config.json",
    "model.safetensors",
    "README.md",
    "checksums.json",
    "whitening.safetensors",
)


MODEL_TYPE = "ssmast"
"""By which transformers knows a config.json, see `ssmast.hf`."""

EXTRACTOR = "preprocessor_config.json"
"""Front end of an AST that transformers wrote, see `published`."""


def check_folder_to_write(folder: Path) -> None:
    """Refuse a place where an encoder folder cannot be written.

    Raises:
        FileExistsError: if it is a file, or holds anything but an encoder.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; wanted a folder to write an encoder to")
    if folder.is_dir() and any(folder.iterdir()) and not is_encoder(folder):
        raise FileExistsError(
            f"{folder} holds files but no encoder; choose an empty or a new folder"
        )


def write_folder(
    folder: str | Path,
    *,
    config: dict[str, Any],
    weights: bytes,
    card: str,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write an encoder folder, whole or not at all.

    Args:
        folder: may not exist, be empty, or hold an older encoder, which is replaced.
        config: content of config.json.
        weights: content of model.safetensors.
        card: content of README.md.
        extra: further files (model.onnx) by name; they get checksums as well.

    Raises:
        FileExistsError: if the folder holds anything but an encoder.
        ValueError: if the config holds what JSON cannot.
    """
    folder = Path(folder)
    check_folder_to_write(folder)
    try:
        text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"the encoder's info must be plain JSON values: {error}") from error
    files = {CONFIG: text.encode(), WEIGHTS: weights, **(extra or {})}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[CARD] = card.encode()
    # Last of the files: without it a folder is not an encoder.
    files[CHECKSUMS] = (json.dumps(sums, indent=2) + "\n").encode()
    with new_folder(folder) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)


def encoder_folder(path: str | Path) -> Path:
    """The encoder folder in a run folder; any other path as it is."""
    folder = Path(path)
    is_run = (folder / "encoder").is_dir() and not (folder / CONFIG).is_file()
    return folder / "encoder" if is_run else folder


def check_graph(file: Path) -> None:
    """Refuse a graph that is not the one which the checksums of its folder are of.

    Raises:
        ValueError: if it is damaged.
    """
    sums = file.parent / CHECKSUMS
    wanted = read_json(sums).get(file.name) if sums.is_file() else None
    if wanted is not None:
        _check_sum(file, wanted)


def _check_sum(file: Path, wanted: str, *, is_inside: bool = True) -> None:
    if not is_inside or not file.is_file() or sha256_of(file) != wanted:
        raise ValueError(
            f"{file} is damaged: it does not match {CHECKSUMS}; copy the encoder folder again"
        )


def read_folder(path: str | Path) -> tuple[dict[str, Any], Path]:
    """Configuration and weights file of an encoder folder, after checking both.

    Args:
        path: folder; or "default" for the encoder that comes with the package; or the name of a
            model on the Hugging Face Hub (`org/name`, optionally with `hf-hub:` before it), which
            is then downloaded.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if a file is damaged or config.json is not that of an encoder.
    """
    folder = find_folder(str(path))
    missing = [name for name in (CONFIG, WEIGHTS, CHECKSUMS) if not (folder / name).is_file()]
    if missing:
        nested = folder / "encoder"
        hint = f"; did you mean {nested}?" if is_encoder(nested) else ""
        if not nested.exists() and (folder / "checkpoints").is_dir():
            hint = (
                "; it is a run that has not ended: go on with resume=auto, or see what "
                f"`ssmast export {folder} out=DIR` makes of it"
            )
        raise FileNotFoundError(
            f"{folder} is no encoder folder: it has no {' and no '.join(missing)}{hint}"
        )
    sums = read_json(folder / CHECKSUMS)
    unlisted = [name for name in (CONFIG, WEIGHTS) if name not in sums]
    if unlisted:
        raise ValueError(
            f"{folder / CHECKSUMS} is damaged: it has no checksum of {' and '.join(unlisted)}; "
            "copy the encoder folder again"
        )
    for name, wanted in sums.items():
        # The list may name further exports, which a copy may lack; a file outside the folder is
        # none of them.
        if Path(name).name == name and name.endswith(".onnx") and not (folder / name).exists():
            continue
        _check_sum(folder / name, wanted, is_inside=Path(name).name == name)
    config = read_json(folder / CONFIG)
    wanted_keys = {"architecture", "model_args", "num_classes", "ssmast"}
    lacking = sorted(wanted_keys - config.keys())
    if lacking:
        raise ValueError(
            f"{folder / CONFIG} is not that of an ssmast encoder: it lacks {', '.join(lacking)}"
        )
    return config, folder / WEIGHTS


def find_folder(path: str) -> Path:
    """The folder of an encoder that `read_folder` takes; one on the Hub is downloaded.

    Raises:
        FileNotFoundError: if there is none.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if path == DEFAULT:
        return FOLDER
    name = path.removeprefix("hf-hub:")
    is_hub_name = re.fullmatch(r"\w[\w.-]*/[\w.-]+(@[\w.-]+)?", name) is not None
    # `runs/demo` with a folder `runs` here is a path with a mistake, not a name on the Hub.
    if is_hub_name and (name != path or not folder.parent.exists()):
        return _download(name)
    raise FileNotFoundError(
        f"there is no encoder folder at {path}; wanted a folder with {CONFIG}, {WEIGHTS} and "
        f"{CHECKSUMS}, a Hub name such as org/name, or {DEFAULT}"
    )


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=[CONFIG, WEIGHTS, CARD, CHECKSUMS, EXTRACTOR, WHITENING],
        )
    except (OSError, ValueError) as error:  # all of the Hub's errors are one of these
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{repo} is neither a folder here nor an encoder that the Hugging Face Hub gave: "
            f"{reason}"
        ) from error
    return Path(folder)


def is_encoder(folder: Path) -> bool:
    """Whether a folder holds an encoder, damaged or not."""
    if not all((folder / name).is_file() for name in (CONFIG, CHECKSUMS)):
        return False
    try:
        return "ssmast" in read_json(folder / CONFIG)
    except ValueError:
        return (folder / WEIGHTS).is_file()


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: it is not JSON; copy the folder again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it holds no JSON object; copy the folder again")
    return content


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    message: str = "Upload encoder",
    token: str | None = None,
) -> str:
    """Upload an encoder folder in one commit, after checking it.

    The repository is made if need be. Only what belongs to an encoder goes: configuration, weights,
    card, checksums, ONNX.

    Args:
        folder: encoder folder.
        repo: `org/name`.
        private: nobody else sees it; of a repository that is made now.
        message: of the commit.
        token: of the Hub; by default the one that `hf auth login` keeps.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError, ValueError: if the folder is not a whole encoder.
        ConnectionError: if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    _, weights = read_folder(folder)
    names = [CONFIG, WEIGHTS, CARD, CHECKSUMS, WHITENING]
    names += sorted(file.name for file in weights.parent.glob("*.onnx"))
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=weights.parent,
            allow_patterns=names,
            commit_message=message,
            repo_type="model",
        )
    except (OSError, ValueError) as error:  # all of the Hub's errors are one of these
        reason = str(error).strip().split("\n")[0]
        raise ConnectionError(f"{repo} could not be pushed to the Hub: {reason}") from error
    return str(commit.commit_url)


FORMAT = 1
_SETTINGS = {
    "format", "front_end", "pooling", "layers", "window_seconds", "chunk_seconds", "whitening",
    "info",
}  # fmt: skip
_LOADING_ARGS = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
}  # fmt: skip


def config_of(
    backbone: Backbone, *, settings: Mapping[str, Any], info: Mapping[str, Any]
) -> dict[str, Any]:
    """What config.json holds.

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
        "model_type": MODEL_TYPE,
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
    for name, kind in (("architecture", str), ("model_args", dict), ("ssmast", dict)):
        if not isinstance(config[name], kind):
            raise ValueError(f"{folder}/config.json is damaged: {name} is {config[name]!r}")
    if not isinstance(front_end := config["ssmast"].get("front_end", {}), dict):
        raise ValueError(f"{folder}/config.json is damaged: front_end is {front_end!r}")
    if unknown := sorted(config["ssmast"].keys() - _SETTINGS):
        raise ValueError(
            f"{folder} is of another version of ssmast: this one does not know its settings "
            f"{', '.join(unknown)}, which may change what it gives; update ssmast"
        )
    found, architecture = config["ssmast"].get("format"), config["architecture"]
    # A folder from elsewhere may name a model of ours and its sizes, not further files to load.
    foreign = sorted(config["model_args"].keys() & _LOADING_ARGS)
    if found != FORMAT or foreign or not is_model(architecture):
        raise ValueError(
            f"{folder} is not for this version: wanted format {FORMAT} and a model of this "
            f"family, got format {found} and {architecture!r} {foreign or ''}"
        )


def build_parts(config: Mapping[str, Any]) -> tuple[Backbone, LogMel]:
    """The backbone, with fresh weights, and the front end that a config.json describes."""
    return _backbone_of(config), front_end_of(config["ssmast"]["front_end"])


def read_whitening(settings: Mapping[str, Any], folder: Path) -> Whitening | None:
    """The whitening that an encoder folder's settings name, if they do.

    Raises:
        KeyError: if its file is not there, or lacks something.
    """
    about = settings.get("whitening")
    if about is None:
        return None
    file = folder / WHITENING
    if not file.is_file():
        raise KeyError(f"{WHITENING} is missing")
    return Whitening.from_bytes(file.read_bytes(), about)


def _backbone_of(config: Mapping[str, Any]) -> Backbone:
    args = json.loads(json.dumps(config["model_args"]))
    return cast(Backbone, create_model(config["architecture"], **args))


def weights_of(backbone: Backbone) -> bytes:
    """Content of model.safetensors.

    Raises:
        ValueError: if a weight is not a tensor, as after quantisation.
    """
    from safetensors.torch import save

    state = {}
    for name, value in backbone.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(_adapted(f"{name} is of type {type(value).__name__}"))
        # torch.compile puts a name of its own before those of the model that it compiles.
        state[name.removeprefix("_orig_mod.")] = value.contiguous()
    return save(state, metadata={"format": "pt"})


def check_weights(config: Mapping[str, Any], weights: bytes) -> None:
    """Refuse weights that a model made from this config.json could not load.

    Raises:
        ValueError: naming the first that differs.
    """
    from safetensors.torch import load

    with torch.device("meta"):
        wanted = _backbone_of(config).state_dict()
    found = load(weights)
    if missing := sorted(wanted.keys() - found.keys()):
        raise ValueError(_adapted(f"{missing[0]} is missing"))
    if further := sorted(found.keys() - wanted.keys()):
        raise ValueError(_adapted(f"{further[0]} is not one of {config['architecture']}"))
    check_finite(found, "the encoder")
    for name, value in found.items():
        own = wanted[name]
        if value.shape != own.shape or value.is_floating_point() != own.is_floating_point():
            raise ValueError(
                _adapted(f"{name} is {value.dtype} {tuple(value.shape)}, wanted {tuple(own.shape)}")
            )


def check_finite(weights: Mapping[str, Tensor], what: object) -> None:
    """Refuse weights that would turn every sound into NaN.

    Raises:
        ValueError: naming the first tensor with a number that is NaN or infinite.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                f"the weights of {what} hold NaN or infinity ({name}), as after a training that "
                "diverged; use an earlier checkpoint"
            )


def _adapted(why: str) -> str:
    return (
        f"the encoder was adapted and would not load again: {why}; merge adapters, remove "
        "parametrizations, or save before quantising"
    )
