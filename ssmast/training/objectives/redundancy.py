"""Objectives that keep dimensions apart in place of clips: VICReg and Barlow Twins, of lightly."""

from lightly.loss import BarlowTwinsLoss, VICRegLoss
from torch import Tensor, nn

from ssmast.contrastive.monitors import matched_fraction
from ssmast.training.objective import Objective, PretrainConfig, RunFacts, Step, StepLoss, TwoViews


class _TwoProjections(Objective[PretrainConfig, TwoViews, StepLoss]):
    """One encoder, a projector, and a loss of the projections of both views.

    The loss sees all clips of the step already, so lightly's own gathering stays off.
    """

    criterion: nn.Module

    def __init__(self, config: PretrainConfig, run: RunFacts) -> None:
        super().__init__(config, run)
        self.backbone = self.build_backbone()
        self.projector = self.build_projector()

    def loss(self, embeddings: Tensor, targets: None, step: Step) -> StepLoss:
        """The criterion of (G, P) and (G, P); a clip's other view is looked for to report it."""
        z_1, z_2 = (self.projector(view) for view in embeddings.unbind(1))
        return StepLoss(loss=self.criterion(z_1, z_2), accuracy=matched_fraction(z_1, z_2))


class VICReg(_TwoProjections):
    """Both views alike, every dimension spread, no two dimensions the same.

    Source: Bardes et al. 2022 (VICReg), section 4.1.
    """

    def __init__(self, config: PretrainConfig, run: RunFacts) -> None:
        super().__init__(config, run)
        own = config.vicreg
        self.criterion = VICRegLoss(
            lambda_param=own.invariance, mu_param=own.variance, nu_param=own.covariance
        )


class BarlowTwins(_TwoProjections):
    """The cross-correlation of both views is to be the identity.

    Source: Zbontar et al. 2021 (Barlow Twins), eq. 1.
    """

    def __init__(self, config: PretrainConfig, run: RunFacts) -> None:
        super().__init__(config, run)
        self.criterion = BarlowTwinsLoss(lambda_param=config.barlow_twins.redundancy)
