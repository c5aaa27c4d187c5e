"""Heads trained one by one, as the field's evaluations train theirs: EVAR, HEAR, X-ARES, SUPERB.

And one of our own, with attention over time.
"""

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.evaluation.fitting import Fitted, Problem


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a head is trained: Adam, and the best epoch by the validation part.

    Attributes:
        batch_size: clips a step.
        patience: looks at the validation part without a better one before it stops; None: never.
        look_every: epochs between such looks.
        last_lr: fraction of `lr` that a cosine would reach after the last epoch, falling from epoch
            to epoch; 1 for a constant rate.
        clip: greatest norm of the gradient; None for any.
    """

    lr: float
    batch_size: int
    num_epochs: int
    patience: int | None = None
    look_every: int = 1
    weight_decay: float = 0.0
    last_lr: float = 1.0
    clip: float | None = None

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, the first being 1."""
        cosine = 0.5 * (1 + math.cos(math.pi * (epoch - 1) / self.num_epochs))
        return self.lr * (self.last_lr + (1 - self.last_lr) * cosine)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A head with the weights of its best epoch, and their score on the validation part."""

    head: nn.Module
    score: float
    loss: float
    epoch: int

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better: the metric, equal ones by the loss."""
        return self.score, -self.loss


def train_head(
    of: Problem, make: Callable[[], nn.Module], *, schedule: Schedule, seed: int
) -> Trained:
    """Train one head; `seed` decides its first weights, the order of the clips and dropout.

    `make` gives a head, features (n, D) -> (n, C), with fresh weights. The global generator is left
    as it was.
    """
    (features, targets), device = of.train, of.train[0].device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        head = make().to(device)
        adam = torch.optim.Adam(
            head.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay
        )
        best = Trained(head=head, score=-math.inf, loss=math.inf, epoch=0)
        state, since = copy.deepcopy(head.state_dict()), 0
        for epoch in range(1, schedule.num_epochs + 1):
            head.train()
            adam.param_groups[0]["lr"] = schedule.rate(epoch)
            batches = torch.randperm(len(targets)).split(schedule.batch_size)
            for batch in batches:
                if len(batch) == 1 and len(batches) > 1:
                    continue  # BatchNorm has no variance of one clip
                where = batch.to(device)
                adam.zero_grad()
                probe_loss(head(features[where]), targets[where]).backward()
                if schedule.clip is not None:
                    nn.utils.clip_grad_norm_(head.parameters(), schedule.clip)
                adam.step()
            if epoch % schedule.look_every and epoch < schedule.num_epochs:
                continue
            found, since = _look(head, of, epoch=epoch), since + 1
            if found.rank > best.rank:
                best, state, since = found, copy.deepcopy(head.state_dict()), 0
            if schedule.patience is not None and since >= schedule.patience:
                break
    head.load_state_dict(state)
    head.eval()
    return best


