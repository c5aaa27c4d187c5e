"""Small MLPs between the embedding and the contrastive loss; thrown away after pretraining."""

from itertools import pairwise

from lightly.models.modules.heads import ProjectionHead
from torch import nn

NORMS = ("none", "layer", "batch")


def _norm(kind: str, dim: int) -> nn.Module | None:
    if kind == "layer":
        return nn.LayerNorm(dim)
    if kind == "batch":
        # Always by the batch at hand: heads are never used outside training.
        return nn.BatchNorm1d(dim, track_running_stats=False)
    if kind == "none":
        return None
    raise ValueError(f"head norm must be one of {', '.join(NORMS)}, got {kind!r}")


def _mlp(dims: list[int], *, norm: str) -> ProjectionHead:
    hidden = [(i, o, _norm(norm, o), nn.ReLU()) for i, o in pairwise(dims[:-1])]
    return ProjectionHead([*hidden, (dims[-2], dims[-1], None, None)])


def build_projector(
    *, kind: str, dim_in: int, hidden: int, dim: int, num_layers: int, norm: str
) -> nn.Module:
    """Embedding (B, dim_in) -> projection (B, dim).

    Args:
        kind: "linear", one layer as the poster's released code has, or "mlp".
        dim_in: size of the encoder's pooled embedding.
        hidden: width of the layers between.
        dim: size of the projection.
        num_layers: linear layers of the "mlp"; 3 in MoCo v3.
        norm: "batch", "layer" or "none" before each activation. BatchNorm spreads the keys of an
            untrained encoder, which nearly coincide, over the sphere: with it the clips of a small
            batch are distinguished within ten steps, with LayerNorm not within fifty. It wants the
            batch of all processes and micro-batches at once.

    Source: Chen et al. 2021 (MoCo v3), section 4.
    """
    if kind == "linear":
        return _mlp([dim_in, dim], norm="none")
    if kind != "mlp":
        raise ValueError(f"head kind must be linear or mlp, got {kind!r}")
    return _mlp([dim_in, *[hidden] * (num_layers - 1), dim], norm=norm)


def build_predictor(*, hidden: int, dim: int, norm: str) -> nn.Module:
    """Two layers, (B, dim) -> (B, dim), on the student only; `hidden` 0 means none.

    Source: Chen et al. 2021 (MoCo v3), section 4.
    """
    return _mlp([dim, hidden, dim], norm=norm) if hidden else nn.Identity()
