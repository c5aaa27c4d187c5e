"""Joined files, tags before the sound, and headers whose lengths are wrong."""

import io
import struct

import numpy as np
import pytest
import soundfile

from ssmast.audio import AudioError, open_audio, read_audio, read_segments, streams
from ssmast.audio.read import Excerpt
from tests.audio.test_read import crop, encoded, headerless_vbr_mp3
from tests.prepare.conftest import tones

RATE = 16000
FIRST, SECOND = tones(2.0, seed=1), tones(3.0, seed=2)
KINDS = {
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", None),
    "flac": ("FLAC", None),
    "wav": ("WAV", None),
    "aiff": ("AIFF", None),
    "au": ("AU", None),
}


def tag(size):
    """An ID3v2.3 tag of so many zeros."""
    return b"ID3\x03\x00\x00" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(size)


def both(tmp_path, data):
    path = tmp_path / "clip.bin"
    path.write_bytes(data)
    return data, path


@pytest.fixture(autouse=True)
def nothing_was_said_before():
    streams._SAID.clear()
    streams._pieces_of_file.cache_clear()


@pytest.mark.parametrize("between", [b"", tag(700)])
@pytest.mark.parametrize("kind", KINDS)
def test_all_streams_of_a_joined_file_are_read(tmp_path, kind, between):
    if between and kind in ("wav", "aiff", "au"):
        between = b""
    one, two = (encoded(audio, RATE, *KINDS[kind]) for audio in (FIRST, SECOND))
    expected = np.concatenate([read_audio(one), read_audio(two), read_audio(one)])
    for source in both(tmp_path, one + between + two + between + one):
        read = read_audio(source)
        assert len(read) == len(expected)
        np.testing.assert_allclose(read, expected, atol=2e-3 if kind == "mp3" else 1e-6)
        cut = read_segments(source, sample_rate=RATE, num_samples=4000, positions=[0.2, 0.99])
        np.testing.assert_array_equal(cut[1], crop(read, 4000, 0.99))
        part = read_audio(Excerpt(source, 2.5, 4.5))
        np.testing.assert_array_equal(part, read[40000:72000])


def test_streams_of_equal_length_rate_or_channels_are_read(tmp_path):
    same = encoded(FIRST, RATE, "FLAC")
    for source in both(tmp_path, same + same):
        np.testing.assert_array_equal(read_audio(source), np.tile(read_audio(same), 2))
    fast = encoded(tones(1.0, seed=3, rate=48000), 48000, "OGG", "VORBIS")
    wide = encoded(np.stack([SECOND] * 2, 1), RATE, "OGG", "VORBIS")
    for source in both(tmp_path, encoded(FIRST, RATE, "OGG", "VORBIS") + fast + wide):
        read = read_audio(source)
        assert len(read) == 6 * RATE
        np.testing.assert_allclose(read[2 * RATE : 3 * RATE], read_audio(fast), atol=1e-3)


def test_mp3_files_without_a_tag_are_joined_as_they_are(tmp_path):
    bare, _ = headerless_vbr_mp3()
    tagged = encoded(tones(2.0, seed=4, rate=44100), 44100, "MP3")
    alone = sum(len(read_audio(data, sample_rate=44100)) for data in (bare, tagged))
    for data in (bare + tagged, tagged + bare):
        for source in both(tmp_path, data):
            assert len(read_audio(source, sample_rate=44100)) == pytest.approx(alone, abs=3 * 1152)


def test_short_mp3_files_are_joined(tmp_path):
    one = encoded(tones(0.7, seed=6)[:, None], RATE, "MP3")
    assert len(one) < 4096  # the next tag lies where the first is looked for
    alone = read_audio(one)
    for source in both(tmp_path, one + one + one):
        np.testing.assert_allclose(read_audio(source), np.tile(alone, 3), atol=2e-3)


def test_a_long_joined_file_is_read_from_front_to_back(tmp_path):
    one = encoded(tones(40.0, seed=5), RATE, "FLAC")
    path = tmp_path / "long.flac"
    path.write_bytes(one + one)
    whole, sound = read_audio(path), open_audio(path)
    assert len(sound) == len(whole) == 80 * RATE
    np.testing.assert_array_equal(sound[39 * RATE : 41 * RATE], whole[39 * RATE : 41 * RATE])


