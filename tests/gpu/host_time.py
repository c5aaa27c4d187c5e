"""Host time of a pretraining step where the card takes none: every launch returns at once.

    python -m tests.gpu.run native=1 emulation=off -m tests.gpu.host_time recipe=ss_mast_base

Kernels do not depend on the batch, so a small one tells as much. cuDNN cannot start on the
stand-in, and PyTorch's own convolutions and attention are launched in its place.
"""

import sys
import time
from statistics import median

import torch

from ssmast.audio import LogMel
from ssmast.audio.segments import SegmentBatch
from ssmast.settings import parse
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.launch import start_accelerator
from ssmast.training.objective import RunFacts
from ssmast.training.objectives.ss_mast import SSMAST
from ssmast.training.step import TrainingState


def _is_finite(x: torch.Tensor) -> torch.Tensor:
    """True, after the wait: kernels that do nothing leave any number behind."""
    torch.isfinite(x).item()
    return torch.ones((), dtype=torch.bool)


def main(argv: list[str]) -> int:
    """Take three steps, then time ten."""
    words = ["data=unused", "run=unused", "batch_size=16", *argv]
    config = parse(PretrainConfig, words, command="ssmast pretrain", recipes=RECIPES)
    assert config is not None
    torch.backends.cudnn.enabled = False
    accelerator = start_accelerator(
        precision=config.precision, processes=0, threads=1, cudnn_attention=False
    )
    log_mel = LogMel(num_mels=config.front_end.num_mels, mean=-8.0, std=4.0)
    run = RunFacts(log_mel=log_mel, num_clips=100_000, steps=1000)
    state = TrainingState(SSMAST(config, run), accelerator)
    torch.Tensor.isfinite = _is_finite
    ids = torch.arange(config.batch_size).pin_memory()
    samples = log_mel.samples(config.views.frames)
    segments = SegmentBatch(
        waveform=torch.zeros(config.batch_size, 2, samples).pin_memory(),
        clip=ids, epoch=torch.zeros_like(ids).pin_memory(), position=ids,
    )  # fmt: skip
    times = []
    for _ in range(13):
        start = time.process_time()
        assert not state.train_step(segments).skipped
        times.append(1000 * (time.process_time() - start))
    sys.stdout.write(f"{min(times[3:]):.0f} ms at least, {median(times[3:]):.0f} in the median\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
