import pytest

from ssmast.settings import parse
from ssmast.training.build import build_augment, build_log_mel, build_student
from ssmast.training.config import RECIPES, PretrainConfig

_NAMES = sorted(file.stem for file in RECIPES.glob("*.yaml"))


def test_the_recipes_that_the_documents_name_are_there():
    assert {"smoke", "real_nano"} <= set(_NAMES)


@pytest.mark.parametrize("name", _NAMES)
def test_every_recipe_builds_and_says_how_to_run_it(name):
    config = parse(PretrainConfig, [f"recipe={name}"], command="test", recipes=RECIPES)
    assert config is not None
    student = build_student(config)
    assert student.branch.backbone.num_features > 0
    assert build_log_mel(config).num_mels == config.front_end.num_mels
    build_augment(config)
    text = (RECIPES / f"{name}.yaml").read_text()
    assert "accelerate launch pretrain/run.py" in text
    assert "Hardware:" in text
    assert "Time" in text


def test_20_percent_of_the_patches_are_dropped_by_default():
    drop = PretrainConfig().patch_drop
    assert (drop.rate, drop.mode) == (0.2, "structured")
