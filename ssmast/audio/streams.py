"""What a sound file holds against what its headers say: streams, tags, lengths, truncation.

libsndfile stops at the end of the first stream of a joined file (Ogg, FLAC, mp3, WAV), at the
length that a header states though there is more, cannot seek in FLAC behind a tag, and decodes a
cut WAV, Ogg or mp3 without an error. A file whose header states no length (a stream, an mp3 without
a Xing tag) is not checked for truncation.
"""

import functools
import logging
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import soundfile

from ssmast.audio.decode import UNKNOWN_LENGTH, Decoder, decoded_blocks
from ssmast.audio.source import (
    AudioError,
    SeekError,
    SlicedFile,
    Source,
    Stream,
    View,
    patched,
    viewed,
)

_log = logging.getLogger(__name__)

_SLACK_SAMPLES = 4 * 1152  # encoder delay and padding
_SLACK = 0.99  # headers that are a few bytes off are common
_TAIL = 1 << 16
_MOST_SAID = 20
_SAID: set[str] = set()


def check_container(file: Decoder) -> None:
    """Refuse a file with less data than its header says, and an Ogg without its last page.

    The header of WAV, RF64, W64, AIFF or AU; libsndfile itself refuses a cut CAF.
    """
    if file.format in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU"):
        with viewed(file.source) as data:
            found = _samples_chunk(data)
        if found and found.present < _SLACK * found.length:
            raise AudioError(
                f"{file.label} is truncated: its header promises {found.length} bytes of samples, "
                f"{found.present} are there"
            )
    elif file.format == "OGG":
        with viewed(file.source) as data:
            tail = data[-_TAIL:]
        if not _ogg_ends(tail):
            raise AudioError(f"{file.label} is truncated: its last Ogg page is not there")


def check_last_frame(file: Decoder) -> None:
    """Refuse a FLAC file whose last sample cannot be sought; leaves the decoder at its start."""
    if file.format != "FLAC" or not file.can_seek or file.frames < 1:
        return
    try:
        file.seek(file.frames - 1)
        found = len(file.read(1))
        file.seek(0)
    except RuntimeError as error:
        raise SeekError(f"{file.label} is truncated: its last samples cannot be read") from error
    if not found:
        raise SeekError(f"{file.label} is truncated: its last samples are not there")


# -- streams ---------------------------------------------------------------------------------------


class _Mended(NamedTuple):
    """How a stream is to be read, and what is to be said of its header."""

    begin: int = 0
    patch: tuple[int, bytes] = (0, b"")
    note: str = ""


class _Format(NamedTuple):
    """How the streams of a file are found, from a byte on, and a wrong length of one is mended."""

    begins: Callable[[View, int], list[int]]
    mended: Callable[[View], _Mended]


_Piece = tuple[int, int, tuple[int, bytes]]
"""First byte of a stream, byte after its last, and a patch of it."""


def streams_of(source: Source, label: str) -> list[Source]:
    """The streams of a file, each as a file that libsndfile reads and seeks to its end.

    As a rule the file itself. What stands before or between them (tags) is left out; a length that
    is less than what is there is put right, with a warning.
    """
    found: list[Source] = []
    if isinstance(source, bytes):
        with viewed(source) as data:
            pieces, notes = _pieces(data)
        found += [patched(source[first:last], patch) for first, last, patch in pieces]
    else:
        try:
            if isinstance(source, Stream):
                if source.patch[1]:
                    return [source]
                path, first, last = source.path, source.start, source.stop
                state = os.stat(path)
            else:
                path, first, state = source, 0, os.stat(source)
                last = state.st_size
            pieces, notes = _pieces_of_file(os.fsdecode(path), first, last, state.st_mtime_ns)
        except (OSError, ValueError, IndexError, struct.error):
            return [source]  # the decoder says what is wrong
        found += [Stream(path, first + begin, first + end, patch) for begin, end, patch in pieces]
    for note in notes:
        if len(_SAID) < _MOST_SAID and label not in _SAID:
            _log.warning("%s %s", label, note)
    if notes:
        _SAID.add(label)
    return found or [source]


