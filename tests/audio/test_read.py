import io
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr

from ssmast.audio.read import (
    AudioError,
    Excerpt,
    read_audio,
    read_segments,
    resample,
    segment_at,
    segment_start,
)

RATE = 16000


def crop(audio, num_samples, position):
    return segment_at(audio, segment_start(len(audio), num_samples, position), num_samples)


def noise(num_samples, *, seed=0, channels=1):
    rng = np.random.default_rng(seed)
    shape = (num_samples, channels) if channels > 1 else num_samples
    return (0.2 * rng.standard_normal(shape)).astype(np.float32)


def encoded(audio, rate, kind, subtype=None, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, format=kind, subtype=subtype, **options)
    return buffer.getvalue()


def headerless_vbr_mp3():
    """Loud, then quiet: the first frame promises far fewer frames than there are."""
    audio = np.concatenate([noise(44100 * 2), np.zeros(44100 * 6, np.float32)])
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", 44100, 1, "MPEG_LAYER_III", format="MP3", bitrate_mode="VARIABLE",
        compression_level=0.3,
    ) as file:  # fmt: skip
        file.write(audio)
    data = buffer.getvalue()
    first = data.index(b"Xing")
    # The frame with the Xing tag is dropped; the next one starts with its own sync word.
    return data[data.index(b"\xff\xfb", first) :], len(audio)


@pytest.mark.parametrize(
    ("kind", "subtype", "rate", "error"),
    [
        ("WAV", "FLOAT", RATE, 0),
        ("WAV", "PCM_16", RATE, 1e-4),
        ("WAV", "PCM_U8", RATE, 1e-2),
        ("FLAC", "PCM_16", RATE, 1e-4),
        ("AIFF", "PCM_24", RATE, 1e-6),
        ("W64", "DOUBLE", RATE, 1e-7),
    ],
)
def test_samples_come_back_as_written(tmp_path, kind, subtype, rate, error):
    audio = noise(5000)
    path = tmp_path / "clip.bin"
    path.write_bytes(encoded(audio, rate, kind, subtype))
    for source in (path, str(path), path.read_bytes()):
        read = read_audio(source, sample_rate=rate)
        assert read.dtype == np.float32
        assert read.shape == (5000,)
        assert np.abs(read - audio).max() <= error


def test_channels_are_averaged():
    audio = noise(1000, channels=5)
    read = read_audio(encoded(audio, RATE, "WAV", "FLOAT"))
    np.testing.assert_allclose(read, audio.astype(np.float64).mean(axis=1), atol=1e-7)


