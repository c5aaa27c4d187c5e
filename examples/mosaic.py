"""AudioMosaic-like: views of which one lost most of its time, the other much of its frequency.

View 1 loses 60 % of its time columns, view 2 40 % of its frequency rows; NT-Xent over the batch of
all processes; no teacher and no queue.

python examples/mosaic.py recipe=real_nano data=FOLDER run=runs/mosaic
python examples/mosaic.py show-views run=runs/mosaic out=views.png
"""

import sys
from dataclasses import dataclass

from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead

import ssmast
from ssmast.contrastive.monitors import matched_fraction
from ssmast.settings import setting
from ssmast.training.config import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class MosaicConfig(PretrainConfig):
    """What the objective adds to the keys of `ssmast pretrain`."""

    columns: float = setting(0.6, "fraction of the time columns that view 1 loses", range="[0, 1)")
    rows: float = setting(0.4, "fraction of the frequency rows that view 2 loses", range="[0, 1)")


class Mosaic(ssmast.Objective):
    """The encoder and a projection head."""

    settings = MosaicConfig

    def __init__(self, config, run):
        super().__init__(config, run)
        self.backbone = self.build_backbone()
        self.head = SimCLRProjectionHead(self.embedding_dim, config.head.hidden, config.head.dim)
        self.contrast = NTXentLoss(temperature=config.loss.temperature)

    def views(self, segments, step):
        """Two augmented views of each clip, thinned along one axis each."""
        views, lines = super().views(segments, step), self.make_views.drop_lines
        views.drops = (
            lines(0, columns=self.config.columns, step=step, backbone=self.backbone),
            lines(1, rows=self.config.rows, step=step, backbone=self.backbone),
        )
        return views

    def loss(self, embeddings, targets, step):
        """Embeddings (G, 2, E) of all clips of the step."""
        p_1, p_2 = self.head(embeddings.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        accuracy = matched_fraction(p_1, p_2)
        return ssmast.StepLoss(loss=self.contrast(p_1, p_2), accuracy=accuracy)


if __name__ == "__main__":
    sys.exit(ssmast.train(Mosaic))
