"""The exported graphs give what the encoder gives."""

import importlib

import numpy as np
import pytest
import torch

from ssmast.audio import LogMel
from ssmast.encoder import Encoder
from ssmast.encoder.graph import (
    OnnxEncoder,
    check_lengths,
    export_program,
    graph_files,
    int8_cosines,
    largest_difference,
    min_samples,
    onnx_model,
    quantized,
)
from ssmast.model import create_model

from .test_encoder import RATE, make_encoder, noise

SETTINGS = [
    pytest.param("mast_nano", "mean", "stages", marks=pytest.mark.slow),
    pytest.param("mast_nano", "freq+max", "last", marks=pytest.mark.slow),
    pytest.param("mast_nano", "mean+max", "blocks", marks=pytest.mark.slow),
    ("ast_nano", "cls", "last"),
    pytest.param("ast_nano", "freq+max", "blocks", marks=pytest.mark.slow),
    pytest.param("ast_nano", "mean", "stages", marks=pytest.mark.slow),
]


def two_stages() -> Encoder:
    """A MAST whose graph is made in a few seconds."""
    torch.manual_seed(1)
    backbone = create_model(
        "mast_nano",
        num_classes=0,
        input_size=(64, 96),
        embed_dim=8,
        depths=(1, 1),
        stride_q=((1, 1), (2, 2)),
    )
    return Encoder(backbone, LogMel(num_mels=64, mean=-7.0, std=4.0), layers="stages").eval()


@pytest.mark.parametrize(("model", "pooling", "layers"), SETTINGS)
def test_the_program_takes_any_batch_and_length(model, pooling, layers):
    encoder = make_encoder(model, pooling=pooling, layers=layers).eval()
    program = export_program(encoder).module()
    for number, length in enumerate(check_lengths(encoder)):
        clips = torch.stack([noise(length, seed=n) for n in range(1 + number % 3)])
        wanted = encoder(clips).detach()
        torch.testing.assert_close(program(clips)[0], wanted, atol=1e-4, rtol=0)
        if length <= encoder.window_seconds * RATE:
            torch.testing.assert_close(encoder.embed(clips, RATE), wanted, atol=1e-4, rtol=0)


MADE = {
    "two_stages": two_stages,
    "mast": lambda: make_encoder(layers="blocks").eval(),
    "ast": lambda: make_encoder("ast_nano", pooling="cls").eval(),
}


@pytest.fixture(
    scope="module", params=["two_stages", pytest.param("mast", marks=pytest.mark.slow), "ast"]
)
def exported(request):
    encoder = MADE[request.param]()
    return encoder, request.param, onnx_model(encoder)


def test_onnx_equals_pytorch_at_five_lengths(exported):
    encoder, _, model = exported
    lengths = check_lengths(encoder)
    assert len(set(lengths)) == 5
    assert largest_difference(encoder, model, lengths=lengths) < 1e-4
    session = OnnxEncoder(model)
    assert session.facts["sample_rate"] == str(RATE)
    assert session.facts["encoder_sha256"] == encoder.sha256
    clip = noise(RATE)
    alone, batch = session(clip[None]), session(torch.stack([noise(RATE, seed=1), clip]))
    assert alone.shape == (1, encoder.dim)
    torch.testing.assert_close(batch[1:], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, encoder.embed(clip, RATE), atol=1e-4, rtol=0)
    of_16_bits = (clip * 32767).short()
    wanted = encoder.embed(of_16_bits, RATE)
    torch.testing.assert_close(session(of_16_bits), wanted, atol=1e-4, rtol=0)


def test_onnx_refuses_a_clip_without_samples_as_pytorch_does(exported):
    encoder, _, model = exported
    with pytest.raises(ValueError, match="at least one sample"):
        encoder.embed(torch.zeros(0), RATE)
    session = importlib.import_module("onnxruntime").InferenceSession(model)
    (output,) = session.run(None, {"waveform": np.zeros((1, min_samples(encoder)), np.float32)})
    assert np.isfinite(output).all()
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {"waveform": np.zeros((1, 0), np.float32)})


def test_another_encoders_graph_is_told_apart(exported):
    _, name, model = exported
    other = MADE[name]()
    with torch.no_grad():
        other.backbone.norm.weight.add_(0.01)
    assert largest_difference(other, model, lengths=[RATE]) > 1e-4


def test_int8_keeps_the_direction_of_an_embedding(exported):
    encoder, _, model = exported
    small = quantized(encoder, model)
    cosines = int8_cosines(encoder, small)
    assert cosines.shape == (12,)
    assert 0.9 < cosines.min() < 0.999999
    assert len(small) < len(model)


def test_onnx_needs_nothing_beside_the_file(exported, tmp_path):
    encoder, _, model = exported
    (tmp_path / "model.onnx").write_bytes(model)
    embedding = OnnxEncoder(tmp_path / "model.onnx", threads=1)(np.zeros((1, RATE), np.float32))
    torch.testing.assert_close(embedding, encoder.embed(torch.zeros(RATE), RATE), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="this graph gives embeddings and no probabilities"):
        OnnxEncoder(model).probabilities(np.zeros((1, RATE), np.float32))
    with pytest.raises(
        FileNotFoundError, match=r"no graph at .*none\.onnx; ssmast export onnx=true"
    ):
        OnnxEncoder(tmp_path / "none.onnx")


def test_a_damaged_graph_and_a_clip_too_short_for_one_are_refused(exported, tmp_path):
    encoder, _, model = exported
    with pytest.raises(ValueError, match=rf"takes clips of {min_samples(encoder)} samples or more"):
        OnnxEncoder(model)(np.zeros((1, min_samples(encoder) - 1), np.float32))
    file = tmp_path / "model.onnx"
    for bad in (b"", b"<html>", model[: len(model) // 2]):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=r"model\.onnx cannot be loaded \(.*; write it again"):
            OnnxEncoder(file)
    encoder.save(tmp_path / "e", extra={"model.onnx": model})
    file = tmp_path / "e" / "model.onnx"
    OnnxEncoder(file)
    middle = len(model) // 2
    file.write_bytes(model[:middle] + bytes(100) + model[middle + 100 :])  # of some weights
    with pytest.raises(ValueError, match=r"model\.onnx is damaged: it does not match checksums"):
        OnnxEncoder(file)


def test_a_graph_that_is_off_is_not_written(monkeypatch):
    encoder = make_encoder().eval()
    monkeypatch.setattr("ssmast.encoder.graph.onnx_model", lambda encoder: b"")
    monkeypatch.setattr("ssmast.encoder.graph.largest_difference", lambda *a, **k: 1.0)
    with pytest.raises(
        ValueError, match=r"off by 1\.0e\+00 in onnxruntime, wanted at most 0\.0001"
    ):
        graph_files(encoder)


def test_the_shortest_clip_is_told():
    assert min_samples(make_encoder()) == (32 + 1) * 160
    assert min_samples(make_encoder("ast_nano")) == (10 + 16) * 160
