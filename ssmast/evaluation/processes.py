"""The processes of one evaluation: rank and number, device, and gathering what each computed.

A file of its own because no other one of the evaluation imports accelerate.
"""

import atexit
import functools
import socket
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather, pad_across_processes
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
    """Rank, number and device; without a launcher one process, on the GPU if there is one.

    Float32 is float32 there, as on the CPU: convolutions would take TF32 by default.
    """
    set_tf32(False)
    state = PartialState(cpu=not torch.cuda.is_available())
    assert state.device is not None
    prepare_group()
    return Processes(state.process_index, state.num_processes, state.device)


def prepare_group() -> None:
    """See to it that a group of several processes can work, and ends well; once a process.

    Raises:
        ValueError: if two of them share a GPU.
    """
    if PartialState().num_processes > 1:
        end_group_at_exit()
        refuse_shared_gpus()


@functools.cache
def end_group_at_exit() -> None:
    """End the group before the interpreter does: its threads now and then abort a process else."""
    atexit.register(PartialState().destroy_process_group)


@functools.cache
def refuse_shared_gpus() -> None:
    """Two processes of a group on one GPU: accelerate lets them, and NCCL fails at the first sum.

    Raises:
        ValueError: if there are any.
    """
    device = PartialState().device
    if device is None or device.type != "cuda":
        return
    own = (socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid))
    gpus = joined_lists([own])
    if len({*gpus}) < len(gpus):
        raise ValueError(
            f"{len(gpus)} processes share {len({*gpus})} GPU(s), and each needs one of its own; "
            "start as many as there are (--num_processes), or CUDA_VISIBLE_DEVICES= before the "
            "command to use the CPU"
        )


def set_tf32(allowed: bool) -> None:
    """Whether float32 products and convolutions on a GPU may round their inputs to 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@functools.cache
def _patient_group() -> Any:
    """A second group of all processes, over gloo, for waits that may last for days.

    One process decodes, downloads or fits while the others wait: NCCL's collectives end a run after
    ten minutes of that. Over gloo a process that dies ends the wait of the others at once.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(days=7))


def broadcast(values: list[T], *, size: int) -> list[T]:
    """The plain objects of the first process on all of them, however long it takes to make them."""
    if size > 1:
        dist.broadcast_object_list(values, src=0, group=_patient_group())
    return values


def largest(number: int, *, size: int) -> int:
    """The largest of the processes' numbers; no GPU is waited for."""
    if size == 1:
        return number
    found = torch.tensor([number])
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_patient_group())
    return int(found)


def scoring_seconds() -> float:
    """Audio that goes through a network at once where nothing is said: 20, on a GPU 600."""
    return 600.0 if process_state().device.type == "cuda" else 20.0


def all_agree(yes: bool, state: Processes) -> bool:
    """True if it is so on every process."""
    if state.size == 1:
        return yes
    return all(gather_list([yes], state))


def gather_rows(rows: Tensor, state: Processes) -> Tensor:
    """Rows (n_i, ...) of all processes, whose numbers may differ, one after the other."""
    if state.size == 1:
        return rows
    gather_list([0], state)  # wait for the slowest here, and not in a collective of the device
    rows = rows.to(state.device)
    is_row = gather(pad_across_processes(torch.ones(len(rows), device=state.device)))
    gathered = gather(pad_across_processes(rows))
    assert isinstance(gathered, Tensor)
    assert isinstance(is_row, Tensor)
    return gathered[is_row > 0].cpu()


def gather_list(items: list[T], state: Processes) -> list[T]:
    """Lists of all processes joined; whoever is first may wait for days."""
    return items if state.size == 1 else joined_lists(items)


def joined_lists(items: list[T]) -> list[T]:
    """`gather_list` where the group of processes is there already."""
    found: list[list[T]] = [[] for _ in range(dist.get_world_size(_patient_group()))]
    dist.all_gather_object(found, items, group=_patient_group())
    return [item for each in found for item in each]
