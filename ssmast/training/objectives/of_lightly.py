"""Objectives of the kinds that lightly has: SS-MAST mosaic, VICReg, Barlow Twins, SwAV, DINO.

Mosaic contrasts clips, VICReg and Barlow Twins keep dimensions apart in place of clips, SwAV and
DINO sort views into learnt classes. The loss sees all clips of the step already, so lightly's own
gathering stays off.
"""

import copy
import math
import warnings
from dataclasses import dataclass

import torch
from lightly.loss import BarlowTwinsLoss, DINOLoss, SwaVLoss, VICRegLoss
from lightly.loss.vicreg_loss import invariance_loss, variance_loss
from lightly.models.modules.heads import DINOProjectionHead, SwaVPrototypes
from lightly.models.utils import deactivate_requires_grad
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.contrastive import ema_update_, info_nce
from ssmast.contrastive.monitors import matched_fraction, relative_distance
from ssmast.model import Backbone
from ssmast.training.objective import Objective, PretrainConfig, RunFacts, Step, StepLoss, TwoViews


class _TwoProjections(Objective[PretrainConfig, TwoViews, StepLoss]):
    """One encoder, a projector, and a loss of the projections of both views."""

    criterion: nn.Module

    def __init__(self, config: PretrainConfig, run: RunFacts) -> None:
        super().__init__(config, run)
        self.backbone = self.build_backbone()
        self.projector = self.build_projector()

    def loss(self, embeddings: Tensor, targets: None, step: Step) -> StepLoss:
        """The criterion of (G, P) and (G, P); a clip's other view is looked for to report it."""
        z_1, z_2 = (self.projector(view) for view in embeddings.unbind(1))
        return StepLoss(loss=self.criterion(z_1, z_2), accuracy=matched_fraction(z_1, z_2))


class Mosaic(_TwoProjections):
    """View 1 lost time columns, view 2 frequency rows; NT-Xent over the batch.

    By `info_nce`: lightly's NT-Xent, which it equals, picks by a mask, for which a GPU's host waits
    four times a step.

    Source: Chen et al. 2020 (SimCLR), section 2.1, for the loss.
    """

    def loss(self, embeddings: Tensor, targets: None, step: Step) -> StepLoss:
        """Each of the 2G views picks its clip's other one among all the rest, which are 2G - 1.

        The projector sees both views at once, as the loss does.
        """
        z = F.normalize(self.projector(embeddings.flatten(0, 1)), dim=1)
        z_1, z_2 = z.unflatten(0, (-1, 2)).unbind(1)
        own = torch.arange(len(z_1), device=z.device)
        ids = {"query_ids": own, "negative_ids": own.repeat_interleave(2)}
        temperature = self.config.loss.temperature
        losses = [
            info_nce(query, key, z, temperature=temperature, **ids)[0]
            for query, key in ((z_1, z_2), (z_2, z_1))
        ]
        return StepLoss(
            loss=torch.stack(losses).mean(),
            accuracy=matched_fraction(z_1, z_2),
            chance_loss=torch.tensor(math.log(2 * len(z_1) - 1), dtype=torch.float64),
        )


class _VICRegLoss(VICRegLoss):
    """lightly's, whose covariance picks by a mask, for which a GPU's host waits four times."""

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Of two views (G, P)."""
        spread = variance_loss(z_a, eps=self.eps) + variance_loss(z_b, eps=self.eps)
        together = sum(map(_off_diagonal, (z_a, z_b)))
        invariance = invariance_loss(z_a, z_b)
        return (
            self.lambda_param * invariance + self.mu_param * 0.5 * spread + self.nu_param * together
        )


def _off_diagonal(x: Tensor) -> Tensor:
    """Squared covariances of different dimensions of (G, P), their sum over P."""
    x = x - x.mean(dim=0)
    covariance = x.T @ x / (len(x) - 1)
    same = torch.eye(len(covariance), dtype=torch.bool, device=x.device)
    return covariance.masked_fill(same, 0.0).square().sum() / len(covariance)


class VICReg(_TwoProjections):
    """Both views alike, every dimension spread, no two dimensions the same.

    Source: Bardes et al. 2022 (VICReg), section 4.1.
    """

    def __init__(self, config: PretrainConfig, run: RunFacts) -> None:
        super().__init__(config, run)
        own = config.vicreg
        self.criterion = _VICRegLoss(
            lambda_param=own.invariance, mu_param=own.variance, nu_param=own.covariance
        )


class BarlowTwins(_TwoProjections):
    """The cross-correlation of both views is to be the identity.

    Source: Zbontar et al. 2021 (Barlow Twins), eq. 1.
    """

    def __init__(self, config: PretrainConfig, run: RunFacts) -> None:
        super().__init__(config, run)
        self.criterion = BarlowTwinsLoss(lambda_param=config.barlow_twins.redundancy)


class SwAV(Objective[PretrainConfig, TwoViews, StepLoss]):
    """Every crop predicts the code of each view: its soft share of the prototypes.

    Codes come of the views of all processes, which share the prototypes evenly (Sinkhorn).

    Source: Caron et al. 2020 (SwAV), section 3.
    Differs from SwAV: no queue of earlier views, and prototypes are never frozen.
    """

    def __init__(self, config: PretrainConfig, run: RunFacts) -> None:
        super().__init__(config, run)
        self.backbone, own = self.build_backbone(), config.swav
        self.projector = self.build_projector()
        self.prototypes = SwaVPrototypes(config.head.dim, own.prototypes)
        self.prototypes.heads[0].register_parameter("bias", None)  # lightly's has one, SwAV none
        self.prototypes.normalize()
        self.swap = SwaVLoss(
            temperature=own.temperature,
            sinkhorn_epsilon=own.epsilon,
            sinkhorn_iterations=own.iterations,
        )

    def loss(self, embeddings: Tensor, targets: None, step: Step) -> StepLoss:
        """Of all clips of the step; guessing takes all prototypes for equally likely."""
        z = [F.normalize(self.projector(crop), dim=1) for crop in embeddings.unbind(1)]
        similar = [self.prototypes(crop) for crop in z]
        return StepLoss(
            loss=self.swap(similar[:2], similar[2:]).squeeze(0),
            accuracy=matched_fraction(z[0], z[1]),
            chance_loss=torch.tensor(math.log(similar[0].shape[1]), dtype=torch.float64),
        )

    def after_step(self, loss: StepLoss, views: list[TwoViews], step: Step) -> None:
        """Prototypes go back to unit length."""
        self.prototypes.normalize()
        super().after_step(loss, views, step)


class _Distillation(DINOLoss):
    """Its centre moves in `after_step` alone: a skipped step must move nothing."""

    def update_center(self, teacher_out: Tensor) -> None:
        """Left to `move_center_`."""

    def move_center_(self, teacher_out: Tensor) -> None:
        """Average of the teacher's outputs (2, G, K), followed slowly."""
        super().update_center(teacher_out)


