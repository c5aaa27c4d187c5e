"""Runs of equal processor time: how many steps fit into it, and how much was really used."""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ssmast.compare.config import LOG_EVERY, CompareConfig, Variant
from ssmast.files import write_json
from ssmast.settings import to_dict
from ssmast.training.config import PretrainConfig, TrainConfig
from ssmast.training.finetune.command import read_result
from ssmast.training.finetune.command import run as tune
from ssmast.training.finetune.config import FinetuneConfig
from ssmast.training.inputs import built_in_corpus
from ssmast.training.metrics_log import read_metrics
from ssmast.training.pretrain import run
from ssmast.training.run_folder import changed_settings

logger = logging.getLogger(__name__)

RUNS = "runs"
"""Folder within `out` of all runs, which share one cache of decoded audio."""
_CHECKPOINTS = 10  # of a run, spread over it


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How fast a variant trains here, in processor time of one core; measured once."""

    settings: dict[str, Any]
    minutes: float
    seconds_per_step: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run.

    Attributes:
        minutes: processor time that its steps took.
        curve: (minutes, accuracy) while it trained, the average over the sets; of a classifier
            the score that its weights are chosen by.
        result: what the test part gave for a classifier; None of an encoder.
    """

    folder: Path
    minutes: float
    alarms: str = ""
    curve: list[tuple[float, float]] = field(default_factory=list)
    result: dict[str, Any] | None = None


class Calibrations:
    """The calibrations of a comparison, kept in `calibration.json`.

    Raises:
        FileExistsError: if the folder holds one of the variants with other settings or minutes.
        ValueError: if the file is damaged.
    """

    def __init__(self, config: CompareConfig, variants: Sequence[Variant]) -> None:
        self.config, self.file = config, Path(config.out) / "calibration.json"
        self.known: dict[str, Calibration] = {}
        if self.file.is_file():
            self.known = _read(self.file)
        for variant in variants:
            before = self.known.get(variant.name)
            if before is None:
                continue
            changed = changed_settings(
                {"minutes": before.minutes, **before.settings},
                {"minutes": config.minutes, **to_dict(variant.config)},
            )
            if changed:
                raise FileExistsError(
                    f"{config.out} was started with other settings of {variant.name}: "
                    f"{'; '.join(changed)}; use those again or choose another out="
                )

    def of(self, variant: Variant) -> Calibration:
        """How fast the variant is: as stored, or by a few steps now."""
        if variant.name in self.known:
            return self.known[variant.name]
        steps = self.config.calibration_steps
        folder = Path(self.config.out) / RUNS / f"{variant.name}-calibration"
        shutil.rmtree(folder, ignore_errors=True)  # of one that was interrupted
        settings = dataclasses.replace(
            variant.config, run=str(folder), seed=self.config.seed, steps=steps, log_every=steps,
            checkpoint_every=0,
        )  # fmt: skip
        if isinstance(settings, PretrainConfig):
            settings = dataclasses.replace(settings, alarm="off")
        _run(settings)
        # The first step, which has a line of its own, also sets things up.
        rows = _training_rows(folder)[1:]
        each = _seconds(rows, steps - 1, settings) / (steps - 1)
        shutil.rmtree(folder)
        found = Calibration(
            settings=to_dict(variant.config),
            minutes=self.config.minutes,
            seconds_per_step=each,
            steps=max(1, round(60 * self.config.minutes / each)),
        )
        self.known[variant.name] = found
        write_json(self.file, {name: vars(one) for name, one in self.known.items()})
        logger.info("%s: %.3g s a step, %d steps", variant.name, each, found.steps)
        return found


def _read(file: Path) -> dict[str, Calibration]:
    """What is stored; without it other numbers of steps would be found than the runs there have."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return {name: Calibration(**content) for name, content in stored.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged; put back the file as it was written, or choose another out="
        ) from error


def run_folder(config: CompareConfig, variant: Variant, seed: int) -> Path:
    """Where a run of a variant lies."""
    return Path(config.out) / RUNS / f"{variant.name}-{seed}"


def is_trained(config: CompareConfig, variant: Variant, seed: int) -> bool:
    """Whether the run ended before; its report is written last."""
    return (run_folder(config, variant, seed) / "report.html").is_file()


def train(config: CompareConfig, variant: Variant, calibration: Calibration, seed: int) -> Trained:
    """Pretrain a variant, or what is left of it to do.

    Raises:
        ValueError, OSError: whatever keeps it from being trained, in one sentence.
    """
    tenth = calibration.steps / _CHECKPOINTS
    settings = dataclasses.replace(
        variant.config,
        run=str(run_folder(config, variant, seed)),
        seed=seed,
        steps=calibration.steps,
        # At a logged step, so that no time is lost from the sum when a run is resumed.
        checkpoint_every=LOG_EVERY * max(1, round(tenth / LOG_EVERY)),
    )
    if config.scores_a_run and isinstance(settings, PretrainConfig):
        every = max(1, round(calibration.steps / config.scores_a_run))
        probe = dataclasses.replace(
            settings.probe, data=labelled_sets(config), tasks=config.tasks, every=every
        )
        settings = dataclasses.replace(settings, probe=probe)
    if variant.task and isinstance(settings, FinetuneConfig):
        folds = variant.folds
        scoring = dataclasses.replace(settings.scoring, every=settings.checkpoint_every)
        settings = dataclasses.replace(
            settings, scoring=scoring, fold=folds[seed % len(folds)] if folds else ""
        )
    folder = _run(settings)
    rows = _training_rows(folder)
    last = rows[-1].get("alarms", {})
    minutes = _seconds(rows, calibration.steps, settings) / 60
    result = read_result(folder) if variant.task else None
    wanted = f"valid/{result['metric']}" if result else "probe/.*/linear"
    return Trained(
        folder=folder,
        minutes=minutes,
        alarms="; ".join(last.values()),
        curve=[
            (minutes * row["step"] / calibration.steps, sum(scores) / len(scores))
            for row in read_metrics(folder / "metrics.jsonl")
            if (scores := [row[key] for key in row if re.fullmatch(wanted, key)])
        ],
        result=result,
    )


def labelled_sets(config: CompareConfig) -> str:
    """Where the labelled sets are; those of the built-in corpus are made."""
    return config.sets or str(built_in_corpus(Path(config.out) / RUNS))


def _run(settings: PretrainConfig | FinetuneConfig) -> Path:
    """Pretrain, or learn from labels."""
    return tune(settings) if isinstance(settings, FinetuneConfig) else run(settings)


def _training_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder / "metrics.jsonl") if "processor_seconds" in row]


def _seconds(rows: list[dict[str, Any]], steps: int, settings: TrainConfig) -> float:
    """Processor time of the main process in these lines; where a GPU computes, of the clock."""
    if not torch.cuda.is_available():
        return sum(row["processor_seconds"] for row in rows)
    before = [rows[-1]["step"] - steps, *(row["step"] for row in rows[:-1])]
    return sum(
        (row["step"] - first) * settings.batch_size / row["clips_per_second"]
        for first, row in zip(before, rows, strict=True)
    )
