import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from ssmast.audio import synthetic
from ssmast.audio.corpus.open import open_corpus
from ssmast.audio.mel import LogMel
from ssmast.audio.read import read_audio
from ssmast.audio.synthetic import CLASSES, make_sound, write_synthetic_corpus

RATE = 16000


def sound(label, seed=0, num_samples=32000):
    rng = np.random.default_rng(seed)
    return make_sound(label, rng=rng, num_samples=num_samples, sample_rate=RATE)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    return write_synthetic_corpus(folder, num_clips=120, seed=0, seconds=0.5)


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_it_is_a_labelled_set(written):
    corpus = open_corpus(written)
    assert len(corpus) == 120
    assert corpus.table.column_names == ["path", "label", "split"]
    assert Counter(corpus.table["label"].to_pylist()) == dict.fromkeys(CLASSES, 10)
    audio = np.stack([read_audio(corpus.source(i)) for i in range(120)])
    assert audio.shape == (120, 8000)
    level_db = 20 * np.log10(np.sqrt((audio**2).mean(axis=1)))
    assert level_db.min() > -41
    assert level_db.max() < -13
    assert np.abs(audio).max() < 1
    assert len({clip.tobytes() for clip in audio}) == 120


def test_splits_are_stratified_and_order_tells_nothing(written):
    table = open_corpus(written).table
    pairs = Counter(zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True))
    for label in CLASSES:
        assert (pairs[label, "train"], pairs[label, "valid"], pairs[label, "test"]) == (6, 2, 2)
    labels = table["label"].to_pylist()
    assert sum(a == b for a, b in pairwise(labels)) < 25
    assert labels[:12] != list(CLASSES)


def test_the_same_arguments_give_the_same_bytes(written, tmp_path):
    again = write_synthetic_corpus(tmp_path / "again", num_clips=120, seed=0, seconds=0.5)
    assert content(again) == content(written)
    other = write_synthetic_corpus(tmp_path / "other", num_clips=120, seed=1, seconds=0.5)
    assert content(other).keys() == content(written).keys()
    assert not set(content(other).values()) & set(content(written).values())


def counting(monkeypatch, at, action):
    """Sounds that were made, by number; `action` is called before one of them."""
    made, make = [], synthetic.make_sound

    def sound(*args, **keywords):
        made.append(len(made) + 1)
        if made[-1] == at:
            action()
        return make(*args, **keywords)

    monkeypatch.setattr(synthetic, "make_sound", sound)
    return made


