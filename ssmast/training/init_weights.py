"""What a run starts from, and where its checkpoints hold the encoders."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from ssmast.audio import LogMel
from ssmast.audio.mel import KaldiMel, front_end_of
from ssmast.encoder import Encoder, load_encoder
from ssmast.encoder.folder import encoder_folder
from ssmast.encoder.published import PUBLISHED
from ssmast.files import write_json
from ssmast.model import (
    AST,
    IMAGENET,
    MAST,
    LoadReport,
    is_ast_state_dict,
    is_published_ast,
    is_timm_state_dict,
    load_ast_state_dict,
    load_mast_state_dict,
    load_timm_state_dict,
    mast_name,
    read_tensors,
)
from ssmast.settings import UsageError
from ssmast.weights import DEFAULT, FOLDER

logger = logging.getLogger(__name__)


def backbone_weights(
    state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], *, network: str
) -> Mapping[str, Tensor]:
    """State dict of the backbone of one network of a checkpoint, one of `state["encoders"]`."""
    place = state["encoders"][network]
    part, prefix = tensors[place["file"]], place["prefix"]
    return {name.removeprefix(prefix): part[name] for name in part if name.startswith(prefix)}


class InitialWeights(NamedTuple):
    """Weights that were found and read.

    Attributes:
        source: file or folder they are from.
        tensors: key -> tensor.
        encoder: the encoder they are of; None for timm's weights, and for those of an AST whose
            length and stride nothing tells.
    """

    source: Path
    tensors: dict[str, Tensor]
    encoder: Encoder | None

    @property
    def published_front_end(self) -> LogMel | None:
        """What a published AST or SSAST was trained with; None for other weights."""
        if self.encoder is not None:
            is_published = self.encoder.info.get("network") == PUBLISHED
            return self.encoder.log_mel if is_published else None
        return KaldiMel() if is_published_ast(self.tensors) else None


def find_weights(init: str, model: str) -> Path | None:
    """File or encoder folder that `init` names; None for random weights. May download.

    Args:
        init: "none"; "default", the encoder that comes with the package; "imagenet"; a
            .safetensors of timm's MViTv2 or of an AST; a folder of an AST that transformers wrote;
            an encoder or a run folder.
        model: the model that is trained.

    Raises:
        UsageError: if there are no ImageNet weights of such a model.
        FileNotFoundError: if there is no such file, or the download failed.
        ValueError: if the file is of a kind that could run code.
    """
    if init == "none":
        return None
    if init == "imagenet":
        return _imagenet(model)
    path = Path(init)
    if path.is_dir():
        return encoder_folder(path)
    if init == DEFAULT:
        return FOLDER
    if path.suffix in {".pth", ".pt", ".bin", ".ckpt", ".tar"}:
        raise ValueError(
            f"init={init} may hold a pickle, which can run code when it is read; save the state "
            "dict as .safetensors (safetensors.torch.save_file) and give that"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"init={init} does not exist; give none, default, imagenet, a .safetensors file of "
            "timm's MViTv2 or of an AST, or an encoder or run folder"
        )
    return path


def _imagenet(model: str) -> Path:
    """Timm's weights for the model, from the cache of the Hugging Face Hub or through it."""
    from huggingface_hub import hf_hub_download
    from timm.models import get_pretrained_cfg

    if model not in IMAGENET:
        raise UsageError(
            f"init=imagenet needs a model that timm has weights for ({', '.join(IMAGENET)}), got "
            f"model={model}; choose one of them or init=none"
        )
    tag = IMAGENET[model]
    weights = get_pretrained_cfg(tag)
    repo = weights.hf_hub_id if weights is not None else None
    if not repo:
        raise ValueError(f"this timm does not know where {tag} lies; install the pinned timm")
    try:
        return Path(hf_hub_download(repo, "model.safetensors"))
    except (OSError, ValueError) as error:  # all of the Hub's errors are one of these
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise FileNotFoundError(
            f"the ImageNet weights {tag} could not be fetched ({reason}); download "
            f"https://huggingface.co/{repo}/resolve/main/model.safetensors where there is a "
            "network and set init=PATH/model.safetensors"
        ) from error


def read_weights(source: Path) -> InitialWeights:
    """Read what `find_weights` found; of a folder the checksums too.

    Raises:
        FileNotFoundError: if a folder is no encoder folder.
        ValueError: if a file is damaged or not of a known kind.
    """
    if source.is_dir():
        encoder = load_encoder(source)
        return InitialWeights(source, encoder.backbone.state_dict(), encoder)
    tensors = read_tensors(source, named=f"init={source}")
    if not is_timm_state_dict(tensors) and not is_ast_state_dict(tensors):
        raise ValueError(
            f"init={source} must hold the weights of timm's MViTv2 (keys such as "
            "stages.0.blocks.0.attn.rel_pos_h), of an AST or of timm's distilled DeiT, got "
            f"{', '.join(list(tensors)[:3])}, ...; for an encoder of ssmast give its folder"
        )
    if is_published_ast(tensors):
        try:
            encoder = load_encoder(source)
        except ValueError as error:  # its size, which then is that of the model that is trained
            logger.info("init=%s: %s", source, error)
        else:
            return InitialWeights(source, encoder.backbone.state_dict(), encoder)
    return InitialWeights(source, tensors, None)


