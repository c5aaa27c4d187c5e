"""Settings -> corpus, front end, segments by their place in the stream, and networks."""

import logging
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader

from ssmast.audio import (
    Corpus,
    LogMel,
    MixedSegments,
    SegmentDataset,
    StepSampler,
    open_corpus,
    write_synthetic_corpus,
)
from ssmast.audio.corpus.cache import cache_decoded
from ssmast.audio.corpus.cut import cut_long, seconds_of
from ssmast.audio.mel import front_end_of
from ssmast.audio.stats import known_mean_std, measure_mean_std, warn_of_lost_energy
from ssmast.command import may_start, num_cores
from ssmast.contrastive import build_projector
from ssmast.encoder.encoder import check_pooling
from ssmast.model import Backbone, create_model, list_models, pooled_dim
from ssmast.settings import UsageError, flatten, load_recipe, require, to_dict
from ssmast.training.config import RECIPES, FrontEnd, PretrainConfig, TrainConfig

logger = logging.getLogger(__name__)

SYNTHETIC_CLIPS = 1500


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
    """The front end of these settings, of a run that is set up or that is read again."""
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
    """Mean and std of the corpus' log-mel: as `ssmast prepare` found them, or measured now."""
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
    """The corpus decoded once, or as it is when that is not wanted or too big."""
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
        start=first_step, stop=steps, batch_size=config.batch_size, rank=rank, num_ranks=num_ranks
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
    """One thread a worker; Ctrl-C and SIGHUP are the main process's, which still needs the data."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def segments_of(
    config: PretrainConfig, source: Corpus, *, num_samples: int, num_segments: int
) -> SegmentDataset:
    """The segments of a run's clips."""
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


# -- networks --------------------------------------------------------------------------------------


def build_backbone(config: PretrainConfig) -> Backbone:
    """The encoder of `model=` for inputs of the views' size, with fresh weights.

    Raises:
        ValueError: for a pooling, of the loss or of what is exported, that it does not have.
    """
    backbone = cast(
        Backbone,
        create_model(
            config.model,
            num_classes=0,
            input_size=(config.front_end.num_mels, config.views.frames),
            drop_path_rate=config.drop_path,
        ),
    )
    backbone.set_grad_checkpointing(config.grad_checkpointing)
    check_pooling(backbone, pooling=config.head.pooling, layers=config.head.layers)
    check_pooling(backbone, pooling=config.export.pooling, layers=config.export.layers)
    _check_lost_lines(config, backbone)
    if config.views.local:
        backbone.grid_of(config.front_end.num_mels, config.views.frames // 3)  # refuses too short
    return backbone


def projector_of(config: PretrainConfig, backbone: Backbone) -> nn.Module:
    """Head on the embedding of an encoder, as the keys `head.*` say, with fresh weights."""
    head = config.head
    return build_projector(
        kind=head.kind,
        dim_in=embedding_dim(config, backbone),
        hidden=head.hidden,
        dim=head.dim,
        num_layers=head.num_layers,
        norm=head.norm,
    )


def embedding_dim(config: PretrainConfig, backbone: Backbone) -> int:
    """Length of what an encoder gives, pooled as `head.pooling` and `head.layers` say."""
    mels, head = config.front_end.num_mels, config.head
    sizes = backbone.layer_sizes(head.layers, num_mels=mels)
    return sum(pooled_dim(head.pooling, *size) for size in sizes)


def _check_lost_lines(config: PretrainConfig, backbone: Backbone) -> None:
    """Refuse to lose more lines than a view this small can, for they go in groups; one is kept."""
    mels, frames = config.front_end.num_mels, config.views.frames
    groups = backbone.grid_of(mels, frames)[0].pool(backbone.drop_group)
    columns, rows = config.lost_lines
    for key, rate, num in (("columns", columns, groups.time), ("rows", rows, groups.freq)):
        most = 1 - 1 / num
        if rate > most + 1e-6:
            raise ValueError(
                f"views.{key}={rate:g} is more than a view of {mels} mel bins x {frames} frames "
                f"can lose: its {key} go in {num} group(s), of which one is kept; give a larger "
                f"view, or at most {most:.3g}"
            )
