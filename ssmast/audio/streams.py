"""What a sound file holds against what its headers say: streams, tags, lengths, truncation.

libsndfile stops at the end of the first stream of a joined file (Ogg, FLAC, mp3, WAV), at the
length that a header states though there is more, cannot seek in FLAC behind a tag, and decodes a
cut WAV, Ogg or mp3 without an error. A file whose header states no length (a stream, an mp3 without
a Xing tag) is not checked for truncation.
"""

import functools
import io
import logging
import os
import re
import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile

from ssmast.audio.decode import (
    UNKNOWN_LENGTH,
    AudioError,
    Decoder,
    SeekError,
    Source,
    Stream,
    decoded_blocks,
    first_bytes,
    last_bytes,
    reader,
    source_size,
)

_log = logging.getLogger(__name__)

_MPEG_FRAME = 1152
_SLACK_SAMPLES = 4 * 1152  # encoder delay and padding
_ID3_HEADER = 10  # bytes
_TAIL = 1 << 16
_END_OF_STREAM = 4
_PADDING = 16  # bytes behind the samples that may be anything
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
    # The samples of a CAF begin with 4 bytes, the count of its edits.
    b"caff": _Layout(8, struct.Struct(">4sQ"), b"data", 0, 1),
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
    """Refuse a FLAC file whose last sample cannot be sought; leaves the decoder at its start.

    Args:
        file: open decoder.
        label: what to call it in an error.

    Raises:
        SeekError: if it is cut off, or can only be read from its start.
    """
    if file.format != "FLAC" or not file.can_seek or file.frames < 1:
        return
    try:
        file.seek(file.frames - 1)
        found = len(file.read(1))
        file.seek(0)
    except RuntimeError as error:
        raise SeekError(f"{label} is truncated: its last samples cannot be read") from error
    if not found:
        raise SeekError(f"{label} is truncated: its last samples are not there")


def _promised(source: Source) -> tuple[int, int]:
    """Bytes of samples that the header promises, and that are there; (0, 0) if it does not say."""
    with reader(source) as file:
        found = _samples_chunk(file, source_size(source))
    return (0, 0) if found is None or not found.length else (found.length, found.present)


class _Chunk(NamedTuple):
    """Where the samples of a file of chunks lie."""

    start: int
    length: int  # as the header says; 0 if it does not
    present: int  # bytes from the start on
    field: int  # byte where the header says it
    form: str  # of the field, for struct
    counted: int  # bytes that the field counts beside


def _samples_chunk(file: "BinaryIO | _Part", size: int) -> _Chunk | None:
    magic = file.read(4)
    if magic in (b".snd", b"dns."):
        form = ">I" if magic == b".snd" else "<I"
        start, length = struct.unpack(f"{form[0]}II", file.read(8).ljust(8, b"\0"))
        length = length if 0 < length < _MOST else 0
        return _Chunk(start, length, size - start, 8, form, 0)
    layout = _LAYOUTS.get(magic)
    if layout is None:
        return None
    at, field = layout.first, 0
    long: int | None = None
    width = layout.header.size
    form = f"{layout.header.format[0]}{'I' if width == 8 else 'Q'}"
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        header = file.read(width)
        if len(header) < width:
            break
        name, length = layout.header.unpack(header)
        length -= layout.counted
        if name == b"ds64":  # what does not fit into 32 bits
            (long,) = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))
            field = at + width + 8
        at += width
        if name == layout.samples:
            is_stream = width == 8 and length >= _MOST
            if long is not None and (is_stream or long):
                return _Chunk(at, long if long < 1 << 62 else 0, size - at, field, "<Q", 0)
            known = 0 < length < (_MOST if width == 8 else 1 << 62)
            stated = length if known else 0
            return _Chunk(
                *(at, stated, size - at, 0 if is_stream else at - struct.calcsize(form)),
                *(form, layout.counted),
            )
        if length < 0:
            break
        at += length
        at += -at % layout.align
    return None


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


# -- streams ---------------------------------------------------------------------------------------


class _FileBytes:
    """The bytes of an open file, read where they are asked for.

    No mapping: that would end the process where a file shrinks or its disk goes away.
    """

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self._file, self._start, self._size = file, start, stop - start

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        first, last, _ = where.indices(self._size)
        return os.pread(self._file.fileno(), max(0, last - first), self._start + first)


