"""Whitening of embeddings: the few directions that hold most of the variance are shrunk.

Pretraining leaves a vector whose largest principal directions are hundreds of times as wide as the
others, so that cosines, neighbours and a linear layer that is trained by steps see little else.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

MEAN, SCALE, DIRECTIONS, FACTORS = "mean", "scale", "directions", "factors"
# 1 would give all directions one variance; chosen on validation parts (docs/ideas/pooling.md).
POWER = 0.5
# Of a direction: fewer say too little of its variance.
FEWEST_CLIPS = 4


class Whitening(nn.Module):
    """Vectors (B, D) -> (B, D): standardised, their k widest directions shrunk.

    Of standardised vectors with the principal directions v_i and variances s_i, the part along v_i
    is multiplied by (t / s_i) ** (p / 2): t is the mean variance of the directions that are left as
    they are, p the power. p = 0 only standardises, p = 1 gives each v_i the variance t. The length
    of the vector stays.

    Args:
        mean: of the vectors (D,).
        scale: 1 / standard deviation (D,).
        directions: orthonormal rows (k, D).
        factors: of the directions (k,).
        measured: how they came about, as config.json says it: power, clips.

    Source: Kessy, Lewin and Strimmer 2018 (ZCA whitening); Mu and Viswanath 2018, who remove the
    widest directions of word vectors. Differs from both: the power leaves the order of the
    variances as it is.
    """

    mean: Tensor
    scale: Tensor
    directions: Tensor
    factors: Tensor

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor,
        directions: Tensor,
        factors: Tensor,
        *,
        measured: Mapping[str, float],
    ) -> None:
        super().__init__()
        for name, value in ((MEAN, mean), (SCALE, scale), (DIRECTIONS, directions)):
            self.register_buffer(name, value.float())
        self.register_buffer(FACTORS, factors.float())
        self.measured = dict(measured)

    @classmethod
    def of(cls, vectors: Tensor, *, directions: int, power: float = POWER) -> "Whitening":
        """Measured on vectors (n, D); fewer directions where n is less than four times as many.

        Raises:
            ValueError: if there are fewer than four vectors.
        """
        if len(vectors) < FEWEST_CLIPS:
            raise ValueError(
                f"whitening needs {FEWEST_CLIPS} clips or more, got {len(vectors)}; "
                "set export.whiten=0"
            )
        x = vectors.double()
        mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
        scale = torch.where(std <= 1e-6 * mean.abs() + 1e-12, 0.0, 1 / std)
        x = (x - mean) * scale
        variances, axes = torch.linalg.eigh(x.T @ x / len(x))
        variances, axes = variances.flip(0).clamp(min=0), axes.flip(1)
        k = min(directions, len(x) // FEWEST_CLIPS, x.shape[1])
        # Of vectors that lie in few directions the rest has none.
        rest = variances[k:].mean() if k < len(variances) else variances[-1]
        rest = rest.clamp(min=1e-3 * variances.mean())
        factors = (rest / variances[:k].clamp(min=rest)).pow(power / 2)
        measured = {"power": power, "clips": len(x)}
        return cls(mean, scale, axes[:, :k].T.contiguous(), factors, measured=measured)

    def forward(self, vectors: Tensor) -> Tensor:
        """Whiten vectors (B, D)."""
        # In float32 whatever the network computes in: 1 / standard deviation may be large.
        axes = self.directions.float()
        x = (vectors.float() - self.mean.float()) * self.scale.float()
        x = x - ((x @ axes.T) * (1 - self.factors.float())) @ axes
        return x.to(vectors.dtype)

    def settings(self) -> dict[str, Any]:
        """What config.json says of it."""
        return {"directions": len(self.factors), **self.measured}

    def to_bytes(self) -> bytes:
        """Content of whitening.safetensors."""
        from safetensors.torch import save

        return save({name: value.contiguous() for name, value in self.state_dict().items()})

    @classmethod
    def from_bytes(cls, content: bytes, settings: dict[str, Any]) -> "Whitening":
        """What `to_bytes` wrote.

        Raises:
            KeyError, TypeError: if something is missing.
        """
        from safetensors.torch import load

        found = load(content)
        parts = (found[name] for name in (MEAN, SCALE, DIRECTIONS, FACTORS))
        return cls(*parts, measured={k: v for k, v in settings.items() if k != DIRECTIONS})
