import numpy as np
import pytest
import torch

from ssmast.audio import open_corpus
from ssmast.encoder import load_encoder
from ssmast.encoder.whitening import Whitening
from ssmast.evaluation.baselines import (
    LogMelStatistics,
    RandomConvolution,
    make_columns,
    random_twin,
)
from ssmast.evaluation.embed import embed_corpus
from ssmast.evaluation.probe import LINEAR, run_probe
from ssmast.evaluation.read_set import load_set
from ssmast.evaluation.suite import ProbeConfig, run_suite
from ssmast.settings import UsageError


def test_the_random_convolution_is_its_formula():
    """Every frame and filter written out: sum over mels and nine frames, ReLU, mean and max."""
    baseline = RandomConvolution()
    clip = 0.1 * torch.randn(16000 // 4, generator=torch.Generator().manual_seed(0))
    (log_mel,) = LogMelStatistics().log_mels(clip)  # (T, 128)
    log_mel = log_mel.double().numpy()
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


def test_the_twin_of_a_whitened_encoder_is_whitened_where_it_gains(
    sets, encoder_folder, tmp_path, caplog
):
    """Else the untrained column would lack what the trained one has, and look worse than it is."""
    encoder = load_encoder(encoder_folder)
    labelled = load_set(sets, "tones")
    corpus = open_corpus(labelled.folder)
    vectors = embed_corpus(encoder, corpus).values
    encoder.whitening = Whitening.of(vectors, directions=3)
    encoder.save(tmp_path / "white")
    words = {"data": str(sets), "tasks": "[tones]", "out": str(tmp_path / "out"), "seeds": 1}
    (result,) = run_suite(ProbeConfig(encoder=str(tmp_path / "white"), **words))
    caplog.set_level("INFO", "ssmast")
    run_suite(ProbeConfig(encoder=str(tmp_path / "white"), pooling="std", **words))
    assert "vectors of other pooling or layers than freq+max of last are not whi" in caplog.text
    twin = embed_corpus(random_twin(encoder, seed=0), corpus).values[
        torch.from_numpy(labelled.rows)
    ]
    white = run_probe(Whitening.of(twin, directions=3)(twin), labelled, num_seeds=1)
    plain = run_probe(twin, labelled, num_seeds=1)
    gains = (white.valid or 0) > (plain.valid or 0)
    wanted, found = (white if gains else plain), result.baselines["untrained"]
    assert (found.valid, found.mean) == (wanted.valid, wanted.mean)
    assert [one["whitened"] for one in found.chosen] == [gains]
    assert random_twin(encoder, seed=0).whitening is None
