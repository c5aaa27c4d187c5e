"""Log-mels of earlier batches, kept on the device as backgrounds for mixup."""

import torch
from torch import Tensor


class MixupMemory:
    """Ring of the newest log-mels, in half precision.

    Args:
        size: how many log-mels it holds, M; 0 for a memory that stays empty.
        shape: of a log-mel, (F, T).
        device: where they are kept.

    Raises:
        ValueError: if `size` is negative.
    """

    def __init__(
        self, *, size: int, shape: tuple[int, int], device: torch.device | str = "cpu"
    ) -> None:
        if size < 0:
            raise ValueError(f"size must not be negative, got {size}")
        self.size = size
        self._ring = torch.zeros(size, 1, *shape, dtype=torch.float16, device=device)
        self._next = 0
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def pick(self, draws: Tensor) -> Tensor | None:
        """One stored log-mel for each draw.

        Args:
            draws: uniform in [0, 1), (B,).

        Returns:
            Float32 (B, 1, F, T), or None while the memory is empty.
        """
        if self._filled == 0:
            return None
        index = (draws.to(self._ring.device) * self._filled).long().clamp_max(self._filled - 1)
        return self._ring[index].float()

    @torch.no_grad()
    def enqueue_(self, log_mel: Tensor) -> None:
        """Take a batch in over the oldest entries; of a batch beyond M, the last M.

        Args:
            log_mel: (B, 1, F, T), not normalised.

        Raises:
            ValueError: if F or T is another.
        """
        if log_mel.shape[1:] != self._ring.shape[1:]:
            raise ValueError(
                f"log_mel must be (B, {', '.join(map(str, self._ring.shape[1:]))}) like what is "
                f"stored, got {tuple(log_mel.shape)}"
            )
        if self.size == 0:
            return
        num = len(log_mel)
        newest = log_mel[-self.size :]
        place = torch.arange(num - len(newest), num, device=self._ring.device) + self._next
        self._ring[place % self.size] = newest.to(self._ring)
        self._next = (self._next + num) % self.size
        self._filled = min(self._filled + num, self.size)

    def state(self) -> dict[str, Tensor]:
        """All it holds, as tensors: `log_mel` (M, 1, F, T) and `cursor` (next place, how full)."""
        return {"log_mel": self._ring.clone(), "cursor": torch.tensor([self._next, self._filled])}

    def load_(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave.

        Args:
            state: of a memory of the same size and shape.

        Raises:
            ValueError: if it is the state of another size or shape.
        """
        if state["log_mel"].shape != self._ring.shape:
            raise ValueError(
                f"the saved mixup memory is {tuple(state['log_mel'].shape)}, this one "
                f"{tuple(self._ring.shape)}; resume with the settings it was saved with"
            )
        self._ring.copy_(state["log_mel"])
        self._next, self._filled = (int(number) for number in state["cursor"])
