"""Long files as several clips each: one night of sound is thousands of clips, not one."""

import hashlib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ssmast.audio.corpus.corpus import Corpus, Mixture
from ssmast.audio.read import (
    LONG_SECONDS,
    AudioError,
    Excerpt,
    Source,
    excerpt_name,
    file_of,
    split_excerpt,
    stated_seconds,
)
from ssmast.progress import Progress

_log = logging.getLogger(__name__)

# Smaller files are not looked into: a minute of them would be of under 8 kHz and 8 bits, or of
# under 8 kbit/s.
_LEAST_BYTES, _LEAST_COMPRESSED = 480_000, 60_000
_COMPRESSED = (".mp3", ".ogg", ".oga", ".opus")


class CutCorpus(Corpus):
    """Clips of another corpus, the long ones as several: `night.wav#t=0,10`. Made by `cut_long`.

    A clip that cannot be used is reported under the name of its file, so that a file counts once.

    Args:
        whole: the corpus that is cut.
        rows: number of the clip there, int64 (n,).
        starts: first moment of each clip in seconds, float64 (n,).
        stops: its end; infinite for the end of the file.
    """

    by_file = True

    def __init__(
        self, whole: Corpus, *, rows: np.ndarray, starts: np.ndarray, stops: np.ndarray
    ) -> None:
        super().__init__(
            root=whole.root, entries=whole.entries, shards=whole.shards, channel=whole.channel
        )
        self.whole, self.rows, self.starts, self.stops = whole, rows, starts, stops

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        """Name of clip i: that of its file, and the seconds of it if it is a part."""
        name, (start, stop) = self.whole.name(int(self.rows[self._checked(i)])), self.span(i)
        return name if not start and stop == math.inf else excerpt_name(name, start, stop)

    def span(self, i: int) -> tuple[float, float]:
        """First moment and end of clip i in its file, in seconds."""
        return float(self.starts[i]), float(self.stops[i])

    def source(self, i: int) -> Source | Excerpt:
        """What `read_audio` takes for clip i; no more of a long file is read than that."""
        row, (start, stop) = int(self.rows[self._checked(i)]), self.span(i)
        if not start and stop == math.inf:
            return self.whole.source(row)
        return Excerpt(file_of(self.whole.sought(row)), start, stop, channel=self.channel)

    def sought(self, i: int) -> Source | Excerpt:
        """As `source`."""
        return self.source(i)

    def with_channel(self, channel: str) -> "CutCorpus":
        """The same clips, with another channel."""
        whole = self.whole.with_channel(channel)
        return CutCorpus(whole, rows=self.rows, starts=self.starts, stops=self.stops)

    @property
    def listing_hash(self) -> str:
        """SHA-256 (hex) of that of the files and of how they are cut."""
        digest = hashlib.sha256(self.whole.listing_hash.encode())
        for numbers in (self.rows, self.starts, self.stops):
            digest.update(numbers.tobytes())
        return digest.hexdigest()

    def files(self) -> Iterator[Path | str]:
        """Every file that holds clips, once."""
        return self.whole.files()


def cut_long(corpus: Corpus, clip_seconds: float) -> Corpus:
    """The corpus with its files of over a minute cut into clips; itself where it has none.

    Lengths are those that headers state; the last clip of a file goes to its end, however far that
    is. Left whole are files at a URL, excerpts that a table names, formats that FFmpeg reads, and
    the clips of a prepared corpus, unless it was prepared whole.
    """
    if not clip_seconds:
        return corpus
    if isinstance(corpus, Mixture):
        parts = [cut_long(one, clip_seconds) for one in corpus.corpora]
        same = all(a is b for a, b in zip(parts, corpus.corpora, strict=True))
        return corpus if same else corpus.with_corpora(parts)
    if corpus.facts and corpus.facts.get("settings", {}).get("segment_seconds"):
        return corpus
    lengths = _lengths(corpus)
    if not lengths:
        return corpus
    pieces = np.ones(len(corpus), dtype=np.int64)
    for row, seconds in lengths.items():
        pieces[row] = max(1, int(seconds / clip_seconds))
    rows = np.repeat(np.arange(len(corpus)), pieces)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = number * float(clip_seconds)
    is_last = number == pieces[rows] - 1
    stops = np.where(is_last, math.inf, starts + clip_seconds)
    _log.info(
        "%d of %d files are over a minute, %.3g hours in all: read as %d clips of %g s",
        *(len(lengths), len(corpus), sum(lengths.values()) / 3600, pieces[list(lengths)].sum()),
        clip_seconds,
    )
    return CutCorpus(corpus, rows=rows, starts=starts, stops=stops)


def _lengths(corpus: Corpus) -> dict[int, float]:
    """Seconds of every clip that is a file (or member of a tar here) of over a minute."""
    large = [i for i in range(len(corpus)) if _may_be_long(corpus, i)]
    if not large:
        return {}
    found: dict[int, float] = {}
    with Progress("looking at lengths", total=len(large)) as progress:
        for i in large:
            progress.advance(1)
            seconds = seconds_of(corpus, i) or 0.0
            if seconds > LONG_SECONDS and not isinstance(corpus.sought(i), Excerpt):
                found[i] = seconds
    return found


def seconds_of(corpus: Corpus, i: int) -> float | None:
    """Length of clip i as its header states it; None where none can be read without decoding."""
    try:
        source = corpus.sought(i)
        if not isinstance(source, Excerpt):
            return stated_seconds(source, corpus.name(i))
        if source.stop < math.inf:
            return source.stop - source.start
        return (stated_seconds(source.source, corpus.name(i)) or source.start) - source.start
    except (AudioError, OSError):
        return None  # it is rejected, with its reason, where it is read


def _may_be_long(corpus: Corpus, i: int) -> bool:
    entry = corpus.entries[i]
    suffix = os.path.splitext(split_excerpt(os.fsdecode(entry.name))[0])[1].lower()
    return entry.size >= (_LEAST_COMPRESSED if suffix in _COMPRESSED else _LEAST_BYTES)
