"""Draw what the networks get in training: clips, their views, and the dropped patches.

    ssmast show-views data=FOLDER recipe=real_nano out=views.png
    ssmast show-views run=runs/mine step=500             a run's own settings, mean and std

The views are the training's own: the same code, the same draws of (seed, epoch, sample, view).
"""

import copy
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ssmast.audio import LogMel, MixedSegments, SegmentDataset
from ssmast.audio.segments import SegmentBatch
from ssmast.files import check_output
from ssmast.model import PatchDrop
from ssmast.settings import UsageError, parse, setting
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.inputs import (
    build_log_mel,
    check_model,
    mean_and_std,
    open_data,
    segment_loader,
)
from ssmast.training.objective import Objective, Panel, RunFacts, TwoViews
from ssmast.training.objectives import OBJECTIVES, objective_of
from ssmast.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

AnyObjective = Objective[Any, Any, Any]
_TICKS_HZ = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)
_REACH = 2.5  # standard deviations that the colours cover
_DROP_MODES = ("random", "structured")
_MANY = 1 << 40  # clips: no queue is too long for a picture


@dataclass(frozen=True, kw_only=True)
class ShowViewsConfig(PretrainConfig):
    """`ssmast show-views`: the keys of `ssmast pretrain`, and what to draw."""

    out: str = setting("views.png", "picture to write")
    clips: int = setting(4, "clips to show, one in each row", range="[1, inf)")
    step: int = setting(
        1, "step whose batch is shown; at step 0 there is no background to mix in", range="[0, inf)"
    )


def main(argv: list[str], kind: type[AnyObjective] | None = None) -> int:
    """`ssmast show-views`: parse, then draw."""
    schema = ShowViewsConfig
    if kind is not None and kind.settings is not PretrainConfig:
        schema = make_dataclass(
            "ShowViewsConfig", [], bases=(ShowViewsConfig, kind.settings), frozen=True, kw_only=True
        )
    words = [] if kind is None else [f"objective={kind.__name__}"]
    config = parse(
        cast(type[ShowViewsConfig], schema),
        [*words, *_settings_of_run(argv, kind), *argv],
        command="ssmast show-views",
        description=__doc__ or "",
        recipes=RECIPES,
        default_recipe="smoke",
    )
    if config is None:
        return 0
    kind = kind or objective_of(config.objective)
    check_model(config.model)
    check_output(config.out, begins="\x89PNG")
    folder = RunFolder(path=Path(config.run or "runs/views"))
    corpus = open_data(config, runs=folder.path.parent)
    facts = folder.read_facts()
    if facts:
        mean, std = facts["mean"], facts["std"]
    else:
        mean, std = mean_and_std(config, corpus, decoded=corpus, frames=config.views.frames)
    log_mel = build_log_mel(config, mean=mean, std=std)
    objective = kind(config, RunFacts(log_mel=log_mel, num_clips=_MANY, steps=config.step + 1))
    items, out = kind.items(config, corpus, None), Path(config.out)
    draw_step(out, objective, items, clips=config.clips, step=config.step)
    logger.info("views: %s", out)
    return 0


def draw_step(
    out: Path,
    objective: AnyObjective,
    items: SegmentDataset | MixedSegments,
    *,
    clips: int,
    step: int = 1,
) -> None:
    """Draw the first clips of a step's batch, at most all, as the objective's networks get them.

    The picture is a PNG; nothing of the objective changes, whatever device it is on.
    """
    corpus = items.corpus if isinstance(items, SegmentDataset) else items.segments.corpus
    twin, segments = at_step(objective, items, step=step)
    with torch.no_grad():
        own = twin.panels(segments, step, clips=clips)
        rows = own or view_panels(twin, segments, step, clips=clips)
    names = [corpus.name(int(clip)) for clip in segments.clip[: len(rows)]]
    title = twin.picture_title(step)
    draw_panels(out, rows, names=names, log_mel=twin.log_mel, title=title)


def at_step(
    objective: AnyObjective, items: SegmentDataset | MixedSegments, *, step: int
) -> tuple[AnyObjective, SegmentBatch]:
    """The batch of a step, and an objective with the mixup memory that a run has by then."""
    config, first = objective.config, step
    if objective.make_views is not None:
        run = RunFacts(
            log_mel=copy.deepcopy(objective.log_mel).cpu(),
            num_clips=_MANY,
            steps=objective.run.steps,
            data=objective.run.data,
        )
        with torch.random.fork_rng(devices=[]):
            objective = type(objective)(config, run)
        first = _start_memory_(objective, step=step)
    *before, segments = _batches(objective, items, first=first, stop=step + 1)
    for past, earlier in enumerate(before, start=first):
        views = objective.views(earlier, past)
        assert isinstance(views, TwoViews)
        objective.mixup_memory.enqueue_(views.raw)
    return objective, segments


