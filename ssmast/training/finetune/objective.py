"""Fine-tuning as a method of `session.run_training`: what it is fed, trains and leaves.

The validation part, scored every so many steps; the best weights by it alone are kept.
"""

import json
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ssmast import __version__
from ssmast.audio import Corpus, LogMel, collate_mixed
from ssmast.classifier import classifier_info
from ssmast.encoder import Encoder
from ssmast.evaluation.evaluate import (
    PartScores,
    numbers_text,
    part_scores,
    plain_numbers,
    result_of,
)
from ssmast.evaluation.heads_set import LabelledSet
from ssmast.evaluation.processes import scoring_seconds
from ssmast.evaluation.results import write_text
from ssmast.model import create_model
from ssmast.report import write_report
from ssmast.settings import to_dict
from ssmast.training.alarm import Alarm
from ssmast.training.finetune.config import FinetuneConfig, settled
from ssmast.training.finetune.network import (
    HEAD_PARTS,
    build_network,
    classification_loss,
    exported,
    fit_heads,
    frozen_features,
)
from ssmast.training.finetune.setup import draw_inputs, model_arguments, set_up, training_items
from ssmast.training.finetune.trainer import Finetuning
from ssmast.training.init_weights import find_weights, load_backbone_, read_weights, write_init_json
from ssmast.training.launch import on_main
from ssmast.training.loop import segment_loader
from ssmast.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

_PREFIX = "valid/"


class Validation:
    """Scores the network as it would be kept; a `Watcher` of the loop.

    Args:
        trainer: keeps the best weights.
        found: the labelled set.
        corpus: of the whole set.
        positions: in the set, of the validation clips.
        metric: that decides.
        every: steps between scores.
        batch_seconds: audio scored at once.
        from_start: score before the first step too.
        history: lines of metrics.jsonl so far; steps that have scores are not scored again.
    """

    def __init__(
        self,
        trainer: Finetuning,
        *,
        found: LabelledSet,
        corpus: Corpus,
        positions: Any,
        metric: str,
        every: int,
        batch_seconds: float,
        from_start: bool = False,
        history: Iterable[dict[str, Any]] = (),
    ) -> None:
        self.trainer, self.found, self.corpus, self.positions = trainer, found, corpus, positions
        self.metric, self.every, self.batch_seconds = metric, every, batch_seconds
        self.from_start = from_start
        self._done = {row["step"] for row in history if any(key.startswith(_PREFIX) for key in row)}

    def is_due(self, step: int, *, steps: int) -> bool:
        """True at every multiple of `every` and at the end, once each."""
        if step in self._done or (step == 0 and not self.from_start):
            return False
        return step % self.every == 0 or step == steps

    def run(self, *, step: int) -> dict[str, float]:
        """Score, keep the weights if they are the best, take them into the average."""
        started = time.monotonic()
        numbers = self.score()
        trainer = self.trainer
        kept, optim = trainer.kept, trainer.config.optim
        kept.keep_if_best_(
            trainer.scored, score=numbers[self.metric], loss=numbers["loss"], step=step
        )
        if step > (1 - optim.swa_fraction) * trainer.steps:
            kept.average_(trainer.scored)
        self._done.add(step)
        best = kept.best
        assert best is not None
        logger.info(
            "validation at step %d: %s %.4f, best %.4f at step %d (%.1f s)",
            *(step, self.metric, numbers[self.metric], best.score, best.step),
            time.monotonic() - started,
        )
        return {f"{_PREFIX}{name}": value for name, value in numbers.items()}

    def score(self) -> dict[str, float]:
        """The numbers of the network that is scored, as its weights are now, and its `loss`."""
        trainer = self.trainer
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            part = part_scores(
                trainer.classifier(trainer.scored),
                self.found,
                self.corpus,
                self.positions,
                title="validation",
                batch_seconds=self.batch_seconds,
            )
        return {**part.numbers, "loss": self._loss(part)}

    def _loss(self, part: PartScores) -> float:
        """Mean over the clips in nats, the heads' summed; of the mean probability of windows."""
        outputs = self.trainer.outputs
        losses = classification_loss(
            part.scores,
            self.found.one_hot(part.positions),
            sizes=outputs.sizes,
            multi_label=outputs.multi_label,
        )
        return float(losses.mean())

    def shown(self, scores: dict[str, float]) -> dict[str, str]:
        """`valid=0.81`."""
        value = scores.get(f"{_PREFIX}{self.metric}")
        return {} if value is None else {"valid": f"{value:.3f}"}


