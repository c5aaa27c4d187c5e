"""Mixed training items, and the changes that leave a label in place."""

import numpy as np
import pytest
import soundfile
import torch
from scipy.stats import beta, kstest

from ssmast.audio import MixedSegments, SegmentDataset, collate_mixed, open_corpus
from ssmast.audio.augment import Augmentations, Mask, Noise, TimeShift, roll_time
from tests.training.processes import write_tones


@pytest.fixture(scope="module")
def segments(tmp_path_factory) -> SegmentDataset:
    corpus = open_corpus(write_tones(tmp_path_factory.mktemp("tones")))
    return SegmentDataset(corpus, num_samples=800, sample_rate=16000, seed=1, num_segments=1)


def test_without_mixing_an_item_is_its_segment(segments):
    mixed = MixedSegments(segments, rate=0.0)
    for position in range(20):
        item = mixed[position]
        assert torch.equal(item["waveform"], segments[position]["waveform"][0])
        assert item["partner_weight"] == 0.0
        assert item["partner"] == item["clip"]


def test_a_mixed_item_is_the_weighted_sum_of_two_segments_without_their_means(segments):
    mixed = MixedSegments(segments, rate=1.0)
    partners = set()
    for position in range(20):
        item = mixed[position]
        own = segments[position]["waveform"][0]
        epoch = position // len(segments)
        rows = [segments.read(e, item["partner"])[0][0] for e in (epoch, epoch + 1, epoch - 1)]
        found = [
            torch.allclose(
                item["waveform"],
                (1 - item["partner_weight"]) * (own - own.mean())
                + item["partner_weight"] * torch.from_numpy(row - row.mean()),
                atol=1e-6,
            )
            for row in rows
        ]
        assert any(found)
        partners.add(item["partner"])
    assert len(partners) > 5


def test_shares_follow_their_distribution(segments):
    mixed = MixedSegments(segments, rate=1.0, alpha=10.0)
    shares = [mixed._weight(draw) for draw in np.random.default_rng(0).uniform(size=2000)]
    assert kstest(shares, beta(10, 10).cdf).pvalue > 0.01


def test_how_often_is_the_rate_and_the_same_whoever_asks(segments):
    mixed = MixedSegments(segments, rate=0.3)
    items = [mixed[i] for i in range(300)]
    assert 0.2 < np.mean([item["partner_weight"] > 0 for item in items]) < 0.4
    again = MixedSegments(segments, rate=0.3)
    for position in (250, 3, 17):
        assert torch.equal(again[position]["waveform"], items[position]["waveform"])
    batch = collate_mixed(items[:4])
    assert batch.waveform.shape == (4, 800)
    assert batch.partner_weight.tolist() == pytest.approx(
        [item["partner_weight"] for item in items[:4]]
    )


def test_what_cannot_be_mixed_is_refused(segments):
    for words in ({"rate": 1.5}, {"rate": 0.5, "alpha": 0.0}):
        with pytest.raises(ValueError, match="must"):
            MixedSegments(segments, **words)
    with pytest.raises(ValueError, match="1 segment a clip"):
        MixedSegments(
            SegmentDataset(segments.corpus, num_samples=800, sample_rate=16000, seed=1), rate=0.5
        )


def test_rolling_is_torchs_clip_by_clip():
    x = torch.randn(5, 1, 4, 9)
    frames = torch.tensor([0, 1, -2, 9, -4])
    expected = torch.stack([torch.roll(x[i], int(frames[i]), dims=2) for i in range(5)])
    assert torch.equal(roll_time(x, frames), expected)


def augmentations(time_shift=0, noise_std=0.0, freq_mask=0, time_mask=0):
    return Augmentations(
        TimeShift(time_shift), Noise(noise_std), Mask("freq", freq_mask), Mask("time", time_mask)
    )


def test_nothing_asked_for_changes_nothing():
    x = torch.randn(3, 1, 8, 16)
    assert torch.equal(augmentations()(x, draws=torch.rand(3, 7)), x)
    with pytest.raises(ValueError, match="draws must be"):
        augmentations()(x, draws=torch.rand(3, 6))
    with pytest.raises(ValueError, match="time_shift must not be negative"):
        augmentations(time_shift=-1)


def test_masks_noise_and_shift_are_as_wide_as_asked():
    augment, draws = augmentations(freq_mask=3, time_mask=5), torch.rand(400, 7)
    x = augment(torch.ones(400, 1, 8, 16), draws=draws)
    rows, columns = (x == 0).all(dim=3).sum(dim=2), (x == 0).all(dim=2).sum(dim=2)
    assert set(rows.flatten().tolist()) == {0, 1, 2, 3}
    assert set(columns.flatten().tolist()) == {0, 1, 2, 3, 4, 5}
    noise = augmentations(noise_std=0.5)(torch.zeros(400, 1, 8, 16), draws=draws)
    assert noise.std(dim=(1, 2, 3)).sub(0.5 * draws[:, 1]).abs().max() < 0.15
    step = augmentations(time_shift=2)
    shifted = step(torch.arange(16.0).expand(400, 1, 1, 16), draws=draws)
    places = shifted[:, 0, 0, 0].long() % 16
    assert set(places.tolist()) == {14, 15, 0, 1, 2}


def test_a_clip_is_changed_alike_in_any_batch():
    augment = augmentations(time_shift=3, noise_std=0.2, freq_mask=2, time_mask=4)
    x, draws = torch.randn(6, 1, 8, 16), torch.rand(6, 7)
    whole = augment(x, draws=draws)
    assert torch.equal(augment(x[2:3], draws=draws[2:3])[0], whole[2])


def test_clips_shorter_than_a_segment_keep_their_length(tmp_path):
    for i, size in enumerate((300, 5000, 700)):
        wave = 0.3 * np.sin(np.arange(size) / 5).astype(np.float32)
        soundfile.write(tmp_path / f"{i}.wav", wave, 16000, subtype="FLOAT")
    words = {"num_samples": 800, "sample_rate": 16000, "seed": 1, "num_segments": 1}
    segments = SegmentDataset(open_corpus(tmp_path), pad=False, **words)
    items = [MixedSegments(segments, rate=0.0)[position] for position in range(3)]
    assert {item["clip"]: len(item["waveform"]) for item in items} == {0: 300, 1: 800, 2: 700}
    batch = collate_mixed(items)
    for item, row, size in zip(items, batch.waveform, batch.samples.tolist(), strict=True):
        assert torch.equal(row[:size], item["waveform"])
        assert size == len(item["waveform"])
        assert not row[size:].any()
    for position in range(9):  # as long as the longer of the two
        item = MixedSegments(segments, rate=1.0)[position]
        sizes = [{0: 300, 1: 800, 2: 700}[item[key]] for key in ("clip", "partner")]
        assert len(item["waveform"]) == max(sizes)


def test_a_shorter_clip_is_changed_as_it_would_be_alone():
    augment = augmentations(time_shift=3, noise_std=0.2, freq_mask=2, time_mask=4)
    x, draws, lengths = torch.randn(40, 1, 8, 16), torch.rand(40, 7), torch.arange(40) % 13 + 4
    whole = augment(x, draws=draws, lengths=lengths)
    for i, size in enumerate(lengths.tolist()):
        alone = augment(x[i : i + 1, ..., :size], draws=draws[i : i + 1])
        assert torch.equal(whole[i : i + 1, ..., :size], alone)
