"""One head trained on frozen embeddings, its best epoch by the validation part."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.evaluation.classifier import Fitted, Part
from ssmast.evaluation.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a head is trained: Adam, and the best epoch by the validation part.

    Attributes:
        lr: learning rate.
        batch_size: clips a step.
        num_epochs: at most.
        patience: looks at the validation part without a better one before it stops; None: never.
        look_every: epochs between such looks.
        weight_decay: Adam's.
        last_lr: share of `lr` that a cosine would reach after the last epoch, falling from epoch to
            epoch; 1 for a constant rate.
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
    """A head with the weights of its best epoch, and how good they are on the validation part."""

    head: nn.Module
    score: float
    loss: float
    epoch: int

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better: the metric, equal ones by the loss."""
        return self.score, -self.loss


def train_head(
    make: Callable[[], nn.Module],
    train: Part,
    valid: Part,
    *,
    schedule: Schedule,
    metric: Metric,
    seed: int,
) -> Trained:
    """Train one head; `seed` decides its first weights, the order of the clips and dropout.

    Args:
        make: the head, features (n, D) -> (n, C), with fresh weights.
        train: features and class numbers, or zeros and ones.
        valid: the same; decides which epoch is kept.
        schedule: of the training.
        metric: what the validation part decides by.
        seed: the global generator is left as it was.
    """
    (features, targets), device = train, train[0].device
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
            found, since = _look(head, valid, metric, epoch=epoch), since + 1
            if found.rank > best.rank:
                best, state, since = found, copy.deepcopy(head.state_dict()), 0
            if schedule.patience is not None and since >= schedule.patience:
                break
    head.load_state_dict(state)
    return Trained(head=head.eval(), score=best.score, loss=best.loss, epoch=best.epoch)


def probe_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, or binary cross-entropy where targets are (n, C) zeros and ones."""
    if targets.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, targets)
    return F.cross_entropy(logits, targets)


@torch.no_grad()
def _look(head: nn.Module, valid: Part, metric: Metric, *, epoch: int) -> Trained:
    head.eval()
    logits, targets = head(valid[0]), valid[1]
    known = slice(None) if targets.ndim == 2 else targets >= 0
    loss = float(probe_loss(logits[known], targets[known]))
    score = float(metric.score(logits, targets))
    return Trained(head=head, score=score if score == score else -math.inf, loss=loss, epoch=epoch)


def fitted(models: Sequence[Trained], chosen: dict[str, Any]) -> Fitted:
    """Heads, one a seed, as a fitted probe."""

    @torch.no_grad()
    def scores(features: Tensor) -> Tensor:
        return torch.stack([model.head(features) for model in models])

    return Fitted(
        scores=scores,
        chosen={**chosen, "epoch": [model.epoch for model in models]},
        valid=[model.score for model in models],
    )
