"""The loop of every training: data in, steps, log lines, checkpoints, a clean stop."""

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ssmast.audio import Quarantine
from ssmast.audio.segments import SegmentBatch
from ssmast.command import StoppedError
from ssmast.evaluation.processes import joined_lists, largest
from ssmast.training.alarm import Alarm, AlarmError
from ssmast.training.launch import StopRequest, on_main
from ssmast.training.metrics_log import MetricsLog
from ssmast.training.online_probe import Watcher
from ssmast.training.run_folder import RunFolder, write_skipped
from ssmast.training.step import StepResult, TrainingState

logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.2  # seconds between looks at whether to give up
_SAVED = "the state is saved, resume it with resume=auto"
# What a process asks the others for besides the signals, which are below 100.
_STOP_BY_ALARM = 1000


class Fetcher:
    """Fetches batches in a thread so that signals are handled while waiting.

    A read from a mount that went away may block for ever, in C code that no signal interrupts.
    Nothing is fetched ahead unless asked for: while the thread works, the caller does nothing but
    wait. The thread ends with this object and lets go of the iterator, which stops a loader's
    worker processes.

    Args:
        batches: what to fetch from.
        ahead: batches that are fetched before they are asked for.
    """

    def __init__(self, batches: Iterator[SegmentBatch], *, ahead: int = 0) -> None:
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[SegmentBatch | BaseException] = queue.SimpleQueue()
        # A daemon: Python does not wait for it at the end. It must not hold this object.
        threading.Thread(
            target=_fetch, args=(batches, self._wanted, self._found), name="data", daemon=True
        ).start()
        weakref.finalize(self, self._wanted.put, False)
        for _ in range(ahead):
            self._wanted.put(True)

    def next(self, *, give_up: Callable[[], bool]) -> SegmentBatch | None:
        """The next batch, or None if `give_up` said so first.

        Raises:
            BaseException: whatever the iterator raises.
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
    batches: Iterator[SegmentBatch],
    wanted: "queue.SimpleQueue[bool]",
    found: "queue.SimpleQueue[SegmentBatch | BaseException]",
) -> None:
    """Put a batch into `found` for every True in `wanted`; False ends it."""
    while wanted.get():
        try:
            found.put(next(batches))
        except BaseException as error:  # belongs to whoever waits
            found.put(error)
            return


def on_their_way(batches: Iterator[SegmentBatch], device: torch.device) -> Iterator[SegmentBatch]:
    """Batches whose waveforms and numbers of clips went to a GPU beside what that computes."""
    beside, steps = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    for batch in batches:
        with torch.cuda.stream(beside):
            waveform = batch.waveform.to(device, non_blocking=True)
            ids = batch.clip.to(device, non_blocking=True)
        waveform.record_stream(steps)
        ids.record_stream(steps)
        beside.synchronize()  # in the thread that fetches: no other waits
        yield replace(batch, waveform=waveform, ids=ids)


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What records, judges and stops a run.

    Attributes:
        folder: where checkpoints and `skipped.jsonl` go.
        quarantine: list of bad clips; raises when there are too many.
        stop: polled once a step.
        log: metrics and progress.
        alarm: looks at every line; on the main process, the others follow it.
        watcher: scores what is trained now and then, or None.
        name_of: number of a clip -> its name, for the replay file.
    """

    folder: RunFolder
    quarantine: Quarantine
    stop: StopRequest
    log: MetricsLog
    alarm: Alarm
    watcher: Watcher | None
    name_of: Callable[[int], str]


