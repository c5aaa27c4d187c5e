import random

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from ssmast.audio.corpus.open import open_corpus
from ssmast.audio.order import StepSampler, sample_at
from ssmast.audio.read import AudioError, read_audio
from ssmast.audio.segments import SegmentDataset, collate_segments
from ssmast.audio.transforms import WaveformAugment

RATE = 16000


@pytest.fixture
def folder(tmp_path):
    """Ten clips of noise, 0.5 to 1.4 s, each with samples of its own."""
    rng = np.random.default_rng(0)
    for n in range(10):
        audio = 0.2 * rng.standard_normal(8000 + 1600 * n)
        soundfile.write(tmp_path / f"{n}.flac", audio, RATE)
    return tmp_path


def dataset_of(folder, **settings):
    settings = {"num_samples": 4000, "sample_rate": RATE, "seed": 0, **settings}
    return SegmentDataset(open_corpus(folder), **settings)


def start_of(segment, audio):
    """Where a segment lies in its clip; -1 if nowhere."""
    windows = np.lib.stride_tricks.sliding_window_view(audio, len(segment))
    return int(np.flatnonzero((windows[:, :4] == segment[:4]).all(axis=1))[0])


def test_an_item_holds_segments_of_the_clip_that_the_order_names(folder):
    dataset = dataset_of(folder)
    for position in range(25):
        item = dataset[position]
        assert (item["epoch"], item["clip"]) == sample_at(position, size=10, seed=0)
        assert item["position"] == position
        assert item["rejected"] == []
        assert item["waveform"].shape == (2, 4000)
        assert item["waveform"].dtype == torch.float32
        audio = read_audio(dataset.corpus.source(item["clip"]))
        for segment in item["waveform"].numpy():
            start = start_of(segment, audio)
            np.testing.assert_array_equal(audio[start : start + 4000], segment)


def test_segments_lie_anywhere_and_independently(folder):
    dataset = dataset_of(folder, num_samples=400)
    starts = []
    for position in range(400):
        item = dataset[position]
        audio = read_audio(dataset.corpus.source(item["clip"]))
        slack = len(audio) - 400
        starts.append([start_of(s, audio) / slack for s in item["waveform"].numpy()])
    first, second = np.array(starts).T
    assert abs(first.mean() - 0.5) < 0.06
    assert first.std() == pytest.approx(np.sqrt(1 / 12), abs=0.03)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


def test_a_segment_depends_on_epoch_clip_and_number_only(folder):
    dataset = dataset_of(folder)
    three = dataset_of(folder, num_segments=3)
    for position in (3, 17):
        torch.testing.assert_close(
            three[position]["waveform"][:2], dataset[position]["waveform"], atol=0, rtol=0
        )
    first, again = dataset[3], dataset[3]
    assert torch.equal(first["waveform"], again["waveform"])
    later = next(dataset[p] for p in range(10, 20) if dataset[p]["clip"] == first["clip"])
    assert not torch.equal(first["waveform"], later["waveform"])
    assert not torch.equal(dataset_of(folder, seed=1)[3]["waveform"], first["waveform"])


def test_one_segment_can_be_given_twice(folder):
    item = dataset_of(folder, same_segment=True)[0]
    assert item["waveform"].shape == (2, 4000)
    assert torch.equal(item["waveform"][0], item["waveform"][1])
    assert torch.equal(item["waveform"][0], dataset_of(folder)[0]["waveform"][0])
    augmented = dataset_of(folder, same_segment=True, waveform_augment=1.0)[0]["waveform"]
    assert not torch.equal(augmented[0], augmented[1])


