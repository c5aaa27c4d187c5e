"""Segments -> what the networks are fed: two augmented views, less what the student loses."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ssmast.audio import LogMel, MixupMemory, ViewAugment, keyed_uniform
from ssmast.audio.augment import ResizedCrop
from ssmast.audio.segments import SegmentBatch, sent
from ssmast.model import Backbone, PatchDrop, patch_drop_draws
from ssmast.progress import say_once
from ssmast.training.config import PretrainConfig

# Streams of keyed random numbers; distinct numbers keep them apart.
_VIEW_STREAM, _DROP_STREAM, _LOCAL_STREAM = 0, 100, 300

Drops = tuple[PatchDrop | None, PatchDrop | None]


@dataclass(kw_only=True)
class TwoViews:
    """What the networks get of a micro-batch.

    Attributes:
        log_mels: both views, normalised, (B, 1, F, T) each.
        drops: patches that the student does not see of each.
        raw: (B, 1, F, T), the first segment before augmentation, for the mixup memory.
        local: short crops for the student alone, normalised, (B, 1, F, T // 3) each.
    """

    log_mels: tuple[Tensor, Tensor]
    drops: Drops
    raw: Tensor
    local: tuple[Tensor, ...] = ()


class ViewMaker:
    """Makes views whose every draw follows from (seed, epoch, clip, view) alone.

    Args:
        config: settings of the run.
        log_mel: front end with the corpus' mean and std; the views are made where it is.
        memory: log-mels of earlier steps, for mixup.
    """

    def __init__(self, config: PretrainConfig, *, log_mel: LogMel, memory: MixupMemory) -> None:
        self.config, self.log_mel, self.memory = config, log_mel, memory
        self.augment = build_augment(config)

    @torch.no_grad()
    def __call__(self, segments: SegmentBatch, *, step: int, backbone: Backbone) -> TwoViews:
        """Waveforms (B, 2, S) -> two augmented, normalised views and their drops."""
        waveform = segments.waveform.to(self._device, non_blocking=True)
        raw = [self.log_mel.log_mel(waveform[:, i], fast=True) for i in (0, 1)]
        num, crops = self.augment.num_draws, range(self.config.views.local)
        seed = self.config.seed
        draws = [segments.uniform(seed, _VIEW_STREAM + view, num + 1) for view in (0, 1)]
        draws += [segments.uniform(seed, _LOCAL_STREAM + crop, num + 3) for crop in crops]
        drops = [self._drop_of(segments, view, step=step, backbone=backbone) for view in (0, 1)]
        drawn = [tensor for drop in drops for tensor in drop.drawn]
        placed = iter(sent(*draws, *drawn, device=self._device))
        first, second, *local = (next(placed) for _ in draws)
        drop_1, drop_2 = (drop.placed([next(placed) for _ in drop.drawn]) for drop in drops)
        return TwoViews(
            log_mels=(self._view(raw[0], first), self._view(raw[1], second)),
            drops=(drop_1, drop_2),
            raw=raw[0],
            local=tuple(self._local(raw, own) for own in local),
        )

    def _drop_of(
        self, segments: SegmentBatch, view: int, *, step: int, backbone: Backbone
    ) -> "DrawnDrop":
        """Columns of view 1 and rows of view 2 where they are to be lost, or what `drop` gives."""
        columns, rows = self.config.lost_lines
        if columns or rows:
            lost = {"columns": columns} if view == 0 else {"rows": rows}
            return self._lines_of(view, step=step, backbone=backbone, **lost)
        return self.drop(segments, view, step=step, backbone=backbone)

    def drop(
        self, segments: SegmentBatch, view: int, *, step: int, backbone: Backbone, mode: str = ""
    ) -> "DrawnDrop":
        """Patches of the backbone's grid to drop of view 0 or 1, at `patch_drop.rate`.

        None where that is 0; `mode` stands in place of `patch_drop.mode`.
        """
        rate, mode = self.config.patch_drop.rate, mode or self.config.patch_drop.mode
        if rate == 0:
            return DrawnDrop([], lambda _: None)
        mels, frames = self.config.front_end.num_mels, self.config.views.frames
        size = backbone.grid_of(mels, frames)[0]
        batch, group = len(segments), backbone.drop_group
        most = 1 - 1 / math.prod(size.pool(group)[:])
        if mode == self.config.patch_drop.mode == "structured" and rate > most + 1e-6:
            say_once(
                "patch_drop.rate=%g is more than a view of %d mel bins x %d frames can lose, whose "
                "patches go in groups: %.3g of them are dropped; give a larger view, or "
                "patch_drop.mode=random",
                *(rate, mels, frames, most),
                level=logging.WARNING,
            )
        num = patch_drop_draws(size, mode=mode, batch=batch, group=group)[-1]
        draw = partial(backbone.draw_patch_drop, mels, frames, rate=rate, mode=mode, batch=batch)
        if mode == "random":  # every clip its own patches, which a GPU sorts out faster
            uniforms = segments.uniform(self.config.seed, _DROP_STREAM + view, num)
            return DrawnDrop([uniforms], lambda placed: draw(uniforms=placed[0]))
        return _of_lines(draw(uniforms=self._uniform_of_step(step, _DROP_STREAM + view, num)))

    def drop_lines(
        self, view: int, *, step: int, backbone: Backbone, rows: float = 0.0, columns: float = 0.0
    ) -> PatchDrop:
        """Whole frequency rows and time columns to drop, in groups of the encoder's stride.

        The kept ones close ranks, so the encoder computes less; one pattern a step and view.

        Args:
            view: 0 or 1.
            step: optimiser steps done.
            backbone: whose grid they are dropped from.
            rows: fraction of the groups of rows, 0 to below 1, on average over the steps where it
                is no whole number of groups; at least one group is kept.
            columns: fraction of the groups of columns.
        """
        drop = self._lines_of(view, step=step, backbone=backbone, rows=rows, columns=columns)
        placed = drop.placed(sent(*drop.drawn, device=self._device))
        assert placed is not None
        return placed

    def _lines_of(
        self, view: int, *, step: int, backbone: Backbone, rows: float = 0.0, columns: float = 0.0
    ) -> "DrawnDrop":
        """`drop_lines` before they are placed."""
        grid = backbone.grid_of(self.config.front_end.num_mels, self.config.views.frames)[0]
        groups = grid.pool(backbone.drop_group)
        draws = self._uniform_of_step(step, _DROP_STREAM + view, sum(groups[:]) + 2)
        *draws, odds = draws.split([*groups[:], 2])
        kept = []
        for draw, odd, size, length, rate in zip(
            draws, odds.tolist(), backbone.drop_group, grid[:], (rows, columns), strict=True
        ):
            # 1.6 of 4 groups: two in 60 % of the steps, and one in the others.
            whole, rest = divmod(round((1 - rate) * len(draw), 6), 1)
            num = max(1, int(whole) + (odd < rest))
            chosen = draw.argsort()[:num].sort().values
            members = (chosen[:, None] * size + torch.arange(size)).flatten()
            kept.append(members[members < length])
        return _of_lines(PatchDrop(grid, rows=kept[0], columns=kept[1]))

    @property
    def _device(self) -> torch.device:
        return self.log_mel.filterbank.device

    def _view(self, raw: Tensor, draws: Tensor) -> Tensor:
        return self._augmented(raw, draws[:, :-1], self.memory.pick(draws[:, -1]))

    def _local(self, raw: list[Tensor], draws: Tensor) -> Tensor:
        """A third of either segment, from anywhere in it, augmented like a view."""
        num, length = raw[0].shape[3], raw[0].shape[3] // 3
        own, (pick, which, place) = draws[:, :-3], draws[:, -3:].unbind(1)
        start = (place * (num - length + 1)).long().clamp_max(num - length)
        frames = start[:, None] + torch.arange(length, device=self._device)  # (B, T // 3)

        def cut(log_mel: Tensor) -> Tensor:
            index = frames[:, None, None, :].expand(-1, *log_mel.shape[1:3], -1)
            return log_mel.gather(3, index)

        segment = torch.where((which < 0.5)[:, None, None, None], raw[0], raw[1])
        background = self.memory.pick(pick)
        return self._augmented(cut(segment), own, None if background is None else cut(background))

    def _augmented(self, raw: Tensor, draws: Tensor, background: Tensor | None) -> Tensor:
        mean, std = self.log_mel.mean, self.log_mel.std
        return self.augment(raw, draws=draws, background=background, mean=mean, std=std)

    def _uniform_of_step(self, step: int, stream: int, num: int) -> Tensor:
        """Draws (num,) on the CPU, the same on every process: sizes follow from them."""
        return torch.from_numpy(keyed_uniform(self.config.seed, 0, step, stream, num))


class DrawnDrop(NamedTuple):
    """What is drawn of a patch-drop on the CPU, and the drop once that is where the views are."""

    drawn: list[Tensor]
    placed: Callable[[Sequence[Tensor]], PatchDrop | None]


def _of_lines(drop: PatchDrop) -> DrawnDrop:
    """Of rows and columns, which are sizes too: so they are chosen on the CPU."""
    assert drop.rows is not None
    assert drop.columns is not None
    return DrawnDrop(
        [drop.rows, drop.columns], lambda placed: drop._replace(rows=placed[0], columns=placed[1])
    )


def build_augment(config: PretrainConfig) -> ViewAugment:
    """The batched part of the augmentation."""
    views = config.views
    (low_freq, high_freq), (low_time, high_time) = views.crop_freq, views.crop_time
    # The canvas is BYOL-A's, and wider where a crop is to be: it would be cut down to it.
    crop = ResizedCrop(
        freq=(low_freq, high_freq), time=(low_time, high_time), canvas=(1.0, max(1.5, high_time))
    )
    return ViewAugment(crop, mixup_rate=views.mixup_rate)


def build_memory(config: PretrainConfig) -> MixupMemory:
    """Log-mels of earlier steps, for mixup; empty for good where there is none."""
    return MixupMemory(
        size=config.views.mixup_memory if config.views.mixup_rate > 0 else 0,
        shape=(config.front_end.num_mels, config.views.frames),
    )
