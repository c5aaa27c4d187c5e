"""Log-mel -> embedding (B, D): which layers' tokens are pooled, and how."""

from bisect import bisect_left

import torch
from torch import Tensor

from ssmast.model import Backbone, Tokens, pool_tokens, pooled_dim
from ssmast.model.pool import MAX_MODES

# The last tokens, those at the end of every stage, or those of every block.
LAYERS = ("last", "stages", "blocks")


def check_pooling(backbone: Backbone, *, pooling: str, layers: str) -> None:
    """Refuse what this backbone does not have.

    Raises:
        ValueError: for an unknown pooling or layers, or "cls" without class tokens.
    """
    if layers not in LAYERS:
        raise ValueError(f"layers must be one of {', '.join(LAYERS)}, got {layers!r}")
    backbone.check_pooling(pooling)


def encode_layers(
    backbone: Backbone, log_mel: Tensor, lengths: Tensor | None, *, layers: str
) -> list[Tokens]:
    """Tokens of normalised log-mels (B, 1, F, T) after each of the layers; the last is normed.

    Args:
        backbone: to run.
        log_mel: of the front end.
        lengths: frames of each clip, where clips were padded to one width.
        layers: one of `LAYERS`.
    """
    if layers == "last":
        return [backbone.encode(log_mel, lengths=lengths)]
    blocks = backbone.encode_blocks(log_mel, lengths=lengths)
    return blocks if layers == "blocks" else [blocks[index] for index in backbone.stage_ends]


def pool_layers(layers: list[Tokens], *, pooling: str) -> Tensor:
    """The vectors of all layers, joined (B, D).

    Args:
        layers: of `encode_layers`.
        pooling: one of `POOL_MODES`.
    """
    return torch.cat([pool_tokens(tokens, mode=pooling) for tokens in layers], dim=1)


def layer_dims(backbone: Backbone, *, num_mels: int, pooling: str, layers: str) -> list[int]:
    """Length of each layer's part of an embedding, in their order."""
    return [pooled_dim(pooling, *sizes) for sizes in _layer_sizes(backbone, num_mels, layers)]


def max_indices(backbone: Backbone, *, num_mels: int, pooling: str, layers: str) -> Tensor:
    """Which numbers of an embedding are maxima over tokens, bool (D,)."""
    parts = []
    for rows, channels in _layer_sizes(backbone, num_mels, layers):
        part = torch.zeros(pooled_dim(pooling, rows, channels), dtype=torch.bool, device="cpu")
        if pooling in MAX_MODES:
            part[-channels:] = True
        parts.append(part)
    return torch.cat(parts)


def _layer_sizes(backbone: Backbone, num_mels: int, layers: str) -> list[tuple[int, int]]:
    """(frequency rows, channels) of every layer that is pooled."""
    grids = backbone.grid_of(num_mels, max(backbone.input_size[1], 1))
    if layers == "last":
        return [(grids[-1].freq, backbone.num_features)]
    channels, ends = backbone.block_channels, backbone.stage_ends
    # Block i belongs to the first stage that ends at i or later.
    rows = [grids[1 + bisect_left(ends, index)].freq for index in range(len(channels))]
    wanted = ends if layers == "stages" else range(len(channels))
    return [(rows[index], channels[index]) for index in wanted]
