"""Whitening: closed forms, and that it travels with the folder to every door."""

import json

import numpy as np
import pytest
import torch

import ssmast
from ssmast.audio import open_corpus
from ssmast.encoder import Encoder, load_encoder
from ssmast.encoder.whitening import Whitening
from ssmast.evaluation.embed import measured_whitening
from ssmast.files import sha256_of
from tests.sets import write_set

RATE = 16000


def _vectors(n: int = 400, dim: int = 12, seed: int = 0) -> torch.Tensor:
    """Vectors with a few directions that are far wider than the rest."""
    g = torch.Generator().manual_seed(seed)
    widths = torch.tensor([30.0, 10.0, 5.0] + [1.0] * (dim - 3))
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=g)).Q
    return (torch.randn(n, dim, generator=g) * widths) @ axes.T + 3.0


def _clip(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def _encoder(whitening: Whitening | None = None) -> Encoder:
    torch.manual_seed(0)
    net = ssmast.create_model("mast_nano", num_classes=0, input_size=(64, 96))
    mel = load_encoder().log_mel
    return Encoder(net, mel, pooling="mean", layers="1-2", whitening=whitening).eval()


def test_the_widest_directions_get_the_variance_of_the_others():
    x = _vectors()
    whitening = Whitening.of(x, directions=3, power=1.0)
    y = whitening(x).double().numpy()
    z = (x.double().numpy() - x.double().numpy().mean(0)) / x.double().numpy().std(0)
    values, axes = np.linalg.eigh(np.cov(z.T, bias=True))
    rest = values[:-3].mean()
    wanted = axes[:, -3:]
    assert np.allclose(np.var(y @ wanted, axis=0), rest, rtol=1e-4)
    assert np.allclose(y @ axes[:, :-3], z @ axes[:, :-3], atol=1e-4)  # the others stay


def test_a_power_of_zero_only_standardises():
    x = _vectors()
    y = Whitening.of(x, directions=3, power=0.0)(x)
    assert torch.allclose(y, (x - x.mean(0)) / x.std(0, correction=0), atol=1e-4)


def test_a_power_of_one_half_takes_the_root_of_the_variances():
    x = _vectors()
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double().numpy()
    values, axes = np.linalg.eigh(np.cov(z.T, bias=True))
    y = Whitening.of(x, directions=3, power=0.5)(x).double().numpy()
    rest = values[:-3].mean()
    assert np.allclose(np.var(y @ axes[:, -3:], axis=0), np.sqrt(rest * values[-3:]), rtol=1e-4)


def test_few_clips_give_few_directions_and_a_constant_number_stays_zero():
    x = _vectors(20)
    x[:, 4] = 7.0
    whitening = Whitening.of(x, directions=256)
    assert whitening.settings() == {"directions": 5, "power": 0.5, "clips": 20}
    assert whitening(x)[:, 4].abs().max() < 1.0
    assert whitening(x).isfinite().all()
    with pytest.raises(ValueError, match="whitening needs 4 clips or more, got 3"):
        Whitening.of(x[:3], directions=1)


def test_fewer_directions_than_asked_for_are_told(tmp_path, caplog):
    corpus, encoder = open_corpus(write_set(tmp_path / "tones", num_clips=9)), _encoder()
    found = measured_whitening(encoder, corpus, directions=128, seed=0)
    assert found is not None
    assert len(found.factors) == 2
    assert "along 2 directions in place of 128: each takes 4 clips of 9 and one" in caplog.text
    caplog.clear()
    assert measured_whitening(encoder, corpus, directions=2, seed=0) is not None
    assert not caplog.text


def test_it_is_applied_by_every_door_and_comes_back_from_the_folder(tmp_path):
    plain = _encoder()
    clips = [_clip(RATE // 2 + 777 * i, i) for i in range(12)]
    whitening = Whitening.of(plain.embed(clips, RATE), directions=3)
    encoder = _encoder(whitening)
    wanted = whitening(plain.embed(clips, RATE))
    assert torch.equal(encoder.embed(clips, RATE), wanted)
    assert torch.allclose(encoder(clips[3][None]), wanted[3:4], atol=1e-4)
    encoder.save(tmp_path / "e")
    loaded = load_encoder(tmp_path / "e")
    assert torch.equal(loaded.embed(clips, RATE), wanted)
    assert loaded.sha256 == encoder.sha256 != plain.sha256
    assert "whitened" in (tmp_path / "e" / "README.md").read_text(encoding="utf-8")
    # a clip of several windows is whitened once, after its windows were joined
    long = _clip(RATE * 25)
    assert torch.equal(loaded.embed(long, RATE), whitening(plain.embed(long, RATE)))


def test_a_half_precision_encoder_whitens_in_float32():
    whitening = Whitening.of(1e-6 * _vectors(), directions=3)  # 1 / std beyond half precision
    x = 1e-6 * _vectors(5, seed=1)
    assert whitening.bfloat16()(x).isfinite().all()


def test_other_vectors_are_not_whitened_by_it():
    plain = _encoder()
    clips = [_clip(RATE, i) for i in range(8)]
    encoder = _encoder(Whitening.of(plain.embed(clips, RATE), directions=2))
    assert encoder.variant(window_seconds=5.0).whitening is encoder.whitening
    assert encoder.variant(pooling="max").whitening is None
    assert encoder.variant(layers="2").whitening is None
    with pytest.raises(ValueError, match="the whitening is of 12 numbers"):
        _encoder(Whitening.of(_vectors(), directions=2))


def test_a_folder_without_its_whitening_is_refused(tmp_path):
    plain = _encoder()
    clips = [_clip(RATE, i) for i in range(8)]
    _encoder(Whitening.of(plain.embed(clips, RATE), directions=2)).save(tmp_path / "e")
    (tmp_path / "e" / "whitening.safetensors").unlink()
    with pytest.raises(ValueError, match=r"whitening.safetensors is damaged"):
        load_encoder(tmp_path / "e")
    sums = json.loads((tmp_path / "e" / "checksums.json").read_text(encoding="utf-8"))
    del sums["whitening.safetensors"]
    (tmp_path / "e" / "checksums.json").write_text(json.dumps(sums), encoding="utf-8")
    with pytest.raises(ValueError, match=r"whitening.safetensors is missing"):
        load_encoder(tmp_path / "e")


def test_a_folder_whose_whitening_had_a_floor_loads_and_embeds_alike(tmp_path):
    plain = _encoder()
    clips = [_clip(RATE, i) for i in range(8)]
    encoder = _encoder(Whitening.of(plain.embed(clips, RATE), directions=2))
    encoder.save(tmp_path / "e")
    config = json.loads((tmp_path / "e" / "config.json").read_text(encoding="utf-8"))
    config["ssmast"]["whitening"] = {"directions": 2, "floor": 3.0, "clips": 8}
    (tmp_path / "e" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sums = json.loads((tmp_path / "e" / "checksums.json").read_text(encoding="utf-8"))
    sums["config.json"] = sha256_of(tmp_path / "e" / "config.json")
    (tmp_path / "e" / "checksums.json").write_text(json.dumps(sums), encoding="utf-8")
    found = load_encoder(tmp_path / "e")
    assert torch.equal(found.embed(clips, RATE), encoder.embed(clips, RATE))
    assert found.whitening is not None
    assert found.whitening.settings() == {"directions": 2, "floor": 3.0, "clips": 8}
