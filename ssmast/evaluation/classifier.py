"""What every kind of probe takes and gives; the code that fits never sees the test part."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Features (n, D) float32, and class numbers (n,) int64 or, where a clip may have several labels,
# zeros and ones (n, C) float32.
Part = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fitted probe.

    Attributes:
        scores: features (n, D) -> (S, n, C) class scores, one model a seed.
        chosen: what the validation part decided, plain values for JSON.
        valid: validation metric of each of the S models.
    """

    scores: Callable[[Tensor], Tensor]
    chosen: dict[str, Any]
    valid: list[float]
