"""Resampling: of clips and regions of them, and of long files block by block.

A long file is never held at its own rate: `read_long` returns all samples, `open_long` a
`LongSound` to be read from front to back. A region comes out as it does within the whole.
"""

import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
import soxr

from ssmast.audio.decode import UNKNOWN_LENGTH, ForeignError, decoded_blocks, opened, scaled
from ssmast.audio.source import AudioError, SeekError, Source, label_of, source_size
from ssmast.audio.streams import check_container, check_last_frame, mp3_blocks, streams_of

logger = logging.getLogger(__name__)

# Longer files are read block by block: its samples at their own rate would not fit beside
# the result. Shorter ones are resampled at once; both give the same bits.
LONG_SECONDS = 60.0
_SHORT_BYTES = 600_000
_MOST_AT_FIRST = 1 << 28  # samples: 4.6 hours at 16 kHz

Waveform = np.ndarray[tuple[int], np.dtype[np.float32]]


class LongSound:
    """Samples (S,) of a long file, read from front to back and never held whole.

    Slices may overlap, but none may begin before an earlier one: what lies before is gone. The
    file is opened by the first slice.

    Args:
        blocks: float32 samples, one after the other.
        length: samples in all of them.
        source_rate: rate of the file in Hz.
        label: what to call the sound in an error.

    Attributes:
        on_read: is told which further fraction of the sound each slice reaches; from the thread
            that reads.
    """

    on_read: Callable[[float], None] | None = None

    def __init__(
        self, blocks: Generator[np.ndarray], *, length: int, source_rate: int, label: str
    ) -> None:
        self.source_rate = source_rate
        self._blocks, self._length, self._label = blocks, length, label
        self._held = np.zeros(0, dtype=np.float32)
        self._first = 0  # of the samples held

    def __len__(self) -> int:
        """Samples in all."""
        return self._length

    def close(self) -> None:
        """Free the samples held; nothing can be read after this."""
        self._held, self._first = np.zeros(0, dtype=np.float32), self._length
        self._blocks.close()

    def __getitem__(self, where: slice) -> Waveform:
        """Samples [start, stop), cut off at the end of the sound.

        Raises:
            ValueError: if they begin before an earlier slice did.
            AudioError: if the file cannot be decoded, or holds samples that no file may hold.
        """
        start, stop, _ = where.indices(self._length)
        if start < self._first:
            raise ValueError(
                f"{self._label} is read from front to back: wanted samples from {start} on, those "
                f"before {self._first} are gone"
            )
        blocks, end = [self._held[start - self._first :]], self._first + len(self._held)
        read = end
        while end < stop:
            block = next(self._blocks, None)
            if block is None:
                raise AudioError(
                    f"{self._label} holds {end} samples where {self._length} were found before; "
                    "was it changed while it was read?"
                )
            blocks.append(block[max(start - end, 0) :])  # what lies before is not kept
            end += len(block)
        if stop == self._length:  # the file is closed, and checked as far as it goes
            for _ in self._blocks:
                pass
        self._held = np.concatenate(blocks) if len(blocks) > 1 else blocks[0]
        self._first = start
        if self.on_read is not None and end > read:
            self.on_read((min(end, self._length) - read) / self._length)
        return self._held[: stop - start]


def open_long(
    source: Source,
    *,
    sample_rate: int,
    name: str | None = None,
    reopen: Callable[[], Source] | None = None,
    channel: str = "mean",
) -> LongSound | None:
    """A file of over a minute, to be read from front to back; None for any other.

    Its slices are those of `read_audio`. An mp3, and whatever else does not know its length, is
    decoded once to count it.

    `reopen` returns the source again at the first slice, so that its bytes need not be held until
    then.
    """
    label = label_of(source, name)
    header = _header(source, label)
    if header is None:
        return None
    frames, rate, known = header
    if not known:
        frames = sum(map(len, file_blocks(lambda: source, label, channel)))
    length = resampled_length(frames, rate, positive(sample_rate, "sample_rate"))
    again = file_blocks(reopen or (lambda: source), label, channel)
    blocks = _resampled(again, rate, sample_rate, label)
    return LongSound(blocks, length=length, source_rate=rate, label=label)


