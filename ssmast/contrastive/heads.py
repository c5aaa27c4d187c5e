"""Small MLPs between the embedding and the contrastive loss; thrown away after pretraining."""

from itertools import pairwise

import torch
import torch.distributed
from torch import Tensor, nn

NORMS = ("none", "layer", "batch")


class GlobalBatchNorm(nn.Module):
    """BatchNorm over the batch of all processes, on any device.

    Always by the batch at hand: heads are never used outside training, so no running statistics
    are kept. torch's SyncBatchNorm refuses CPUs, where a run of two processes must give the
    numbers of a run of one.

    Args:
        dim: features.
        eps: added to the variance.

    Source: Ioffe & Szegedy 2015, algorithm 1.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) -> (B, dim); mean and variance over all processes' rows, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            mean = _over_processes(x.mean(dim=0))
            # Around the common mean: a difference of large squares would lose the variance.
            variance = _over_processes((x - mean).square().mean(dim=0))
            return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def _over_processes(mean: Tensor) -> Tensor:
    """Mean of equally large shares; the gradient flows back to every process."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return mean
    size = distributed.get_world_size()
    if size == 1:
        return mean
    return _SumOverProcesses.apply(mean) / size


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce by sum, whose gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


def _norm(kind: str, dim: int) -> list[nn.Module]:
    if kind == "layer":
        return [nn.LayerNorm(dim)]
    if kind == "batch":
        return [GlobalBatchNorm(dim)]
    if kind == "none":
        return []
    raise ValueError(f"head norm must be one of {', '.join(NORMS)}, got {kind!r}")


def _mlp(dims: list[int], *, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for dim_in, dim_out in pairwise(dims[:-1]):
        layers += [nn.Linear(dim_in, dim_out, bias=norm == "none")]
        layers += [*_norm(norm, dim_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(dims[-2], dims[-1]))


def build_projector(
    *, kind: str, dim_in: int, hidden: int, dim: int, num_layers: int, norm: str
) -> nn.Sequential:
    """Embedding (B, dim_in) -> projection (B, dim).

    Args:
        kind: "linear", one layer as the poster's released code has, or "mlp".
        dim_in: size of the encoder's pooled embedding.
        hidden: width of the layers between.
        dim: size of the projection.
        num_layers: linear layers of the "mlp"; 3 in MoCo v3.
        norm: "batch", "layer" or "none" before each activation. BatchNorm spreads the keys of an
            untrained encoder, which nearly coincide, over the sphere: with it a small batch is
            told apart within ten steps, with LayerNorm not within fifty. But it needs the whole
            batch at once; LayerNorm allows gradient accumulation.

    Source: Chen et al. 2021 (MoCo v3), section 4.
    """
    if kind == "linear":
        return nn.Sequential(nn.Linear(dim_in, dim))
    if kind != "mlp":
        raise ValueError(f"head kind must be linear or mlp, got {kind!r}")
    return _mlp([dim_in, *[hidden] * (num_layers - 1), dim], norm=norm)


def build_predictor(*, hidden: int, dim: int, norm: str) -> nn.Module:
    """Two layers, (B, dim) -> (B, dim), on the student only; `hidden` 0 means none.

    Source: Chen et al. 2021 (MoCo v3), section 4.
    """
    return _mlp([dim, hidden, dim], norm=norm) if hidden else nn.Identity()
