"""Settings -> parts. The only place where a config is taken apart; the parts never see it."""

import logging
import math
import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ssmast import __version__
from ssmast.audio import (
    Corpus,
    LogMel,
    MixupMemory,
    SegmentDataset,
    ViewAugment,
    cache_decoded,
    known_mean_std,
    measure_mean_std,
    open_corpus,
    write_synthetic_corpus,
)
from ssmast.contrastive import Branch, Student, build_predictor, build_projector
from ssmast.encoder import Encoder
from ssmast.encoder.pooling import check_pooling
from ssmast.model import Backbone, Tokens, create_model, list_models, pool_tokens, pooled_dim
from ssmast.settings import UsageError, require
from ssmast.training.config import FrontEnd, PretrainConfig, TrainConfig
from ssmast.training.optim import build_optimizer
from ssmast.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

SYNTHETIC_CLIPS = 1500


def built_in_corpus(runs: Path) -> Path:
    """The labelled set of synthetic sounds beside the runs, written when it is not there yet."""
    return write_synthetic_corpus(runs / "synthetic", num_clips=SYNTHETIC_CLIPS, seed=0)


def open_data(config: PretrainConfig, *, runs: Path) -> Corpus:
    """The corpus of `data=`, or the training part of the built-in one."""
    if config.data:
        return open_corpus(config.data)
    return open_corpus(built_in_corpus(runs)).select(split="train")


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
    return LogMel(
        sample_rate=front.sample_rate,
        n_fft=front.n_fft,
        hop_length=front.hop_length,
        num_mels=front.num_mels,
        f_min=front.f_min,
        f_max=front.f_max,
        mean=mean,
        std=std,
    )


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


def build_augment(config: PretrainConfig) -> ViewAugment:
    """The batched part of the augmentation."""
    views = config.views
    return ViewAugment(
        mixup_rate=views.mixup_rate,
        crop_freq=_pair("views.crop_freq", views.crop_freq),
        crop_time=_pair("views.crop_time", views.crop_time),
        canvas=_pair("views.canvas", views.canvas),
        fader=views.fader,
        freq_mask=views.freq_mask,
        time_mask=views.time_mask,
        noise_std=views.noise_std,
    )


def build_student(config: PretrainConfig) -> Student:
    """Backbone, projector and predictor with fresh weights."""
    backbone = cast(
        Backbone,
        create_model(
            config.model,
            num_classes=0,
            input_size=(config.front_end.num_mels, config.views.frames),
            drop_path_rate=config.drop_path,
        ),
    )
    head = config.head
    backbone.check_pooling(head.pooling)
    check_pooling(backbone, pooling=config.export.pooling, layers=config.export.layers)
    grid = backbone.grid_of(config.front_end.num_mels, config.views.frames)[-1]

    def pool(tokens: Tokens) -> torch.Tensor:
        return pool_tokens(tokens, mode=head.pooling)

    projector = build_projector(
        kind=head.kind,
        dim_in=pooled_dim(head.pooling, grid.freq, backbone.num_features),
        hidden=head.hidden,
        dim=head.dim,
        num_layers=head.num_layers,
        norm=head.norm,
    )
    predictor = build_predictor(hidden=head.predictor, dim=head.dim, norm=head.norm)
    return Student(
        Branch(backbone, pool, projector),
        predictor,
        temperature=config.loss.temperature,
        learn_temperature=config.loss.learn_temperature,
    )


def build_encoder(
    config: PretrainConfig,
    *,
    backbone: Backbone,
    log_mel: LogMel,
    facts: dict[str, Any],
) -> Encoder:
    """The encoder to export: the network that was chosen, front end and pooling together."""
    export = config.export
    return Encoder(
        backbone,
        log_mel,
        pooling=export.pooling,
        layers=export.layers,
        window_seconds=export.window_seconds,
        info={**facts, "network": export.network, "version": __version__},
    )


def optimizer_of(
    config: TrainConfig, model: nn.Module, *, groups: list[dict[str, Any]] | None = None
) -> torch.optim.Optimizer:
    """The optimiser of `optim.*` over the model's parameters, or over groups of them."""
    optim = config.optim
    return build_optimizer(
        model,
        name=optim.name,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        betas=_pair("optim.betas", optim.betas),
        momentum=optim.momentum,
        groups=groups,
    )


def steps_of(config: TrainConfig, *, num_clips: int) -> int:
    """Optimiser steps of the run: `steps`, or what `epochs` takes."""
    return config.steps or max(1, math.ceil(config.epochs * num_clips / config.batch_size))


def decoded(config: TrainConfig, folder: RunFolder, corpus: Corpus) -> Corpus:
    """The corpus decoded once, or as it is when that is not wanted or too big."""
    if config.cache == "off":
        return corpus
    where = folder.path.parent / "cache" if config.cache == "auto" else Path(config.cache)
    return cache_decoded(
        corpus,
        where,
        sample_rate=config.front_end.sample_rate,
        max_bytes=8 << 30 if config.cache == "auto" else None,
        workers=len(os.sched_getaffinity(0)),  # nothing else runs yet
    )


def queue_size_of(config: PretrainConfig, *, num_clips: int) -> int:
    """Keys of the queue: `queue_size`, or fewer where `queue_fraction` of the clips is less.

    Raises:
        ValueError: if that leaves no negatives at all.
    """
    loss = config.loss
    if not loss.queue_fraction:
        return loss.queue_size
    size = min(loss.queue_size, int(loss.queue_fraction * num_clips))
    if not size and not loss.batch_negatives:
        raise ValueError(
            f"loss.queue_fraction={loss.queue_fraction:g} of {num_clips} clips leaves no "
            "negatives; give a larger share or loss.batch_negatives=true"
        )
    return size


def num_segments_of(config: PretrainConfig) -> int:
    """Segments of each clip: one for each of two views, or the one that patches are hidden of."""
    return 1 if config.objective == "ssast" else 2


def build_dataset(config: PretrainConfig, source: Corpus) -> SegmentDataset:
    """The segments of a run's clips."""
    return SegmentDataset(
        source,
        num_samples=build_log_mel(config).samples(config.views.frames),
        sample_rate=config.front_end.sample_rate,
        seed=config.seed,
        num_segments=num_segments_of(config),
        same_segment=config.views.segments == 1,
        waveform_augment=config.views.waveform_augment,
    )


def build_memory(config: PretrainConfig, *, device: torch.device) -> MixupMemory:
    """Log-mels of earlier steps, for mixup; empty for good where there is none."""
    return MixupMemory(
        size=config.views.mixup_memory if config.views.mixup_rate > 0 else 0,
        shape=(config.front_end.num_mels, config.views.frames),
        device=device,
    )


def _pair(key: str, values: list[float]) -> tuple[float, float]:
    require(len(values) == 2, key, values, "two numbers")
    return values[0], values[1]
