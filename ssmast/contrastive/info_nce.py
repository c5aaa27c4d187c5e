"""The contrastive loss."""

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float | Tensor,
    query_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each query picking its own key among the negatives.

    Always computed in float32: in bfloat16 a logit near 1 / 0.07 has steps of 0.06.

    Args:
        queries: (B, P) student projections, unit length; the gradient flows here.
        positives: (B, P) teacher projections of the same clips' other view, unit length.
        negatives: (K, P) teacher projections of other clips, unit length; K may be 0.
        temperature: divides the cosine similarity; smaller is sharper. A tensor must be positive:
            to look would make the host wait for a GPU in every step.
        query_ids: (B,) clip of each query; with `negative_ids` it takes a query's own clip out
            of its negatives.
        negative_ids: (K,) clip of each negative.

    Returns:
        Mean loss in nats, log(1 + K) when all keys coincide, and the share of queries (0..1) that
        are nearer to their own key than to any negative.

    Raises:
        ValueError: if the temperature is a number and not positive.

    Source: Oord et al. 2018 (CPC), eq. 4; the SS-MAST poster's L(f, h).
    Differs from the poster: a query's own clip is never among its negatives; the released code
    enqueued the keys of the first term before the second term was computed.
    """
    if not isinstance(temperature, Tensor) and temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}; 0.1 is usual")
    with torch.autocast(queries.device.type, enabled=False):
        queries, positives = queries.float(), positives.float()
        positive_logits = (queries * positives).sum(dim=1, keepdim=True) / temperature  # (B, 1)
        negative_logits = queries @ negatives.float().T / temperature  # (B, K)
        # After the division: of -inf / temperature a learnt temperature's gradient is NaN.
        if query_ids is not None and negative_ids is not None:
            own = query_ids[:, None] == negative_ids[None, :]
            negative_logits = negative_logits.masked_fill(own, float("-inf"))
        logits = torch.cat([positive_logits, negative_logits], dim=1)
        target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        loss = F.cross_entropy(logits, target)
    with torch.no_grad():
        accuracy = torch.ones((), device=logits.device)
        if len(negatives):
            # A tie (up to rounding) is a miss: one point for all clips must not score 100 %.
            best = negative_logits.max(dim=1).values
            accuracy = (positive_logits[:, 0] > best + 1e-6 / temperature).float().mean()
    return loss, accuracy
