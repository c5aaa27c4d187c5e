"""SS-MAST's objective with AST in MAST's place: the step, a run, what it leaves."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from ssmast.command import run_command
from ssmast.encoder import load_encoder
from ssmast.training import pretrain
from ssmast.training.config import Export, Optim, PatchDropConfig
from tests.training.test_ss_mast import _batch, _config, _trainer


@pytest.mark.parametrize("mode", ["random", "structured"])
def test_micro_batches_equal_one_batch(mode):
    def stepped(parts: int):
        head = replace(_config().head, norm="layer")  # BatchNorm sees a micro-batch
        numbers = {"model": "ast_nano", "head": head, "drop_path": 0.0}
        numbers["optim"] = Optim(gradient_accumulation_steps=parts)
        trainer = _trainer(_config(**numbers, patch_drop=PatchDropConfig(rate=0.4, mode=mode)))
        trainer.train_step(_batch())
        return trainer.objective

    one, two = stepped(1), stepped(2)
    for (name, a), b in zip(one.student.named_parameters(), two.student.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_every_student_parameter_gets_gradient():
    head = replace(_config().head, pooling="cls")
    trainer = _trainer(_config(model="ast_nano", head=head, patch_drop=PatchDropConfig(rate=0.0)))
    for seed in (0, 1):
        trainer.train_step(_batch(seed))
    for name, parameter in trainer.objective.student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of ast_nano on twelve tones."""
    folder = tmp_path_factory.mktemp("ast")
    (folder / "audio").mkdir()
    time = np.arange(16000) / 16000
    for i in range(12):
        tone = 0.3 * np.sin(2 * np.pi * 150 * 1.25**i * time)
        soundfile.write(folder / "audio" / f"{i}.wav", tone, 16000)
    words = [
        "recipe=ss_ast_nano", f"data={folder}/audio", f"run={folder}/run", "steps=4",
        "front_end.num_mels=64", "views.frames=64", "head.hidden=16", "head.dim=8", "log_every=1",
        "head.predictor=16", "loss.queue_size=1", "tensorboard=false", "export.pooling=cls",
        "checkpoint_every=2", "batch_size=4",
    ]  # fmt: skip
    assert run_command(pretrain.main, words, name="ssmast pretrain") == 0
    return folder / "run"


def test_a_run_leaves_an_encoder_that_embeds_any_sound(run):
    encoder = load_encoder(run / "encoder")
    assert type(encoder.backbone).__name__ == "AST"
    assert (encoder.pooling, encoder.dim) == ("cls", 128)
    clips = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (5, 900, 40000)]
    together = encoder.embed(clips, 16000)
    alone = torch.cat([encoder.embed(clip, 16000) for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    frames, milliseconds = encoder.embed_frames(clips[2], 16000)
    assert frames.shape[1:] == (milliseconds.shape[1], 5 * 128)  # 64 mels make 5 rows of patches
    assert milliseconds[0, 1] - milliseconds[0, 0] == 100  # ten frames of 10 ms
    assert json.loads((run / "encoder" / "config.json").read_text())["architecture"] == "ast_nano"
    assert "An Audio Spectrogram Transformer" in (run / "encoder" / "README.md").read_text()


def test_class_tokens_of_a_mast_are_refused_before_the_run():
    with pytest.raises(ValueError, match=r"class tokens, which only ast_"):
        _trainer(_config(export=Export(pooling="cls")))