_Bytes = bytes | _FileBytes
_Piece = tuple[int, int, tuple[int, bytes]]
"""First byte of a stream, byte after its last, and a patch of it."""

_NO_PATCH = (0, b"")
_BOS = re.compile(rb"OggS\0[\x02\x03\x06\x07]")
_FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_SYNC = re.compile(rb"\xff")
_XING = re.compile(rb"Xing|Info|VBRI")
_SCANNED = 1 << 20
_FIRST_FRAMES = 4096  # bytes in which an mp3 has its tag
_MOST_SAID = 20
_SAID: set[str] = set()


def streams_of(source: Source, label: str) -> list[Source]:
    """The streams of a file, each as a file that libsndfile reads and seeks to its end.

    As a rule the file itself. What stands before or between them (tags) is left out; a length that
    is less than what is there is put right, with a warning.

    Args:
        source: path of a file, or its bytes.
        label: what to call it in a warning.
    """
    if isinstance(source, Stream) and source.patch[1]:
        return [source]
    found: list[Source] = []
    if isinstance(source, bytes):
        pieces, notes = _pieces(source)
        found += [_patched(source[a:b], patch) for a, b, patch in pieces]
    else:
        path = source.path if isinstance(source, Stream) else source
        try:
            state = os.stat(path)
            first, last = 0, state.st_size
            if isinstance(source, Stream):
                first, last = source.start, source.stop
            pieces, notes = _pieces_of_file(os.fsencode(path), first, last, state.st_mtime_ns)
        except (OSError, ValueError, IndexError, struct.error):
            return [source]  # the decoder says what is wrong
        for start, stop, patch in pieces:
            found.append(Stream(path, first + start, first + stop, patch))
    for note in notes:
        if len(_SAID) < _MOST_SAID and label not in _SAID:
            _log.warning("%s %s", label, note)
    if notes:
        _SAID.add(label)
    return found or [source]


@functools.lru_cache(maxsize=4096)
def _pieces_of_file(
    path: bytes, start: int, stop: int, mtime: int
) -> tuple[list[_Piece], list[str]]:
    """`_pieces` of some bytes of a file, once as long as it does not change."""
    if stop - start < 64:
        return [], []
    with open(path, "rb") as file:
        return _pieces(_FileBytes(file, start, stop))


def _pieces(data: _Bytes) -> tuple[list[_Piece], list[str]]:
    """Streams, and what is to be said of them; none where the file is one as it stands."""
    start, size = _after_tags(data), len(data)
    magic, notes = data[start : start + 4], list[str]()
    if magic == b"OggS":
        marks = _ogg_links(data, start)
    elif magic == b"fLaC":
        marks = list(_places(_FLAC, data, start, size))
    elif magic in _LAYOUTS or magic in (b".snd", b"dns."):
        marks = _joined_chunks(data, start)
    elif magic[:1] == b"\xff" and magic[1:2] and magic[1] & 0xE0 == 0xE0:
        tagged = _xing_frames(data, start, size)
        marks, start = [0, *(at for at in tagged if at > start + _FIRST_FRAMES)], 0
    else:
        return [], []
    pieces: list[_Piece] = []
    for first, last in pairwise([*(marks or [start]), size]):
        begin, patch, note = _mended(data, first, last, magic)
        pieces.append((begin, last, patch))
        notes += [note] if note else []
    if pieces == [(0, size, _NO_PATCH)]:
        return [], []
    return pieces, notes


def _places(pattern: re.Pattern[bytes], data: _Bytes, start: int, stop: int) -> Iterator[int]:
    """Where a pattern of at most 16 bytes begins between two bytes."""
    for at in range(start, stop, _SCANNED):
        block = data[at : min(at + _SCANNED + 15, stop)]
        yield from (at + m.start() for m in pattern.finditer(block) if m.start() < _SCANNED)


def _patched(data: bytes, patch: tuple[int, bytes]) -> bytes:
    at, new = patch
    return data[:at] + new + data[at + len(new) :] if new else data


def _after_tags(data: _Bytes) -> int:
    """The byte behind the ID3v2 tags at the start."""
    at = 0
    while data[at : at + 3] == b"ID3" and len(data) >= at + _ID3_HEADER:
        # A tag states its own length, seven bits a byte.
        sizes = zip(data[at + 6 : at + 10], (21, 14, 7, 0), strict=True)
        at += _ID3_HEADER + sum((byte & 0x7F) << shift for byte, shift in sizes)
    return at


