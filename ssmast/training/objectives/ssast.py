"""SSAST: matches masked patches (discriminative) and reconstructs them (generative)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssmast.audio.segments import SegmentBatch
from ssmast.contrastive import MaskedPatchHeads, cut_patches, draw_masked_patches, masked_patch_loss
from ssmast.model import AST, Backbone, Tokens, pool_tokens
from ssmast.settings import UsageError
from ssmast.training.objective import (
    Objective,
    Panel,
    PretrainConfig,
    RunFacts,
    Step,
    StepLoss,
    build_backbone,
)

# Stream of keyed random numbers; those of views and patch-drop are others.
_MASK_STREAM = 200


class MaskedEncoder(nn.Module):
    """An AST and what SSAST adds to it while it is pretrained."""

    def __init__(self, backbone: AST) -> None:
        super().__init__()
        rows, columns = backbone.patch_embed.kernel
        self.backbone = backbone
        self.heads = MaskedPatchHeads(backbone.num_features, patch_dim=rows * columns)

    def forward(self, log_mel: Tensor, masked: Tensor) -> Tensor:
        """Log-mel (B, 1, F, T) less what is masked (B, N) -> all tokens (B, N, D)."""
        tokens, *_ = self.backbone.encode_masked(
            log_mel, masked=masked, mask_token=self.heads.mask_token
        )
        return tokens


def of_masked(rows: Tensor, places: Tensor) -> Tensor:
    """Rows (B, N, D) at the masked places (B, M): (B, M, D)."""
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[2]))


@dataclass(kw_only=True)
class MaskedBatch:
    """One micro-batch of this process.

    Attributes:
        log_mel: (B, 1, F, T), normalised.
        masked: bool (B, N), the patches that are hidden.
        places: int64 (B, M), where they are, in order; of a mask on a GPU the host would wait for
            their number.
    """

    log_mel: Tensor
    masked: Tensor
    places: Tensor


@dataclass(kw_only=True)
class MaskedLoss(StepLoss):
    """Both losses: `loss` is the first and `ssast.weight` times the second."""

    discriminative: Tensor
    generative: Tensor


def build_masked_encoder(config: PretrainConfig) -> MaskedEncoder:
    """AST and heads with fresh weights.

    Raises:
        UsageError: if the model's patches cannot be masked one by one.
    """
    backbone = build_backbone(config)
    if not isinstance(backbone, AST):
        raise UsageError(
            "objective=ssast masks single patches, whose neighbours a MAST's overlapping stem and "
            f"pooling convolutions would mix with them, got model={config.model}; use "
            "model=ssast_base or ssast_nano, or objective=ss_mast"
        )
    if backbone.patch_embed.stride != backbone.patch_embed.kernel:
        raise UsageError(
            "objective=ssast masks patches that must not overlap with visible ones, got "
            f"model={config.model}; use ssast_base, ssast_nano, ssast_frame_base or "
            "ssast_frame_nano (an ast_* can start from what they learn)"
        )
    return MaskedEncoder(backbone)


class SSAST(Objective[PretrainConfig, MaskedBatch, MaskedLoss]):
    """An AST, its two heads, and the patches that are masked.

    Attributes:
        grid: of the encoder's patches.

    Source: Gong et al. 2022 (SSAST), section 2.3.
    Differs from SSAST: AdamW with warm-up and a cosine in place of Adam with a plateau; log-mels
    of std 1 in place of 0.5.
    """

    num_segments = 1
    per_clip = True

    def __init__(self, config: PretrainConfig, run: RunFacts) -> None:
        super().__init__(config, run)
        self.network, self.masked_loss = build_masked_encoder(config), masked_patch_loss
        self.grid = self.network.backbone.grid_of(config.front_end.num_mels, config.views.frames)[0]

    def compile_(self) -> None:
        """The encoder with its mask, its heads and the loss."""
        self.network.compile(fullgraph=True)
        self.network.heads.compile(fullgraph=True)
        self.masked_loss = torch.compile(masked_patch_loss, fullgraph=True)

    def encoders(self) -> dict[str, Backbone]:
        """The one encoder there is."""
        return {"student": self.network.backbone}

    @torch.no_grad()
    def views(self, segments: SegmentBatch, step: int) -> MaskedBatch:
        """Segments and what is masked of each, which follows from (seed, epoch, clip) alone."""
        device, settings = self.log_mel.filterbank.device, self.config.ssast
        waveform = segments.waveform[:, 0].to(device, non_blocking=True)
        num = self.grid.freq * self.grid.time
        masked = draw_masked_patches(
            self.grid,
            num_masked=round(settings.masked * num),
            cluster=(settings.cluster[0], settings.cluster[1]),
            draws=segments.uniform(self.config.seed, _MASK_STREAM, 1 + num),
        )
        places = masked.nonzero()[:, 1].unflatten(0, (len(masked), -1))
        log_mel = self.log_mel.normalize(self.log_mel.log_mel(waveform, fast=True))
        masked, places = self.sent(masked, places)
        return MaskedBatch(log_mel=log_mel, masked=masked, places=places)

    def embed(self, views: MaskedBatch) -> Tensor:
        """Tokens (B, N, D)."""
        return self.network(views.log_mel, views.masked)

    def targets(self, views: MaskedBatch) -> MaskedBatch:
        """What was masked is looked for in the log-mel itself."""
        return views

    def loss(self, embeddings: Tensor, targets: MaskedBatch, step: Step) -> MaskedLoss:
        """Both losses of a micro-batch.

        `chance_loss` is that of guessing: all masked patches equally likely, and each
        reconstructed as their mean.
        """
        weight, places = self.config.ssast.weight, targets.places
        size = self.network.backbone.patch_embed.kernel
        patches = of_masked(cut_patches(targets.log_mel, size=size), places)
        guess, drawn = self.network.heads(of_masked(embeddings, places))
        found = self.masked_loss(guess, drawn, patches)
        spread = patches.var(correction=0)
        return MaskedLoss(
            loss=found.discriminative + weight * found.generative,
            accuracy=found.accuracy,
            chance_loss=math.log(patches.shape[1]) + weight * spread,
            embeddings=pool_tokens(Tokens(embeddings.detach(), self.grid), mode="mean"),
            discriminative=found.discriminative,
            generative=found.generative,
        )

    @torch.no_grad()
    def numbers(self, loss: MaskedLoss, step: int) -> dict[str, float]:
        """The usual ones and both losses."""
        return {
            **super().numbers(loss, step),
            "loss_discriminative": float(loss.discriminative),
            "loss_generative": float(loss.generative),
        }

    def panels(self, segments: SegmentBatch, step: int, *, clips: int) -> list[list[Panel]]:
        """Clips, and which of their patches are masked."""
        views, patch = self.views(segments, step), self.network.backbone.patch_embed.stride
        rows = []
        for i in range(min(clips, len(segments))):
            masked, log_mel = views.masked[i].unflatten(0, self.grid[:]), views.log_mel[i, 0]
            title = f"{int(masked.sum())} of {masked.numel()} patches masked"
            segment = Panel("segment", log_mel, waveform=segments.waveform[i, 0])
            rows.append([segment, Panel(title, log_mel, dropped=masked, patch=patch)])
        return rows

    def picture_title(self, step: int) -> str:
        """Above the picture of `panels`."""
        config = self.config
        size = f"{config.views.frames} frames x {config.front_end.num_mels} mel bins"
        masked = f"ssast.masked={config.ssast.masked:g}"
        return f"SSAST, step {step}, seed {config.seed}: {size}, {masked}"