def read_long(
    source: Source, label: str, sample_rate: int, channel: str = "mean"
) -> Waveform | None:
    """All samples of a file of over a minute; None for any other."""
    header = _header(source, label)
    if header is None:
        return None
    frames, rate, _ = header
    blocks = _resampled(file_blocks(lambda: source, label, channel), rate, sample_rate, label)
    return _joined(blocks, expected=resampled_length(frames, rate, sample_rate))


def stated_seconds(source: Source, label: str) -> float | None:
    """Seconds of a file as its header states them; None for a format that FFmpeg reads.

    What states no length is decoded once to count it; that of an mp3 without a tag is estimated.
    """
    header = _header(source, label, any_length=True)
    if header is None:
        return None
    frames, rate, _ = header
    if frames >= UNKNOWN_LENGTH:
        frames = sum(map(len, file_blocks(lambda: source, label, "first")))
    return frames / rate


def _header(
    source: Source, label: str, *, any_length: bool = False
) -> tuple[int, int, bool] | None:
    """Frames and rate of a file, and whether the frames can be believed; None for a short one."""
    try:  # an open file more would be a fifth of a short clip's time
        if not any_length and source_size(source) < _SHORT_BYTES:
            return None
    except (OSError, ValueError):
        return None  # the reader says what is wrong
    try:
        first, *others = streams_of(source, label)
        frames = 0
        for stream in others:
            with opened(stream, label) as file:
                frames += file.frames
        with opened(first, label) as file:
            if not any_length and frames + file.frames <= LONG_SECONDS * file.samplerate:
                return None
            check_container(file)
            known = file.length_is_known and not others
            if known:
                try:
                    check_last_frame(file)
                except SeekError:  # decoded from its start, it says whether it is cut off
                    known = False
            return frames + file.frames, file.samplerate, known
    except ForeignError:
        return None


def file_blocks(get_source: Callable[[], Source], label: str, channel: str) -> Iterator[np.ndarray]:
    """A file at its own rate; an error at the end if there is less than it promises, or silence."""
    rate = 0
    for stream in streams_of(get_source(), label):
        with opened(stream, label, channel) as file:
            rate, own = rate or file.samplerate, file.samplerate
            if file.format == "MP3":
                blocks = mp3_blocks(file)
            else:
                check_container(file)
                blocks = decoded_blocks(file, file.frames if file.length_is_known else None)
            # Streams of a chain may differ in rate.
            yield from blocks if own == rate else _resampled(blocks, own, rate, label)
            file.mixer.check()


