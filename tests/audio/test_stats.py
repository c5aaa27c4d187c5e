import json
import logging

import numpy as np
import pytest
import soundfile
import torch

from ssmast.audio.corpus.open import open_corpus
from ssmast.audio.mel import LogMel
from ssmast.audio.read import read_audio
from ssmast.audio.stats import (
    energy_outside,
    known_mean_std,
    measure_mean_std,
    warn_of_lost_energy,
)
from ssmast.prepare import prepare_corpus


def write_clips(folder, num=6, num_samples=4000):
    rng = np.random.default_rng(0)
    for n in range(num):
        audio = 0.05 * (n + 1) * rng.standard_normal(num_samples)
        soundfile.write(folder / f"{n}.wav", audio, 16000, subtype="FLOAT")
    return open_corpus(folder)


def test_mean_and_std_are_those_of_all_cells(tmp_path):
    corpus = write_clips(tmp_path)
    mel = LogMel(mean=3.0, std=2.0)  # which do not count
    mean, std = measure_mean_std(corpus, mel, num_samples=4000, seed=0)
    waveform = torch.stack([torch.from_numpy(read_audio(corpus.source(i))) for i in range(6)])
    cells = mel.log_mel(waveform).double()
    assert mean == pytest.approx(float(cells.mean()), abs=1e-6)
    assert std == pytest.approx(float(cells.std(correction=0)), abs=1e-6)


def test_a_sample_of_clips_is_enough_and_is_the_same_each_time(tmp_path):
    corpus = write_clips(tmp_path, num=40, num_samples=8000)
    mel = LogMel()
    some = measure_mean_std(corpus, mel, num_samples=2000, seed=0, max_clips=10)
    assert some == measure_mean_std(corpus, mel, num_samples=2000, seed=0, max_clips=10)
    assert some != measure_mean_std(corpus, mel, num_samples=2000, seed=1, max_clips=10)
    whole = measure_mean_std(corpus, mel, num_samples=2000, seed=0)
    np.testing.assert_allclose(some, whole, atol=0.8)


def test_bad_silent_and_wild_clips_are_left_out(tmp_path, caplog):
    expected = measure_mean_std(write_clips(tmp_path), LogMel(), num_samples=4000, seed=0)
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "silent.wav", np.zeros(4000), 16000)
    soundfile.write(tmp_path / "wild.wav", np.full(4000, 1e29), 16000, subtype="FLOAT")
    with caplog.at_level(logging.WARNING):
        found = measure_mean_std(open_corpus(tmp_path), LogMel(), num_samples=4000, seed=0)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert "3 of 9 clips not used" in caplog.text


