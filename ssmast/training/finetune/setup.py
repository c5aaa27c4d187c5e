"""What a fine-tuning run is, resolved before it begins: its set, its front end, its sizes."""

import hashlib
import logging
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from ssmast.audio import BalancedOrder, Corpus, MixedSegments, SegmentDataset
from ssmast.audio.mel import front_end_of
from ssmast.audio.read import split_excerpt
from ssmast.audio.stats import look_at_lengths
from ssmast.encoder import Encoder
from ssmast.encoder.folder import CONFIG, read_json
from ssmast.evaluation.class_scores import main_metric
from ssmast.evaluation.evaluate import true_events
from ssmast.evaluation.labelled_set import LabelledSet, with_trained_classes
from ssmast.evaluation.read_set import load_set
from ssmast.model import Backbone, create_model
from ssmast.settings import AUTO, UsageError
from ssmast.splits import Split
from ssmast.training.finetune.config import SCHEDULES, Events, FinetuneConfig, resolved
from ssmast.training.init_weights import InitialWeights, check_network, find_weights, read_weights
from ssmast.training.inputs import build_log_mel, check_model, front_end_like, log_mel_of
from ssmast.training.objective import TrainingData
from ssmast.weights import DEFAULT, FOLDER

logger = logging.getLogger(__name__)

_MOST_FRAMES, _FEWEST_FRAMES, _FRAME_STEP = 1024, 32, 32


class Preset(NamedTuple):
    """What suits a set, where a recipe leaves it open.

    Attributes:
        lr: `optim.lr`.
        epochs: at 1,000 clips.
        layer_decay: `optim.layer_decay`.
        probe: `heads.probe`.
        lr_scale: `heads.lr_scale`.
        smoothing: `heads.smoothing`.
        mixup_rate: `clips.mixup_rate`.
        freq_mask: `clips.freq_mask`.
    """

    lr: float
    epochs: float
    layer_decay: float
    probe: bool
    lr_scale: float
    smoothing: float
    mixup_rate: float
    freq_mask: int


