"""What an objective is: its networks, what they are fed, and the loss of a whole step.

The loop (`step.py`, `loop.py`) owns the rest: micro-batches, the gradient through them, several
processes, precision, the optimiser, checkpoints, alarms. So an objective is exact under gradient
accumulation and on several processes by construction, and a new one is one small file:
docs/objectives.md. All that such a file needs can be imported from here.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from lightly.models.modules.heads import ProjectionHead
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from ssmast.audio import Corpus, LogMel, MixedSegments, SegmentDataset
from ssmast.audio.segments import SegmentBatch, sent
from ssmast.contrastive.monitors import effective_rank, feature_std
from ssmast.encoder import Encoder
from ssmast.evaluation.embed import measured_whitening
from ssmast.model import Backbone, LoadReport
from ssmast.report import write_report
from ssmast.settings import UsageError, to_dict
from ssmast.training.config import PretrainConfig, TrainConfig
from ssmast.training.init_weights import (
    find_weights,
    published_front_end,
    read_weights,
    start_encoders_,
    write_init_json,
)
from ssmast.training.inputs import (
    build_backbone,
    build_log_mel,
    check_enough,
    check_model,
    embedding_dim,
    front_end_like,
    open_data,
    projector_of,
    segments_of,
)
from ssmast.training.online_probe import OnlineProbe, Watcher, small_tasks
from ssmast.training.optim import PassWeights, decay_groups
from ssmast.training.views import TwoViews, ViewMaker, build_memory
from ssmast.version import __version__

# Student and teacher, with and without gradient, full and thinned views, short crops.
MOST_GRAPHS = 16

Config = TypeVar("Config", bound=TrainConfig)
Views = TypeVar("Views")
Loss = TypeVar("Loss", bound="StepLoss")


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The clips that a run trains on.

    Attributes:
        clips: the corpus.
        log_mel: front end with mean and std where it comes with the weights; None: to be measured.
    """

    clips: Corpus
    log_mel: LogMel | None = None

    @property
    def labels_sha256(self) -> str:
        """Of labels and their splits, which a resumed run must not find changed; empty for none."""
        return ""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run knows when its networks are built.

    Attributes:
        log_mel: front end with mean and std.
        num_clips: clips that are trained on.
        steps: optimiser steps of the whole run.
        data: what `open_data` gave.
    """

    log_mel: LogMel
    num_clips: int
    steps: int
    data: TrainingData | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where in the run a loss is asked for.

    Attributes:
        number: optimiser steps done before this one.
        ids: clip of each row, int64, on the device of the networks.
        gather: rows (B, ...) of this process -> those of all processes, one after the other.
    """

    number: int
    ids: Tensor
    gather: Callable[[Tensor], Tensor]


@dataclass(kw_only=True)
class StepLoss:
    """What `Objective.loss` gives; a subclass adds what `after_step` and `numbers` need.

    With `per_clip`, single numbers are averaged over micro-batches and processes, and tensors of
    rows put one after the other.

    Attributes:
        loss: what is minimised, with its graph.
        accuracy: share (0..1) of what is to be found that is found; None if nothing is looked for.
        chance_loss: loss of guessing; None if that is not known.
        embeddings: rows (N, E) whose rank and spread are watched; None: those of `embed`.
    """

    loss: Tensor
    accuracy: Tensor | None = None
    chance_loss: Tensor | None = None
    embeddings: Tensor | None = None


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


