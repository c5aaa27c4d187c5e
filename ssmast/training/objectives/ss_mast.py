"""SS-MAST: two views through student and teacher, InfoNCE against a queue of earlier keys."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmast.contrastive import Branch, KeyQueue, Student, Teacher, build_predictor, info_nce
from ssmast.contrastive.monitors import (
    alignment,
    chance_loss,
    effective_rank,
    queue_numbers,
    relative_distance,
    uniformity,
)
from ssmast.model import Backbone
from ssmast.training.objective import (
    Objective,
    PretrainConfig,
    RunFacts,
    Step,
    StepLoss,
    TwoViews,
    build_backbone,
    projector_of,
)

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ContrastiveLoss(StepLoss):
    """The loss and what was contrasted.

    Attributes:
        predictions: (2, G, P), the student's, of each view.
        keys: (2G, P), the teacher's, of view 1 and then view 2.
        temperature: of the student.
    """

    predictions: Tensor
    keys: Tensor
    temperature: Tensor


class SSMAST(Objective[PretrainConfig, TwoViews, ContrastiveLoss]):
    """Student, momentum teacher and queue of negatives.

    Source: the SS-MAST poster; Chen et al. 2021 (MoCo v3) for heads and the symmetric loss.
    """

    def __init__(self, config: PretrainConfig, run: RunFacts) -> None:
        super().__init__(config, run)
        self.student = build_student(config)
        self.teacher = Teacher(self.student.branch)
        size = queue_size_of(config, num_clips=run.num_clips)
        self.info_nce = info_nce
        self.queue = KeyQueue(size=size, dim=config.head.dim)
        asked, usual = config.loss.queue_size, type(config.loss).queue_size
        if size < asked and asked != usual:
            logger.info(
                "loss.queue_size=%d is limited to %d, loss.queue_fraction=%g of the %d clips",
                *(asked, size, config.loss.queue_fraction, run.num_clips),
            )
        if size > run.num_clips / 10:
            logger.warning(
                "loss.queue_size=%d is more than a tenth of the %d clips, so it holds many recent "
                "views of similar sounds and of the same clips as negatives; "
                "loss.queue_fraction=0.1, the default, limits it to a tenth",
                *(size, run.num_clips),
            )

    def compile_(self) -> None:
        """The loss too."""
        super().compile_()
        self.info_nce = torch.compile(info_nce, fullgraph=True)

    def encoders(self) -> dict[str, Backbone]:
        """Teacher and student."""
        branches = {"teacher": self.teacher.branch, "student": self.student.branch}
        return {name: branch.backbone for name, branch in branches.items()}

    def embed(self, views: TwoViews) -> Tensor:
        """The student's embeddings (B, 2 + `views.local`, E)."""
        return self.embed_views(self.student.branch.backbone, views)

    @torch.no_grad()
    def targets(self, views: TwoViews) -> Tensor:
        """The teacher's embeddings (B, 2, E)."""
        drops = self.config.patch_drop.teacher
        return self.embed_views(self.teacher.branch.backbone, views, drops=drops, local=False)

    def loss(self, embeddings: Tensor, targets: Tensor, step: Step) -> ContrastiveLoss:
        """L(f, h) + L(h, f): view 1 asks for its clip's key of view 2, and the reverse.

        A short crop asks for both keys; every pair of crop and key weighs the same, and the sum is
        that of two pairs, however many crops there are. All terms see one snapshot of the queue.
        Heads run in float32: at first the keys of all clips nearly coincide.
        """
        keys = [self.teacher.project(targets[:, i]) for i in (0, 1)]
        negatives, negative_ids = self.queue.snapshot()
        temperature = self.student.temperature
        p_1, p_2, *crops = (self.student.predict(rows) for rows in embeddings.unbind(1))
        in_batch = self.config.loss.batch_negatives

        def term(queries: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
            rivals, ids = negatives, negative_ids
            if in_batch:
                rows = own.flatten(0, -2)
                rivals = torch.cat([negatives, rows])
                ids = torch.cat([ids, step.ids.repeat_interleave(len(rows) // len(own))])
            return self.info_nce(
                queries, own, rivals, temperature=temperature, query_ids=step.ids, negative_ids=ids
            )

        (loss_1, hit_1), (loss_2, hit_2) = term(p_1, keys[1]), term(p_2, keys[0])
        loss, others = loss_1 + loss_2, len(step.ids) - 1 if in_batch else 0
        chance = chance_loss(len(negatives) + others)
        for crop in crops:
            loss = loss + 2 * term(crop, torch.stack(keys, dim=1))[0]
            chance += chance_loss(len(negatives) + 2 * others)
        return ContrastiveLoss(
            loss=loss / (1 + len(crops)),
            accuracy=(hit_1 + hit_2) / 2,
            chance_loss=torch.tensor(chance / (1 + len(crops)), dtype=torch.float64),
            predictions=torch.stack([p_1, p_2]),
            keys=torch.cat(keys),
            temperature=temperature,
        )

    def after_step(self, loss: ContrastiveLoss, views: list[TwoViews], step: Step) -> None:
        """The teacher follows, the queue and the mixup memory take the step's clips in."""
        self.teacher.ema_update_(self.student.branch, self.momentum(step.number))
        self.queue.enqueue_(loss.keys, torch.cat([step.ids, step.ids]), step=step.number)
        super().after_step(loss, views, step)

    @torch.no_grad()
    def numbers(self, loss: ContrastiveLoss, step: int) -> dict[str, float]:
        """How well clips are found, how the vectors are spread, and the state of queue and teacher.

        They are equal on all processes.
        """
        p_1, p_2 = loss.predictions
        student, teacher = self.student.branch, self.teacher.branch
        return {
            **super().numbers(loss, step),
            "rank_projection": effective_rank(torch.cat([p_1, p_2])),
            "alignment": alignment(p_1, p_2),
            "uniformity": uniformity(p_1),
            "temperature": float(loss.temperature),
            **queue_numbers(self.queue, loss.keys, step=step),
            "teacher_distance": relative_distance(student.parameters(), teacher.parameters()),
            "momentum": self.momentum(step - 1),
        }


def build_student(config: PretrainConfig) -> Student:
    """Backbone, projector and predictor with fresh weights."""
    backbone, head = build_backbone(config), config.head
    projector = projector_of(config, backbone)  # before the predictor: weights follow the order
    predictor = build_predictor(hidden=head.predictor, dim=head.dim, norm=head.norm)
    return Student(
        Branch(backbone, projector),
        predictor,
        temperature=config.loss.temperature,
        learn_temperature=config.loss.learn_temperature,
    )


def queue_size_of(config: PretrainConfig, *, num_clips: int) -> int:
    """Keys of the queue: `queue_size`, or fewer where `queue_fraction` of the clips is less.

    Raises:
        ValueError: if that leaves no negatives at all.
    """
    loss = config.loss
    if not loss.queue_fraction:
        return loss.queue_size
    size = min(loss.queue_size, int(loss.queue_fraction * num_clips))
    if not size and not loss.batch_negatives:
        raise ValueError(
            f"loss.queue_fraction={loss.queue_fraction:g} of {num_clips} clips leaves no "
            "negatives; give a larger fraction or loss.batch_negatives=true"
        )
    return size
