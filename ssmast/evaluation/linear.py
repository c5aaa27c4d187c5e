"""One linear layer on frozen embeddings, many of them trained at once.

Models that differ only in learning rate, penalty or seed are one batched matrix product: the
weights are (S, D, L * C) for S seeds and L points of the grid, so a grid costs little more than one
probe.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmast.evaluation.fitting import Fitted, Problem

# (learning rate x D, C): Adam moves a logit of standardised features by up to lr * D a step, so in
# units of 1 / D one grid serves 256 and 4096 dimensions. C is the inverse strength of the L2
# penalty as in logistic regression, infinite for none.
GRID = tuple((rate, c) for rate in (1.0, 4.0) for c in (0.003, 0.03, 0.3, math.inf))
# The same without a penalty: plain learning rates, eight of them over three decades.
LR_GRID = tuple((0.1 * 300 ** (i / 7), math.inf) for i in range(8))

# Gradients below this are set to zero: squared, they would be denormal numbers, which make a CPU
# seven times slower once the training part is fitted.
_TINY = 1e-8
_MOST_STEPS, _LEAST_EPOCHS = 2000, 10


def fit_linear(
    of: Problem,
    *,
    grid: tuple[tuple[float, float], ...] = GRID,
    num_epochs: int = 50,
    batch_size: int = 256,
) -> Fitted:
    """Linear probes trained with Adam and a cosine; rate and penalty are chosen on `valid`.

    The whole grid is trained with every seed at once; of the pairs, the one that is best in the
    mean over the seeds is taken.

    Args:
        of: standardised features. Equal values of its metric are decided by the cross-entropy
            (binary, summed over the classes, for several labels); seeds differ in the order of the
            clips.
        grid: pairs of learning rate x D and C to choose from.
        num_epochs: passes over the training part, whose last weights are taken; as few as make
            2000 steps (but 10 or more), since a large part is learnt in fewer passes.
        batch_size: clips a step; more or fewer where an epoch would have over 100 steps or under 4.

    Source: the shape is EVAR's (Niizumi et al. 2022): standardised features, one layer, Adam.
    Differs from EVAR: learning rate and an L2 penalty are chosen on the validation part; weights
    start at zero (random ones stay as noise when clips are fewer than dimensions); a cosine takes
    the place of picking the best epoch, which loses 2 to 3 points where the validation part is
    small and dimensions are many.
    """
    # At least four steps an epoch, so that the order of the clips, all that seeds change, matters.
    (features, targets), num_clips = of.train, len(of.train[1])
    batch_size = max(min(batch_size, math.ceil(num_clips / 4)), math.ceil(num_clips / 100))
    dim = features.shape[1]
    # Loss is a mean over clips, so logistic regression's penalty |w|^2 / 2C is divided by them too.
    pairs = [(rate / dim, 1 / (c * num_clips)) for rate, c in grid]
    of = of._replace(
        train=(_with_ones(features), targets), valid=(_with_ones(of.valid[0]), of.valid[1])
    )
    steps = math.ceil(num_clips / batch_size)
    num_epochs = min(num_epochs, max(_LEAST_EPOCHS, _MOST_STEPS // steps))
    models = _Models(of, pairs)
    models.train_(num_epochs=num_epochs, batch_size=batch_size)
    values, losses = models.validate()
    values = values.nan_to_num(nan=-math.inf)  # a metric that the validation part cannot decide
    ranks = list(zip(values.mean(dim=0).tolist(), (-losses.mean(dim=0)).tolist(), strict=True))
    chosen = ranks.index(max(ranks))
    weights = models.weights()[:, :, chosen].contiguous()  # (S, D + 1, C)
    return Fitted(
        scores=lambda features: _with_ones(features) @ weights,
        chosen={
            "lr": pairs[chosen][0],
            "C": None if math.isinf(grid[chosen][1]) else grid[chosen][1],
            "epoch": [num_epochs] * len(of.seeds),
        },
        valid=values[:, chosen].tolist(),
    )


def _with_ones(features: Tensor) -> Tensor:
    """(n, D) -> (n, D + 1): the weight of the last column is the bias."""
    return F.pad(features, (0, 1), value=1.0)


class _Models:
    """S x L probes under training."""

    def __init__(self, of: Problem, pairs: list[tuple[float, float]]) -> None:
        self.of, (self.features, self.targets) = of, of.train
        device, dim = self.features.device, self.features.shape[1]
        self.generators = [torch.Generator().manual_seed(seed) for seed in of.seeds]
        # Adam's step does not depend on the scale of its parameter: with weights = rate * units,
        # one optimiser of rate 1 trains all the rates.
        columns = torch.tensor(pairs, device=device).repeat_interleave(of.num_classes, dim=0)
        self.rates, self.penalties = columns.unbind(dim=1)
        self.units = torch.zeros(len(of.seeds), dim, len(self.rates), device=device)

    def train_(self, *, num_epochs: int, batch_size: int) -> None:
        """Adam, its rate on a cosine down to zero."""
        adam = torch.optim.Adam([self.units], lr=1.0, fused=True)
        truth = self.targets
        if not self.of.multi_label:
            truth = F.one_hot(self.targets, self.of.num_classes).float()
        num_clips = len(self.targets)
        for epoch in range(num_epochs):
            order = torch.stack([torch.randperm(num_clips, generator=g) for g in self.generators])
            batches = order.to(self.features.device).split(batch_size, dim=1)
            for index, batch in enumerate(batches):
                progress = (epoch + index / len(batches)) / num_epochs
                adam.param_groups[0]["lr"] = 0.5 * (1 + math.cos(math.pi * progress))
                self.units.grad = self._gradient(batch, truth)
                adam.step()

    def weights(self) -> Tensor:
        """(S, D, L, C)."""
        return (self.units * self.rates).unflatten(2, (-1, self.of.num_classes))

    def _gradient(self, batch: Tensor, truth: Tensor) -> Tensor:
        """Of cross-entropy and penalty, for clips (S, b): each seed has its own."""
        inputs = self.features[batch]  # (S, b, D)
        logits = (inputs @ self.units).mul_(self.rates).unflatten(2, (-1, self.of.num_classes))
        chances = logits.sigmoid() if self.of.multi_label else logits.softmax(dim=3)
        errors = chances.sub_(truth[batch][:, :, None])  # (S, b, L, C)
        errors = F.hardshrink(errors, _TINY).flatten(2)
        gradient = (inputs.transpose(1, 2) @ errors).div_(batch.shape[1])
        # The bias, in the last row, bears no penalty.
        gradient[:, :-1].addcmul_(self.units[:, :-1], self.rates * self.penalties)
        return gradient.contiguous()  # fused Adam ignores a gradient's strides

    def validate(self) -> tuple[Tensor, Tensor]:
        """Metric and cross-entropy of every model, (S, L) each; seed by seed bounds the memory."""
        found = [self._validate_seed(of_seed) for of_seed in self.weights()]
        scores, losses = zip(*found, strict=True)
        return torch.stack(scores), torch.stack(losses)

    def _validate_seed(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The same of the weights (D, L, C) of one seed, (L,) each."""
        features, targets = self.of.valid
        shape = (-1, self.of.num_classes)
        logits = (features @ weights.flatten(1)).unflatten(1, shape).transpose(0, 1)  # (L, n, C)
        scores = self.of.metric.score(logits, targets)
        if self.of.multi_label:
            losses = F.softplus(logits) - logits * targets  # binary cross-entropy
            return scores, losses.sum(dim=2).mean(dim=1)
        known = targets >= 0  # a class not in train has no logit
        log_share = logits[:, known].log_softmax(dim=2)  # (L, n, C)
        where = targets[known].expand(*log_share.shape[:2])[..., None]
        return scores, -log_share.gather(2, where).mean(dim=(1, 2))
