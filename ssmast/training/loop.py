"""The loop that every training shares: data in, steps, log lines, checkpoints, a clean stop.

Waiting for data without being deaf to signals.

Each process' share of the clips, step by step, read by workers.
"""

import logging
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset

from ssmast.audio import Quarantine, StepSampler, collate_segments
from ssmast.command import StoppedError
from ssmast.training.alarm import Alarm, AlarmError
from ssmast.training.config import TrainConfig
from ssmast.training.launch import StopRequest
from ssmast.training.metrics_log import MetricsLog
from ssmast.training.replay import write_skipped
from ssmast.training.run_folder import RunFolder

_LOOK_EVERY = 0.2  # seconds between looks at whether to give up


class Fetcher:
    """Takes batches from an iterator in a thread of its own, so that the wait can be given up.

    A read from a mount that went away may block for ever, in C code where no signal is heard.
    Nothing is fetched ahead: while the thread works, the caller does nothing but wait. The thread
    ends with this object and lets go of the iterator, which stops a loader's worker processes.

    Args:
        batches: to take from.
    """

    def __init__(self, batches: Iterator[dict[str, Any]]) -> None:
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[dict[str, Any] | BaseException] = queue.SimpleQueue()
        # A daemon: Python does not wait for it at the end. It must not hold this object.
        threading.Thread(
            target=_fetch, args=(batches, self._wanted, self._found), name="data", daemon=True
        ).start()
        weakref.finalize(self, self._wanted.put, False)

    def next(self, *, give_up: Callable[[], bool]) -> dict[str, Any] | None:
        """The next batch, or None if `give_up` said so first.

        Raises:
            Whatever the iterator raises.
        """
        self._wanted.put(True)
        while True:
            try:
                found = self._found.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                if give_up():
                    return None
                continue
            if isinstance(found, BaseException):
                raise found
            return found


def _fetch(
    batches: Iterator[dict[str, Any]],
    wanted: "queue.SimpleQueue[bool]",
    found: "queue.SimpleQueue[dict[str, Any] | BaseException]",
) -> None:
    """Put a batch into `found` for every True in `wanted`; False ends it."""
    while wanted.get():
        try:
            found.put(next(batches))
        except BaseException as error:  # belongs to whoever waits
            found.put(error)
            return


def segment_loader(
    config: TrainConfig,
    dataset: Dataset[Any],
    *,
    first_step: int,
    steps: int,
    rank: int,
    num_ranks: int,
    collate: Callable[[list[Any]], Any] = collate_segments,
) -> DataLoader[Any]:
    """This process' share of every step from `first_step` on.

    Raises:
        ValueError: if the batch cannot be shared out evenly.
    """
    parts = num_ranks * config.optim.gradient_accumulation_steps
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size={config.batch_size} cannot be shared evenly by {num_ranks} processes "
            f"with {config.optim.gradient_accumulation_steps} micro-batches each; use a multiple "
            f"of {parts}"
        )
    sampler = StepSampler(
        start=first_step,
        stop=steps,
        batch_size=config.batch_size,
        rank=rank,
        num_ranks=num_ranks,
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=config.workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_quiet_worker,
        prefetch_factor=4 if config.workers else None,
    )