def _ogg_links(data: _Bytes, start: int) -> list[int]:
    """First bytes of the links of a chain; streams that run side by side are one link."""
    links, end = list[int](), -1
    for at in _places(_BOS, data, start, len(data)):
        table = data[at + 27 : at + 27 + (data[at + 26 : at + 27] or b"\0")[0]]
        if at != end:
            links.append(at)
        end = at + 27 + len(table) + sum(table)
    return links


def _joined_chunks(data: _Bytes, start: int) -> list[int]:
    """First bytes of WAV (AIFF, AU) files one behind the other."""
    marks, size = [start], len(data)
    for _ in range(_MOST_CHUNKS):
        first = marks[-1]
        chunk = _samples_chunk(_Part(data, first), size - first)
        if chunk is None or not chunk.length:
            break
        at = first + chunk.start + chunk.length
        magic = data[first : first + 4]
        at += next((pad for pad in (0, 1) if data[at + pad : at + pad + 4] == magic), size)
        if at >= size:
            break
        marks.append(at)
    return marks


class _Part:
    """Bytes from one on, read as those of an open file."""

    def __init__(self, data: _Bytes, start: int) -> None:
        self._data, self._start, self._at = data, start, 0

    def seek(self, offset: int) -> None:
        self._at = offset

    def read(self, size: int) -> bytes:
        first = self._start + self._at
        self._at += size
        return self._data[first : first + size]


def _mended(
    data: _Bytes, first: int, last: int, magic: bytes
) -> tuple[int, tuple[int, bytes], str]:
    """Where a stream is to be read from, the patch of its length, and what is to be said."""
    if magic == b"fLaC":
        stated, there = _flac_samples(data, first, last)
        if not stated or there <= stated:
            return first, _NO_PATCH, ""
        high = data[first + 21 : first + 22][0] & 0xF0 | there >> 32
        patch = (21, bytes([high]) + struct.pack(">I", there & 0xFFFFFFFF))
        return first, patch, _more_than(stated, there, "samples")
    if magic == b"OggS":
        return first, *_ogg_end_mended(data, first, last)
    if magic in _LAYOUTS or magic in (b".snd", b"dns."):
        chunk = _samples_chunk(_Part(data, first), last - first)
        if chunk is None or not chunk.field or not _is_understated(data, first, last, chunk):
            return first, _NO_PATCH, ""
        present = chunk.present - _trailing_chunk(data, first + chunk.start, last)
        new = struct.pack(chunk.form, present + chunk.counted)
        note = _more_than(chunk.length, present, "bytes of samples")
        return first, (chunk.field, new), note
    if magic[:1] == b"\xff" or magic == b"ID3":
        start = first + _after_tags(data[first : first + (1 << 16)])
        xing = next(_xing_frames(data, start, min(start + _FIRST_FRAMES, last)), -1)
        head = data[xing : xing + _FIRST_FRAMES] if xing >= 0 else b""
        stated, counts = mp3_length(head), b"Xing" in head or b"Info" in head
        there = _mp3_samples(data, xing, last) if counts else 0
        if there > stated + _SLACK_SAMPLES:  # without its tag it states no length
            begin = xing + _mp3_frame(data, xing)[0]
            return begin, _NO_PATCH, _more_than(stated, there, "samples")
    return first, _NO_PATCH, ""


def _more_than(stated: int, there: int, what: str) -> str:
    return f"has a wrong header: it promises {stated} {what}, {there} are there, and all are read"


def _is_understated(data: _Bytes, first: int, last: int, chunk: _Chunk) -> bool:
    """Whether what follows the samples is more of them: no chunk, no tag and no padding."""
    if chunk.present - chunk.length <= _PADDING:
        return False
    end = first + chunk.start + chunk.length
    heads = [data[end + pad : min(end + pad + 8, last)] for pad in (0, 1)]
    if any(head.startswith((b"TAG", b"ID3", b"APETAGEX")) for head in heads):
        return False
    if any(len(head) == 8 and all(32 <= byte < 127 for byte in head[:4]) for head in heads):
        return False
    blocks = (data[at : min(at + _TAIL, last)] for at in range(end, last, _TAIL))
    return any(block.strip(b"\0") for block in blocks)