@pytest.mark.parametrize(
    ("channel", "index"),
    [("first", 0), ("left", 0), ("right", 1), ("2", 2), ("loudest", 1), ("0", 0)],
)
@pytest.mark.parametrize("kind", [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")])
def test_one_channel_is_taken(tmp_path, channel, index, kind):
    audio = noise(8000, channels=3) * np.float32([1, 3, 0.1]) / 2 + np.float32([0, 0, 0.4])
    data = encoded(audio, RATE, *kind)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        expected = np.ascontiguousarray(file.read(dtype="float32")[:, index])
    path = tmp_path / "clip.bin"
    path.write_bytes(data)
    for source in (data, path):
        read = read_audio(Excerpt(source, channel=channel), sample_rate=RATE)
        np.testing.assert_array_equal(read, expected)
        part = read_audio(Excerpt(source, 0.1, 0.2, channel), sample_rate=RATE)
        np.testing.assert_array_equal(part, expected[1600:3200])
        cut = read_segments(
            Excerpt(source, channel=channel), sample_rate=RATE, num_samples=999, positions=[0.5]
        )
        np.testing.assert_array_equal(cut[0], crop(expected, 999, 0.5))


def test_a_channel_that_is_not_there_is_an_error():
    one, two = (encoded(noise(99, channels=c), RATE, "WAV") for c in (1, 2))
    for channel in ("first", "left", "right", "loudest", "0", "mean"):
        np.testing.assert_array_equal(read_audio(Excerpt(one, channel=channel)), read_audio(one))
    with pytest.raises(AudioError, match="has no channel 2: it has 2, counted from 0"):
        read_audio(Excerpt(two, channel="2"))
    with pytest.raises(ValueError, match=r"channel must be mean, first, .* from 0 on, got 'rear'"):
        Excerpt(two, channel="rear")


def opposed(seconds, *, residue=0.0, channels=2):
    audio = noise(int(seconds * RATE))
    sides = [audio, residue * noise(len(audio), seed=9) - audio]
    return np.stack(sides * (channels // 2), axis=1)


@pytest.mark.parametrize("seconds", [1, 70])
@pytest.mark.parametrize("residue", [0.0, 0.01])
def test_channels_that_cancel_in_their_mean_are_refused_with_the_reason(seconds, residue):
    data = encoded(opposed(seconds, residue=residue), RATE, "WAV", "PCM_24")
    sentence = "loses its sound in the mean of its 2 channels, which cancel .* channel=left, right"
    with pytest.raises(AudioError, match=sentence):
        read_audio(data)
    with pytest.raises(AudioError, match=sentence):
        read_segments(data, sample_rate=RATE, num_samples=999, positions=[0.5])
    with pytest.raises(AudioError, match=sentence):
        read_audio(Excerpt(data, 0.1, 0.5))
    assert np.abs(read_audio(Excerpt(data, channel="left"))).max() > 0.1


def test_four_channels_that_cancel_are_refused_and_unrelated_or_dead_ones_are_not():
    with pytest.raises(AudioError, match="mean of its 4 channels"):
        read_audio(encoded(opposed(1, channels=4), RATE, "WAV", "FLOAT"))
    for audio in (noise(8000, channels=16), np.pad(noise(8000)[:, None], ((0, 0), (3, 12)))):
        read = read_audio(encoded(audio, RATE, "WAV", "FLOAT"))
        np.testing.assert_allclose(read, audio.mean(axis=1), atol=1e-7)


def test_channels_that_cancel_for_a_moment_only_are_read():
    audio = noise(4 * RATE, channels=2)
    audio[RATE : 2 * RATE, 1] = -audio[RATE : 2 * RATE, 0]
    data = encoded(audio, RATE, "WAV", "FLOAT")
    cut = read_segments(data, sample_rate=RATE, num_samples=RATE // 2, positions=[1.25 / 3.5])
    assert not cut.any()
    np.testing.assert_allclose(read_audio(data), audio.mean(axis=1), atol=1e-7)


UNDIVIDED = [("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("AIFF", "FLOAT"), ("CAF", "FLOAT")]


@pytest.mark.parametrize("kind", UNDIVIDED)
@pytest.mark.parametrize("seconds", [2, 70])
def test_16_bit_samples_in_a_file_of_floats_are_divided(tmp_path, kind, seconds):
    samples = (noise(seconds * RATE) * 32768 / 8).astype(np.int16)
    samples[: RATE // 2] = 0  # silence first: it does not tell the scale
    path = tmp_path / "undivided.bin"
    path.write_bytes(encoded(samples.astype(np.float64), RATE, *kind))
    expected = samples / np.float32(32768)
    for source in (path, path.read_bytes()):
        np.testing.assert_array_equal(read_audio(source, sample_rate=RATE), expected)
        cut = read_segments(source, sample_rate=RATE, num_samples=4000, positions=[0, 0.5])
        np.testing.assert_array_equal(cut[0], expected[:4000])
        np.testing.assert_array_equal(cut[1], crop(expected, 4000, 0.5))
    path.write_bytes(encoded(np.stack([samples, 0 * samples], 1).astype(np.float64), RATE, *kind))
    np.testing.assert_array_equal(read_audio(path, sample_rate=RATE), expected / 2)


def test_samples_of_a_file_that_may_have_two_scales_are_refused():
    full = noise(4000) * 2
    with pytest.raises(AudioError, match="24 bits, or quiet ones of 32"):
        read_audio(encoded(np.rint(full * 2**20), RATE, "WAV", "DOUBLE"))
    with pytest.raises(AudioError, match="above 100"):
        read_audio(encoded(full * 20000, RATE, "WAV", "FLOAT"))
    low = (full * 8000).astype(np.int16)
    with pytest.raises(AudioError, match="says 32 bits, and no sample needs more than 16"):
        read_audio(encoded(low.astype(np.int32), RATE, "WAV", "PCM_32"))
    high = read_audio(encoded(low.astype(np.int32) << 16, RATE, "WAV", "PCM_32"))
    np.testing.assert_array_equal(high, low / np.float32(32768))
    assert not read_audio(encoded(np.zeros(99, np.int32), RATE, "WAV", "PCM_32")).any()


@pytest.mark.parametrize("rate", [1234, 8000, 22050, 41092, 44100, 48000, 192000])
def test_any_rate_is_resampled_like_soxr(rate):
    audio = noise(rate // 2)
    read = read_audio(encoded(audio, rate, "WAV", "FLOAT"))
    expected = soxr.resample(audio, rate, RATE, quality="HQ")
    np.testing.assert_allclose(read, expected, atol=1e-7)


def test_samples_are_resampled_as_a_file_with_them_is():
    audio = noise(44100)
    read = read_audio(encoded(audio, 44100, "WAV", "FLOAT"))
    for kind in (np.float32, np.float64):
        out = resample(audio.astype(kind), 44100, RATE)
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out, read)
    assert resample(audio.astype(np.float64), RATE, RATE).dtype == np.float32
    with pytest.raises(ValueError, match="rate must be at least 1, got 0"):
        resample(audio, 0, RATE)
    with pytest.raises(AudioError, match="the waveform holds 1 samples that are NaN"):
        resample(np.array([0.1, np.nan]), 44100, RATE)


def test_a_tone_keeps_its_pitch_and_level_when_resampled():
    time = np.arange(44100) / 44100
    tone = (0.5 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)
    read = read_audio(encoded(tone, 44100, "WAV", "FLOAT"))
    spectrum = np.abs(np.fft.rfft(read * np.hanning(len(read))))
    assert spectrum.argmax() == pytest.approx(1000 * len(read) / RATE, abs=1)
    assert np.sqrt((read[2000:-2000] ** 2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=1e-3)


def test_an_mp3_without_a_header_is_read_to_its_end():
    data, num_samples = headerless_vbr_mp3()
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert file.frames < 0.6 * num_samples  # the trap is there
    assert abs(len(read_audio(data, sample_rate=44100)) - num_samples) < 4 * 1152
    tagged = data + b"TAG" + bytes(125)
    assert len(read_audio(tagged, sample_rate=44100)) == len(read_audio(data, sample_rate=44100))


def test_a_cut_mp3_without_a_header_gives_what_is_there():
    data, _ = headerless_vbr_mp3()
    whole = read_audio(data, sample_rate=44100)
    half = read_audio(data[: len(data) // 2 + 77], sample_rate=44100)
    assert 0.1 * len(whole) < len(half) < len(whole)
    np.testing.assert_array_equal(half, whole[: len(half)])


def test_an_ordinary_mp3_decodes_whole(tmp_path):
    path = tmp_path / "clip#1.mp3"
    path.write_bytes(encoded(noise(44100), 44100, "MP3"))
    assert abs(len(read_audio(path, sample_rate=44100)) - 44100) < 3 * 1152


GSM = pytest.param("WAV", "GSM610", 8000, id="gsm")
FORMATS = [
    pytest.param("WAV", "PCM_16", 16000, id="wav"),
    pytest.param("FLAC", "PCM_16", 16000, id="flac"),
    pytest.param("FLAC", "PCM_16", 44100, id="flac44"),
    pytest.param("AIFF", "PCM_24", 48000, id="aiff48"),
    pytest.param("WAV", "FLOAT", 44101, id="wav44101"),
    pytest.param("WAV", "FLOAT", 1234, id="wav1234"),
    pytest.param("WAV", "FLOAT", 192000, id="wav192k"),
    pytest.param("OGG", "VORBIS", 16000, id="vorbis"),
    pytest.param("OGG", "OPUS", 48000, id="opus48"),
    pytest.param("OGG", "OPUS", 16000, id="opus16"),
    pytest.param("MP3", "MPEG_LAYER_III", 44100, id="mp3"),
    pytest.param("WAV", "MS_ADPCM", 16000, id="adpcm"),
    GSM,
]


@pytest.mark.parametrize(("kind", "subtype", "rate"), FORMATS)
def test_segments_equal_slices_of_the_whole(kind, subtype, rate):
    data = encoded(noise(int(rate * 3.7)), rate, kind, subtype)
    whole = read_audio(data)
    positions = [0.0, 0.123, 0.5, 0.77, 0.999999]
    segments = read_segments(data, sample_rate=RATE, num_samples=8000, positions=positions)
    slack = len(whole) - 8000
    assert segments.dtype == np.float32
    for segment, position in zip(segments, positions, strict=True):
        start = int(position * (slack + 1))
        error = np.abs(segment - whole[start : start + 8000]).max()
        assert error <= (0 if rate == RATE else 1e-5)
        np.testing.assert_array_equal(crop(whole, 8000, position), whole[start : start + 8000])


def test_a_segment_does_not_depend_on_the_other_segments():
    data = encoded(noise(44100 * 4), 44100, "FLAC")
    one = read_segments(data, sample_rate=RATE, num_samples=4000, positions=[0.6])
    two = read_segments(data, sample_rate=RATE, num_samples=4000, positions=[0.1, 0.6])
    np.testing.assert_array_equal(one[0], two[1])


def test_only_the_segment_is_decoded_where_seeking_is_exact(tmp_path, monkeypatch):
    path = tmp_path / "long.flac"
    path.write_bytes(encoded(noise(RATE * 60), RATE, "FLAC"))
    read = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda file, frames, **how: read.append(frames) or original(file, frames, **how),
    )
    where = {"sample_rate": RATE, "num_samples": RATE, "positions": [0.2, 0.8]}
    read_segments(path, **where, check=False)
    assert sum(read) == 2 * RATE
    read_segments(path, **where)  # and one sample, to see that the end of the file is there
    assert sum(read) == 4 * RATE + 1


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_short_clip_is_padded_and_the_position_says_where(rate):
    data = encoded(noise(rate // 10), rate, "WAV", "FLOAT")
    whole = read_audio(data)
    first, middle, last = read_segments(
        data, sample_rate=RATE, num_samples=5000, positions=[0.0, 0.5, 0.99999]
    )
    pad = 5000 - len(whole)
    np.testing.assert_array_equal(first[: len(whole)], whole)
    assert not first[len(whole) :].any()
    np.testing.assert_array_equal(last[pad:], whole)
    assert not last[:pad].any()
    np.testing.assert_array_equal(middle, crop(whole, 5000, 0.5))
    assert np.count_nonzero(middle) == np.count_nonzero(whole)


def test_positions_reach_every_start_equally():
    audio = np.arange(10, dtype=np.float32)
    starts = [int(crop(audio, 8, p)[0]) for p in np.linspace(0, 0.9999, 300)]
    assert np.bincount(starts).tolist() == [100, 100, 100]


@pytest.mark.parametrize("position", [-0.1, 1.0, float("nan")])
def test_a_position_outside_the_unit_interval_is_refused(position):
    data = encoded(noise(100), RATE, "WAV")
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 1\)"):
        read_segments(data, sample_rate=RATE, num_samples=10, positions=[position])


def broken_files():
    flac = encoded(noise(RATE), RATE, "FLAC")
    wav = encoded(noise(100), RATE, "WAV")
    silent = encoded(np.zeros(0, np.float32), RATE, "WAV")
    holes = noise(1000)
    holes[500] = np.nan
    wild = noise(1000)
    wild[7] = np.inf
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    return {
        "empty.wav": (b"", "is empty: it holds zero bytes"),
        "text.wav": (b"hello\nthis is no sound\n" * 9, "is a text file, not audio"),
        "page.mp3": (b"<!DOCTYPE html><html>not found</html>", "is a text file, not audio"),
        "pointer.flac": (pointer, "is a Git LFS pointer.*git lfs pull"),
        "cut.flac": (flac[: len(flac) // 2], "truncated"),
        "stub.wav": (wav[:20], "damaged, truncated"),
        "header.wav": (silent, "zero frames"),
        "nan.wav": (encoded(holes, RATE, "WAV", "FLOAT"), "1 samples that are NaN or infinite"),
        "inf.wav": (encoded(wild, RATE, "WAV", "FLOAT"), "NaN or infinite"),
        "noise.wav": (os.urandom(64) + b"\x00\x01" * 999, "no audio that soundfile can decode"),
        "song.m4a": (
            b"\x00\x00\x00\x20ftypM4A " + bytes(99),
            "MPEG-4.*install torchcodec.*to FLAC",
        ),
        "film.webm": (b"\x1a\x45\xdf\xa3" + bytes(99), "WebM.*install torchcodec"),
        "raw.aac": (b"\xff\xf1\x50\x80" + bytes(99), "AAC.*install torchcodec"),
        "old.wma": (b"\x30\x26\xb2\x75" + bytes(99), "Windows Media.*install torchcodec"),
        "odd.wma": (bytes(64), "no audio that soundfile can decode"),
        "list.mp4": (b"#EXTM3U\nfile:///etc/hostname\n", "is a text file, not audio"),
        "short.wav": (encoded(noise(1), 192000, "WAV"), "too short"),
    }


@pytest.mark.parametrize("name", broken_files())
def test_a_bad_file_raises_one_sentence_that_names_it(tmp_path, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)  # as where it is not installed
    data, reason = broken_files()[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(AudioError, match=reason) as caught:
        read_audio(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(AudioError, match=reason):
        read_segments(path, sample_rate=RATE, num_samples=RATE, positions=[0.5])
    with pytest.raises(AudioError, match="member 7"):
        read_audio(data, name="member 7")


def test_what_is_no_file_raises(tmp_path):
    with pytest.raises(AudioError, match=r"gone\.wav cannot be opened: No such file"):
        read_audio(tmp_path / "gone.wav")
    with pytest.raises(AudioError, match="is a folder"):
        read_audio(tmp_path)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="is a pipe or device"):  # and does not wait for a writer
        read_audio(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="cannot be opened"):
        read_audio(tmp_path / "a\0b.wav")


def test_a_file_without_permission_says_so(tmp_path, monkeypatch):
    path = tmp_path / "secret.wav"
    path.write_bytes(encoded(noise(100), RATE, "WAV"))

    def refuse(*_args, **_how):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(soundfile.SoundFile, "__init__", refuse)  # root may read everything
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AudioError, match=r"secret\.wav cannot be opened: Permission denied"):
        read_audio(path)


def test_a_name_that_is_not_utf8_is_read_and_spelled_out(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"\xff\xfe.wav")
    with open(path, "wb") as file:
        file.write(encoded(noise(100), RATE, "WAV"))
    assert len(read_audio(os.fsdecode(path))) == 100
    with open(path, "wb") as file:
        file.write(b"")
    with pytest.raises(AudioError) as caught:
        read_audio(os.fsdecode(path))
    assert r"\xff\xfe.wav" in str(caught.value)
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"), ("W64", "PCM_16"),
     ("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("AU", "PCM_16"), ("CAF", "PCM_16")],
)  # fmt: skip
def test_a_cut_file_is_refused_whatever_its_container(tmp_path, kind, subtype):
    file = tmp_path / "x.wav"
    soundfile.write(file, np.full(16000, 0.1), 16000, format=kind, subtype=subtype)
    assert len(read_audio(file)) == 16000
    whole = file.read_bytes()
    for source in (whole[:-9000], whole[: len(whole) // 2]):
        with pytest.raises(AudioError, match="truncated"):
            read_audio(source, name="x")
        with pytest.raises(AudioError, match="truncated"):
            read_segments(source, sample_rate=16000, num_samples=100, positions=[0.1], name="x")


def test_a_long_header_hides_no_cut_and_a_stream_is_taken_as_it_is():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(16000, 0.1), 16000, format="WAV")
    plain = buffer.getvalue()
    # What digital audio workstations and taggers write: scenes, markers, a picture of the cover.
    tagged = plain[:12] + b"JUNK" + struct.pack("<I", 5001) + bytes(5002) + plain[12:]
    assert len(read_audio(tagged)) == 16000
    with pytest.raises(AudioError, match="promises 32000 bytes of samples, 12000 are there"):
        read_audio(tagged[:-20000])
    for unknown in (0xFFFFFFFF, 0x7FFFFFFF):
        streamed = plain[:40] + struct.pack("<I", unknown) + plain[44:-20000]
        assert len(read_audio(streamed)) == 6000


def test_a_flac_of_unknown_length_is_read_to_its_end():
    audio = noise(RATE)
    data = bytearray(encoded(audio, RATE, "FLAC"))
    data[21] &= 0xF0  # the 36 bits of STREAMINFO that state the number of samples
    data[22:26] = bytes(4)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert not 0 < file.frames < 2 * RATE  # the trap is there
    assert np.abs(read_audio(bytes(data)) - audio).max() < 1e-4
    segment = read_segments(bytes(data), sample_rate=RATE, num_samples=100, positions=[0.5])
    assert segment.any()


def test_a_flac_that_promises_too_much_is_truncated():
    data = bytearray(encoded(noise(RATE), RATE, "FLAC"))
    data[25] ^= 0x40
    with pytest.raises(AudioError, match="truncated"):
        read_audio(bytes(data))


def test_numbers_out_of_range_are_refused():
    data = encoded(noise(100), RATE, "WAV")
    with pytest.raises(ValueError, match="sample_rate must be at least 1, got 0"):
        read_audio(data, sample_rate=0)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        read_segments(data, sample_rate=RATE, num_samples=0, positions=[0.5])


NASTY = {  # file: (rate, frames), or None where it must be refused
    "test-44100Hz-2ch-32bit-float-be.wav": (44100, 441),
    "test-44100Hz-le-1ch-4bytes-early-eof.wav": None,
    "test-44100Hz-le-1ch-4bytes-early-eof-no-data.wav": None,
    "test-44100Hz-le-1ch-4bytes-incomplete-chunk.wav": None,
    "test-44100Hz-le-1ch-4bytes-rf64.wav": (44100, 4410),
    "test-48000Hz-2ch-64bit-float-le-wavex.wav": (48000, 480),
    "test-8000Hz-le-1ch-10S-20bit-extra.wav": (1234, 10),
    "test-8000Hz-le-1ch-1byte-ulaw.wav": (8000, 9),
    "test-8000Hz-le-3ch-5S-24bit-inconsistent.wav": (8000, 5),
    "test-8000Hz-le-5ch-9S-5bit.wav": (8000, 9),
    "test-8000Hz-le-2ch-1byteu.wav": (8000, 800),
    "test1_empty.wav": None,
    "empty_file.mp3": None,
    "incomplete.mp3": None,
    "invalid_sample_rate.aiff": None,
    "106-invalid-streaminfo.flac": None,
    "gsm_6_10.wav": (44100, 4480),
    "8khz_5s.opus": (8000, 40000),
    "silence-44khz-56k-mono-1s.mp3": (44100, 46080),
    "1-17808-B.ogg": (44100, 319296),
    "4-164661-B.ogg": (44100, 160704),
    "1-100032-A.ogg": (44100, 220544),
    "two_1_4.flac": (41092, 118729),
    "ta2-1.aif": (48000, 21891),
    "pizz_a3_fa.wav": (44100, 86322),
    "HHClosed#1.flac": (44100, 31490),
    "6_yweweler_3.wav": (8000, 1148),
    "bamboo_c#5_1.mp3": (44100, 118739),
    "1041.wav": (16000, 16000),
    "1001_DFA_ANG_XX.wav": None,
}


@pytest.mark.data
@pytest.mark.parametrize("name", NASTY)
def test_files_from_the_wild_decode_whole_or_raise(shared_data, name):
    path = shared_data / "nasty" / "files" / name
    if NASTY[name] is None:
        with pytest.raises(AudioError, match=name):
            read_audio(path)
        return
    rate, frames = NASTY[name]
    for source in (path, path.read_bytes()):
        audio = read_audio(source, sample_rate=rate)
        assert audio.shape == (frames,)
        assert np.isfinite(audio).all()
    assert len(read_audio(path)) == pytest.approx(frames * RATE / rate, abs=1)
    segments = read_segments(path, sample_rate=RATE, num_samples=15200, positions=[0.1, 0.9])
    assert segments.shape == (2, 15200)
    whole = read_audio(path)
    np.testing.assert_allclose(segments[1], crop(whole, 15200, 0.9), atol=1e-5)


@pytest.mark.data
def test_every_nasty_file_is_expected(shared_data):
    assert sorted(NASTY) == sorted(os.listdir(shared_data / "nasty" / "files"))


@pytest.mark.parametrize("kind", ["OPUS", "VORBIS", "MPEG_LAYER_III"])
def test_reading_block_by_block_disturbs_no_decoder(kind, monkeypatch):
    container = "MP3" if kind.startswith("MPEG") else "OGG"
    data = encoded(noise(48000 * 2), 48000, container, kind)
    at_once, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    monkeypatch.setattr("ssmast.audio.decode._BLOCK_FRAMES", 1152)
    np.testing.assert_array_equal(read_audio(data, sample_rate=48000), at_once)


def test_a_seek_before_the_start_prints_no_traceback():
    # An AIFF whose header sends libsndfile there; in a process of its own, as the callback's
    # traceback goes to the real stderr.
    code = (
        "from ssmast.audio import AudioError, read_audio\n"
        "head = bytes.fromhex('464f524d000042c041494646434f4d4d0000001200010000')\n"
        "head += bytes.fromhex('1f400010fa0000fa00000000000053534e')\n"
        "try:\n    read_audio(head.ljust(4096, bytes(1)))\n"
        "except AudioError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "no audio" in done.stdout
    assert "Traceback" not in done.stderr
