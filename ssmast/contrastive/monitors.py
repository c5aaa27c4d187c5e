"""Numbers that tell whether contrastive learning works or collapses. All pure."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmast.contrastive.key_queue import KeyQueue

# Rows that the costly monitors look at: eigenvalues of 512 x 512 take milliseconds, of a batch of
# thousands seconds, and the rank of more rows than that tells nothing new.
MAX_ROWS = 512


@torch.no_grad()
def effective_rank(embeddings: Tensor) -> float:
    """Exp of the entropy of the normalised singular values; 1 when all vectors are one line.

    Args:
        embeddings: (B, D), of which `MAX_ROWS` evenly spaced rows are used. At most min(B - 1, D)
            can be reached. Needs B > 1.

    Source: Roy & Vetterli 2007, eq. 3; as a monitor of representations Garrido et al. 2023
    (RankMe), eq. 1.
    Differs from RankMe: embeddings are centred, since a large common offset hides the rest, and
    what is left is counted only where it exceeds rounding: the noise of a constant encoder would
    have a high rank.
    """
    rows = spaced_rows(embeddings).cpu().double()
    centred = rows - rows.mean(dim=0)
    if float(centred.norm()) <= 1e-6 * float(rows.norm()):
        return 1.0
    # Singular values by the smaller Gram matrix: in float64 its squares lose nothing that counts.
    is_wide = centred.shape[0] <= centred.shape[1]
    gram = centred @ centred.T if is_wide else centred.T @ centred
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = values / values.sum()
    return math.exp(float(torch.special.entr(share).sum()))


@torch.no_grad()
def alignment(projections_1: Tensor, projections_2: Tensor) -> float:
    """Mean squared distance of the two views of a clip, unit vectors (B, P); 0 is perfect.

    Source: Wang & Isola 2020, eq. 7.
    """
    return float((projections_1 - projections_2).float().square().sum(dim=1).mean())


@torch.no_grad()
def uniformity(projections: Tensor) -> float:
    """Log mean exp(-2 d^2) over pairs of unit vectors (B, P); 0 is collapse, -4 about uniform.

    Of a larger batch, the pairs among `MAX_ROWS` evenly spaced rows.

    Source: Wang & Isola 2020, eq. 8.
    """
    distance = torch.pdist(spaced_rows(projections).float()).square()
    return float(distance.mul(-2).exp().mean().log())


@torch.no_grad()
def matched_fraction(projections_1: Tensor, projections_2: Tensor) -> Tensor:
    """Share (0..1) of clips whose view 1 is nearer to their own view 2 than to any other's.

    A tie (up to rounding) is a miss: one point for all clips must not score.

    Args:
        projections_1: (B, P) of view 1, of any length.
        projections_2: (B, P) of view 2.
    """
    near = F.normalize(projections_1.float(), dim=1) @ F.normalize(projections_2.float(), dim=1).T
    own = torch.eye(len(near), dtype=torch.bool, device=near.device)
    others = near.masked_fill(own, float("-inf")).amax(dim=1)
    return (near.diagonal() > others + 1e-6).float().mean()


@torch.no_grad()
def feature_std(embeddings: Tensor) -> float:
    """Mean std of the unit-length embeddings' dimensions times sqrt(D): 1 spread, 0 collapsed.

    Source: Chen & He 2021 (SimSiam), section 4.1.
    """
    unit = F.normalize(embeddings.float(), dim=1)
    return float(unit.std(dim=0).mean() * unit.shape[1] ** 0.5)


@torch.no_grad()
def relative_distance(weights: Iterable[Tensor], average: Iterable[Tensor]) -> float:
    """Euclidean distance of two sets of weights, as a share of the norm of the second.

    Of student and teacher it is below 0.1 in runs that learn; above 1 the student has left the
    average of its own past behind.
    """
    pairs = list(zip(weights, average, strict=True))
    apart = torch.stack([(mine - theirs).float().square().sum() for mine, theirs in pairs]).sum()
    norm = torch.stack([theirs.float().square().sum() for _, theirs in pairs]).sum()
    return float((apart / norm).sqrt())


@torch.no_grad()
def queue_numbers(queue: KeyQueue, keys: Tensor, *, step: int) -> dict[str, float]:
    """Whether the queue takes in the keys (N, P) of a step, and how they are spread after it."""
    newest = keys[-min(len(keys), queue.size) :][[0, -1]] if queue.size else keys[:0]
    held, _ = queue.snapshot()
    return {
        "queue_fill": len(queue) / queue.size if queue.size else 0.0,
        "queue_age": queue.mean_age(step),
        "queue_newest": queue.holds(newest),
        "queue_std": feature_std(held) if len(held) > 1 else 0.0,
        "key_std": feature_std(keys),
    }


def chance_loss(num_negatives: int) -> float:
    """Both terms of the symmetric loss with no clip found: 2 log(1 + negatives), in nats."""
    return 2 * math.log1p(num_negatives)


def spaced_rows(rows: Tensor, *, limit: int = MAX_ROWS) -> Tensor:
    """At most `limit` rows (B, D), evenly spaced from the first to the last."""
    if len(rows) <= limit:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, limit, device=rows.device).long()]
