"""SSAST as a method of pretraining: the step, a run with its resume, what it leaves, the alarm."""

import json
import shutil

import pytest
import torch

from ssmast.audio.segments import SegmentBatch
from ssmast.command import run_command
from ssmast.encoder import load_encoder
from ssmast.settings import UsageError, parse
from ssmast.training import pretrain
from ssmast.training.alarm import Alarm
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.objectives.ssast import SSAST
from ssmast.training.step import TrainingState
from tests.training.processes import write_tones
from tests.training.states import state_of

_SMALL = [
    "recipe=ssast_nano", "front_end.num_mels=64", "views.frames=96", "batch_size=8",
    "views.waveform_augment=0", "export.network=student", "workers=0", "optim.warmup=0",
]  # fmt: skip


def _config(*words: str) -> PretrainConfig:
    config = parse(PretrainConfig, [*_SMALL, *words], command="test", recipes=RECIPES)
    assert config is not None
    return config


def _trainer(*words: str, steps: int = 40) -> TrainingState:
    return state_of(SSAST, _config(*words), num_clips=8, steps=steps)


def _batch(size: int = 8, seed: int = 0) -> SegmentBatch:
    """Clips of a tone each, as the loader gives them."""
    generator = torch.Generator().manual_seed(seed)
    pitch = 150 * 1.25 ** torch.arange(size)[:, None]
    tones = 0.3 * torch.sin(2 * torch.pi * pitch * torch.arange(15200) / 16000)
    noise = 0.01 * torch.randn(tones.shape, generator=generator)
    place = torch.arange(size)
    return SegmentBatch(
        waveform=(tones + noise)[:, None],
        clip=place,
        epoch=torch.full((size,), seed),
        position=seed * size + place,
    )


def _masked(trainer: TrainingState, micro: SegmentBatch) -> torch.Tensor:
    return trainer.objective.views(micro, 0).masked


@pytest.mark.parametrize("model", ["ssast_nano", "ssast_frame_nano"])
def test_the_loss_of_an_untrained_network_is_that_of_guessing_and_falls(model):
    trainer = _trainer(f"model={model}", "optim.lr=1e-3", steps=60)
    rows = [trainer.numbers(trainer.train_step(_batch(seed=i))) for i in range(60)]
    first, last = rows[0], rows[-1]
    assert first["loss"] == pytest.approx(first["chance_loss"], rel=0.4)
    assert first["accuracy"] < 0.2
    assert last["loss"] < 0.9 * last["chance_loss"]
    assert last["loss_generative"] < 0.7 * first["loss_generative"]
    weight = trainer.config.ssast.weight
    parts = last["loss_discriminative"] + weight * last["loss_generative"]
    assert last["loss"] == pytest.approx(parts, rel=1e-5)


def test_every_parameter_gets_gradient():
    trainer = _trainer()
    trainer.train_step(_batch())
    for name, parameter in trainer.objective.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_micro_batches_equal_one_batch():
    words = ["drop_path=0", "optim.gradient_accumulation_steps=4"]
    one, two = _trainer(words[0]), _trainer(*words)
    a, b = one.train_step(_batch()), two.train_step(_batch())
    torch.testing.assert_close(a.loss.loss, b.loss.loss, rtol=1e-6, atol=0)
    pairs = zip(one.objective.named_parameters(), two.objective.parameters(), strict=True)
    for (name, p), q in pairs:
        error = (p.grad - q.grad).norm() / p.grad.norm()
        assert float(error) < 1e-4, name


def test_what_is_hidden_follows_from_seed_epoch_and_clip_alone():
    trainer = _trainer()
    whole, again = _masked(trainer, _batch()), _masked(trainer, _batch().split(2)[1])
    assert torch.equal(whole[4:], again)
    assert not torch.equal(whole, _masked(trainer, _batch(seed=1)))
    assert whole.sum(dim=1).tolist() == [round(400 / 512 * 24)] * 8


