"""Kaldi's filterbank beside torchaudio's, and as the front end of everything."""

import math

import pytest
import torch
from torchaudio.compliance.kaldi import fbank

from ssmast.audio import LogMel
from ssmast.audio.mel import KaldiMel, front_end_of
from ssmast.encoder import Encoder, load_encoder
from ssmast.model import create_model
from ssmast.settings import parse
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.inputs import build_log_mel


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _torchaudio(clip: torch.Tensor, *, rate: int = 16000, mels: int = 128) -> torch.Tensor:
    """As AST's code calls it: (F, T); in float64, as in float32 it is 2e-4 off itself."""
    found = fbank(
        clip[None].double(), htk_compat=True, sample_frequency=rate, use_energy=False,
        window_type="hanning", num_mel_bins=mels, dither=0.0, frame_shift=10,
    )  # fmt: skip
    return found.T.float()


@pytest.mark.parametrize(("rate", "mels"), [(16000, 128), (16000, 40), (22050, 64), (8000, 23)])
@pytest.mark.parametrize("length", [0.025, 0.0251, 0.5, 1.234])
def test_it_is_torchaudios(rate, mels, length):
    front = KaldiMel(sample_rate=rate, hop_length=rate // 100, num_mels=mels, f_max=rate / 2)
    clips = _noise(3, math.ceil(length * rate)) + 0.3  # an offset, which each window loses
    clips[1] *= 1e-4
    found = front.log_mel(clips)
    assert found.shape[3] == front.frames(clips.shape[1])
    if rate != 22050:  # torchaudio rounds its hop down
        for clip, ours in zip(clips, found[:, 0], strict=True):
            torch.testing.assert_close(
                ours, _torchaudio(clip, rate=rate, mels=mels), atol=1e-4, rtol=0
            )


def test_silence_is_the_floor_and_short_clips_have_zeros_after_them():
    front = KaldiMel()
    floor = math.log(1.1920929e-07)
    torch.testing.assert_close(
        front.log_mel(torch.zeros(1, 700)), torch.full((1, 1, 128, 2), floor)
    )
    clip = _noise(1, 100)
    padded = torch.cat([clip, torch.zeros(1, 300)], dim=1)
    assert torch.equal(front.log_mel(clip), front.log_mel(padded))
    assert [front.frames(n) for n in (1, 399, 400, 559, 560)] == [1, 1, 1, 1, 2]
    assert [front.frames(front.samples(n)) for n in (1, 7, 1024)] == [1, 7, 1024]


def test_a_tone_peaks_in_the_bin_of_its_frequency():
    front = KaldiMel(num_mels=40)
    centre = float(front.centres_hz()[20])
    tone = torch.sin(2 * math.pi * centre * torch.arange(16000, dtype=torch.float64) / 16000)
    assert int(front.log_mel(tone[None])[0, 0].mean(dim=1).argmax()) == 20


def test_settings_make_it_again_and_a_plain_one_stays_plain():
    front = KaldiMel(num_mels=64, mean=1.0, std=2.0)
    again = front_end_of(front.settings())
    assert isinstance(again, KaldiMel)
    assert again.settings() == front.settings()
    assert "kind" not in LogMel().settings()
    assert type(front_end_of(LogMel().settings())) is LogMel
    for settings, sentence in (
        ({"kind": "mfcc"}, "front_end.kind must be log_mel or kaldi, got 'mfcc'"),
        ({"kind": "kaldi", "n_fft": 1024}, "n_fft must be 512 with kind=kaldi"),
    ):
        with pytest.raises(ValueError, match=sentence):
            front_end_of(settings)


def test_half_precision_weights_leave_its_filters_alone():
    front = KaldiMel()
    before = front(_noise(1, 4000))
    assert torch.equal(front.half()(_noise(1, 4000)), before)


def test_an_encoder_with_it_embeds_long_clips_in_windows_and_comes_back(tmp_path):
    torch.manual_seed(1)
    backbone = create_model(
        "mast_nano", num_classes=0, input_size=(64, 96), embed_dim=8, depths=(1, 1, 1, 1)
    )
    encoder = Encoder(backbone, KaldiMel(num_mels=64), pooling="mean", window_seconds=1.0).eval()
    clips = [_noise(n, seed=n) for n in (1, 399, 5000, 16000, 40000)]
    together = encoder.embed(clips, 16000)
    alone = torch.cat([encoder.embed(clip, 16000) for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    # The windows of a long clip hold the frames of the whole one.
    whole, cutter = encoder.log_mel(clips[4][None]), encoder.window_cutter()
    windows = cutter.cut(0, cutter.frames(40000))
    assert len(windows) == 2
    found, lengths = cutter.log_mels([clips[4]], windows)
    for row, window in enumerate(windows):
        part = whole[0, 0, :, window.start : window.start + window.length]
        torch.testing.assert_close(found[row, 0, :, : window.length], part, atol=1e-5, rtol=0)
    assert lengths is None or lengths.tolist() == [window.length for window in windows]
    encoder.save(tmp_path / "encoder")
    again = load_encoder(tmp_path / "encoder")
    assert isinstance(again.log_mel, KaldiMel)
    assert torch.equal(again.embed(clips, 16000), together)
    assert "kaldi, 64 bins" in (tmp_path / "encoder" / "README.md").read_text()


def test_the_settings_of_a_run_choose_it():
    words = ["recipe=smoke", "front_end.kind=kaldi", "front_end.f_min=20", "front_end.f_max=8000"]
    config = parse(PretrainConfig, words, command="test", recipes=RECIPES)
    front = build_log_mel(config, mean=-4.0, std=9.0)
    assert isinstance(front, KaldiMel)
    assert (front.n_fft, front.f_min, front.f_max, front.std) == (512, 20.0, 8000.0, 9.0)
