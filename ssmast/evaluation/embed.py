"""A corpus through a frozen encoder: every clip whole, once, kept on disk.

Embeddings of a corpus, seen from a task: vectors of its clips, and which clips have none.
"""

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ssmast.audio import AudioError, Corpus, LongSound, RemoteError, open_audio, read_audio
from ssmast.evaluation.embedding_cache import Embeddings, Parts, joined, load, store
from ssmast.evaluation.labelled_set import Task
from ssmast.evaluation.processes import Processes, all_say, gather_list, gather_rows, process_state
from ssmast.evaluation.protocols import Crop, cut
from ssmast.progress import Progress

logger = logging.getLogger(__name__)

# Part of the cache's key: raise it when the same encoder would give other vectors.
VERSION = 1

NOT_FINITE = "its embedding is not finite"
"""Why a clip that can be read has no vector."""

# Clips are gathered until they hold this many samples, then batched by length: enough to find
# neighbours of like length, and a bound on memory (32 MB, and one clip more).
_WINDOW_SAMPLES, _WINDOW_CLIPS = 8_000_000, 512

# Rows of a corpus, each with its waveform (S,) or the reason why it has none.
Clip = Tensor | LongSound
Window = list[tuple[int, Clip | str]]


class Embedder(Protocol):
    """What can be scored: an `Encoder`, or a baseline that looks like one."""

    @property
    def sample_rate(self) -> int:
        """Hz that `embed_clips` wants."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of the weights."""
        ...

    def settings(self) -> dict[str, Any]:
        """What besides the weights decides a vector."""
        ...

    def embed_clips(self, waveforms: Sequence[Clip], *, batch_seconds: float) -> Tensor:
        """Clips (S,) -> float32 (n, `dim`) on the CPU; a `LongSound` is read once, in order."""
        ...


def embed_corpus(
    embedder: Embedder,
    corpus: Corpus,
    *,
    title: str = "embedding",
    cache: Path | None = None,
    workers: int = 0,
    batch_seconds: float = 60.0,
    sha256: str | None = None,
    processes: Processes | None = None,
    crop: Crop | None = None,
) -> Embeddings:
    """Embed every clip of a corpus, or take the vectors from the cache.

    With several processes (under `accelerate launch`) each embeds a share and all get the whole.

    Clips that could not be read are tried again each time: a decoder may have been installed, a
    disk come back.

    Args:
        embedder: to embed with.
        corpus: the clips.
        title: for the progress line.
        cache: folder to keep vectors in, by the hashes of encoder, corpus and crop; None for none.
            What was embedded there before an interruption is not embedded again.
        workers: threads that decode; 0 for one a core, at most 8.
        batch_seconds: audio that goes through the encoder at once.
        sha256: of the embedder, where it is known: hashing large weights takes a second.
        processes: that take part; all that were launched by default.
        crop: what is cut of each clip; None for whole clips, whatever their length.

    Raises:
        ValueError: if no clip could be read.
    """
    key = cache_key(embedder, corpus, sha256, crop)
    file = None if cache is None else cache / f"{key}.safetensors"
    found = load(file) if file is not None else None
    state = processes or process_state()
    whole = found is not None and len(found.rows) == len(corpus)
    if not all_say(whole, state) or found is None:
        parts = None if cache is None else Parts(cache / f"{key}.parts", state, kept=found)
        found = _embed(embedder, corpus, title, workers, batch_seconds, state, crop, parts)
        if file is not None and parts is not None and state.is_main:
            store(file, found)
            parts.remove()
    if not len(found.rows):
        name, reason = found.rejected[0]
        raise ValueError(
            f"none of {len(corpus)} clips could be embedded; the first, {name}: {reason}"
        )
    return found


def cache_key(
    embedder: Embedder, corpus: Corpus, sha256: str | None = None, crop: Crop | None = None
) -> str:
    """Hash of all that decides the vectors: weights, settings, audio, crop policy, this code."""
    parts = {
        "weights": sha256 or embedder.sha256,
        "settings": embedder.settings(),
        "corpus": corpus.files_hash,
        "crop": "whole clips" if crop is None else list(crop),
        "version": VERSION,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _embed(
    embedder: Embedder,
    corpus: Corpus,
    title: str,
    workers: int,
    batch_seconds: float,
    state: Processes,
    crop: Crop | None,
    parts: Parts | None,
) -> Embeddings:
    # What was done before, by whichever process, lies with the first one.
    found, rest = ([], range(len(corpus))) if parts is None else parts.read(len(corpus))
    share = list(rest)[state.rank :: state.size]
    with Progress(title, total=len(share), enabled=state.is_main) as progress:
        for window in read_windows(corpus, share, embedder.sample_rate, workers, crop, stream=True):
            found.append(embed_window(embedder, corpus, window, batch_seconds=batch_seconds))
            if parts is not None:
                parts.add(found[-1], seen=[row for row, _ in window])
            progress.advance(len(window))
    return _gather(joined(found, dim=embedder.dim), state)


def embed_window(
    embedder: Embedder, corpus: Corpus, window: Window, *, batch_seconds: float
) -> Embeddings:
    """Vectors of clips that `read_windows` gave; those without one stand under `rejected`.

    Args:
        embedder: to embed with.
        corpus: the clips, for their names.
        window: of rows and waveforms, or why there is none.
        batch_seconds: audio that goes through the encoder at once.
    """
    rejected = [(corpus.name(row), bad) for row, bad in window if isinstance(bad, str)]
    # Long sounds are decoded while they are embedded: what is wrong with one must harm no other.
    short = [(row, clip) for row, clip in window if isinstance(clip, Tensor)]
    groups: list[Sequence[tuple[int, Clip]]] = [short]
    groups += [[(row, clip)] for row, clip in window if isinstance(clip, LongSound)]
    found = [Embeddings(values=torch.zeros(0, embedder.dim), rows=_rows(), rejected=rejected)]
    for group in filter(None, groups):
        rows = _rows([row for row, _ in group])
        try:
            values = embedder.embed_clips([clip for _, clip in group], batch_seconds=batch_seconds)
        except RemoteError:
            raise  # the network failed, not the clip
        except (AudioError, OSError) as error:
            rejected += [(corpus.name(row), str(error)) for row, _ in group]
            continue
        finally:
            for _, clip in group:
                if isinstance(clip, LongSound):
                    clip.close()
        finite = values.isfinite().all(dim=1)
        bad = rows[(~finite).numpy()]
        rejected += [(corpus.name(int(row)), NOT_FINITE) for row in bad]
        found.append(Embeddings(values=values[finite], rows=rows[finite.numpy()], rejected=[]))
    return joined(found, dim=embedder.dim)


def _rows(numbers: Sequence[int] = ()) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, dtype=np.int64)


