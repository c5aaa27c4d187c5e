"""Keys of `ssmast compare`, and the variants that they name."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmast.evaluation.find_set import named_tasks
from ssmast.evaluation.read_set import load_set
from ssmast.evaluation.results import file_name
from ssmast.settings import (
    AUTO,
    SEEDS,
    Settings,
    UsageError,
    load_recipe,
    parse,
    require,
    setting,
)
from ssmast.training.config import RECIPES, PretrainConfig, ProbeWhileTraining
from ssmast.training.finetune.config import FinetuneConfig
from ssmast.training.finetune.objective import FineTuning
from ssmast.training.objectives import objective_of

LOG_EVERY = 10
"""Steps from one logged line to the next; the time that a run used is added up from them."""
# Settings that all variants have in common, or that say nothing about what is learnt.
_SHARED: dict[str, Any] = {
    "workers": 0,  # or its time would be that of other processes
    "threads": 1,
    "processes": 1,
    "log_every": LOG_EVERY,
    "keep_checkpoints": 1,
    "resume": "auto",
    "cache": "auto",
    "tensorboard": False,
    "show_views": 0,
}
ENCODER, CLASSIFIER = "encoder", "classifier"
_NOT_OF_A_VARIANT = {"data", "run", "steps", "epochs", "seed", "checkpoint_every", *_SHARED}
_BASELINES = ("untrained", "log_mel", "log-mel", "random_conv")


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Settings):
    """`ssmast compare`: variants of pretraining, or of fine-tuning, to a verdict."""

    data: str = setting(
        "", "unlabelled audio, as `ssmast pretrain` takes it; empty: the built-in corpus"
    )
    sets: str = setting(
        "", "folder of labelled sets, or one set, to score on; empty: the built-in corpus"
    )
    tasks: str = setting("all", "all, or [a,b:label=COLUMN,split=COLUMN] as in `ssmast probe`")
    score: str = setting(
        ENCODER,
        "what is scored: encoder, frozen, on sets=; or classifier, of recipes of fine-tuning "
        "alone, on the test part of labelled= (where it has folds, seed k tests on fold k + 1)",
        choices=(ENCODER, CLASSIFIER),
    )
    out: str = setting("", "folder of runs, scores and page; resumed if there", required=True)
    objectives: list[str] = setting([], "objectives to compare, such as [ss_mast,ss_mast_mosaic]")
    recipes: list[str] = setting(
        [],
        "recipes to compare, by name or .yaml file; one of fine-tuning (finetune_small) learns "
        "from scratch from the labels of labelled=",
    )
    labelled: str = setting(
        "",
        "labelled set that variants with a recipe of fine-tuning learn from; with score=classifier "
        "also a folder of sets, of which tasks= are learnt",
    )
    variants: str = setting(
        "",
        "single settings to compare: [name:key=value,key=value,other:key=value]; a name alone is "
        "the recipe as it is",
    )
    recipe: str = setting(
        AUTO,
        "recipe that objectives and variants start from; auto: real_nano, of classifiers "
        "finetune_small",
    )
    common: str = setting("", "settings of all variants: [key=value,key=value]")
    minutes: float = setting(
        20.0,
        "processor minutes of one core that each run trains for; on a GPU minutes of the clock",
        range="(0, inf)",
    )
    seeds: int = setting(3, "runs of each variant", range="[1, inf)")
    seed: int = setting(0, "first seed", range=SEEDS)
    scores_a_run: int = setting(
        4,
        "scores of each run while it trains, without whitening, for the curve over minutes: a "
        "linear layer, on at most 600 clips of each set and never its test part; 0: none",
        range="[0, inf)",
    )
    calibration_steps: int = setting(
        8, "steps that tell how many fit into the minutes", range="[2, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is compared.

    Attributes:
        name: of its folders.
        row: its name in the table; a row of classifiers is a variant for each set.
        task: set that its classifier learns; empty where its encoder is scored.
        folds: of that set, one of which a seed tests on; empty where it has none.
        words: `key=value` words that make it what it is.
        config: its settings; data, run, seed and steps are still those of nobody. With those of
            fine-tuning it learns from labels.
    """

    name: str
    row: str
    task: str = ""
    folds: Sequence[str] = ()
    words: tuple[str, ...]
    config: PretrainConfig | FinetuneConfig


