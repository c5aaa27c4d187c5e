"""A picture of what training shows the networks: clips, their views, and the dropped patches.

    ssmast show-views data=FOLDER recipe=real_nano out=views.png
    ssmast show-views run=runs/mine step=500             a run's own settings, mean and std

The views are the trainer's own: the same code, the same draws of (seed, epoch, sample, view).
"""

import copy
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmast.audio import Corpus, LogMel, MixupMemory
from ssmast.model import PatchDrop
from ssmast.settings import UsageError, parse, require, setting
from ssmast.training.build import (
    build_dataset,
    build_log_mel,
    build_memory,
    build_student,
    check_model,
    mean_and_std,
    open_data,
)
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.loop import segment_loader
from ssmast.training.objectives.ssast import build_masked_encoder, make_batch
from ssmast.training.panel import Panel, draw_panels
from ssmast.training.run_folder import RunFolder
from ssmast.training.views import Batch, ViewMaker

logger = logging.getLogger(__name__)

DROP_MODES = ("random", "structured")


@dataclass
class ShowViewsConfig(PretrainConfig):
    """`ssmast show-views`: the keys of `ssmast pretrain`, and what to draw."""

    out: str = setting("views.png", "picture to write")
    clips: int = setting(4, "clips to show, one a row")
    step: int = setting(1, "step whose batch is shown; at step 0 there is no background to mix in")

    def __post_init__(self) -> None:
        """Refuse what no picture can show."""
        super().__post_init__()
        require(self.clips >= 1, "clips", self.clips, "1 or more")
        require(self.step >= 0, "step", self.step, "0 or more")


def main(argv: list[str]) -> int:
    """`ssmast show-views`: parse, then draw."""
    config = parse(
        ShowViewsConfig,
        [*_settings_of_run(argv), *argv],
        command="ssmast show-views",
        description=__doc__ or "",
        recipes=RECIPES,
        default_recipe="smoke",
    )
    if config is None:
        return 0
    check_model(config.model)
    folder = RunFolder(path=Path(config.run or "runs/views"))
    corpus = open_data(config, runs=folder.path.parent)
    facts = folder.read_facts()
    if facts:
        mean, std = facts["mean"], facts["std"]
    else:
        mean, std = mean_and_std(config, corpus, decoded=corpus, frames=config.views.frames)
    out = Path(config.out)
    draw_inputs(
        out,
        config,
        corpus,
        log_mel=build_log_mel(config, mean=mean, std=std),
        clips=config.clips,
        step=config.step,
    )
    logger.info("views: %s", out)
    return 0


def draw_inputs(
    out: Path,
    config: PretrainConfig,
    corpus: Corpus,
    *,
    log_mel: LogMel,
    clips: int,
    step: int = 1,
) -> None:
    """Draw the first clips of a step's batch as the method's networks get them.

    Args:
        out: PNG file.
        config: settings of the run.
        corpus: its clips.
        log_mel: front end with the corpus' mean and std.
        clips: how many to draw, at most a batch.
        step: whose batch.
    """
    log_mel = copy.deepcopy(log_mel).cpu()  # a trainer's front end is on its device; clips are not
    draw = draw_masked if config.objective == "ssast" else draw_views
    draw(out, config, corpus, log_mel=log_mel, clips=clips, step=step)


def draw_views(
    out: Path,
    config: PretrainConfig,
    corpus: Corpus,
    *,
    log_mel: LogMel,
    clips: int,
    step: int,
) -> None:
    """`draw_inputs` of objective=ss_mast: both segments, both views, the patches dropped."""
    shown = step_views(config, corpus, log_mel=log_mel, step=step)
    rows = [_panels(config, shown, i, log_mel) for i in range(min(clips, config.batch_size))]
    names = [corpus.name(int(shown.batch.ids[i])) for i in range(len(rows))]
    draw_panels(out, rows, names=names, log_mel=log_mel, title=_title(config, step))


def draw_masked(
    out: Path,
    config: PretrainConfig,
    corpus: Corpus,
    *,
    log_mel: LogMel,
    clips: int,
    step: int,
) -> None:
    """`draw_inputs` of objective=ssast: clips, and which of their patches are hidden."""
    with torch.device("meta"):
        backbone = build_masked_encoder(config).backbone
    grid = backbone.grid_of(config.front_end.num_mels, config.views.frames)[0]
    micro = next(iter(_batches(config, corpus, first=step, stop=step + 1)))
    batch = make_batch(
        micro,
        log_mel=log_mel,
        settings=config.ssast,
        grid=grid,
        seed=config.seed,
        device=torch.device("cpu"),
    )
    rows = []
    for i in range(min(clips, config.batch_size)):
        hidden = batch.masked[i].unflatten(0, grid[:])
        mel = batch.log_mel[i, 0]
        shown = Panel("segment", mel, waveform=micro["waveform"][i, 0])
        patch = backbone.patch_embed.stride
        title = f"{int(hidden.sum())} of {hidden.numel()} patches hidden"
        rows.append([shown, Panel(title, mel, dropped=hidden, patch=patch)])
    names = [corpus.name(int(clip)) for clip in micro["clip"][: len(rows)]]
    draw_panels(out, rows, names=names, log_mel=log_mel, title=_title(config, step))