@dataclass(kw_only=True)
class DistillationLoss(StepLoss):
    """The loss, and the teacher's outputs (2, G, K) of both views."""

    taught: Tensor


class DINO(Objective[PretrainConfig, TwoViews, DistillationLoss]):
    """Every crop predicts the momentum teacher's sharpened, centred outputs of the other view.

    Source: Caron et al. 2021 (DINO), section 3.1.
    Differs from DINO: the teacher's temperature and the last layer are never held back at first.
    """

    def __init__(self, config: PretrainConfig, run: RunFacts) -> None:
        super().__init__(config, run)
        self.backbone, own = self.build_backbone(), config.dino
        sizes = (self.embedding_dim, config.head.hidden, config.head.dim, own.outputs)
        with warnings.catch_warnings():  # lightly's weight norm is PyTorch's old one
            warnings.simplefilter("ignore", FutureWarning)
            self.head, head = (DINOProjectionHead(*sizes) for _ in range(2))
        copies = {"backbone": copy.deepcopy(self.backbone), "head": head}
        self.teacher = nn.ModuleDict(copies)
        self.teacher["head"].load_state_dict(self.head.state_dict())
        deactivate_requires_grad(self.teacher)
        self.criterion = _Distillation(
            own.outputs,
            teacher_temp=own.teacher_temperature,
            student_temp=own.temperature,
            center_momentum=own.center_momentum,
        )

    def encoders(self) -> dict[str, Backbone]:
        """Teacher and student."""
        teacher = self.teacher["backbone"]
        assert isinstance(teacher, Backbone)
        return {"teacher": teacher, "student": self.backbone}

    def targets(self, views: TwoViews) -> Tensor:
        """The teacher's embeddings (B, 2, E)."""
        teacher, drops = self.encoders()["teacher"].eval(), self.config.patch_drop.teacher
        return self.embed_views(teacher, views, drops=drops, local=False)

    def loss(self, embeddings: Tensor, targets: Tensor, step: Step) -> DistillationLoss:
        """Of all clips of the step; guessing takes all outputs for equally likely."""
        with torch.no_grad():
            taught = [self.teacher["head"](view) for view in targets.unbind(1)]
        said = [self.head(crop) for crop in embeddings.unbind(1)]
        return DistillationLoss(
            loss=self.criterion(taught, said),
            accuracy=matched_fraction(said[0], said[1]),
            chance_loss=torch.tensor(math.log(said[0].shape[1]), dtype=torch.float64),
            taught=torch.stack(taught),
        )

    def after_step(self, loss: DistillationLoss, views: list[TwoViews], step: Step) -> None:
        """Teacher and centre follow."""
        momentum = self.momentum(step.number)
        ema_update_(self.teacher["backbone"], self.backbone, momentum)
        ema_update_(self.teacher["head"], self.head, momentum)
        self.criterion.move_center_(loss.taught)
        super().after_step(loss, views, step)

    @torch.no_grad()
    def numbers(self, loss: DistillationLoss, step: int) -> dict[str, float]:
        """The usual ones, and the state of the teacher."""
        encoders = self.encoders().values()
        teacher, student = (encoder.parameters() for encoder in encoders)
        return {
            **super().numbers(loss, step),
            "teacher_distance": relative_distance(student, teacher),
            "momentum": self.momentum(step - 1),
        }
