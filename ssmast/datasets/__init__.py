"""The papers' data sets: official layouts -> labelled sets with the exact split, checked."""

from ssmast.datasets.builder import TASKS, TaskReport, get_task, prepare_task
from ssmast.datasets.task import PUBLISHED, Published, published_of

__all__ = [
    "PUBLISHED",
    "TASKS",
    "Published",
    "TaskReport",
    "get_task",
    "prepare_task",
    "published_of",
]
