"""Every key of `ssmast finetune`, with its default and its meaning."""

import math
from dataclasses import dataclass
from typing import TypeVar

from ssmast.settings import ANY, SHARE, in_range, require, setting
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

_RANGES = {
    "epochs": ANY, "show_views": ANY, "clips.waveform_augment": SHARE,
    "clips.mixup_rate": SHARE, "clips.time_shift": ANY, "clips.noise_std": ANY,
    "clips.freq_mask": ANY, "clips.time_mask": ANY, "heads.freeze": SHARE,
    "optim.swa_fraction": SHARE, "scoring.one_se_rule": ANY, "scoring.every": ANY,
    "scoring.max_windows": ANY, "scoring.batch_seconds": ANY,
}  # fmt: skip


def settled(value: Value | None) -> Value:
    """A key that may be left open, of a config that `finetune_setup.sized` has settled."""
    assert value is not None
    return value


@dataclass
class Clips:
    """One clip -> one augmented input."""

    frames: int = setting(
        1024, "frames of an input (96 = 0.95 s, 1024 = 10.23 s); 0: by the length of the clips"
    )
    balanced: bool = setting(False, "draw clips so that all classes come alike")
    waveform_augment: float = setting(0.0, "probability of the audiomentations chain")
    mixup_rate: float | None = setting(
        0.0, "probability that another clip is mixed in; auto: by the size of the set"
    )
    mixup_alpha: float = setting(10.0, "its share is drawn from Beta(alpha, alpha)")
    time_shift: int = setting(0, "most frames that a clip is rolled by, either way")
    noise_std: float = setting(0.0, "largest std of the noise added to the log-mel")
    freq_mask: int | None = setting(
        0, "widest SpecAugment mask in mel bins; auto: by the size of the set"
    )
    time_mask: int = setting(0, "widest SpecAugment mask in frames")


@dataclass
class Heads:
    """Tokens -> class scores."""

    pooling: str = setting(
        "",
        "mean, mean+max, freq+max or attention, of AST also cls; empty: that of init='s encoder, "
        "else mean, of AST cls",
    )
    dropout: float = setting(0.0, "before the linear layers")
    smoothing: float | None = setting(
        0.0, "label smoothing of the cross-entropy; auto: by the size of the set"
    )
    standardize: bool = setting(
        False, "centre and scale what the heads see by the first batch (folded away at the end)"
    )
    lr_scale: list[float] = setting(
        [1.0],
        "learning rate of the heads over that of the last block: one for all, or one each; []: by "
        "the size of the set",
    )
    probe: bool | None = setting(
        False,
        "with init=: begin as a linear probe of the frozen backbone, at its accuracy; auto: where "
        "the set is small",
    )
    freeze: float = setting(0.0, "share of the steps in which only the heads learn, from the first")


@dataclass
class FinetuneOptim(Optim):
    """AdamW or SGD, with warm-up, cosine and layer-wise decay."""

    lr: float = setting(1e-5, "peak learning rate; 0: by the size of the set and init=")
    min_lr: float = setting(0.0, "learning rate at the last step")
    warmup: float = setting(0.0, "share of the steps spent warming up")
    betas: list[float] = setting([0.9, 0.999], "AdamW's two decay rates")
    max_grad_norm: float = setting(1.0, "largest gradient norm; 0 for no clipping")
    layer_decay: float | None = setting(
        1.0, "learning rate of a block over that of the next; 1: none; auto: by the size of the set"
    )
    ema: float = setting(0.0, "decay of the average of the weights that is scored; 0: none")
    swa_fraction: float = setting(
        0.0, "average the weights of the validations in this last share of the run; 0: none"
    )
    wise_ft_alphas: list[float] = setting(
        [], "with heads.probe: shares of the way from the first weights to the last that compete"
    )


@dataclass
class Scoring:
    """How it is chosen and scored."""

    metric: str = setting("", "number to choose the best by; empty: what suits the labels")
    one_se_rule: float = setting(
        0.0, "standard errors below the highest score within which the lower loss is chosen"
    )
    every: int = setting(0, "steps between validations; 0: once an epoch; always at the end")
    held_out: float = setting(0.15, "share of the training clips to validate on, if there is none")
    max_windows: int = setting(0, "windows of a long clip that are scored; 0: what covers it")
    batch_seconds: float = setting(0.0, "audio scored at once; 0: 20, on a GPU 600")


@dataclass(kw_only=True)
class FinetuneConfig(TrainConfig):
    """`ssmast finetune`: an encoder and labels -> a classifier."""

    data: str = setting(
        "",
        "labelled set (metadata.csv of path,label,split or fold), or a folder of sets with task=",
    )
    task: str = setting("", "set in `data`, NAME or NAME:label=COLUMN,split=COLUMN,...")
    labels: list[str] = setting([], "label columns, one head each; empty: the set's own")
    fold: str = setting("", "fold to test on; empty: the first")
    model: str = setting("", "as in `ssmast pretrain`; empty: that of init=, else mast_nano")
    pooling_schedule: str = setting(
        "",
        "strides of MAST's stages, for the ablation: table1, all_2d, two, one or none; all: one "
        "run each; empty: the model's own",
    )
    epochs: float = setting(0.0, "passes over the data, if steps is 0; 0: by the size of the set")
    batch_size: int = setting(0, "clips a step, over all; 0: by the size of the set")
    show_views: int = setting(4, "clips that views.png shows as they are cut and as they are fed")
    grad_checkpointing: bool = setting(False, "recompute blocks: less memory, a third more time")
    clips: Clips = setting(Clips, "")
    heads: Heads = setting(Heads, "")
    optim: FinetuneOptim = setting(FinetuneOptim, "")  # type: ignore[assignment]
    scoring: Scoring = setting(Scoring, "")

    def __post_init__(self) -> None:
        """Refuse what no run can mean; 0 stands for what the size of the set decides."""
        open_size, open_lr = self.batch_size, self.optim.lr
        self.batch_size, self.optim.lr = open_size or 2, open_lr or 1.0
        super().__post_init__()
        self.batch_size, self.optim.lr = open_size, open_lr
        in_range(self, _RANGES)
        frames = self.clips.frames
        require(frames == 0 or frames >= 8, "clips.frames", frames, "at least 8, or 0")
        smoothing = self.heads.smoothing
        require(smoothing is None or 0 <= smoothing < 1, "heads.smoothing", smoothing, "in [0, 1)")
        require(0 <= self.heads.dropout < 1, "heads.dropout", self.heads.dropout, "in [0, 1)")
        scales = self.heads.lr_scale
        require(all(0 < s < math.inf for s in scales), "heads.lr_scale", scales, "above 0")
        alpha = self.clips.mixup_alpha
        require(0 < alpha < math.inf, "clips.mixup_alpha", alpha, "above 0")
        decay = self.optim.layer_decay
        require(decay is None or 0 < decay <= 1, "optim.layer_decay", decay, "above 0, at most 1")
        require(0 <= self.optim.ema < 1, "optim.ema", self.optim.ema, "in [0, 1)")
        alphas = self.optim.wise_ft_alphas
        require(all(0 < share < 1 for share in alphas), "optim.wise_ft_alphas", alphas, "in (0, 1)")
        share = self.scoring.held_out
        require(0 < share < 1, "scoring.held_out", share, "between 0 and 1")
        known = (*SCHEDULES, "all")
        require(self.pooling_schedule in known, "pooling_schedule", repr(self.pooling_schedule),
                "one of " + ", ".join(name for name in known if name))  # fmt: skip
