"""Fine-tune on the four sets of the MAST paper, and lay the results into its tables.

    ssmast paper sets run=runs/paper                        MAST, from ImageNet weights
    ssmast paper sets run=runs/paper models=[mast,ast]      and its rival
    ssmast paper sets init=none common=[steps=100,batch_size=8]

FOLDER holds what `ssmast prepare task=` made, each set under its name: kinetics_sounds_32,
epic_kitchens_verb, vggsound, audioset_balanced, audioset_full. Sets that are not there are marked
as absent. Each set and model is one run of its recipe in a folder of its own; interrupted, the same
command resumes. It ends with paper.md and report.html in the folder of runs, and prints the table.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from ssmast.evaluation.processes import process_state
from ssmast.evaluation.results import Result
from ssmast.files import check_output, write_atomic
from ssmast.html import PAGE_BEGINS
from ssmast.report import write_report
from ssmast.report.scores import MAST_TABLE, filled_table
from ssmast.settings import Settings, UsageError, command, parse, setting, wants_dry_run
from ssmast.training.config import RECIPES
from ssmast.training.finetune.command import read_result, run
from ssmast.training.finetune.config import FinetuneConfig

logger = logging.getLogger(__name__)

_RECIPES = {
    "kinetics_sounds_32": "finetune_kinetics_sounds",
    "epic_kitchens_verb": "finetune_epic_kitchens_100",
    "vggsound": "finetune_vggsound",
    "audioset_balanced": "finetune_audioset_balanced",
    "audioset_full": "finetune_audioset_full",
}
_MODELS = {"mast": "", "ast": "_ast"}
_OURS = ("recipe", "data", "run", "init", "task")


@dataclass(frozen=True, kw_only=True)
class PaperConfig(Settings):
    """`ssmast paper FOLDER`: the MAST paper's sets to its tables."""

    data: str = setting("", "folder of the sets that `ssmast prepare` made", required=True)
    run: str = setting("runs/paper", "folder of runs, table and page; resumed if there")
    models: list[str] = setting(["mast"], "mast, ast or both", choices=_MODELS)
    init: str = setting("imagenet", "initial weights, as in `ssmast finetune`")
    common: list[str] = setting(
        [], "settings of all runs in place of the recipes': [steps=100,batch_size=8]"
    )


@command(PaperConfig, "ssmast paper", positional="data", dry_run=True)
def main(config: PaperConfig, argv: list[str]) -> int:
    """`ssmast paper`: parse, fine-tune, print the table."""
    table = run_paper(config, dry_run=wants_dry_run(argv))
    if process_state().is_main:
        sys.stdout.write(table)
    return 0


def run_paper(config: PaperConfig, *, dry_run: bool = False) -> str:
    """Fine-tune on every set that is there; returns the table."""
    root, data = Path(config.run), Path(config.data)
    check_output(root, key="run", folder=True)
    check_output(root / "paper.md", key="run", begins=r"\|")
    check_output(root / "report.html", key="run", begins=PAGE_BEGINS)
    sets = [task for task in _RECIPES if (data / task).is_dir()]
    if not sets:
        raise FileNotFoundError(
            f"none of {', '.join(_RECIPES)} is a folder in {data}; make one with `ssmast prepare`"
        )
    for task in (task for task in _RECIPES if task not in sets):
        logger.warning("%s is absent; `ssmast prepare task=%s` makes it", task, task)
    own: dict[str, list[Result]] = {f"{model.upper()}, here": [] for model in config.models}
    pairs = [(model, task) for model in config.models for task in sets]
    plans = [_config(config, *pair) for pair in pairs]  # a wrong word is said before hours
    for (model, task), one in zip(pairs, plans, strict=True):
        logger.info("%s on %s", model.upper(), task)
        result = read_result(run(one, dry_run=dry_run))
        if result is not None:
            own[f"{model.upper()}, here"].append(Result.from_dict(result))
    table = filled_table(MAST_TABLE, own)
    if process_state().is_main and not dry_run:
        write_atomic(root / "paper.md", table)
        results = [result for found in own.values() for result in found]
        write_report(root / "report.html", results=results, title="The MAST paper")
    return table


def _config(config: PaperConfig, model: str, task: str) -> FinetuneConfig:
    """Settings of one run."""
    for word in config.common:
        if word.partition("=")[0] in _OURS or "=" not in word:
            raise UsageError(
                f"common= must hold key=value words other than {', '.join(_OURS)}, got {word!r}"
            )
    recipe = f"{_RECIPES[task]}{_MODELS[model]}"
    words = [f"recipe={recipe}", f"data={Path(config.data) / task}", f"init={config.init}"]
    words += [f"run={Path(config.run) / recipe.removeprefix('finetune_')}", "resume=auto"]
    words += config.common
    parsed = parse(FinetuneConfig, words, command="ssmast paper", recipes=RECIPES)
    assert parsed is not None
    return parsed


if __name__ == "__main__":
    from ssmast.command import run_command

    sys.exit(run_command(main, sys.argv[1:], name="ssmast paper"))
