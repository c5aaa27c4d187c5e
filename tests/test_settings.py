from dataclasses import dataclass

import pytest

from ssmast.settings import (
    RENAMED,
    UsageError,
    flat_fields,
    parse,
    setting,
    to_words,
    to_yaml,
)
from ssmast.training.config import PretrainConfig
from ssmast.training.finetune.config import FinetuneConfig
from ssmast.training.run_folder import RunFolder


@dataclass
class Optim:
    lr: float = setting(1e-3, "peak learning rate")
    betas: list[float] = setting([0.9, 0.95], "decay rates")


@dataclass
class Config:
    recipe: str = setting("", "recipe")
    data: str = setting("", "folder of audio")
    steps: int = setting(100, "optimiser steps")
    verbose: bool = setting(False, "say more")
    rate: float | None = setting(0.5, "share")
    label: str | None = setting(None, "column")
    optim: Optim = setting(Optim, "")


def _parse(*words, **kwargs):
    return parse(Config, list(words), command="ssmast test", **kwargs)


def test_defaults_then_words():
    config = _parse("optim.lr=3e-4", "steps=1e3", "verbose=true", "optim.betas=[0.9, 0.99]")
    assert config == Config(steps=1000, verbose=True, optim=Optim(lr=3e-4, betas=[0.9, 0.99]))


def test_a_number_may_be_left_open(tmp_path, capsys):
    assert _parse("rate=auto").rate is None
    assert _parse("rate=1e-3").rate == 0.001
    (tmp_path / "open.yaml").write_text("{rate: auto, data: auto}")
    open_ = _parse("recipe=open", recipes=tmp_path)
    assert (open_.rate, open_.data) == (None, "auto")
    assert "rate: auto" in to_yaml(open_)
    assert "label: null" in to_yaml(open_)
    (tmp_path / "again.yaml").write_text(to_yaml(open_))
    assert _parse("recipe=again", recipes=tmp_path).rate is None
    assert _parse(*to_words(open_), "rate=auto").rate is None
    assert _parse(*to_words(Config(rate=None))) == Config(rate=None)
    with pytest.raises(UsageError, match=r"steps=auto in .* does not fit"):
        _parse("steps=auto")
    with pytest.raises(UsageError, match=r"rate=fast in .* does not fit"):
        _parse("rate=fast")


def test_a_path_is_taken_as_it_stands():
    odd = "/mnt/a b/{x}: [1]#'"
    assert _parse(f"data={odd}").data == odd
    assert _parse("data=2024-01-01").data == "2024-01-01"
    assert _parse("label=null").label is None
    assert _parse("label=speaker").label == "speaker"


@pytest.mark.parametrize("text", ["a${b}c", "${oc.env:HOME}", "${", "a\\${steps}", "a\\b"])
def test_a_path_is_taken_literally(text, capsys, tmp_path):
    """omegaconf would put other keys and variables of the environment there."""
    config = _parse(f"data={text}")
    assert config is not None
    assert config.data == text
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    again = _parse("recipe=again", recipes=tmp_path)
    assert again is not None
    assert again.data == text


def test_one_word_without_a_key_where_a_command_allows_it():
    assert _parse("a folder", "steps=3", positional="data") == Config(data="a folder", steps=3)
    for words in (("one", "two"), ("data=one", "two"), ("--one",)):
        with pytest.raises(UsageError, match="takes key=value words"):
            _parse(*words, positional="data")


def test_a_list_for_a_text_key_of_a_recipe_stays_as_text(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data:\n- path: a\n  weight: 2\n- path: b\n")
    data = _parse(f"recipe={recipe}", recipes=tmp_path).data
    assert data == "[{path: a, weight: 2}, {path: b}]"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'.*did you mean 'optim.lr'"),
        ("lr=1", "did you mean 'optim.lr'"),
        ("zzz=1", "--help lists the keys"),
        ("steps=many", "steps=many .* does not fit"),
        ("steps=1.5", "steps=1.5 .* does not fit"),
        ("optim.lr={", "cannot be read as a value"),
        ("steps", "takes key=value words without spaces, got 'steps'; see `ssmast test --help`"),
        ("--steps=3", "takes key=value words without spaces, got '--steps=3'; write steps=3"),
        ("optim.lr=nan", "optim.lr=nan .* does not fit: it is no number"),
    ],
)
def test_mistakes_are_one_sentence(word, message):
    with pytest.raises(UsageError, match=message) as error:
        _parse(word)
    assert "\n" not in str(error.value)


def test_recipe_lies_between_defaults_and_words(tmp_path):
    (tmp_path / "small.yaml").write_text("steps: 7\noptim: {lr: 0.5}\n")
    config = _parse("recipe=small", "optim.lr=0.1", recipes=tmp_path)
    assert (config.steps, config.optim.lr, config.recipe) == (7, 0.1, "small")
    by_path = _parse(f"recipe={tmp_path}/small.yaml", recipes=tmp_path / "none")
    assert by_path.steps == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 7", "unknown key 'stepz' in the recipe; did you mean 'steps'"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as plain YAML"),
        ("[1, 2]", "must hold `key: value` lines, got list"),
        ("steps: many", "does not fit"),
    ],
)
def test_bad_recipes_are_refused(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        _parse("recipe=bad", recipes=tmp_path)


def test_unknown_recipe_lists_those_there_are(tmp_path):
    (tmp_path / "small.yaml").write_text("steps: 7\n")
    with pytest.raises(UsageError, match=r"'smal' was not found.*one of: small"):
        _parse("recipe=smal", recipes=tmp_path)


def test_help_names_every_key_and_print_config_every_value(capsys):
    assert _parse("--help") is None
    shown = capsys.readouterr().out
    assert all(key in shown for key in ("data", "steps", "optim.lr", "peak learning rate"))
    assert _parse("--print-config", "steps=3") is None
    assert "steps: 3" in capsys.readouterr().out


def test_a_dry_run_is_refused_where_the_command_knows_none(capsys):
    assert _parse("--dry-run", dry_run=True) == Config()
    with pytest.raises(UsageError, match="`ssmast test` has no --dry-run"):
        _parse("--dry-run")
    for known in (True, False):
        assert _parse("--help", dry_run=known) is None
        assert ("--dry-run" in capsys.readouterr().out) == known


def test_settings_as_words_are_those_settings_again():
    config = Config(
        data="a b/[c]: d", steps=7, verbose=True, label="x", optim=Optim(lr=1e-4, betas=[0.5, 0.6])
    )
    words = to_words(config)
    assert words[0] == "data=a b/[c]: d"
    assert _parse(*words) == config
    assert to_words(Config()) == []


def test_an_old_key_is_refused_with_its_new_name(tmp_path):
    config = [PretrainConfig, FinetuneConfig]
    for old, new in RENAMED.items():
        schema = next(each for each in config if new in flat_fields(each))
        with pytest.raises(UsageError, match=f"{old} in `t` is now {new}"):
            parse(schema, [f"{old}=1"], command="t")
        # Never two names at a time.
        assert not any(old in flat_fields(each) for each in config)
    (tmp_path / "old.yaml").write_text("optim: {accumulate: 2}")
    with pytest.raises(UsageError, match=r"accumulate in the recipe is now optim\.gradient_accum"):
        parse(PretrainConfig, ["recipe=old"], command="t", recipes=tmp_path)


def test_a_run_of_an_older_version_is_refused_and_the_version_named(tmp_path):
    (tmp_path / "config.yaml").write_text("method: ss_mast\n")
    with pytest.raises(UsageError, match=r"method in .*ssmast 0\.1\.0.* is now objective"):
        RunFolder(path=tmp_path).read_config()
