"""Long files, read block by block."""

import numpy as np
import pytest
import soundfile

from ssmast.audio.long import open_long
from ssmast.audio.read import AudioError, read_audio


def test_a_long_file_is_read_block_by_block_to_the_same_samples(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    samples = 0.2 * rng.standard_normal((44100 * 9, 2)).astype(np.float32)
    wav, mp3 = tmp_path / "long.wav", tmp_path / "long.mp3"
    soundfile.write(wav, samples, 44100, subtype="FLOAT")
    soundfile.write(mp3, samples, 44100)
    whole = {file: (read_audio(file), read_audio(file, sample_rate=44100)) for file in (wav, mp3)}
    monkeypatch.setattr("ssmast.audio.long.LONG_SECONDS", 1.0)
    monkeypatch.setattr("ssmast.audio.long._SHORT_BYTES", 1)
    monkeypatch.setattr("ssmast.audio.read.decode_whole", None)  # not this way
    for file, (resampled, own) in whole.items():
        np.testing.assert_allclose(read_audio(file), resampled, atol=2e-6)
        np.testing.assert_array_equal(read_audio(file, sample_rate=44100), own)
    samples[-1000] = np.nan
    soundfile.write(wav, samples, 44100, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN or infinite"):
        read_audio(wav)


def long_files(tmp_path, monkeypatch):
    """A wav, a flac, an mp3 and one without a length in its header, all of them long."""
    rng = np.random.default_rng(1)
    samples = 0.2 * rng.standard_normal((44100 * 7 + 31, 2)).astype(np.float32)
    for kind in ("wav", "flac", "mp3", "ogg"):
        soundfile.write(tmp_path / f"long.{kind}", samples, 44100)
    tagged = (tmp_path / "long.mp3").read_bytes()
    for tag in (b"Xing", b"Info"):
        tagged = tagged.replace(tag, b"none")
    (tmp_path / "bare.mp3").write_bytes(tagged + b"TAG".ljust(128, b" "))
    files = sorted(tmp_path.glob("*.*"))
    whole = {file: read_audio(file) for file in files}
    monkeypatch.setattr("ssmast.audio.long.LONG_SECONDS", 1.0)
    monkeypatch.setattr("ssmast.audio.long._SHORT_BYTES", 1)
    return whole


def test_slices_of_a_long_sound_are_those_of_the_whole(tmp_path, monkeypatch):
    for file, whole in long_files(tmp_path, monkeypatch).items():
        for source in (file, file.read_bytes()):
            sound = open_long(source, sample_rate=16000)
            assert len(sound) == len(whole), file.name
            for start in range(0, len(whole), 9000):
                piece = sound[max(0, start - 700) : start + 9700]
                np.testing.assert_allclose(
                    piece, whole[max(0, start - 700) : start + 9700], atol=2e-6
                )
            with pytest.raises(ValueError, match="wanted samples from 5 on, those before"):
                sound[5:10]


def test_short_files_and_broken_ones_are_not_opened_as_long(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "short.wav", np.zeros(44100 * 8), 44100)
    assert open_long(tmp_path / "short.wav", sample_rate=16000) is None
    assert open_long(tmp_path / "missing.wav", sample_rate=16000) is None  # `read_audio` says so
    long_files(tmp_path, monkeypatch)
    for name in ("long.wav", "long.flac", "long.ogg"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(AudioError, match="truncated"):
            open_long(tmp_path / name, sample_rate=16000)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    long_files(tmp_path, monkeypatch)
    sound = open_long(tmp_path / "long.wav", sample_rate=16000)  # opened by its first slice
    soundfile.write(tmp_path / "long.wav", np.zeros((44100 * 3, 2)), 44100)
    with pytest.raises(AudioError, match=r"holds 48000 samples where 112011 were found before"):
        sound[50000:60000]
