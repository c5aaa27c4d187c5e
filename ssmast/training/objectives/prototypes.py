"""Objectives that sort views into learnt classes: SwAV and DINO, of lightly's parts."""

import copy
import math
import warnings
from dataclasses import dataclass

import torch
from lightly.loss import DINOLoss, SwaVLoss
from lightly.models.modules.heads import DINOProjectionHead, SwaVPrototypes
from lightly.models.utils import deactivate_requires_grad
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.contrastive import ema_update_
from ssmast.contrastive.monitors import matched_fraction, relative_distance
from ssmast.model import Backbone
from ssmast.training.objective import Objective, PretrainConfig, RunFacts, Step, StepLoss, TwoViews


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
