"""A command that meets, at a moment the environment names, SIGKILL or a read that never returns.

KILL_AT="step N"         in the middle of step N of this process' life, before the optimiser
KILL_AT="write N PART"   in the main process' N-th write to the disk of a checkpoint, PART (0 to 1)
                         of the way through the file
BLOCK="data N"           reading the clip at position N of the stream
BLOCK="statistics"       measuring mean and std
BLOCK="embed" or "probe" reading a clip to embed it, or fitting: the command is then the probe
"""

import os
import signal
import sys
from pathlib import Path

from ssmast.audio import SegmentDataset
from ssmast.command import run_command
from ssmast.evaluation import embed, scorer, suite
from ssmast.training import checkpoint, inputs, pretrain
from ssmast.training.optim import GradientSum


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_in_step(number: int) -> None:
    original = GradientSum.write_
    calls = []

    def write_(self, **kwargs):
        calls.append(1)
        original(self, **kwargs)
        if len(calls) == number:
            _die()

    GradientSum.write_ = write_


def _die_in_write(number: int, part: float) -> None:
    calls = []
    original = checkpoint.flush

    def flush(path: Path) -> None:
        calls.append(1)
        if len(calls) == number:
            if path.is_file():
                os.truncate(path, int(part * path.stat().st_size))
            _die()
        original(path)

    checkpoint.flush = flush


def _hang(*args: object, **kwargs: object) -> None:
    os.read(os.pipe()[0], 1)  # blocks in the kernel: the pipe's other end stays open


def _hang_in_data(position: int) -> None:
    original = SegmentDataset.__getitems__

    def items(self, positions: list[int]):
        return _hang() if max(positions) >= position else original(self, positions)

    SegmentDataset.__getitems__ = items


if __name__ == "__main__":
    main = pretrain.main
    match os.environ.get("KILL_AT", "").split():
        case ["step", number]:
            _die_in_step(int(number))
        case ["write", number, part]:
            _die_in_write(int(number), float(part))
    match os.environ.get("BLOCK", "").split():
        case ["data", position]:
            _hang_in_data(int(position))
        case ["statistics"]:
            inputs.measure_mean_std = _hang
        case ["embed"]:
            embed.open_audio = _hang
            main = suite.main
        case ["probe"]:
            scorer.run_probe = _hang
            main = suite.main
    sys.exit(run_command(main, sys.argv[1:], name="ssmast"))
