"""Embeddings of a corpus, seen from a task: vectors of its clips, and which clips have none."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmast.audio import Corpus
from ssmast.evaluation.embedding_cache import Embeddings
from ssmast.evaluation.task import Task


@dataclass(frozen=True)
class TaskEmbeddings:
    """A corpus embedded: for training and validation, and where that differs for testing."""

    train: Embeddings
    test: Embeddings | None = None

    def of(self, task: Task, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Features (n, D) of the clips of a task, which all were embedded."""
        return _picked(self.train, task, device), (
            None if self.test is None else _picked(self.test, task, device)
        )


def rejected_clips(
    task: Task, corpus: Corpus, embedded: Sequence[TaskEmbeddings]
) -> list[tuple[str, str]]:
    """Clips that one of several embedders could not embed, with the reason, by name.

    Whatever is compared is scored on the others, so that all are scored on the same clips.
    """
    found = [part for one in embedded for part in (one.train, one.test) if part is not None]
    good = set.intersection(*(set(part.rows.tolist()) for part in found))
    reasons = {name: why for part in found for name, why in part.rejected}
    return sorted(
        (clip, reasons[corpus.name(row)])
        for clip, row in zip(task.clips, task.rows.tolist(), strict=True)
        if row not in good
    )


def _picked(embeddings: Embeddings, task: Task, device: torch.device) -> Tensor:
    where = torch.from_numpy(embeddings.rows)
    return embeddings.values[torch.searchsorted(where, torch.from_numpy(task.rows))].to(device)