_FEW_CLIPS = 1000
# Pretrained weights and few clips: stay near the frozen probe. The reasons: docs/finetune.md.
SMALL_SET = Preset(
    3e-4, epochs=10, layer_decay=0.8, probe=True, lr_scale=0.3, smoothing=0.0, mixup_rate=0.0,
    freq_mask=0,
)  # fmt: skip
# Random weights, or clips enough to move all layers alike.
LARGE_SET = Preset(
    5e-4, epochs=50, layer_decay=1.0, probe=False, lr_scale=1.0, smoothing=0.1, mixup_rate=0.3,
    freq_mask=8,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setup(TrainingData):
    """Everything a run needs before the first step; `clips` are those of the training part.

    Attributes:
        config: resolved: model, front end and sizes are written out.
        found: the labelled set.
        split: which clips train, choose and test.
        corpus: of the whole set's folder.
        encoder: that the weights come from, or None.
        metric: that the best weights are chosen by.
    """

    config: FinetuneConfig
    found: LabelledSet
    split: Split
    corpus: Corpus
    encoder: Encoder | None
    metric: str

    @property
    def labels_sha256(self) -> str:
        """Of the labels of all clips and of which part each is in."""
        parts = self.found.labels_sha256() + self.found.ids_sha256()
        return hashlib.sha256(parts.encode()).hexdigest()


def set_up(config: FinetuneConfig) -> Setup:
    """Read the set and the encoder's folder, and resolve what they decide.

    Raises:
        UsageError, ValueError, FileNotFoundError: one sentence saying what to change.
    """
    config = replace(config, init=_init_of(config))
    found = load_set(
        config.data, config.task, labels=config.labels, held_out=config.scoring.held_out
    )
    split = found.split(config.fold)
    corpus = found.corpus(channel=config.channel)
    found = with_trained_classes(found, split)
    weights = _weights_of(config)
    encoder = None if weights is None else weights.encoder
    # The front end that weights were trained with comes with them.
    log_mel = None if weights is None else weights.published_front_end
    if encoder is not None:
        config, log_mel = _like(config, encoder), encoder.log_mel
    if log_mel is not None:
        config = replace(config, front_end=front_end_like(config, log_mel))
    config = replace(config, model=config.model or "mast_nano")
    check_model(config.model)
    if config.pooling_schedule and not config.model.startswith("mast_"):
        raise UsageError(f"pooling_schedule is for mast_* models, got model={config.model}")
    clips = corpus.take(found.rows[split.train])
    if not config.clips.frames:
        frames = _usual_frames(clips, config.front_end)
        config = replace(config, clips=replace(config.clips, frames=frames))
    config = sized(config, num_clips=len(split.train))
    config = replace(config, events=_events_of(config, found, corpus, split))
    events = config.events.when == "always"
    metric = main_metric(found, config.scoring.metric, events=events)
    if log_mel is not None:
        settings = log_mel.settings()
        if weights is not None and weights.published_front_end is not None:
            settings["pad_frames"] = config.clips.frames  # AST's code pads every clip
        log_mel = front_end_of(settings)
    return Setup(
        clips=clips,
        log_mel=log_mel,
        config=config,
        found=found,
        split=split,
        corpus=corpus,
        encoder=encoder,
        metric=metric,
    )


def sized(config: FinetuneConfig, *, num_clips: int) -> FinetuneConfig:
    """What was left open, resolved by the number of training clips.

    Epochs fall with the root of the clips: a set ten times as large gets about three times the
    steps. Pretrained weights are moved gently where clips are few, at a rate in proportion to
    them: the fewer there are, the less far they may carry the network from where it begins.
    """
    size = config.batch_size or (16 if num_clips < 500 else 32 if num_clips < 5000 else 64)
    share = num_clips / _FEW_CLIPS
    preset = SMALL_SET if config.init != "none" and share < 1 else LARGE_SET
    epochs = float(min(50, max(5, round(preset.epochs / math.sqrt(share)))))
    lr = preset.lr * (share if preset is SMALL_SET else 1.0)
    clips, heads, optim = config.clips, config.heads, config.optim
    return replace(
        config,
        batch_size=size,
        epochs=config.epochs or epochs,
        optim=replace(optim, lr=optim.lr or lr, **_unset_keys(optim, preset)),
        clips=replace(clips, **_unset_keys(clips, preset)),
        heads=replace(
            heads, lr_scale=heads.lr_scale or [preset.lr_scale], **_unset_keys(heads, preset)
        ),
    )


def _unset_keys(part: Any, preset: Preset) -> dict[str, Any]:
    """Keys of a part of the settings that say `auto`, and what suits instead."""
    return {key: getattr(preset, key) for key, value in vars(part).items() if value is None}


def model_arguments(setup: Setup) -> dict[str, Any]:
    """Arguments of `create_model`, without the classes."""
    config = setup.config
    arguments: dict[str, Any] = {}
    if setup.encoder is not None:
        backbone = cast(Backbone, setup.encoder.backbone)
        arguments = dict(getattr(backbone, "_model_args", {}))
        arguments["input_size"] = backbone.input_size
        for key in ("num_classes", "drop_path_rate", "drop_rate"):
            arguments.pop(key, None)
    schedule = SCHEDULES[config.pooling_schedule]
    if schedule is not None:
        arguments["stride_q"] = schedule
    # An encoder keeps the length that it was trained on, and so what it makes of a clip.
    arguments.setdefault("input_size", (config.front_end.num_mels, config.clips.frames))
    return {**arguments, "drop_path_rate": config.drop_path, "drop_rate": config.heads.dropout}


def _init_of(config: FinetuneConfig) -> str:
    """Where the weights come from: `init`, or the encoder that comes with the package.

    Raises:
        UsageError: if that is left open and the encoder is of another model.
    """
    if config.init != AUTO:
        return config.init
    architecture = read_json(FOLDER / CONFIG)["architecture"]
    if config.model not in ("", architecture) or config.pooling_schedule:
        asked = f"model={config.model}" if config.model else "pooling_schedule"
        raise UsageError(
            f"init must be given with {asked}, as the encoder that comes with the package is a "
            f"{architecture}: none (from scratch), imagenet, an encoder or a run folder"
        )
    logger.info("init=%s, the encoder that comes with the package", DEFAULT)
    return DEFAULT


def _weights_of(config: FinetuneConfig) -> InitialWeights | None:
    """The weights that `init` names, where they may say what they were trained with."""
    if config.init in ("none", "imagenet"):
        return None
    source = find_weights(config.init, config.model)
    return None if source is None else read_weights(source)


def _like(config: FinetuneConfig, encoder: Encoder) -> FinetuneConfig:
    """The settings with the encoder's architecture unless that is given.

    Raises:
        UsageError: if a network that its weights do not fit is asked for.
    """
    source = cast(Backbone, encoder.backbone)
    model = config.model or cast(Any, source).pretrained_cfg["architecture"]
    check_model(model)
    with torch.device("meta"):
        own = create_model(model, num_classes=0, input_size=source.input_size)
    check_network(source, own, init=config.init, model=model)
    return replace(config, model=model)


def _events_of(config: FinetuneConfig, found: LabelledSet, corpus: Corpus, split: Split) -> Events:
    """The settings of events with `when` resolved, checked on the parts that will be scored.

    Raises:
        ValueError: if events are asked for and cannot be scored.
    """
    events = config.events
    if events.when == "off":
        return events
    asked = events.when != AUTO
    if not asked:  # whole recordings are heard for it, at every validation perhaps for hours
        chooses = config.scoring.metric.startswith("event_")
        events = replace(events, when="always" if chooses else "test")
    parts = (split.test,) if events.when == "test" else (split.valid, split.test)
    try:
        for part in parts:
            true_events(found, corpus, part, background=events.background)
    except ValueError as error:
        if asked:
            raise
        if split_excerpt(corpus.name(int(found.rows[split.test[0]])))[1] is not None:
            logger.warning("events are not scored: %s", error)
        return replace(events, when="off")
    return events


def _usual_frames(corpus: Corpus, front: Any) -> int:
    """Frames that nine in ten clips fit into, at most 1024; of a look at 64 clips."""
    samples, looked_at = look_at_lengths(corpus, sample_rate=front.sample_rate)
    if not samples:
        raise ValueError(f"none of {looked_at} training clips could be read; give clips.frames")
    log_mel = log_mel_of(front, mean=0.0, std=1.0)
    lengths = [log_mel.frames(length) for length in samples]
    frames = math.ceil(float(np.quantile(lengths, 0.9)) / _FRAME_STEP) * _FRAME_STEP
    if frames > _MOST_FRAMES:
        logger.info(
            "one clip in ten has %d frames and more; inputs have %d, a random part of such a clip;"
            " for longer ones give clips.frames",
            frames,
            _MOST_FRAMES,
        )
    return min(_MOST_FRAMES, max(_FEWEST_FRAMES, frames))


def training_items(setup: Setup, source: Corpus) -> MixedSegments:
    """One segment a clip of the training part (`source`), some mixed with another's."""
    config, found = setup.config, setup.found
    weights = found.weights(setup.split.train) if config.clips.balanced else None
    segments = SegmentDataset(
        source,
        num_samples=build_log_mel(config).samples(config.clips.frames),
        sample_rate=config.front_end.sample_rate,
        seed=config.seed,
        num_segments=1,
        waveform_augment=config.clips.waveform_augment,
        order=None if weights is None else BalancedOrder(weights),
        pad=False,
    )
    rate = resolved(config.clips.mixup_rate)
    return MixedSegments(segments, rate=rate, alpha=config.clips.mixup_alpha)
