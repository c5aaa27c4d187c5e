"""Pretraining without labels: SS-MAST (student, teacher, queue, patch-drop), or objective=ssast.

accelerate launch pretrain/run.py recipe=real_nano data=FOLDER run=runs/mine
accelerate launch -m ssmast.training.pretrain recipe=smoke
ssmast pretrain recipe=smoke                     (one process)
"""

import logging
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from ssmast.audio import Corpus, LogMel
from ssmast.command import run_command
from ssmast.encoder import Encoder
from ssmast.report import write_report
from ssmast.settings import parse, to_dict, wants_dry_run
from ssmast.training.alarm import Alarm
from ssmast.training.build import (
    build_dataset,
    build_encoder,
    build_log_mel,
    check_model,
    num_segments_of,
    open_data,
)
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.init_weights import find_weights, read_weights, write_init_json
from ssmast.training.loop import segment_loader
from ssmast.training.objectives.ss_mast import Pretraining
from ssmast.training.objectives.ssast import MaskedPretraining
from ssmast.training.online_probe import OnlineProbe, small_tasks
from ssmast.training.run import run_training
from ssmast.training.run_folder import RunFolder
from ssmast.training.show_views import draw_inputs

logger = logging.getLogger(__name__)

_OBJECTIVES: dict[str, type[Pretraining] | type[MaskedPretraining]] = {
    "ss_mast": Pretraining,
    "ssast": MaskedPretraining,
}


def main(argv: list[str]) -> int:
    """`ssmast pretrain`: parse, then run; 0 when the encoder stands."""
    config = parse(
        PretrainConfig,
        argv,
        command="ssmast pretrain",
        description=__doc__ or "",
        dry_run=True,
        recipes=RECIPES,
        default_recipe="smoke",
    )
    if config is not None:
        run(config, dry_run=wants_dry_run(argv))
    return 0


def run(config: PretrainConfig, *, dry_run: bool = False) -> RunFolder:
    """Pretrain as the settings say; see `session.run_training`."""
    return run_training(SelfSupervised(config), dry_run=dry_run)


class SelfSupervised:
    """Pretraining on clips without labels, as `session.run_training` wants it.

    Args:
        config: settings of the run.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.config, self.frames = config, config.views.frames
        self._objective = _OBJECTIVES[config.objective]
        self._num_clips = 0
        self._trainer: Pretraining | MaskedPretraining

    def check(self) -> None:
        """Model, front end and online probe must exist."""
        check_model(self.config.model)
        build_log_mel(self.config)
        self._objective.check(self.config)
        probe = self.config.probe
        if probe.data:
            small_tasks(probe.data, tasks=probe.tasks, max_clips=probe.max_clips)

    def find_start(self) -> Path | None:
        """What `init` names."""
        return find_weights(self.config.init, self.config.model)

    def open_clips(self, folder: RunFolder) -> Corpus:
        """The corpus of `data=`, or the built-in one beside the run."""
        corpus = open_data(self.config, runs=folder.path.parent)
        self._num_clips = len(corpus)
        return corpus

    def known_log_mel(self) -> None:
        """None: mean and std are those of the corpus."""

    def make_trainer(
        self, accelerator: Accelerator, log_mel: LogMel, *, steps: int
    ) -> Pretraining | MaskedPretraining:
        """The method's networks and step."""
        self._trainer = self._objective(
            self.config,
            accelerator=accelerator,
            log_mel=log_mel,
            num_clips=self._num_clips,
            steps=steps,
        )
        return self._trainer

    def start_(self, start: Path, folder: RunFolder) -> None:
        """Weights into every backbone that is trained."""
        trainer, weights = self._trainer, read_weights(start)
        report = trainer.start_from_(weights)
        if trainer.accelerator.is_main_process:
            logger.info("init %s: %s; the heads start random", start, report)
            file, prefix = folder.path / "init.json", trainer.backbone_prefix
            write_init_json(file, report, weights, trainer.model, prefix=prefix)

    def watcher(self, folder: RunFolder, history: list[dict[str, Any]]) -> OnlineProbe | None:
        """The probe while training, on the encoder that would be exported; None if not wanted."""
        probe = self.config.probe
        if not probe.data:
            return None
        return OnlineProbe(
            data=probe.data,
            tasks=probe.tasks,
            every=probe.every,
            max_clips=probe.max_clips,
            make_encoder=lambda: self._encoder({}),
            history=history,
        )

    def alarm(self, history: list[dict[str, Any]]) -> Alarm:
        """The collapse alarm."""
        config = self.config
        embeddings = num_segments_of(config) * config.batch_size
        return Alarm(mode=config.alarm, num_embeddings=embeddings, history=history)

    def loader(self, source: Corpus, *, rank: int, num_ranks: int) -> DataLoader[Any]:
        """Segments of the clips, step by step."""
        return segment_loader(
            self.config,
            build_dataset(self.config, source),
            first_step=self._trainer.step,
            steps=self._trainer.steps,
            rank=rank,
            num_ranks=num_ranks,
        )

    def draw(self, source: Corpus, folder: RunFolder) -> None:
        """views.png."""
        config = self.config
        if config.show_views and not folder.views.is_file():
            log_mel = self._trainer.log_mel
            draw_inputs(folder.views, config, source, log_mel=log_mel, clips=config.show_views)

    def finish(self, folder: RunFolder, facts: dict[str, Any]) -> None:
        """encoder/ and report.html."""
        if not self._trainer.accelerator.is_main_process:
            return
        self._encoder({**facts, "settings": to_dict(self.config)}).save(folder.encoder)
        write_report(folder.report, run=folder.path)
        logger.info("encoder: %s", folder.encoder)
        logger.info("report:  %s", folder.report)

    def _encoder(self, facts: dict[str, Any]) -> Encoder:
        return build_encoder(
            self.config,
            backbone=self._trainer.exported(self.config.export.network),
            log_mel=self._trainer.log_mel,
            facts=facts,
        )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="ssmast pretrain"))