def _trailing_chunk(data: _Bytes, start: int, last: int) -> int:
    """Bytes of a list of tags that ends where the file ends; 0 where there is none."""
    tail = data[max(start, last - _TAIL) : last]
    for name in (b"LIST", b"id3 ", b"ID3 "):
        at = tail.rfind(name)
        if at >= 0 and len(tail) >= at + 8:
            length = 8 + int.from_bytes(tail[at + 4 : at + 8], "little")
            if at + length in (len(tail), len(tail) - 1):
                return len(tail) - at
    return 0


def _ogg_end_mended(data: _Bytes, first: int, last: int) -> tuple[tuple[int, bytes], str]:
    """A patch of the end that an Ogg states where it lies before that of the page before.

    Decoders would stop there; with an end far away they read all packets.

    Source: RFC 3533, section 6.
    """
    tail = data[max(first, last - (1 << 18)) : last]
    pages = [m.start() for m in re.finditer(rb"OggS\0[\0-\7]", tail) if m.start() + 27 <= len(tail)]
    if not pages or not tail[pages[-1] + 5] & _END_OF_STREAM:
        return _NO_PATCH, ""
    at = pages[-1]
    serial = tail[at + 14 : at + 18]
    ends = [
        struct.unpack_from("<q", tail, page + 6)[0]
        for page in pages
        if tail[page + 14 : page + 18] == serial
    ]
    *before, end = ends
    most = max(before, default=0)
    if end >= most:
        return _NO_PATCH, ""
    page = tail[at:]
    page = page[: 27 + page[26] + sum(page[27 : 27 + page[26]])]
    page = page[:6] + struct.pack("<q", 4 * UNKNOWN_LENGTH) + page[14:22] + bytes(4) + page[26:]
    new = page[6:22] + struct.pack("<I", _crc(page, 32, 0x04C11DB7))
    note = (
        f"has a wrong header: its last page ends it at {end}, the one before at {most}; all is read"
    )
    return (last - len(tail) + at + 6 - first, new), note


def _flac_samples(data: _Bytes, first: int, last: int) -> tuple[int, int]:
    """Samples that STREAMINFO states, and the end of the last frame; (0, 0) where one is unsure.

    Source: RFC 9639, sections 8.2 and 9.1.
    """
    info = data[first + 8 : first + 42]
    if len(info) < 34:
        return 0, 0
    stated = int.from_bytes(info[10:18], "big") & (1 << 36) - 1
    block, longest = int.from_bytes(info[2:4], "big"), int.from_bytes(info[7:10], "big")
    tail = data[max(first, last - max(longest, 1 << 16)) : last]
    at = len(tail)
    while stated and at >= 0:
        at = max(tail.rfind(sync, 0, at) for sync in (b"\xff\xf8", b"\xff\xf9"))
        there = _flac_frame_end(tail[at : at + 16], block) if at >= 0 else 0
        if there and (there == stated or _crc(tail[at:], 16, 0x8005) == 0):
            return stated, there
    return 0, 0


def _flac_frame_end(header: bytes, block: int) -> int:
    """Sample after the last of a frame; 0 where its header is none."""
    if len(header) < 16 or header[3] & 1:
        return 0
    code, lead = header[2] >> 4, header[4]
    more = 0 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length() - 1
    number = lead if not more else lead & (0x7F >> (more + 1))
    for byte in header[5 : 5 + more]:
        number = number << 6 | byte & 0x3F
    at = 5 + more
    width = {6: 1, 7: 2}.get(code, 0)
    if width:
        samples = 1 + int.from_bytes(header[at : at + width], "big")
    else:
        samples = 192 if code == 1 else 576 << code - 2 if 2 <= code <= 5 else 1 << code
    at += width + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if not code or at >= len(header) or _crc(header[: at + 1], 8, 0x07):
        return 0
    return (number if header[1] & 1 else number * block) + samples


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    value, top, mask = 0, 1 << bits - 1, (1 << bits) - 1
    for byte in data:
        value ^= byte << bits - 8
        for _ in range(8):
            value = (value << 1 ^ polynomial if value & top else value << 1) & mask
    return value


_BIT_RATES = (  # kbit/s by version and layer (MPEG 1: I, II, III; MPEG 2: I, II and III)
    (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448, 0),
    (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 0),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256, 0),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
)


