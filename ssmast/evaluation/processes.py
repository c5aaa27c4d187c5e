"""The processes of one evaluation: rank and number, device, and gathering what each computed.

A file of its own because no other one of the evaluation imports accelerate.
"""

import atexit
import functools
from typing import NamedTuple, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object, pad_across_processes
from torch import Tensor

T = TypeVar("T")


class Processes(NamedTuple):
    """This process among all."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """The one that writes."""
        return self.rank == 0


def process_state() -> Processes:
    """Rank, number and device; without a launcher one process, on the GPU if there is one."""
    state = PartialState(cpu=not torch.cuda.is_available())
    assert state.device is not None
    if state.num_processes > 1:
        _end_group_at_exit()
    return Processes(state.process_index, state.num_processes, state.device)


@functools.cache
def _end_group_at_exit() -> None:
    """End the group before the interpreter does: its threads now and then abort a process else."""
    atexit.register(PartialState().destroy_process_group)


def scoring_seconds() -> float:
    """Audio that goes through a network at once where nothing is said: 20, on a GPU 600."""
    return 600.0 if process_state().device.type == "cuda" else 20.0


def all_agree(yes: bool, state: Processes) -> bool:
    """True if it is so on every process."""
    if state.size == 1:
        return yes
    return all(gather_object([yes]))


def gather_rows(rows: Tensor, state: Processes) -> Tensor:
    """Rows (n_i, ...) of all processes, whose numbers may differ, one after the other."""
    if state.size == 1:
        return rows
    rows = rows.to(state.device)
    is_row = gather(pad_across_processes(torch.ones(len(rows), device=state.device)))
    gathered = gather(pad_across_processes(rows))
    assert isinstance(gathered, Tensor)
    assert isinstance(is_row, Tensor)
    return gathered[is_row > 0].cpu()


def gather_list(items: list[T], state: Processes) -> list[T]:
    """Lists of all processes joined."""
    return items if state.size == 1 else gather_object(items)
