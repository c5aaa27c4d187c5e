"""Log-mel -> embedding (B, D): which layers' tokens are pooled, and how."""

import re

import torch
from torch import Tensor

from ssmast.model import Backbone, PatchDrop, Tokens, pool_tokens, pooled_dim
from ssmast.model.pool import POOL_MODES, statistic_dims

# The last tokens, those at the end of every stage, or those of every block; numbers beside them.
LAYERS = ("last", "stages", "blocks")
_NUMBERS = re.compile(r"[1-9]\d*(-[1-9]\d*)?(\+[1-9]\d*(-[1-9]\d*)?)*")


def blocks_of(backbone: Backbone, layers: str) -> list[int]:
    """Blocks whose tokens are pooled, by number and in their order.

    Args:
        backbone: whose blocks.
        layers: "last"; "stages"; "blocks"; or numbers of stages (of an AST: of blocks) from 1 on,
            such as "2-3" or "1+3".

    Raises:
        ValueError: for what it does not have.
    """
    if layers == "blocks":
        return list(range(len(backbone.block_channels)))
    if layers in LAYERS:
        ends = backbone.stage_ends
        return ends[-1:] if layers == "last" else ends
    ends, wanted = backbone.level_ends, set[int]()
    if _NUMBERS.fullmatch(layers):
        for part in layers.split("+"):
            first, _, last = part.partition("-")
            wanted |= set(range(int(first), int(last or first) + 1))
    if not wanted or max(wanted) > len(ends):
        raise ValueError(
            f"layers must be {', '.join(LAYERS)}, or numbers from 1 to {len(ends)} such as "
            f"{max(1, len(ends) - 2)}-{len(ends)} or 1+{len(ends)}, got {layers!r}"
        )
    return [ends[number - 1] for number in sorted(wanted)]


def check_pooling(backbone: Backbone, *, pooling: str, layers: str) -> None:
    """Refuse what this backbone does not have.

    Raises:
        ValueError: for an unknown pooling or layers, or "cls" without class tokens.
    """
    blocks_of(backbone, layers)
    backbone.check_pooling(pooling)


def poolings_to_try(backbone: Backbone) -> list[str]:
    """What pooling=best chooses from."""
    return [mode for mode in POOL_MODES if mode != "cls" or backbone.num_class_tokens]


def layers_to_try(backbone: Backbone) -> list[str]:
    """What layers=best chooses from: each stage, all, all but the last, and all blocks."""
    stages = len(backbone.stage_ends)
    found = {tuple(blocks_of(backbone, layers)): layers for layers in reversed(LAYERS)}
    if stages > 1:
        for layers in (f"1-{stages - 1}", *map(str, range(1, stages))):
            found.setdefault(tuple(blocks_of(backbone, layers)), layers)
    return list(found.values())


def deepest_level(backbone: Backbone, layers: str) -> int:
    """Number from 0 on of the level (stage, or block of an AST) that the network runs to."""
    ends, last = backbone.level_ends, blocks_of(backbone, layers)[-1]
    return next(number for number, end in enumerate(ends) if end >= last)


def encode_layers(
    backbone: Backbone,
    log_mel: Tensor,
    lengths: Tensor | None,
    *,
    layers: str,
    patch_drop: PatchDrop | None = None,
) -> list[Tokens]:
    """Tokens of normalised log-mels (B, 1, F, T) after each of the layers; the last is normed.

    What comes after the deepest of them is not computed.

    Args:
        backbone: to run.
        log_mel: of the front end.
        lengths: frames of each clip, where clips were padded to one width.
        layers: see `blocks_of`.
        patch_drop: patches to leave out.
    """
    blocks, every = blocks_of(backbone, layers), list[Tokens]()
    stop = deepest_level(backbone, layers) + 1
    last = backbone.encode(log_mel, lengths=lengths, patch_drop=patch_drop, every=every, stop=stop)
    every[-1] = last  # with the final norm, if that was the last block of all
    return [every[block] for block in blocks]


def embed_layers(
    backbone: Backbone,
    log_mel: Tensor,
    *,
    layers: str,
    pooling: str,
    lengths: Tensor | None = None,
    patch_drop: PatchDrop | None = None,
) -> Tensor:
    """Vectors (B, D) of normalised log-mels (B, 1, F, T): `encode_layers`, then `pool_layers`."""
    tokens = encode_layers(backbone, log_mel, lengths, layers=layers, patch_drop=patch_drop)
    return pool_layers(tokens, pooling=pooling)


def pool_layers(layers: list[Tokens], *, pooling: str) -> Tensor:
    """The vectors of all layers, joined (B, D).

    Args:
        layers: of `encode_layers`.
        pooling: see `pool_tokens`.
    """
    return torch.cat([pool_tokens(tokens, mode=pooling) for tokens in layers], dim=1)


def layer_dims(backbone: Backbone, *, num_mels: int, pooling: str, layers: str) -> list[int]:
    """Length of each layer's part of an embedding, in their order."""
    return [pooled_dim(pooling, *sizes) for sizes in _layer_sizes(backbone, num_mels, layers)]


def max_indices(backbone: Backbone, *, num_mels: int, pooling: str, layers: str) -> Tensor:
    """Which numbers of an embedding are maxima over tokens, bool (D,)."""
    parts = [
        torch.full((length,), statistic == "max", device="cpu")
        for sizes in _layer_sizes(backbone, num_mels, layers)
        for statistic, length in statistic_dims(pooling, *sizes).items()
    ]
    return torch.cat(parts)


def _layer_sizes(backbone: Backbone, num_mels: int, layers: str) -> list[tuple[int, int]]:
    """(frequency rows, channels) of every layer that is pooled."""
    frames, sizes = max(backbone.input_size[1], 1), []
    for block in blocks_of(backbone, layers):
        level = next(n for n, end in enumerate(backbone.level_ends) if end >= block)
        grid = backbone.level_grid(num_mels, frames, level)
        sizes.append((grid.freq, backbone.block_channels[block]))
    return sizes
