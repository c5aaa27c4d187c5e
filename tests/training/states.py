"""An objective with its optimiser, without a run around it."""

from typing import Any

from accelerate import Accelerator

from ssmast.audio import LogMel
from ssmast.training.config import PretrainConfig
from ssmast.training.objective import Objective, RunFacts
from ssmast.training.step import TrainingState


def state_of(
    kind: type[Objective[Any, Any, Any]],
    config: PretrainConfig,
    *,
    num_clips: int = 1000,
    steps: int = 0,
    log_mel: LogMel | None = None,
) -> TrainingState:
    """Step 0 of a run on the CPU."""
    front = log_mel or LogMel(num_mels=config.front_end.num_mels, mean=-5.0, std=4.0)
    run = RunFacts(log_mel=front, num_clips=num_clips, steps=steps or config.steps)
    return TrainingState(kind(config, run), Accelerator(cpu=True))