def test_a_corpus_that_is_there_is_kept(written, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    calls = counting(monkeypatch, 0, None)
    write_synthetic_corpus(written, num_clips=120, seed=0, seconds=0.5)
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before
    assert calls == []


def test_another_corpus_or_other_files_are_not_touched(written, tmp_path):
    with pytest.raises(ValueError, match="holds something else than the synthetic corpus"):
        write_synthetic_corpus(written, num_clips=120, seed=5, seconds=0.5)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds something else"):
        write_synthetic_corpus(tmp_path, num_clips=12, seed=0, seconds=0.5)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_damaged_corpus_is_noticed(tmp_path):
    folder = write_synthetic_corpus(tmp_path / "set", num_clips=12, seed=0, seconds=0.5)
    clip = folder / "audio" / "000003.flac"
    clip.write_bytes(clip.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="is a damaged synthetic corpus; remove it"):
        write_synthetic_corpus(folder, num_clips=12, seed=0, seconds=0.5)
    clip.unlink()
    with pytest.raises(ValueError, match="is a damaged synthetic corpus"):
        write_synthetic_corpus(folder, num_clips=12, seed=0, seconds=0.5)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    made = counting(monkeypatch, 7, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_corpus(tmp_path / "set", num_clips=12, seed=0, seconds=0.5)
    assert len(made) == 7
    assert list(tmp_path.iterdir()) == []


def test_two_writers_do_not_disturb_each_other(tmp_path, monkeypatch):
    folder = tmp_path / "set"

    def write_it_too():  # another process is faster
        write_synthetic_corpus(folder, num_clips=12, seed=0, seconds=0.5)

    made = counting(monkeypatch, 5, write_it_too)
    write_synthetic_corpus(folder, num_clips=12, seed=0, seconds=0.5)
    assert len(made) == 24
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(open_corpus(folder)) == 12
    assert json.loads((folder / "synthetic.json").read_text())["num_clips"] == 12


def test_an_empty_folder_is_filled(tmp_path):
    assert write_synthetic_corpus(tmp_path / "a" / "b", num_clips=12, seed=0, seconds=0.5).is_dir()
    (tmp_path / "empty").mkdir()
    write_synthetic_corpus(tmp_path / "empty", num_clips=12, seed=0, seconds=0.5)
    assert len(open_corpus(tmp_path / "empty")) == 12


def test_impossible_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_clips must be at least 12, one for each class"):
        write_synthetic_corpus(tmp_path / "a", num_clips=11, seed=0)
    with pytest.raises(ValueError, match="clips must be 2000 samples or more"):
        write_synthetic_corpus(tmp_path / "a", num_clips=12, seed=0, seconds=0.1)
    with pytest.raises(ValueError, match=r"label must be one of bell, .*, got 'gong'"):
        sound("gong")


@pytest.mark.parametrize("label", CLASSES)
def test_every_class_makes_clips_of_any_length_and_rate(label):
    for seed in range(4):
        for num_samples, rate in ((2000, 16000), (44100, 44100), (8000, 8000)):
            rng = np.random.default_rng(seed)
            audio = make_sound(label, rng=rng, num_samples=num_samples, sample_rate=rate)
            assert audio.shape == (num_samples,)
            assert np.isfinite(audio).all()
            assert 0.005 < np.abs(audio).max() < 1


def pitch_track(audio):
    """Pitch in octaves every 10 ms, by autocorrelation."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, 1024)[::160] * np.hanning(1024)
    power = np.abs(np.fft.rfft(frames, 2048)) ** 2
    correlation = np.fft.irfft(power)[:, RATE // 900 : RATE // 90]
    return -np.log2(correlation.argmax(axis=1) + RATE // 900)


@pytest.mark.parametrize("kind", ["glide", "notes"])
@pytest.mark.parametrize(("way", "sign"), [("up", 1), ("down", -1)])
def test_ups_rise_and_downs_fall(kind, way, sign):
    function = CLASSES[f"{kind}_{way}"]
    right = 0
    for seed in range(20):
        track = pitch_track(function(np.random.default_rng(seed), 2 * RATE, RATE))
        steps = np.diff(track[:: 1 if kind == "notes" else 8])
        steps = steps[(np.abs(steps) > 0.02) & (np.abs(steps) < 0.45)]
        right += sign * np.sign(steps).sum() > 0
    assert right >= 17


def test_vibrato_swings_in_pitch_and_tremolo_in_level():
    def swing(label, seed):
        audio = CLASSES[label](np.random.default_rng(seed), 2 * RATE, RATE)
        track = pitch_track(audio)
        return np.abs(np.diff(track, n=1)).clip(max=0.1).mean()

    ratio = [swing("vibrato", seed) / (swing("tone_all", seed) + 1e-4) for seed in range(20)]
    assert np.median(ratio) > 3

    def ripple(label, seed):
        """Share of the envelope's movement that lies between 3.5 and 8.5 Hz."""
        audio = CLASSES[label](np.random.default_rng(seed), 4 * RATE, RATE)
        level = np.sqrt((audio[: len(audio) // 160 * 160].reshape(-1, 160) ** 2).mean(axis=1))
        power = np.abs(np.fft.rfft(level - level.mean())) ** 2
        hz = np.fft.rfftfreq(len(level), 0.01)
        return power[(hz > 3.5) & (hz < 8.5)].sum() / power.sum()

    assert np.median([ripple("tremolo", s) for s in range(20)]) > 1.5 * np.median(
        [ripple("tone_all", s) for s in range(20)]
    )


def test_odd_tones_lack_even_harmonics():
    def even_share(label, seed):
        audio = CLASSES[label](np.random.default_rng(seed), 2 * RATE, RATE)
        hz = RATE / (-pitch_lag(audio))
        power = np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) ** 2
        line = np.fft.rfftfreq(len(audio), 1 / RATE) / hz
        near = [power[np.abs(line - k) < 0.1].sum() for k in (1, 2, 3, 4)]
        return (near[1] + near[3]) / sum(near)

    def pitch_lag(audio):
        return -np.median(2.0 ** -pitch_track(audio))

    odd, every = (
        np.array([even_share(label, seed) for seed in range(20)])
        for label in ("tone_odd", "tone_all")
    )
    assert np.median(odd) < 0.02
    assert np.median(every) > 0.1


@pytest.mark.parametrize(
    ("one", "other"),
    [("glide_up", "glide_down"), ("notes_up", "notes_down"), ("pulses_even", "pulses_paired")],
)
def test_pairs_that_differ_in_time_have_the_same_mean_spectrum(one, other):
    mel = LogMel()
    means = []
    for first, label in ((0, one), (1000, other)):
        waveform = np.stack([sound(label, first + n, 16000) for n in range(100)])
        means.append(mel.log_mel(torch.from_numpy(waveform).float()).mean(dim=3)[:, 0])
    difference = means[0].mean(dim=0) - means[1].mean(dim=0)
    error = (means[0].var(dim=0) / 100 + means[1].var(dim=0) / 100).sqrt()
    assert (difference / error).abs().max() < 4.5


@pytest.mark.slow
def test_a_linear_probe_on_log_mel_statistics_is_half_right(tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    corpus = open_corpus(write_synthetic_corpus(tmp_path / "set", num_clips=2000, seed=0))
    mel = LogMel()
    features, level = [], []
    for i in range(len(corpus)):
        waveform = torch.from_numpy(read_audio(corpus.source(i)))[None]
        log_mel = mel.log_mel(waveform)[0, 0]
        features.append(torch.cat([log_mel.mean(dim=1), log_mel.std(dim=1)]).numpy())
        level.append([float(waveform.std().log())])
    label = np.array(corpus.table["label"].to_pylist())
    split = np.array(corpus.table["split"].to_pylist())

    def accuracy(x):
        x = np.array(x)
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        probe.fit(x[split == "train"], label[split == "train"])
        return probe.score(x[split == "test"], label[split == "test"])

    assert 0.42 < accuracy(features) < 0.65
    assert accuracy(level) < 0.13  # chance is 0.083
