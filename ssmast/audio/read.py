"""Sound file to mono waveform: decode, mix down, resample, cut segments.

Seeking with libsndfile 1.2.2 is exact to the bit in PCM and FLAC files, not in Opus (up to 5e-3
off, even with a second of lead-in) nor in Vorbis (the last page may come out shifted): those are
decoded from the start.

A source is a path, the bytes of a file, or an `Excerpt`: one channel of it, or a part of a longer
file that is a clip of its own, `P01_01.wav#t=12.5,14.25`: W3C Media Fragments, in seconds from the
start of the file, the first moment included and the second not. `&id=NAME` after it names clips
that share an excerpt.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile

from ssmast.audio.decode import (
    Decoder,
    ForeignError,
    Mixer,
    check_channel,
    decode,
    decode_foreign,
    decoder_version,
    mix,
    opened,
    scaled,
)
from ssmast.audio.long import (
    LONG_SECONDS,
    LOUDEST,
    LongSound,
    file_blocks,
    finished,
    open_long,
    positive,
    read_long,
    region_of,
    resample,
    resampled_length,
    stated_seconds,
)
from ssmast.audio.source import (
    SOUND_EXTENSIONS,
    AudioError,
    SeekError,
    Source,
    Stream,
    bytes_hash,
    first_bytes,
    label_of,
    source_size,
)
from ssmast.audio.streams import check_container, check_last_frame, streams_of

__all__ = [
    "LONG_SECONDS",
    "LOUDEST",
    "MIN_PEAK",
    "SOUND_EXTENSIONS",
    "AudioError",
    "Excerpt",
    "LongSound",
    "Source",
    "Stream",
    "bytes_hash",
    "check_channel",
    "decode_whole",
    "excerpt_name",
    "file_of",
    "first_bytes",
    "hear",
    "libsndfile_version",
    "mix",
    "open_long",
    "read_audio",
    "read_segments",
    "resample",
    "scaled",
    "segment_at",
    "segment_start",
    "source_size",
    "split_excerpt",
    "stated_seconds",
    "swing",
    "unpadded",
]

_FRAGMENT = re.compile(r"#t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?|inf)(?:&id=[^&#]+)?$")

_EXACT_SEEK = frozenset(
    ["PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]
)


@dataclass(frozen=True)
class Excerpt:
    """What `read_audio` and `read_segments` take for a part of a file, in time or channels.

    Attributes:
        source: path of the file, or its bytes.
        start: first moment in seconds.
        stop: end in seconds; one beyond the end of the file means the end of the file.
        channel: how one channel is made of several: mean, first, loudest, left, right, or the
            number of one, from 0 on.
    """

    source: Source
    start: float = 0.0
    stop: float = math.inf
    channel: str = "mean"

    def __post_init__(self) -> None:
        check_channel(self.channel)

    def __str__(self) -> str:
        name = label_of(self.source, None)
        return name if self.is_whole else excerpt_name(name, self.start, self.stop)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the file."""
        return not self.start and self.stop == math.inf

    def samples(self, total: int, sample_rate: int) -> tuple[int, int]:
        """First sample and end of the excerpt in a file of `total` samples; equal if empty."""
        last = math.floor(min(self.stop * sample_rate, total) + 0.5)
        return min(math.floor(self.start * sample_rate + 0.5), last), last


def file_of(found: Source | Excerpt) -> Source:
    """The file or bytes of a sound, all of it."""
    return found.source if isinstance(found, Excerpt) else found


def excerpt_name(path: str, start: float, stop: float, *, clip: str = "") -> str:
    """The name of an excerpt.

    Start and stop are seconds, the stop infinite for the end of the file; `clip` is what else names
    the clip where several share an excerpt, without `&` and `#`.

    >>> excerpt_name("a.wav", 0.5, 2)
    'a.wav#t=0.5,2'
    """
    name = f"{path}#t={_seconds(start)},{_seconds(stop)}"
    return f"{name}&id={clip}" if clip else name


def split_excerpt(name: str) -> tuple[str, tuple[float, float] | None]:
    """The file of a clip and its (start, stop) in seconds, or None if the clip is a whole file.

    >>> split_excerpt("a.wav#t=0.5,2&id=x"), split_excerpt("a#1.wav")
    (('a.wav', (0.5, 2.0)), ('a#1.wav', None))
    """
    found = _FRAGMENT.search(name)
    if found is None:
        return name, None
    return name[: found.start()], (float(found[1]), float(found[2]))


