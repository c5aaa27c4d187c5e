"""Every key of `ssmast pretrain`, and what all trainings share, with defaults and meanings."""

import math
from dataclasses import dataclass, fields
from pathlib import Path

from ssmast.settings import ANY, SHARE, in_range, one_of, require, setting

ALARM_MODES = ("warn", "stop", "off")
OBJECTIVES = ("ss_mast", "ssast")
_SOME = (1.0, math.inf)
_TRAIN_RANGES = {
    "batch_size": (2.0, math.inf), "steps": ANY, "workers": ANY, "checkpoint_every": ANY,
    "keep_checkpoints": _SOME, "processes": ANY, "threads": ANY, "log_every": _SOME,
    "max_bad_fraction": SHARE, "max_skipped": _SOME, "drop_path": SHARE,
    "front_end.stats_clips": _SOME, "optim.min_lr": (0.0, 10.0), "optim.weight_decay": ANY,
    "optim.betas": (0.0, 0.99999), "optim.momentum": (0.0, 0.99999), "optim.max_grad_norm": ANY,
    "optim.gradient_accumulation_steps": _SOME,
}  # fmt: skip
_PRETRAIN_RANGES = {
    "views.frames": (8.0, math.inf), "views.segments": (1.0, 2.0), "show_views": ANY,
    "views.waveform_augment": SHARE, "views.mixup_rate": SHARE, "views.mixup_memory": ANY,
    "views.fader": ANY, "views.freq_mask": ANY, "views.time_mask": ANY,
    "views.noise_std": ANY, "patch_drop.rate": (0.0, 0.9), "head.hidden": _SOME,
    "head.dim": _SOME, "head.num_layers": _SOME, "head.predictor": ANY,
    "loss.temperature": (0.01, math.inf), "loss.queue_size": ANY, "loss.queue_fraction": SHARE,
    "teacher.momentum": SHARE, "teacher.final_momentum": SHARE,
    "export.window_seconds": (0.1, math.inf), "probe.every": _SOME, "probe.max_clips": _SOME,
}  # fmt: skip
RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass
class FrontEnd:
    """Waveform -> log-mel."""

    sample_rate: int = setting(16000, "Hz; audio at other rates is resampled")
    n_fft: int = setting(1024, "FFT size in samples")
    hop_length: int = setting(160, "samples between frames (160 = 10 ms)")
    num_mels: int = setting(128, "mel bins")
    f_min: float = setting(60.0, "lowest mel frequency in Hz")
    f_max: float = setting(7800.0, "highest mel frequency in Hz")
    stats_clips: int = setting(
        1000, "clips to measure mean and std on; a corpus prepared with this front end knows them"
    )


@dataclass
class Views:
    """One clip -> two augmented views."""

    frames: int = setting(96, "frames of a view (96 = 0.95 s, 1024 = 10.23 s)")
    segments: int = setting(2, "2: each view has a random segment of its own; 1: both share one")
    waveform_augment: float = setting(0.3, "probability of the audiomentations chain per segment")
    mixup_rate: float = setting(0.2, "largest share of a background clip mixed in (BYOL-A)")
    mixup_memory: int = setting(512, "past clips that backgrounds are drawn from")
    crop_freq: list[float] = setting(
        [1.0, 1.0],
        "random resized crop: height, shortest to tallest; BYOL-A's [0.6, 1.5] moves pitch and "
        "formants, and what hears them is unlearnt",
    )
    crop_time: list[float] = setting([0.6, 1.5], "random resized crop: width, shortest to widest")
    canvas: list[float] = setting([1.0, 1.5], "virtual canvas (freq, time) that crops are cut from")
    fader: float = setting(0.0, "largest gain of the random linear fade, in log-mel std")
    freq_mask: int = setting(0, "widest SpecAugment mask in mel bins")
    time_mask: int = setting(0, "widest SpecAugment mask in frames")
    noise_std: float = setting(0.0, "largest std of the noise added to the log-mel")


@dataclass
class PatchDropConfig:
    """Patches the student does not see."""

    rate: float = setting(0.2, "share of patches dropped in pretraining (poster: 0.2)")
    mode: str = setting("structured", "structured (whole columns and rows, saves time) or random")
    teacher: bool = setting(False, "drop patches of the teacher's views too")


@dataclass
class Head:
    """Embedding -> projection."""

    kind: str = setting("mlp", "mlp or linear (the poster's code)")
    pooling: str = setting("mean", "how tokens become the embedding the head sees")
    hidden: int = setting(1024, "width of the hidden layers")
    dim: int = setting(256, "size of the projection")
    num_layers: int = setting(3, "linear layers of the mlp")
    norm: str = setting("batch", "batch, layer or none")
    predictor: int = setting(1024, "hidden width of the student's predictor; 0 for none")


