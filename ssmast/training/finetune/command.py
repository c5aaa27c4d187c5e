"""Fine-tune an encoder on a labelled set into a classifier, and test it.

ssmast finetune recipe=finetune_small init=runs/mine/encoder data=SET run=runs/tuned
ssmast finetune recipe=finetune_vggsound init=imagenet data=SET
ssmast finetune recipe=finetune_audioset_balanced data=SET pooling_schedule=all      (the ablation)

The best weights are chosen on the validation part alone; the test part is scored once, at the end.
"""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssmast.command import run_command
from ssmast.evaluation.class_scores import numbers_text
from ssmast.evaluation.evaluate import tables_of
from ssmast.evaluation.processes import process_state
from ssmast.evaluation.results import Result, result_notes
from ssmast.settings import command, wants_dry_run
from ssmast.training.config import RECIPES
from ssmast.training.finetune.config import SCHEDULES, FinetuneConfig
from ssmast.training.finetune.objective import RESULT, FineTuning
from ssmast.training.run import run_training


@command(
    FinetuneConfig,
    "ssmast finetune",
    dry_run=True,
    recipes=RECIPES,
    default_recipe="finetune_small",
)
def main(config: FinetuneConfig, argv: list[str]) -> int:
    """`ssmast finetune`: parse, then run; 0 when the classifier stands and is tested."""
    if config.pooling_schedule == "all":
        table = run_ablation(config, dry_run=wants_dry_run(argv))
        if process_state().is_main:
            sys.stdout.write(table)
        return 0
    folder = run(config, dry_run=wants_dry_run(argv))
    result = read_result(folder)
    if result is not None and process_state().is_main:
        sys.stdout.write(_summary(result))
    return 0


def run(config: FinetuneConfig, *, dry_run: bool = False) -> Path:
    """Fine-tune as the settings say; see `run.run_training`."""
    return run_training(FineTuning, config, dry_run=dry_run)


def run_ablation(config: FinetuneConfig, *, dry_run: bool = False) -> str:
    """One run a pooling schedule, each in a folder of its own; returns the table.

    Source: Zhu & Omar 2023, section 4, the ablation on balanced AudioSet.
    """
    root = Path(config.run or "runs/pooling_schedules")
    lines = ["| pooling schedule | strides (freq, time) | score |", "|---|---|---:|"]
    for name, strides in SCHEDULES.items():
        if strides is None:
            continue
        folder = run(replace(config, pooling_schedule=name, run=str(root / name)), dry_run=dry_run)
        result = read_result(folder)
        score = "" if result is None else f"{result['metric']} {100 * result['mean']:.1f}"
        lines.append(f"| {name} | {' '.join(f'{f}x{t}' for f, t in strides)} | {score} |")
    return "\n".join(lines) + "\n"


def read_result(folder: Path) -> dict[str, Any] | None:
    """What the test part gave, where the run has ended."""
    file = folder / RESULT
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _summary(result: dict[str, Any]) -> str:
    numbers = {k: math.nan if v is None else v for k, v in result["numbers"].items()}
    found = Result.from_dict(result)
    return (
        f"{tables_of(found)}\n"
        f"validation ({result['n_valid']} clips), step {result['chosen'][0]['step']}: "
        f"{result['metric']} {100 * result['valid']:.1f} %\n"
        f"test: {numbers_text(numbers)}\n" + "".join(f"{note}\n" for note in result_notes(found))
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="ssmast finetune"))
