import numpy as np
import pytest
import torch

from ssmast.evaluation.baselines import LogMelStatistics, RandomConvolution, make_columns
from ssmast.evaluation.protocols import LINEAR
from ssmast.evaluation.suite import ProbeConfig, run_suite
from ssmast.settings import UsageError


def test_the_random_convolution_is_its_formula():
    """Every frame and filter written out: sum over mels and nine frames, ReLU, mean and max."""
    baseline = RandomConvolution()
    clip = 0.1 * torch.randn(16000 // 4, generator=torch.Generator().manual_seed(0))
    (log_mel,) = LogMelStatistics()._log_mel(clip[None]).double().numpy()  # (T, 128)
    weight = baseline.convolution.weight.double().numpy()  # (256, 128, 9)
    bias = baseline.convolution.bias.double().numpy()
    responses = np.array(
        [
            [(weight[f] * log_mel[t : t + 9].T).sum() + bias[f] for t in range(len(log_mel) - 8)]
            for f in range(256)
        ]
    ).clip(min=0)
    wanted = np.concatenate([responses.mean(axis=1), responses.max(axis=1)])
    (found,) = baseline.embed_clips([clip])
    assert found.shape == (512,)
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(baseline(clip[None])[0], found)


def test_its_filters_never_change_and_leave_the_generator_alone():
    torch.manual_seed(7)
    first, state = RandomConvolution(), torch.get_rng_state()
    second = RandomConvolution()
    assert torch.equal(first.convolution.weight, second.convolution.weight)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.sha256 == second.sha256 != LogMelStatistics().sha256


@pytest.mark.parametrize("extra", [0, 77, 101 * 160])
def test_a_long_clip_is_that_of_its_pieces(monkeypatch, extra):
    clip = torch.randn(16000 * 4 + extra, generator=torch.Generator().manual_seed(1))
    baseline = RandomConvolution()
    (wanted,) = baseline.embed_clips([clip])
    monkeypatch.setattr("ssmast.evaluation.baselines._LONGEST", 101)
    (found,) = baseline.embed_clips([clip])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_clip_of_less_than_nine_frames_has_a_vector():
    (found,) = RandomConvolution().embed_clips([torch.zeros(100)])
    assert found.isfinite().all()


def test_baselines_are_asked_for_by_name(sets, encoder_folder, tmp_path):
    def names(encoder, baselines="true"):
        columns = make_columns(
            encoder, protocol=LINEAR, baselines=baselines, seed=0, device=torch.device("cpu")
        )
        return [column.name for column in columns]

    folder = str(encoder_folder)
    assert names(folder) == ["pretrained", "untrained", "log_mel"]
    assert names(folder, "all") == ["pretrained", "untrained", "log_mel", "random_conv"]
    assert names(folder, "false") == ["pretrained"]
    assert names("random_conv", "all") == ["random_conv"]
    with pytest.raises(UsageError, match="baselines must be one of true, false, all, got 'some'"):
        ProbeConfig(baselines="some")
    (result,) = run_suite(
        ProbeConfig(encoder="random_conv", data=str(sets), out=str(tmp_path), tasks="tones")
    )
    assert (result.column, result.dim, result.pooling) == ("random_conv", 512, "mean+max over time")
    assert result.mean > 0.9
