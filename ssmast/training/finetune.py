"""Supervised fine-tuning: an encoder and a labelled set -> a classifier, chosen and tested.

ssmast finetune recipe=finetune_small init=runs/mine/encoder data=SET run=runs/tuned
accelerate launch -m ssmast.training.finetune recipe=finetune_vggsound init=imagenet data=SET
ssmast finetune recipe=finetune_audioset_balanced data=SET pooling_schedule=all      (the ablation)

The best weights are chosen on the validation part alone; the test part is scored once, at the end.
"""

import json
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ssmast import __version__
from ssmast.audio import BalancedOrder, Corpus, LogMel, MixedSegments, SegmentDataset, collate_mixed
from ssmast.classifier import classifier_info
from ssmast.command import run_command
from ssmast.encoder import Encoder
from ssmast.evaluation.class_scores import classes_table
from ssmast.evaluation.evaluate import (
    numbers_text,
    part_scores,
    plain_numbers,
    result_of,
    scoring_seconds,
)
from ssmast.evaluation.processes import process_state
from ssmast.evaluation.report import write_report
from ssmast.evaluation.results import write_text
from ssmast.model import create_model
from ssmast.settings import parse, to_dict, wants_dry_run
from ssmast.training.alarm import Alarm
from ssmast.training.build import segment_loader
from ssmast.training.config import RECIPES
from ssmast.training.finetune_config import SCHEDULES, FinetuneConfig
from ssmast.training.finetune_network import HEAD_PARTS, build_network, exported
from ssmast.training.finetune_setup import model_arguments, set_up
from ssmast.training.finetuning import Finetuning
from ssmast.training.init_weights import (
    find_weights,
    load_backbone_,
    read_weights,
    write_init_json,
)
from ssmast.training.run_folder import RunFolder
from ssmast.training.session import run_training
from ssmast.training.validation import Validation

logger = logging.getLogger(__name__)

RESULT = "test.json"


def main(argv: list[str]) -> int:
    """`ssmast finetune`: parse, then run; 0 when the classifier stands and is tested."""
    config = parse(
        FinetuneConfig,
        argv,
        command="ssmast finetune",
        description=__doc__ or "",
        recipes=RECIPES,
        default_recipe="finetune_small",
    )
    if config is None:
        return 0
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


def run(config: FinetuneConfig, *, dry_run: bool = False) -> RunFolder:
    """Fine-tune as the settings say; see `session.run_training`."""
    return run_training(Supervised(config), dry_run=dry_run)


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


def read_result(folder: RunFolder) -> dict[str, Any] | None:
    """What the test part gave, where the run has ended."""
    file = folder.path / RESULT
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _summary(result: dict[str, Any]) -> str:
    valid = result["valid"]
    numbers = {k: math.nan if v is None else v for k, v in result["numbers"].items()}
    return (
        f"{classes_table(result['per_class'])}\n"
        f"validation ({valid['n']} clips), step {valid['step']}: "
        f"{result['metric']} {100 * valid['score']:.1f} %\n"
        f"test: {numbers_text(numbers)}\n"
    )


