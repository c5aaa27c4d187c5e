"""Sound file to mono waveform: decode, mix down, resample, cut segments.

Seeking with libsndfile 1.2.2 is exact to the bit in PCM and FLAC files, not in Opus (up to 5e-3
off, even with a second of lead-in) nor in Vorbis (the last page may come out shifted): those are
decoded from the start.

A sound as its samples, or, where it is long, to be read piece by piece.

Which sound formats decode on this machine, found by trying.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import numpy as np
import soundfile

from ssmast.audio.corpus.index import Span
from ssmast.audio.decode import (
    AUDIO_EXTENSIONS,
    FOREIGN_EXTENSIONS,
    AudioError,
    Decoder,
    ForeignError,
    Source,
    decode,
    decode_foreign,
    decode_mp3,
    decoder_version,
    label_of,
    length_is_known,
    opened,
)
from ssmast.audio.long import LongSound, open_long, read_long
from ssmast.audio.resample import finished, positive, region_of, resample, resampled_length
from ssmast.audio.truncation import check_container, check_last_frame

__all__ = [
    "AUDIO_EXTENSIONS",
    "FOREIGN_EXTENSIONS",
    "AudioError",
    "Source",
    "crop",
    "decode_whole",
    "read_audio",
    "read_segments",
    "resample",
    "segment_start",
]

_EXACT_SEEK = frozenset(
    ["PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]
)


def read_audio(
    source: Source | Span, *, sample_rate: int = 16000, name: str | None = None
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Decode a whole sound file to one channel at one rate.

    Args:
        source: path of a file, its bytes, or a span of a file, which then is the clip.
        sample_rate: rate of the result in Hz; other rates are resampled (soxr, high quality).
        name: what to call the source in an error; the path by default.

    Returns:
        Float32 samples (S,), the mean of the channels, all finite, S >= 1.

    Raises:
        AudioError: if the source is missing, empty, truncated, not audio, or holds NaN, infinity or
            a sample beyond 1e10 (full scale is 1), or the file ends before the span begins.
    """
    base, label = _base(source, name)
    positive(sample_rate, "sample_rate")
    if not isinstance(source, Span):
        long = read_long(base, label, sample_rate)
        if long is not None:
            return long
        audio, rate, _ = decode_whole(source, name=label)
        return finished(audio, rate, sample_rate, label)

    def cut(frames: int, rate: int, parts: Parts) -> np.ndarray:
        limits = _limits(source, resampled_length(frames, rate, sample_rate), sample_rate, label)
        return _read_spans(frames, rate, parts, [limits], sample_rate, label)[0]

    return _with_sound(base, label, cut, check=True)


def decode_whole(source: Source | Span, *, name: str | None = None) -> tuple[np.ndarray, int, str]:
    """Decode a whole sound file at its own rate, without a look at its samples.

    Args:
        source: path of a file, its bytes, or a span of a file, which then is the clip.
        name: what to call the source in an error; the path by default.

    Returns:
        Float32 samples (S,), the mean of the channels, S >= 1; their rate in Hz; the decoder.

    Raises:
        AudioError: if the source is missing, empty, truncated or not audio.
    """
    base, label = _base(source, name)
    decoder = f"libsndfile {soundfile.__libsndfile_version__}"
    try:
        with opened(base, label) as file:
            rate, audio = file.samplerate, _whole(file, base, label)
    except ForeignError as error:
        audio, rate = decode_foreign(base, label, error.what)
        decoder = decoder_version()
    first, last = _limits(source, len(audio), rate, label)
    return audio[first:last], rate, decoder


