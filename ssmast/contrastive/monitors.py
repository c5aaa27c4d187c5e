"""Numbers that tell whether contrastive learning works or collapses. All pure, all float32."""

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def effective_rank(embeddings: Tensor) -> float:
    """Exp of the entropy of the normalised singular values; 1 when all vectors are one line.

    Args:
        embeddings: (B, D). Needs B > 1; at most min(B, D) can be reached, less one when centred.

    Source: Garrido et al. 2023 (RankMe), eq. 1, on centred embeddings: without centring a large
    common offset hides the rest.
    """
    centred = embeddings.float() - embeddings.float().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    if float(values.sum()) == 0:
        return 1.0
    share = values / values.sum()
    return float(torch.exp(-(share * (share + 1e-12).log()).sum()))


@torch.no_grad()
def alignment(projections_1: Tensor, projections_2: Tensor) -> float:
    """Mean squared distance of the two views of a clip, unit vectors (B, P); 0 is perfect.

    Source: Wang & Isola 2020, eq. 7.
    """
    return float((projections_1 - projections_2).float().square().sum(dim=1).mean())


@torch.no_grad()
def uniformity(projections: Tensor) -> float:
    """Log mean exp(-2 d^2) over pairs of unit vectors (B, P); 0 is collapse, -4 about uniform.

    Source: Wang & Isola 2020, eq. 8.
    """
    distance = torch.pdist(projections.float()).square()
    return float(distance.mul(-2).exp().mean().log())


@torch.no_grad()
def feature_std(embeddings: Tensor) -> float:
    """Mean std of the unit-length embeddings' dimensions times sqrt(D): 1 spread, 0 collapsed.

    Source: Chen & He 2021 (SimSiam), section 4.1.
    """
    unit = F.normalize(embeddings.float(), dim=1)
    return float(unit.std(dim=0).mean() * unit.shape[1] ** 0.5)
