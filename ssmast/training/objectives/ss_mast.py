"""The SS-MAST objective as a trainer: its state, its step, its numbers, its checkpoint.

A step's tensors -> the numbers that tell whether it learns; asked for at logged steps only.
"""

import logging
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ssmast.audio import LogMel
from ssmast.contrastive import Branch, KeyQueue, Teacher, info_nce
from ssmast.contrastive.monitors import (
    alignment,
    chance_loss,
    effective_rank,
    feature_std,
    relative_distance,
    uniformity,
)
from ssmast.model import Backbone, LoadReport
from ssmast.training.build import (
    build_augment,
    build_memory,
    build_student,
    optimizer_of,
    queue_size_of,
)
from ssmast.training.checkpoint import Tensors
from ssmast.training.config import PretrainConfig
from ssmast.training.init_weights import PREFIX, InitialWeights, start_from_
from ssmast.training.objective import BaseTrainer, load_tensors_, state_tensors
from ssmast.training.optim import GradientSum, cosine
from ssmast.training.views import Batch, Drops, ViewMaker


@torch.no_grad()
def measure_learning(
    values: dict[str, Any], *, student: Branch, teacher: Branch, queue: KeyQueue, step: int
) -> dict[str, float]:
    """Numbers of one step, equal on all processes if its tensors are.

    Args:
        values: of the step: loss, accuracy, grad_norm, temperature; embeddings (2B, E);
            predictions (2, B, P), of each view; keys (N, P), as enqueued; num_negatives.
        student: after the optimiser's step.
        teacher: after its update.
        queue: after the keys were enqueued.
        step: optimiser steps done.
    """
    p_1, p_2 = values["predictions"]
    keys = values["keys"]
    newest = keys[-min(len(keys), queue.size) :][[0, -1]] if queue.size else keys[:0]
    held, _ = queue.snapshot()
    return {
        "loss": float(values["loss"]),
        "chance_loss": chance_loss(values["num_negatives"]),
        "accuracy": float(values["accuracy"]),
        "rank_embedding": effective_rank(values["embeddings"]),
        "rank_projection": effective_rank(torch.cat([p_1, p_2])),
        "feature_std": feature_std(values["embeddings"]),
        "alignment": alignment(p_1, p_2),
        "uniformity": uniformity(p_1),
        "grad_norm": float(values["grad_norm"]),
        "temperature": float(values["temperature"]),
        "queue_fill": len(queue) / queue.size if queue.size else 0.0,
        "queue_age": queue.mean_age(step),
        "queue_newest": queue.holds(newest),
        "queue_std": feature_std(held) if len(held) > 1 else 0.0,
        "key_std": feature_std(keys),
        "teacher_distance": relative_distance(student.parameters(), teacher.parameters()),
    }


logger = logging.getLogger(__name__)


