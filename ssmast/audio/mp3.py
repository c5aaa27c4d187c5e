"""mp3: decoded to its last frame, whatever length libsndfile guesses."""

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from ssmast.audio.complete import first_bytes, last_bytes, source_size
from ssmast.audio.decode import AudioError, Decoder, Source, decoded_blocks, mono

_MPEG_FRAME = 1152
_SLACK = 4 * 1152  # encoder delay and padding
_ID3_HEADER = 10  # bytes


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


def decode_mp3(file: Decoder, source: Source, label: str) -> np.ndarray:
    """All samples of an mp3, counted: with no length in its header, libsndfile would stop early.

    Args:
        file: open decoder of the source.
        source: path of a file, or its bytes.
        label: what to call it in an error.

    Raises:
        AudioError: if there are fewer than its header promises.
    """
    blocks = list(mp3_blocks(file, source, label))
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)


def mp3_blocks(file: Decoder, source: Source, label: str) -> Iterator[np.ndarray]:
    """What `decode_mp3` gives, block by block.

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
    if found < promised - _SLACK:
        raise AudioError(
            f"{label} is truncated: its header promises {promised} frames, {found} are there"
        )


def _blocks(file: Decoder, source: Source) -> Iterator[np.ndarray]:
    if _states_its_length(source):
        yield from decoded_blocks(file, "", None)
        return
    tag = 128 if last_bytes(source, 128).startswith(b"TAG") else 0
    with _raw(source) as raw:
        target: Any = _Endless(raw, source_size(source) - tag)
        with Decoder(target) as endless:
            while True:
                try:
                    block = endless.read(_MPEG_FRAME, dtype="float32", always_2d=True)
                except soundfile.SoundFileError:
                    break  # cut inside its last frame: small blocks lose no more than that
                if not len(block):
                    break
                yield mono(block)


def _raw(source: Source) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return Path(os.fsdecode(source)).open("rb")


def _states_its_length(source: Source) -> bool:
    start = 0
    tag = first_bytes(source, _ID3_HEADER)
    if tag[:3] == b"ID3" and len(tag) == _ID3_HEADER:
        # A tag states its own length, seven bits a byte.
        start = _ID3_HEADER + sum(
            (byte & 0x7F) << shift for byte, shift in zip(tag[6:10], (21, 14, 7, 0), strict=True)
        )
    with _raw(source) as raw:
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
