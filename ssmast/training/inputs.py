"""Settings -> what the networks are fed: corpus, front end, segments, two views and their drops."""

import logging
import math
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ssmast.audio import (
    Corpus,
    LogMel,
    MixedSegments,
    MixupMemory,
    SegmentDataset,
    StepSampler,
    ViewAugment,
    keyed_uniform,
    open_corpus,
    write_synthetic_corpus,
)
from ssmast.audio.augment import ResizedCrop
from ssmast.audio.corpus.cache import cache_decoded
from ssmast.audio.corpus.cut import cut_long, seconds_of
from ssmast.audio.mel import front_end_of
from ssmast.audio.segments import SegmentBatch
from ssmast.audio.stats import known_mean_std, measure_mean_std, warn_of_lost_energy
from ssmast.command import may_start, num_cores
from ssmast.model import Backbone, PatchDrop, list_models, patch_drop_draws
from ssmast.settings import UsageError, flatten, load_recipe, require, to_dict
from ssmast.training.config import RECIPES, FrontEnd, PretrainConfig, TrainConfig

logger = logging.getLogger(__name__)

SYNTHETIC_CLIPS = 1500
# Streams of keyed random numbers; distinct numbers keep them apart.
_VIEW_STREAM, _DROP_STREAM, _LOCAL_STREAM = 0, 100, 300

Drops = tuple[PatchDrop | None, PatchDrop | None]


def built_in_corpus(runs: Path) -> Path:
    """The labelled set of synthetic sounds beside the runs, written when it is not there yet."""
    return write_synthetic_corpus(runs / "synthetic", num_clips=SYNTHETIC_CLIPS, seed=0)


def open_data(config: PretrainConfig, *, runs: Path) -> Corpus:
    """The corpus of `data=`, or the training part of the built-in one."""
    if config.data:
        segment = config.views.frames * config.front_end.hop_length / config.front_end.sample_rate
        corpus = open_corpus(config.data, spans=config.spans).with_channel(config.channel)
        # Two segments of a clip are to be two: a clip is twice as long as one.
        return cut_long(corpus, config.clip_seconds and max(config.clip_seconds, 2 * segment))
    return open_corpus(built_in_corpus(runs)).select(split="train")


def check_enough(config: PretrainConfig, corpus: Corpus) -> None:
    """Refuse a corpus with fewer segments than a batch, of which none tells clips apart.

    Args:
        config: settings of the run.
        corpus: its clips.

    Raises:
        ValueError: if it has.
    """
    if not config.data or len(corpus) >= config.batch_size:
        return
    segment = config.views.frames * config.front_end.hop_length / config.front_end.sample_rate
    seconds = [seconds_of(corpus, i) or 0.0 for i in range(len(corpus))]
    segments = sum(max(1, int(one / segment)) for one in seconds)
    if len(corpus) < 2 or segments < config.batch_size:
        raise ValueError(
            f"{config.data} holds {len(corpus)} clip(s), {sum(seconds):.3g} s or {segments} "
            f"segments of {segment:.3g} s, and a batch compares {config.batch_size}: give more "
            "sound, or a smaller batch_size= (at least 2 clips are needed)"
        )


def check_model(name: str) -> None:
    """Refuse a model that is not there before any audio is read.

    Raises:
        UsageError: naming the models there are.
    """
    if name not in list_models():
        raise UsageError(f"model {name!r} is unknown; the models are {', '.join(list_models())}")


def build_log_mel(config: TrainConfig, *, mean: float = 0.0, std: float = 1.0) -> LogMel:
    """The front end, un-normalised unless mean and std are known."""
    return log_mel_of(config.front_end, mean=mean, std=std)


def log_mel_of(front: FrontEnd, *, mean: float, std: float) -> LogMel:
    """The front end of these settings, of a run that is set up or that is read again.

    Args:
        front: settings of a run.
        mean: of the log-mel over its corpus.
        std: of the log-mel over its corpus.
    """
    settings = to_dict(front)
    del settings["stats_clips"]
    if front.kind == "kaldi" and front.n_fft == FrontEnd().n_fft:
        del settings["n_fft"]  # left alone: it follows from the window of 25 ms
    kind = front.kind or "log_mel"
    return front_end_of({**settings, "kind": kind, "mean": mean, "std": std})


def front_end_like(config: TrainConfig, theirs: LogMel) -> FrontEnd:
    """`front_end.*` of the weights of `init`, which wins over defaults and a recipe's.

    Raises:
        UsageError: if another one is asked for.
    """
    left_out = ("mean", "std", "pad_frames")
    own = {"kind": "log_mel", **theirs.settings()}
    own = {key: value for key, value in own.items() if key not in left_out}
    recipe = flatten(load_recipe(config.recipe, RECIPES)) if config.recipe else {}
    for key, value in own.items():
        asked, usual = getattr(config.front_end, key), getattr(FrontEnd(), key)
        said = recipe.get(f"front_end.{key}", usual)
        wanted = f"left to init={config.init}, whose weights were trained with {value}"
        require(asked in (value, usual, said), f"front_end.{key}", asked, wanted)
        if said not in (value, usual):
            logger.info(
                "front_end.%s=%s of init=%s, not the recipe's %s", key, value, config.init, said
            )
    return replace(config.front_end, **own)


