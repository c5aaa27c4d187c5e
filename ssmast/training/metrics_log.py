"""Progress line, `metrics.jsonl`, TensorBoard and trackers of one run, by the main process alone.

accelerate's trackers do the work of trackio, wandb and mlflow. Where they write is the tracker's
own business and set by its own variables: WANDB_MODE=offline, TRACKIO_DIR, MLFLOW_TRACKING_URI;
without the last, mlflow writes into the run folder.
"""

import importlib.util
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ssmast.files import finite, json_lines, write_atomic
from ssmast.settings import UsageError, flatten

logger = logging.getLogger(__name__)


COLUMNS = 80
"""Characters of a terminal that the progress line fits."""
_BAR = 40  # of them for the bar itself: steps, the bar, the time left
_HISTORY_EVERY = 60.0  # seconds between lines that stay


def fitting(shown: dict[str, str], columns: int) -> str:
    """`loss=5.71 acc=0.03 ...`: as many of the values as fit, and of those the first.

    Args:
        shown: in the order of their weight; what is written in capitals, an alarm, comes first.
        columns: characters there are.
    """
    loudest_first = sorted(shown.items(), key=lambda pair: not pair[0].isupper())
    text = ""
    for word in (f"{key}={value}" for key, value in loudest_first):
        if len(text) + len(word) + 1 > columns:
            break
        text += f" {word}" if text else word
    return text


TRACKERS = ("trackio", "wandb", "mlflow", "tensorboard")
PROJECT = "ssmast"
_REPORT = "report"


def check_tracker(name: str) -> None:
    """Refuse a tracker whose package is not installed, before anything of a run is done.

    Raises:
        UsageError: saying what to install.
    """
    if name and importlib.util.find_spec(name) is None:
        raise UsageError(f"track={name} needs a package that is missing; pip install {name}")


class Tracker:
    """One run in a tracker; what goes wrong there costs the run nothing but a warning.

    Args:
        name: one of `TRACKERS`.
        run: run folder; its name is the run's.
        config: all settings, nested.
    """

    def __init__(self, name: str, run: Path, config: dict[str, Any]) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        check_tracker(name)
        PartialState()  # accelerate's trackers ask which process they are in
        make: Any = LOGGER_TYPE_TO_CLASS[name]
        title = run.resolve().name
        if name == "tensorboard":
            self._tracker = make(title, logging_dir=str(run / "tracking"))
        elif name == "mlflow":
            if "MLFLOW_TRACKING_URI" not in os.environ:
                file = (run / "tracking" / "mlflow.db").resolve()
                file.parent.mkdir(parents=True, exist_ok=True)
                os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{file}"
            self._tracker = make(PROJECT, logging_dir=None, run_name=title)
        else:
            self._tracker = make(PROJECT, name=title)
        self.name = name
        self._report = (run / "report.html").resolve().as_uri()
        self._tracker.start()
        plain = {key: _as_parameter(value) for key, value in flatten(config).items()}
        self._tracker.store_init_configuration({**plain, _REPORT: self._report})
        logger.info("tracking: %s, run %s", name, title)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Numbers of a step; names keep their `/`, by which trackers group curves."""
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        self._quietly(lambda: self._tracker.log(numbers, step=step))

    def close(self) -> None:
        """End the run."""
        self._quietly(self._tracker.finish)

    def _quietly(self, act: Any) -> None:
        try:
            act()
        except Exception as error:  # whatever a tracker or its network raises
            logger.warning("track=%s: %s", self.name, error)


def _as_parameter(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


class MetricsLog:
    """One object a logged step, appended and flushed.

    Args:
        file: metrics.jsonl; lines after `first_step` steps (left by a killed run that went
            further than its last checkpoint) are dropped.
        steps: steps of the whole run.
        first_step: steps done when this process starts.
        enabled: False on all but the main process.
        tensorboard: folder for TensorBoard events, or None.
        tracker: that gets every line too, or None.
        plain_every: seconds between plain progress lines when not on a terminal.
    """

    def __init__(
        self,
        file: Path,
        *,
        steps: int,
        first_step: int = 0,
        enabled: bool = True,
        tensorboard: Path | None = None,
        tracker: Tracker | None = None,
        plain_every: float = 15.0,
    ) -> None:
        self.enabled = enabled
        self.steps = steps
        if not enabled:
            return
        _drop_lines_after(file, first_step)
        self._file = file.open("a", encoding="utf-8")
        self._bar = tqdm(
            total=steps, initial=first_step, disable=None, leave=True, smoothing=0,
            bar_format="{n_fmt}/{total_fmt} |{bar:8}| {remaining} left{postfix}",
        )  # fmt: skip
        self._plain_every, self._last_plain = plain_every, 0.0
        # Step and time from which the rate is taken: the first steps wait for the data's workers.
        self._from: tuple[int, float] | None = None
        self._board, self._tracker = None, tracker
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(tensorboard), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append a line; NaN becomes null, so every line is JSON."""
        if not self.enabled:
            return
        clean = {key: finite(value) for key, value in values.items()}
        try:
            self._file.write(json.dumps({"step": step, **clean}) + "\n")
            self._file.flush()
        except OSError as error:  # a full disk must not cost the run, only its curve
            logger.warning("step %d: metrics could not be written (%s)", step, error)
        if self._board is not None:
            for key, value in clean.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(key, value, step)

        if self._tracker is not None:
            self._tracker.write(step, clean)

    def advance(self, step: int, shown: dict[str, str]) -> None:
        """Move the progress line to `step` steps done."""
        if not self.enabled:
            return
        now = time.monotonic()
        if self._from is None:
            self._from = (step, now)
            self._bar.n = self._bar.initial = self._bar.last_print_n = step
            self._bar.start_t = self._bar.last_print_t = time.time()
        if not self._bar.disable:
            self._bar.set_postfix_str(fitting(shown, COLUMNS - _BAR), refresh=False)
            self._bar.update(step - self._bar.n)
            if now - self._last_plain >= _HISTORY_EVERY or step == self.steps:
                # A line that stays above the bar: how it went is seen at the end too.
                self._last_plain = now
                words = fitting(shown, COLUMNS - 2 * len(str(self.steps)) - 8)
                self._bar.write(f"step {step}/{self.steps}  {words}")
            return
        if now - self._last_plain >= self._plain_every or step == self.steps:
            self._last_plain = now
            first, since = self._from
            left = ""
            if step > first:
                left = f"{_clock((now - since) / (step - first) * (self.steps - step))} left, "
            words = " ".join(f"{key}={value}" for key, value in shown.items())
            logger.info("step %d/%d, %s%s", step, self.steps, left, words)

    def __enter__(self) -> "MetricsLog":
        """Nothing to open: the files are open already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files, also after an error."""
        if self.enabled:
            self._bar.close()
            self._file.close()
            if self._board is not None:
                self._board.close()
            if self._tracker is not None:
                self._tracker.close()


def read_metrics(file: Path, *, up_to: int | None = None) -> list[dict[str, Any]]:
    """All complete lines of a metrics.jsonl, or those of the first `up_to` steps."""
    rows, _ = json_lines(file)
    rows = [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]
    return [row for row in rows if up_to is None or row["step"] <= up_to]


def _drop_lines_after(file: Path, step: int) -> None:
    if file.is_file():
        kept = [json.dumps(row) for row in read_metrics(file, up_to=step)]
        write_atomic(file, "".join(f"{line}\n" for line in kept))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
