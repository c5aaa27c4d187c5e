"""A sound as its samples, or, where it is long, to be read piece by piece."""

from collections.abc import Callable
from typing import cast

import numpy as np

from ssmast.audio.decode import Source
from ssmast.audio.long import LongSound, open_long
from ssmast.audio.read import read_audio
from ssmast.audio.span import Span


def open_audio(
    source: Source | Span,
    *,
    sample_rate: int = 16000,
    name: str | None = None,
    again: Callable[[], Source | Span] | None = None,
) -> np.ndarray[tuple[int], np.dtype[np.float32]] | LongSound:
    """What `read_audio` gives; of a file of over a minute to be read from front to back.

    Args:
        source: as `read_audio`.
        sample_rate: as `read_audio`.
        name: as `read_audio`.
        again: gives the source once more, so that the bytes of a long sound are not held until it
            is read.

    Raises:
        AudioError: as `read_audio`; of a long sound some faults show only while it is read.
    """
    if not isinstance(source, Span):
        reopened = cast(Callable[[], Source] | None, again)
        long = open_long(source, sample_rate=sample_rate, name=name, again=reopened)
        if long is not None:
            return long
    return read_audio(source, sample_rate=sample_rate, name=name)
