"""The processes of one evaluation: who am I, how many are we, put our shares together."""

from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object, pad_across_processes
from torch import Tensor

T = TypeVar("T")


def process_state() -> PartialState:
    """Rank, number of processes and device; one process and the GPU, if any, without a launcher."""
    return PartialState(cpu=not torch.cuda.is_available())


def all_say(yes: bool) -> bool:
    """True if every process says so."""
    if process_state().num_processes == 1:
        return yes
    return all(gather_object([yes]))


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (n_i, ...) of all processes, whose numbers may differ, one after the other."""
    state = process_state()
    if state.num_processes == 1:
        return rows
    rows = rows.to(state.device)
    is_row = gather(pad_across_processes(torch.ones(len(rows), device=state.device)))
    gathered = gather(pad_across_processes(rows))
    assert isinstance(gathered, Tensor)
    assert isinstance(is_row, Tensor)
    return gathered[is_row > 0].cpu()


def gather_list(items: list[T]) -> list[T]:
    """Lists of all processes joined."""
    return items if process_state().num_processes == 1 else gather_object(items)
