"""Which sound formats decode on this machine, found by trying."""

import io

import numpy as np
import soundfile

from ssmast.audio.read import read_audio

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
