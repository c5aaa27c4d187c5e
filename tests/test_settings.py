from dataclasses import FrozenInstanceError, dataclass, replace

import pytest

from ssmast.export import ExportConfig
from ssmast.settings import (
    RENAMED,
    Settings,
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


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimiser."""

    lr: float = setting(1e-3, "peak learning rate", range="(0, 10)")
    betas: list[float] = setting([0.9, 0.95], "decay rates", range="[0, 1)", length=2)


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    recipe: str = setting("", "recipe")
    data: str = setting("", "folder of audio")
    steps: int = setting(100, "optimiser steps", range="0 or [2, inf)")
    verbose: bool = setting(False, "say more")
    rate: float | None = setting(0.5, "fraction", range="[0, 1]", auto=True)
    part: str = setting("", "part", choices=("train", "valid", "test"))
    words: list[str] = setting([], "words", choices=("no", "go"))
    free: float = setting(0.0, "any number")
    optim: Optim = setting(Optim)


@dataclass(frozen=True, kw_only=True)
class Needy(Settings):
    data: str = setting("", "folder of audio", required=True)
    items: list[int] = setting([], "numbers", required=True)


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


@pytest.mark.parametrize("text", ["a${b}c", "${oc.env:HOME}", "${", "a\\${steps}", "a\\b"])
def test_a_path_is_taken_literally(text, capsys, tmp_path):
    """Nothing is put in the place of another key or a variable of the environment."""
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
        with pytest.raises(UsageError, match="takes key=value words") as error:
            _parse(*words, positional="data")
        assert ("which is data=one already, got 'two'" in str(error.value)) == ("two" in words)


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
        ("loss.steps=1", "did you mean 'steps'"),
        ("zzz=1", "--help lists the keys"),
        ("device=cpu", "unknown key 'device'.*CUDA_VISIBLE_DEVICES=1 before the command"),
        ("steps=many", "steps=many .* does not fit"),
        ("steps=1.5", "steps=1.5 .* does not fit"),
        ("optim.lr={", "optim.lr={ .* does not fit: wanted a number"),
        ("verbose=1", "verbose=1 in `ssmast test` does not fit: wanted true or false"),
        ("steps=true", "wanted a whole number"),
        ("steps=inf", "wanted a whole number"),
        ("steps=1", "steps must be 0 or at least 2, got 1"),
        ("steps=-1", "steps must be 0 or at least 2, got -1"),
        ("free=inf0", "wanted a number"),
        ("rate=1.01", "rate must be from 0 to 1 or auto, got 1.01"),
        ("rate=inf", "rate must be from 0 to 1 or auto, got inf"),
        ("part=all", "part must be one of train, valid, test, got 'all'"),
        ("words=[no]", r"wanted a list such as \[a, 'no'\]"),
        ("words=['no', so]", r"words must be no or go, got \['no', 'so'\]"),
        ("optim.lr=0", "optim.lr must be above 0 and below 10, got 0"),
        ("optim.betas=[0.5]", "optim.betas must be 2 numbers, each at least 0 and below 1, got"),
        ("optim.betas=[0.5, 1]", "optim.betas must be 2 numbers, each at least 0 and below 1, got"),
        ("optim.betas=0.5", "wanted a list such as"),
        ("steps", "takes key=value words without spaces, got 'steps'; see `ssmast test --help`"),
        ("--steps=3", "takes key=value words without spaces, got '--steps=3'; write steps=3"),
        ("optim.lr=nan", "optim.lr=nan .* does not fit: wanted a number"),
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
        ("steps: 7\nfree: 1\nsteps: 9", "steps comes twice .*, line 1"),
        ("optim: {lr: 0.1, lr: 0.2}", "lr comes twice"),
        ("\tsteps: 7", "cannot be read as plain YAML"),
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
        data="a b/[c]: d",
        steps=7,
        verbose=True,
        words=["no"],
        optim=Optim(lr=1e-4, betas=[0.5, 0.6]),
    )
    words = to_words(config)
    assert words[0] == "data=a b/[c]: d"
    assert _parse(*words) == config
    assert to_words(Config()) == []


def test_a_schema_is_checked_in_python_too_and_frozen(tmp_path):
    with pytest.raises(UsageError, match=r"optim\.lr must be above 0"):
        Config(optim=Optim(lr=-1.0))
    for wrong in ("3", 2.5, True, None):
        with pytest.raises(UsageError, match="steps must be 0 or at least 2, got"):
            Config(steps=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="data must be text, got"):
        Config(data=tmp_path)
    config = Config(rate=None, steps=0, words=["go"])
    with pytest.raises(UsageError, match="rate must be from 0 to 1 or auto, got nan"):
        replace(config, rate=float("nan"))
    with pytest.raises(FrozenInstanceError):
        config.steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_required_key_is_asked_for_unless_only_the_settings_are_printed(capsys):
    for words in ([], ["data="], ["items=[1]"]):
        with pytest.raises(UsageError, match="data= is missing; wanted: folder of audio; see `t -"):
            parse(Needy, words, command="t")
    with pytest.raises(UsageError, match="items= is missing"):
        parse(Needy, ["data=x"], command="t")
    assert parse(Needy, ["data=x", "items=[1]"], command="t") == Needy(data="x", items=[1])
    assert parse(Needy, ["--print-config"], command="t") is None
    assert "items: []" in capsys.readouterr().out


def test_help_says_what_a_key_may_be(capsys):
    assert _parse("--help") is None
    said = " ".join(capsys.readouterr().out.split())
    for text in (
        "steps optimiser steps [whole number, 0 or at least 2; default 100]",
        "rate fraction [number, from 0 to 1 or auto; default 0.5]",
        "part part [one of train, valid, test]",
        "optim: Optimiser.",
        "optim.lr peak learning rate [number, above 0 and below 10; default 0.001]",
        "optim.betas decay rates [list, 2 numbers, each at least 0 and below 1; default [0.9, ",
    ):
        assert text in said
    assert parse(Needy, ["--help"], command="t") is None
    assert "data   folder of audio [text; required]" in capsys.readouterr().out


def test_no_schema_takes_a_word_for_another_type(tmp_path):
    """YAML reads `off` as false: a text key must not turn that into a folder named False."""
    (tmp_path / "r.yaml").write_text("data: off\n")
    with pytest.raises(UsageError, match="data=False in the recipe does not fit: wanted text"):
        _parse("recipe=r", recipes=tmp_path)
    (tmp_path / "r.yaml").write_text("data: 7\nsteps: 1e3\n")
    config = _parse("recipe=r", recipes=tmp_path)
    assert (config.data, config.steps) == ("7", 1000)


def test_numbers_are_decimal_and_names_of_digits_stay_as_written(tmp_path):
    """YAML 1.1 reads 010 as 8, 1:30 as 90, 1.50 as 1.5 and 1_0 as 10: a class 01 would be 1."""
    assert (_parse("steps=010").steps, _parse("free=1.50").free) == (10, 1.5)
    assert _parse("steps=12345678901234567891").steps == 12345678901234567891
    for word in ("steps=0x10", "steps=1:30", "free=2024-01-01", "steps=1e400"):
        with pytest.raises(UsageError, match="does not fit: wanted a"):
            _parse(word)

    @dataclass(frozen=True, kw_only=True)
    class Names(Settings):
        recipe: str = setting("", "recipe")
        run: str = setting("", "name")
        names: list[str] = setting([], "names")

    written = ["01", "1", "010", "1.0", "1.50", "1e3", "1_0", "1:30", "2024-01-01", "-0", "0x1F"]
    listed = f"[{', '.join(written)}]"
    assert parse(Names, [f"names={listed}"], command="t").names == written
    for name in written:
        (tmp_path / "r.yaml").write_text(f"run: {name}\nnames: {listed}\n")
        found = parse(Names, ["recipe=r"], command="t", recipes=tmp_path)
        assert (found.run, found.names) == (name, written)
    (tmp_path / "r.yaml").write_text("optim: {<<: {lr: 0.1, betas: [0, 0.5]}, lr: 0.2}\n")
    assert _parse("recipe=r", recipes=tmp_path).optim == Optim(lr=0.2, betas=[0, 0.5])


def test_an_old_key_is_refused_with_its_new_name(tmp_path):
    config = [PretrainConfig, FinetuneConfig, ExportConfig]
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