@pytest.mark.parametrize("augment", [0.0, 0.7])
def test_workers_change_nothing(folder, augment):
    (folder / "bad.wav").write_bytes(b"")
    batches = []
    for workers in (0, 2):
        random.seed(workers)
        np.random.seed(workers)
        loader = DataLoader(
            dataset_of(folder, waveform_augment=augment),
            batch_sampler=StepSampler(start=0, stop=5, batch_size=6),
            num_workers=workers,
            collate_fn=collate_segments,
        )
        batches.append(list(loader))
    for alone, helped in zip(*batches, strict=True):
        assert alone.rejected == helped.rejected
        for name in ("waveform", "clip", "epoch", "position"):
            assert torch.equal(getattr(alone, name), getattr(helped, name))
    assert sum(len(batch.rejected) for batch in batches[0]) >= 2


def test_a_batch_asks_a_subclass_for_its_own_items(folder):
    class Quiet(SegmentDataset):
        def __getitem__(self, position):
            item = super().__getitem__(position)
            return {**item, "waveform": item["waveform"] / 2}

    words = {"num_samples": 400, "sample_rate": RATE, "seed": 1}
    loud, quiet = SegmentDataset(open_corpus(folder), **words), Quiet(open_corpus(folder), **words)
    pairs = zip(loud.__getitems__([4, 1]), quiet.__getitems__([4, 1]), strict=True)
    assert all(torch.equal(one["waveform"] / 2, other["waveform"]) for one, other in pairs)


def test_augmentation_changes_segments_but_no_global_state(folder):
    dataset = dataset_of(folder, waveform_augment=1.0)
    plain = dataset_of(folder)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    changed = []
    for position in range(20):
        waveform = dataset[position]["waveform"]
        assert torch.isfinite(waveform).all()
        changed.append(not torch.equal(waveform, plain[position]["waveform"]))
        assert torch.equal(waveform, dataset[position]["waveform"])
    assert np.mean(changed) > 0.9
    assert random.getstate() == python_state
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state))  # noqa: B905
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_the_share_of_augmented_segments_is_the_rate(folder):
    plain, some = dataset_of(folder), dataset_of(folder, waveform_augment=0.3)
    pairs = [(plain[p]["waveform"], some[p]["waveform"]) for p in range(150)]
    changed = [not torch.equal(a[k], b[k]) for a, b in pairs for k in (0, 1)]
    assert 0.18 < np.mean(changed) < 0.38  # a few draws leave the segment as it is


def test_augmentation_is_the_same_in_any_order(folder):
    forwards, backwards = (dataset_of(folder, waveform_augment=1.0) for _ in range(2))
    one = [forwards[p]["waveform"] for p in range(12)]
    two = [backwards[p]["waveform"] for p in reversed(range(12))]
    for a, b in zip(one, reversed(two), strict=True):
        assert torch.equal(a, b)


def test_augmentation_keeps_length_and_type():
    augment = WaveformAugment()._built()
    for n in range(30):
        out = augment(samples=np.random.default_rng(n).random(500, np.float32), sample_rate=RATE)
        assert out.shape == (500,)
        assert out.dtype == np.float32


def test_a_bad_clip_is_replaced_the_same_way_every_time(folder):
    for n in range(3):
        (folder / f"bad{n}.wav").write_bytes(b"")
    dataset = dataset_of(folder)
    bad = {f"bad{n}.wav" for n in range(3)}
    stand_ins = {}
    for position in range(13 * 6):
        _, clip = sample_at(position, size=13, seed=0)
        item = dataset[position]
        assert item["clip"] >= 0
        name = dataset.corpus.name(item["clip"])
        assert name not in bad
        assert [n for n, _ in item["rejected"]] == [n for n, _ in dataset[position]["rejected"]]
        if dataset.corpus.name(clip) in bad:
            assert item["rejected"][0][0] == dataset.corpus.name(clip)
            assert "zero bytes" in item["rejected"][0][1]
            stand_ins.setdefault(dataset.corpus.name(clip), set()).add(item["clip"])
        else:
            assert item["rejected"] == []
            assert item["clip"] == clip
    # Another one each epoch: no neighbour is favoured.
    assert all(len(clips) >= 2 for clips in stand_ins.values())


