"""SSAST's objective: which patches are hidden, what is asked of them, and the two losses."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.model import Grid


def draw_masked_patches(
    grid: Grid, *, num_masked: int, cluster: tuple[int, int], draws: Tensor
) -> Tensor:
    """Hide exactly `num_masked` patches of each clip, in squares of C x C patches.

    Squares fall one after the other around random patches, over each other too, until enough is
    hidden; the last one is cut short. C is drawn once a clip.

    Args:
        grid: of the patches.
        num_masked: patches to hide, the same in every clip.
        cluster: smallest and largest C; (1, 1) hides single patches (or frames).
        draws: uniform numbers (B, 1 + N) in [0, 1), one row a clip.

    Returns:
        bool (B, N), True where a patch is hidden.

    Raises:
        ValueError: if nothing, everything or more would be hidden, or the draws do not fit.

    Source: Gong et al. 2022 (SSAST), section 2.2: C from 3 to 5 for patches, no clusters for
    frames.
    Differs from SSAST: squares lie around their patch and may reach over the edge, so that cells
    at the first edges are hidden as often as those at the last ones.
    """
    num_patches, (low, high) = grid.freq * grid.time, cluster
    if not 0 < num_masked < num_patches:
        raise ValueError(
            f"masked patches must be 1 to {num_patches - 1} of the {num_patches} of a clip, "
            f"got {num_masked}"
        )
    if not 1 <= low <= high:
        raise ValueError(f"cluster must be a range such as [3, 5], got {list(cluster)}")
    if draws.ndim != 2 or draws.shape[1] != 1 + num_patches:
        raise ValueError(f"draws must be (B, {1 + num_patches}), got {tuple(draws.shape)}")
    sides = (low + draws[:, 0] * (high - low + 1)).long().clamp(max=high)
    # A square falls at the moment that its patch drew; a patch is hidden by the first that covers
    # it: the smallest of the moments around it.
    moments = draws[:, 1:].unflatten(1, grid[:])
    hidden_at = torch.empty_like(moments)
    for side in range(low, high + 1):
        before, after = side // 2, (side - 1) // 2
        padded = F.pad(-moments, (before, after, before, after), value=float("-inf"))
        covered = -F.max_pool2d(padded[:, None], side, stride=1)[:, 0]
        hidden_at = torch.where(sides[:, None, None] == side, covered, hidden_at)
    order = hidden_at.flatten(1).argsort(dim=1, stable=True)
    masked = torch.zeros(order.shape, dtype=torch.bool, device=draws.device)
    return masked.scatter_(1, order[:, :num_masked], True)


def cut_patches(log_mel: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Log-mel (B, 1, F, T) -> its patches (B, N, P), row by row, for patches that do not overlap.

    What does not fill a patch at the upper and right edge is left out, as by the encoder's stem.
    """
    return F.unfold(log_mel.float(), kernel_size=size, stride=size).transpose(1, 2)


class MaskedPatchHeads(nn.Module):
    """What SSAST adds to an encoder while it is pretrained.

    Args:
        dim_in: channels D of the encoder's tokens.
        patch_dim: numbers P in a patch.

    Attributes:
        mask_token: (D,), stands for a hidden patch.

    Source: Gong et al. 2022 (SSAST), section 2.3: two heads of two layers each.
    """

    def __init__(self, dim_in: int, *, patch_dim: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(dim_in))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.discriminate, self.reconstruct = (
            nn.Sequential(nn.Linear(dim_in, 256), nn.ReLU(), nn.Linear(256, patch_dim))
            for _ in range(2)
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of hidden patches (B, M, D) -> which patch it is, and the patch: (B, M, P)."""
        return self.discriminate(tokens), self.reconstruct(tokens)


class MaskedPatchLoss(NamedTuple):
    """What a guess about hidden patches costs.

    Attributes:
        discriminative: nats; log(M) when all of a clip's hidden patches are alike.
        generative: mean square error.
        accuracy: share (0..1) of hidden patches that are told from all others of their clip.
    """

    discriminative: Tensor
    generative: Tensor
    accuracy: Tensor


def masked_patch_loss(guess: Tensor, reconstruction: Tensor, patches: Tensor) -> MaskedPatchLoss:
    """Both of SSAST's losses, in float32; the negatives are the clip's other hidden patches.

    Args:
        guess: (B, M, P) of the discriminative head.
        reconstruction: (B, M, P) of the generative head.
        patches: (B, M, P) as they are in the normalised log-mel.

    Source: Gong et al. 2022 (SSAST), eqs. 1 and 2.
    """
    with torch.autocast(guess.device.type, enabled=False):
        guess, reconstruction, patches = guess.float(), reconstruction.float(), patches.float()
        logits = guess @ patches.transpose(1, 2)  # (B, M, M)
        own = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
        discriminative = F.cross_entropy(logits.flatten(0, 1), own.flatten())
        generative = F.mse_loss(reconstruction, patches)
    with torch.no_grad():
        mine = logits.diagonal(dim1=1, dim2=2)
        others = logits.masked_fill(
            torch.eye(len(logits[0]), dtype=torch.bool, device=logits.device), float("-inf")
        )
        # Among equal patches (digital silence) no guess is right.
        accuracy = (mine > others.amax(dim=2)).float().mean()
    return MaskedPatchLoss(discriminative, generative, accuracy)