class StepViews(NamedTuple):
    """The batch of one step.

    Attributes:
        waveform: both segments of each clip (B, 2, S).
        segments: their log-mels, normalised (B, 2, F, T).
        batch: what the trainer gets.
        drops: mode -> drop of view 1 and of view 2, at the run's rate; None where that is 0.
        stride: (freq, time) of a patch, in mel bins and frames.
    """

    waveform: Tensor
    segments: Tensor
    batch: Batch
    drops: dict[str, tuple[PatchDrop | None, PatchDrop | None]]
    stride: tuple[int, int]


def step_views(config: PretrainConfig, corpus: Corpus, *, log_mel: LogMel, step: int) -> StepViews:
    """What the trainer makes of the batch of `step`, with the mixup memory that it has by then."""
    with torch.device("meta"):  # only its grid is asked for
        backbone = build_student(config).branch.backbone
    memory = build_memory(config, device=torch.device("cpu"))
    first = _start_memory_(memory, config.batch_size, step=step)
    loader = _batches(config, corpus, first=first, stop=step + 1)
    makers = {
        mode: ViewMaker(
            replace(config, patch_drop=replace(config.patch_drop, mode=mode)),
            log_mel=log_mel,
            memory=memory,
            backbone=backbone,
            device=torch.device("cpu"),
        )
        for mode in dict.fromkeys((config.patch_drop.mode, *DROP_MODES))
    }
    make_views = makers[config.patch_drop.mode]
    *before, micro = loader
    for past, earlier in enumerate(before, start=first):
        memory.enqueue_(make_views(earlier, step=past).raw)
    waveform = micro["waveform"]
    segments = torch.cat([log_mel.log_mel(waveform[:, i], fast=True) for i in (0, 1)], dim=1)
    batches = {mode: maker(micro, step=step) for mode, maker in makers.items()}
    return StepViews(
        waveform,
        log_mel.normalize(segments),
        batches[config.patch_drop.mode],
        {mode: batch.drops for mode, batch in batches.items()},
        backbone.patch_embed.stride,
    )


def _batches(
    config: PretrainConfig, corpus: Corpus, *, first: int, stop: int
) -> Iterable[dict[str, Any]]:
    """The whole batches of some steps, as one process without workers reads them."""
    return segment_loader(
        replace(config, workers=0),
        build_dataset(config, corpus),
        first_step=first,
        steps=stop,
        rank=0,
        num_ranks=1,
    )


def _start_memory_(memory: MixupMemory, batch_size: int, *, step: int) -> int:
    """First of the steps that fill the memory as it is at `step`; sets its place in the ring."""
    first = max(0, step - math.ceil(memory.size / batch_size))
    if memory.size:
        past = first * batch_size
        cursor = torch.tensor([past % memory.size, min(past, memory.size)])
        memory.load_({"log_mel": memory.state()["log_mel"], "cursor": cursor})
    return first if memory.size else step


def _panels(config: PretrainConfig, shown: StepViews, i: int, log_mel: LogMel) -> list[Panel]:
    """One row: the segments with their waveforms, the views, and view 1 in each patch-drop mode."""
    row = [
        Panel(f"segment {k + 1}", shown.segments[i, k], waveform=shown.waveform[i, k])
        for k in (0, 1)
    ]
    views = [view[i, 0] for view in shown.batch.views]
    row += [Panel(f"view {k + 1}", view) for k, view in enumerate(views)]
    for mode, (drop, _) in shown.drops.items():
        used = ", in use" if mode == config.patch_drop.mode and config.patch_drop.rate else ""
        title = f"view 1, {mode} drop{used}"
        row.append(Panel(title, views[0], dropped=_dropped(drop, i), patch=shown.stride))
    return row


def _dropped(drop: PatchDrop | None, i: int) -> Tensor | None:
    """Which patches of clip i are dropped, bool (f, t)."""
    if drop is None:
        return None
    if drop.keep is not None:
        return ~drop.keep[i].unflatten(0, drop.grid[:])
    kept = torch.zeros(drop.grid[:], dtype=torch.bool)
    assert drop.rows is not None
    assert drop.columns is not None
    kept[drop.rows[:, None], drop.columns] = True
    return ~kept


def _title(config: PretrainConfig, step: int) -> str:
    size = f"{config.views.frames} frames x {config.front_end.num_mels} mel bins"
    rate = f"patch_drop.rate={config.patch_drop.rate:g}"
    if config.objective == "ssast":
        rate = f"ssast.masked={config.ssast.masked:g}"
    return f"step {step}, seed {config.seed}: {size}, {rate}"


def _settings_of_run(argv: list[str]) -> list[str]:
    """`recipe=` of an existing run's own settings, where a run but no recipe is named.

    Raises:
        FileNotFoundError: if that run does not exist.
        UsageError: if it is one of `ssmast finetune`.
    """
    given = dict(word.split("=", 1) for word in argv if "=" in word)
    if "run" not in given or "recipe" in given:
        return []
    folder = RunFolder(path=Path(given["run"]))
    config = folder.config_file
    if not config.is_file():
        raise FileNotFoundError(
            f"there is no run at {given['run']}: wanted its settings in {config.name}; name a run "
            "folder, or recipe= and data="
        )
    if folder.is_fine_tuning:
        raise UsageError(
            f"{given['run']} is a fine-tuned run, and this draws the views of pretraining; its "
            "views.png shows what it was fed"
        )
    return [f"recipe={config}"]