def test_a_step_that_is_not_finite_moves_nothing():
    trainer = _trainer()
    before = [parameter.clone() for parameter in trainer.objective.parameters()]
    batch = _batch()
    batch.waveform[3] = float("nan")
    assert trainer.train_step(batch).skipped
    assert trainer.step == 1
    assert all(map(torch.equal, before, trainer.objective.parameters()))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model=mast_nano"], "MAST's overlapping stem"),
        (["model=ast_nano"], "must not overlap with visible ones, got model=ast_nano"),
        (["export.network=teacher"], "student: ssast has no teacher"),
        (["patch_drop.rate=0.5"], "patch_drop.rate must be left alone by objective=ssast"),
        (["loss.temperature=0.1"], "loss.temperature must be left alone"),
        (["ssast.masked=1"], "ssast.masked must be above 0 and below 1"),
        (["ssast.cluster=[3]"], "ssast.cluster must be 2 numbers, each at least 1"),
        (["objective=moco"], "ss_mast_mosaic, swav, vicreg, barlow_twins, dino, ssast, got 'moco'"),
    ],
)
def test_what_ssast_cannot_do_is_refused_in_one_sentence(words, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        pretrain.run(_config(*words, f"run={tmp_path / 'run'}"))


def _run(folder, *words: str) -> int:
    words = [
        *_SMALL, f"data={folder}/audio", "steps=6", "log_every=1", "checkpoint_every=2",
        "batch_size=4", "tensorboard=false", "export.pooling=mean", "show_views=2", *words,
    ]  # fmt: skip
    return run_command(pretrain.main, words, name="ssmast pretrain")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on tones."""
    folder = tmp_path_factory.mktemp("ssast")
    write_tones(folder / "audio")
    assert _run(folder, f"run={folder}/run") == 0
    return folder / "run"


def test_a_run_leaves_an_encoder_a_picture_and_a_report(run):
    encoder = load_encoder(run / "encoder")
    assert (encoder.pooling, encoder.dim) == ("mean", 128)
    assert encoder.embed(torch.randn(1, 50000), 16000).isfinite().all()
    config = json.loads((run / "encoder" / "config.json").read_text())
    assert config["architecture"] == "ssast_nano"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_discriminative", "loss_generative", "accuracy"} <= set(rows[-1])
    assert (run / "views.png").stat().st_size > 10_000
    page = (run / "report.html").read_text()
    assert "which of its patches are masked" in page
    assert "trained by SSAST on" in page
    assert "loss of matching masked patches (nats)" in page
    assert "InfoNCE" not in page


def test_a_run_that_was_cut_short_ends_in_the_same_bits(run, tmp_path):
    audio = run.parent
    assert _run(audio, f"run={tmp_path}/run", "show_views=0") == 0
    for later in sorted((tmp_path / "run" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    shutil.rmtree(tmp_path / "run" / "encoder")
    assert _run(audio, f"run={tmp_path}/run", "resume=auto", "show_views=0") == 0
    file = "encoder/model.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (run / file).read_bytes()


def test_an_encoder_that_gives_all_clips_one_embedding_raises_the_alarm():
    trainer = _trainer("optim.lr=1e-4", steps=60)
    with torch.no_grad():
        trainer.objective.network.backbone.norm.weight.zero_()
    trainer.objective.network.backbone.norm.weight.requires_grad_(False)
    steps = (1, 15, 30)  # of a longer run: an alarm wants to see at least twenty
    alarm, raised = Alarm(num_embeddings=8), {}
    for step in steps:
        row = trainer.numbers(trainer.train_step(_batch(seed=step)))
        raised = alarm.look({"step": step, **row})
    assert list(raised) == ["constant_encoder"]
    healthy, alarm = _trainer("optim.lr=1e-3", steps=60), Alarm(num_embeddings=8)
    for step in steps:
        row = healthy.numbers(healthy.train_step(_batch(seed=step)))
        assert not alarm.look({"step": step, **row}), row
