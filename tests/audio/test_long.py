"""Long files, read block by block."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssmast.audio.long import open_long
from ssmast.audio.read import AudioError, open_audio, read_audio


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


def test_a_sound_that_was_read_or_closed_holds_no_file_and_no_samples(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    for number in range(3):
        samples = 0.2 * rng.standard_normal((44100 * 7, 2)).astype(np.float32)
        soundfile.write(tmp_path / f"{number}.wav", samples, 44100)
    monkeypatch.setattr("ssmast.audio.long.LONG_SECONDS", 1.0)
    monkeypatch.setattr("ssmast.audio.long._SHORT_BYTES", 1)

    def held_open() -> int:
        return sum(link.resolve().parent == tmp_path for link in Path("/proc/self/fd").iterdir())

    sounds = [open_audio(file) for file in sorted(tmp_path.glob("*.wav"))]
    assert held_open() == 0
    for sound in sounds:
        sound[0:16000]
    assert held_open() == 3
    sounds[0][16000 : len(sounds[0])]  # to the end
    sounds[1].close()
    assert held_open() == 1
    for at in (0, 16000):
        with pytest.raises(ValueError, match="front to back"):
            sounds[1][at : at + 10]
    sounds[2].close()
    assert held_open() == 0


def test_what_a_slice_skips_is_not_kept(tmp_path, monkeypatch):
    samples = 0.2 * np.random.default_rng(4).standard_normal(16000 * 30).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", samples, 16000, subtype="FLOAT")
    monkeypatch.setattr("ssmast.audio.long.LONG_SECONDS", 1.0)
    monkeypatch.setattr("ssmast.audio.long._SHORT_BYTES", 1)
    sound = open_audio(tmp_path / "long.wav")
    np.testing.assert_array_equal(sound[1000:2000], samples[1000:2000])
    np.testing.assert_array_equal(sound[400_000:401_000], samples[400_000:401_000])
    assert len(sound._held) <= 1 << 17  # two blocks
    np.testing.assert_array_equal(sound[400_500:], samples[400_500:])


def test_bytes_are_asked_for_again_when_they_are_read(tmp_path, monkeypatch):
    samples = 0.2 * np.random.default_rng(3).standard_normal((16000 * 4,)).astype(np.float32)
    soundfile.write(tmp_path / "long.flac", samples, 16000)
    content = (tmp_path / "long.flac").read_bytes()
    whole = read_audio(content)
    monkeypatch.setattr("ssmast.audio.long.LONG_SECONDS", 1.0)
    monkeypatch.setattr("ssmast.audio.long._SHORT_BYTES", 1)
    asked = []

    def again() -> bytes:
        asked.append(1)
        return content

    sound = open_audio(content, reopen=again)
    assert not asked
    np.testing.assert_array_equal(sound[: len(sound)], whole)
    assert asked == [1]