RESULT = "test.json"


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
            positions=torch.from_numpy(setup.split.train),
            num_valid=len(setup.split.valid),
            steps=steps,
        )
        return self._trainer

    def start_(self, start: Path, folder: RunFolder) -> None:
        """Weights into the backbone; the heads are fitted to it, or stay random."""
        trainer, weights = self._trainer, read_weights(start)
        bare = create_model(self.config.model, num_classes=0, **self._arguments)
        report = load_backbone_(bare, weights, model=self.config.model, log_mel=trainer.log_mel)
        missing, left_over = trainer.model.load_state_dict(bare.state_dict(), strict=False)
        assert not left_over
        assert all(name.startswith(HEAD_PARTS) for name in missing)
        if self.config.heads.probe:
            self._probe_()
        trainer.start_average_()
        if trainer.accelerator.is_main_process:
            heads = "probes" if self.config.heads.probe else "random"
            logger.info("init %s: %s; the heads start as %s", start, report, heads)
            write_init_json(
                folder.path / "init.json",
                report,
                weights,
                trainer.model,
                prefix="",
                heads=HEAD_PARTS,
                fitted=settled(self.config.heads.probe),
            )

    def _probe_(self) -> None:
        """Let the heads begin as linear probes of the backbone as it is."""
        trainer, setup = self._trainer, self._setup
        features, places = frozen_features(
            trainer.classifier(trainer.network),
            setup.found,
            setup.corpus,
            setup.split,
            batch_seconds=self._batch_seconds,
        )
        heads = on_main(
            trainer.accelerator,
            lambda: fit_heads(
                features,
                setup.found,
                setup.split,
                places=places,
                metric=setup.metric,
                seed=self.config.seed,
            ),
        )
        heads.write_(trainer.layers)
        for head, own in zip(setup.found.heads, heads.heads, strict=True):
            logger.info(
                "%s begins as a linear probe: %.4f on the validation part, %s",
                *(head.name, own.valid, own.chosen),
            )

    @property
    def _batch_seconds(self) -> float:
        return self.config.scoring.batch_seconds or scoring_seconds()

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
            batch_seconds=self._batch_seconds,
            from_start=settled(config.heads.probe) and config.init != "none",
            history=history,
        )
        return self._validation

    def alarm(self, history: list[dict[str, Any]]) -> Alarm:
        """None: the collapse alarm watches embeddings of two views."""
        return Alarm(mode="off")

    def loader(self, source: Corpus, *, rank: int, num_ranks: int) -> DataLoader[Any]:
        """One segment a clip, some mixed with another's."""
        return segment_loader(
            self.config,
            training_items(self._setup, source),
            first_step=self._trainer.step,
            steps=self._trainer.steps,
            rank=rank,
            num_ranks=num_ranks,
            collate=collate_mixed,
        )

    def draw(self, source: Corpus, folder: RunFolder) -> None:
        """What the network is fed, once a run."""
        clips = min(self.config.show_views, len(source))
        if clips and not folder.views.is_file():
            draw_inputs(
                folder.views, training_items(self._setup, source), self._trainer, clips=clips
            )

    def finish(self, folder: RunFolder, facts: dict[str, Any]) -> None:
        """Settle on the weights, test them once, write encoder/, test.json and report.html."""
        trainer, setup = self._trainer, self._setup
        self._try_mixtures_()
        best = trainer.kept.best
        assert best is not None
        trainer.scored.load_state_dict(best.weights)
        part = part_scores(
            trainer.classifier(trainer.scored),
            setup.found,
            setup.corpus,
            setup.split.test,
            title="test",
            batch_seconds=self._batch_seconds,
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
        write_report(folder.report, run=folder.path, results=[result])
        logger.info("test: %s", numbers_text(part.numbers))
        logger.info("encoder: %s", folder.encoder)
        logger.info("report:  %s", folder.report)

    def _try_mixtures_(self) -> None:
        """Averaged weights compete with the best single ones, on the validation part.

        Source: Wortsman et al. 2022 (WiSE-FT) for those between the first and the last.
        """
        trainer, kept, optim = self._trainer, self._trainer.kept, self.config.optim
        last = {name: value.clone() for name, value in trainer.scored.state_dict().items()}
        mixtures = {}
        if kept.num_averaged > 1:
            last = kept.averaged(trainer.scored)
            mixtures[f"average of {kept.num_averaged} validations' weights"] = last
        if kept.first is not None:
            for share in optim.wise_ft_alphas:
                name = f"{share:g} of the way from the first weights to the last"
                mixtures[name] = kept.between(last, share=share)
        for name, weights in mixtures.items():
            trainer.scored.load_state_dict(weights)
            numbers = self._validation.score()
            score, loss = numbers[self._setup.metric], numbers["loss"]
            logger.info("%s: %s %.4f, loss %.4f", name, self._setup.metric, score, loss)
            kept.keep_if_best_(trainer.scored, score=score, loss=loss, step=trainer.step)

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
            window_seconds=10.0 if before is None else before.window_seconds,
            info={
                **facts,
                "network": "fine-tuned",
                "version": __version__,
                "classifier": info,
                "settings": to_dict(self.config),
            },
        )