def _resampled(
    blocks: Iterable[np.ndarray], rate: int, sample_rate: int, label: str
) -> Generator[np.ndarray]:
    """Blocks at `rate`, checked, at `sample_rate` (soxr, high quality)."""
    stream = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, "float32")
    for block in blocks:
        check_samples(block, label, is_whole=False)
        yield block if stream is None else stream.resample_chunk(np.ascontiguousarray(block))
    if stream is not None:
        yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def _joined(blocks: Iterable[np.ndarray], *, expected: int) -> Waveform:
    """Blocks joined; `expected` samples too many or too few cost memory and nothing else."""
    # Memory that is never written to is never taken, so a generous guess is free; but a damaged
    # header may promise years.
    samples = np.empty(min(expected + expected // 20 + 1, _MOST_AT_FIRST), dtype=np.float32)
    filled = 0
    for block in blocks:
        if filled + len(block) > len(samples):
            samples = np.concatenate([samples, np.empty_like(samples), np.empty_like(block)])
        samples[filled : filled + len(block)] = block
        filled += len(block)
    return samples[:filled]


LOUDEST = 100.0
"""Largest magnitude of a sample: 40 dB over full scale, which no recording means."""

_LOUD = 4.0  # 12 dB over full scale: a hot mix of floats is below, a clip of unit variance above


def region_of(start: int, stop: int, rate: int, sample_rate: int, frames: int) -> tuple[int, int]:
    """Input frames that decide output samples [start, stop), from a whole number of periods on.

    Resampling a:b repeats its phase every a / gcd input frames; starting there, a region comes out
    as it would within the whole. 256 frames (times a/b going down) cover soxr's filter.

    `rate` and `frames` are of the input, `sample_rate` of the output.
    """
    if rate == sample_rate:
        return start, stop
    period = rate // math.gcd(rate, sample_rate)
    context = math.ceil(256 * max(1.0, rate / sample_rate))
    first = max(0, start * rate // sample_rate - context) // period * period
    last = min(frames, math.ceil(stop * rate / sample_rate) + context)
    return first, last


def check_samples(audio: np.ndarray, label: str, *, is_whole: bool = True) -> None:
    """Refuse samples that no log-mel can be made of; there may be more unless `is_whole`.

    Those far above full scale are taken as they are, since nothing tells their scale, with a
    warning for the first.
    """
    if not audio.size:
        return
    peak = max(float(audio.max()), -float(audio.min()))  # NaN if there is one; nothing is copied
    if peak <= _LOUD:
        return
    if peak <= LOUDEST:
        _warn_of_loud(label, peak)
        return
    bad = int(np.count_nonzero(~np.isfinite(audio)))
    if bad:
        more = "" if is_whole else " or more"
        raise AudioError(f"{label} holds {bad} samples{more} that are NaN or infinite")
    raise AudioError(
        f"{label} has a sample of {peak:.3g}, above {LOUDEST:g} (full scale is 1); divide it by "
        "its full scale, or see whether its bytes were taken for numbers of another type"
    )


_named_loud = list[str]()  # by this process


def _warn_of_loud(label: str, peak: float) -> None:
    """Name the first clip that is far too loud; thousands may follow."""
    if _named_loud:
        return
    _named_loud.append(label)
    logger.warning(
        "%s has a sample of %.3g, and full scale is 1: it is taken as it is, though its level "
        "changes what an encoder hears; if these are normalised or undivided samples, bring them "
        "to between -1 and 1 (only the first such clip is named)",
        *(label, peak),
    )


def finished(
    audio: np.ndarray, rate: int, sample_rate: int, label: str
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Check decoded samples (`check_samples`), then resample them (soxr, high quality)."""
    check_samples(audio, label)
    if rate == sample_rate:
        return audio
    try:
        resampled = soxr.resample(audio, rate, sample_rate, quality="HQ")
    except (ValueError, RuntimeError) as error:
        raise AudioError(f"{label} cannot be resampled from {rate} to {sample_rate} Hz") from error
    if not len(resampled):
        raise AudioError(
            f"{label} is too short: {len(audio)} frames at {rate} Hz make no sample at "
            f"{sample_rate} Hz"
        )
    return np.ascontiguousarray(resampled, dtype=np.float32)


def resample(audio: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Samples (S,) at `rate` Hz as float32 samples at `sample_rate` Hz (soxr, high quality).

    They are of any type that `scaled` takes, one sample at least.

    Raises:
        ValueError: if a rate is not positive.
        AudioError: if a sample is not finite or beyond `LOUDEST`, the scale is not certain, or
            there are too few samples for one.
    """
    positive(sample_rate, "sample_rate")
    samples = scaled(np.asarray(audio), "the waveform")
    return finished(samples, positive(rate, "rate"), sample_rate, "the waveform")


def resampled_length(frames: int, rate: int, sample_rate: int) -> int:
    """Samples that soxr makes of a clip: rounded to nearest, at least one here."""
    return frames if rate == sample_rate else max(1, int(frames * sample_rate / rate + 0.5))


def positive(value: int, what: str) -> int:
    """The value, unless it is below 1: a ValueError then."""
    if value < 1:
        raise ValueError(f"{what} must be at least 1, got {value}")
    return value
