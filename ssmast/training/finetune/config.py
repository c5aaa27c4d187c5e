"""Every key of `ssmast finetune`, with its default and its meaning."""

from dataclasses import dataclass
from typing import TypeVar

from ssmast.evaluation.evaluate import EventRules
from ssmast.settings import AUTO, NETWORK_PRECISIONS, PRECISION, setting
from ssmast.training.config import Optim, TrainConfig

Value = TypeVar("Value")

SCHEDULES = {
    "": None,
    "table1": ((1, 1), (2, 2), (2, 2), (1, 2)),
    "all_2d": ((1, 1), (2, 2), (2, 2), (2, 2)),
    "two": ((1, 1), (2, 2), (2, 2), (1, 1)),
    "one": ((1, 1), (2, 2), (1, 1), (1, 1)),
    "none": ((1, 1), (1, 1), (1, 1), (1, 1)),
}
"""The rows of the ablation of Zhu & Omar 2023: name -> (freq, time) stride of each stage."""


def resolved(value: Value | None) -> Value:
    """A key that may be left open, of a config that `setup.sized` has resolved."""
    assert value is not None
    return value


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The augmented input made of each clip."""

    frames: int = setting(
        1024,
        "length of an input in frames (96 = 0.95 s, 1024 = 10.23 s); 0: as long as the clips",
        range="0 or [8, inf)",
    )
    balanced: bool = setting(False, "draw clips so that every class comes equally often")
    waveform_augment: float = setting(
        0.0, "probability that the audiomentations chain is applied", range="[0, 1]"
    )
    mixup_rate: float | None = setting(
        0.0,
        "probability that another clip is mixed in; auto: by the size of the set",
        range="[0, 1]",
        auto=True,
    )
    mixup_alpha: float = setting(
        10.0, "the weight of the other clip is drawn from Beta(alpha, alpha)", range="(0, inf)"
    )
    time_shift: int = setting(
        0, "largest random shift in time in frames, either way", range="[0, inf)"
    )
    noise_std: float = setting(
        0.0, "largest standard deviation of the noise added to the log-mel", range="[0, inf)"
    )
    freq_mask: int | None = setting(
        0,
        "widest SpecAugment mask in mel bins; auto: by the size of the set",
        range="[0, inf)",
        auto=True,
    )
    time_mask: int = setting(0, "widest SpecAugment mask in frames", range="[0, inf)")


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Classification heads on the tokens."""

    pooling: str = setting(
        "",
        "attention, or as export.pooling of `ssmast pretrain`, of the last layer; empty: pooling "
        "and layers of init's encoder, else mean, with AST cls",
    )
    dropout: float = setting(0.0, "dropout before the linear layers", range="[0, 1)")
    smoothing: float | None = setting(
        0.0,
        "label smoothing of the cross-entropy; auto: by the size of the set",
        range="[0, 1)",
        auto=True,
    )
    standardize: bool = setting(
        False,
        "standardise the input of the heads by the statistics of the first batch (folded into the "
        "linear layer at the end)",
    )
    lr_scale: list[float] = setting(
        [1.0],
        "learning rate of the heads relative to that of the last block: one number, or one for "
        "each head; []: by the size of the set",
        range="(0, inf)",
    )
    probe: bool | None = setting(
        False,
        "with init=: begin with a linear probe fitted to the frozen encoder; auto: if the set is "
        "small",
        auto=True,
    )
    freeze: float = setting(
        0.0, "fraction of the steps, at the start, in which only the heads learn", range="[0, 1]"
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneOptim(Optim):
    """Optimiser and its schedule: linear warm-up, cosine, layer-wise decay."""

    lr: float = setting(
        1e-5, "peak learning rate; 0: by the size of the set and init=", range="[0, 10)"
    )
    min_lr: float = setting(0.0, "learning rate at the last step", range="[0, 10]")
    warmup: float = setting(0.0, "fraction of the steps spent warming up", range="[0, 1)")
    betas: list[float] = setting(
        [0.9, 0.999], "AdamW's two decay rates", range="[0, 0.99999]", length=2
    )
    max_grad_norm: float = setting(
        1.0, "gradients of a larger norm are scaled down to it; 0: no clipping", range="[0, inf)"
    )
    layer_decay: float | None = setting(
        1.0,
        "learning rate of a block relative to that of the next one; 1: all the same; auto: by the "
        "size of the set",
        range="(0, 1]",
        auto=True,
    )
    ema: float = setting(
        0.0,
        "decay of the moving average of the weights that is scored and kept; 0: no average",
        range="[0, 1)",
    )
    swa_fraction: float = setting(
        0.0,
        "also try the mean of the weights at the validations in this last fraction of the run "
        "(stochastic weight averaging); 0: off",
        range="[0, 1]",
    )
    wise_ft_alphas: list[float] = setting(
        [],
        "with heads.probe: also try weights at these fractions of the way from the first to the "
        "last (WiSE-FT)",
        range="(0, 1)",
    )


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the best weights are chosen and scored."""

    metric: str = setting("", "metric that the best weights are chosen by; empty: by the labels")
    one_se_rule: float = setting(
        0.0,
        "among scores within this many standard errors of the best one, choose the lowest loss; "
        "0: choose the best score",
        range="[0, inf)",
    )
    every: int = setting(
        0,
        "steps from one validation to the next; 0: once an epoch; the last step is validated too",
        range="[0, inf)",
    )
    held_out: float = setting(
        0.15,
        "fraction of the training clips to validate on, if the set has no validation part",
        range="(0, 1)",
    )
    max_windows: int = setting(
        0, "most windows of a long clip that are scored; 0: all of it", range="[0, inf)"
    )
    precision: str = setting("fp32", PRECISION, choices=NETWORK_PRECISIONS)
    batch_seconds: float = setting(
        0.0, "seconds of audio scored at once; 0: 20, on a GPU 600", range="[0, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class Events(EventRules):
    """Events in the recordings, where the clips are spans of recordings."""

    when: str = setting(
        AUTO,
        "when events are scored by onset and offset: always (at each validation, and the test "
        "part), test, or off; auto: test, where each recording is in one part alone, and always "
        "where scoring.metric is of events",
        choices=(AUTO, "always", "test", "off"),
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """`ssmast finetune`: an encoder and labels to a classifier."""

    data: str = setting(
        "",
        "labelled set (a folder with metadata.csv of path, label, and split or fold; or a folder "
        "of sounds for each class), or a folder of such sets with task=",
        required=True,
    )
    task: str = setting("", "set in `data`: NAME or NAME:label=COLUMN,split=COLUMN,...")
    labels: list[str] = setting([], "label columns, one head for each; empty: as the set says")
    fold: str = setting("", "fold to test on; empty: the first")
    model: str = setting("", "as in `ssmast pretrain`; empty: that of init=, else mast_nano")
    init: str = setting(
        AUTO,
        "initial weights, as in `ssmast pretrain`; none: from scratch; auto: default, the encoder "
        "that comes with the package, where the model is its own",
    )
    pooling_schedule: str = setting(
        "",
        "strides of MAST's stages, for the ablation; all: one run for each; empty: the model's own",
        choices=(*SCHEDULES, "all"),
    )
    epochs: float = setting(
        0.0, "passes over the data, if steps is 0; 0: by the size of the set", range="[0, inf)"
    )
    batch_size: int = setting(
        0,
        "clips in a step, over all processes and micro-batches; 0: by the size of the set",
        range="0 or [2, inf)",
    )
    show_views: int = setting(
        4, "clips that views.png shows before and after augmentation", range="[0, inf)"
    )
    clips: Clips = setting(Clips)
    heads: Heads = setting(Heads)
    optim: FinetuneOptim = setting(FinetuneOptim)
    scoring: Scoring = setting(Scoring)
    events: Events = setting(Events)
