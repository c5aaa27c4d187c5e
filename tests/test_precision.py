"""bfloat16 on request where a trained network is used: close, named, and float32 unless asked."""

import pytest
import torch

from ssmast import predict
from ssmast.classifier import Classifier, Outputs
from ssmast.encoder import load_encoder
from ssmast.evaluation import evaluate, suite
from ssmast.retrieval import embed_files
from ssmast.settings import UsageError, parse


def test_vectors_of_the_package_in_bfloat16_are_within_two_hundredths():
    clips = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (9000, 30000)]
    exact, quick = load_encoder(), load_encoder(precision="bf16")
    wanted, found = exact.embed_clips(clips), quick.embed_clips(clips)
    assert found.dtype == torch.float32
    apart = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert torch.all(apart < 0.02)
    assert torch.all(apart > 0)
    columns = [each.embed_frames(clips[1], 16000)[0] for each in (exact, quick)]
    assert 0 < float((columns[1] - columns[0]).norm() / columns[0].norm()) < 0.02
    # Kept apart in the cache, and nothing of it in a folder that is written.
    assert quick.settings() == {**exact.settings(), "precision": "bf16"}
    assert quick.config() == exact.config()
    assert quick.variant(pooling="mean").precision == "bf16"


def test_another_word_is_refused(tiny_encoder):
    encoder = tiny_encoder.variant()
    encoder.precision = "fp16"
    with pytest.raises(ValueError, match="precision must be fp32 or bf16, got 'fp16'"):
        encoder.embed(torch.zeros(16000), 16000)


def test_scores_of_a_classifier_in_bfloat16_are_close(tiny_encoder):
    def network(log_mel: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        pooled = tiny_encoder.pool(log_mel, lengths)
        return pooled @ torch.ones(pooled.shape[1], 3, dtype=pooled.dtype) / 30

    class Network(torch.nn.Module):
        def forward(self, log_mel, lengths=None):
            return network(log_mel, lengths)

    outputs = Outputs([("label", ["a", "b", "c"])], True)
    clip = torch.randn(20000, generator=torch.Generator().manual_seed(1))
    scores = {
        precision: Classifier(
            Network(), tiny_encoder.log_mel, outputs=outputs, frames=96, precision=precision
        ).embed_clips([clip])
        for precision in ("fp32", "bf16")
    }
    assert not torch.equal(scores["bf16"], scores["fp32"])
    torch.testing.assert_close(scores["bf16"], scores["fp32"], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("schema", "owner", "name"),
    [
        (embed_files.EmbedConfig, embed_files, "load_encoder"),
        (predict.PredictConfig, predict, "load_classifier"),
        (evaluate.EvaluateConfig, evaluate, "load_classifier"),
    ],
)
def test_a_command_hands_its_precision_on(monkeypatch, tmp_path, schema, owner, name):
    class ReachedError(Exception):
        pass

    def spy(path, *, precision, **_):
        assert precision == "bf16"
        raise ReachedError

    (tmp_path / "a.wav").write_bytes(b"")
    monkeypatch.setattr(owner, name, spy)
    words = [str(tmp_path / "a.wav")] if schema is not evaluate.EvaluateConfig else ["data=x"]
    out = f"out={tmp_path}/out.npz" if schema is embed_files.EmbedConfig else f"out={tmp_path}/o"
    with pytest.raises(ReachedError):
        owner.main([*words, "encoder=y", "precision=bf16", out])


def test_a_probe_that_trains_the_encoder_takes_no_precision():
    words = ["data=x", "precision=bf16", "protocol=lape_finetune"]
    with pytest.raises(UsageError, match="trains in fp32; leave precision= out"):
        parse(suite.ProbeConfig, words, command="ssmast probe", description="")