def _quiet_worker(worker: int) -> None:
    """One thread a worker, and Ctrl-C left to the main process, which still needs the data."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


logger = logging.getLogger(__name__)

# What a process asks the others for besides the signals, which are below 100: see `_agree`.
_STOP_BY_ALARM = 1000


class Trainer(Protocol):
    """What the loop needs of an objective."""

    step: int
    steps: int
    accelerator: Accelerator

    def train_step(self, micro_batches: list[dict[str, Any]]) -> dict[str, Any]:
        """One optimiser step; `skipped` is True when a non-finite value made it stand still."""
        ...

    def measure(self, values: dict[str, Any]) -> dict[str, Any]:
        """Numbers to log, from what `train_step` returned."""
        ...

    def save(self, folder: RunFolder) -> None:
        """Write a checkpoint; all processes call it, and all raise if it fails."""
        ...


class Watcher(Protocol):
    """What scores the networks now and then, and changes nothing that trains."""

    def is_due(self, step: int, *, steps: int) -> bool:
        """Whether to score after `step` of `steps`."""
        ...

    def run(self, *, step: int) -> dict[str, float]:
        """Scores by name; all processes call it."""
        ...

    def shown(self, scores: dict[str, float]) -> dict[str, str]:
        """The most telling of them, for the progress line."""
        ...


def run_loop(
    trainer: Trainer,
    batches: Iterator[dict[str, Any]],
    *,
    folder: RunFolder,
    quarantine: Quarantine,
    stop: StopRequest,
    log: MetricsLog,
    alarm: Alarm,
    watcher: Watcher | None,
    name_of: Callable[[int], str],
    max_skipped: int,
    batch_size: int,
    accumulate: int,
    log_every: int,
    checkpoint_every: int,
) -> None:
    """Train until `trainer.steps`.

    Args:
        trainer: state and step of the objective.
        batches: this process' share of every step, in order.
        folder: where checkpoints and `skipped.jsonl` go.
        quarantine: list of bad clips; raises when there are too many.
        stop: polled once a step.
        log: metrics and progress.
        alarm: looks at every line; on the main process, the others follow it.
        watcher: scores what is trained now and then, or None.
        name_of: number of a clip -> its name, for the replay file.
        max_skipped: non-finite steps in a row that end the run.
        batch_size: clips a step over all processes, for clips/s.
        accumulate: micro-batches a step.
        log_every: steps between log lines.
        checkpoint_every: steps between checkpoints; 0 for only at the end.

    Raises:
        StoppedError: after a signal, once the state is saved.
        AlarmError: if the alarm is to stop the run, once the state is saved.
        ValueError: after `max_skipped` non-finite steps in a row, or too many bad clips.
        OSError: if the last checkpoint cannot be written.
    """
    scores = _scores_if_due(watcher, trainer, log)
    skipped_in_a_row, rejected = 0, []
    waited, since, since_step = 0.0, time.perf_counter(), trainer.step
    fetcher = Fetcher(batches)
    while trainer.step < trainer.steps:
        asked = time.perf_counter()
        batch = fetcher.next(give_up=lambda: bool(stop.poll()))
        waited += time.perf_counter() - asked
        # Agreed on with the data in hand: a process that waits for data for ever can still stop,
        # and no other is left behind in the middle of a step.
        wanted = stop.poll() or (_STOP_BY_ALARM if alarm.wants_stop else 0)
        stopped_by = _agree(trainer.accelerator, wanted)
        if stopped_by or batch is None:
            trainer.save(folder)
            if stopped_by == _STOP_BY_ALARM:
                raise AlarmError(
                    f"alarm=stop ended the run at step {trainer.step}: "
                    f"{alarm.said or 'see the main process'}; the state is saved, "
                    "resume=auto alarm=warn goes on all the same"
                )
            raise StoppedError(stopped_by, "the state is saved, go on with resume=auto")
        micro_batches = split_batch(batch, accumulate)
        rejected += micro_batches[0]["rejected"]
        values = trainer.train_step(micro_batches)
        if values["skipped"]:
            skipped_in_a_row += 1
            _note_skip(trainer, micro_batches, values, folder, name_of)
            if skipped_in_a_row >= max_skipped:
                raise ValueError(
                    f"{skipped_in_a_row} steps in a row gave a non-finite loss or gradient "
                    f"(step {trainer.step}, loss {values['loss']}); lower optim.lr, or look at the "
                    f"clips listed in {folder.skipped_file}"
                )
        else:
            skipped_in_a_row = 0
        done = trainer.step
        # The first step shows the untrained encoder, which all later lines are compared with.
        if done == 1 or done % log_every == 0 or done == trainer.steps or values["skipped"]:
            now = time.perf_counter()
            speed = (done - since_step) * batch_size / max(now - since, 1e-9)
            row = {"skipped": True} if values["skipped"] else trainer.measure(values)
            row |= {"clips_per_second": speed, "data_wait": waited / max(now - since, 1e-9)}
            raised = alarm.look({"step": done, **row}) if log.enabled else {}
            log.write(done, row | ({"alarms": raised} if raised else {}))
            told = watcher.shown(scores) if watcher is not None else {}
            log.advance(done, _shown(row, told, raised))
            waited, since, since_step = 0.0, now, done
            # All processes hold the same list, so all of them stop when it grows too long.
            quarantine.add(gather_object(rejected))
            rejected = []
        before = time.perf_counter()
        scores = _scores_if_due(watcher, trainer, log) or scores
        since += time.perf_counter() - before  # clips/s are those of training
        if done == trainer.steps:
            trainer.save(folder)
        elif checkpoint_every and done % checkpoint_every == 0:
            _save_or_warn(trainer, folder)


def _save_or_warn(trainer: Trainer, folder: RunFolder) -> None:
    """Save; a full disk is no reason to lose what is in memory, so the run goes on."""
    try:
        trainer.save(folder)
    except OSError as error:
        if trainer.accelerator.is_main_process:
            logger.warning(
                "step %d: the checkpoint could not be written (%s); earlier ones are untouched and "
                "the run goes on: make room in %s before it ends",
                *(trainer.step, error, folder.checkpoints),
            )


def split_batch(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """Equal micro-batches, in order; lists (of rejected clips) stay with the first."""
    split: list[dict[str, Any]] = [{} for _ in range(parts)]
    for key, value in batch.items():
        is_rows = isinstance(value, torch.Tensor)
        pieces = value.chunk(parts) if is_rows else [value, *[[]] * (parts - 1)]
        for micro, piece in zip(split, pieces, strict=True):
            micro[key] = piece
    return split


def _shown(row: dict[str, Any], scores: dict[str, str], raised: dict[str, str]) -> dict[str, str]:
    """The most telling numbers for the progress line, the last scores, and what fails."""
    names = {
        "loss": "loss",
        "accuracy": "acc",
        "rank_embedding": "rank",
        "uniformity": "unif",
        "clips_per_second": "clips/s",
        "data_wait": "wait",
    }
    shown = {short: f"{row[name]:.3g}" for name, short in names.items() if name in row}
    if row.get("skipped"):
        shown["skipped"] = "non-finite"
    return shown | scores | ({"ALARM": ",".join(raised)} if raised else {})


def _scores_if_due(watcher: Watcher | None, trainer: Trainer, log: MetricsLog) -> dict[str, float]:
    """Scores of the networks as they are now, logged; empty where none are due. All call."""
    if watcher is None or not watcher.is_due(trainer.step, steps=trainer.steps):
        return {}
    scores = watcher.run(step=trainer.step)
    log.write(trainer.step, scores)
    return scores


def _agree(accelerator: Accelerator, signal_number: int) -> int:
    """The largest signal number any process has received, so that all stop at the same step."""
    if accelerator.num_processes == 1:
        return signal_number
    mine = torch.tensor([signal_number], device=accelerator.device)
    return int(cast(torch.Tensor, accelerator.gather(mine)).max())


def _note_skip(
    trainer: Trainer,
    micro_batches: list[dict[str, Any]],
    values: dict[str, Any],
    folder: RunFolder,
    name_of: Callable[[int], str],
) -> None:
    """Write down the batch of all processes so that it can be made again."""
    logger.warning(
        "step %d: non-finite loss or gradient (loss %s, gradient norm %s); the step is skipped on "
        "all processes",
        *(trainer.step, values["loss"], values["grad_norm"]),
    )
    rows = [
        tuple(map(int, row))
        for micro in micro_batches
        for row in zip(micro["position"], micro["epoch"], micro["clip"], strict=True)
    ]
    mine = [
        {"position": position, "epoch": epoch, "clip": clip, "name": name_of(clip)}
        for position, epoch, clip in rows
    ]
    items = gather_object(mine)
    if trainer.accelerator.is_main_process:
        write_skipped(
            folder.skipped_file,
            step=trainer.step,
            loss=values["loss"],
            grad_norm=values["grad_norm"],
            items=items,
        )
