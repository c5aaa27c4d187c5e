"""One run of any objective, from its settings to its folder."""

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ssmast.audio import Corpus, Quarantine
from ssmast.audio.read import bytes_hash, file_of
from ssmast.files import check_output
from ssmast.settings import to_dict
from ssmast.training.alarm import Alarm
from ssmast.training.inputs import build_log_mel, decoded, mean_and_std, segment_loader, steps_of
from ssmast.training.launch import StopRequest, on_main, start_accelerator
from ssmast.training.loop import Instruments, run_loop
from ssmast.training.metrics_log import MetricsLog, Tracker, check_tracker, read_metrics
from ssmast.training.objective import Objective, PretrainConfig, RunFacts, TrainConfig, TrainingData
from ssmast.training.run_folder import RunFolder, facts_of_encoder, open_run
from ssmast.training.show_views import draw_step
from ssmast.training.step import TrainingState
from ssmast.version import __version__

logger = logging.getLogger(__name__)

AnyObjective = Objective[Any, Any, Any]

_OWN_GIB = 2  # that a process takes of a GPU beside what PyTorch's allocator reserves


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What the main process works out and all others follow; it travels once.

    Attributes:
        folder: of the run.
        steps: optimiser steps of the whole run.
        start: file or folder of the weights to start from; None for random ones, and for a run
            that is resumed, whose weights are in the checkpoint.
        facts: what the run found out once and keeps (corpus, mean and std); empty if `is_done`.
        history: lines of metrics.jsonl so far.
        is_done: there is nothing to train.
    """

    folder: RunFolder
    steps: int
    start: Path | None
    facts: dict[str, Any]
    history: list[dict[str, Any]]
    is_done: bool


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """What every process opens for itself: the clips, and the same from a cache."""

    data: TrainingData
    source: Corpus


def run_training(kind: type[AnyObjective], config: TrainConfig, *, dry_run: bool = False) -> Path:
    """Train an objective as the settings say; gives the run folder, with encoder and report.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: one sentence saying what to change.
        StoppedError: after Ctrl-C or SIGTERM, with the state saved.
    """
    if config.run:
        check_output(config.run, key="run", folder=True)
    config = kind.resolve(config)
    kind.check(config)
    check_tracker(config.track)
    accelerator = start_accelerator(
        precision=config.precision,
        processes=config.processes,
        threads=config.threads,
        tf32=config.tf32,
        deterministic=config.deterministic,
        cudnn_attention=config.cudnn_attention,
    )
    with StopRequest() as stop, ExitStack() as stack:
        opened: list[_Opened] = []
        plan = on_main(
            accelerator, lambda: _plan(kind, config, accelerator, stack, opened, dry_run=dry_run)
        )
        if not plan.is_done:
            ours = opened[0] if opened else _open(kind, config, plan.folder)
            try:
                _train(kind, config, plan, ours, accelerator=accelerator, stop=stop)
            except torch.OutOfMemoryError as error:
                raise ValueError(_too_large(config, accelerator)) from error
        return plan.folder.path


def _too_large(config: TrainConfig, accelerator: Accelerator) -> str:
    """What to do about a step that a GPU has no memory for, what costs least first."""
    free, total = torch.cuda.mem_get_info(accelerator.device)
    others = (total - free - torch.cuda.memory_reserved(accelerator.device)) / 2**30
    held = f", of which other programs hold about {others:.1f}; end those, or"
    held = held if others > _OWN_GIB else ";"
    pieces, size = config.optim.gradient_accumulation_steps, config.batch_size
    share = size // accelerator.num_processes
    own = [] if config.grad_checkpointing else ["grad_checkpointing=true"]
    if share % (2 * pieces) == 0:
        own.append(f"optim.gradient_accumulation_steps={2 * pieces}")
    keys = " or ".join([*own, "a smaller model="])
    return (
        f"CUDA out of memory: {share} clips in {pieces} micro-batch(es) do not fit the "
        f"{total / 2**30:.1f} GiB of {accelerator.device}{held} use {keys}, "
        f"or a batch_size below {size}"
    )


def _plan(
    kind: type[AnyObjective],
    config: TrainConfig,
    accelerator: Accelerator,
    stack: ExitStack,
    opened: list[_Opened],
    *,
    dry_run: bool,
) -> RunPlan:
    """Decide everything; a second look of another process would already find the folder taken.

    The lock of the folder goes onto `stack`, and what was opened into `opened`.
    """
    folder = open_run(config)
    start = None
    if folder.resume_from is None and not folder.finished:
        start = kind.find_start(config)
    data = kind.open_data(config, runs=folder.path.parent)
    steps = steps_of(config, num_clips=len(data.clips))
    logger.info(
        "run folder %s: %s, %d clips, %d steps of %d clips on %d process(es), %s",
        *(folder.path, kind.__name__, len(data.clips), steps, config.batch_size),
        *(accelerator.num_processes, accelerator.device),
    )
    _check_same_data(folder, data)
    if folder.finished:
        logger.info("%s is finished; its encoder is %s", folder.path, folder.encoder)
    if not folder.finished and not dry_run:
        stack.enter_context(folder.locked())
        # While the data were opened, another process may have gone on, or begun another run.
        folder = open_run(replace(config, run=str(folder.path)))
        _check_same_data(folder, data)
    if folder.finished or dry_run:
        return RunPlan(folder=folder, steps=steps, start=start, facts={}, history=[], is_done=True)
    folder.write_config(config)
    source = decoded(config, data.clips, runs=folder.path.parent)
    opened.append(_Opened(data=data, source=source))
    return RunPlan(
        folder=folder,
        steps=steps,
        start=start,
        facts=_facts(kind, config, folder, opened[0]),
        history=read_metrics(folder.metrics_file),
        is_done=False,
    )


def _open(kind: type[AnyObjective], config: TrainConfig, folder: RunFolder) -> _Opened:
    """What the main process opened, whose files are all written."""
    runs = folder.path.parent
    data = kind.open_data(config, runs=runs)
    return _Opened(data=data, source=decoded(config, data.clips, runs=runs))


def _train(
    kind: type[AnyObjective],
    config: TrainConfig,
    plan: RunPlan,
    opened: _Opened,
    *,
    accelerator: Accelerator,
    stop: StopRequest,
) -> None:
    folder, facts, is_main = plan.folder, plan.facts, accelerator.is_main_process
    data, clips = opened.data, opened.data.clips
    log_mel = data.log_mel or build_log_mel(config, mean=facts["mean"], std=facts["std"])
    run = RunFacts(log_mel=log_mel, num_clips=len(clips), steps=plan.steps, data=data)
    objective = kind(config, run)
    state = TrainingState(objective, accelerator)
    if folder.resume_from is not None:
        state.load_(folder.resume_from)
        logger.info("resuming at step %d from %s", state.step, folder.resume_from)
    elif plan.start is not None:
        about = folder.path / "init.json" if is_main else None
        report = objective.start_from_(plan.start, about)
        logger.info("init %s: %s; the heads are new", plan.start, report)
    history = [row for row in plan.history if row["step"] <= state.step]
    items = kind.items(config, opened.source, data)
    clips_shown = objective.config.show_views
    if is_main and clips_shown and not folder.views.is_file():
        draw_step(folder.views, objective, items, clips=clips_shown)
    loader = segment_loader(
        config,
        items,
        first_step=state.step,
        steps=plan.steps,
        rank=accelerator.process_index,
        num_ranks=accelerator.num_processes,
    )
    started = time.monotonic()
    log = MetricsLog(
        folder.metrics_file,
        steps=plan.steps,
        first_step=state.step,
        enabled=is_main,
        tensorboard=folder.path / "tensorboard" if config.tensorboard else None,
        tracker=(
            Tracker(config.track, folder.path, to_dict(objective.config))
            if config.track and is_main
            else None
        ),
    )
    instruments = Instruments(
        folder=folder,
        quarantine=Quarantine(
            folder.quarantine_file if is_main else None,
            corpus_size=len(clips),
            max_fraction=config.max_bad_fraction,
        ),
        stop=stop,
        log=log,
        alarm=Alarm(
            # Fine-tuning has none: the alarm watches the embeddings of unlabelled clips.
            mode=config.alarm if isinstance(config, PretrainConfig) else "off",
            num_embeddings=kind.num_segments * config.batch_size,
            history=history,
        ),
        watcher=objective.watcher(history),
        name_of=clips.name,
    )
    with log, stop.deferred():
        run_loop(state, iter(loader), instruments)
    seconds = round(time.monotonic() - started, 1)
    known = {**facts_of_encoder(facts), "steps": plan.steps, "seconds": seconds}
    objective.finish(folder.path, known, is_main=is_main)
    if is_main:
        if num_bad := len(instruments.quarantine):
            bad = folder.quarantine_file
            if clips.by_file:  # of a night some seconds of silence may be left out
                logger.warning("clips of %d file(s) were left out, see %s", num_bad, bad)
            else:
                logger.warning("%d of %d clips were left out, see %s", num_bad, len(clips), bad)
        logger.info("encoder: %s", folder.encoder)
        logger.info("report:  %s", folder.report)
    on_main(accelerator, lambda: None)  # all leave together, however long the report takes


def _check_same_data(folder: RunFolder, data: TrainingData) -> None:
    """Refuse to resume a run on other audio or labels, or scaled by another encoder's mean and std.

    Before anything of it is written anew.
    """
    facts, corpus = folder.read_facts(), data.clips
    if not facts:
        return
    if facts["corpus"] != corpus.listing_hash:
        order = ", or on the same in another order" if facts["clips"] == len(corpus) else ""
        raise ValueError(
            f"{folder.path} was started on other audio{order} ({facts['clips']} clips, now "
            f"{len(corpus)}); resume with the same data= or choose another run="
        )
    looks = zip(facts.get("looks", []), _looks(corpus), strict=False)  # older runs have none
    if any(was and now and was != now for was, now in looks):
        raise ValueError(
            f"{folder.path} was started on other audio: clips of the same names and sizes hold "
            "other bytes now; resume with the same data= or choose another run="
        )
    if facts.get("labels", data.labels_sha256) != data.labels_sha256:
        raise ValueError(
            f"{folder.path} was started with other labels or another split of the same clips; "
            "choose another run="
        )
    front = data.log_mel
    if front is not None and (facts["mean"], facts["std"]) != (front.mean, front.std):
        raise ValueError(
            f"{folder.path} was started from an encoder with another mean and std than that of "
            "init= has now; put that encoder back, or choose another run="
        )


def _looks(corpus: Corpus) -> list[str]:
    """Hashes of the middle of 16 clips' files, empty where one cannot be read.

    The clean and the noisy version of a set have the same names and sizes. Of clips at URLs and in
    Parquet there are none: they would have to be fetched.
    """
    hashes = []
    if any(part.is_fetched for part in corpus.corpora):
        return hashes
    for row in np.linspace(0, len(corpus) - 1, 16).astype(int).tolist():
        try:
            source = file_of(corpus.sought(row))
        except (OSError, ValueError):  # training says what to do about it
            hashes.append("")
        else:
            hashes.append(bytes_hash(source, 1 << 16))
    return hashes


def _facts(
    kind: type[AnyObjective], config: TrainConfig, folder: RunFolder, opened: _Opened
) -> dict[str, Any]:
    """What the corpus is, and its mean and std: found out once a run."""
    found = folder.read_facts()
    if found:
        return found
    data = opened.data
    if data.log_mel is not None:
        mean, std = data.log_mel.mean, data.log_mel.std
        logger.info("log-mel mean %.3f, std %.3f, of the encoder", mean, std)
    else:
        frames = kind.frames(config)
        mean, std = mean_and_std(config, data.clips, decoded=opened.source, frames=frames)
    facts = {
        "data": config.data or "built-in synthetic corpus",
        "clips": len(data.clips),
        "corpus": data.clips.listing_hash,
        "looks": _looks(data.clips),
        **({"labels": data.labels_sha256} if data.labels_sha256 else {}),
        "mean": mean,
        "std": std,
        "segments": kind.num_segments,
        "version": __version__,
    }
    folder.write_facts(facts)
    return facts
