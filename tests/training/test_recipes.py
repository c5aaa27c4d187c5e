"""Every recipe builds, says how to run it, and takes a step."""

from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from ssmast.audio import LogMel
from ssmast.model import IMAGENET
from ssmast.settings import parse
from ssmast.training.build import build_augment, build_log_mel, build_student
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.init_weights import find_weights, read_weights, start_from_
from ssmast.training.objectives.ss_mast import Pretraining
from ssmast.training.objectives.ssast import build_masked_encoder

_NAMES = sorted(
    file.stem for file in RECIPES.glob("*.yaml") if not file.stem.startswith("finetune_")
)


def _config(name: str, *words: str) -> PretrainConfig:
    argv = [f"recipe={name}", *words]
    config = parse(PretrainConfig, argv, command="test", recipes=RECIPES)
    assert config is not None
    return config


def test_the_recipes_that_the_documents_name_are_there():
    names = {"smoke", "real_nano", "ss_mast_paper", "ss_mast_base", "ss_ast_base"}
    assert names <= set(_NAMES)


@pytest.mark.parametrize("name", _NAMES)
def test_every_recipe_builds_and_says_how_to_run_it(name):
    config = _config(name)
    with torch.device("meta"):  # sizes and names of the real thing, no numbers
        if config.objective == "ssast":
            backbone = build_masked_encoder(config).backbone
        else:
            backbone = build_student(config).branch.backbone
    assert backbone.num_features > 0
    assert build_log_mel(config).num_mels == config.front_end.num_mels
    build_augment(config)
    text = (RECIPES / f"{name}.yaml").read_text()
    assert "accelerate launch -m ssmast pretrain" in text
    for fact in ("Hardware: ", "Time: ", "Score: "):
        assert fact in text or (fact != "Hardware: " and "Time and score: " in text)


def test_the_paper_recipe_holds_the_released_settings():
    config = _config("ss_mast_paper")
    assert (config.optim.name, config.optim.lr, config.optim.min_lr) == ("sgd", 0.03, 0.03)
    assert config.loss.temperature == 0.07
    assert (config.loss.queue_size, config.batch_size) == (65536, 16)
    assert config.teacher.momentum == config.teacher.final_momentum == 0.999
    assert (config.head.kind, config.head.dim, config.head.predictor) == ("linear", 256, 0)
    assert (config.patch_drop.rate, config.patch_drop.mode) == (0.2, "random")
    assert (config.views.segments, config.views.frames) == (1, 512)


def test_the_ssast_recipe_holds_the_published_settings():
    config = _config("ssast_base")
    assert (config.objective, config.model, config.batch_size) == ("ssast", "ssast_base", 24)
    assert (config.ssast.masked * 512, config.ssast.cluster) == (400, [3, 5])
    assert config.ssast.weight == 10
    assert (config.optim.lr, config.optim.betas) == (1e-4, [0.95, 0.999])
    assert config.views.frames == 1024


def test_without_warm_up_and_decay_the_learning_rate_is_constant():
    trainer = _trainer(_config("ss_mast_paper", *_SMALL, "model=mast_nano"), steps=50)
    rates = []
    for trainer.step in range(50):
        rates.append(trainer.lr)
    assert rates == pytest.approx([0.03] * 50)


def test_the_base_recipe_scales_the_queue_to_the_corpus():
    config = _config("ss_mast_base", *_SMALL, "model=mast_nano")
    assert _trainer(config, num_clips=10_000).queue.size == 500
    assert _trainer(config, num_clips=10**6).queue.size == 16384


_SMALL = (
    "front_end.num_mels=32", "views.frames=32", "head.hidden=16", "head.dim=8",
    "views.mixup_memory=8",
)  # fmt: skip


def _trainer(config: PretrainConfig, *, num_clips: int = 10**6, steps: int = 10) -> Pretraining:
    mels = config.front_end.num_mels
    return Pretraining(
        config,
        accelerator=Accelerator(cpu=True),
        log_mel=LogMel(num_mels=mels, mean=-5.0, std=4.0),
        num_clips=num_clips,
        steps=steps,
    )


def _batch(config: PretrainConfig, *, seed: int, size: int = 2) -> dict[str, object]:
    generator = torch.Generator().manual_seed(seed)
    samples = (config.views.frames - 1) * 160
    return {
        "waveform": torch.randn(size, 2, samples, generator=generator) * 0.1,
        "clip": torch.arange(size) + 100 * seed,
        "epoch": torch.zeros(size, dtype=torch.long),
        "position": torch.arange(size) + size * seed,
        "rejected": [],
    }


@pytest.mark.parametrize("name", ["ss_mast_paper", "ss_mast_base", "ss_ast_base"])
def test_the_settings_of_every_large_recipe_take_steps_with_a_small_model(name):
    small = {"mast_base": "mast_nano", "ast_base": "ast_nano"}
    model = small[_config(name).model]
    _two_steps(_config(name, *_SMALL, f"model={model}", "init=none"))


def _two_steps(config: PretrainConfig) -> None:
    trainer = _trainer(config)
    for seed in (0, 1):  # the queue is empty in the first
        before = trainer.student.branch.backbone.patch_embed.proj.weight.detach().clone()
        values = trainer.train_step([_batch(config, seed=seed)])
        assert not values["skipped"]
    assert float(values["loss"]) > 0
    after = trainer.student.branch.backbone.patch_embed.proj.weight
    assert not torch.equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ss_mast_base", ()),
        ("ss_mast_base", ("patch_drop.rate=0",)),
        ("ss_mast_base", ("init=imagenet",)),
        ("ss_mast_paper", ()),
        ("ss_ast_base", ()),
    ],
)
def test_the_real_thing_takes_steps(name, words, tmp_path: Path):
    config = _config(name, *words)
    if config.init == "imagenet":
        oracle = timm.create_model(IMAGENET[config.model].partition(".")[0], num_classes=0)
        save_file(oracle.state_dict(), tmp_path / "model.safetensors")
        student = build_student(config)
        weights = read_weights(find_weights(str(tmp_path / "model.safetensors"), config.model))
        from ssmast.contrastive import Teacher

        report = start_from_(
            student, Teacher(student.branch), weights, model=config.model, log_mel=LogMel()
        )
        assert len(report.used) + len(report.adapted) == len(oracle.state_dict())
    _two_steps(config)


def test_20_percent_of_the_patches_are_dropped_by_default():
    drop = PretrainConfig().patch_drop
    assert (drop.rate, drop.mode) == (0.2, "structured")