@functools.lru_cache(maxsize=4096)
def _pieces_of_file(path: str, start: int, stop: int, mtime: int) -> tuple[list[_Piece], list[str]]:
    """`_pieces` of some bytes of a file, once as long as it does not change."""
    if stop - start < 64:
        return [], []
    with viewed(Stream(path, start, stop)) as data:
        return _pieces(data)


def _pieces(data: View) -> tuple[list[_Piece], list[str]]:
    """Streams, and what is to be said of them; none where the file is one as it stands."""
    start, size = _after_tags(data), len(data)
    magic = data[start : start + 4]
    kind = _FORMATS.get(magic)
    if magic[:1] == b"\xff" and magic[1:2] and magic[1] & 0xE0 == 0xE0:
        kind = _MP3
    if kind is None:
        return [], []
    pieces, notes = list[_Piece](), list[str]()
    for first, last in pairwise([*(kind.begins(data, start) or [start]), size]):
        mended = kind.mended(data.part(first, last))
        pieces.append((first + mended.begin, last, mended.patch))
        notes += [mended.note] if mended.note else []
    if pieces == [(0, size, _Mended().patch)]:
        return [], []
    return pieces, notes


_SCANNED = 1 << 20


def _places(pattern: re.Pattern[bytes], data: View, start: int, stop: int) -> Iterator[int]:
    """Where a pattern of at most 16 bytes begins between two bytes."""
    for at in range(start, stop, _SCANNED):
        block = data[at : min(at + _SCANNED + 15, stop)]
        yield from (at + m.start() for m in pattern.finditer(block) if m.start() < _SCANNED)


def _after_tags(data: View) -> int:
    """The byte behind the ID3v2 tags at the start."""
    at = 0
    while len(header := data[at : at + 10]) == 10 and header.startswith(b"ID3"):
        # A tag states its own length, seven bits a byte.
        sizes = zip(header[6:], (21, 14, 7, 0), strict=True)
        at += 10 + sum((byte & 0x7F) << shift for byte, shift in sizes)
    return at


def _more_than(stated: int, there: int, what: str) -> str:
    return f"has a wrong header: it promises {stated} {what}, {there} are there, and all are read"


# -- WAV, AIFF, AU and the like --------------------------------------------------------------------


class _Layout(NamedTuple):
    """How a format of chunks is laid out."""

    first: int  # byte of the first chunk
    header: struct.Struct  # name and length
    samples: bytes  # name of the chunk that holds them
    counted: int  # bytes of the header that the length includes
    align: int  # bytes that a chunk begins at a multiple of


class _Chunk(NamedTuple):
    """Where the samples of a file of chunks lie."""

    start: int
    length: int  # as the header says; 0 if it does not
    present: int  # bytes from the start on
    field: int  # byte where the header says it
    form: str  # of the field, for struct
    counted: int  # bytes that the field counts beside


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
_AU = {b".snd": ">I", b"dns.": "<I"}
_PADDING = 16  # bytes behind the samples that may be anything
_MOST = 0x7FFFF000  # a length of 32 bits from here on is a stream's, which did not know it
_MOST_CHUNKS = 10_000


def _samples_chunk(data: View) -> _Chunk | None:
    """The chunk with the samples of the file that begins at the start of `data`."""
    magic, size = data[:4], len(data)
    if magic in _AU:
        start, length = struct.unpack(f"{_AU[magic][0]}II", data[4:12].ljust(8, b"\0"))
        return _Chunk(start, length if 0 < length < _MOST else 0, size - start, 8, _AU[magic], 0)
    layout = _LAYOUTS.get(magic)
    if layout is None:
        return None
    at, field = layout.first, 0
    long: int | None = None
    width = layout.header.size
    form = f"{layout.header.format[0]}{'I' if width == 8 else 'Q'}"
    for _ in range(_MOST_CHUNKS):
        header = data[at : at + width]
        if len(header) < width:
            break
        name, length = layout.header.unpack(header)
        length -= layout.counted
        at += width
        if name == b"ds64":  # what does not fit into 32 bits
            (long,) = struct.unpack("<8xQ", data[at : at + 16].ljust(16, b"\0"))
            field = at + 8
        if name == layout.samples:
            is_stream = width == 8 and length >= _MOST
            if long is not None and (is_stream or long):
                return _Chunk(at, long if long < 1 << 62 else 0, size - at, field, "<Q", 0)
            stated = length if 0 < length < (_MOST if width == 8 else 1 << 62) else 0
            field = 0 if is_stream else at - struct.calcsize(form)
            return _Chunk(at, stated, size - at, field, form, layout.counted)
        if length < 0:
            break
        at += length
        at += -at % layout.align
    return None


