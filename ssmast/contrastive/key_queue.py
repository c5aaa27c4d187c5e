"""The queue of negatives."""

import torch
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """The last K teacher projections, with the clip and the step each of them came from.

    It is equal on all processes because all enqueue the same gathered keys, and its state dict is
    saved in every checkpoint. Empty places are never used as negatives. Ours and not lightly's
    memory bank: that one drops keys where it wraps, is not saved, and moves between the two terms
    of a symmetric loss.

    Args:
        size: K, the number of keys kept; 0 keeps none.
        dim: P, the length of a key.

    Raises:
        ValueError: by `load_state_dict` for a state of another size or dimension.

    Source: He et al. 2020 (MoCo), section 3.2.
    """

    keys: Tensor
    ids: Tensor
    steps: Tensor

    def __init__(self, *, size: int, dim: int) -> None:
        super().__init__()
        if size < 0 or dim < 1:
            raise ValueError(f"queue size must be >= 0 and dim >= 1, got {size} and {dim}")
        self.size = size
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("ids", torch.full((size,), -1, dtype=torch.long))
        self.register_buffer("steps", torch.full((size,), -1, dtype=torch.long))
        self.total = 0  # keys ever enqueued; the write position is total mod size
        self.register_load_state_dict_pre_hook(_check_saved_queue)

    def __len__(self) -> int:
        """Number of keys held, at most `size`."""
        return min(self.total, self.size)

    def snapshot(self) -> tuple[Tensor, Tensor]:
        """Keys (len, P) and clip ids (len,) as they are now; later enqueues do not change them."""
        held = len(self)
        return self.keys[:held].clone(), self.ids[:held].clone()

    def enqueue_(self, keys: Tensor, ids: Tensor, *, step: int) -> None:
        """Append N keys, oldest out first, wrapping exactly at the end for any N.

        Args:
            keys: (N, P) projections, the same on every rank.
            ids: (N,) clip of each key.
            step: the optimiser step, for `mean_age`.
        """
        if len(keys) != len(ids):
            raise ValueError(f"keys and ids must be equally many, got {len(keys)} and {len(ids)}")
        if self.size == 0:
            return
        kept = min(len(keys), self.size)
        first = self.total + len(keys) - kept
        place = torch.arange(first, first + kept, device=self.keys.device) % self.size
        self.keys[place] = keys[-kept:].detach().to(self.keys)
        self.ids[place] = ids[-kept:].to(self.ids)
        self.steps[place] = step
        self.total += len(keys)

    def mean_age(self, step: int) -> float:
        """Mean number of steps since the held keys were computed; 0 when empty."""
        held = len(self)
        return float((step - self.steps[:held]).float().mean()) if held else 0.0

    def holds(self, keys: Tensor) -> float:
        """Share of `keys` (N, P) that are in the queue, bit for bit; 1 where there are none."""
        held = self.keys[: len(self)]
        found = [bool((held == key.to(held)).all(dim=1).any()) for key in keys.detach()]
        return sum(found) / len(found) if found else 1.0

    def get_extra_state(self) -> Tensor:
        """`total`, int64 (1,): a number between steps, so that no device has to be waited for."""
        return torch.tensor([self.total])

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` gave."""
        self.total = int(state)


def _check_saved_queue(
    queue: KeyQueue, state: dict[str, Tensor], prefix: str, *rest: object
) -> None:
    saved = state.get(f"{prefix}keys", queue.keys)
    if saved.shape != queue.keys.shape:
        raise ValueError(
            f"the checkpoint's queue is {tuple(saved.shape)}, this run's is "
            f"{tuple(queue.keys.shape)}; resume with the same loss.queue_size and head.dim"
        )
