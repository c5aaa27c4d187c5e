import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssmast.audio.corpus.cache import cache_decoded
from ssmast.audio.corpus.open import open_corpus
from ssmast.audio.read import AudioError, read_audio
from ssmast.audio.segments import SegmentDataset


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n, kind in enumerate(["ogg", "mp3", "flac", "ogg"]):
        audio = (0.2 * rng.standard_normal(16000 + 4000 * n)).clip(-1, 1)
        soundfile.write(folder / f"{n}.{kind}", audio, 16000)
    (folder / "bad.ogg").write_bytes(b"")
    (folder / "metadata.csv").write_text(
        "path,label\n3.ogg,d\n0.ogg,a\nbad.ogg,x\n1.mp3,b\n2.flac,c\n"
    )
    return open_corpus(folder)


def test_the_copy_holds_the_same_clips_in_the_same_order(corpus, tmp_path):
    copy = cache_decoded(corpus, tmp_path / "cache", sample_rate=16000)
    assert len(copy) == len(corpus)
    assert copy.listing_hash == corpus.listing_hash
    assert copy.table is corpus.table
    for i in range(len(corpus)):
        assert copy.name(i) == corpus.name(i)
        if corpus.name(i) != "bad.ogg":
            np.testing.assert_array_equal(read_audio(copy.source(i)), read_audio(corpus.source(i)))
    assert all(path.parent == tmp_path / "cache" for path in copy.files())


def test_a_damaged_copy_is_made_again(corpus, tmp_path, caplog):
    copy = cache_decoded(corpus, tmp_path / "cache", sample_rate=16000)
    (tar,) = {path for path in copy.files() if isinstance(path, Path)}
    whole = tar.read_bytes()
    assert b"PEAK" not in whole  # the chunk in which libsndfile says when it wrote the file
    for broken in (b"", whole[: len(whole) // 2], bytes(len(whole))):
        tar.write_bytes(broken)
        cache_decoded(corpus, tmp_path / "cache", sample_rate=16000)
        assert tar.read_bytes() == whole
        assert "decoding again" in caplog.text
        caplog.clear()


def test_segments_of_the_copy_are_those_of_the_files(corpus, tmp_path):
    copy = cache_decoded(corpus, tmp_path / "cache", sample_rate=16000)
    one, two = (
        SegmentDataset(each, num_samples=4000, sample_rate=16000, seed=0) for each in (corpus, copy)
    )
    for position in range(10):
        expected, found = one[position], two[position]
        assert expected["clip"] == found["clip"]
        np.testing.assert_array_equal(expected["waveform"], found["waveform"])
        assert [name for name, _ in expected["rejected"]] == [n for n, _ in found["rejected"]]


def test_a_clip_that_cannot_be_decoded_is_still_refused(corpus, tmp_path):
    copy = cache_decoded(corpus, tmp_path / "cache", sample_rate=16000)
    with pytest.raises(AudioError, match="zero bytes"):
        read_audio(copy.source(2), name=copy.name(2))


def test_a_copy_is_made_once_and_anew_when_a_file_changes(corpus, tmp_path):
    folder = tmp_path / "cache"
    (first,) = cache_decoded(corpus, folder, sample_rate=16000).files()
    written = first.stat().st_mtime_ns
    (again,) = cache_decoded(corpus, folder, sample_rate=16000).files()
    assert again == first
    assert again.stat().st_mtime_ns == written
    (other_rate,) = cache_decoded(corpus, folder, sample_rate=8000).files()
    assert other_rate != first
    soundfile.write(corpus.root / "0.ogg", np.full(500, 0.1), 16000)
    changed = cache_decoded(open_corpus(corpus.root), folder, sample_rate=16000)
    assert len(read_audio(changed.source(1))) == 500
    assert not list(folder.glob("*.partial"))


def test_a_copy_that_would_be_too_big_is_not_made(corpus, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        same = cache_decoded(corpus, tmp_path / "cache", sample_rate=16000, max_bytes=100_000)
    assert same is corpus
    assert "reading the files themselves" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


def test_formats_that_seek_are_left_as_they_are(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.full(500, 0.1), 16000)
    corpus = open_corpus(tmp_path)
    assert cache_decoded(corpus, tmp_path / "cache", sample_rate=16000) is corpus
    assert not (tmp_path / "cache").exists()


def test_the_channel_of_a_corpus_reaches_its_clips_and_is_part_of_the_key(tmp_path):
    sides = np.stack([np.full(800, 0.25), np.full(800, -0.5)], axis=1)
    sides[::2] = 0
    folder = tmp_path / "sounds"
    folder.mkdir()
    for kind in ("wav", "ogg"):
        soundfile.write(folder / f"a.{kind}", sides, 16000)
    corpus = open_corpus(folder)
    for channel, level in (("mean", -0.125), ("left", 0.25), ("1", -0.5), ("loudest", -0.5)):
        picked = corpus.take(np.arange(2)).with_channel(channel)
        assert picked.listing_hash == corpus.listing_hash
        assert (picked.files_hash == corpus.files_hash) == (channel == "mean")
        copy = cache_decoded(picked, tmp_path / "cache", sample_rate=16000)
        for each in (picked, copy, picked.take(np.array([1, 0])).take(np.array([1, 0]))):
            assert read_audio(each.source(1))[401] == pytest.approx(level, abs=1e-3)
    with pytest.raises(ValueError, match="channel must be"):
        corpus.with_channel("both")
