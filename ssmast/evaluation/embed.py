"""Sound -> embeddings: a corpus through a frozen encoder, each clip once, kept on disk.

The encoder takes clips whole, or one crop of each where a protocol says so; clips that cannot be
read are reported, and left out of whatever is compared.
"""

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ssmast.audio import AudioError, Corpus, LongSound, RemoteError, open_audio, read_audio
from ssmast.audio.stats import warn_of_lost_energy
from ssmast.encoder import Encoder
from ssmast.encoder.whitening import FEWEST_CLIPS, Whitening
from ssmast.encoder.windows import window_starts
from ssmast.evaluation.embedding_cache import Embeddings, PartialEmbeddings, joined, load, store
from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.evaluation.processes import (
    Processes,
    all_agree,
    gather_list,
    gather_rows,
    process_state,
)
from ssmast.progress import Progress

logger = logging.getLogger(__name__)

# Part of the cache's key: raise it when the same encoder would give other vectors.
VERSION = 1

NOT_FINITE = "its embedding is not finite"
"""Why a clip that can be read has no vector."""

# Clips are gathered until they hold this many samples, then batched by length: enough to find
# neighbours of like length, and a bound on memory (32 MB, and one clip more).
_BATCH_SAMPLES, _BATCH_CLIPS = 8_000_000, 512

# Enough for 256 directions of 2,240 numbers: 5,000 gave the same scores.
_WHITENING_CLIPS, _WHITENING_SECONDS = 4000, 5.0

_warned_of: set[tuple[str, str]] = set()  # a run probes the same clips again and again

# Rows of a corpus, each with its waveform (S,) or the reason why it has none.
Sound = Tensor | LongSound
Batch = list[tuple[int, Sound | str]]


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

    def embed_clips(self, waveforms: Sequence[Sound], *, batch_seconds: float) -> Tensor:
        """Clips (S,) -> float32 (n, `dim`) on the CPU; a `LongSound` is read once, in order."""
        ...


class Crop(NamedTuple):
    """What is cut out of every clip; shorter clips have zeros after them.

    Attributes:
        place: "head", or "random": anywhere, every start equally likely.
        seed: of the random starts.
    """

    seconds: float
    place: str
    seed: int = 0


