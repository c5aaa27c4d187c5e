import json

import librosa
import numpy as np
import pytest
import torch
import torchaudio

from ssmast.audio.mel import _FRAMES_AT_ONCE, EPS, LogMel, ProductMel, mel_filterbank


def librosa_log_mel(waveform, mel):
    power = librosa.feature.melspectrogram(
        y=waveform.double().numpy(),
        sr=mel.sample_rate,
        n_fft=mel.n_fft,
        hop_length=mel.hop_length,
        n_mels=mel.num_mels,
        fmin=mel.f_min,
        fmax=mel.f_max,
        power=2,
        htk=False,
        norm="slaney",
        center=True,
        pad_mode="constant",
        dtype=np.float64,
    )
    return np.log(power + EPS)


def signals():
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(16000) / 16000
    noise = torch.randn(16000, generator=generator)
    return {
        "noise": 0.3 * noise,
        "quiet noise": 1e-4 * noise,
        "tone": 0.5 * torch.sin(2 * torch.pi * 997 * time) + 1e-3 * noise,
        "pure tone": 0.9 * torch.sin(2 * torch.pi * 1000 * time),
        "chirp": 0.5 * torch.sin(2 * torch.pi * (100 + 3000 * time) * time) + 1e-4 * noise,
        "short": 0.3 * noise[:200],
        "one sample": torch.tensor([0.7]),
    }


SETTINGS = [
    {},
    {"sample_rate": 8000, "n_fft": 512, "hop_length": 80, "num_mels": 64, "f_max": 4000.0},
    {"n_fft": 400, "hop_length": 200, "num_mels": 40, "f_min": 0.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", signals())
@pytest.mark.filterwarnings("ignore:n_fft=:UserWarning")  # librosa, of the short clips
def test_equals_librosa(name, settings):
    mel = LogMel(**settings)
    waveform = signals()[name]
    ours = mel.log_mel(waveform[None])[0, 0].numpy()
    np.testing.assert_allclose(ours, librosa_log_mel(waveform, mel), atol=1e-4, rtol=0)


def test_filterbank_equals_librosa_and_torchaudio():
    ours = mel_filterbank(16000, 1024, 128, 60.0, 7800.0)
    slaney = librosa.filters.mel(
        sr=16000, n_fft=1024, n_mels=128, fmin=60, fmax=7800, dtype=np.float64
    )
    np.testing.assert_allclose(ours.numpy(), slaney, atol=1e-8)
    theirs = torchaudio.functional.melscale_fbanks(
        513, 60.0, 7800.0, 128, 16000, norm="slaney", mel_scale="slaney"
    )
    np.testing.assert_allclose(ours.numpy(), theirs.T.numpy(), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize(("n_fft", "num_mels"), [(512, 40), (1024, 64), (2048, 128)])
def test_filterbank_has_the_bits_of_torchaudios_in_float64(rate, n_fft, num_mels):
    edges = (60.0, 0.4875 * rate)
    torch.set_default_dtype(torch.float64)
    try:
        theirs = torchaudio.functional.melscale_fbanks(
            n_fft // 2 + 1, *edges, num_mels, rate, norm="slaney", mel_scale="slaney"
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(mel_filterbank(rate, n_fft, num_mels, *edges), theirs.T.float())


def test_filterbank_is_right_at_an_odd_rate():
    slaney = librosa.filters.mel(
        sr=11025, n_fft=512, n_mels=40, fmin=60, fmax=5000, dtype=np.float64
    )
    np.testing.assert_allclose(mel_filterbank(11025, 512, 40, 60.0, 5000.0), slaney, atol=1e-8)


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 1023, 15200, 16001])
def test_frames_follow_from_samples(samples):
    mel = LogMel()
    shape = mel(torch.zeros(2, samples)).shape
    assert shape == (2, 1, 128, 1 + samples // 160)
    assert mel.frames(samples) == shape[3]


def test_samples_are_the_fewest_for_the_frames():
    mel = LogMel()
    assert mel.samples(96) == 15200
    assert mel.samples(1024) == 163680
    for frames in (1, 2, 96):
        assert mel.frames(mel.samples(frames)) == frames
        if frames > 1:
            assert mel.frames(mel.samples(frames) - 1) == frames - 1


def test_a_clip_does_not_depend_on_its_batch():
    mel = LogMel()
    batch = torch.randn(3, 4000)
    together = mel.log_mel(batch)
    for clip, waveform in zip(together, batch, strict=True):
        torch.testing.assert_close(clip, mel.log_mel(waveform[None])[0], atol=1e-5, rtol=0)


def test_silence_is_the_log_of_epsilon():
    log_mel = LogMel().log_mel(torch.zeros(1, 4000))
    assert log_mel.unique().tolist() == pytest.approx([np.log(EPS)])


def test_scaling_the_waveform_shifts_the_log_mel():
    waveform = torch.randn(1, 8000)
    quiet, loud = (LogMel().log_mel(gain * waveform) for gain in (1, 10))
    shift = torch.full_like(quiet, 2 * np.log(10))
    torch.testing.assert_close(loud - quiet, shift, atol=1e-3, rtol=0)


def test_normalisation_is_subtract_and_divide():
    mel = LogMel(mean=-6.5, std=4.25)
    waveform = torch.randn(2, 4000)
    torch.testing.assert_close(mel(waveform), (mel.log_mel(waveform) + 6.5) / 4.25)


def test_gradient_reaches_every_sample_even_of_silence():
    for level in (0.1, 0.0):
        waveform = (level * torch.randn(2, 3000)).requires_grad_()
        LogMel()(waveform).square().mean().backward()
        assert waveform.grad is not None
        assert torch.isfinite(waveform.grad).all()
        if level:
            assert (waveform.grad != 0).all()


def test_autocast_and_half_precision_input_change_nothing():
    mel = LogMel()
    waveform = torch.randn(2, 4000)
    plain = mel(waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = mel(waveform)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, atol=0, rtol=0)
    assert mel(waveform.bfloat16()).dtype == torch.float32


def test_settings_are_plain_and_rebuild_the_object():
    mel = LogMel(n_fft=512, num_mels=64, mean=-7.0, std=3.5)
    settings = json.loads(json.dumps(mel.settings()))
    again = LogMel(**settings)
    waveform = torch.randn(1, 4000)
    assert again.settings() == mel.settings()
    assert torch.equal(again(waveform), mel(waveform))


def test_a_half_precision_module_keeps_its_filters():
    waveform = torch.randn(1, 4000)
    assert torch.equal(LogMel().bfloat16()(waveform), LogMel()(waveform))
    assert LogMel().half().filterbank.dtype == torch.float32


def test_a_long_batch_is_worked_out_in_parts(monkeypatch):
    mel, waveform = LogMel(), torch.randn(5, 4000)
    whole = mel(waveform)
    monkeypatch.setitem(_FRAMES_AT_ONCE, "cpu", 60)  # two clips at a time
    torch.testing.assert_close(mel(waveform), whole, atol=1e-6, rtol=0)
    monkeypatch.setitem(_FRAMES_AT_ONCE, "cpu", 7)  # a clip in four parts
    torch.testing.assert_close(mel(waveform), whole, atol=1e-6, rtol=0)


def test_exports_with_any_batch_and_length():
    batch, samples = torch.export.Dim("batch", min=2), torch.export.Dim("samples", min=400)
    program = torch.export.export(
        LogMel(), (torch.randn(2, 4000),), dynamic_shapes=({0: batch, 1: samples},)
    )
    waveform = torch.randn(3, 7777)
    torch.testing.assert_close(program.module()(waveform), LogMel()(waveform), atol=1e-5, rtol=0)


def test_nothing_is_saved():
    assert LogMel().state_dict() == {}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"f_max": 9000.0}, "f_max <= 8000 Hz"),
        ({"f_min": 8000.0}, "f_min < f_max"),
        ({"hop_length": 0}, "hop_length must be at least 1, got 0"),
        ({"std": 0.0}, "std positive"),
        ({"mean": float("nan")}, "mean must be finite"),
        ({"n_fft": 128}, "mel bins hold no frequency at n_fft=128"),
    ],
)
def test_impossible_settings_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        LogMel(**settings)


