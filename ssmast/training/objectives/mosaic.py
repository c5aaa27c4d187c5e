"""SS-MAST mosaic: view 1 lost time columns, view 2 frequency rows; NT-Xent over the batch."""

import math

import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from ssmast.contrastive.monitors import matched_fraction
from ssmast.training.objective import Objective, PretrainConfig, RunFacts, Step, StepLoss, TwoViews


class Mosaic(Objective[PretrainConfig, TwoViews, StepLoss]):
    """One encoder and a projection head; neither teacher nor queue.

    Source: Chen et al. 2020 (SimCLR), section 2.1, for the loss.
    """

    def __init__(self, config: PretrainConfig, run: RunFacts) -> None:
        super().__init__(config, run)
        self.backbone = self.build_backbone()
        self.projector = self.build_projector()
        self.contrast = NTXentLoss(temperature=config.loss.temperature)

    def loss(self, embeddings: Tensor, targets: None, step: Step) -> StepLoss:
        """Each of the 2G views picks its clip's other one among all the rest, which are 2G - 1."""
        z_1, z_2 = self.projector(embeddings.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        return StepLoss(
            loss=self.contrast(z_1, z_2),
            accuracy=matched_fraction(z_1, z_2),
            chance_loss=torch.tensor(math.log(2 * len(z_1) - 1), dtype=torch.float64),
        )
