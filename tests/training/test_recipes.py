"""Every recipe builds, says how to run it, and takes a step."""

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from ssmast.audio import LogMel
from ssmast.audio.segments import SegmentBatch
from ssmast.model import IMAGENET
from ssmast.settings import parse
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.inputs import build_log_mel
from ssmast.training.objective import RunFacts
from ssmast.training.objectives import objective_of
from ssmast.training.objectives.ss_mast import SSMAST
from ssmast.training.optim import learning_rate
from ssmast.training.step import TrainingState
from tests.training.states import state_of

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
    run = RunFacts(log_mel=build_log_mel(config), num_clips=10**6, steps=1)
    with torch.device("meta"):  # sizes and names of the real thing, no numbers
        objective = objective_of(config.objective)(config, run)
    assert objective.encoders()["student"].num_features > 0
    assert build_log_mel(config).num_mels == config.front_end.num_mels
    text = (RECIPES / f"{name}.yaml").read_text()
    assert re.search(r"^# +ssmast pretrain |--num_processes \d+ -m ssmast pretrain ", text, re.M)
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
    config = _config("ss_mast_paper", *_SMALL, "model=mast_nano")
    rates = [learning_rate(config.optim, step, steps=50) for step in range(50)]
    assert rates == pytest.approx([0.03] * 50)


def test_the_base_recipe_scales_the_queue_to_the_corpus():
    config = _config("ss_mast_base", *_SMALL, "model=mast_nano")
    assert _trainer(config, num_clips=10_000).objective.queue.size == 500
    assert _trainer(config, num_clips=10**6).objective.queue.size == 16384


_SMALL = (
    "front_end.num_mels=32", "views.frames=32", "head.hidden=16", "head.dim=8",
    "views.mixup_memory=8",
)  # fmt: skip


def _trainer(config: PretrainConfig, *, num_clips: int = 10**6) -> TrainingState:
    return state_of(objective_of(config.objective), config, num_clips=num_clips, steps=10)


def _batch(config: PretrainConfig, *, seed: int, size: int = 2) -> SegmentBatch:
    generator = torch.Generator().manual_seed(seed)
    samples = (config.views.frames - 1) * 160
    views = objective_of(config.objective).num_segments
    return SegmentBatch(
        waveform=torch.randn(size, views, samples, generator=generator) * 0.1,
        clip=torch.arange(size) + 100 * seed,
        epoch=torch.zeros(size, dtype=torch.long),
        position=torch.arange(size) + size * seed,
    )


@pytest.mark.parametrize("name", ["ss_mast_paper", "ss_mast_base", "ss_ast_base"])
def test_the_settings_of_every_large_recipe_take_steps_with_a_small_model(name):
    small = {"mast_base": "mast_nano", "ast_base": "ast_nano"}
    model = small[_config(name).model]
    _two_steps(_config(name, *_SMALL, f"model={model}", "init=none"))


def _two_steps(config: PretrainConfig) -> None:
    trainer = _trainer(config)
    stem = trainer.objective.encoders()["student"].patch_embed.proj.weight
    for seed in (0, 1):  # the queue is empty in the first
        before = stem.detach().clone()
        result = trainer.train_step(_batch(config, seed=seed))
        assert not result.skipped
    assert float(result.loss.loss) > 0
    after = stem
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
        ("ssast_base", ("batch_size=2",)),
    ],
)
def test_the_real_thing_takes_steps(name, words, tmp_path: Path):
    config = _config(name, *words)
    if config.init == "imagenet":
        oracle = timm.create_model(IMAGENET[config.model].partition(".")[0], num_classes=0)
        save_file(oracle.state_dict(), tmp_path / "model.safetensors")
        objective = SSMAST(config, RunFacts(log_mel=LogMel(), num_clips=10**6, steps=1))
        report = objective.start_from_(tmp_path / "model.safetensors", None)
        assert len(report.used) + len(report.adapted) == len(oracle.state_dict())
    _two_steps(config)


def test_20_percent_of_the_patches_are_dropped_by_default():
    drop = PretrainConfig().patch_drop
    assert (drop.rate, drop.mode) == (0.2, "structured")
