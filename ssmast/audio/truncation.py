"""Truncation checks for sound files: libsndfile decodes a cut WAV, Ogg or mp3 without an error.

A file whose header states no length (a stream, an mp3 without a Xing tag) is not checked.
"""

import struct
from typing import BinaryIO, NamedTuple

from ssmast.audio.decode import AudioError, Decoder, Source, last_bytes, reader, source_size

_TAIL = 1 << 16
_END_OF_STREAM = 4
_SLACK = 0.99  # headers that are a few bytes off are common
_MOST = 0x7FFFF000  # a length of 32 bits from here on is a stream's, which did not know it
_MOST_CHUNKS = 10_000


class _Layout(NamedTuple):
    """How a format of chunks is laid out."""

    first: int  # byte of the first chunk
    header: struct.Struct  # name and length
    samples: bytes  # name of the chunk that holds them
    counted: int  # bytes of the header that the length includes
    align: int  # bytes that a chunk begins at a multiple of


_RIFF = _Layout(12, struct.Struct("<4sI"), b"data", 0, 2)
_LAYOUTS = {
    b"RIFF": _RIFF,
    b"RF64": _RIFF,
    b"RIFX": _RIFF._replace(header=struct.Struct(">4sI")),
    b"FORM": _Layout(12, struct.Struct(">4sI"), b"SSND", 0, 2),
    b"riff": _Layout(40, struct.Struct("<4s12xQ"), b"data", 24, 8),
}


def check_container(file: Decoder, source: Source, label: str) -> None:
    """Refuse a file with less data than its header says, and an Ogg without its last page.

    The header of WAV, RF64, W64, AIFF or AU; libsndfile itself refuses a cut CAF.

    Args:
        file: open decoder of the source.
        source: path of a file, or its bytes.
        label: what to call it in an error.

    Raises:
        AudioError: if it is cut off.
    """
    if file.format in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU"):
        promised, present = _promised(source)
        if present < _SLACK * promised:
            raise AudioError(
                f"{label} is truncated: its header promises {promised} bytes of samples, "
                f"{present} are there"
            )
    elif file.format == "OGG" and not _ogg_ends(last_bytes(source, _TAIL)):
        raise AudioError(f"{label} is truncated: its last Ogg page is not there")


def check_last_frame(file: Decoder, label: str) -> None:
    """Refuse a FLAC file whose last sample cannot be reached; leaves the decoder at its start.

    Args:
        file: open decoder.
        label: what to call it in an error.

    Raises:
        AudioError: if it is cut off.
    """
    if file.format != "FLAC" or not file.can_seek or file.frames < 1:
        return
    try:
        file.seek(file.frames - 1)
        found = len(file.read(1))
        file.seek(0)
    except RuntimeError as error:
        raise AudioError(f"{label} is truncated: its last samples cannot be read") from error
    if not found:
        raise AudioError(f"{label} is truncated: its last samples are not there")


def _promised(source: Source) -> tuple[int, int]:
    """Bytes of samples that the header promises, and that are there; (0, 0) if it does not say."""
    size = source_size(source)
    with reader(source) as file:
        magic = file.read(4)
        if magic in (b".snd", b"dns."):
            start, length = struct.unpack(">II" if magic == b".snd" else "<II", file.read(8))
            return (length, size - start) if 0 < length < _MOST else (0, 0)
        layout = _LAYOUTS.get(magic)
        return (0, 0) if layout is None else _in_chunks(file, layout, size)


def _in_chunks(file: BinaryIO, layout: _Layout, size: int) -> tuple[int, int]:
    at, long = layout.first, 0
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        header = file.read(layout.header.size)
        if len(header) < layout.header.size:
            break
        name, length = layout.header.unpack(header)
        length -= layout.counted
        if name == b"ds64":  # what does not fit into 32 bits
            (long,) = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))
        at += layout.header.size
        if name == layout.samples:
            length = long or length
            known = 0 < length < (_MOST if layout.header.size == 8 and not long else 1 << 62)
            return (length, size - at) if known else (0, 0)
        if length < 0:
            break
        at += length
        at += -at % layout.align
    return 0, 0


def _ogg_ends(tail: bytes) -> bool:
    """Whether the last page is whole and says that it is the last."""
    at = tail.rfind(b"OggS")
    while at >= 0:
        if at + 27 <= len(tail):
            segments = tail[at + 26]
            end = at + 27 + segments + sum(tail[at + 27 : at + 27 + segments])
            return end <= len(tail) and bool(tail[at + 5] & _END_OF_STREAM)
        at = tail.rfind(b"OggS", 0, at)
    return False
