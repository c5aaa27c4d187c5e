"""The encoder folder on disk: written whole or not at all, checked before it is used.

What an encoder folder says in config.json, in timm's words and ours, and its weights.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from timm.models import is_model

from ssmast.audio import LogMel
from ssmast.model import Backbone, create_model

CONFIG, WEIGHTS, CARD, CHECKSUMS = (
    "config.json",
    "model.safetensors",
    "README.md",
    "checksums.json",
)


def write_folder(
    folder: str | Path,
    *,
    config: dict[str, Any],
    weights: bytes,
    card: str,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write an encoder folder under a temporary name, then give it its own.

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
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; wanted a folder to write an encoder to")
    if folder.is_dir() and any(folder.iterdir()) and not is_encoder(folder):
        raise FileExistsError(
            f"{folder} holds files but no encoder; choose an empty or a new folder"
        )
    try:
        text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"the encoder's info must be plain JSON values: {error}") from error
    files = {CONFIG: text.encode(), WEIGHTS: weights, **(extra or {})}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[CARD] = card.encode()
    # Last of the files: without it a folder is not an encoder.
    files[CHECKSUMS] = (json.dumps(sums, indent=2) + "\n").encode()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        temporary.chmod(0o777 & ~_umask())
        for name, content in files.items():
            with (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_folder(path: str | Path) -> tuple[dict[str, Any], Path]:
    """Configuration and weights file of an encoder folder, after checking both.

    Args:
        path: folder, or the name of a model on the Hugging Face Hub (`org/name`, optionally with
            `hf-hub:` before it), which is then downloaded.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if a file is damaged or config.json is not that of an encoder.
    """
    folder = _find_folder(str(path))
    missing = [name for name in (CONFIG, WEIGHTS, CHECKSUMS) if not (folder / name).is_file()]
    if missing:
        nested = folder / "encoder"
        hint = f"; did you mean {nested}?" if is_encoder(nested) else ""
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
        file = folder / name
        # The list may name further exports, which a copy may lack; a file outside the folder is
        # none of them.
        if Path(name).name == name and name.endswith(".onnx") and not file.exists():
            continue
        if Path(name).name != name or not file.is_file() or _sha256(file) != wanted:
            raise ValueError(
                f"{file} is damaged: it does not match {CHECKSUMS}; copy the encoder folder again"
            )
    config = read_json(folder / CONFIG)
    wanted_keys = {"architecture", "model_args", "num_classes", "ssmast"}
    lacking = sorted(wanted_keys - config.keys())
    if lacking:
        raise ValueError(
            f"{folder / CONFIG} is not that of an ssmast encoder: it lacks {', '.join(lacking)}"
        )
    return config, folder / WEIGHTS


def _find_folder(path: str) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    name = path.removeprefix("hf-hub:")
    is_hub_name = re.fullmatch(r"\w[\w.-]*/[\w.-]+(@[\w.-]+)?", name) is not None
    # `runs/demo` with a folder `runs` here is a path with a mistake, not a name on the Hub.
    if is_hub_name and (name != path or not folder.parent.exists()):
        return _download(name)
    raise FileNotFoundError(
        f"there is no encoder folder at {path}; wanted a folder with {CONFIG}, {WEIGHTS} and "
        f"{CHECKSUMS}, or a Hub name such as org/name"
    )


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=[CONFIG, WEIGHTS, CARD, CHECKSUMS],
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
        return False


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


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def put_in_place(temporary: Path, folder: Path) -> None:
    """Rename; an older folder is moved aside first, so there is never half of one."""
    if not folder.exists():
        temporary.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    try:
        folder.rename(aside / "old")
        try:
            temporary.rename(folder)
        except OSError:
            (aside / "old").rename(folder)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