class Pretraining(BaseTrainer[PretrainConfig]):
    """SS-MAST's student, teacher and queue.

    Attributes:
        backbone_prefix: of the names of the backbone's parameters in `model`.

    Args:
        config: settings of the run.
        accelerator: device, processes, precision.
        log_mel: front end with the corpus' mean and std.
        num_clips: clips in the corpus.
        steps: optimiser steps of the whole run.
    """

    backbone_prefix = PREFIX["ss_mast"]

    @classmethod
    def check(cls, config: PretrainConfig) -> None:
        """Refuse views and networks that cannot be built, before any audio is read."""
        build_augment(config)
        with torch.device("meta"):
            build_student(config)

    def __init__(
        self,
        config: PretrainConfig,
        *,
        accelerator: Accelerator,
        log_mel: LogMel,
        num_clips: int,
        steps: int,
    ) -> None:
        super().__init__(config, accelerator=accelerator, log_mel=log_mel, steps=steps)
        device = self.device
        self.student = self.model = build_student(config).to(device)
        self.teacher = Teacher(self.student.branch).to(device)
        self.optimizer = optimizer_of(config, self.student)
        queue_size = queue_size_of(config, num_clips=num_clips)
        self.queue = KeyQueue(size=queue_size, dim=config.head.dim, device=device)
        self.memory = build_memory(config, device=device)
        self.make_views = ViewMaker(
            config,
            log_mel=self.log_mel,
            memory=self.memory,
            backbone=self.student.branch.backbone,
            device=device,
        )
        if queue_size > num_clips / 10:
            logger.warning(
                "loss.queue_size=%d is more than a tenth of the %d clips, so it holds many recent "
                "views of similar sounds and of the same clips; a smaller queue usually learns "
                "better (loss.queue_fraction=0.05 scales it to the corpus)",
                *(queue_size, num_clips),
            )

    # -- one step ------------------------------------------------------------------------------

    def train_step(self, micro_batches: list[dict[str, Any]]) -> dict[str, Any]:
        """One optimiser step on this process' share of the batch; returns values to log.

        The encoder sees the batch in pieces (processes, micro-batches), heads and loss see it
        whole, and the negatives are frozen within the step: any cut gives the same numbers.

        Source: Gao et al. 2021 (GradCache), section 3.2, for the gradient through the cut.
        """
        batches = [self.make_views(micro, step=self.step) for micro in micro_batches]
        self.student.train()
        self.optimizer.zero_grad(set_to_none=True)
        pieces = self.embed(batches)
        embeddings = self.gather(torch.cat(pieces).detach()).requires_grad_()  # (G, 2, E)
        values, keys, ids = self.contrast(embeddings, batches)
        values["loss"].backward()
        self.backward_encoder(batches, pieces, embeddings)
        values = {name: value.detach() for name, value in values.items()}
        moved = self.move_(values["loss"])
        if moved["skipped"]:
            return moved
        momentum = self.momentum
        self.teacher.ema_update_(self.student.branch, momentum)
        others = len(keys) // 2 - 1 if self.config.loss.batch_negatives else 0
        seen = {"keys": keys, "num_negatives": len(self.queue) + others, "momentum": momentum}
        self.queue.enqueue_(keys, ids, step=self.step)
        self.memory.enqueue_(self.gather(torch.cat([batch.raw for batch in batches])))
        self.step += 1
        return {**values, **seen, **moved}

    def embed(self, batches: list[Batch]) -> list[Tensor]:
        """Embeddings (B, 2, E) of each micro-batch; only the last one keeps its graph.

        The others run with gradient all the same, for it may choose another attention kernel.
        """
        first = [self._embed(batch).detach() for batch in batches[:-1]]
        return [*first, self._embed(batches[-1])]

    def backward_encoder(
        self, batches: list[Batch], pieces: list[Tensor], embeddings: Tensor
    ) -> None:
        """Carry the gradient of all embeddings (G, 2, E) on through each piece's own clips."""
        assert embeddings.grad is not None
        share = sum(len(piece) for piece in pieces)
        first = self.accelerator.process_index * share
        gradients = embeddings.grad[first : first + share].split([len(p) for p in pieces])
        if not self.accelerator.is_main_process:
            self.optimizer.zero_grad(set_to_none=True)  # the heads': every process has the same
        sums = GradientSum(self.student.parameters())
        for batch, piece, gradient in zip(batches, pieces, gradients, strict=True):
            again = piece if piece.requires_grad else self._embed(batch)
            again.backward(gradient)
            sums.add_()
        sums.write_(over_processes=self.accelerator.num_processes > 1)

    def contrast(
        self, embeddings: Tensor, batches: list[Batch]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Loss of the whole batch's embeddings (G, 2, E), its keys (2G, P) and their clip ids.

        Heads run in float32: at first the keys of all clips nearly coincide.
        """
        keys, ids = self.teacher_keys(batches)
        negatives, negative_ids = self.queue.snapshot()
        temperature = self.student.temperature
        p_1, p_2 = (self.student.predict(embeddings[:, i]) for i in (0, 1))
        losses, hits = [], []
        # L(f, h) + L(h, f): view 1 asks for its clip's key of view 2, and the reverse.
        for queries, own in ((p_1, keys[1]), (p_2, keys[0])):
            others = self.config.loss.batch_negatives
            loss, hit = info_nce(
                queries,
                own,
                torch.cat([negatives, own]) if others else negatives,
                temperature=temperature,
                query_ids=ids,
                negative_ids=torch.cat([negative_ids, ids]) if others else negative_ids,
            )
            losses.append(loss)
            hits.append(hit)
        values = {
            "loss": losses[0] + losses[1],
            "accuracy": (hits[0] + hits[1]) / 2,
            "temperature": temperature,
            "embeddings": torch.cat([embeddings[:, 0], embeddings[:, 1]]),
            "predictions": torch.stack([p_1, p_2]),
        }
        return values, torch.cat(keys), torch.cat([ids, ids])

    @torch.no_grad()
    def teacher_keys(self, batches: list[Batch]) -> tuple[list[Tensor], Tensor]:
        """Keys (G, P) of each view, and clip ids (G,), of the whole step over all processes."""
        self.teacher.eval()
        drop = self.config.patch_drop.teacher
        embedded = [
            self._embed_views(self.teacher.branch, batch, batch.drops if drop else (None, None))
            for batch in batches
        ]
        embeddings = self.gather(torch.cat(embedded))  # (G, 2, E)
        ids = self.gather(torch.cat([batch.ids for batch in batches]))
        return [self.teacher.project(embeddings[:, i]) for i in (0, 1)], ids

    # -- small parts of the step -----------------------------------------------------------------

    @property
    def momentum(self) -> float:
        """The teacher's momentum at this step. Source: Grill et al. 2020 (BYOL), section 3.3."""
        teacher = self.config.teacher
        return cosine(
            self.step, steps=self.steps, start=teacher.momentum, end=teacher.final_momentum
        )

    def _embed(self, batch: Batch) -> Tensor:
        """Student's embeddings (B, 2, E) of a micro-batch; called twice it gives the same."""
        self.seed_draws_(int(batch.positions[0]))
        return self._embed_views(self.student.branch, batch, batch.drops)

    def _embed_views(self, branch: Branch, batch: Batch, drops: Drops) -> Tensor:
        with self.accelerator.autocast():
            views = [branch.embed(*pair) for pair in zip(batch.views, drops, strict=True)]
        return torch.stack(views, dim=1).float()

    # -- what a run looks like while it runs --------------------------------------------------

    @torch.no_grad()
    def measure(self, values: dict[str, Any]) -> dict[str, Any]:
        """Turn a step's tensors into the numbers that tell whether it learns."""
        numbers = measure_learning(
            values,
            student=self.student.branch,
            teacher=self.teacher.branch,
            queue=self.queue,
            step=self.step,
        )
        return {**numbers, "lr": values["lr"], "momentum": values["momentum"]}

    # -- where it starts, what it leaves -------------------------------------------------------

    def start_from_(self, weights: InitialWeights) -> LoadReport:
        """Weights into the student's and the teacher's backbone."""
        return start_from_(
            self.student, self.teacher, weights, model=self.config.model, log_mel=self.log_mel
        )

    def exported(self, network: str) -> Backbone:
        """The backbone of "student" or "teacher"."""
        branch = self.teacher.branch if network == "teacher" else self.student.branch
        return branch.backbone

    # -- checkpoints -----------------------------------------------------------------------------

    def _parts(self) -> dict[str, Any]:
        return {
            "student": self.student,
            "teacher": self.teacher,
            "optimizer": self.optimizer,
            "queue": self.queue,
            "memory": self.memory,
        }

    def tensors(self) -> Tensors:
        """Networks, optimiser, queue and mixup memory."""
        return state_tensors(**self._parts())

    def load_tensors_(self, tensors: Tensors) -> None:
        """Take over what `tensors` gave."""
        load_tensors_(tensors, **self._parts())
