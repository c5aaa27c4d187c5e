"""Two views of a clip -> one number: heads, InfoNCE, queue of negatives, student and teacher."""

from ssmast.contrastive.heads import build_predictor, build_projector
from ssmast.contrastive.info_nce import info_nce
from ssmast.contrastive.key_queue import KeyQueue
from ssmast.contrastive.student_teacher import Branch, Student, Teacher

__all__ = [
    "Branch",
    "KeyQueue",
    "Student",
    "Teacher",
    "build_predictor",
    "build_projector",
    "info_nce",
]
