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

    With several keys of its own it is to pick each of them, the others of its own left out: the
    loss is the mean over them.

    Always computed in float32: in bfloat16 a logit near 1 / 0.07 has steps of 0.06.

    Args:
        queries: (B, P) student projections, unit length; the gradient flows here.
        positives: (B, P) teacher projections of the same clips' other view, unit length; or
            (B, M, P), M of each clip.
        negatives: (K, P) teacher projections of other clips, unit length; K may be 0.
        temperature: divides the cosine similarity; smaller is sharper. A tensor must be positive:
            to look would make the host wait for a GPU in every step.
        query_ids: (B,) clip of each query; with `negative_ids` it takes a query's own clip out
            of its negatives.
        negative_ids: (K,) clip of each negative.

    Returns:
        Mean loss in nats, log(1 + K) when all keys coincide, and the share (0..1) of queries, or
        of pairs with a key of their own, that are nearer to it than to any negative.

    Raises:
        ValueError: if the temperature is a number and not positive.

    Source: Oord et al. 2018 (CPC), eq. 4; the SS-MAST poster's L(f, h).
    Differs from SupCon (Khosla et al. 2020, eq. 2): a query's other positives are left out of the
    sum below the fraction, where they would push its positives apart.
    Differs from the poster: a query's own clip is never among its negatives; the released code
    enqueued the keys of the first term before the second term was computed.
    """
    if not isinstance(temperature, Tensor) and temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}; 0.1 is usual")
    with torch.autocast(queries.device.type, enabled=False):
        queries, positives = queries.float(), positives.float()
        positives = positives[:, None] if positives.ndim == 2 else positives  # (B, M, P)
        positive_logits = (queries[:, None] * positives).sum(dim=2) / temperature  # (B, M)
        negative_logits = queries @ negatives.float().T / temperature  # (B, K)
        # After the division: of -inf / temperature a learnt temperature's gradient is NaN.
        if query_ids is not None and negative_ids is not None:
            own = query_ids[:, None] == negative_ids[None, :]
            negative_logits = negative_logits.masked_fill(own, float("-inf"))
        rivals = negative_logits[:, None].expand(-1, positives.shape[1], -1)  # (B, M, K)
        logits = torch.cat([positive_logits[..., None], rivals], dim=2).flatten(0, 1)
        target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        loss = F.cross_entropy(logits, target)
    with torch.no_grad():
        accuracy = torch.ones((), device=logits.device)
        if len(negatives):
            # A tie (up to rounding) is a miss: one point for all clips must not score 100 %.
            best = negative_logits.max(dim=1, keepdim=True).values
            accuracy = (positive_logits > best + 1e-6 / temperature).float().mean()
    return loss, accuracy
