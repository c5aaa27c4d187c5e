import numpy as np
import pytest
import soundfile

from ssmast.audio import (
    AudioError,
    SegmentDataset,
    open_corpus,
    read_audio,
    read_segments,
)
from ssmast.audio.corpus.cache import cache_decoded
from ssmast.audio.read import Excerpt, excerpt_name, split_excerpt


def write(path, *, seconds=2.0, rate=16000, **options):
    rng = np.random.default_rng(3)
    soundfile.write(path, rng.uniform(-0.5, 0.5, round(seconds * rate)), rate, **options)
    return path


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0.5, 3.25), (12.0000625, 13.1)])
def test_names_of_excerpts_are_read_back(start, stop):
    name = excerpt_name("a b/c#1.wav", start, stop, clip="P01_1")
    path, excerpt = split_excerpt(name)
    assert path == "a b/c#1.wav"
    assert excerpt == pytest.approx((start, stop), abs=1e-6)


@pytest.mark.parametrize(
    "name", ["a.wav", "a#t=1.wav", "a.wav#t=1,", "a.wav#t=-1,2", "a#t=1,2.wav"]
)
def test_other_names_are_files(name):
    assert split_excerpt(name) == (name, None)


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_a_span_is_that_part_of_the_whole(tmp_path, kind, rate):
    path = write(tmp_path / f"a.{kind}", rate=rate)
    whole = read_audio(path, sample_rate=16000)
    part = read_audio(Excerpt(path, 0.5, 1.25), sample_rate=16000)
    assert part.shape == (12000,)
    np.testing.assert_allclose(part, whole[8000:20000], atol=1e-5)


@pytest.mark.parametrize("kind", ["wav", "mp3"])
def test_segments_of_a_span_stay_inside_it(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}", rate=22050)
    excerpt = Excerpt(path, 0.25, 1.0)
    whole = read_audio(excerpt, sample_rate=16000)
    positions = [0.0, 0.4, 0.999]
    found = read_segments(excerpt, sample_rate=16000, num_samples=4000, positions=positions)
    slack = len(whole) - 4000
    for segment, position in zip(found, positions, strict=True):
        start = int(position * (slack + 1))
        np.testing.assert_allclose(segment, whole[start : start + 4000], atol=1e-5)
    # Longer than the excerpt: zeros around it, nothing of the file before and after.
    (padded,) = read_segments(excerpt, sample_rate=16000, num_samples=20000, positions=[0.5])
    start = int(0.5 * (20000 - len(whole) + 1))
    np.testing.assert_allclose(padded[start : start + len(whole)], whole, atol=1e-5)
    assert not padded[:start].any()
    assert not padded[start + len(whole) :].any()


def test_a_span_beyond_the_file_is_cut_or_refused(tmp_path):
    path = write(tmp_path / "a.wav")
    assert len(read_audio(Excerpt(path, 1.5, 9.0))) == 8000
    with pytest.raises(AudioError, match=r"it spans 3 to 4 s of a file of 2\.00 s"):
        read_audio(Excerpt(path, 3.0, 4.0))


def test_a_corpus_reads_spans_in_a_table(tmp_path):
    write(tmp_path / "long.wav", seconds=3.0)
    write(tmp_path / "odd.wav#t=0,1", format="WAV")  # a file may really be called so
    rows = ["long.wav#t=0,1", "long.wav#t=1.5,2&id=x", "odd.wav#t=0,1", "long.wav"]
    (tmp_path / "metadata.csv").write_text("path\n" + "\n".join(f'"{row}"' for row in rows) + "\n")
    corpus = open_corpus(tmp_path)
    assert [corpus.name(i) for i in range(4)] == rows
    assert [len(read_audio(corpus.source(i))) for i in range(4)] == [16000, 8000, 32000, 48000]
    picked = corpus.select(path=rows[1])
    assert picked.source(0) == Excerpt(tmp_path / "long.wav", 1.5, 2.0)
    assert sorted(path.name for path in corpus.files()) == ["long.wav", "odd.wav#t=0,1"]
    dataset = SegmentDataset(picked, num_samples=4000, sample_rate=16000, seed=0)
    assert dataset[0]["waveform"].shape == (2, 4000)


def test_a_decoded_copy_holds_the_spans(tmp_path):
    write(tmp_path / "long.ogg", seconds=3.0)
    (tmp_path / "metadata.csv").write_text('path\n"long.ogg#t=0.5,1"\n"long.ogg#t=5,6"\n')
    corpus = open_corpus(tmp_path)
    copy = cache_decoded(corpus, tmp_path / "cache", sample_rate=16000)
    assert isinstance(copy.source(0), bytes)
    np.testing.assert_array_equal(read_audio(copy.source(0)), read_audio(corpus.source(0)))
    with pytest.raises(AudioError):
        read_audio(copy.source(1))


def test_a_span_must_not_lead_out_of_the_folder(tmp_path):
    (tmp_path / "set").mkdir()
    write(tmp_path / "a.wav")
    (tmp_path / "set/metadata.csv").write_text('path\n"../a.wav#t=0,1"\n')
    with pytest.raises(ValueError, match="leads out of its folder"):
        open_corpus(tmp_path / "set")
