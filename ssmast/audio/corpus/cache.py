"""A cache of decoded audio: slow formats become one tar of float WAV that every worker reads.

Opus, Vorbis and mp3 are decoded from their start for every crop; over many epochs on a few cores
that costs as much as the network. The copy holds the decoder's own float samples, so training on it
gives the numbers that training on the files gives.
"""

import contextlib
import hashlib
import io
import logging
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ssmast.audio.corpus.corpus import Corpus, Mixture
from ssmast.audio.corpus.cut import CutCorpus
from ssmast.audio.corpus.shards import index_tar
from ssmast.audio.read import AudioError, Excerpt, first_bytes, open_audio, read_audio, source_size
from ssmast.files import replacing
from ssmast.progress import Progress

_log = logging.getLogger(__name__)

_FAST = (".wav", ".flac", ".aif", ".aiff", ".au", ".w64", ".rf64", ".caf")


def cache_decoded(
    corpus: Corpus,
    folder: Path,
    *,
    sample_rate: int,
    max_bytes: int | None = None,
    workers: int = 0,
) -> Corpus:
    """The same clips, in the same order, decoded and resampled; written once, reused later.

    A corpus of formats that seek (WAV, FLAC, AIFF) is returned as it is, as is one whose decoded
    size passes `max_bytes` or the free disk. A clip that cannot be decoded keeps its own bytes, so
    it is still rejected, with its reason, where it is used.

    Args:
        corpus: clips of any format.
        folder: where copies live, each named by a hash of the corpus, its files and the rate.
        sample_rate: of the copy in Hz.
        max_bytes: largest copy to make, of each corpus of a mixture; None for no limit.
        workers: processes that decode.

    Raises:
        OSError: if the folder cannot be written.
    """
    if isinstance(corpus, Mixture):
        keywords = {"sample_rate": sample_rate, "max_bytes": max_bytes, "workers": workers}
        return corpus.with_corpora([cache_decoded(c, folder, **keywords) for c in corpus.corpora])
    # A copy has one channel: it could not say that there is no channel 2.
    # A shuffled read of Parquet would read a row group for every clip.
    is_fast = corpus.entries.suffixes() <= set(_FAST) and not corpus.reads_groups
    if is_fast or corpus.channel.isdigit():
        return corpus
    copy = folder / f"{_key(corpus, sample_rate)}.tar"
    if copy.is_file():
        try:
            return _opened(corpus, copy)
        except ValueError as error:
            _log.warning("%s is damaged (%s); decoding again", copy, error)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free // 2
    limit = free if max_bytes is None else min(max_bytes, free)
    if not _write(corpus, copy, sample_rate=sample_rate, limit=limit, workers=workers):
        _log.warning(
            "%d decoded clips would take more than %.1f GB; reading the files themselves",
            *(len(corpus), limit / 2**30),
        )
        return corpus
    return _opened(corpus, copy)


def _key(corpus: Corpus, sample_rate: int) -> str:
    """Changes with the clips, the files they lie in, the rate, and the decoders."""
    parts = [corpus.files_hash, str(sample_rate)]
    parts += [soundfile.__libsndfile_version__, soxr.__version__]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


class _Decoded(IterableDataset[tuple[int, bytes]]):
    """Clips, by number, as bytes of a float WAV, or as they are where they cannot be decoded.

    A worker takes every so many files; a long one that is cut into clips is decoded once.
    """

    def __init__(self, corpus: Corpus, sample_rate: int) -> None:
        self.corpus, self.sample_rate = corpus, sample_rate

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        corpus = self.corpus
        rows = corpus.rows if isinstance(corpus, CutCorpus) else np.arange(len(corpus))
        firsts = np.flatnonzero(np.diff(rows, prepend=-1))
        ends = [*firsts[1:].tolist(), len(rows)]
        for begin, end in list(zip(firsts.tolist(), ends, strict=True))[first::step]:
            if end - begin > 1 and isinstance(corpus, CutCorpus):
                yield from self._clips_of_file(corpus, begin, end)
            else:
                yield begin, self._clip(begin)

    def _clip(self, i: int) -> bytes:
        try:
            source = self.corpus.source(i)
            name = self.corpus.name(i)
            return self._wav(read_audio(source, sample_rate=self.sample_rate, name=name))
        except AudioError:
            return _original(self.corpus, i)

    def _clips_of_file(
        self, corpus: CutCorpus, begin: int, end: int
    ) -> Iterator[tuple[int, bytes]]:
        """Clips [begin, end), all of one file, which is read from front to back."""
        row, done, rate = int(corpus.rows[begin]), begin, self.sample_rate
        name = corpus.whole.name(row)
        try:
            source: Any = corpus.whole.sought(row)
            whole = Excerpt(source, channel=corpus.channel)
            sound = open_audio(whole, sample_rate=rate, name=name)
            for i in range(begin, end):
                start, stop = Excerpt(b"", *corpus.span(i)).samples(len(sound), rate)
                yield i, self._wav(sound[start:stop]) if stop > start else b""
                done = i + 1
        except AudioError as error:
            _log.warning("%s: %d of %d clips are lost: %s", name, end - done, end - begin, error)
            yield from ((i, b"") for i in range(done, end))

    def _wav(self, audio: np.ndarray) -> bytes:
        from scipy.io import wavfile

        buffer = io.BytesIO()
        # Not by libsndfile, whose float files hold the second at which they were written.
        wavfile.write(buffer, self.sample_rate, audio)
        return buffer.getvalue()


def _original(corpus: Corpus, i: int) -> bytes:
    try:
        source = corpus.source(i)
        if isinstance(source, Excerpt):
            if not source.is_whole:
                return b""  # its file is another clip's too, and may well be readable
            source = source.source
        return first_bytes(source, source_size(source))
    except (AudioError, OSError):
        return b""


class _TooLargeError(Exception):
    pass


def _write(corpus: Corpus, copy: Path, *, sample_rate: int, limit: int, workers: int) -> bool:
    """Write the tar, whole or not at all; False if it would pass the limit."""
    loader = DataLoader(_Decoded(corpus, sample_rate), batch_size=None, num_workers=workers)
    with contextlib.suppress(_TooLargeError), replacing(copy) as partial:
        with tarfile.open(partial, "w") as tar, Progress("decoding", total=len(corpus)) as progress:
            for i, data in loader:
                info = tarfile.TarInfo(f"{i:010d}.wav")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                if tar.offset > limit:
                    raise _TooLargeError
                progress.advance(1)
        return True
    return False


def _opened(corpus: Corpus, copy: Path) -> Corpus:
    """The copy under the names of the original; a damaged one is a ValueError."""
    index = index_tar(copy)
    order = np.argsort(index.names.to_pylist())  # workers finish their files as they can
    return corpus.moved_to(copy, offsets=index.offset[order], sizes=index.sizes[order])
