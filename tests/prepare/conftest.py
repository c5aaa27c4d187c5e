"""A folder of sounds that holds one of everything prepare has to deal with."""

import numpy as np
import pytest
import soundfile

RATE = 16000


def tones(seconds, *, seed, rate=RATE, level=0.3):
    """A few gliding tones with noise, so that no two seeds sound alike."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    out = 0.02 * rng.standard_normal(len(time))
    for _ in range(5):
        begin, glide, beat = rng.uniform(150, 3500), rng.uniform(-300, 300), rng.uniform(0.3, 6)
        swell = np.sin(np.pi * beat * time + rng.uniform(0, 6)) ** 2
        out += swell * np.sin(2 * np.pi * (begin + glide * time) * time)
    return (level * out / np.abs(out).max()).astype(np.float32)


def integers(audio):
    """16 bits: libsndfile rounds floats in WAV and in FLAC in different ways."""
    return np.rint(audio * 32767).astype(np.int16)


@pytest.fixture
def source(tmp_path):
    """Nine good clips of several formats and lengths, copies, silence and two broken files."""
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", integers(tones(1.3, seed=number)), RATE)
    soundfile.write(folder / "long.flac", tones(7.1, seed=10), RATE)
    soundfile.write(folder / "44k.flac", tones(2.5, seed=11, rate=44100), 44100)
    soundfile.write(folder / "deep" / "opus.ogg", tones(2.0, seed=12), RATE, subtype="OPUS",
                    format="OGG")  # fmt: skip
    soundfile.write(folder / "loud.wav", 4 * tones(1.0, seed=13, level=0.9), RATE, subtype="FLOAT")
    soundfile.write(folder / "stereo.wav", np.stack([tones(1.0, seed=14)] * 2, 1), RATE)
    soundfile.write(folder / "deep" / "copy of 0.flac", integers(tones(1.3, seed=0)), RATE)
    soundfile.write(folder / "deep" / "quieter 1.wav", 0.4 * tones(1.3, seed=1), RATE)
    soundfile.write(folder / "silence.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "dc.wav", np.full(RATE, 0.5), RATE)
    soundfile.write(folder / "short.wav", tones(0.01, seed=3), RATE)
    (folder / "text.wav").write_text("no sound at all\n" * 9)
    (folder / "nan.wav").write_bytes((folder / "loud.wav").read_bytes())
    with soundfile.SoundFile(folder / "nan.wav", "r+") as file:
        file.seek(500)
        file.write(np.full(3, np.nan, np.float32))
    return folder