def cut(waveform: Tensor, crop: Crop, *, sample_rate: int, clip: int) -> Tensor:
    """(S,) -> (S',) of `crop.seconds`; where follows from the seed and the clip's number."""
    samples = max(1, round(crop.seconds * sample_rate))
    spare = len(waveform) - samples
    if spare <= 0:
        return F.pad(waveform, (0, -spare))
    start = 0
    if crop.place == "random":
        # One generator a clip: threads and processes cut the same whatever their order.
        generator = torch.Generator().manual_seed(crop.seed * 1_000_003 + clip)
        start = int(torch.randint(spare + 1, (), generator=generator))
    return waveform[start : start + samples]


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

    With several processes (under `accelerate launch`) each embeds a part and all get the whole.

    Clips that could not be read are tried again each time: a decoder may have been installed, a
    disk come back.

    Args:
        embedder: to embed with.
        corpus: the clips.
        title: for the progress line.
        cache: folder to keep vectors in, by `cache_key`; None for none.
            What was embedded there before an interruption is not embedded again.
        workers: threads that decode; 0 for one a core, at most 8.
        batch_seconds: audio that goes through the encoder at once.
        sha256: of the embedder, where it is known: hashing large weights takes a second.
        processes: that take part; all that were launched by default.
        crop: what is cut of each clip; None for whole clips, whatever their length.

    Raises:
        ValueError: if no clip could be read.
    """
    file = cache and cache / f"{cache_key(embedder, corpus, sha256, crop)}.safetensors"
    found = load(file) if file else None
    state = processes or process_state()
    whole = found is not None and len(found.rows) == len(corpus)
    if not all_agree(whole, state) or found is None:
        parts = PartialEmbeddings(file and file.with_suffix(".parts"), state, kept=found)
        # What was done before, by whichever process, lies with the first one.
        made, rest = parts.read(len(corpus))
        mine = rest[state.rank :: state.size]
        rate = embedder.sample_rate
        if mine and state.is_main and isinstance(embedder, Encoder):
            pair = (corpus.listing_hash, str(embedder.log_mel.settings()))
            if pair not in _warned_of:
                warn_of_lost_energy(corpus, embedder.log_mel)
            _warned_of.add(pair)
        with Progress(title, total=len(mine), enabled=state.is_main) as progress:
            done = 0
            for batch in read_batches(corpus, mine, rate, workers, crop, stream=True):
                found = embed_batch(
                    embedder, corpus, batch, batch_seconds=batch_seconds, advance=progress.advance
                )
                made.append(found)
                parts.add(found, seen=[row for row, _ in batch])
                done += len(batch)
                progress.reach(done)
        found = _gather(joined(made, dim=embedder.dim), state)
        if file and state.is_main:
            store(file, found)
            parts.remove()
    check_any(found, corpus)
    return found


def check_any(found: Embeddings, corpus: Corpus) -> None:
    """Refuse a corpus of which no clip has a vector, by a ValueError that says why the first."""
    if not len(found.rows):
        name, reason = found.rejected[0]
        raise ValueError(
            f"none of {len(corpus)} clips could be embedded; the first, {name}: {reason}"
        )


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


def embed_batch(
    embedder: Embedder,
    corpus: Corpus,
    batch: Batch,
    *,
    batch_seconds: float,
    window: float = 0.0,
    hop: float = 0.0,
    advance: Callable[[float], None] | None = None,
) -> Embeddings:
    """Vectors of clips that `read_batches` gave; those without one stand under `rejected`.

    With `window`, clips are cut into windows of so many seconds, `hop` seconds apart (0: the length
    of one), and each has a vector. `advance` is told of long clips, and of those in windows, which
    fraction of its clip each batch was.
    """
    rejected = [(corpus.name(row), bad) for row, bad in batch if isinstance(bad, str)]
    sounds = [(row, clip) for row, clip in batch if not isinstance(clip, str)]
    # Long sounds are decoded while they are embedded: what is wrong with one must harm no other.
    alone = [bool(window) or isinstance(clip, LongSound) for _, clip in sounds]
    groups = [[sound for sound, own in zip(sounds, alone, strict=True) if not own]]
    groups += [[sound] for sound, own in zip(sounds, alone, strict=True) if own]
    none = np.zeros(0, dtype=np.int64)
    found = [Embeddings(values=torch.zeros(0, embedder.dim), rows=none, rejected=rejected)]
    for group in filter(None, groups):
        rows, spans = np.array([row for row, _ in group], dtype=np.int64), None
        try:
            if window:
                values, spans = _embed_windows(
                    embedder, group[0][1], window, hop, batch_seconds, advance
                )
                rows = rows.repeat(len(values))
            else:
                clips = [clip for _, clip in group]
                for clip in clips:
                    if isinstance(clip, LongSound):
                        clip.on_read = advance
                values = embedder.embed_clips(clips, batch_seconds=batch_seconds)
        except RemoteError:
            raise  # the network failed, not the clip
        except (AudioError, OSError) as error:
            rejected += [(corpus.name(row), str(error)) for row, _ in group]
            continue
        finally:
            for _, clip in group:
                if isinstance(clip, LongSound):
                    clip.close()
        bad = np.unique(rows[~values.isfinite().all(dim=1).numpy()])
        rejected += [(corpus.name(int(row)), NOT_FINITE) for row in bad]
        kept = ~np.isin(rows, bad)  # one bad window takes its clip out
        spans = None if spans is None else spans[kept]
        values = values[torch.from_numpy(kept)]
        found.append(Embeddings(values=values, rows=rows[kept], rejected=[], spans=spans))
    return joined(found, dim=embedder.dim)


def _embed_windows(
    embedder: Embedder,
    clip: Sound,
    window: float,
    hop: float,
    batch_seconds: float,
    advance: Callable[[float], None] | None,
) -> tuple[Tensor, NDArray[np.float64]]:
    """Vectors (n, D) of windows along a clip, read front to back; their spans (n, 2) in seconds."""
    rate = embedder.sample_rate
    size, hop_samples = round(window * rate), max(round((hop or window) * rate), 1)
    starts = window_starts(len(clip), size=size, hop=hop_samples)
    at_once, found = max(1, int(batch_seconds / window)), []
    for first in range(0, len(starts), at_once):
        some = starts[first : first + at_once]
        windows = [torch.as_tensor(clip[s : s + size]).clone() for s in some]
        found.append(embedder.embed_clips(windows, batch_seconds=batch_seconds))
        if advance is not None:
            advance(len(some) / len(starts))
    start = np.array(starts)
    stop = np.minimum(start + size, len(clip))
    return torch.cat(found), np.stack([start, stop], axis=1) / rate


def measured_whitening(
    encoder: Encoder, corpus: Corpus, *, directions: int, seed: int
) -> Whitening | None:
    """The whitening of an encoder's vectors, of at most 4,000 clips, 5 s of each.

    Of what it was trained on; a whitening that it has is not looked at. See `Whitening.of`.

    Returns:
        None, and a warning, where too few clips can be read.
    """
    plain = encoder.variant()
    plain.whitening = None
    rows = np.random.default_rng(seed).permutation(len(corpus))[:_WHITENING_CLIPS]
    most, found = round(_WHITENING_SECONDS * encoder.sample_rate), []
    with Progress("whitening", total=len(rows)) as progress:
        for batch in read_batches(corpus, np.sort(rows).tolist(), encoder.sample_rate):
            clips = [clip[:most] for _, clip in batch if isinstance(clip, Tensor) and len(clip)]
            if clips:
                found.append(plain.embed_clips(clips))
            progress.advance(len(batch))
    vectors = torch.cat(found) if found else torch.zeros(0, encoder.dim)
    vectors = vectors[vectors.isfinite().all(dim=1)]
    if len(vectors) < FEWEST_CLIPS:
        logger.warning(
            "embeddings are not whitened: %d clips can be read, %d are needed",
            *(len(vectors), FEWEST_CLIPS),
        )
        return None
    whitening = Whitening.of(vectors, directions=directions)
    if len(whitening.factors) < directions:
        logger.warning(
            "embeddings are whitened along %d directions in place of %d: each takes %d clips of %d "
            "and one number of %d",
            *(len(whitening.factors), directions, FEWEST_CLIPS, *vectors.shape),
        )
    return whitening


def read_batches(
    corpus: Corpus,
    rows: Sequence[int],
    sample_rate: int,
    workers: int = 0,
    crop: Crop | None = None,
    *,
    stream: bool = False,
) -> Iterator[Batch]:
    """Decoded clips (or why not) some hundred at a time, read ahead by threads.

    Whole clips, or the crop of each, at `sample_rate` Hz. With `stream`, whole clips of over a
    minute come as `LongSound`, which is never held whole. 0 workers are a thread a core, at most 8.
    """

    def read(row: int) -> Sound | str:
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
    pending: deque[tuple[int, Future[Sound | str]]] = deque()
    batch: Batch = []
    samples = 0
    try:
        for row in [*rows, None]:
            if row is not None:
                pending.append((row, pool.submit(read, row)))
            while pending and (row is None or len(pending) > 4 * workers):
                number, future = pending.popleft()
                audio = future.result()
                batch.append((number, audio))
                samples += len(audio) if isinstance(audio, Tensor) else 0
                if samples >= _BATCH_SAMPLES or len(batch) >= _BATCH_CLIPS:
                    yield batch
                    batch, samples = [], 0
        if batch:
            yield batch
    finally:
        # After Ctrl-C nothing more is read, and a read that hangs is not waited for.
        pool.shutdown(wait=False, cancel_futures=True)


def _gather(mine: Embeddings, state: Processes) -> Embeddings:
    """What all processes embedded, put together, in the order of the corpus."""
    values = gather_rows(mine.values, state)
    rows = gather_rows(torch.from_numpy(mine.rows), state)
    order = rows.argsort()
    return Embeddings(
        values=values[order].contiguous(),
        rows=rows[order].numpy(),
        rejected=sorted(gather_list(mine.rejected, state)),
    )


def rejected_clips(
    labelled: LabelledSet, corpus: Corpus, found: Sequence[Embeddings]
) -> list[tuple[str, str]]:
    """Clips that one of several embedders could not embed, with the reason, by name.

    Whatever is compared is scored on the others, so that all are scored on the same clips.
    """
    good = set.intersection(*(set(part.rows.tolist()) for part in found))
    reasons = {name: why for part in found for name, why in part.rejected}
    rejected = sorted(
        (clip, reasons[corpus.name(row)])
        for clip, row in zip(labelled.clips, labelled.rows.tolist(), strict=True)
        if row not in good
    )
    if rejected:
        logger.warning(
            "%s: %d clips are left out; the first: %s",
            *(labelled.spec, len(rejected), rejected[0][1]),
        )
    return rejected
