"""Whether a sound file is all there: libsndfile decodes a cut WAV, Ogg or mp3 to what is left.

A length that the header does not know (a stream, an mp3 without a Xing tag) is taken as it is.
"""

import os
import struct
from pathlib import Path

from ssmast.audio.decode import AudioError, Decoder, Source

_TAIL = 1 << 16
_END_OF_STREAM = 4
_SLACK = 0.99  # headers that are a few bytes off are common


def check_container(file: Decoder, source: Source, label: str) -> None:
    """Refuse a WAV whose data is shorter than its header says, and an Ogg without its last page.

    Args:
        file: open decoder of the source.
        source: path of a file, or its bytes.
        label: what to call it in an error.

    Raises:
        AudioError: if it is cut off.
    """
    if file.format in ("WAV", "WAVEX"):
        promised, present = _wav_data(first_bytes(source, 1 << 12), source_size(source))
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


def _wav_data(head: bytes, size: int) -> tuple[int, int]:
    """Bytes that the data chunk promises, and that are there; (0, 0) if that cannot be known."""
    order = {b"RIFF": "<", b"RIFX": ">"}.get(head[:4])
    at = 12
    while order and at + 8 <= len(head):
        (length,) = struct.unpack_from(f"{order}I", head, at + 4)
        if head[at : at + 4] == b"data":
            unknown = length in (0, 0xFFFFFFFF) or length >= 0x7FFFF000
            return (0, 0) if unknown else (length, size - at - 8)
        at += 8 + length + length % 2
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


def source_size(source: Source) -> int:
    """Bytes of a source."""
    return len(source) if isinstance(source, bytes) else os.stat(source).st_size


def first_bytes(source: Source, count: int) -> bytes:
    """The first `count` bytes of a source, or what there is."""
    if isinstance(source, bytes):
        return source[:count]
    with Path(os.fsdecode(source)).open("rb", buffering=0) as file:
        return file.read(count)


def last_bytes(source: Source, count: int) -> bytes:
    """The last `count` bytes of a source, or what there is."""
    if isinstance(source, bytes):
        return source[-count:]
    with Path(os.fsdecode(source)).open("rb", buffering=0) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - count))
        return file.read(count)
