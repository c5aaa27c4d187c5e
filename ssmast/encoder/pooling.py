"""Which statistics of which layers an embedding holds, and where."""

import torch
from torch import Tensor

from ssmast.model import Backbone, pooled_dim
from ssmast.model.backbone import LAYERS
from ssmast.model.pool import POOL_MODES, statistic_dims


def check_pooling(backbone: Backbone, *, pooling: str, layers: str) -> None:
    """Refuse what this backbone does not have.

    Raises:
        ValueError: for an unknown pooling or layers, or "cls" without class tokens.
    """
    backbone.blocks_of(layers)
    backbone.check_pooling(pooling)


def poolings_to_try(backbone: Backbone) -> list[str]:
    """What pooling=best chooses from."""
    return [mode for mode in POOL_MODES if mode != "cls" or backbone.num_class_tokens]


def layers_to_try(backbone: Backbone) -> list[str]:
    """What layers=best chooses from: each stage, all, all but the last, and all blocks."""
    stages = len(backbone.stage_ends)
    found = {tuple(backbone.blocks_of(layers)): layers for layers in reversed(LAYERS)}
    if stages > 1:
        for layers in (f"1-{stages - 1}", *map(str, range(1, stages))):
            found.setdefault(tuple(backbone.blocks_of(layers)), layers)
    return list(found.values())


def layer_dims(backbone: Backbone, *, num_mels: int, pooling: str, layers: str) -> list[int]:
    """Length of each layer's part of an embedding, in their order."""
    sizes = backbone.layer_sizes(layers, num_mels=num_mels)
    return [pooled_dim(pooling, *size) for size in sizes]


def max_indices(backbone: Backbone, *, num_mels: int, pooling: str, layers: str) -> Tensor:
    """Which numbers of an embedding are maxima over tokens, bool (D,)."""
    parts = [
        torch.full((length,), statistic == "max", device="cpu")
        for size in backbone.layer_sizes(layers, num_mels=num_mels)
        for statistic, length in statistic_dims(pooling, *size).items()
    ]
    return torch.cat(parts)
