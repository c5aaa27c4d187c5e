"""The drawing of `show-views`: waveforms and log-mels with axes in seconds and Hz."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ssmast.audio import LogMel

_TICKS_HZ = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)
_REACH = 2.5  # standard deviations that the colours cover


@dataclass(kw_only=True)
class _Axes:
    """What turns mel bins and frames into Hz and seconds."""

    seconds_a_frame: float
    bins: list[int]
    labels: list[str]


@dataclass
class Panel:
    """One picture.

    Attributes:
        title: above it.
        log_mel: normalised (F, T).
        waveform: (S,), drawn above the log-mel.
        dropped: patches that are dropped, bool (f, t); None for none.
        patch: (freq, time) step from patch to patch, in mel bins and frames.
    """

    title: str
    log_mel: Tensor
    waveform: Tensor | None = None
    dropped: Tensor | None = None
    patch: tuple[int, int] = (1, 1)


def draw_panels(
    out: Path, rows: Sequence[Sequence[Panel]], *, names: Sequence[str], log_mel: LogMel, title: str
) -> None:
    """Write a PNG with one row of panels a clip.

    Args:
        out: PNG file; its folder is made.
        rows: panels of each clip, equally many.
        names: of the clips.
        log_mel: front end, for the axes.
        title: of the picture.
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
    samples = panel.waveform.numpy()
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
        panel.log_mel.numpy(),
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
            _cover(panel.dropped.numpy()),
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
