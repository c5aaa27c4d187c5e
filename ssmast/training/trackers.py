"""Curves and settings of a run in a tracker: trackio, wandb, mlflow or TensorBoard.

accelerate's trackers do the work. Where they write is the tracker's own business and set by its own
variables: WANDB_MODE=offline, TRACKIO_DIR, MLFLOW_TRACKING_URI; without the last, mlflow writes
into the run folder.
"""

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

from ssmast.settings import UsageError, flatten

logger = logging.getLogger(__name__)

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
        plain = {key: _plain(value) for key, value in flatten(config).items()}
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


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
