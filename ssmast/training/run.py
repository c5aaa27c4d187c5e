"""One run of any training, from its settings to its folder; the method fills in what differs."""

import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch.utils.data import DataLoader

from ssmast.audio import Corpus, LogMel, Quarantine
from ssmast.training.alarm import Alarm
from ssmast.training.build import build_log_mel, decoded, mean_and_std, steps_of
from ssmast.training.config import TrainConfig
from ssmast.training.launch import StopRequest, on_main, on_main_first, start_accelerator
from ssmast.training.loop import Watcher, run_loop
from ssmast.training.metrics_log import MetricsLog, read_metrics
from ssmast.training.objective import BaseTrainer
from ssmast.training.run_folder import RunFolder, open_run

logger = logging.getLogger(__name__)


class Method(Protocol):
    """One kind of training: what it is fed, what it trains, what it leaves.

    Calls come in this order; all processes make them unless it says otherwise.
    """

    @property
    def config(self) -> TrainConfig:
        """Settings of the run, resolved: what config.yaml will hold."""
        ...

    @property
    def frames(self) -> int:
        """Frames of an input."""
        ...

    def check(self) -> None:
        """Refuse what cannot be run, before hours may pass in reading the corpus."""
        ...

    def find_start(self) -> Path | None:
        """File or folder of the weights to start from; None for random ones. May download."""
        ...

    def open_clips(self, folder: RunFolder) -> Corpus:
        """The clips to train on."""
        ...

    def known_log_mel(self) -> LogMel | None:
        """The front end with its mean and std, where it comes with the weights."""
        ...

    def make_trainer(
        self, accelerator: Accelerator, log_mel: LogMel, *, steps: int
    ) -> BaseTrainer[Any]:
        """Networks, optimiser and step, with fresh weights."""
        ...

    def start_(self, start: Path, folder: RunFolder) -> None:
        """Put the weights that `find_start` found into the trainer."""
        ...

    def watcher(self, folder: RunFolder, history: list[dict[str, Any]]) -> Watcher | None:
        """What scores the networks while they train."""
        ...

    def alarm(self, history: list[dict[str, Any]]) -> Alarm:
        """What tells when training fails."""
        ...

    def loader(self, source: Corpus, *, rank: int, num_ranks: int) -> DataLoader[Any]:
        """This process' share of every step that is left."""
        ...

    def draw(self, source: Corpus, folder: RunFolder) -> None:
        """Show what the networks are fed; the main process alone calls it."""
        ...

    def finish(self, folder: RunFolder, facts: dict[str, Any]) -> None:
        """Write encoder/ and report.html."""
        ...


def run_training(method: Method, *, dry_run: bool = False) -> RunFolder:
    """Train as the method and its settings say, and leave a run folder with encoder and report.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: one sentence saying what to change.
        StoppedError: after Ctrl-C or SIGTERM, with the state saved.
    """
    method.check()
    config = method.config
    accelerator = start_accelerator(
        precision=config.precision, processes=config.processes, threads=config.threads
    )
    with StopRequest() as stop:
        # The main process decides alone: a second look would already find its folder taken.
        folder = on_main(accelerator, lambda: open_run(config))
        start = None  # a run that goes on has its weights in the checkpoint
        if folder.resume_from is None and not folder.finished:
            start = on_main_first(accelerator, method.find_start)
        corpus = on_main_first(accelerator, lambda: method.open_clips(folder))
        steps = steps_of(config, num_clips=len(corpus))
        if accelerator.is_main_process:
            logger.info(
                "run folder %s: %d clips, %d steps of %d clips on %d process(es), %s",
                *(folder.path, len(corpus), steps, config.batch_size),
                *(accelerator.num_processes, accelerator.device),
            )
        on_main(accelerator, lambda: _check_same_audio(folder, corpus))
        if dry_run:
            return folder
        if folder.finished:
            logger.info("%s is finished; its encoder is %s", folder.path, folder.encoder)
            return folder
        with ExitStack() as stack:
            on_main(accelerator, lambda: stack.enter_context(folder.locked()))
            _train(method, accelerator, folder, corpus, start=start, steps=steps, stop=stop)
        return folder


def _train(
    method: Method,
    accelerator: Accelerator,
    folder: RunFolder,
    corpus: Corpus,
    *,
    start: Path | None,
    steps: int,
    stop: StopRequest,
) -> None:
    config, is_main = method.config, accelerator.is_main_process
    if is_main:
        folder.write_config(config)
    source = on_main_first(accelerator, lambda: decoded(config, folder, corpus))
    facts = on_main(accelerator, lambda: _corpus_facts(method, folder, corpus, source))
    log_mel = method.known_log_mel() or build_log_mel(config, mean=facts["mean"], std=facts["std"])
    trainer = method.make_trainer(accelerator, log_mel, steps=steps)
    if folder.resume_from is not None:
        trainer.load_(folder.resume_from)
        logger.info("going on at step %d from %s", trainer.step, folder.resume_from)
    elif start is not None:
        method.start_(start, folder)
    history = on_main(accelerator, lambda: read_metrics(folder.metrics_file, up_to=trainer.step))
    watcher = method.watcher(folder, history)
    if is_main:
        method.draw(source, folder)
    loader = method.loader(
        source, rank=accelerator.process_index, num_ranks=accelerator.num_processes
    )
    started = time.monotonic()
    log = MetricsLog(
        folder.metrics_file,
        steps=steps,
        first_step=trainer.step,
        enabled=is_main,
        tensorboard=folder.path / "tensorboard" if config.tensorboard else None,
    )
    with log, stop.deferred():
        run_loop(
            trainer,
            iter(loader),
            folder=folder,
            quarantine=Quarantine(
                folder.quarantine_file if is_main else None,
                corpus_size=len(corpus),
                max_share=config.max_bad_fraction,
            ),
            stop=stop,
            log=log,
            alarm=method.alarm(history),
            watcher=watcher,
            name_of=corpus.name,
            max_skipped=config.max_skipped,
            batch_size=config.batch_size,
            accumulate=config.optim.gradient_accumulation_steps,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
        )
    seconds = round(time.monotonic() - started, 1)
    method.finish(folder, {**facts, "steps": steps, "seconds": seconds})
    accelerator.wait_for_everyone()


def _check_same_audio(folder: RunFolder, corpus: Corpus) -> None:
    """Refuse to go on with a run on other audio, before anything of it is written anew."""
    facts = folder.read_facts()
    if facts and facts["corpus"] != corpus.fingerprint:
        raise ValueError(
            f"{folder.path} was started on other audio ({facts['clips']} clips, now "
            f"{len(corpus)}); resume with the same data= or choose another run="
        )


def _corpus_facts(
    method: Method, folder: RunFolder, corpus: Corpus, source: Corpus
) -> dict[str, Any]:
    """What the corpus is, and its mean and std: found out once a run."""
    config = method.config
    facts = folder.read_facts()
    if facts:
        return facts
    known = method.known_log_mel()
    if known is not None:
        mean, std = known.mean, known.std
        logger.info("log-mel mean %.3f, std %.3f, of the encoder", mean, std)
    else:
        mean, std = mean_and_std(config, corpus, decoded=source, frames=method.frames)
    data = config.data or "built-in synthetic corpus"
    facts = {"data": data, "clips": len(corpus), "corpus": corpus.fingerprint}
    facts |= {"mean": mean, "std": std}
    folder.write_facts(facts)
    return facts
