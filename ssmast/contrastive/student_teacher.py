"""Student and momentum teacher."""

import copy
from typing import Any, cast

import torch
from lightly.models.utils import deactivate_requires_grad
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.model import Backbone


class Branch(nn.Module):
    """What student and teacher have in common.

    Args:
        backbone: encoder.
        projector: maps its embedding (B, E) to the projection (B, P).
    """

    backbone: Backbone

    def __init__(self, backbone: Backbone, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector


class Student(nn.Module):
    """The network that learns: a branch, a predictor and, if asked, the temperature.

    Its backbone knows single clips, so it may see the batch in pieces; `predict` may normalise over
    the batch, so it wants all of it.
    """

    def __init__(
        self,
        branch: Branch,
        predictor: nn.Module,
        *,
        temperature: float,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}; 0.1 is usual")
        self.branch = branch
        self.predictor = predictor
        log_temperature = torch.tensor(temperature).log()
        self.log_temperature = nn.Parameter(log_temperature, requires_grad=learn_temperature)

    @property
    def temperature(self) -> Tensor:
        """Scalar; at least 0.01, the bound CLIP trains with."""
        return self.log_temperature.exp().clamp(min=0.01)

    def predict(self, embedding: Tensor) -> Tensor:
        """Embeddings of one view (B, E) -> predictions (B, P) of unit length."""
        projection = self.branch.projector(embedding)
        return F.normalize(self.predictor(projection).float(), dim=1)


class Teacher(nn.Module):
    """Exponential moving average of the student's branch; never sees a gradient."""

    def __init__(self, student_branch: Branch) -> None:
        super().__init__()
        self.branch = copy.deepcopy(student_branch)
        deactivate_requires_grad(self)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Always in evaluation mode: it drops nothing."""
        return super().train(False)

    @torch.no_grad()
    def project(self, embedding: Tensor) -> Tensor:
        """Embeddings of one view (B, E) -> keys (B, P) of unit length."""
        return F.normalize(self.branch.projector(embedding).float(), dim=1)

    @torch.no_grad()
    def ema_update_(self, student_branch: Branch, momentum: float) -> None:
        """`ema_update_` of the teacher by the student, once a step.

        Source: He et al. 2020 (MoCo), eq. 2.
        """
        ema_update_(self.branch, student_branch, momentum)


@torch.no_grad()
def ema_update_(average: nn.Module, current: nn.Module, momentum: float) -> None:
    """Average <- momentum * average + (1 - momentum) * current, parameter by parameter.

    Floating-point buffers follow the same average; counters are copied. Ours and not lightly's
    `update_momentum`, which leaves buffers behind and rounds twice: here an average of equal
    weights stays equal to the bit.

    Raises:
        ValueError: if momentum lies outside [0, 1].
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
    mine = [*average.parameters(), *average.buffers()]
    theirs = [*current.parameters(), *current.buffers()]
    pairs = list(zip(mine, theirs, strict=True))
    floats = [(kept, new.to(kept.dtype)) for kept, new in pairs if kept.is_floating_point()]
    if floats:  # all in a few kernels
        kept_ones, new_ones = ([pair[side] for pair in floats] for side in (0, 1))
        lerp_ = cast(Any, torch)._foreach_lerp_  # as torch's own optimisers call it
        lerp_(kept_ones, new_ones, 1 - momentum)
    for kept, new in pairs:
        if not kept.is_floating_point():
            kept.copy_(new)
