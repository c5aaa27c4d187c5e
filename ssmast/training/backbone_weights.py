"""Where a checkpoint of pretraining holds the encoder: in which part, behind which prefix."""

from collections.abc import Mapping

from torch import Tensor

from ssmast.training.checkpoint import Tensors

# Beginning of the backbone's names in the networks that a method trains.
PREFIX = {"ss_mast": "branch.backbone.", "ssast": "backbone."}
# Networks that a method has, the one to export first, and the parts of its checkpoints with them.
_PARTS = {"ss_mast": {"teacher": "teacher", "student": "student"}, "ssast": {"student": "network"}}


def networks_of(method: str) -> tuple[str, ...]:
    """The networks of a method of pretraining, the one to export by default first."""
    return tuple(_PARTS[method])


def backbone_weights(tensors: Tensors, *, method: str, network: str) -> Mapping[str, Tensor]:
    """State dict of the backbone of one network.

    Args:
        tensors: of a checkpoint.
        method: of the pretraining.
        network: one of `networks_of(method)`.
    """
    part, prefix = tensors[_PARTS[method][network]], PREFIX[method]
    return {name.removeprefix(prefix): part[name] for name in part if name.startswith(prefix)}