class Objective(nn.Module, Generic[Config, Views, Loss]):
    """Networks and a loss; a subclass says at least what `__init__` builds and `loss` computes.

    It is a module: parameters are trained, and everything else that its `state_dict` holds
    (averages of weights, buffers, queues) is placed, saved and restored with them. What must not
    be trained has `requires_grad` False. A constructor runs on the meta device once before any
    audio is read, to refuse what cannot be built.

    Args:
        config: settings of the run.
        run: what else is known by then.

    Attributes:
        settings: dataclass of the keys; a subclass of `PretrainConfig` may add some of its own.
        num_segments: random segments of each clip in a batch.
        per_clip: the loss is a mean over clips that know nothing of each other, so it may be
            computed a micro-batch at a time and the encoder sees each clip once.
        backbone: the encoder that learns, for the methods here that use it.
        mixup_memory: log-mels of earlier steps that views mix in.
    """

    settings: ClassVar[type[TrainConfig]] = PretrainConfig
    num_segments: ClassVar[int] = 2
    per_clip: ClassVar[bool] = False

    backbone: Backbone

    def __init__(self, config: Config, run: RunFacts) -> None:
        super().__init__()
        torch.manual_seed(config.seed)  # the same first weights on every process
        self.config, self.run, self.log_mel = config, run, run.log_mel
        self.make_views: ViewMaker | None = None
        self.embed_backbone: Callable[..., Tensor] = _embed
        if isinstance(config, PretrainConfig) and self.num_segments == 2:
            self.mixup_memory = build_memory(config)
            self.make_views = ViewMaker(config, log_mel=self.log_mel, memory=self.mixup_memory)

    @property
    def _pretraining(self) -> PretrainConfig:
        """The settings, for what all pretraining does alike and fine-tuning in its own way."""
        return cast(PretrainConfig, self.config)

    # -- before a run ----------------------------------------------------------------------------

    @classmethod
    def resolve(cls, config: Config) -> Config:
        """The settings with everything written out that they leave open.

        Raises:
            UsageError: if another front end is asked for than `init` was trained with.
        """
        own = published_front_end(config.init, config.model)
        return config if own is None else replace(config, front_end=front_end_like(config, own))

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse what cannot be run, before hours may pass in reading the corpus."""
        check_model(config.model)
        run = RunFacts(log_mel=build_log_mel(config), num_clips=1 << 40, steps=1)
        with torch.device("meta"):
            objective = cls(config, run)
        objective.exported_network()
        probe = cast(PretrainConfig, config).probe
        if probe.data:
            small_tasks(probe.data, tasks=probe.tasks, max_clips=probe.max_clips)

    @classmethod
    def find_start(cls, config: Config) -> Path | None:
        """File or folder of the weights that `init` names; None for random ones. May download."""
        return find_weights(config.init, config.model)

    @classmethod
    def open_data(cls, config: Config, *, runs: Path) -> TrainingData:
        """The corpus of `data=`, or the built-in one in the folder of runs."""
        settings = cast(PretrainConfig, config)
        clips = open_data(settings, runs=runs)
        check_enough(settings, clips)
        return TrainingData(clips=clips, log_mel=published_front_end(config.init, config.model))

    @classmethod
    def frames(cls, config: Config) -> int:
        """Frames of an input, which mean and std are measured on."""
        return cast(PretrainConfig, config).views.frames

    @classmethod
    def items(
        cls, config: Config, source: Corpus, data: TrainingData | None
    ) -> SegmentDataset | MixedSegments:
        """The segments of the clips (`source`, perhaps a cache), by position in the stream."""
        return segments_of(
            cast(PretrainConfig, config),
            source,
            num_samples=build_log_mel(config).samples(cls.frames(config)),
            num_segments=cls.num_segments,
        )

    # -- one step --------------------------------------------------------------------------------

    @torch.no_grad()
    def views(self, segments: SegmentBatch, step: int) -> Views:
        """What the networks are fed of a micro-batch; here `TwoViews`.

        Every draw must follow from the seed, `segments` and the step, as those of `make_views` do.

        Args:
            segments: waveforms (B, `num_segments`, S) and which clips they are.
            step: optimiser steps done.
        """
        assert self.make_views is not None
        student = self.encoders()["student"]
        return cast(Views, self.make_views(segments, step=step, backbone=student))

    def sent(self, *tensors: Tensor) -> list[Tensor]:
        """Tensors of the CPU where the networks are; a GPU gets all in one copy, unwaited for."""
        return sent(*tensors, device=self.log_mel.filterbank.device)

    def before_step(self, views: list[Views], step: Step) -> None:
        """What has to be set before the step, of the views of all its micro-batches."""

    def embed(self, views: Views) -> Tensor:
        """The part with a gradient that knows single clips, (B, ...); here (B, 2, E).

        With `views.local` there are as many more rows of E. It runs under autocast. Called twice it
        must give the same: of all micro-batches but the last it is computed again for the gradient.
        """
        return self.embed_views(self.backbone, cast(TwoViews, views))

    def embed_views(
        self, backbone: Backbone, views: TwoViews, *, drops: bool = True, local: bool = True
    ) -> Tensor:
        """Embeddings (B, 2, E) of both views, pooled as `head.pooling` and `head.layers` say.

        Args:
            backbone: encoder.
            views: of a micro-batch.
            drops: leave out the patches that are dropped.
            local: embed the short crops too, behind both views: (B, 2 + `views.local`, E).
        """
        inputs = list(views.log_mels)
        dropped = list(views.drops) if drops else [None, None]
        if dropped == [None, None] and not torch.is_grad_enabled():  # in one pass, in half the time
            inputs, dropped = [torch.cat(inputs)], [None]
        if local and views.local:  # of one length, so in one pass
            inputs.append(torch.cat(views.local))
            dropped.append(None)
        head = self._pretraining.head
        rows: list[Tensor] = []
        weights = self._weights_of_passes(backbone, len(inputs))
        for log_mel, drop, own in zip(inputs, dropped, weights, strict=True):
            with own:
                pooled = self.embed_backbone(
                    backbone, log_mel, layers=head.layers, pooling=head.pooling, patch_drop=drop
                )
            rows += pooled.split(len(views.raw))
        return torch.stack(rows, dim=1)

    def _weights_of_passes(self, network: nn.Module, passes: int) -> list[Any]:
        """Contexts of the passes through a network: on a GPU, where kernels are many, and eager."""
        if not self.log_mel.filterbank.is_cuda or self.embed_backbone is not _embed:
            return [contextlib.nullcontext()] * passes
        weights = PassWeights(network, passes)
        return [weights.of(number) for number in range(passes)]

    def targets(self, views: Views) -> Any:
        """What a loss compares with and no gradient reaches: rows (B, ...), or None.

        It runs under autocast and without gradient. With `per_clip` it may be anything.
        """
        return None

    def loss(self, embeddings: Tensor, targets: Any, step: Step) -> Loss:
        """Loss of all rows of the step: of all its micro-batches and processes.

        Heads belong here: they may normalise over the batch. It runs in float32, without autocast,
        with the same values on every process.

        Args:
            embeddings: (G, ...) of `embed`, float32; with `per_clip` of one micro-batch.
            targets: (G, ...) of `targets`, float32; with `per_clip` of one micro-batch.
            step: where in the run.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what its loss is")

    def after_step(self, loss: Loss, views: list[Views], step: Step) -> None:
        """What moves after the optimiser has: averages, queues; not called for a skipped step.

        The loss is without its graph, the views are of this process' micro-batches.
        """
        if self.make_views is not None and len(views) and isinstance(views[0], TwoViews):
            raw = [cast(TwoViews, micro).raw for micro in views]
            self.mixup_memory.enqueue_(step.gather(torch.cat(raw)))

    def momentum(self, step: int) -> float:
        """A teacher's momentum after `step` steps, as the keys `teacher.*` say.

        Source: Grill et al. 2020 (BYOL), section 3.3.
        """
        teacher = self._pretraining.teacher
        return cosine_schedule(step, self.run.steps, teacher.momentum, teacher.final_momentum)

    @torch.no_grad()
    def numbers(self, loss: Loss, step: int) -> dict[str, float]:
        """What metrics.jsonl says of a step; asked for at logged steps alone.

        The alarm reads `rank_embedding` and `feature_std`, and `accuracy`, `loss` and `chance_loss`
        where they are known.
        """
        known = {"loss": loss.loss, "chance_loss": loss.chance_loss, "accuracy": loss.accuracy}
        found = {name: float(value) for name, value in known.items() if value is not None}
        if loss.embeddings is not None:
            found["rank_embedding"] = effective_rank(loss.embeddings)
            found["feature_std"] = feature_std(loss.embeddings)
        return found

    def compile_(self) -> None:
        """Compile what a step computes, in whole graphs; here the encoder and all heads.

        Neither weights nor their names change, and the encoder that is exported is none of what is
        compiled. Each size has a graph of its own (structured patch-drop has a few; the inductor
        fails on some of them as symbols), up to `MOST_GRAPHS` for each network; more is an error.
        """
        torch._dynamo.config.recompile_limit = MOST_GRAPHS
        self.embed_backbone = torch.compile(_embed, fullgraph=True, dynamic=False)
        for module in self.modules():
            if isinstance(module, ProjectionHead):
                module.compile(fullgraph=True, dynamic=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser moves; a group's `lr_scale` multiplies the learning rate."""
        return decay_groups(self, weight_decay=self.config.optim.weight_decay)

    # -- the networks ----------------------------------------------------------------------------

    def build_backbone(self) -> Backbone:
        """The encoder of `model=` with fresh weights."""
        return build_backbone(self._pretraining)

    @property
    def embedding_dim(self) -> int:
        """Length E of what `embed_views` gives of `backbone`."""
        return embedding_dim(self._pretraining, self.backbone)

    def build_projector(self) -> nn.Module:
        """Head on the embedding of `backbone`, as the keys `head.*` say, with fresh weights."""
        return projector_of(self._pretraining, self.backbone)

    def encoders(self) -> dict[str, Backbone]:
        """Networks that can be exported, by name, the usual one first; "student" is the trained."""
        return {"student": self.backbone}

    def exported_network(self) -> str:
        """Name of the network to export: `export.network`, or the first that there is.

        Raises:
            UsageError: if there is none of that name.
        """
        config, names = self._pretraining, list(self.encoders())
        asked, who = config.export.network, config.objective
        if asked and asked not in names:
            raise UsageError(f"export.network must be {' or '.join(names)}: {who} has no {asked}")
        return asked or names[0]

    def encoder_places(self) -> dict[str, dict[str, str]]:
        """Where a checkpoint holds each encoder: its file, and the beginning of the names there.

        Raises:
            ValueError: if one is none of the modules, so that no checkpoint would hold it.
        """
        names = {id(module): name for name, module in self.named_modules()}
        places = {}
        for network, backbone in self.encoders().items():
            if id(backbone) not in names:
                raise ValueError(
                    f"{type(self).__name__}.encoders() names {network}, which is no attribute of "
                    "the objective; make it one, so that it is saved"
                )
            file, _, rest = names[id(backbone)].partition(".")
            places[network] = {"file": file, "prefix": f"{rest}." if rest else ""}
        return places

    def start_from_(self, source: Path, about: Path | None) -> LoadReport:
        """Put weights into all encoders alike; everything else stays random.

        Args:
            source: what `find_start` found.
            about: init.json to write, which says what became of every tensor; None for none.

        Raises:
            ValueError: if they are of another model or do not fit.
        """
        weights = read_weights(source)
        report = start_encoders_(
            self.encoders().values(), weights, model=self.config.model, log_mel=self.log_mel
        )
        if about is not None:
            place = self.encoder_places()["student"]
            prefix = f"{place['file']}.{place['prefix']}"
            write_init_json(about, report, weights, self, prefix=prefix)
        return report

    # -- what a run looks like, and what it leaves -----------------------------------------------

    def watcher(self, history: list[dict[str, Any]]) -> Watcher | None:
        """The probe while training, of the encoder that would be exported; None if not wanted."""
        probe = self._pretraining.probe
        if not probe.data:
            return None
        return OnlineProbe(
            data=probe.data,
            tasks=probe.tasks,
            every=probe.every,
            max_clips=probe.max_clips,
            make_encoder=lambda: self.encoder({}),
            channel=self.config.channel,
            history=history,
        )

    def panels(self, segments: SegmentBatch, step: int, *, clips: int) -> list[list[Panel]]:
        """Pictures of the first clips of a batch, one row each; none here: its views are drawn."""
        return []

    def picture_title(self, step: int) -> str:
        """Above the picture of `panels`."""
        config = self._pretraining
        size = f"{config.views.frames} frames x {config.front_end.num_mels} mel bins"
        columns, rows = config.lost_lines
        rate = f"patch_drop.rate={config.patch_drop.rate:g}"
        if columns or rows:
            rate = f"views.columns={columns:g}, views.rows={rows:g}"
        return f"{type(self).__name__}, step {step}, seed {config.seed}: {size}, {rate}"

    def encoder(self, facts: dict[str, Any]) -> Encoder:
        """The encoder to export: the network that was chosen, front end and pooling together."""
        network, export = self.exported_network(), self._pretraining.export
        return Encoder(
            self.encoders()[network],
            self.log_mel,
            pooling=export.pooling,
            layers=export.layers,
            window_seconds=export.window_seconds,
            info={**facts, "network": network, "version": __version__},
        )

    def finish(self, run: Path, facts: dict[str, Any], *, is_main: bool) -> None:
        """Write encoder/ and report.html of a run folder; all processes call it."""
        if is_main:
            encoder = self.encoder({**facts, "settings": to_dict(self.config)})
            directions, data = self._pretraining.export.whiten, self.run.data
            if directions and data is not None:
                encoder.whitening = measured_whitening(
                    encoder, data.clips, directions=directions, seed=self.config.seed
                )
            encoder.save(run / "encoder")
            write_report(run / "report.html", run=run)


def _embed(backbone: Backbone, log_mel: Tensor, **words: Any) -> Tensor:
    """`backbone.embed`, of whichever backbone: what `compile=` makes one graph of."""
    return backbone.embed(log_mel, **words)
