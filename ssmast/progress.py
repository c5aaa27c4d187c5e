"""What a long job says: a bar on a terminal, elsewhere a line every few seconds; notes once."""

import logging
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)

_PLAIN_EVERY = 15.0  # seconds between plain lines
_said: set[str] = set()  # a command opens a folder more than once


def say_once(message: str, level: int = logging.INFO) -> None:
    """Log a line that a process has not logged before."""
    if message not in _said:
        _said.add(message)
        logger.log(level, "%s", message)


class Progress:
    """Counts clips towards `total`; `enabled` is False on all but the main process."""

    def __init__(self, title: str, *, total: int, enabled: bool = True) -> None:
        self.title, self.total, self.enabled, self._done = title, total, enabled, 0
        self._start = self._last = time.monotonic()
        # disable=None: no bar where nobody could see it move
        self._bar = tqdm(
            total=total, desc=title, unit="clip", leave=False, disable=None if enabled else True
        )

    def advance(self, clips: int) -> None:
        """Count clips that are done."""
        self._done += clips
        self._bar.update(clips)
        now = time.monotonic()
        if self.enabled and self._bar.disable and now - self._last >= _PLAIN_EVERY:
            self._last = now
            rate = self._done / (now - self._start)
            left = (self.total - self._done) / rate
            logger.info(
                *("%s: %d of %d clips, %.0f a second, %.0f s left",),
                *(self.title, self._done, self.total, rate, left),
            )

    def __enter__(self) -> "Progress":
        """The bar is shown already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self._bar.close()
