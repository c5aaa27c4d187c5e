"""Waveform -> the bytes of a sound file, equal for equal samples; formats that work here."""

import io
import zlib

import numpy as np
import soundfile

from ssmast.audio.read import read_audio
from ssmast.audio.streams import ogg_checksum, ogg_page_size

CODECS = ("flac", "opus")


def encode_sound(samples: np.ndarray, *, sample_rate: int, codec: str) -> bytes:
    """A mono sound file in memory, of samples (S,): int16, or float32 within -1 and 1.

    The codec is "flac" (16 bits, lossless from there) or "opus" (in Ogg), which knows rates of
    8000, 12000, 16000, 24000 and 48000 Hz; any other is a ValueError.
    """
    if codec not in CODECS:
        raise ValueError(f"codec must be flac or opus, got {codec!r}")
    buffer = io.BytesIO()
    if codec == "flac":
        soundfile.write(buffer, samples, sample_rate, format="FLAC", subtype="PCM_16")
        return buffer.getvalue()
    soundfile.write(buffer, samples, sample_rate, format="OGG", subtype="OPUS")
    return with_serial(buffer.getvalue(), zlib.crc32(samples.tobytes()))


def with_serial(ogg: bytes, serial: int) -> bytes:
    """An Ogg stream with another serial number: libsndfile draws one, so no two files are equal.

    Source: RFC 3533, section 6.
    """
    out, at = bytearray(ogg), 0
    while at < len(out):
        end = at + ogg_page_size(out[at : at + 282])
        out[at + 14 : at + 18] = serial.to_bytes(4, "little")
        out[at + 22 : at + 26] = bytes(4)
        out[at + 22 : at + 26] = ogg_checksum(out[at:end])
        at = end
    return bytes(out)


_WRITTEN = {  # format -> libsndfile's names of container and coding
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def try_formats() -> dict[str, str]:
    """Format -> why it does not work here, empty if it does: a tone is written and read back."""
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