def named_excerpt(name: str | os.PathLike[str], *, channel: str = "mean") -> Excerpt:
    """The file that is called so or, where there is none, the part of one, `a.wav#t=0.5,2`."""
    file, span = (name, None) if os.path.isfile(name) else split_excerpt(os.fspath(name))
    return Excerpt(name if span is None else file, *(span or ()), channel=channel)


def _seconds(value: float) -> str:
    if value == math.inf:
        return "inf"
    # Microseconds are finer than a sample; trailing zeros would give one excerpt two names.
    return f"{value:.6f}".rstrip("0").rstrip(".")


def read_audio(
    source: Source | Excerpt, *, sample_rate: int = 16000, name: str | None = None
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Decode a whole sound file to one channel at one rate.

    Args:
        source: path of a file, its bytes, or an excerpt of a file.
        sample_rate: rate of the result in Hz; other rates are resampled (soxr, high quality).
        name: what to call the source in an error; the path by default.

    Returns:
        Float32 samples (S,), by default the mean of the channels, all finite, S >= 1.

    Raises:
        AudioError: if the source is missing, empty, truncated, not audio, or holds NaN, infinity or
            a sample beyond 100 (full scale is 1), the channels cancel each other in their mean, or
            the file ends before the excerpt begins.
    """
    clip, label = _clip(source, name)
    positive(sample_rate, "sample_rate")
    if clip.is_whole:
        long = read_long(clip.source, label, sample_rate, clip.channel)
        if long is not None:
            return long
        audio, rate, _ = decode_whole(clip, name=label)
        return finished(audio, rate, sample_rate, label)

    def cut(frames: int, rate: int, read: _FrameReader) -> np.ndarray:
        limits = _limits(clip, resampled_length(frames, rate, sample_rate), sample_rate, label)
        return _read_ranges(frames, rate, read, [limits], sample_rate, label)[0]

    found, mixer = _with_sound(clip, label, cut, check=True)
    if mixer is not None:
        mixer.check()
    return found


def decode_whole(
    source: Source | Excerpt, *, name: str | None = None
) -> tuple[np.ndarray, int, str]:
    """Decode a whole sound file at its own rate, its samples not checked.

    Source and name as of `read_audio`.

    Returns:
        Float32 samples (S,), S >= 1; their rate in Hz; the decoder.

    Raises:
        AudioError: if the source is missing, empty, truncated or not audio.
    """
    clip, label = _clip(source, name)
    decoder, base = libsndfile_version(), clip.source
    try:
        with opened(streams_of(base, label)[0], label, clip.channel) as file:
            rate = file.samplerate
        blocks = list(file_blocks(lambda: base, label, clip.channel))
        audio = np.concatenate(blocks or [np.zeros(0, np.float32)])
        if not len(audio):
            raise AudioError(f"{label} has a header but no samples: it holds zero frames of audio")
    except ForeignError as error:
        audio, rate = decode_foreign(base, label, error.what, clip.channel)
        decoder = decoder_version()
    first, last = _limits(clip, len(audio), rate, label)
    return audio[first:last], rate, decoder


def hear(
    source: Source | Excerpt, *, seconds: float, places: int = 1, name: str | None = None
) -> tuple[list[np.ndarray], int]:
    """A few moments of a file at its own rate, to be judged and not to be trained on.

    Args:
        source: path of a file, its bytes, or an excerpt of a file.
        seconds: length of a moment.
        places: moments, evenly spaced; one, from the start, of a file that cannot be sought.
        name: what to call the source in an error; the path by default.

    Returns:
        Samples (S,) of each, and their rate in Hz.

    Raises:
        AudioError: if libsndfile cannot read it, or its channels cancel in their mean.
    """
    clip, label = _clip(source, name)
    with opened(streams_of(clip.source, label)[0], label, clip.channel) as file:
        rate, last = file.samplerate, file.frames
        wanted, starts = round(seconds * rate), [0]
        if file.length_is_known and (file.subtype in _EXACT_SEEK or file.format == "FLAC"):
            first, last = _limits(clip, file.frames, rate, label)
            slack = max(0, last - first - wanted)
            starts = [first + int(slack * (k + 0.5) / places) for k in range(places)]
        found: list[np.ndarray] = []
        for start in dict.fromkeys(starts):
            if start:
                file.seek(start)
            found.append(decode(file, min(wanted, last - start)))
        file.mixer.check()
        return found, rate


def libsndfile_version() -> str:
    """Name and version of the usual decoder, for the manifest."""
    return f"libsndfile {soundfile.__libsndfile_version__}"


def read_segments(
    source: Source | Excerpt,
    *,
    sample_rate: int,
    num_samples: int,
    positions: Sequence[float] | np.ndarray,
    name: str | None = None,
    check: bool = True,
    pad: bool = True,
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Cut segments out of one clip, decoding no more of it than the format allows.

    Position p starts a segment at sample floor(p * (slack + 1)) of the resampled clip, where slack
    is the clip's length less `num_samples`. A clip shorter than that is padded with zeros, and p
    says in the same way how much of the padding comes first. PCM and FLAC files are sought; Vorbis
    and Opus are decoded up to the end of the last segment; an mp3 is decoded whole.

    Args:
        source: path of a file, its bytes, or an excerpt of a file.
        sample_rate: rate of the segments in Hz.
        num_samples: length of a segment.
        positions: one number in [0, 1) a segment.
        name: what to call the source in an error; the path by default.
        check: make sure that a FLAC file is not cut off behind the segments; that takes a seek to
            its end, which need not be done for every segment of a file.
        pad: fill up a clip shorter than `num_samples`; else it is given as it is, whole.

    Returns:
        Float32 segments (K, num_samples); without padding, of a shorter clip (K, its samples).
        Equal to the same slice of `read_audio`: exactly where the rate is the file's own, within
        1e-5 of full scale where it is resampled.

    Raises:
        AudioError: as `read_audio`.
        ValueError: if a position is outside [0, 1).
    """
    clip, label = _clip(source, name)
    positive(sample_rate, "sample_rate")
    positive(num_samples, "num_samples")
    if not all(0.0 <= position < 1.0 for position in positions):
        raise ValueError(f"positions must lie in [0, 1), got {list(positions)}")

    def cut(frames: int, rate: int, read: _FrameReader) -> np.ndarray:
        total = resampled_length(frames, rate, sample_rate)
        first, last = _limits(clip, total, sample_rate, label)
        width = num_samples if pad else min(num_samples, last - first)
        starts = [first + segment_start(last - first, width, p) for p in positions]
        ranges = [(max(start, first), min(start + width, last)) for start in starts]
        found = _read_ranges(frames, rate, read, ranges, sample_rate, label)
        segments = np.zeros((len(starts), width), dtype=np.float32)
        for segment, samples, start in zip(segments, found, starts, strict=True):
            segment[max(first - start, 0) :][: len(samples)] = samples
        return segments

    found, mixer = _with_sound(clip, label, cut, check=check)
    if mixer is not None and mixer.cancels:
        # For a moment, or from start to end: then there is no sound, and the reason is said.
        read_audio(clip, sample_rate=sample_rate, name=label)
    return found


_FrameReader = Callable[[Sequence[tuple[int, int]]], Iterable[np.ndarray]]
"""Reads ranges of frames [first, last) of a file, at its own rate."""


def _with_sound(
    clip: Excerpt, label: str, cut: Callable[[int, int, _FrameReader], np.ndarray], *, check: bool
) -> tuple[np.ndarray, Mixer | None]:
    """What `cut(frames, rate, read)` makes of a clip's file, decoded no further than it asks.

    Beside it the mixer of what was decoded, unless that was all and is checked.
    """
    try:
        first, *others = streams_of(clip.source, label)
        with opened(first, label, clip.channel) as file:
            if file.length_is_known and not others:
                check_container(file)
                if check:
                    check_last_frame(file)
                return cut(file.frames, file.samplerate, _frame_reader(file)), file.mixer
    except (ForeignError, SeekError):
        pass  # decoded from the start
    audio, rate, _ = decode_whole(Excerpt(clip.source, channel=clip.channel), name=label)
    return cut(len(audio), rate, lambda regions: (audio[a:b] for a, b in regions)), None


def _read_ranges(
    frames: int,
    rate: int,
    read: _FrameReader,
    ranges: Sequence[tuple[int, int]],
    sample_rate: int,
    label: str,
) -> list[np.ndarray]:
    """Samples [start, stop) of the resampled clip for every range, read with context around it."""
    regions = [region_of(start, stop, rate, sample_rate, frames) for start, stop in ranges]
    found: list[np.ndarray] = []
    for (start, stop), (first, _), audio in zip(ranges, regions, read(regions), strict=True):
        resampled = finished(audio, rate, sample_rate, label)
        skip = start - first * sample_rate // rate  # exact: `first` is a multiple of the period
        samples = np.zeros(stop - start, dtype=np.float32)
        there = resampled[skip : skip + stop - start]
        samples[: len(there)] = there
        found.append(samples)
    return found


def _clip(source: Source | Excerpt, name: str | None) -> tuple[Excerpt, str]:
    """The source as an excerpt, and what to call it."""
    clip = source if isinstance(source, Excerpt) else Excerpt(source)
    return clip, str(clip) if name is None else name


def _limits(clip: Excerpt, total: int, sample_rate: int, label: str) -> tuple[int, int]:
    """First sample and end of a clip in its file of `total` samples."""
    first, last = clip.samples(total, sample_rate)
    if first >= last:
        raise AudioError(
            f"{label} is empty: it spans {clip.start:g} to {clip.stop:g} s of a file of "
            f"{total / sample_rate:.2f} s"
        )
    return first, last


def segment_start(length: int, num_samples: int, position: float) -> int:
    """First sample of a segment inside a clip, at a position in [0, 1); negative: zeros come first.

    Lengths are in samples.
    """
    offset = min(int(position * (abs(length - num_samples) + 1)), abs(length - num_samples))
    return offset if length >= num_samples else -offset


def segment_at(audio: np.ndarray, start: int, num_samples: int) -> np.ndarray:
    """Float32 samples [start, start + num_samples) of a clip (S,), zeros beyond its ends."""
    segment = np.zeros(num_samples, dtype=np.float32)
    inside = audio[max(start, 0) : max(start + num_samples, 0)]
    segment[max(-start, 0) :][: len(inside)] = inside
    return segment


MIN_PEAK = 1e-4
"""Samples that swing less than this about their middle are silence; a constant is, too."""


def swing(waveform: np.ndarray) -> np.ndarray:
    """Half the distance between the lowest and the highest sample, (..., S) -> (...)."""
    # In float64: the difference of two 16-bit integers, or of two wild floats, would overflow.
    return (waveform.max(axis=-1).astype(np.float64) - waveform.min(axis=-1)) / 2


def unpadded(segment: np.ndarray) -> np.ndarray:
    """A segment (S,) without the zeros at its ends, so that a padded constant is still constant."""
    if segment[0] and segment[-1]:
        return segment
    sounding = np.flatnonzero(segment)
    return segment[sounding[0] : sounding[-1] + 1] if len(sounding) else segment[:1]


def _frame_reader(file: Decoder) -> _FrameReader:
    """Regions of an open file, sought where that is exact, and decoded from its start elsewhere."""

    def read(regions: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
        # Seeking pays when the regions are less than the clip; else one decode serves them all.
        wanted = sum(last - first for first, last in regions)
        if file.can_seek and file.subtype in _EXACT_SEEK and wanted < file.frames:
            for first, last in regions:
                try:
                    file.seek(first)
                except RuntimeError as error:
                    raise SeekError(f"{file.label} cannot be sought") from error
                yield decode(file, last - first)
        else:
            decoded = decode(file, max(last for _, last in regions))
            yield from (decoded[first:last] for first, last in regions)

    return read


def open_audio(
    source: Source | Excerpt,
    *,
    sample_rate: int = 16000,
    name: str | None = None,
    reopen: Callable[[], Source | Excerpt] | None = None,
) -> np.ndarray[tuple[int], np.dtype[np.float32]] | LongSound:
    """As `read_audio`; a file of over a minute is opened to be read from front to back.

    `reopen` returns the source again when a long sound is read, so that its bytes need not be held
    until then.

    Raises:
        AudioError: as `read_audio`; of a long sound some faults show only while it is read.
    """
    clip, label = _clip(source, name)
    if clip.is_whole:

        def again() -> Source:
            return _clip(reopen(), name)[0].source if reopen else clip.source

        long = open_long(
            clip.source, sample_rate=sample_rate, name=label, reopen=again, channel=clip.channel
        )
        if long is not None:
            return long
    return read_audio(clip, sample_rate=sample_rate, name=label)
