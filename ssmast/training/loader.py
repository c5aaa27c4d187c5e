"""Each process' share of the clips, step by step, read by workers."""

import signal
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ssmast.audio import StepSampler, collate_segments
from ssmast.training.config import TrainConfig


def segment_loader(
    config: TrainConfig,
    dataset: Dataset[Any],
    *,
    first_step: int,
    steps: int,
    rank: int,
    num_ranks: int,
    collate: Callable[[list[Any]], Any] = collate_segments,
) -> DataLoader[Any]:
    """This process' share of every step from `first_step` on.

    Raises:
        ValueError: if the batch cannot be shared out evenly.
    """
    parts = num_ranks * config.optim.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size={config.batch_size} cannot be shared evenly by {num_ranks} processes "
            f"with {config.optim.accumulate} micro-batches each; use a multiple of {parts}"
        )
    sampler = StepSampler(
        start=first_step,
        stop=steps,
        batch_size=config.batch_size,
        rank=rank,
        num_ranks=num_ranks,
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=config.workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_quiet_worker,
        prefetch_factor=4 if config.workers else None,
    )


def _quiet_worker(worker: int) -> None:
    """One thread a worker, and Ctrl-C left to the main process, which still needs the data."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