def test_the_only_good_clip_is_found(folder):
    for path in folder.iterdir():
        if path.name != "4.flac":
            path.write_bytes(b"")
    dataset = dataset_of(folder)
    for position in range(10):
        assert dataset.corpus.name(dataset[position]["clip"]) == "4.flac"


def test_nothing_but_bad_clips_ends_with_the_reason(folder):
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(AudioError, match=r"32 clips in a row .* zero bytes"):
        dataset_of(folder)[0]


def test_a_silent_clip_is_rejected(folder, monkeypatch):
    soundfile.write(folder / "silent.wav", 5e-5 * np.sin(np.arange(8000)), RATE, subtype="FLOAT")
    dataset = dataset_of(folder)
    rejected = [pair for p in range(11) for pair in dataset[p]["rejected"]]
    assert [name for name, _ in rejected] == ["silent.wav"]
    assert "is silent: its peak of 5e-05 is below 0.0001" in rejected[0][1]
    monkeypatch.setattr("ssmast.audio.segments.MIN_PEAK", 1e-5)
    quiet = dataset_of(folder)
    assert not any(quiet[p]["rejected"] for p in range(11))


@pytest.mark.parametrize("level", [0.5, -1.0])
def test_a_clip_that_is_one_constant_is_rejected(folder, level):
    soundfile.write(folder / "dc.wav", np.full(8000, level), RATE, subtype="FLOAT")
    rejected = [pair for p in range(11) for pair in dataset_of(folder)[p]["rejected"]]
    assert rejected == [("dc.wav", "dc.wav holds a constant, no sound")]
    padded = dataset_of(folder, num_samples=20000)
    assert ("dc.wav", "dc.wav holds a constant, no sound") in [
        pair for p in range(11) for pair in padded[p]["rejected"]
    ]


@pytest.mark.parametrize(("peak", "said"), [(1e9, "1e+09, above 100"), (1e29, "1e+29, above 100")])
def test_a_wild_clip_is_rejected(folder, peak, said):
    soundfile.write(folder / "wild.wav", peak * np.sin(np.arange(8000)), RATE, subtype="FLOAT")
    dataset = dataset_of(folder)
    rejected = [pair for p in range(11) for pair in dataset[p]["rejected"]]
    assert [name for name, _ in rejected] == ["wild.wav"]
    assert f"has a sample of {said}" in rejected[0][1]


@pytest.mark.parametrize("length", [32000, 3000])
def test_a_segment_without_sound_moves_to_where_there_is_some(tmp_path, length):
    audio = np.zeros(length)
    audio[length // 2 : length // 2 + 160] = 0.5 * np.sin(np.arange(160))
    soundfile.write(tmp_path / "bark.wav", audio, RATE)
    dataset = dataset_of(tmp_path)
    places = []
    for position in range(40):
        item = dataset[position]
        assert item["rejected"] == []
        for segment in item["waveform"].numpy():
            assert np.abs(segment).max() > 0.1
            places.append(int(np.abs(segment).argmax()))
    assert np.std(places) > 200  # not always at the same place of the segment


def test_numbers_out_of_range_are_refused(folder):
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        dataset_of(folder, num_samples=0)
    with pytest.raises(ValueError, match=r"waveform_augment must lie in \[0, 1\], got 2"):
        dataset_of(folder, waveform_augment=2)


@pytest.mark.data
def test_the_nasty_folder_trains_on_what_is_good(shared_data):
    dataset = SegmentDataset(
        open_corpus(shared_data / "nasty" / "files"), num_samples=15200, sample_rate=RATE, seed=0
    )
    rejected = {}
    for position in range(len(dataset)):
        item = dataset[position]
        assert torch.isfinite(item["waveform"]).all()
        rejected.update(item["rejected"])
    assert len(rejected) == 10
    assert "is silent" in rejected["silence-44khz-56k-mono-1s.mp3"]