def _joined_chunks(data: View, start: int) -> list[int]:
    """First bytes of WAV (AIFF, AU) files one behind the other."""
    begins, size = [start], len(data)
    for _ in range(_MOST_CHUNKS):
        first = begins[-1]
        chunk = _samples_chunk(data.part(first, size))
        if chunk is None or not chunk.length:
            break
        at = first + chunk.start + chunk.length
        magic = data[first : first + 4]
        at += next((pad for pad in (0, 1) if data[at + pad : at + pad + 4] == magic), size)
        if at >= size:
            break
        begins.append(at)
    return begins


def _mended_chunks(data: View) -> _Mended:
    chunk = _samples_chunk(data)
    if chunk is None or not chunk.field or not _is_understated(data, chunk):
        return _Mended()
    present = chunk.present - _trailing_chunk(data[max(chunk.start, len(data) - _TAIL) :])
    new = struct.pack(chunk.form, present + chunk.counted)
    note = _more_than(chunk.length, present, "bytes of samples")
    return _Mended(patch=(chunk.field, new), note=note)


def _is_understated(data: View, chunk: _Chunk) -> bool:
    """Whether what follows the samples is more of them: no chunk, no tag and no padding."""
    if chunk.present - chunk.length <= _PADDING:
        return False
    end = chunk.start + chunk.length
    heads = [data[end + pad : end + pad + 8] for pad in (0, 1)]
    if any(head.startswith((b"TAG", b"ID3", b"APETAGEX")) for head in heads):
        return False
    if any(len(head) == 8 and all(32 <= byte < 127 for byte in head[:4]) for head in heads):
        return False
    return any(data[at : at + _TAIL].strip(b"\0") for at in range(end, len(data), _TAIL))


def _trailing_chunk(tail: bytes) -> int:
    """Bytes of a list of tags that ends where the file ends; 0 where there is none."""
    for name in (b"LIST", b"id3 ", b"ID3 "):
        at = tail.rfind(name)
        if at >= 0 and len(tail) >= at + 8:
            length = 8 + int.from_bytes(tail[at + 4 : at + 8], "little")
            if at + length in (len(tail), len(tail) - 1):
                return len(tail) - at
    return 0


# -- Ogg: RFC 3533, section 6 ----------------------------------------------------------------------

_END_OF_STREAM = 4
_BOS = re.compile(rb"OggS\0[\x02\x03\x06\x07]")
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_page_size(page: bytes | bytearray) -> int:
    """Bytes of the page that begins here, of whose header the first 282 bytes are looked at."""
    return 27 + page[26] + sum(page[27 : 27 + page[26]]) if len(page) > 26 else len(page)


