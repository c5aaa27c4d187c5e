"""What losses are made of: heads, InfoNCE, queue, student and teacher, masked patches, monitors."""

from ssmast.contrastive.heads import build_predictor, build_projector
from ssmast.contrastive.info_nce import info_nce
from ssmast.contrastive.key_queue import KeyQueue
from ssmast.contrastive.masked_patches import (
    MaskedPatchHeads,
    MaskedPatchLoss,
    cut_patches,
    draw_masked_patches,
    masked_patch_loss,
)
from ssmast.contrastive.student_teacher import Branch, Student, Teacher, ema_update_

__all__ = [
    "Branch",
    "KeyQueue",
    "MaskedPatchHeads",
    "MaskedPatchLoss",
    "Student",
    "Teacher",
    "build_predictor",
    "build_projector",
    "cut_patches",
    "draw_masked_patches",
    "ema_update_",
    "info_nce",
    "masked_patch_loss",
]