def variants_of(config: CompareConfig) -> list[Variant]:
    """All that is to be compared, checked as far as possible without reading audio.

    Raises:
        UsageError: naming the variant and what is wrong with it.
        ValueError: if its networks cannot be built.
    """
    asked = [(name, (f"objective={name}",)) for name in config.objectives]
    asked += [(Path(name).stem, (f"recipe={name}",)) for name in config.recipes]
    asked += [(name, tuple(words)) for name, words in named_settings(config.variants).items()]
    if not asked:
        raise UsageError(
            "nothing to compare; give objectives=[a,b], recipes=[a,b] or variants=[name:key=value]"
        )
    names = [name for name, _ in asked]
    for name in names:
        if names.count(name) > 1 or name in _BASELINES or not re.fullmatch(r"[\w.+-]*\w", name):
            raise UsageError(
                f"variant {name!r} needs another name: letters, digits and . + - _, each once, "
                f"and none of {', '.join(_BASELINES)}"
            )
    variants = [
        Variant(
            name=f"{name}-{file_name(task)}" if task else name,
            row=name,
            task=task,
            folds=folds,
            words=words,
            config=_settings(config, name, [*_split(config.common), *words], task=task),
        )
        for task, folds in _tasks(config)
        for name, words in asked
    ]
    if config.labelled and not any(isinstance(one.config, FinetuneConfig) for one in variants):
        raise UsageError(
            f"labelled={config.labelled} is what recipes of fine-tuning learn from, and no variant "
            "has one; leave it out"
        )
    return variants


def _tasks(config: CompareConfig) -> list[tuple[str, list[str]]]:
    """Sets that classifiers learn, as tasks, and their folds; an empty one for encoders.

    Raises:
        UsageError: if there is none, or a setting is given that has no part in it.
        FileNotFoundError, ValueError: if a set cannot be read.
    """
    if config.score == ENCODER:
        return [("", [])]
    for key in ("data", "sets"):
        if getattr(config, key):
            raise UsageError(
                f"{key}={getattr(config, key)} has no part in score=classifier, which learns and "
                "tests on labelled=; leave it out"
            )
    require(bool(config.labelled), "labelled", "nothing", "the sets that score=classifier learns")
    names = named_tasks(config.labelled, config.tasks)
    return [(name, load_set(config.labelled, name).folds) for name in names]


def named_settings(text: str) -> dict[str, list[str]]:
    """Name of each variant -> its `key=value` words.

    >>> named_settings("[usual, wide:optim.lr=1e-3,views.crop_time=[0.6, 1.5]]")
    {'usual': [], 'wide': ['optim.lr=1e-3', 'views.crop_time=[0.6, 1.5]']}

    Raises:
        UsageError: if a word belongs to no name, or a name comes twice.
    """
    found: dict[str, list[str]] = {}
    for word in _split(text):
        before, equals, _ = word.partition("=")
        name, colon, _ = before.partition(":")
        if colon or not equals:
            if name in found:
                raise UsageError(f"variant {name!r} comes twice in variants=; name each once")
            found[name] = [rest] if (rest := word[len(name) + 1 :]) else []
        elif found:
            found[next(reversed(found))].append(word)
        else:
            raise UsageError(f"variants={text} must begin with a name, as [name:{word}]")
    return found


def _split(text: str) -> list[str]:
    """The parts of `[a,b]` or `a,b`; a comma within brackets parts nothing."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in map(str.strip, parts) if part]


def _settings(
    config: CompareConfig, name: str, words: list[str], *, task: str
) -> PretrainConfig | FinetuneConfig:
    """The settings of a variant, with all that `ssmast compare` decides itself."""
    for word in words:
        key = word.partition("=")[0]
        if "=" not in word:
            raise UsageError(f"variant {name}: settings are key=value words, got {word!r}")
        is_shared = key in _NOT_OF_A_VARIANT or key.startswith("probe.")
        if is_shared or (task and key in ("task", "fold")):
            raise UsageError(
                f"variant {name}: {key} is the same for all variants and set by `ssmast compare` "
                "itself; leave it out"
            )
    said = [word.partition("=")[2] for word in words if word.startswith("recipe=")]
    usual = "finetune_small" if task else "real_nano"
    recipe = usual if config.recipe == AUTO else config.recipe
    try:
        tunes = "heads" in load_recipe((said or [recipe])[-1], RECIPES)
        if tunes:
            wanted = "the set that this recipe learns from"
            require(bool(config.labelled), "labelled", "nothing", wanted)
            words = [f"data={config.labelled}", "init=none", *words]
            words += [f"task={task}"] if task else []
        elif task:
            raise UsageError(
                "score=classifier is of recipes of fine-tuning, such as recipe=finetune_small; "
                "this one pretrains, so leave score= out"
            )
        parsed = parse(
            FinetuneConfig if tunes else PretrainConfig,
            words,
            command=f"variant {name}",
            recipes=RECIPES,
            default_recipe=recipe,
        )
        assert parsed is not None, "no word is a flag"
        if isinstance(parsed, FinetuneConfig):
            tuned = FineTuning.resolve(parsed)
            if not task:  # its encoder is compared, as it ends, so it is validated there alone
                scoring = dataclasses.replace(tuned.scoring, every=1 << 30)
                tuned = dataclasses.replace(tuned, scoring=scoring)
            return dataclasses.replace(tuned, **_SHARED)
        kind = objective_of(parsed.objective)
        probe = ProbeWhileTraining()
        settings = dataclasses.replace(
            kind.resolve(parsed), data=config.data, probe=probe, **_SHARED
        )
        kind.check(settings)
    except UsageError as error:
        raise UsageError(f"variant {name}: {error}") from error
    return settings
