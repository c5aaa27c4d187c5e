"""Clips that a page can play: inside the page while there is room, else by a relative link."""

import base64
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from ssmast.audio import AudioError, Corpus, RemoteError, encode_sound, open_corpus, read_audio

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16000
# Without a seed of its own the order would favour the first classes of the list.
_ORDER_SEED = 0


def playable(
    folder: str | Path,
    clips: Sequence[str],
    rows: Sequence[int],
    *,
    page: Path,
    max_bytes: int,
    max_seconds: float,
) -> list[str]:
    """What an audio element can play for each clip; empty where there is nothing.

    Args:
        folder: the labelled set.
        clips: name of each clip as its metadata.csv has it.
        rows: its number in the corpus.
        page: where the page will lie; links are relative to it.
        max_bytes: audio to put inside the page, as it is written there.
        max_seconds: of each clip that are put inside.
    """
    sources = [""] * len(clips)
    corpus = _open(folder, clips, rows)
    if corpus is None:
        return sources
    used, full = 0, False
    for i in np.random.default_rng(_ORDER_SEED).permutation(len(clips)).tolist():
        if not full and max_bytes > 0:
            inside = _inside(corpus, rows[i], max_seconds)
            if used + len(inside) <= max_bytes:
                sources[i], used = inside, used + len(inside)
                continue
            full = True
        sources[i] = _link(corpus, rows[i], page)
    return sources


def _open(folder: str | Path, clips: Sequence[str], rows: Sequence[int]) -> Corpus | None:
    """The corpus, if it still is the one that was clustered."""
    try:
        corpus = open_corpus(folder)
    except (OSError, ValueError) as error:
        logger.warning("no clip can be played: %s", error)
        return None
    same = all(
        row < len(corpus) and corpus.name(row).endswith(Path(clip).name)
        for clip, row in zip(clips, rows, strict=True)
    )
    if not same:
        logger.warning("no clip can be played: %s holds other clips than were clustered", folder)
        return None
    return corpus


def _inside(corpus: Corpus, row: int, max_seconds: float) -> str:
    try:
        audio = read_audio(corpus.source(row), sample_rate=SAMPLE_RATE, name=corpus.name(row))
    except (AudioError, RemoteError, OSError) as error:
        logger.warning("%s cannot be played: %s", corpus.name(row), error)
        return ""
    audio = audio[: round(max_seconds * SAMPLE_RATE)]
    samples = audio / max(float(np.abs(audio).max()), 1.0)
    data = encode_sound(samples.astype(np.float32), sample_rate=SAMPLE_RATE, codec="opus")
    return f"data:audio/ogg;base64,{base64.b64encode(data).decode('ascii')}"


def _link(corpus: Corpus, row: int, page: Path) -> str:
    """Relative address of a clip that is a file of its own; none inside a tar or at a URL."""
    try:
        source = corpus.source(row)
    except (AudioError, RemoteError, OSError):
        return ""
    if not isinstance(source, Path):
        return ""
    relative = os.path.relpath(source.resolve(), page.resolve().parent)
    return quote(Path(relative).as_posix().encode("utf-8", "surrogateescape"))