def test_a_corpus_without_a_usable_clip_says_so(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 1 clips could be used .*zero bytes"):
        measure_mean_std(open_corpus(tmp_path), LogMel(), num_samples=400, seed=0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared corpus."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for n, slope in enumerate((0.2, 0.5, 0.9)):
        noise = rng.standard_normal(8000)
        soundfile.write(folder / f"{n}.wav", slope * noise / np.abs(noise).max(), 16000)
    out = folder.parent / "prepared"
    prepare_corpus(open_corpus(folder), out, workers=1)
    return out


def test_a_prepared_corpus_knows_its_mean_and_std_for_the_front_end_it_was_measured_with(prepared):
    corpus, mel = open_corpus(prepared), LogMel(mean=3.0, std=2.0)  # which do not count
    known = known_mean_std(corpus, mel)
    assert known == pytest.approx(measure_mean_std(corpus, mel, num_samples=8000, seed=0), abs=1e-6)


@pytest.mark.parametrize(
    "other",
    [{"sample_rate": 22050}, {"n_fft": 512}, {"hop_length": 80}, {"num_mels": 64}, {"f_min": 50.0},
     {"f_max": 7000.0}],
)  # fmt: skip
def test_what_was_measured_with_another_front_end_is_not_known(prepared, other):
    assert known_mean_std(open_corpus(prepared), LogMel(**other)) is None


def test_of_a_part_a_mixture_and_other_folders_nothing_is_known(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(prepared)  # a mixture has the working directory as its root
    corpus = open_corpus(prepared)
    mixture = open_corpus(f"[{{path: {prepared}, weight: 1}}, {{path: {prepared}, weight: 2}}]")
    for other in (corpus.take(np.arange(2)), mixture, write_clips(tmp_path)):
        assert known_mean_std(other, LogMel()) is None


def test_a_corpus_of_an_older_version_that_names_no_front_end_is_measured(prepared, tmp_path):
    facts = json.loads((prepared / "corpus.json").read_text())
    corpus = open_corpus(prepared)
    for changed in ({"log_mel": None}, {"std": 0.0}):
        corpus.facts = facts | changed
        assert known_mean_std(corpus, LogMel()) is None
    corpus.facts = facts
    assert known_mean_std(corpus, LogMel()) == (facts["mean"], facts["std"])


def _two_tones(path, low, high, *, share, rate=48000, seconds=2.0):
    """Two tones, of which the high one has `share` of the energy."""
    time = np.arange(round(rate * seconds)) / rate
    wave = np.sqrt(share) * np.sin(2 * np.pi * high * time)
    wave += np.sqrt(1 - share) * np.sin(2 * np.pi * low * time)
    soundfile.write(path, 0.3 * wave, rate)
    return 0.3 * wave


def test_the_energy_that_a_front_end_throws_away_is_that_of_the_tones(tmp_path):
    wave = _two_tones(tmp_path / "a.wav", 1000, 12000, share=0.62)
    above, below = energy_outside(wave, 48000, LogMel())
    assert above == pytest.approx(0.62, abs=1e-6)
    assert below == pytest.approx(0, abs=1e-6)
    assert energy_outside(np.ones(100), 16000, LogMel()) is None


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_lost_energy_is_told_with_its_share_and_limit(tmp_path, caplog, name):
    _two_tones(tmp_path / name, 1000, 12000, share=0.62)
    warn_of_lost_energy(open_corpus(tmp_path), LogMel())
    assert "62% of the energy lies above front_end.f_max=7800 Hz" in caplog.text
    caplog.clear()
    warn_of_lost_energy(open_corpus(tmp_path), LogMel(sample_rate=48000, f_max=20000))
    assert caplog.text == ""


def test_lost_energy_below_is_told_and_prepare_says_it_too(tmp_path, caplog):
    (tmp_path / "audio").mkdir()
    _two_tones(tmp_path / "audio" / "a.wav", 1000, 20, share=0.75, rate=16000)
    prepare_corpus(open_corpus(tmp_path / "audio"), tmp_path / "out", workers=1)
    assert "75% of the energy lies below front_end.f_min=60 Hz" in caplog.text


def test_what_is_lost_between_channels_is_not_called_energy_below(tmp_path, caplog):
    wave = _two_tones(tmp_path / "a.wav", 1000, 20, share=0.75, rate=16000)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -0.999 * wave], axis=1), 16000)
    warn_of_lost_energy(open_corpus(tmp_path), LogMel())
    assert caplog.text == ""
    warn_of_lost_energy(open_corpus(tmp_path).with_channel("left"), LogMel())
    assert "75% of the energy lies below" in caplog.text
    caplog.clear()
    mixture = f"[{{path: {tmp_path}, weight: 1}}, {{path: {tmp_path}, weight: 2}}]"
    warn_of_lost_energy(open_corpus(mixture).with_channel("left"), LogMel())
    assert caplog.text.count("75% of the energy lies below") == 2


def test_a_constant_is_called_so(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(16000, 0.25), 16000)
    with pytest.raises(ValueError, match=r"a\.wav is silent or constant"):
        measure_mean_std(open_corpus(tmp_path), LogMel(), num_samples=8000, seed=0)


def test_damaged_facts_or_the_index_of_another_corpus_are_refused(prepared):
    file, index = prepared / "corpus.json", prepared / "manifest.index"
    facts, data = file.read_text(), bytearray(index.read_bytes())
    file.write_text(json.dumps(json.loads(facts) | {"mean": float("nan")}))
    with pytest.raises(ValueError, match="must be finite; run prepare again"):
        known_mean_std(open_corpus(prepared), LogMel())
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"corpus.json is damaged"):
        open_corpus(prepared)
    file.write_text(facts)
    data[len(data) // 2] ^= 16
    index.write_bytes(data)
    with pytest.raises(ValueError, match=r"does not belong to its corpus.json; copy both again"):
        open_corpus(prepared)