def mean_and_std(
    config: TrainConfig, corpus: Corpus, *, decoded: Corpus, frames: int
) -> tuple[float, float]:
    """Mean and std of the corpus' log-mel: as `ssmast prepare` found them, or measured now.

    Args:
        config: settings of the run.
        corpus: its clips.
        decoded: the same clips, to measure on.
        frames: of an input.
    """
    log_mel = build_log_mel(config)
    warn_of_lost_energy(corpus, log_mel)
    known = known_mean_std(corpus, log_mel)
    mean, std = known or measure_mean_std(
        decoded,
        log_mel,
        num_samples=log_mel.samples(frames),
        seed=config.seed,
        max_clips=config.front_end.stats_clips,
    )
    how = ", from corpus.json" if known else ""
    logger.info("log-mel mean %.3f, std %.3f%s", mean, std, how)
    return mean, std


def steps_of(config: TrainConfig, *, num_clips: int) -> int:
    """Optimiser steps of the run: `steps`, or what `epochs` takes."""
    return config.steps or max(1, math.ceil(config.epochs * num_clips / config.batch_size))


def decoded(config: TrainConfig, corpus: Corpus, *, runs: Path) -> Corpus:
    """The corpus decoded once, or as it is when that is not wanted or too big.

    Args:
        config: settings of the run.
        corpus: its clips.
        runs: folder of runs, which the cache lies in unless `cache` says otherwise.
    """
    if config.cache == "off":
        return corpus
    where = runs / "cache" if config.cache == "auto" else Path(config.cache)
    return cache_decoded(
        corpus,
        where,
        sample_rate=config.front_end.sample_rate,
        max_bytes=8 << 30 if config.cache == "auto" else None,
        workers=may_start(num_cores()),  # nothing else runs yet
    )


def segment_loader(
    config: TrainConfig,
    dataset: SegmentDataset | MixedSegments,
    *,
    first_step: int,
    steps: int,
    rank: int,
    num_ranks: int,
) -> DataLoader[Any]:
    """This process' share of every step from `first_step` on.

    Raises:
        ValueError: if the batch cannot be shared out evenly.
    """
    parts = num_ranks * config.optim.gradient_accumulation_steps
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size={config.batch_size} cannot be shared evenly by {num_ranks} processes "
            f"with {config.optim.gradient_accumulation_steps} micro-batches each; use a multiple "
            f"of {parts}"
        )
    sampler = StepSampler(
        start=first_step,
        stop=steps,
        batch_size=config.batch_size,
        rank=rank,
        num_ranks=num_ranks,
    )
    workers = may_start(config.workers)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=dataset.collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_quiet_worker,
        prefetch_factor=4 if workers else None,
    )


