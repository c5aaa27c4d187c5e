"""Pretrain an encoder without labels: SS-MAST, or another objective (objective=).

ssmast pretrain recipe=real_nano data=FOLDER run=runs/mine
ssmast pretrain recipe=smoke
accelerate launch --multi_gpu --num_processes 2 -m ssmast pretrain recipe=smoke     (two processes)
"""

import sys
from pathlib import Path
from typing import Any, cast

from ssmast.command import run_command
from ssmast.settings import UsageError, command, parse, wants_dry_run
from ssmast.training import show_views
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.objective import Objective
from ssmast.training.objectives import objective_of
from ssmast.training.run import run_training

PRETRAINING: dict[str, Any] = {"dry_run": True, "recipes": RECIPES, "default_recipe": "smoke"}
"""How `settings.parse` reads the words of a pretraining, beside its keys."""


@command(PretrainConfig, "ssmast pretrain", **PRETRAINING)
def main(config: PretrainConfig, argv: list[str]) -> int:
    """`ssmast pretrain`: parse, then run; 0 when the encoder stands."""
    run(config, dry_run=wants_dry_run(argv))
    return 0


def run(config: PretrainConfig, *, dry_run: bool = False) -> Path:
    """Pretrain as the settings say and return the run folder; see `run.run_training`."""
    return run_training(objective_of(config.objective), config, dry_run=dry_run)


def train(kind: type[Objective[Any, Any, Any]], argv: list[str] | None = None) -> int:
    """Pretrain with an objective of your own; the command line of the file that holds it.

        if __name__ == "__main__":
            sys.exit(ssmast.train(Mine))

    The keys are those of `ssmast pretrain` and what `Mine.settings` adds; `show-views` as the first
    word draws what the objective is fed.

    Args:
        kind: class of the objective.
        argv: words of the command line; by default those after the file's name.

    Returns:
        Exit status: 0 when the encoder stands, 2 for a wrong command line, 1 for wrong input.

    Raises:
        TypeError: if the class is no `Objective`, has no `loss`, or its settings are none of
            pretraining.
    """
    if not (issubclass(kind, Objective) and issubclass(kind.settings, PretrainConfig)):
        raise TypeError(
            "train takes a subclass of ssmast.Objective whose settings are a PretrainConfig, got "
            f"{kind.__name__}"
        )
    if kind.loss is Objective.loss:
        raise TypeError(f"{kind.__name__} must define loss, what the run minimises")
    name = f"python {Path(sys.argv[0]).name}"
    words = sys.argv[1:] if argv is None else argv
    return run_command(lambda words: _command(kind, words, name=name), words, name=name)


def _command(kind: type[Objective[Any, Any, Any]], argv: list[str], *, name: str) -> int:
    if argv[:1] == ["show-views"]:
        return show_views.main(argv[1:], kind)
    about = getattr(sys.modules.get(kind.__module__), "__doc__", None) or kind.__doc__ or ""
    own = f"objective={kind.__name__}"
    others = [word for word in argv if word.startswith("objective=") and word != own]
    if others:
        raise UsageError(
            f"{others[0]} is asked for and this file trains {kind.__name__}; leave objective= out, "
            "or use `ssmast pretrain`"
        )
    schema, words = cast(type[PretrainConfig], kind.settings), [*argv, own]  # a recipe's yields
    config = parse(schema, words, command=name, description=about, **PRETRAINING)
    if config is not None:
        run_training(kind, config, dry_run=wants_dry_run(argv))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="ssmast pretrain"))