def ogg_checksum(page: bytes | bytearray) -> bytes:
    """The four bytes 22 to 25 of a page, in which they are zeros."""
    # The polynomial is zlib's with the bits in the other order, begun at 0 and not inverted.
    reflected = zlib.crc32(bytes(page).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return reflected.to_bytes(4, "big").translate(_REVERSED)


def _ogg_ends(tail: bytes) -> bool:
    """Whether the last page is whole and says that it is the last."""
    at = tail.rfind(b"OggS")
    while at >= 0:
        page = tail[at:]
        if len(page) >= 27:
            return ogg_page_size(page) <= len(page) and bool(page[5] & _END_OF_STREAM)
        at = tail.rfind(b"OggS", 0, at)
    return False


def _ogg_links(data: View, start: int) -> list[int]:
    """First bytes of the links of a chain; streams that run side by side are one link."""
    links, end = list[int](), -1
    for at in _places(_BOS, data, start, len(data)):
        if at != end:
            links.append(at)
        end = at + ogg_page_size(data[at : at + 282])
    return links


def _mended_ogg(data: View) -> _Mended:
    """A patch of the end that an Ogg states where it lies before that of the page before.

    Decoders would stop there; with an end far away they read all packets.
    """
    tail = data[-(1 << 18) :]
    pages = [m.start() for m in re.finditer(rb"OggS\0[\0-\7]", tail) if m.start() + 27 <= len(tail)]
    if not pages or not tail[pages[-1] + 5] & _END_OF_STREAM:
        return _Mended()
    at = pages[-1]
    *before, end = (
        struct.unpack_from("<q", tail, page + 6)[0]
        for page in pages
        if tail[page + 14 : page + 18] == tail[at + 14 : at + 18]  # of one stream
    )
    most = max(before, default=0)
    if end >= most:
        return _Mended()
    page = tail[at : at + ogg_page_size(tail[at:])]
    page = page[:6] + struct.pack("<q", 4 * UNKNOWN_LENGTH) + page[14:22] + bytes(4) + page[26:]
    note = (
        f"has a wrong header: its last page ends it at {end}, the one before at {most}; all is read"
    )
    patch = (len(data) - len(tail) + at + 6, page[6:22] + ogg_checksum(page))
    return _Mended(patch=patch, note=note)


# -- FLAC: RFC 9639, sections 8.2 and 9.1 ----------------------------------------------------------

_FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")


def _mended_flac(data: View) -> _Mended:
    stated, there = _flac_samples(data)
    if not stated or there <= stated:
        return _Mended()
    high = data[21:22][0] & 0xF0 | there >> 32
    patch = (21, bytes([high]) + struct.pack(">I", there & 0xFFFFFFFF))
    return _Mended(patch=patch, note=_more_than(stated, there, "samples"))


def _flac_samples(data: View) -> tuple[int, int]:
    """Samples that STREAMINFO states, and the end of the last frame; (0, 0) where one is unsure."""
    info = data[8:42]
    if len(info) < 34:
        return 0, 0
    stated = int.from_bytes(info[10:18], "big") & (1 << 36) - 1
    block, longest = int.from_bytes(info[2:4], "big"), int.from_bytes(info[7:10], "big")
    tail = data[-max(longest, 1 << 16) :]
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


# -- mp3: ISO/IEC 11172-3, section 2.4.2.3, and 13818-3; the Xing tag as LAME writes it ------------

_SYNC = re.compile(rb"\xff")
_XING = re.compile(rb"Xing|Info|VBRI")
_FIRST_FRAMES = 4096  # bytes in which an mp3 has its tag
_MPEG_FRAME = 1152
_KILOBITS = {  # a second, of layer III, by whether it is MPEG 1
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}


def _mp3_frame(data: View, at: int) -> tuple[int, int]:
    """Bytes and samples of the frame of layer III at a byte; (0, 0) where there is none."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2 or head[1] & 0x18 == 0x08:
        return 0, 0
    is_one, rate = head[1] & 0x18 == 0x18, head[2] >> 2 & 3
    kilobits = _KILOBITS[is_one][head[2] >> 4]
    if not kilobits or rate == 3:
        return 0, 0
    hz = (44100, 48000, 32000)[rate] >> (0 if is_one else 1 if head[1] & 0x10 else 2)
    samples = 1152 if is_one else 576
    return samples // 8 * kilobits * 1000 // hz + (head[2] >> 1 & 1), samples


def _mp3_samples(data: View, at: int) -> int:
    """Samples in the frames from a byte on."""
    total = 0
    while at < len(data):
        size, samples = _mp3_frame(data, at)
        if not size:
            at = next(_places(_SYNC, data, at + 1, len(data)), len(data))
            continue
        total += samples
        at += size
    return total


def _xing_frames(data: View, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """First bytes of the frames that hold a Xing or VBRI tag and no sound, and of the tags."""
    for tag in _places(_XING, data, start, stop):
        # The header of the frame is 36, 21 or 13 bytes before it; between them are zeros.
        for at in (tag - 36, tag - 21, tag - 13):
            if at >= start and _mp3_frame(data, at)[0] and not any(data[at + 6 : tag]):
                yield at, tag
                break


def _first_tag(data: View) -> tuple[int, int, int | None] | None:
    """First byte of the frame with the tag, that behind it, and samples stated; None without one.

    The samples are None in a VBRI tag.
    """
    start = _after_tags(data)
    for at, tag in _xing_frames(data, start, min(start + _FIRST_FRAMES, len(data))):
        size, samples = _mp3_frame(data, at)
        if data[tag : tag + 4] == b"VBRI":
            return at, at + size, None
        flags, frames = struct.unpack(">II", data[tag + 4 : tag + 12].ljust(8, b"\0"))
        return at, at + size, samples * frames if flags & 1 else 0
    return None


def _mp3_begins(data: View, start: int) -> list[int]:
    """0, and the frames with a tag that begin further streams."""
    first, *later = [at for at, _ in _xing_frames(data, start, len(data))] or [0]
    return [0, first, *later] if first > start + _FIRST_FRAMES else [0, *later]


def _mended_mp3(data: View) -> _Mended:
    tag = _first_tag(data)
    begin, stated = tag[1:] if tag else (0, None)
    if stated is None:
        return _Mended()
    there = _mp3_samples(data, begin)
    if there <= stated + _SLACK_SAMPLES:
        return _Mended()
    # Without its tag it states no length.
    return _Mended(begin=begin, note=_more_than(stated, there, "samples"))


class _Endless:
    """Bytes that claim to be 64 times as many, so that the guessed length cuts nothing off."""

    def __init__(self, data: View) -> None:
        self._data = data

    def __len__(self) -> int:
        return 64 * len(self._data)

    def __getitem__(self, where: slice) -> bytes:
        first, last, _ = where.indices(len(self))
        if first >= len(self) - 128:  # mpg123 looks for a tag in the last 128 bytes
            return bytes(max(0, last - first))
        return self._data[first:last]


def mp3_blocks(file: Decoder) -> Iterator[np.ndarray]:
    """All samples of an mp3, counted: with no length in its header, libsndfile would stop early."""
    with viewed(file.source) as data:
        tag = _first_tag(data)
        found, promised = 0, (tag and tag[2]) or 0
        for block in _counted_blocks(file, data) if tag is None else decoded_blocks(file, None):
            found += len(block)
            yield block
    if found < promised - _SLACK_SAMPLES:
        raise AudioError(
            f"{file.label} is truncated: its header promises {promised} frames, {found} are there"
        )


def _counted_blocks(file: Decoder, data: View) -> Iterator[np.ndarray]:
    end = len(data) - 128 if data[-128:].startswith(b"TAG") else len(data)
    target: Any = SlicedFile(_Endless(data.part(0, end)))
    with Decoder(target) as endless:
        while True:
            try:
                block = endless.read(_MPEG_FRAME, dtype="float32", always_2d=True)
            except soundfile.SoundFileError:
                return  # cut inside its last frame: small blocks lose no more than that
            if not len(block):
                return
            yield file.mixer(block)


_CHUNKS = _Format(_joined_chunks, _mended_chunks)
_MP3 = _Format(_mp3_begins, _mended_mp3)
_FORMATS = {
    b"OggS": _Format(_ogg_links, _mended_ogg),
    b"fLaC": _Format(lambda data, start: [*_places(_FLAC, data, start, len(data))], _mended_flac),
    **dict.fromkeys([*_LAYOUTS, *_AU], _CHUNKS),
}
"""By the first four bytes; an mp3 has no fixed ones."""