def view_panels(
    objective: AnyObjective, segments: SegmentBatch, step: int, *, clips: int
) -> list[list[Panel]]:
    """Segments with their waveforms, the views, and what is dropped of them (grey)."""
    views, student = objective.views(segments, step), objective.encoders()["student"]
    log_mels = list(views.log_mels) if isinstance(views, TwoViews) else []
    drops: list[tuple[str, int, PatchDrop | None]] = []
    maker = objective.make_views
    lost = maker is not None and any(maker.config.lost_lines)
    if maker is not None and type(objective).views is Objective.views and not lost:
        config = objective.config.patch_drop
        used = ", in use" if config.rate else ""
        drops.append((f"view 1, {config.mode} drop{used}", 0, views.drops[0]))
        for mode in _DROP_MODES:
            if mode != config.mode:
                drop = maker.drop(segments, 0, step=step, backbone=student, mode=mode)
                drops.append((f"view 1, {mode} drop", 0, drop.placed(drop.drawn)))
    elif log_mels:
        drops = [(f"view {k + 1}, its drop", k, drop) for k, drop in enumerate(views.drops)]
    rows = []
    for i in range(min(clips, len(segments))):
        waveforms = segments.waveform[i]
        plain = objective.log_mel(waveforms.to(objective.log_mel.filterbank.device))[:, 0]
        row = [
            Panel(f"segment {k + 1}", plain[k], waveform=waveform)
            for k, waveform in enumerate(waveforms)
        ]
        row += [Panel(f"view {k + 1}", view[i, 0]) for k, view in enumerate(log_mels)]
        for title, k, drop in drops:
            patch = student.patch_embed.stride
            covered = None if drop is None else dropped_patches(drop, i)
            row.append(Panel(title, log_mels[k][i, 0], dropped=covered, patch=patch))
        if isinstance(views, TwoViews):
            row += [Panel(f"short crop {k + 1}", x[i, 0]) for k, x in enumerate(views.local)]
        rows.append(row)
    return rows


def dropped_patches(drop: PatchDrop, clip: int = 0) -> Tensor:
    """Which patches of one clip a drop takes away, bool (f, t)."""
    if drop.keep is not None:
        return ~drop.keep[clip].unflatten(0, drop.grid[:])
    kept = torch.zeros(drop.grid[:], dtype=torch.bool)
    assert drop.rows is not None
    assert drop.columns is not None
    kept[drop.rows.cpu()[:, None], drop.columns.cpu()] = True
    return ~kept


def _batches(
    objective: AnyObjective, items: SegmentDataset | MixedSegments, *, first: int, stop: int
) -> Iterable[SegmentBatch]:
    """The whole batches of some steps, as one process without workers reads them."""
    config = replace(objective.config, workers=0)
    return segment_loader(config, items, first_step=first, steps=stop, rank=0, num_ranks=1)


def _start_memory_(objective: AnyObjective, *, step: int) -> int:
    """First of the steps that fill the memory as it is at `step`; sets its place in the ring."""
    memory, batch_size = objective.mixup_memory, objective.config.batch_size
    if not memory.size:
        return step
    first = max(0, step - math.ceil(memory.size / batch_size))
    past = first * batch_size
    memory.set_extra_state(torch.tensor([past % memory.size, min(past, memory.size)]))
    return first


