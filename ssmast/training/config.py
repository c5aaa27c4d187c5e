"""Every key of `ssmast pretrain`, and what all trainings share, with defaults and meanings."""

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmast.settings import CHANNEL, Settings, flat_fields, flatten, parse, require, setting

ALARM_MODES = ("warn", "stop", "off")
RECIPES = Path(__file__).parents[1] / "recipes"
# Objective -> which keys it uses of the sections that not all do: sections, and single keys of
# others. A section stands for all its keys but views.local, which is named where it is used.
_PROJECTOR = ("head.kind", "head.pooling", "head.layers", "head.hidden", "head.dim")
_PROJECTOR += ("head.num_layers", "head.norm")
_DROP = ("patch_drop.rate", "patch_drop.mode")
_USED = {
    "ss_mast": ("views", "views.local", "patch_drop", "head", "loss", "teacher"),
    "ss_mast_mosaic": ("views", *_PROJECTOR, "loss.temperature"),
    "swav": ("views", "views.local", *_DROP, *_PROJECTOR, "swav"),
    "vicreg": ("views", *_DROP, *_PROJECTOR, "vicreg"),
    "barlow_twins": ("views", *_DROP, *_PROJECTOR, "barlow_twins"),
    "dino": (
        *("views", "views.local", "patch_drop", "teacher", "dino"),
        *("head.pooling", "head.layers", "head.hidden", "head.dim"),
    ),
    "ssast": ("views.frames", "views.waveform_augment", "views.transforms", "ssast"),
}
_OF_SOME = {key.partition(".")[0] for used in _USED.values() for key in used}


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """Waveform to log-mel."""

    kind: str = setting(
        "",
        "log_mel; kaldi: the filterbank features of AST, SSAST and PSLA (windows of 25 ms, n_fft "
        "follows); usually with num_mels=128 f_min=20 f_max=8000; empty: that of the weights of a "
        "published AST in init=, else log_mel",
        choices=("log_mel", "kaldi"),
    )
    sample_rate: int = setting(16000, "sample rate in Hz; audio at other rates is resampled")
    n_fft: int = setting(1024, "FFT size in samples")
    hop_length: int = setting(160, "samples from one frame to the next (160 = 10 ms)")
    num_mels: int = setting(128, "mel bins")
    f_min: float = setting(60.0, "lowest mel frequency in Hz")
    f_max: float = setting(7800.0, "highest mel frequency in Hz")
    stats_clips: int = setting(
        1000,
        "clips that mean and std are measured on, unless the corpus was prepared with this front "
        "end and holds them",
        range="[1, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class Views:
    """Two augmented views of each clip."""

    frames: int = setting(
        96, "length of a view in frames (96 = 0.95 s, 1024 = 10.23 s)", range="[8, inf)"
    )
    segments: int = setting(
        2, "2: each view is made of its own random segment; 1: both of the same", range="[1, 2]"
    )
    waveform_augment: float = setting(
        0.3, "probability that the audiomentations chain is applied to a segment", range="[0, 1]"
    )
    transforms: str = setting(
        "", "YAML or JSON file of audiomentations transforms, in place of the built-in chain"
    )
    mixup_rate: float = setting(
        0.2, "largest weight of a background clip that is mixed in (BYOL-A)", range="[0, 1]"
    )
    mixup_memory: int = setting(512, "past clips that backgrounds are drawn from", range="[0, inf)")
    crop_freq: list[float] = setting(
        [1.0, 1.0],
        "random resized crop: smallest and largest height relative to the view, above 1 its whole "
        "height; BYOL-A's [0.6, 1.5] shifts pitch and formants, so the encoder becomes invariant "
        "to them",
        length=2,
    )
    crop_time: list[float] = setting(
        [0.6, 1.5], "random resized crop: smallest and largest width relative to the view", length=2
    )
    columns: float | None = setting(
        None,
        "fraction of the time columns that the student's view 1 loses, whole ones, which saves "
        "time; with rows, in place of patch_drop.rate; auto: 0.5 with ss_mast_mosaic, else 0",
        range="[0, 0.9]",
        auto=True,
    )
    rows: float | None = setting(
        None,
        "fraction of the frequency rows that the student's view 2 loses; auto: as columns",
        range="[0, 0.9]",
        auto=True,
    )
    local: int = setting(
        0,
        "short crops of a clip that the student sees beside the two views, a third of their frames "
        "each (SwAV's multi-crop); with ss_mast, swav and dino",
        range="[0, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class PatchDropConfig:
    """Patches that the student does not get."""

    rate: float = setting(
        0.2, "fraction of patches dropped in pretraining (poster: 0.2)", range="[0, 0.9]"
    )
    mode: str = setting(
        "structured",
        "structured drops whole columns and rows, which saves time; random drops single patches",
        choices=("structured", "random"),
    )
    teacher: bool = setting(False, "drop patches of the teacher's views too")


@dataclass(frozen=True, kw_only=True)
class Head:
    """Projection head on the embedding."""

    kind: str = setting("mlp", "mlp, or linear as in the poster's code", choices=("mlp", "linear"))
    pooling: str = setting(
        "mean", "how tokens are pooled into the input of the head, as export.pooling"
    )
    layers: str = setting("last", "layers that the head gets, as export.layers")
    hidden: int = setting(1024, "width of the hidden layers", range="[1, inf)")
    dim: int = setting(256, "size of the projection", range="[1, inf)")
    num_layers: int = setting(3, "linear layers of the mlp", range="[1, inf)")
    norm: str = setting(
        "batch", "normalisation between the layers", choices=("batch", "layer", "none")
    )
    predictor: int = setting(
        1024, "hidden width of the student's predictor; 0: no predictor", range="[0, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Symmetric InfoNCE."""

    temperature: float = setting(
        0.2, "divides the cosine similarity; smaller is sharper", range="[0.01, inf)"
    )
    learn_temperature: bool = setting(False, "learn the temperature, beginning at this value")
    queue_size: int = setting(
        576, "negatives kept from earlier steps; 0: no queue", range="[0, inf)"
    )
    queue_fraction: float = setting(
        0.1,
        "limit the queue to this fraction of the clips, so that it does not hold the corpus "
        "itself; 0: no limit",
        range="[0, 1]",
    )
    batch_negatives: bool = setting(True, "use the other clips of the batch as negatives too")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Momentum teacher."""

    momentum: float = setting(0.99, "momentum of the moving average at step 0", range="[0, 1]")
    final_momentum: float = setting(
        1.0, "momentum at the last step, reached along a cosine", range="[0, 1]"
    )


@dataclass(frozen=True, kw_only=True)
class SSASTConfig:
    """Masked patches, with objective=ssast."""

    masked: float = setting(
        400 / 512, "fraction of a clip's patches that are masked", range="(0, 1)"
    )
    cluster: list[int] = setting(
        [3, 5],
        "smallest and largest side of the masked squares in patches; [1, 1]: no squares",
        range="[1, inf)",
        length=2,
    )
    weight: float = setting(
        10.0, "weight of the generative loss beside the discriminative one", range="[0, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class SwAVConfig:
    """Swapped prediction of prototypes, with objective=swav."""

    prototypes: int = setting(
        64, "prototypes; fewer than the clips of a batch, which share them evenly", range="[2, inf)"
    )
    temperature: float = setting(
        0.1, "divides the similarity to the prototypes in the prediction", range="[0.01, inf)"
    )
    epsilon: float = setting(0.05, "the same in the codes; larger is softer", range="[0.02, inf)")
    iterations: int = setting(3, "iterations of Sinkhorn's algorithm", range="[1, inf)")


@dataclass(frozen=True, kw_only=True)
class VICRegConfig:
    """Weights of the three terms, with objective=vicreg."""

    invariance: float = setting(25.0, "of the distance of both views", range="[0, inf)")
    variance: float = setting(25.0, "of dimensions that spread less than 1", range="[0, inf)")
    covariance: float = setting(1.0, "of dimensions that go together", range="[0, inf)")


@dataclass(frozen=True, kw_only=True)
class BarlowTwinsConfig:
    """Cross-correlation of both views, with objective=barlow_twins."""

    redundancy: float = setting(0.005, "weight of what lies off its diagonal", range="[0, inf)")


@dataclass(frozen=True, kw_only=True)
class DINOConfig:
    """Self-distillation with a centred teacher, with objective=dino."""

    outputs: int = setting(1024, "outputs of the heads", range="[2, inf)")
    temperature: float = setting(0.1, "of the student's outputs", range="[0.01, inf)")
    teacher_temperature: float = setting(0.04, "of the teacher's outputs", range="[0.01, inf)")
    center_momentum: float = setting(
        0.9, "momentum of the mean that the teacher's outputs are centred by", range="[0, 1]"
    )


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimiser and its schedule: linear warm-up, then cosine."""

    name: str = setting(
        "adamw",
        "optimiser; muon moves the encoder's matrices by an orthogonal step, all else as adamw",
        choices=("adamw", "muon", "sgd"),
    )
    lr: float = setting(5e-4, "peak learning rate", range="(0, 10)")
    min_lr: float = setting(1e-6, "learning rate at the last step", range="[0, 10]")
    warmup: float = setting(0.1, "fraction of the steps spent warming up", range="[0, 1)")
    weight_decay: float = setting(
        0.05, "weight decay of matrices; norms, biases and positions have none", range="[0, inf)"
    )
    betas: list[float] = setting(
        [0.9, 0.95], "AdamW's two decay rates", range="[0, 0.99999]", length=2
    )
    momentum: float = setting(0.9, "momentum of SGD and of Muon", range="[0, 0.99999]")
    max_grad_norm: float = setting(
        3.0, "gradients of a larger norm are scaled down to it; 0: no clipping", range="[0, inf)"
    )
    gradient_accumulation_steps: int = setting(
        1,
        "micro-batches that each process splits its part of a batch into, to save memory; the loss "
        "still compares all clips of the batch",
        range="[1, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class Export:
    """What `encoder/` holds at the end."""

    network: str = setting("", "network to export: student or teacher; empty: the usual one")
    pooling: str = setting(
        "freq+max",
        "how tokens are pooled into the embedding, joined by +: mean, max, freq (time mean of each "
        "frequency row), std (over time, of each row), time2 and time4 (means of that many parts "
        "of the clip); with AST also cls",
    )
    layers: str = setting(
        "last",
        "layers that are pooled: last, stages, blocks, or numbers of stages such as 2-3 (of an "
        "AST: of blocks)",
    )
    window_seconds: float = setting(
        10.0, "longer audio is embedded in windows of this many seconds", range="[0.1, inf)"
    )
    whiten: int = setting(
        0,
        "directions of the largest variance that embeddings are whitened along, as clips of the "
        "run have it at its end; 0: none",
        range="[0, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class ProbeWhileTraining:
    """Scores of the encoder on a small labelled set while it trains."""

    data: str = setting("", "labelled set, or a folder of them; empty: no scores")
    tasks: str = setting("all", "all, or [a,b:label=COLUMN,split=COLUMN] as in `ssmast probe`")
    every: int = setting(
        200,
        "steps from one score to the next; step 0 and the last are scored too",
        range="[1, inf)",
    )
    max_clips: int = setting(
        600, "clips used of each set, evenly over its classes; never its test part",
        range="[1, inf)",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """What every training command has: where, how long, how often, and the parts that last."""

    recipe: str = setting("", "name of a recipe, or a YAML file with these keys")
    data: str = setting("", "the clips")
    channel: str = setting("mean", CHANNEL)
    run: str = setting("", "run folder; empty: runs/RECIPE, with a number if that exists")
    model: str = setting(
        "mast_nano",
        "mast_nano, mast_micro, mast_tiny, mast_small, mast_base, mast_large; ast_nano, ast_tiny, "
        "ast_small, ast_base; ssast_nano, ssast_base, ssast_frame_nano, ssast_frame_base",
    )
    init: str = setting(
        "none",
        "initial weights: none (random), default (the encoder that comes with the package), "
        "imagenet, a .safetensors of timm's MViTv2 or of an AST, an encoder or a run folder",
    )
    steps: int = setting(0, "optimiser steps; 0: as many as `epochs` takes", range="[0, inf)")
    epochs: float = setting(10.0, "passes over the data, if steps is 0")
    batch_size: int = setting(
        96, "clips in a step, over all processes and micro-batches", range="[2, inf)"
    )
    workers: int = setting(
        2, "processes that read audio, for each training process", range="[0, inf)"
    )
    seed: int = setting(0, "seed of every random choice")
    checkpoint_every: int = setting(
        200, "steps from one checkpoint to the next; 0: only at the end", range="[0, inf)"
    )
    keep_checkpoints: int = setting(2, "newest checkpoints that are kept", range="[1, inf)")
    resume: str = setting(
        "never", "never, auto (from the newest valid checkpoint, if any), or a checkpoint folder"
    )
    processes: int = setting(
        0, "processes that must take part; 0: as many as were launched", range="[0, inf)"
    )
    precision: str = setting(
        "auto",
        "arithmetic of the network; auto: on a GPU bf16 from compute capability 8.0 on, fp16 with "
        "scaled gradients on 7.x, else fp32; on a CPU that multiplies bfloat16 (`ssmast doctor` "
        "says it) bf16 is faster",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    compile: str = setting(
        "false",
        "compile encoder, heads and loss (torch.compile, which takes minutes at the start); auto: "
        "on a GPU that Triton knows",
        choices=("false", "true", "auto"),
    )
    tf32: bool = setting(
        False, "let float32 products and convolutions on a GPU round their inputs to TF32"
    )
    deterministic: bool = setting(
        False, "the same command gives the same bits on a GPU too (on a CPU it always does); slower"
    )
    cudnn_attention: bool = setting(
        True,
        "let PyTorch choose cuDNN's attention on a GPU; false: FlashAttention, or the "
        "memory-efficient kernel where that does not fit",
    )
    threads: int = setting(
        0, "CPU threads of a process; 0: its part of the cores", range="[0, inf)"
    )
    log_every: int = setting(
        10, "steps from one line of metrics.jsonl to the next", range="[1, inf)"
    )
    cache: str = setting("auto", "keep decoded audio on disk: auto (up to 8 GB), off, or a folder")
    max_bad_fraction: float = setting(
        0.1, "stop if more than this fraction of the clips is unreadable", range="[0, 1]"
    )
    tensorboard: bool = setting(True, "write TensorBoard events beside metrics.jsonl")
    track: str = setting(
        "", "also send settings and curves to a tracker; its own variables say where to",
        choices=("", "trackio", "wandb", "mlflow", "tensorboard"),
    )  # fmt: skip
    max_skipped: int = setting(
        5, "stop after this many steps in a row with a non-finite loss or gradient",
        range="[1, inf)",
    )  # fmt: skip
    drop_path: float = setting(0.0, "stochastic depth of the network", range="[0, 1]")
    grad_checkpointing: bool = setting(
        False, "recompute the encoder's blocks in the backward pass: less memory, a third more time"
    )
    front_end: FrontEnd = setting(FrontEnd)
    optim: Optim = setting(Optim)

    def __post_init__(self) -> None:
        """Refuse a rate that would rise; one of 0 is chosen later."""
        super().__post_init__()
        lr, last = self.optim.lr, self.optim.min_lr
        wanted = f"at most optim.lr={lr:g}, or the rate would rise"
        require(not lr or last <= lr, "optim.min_lr", last, wanted)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """`ssmast pretrain`: every key of every objective in the package."""

    objective: str = setting(
        "ss_mast",
        "ss_mast (student, teacher, queue), ss_mast_mosaic (views that lost other lines each, no "
        "teacher), swav, vicreg, barlow_twins, dino, or ssast (masked patches, for ssast_* "
        "models); keys that it does not use must be left alone",
    )
    data: str = setting(
        "",
        "folder, list, CSV, tar(s), prepared corpus or URL of audio; or a mixture: a .yaml file or "
        "[{path: A, weight: 3}, {path: B, weight: 1}]; empty: the built-in corpus",
    )
    clip_seconds: float = setting(
        10.0,
        "files of over a minute are read as clips of so many seconds; 0: as they are",
        range="[0, inf)",
    )
    spans: str = setting(
        "auto",
        "of recordings with annotations: the annotated spans or the whole recordings; auto: spans "
        "where data is a table of them, whole where tables lie beside the recordings",
        choices=("auto", "spans", "whole"),
    )
    alarm: str = setting(
        "warn", "what to do when training fails, such as by collapse", choices=ALARM_MODES
    )
    show_views: int = setting(
        4, "clips whose views are drawn into views.png and the report", range="[0, inf)"
    )
    views: Views = setting(Views)
    patch_drop: PatchDropConfig = setting(PatchDropConfig)
    head: Head = setting(Head)
    loss: Loss = setting(Loss)
    teacher: TeacherConfig = setting(TeacherConfig)
    ssast: SSASTConfig = setting(SSASTConfig)
    swav: SwAVConfig = setting(SwAVConfig)
    vicreg: VICRegConfig = setting(VICRegConfig)
    barlow_twins: BarlowTwinsConfig = setting(BarlowTwinsConfig)
    dino: DINOConfig = setting(DINOConfig)
    export: Export = setting(Export)
    probe: ProbeWhileTraining = setting(ProbeWhileTraining)

    def __post_init__(self) -> None:
        """Refuse keys that do not go together."""
        super().__post_init__()
        require(self.steps > 0 or self.epochs > 0, "epochs", self.epochs, "above 0, or give steps")
        wanted = "above 0 with views.transforms, or nothing is transformed"
        is_used = bool(self.views.waveform_augment or not self.views.transforms)
        require(is_used, "views.waveform_augment", self.views.waveform_augment, wanted)
        size, wanted = self.loss.queue_size, "above 0 with loss.batch_negatives=false"
        require(size > 0 or self.loss.batch_negatives, "loss.queue_size", size, wanted)
        low, high = self.ssast.cluster
        require(low <= high, "ssast.cluster", [low, high], "two rising numbers, such as [3, 5]")
        rate = self.patch_drop.rate
        if any((self.views.columns or 0, self.views.rows or 0)) and rate != PatchDropConfig.rate:
            wanted = "0 or left alone with views.columns or views.rows, which take its place"
            require(rate == 0, "patch_drop.rate", rate, wanted)
        frames, wanted = self.views.frames, "at least 24 with views.local, which are a third of it"
        require(not self.views.local or frames >= 24, "views.frames", frames, wanted)
        if self.objective == "ss_mast_mosaic":
            wanted = "above 0, or views.rows, with objective=ss_mast_mosaic"
            require(any(self.lost_lines), "views.columns", self.views.columns, wanted)
        if self.objective in _USED:
            self._check_unused(_USED[self.objective])

    @property
    def lost_lines(self) -> tuple[float, float]:
        """Fractions of the columns that view 1 loses and of the rows that view 2 loses."""
        usual = 0.5 if self.objective == "ss_mast_mosaic" else 0.0
        columns, rows = self.views.columns, self.views.rows
        return usual if columns is None else columns, usual if rows is None else rows

    def _check_unused(self, used: tuple[str, ...]) -> None:
        """Refuse what was asked for and means nothing to the objective."""
        for name, key in flat_fields(PretrainConfig).items():
            section = name.partition(".")[0]
            is_used = name in used or (section in used and name != "views.local")
            if section not in _OF_SOME or is_used:
                continue
            asked, off = operator.attrgetter(name)(self), name == "patch_drop.rate"
            wanted = f"left alone by objective={self.objective}, which does not use it"
            require(asked == key.default or (off and asked == 0), name, asked, wanted)


def stored_config(stored: Mapping[str, Any], *, data: str = "", command: str) -> PretrainConfig:
    """Settings that a run was pretrained with; keys of an own objective, which decide no audio, go.

    They are nested, as config.yaml has them; `data` is the audio where it has moved since.
    """
    known = flat_fields(PretrainConfig)
    found = {key: value for key, value in flatten(stored).items() if key in known}
    found |= {"data": data} if data else {}
    words = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in found.items()]
    config = parse(PretrainConfig, words, command=command)
    assert config is not None, "no word is a flag"
    return config