def read_segments(
    source: Source | Span,
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
        source: path of a file, its bytes, or a span of a file, which then is the clip.
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
    base, label = _base(source, name)
    positive(sample_rate, "sample_rate")
    positive(num_samples, "num_samples")
    if not all(0.0 <= position < 1.0 for position in positions):
        raise ValueError(f"positions must lie in [0, 1), got {list(positions)}")

    def cut(frames: int, rate: int, parts: Parts) -> np.ndarray:
        total = resampled_length(frames, rate, sample_rate)
        first, last = _limits(source, total, sample_rate, label)
        width = num_samples if pad else min(num_samples, last - first)
        starts = [first + segment_start(last - first, width, p) for p in positions]
        spans = [(max(start, first), min(start + width, last)) for start in starts]
        pieces = _read_spans(frames, rate, parts, spans, sample_rate, label)
        segments = np.zeros((len(starts), width), dtype=np.float32)
        for segment, piece, start in zip(segments, pieces, starts, strict=True):
            segment[max(first - start, 0) :][: len(piece)] = piece
        return segments

    return _with_sound(base, label, cut, check=check)


Parts = Callable[[Sequence[tuple[int, int]]], Iterable[np.ndarray]]
"""What gives the frames [first, last) of a clip, at its own rate."""


def _with_sound(
    source: Source, label: str, cut: Callable[[int, int, Parts], np.ndarray], *, check: bool
) -> np.ndarray:
    """What `cut(frames, rate, parts)` makes of a file, decoded no further than it asks."""
    try:
        with opened(source, label) as file:
            if length_is_known(file):
                check_container(file, source, label)
                if check:
                    check_last_frame(file, label)
                return cut(file.frames, file.samplerate, _parts(file, label))
    except ForeignError:
        pass
    audio, rate, _ = decode_whole(source, name=label)
    return cut(len(audio), rate, lambda regions: (audio[a:b] for a, b in regions))


def _read_spans(
    frames: int,
    rate: int,
    parts: Parts,
    spans: Sequence[tuple[int, int]],
    sample_rate: int,
    label: str,
) -> list[np.ndarray]:
    """Samples [start, stop) of the resampled clip for every span, read with context around each."""
    regions = [region_of(start, stop, rate, sample_rate, frames) for start, stop in spans]
    pieces: list[np.ndarray] = []
    for (start, stop), (first, _), part in zip(spans, regions, parts(regions), strict=True):
        resampled = finished(part, rate, sample_rate, label)
        skip = start - first * sample_rate // rate  # exact: `first` is a multiple of the period
        piece = np.zeros(stop - start, dtype=np.float32)
        found = resampled[skip : skip + stop - start]
        piece[: len(found)] = found
        pieces.append(piece)
    return pieces


def _base(source: Source | Span, name: str | None) -> tuple[Source, str]:
    """The file (or bytes) that a source lies in, and what to call the source in an error."""
    if isinstance(source, Span):
        return source.path, name or str(source)
    return source, label_of(source, name)


def _limits(source: Source | Span, total: int, sample_rate: int, label: str) -> tuple[int, int]:
    """First sample and end of a source in its file of `total` samples."""
    if not isinstance(source, Span):
        return 0, total
    first, last = source.samples(total, sample_rate)
    if first >= last:
        raise AudioError(
            f"{label} is empty: it spans {source.start:g} to {source.stop:g} s of a file of "
            f"{total / sample_rate:.2f} s"
        )
    return first, last


def segment_start(length: int, num_samples: int, position: float) -> int:
    """First sample of a segment inside a clip; negative where zeros come first.

    Args:
        length: samples in the clip.
        num_samples: samples in the segment.
        position: number in [0, 1).
    """
    offset = min(int(position * (abs(length - num_samples) + 1)), abs(length - num_samples))
    return offset if length >= num_samples else -offset


def crop(audio: np.ndarray, num_samples: int, position: float) -> np.ndarray:
    """Cut one segment out of a decoded clip (S,), as `read_segments` does; zeros where it is short.

    Args:
        audio: samples of the clip.
        num_samples: samples of the segment.
        position: number in [0, 1).
    """
    start = segment_start(len(audio), num_samples, position)
    piece = audio[max(start, 0) : max(start, 0) + num_samples]
    segment = np.zeros(num_samples, dtype=np.float32)
    segment[max(-start, 0) :][: len(piece)] = piece
    return segment


def _whole(file: Decoder, source: Source, label: str) -> np.ndarray:
    if file.format == "MP3":
        audio = decode_mp3(file, source, label)
    else:
        check_container(file, source, label)
        audio = decode(file, label, file.frames if length_is_known(file) else None)
    if not len(audio):
        raise AudioError(f"{label} has a header but no samples: it holds zero frames of audio")
    return audio


def _parts(
    file: Decoder, label: str
) -> Callable[[Sequence[tuple[int, int]]], Iterator[np.ndarray]]:
    """Regions of an open file, sought where that is exact, and decoded from its start elsewhere."""

    def read(regions: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
        # Seeking pays when the regions are a part of the clip; else one decode serves them all.
        wanted = sum(last - first for first, last in regions)
        if file.can_seek and file.subtype in _EXACT_SEEK and wanted < file.frames:
            for first, last in regions:
                file.seek(first)
                yield decode(file, label, last - first)
        else:
            decoded = decode(file, label, max(last for _, last in regions))
            yield from (decoded[first:last] for first, last in regions)

    return read


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


_WRITTEN = {  # format -> libsndfile's names of container and coding
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def try_formats() -> dict[str, str]:
    """Format -> why it does not work here, empty if it does; a written tone must come back."""
    return {name: _why_not(name) for name in _WRITTEN}


def _why_not(name: str) -> str:
    container, coding = _WRITTEN[name]
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    buffer = io.BytesIO()
    try:
        soundfile.write(buffer, tone, 16000, format=container, subtype=coding)
        audio = read_audio(buffer.getvalue(), name=f"a {name} tone")
    except (ValueError, RuntimeError, OSError, TypeError) as error:
        return str(error).strip().split("\n")[0]
    spectrum = np.abs(np.fft.rfft(audio))
    peak = np.argmax(spectrum) * 16000 / len(audio)
    if abs(peak - 1000) > 5 or abs(len(audio) - 16000) > 3000:  # mp3 pads both ends
        return (
            f"a tone of 1000 Hz and 1 s came back as {peak:.0f} Hz and {len(audio) / 16000:.2f} s"
        )
    return ""