@dataclass
class Loss:
    """Symmetric InfoNCE."""

    temperature: float = setting(0.2, "divides the cosine similarity")
    learn_temperature: bool = setting(False, "let the temperature be learnt")
    queue_size: int = setting(576, "negatives kept from earlier steps; 0 for none")
    queue_fraction: float = setting(
        0.0,
        "keep at most this share of the clips as negatives (0.05: scaled to the corpus); 0: off",
    )
    batch_negatives: bool = setting(True, "use the other clips of the batch as negatives too")


@dataclass
class TeacherConfig:
    """Momentum teacher."""

    momentum: float = setting(0.99, "at the first step")
    final_momentum: float = setting(1.0, "at the last step, reached along a cosine")


@dataclass
class SSASTConfig:
    """Masked patches (objective=ssast)."""

    masked: float = setting(400 / 512, "share of a clip's patches that is hidden")
    cluster: list[int] = setting([3, 5], "sides of the hidden squares in patches; [1, 1]: none")
    weight: float = setting(10.0, "of the generative loss beside the discriminative one")


@dataclass
class Optim:
    """AdamW or SGD, with warm-up and cosine."""

    name: str = setting("adamw", "adamw or sgd")
    lr: float = setting(5e-4, "peak learning rate")
    min_lr: float = setting(1e-6, "learning rate at the last step")
    warmup: float = setting(0.1, "share of the steps spent warming up")
    weight_decay: float = setting(0.05, "for matrices; never for norms, biases, positions")
    betas: list[float] = setting([0.9, 0.95], "AdamW's two decay rates")
    momentum: float = setting(0.9, "SGD's momentum")
    max_grad_norm: float = setting(3.0, "largest gradient norm; 0 for no clipping")
    gradient_accumulation_steps: int = setting(
        1, "micro-batches of a process; the loss sees the whole batch"
    )


@dataclass
class Export:
    """What `encoder/` holds at the end."""

    network: str = setting("teacher", "student or teacher")
    pooling: str = setting(
        "freq+max", "how tokens become the embedding: mean, mean+max, freq+max; of AST also cls"
    )
    layers: str = setting("last", "last, stages or blocks")
    window_seconds: float = setting(10.0, "longer audio is embedded in windows of this length")


@dataclass
class ProbeWhileTraining:
    """A small labelled set that tells now and then what the encoder is worth."""

    data: str = setting("", "labelled set, or a folder of them, to score on while training")
    tasks: str = setting("all", "all, or [a,b:label=COLUMN,split=COLUMN] as in `ssmast probe`")
    every: int = setting(200, "steps between scores; also before the first step and at the end")
    max_clips: int = setting(600, "clips of each set, evenly over its classes; never its test part")


@dataclass(kw_only=True)
class TrainConfig:
    """What every training command has: where, how long, how often, and the parts that last."""

    recipe: str = setting("", "name of a recipe, or a YAML file of these keys")
    data: str = setting("", "the clips")
    run: str = setting("", "run folder; empty: runs/<recipe>, numbered if that exists")
    model: str = setting(
        "mast_nano",
        "mast_nano, _tiny, _small, _base or _large; ast_nano, _tiny, _small or _base; "
        "ssast_nano, _base, _frame_nano or _frame_base",
    )
    init: str = setting(
        "none",
        "weights to start from: none (random), imagenet, a .safetensors of timm's MViTv2 or of an "
        "AST, or an encoder or run folder",
    )
    steps: int = setting(0, "optimiser steps; 0: as many as `epochs` takes")
    epochs: float = setting(10.0, "passes over the data, if steps is 0")
    batch_size: int = setting(96, "clips a step, over all processes and micro-batches")
    workers: int = setting(2, "processes that read audio, for each training process")
    seed: int = setting(0, "every random choice follows from it")
    checkpoint_every: int = setting(200, "steps between checkpoints; 0: only at the end")
    keep_checkpoints: int = setting(2, "newest checkpoints kept")
    resume: str = setting("never", "never, auto (the newest valid checkpoint, if any) or a path")
    processes: int = setting(0, "processes that must take part; 0: as many as were launched")
    precision: str = setting("auto", "fp32, bf16, or auto: bf16 on a GPU that has it")
    threads: int = setting(0, "CPU threads a process; 0: its share of the cores")
    log_every: int = setting(10, "steps between lines of metrics.jsonl")
    cache: str = setting("auto", "keep decoded audio on disk: auto (up to 8 GB), off, or a folder")
    max_bad_fraction: float = setting(
        0.1, "stop if more than this share of the clips is unreadable"
    )
    tensorboard: bool = setting(True, "write TensorBoard events beside metrics.jsonl")
    max_skipped: int = setting(5, "steps in a row with a non-finite loss or gradient that end it")
    drop_path: float = setting(0.0, "stochastic depth of the network, 0 to 1")
    front_end: FrontEnd = setting(FrontEnd, "")
    optim: Optim = setting(Optim, "")

    def __post_init__(self) -> None:
        """Refuse what no run can mean; deeper checks stand where a value is used."""
        in_range(self, _TRAIN_RANGES)
        one_of("optim.name", self.optim.name, ("adamw", "sgd"))
        require(0 < self.optim.lr < 10, "optim.lr", self.optim.lr, "between 0 and 10")
        require(0 <= self.optim.warmup < 1, "optim.warmup", self.optim.warmup, "from 0 to below 1")
        betas = self.optim.betas
        require(len(betas) == 2, "optim.betas", betas, "two numbers")
        one_of("precision", self.precision, ("auto", "fp32", "bf16"))


