"""`ssmast pretrain` whose third step has a NaN in the audio of the second process."""

import os
import sys

from ssmast.command import run_command
from ssmast.training import pretrain
from ssmast.training.step import TrainingState

_step = TrainingState.train_step


def _with_a_nan(self, segments):
    if self.step == 2 and os.environ["RANK"] == "1":
        segments.waveform[0] = float("nan")
    return _step(self, segments)


if __name__ == "__main__":
    TrainingState.train_step = _with_a_nan  # type: ignore[method-assign]
    sys.exit(run_command(pretrain.main, sys.argv[1:], name="ssmast pretrain"))
