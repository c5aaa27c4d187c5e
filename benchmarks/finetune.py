"""Fine-tuning from a pretrained encoder, from scratch, and the frozen probe, set by set.

    python benchmarks/finetune.py encoder=runs/real/encoder data=SETS out=runs/finetune
    ... tasks=[esc10,fsdd] seeds=3 words="epochs=20 clips.frames=96"

Every run is a folder below `out`; what is finished is not done again, so it can be broken off and
started again. Prints Markdown. Of a set with folds, run k tests on fold k + 1. The frozen probe's
scores are read from the folder `probe`, of the same folds, as `ssmast probe` wrote them.
"""

import json
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ssmast.command import run_command
from ssmast.evaluation.find_set import named_tasks
from ssmast.evaluation.metrics import t_interval
from ssmast.evaluation.read_set import load_set
from ssmast.settings import Settings, parse, setting
from ssmast.training.config import RECIPES
from ssmast.training.finetune.command import run
from ssmast.training.finetune.config import FinetuneConfig


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """What to compare."""

    encoder: str = setting("", "pretrained encoder folder")
    data: str = setting("", "folder of labelled sets")
    tasks: str = setting("all", "all or [a,b]")
    out: str = setting("runs/finetune", "folder of the runs")
    probe: str = setting("", "folder of `ssmast probe` results of the same encoder")
    seeds: int = setting(3, "runs of each kind")
    kinds: list[str] = setting(["pretrained", "scratch"], "which to run")
    words: str = setting("", "further key=value words for every run")
    scratch_words: str = setting("", "the same for the runs from scratch alone")
    minutes: float = setting(1e9, "start no further run after so long")


def main(argv: list[str]) -> int:
    """Run what is missing, then print the table."""
    settings = parse(Keys, argv, command="benchmarks/finetune.py", description=__doc__ or "")
    if settings is None:
        return 0
    tasks = named_tasks(settings.data, settings.tasks)
    started = time.monotonic()
    for seed in range(settings.seeds):
        for task in tasks:
            for kind in settings.kinds:
                if time.monotonic() - started < 60 * settings.minutes:
                    _once(settings, task, kind, seed)
    print(_table(settings, tasks))
    return 0


def _folder(settings: Keys, task: str, kind: str, seed: int) -> Path:
    return Path(settings.out) / f"{task}-{kind}-{seed}"


def _taken(folder: Path) -> Path:
    """File of the seconds that a run has taken; beside its folder, which must begin empty."""
    return folder.with_name(f"{folder.name}.seconds.json")


def _once(settings: Keys, task: str, kind: str, seed: int) -> None:
    folder = _folder(settings, task, kind, seed)
    if (folder / "report.html").is_file():
        return
    front = json.loads((Path(settings.encoder) / "config.json").read_text())["ssmast"]["front_end"]
    words = [
        f"data={settings.data}", f"task={task}", f"run={folder}", f"seed={seed}", "resume=auto",
        "recipe=finetune_small", "tensorboard=false", "keep_checkpoints=1", "checkpoint_every=0",
    ]  # fmt: skip
    folds = load_set(settings.data, task).folds
    if folds:
        words.append(f"fold={folds[seed]}")
    if kind == "pretrained":
        words.append(f"init={settings.encoder}")
    else:  # the same network and front end
        words += ["init=none", "model=mast_nano", f"front_end.num_mels={front['num_mels']}"]
        words += ["heads.pooling=freq+max"]
    words += shlex.split(settings.words)
    words += shlex.split(settings.scratch_words) if kind == "scratch" else []
    config = parse(FinetuneConfig, words, command="test", recipes=RECIPES)
    assert config is not None
    taken = _taken(folder)
    taken.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(taken.read_text()) if taken.is_file() else 0.0
    began = time.monotonic()
    try:
        run(config)
    finally:  # a run that is broken off and goes on later has taken both times
        taken.write_text(json.dumps(before + time.monotonic() - began))


def _table(settings: Keys, tasks: list[str]) -> str:
    names = ["set", "train / valid / test", "fine-tuned", "from scratch", "frozen probe", "s a run"]
    lines = ["| " + " | ".join(names) + " |", "|---|---|---:|---:|---:|---:|"]
    for task in tasks:
        cells, counts, seconds = [], "", []
        for kind in ("pretrained", "scratch"):
            means = []
            for seed in range(settings.seeds):
                folder = _folder(settings, task, kind, seed)
                if not (folder / "report.html").is_file():
                    continue
                result = json.loads((folder / "test.json").read_text())
                means.append(result["mean"])
                counts = f"{result['n_train']} / {result['n_valid']} / {result['n_test']}"
                if kind == "pretrained":
                    seconds.append(json.loads(_taken(folder).read_text()))
            cells.append(_shown(means))
        cells.append(_frozen(settings, task))
        mean_seconds = f"{sum(seconds) / len(seconds):.0f}" if seconds else ""
        lines.append(f"| {task} | {counts} | {' | '.join(cells)} | {mean_seconds} |")
    return "\n".join(lines)


def _frozen(settings: Keys, task: str) -> str:
    """The probe's score, of the folds that were run."""
    file = Path(settings.probe) / f"{task}.linear.json"
    if not settings.probe or not file.is_file():
        return ""
    result = json.loads(file.read_text())
    if len(result["splits"]) == 1:
        return f"{100 * result['mean']:.1f}"
    means = [statistics.fmean(scores) for scores in result["fold_scores"][: settings.seeds]]
    return f"{100 * sum(means) / len(means):.1f}"


def _shown(means: list[float]) -> str:
    if not means:
        return ""
    mean, reach = t_interval(means)
    each = ", ".join(f"{100 * value:.1f}" for value in means)
    return f"{100 * mean:.1f}" + ("" if reach is None else f" ± {100 * reach:.1f}") + f" ({each})"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="benchmarks/finetune.py"))
