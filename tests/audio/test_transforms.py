"""Users' own chains of audiomentations, listed in a file."""

import json
import pickle
import random

import numpy as np
import pytest
import soundfile
from torch.utils.data import DataLoader

from ssmast.audio import SegmentDataset, StepSampler, collate_segments, open_corpus
from ssmast.audio.transforms import WaveformAugment

RATE = 16000
TONE = (0.3 * np.sin(np.arange(4000) / 5)).astype(np.float32)
NESTED = """
- OneOf:
    transforms:
      - Gain: {min_gain_db: -6, max_gain_db: 6, p: 1.0}
      - PolarityInversion: {p: 1.0}
    weights: [0.7, 0.3]
- SomeOf:
    num_transforms: [1, 2]
    transforms:
      - AddGaussianSNR: {p: 1.0}
      - TanhDistortion: {p: 1.0}
      - Compose: {transforms: [LowPassFilter, PolarityInversion], p: 0.5}
"""


def changed(path, seed=1, waveform=TONE):
    return WaveformAugment(path)(waveform, sample_rate=RATE, seed=seed)


@pytest.mark.parametrize("name", ["chain.yaml", "chain.json"])
def test_a_file_says_which_transforms_and_with_what(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps([{"Gain": {"min_gain_db": -6, "max_gain_db": -6, "p": 1.0}}]))
    np.testing.assert_allclose(changed(path), TONE * 10 ** (-6 / 20), rtol=1e-6)


def test_draws_follow_from_the_seed_alone_in_any_process(tmp_path):
    path = tmp_path / "chain.yaml"
    path.write_text(NESTED)
    augment = WaveformAugment(path)
    outs = [augment(TONE, sample_rate=RATE, seed=seed) for seed in range(12)]
    assert len({out.tobytes() for out in outs}) == 12
    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist()
    path.unlink()  # the list was read once
    other = pickle.loads(pickle.dumps(augment))
    for seed in (7, 0):
        assert np.array_equal(other(TONE, sample_rate=RATE, seed=seed), outs[seed])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_sounds_lie_beside_the_file(tmp_path, monkeypatch):
    (tmp_path / "mine" / "noises" / "deep").mkdir(parents=True)
    for name, level in (("noises/b", 0.1), ("noises/deep/a", 0.2)):
        soundfile.write(tmp_path / "mine" / f"{name}.wav", np.full(9000, level), RATE)
    path = tmp_path / "mine" / "chain.yaml"
    noise = "{sounds_path: noises, min_snr_db: 0, max_snr_db: 0, noise_transform: PolarityInversion"
    path.write_text(f"- AddBackgroundNoise: {noise}, p: 1.0}}\n")
    monkeypatch.chdir(tmp_path / "mine" / "noises")
    added = np.abs(changed("../chain.yaml") - TONE)
    np.testing.assert_allclose(added, np.sqrt(np.mean(TONE**2)), rtol=1e-3)  # 0 dB
    path.write_text("- ApplyImpulseResponse: {ir_path: rooms}\n")
    with pytest.raises(FileNotFoundError, match=r"rooms does not exist; .*chain\.yaml names it as"):
        WaveformAugment(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- Gian", r"names 'Gian', which is no transform of audiomentations; did you mean Gain\?"),
        ("- Lambda: {transform: print}", "names 'Lambda', which is no transform"),
        ("- os.system: {command: ls}", "names 'os.system', which is no transform"),
        ("- Gain: {gain: 3}", "Gain in .* has 'gain', which is no argument of Gain; did you mean"),
        ("- Gain: {min_gain_db: {a: 1}}", "Gain in .* must have plain values, got min_gain_db="),
        ("- Gain: {min_gain_db: 6, max_gain_db: 3}", "Gain in .* cannot be made with"),
        ("- Gain: 3", "Gain in .* must have arguments"),
        ("- OneOf: {p: 0.5}", "OneOf in .* must have transforms"),
        ("- OneOf: {transform: []}", "has 'transform', .* did you mean transforms"),
        ("- {Gain: {}, Clip: {}}", "must hold a list of audiomentations transforms"),
        ("Gain: {}", "must hold a list of audiomentations transforms .* got dict"),
        ("", "must hold a list .* got NoneType"),
        ("- [", "cannot be read as plain YAML"),
        ("- !!python/object/apply:os.system [ls]", "cannot be read as plain YAML"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path, text, said):
    path = tmp_path / "chain.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        WaveformAugment(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml does not exist; wanted a YAML"):
        WaveformAugment(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"- Gain # \xe4\xff")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        WaveformAugment(tmp_path / "latin.yaml")


def test_a_transform_that_changes_the_length_or_fails_is_named(tmp_path):
    path = tmp_path / "chain.yaml"
    path.write_text(
        "- AdjustDuration: {duration_samples: 3000, p: 1.0}\n- PolarityInversion: {p: 1.0}"
    )
    with pytest.raises(ValueError, match="must give 4000 finite samples, got 3000; leave out"):
        changed(path)
    (tmp_path / "noise.wav").write_bytes(b"no sound")
    path.write_text("- AddBackgroundNoise: {sounds_path: noise.wav, p: 1.0}")
    with pytest.raises(ValueError, match=r"of .*chain\.yaml failed on 4000 samples"):
        changed(path)


def test_segments_go_through_the_file_at_the_rate_asked_for(tmp_path):
    (tmp_path / "clips").mkdir()
    for i in range(6):
        soundfile.write(tmp_path / "clips" / f"{i}.wav", np.roll(TONE, 9 * i), RATE)
    path = tmp_path / "chain.yaml"
    path.write_text("- Gain: {min_gain_db: -20, max_gain_db: -20, p: 1.0}")
    words = {"num_samples": 2000, "sample_rate": RATE, "seed": 1}
    corpus = open_corpus(tmp_path / "clips")
    plain = SegmentDataset(corpus, **words)
    some = SegmentDataset(corpus, waveform_augment=0.4, transforms=path, **words)
    ratios = [
        float(mine.norm() / own.norm())
        for position in range(100)
        for mine, own in zip(some[position]["waveform"], plain[position]["waveform"], strict=True)
    ]
    assert {round(ratio, 3) for ratio in ratios} == {0.1, 1.0}
    assert 0.3 < np.mean(np.array(ratios) < 0.5) < 0.5
    loader = DataLoader(
        some,
        batch_sampler=StepSampler(start=0, stop=3, batch_size=4),
        num_workers=1,
        multiprocessing_context="spawn",
        collate_fn=collate_segments,
    )
    for step, batch in enumerate(loader):
        for k, waveform in enumerate(batch.waveform):
            assert waveform.equal(some[4 * step + k]["waveform"])