@pytest.mark.parametrize("shape", [(4000,), (2, 0), (1, 1, 4000)])
def test_a_waveform_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"waveform must be \(batch, samples\)"):
        LogMel()(torch.zeros(shape))


def test_the_fast_transform_is_within_a_few_thousandths():
    time = torch.arange(16000) / 16000
    loud = torch.sin(2 * torch.pi * 440 * time)[None] + 1e-4 * torch.randn(1, 16000)
    front_end = LogMel()
    exact, fast = front_end.log_mel(loud), front_end.log_mel(loud, fast=True)
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast, exact, atol=1e-2, rtol=0)
    assert not torch.equal(fast, exact)


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        ({}, (32, 32)),
        ({"n_fft": 400, "num_mels": 40}, (20, 20)),
        ({"n_fft": 512, "hop_length": 128, "num_mels": 40}, (32, 16)),
        ({"n_fft": 1001, "hop_length": 100, "num_mels": 40}, (1001, 1)),  # nothing to share
    ],
)
def test_the_transform_by_products_equals_the_fourier_transform(settings, lengths):
    mel, product = LogMel(**settings), ProductMel(**settings)
    assert (product.a, product.b) == lengths
    noise = 0.1 * torch.randn(2, 5003, generator=torch.Generator().manual_seed(0))
    tone = 0.5 * torch.sin(torch.arange(5003) * 0.3)
    for waveform in (noise, tone[None], torch.zeros(1, 1), noise[:, :161]):
        found = product.log_mel(waveform)
        torch.testing.assert_close(found, mel.log_mel(waveform), atol=2e-3, rtol=0)
    torch.testing.assert_close(product(noise), mel(noise), atol=1e-4, rtol=0)