def _settings_of_run(argv: list[str], kind: type[AnyObjective] | None) -> list[str]:
    """`recipe=` of an existing run's own settings, where a run but no recipe is named.

    Raises:
        FileNotFoundError: if that run does not exist.
        UsageError: if it is one of `ssmast finetune`, or of an objective that is not at hand.
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
    name = folder.read_config().get("objective", "ss_mast")
    if kind is None and name not in OBJECTIVES:
        raise UsageError(
            f"{given['run']} was trained by {name}, an objective of its own; draw it with the file "
            f"that holds it: python FILE.py show-views run={given['run']}"
        )
    return [f"recipe={config}"]


@dataclass(kw_only=True)
class _Axes:
    """What turns mel bins and frames into Hz and seconds."""

    seconds_a_frame: float
    bins: list[int]
    labels: list[str]


def draw_panels(
    out: Path, rows: Sequence[Sequence[Panel]], *, names: Sequence[str], log_mel: LogMel, title: str
) -> None:
    """Write a PNG with one row of panels a clip, equally many each; its folder is made.

    The axes are those of the front end.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(rows[0])
    # A Figure of its own: pyplot would keep it, and choose a backend for the whole process.
    figure = Figure(figsize=(2.7 * columns + 0.9, 2.6 * len(rows) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = _axes_of(log_mel)
    grid = figure.add_gridspec(2 * len(rows), columns, height_ratios=[1, 3] * len(rows))
    image, pictures = None, []
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        for j, panel in enumerate(row):
            upper = figure.add_subplot(grid[2 * i, j])
            picture = figure.add_subplot(grid[2 * i + 1, j])
            _draw_waveform(upper, panel, log_mel.sample_rate)
            image = _draw_log_mel(picture, panel, axes, is_left=j == 0, is_last=i == len(rows) - 1)
            pictures.append(picture)
            if j == 0:  # the tail of a long path tells clips apart
                upper.set_title(name if len(name) <= 60 else f"...{name[-57:]}", loc="left", size=8)
    assert image is not None
    figure.colorbar(
        image, ax=pictures, shrink=0.6, pad=0.01, label="log-mel, corpus standard deviations"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100, format="png", metadata={"Software": None})


def _axes_of(log_mel: LogMel) -> _Axes:
    centres = log_mel.centres_hz().numpy()
    ticks: dict[int, str] = {}
    for hz in _TICKS_HZ:
        near = int(np.abs(centres - hz).argmin())
        # Low octaves lie close together on the mel scale: their labels would overlap.
        if centres[0] <= hz <= centres[-1] and near - max(ticks, default=-99) > len(centres) / 14:
            ticks[near] = str(hz)
    return _Axes(
        seconds_a_frame=log_mel.hop_length / log_mel.sample_rate,
        bins=list(ticks),
        labels=list(ticks.values()),
    )


def _draw_waveform(axes: Any, panel: Panel, sample_rate: int) -> None:
    if panel.waveform is None:
        axes.axis("off")
        return
    samples = panel.waveform.cpu().numpy()
    axes.plot(np.arange(len(samples)) / sample_rate, samples, linewidth=0.4, color="#2563b8")
    axes.set_xlim(0, len(samples) / sample_rate)
    peak = float(np.abs(samples).max()) or 1.0
    axes.set_ylim(-1.05 * peak, 1.05 * peak)
    axes.set_yticks([-peak, peak], [f"{-peak:.2g}", f"{peak:.2g}"])
    axes.tick_params(labelsize=7, labelbottom=False)


def _draw_log_mel(axes: Any, panel: Panel, units: _Axes, *, is_left: bool, is_last: bool) -> Any:
    num_mels, frames = panel.log_mel.shape
    seconds = frames * units.seconds_a_frame
    image = axes.imshow(
        panel.log_mel.cpu().numpy(),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0, seconds, -0.5, num_mels - 0.5),
        vmin=-_REACH,
        vmax=_REACH,
        cmap="magma",
    )
    if panel.dropped is not None:
        axes.imshow(
            _cover(panel.dropped.cpu().numpy()),
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            extent=_extent(panel, units),
        )
        share = float(panel.dropped.float().mean())
        axes.text(
            0.98, 0.97, f"{share:.0%} dropped", transform=axes.transAxes, size=7, ha="right",
            va="top", color="black", bbox={"facecolor": "white", "alpha": 0.8, "pad": 1.5},
        )  # fmt: skip
    axes.set_xlim(0, seconds)
    axes.set_ylim(-0.5, num_mels - 0.5)
    axes.set_title(panel.title, size=8)
    axes.set_yticks(units.bins, units.labels)
    axes.tick_params(labelsize=7, labelleft=is_left)
    if is_left:
        axes.set_ylabel("Hz", size=8)
    if is_last:
        axes.set_xlabel("seconds", size=8)
    return image


def _cover(dropped: np.ndarray) -> np.ndarray:
    """Grey where a patch is dropped, clear elsewhere, RGBA."""
    cover = np.zeros((*dropped.shape, 4))
    cover[dropped] = (0.75, 0.78, 0.8, 1.0)
    return cover


def _extent(panel: Panel, units: _Axes) -> tuple[float, float, float, float]:
    """Where the patches lie; the last ones may reach beyond the input."""
    assert panel.dropped is not None
    rows, columns = panel.dropped.shape
    seconds = columns * panel.patch[1] * units.seconds_a_frame
    return 0.0, seconds, -0.5, rows * panel.patch[0] - 0.5
