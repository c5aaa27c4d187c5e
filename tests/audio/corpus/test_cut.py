"""Long files as several clips: which, how many, and that each is that part of the file."""

import io
import math
import pickle

import numpy as np
import pytest
import soundfile

from ssmast.audio import SegmentDataset, open_corpus
from ssmast.audio.corpus.cache import cache_decoded
from ssmast.audio.corpus.cut import CutCorpus, cut_long
from ssmast.audio.read import read_audio
from tests.audio.files import names_of, write_tar

RATE, SECONDS = 4000, 65.0


@pytest.fixture(scope="module")
def sound():
    generator = np.random.default_rng(0)
    return (0.1 * generator.standard_normal(int(RATE * SECONDS))).astype(np.float32)


@pytest.fixture
def small_files(monkeypatch):
    """Half a megabyte is not written to see that less is not looked into."""
    monkeypatch.setattr("ssmast.audio.corpus.cut._LEAST_BYTES", 1)
    monkeypatch.setattr("ssmast.audio.corpus.cut._LEAST_COMPRESSED", 1)


def write(path, sound, kind="PCM_16"):
    soundfile.write(path, sound, RATE, subtype=kind)
    return path


def test_a_long_file_becomes_clips_that_are_its_parts(tmp_path, sound, small_files):
    write(tmp_path / "a.wav", sound[: 3 * RATE])
    write(tmp_path / "night.flac", sound)
    corpus = cut_long(open_corpus(tmp_path), 10)
    assert names_of(corpus)[:2] == ["a.wav", "night.flac#t=0,10"]
    assert names_of(corpus)[-1] == "night.flac#t=50,inf"  # the rest of 5 s is joined
    assert len(corpus) == 7
    whole = read_audio(tmp_path / "night.flac", sample_rate=RATE)
    parts = [read_audio(corpus.source(i), sample_rate=RATE) for i in range(1, 7)]
    assert [len(part) for part in parts] == [10 * RATE] * 5 + [15 * RATE]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert {corpus.reported(i) for i in range(1, 7)} == {"night.flac"}
    assert pickle.loads(pickle.dumps(corpus)).name(3) == corpus.name(3)


def test_short_clips_stay_the_very_corpus(tmp_path, sound, small_files):
    write(tmp_path / "a.wav", sound[: 59 * RATE])
    corpus = open_corpus(tmp_path)
    assert cut_long(corpus, 10) is corpus
    write(tmp_path / "b.wav", sound)
    assert cut_long(open_corpus(tmp_path), 0).listing_hash == open_corpus(tmp_path).listing_hash


def test_small_files_are_not_opened(tmp_path, sound, monkeypatch):
    write(tmp_path / "a.wav", sound[: 59 * RATE])
    monkeypatch.setattr("ssmast.audio.corpus.cut.stated_seconds", None)
    corpus = open_corpus(tmp_path)
    assert cut_long(corpus, 10) is corpus


def test_the_hash_tells_how_it_is_cut(tmp_path, sound, small_files):
    write(tmp_path / "a.wav", sound)
    hashes = [cut_long(open_corpus(tmp_path), length).listing_hash for length in (5, 10, 10)]
    assert hashes[1] == hashes[2] != hashes[0]


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3", "a.aiff", "pipe.flac", "joined.ogg"])
def test_every_format_is_cut(tmp_path, sound, small_files, name):
    if name == "joined.ogg":
        data = b""
        for half in np.split(sound, 2):
            buffer = io.BytesIO()
            soundfile.write(buffer, half, RATE, format="OGG")
            data += buffer.getvalue()
        (tmp_path / name).write_bytes(data)
    else:
        rate = 8000 if name == "a.mp3" else RATE
        soundfile.write(tmp_path / name, np.repeat(sound, rate // RATE), rate)
    if name == "pipe.flac":  # no length in its header
        data = bytearray((tmp_path / name).read_bytes())
        data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])
        (tmp_path / name).write_bytes(data)
    corpus = cut_long(open_corpus(tmp_path), 10)
    assert len(corpus) == 6
    whole = read_audio(tmp_path / name, sample_rate=RATE)
    part = read_audio(corpus.source(5), sample_rate=RATE)
    np.testing.assert_allclose(part, whole[50 * RATE :], atol=2e-4)


def test_a_member_of_a_tar_is_cut_and_not_read_whole(tmp_path, sound, small_files):
    file = write(tmp_path / "a.wav", sound)
    members = [("x.wav", file.read_bytes()[: 44 + 2 * RATE]), ("night.wav", file.read_bytes())]
    tar = write_tar(tmp_path / "clips.tar", members)
    corpus = cut_long(open_corpus(tar), 10)
    assert len(corpus) == 7
    assert not isinstance(corpus.source(3).source, bytes)
    whole = read_audio(file, sample_rate=RATE)
    np.testing.assert_array_equal(
        read_audio(corpus.source(3), sample_rate=RATE), whole[20 * RATE : 30 * RATE]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_copy_of_a_long_file_holds_the_same_clips(tmp_path, sound, small_files, workers):
    (tmp_path / "audio").mkdir()
    write(tmp_path / "audio" / "b.wav", sound[: 2 * RATE])
    soundfile.write(tmp_path / "audio" / "a.ogg", sound, RATE)
    corpus = cut_long(open_corpus(tmp_path / "audio"), 10)
    copy = cache_decoded(corpus, tmp_path / "cache", sample_rate=RATE, workers=workers)
    assert copy is not corpus
    assert names_of(copy) == names_of(corpus)
    assert copy.listing_hash == corpus.listing_hash
    assert copy.reported(2) == "a.ogg"
    for i in range(len(corpus)):
        ours, theirs = (read_audio(c.source(i), sample_rate=RATE) for c in (corpus, copy))
        np.testing.assert_array_equal(ours, theirs)


def test_a_mixture_is_cut_corpus_by_corpus(tmp_path, sound, small_files):
    for name, length in (("short", 3), ("long", 65)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.wav", sound[: length * RATE])
    text = f"[{{path: {tmp_path}/short, weight: 1}}, {{path: {tmp_path}/long, weight: 3}}]"
    corpus = cut_long(open_corpus(text), 10)
    assert len(corpus) == 7
    assert corpus.name(2) == "1:a.wav#t=10,20"
    assert corpus.reported(2) == "1:a.wav"


def test_what_is_broken_is_reported_once_under_the_name_of_its_file(tmp_path, sound, small_files):
    write(tmp_path / "a.wav", np.zeros_like(sound))
    write(tmp_path / "b.wav", sound)
    corpus = cut_long(open_corpus(tmp_path), 10)
    dataset = SegmentDataset(corpus, num_samples=RATE, sample_rate=RATE, seed=0)
    rejected = [pair for i in range(12) for pair in dataset[i]["rejected"]]
    assert {name for name, _ in rejected} == {"a.wav"}
    assert "a.wav#t=" in rejected[0][1]


def test_a_cut_off_file_stays_one_clip_with_its_reason(tmp_path, sound, small_files):
    data = write(tmp_path / "a.wav", sound).read_bytes()
    (tmp_path / "a.wav").write_bytes(data[: len(data) // 2])
    write(tmp_path / "b.wav", sound)
    corpus = cut_long(open_corpus(tmp_path), 10)
    assert isinstance(corpus, CutCorpus)
    assert corpus.span(0) == (0.0, math.inf)
    with pytest.raises(ValueError, match=r"a\.wav is truncated"):
        read_audio(corpus.source(0))