def _mp3_frame(data: _Bytes, at: int) -> tuple[int, int]:
    """Bytes and samples of the frame of layer III at a byte; (0, 0) where there is none.

    Source: ISO/IEC 11172-3, section 2.4.2.3, and 13818-3.
    """
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2 or head[1] & 0x18 == 0x08:
        return 0, 0
    is_one, rate = head[1] & 0x18 == 0x18, head[2] >> 2 & 3
    kilobits = _BIT_RATES[2 if is_one else 4][head[2] >> 4]
    if not kilobits or rate == 3:
        return 0, 0
    hz = (44100, 48000, 32000)[rate] >> (0 if is_one else 1 if head[1] & 0x10 else 2)
    samples = 1152 if is_one else 576
    return samples // 8 * kilobits * 1000 // hz + (head[2] >> 1 & 1), samples


def _mp3_samples(data: _Bytes, start: int, stop: int) -> int:
    """Samples in the frames from one with a Xing tag on, which holds none itself."""
    at, total = start + _mp3_frame(data, start)[0], 0
    while at < stop:
        size, samples = _mp3_frame(data, at)
        if not size:
            at = next(_places(_SYNC, data, at + 1, stop), stop)
            continue
        total += samples
        at += size
    return total


def _xing_frames(data: _Bytes, start: int, stop: int) -> Iterator[int]:
    """First bytes of the frames that hold a Xing or VBRI tag and no sound."""
    for place in _places(_XING, data, start, stop):
        # The header of the frame is 36, 21 or 13 bytes before it; between them are zeros.
        for before in (36, 21, 13):
            at = place - before
            if at >= start and _mp3_frame(data, at)[0] and not any(data[at + 6 : place]):
                yield at
                break


# -- mp3 -------------------------------------------------------------------------------------------


class _Endless(io.RawIOBase):
    """A file that claims to be 64 times as long, so that the guessed length cuts nothing off."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__()
        self._file, self._size, self._claimed = file, size, 64 * size

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._claimed}[whence]
        return self._file.seek(max(0, origin + offset))

    def readinto(self, buffer: bytearray) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        at = self.tell()
        if at >= self._claimed - 128:  # mpg123 looks for a tag in the last 128 bytes
            buffer[:] = bytes(len(buffer))
            return len(buffer)
        found = self._file.read(max(0, min(len(buffer), self._size - at)))
        buffer[: len(found)] = found
        return len(found)


def mp3_blocks(file: Decoder, source: Source, label: str) -> Iterator[np.ndarray]:
    """All samples of an mp3, counted: with no length in its header, libsndfile would stop early.

    Args:
        file: open decoder of the source.
        source: path of a file, or its bytes.
        label: what to call it in an error.

    Raises:
        AudioError: at the end, if there were fewer than its header promises.
    """
    found, promised = 0, mp3_length(source)
    for block in _blocks(file, source):
        found += len(block)
        yield block
    if found < promised - _SLACK_SAMPLES:
        raise AudioError(
            f"{label} is truncated: its header promises {promised} frames, {found} are there"
        )


def _blocks(file: Decoder, source: Source) -> Iterator[np.ndarray]:
    if _states_its_length(source):
        yield from decoded_blocks(file, "", None)
        return
    tag = 128 if last_bytes(source, 128).startswith(b"TAG") else 0
    with reader(source) as raw:
        target: Any = _Endless(raw, source_size(source) - tag)
        with Decoder(target) as endless:
            while True:
                try:
                    block = endless.read(_MPEG_FRAME, dtype="float32", always_2d=True)
                except soundfile.SoundFileError:
                    break  # cut inside its last frame: small blocks lose no more than that
                if not len(block):
                    break
                yield file.mixer(block)


def _states_its_length(source: Source) -> bool:
    start = _after_tags(first_bytes(source, 1 << 16))
    with reader(source) as raw:
        raw.seek(start)
        head = raw.read(2048)
    return any(tag in head for tag in (b"Xing", b"Info", b"VBRI"))


def mp3_length(source: Source) -> int:
    """Samples that the Xing tag of an mp3 promises; 0 where it has none.

    Args:
        source: path of a file, or its bytes.

    Source: the layout of the tag as LAME writes it.
    """
    head = first_bytes(source, 1 << 16)
    for tag in (b"Xing", b"Info"):
        at = head.find(tag)
        # The header of the frame is 36, 21 or 13 bytes before it.
        for before in (36, 21, 13):
            start = at - before
            if start >= 0 and head[start] == 0xFF and head[start + 1] & 0xE0 == 0xE0:
                flags, frames = struct.unpack_from(">II", head, at + 4)
                per_frame = 1152 if head[start + 1] & 0x18 == 0x18 else 576
                return per_frame * frames if flags & 1 else 0
    return 0