def read_windows(
    corpus: Corpus,
    rows: Sequence[int],
    sample_rate: int,
    workers: int = 0,
    crop: Crop | None = None,
    *,
    stream: bool = False,
) -> Iterator[Window]:
    """Decoded clips (or why not) some hundred at a time, read ahead by threads.

    Args:
        corpus: the clips.
        rows: of the corpus.
        sample_rate: of the clips in Hz.
        workers: threads that decode; 0 for one a core, at most 8.
        crop: what is cut of each clip; None for whole clips.
        stream: give whole clips of over a minute as `LongSound`, which is never held whole.
    """

    def read(row: int) -> Clip | str:
        name = corpus.name(row)
        try:
            source = corpus.source(row)
            if stream and crop is None:
                again = partial(corpus.source, row)
                audio = open_audio(source, sample_rate=sample_rate, name=name, reopen=again)
            else:
                audio = read_audio(source, sample_rate=sample_rate, name=name)
        except RemoteError:
            raise  # the network failed, not the clip
        except (AudioError, OSError) as error:
            return str(error)
        if isinstance(audio, LongSound):
            return audio
        clip = torch.from_numpy(audio)
        return clip if crop is None else cut(clip, crop, sample_rate=sample_rate, clip=row)

    workers = workers or min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    pending: deque[tuple[int, Future[Clip | str]]] = deque()
    window: Window = []
    samples = 0
    try:
        for row in [*rows, None]:
            if row is not None:
                pending.append((row, pool.submit(read, row)))
            while pending and (row is None or len(pending) > 4 * workers):
                number, future = pending.popleft()
                audio = future.result()
                window.append((number, audio))
                samples += len(audio) if isinstance(audio, Tensor) else 0
                if samples >= _WINDOW_SAMPLES or len(window) >= _WINDOW_CLIPS:
                    yield window
                    window, samples = [], 0
        if window:
            yield window
    finally:
        # After Ctrl-C nothing more is read, and a read that hangs is not waited for.
        pool.shutdown(wait=False, cancel_futures=True)


def _gather(mine: Embeddings, state: Processes) -> Embeddings:
    """The shares of all processes put together, in the order of the corpus."""
    values = gather_rows(mine.values, state)
    rows = gather_rows(torch.from_numpy(mine.rows), state)
    order = rows.argsort()
    return Embeddings(
        values=values[order].contiguous(),
        rows=rows[order].numpy(),
        rejected=sorted(gather_list(mine.rejected, state)),
    )


@dataclass(frozen=True)
class TaskEmbeddings:
    """A corpus embedded: for training and validation, and where that differs for testing."""

    train: Embeddings
    test: Embeddings | None = None

    def of(self, task: Task, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Features (n, D) of the clips of a task, which all were embedded."""
        return _picked(self.train, task, device), (
            None if self.test is None else _picked(self.test, task, device)
        )


def rejected_clips(
    task: Task, corpus: Corpus, embedded: Sequence[TaskEmbeddings]
) -> list[tuple[str, str]]:
    """Clips that one of several embedders could not embed, with the reason, by name.

    Whatever is compared is scored on the others, so that all are scored on the same clips.
    """
    found = [part for one in embedded for part in (one.train, one.test) if part is not None]
    good = set.intersection(*(set(part.rows.tolist()) for part in found))
    reasons = {name: why for part in found for name, why in part.rejected}
    return sorted(
        (clip, reasons[corpus.name(row)])
        for clip, row in zip(task.clips, task.rows.tolist(), strict=True)
        if row not in good
    )


def _picked(embeddings: Embeddings, task: Task, device: torch.device) -> Tensor:
    where = torch.from_numpy(embeddings.rows)
    return embeddings.values[torch.searchsorted(where, torch.from_numpy(task.rows))].to(device)
