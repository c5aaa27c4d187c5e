"""Heads that begin as linear probes, fitted before the backbone moves.

The network that fine-tuning trains: a backbone whose last layer is one linear layer a head.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.audio import Corpus
from ssmast.classifier import Classifier, WindowMeans
from ssmast.evaluation.embed import embed_corpus
from ssmast.evaluation.fitting import Problem, mean_and_std
from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.evaluation.linear import fit_linear
from ssmast.evaluation.metrics import METRICS
from ssmast.model import Backbone, create_model
from ssmast.model.backbone import init_weights
from ssmast.splits import Split

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
        self._was_calibrated = False
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D) -> logits of all heads (B, C)."""
        x = (x - self.centre) / self.scale
        return torch.cat([layer(x) for layer in self.layers], dim=1)

    @property
    def is_calibrated(self) -> bool:
        """Whether centre and scale have been set; once they are, a card is not asked again."""
        self._was_calibrated = self._was_calibrated or bool(self.centre.any())
        return self._was_calibrated

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
    model: str, *, sizes: Sequence[int], pooling: str, layers: str, arguments: dict[str, Any]
) -> Backbone:
    """A backbone with fresh heads of so many classes each, on a pooling of some layers.

    An empty `pooling` is the model's own; `arguments` are those of `create_model`.

    Raises:
        ValueError: for a pooling that the model does not have.
    """
    arguments = {**arguments, "num_classes": sum(sizes), "pool_layers": layers}
    if pooling:
        arguments["global_pool"] = pooling
    network = cast(Backbone, create_model(model, **arguments))
    heads = HeadLayers(network.head_hidden_size, sizes)
    network.head.fc = heads.to(network.patch_embed.proj.weight.device)
    return network


def head_scales(scales: list[float], sizes: list[int]) -> dict[str, float]:
    """Beginning of the names of each head's parameters -> factor of their learning rate.

    Raises:
        ValueError: if there are neither one nor as many as heads.
    """
    if len(scales) not in (1, len(sizes)):
        raise ValueError(
            f"heads.lr_scale must be one number or {len(sizes)}, one for each head, got {scales}"
        )
    each = scales if len(scales) == len(sizes) else scales * len(sizes)
    heads = {f"head.fc.layers.{i}.": scale for i, scale in enumerate(each)}
    return {**heads, "head.": max(each), "attn_pool.": max(each)}


def features_of(
    network: Backbone, log_mel: Tensor, *, frozen: bool, lengths: Tensor | None = None
) -> Tensor:
    """What the linear layers see (B, D); without a graph through the backbone if it is frozen."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        x = network.before_head(log_mel, lengths=lengths)
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


class FrozenFeatures(WindowMeans):
    """What the linear layers see of whole clips: one of the mean is the mean of their logits.

    Args:
        classifier: whose network, windows and front end it uses.
    """

    def __init__(self, classifier: Classifier) -> None:
        network = cast(Backbone, classifier.network)
        super().__init__(
            _BeforeHeads(network),
            classifier.log_mel,
            dim=network.head_hidden_size,
            frames=classifier.frames,
            max_windows=classifier.max_windows,
        )


class _BeforeHeads(nn.Module):
    """A network up to its linear layers."""

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network, self.fewest_frames = network, network.fewest_frames

    def forward(self, log_mel: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """(B, 1, F, T) -> features (B, D)."""
        return features_of(self.network, log_mel, lengths=lengths, frozen=True)


class ProbedHead(NamedTuple):
    """A linear layer on standardised features.

    Attributes:
        weight: (C, D).
        bias: (C,).
        chosen: learning rate and penalty that the validation part decided.
        valid: its score there.
    """

    weight: Tensor
    bias: Tensor
    chosen: dict[str, Any]
    valid: float


class ProbedHeads(NamedTuple):
    """All heads of a set.

    Attributes:
        centre: mean of the training part's features (D,).
        scale: their standard deviation (D,); 1 for a feature that does not vary.
        heads: in the order of the set's.
    """

    centre: Tensor
    scale: Tensor
    heads: list[ProbedHead]

    def write_(self, layers: HeadLayers) -> None:
        """Into the layers of a network."""
        with torch.no_grad():
            layers.centre.copy_(self.centre)
            layers.scale.copy_(self.scale)
            for layer, head in zip(layers.layers, self.heads, strict=True):
                cast(nn.Linear, layer).weight.copy_(head.weight)
                cast(nn.Linear, layer).bias.copy_(head.bias)


def fit_heads(
    features: Tensor, found: LabelledSet, split: Split, *, places: Tensor, metric: str, seed: int
) -> ProbedHeads:
    """Linear probes of the training part, their penalty chosen on the validation part.

    Row i of the features (n, D) is of the clip at position `places[i]` of the set, `metric` what is
    chosen by where a probe of one head has it, and `seed` that of the order of the clips.

    Source: Kumar et al. 2022 (LP-FT): fine-tuning from a random head distorts what was pretrained
    before the head is of use.
    """
    row = {int(place): index for index, place in enumerate(places)}
    parts = {
        name: [int(position) for position in positions if int(position) in row]
        for name, positions in split.parts().items()
        if name != "test"
    }
    rows = {name: torch.tensor([row[p] for p in own]) for name, own in parts.items()}
    centre, scale = mean_and_std(features[rows["train"]])
    ready = {name: ((features[at].double() - centre) / scale).float() for name, at in rows.items()}
    by = METRICS[metric if metric in METRICS else "map" if found.multi_label else "accuracy"]
    heads = []
    for index, head in enumerate(found.heads):
        targets = {name: _targets(found, index, own) for name, own in parts.items()}
        train, valid = ((ready[name], targets[name]) for name in ("train", "valid"))
        fitted = fit_linear(
            Problem(train, valid, len(head.classes), by, seeds=range(seed, seed + 1))
        )
        bias = fitted.scores(torch.zeros(1, features.shape[1]))[0, 0]
        weight = fitted.scores(torch.eye(features.shape[1]))[0] - bias  # (D, C)
        heads.append(ProbedHead(weight.T.contiguous(), bias, fitted.chosen, fitted.valid[0]))
    return ProbedHeads(centre.float(), scale.float(), heads)


def frozen_features(
    classifier: Classifier,
    found: LabelledSet,
    corpus: Corpus,
    split: Split,
    *,
    batch_seconds: float,
) -> tuple[Tensor, Tensor]:
    """Features (n, D) of the training and validation clips that can be read, and their positions.

    The corpus is that of the set's folder; `batch_seconds` of audio go through the network at once.
    """
    positions = torch.cat([torch.from_numpy(part) for part in (split.train, split.valid)])
    embedded = embed_corpus(
        FrozenFeatures(classifier),
        corpus.take(found.rows[positions.numpy()]),
        title="frozen features",
        batch_seconds=batch_seconds,
    )
    return embedded.values, positions[torch.from_numpy(embedded.rows)]


def _targets(found: LabelledSet, head: int, positions: list[int]) -> Tensor:
    """As `fit_linear` takes them."""
    where = torch.tensor(positions).numpy()
    return found.one_hot(where) if found.multi_label else found.class_numbers(head, where)
