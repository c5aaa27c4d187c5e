"""The network that fine-tuning trains: a backbone whose last layer is one linear layer a head."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.model import Backbone, create_model
from ssmast.model.timm_interface import init_weights

# Beginnings of the names of what learns while the backbone is frozen.
HEAD_PARTS = ("head.", "attn_pool.")


class HeadLayers(nn.Module):
    """Linear layers side by side on features that a first batch centred and scaled.

    Args:
        dim: of the features.
        sizes: classes of each head.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, dim: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, size) for size in sizes)
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D) -> logits of all heads (B, C)."""
        x = (x - self.centre) / self.scale
        return torch.cat([layer(x) for layer in self.layers], dim=1)

    @property
    def is_calibrated(self) -> bool:
        """Whether centre and scale have been set."""
        return bool(self.centre.any())

    @torch.no_grad()
    def calibrate_(self, features: Tensor) -> None:
        """Centre and scale by these features (n, D), as far as they are finite.

        A constant feature keeps a scale: a tenth of the mean variance is added to each.
        """
        features = features.float()[features.isfinite().all(dim=1)]
        if not len(features):
            return  # the step will be skipped, and the next batch does it
        variance = features.var(dim=0, correction=0)
        self.centre.copy_(features.mean(dim=0))
        self.scale.copy_((variance + 0.1 * variance.mean() + 1e-12).sqrt())

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that computes the same."""
        layers = [cast(nn.Linear, layer) for layer in self.layers]
        weight = torch.cat([layer.weight for layer in layers]).double() / self.scale
        bias = torch.cat([layer.bias for layer in layers]).double() - weight @ self.centre.double()
        one = nn.Linear(weight.shape[1], len(weight), device=weight.device)
        one.weight.copy_(weight)
        one.bias.copy_(bias)
        return one


def build_network(
    model: str, *, sizes: Sequence[int], pooling: str, arguments: dict[str, Any]
) -> Backbone:
    """A backbone with fresh heads.

    Args:
        model: name of the architecture.
        sizes: classes of each head.
        pooling: before the heads; empty for the model's own.
        arguments: of `create_model`.

    Raises:
        ValueError: for a pooling that the model does not have.
    """
    network = cast(Backbone, create_model(model, num_classes=sum(sizes), **arguments))
    network.reset_classifier(sum(sizes), pooling or None)
    layers = HeadLayers(network.head_hidden_size, sizes)
    network.head.fc = layers.to(network.patch_embed.proj.weight.device)
    return network


def features_of(
    network: Backbone, log_mel: Tensor, *, frozen: bool, lengths: Tensor | None = None
) -> Tensor:
    """What the linear layers see (B, D); without a graph through the backbone if it is frozen."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        x, grid, mask = network.encode(log_mel, lengths=lengths)
    x = network.forward_head(x, pre_logits=True, grid=grid, mask=mask)
    for name, part in network.head.named_children():
        if name != "fc":
            x = part(x)
    return x


def exported(network: Backbone) -> Backbone:
    """A copy whose head is one linear layer, as `create_model` makes it."""
    whole = copy.deepcopy(network)
    whole.head.fc = cast(HeadLayers, whole.get_classifier()).merged()
    return whole.requires_grad_(True)


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    sizes: Sequence[int],
    multi_label: bool,
    smoothing: float = 0.0,
) -> Tensor:
    """Loss of each clip (B,) in nats, the heads' summed.

    Args:
        logits: (B, C) of all heads.
        targets: (B, C) shares of each class, which mixing makes fractions of.
        sizes: classes of each head.
        multi_label: binary cross-entropy, the mean over classes; else cross-entropy of each head.
        smoothing: share of the target that is spread evenly over a head's classes.

    Source: Szegedy et al. 2016, section 7, for the smoothing; Gong et al. 2021 (AST) for the mean.
    """
    logits = logits.float()
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
    losses = []
    for own, wanted in zip(logits.split(sizes, 1), targets.split(sizes, 1), strict=True):
        wanted = (1 - smoothing) * wanted + smoothing / own.shape[1]
        losses.append(-(wanted * own.log_softmax(dim=1)).sum(dim=1))
    return torch.stack(losses).sum(dim=0)