@dataclass(kw_only=True)
class PretrainConfig(TrainConfig):
    """`ssmast pretrain`: SS-MAST's student, teacher and queue, or SSAST's hidden patches."""

    objective: str = setting(
        "ss_mast",
        "ss_mast, or ssast (of an ssast_* model; reads ssast.*, views.frames and "
        "views.waveform_augment, and none of patch_drop, head, loss, teacher)",
    )
    data: str = setting(
        "",
        "folder, list, CSV, tar(s), prepared corpus or URL of audio, or a mixture: a .yaml file or "
        "[{path: A, weight: 3}, {path: B, weight: 1}]; empty: the built-in corpus",
    )
    alarm: str = setting("warn", "when training fails (see README): warn, stop or off")
    show_views: int = setting(4, "clips whose views are drawn into views.png and the report")
    views: Views = setting(Views, "")
    patch_drop: PatchDropConfig = setting(PatchDropConfig, "")
    head: Head = setting(Head, "")
    loss: Loss = setting(Loss, "")
    teacher: TeacherConfig = setting(TeacherConfig, "")
    ssast: SSASTConfig = setting(SSASTConfig, "")
    export: Export = setting(Export, "")
    probe: ProbeWhileTraining = setting(ProbeWhileTraining, "")

    def __post_init__(self) -> None:
        """Refuse what no run can mean; deeper checks stand where a value is used."""
        super().__post_init__()
        require(self.steps > 0 or self.epochs > 0, "epochs", self.epochs, "above 0, or give steps")
        in_range(self, _PRETRAIN_RANGES)
        size, wanted = self.loss.queue_size, "above 0 with loss.batch_negatives=false"
        require(size > 0 or self.loss.batch_negatives, "loss.queue_size", size, wanted)
        one_of("patch_drop.mode", self.patch_drop.mode, ("structured", "random"))
        one_of("export.network", self.export.network, ("student", "teacher"))
        one_of("alarm", self.alarm, ALARM_MODES)
        one_of("objective", self.objective, OBJECTIVES)
        if self.objective == "ssast":
            self._check_ssast()

    def _check_ssast(self) -> None:
        """Refuse what was asked for and does not exist without views, teacher and queue."""
        masked, cluster = self.ssast.masked, self.ssast.cluster
        require(0 < masked < 1, "ssast.masked", masked, "above 0 and below 1")
        is_range = len(cluster) == 2 and 1 <= cluster[0] <= cluster[1]
        require(is_range, "ssast.cluster", cluster, "two rising numbers from 1, such as [3, 5]")
        require(self.ssast.weight >= 0, "ssast.weight", self.ssast.weight, "0 or more")
        network = self.export.network
        require(network == "student", "export.network", network, "student: ssast has no teacher")
        views = Views(frames=self.views.frames, waveform_augment=self.views.waveform_augment)
        for section, value, default in (
            ("views", self.views, views),
            ("patch_drop", self.patch_drop, PatchDropConfig()),
            ("head", self.head, Head()),
            ("loss", self.loss, Loss()),
            ("teacher", self.teacher, TeacherConfig()),
        ):
            for item in fields(value):
                asked, usual = getattr(value, item.name), getattr(default, item.name)
                key = f"{section}.{item.name}"
                wanted = "left alone by objective=ssast (recipe=ssast_nano and ssast_base do)"
                require(asked == usual, key, asked, wanted)