def _quiet_worker(worker: int) -> None:
    """One thread a worker, and Ctrl-C left to the main process, which still needs the data."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
        """Waveforms (B, 2, S) -> two augmented, normalised views and their drops.

        Args:
            segments: of a micro-batch.
            step: optimiser steps done.
            backbone: whose grid patches are dropped from.
        """
        waveform = segments.waveform.to(self._device, non_blocking=True)
        raw = [self.log_mel.log_mel(waveform[:, i], fast=True) for i in (0, 1)]
        return TwoViews(
            log_mels=(self._view(raw[0], segments, 0), self._view(raw[1], segments, 1)),
            drops=self._drops(segments, step=step, backbone=backbone),
            raw=raw[0],
            local=tuple(self._local(raw, segments, k) for k in range(self.config.views.local)),
        )

    def _drops(self, segments: SegmentBatch, *, step: int, backbone: Backbone) -> Drops:
        """Columns of view 1 and rows of view 2 where they are to be lost, or what `drop` gives."""
        columns, rows = self.config.lost_lines
        if columns or rows:
            return (
                self.drop_lines(0, columns=columns, step=step, backbone=backbone),
                self.drop_lines(1, rows=rows, step=step, backbone=backbone),
            )
        return (
            self.drop(segments, 0, step=step, backbone=backbone),
            self.drop(segments, 1, step=step, backbone=backbone),
        )

    def drop(
        self,
        segments: SegmentBatch,
        view: int,
        *,
        step: int,
        backbone: Backbone,
        mode: str | None = None,
    ) -> PatchDrop | None:
        """Patches to drop of a view at `patch_drop.rate`; None where that is 0.

        Args:
            segments: of a micro-batch.
            view: 0 or 1.
            step: optimiser steps done.
            backbone: whose grid patches are dropped from.
            mode: in place of `patch_drop.mode`.
        """
        rate, mode = self.config.patch_drop.rate, mode or self.config.patch_drop.mode
        if rate == 0:
            return None
        mels, frames = self.config.front_end.num_mels, self.config.views.frames
        size = backbone.grid_of(mels, frames)[0]
        batch, group = len(segments), backbone.drop_group
        num = patch_drop_draws(size, mode=mode, batch=batch, group=group)[-1]
        if mode == "random":  # every clip its own patches
            uniforms = self._uniform(segments, _DROP_STREAM + view, num)
        else:
            uniforms = self._uniform_of_step(step, _DROP_STREAM + view, num)
        drop = backbone.draw_patch_drop(
            mels, frames, rate=rate, mode=mode, batch=batch, uniforms=uniforms
        )
        return self._placed(drop)

    def drop_lines(
        self, view: int, *, step: int, backbone: Backbone, rows: float = 0.0, columns: float = 0.0
    ) -> PatchDrop:
        """Whole frequency rows and time columns to drop, in groups of the encoder's stride.

        The kept ones close ranks, so the encoder computes less; one pattern a step and view.

        Args:
            view: 0 or 1.
            step: optimiser steps done.
            backbone: whose grid they are dropped from.
            rows: fraction of the groups of rows, 0 to below 1; at least one group is kept.
            columns: fraction of the groups of columns.
        """
        grid = backbone.grid_of(self.config.front_end.num_mels, self.config.views.frames)[0]
        groups = grid.pool(backbone.drop_group)
        draws = self._uniform_of_step(step, _DROP_STREAM + view, sum(groups[:]))
        kept = []
        for draw, size, length, rate in zip(
            draws.split(list(groups[:])), backbone.drop_group, grid[:], (rows, columns), strict=True
        ):
            num = max(1, round((1 - rate) * len(draw)))
            chosen = draw.argsort()[:num].sort().values
            members = (chosen[:, None] * size + torch.arange(size)).flatten()
            kept.append(members[members < length])
        return self._placed(PatchDrop(grid, rows=kept[0], columns=kept[1]))

    @property
    def _device(self) -> torch.device:
        return self.log_mel.filterbank.device

    def _view(self, raw: Tensor, segments: SegmentBatch, view: int) -> Tensor:
        draws = self._uniform(segments, _VIEW_STREAM + view, self.augment.num_draws + 1)
        return self._augmented(raw, draws[:, :-1], self.memory.pick(draws[:, -1]))

    def _local(self, raw: list[Tensor], segments: SegmentBatch, number: int) -> Tensor:
        """A third of either segment, from anywhere in it, augmented like a view."""
        num, length = raw[0].shape[3], raw[0].shape[3] // 3
        draws = self._uniform(segments, _LOCAL_STREAM + number, self.augment.num_draws + 3)
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
        return self.augment(
            raw,
            draws=draws,
            background=background,
            mean=self.log_mel.mean,
            std=self.log_mel.std,
        )

    def _uniform(self, segments: SegmentBatch, stream: int, num: int) -> Tensor:
        """Draws (B, num), one row a clip."""
        epoch, clip = segments.epoch.numpy(), segments.clip.numpy()
        draws: np.ndarray = keyed_uniform(self.config.seed, epoch, clip, stream, num)
        return sent(torch.from_numpy(draws), self._device)

    def _uniform_of_step(self, step: int, stream: int, num: int) -> Tensor:
        """Draws (num,) on the CPU, the same on every process: sizes follow from them."""
        return torch.from_numpy(keyed_uniform(self.config.seed, 0, step, stream, num))

    def _placed(self, drop: PatchDrop) -> PatchDrop:
        """The drop's tensors on the device of the views."""
        rows, columns = drop.rows, drop.columns
        if rows is None or columns is None:
            return drop
        rows, columns = sent(rows, self._device), sent(columns, self._device)
        return drop._replace(rows=rows, columns=columns)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; from page-locked memory, so that the host need not wait for the GPU."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def build_augment(config: PretrainConfig) -> ViewAugment:
    """The batched part of the augmentation."""
    views = config.views
    (low_freq, high_freq), (low_time, high_time) = views.crop_freq, views.crop_time
    crop = ResizedCrop(freq=(low_freq, high_freq), time=(low_time, high_time))
    return ViewAugment(crop, mixup_rate=views.mixup_rate)


def build_memory(config: PretrainConfig) -> MixupMemory:
    """Log-mels of earlier steps, for mixup; empty for good where there is none."""
    return MixupMemory(
        size=config.views.mixup_memory if config.views.mixup_rate > 0 else 0,
        shape=(config.front_end.num_mels, config.views.frames),
    )


def segments_of(
    config: PretrainConfig, source: Corpus, *, num_samples: int, num_segments: int
) -> SegmentDataset:
    """The segments of a run's clips.

    Args:
        config: settings of the run.
        source: its clips.
        num_samples: length of a segment.
        num_segments: of each clip.
    """
    return SegmentDataset(
        source,
        num_samples=num_samples,
        sample_rate=config.front_end.sample_rate,
        seed=config.seed,
        num_segments=num_segments,
        same_segment=config.views.segments == 1,
        waveform_augment=config.views.waveform_augment,
        transforms=config.views.transforms or None,
    )