def probe_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, or binary cross-entropy where targets are (n, C) zeros and ones."""
    if targets.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, targets)
    return F.cross_entropy(logits, targets)


@torch.no_grad()
def _look(head: nn.Module, of: Problem, *, epoch: int) -> Trained:
    head.eval()
    logits, targets = head(of.valid[0]), of.valid[1]
    known = slice(None) if of.multi_label else targets >= 0
    loss = float(probe_loss(logits[known], targets[known]))
    score = float(of.metric.score(logits, targets))
    return Trained(head=head, score=score if score == score else -math.inf, loss=loss, epoch=epoch)


def _fit_best(
    of: Problem, points: Sequence[tuple[Callable[[], nn.Module], Schedule, dict[str, Any]]]
) -> Fitted:
    """Heads at the point of a grid that is best by validation, one a seed, as a fitted probe.

    Args:
        of: what they are fitted to.
        points: the head, its schedule, and what is reported of it beside the rate. Each is tried
            with the first seed; of equals the first is taken.
    """
    first, *others = of.seeds
    tried = [train_head(of, make, schedule=schedule, seed=first) for make, schedule, _ in points]
    best = max(range(len(points)), key=lambda i: tried[i].rank)
    make, schedule, facts = points[best]
    models = [train_head(of, make, schedule=schedule, seed=seed) for seed in others]
    models.insert(0, tried[best])
    sums = [part for part in models[0].head.modules() if isinstance(part, LayerSum)]
    weights = [[round(value, 4) for value in one.layer_weights.tolist()] for one in sums]

    @torch.no_grad()
    def scores(features: Tensor) -> Tensor:
        return torch.stack([model.head(features) for model in models])

    return Fitted(
        scores=scores,
        chosen={
            "lr": schedule.lr,
            **({"layer_weights": weights[0]} if weights else {}),
            **facts,
            "epoch": [model.epoch for model in models],
        },
        valid=[model.score for model in models],
    )


def fit_evar(of: Problem) -> Fitted:
    """One linear layer at a fixed rate, up to 200 epochs, patience 20; a model a seed.

    Source: EVAR (Niizumi et al. 2022): Adam, weight decay 1e-8, batches of 200, the rate 3e-4 that
    its configurations of AST and BYOL-A v2 have. Differs from EVAR: of equally good epochs that of
    least loss is kept, there the last one.
    """
    schedule = Schedule(
        lr=of.lr or 3e-4, batch_size=200, num_epochs=200, patience=20, weight_decay=1e-8
    )
    return _fit_best(of, [(lambda: nn.Linear(of.dim, of.num_classes), schedule, {})])


def fit_xares(of: Problem) -> Fitted:
    """LayerNorm and one linear layer, ten epochs of Adam, a cosine towards a tenth of the rate.

    Source: X-ARES (Zhang et al. 2025): batches of 32, the rate (1e-3) set anew at every epoch.
    """

    def make() -> nn.Module:
        return nn.Sequential(nn.LayerNorm(of.dim), nn.Linear(of.dim, of.num_classes))

    schedule = Schedule(lr=of.lr or 1e-3, batch_size=32, num_epochs=10, last_lr=0.1)
    return _fit_best(of, [(make, schedule, {})])


# Hidden layers, initialisation, rate: in the order that HEAR lists them in before it draws.
HEAR_GRID = tuple(
    itertools.product((1, 2), ("xavier_uniform", "xavier_normal"), (3.2e-3, 1e-3, 3.2e-4, 1e-4))
)


def fit_hear(of: Problem, *, num_epochs: int = 500) -> Fitted:
    """One or two hidden layers of 1024; 8 of 16 points of a grid tried, the best by validation.

    Number of layers, initialisation and rate are drawn with the first seed, as HEAR draws them with
    its seed of 42; the point chosen is trained with the others too.

    Source: HEAR (Turian et al. 2022): BatchNorm, dropout 0.1, ReLU, Adam, batches of 1024, up to
    500 epochs, the validation part every third, patience 20 looks.
    """
    grid = list(HEAR_GRID)
    random.Random(of.seeds[0]).shuffle(grid)  # noqa: S311
    points = []
    for layers, init, lr in grid[:8]:
        make = partial(_mlp, of.dim, of.num_classes, layers=layers, init=init)
        schedule = Schedule(
            lr=lr, batch_size=1024, num_epochs=num_epochs, patience=20, look_every=3
        )
        points.append((make, schedule, {"hidden_layers": layers, "initialization": init}))
    return _fit_best(of, points)


def _mlp(dim: int, num_classes: int, *, layers: int, init: str) -> nn.Sequential:
    def parts() -> Iterator[nn.Module]:
        width = dim
        for _ in range(layers):
            yield from (nn.Linear(width, 1024), nn.BatchNorm1d(1024), nn.Dropout(0.1), nn.ReLU())
            width = 1024
        yield nn.Linear(width, num_classes)

    mlp = nn.Sequential(*parts())
    start = {"xavier_uniform": nn.init.xavier_uniform_, "xavier_normal": nn.init.xavier_normal_}
    after = "linear"  # what the layer's input has gone through
    for module in mlp:
        if isinstance(module, nn.Linear):
            start[init](module.weight, gain=nn.init.calculate_gain(after))
            after = "relu"
    return mlp


class LayerSum(nn.Module):
    """Softmax-weighted sum of the vectors of an encoder's layers, then a linear classifier.

    Args:
        widths: length of each layer's vector; they lie one after the other in the features.
        hidden: size that every layer is projected to; layers of one width have one matrix.

    The mean over time is taken before the projection, not after it: both are linear.

    Source: SUPERB (Yang et al. 2021). Differs from SUPERB: its layers have one width; here each
    width has a projection of its own, so that the stages of a multiscale encoder can be added.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, *, hidden: int = 256) -> None:
        super().__init__()
        self.widths = list(widths)
        self.logits = nn.Parameter(torch.zeros(len(self.widths)))
        self.projections = nn.ModuleDict(
            {str(width): nn.Linear(width, hidden) for width in dict.fromkeys(self.widths)}
        )
        self.head = nn.Linear(hidden, num_classes)

    @property
    def layer_weights(self) -> Tensor:
        """Weight of each layer (L,), summing to 1."""
        return self.logits.softmax(dim=0)

    def forward(self, features: Tensor) -> Tensor:
        """(n, sum of widths) -> (n, C)."""
        parts = features.split(self.widths, dim=1)
        projected = [self.projections[str(part.shape[1])](part) for part in parts]
        return self.head(torch.einsum("l,lnh->nh", self.layer_weights, torch.stack(projected)))


