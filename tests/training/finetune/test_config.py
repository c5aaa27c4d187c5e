"""Every key of a fine-tuning is of effect where it should be."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from ssmast.settings import flat_fields, parse
from ssmast.training.config import RECIPES
from ssmast.training.finetune.config import FinetuneConfig
from ssmast.training.finetune.objective import FineTuning
from ssmast.training.finetune.selection import Validation
from ssmast.training.finetune.setup import Setup, set_up
from ssmast.training.inputs import build_log_mel, mean_and_std, segment_loader
from ssmast.training.objective import RunFacts
from ssmast.training.step import TrainingState
from tests.sets import write_set
from tests.training.finetune.test_command import SMALL

# Key -> another value, and what else has to be set for it to count.
_CHANGES = {
    "model": "ast_nano", "steps": "9", "batch_size": "6", "seed": "1", "drop_path": "0.5",
    "labels": "[fold]", "task": "tones:protocol=folds", "fold": "2 task=tones:protocol=folds",
    "pooling_schedule": "none",
    "front_end.sample_rate": "32000", "front_end.n_fft": "512", "front_end.hop_length": "100",
    "front_end.num_mels": "48", "front_end.f_min": "100", "front_end.f_max": "7000",
    "front_end.stats_clips": "3", "front_end.kind": "kaldi",
    "optim.name": "sgd", "optim.lr": "1e-3", "optim.min_lr": "1e-5", "optim.warmup": "0.9",
    "optim.weight_decay": "50", "optim.betas": "[0.5, 0.6]", "optim.momentum": "0.1 optim.name=sgd",
    "optim.max_grad_norm": "0.01", "optim.layer_decay": "0.1", "optim.ema": "0.5",
    "clips.frames": "64", "clips.balanced": "true", "clips.waveform_augment": "1",
    "clips.mixup_rate": "1", "clips.mixup_alpha": "0.1 clips.mixup_rate=1",
    "clips.time_shift": "0", "clips.noise_std": "1", "clips.freq_mask": "16",
    "clips.time_mask": "0",
    "heads.pooling": "freq+max", "heads.dropout": "0.5", "heads.smoothing": "0.2",
    "heads.standardize": "false", "heads.lr_scale": "[30.0]", "heads.freeze": "1",
}  # fmt: skip
# What cannot change a step, and where it is tested.
_ELSEWHERE = {
    "track": "test_trackers",
    "channel": "test_read",
    "recipe": "test_finetune", "data": "test_finetune", "run": "test_finetune",
    "init": "test_finetune", "epochs": "test_finetune", "resume": "test_finetune",
    "workers": "test_finetune", "threads": "test_pretrain", "processes": "test_pretrain",
    "optim.gradient_accumulation_steps": "test_finetune", "max_skipped": "test_finetune",
    "show_views": "test_finetune", "checkpoint_every": "test_config",
    "keep_checkpoints": "test_config", "log_every": "test_config", "tensorboard": "test_config",
    "cache": "test_config", "precision": "test_config", "max_bad_fraction": "test_bad_input",
    "heads.probe": "test_finetune_heads", "optim.swa_fraction": "test_finetune",
    "scoring.metric": "test_finetune", "scoring.every": "test_finetune",
    "scoring.held_out": "below", "scoring.one_se_rule": "below", "scoring.max_windows": "below",
    "scoring.batch_seconds": "below", "grad_checkpointing": "below",
    "scoring.precision": "below",
    "compile": "test_compile", "tf32": "test_launch", "deterministic": "test_launch",
    "cudnn_attention": "test_launch",
    "optim.wise_ft_alphas": "below",
    "events.when": "test_finetune", "events.hop": "test_finetune",
    "events.threshold": "test_finetune", "events.background": "test_evaluate_events",
    "events.collar": "test_events",
}  # fmt: skip


def test_every_key_of_fine_tuning_is_tested():
    assert not _CHANGES.keys() & _ELSEWHERE.keys()
    assert _CHANGES.keys() | _ELSEWHERE.keys() == flat_fields(FinetuneConfig).keys()


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A set with fewer clips of one class to train on than of the others."""
    folder = write_set(tmp_path_factory.mktemp("sets") / "tones", num_clips=24)
    _rewrite(folder, lambda line: "" if ",low,train,2" in line else line)
    return folder


def _rewrite(folder: Path, change: Callable[[str], str]) -> None:
    file = folder / "metadata.csv"
    file.write_text("".join(map(change, file.read_text().splitlines(keepends=True))))


def _setup(tones, *words: str) -> Setup:
    argv = [*SMALL, f"data={tones}", "optim.lr=1e-4", *words]
    config = parse(FinetuneConfig, argv, command="test", recipes=RECIPES)
    assert config is not None
    return set_up(config)


