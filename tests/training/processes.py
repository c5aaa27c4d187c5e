"""Real processes of a training: started without a launcher, which would double the time."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile
import torch

ROOT = Path(__file__).parents[2]
DOOR = ROOT / "pretrain" / "run.py"
_PATH = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])

# Small and quick: a step takes some 20 ms.
SMALL = (
    "recipe=smoke", "steps=6", "batch_size=4", "workers=0", "checkpoint_every=2", "log_every=1",
    "front_end.num_mels=32", "views.frames=32", "head.hidden=16", "head.dim=8", "head.predictor=16",
    "loss.queue_size=8", "tensorboard=false", "front_end.stats_clips=8", "threads=1",
    "show_views=0",
)  # fmt: skip


def write_tones(folder: Path, *, num: int = 12) -> Path:
    """A folder of folders of tones, one clip each."""
    time = np.arange(16000) / 16000
    for i in range(num):
        (folder / str(i % 3)).mkdir(parents=True, exist_ok=True)
        tone = 0.3 * np.sin(2 * np.pi * 150 * 1.25 ** (i % 16) * time) * np.exp(-time * (i % 4))
        soundfile.write(folder / str(i % 3) / f"{i}.wav", tone, 16000)
    return folder


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Group:
    """`size` processes of one run, as a launcher would start them; killed together or apart.

    Each has a card of its own; on a machine with fewer, though with some, all are on the CPU.
    """

    def __init__(self, size: int, script: Path, *words: str, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.members = []
        for rank in range(size):
            variables = {
                **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": _PATH},
                **environment,
            }
            if size > 1:
                variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
                variables |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
                variables |= {"MASTER_PORT": port}
            if torch.cuda.device_count() < size:
                variables["CUDA_VISIBLE_DEVICES"] = ""
            self.members.append(
                subprocess.Popen(
                    [sys.executable, str(script), *words],
                    env={**os.environ, **variables},
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                    # A suite that a shell runs in the background ignores Ctrl-C, as would these.
                    preexec_fn=_hear_interrupts,
                )
            )

    def kill(self) -> None:
        """SIGKILL to every process and its data workers."""
        for member in self.members:
            with suppress(ProcessLookupError):
                os.killpg(member.pid, signal.SIGKILL)

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit statuses; what was said is in `said` afterwards."""
        try:
            self.said = [member.communicate(timeout=seconds)[1] for member in self.members]
        finally:
            self.kill()
        return [member.returncode for member in self.members]