SUPERB_RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


def fit_superb(of: Problem, *, num_epochs: int = 100) -> Fitted:
    """`LayerSum` at the best of seven rates, by validation; the layers' weights are reported.

    Source: SUPERB: Adam, batches of 32, gradients clipped to norm 1, the rate chosen for each model
    and task.
    Differs from SUPERB: at most 100 epochs with patience 20 instead of 30,000 to 200,000 steps.
    """
    make = partial(LayerSum, of.widths or (of.dim,), of.num_classes)
    return _fit_best(of, [(make, _superb_schedule(lr, num_epochs), {}) for lr in SUPERB_RATES])


def _superb_schedule(lr: float, num_epochs: int) -> Schedule:
    return Schedule(lr=lr, batch_size=32, num_epochs=num_epochs, patience=20, clip=1.0)


class AttentiveHead(nn.Module):
    """Softmax-weighted layers, attention over the parts of a clip, then a linear classifier.

    Every head of the attention has one learned query for its share of the channels, zero at first:
    then all parts weigh alike, and this is `LayerSum` of the means over time.

    Args:
        widths: length of each layer's vector, its `slots` parts one after the other.
        hidden: size that every layer is projected to.
        num_heads: of the attention; divides `hidden`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        *,
        slots: int,
        hidden: int = 256,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        self.slots, self.hidden, self.num_heads = slots, hidden, num_heads
        self.sum = LayerSum([width // slots for width in widths], hidden, hidden=hidden)
        self.sum.head = nn.Identity()  # type: ignore[assignment]
        self.query = nn.Parameter(torch.zeros(num_heads, hidden // num_heads))
        self.head = nn.Linear(hidden, num_classes)

    def time_weights(self, summed: Tensor) -> Tensor:
        """Weights (n, slots, heads), summing to 1 over the slots, of vectors (n, slots, hidden)."""
        keys = summed.unflatten(2, (self.num_heads, -1))  # (n, slots, heads, d)
        return torch.einsum("nthd,hd->nth", keys, self.query).softmax(dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """(n, sum of widths) -> (n, C)."""
        n, widths = len(features), [width * self.slots for width in self.sum.widths]
        parts = [part.unflatten(1, (self.slots, -1)) for part in features.split(widths, dim=1)]
        summed = self.sum(torch.cat(parts, dim=2).flatten(0, 1)).unflatten(0, (n, self.slots))
        values = summed.unflatten(2, (self.num_heads, -1))
        pooled = torch.einsum("nth,nthd->nhd", self.time_weights(summed), values).flatten(1)
        return self.head(pooled)


ATTENTIVE_RATES = (1e-2, 1e-3, 1e-4)


def fit_attentive(of: Problem, *, num_epochs: int = 100) -> Fitted:
    """`AttentiveHead` at the best of three rates and its best epoch, both by validation.

    Where the embedding has one part a clip (`slots` 1), only the layers are weighted.
    """
    make = partial(AttentiveHead, of.widths or (of.dim,), of.num_classes, slots=of.slots)
    return _fit_best(
        of,
        [(make, _superb_schedule(lr, num_epochs), {"parts": of.slots}) for lr in ATTENTIVE_RATES],
    )