def _trainer(tones, *words: str) -> TrainingState:
    setup = _setup(tones, *words)
    config, corpus = setup.config, setup.clips
    mean, std = mean_and_std(config, corpus, decoded=corpus, frames=config.clips.frames)
    log_mel = build_log_mel(config, mean=mean, std=std)
    run = RunFacts(log_mel=log_mel, num_clips=len(corpus), steps=config.steps, data=setup)
    return TrainingState(FineTuning(config, run), Accelerator(cpu=True))


def _trained(tones, *words: str) -> list[float]:
    """What three steps leave behind: losses and weights of what is trained and what is scored."""
    trainer = _trainer(tones, *words)
    objective = trainer.objective
    items = FineTuning.items(trainer.config, objective.setup.clips, objective.setup)
    loader = segment_loader(trainer.config, items, first_step=0, steps=3, rank=0, num_ranks=1)
    left = [float(trainer.train_step(batch).loss.loss) for batch in loader]
    for network in (objective.network, objective.scored):
        left.append(sum(float(p.detach().double().square().sum()) for p in network.parameters()))
    return left


@pytest.fixture(scope="module")
def usual(tones) -> dict[str, list[float]]:
    """Of the settings as they are, by what else is set."""
    return {words: _trained(tones, *words.split()) for words in _bases()}


def _bases() -> list[str]:
    return sorted({_CHANGES[key].replace(", ", ",").partition(" ")[2] for key in _CHANGES})


def test_the_same_settings_train_the_same(tones, usual):
    assert _trained(tones) == usual[""]


@pytest.mark.parametrize("key", _CHANGES)
def test_a_key_that_should_change_a_step_does(key, tones, usual):
    value, _, others = _CHANGES[key].replace(", ", ",").partition(" ")
    assert _trained(tones, *others.split(), f"{key}={value}") != usual[others]


def test_checkpointing_recomputes_and_changes_no_number(tones, usual):
    words = "grad_checkpointing=true"
    parts = _trainer(tones, words).objective.network.modules()
    assert any(getattr(part, "grad_checkpointing", False) for part in parts)
    assert _trained(tones, words) == pytest.approx(usual[""], rel=1e-5)


def test_how_it_is_scored_follows_its_keys(tones):
    words = ["scoring.max_windows=3", "scoring.one_se_rule=2", "scoring.batch_seconds=7"]
    words += ["scoring.precision=bf16"]
    trainer = _trainer(tones, *words).objective
    assert trainer.classifier(trainer.network).max_windows == 3
    assert trainer.classifier(trainer.network).precision == "bf16"
    assert trainer.batch_seconds == 7
    # Two standard errors below the highest of few clips, the lower loss is better.
    trainer.kept.keep_if_best_(trainer.network, score=0.9, loss=1.0, step=1)
    trainer.kept.keep_if_best_(trainer.network, score=0.8, loss=0.5, step=2)
    assert trainer.kept.best.step == 2


def test_the_share_that_is_held_out_is_the_validation_part(tmp_path):
    folder = write_set(tmp_path / "tones", num_clips=24)
    _rewrite(folder, lambda line: line.replace(",valid,", ",train,"))
    sizes = [len(_setup(folder, f"scoring.held_out={share}").split.valid)
             for share in (0.2, 0.5)]  # fmt: skip
    assert 0 < sizes[0] < sizes[1]


def test_points_between_the_first_weights_and_the_last_compete(tones, monkeypatch):
    words = ["heads.probe=true", "optim.swa_fraction=0", "optim.wise_ft_alphas=[0.25, 0.5]"]
    trainer = _trainer(tones, *words).objective
    trainer.kept.keep_if_best_(trainer.network, score=0.5, loss=1.0, step=0)
    first = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter += 1.0
    scored = []

    def score(validation):
        scored.append(trainer.scored.state_dict()["patch_embed.proj.bias"].clone())
        return {"accuracy": 0.1, "loss": 2.0}

    monkeypatch.setattr(Validation, "score", score)
    trainer._try_mixtures_()
    before = first["patch_embed.proj.bias"]
    for found, share in zip(scored, (0.25, 0.5), strict=True):
        torch.testing.assert_close(found, before + share)


def test_smoothing_that_the_loss_of_several_labels_does_not_have_is_told(tones, caplog):
    words = [*SMALL, f"data={tones}", "heads.smoothing=0.2"]
    for several in (False, True):
        words += ["task=tones:multi_label=true"] if several else []
        config = parse(FinetuneConfig, words, command="test", recipes=RECIPES)
        assert config is not None
        FineTuning.resolve(config)
        assert ("heads.smoothing=0.2 has no effect" in caplog.text) == several