def run_loop(state: TrainingState, batches: Iterator[SegmentBatch], with_: Instruments) -> None:
    """Train until `state.steps`.

    Args:
        state: objective, optimiser and place in the run.
        batches: this process' share of every step, in order.
        with_: what records, judges and stops the run.

    Raises:
        StoppedError: after a signal, once the state is saved.
        AlarmError: if the alarm is to stop the run, once the state is saved.
        ValueError: after `max_skipped` non-finite steps in a row, or too many bad clips.
        OSError: if the last checkpoint cannot be written.
    """
    config, log, alarm, stop = state.config, with_.log, with_.alarm, with_.stop
    scores = _scores_if_due(state, with_)
    skipped_in_a_row = 0
    rejected: list[tuple[str, str]] = []
    waited, since, since_step = 0.0, time.perf_counter(), state.step
    busy_since = time.process_time()
    device = state.accelerator.device
    # The next batch travels while a step runs, at the price of its memory.
    is_short = config.grad_checkpointing or config.optim.gradient_accumulation_steps > 1
    if device.type == "cuda" and not is_short:
        fetcher = Fetcher(on_their_way(batches, device), ahead=1)
    else:
        fetcher = Fetcher(batches)
    while state.step < state.steps:
        asked = time.perf_counter()
        batch = fetcher.next(give_up=lambda: bool(stop.poll()))
        waited += time.perf_counter() - asked
        # Agreed on with the data in hand: a process that waits for data for ever can still stop,
        # and no other is left behind in the middle of a step.
        wanted = stop.poll() or (_STOP_BY_ALARM if alarm.wants_stop else 0)
        # The largest signal that any has received, so that all stop at the same step.
        stopped_by = largest(wanted, size=state.accelerator.num_processes)
        if stopped_by or batch is None:
            _save(state, with_.folder)
            if stopped_by == _STOP_BY_ALARM:
                raise AlarmError(
                    f"alarm=stop ended the run at step {state.step}: "
                    f"{alarm.said or 'see the main process'}; the state is saved, "
                    "resume=auto alarm=warn resumes it all the same"
                )
            raise StoppedError(stopped_by, _SAVED)
        rejected += batch.rejected
        result = state.train_step(batch)
        if result.skipped and not result.rescaled:
            skipped_in_a_row += 1
            _note_skip(state, batch, result, with_)
            if skipped_in_a_row >= config.max_skipped:
                raise ValueError(
                    f"{skipped_in_a_row} steps in a row gave a non-finite loss or gradient (step "
                    f"{state.step}, loss {float(result.loss.loss)}); lower optim.lr, or look at "
                    f"the clips listed in {with_.folder.skipped_file}"
                )
        else:
            skipped_in_a_row = 0
        done = state.step
        # The first step shows the untrained encoder, which all later lines are compared with.
        if done == 1 or done % config.log_every == 0 or done == state.steps or result.skipped:
            now = time.perf_counter()
            seconds = max(now - since, 1e-9)
            row: dict[str, Any] = dict(state.numbers(result))
            row["clips_per_second"] = (done - since_step) * config.batch_size / seconds
            row["data_wait"] = waited / seconds
            row["processor_seconds"] = time.process_time() - busy_since
            raised = alarm.look({"step": done, **row}) if log.enabled else {}
            log.write(done, row | ({"alarms": raised} if raised else {}))
            told = {} if with_.watcher is None else with_.watcher.shown(scores)
            log.advance(done, _shown(row, told, raised))
            waited, since, since_step = 0.0, now, done
            busy_since = time.process_time()
            # All processes hold the same list, so all of them stop when it grows too long.
            bad, rejected = _of_all(state, rejected), []
            _write_or_warn(lambda bad=bad: with_.quarantine.add(bad))
        before, busy_before = time.perf_counter(), time.process_time()
        scores = _scores_if_due(state, with_) or scores
        since += time.perf_counter() - before  # clips/s are those of training
        busy_since += time.process_time() - busy_before
        if done == state.steps:
            _save(state, with_.folder)
        elif config.checkpoint_every and done % config.checkpoint_every == 0:
            _save_or_warn(state, with_.folder)
    stopped_by = largest(stop.poll(), size=state.accelerator.num_processes)
    if stopped_by:  # in the last step; what follows takes minutes, and more runs may follow that
        raise StoppedError(stopped_by, _SAVED)


def _save(state: TrainingState, folder: RunFolder) -> None:
    """Write a checkpoint (main process); all wait for it, and all raise if it fails."""
    on_main(state.accelerator, lambda: state.save(folder))


def _save_or_warn(state: TrainingState, folder: RunFolder) -> None:
    """Save; a full disk is no reason to lose what is in memory, so the run continues."""
    try:
        _save(state, folder)
    except OSError as error:
        if state.accelerator.is_main_process:
            logger.warning(
                "step %d: the checkpoint could not be written (%s); earlier ones are untouched and "
                "the run continues: make room in %s before it ends",
                *(state.step, error, folder.checkpoints),
            )


def _write_or_warn(write: Callable[[], None]) -> None:
    """Write a list of the main process; a full disk costs the list, not what is in memory."""
    try:
        write()
    except OSError as error:
        logger.warning("a list of clips could not be written (%s); the run continues", error)


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
    # A narrow terminal cuts the end: what tells most stands first.
    first = {name: shown.pop(name) for name in ("loss", "acc") if name in shown}
    return first | scores | shown | ({"ALARM": ",".join(raised)} if raised else {})


def _scores_if_due(state: TrainingState, with_: Instruments) -> dict[str, float]:
    """Scores of the networks as they are now, logged; empty where none are due. All call."""
    watcher = with_.watcher
    if watcher is None or not watcher.is_due(state.step, steps=state.steps):
        return {}
    scores = watcher.run(step=state.step)
    with_.log.write(state.step, scores)
    return scores


def _of_all(state: TrainingState, items: list[Any]) -> list[Any]:
    """Lists of all processes joined."""
    return items if state.accelerator.num_processes == 1 else joined_lists(items)


def _note_skip(
    state: TrainingState, batch: SegmentBatch, result: StepResult, with_: Instruments
) -> None:
    """Write down the batch of all processes so that it can be made again."""
    loss, grad_norm = float(result.loss.loss), float(result.grad_norm)
    logger.warning(
        "step %d: non-finite loss or gradient (loss %s, gradient norm %s); the step is skipped on "
        "all processes",
        *(state.step, loss, grad_norm),
    )
    rows = zip(batch.position.tolist(), batch.epoch.tolist(), batch.clip.tolist(), strict=True)
    mine = [
        {"position": position, "epoch": epoch, "clip": clip, "name": with_.name_of(clip)}
        for position, epoch, clip in rows
    ]
    items = _of_all(state, mine)
    if state.accelerator.is_main_process:
        file = with_.folder.skipped_file
        _write_or_warn(
            lambda: write_skipped(
                file, step=state.step, loss=loss, grad_norm=grad_norm, items=items
            )
        )
