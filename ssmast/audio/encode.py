"""Waveform -> the bytes of a sound file; the same samples give the same bytes."""

import io
import zlib

import numpy as np
import soundfile

CODECS = ("flac", "opus")


def encode_sound(samples: np.ndarray, *, sample_rate: int, codec: str) -> bytes:
    """A mono sound file in memory.

    Args:
        samples: (S,) int16, or float32 within -1 and 1.
        sample_rate: in Hz; Opus knows 8000, 12000, 16000, 24000 and 48000.
        codec: "flac" (16 bits, lossless from there) or "opus" (in Ogg).

    Raises:
        ValueError: for another codec.
    """
    if codec not in CODECS:
        raise ValueError(f"codec must be flac or opus, got {codec!r}")
    buffer = io.BytesIO()
    if codec == "flac":
        soundfile.write(buffer, samples, sample_rate, format="FLAC", subtype="PCM_16")
        return buffer.getvalue()
    soundfile.write(buffer, samples, sample_rate, format="OGG", subtype="OPUS")
    return with_serial(buffer.getvalue(), zlib.crc32(samples.tobytes()))


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def with_serial(ogg: bytes, serial: int) -> bytes:
    """An Ogg stream with another serial number: libsndfile draws one, so no two files are equal.

    Args:
        ogg: pages of one stream.
        serial: 32 bits.

    Source: RFC 3533, section 6.
    """
    out = bytearray(ogg)
    at = 0
    while at < len(out):
        segments = out[at + 26]
        end = at + 27 + segments + sum(out[at + 27 : at + 27 + segments])
        out[at + 14 : at + 18] = serial.to_bytes(4, "little")
        out[at + 22 : at + 26] = bytes(4)
        # The polynomial is zlib's with the bits in the other order, begun at 0 and not inverted.
        reflected = zlib.crc32(bytes(out[at:end]).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
        out[at + 22 : at + 26] = reflected.to_bytes(4, "big").translate(_REVERSED)
        at = end
    return bytes(out)
