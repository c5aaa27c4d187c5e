"""What a long job says: a bar on a terminal, elsewhere a line every few seconds; notes once."""

import logging
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)

_PLAIN_EVERY = 15.0  # seconds between plain lines
_said: set[str] = set()  # a command opens a folder more than once


def say_once(message: str, *args: object, level: int = logging.INFO) -> None:
    """Log a line, made of a message and its arguments, that a process has not logged before."""
    message = message % args if args else message
    if message not in _said:
        _said.add(message)
        logger.log(level, "%s", message)


class Progress:
    """Counts clips towards `total`; `enabled` is False on all but the main process.

    A long clip may be counted in fractions, so that hours of sound do not pass in silence.
    """

    def __init__(self, title: str, *, total: int, enabled: bool = True, unit: str = "clip") -> None:
        self.title, self.total, self.enabled, self.unit = title, total, enabled, unit
        self.done = 0.0
        self._start = self._last = time.monotonic()
        # disable=None: no bar where nobody could see it move
        self._bar = tqdm(
            total=total, desc=title, unit=unit, leave=False, disable=None if enabled else True
        )

    def advance(self, clips: float) -> None:
        """Count clips, or a part of one, that are done."""
        self.done += clips
        shown = round(self.done, 2)
        shown = int(shown) if shown == int(shown) else shown
        self._bar.n = shown
        self._bar.update(0)
        now = time.monotonic()
        if self.enabled and self._bar.disable and now - self._last >= _PLAIN_EVERY:
            self._last = now
            rate = self.done / (now - self._start)
            left = (self.total - self.done) / rate
            logger.info(
                *("%s: %s of %d %ss, %s a second, %.0f s left",),
                *(self.title, shown, self.total, self.unit),
                *(f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}", left),
            )

    def reach(self, clips: float) -> None:
        """Count as many clips, whatever fractions of the last one were counted."""
        self.advance(clips - self.done)

    def __enter__(self) -> "Progress":
        """The bar is shown already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self._bar.close()