@pytest.mark.parametrize("kind", ["flac", "wav", "ogg", "aiff"])
@pytest.mark.parametrize("before", [tag(4096), tag(40) + tag(300)])
def test_what_lies_behind_a_tag_is_sought_like_any_file(tmp_path, kind, before):
    data = encoded(FIRST, RATE, *KINDS[kind])
    whole = read_audio(data)
    for source in both(tmp_path, before + data):
        np.testing.assert_array_equal(read_audio(source), whole)
        cut = read_segments(source, sample_rate=RATE, num_samples=4000, positions=[0.5])
        np.testing.assert_array_equal(cut[0], crop(whole, 4000, 0.5))


def test_what_cannot_be_sought_is_read_from_its_start(tmp_path, monkeypatch):
    data = encoded(FIRST, RATE, "FLAC")
    whole, seek = read_audio(data), soundfile.SoundFile.seek

    def refuse(self, frames, whence=0):
        if frames:
            raise soundfile.LibsndfileError(39)
        return seek(self, frames, whence)

    monkeypatch.setattr(soundfile.SoundFile, "seek", refuse)
    for source in both(tmp_path, data):
        for check in (True, False):
            cut = read_segments(
                source, sample_rate=RATE, num_samples=4000, positions=[0.5], check=check
            )
            np.testing.assert_array_equal(cut[0], crop(whole, 4000, 0.5))
    with pytest.raises(AudioError, match="truncated"):
        read_segments(data[: len(data) // 2], sample_rate=RATE, num_samples=400, positions=[0.5])


def wrong(kind, samples):
    """A file whose header says that it has so many samples."""
    data = bytearray(encoded(FIRST, RATE, *KINDS.get(kind, (kind.upper(), "PCM_16"))))
    if kind in ("wav", "rf64", "w64"):
        if kind == "w64":
            struct.pack_into("<Q", data, data.index(b"data") + 16, 2 * samples + 24)
        elif data[:4] == b"RF64":
            struct.pack_into("<Q", data, data.index(b"ds64") + 16, 2 * samples)
        else:
            struct.pack_into("<I", data, data.index(b"data") + 4, 2 * samples)
    elif kind == "aiff":
        struct.pack_into(">I", data, data.index(b"SSND") + 4, 2 * samples + 8)
    elif kind == "au":
        struct.pack_into(">I" if data[:4] == b".snd" else "<I", data, 8, 2 * samples)
    elif kind == "flac":
        struct.pack_into(">I", data, 22, samples)
    else:
        struct.pack_into(">I", data, data.index(b"Xing") + 8, samples // 576)
    return bytes(data)


@pytest.mark.parametrize("kind", ["wav", "rf64", "w64", "aiff", "au", "flac", "mp3"])
def test_more_than_the_header_promises_is_read_and_said(tmp_path, kind, caplog):
    whole = read_audio(encoded(FIRST, RATE, *KINDS.get(kind, (kind.upper(), "PCM_16"))))
    for samples in (8000,) if kind == "mp3" else (500, 30000):
        for source in both(tmp_path, wrong(kind, samples)):
            caplog.clear()
            streams._SAID.clear()
            read = read_audio(source)
            assert len(read) == pytest.approx(len(whole), abs=3 * 1152 if kind == "mp3" else 0)
            if kind != "mp3":  # without its tag, an mp3 has the delay of its encoder
                np.testing.assert_array_equal(read, whole)
            cut = read_segments(source, sample_rate=RATE, num_samples=4000, positions=[0.9])
            np.testing.assert_array_equal(cut[0], crop(read, 4000, 0.9))
            assert "has a wrong header: it promises" in caplog.text
            assert caplog.text.count("wrong header") == 1


@pytest.mark.parametrize("kind", ["wav", "aiff", "au", "flac", "mp3"])
def test_less_than_the_header_promises_is_refused_with_the_cause(tmp_path, kind):
    for source in both(tmp_path, wrong(kind, 90000)):
        with pytest.raises(AudioError, match="truncated"):
            read_audio(source)


def test_a_wav_whose_length_was_never_written_is_read(tmp_path):
    for length in (0, 0xFFFFFFFF):
        data = bytearray(encoded(FIRST, RATE, "WAV"))
        struct.pack_into("<I", data, data.index(b"data") + 4, length)
        for source in both(tmp_path, bytes(data)):
            np.testing.assert_array_equal(
                read_audio(source), read_audio(encoded(FIRST, RATE, "WAV"))
            )


@pytest.mark.parametrize(
    "behind",
    [
        b"LIST\x0c\x00\x00\x00INFOISFT\x00\x00\x00\x00",
        b"TAG" + bytes(range(125)),
        tag(5000)[:3] + bytes(range(256)) * 20,
        bytes(9000),
        b"bext" + struct.pack("<I", 9000) + bytes(range(250)) * 36,
    ],
)
def test_chunks_tags_and_zeros_behind_the_samples_are_no_sound(tmp_path, behind, caplog):
    data = encoded(FIRST, RATE, "WAV")
    for source in both(tmp_path, data + behind):
        np.testing.assert_array_equal(read_audio(source), read_audio(data))
    assert caplog.text == ""


def test_whole_files_are_left_to_the_decoder(tmp_path):
    for kind in KINDS.values():
        for source in both(tmp_path, encoded(FIRST, RATE, *kind)):
            assert streams.streams_of(source, "a") == [source]
            assert streams.streams_of(io.BytesIO(b"x" * 99).getvalue(), "a") == [b"x" * 99]


def _encoded(kind, subtype=None):
    buffer = io.BytesIO()
    noise = 0.2 * np.random.default_rng(0).standard_normal(64000)
    soundfile.write(buffer, noise, 16000, format=kind, subtype=subtype)
    return bytearray(buffer.getvalue())


@pytest.mark.parametrize(
    ("kind", "name", "skip", "form"),
    [
        ("WAV", b"data", 4, "<I"), ("AIFF", b"SSND", 4, ">I"), ("AU", b".snd", 8, ">I"),
        ("W64", b"data", 16, "<Q"), ("RF64", b"ds64", 16, "<Q"), ("CAF", b"data", 4, ">Q"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stated", [0, 64000, 127000, "unknown"])
def test_a_length_that_is_too_small_or_unknown_loses_no_sample(kind, name, skip, form, stated):
    data = _encoded(kind, "PCM_16")
    whole = read_audio(bytes(data))
    unknown = (1 << 8 * struct.calcsize(form)) - 1
    at = data.find(name) + skip
    struct.pack_into(form, data, at, unknown if stated == "unknown" else stated)
    np.testing.assert_array_equal(read_audio(bytes(data)), whole)


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "W64", "RF64", "CAF"])
def test_a_length_that_is_too_large_is_refused(kind):
    data = _encoded(kind, "PCM_16")
    with pytest.raises(AudioError, match="truncated"):
        read_audio(bytes(data[: len(data) // 2]))


def test_tags_behind_samples_of_no_stated_length_are_no_samples():
    data = _encoded("WAV", "PCM_16")
    whole = read_audio(bytes(data))
    struct.pack_into("<I", data, data.find(b"data") + 4, 0)
    data += (
        b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0"
    )
    np.testing.assert_array_equal(read_audio(bytes(data)), whole)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("end", [0, -1, 20000])
def test_an_ogg_whose_last_page_ends_before_the_one_before_is_read_whole(subtype, end):
    data = _encoded("OGG", subtype)
    whole = read_audio(bytes(data))
    at = data.rfind(b"OggS")
    struct.pack_into("<q", data, at + 6, end)
    struct.pack_into("<I", data, at + 22, 0)
    checksum = 0  # of the page, bit by bit: RFC 3533, section 6
    for byte in data[at:]:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
    struct.pack_into("<I", data, at + 22, checksum)
    found = read_audio(bytes(data))
    assert 0 <= len(found) - len(whole) < 1000  # the padding of the last packet
    np.testing.assert_allclose(found[: len(whole)], whole, atol=1e-5)


def test_an_mp3_whose_tag_counts_no_frame_is_read_whole():
    data = _encoded("MP3")
    whole = read_audio(bytes(data))
    struct.pack_into(">I", data, data.find(b"Xing") + 8, 0)
    assert len(whole) <= len(read_audio(bytes(data))) <= len(whole) + 4 * 1152


@pytest.mark.parametrize("more", [1, 32000])
def test_a_flac_that_promises_more_than_it_has_is_refused(more):
    data = _encoded("FLAC", "PCM_16")
    struct.pack_into(">I", data, 22, 64000 + more)
    with pytest.raises(AudioError, match=r"promises 64001|promises 96000"):
        read_audio(bytes(data))