class Supervised:
    """Fine-tuning on labelled clips, as `session.run_training` wants it.

    Args:
        config: settings of the run.
    """

    def __init__(self, config: FinetuneConfig) -> None:
        self._setup = set_up(config)
        self.config = self._setup.config
        self.frames = self.config.clips.frames
        self._arguments = model_arguments(self._setup)
        self._trainer: Finetuning
        self._validation: Validation

    def check(self) -> None:
        """Everything was looked at when the set was read."""

    def find_start(self) -> Path | None:
        """What `init` names."""
        return find_weights(self.config.init, self.config.model)

    def open_clips(self, folder: RunFolder) -> Corpus:
        """The training part."""
        setup = self._setup
        return setup.corpus.take(setup.found.rows[setup.split.train])

    def known_log_mel(self) -> LogMel | None:
        """The encoder's own, which its weights are used to."""
        encoder = self._setup.encoder
        return None if encoder is None else LogMel(**encoder.log_mel.settings())  # type: ignore[arg-type]

    def make_trainer(self, accelerator: Accelerator, log_mel: LogMel, *, steps: int) -> Finetuning:
        """A fresh network and its step."""
        config, setup, found = self.config, self._setup, self._setup.found
        torch.manual_seed(config.seed)  # the same first weights on every process
        network = build_network(
            config.model,
            sizes=[len(head.classes) for head in found.heads],
            pooling=config.heads.pooling
            or ("" if setup.encoder is None else setup.encoder.pooling),
            arguments=self._arguments,
        )
        network.set_grad_checkpointing(config.grad_checkpointing)
        self._trainer = Finetuning(
            config,
            accelerator=accelerator,
            log_mel=log_mel,
            network=network,
            found=found,
            positions=torch.from_numpy(self._setup.split.train),
            steps=steps,
        )
        return self._trainer

    def start_(self, start: Path, folder: RunFolder) -> None:
        """Weights into the backbone; the heads stay random."""
        trainer, weights = self._trainer, read_weights(start)
        bare = create_model(self.config.model, num_classes=0, **self._arguments)
        report = load_backbone_(bare, weights, model=self.config.model, log_mel=trainer.log_mel)
        missing, left_over = trainer.model.load_state_dict(bare.state_dict(), strict=False)
        assert not left_over
        assert all(name.startswith(HEAD_PARTS) for name in missing)
        if trainer.ema is not None:
            trainer.ema.load_state_dict(trainer.model.state_dict())
        if trainer.accelerator.is_main_process:
            logger.info("init %s: %s; the heads start random", start, report)
            write_init_json(
                folder.path / "init.json",
                report,
                weights,
                trainer.model,
                prefix="",
                heads=HEAD_PARTS,
            )

    def watcher(self, folder: RunFolder, history: list[dict[str, Any]]) -> Validation:
        """The validation part."""
        config, setup = self.config, self._setup
        per_epoch = max(1, math.ceil(len(setup.split.train) / config.batch_size))
        self._validation = Validation(
            self._trainer,
            found=setup.found,
            corpus=setup.corpus,
            positions=setup.split.valid,
            metric=setup.metric,
            every=config.scoring.every or per_epoch,
            batch_seconds=config.scoring.batch_seconds or scoring_seconds(),
            history=history,
        )
        return self._validation

    def alarm(self, history: list[dict[str, Any]]) -> Alarm:
        """None: the collapse alarm watches embeddings of two views."""
        return Alarm(mode="off")

    def loader(self, source: Corpus, *, rank: int, num_ranks: int) -> DataLoader[Any]:
        """One segment a clip, some mixed with another's."""
        config, setup = self.config, self._setup
        weights = setup.found.weights(setup.split.train) if config.clips.balanced else None
        segments = SegmentDataset(
            source,
            num_samples=self._trainer.log_mel.samples(self.frames),
            sample_rate=config.front_end.sample_rate,
            seed=config.seed,
            num_segments=1,
            waveform_augment=config.clips.waveform_augment,
            order=None if weights is None else BalancedOrder(weights),
        )
        return segment_loader(
            config,
            MixedSegments(segments, rate=config.clips.mixup_rate, alpha=config.clips.mixup_alpha),
            first_step=self._trainer.step,
            steps=self._trainer.steps,
            rank=rank,
            num_ranks=num_ranks,
            collate=collate_mixed,
        )

    def draw(self, source: Corpus, folder: RunFolder) -> None:
        """Nothing: an input is one segment of one clip."""

    def finish(self, folder: RunFolder, facts: dict[str, Any]) -> None:
        """Settle on the weights, test them once, write encoder/, test.json and report.html."""
        trainer, setup = self._trainer, self._setup
        self._try_average_()
        best = trainer.best
        assert best is not None
        trainer.scored.load_state_dict(best.weights)
        part = part_scores(
            trainer.classifier(trainer.scored),
            setup.found,
            setup.corpus,
            setup.split.test,
            title="test",
            batch_seconds=self._validation.batch_seconds,
        )
        if not trainer.accelerator.is_main_process:
            return
        valid = {
            "score": best.score,
            "step": best.step,
            "n": len(setup.split.valid),
            "ids_sha256": setup.found.ids_sha256(setup.split.valid),
        }
        encoder = self._encoder({**facts, "valid": valid, "test": plain_numbers(part.numbers)})
        encoder.save(folder.encoder)
        result = result_of(
            setup.found,
            part,
            fold=self.config.fold,
            metric=setup.metric,
            encoder=str(folder.encoder),
            sha256=encoder.sha256,
        )
        result |= {"valid": valid, "seed": self.config.seed, "init": self.config.init}
        write_text(folder.path / RESULT, json.dumps(result, indent=1) + "\n")
        write_report(folder.report, run=folder.path, results=[result], commands=self._commands())
        logger.info("test: %s", numbers_text(part.numbers))
        logger.info("encoder: %s", folder.encoder)
        logger.info("report:  %s", folder.report)

    def _try_average_(self) -> None:
        """The averaged weights compete with the best ones, on the validation part."""
        trainer, averaged = self._trainer, self._trainer.averaged()
        if trainer.num_averaged < 2 or trainer.best is None:
            return
        trainer.scored.load_state_dict(averaged)
        score = self._validation.score()[self._setup.metric]
        logger.info(
            "average of the weights of %d validations: %s %.4f, the best single ones %.4f",
            *(trainer.num_averaged, self._setup.metric, score, trainer.best.score),
        )
        trainer.keep_if_best_(score)

    def _encoder(self, facts: dict[str, Any]) -> Encoder:
        trainer, before = self._trainer, self._setup.encoder
        info = classifier_info(
            trainer.outputs,
            frames=self.frames,
            max_windows=self.config.scoring.max_windows,
        )
        return Encoder(
            exported(trainer.scored),
            trainer.log_mel,
            pooling="mean" if before is None else before.pooling,
            chunk_seconds=10.0 if before is None else before.chunk_seconds,
            info={
                **facts,
                "network": "fine-tuned",
                "version": __version__,
                "classifier": info,
                "settings": to_dict(self.config),
            },
        )

    def _commands(self) -> list[str]:
        config = self.config
        return [
            f"ssmast finetune recipe={config.recipe} init={config.init} data={config.data} "
            "run=NEW_FOLDER",
            f"ssmast evaluate encoder={config.run or 'RUN'} data={config.data}",
        ]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="ssmast finetune"))
