"""BYOL: the student predicts the projection that a slow average of itself makes of the other view.

No negatives at all; heads, average and loss are lightly's.

python examples/byol.py recipe=real_nano data=FOLDER run=runs/byol
python examples/byol.py recipe=real_nano data=FOLDER run=runs/byol export.network=teacher
"""

import copy
import sys

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule

import ssmast


class BYOL(ssmast.Objective):
    """Student and teacher, each an encoder and a projector; the student has a predictor too."""

    def __init__(self, config, run):
        super().__init__(config, run)
        self.backbone = self.build_backbone()
        hidden, dim = config.head.hidden, config.head.dim
        self.projector = BYOLProjectionHead(self.embedding_dim, hidden, dim)
        self.predictor = BYOLPredictionHead(dim, hidden, dim)
        parts = {"backbone": self.backbone, "projector": self.projector}
        self.teacher = torch.nn.ModuleDict(copy.deepcopy(parts))
        deactivate_requires_grad(self.teacher)
        self.distance = NegativeCosineSimilarity()

    def encoders(self):
        """What can be exported; the first is the default."""
        return {"student": self.backbone, "teacher": self.teacher["backbone"]}

    def targets(self, views):
        """The teacher's embeddings (B, 2, E)."""
        return self.embed_views(self.teacher["backbone"], views, drops=False)

    def loss(self, embeddings, targets, step):
        """Both views predict the other one's target; heads see all clips of the step."""
        with torch.no_grad():
            t_1, t_2 = (self.teacher["projector"](targets[:, i]) for i in (0, 1))
        p_1, p_2 = (self.predictor(self.projector(embeddings[:, i])) for i in (0, 1))
        return ssmast.StepLoss(loss=self.distance(p_1, t_2) + self.distance(p_2, t_1))

    def after_step(self, loss, views, step):
        """The teacher follows the student."""
        teacher = self.config.teacher
        m = cosine_schedule(step.number, self.run.steps, teacher.momentum, teacher.final_momentum)
        update_momentum(self.backbone, self.teacher["backbone"], m)
        update_momentum(self.projector, self.teacher["projector"], m)
        super().after_step(loss, views, step)


if __name__ == "__main__":
    sys.exit(ssmast.train(BYOL))