def published_front_end(init: str, model: str) -> LogMel | None:
    """Front end of the published AST that `init` names, for inputs without padding; or None."""
    if init in ("none", "imagenet"):
        return None
    try:
        source = find_weights(init, model)
    except FileNotFoundError:  # a run that is resumed needs it no more, a new one will say so
        return None
    found = None if source is None else read_weights(source).published_front_end
    return None if found is None else front_end_of({**found.settings(), "pad_frames": 0})


def start_encoders_(
    encoders: Iterable[nn.Module], weights: InitialWeights, *, model: str, log_mel: LogMel
) -> LoadReport:
    """Put weights into all encoders of an objective alike, such as student and teacher.

    Args:
        encoders: written in place.
        weights: what `read_weights` gave.
        model: name of their architecture.
        log_mel: front end of this run; a warning tells where the weights had another one.

    Raises:
        ValueError: if they are of another model or do not fit.
    """
    first, *others = encoders
    report = load_backbone_(first, weights, model=model, log_mel=log_mel)
    for other in others:
        other.load_state_dict(first.state_dict())
    return report


def load_backbone_(
    backbone: nn.Module, weights: InitialWeights, *, model: str, log_mel: LogMel
) -> LoadReport:
    """Put weights into a backbone without a head.

    Raises:
        ValueError: if they are of another model or do not fit.
    """
    assert isinstance(backbone, MAST | AST)
    if weights.encoder is None:
        if isinstance(backbone, MAST) != is_timm_state_dict(weights.tensors):
            other = "an AST" if isinstance(backbone, MAST) else "a MAST"
            raise UsageError(f"init={weights.source} holds {other}, this run trains {model}")
        if isinstance(backbone, AST):
            return load_ast_state_dict(backbone, weights.tensors, skip=("head.", "head_dist."))
        return load_timm_state_dict(backbone, weights.tensors, skip=("head.",))
    source = weights.encoder.backbone
    check_network(source, backbone, init=weights.source, model=model)
    _compare_front_ends(weights.encoder.log_mel.settings(), log_mel.settings())
    if isinstance(backbone, AST):
        assert isinstance(source, AST)
        grid = source.train_grid[:]
        return load_ast_state_dict(backbone, weights.tensors, skip=("head.",), source_grid=grid)
    assert isinstance(source, MAST)
    return load_mast_state_dict(backbone, weights.tensors, source=source)


def check_network(source: nn.Module, backbone: nn.Module, *, init: str | Path, model: str) -> None:
    """Refuse an encoder whose weights another network cannot take over.

    Raises:
        UsageError: naming the model that can.
    """
    theirs = cast(Any, source).pretrained_cfg["architecture"]
    if theirs != model and not _differ_in_patches_only(source, backbone):
        raise UsageError(f"init={init} is a {theirs}, this run trains {model}; use model={theirs}")


def _differ_in_patches_only(source: nn.Module, backbone: nn.Module) -> bool:
    """True for two ASTs of one size whose patches overlap by different amounts.

    SSAST hides patches that do not overlap and is fine-tuned with patches that do.
    """
    if not (isinstance(source, AST) and isinstance(backbone, AST)):
        return False
    shapes = [
        {
            name: tensor.shape
            for name, tensor in net.state_dict().items()
            if name != "pos_embed" and not name.startswith("head.")
        }
        for net in (source, backbone)
    ]
    return shapes[0] == shapes[1]


def _compare_front_ends(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{key} (was {before.get(key)}, now {value})"
        for key, value in now.items()
        if key not in {"mean", "std", "pad_frames"} and before.get(key) != value
    ]
    if changed:
        logger.warning(
            "init: these weights were trained with a different front end: %s; set front_end.* "
            "alike unless that is meant",
            ", ".join(changed),
        )


def write_init_json(
    file: Path,
    report: LoadReport,
    weights: InitialWeights,
    networks: nn.Module,
    *,
    prefix: str,
    heads: tuple[str, ...] = (),
    fitted: bool = False,
) -> None:
    """Every key that was used, adapted or left, with its shape, and what stays random; JSON.

    Args:
        file: to write.
        report: of the loading.
        weights: that were loaded.
        networks: that hold the backbone.
        prefix: of the backbone's parameters in them.
        heads: beginnings of names behind the prefix that are heads.
        fitted: the heads are not random but fitted to the backbone, and listed so.
    """
    own = {name: list(tensor.shape) for name, tensor in networks.state_dict().items()}
    inside = tuple(prefix + head for head in heads)
    shape = {key: list(tensor.shape) for key, tensor in weights.tensors.items()}
    # Loading fails where a tensor of the backbone is missing, so what is left random is the heads.
    random = {
        name: own[name]
        for name, parameter in networks.named_parameters()
        if parameter.requires_grad
        if not name.startswith(prefix) or name.startswith(inside)
    }
    content = {
        "source": str(weights.source),
        "used": {key: shape[key] for key in report.used},
        "adapted": {
            key: {"how": how, "from": shape[key], "to": own.get(f"{prefix}{mast_name(key)}")}
            for key, how in report.adapted.items()
        },
        "left": {key: {"why": why, "shape": shape[key]} for key, why in report.left.items()},
        "fitted" if fitted else "random": random,
    }
    write_json(file, content)
