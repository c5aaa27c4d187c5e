"""The SSAST objective as a trainer: hidden patches are told from each other, and drawn again."""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ssmast.audio import LogMel, keyed_uniform
from ssmast.contrastive import (
    MaskedPatchHeads,
    MaskedPatchLoss,
    cut_patches,
    draw_masked_patches,
    masked_patch_loss,
)
from ssmast.contrastive.monitors import effective_rank, feature_std
from ssmast.encoder.pooling import check_pooling
from ssmast.model import AST, Backbone, Grid, LoadReport, Tokens, create_model, pool_tokens
from ssmast.settings import UsageError
from ssmast.training.build import optimizer_of
from ssmast.training.checkpoint import Tensors
from ssmast.training.config import PretrainConfig, SSASTConfig
from ssmast.training.init_weights import PREFIX, InitialWeights, load_backbone_
from ssmast.training.objective import BaseTrainer
from ssmast.training.optim import GradientSum, load_optimizer_, optimizer_tensors

# Stream of keyed random numbers; those of views and patch-drop are others.
_MASK_STREAM = 200


class MaskedEncoder(nn.Module):
    """An AST and what SSAST adds to it while it is pretrained."""

    def __init__(self, backbone: AST) -> None:
        super().__init__()
        rows, columns = backbone.patch_embed.kernel
        self.backbone = backbone
        self.heads = MaskedPatchHeads(backbone.num_features, patch_dim=rows * columns)

    def forward(self, log_mel: Tensor, masked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-mel (B, 1, F, T) less what is hidden (B, N) -> guesses (B, M, P) and all tokens."""
        tokens, *_ = self.backbone.encode_masked(
            log_mel, masked=masked, mask_token=self.heads.mask_token
        )
        return *self.heads(of_masked(tokens, masked)), tokens


def of_masked(rows: Tensor, masked: Tensor) -> Tensor:
    """Rows (B, N, D) at the hidden places, as many in each clip: (B, M, D)."""
    return rows[masked].unflatten(0, (len(rows), -1))


@dataclass(kw_only=True)
class MaskedBatch:
    """One micro-batch of this process."""

    log_mel: Tensor  # (B, 1, F, T), normalised
    masked: Tensor  # bool (B, N)


def make_batch(
    micro: dict[str, Any],
    *,
    log_mel: LogMel,
    settings: SSASTConfig,
    grid: Grid,
    seed: int,
    device: torch.device,
) -> MaskedBatch:
    """Segments and what is hidden of each, which follows from (seed, epoch, clip) alone.

    Args:
        micro: of the loader, one segment a clip.
        log_mel: front end with the corpus' mean and std.
        settings: share to hide, and clusters.
        grid: of the encoder's patches.
        seed: of the run.
        device: to compute on.
    """
    with torch.no_grad():
        mels = log_mel.log_mel(micro["waveform"][:, 0].to(device, non_blocking=True), fast=True)
    num = grid.freq * grid.time
    epoch, clip = micro["epoch"].numpy(), micro["clip"].numpy()
    draws = torch.from_numpy(keyed_uniform(seed, epoch, clip, _MASK_STREAM, 1 + num)).to(device)
    masked = draw_masked_patches(
        grid,
        num_masked=round(settings.masked * num),
        cluster=(settings.cluster[0], settings.cluster[1]),
        draws=draws,
    )
    return MaskedBatch(log_mel=log_mel.normalize(mels), masked=masked)


def build_masked_encoder(config: PretrainConfig) -> MaskedEncoder:
    """AST and heads with fresh weights.

    Raises:
        UsageError: if the model's patches cannot be hidden one by one.
    """
    size = (config.front_end.num_mels, config.views.frames)
    backbone = create_model(
        config.model, num_classes=0, input_size=size, drop_path_rate=config.drop_path
    )
    if not isinstance(backbone, AST):
        raise UsageError(
            "objective=ssast hides single patches, whose neighbours a MAST's overlapping stem and "
            f"pooling convolutions would mix with them, got model={config.model}; use "
            "model=ssast_base or ssast_nano, or objective=ss_mast"
        )
    if backbone.patch_embed.stride != backbone.patch_embed.kernel:
        raise UsageError(
            "objective=ssast hides patches that must not overlap with shown ones, got "
            f"model={config.model}; use ssast_base, ssast_nano, ssast_frame_base or "
            "ssast_frame_nano (an ast_* can start from what they learn)"
        )
    check_pooling(backbone, pooling=config.export.pooling, layers=config.export.layers)
    return MaskedEncoder(backbone)


class MaskedPretraining(BaseTrainer[PretrainConfig]):
    """SSAST's network and its hidden patches.

    Attributes:
        backbone_prefix: of the names of the backbone's parameters in `model`.

    Args:
        config: settings of the run.
        accelerator: device, processes, precision.
        log_mel: front end with the corpus' mean and std.
        num_clips: clips in the corpus; nothing here depends on it.
        steps: optimiser steps of the whole run.

    Source: Gong et al. 2022 (SSAST), section 2.3.
    Differs from SSAST: AdamW with warm-up and a cosine in place of Adam with a plateau; log-mels
    of std 1 in place of 0.5.
    """

    backbone_prefix = PREFIX["ssast"]

    @classmethod
    def check(cls, config: PretrainConfig) -> None:
        """Refuse a model whose patches cannot be hidden, before any audio is read."""
        with torch.device("meta"):
            build_masked_encoder(config)

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
        self.network = self.model = build_masked_encoder(config).to(self.device)
        self.optimizer = optimizer_of(config, self.network)
        self.grid = self.network.backbone.grid_of(config.front_end.num_mels, config.views.frames)[0]

    # -- one step ------------------------------------------------------------------------------

    def train_step(self, micro_batches: list[dict[str, Any]]) -> dict[str, Any]:
        """One optimiser step on this process' share of the batch; returns values to log.

        A clip's loss knows no other clip, so any cut of the batch gives the same numbers.
        """
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums = GradientSum(self.network.parameters())
        parts = len(micro_batches) * self.accelerator.num_processes
        losses, embeddings = [], []
        for micro in micro_batches:
            batch = make_batch(
                micro,
                log_mel=self.log_mel,
                settings=self.config.ssast,
                grid=self.grid,
                seed=self.config.seed,
                device=self.device,
            )
            self.seed_draws_(int(micro["position"][0]))
            loss, spread, tokens = self.guess(batch)
            (self._total(loss) / parts).backward()
            sums.add_()
            losses.append(torch.stack([*loss, spread]).detach())
            embeddings.append(pool_tokens(Tokens(tokens.detach().float(), self.grid), mode="mean"))
        sums.write_(over_processes=self.accelerator.num_processes > 1)
        means = self.gather(torch.stack(losses)).mean(dim=0)
        found, spread = MaskedPatchLoss(*means[:3]), means[3]
        total = self._total(found)
        moved = self.move_(total)
        if moved["skipped"]:
            return moved
        self.step += 1
        seen = {"found": found, "spread": spread, "embeddings": self.gather(torch.cat(embeddings))}
        return {"loss": total, **seen, **moved}

    def guess(self, batch: MaskedBatch) -> tuple[MaskedPatchLoss, Tensor, Tensor]:
        """Losses of a micro-batch, the variance of what was hidden, and the tokens (B, N, D)."""
        with self.accelerator.autocast():
            guess, drawn, tokens = self.network(batch.log_mel, batch.masked)
        patches = of_masked(
            cut_patches(batch.log_mel, size=self.network.backbone.patch_embed.kernel), batch.masked
        )
        return masked_patch_loss(guess, drawn, patches), patches.var(correction=0), tokens

    def _total(self, loss: MaskedPatchLoss) -> Tensor:
        return loss.discriminative + self.config.ssast.weight * loss.generative

    # -- what a run looks like while it runs --------------------------------------------------

    @torch.no_grad()
    def measure(self, values: dict[str, Any]) -> dict[str, Any]:
        """Turn a step's tensors into the numbers that tell whether it learns.

        `chance_loss` is that of guessing: all hidden patches equally likely, and each drawn as
        their mean.
        """
        found, num_masked = values["found"], round(self.config.ssast.masked * self._num_patches)
        guessing = math.log(num_masked) + self.config.ssast.weight * float(values["spread"])
        return {
            "loss": float(values["loss"]),
            "chance_loss": guessing,
            "accuracy": float(found.accuracy),
            "loss_discriminative": float(found.discriminative),
            "loss_generative": float(found.generative),
            "rank_embedding": effective_rank(values["embeddings"]),
            "feature_std": feature_std(values["embeddings"]),
            "grad_norm": float(values["grad_norm"]),
            "lr": values["lr"],
        }

    @property
    def _num_patches(self) -> int:
        return self.grid.freq * self.grid.time

    # -- where it starts, what it leaves ---------------------------------------------------------

    def start_from_(self, weights: InitialWeights) -> LoadReport:
        """Weights into the backbone; the heads stay random."""
        return load_backbone_(
            self.network.backbone, weights, model=self.config.model, log_mel=self.log_mel
        )

    def exported(self, network: str) -> Backbone:
        """The one encoder there is."""
        assert network == "student"
        return self.network.backbone

    def tensors(self) -> Tensors:
        """Network and optimiser; what is hidden follows from the place in the stream."""
        optimizer = optimizer_tensors(self.optimizer, self.network)
        return {"network": self.network.state_dict(), "optimizer": optimizer}

    def load_tensors_(self, tensors: Tensors) -> None:
        """Take over what `tensors` gave."""
        self.network.load_state_dict(cast(dict[str, Any], tensors["network"]))
        load_optimizer_(self.optimizer, self.network, tensors["optimizer"])
