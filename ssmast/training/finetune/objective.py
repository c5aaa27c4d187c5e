"""Fine-tuning as an objective: an encoder with heads on labelled clips."""

import copy
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate import PartialState
from torch import Tensor

from ssmast.audio import Corpus, MixedSegments
from ssmast.audio.augment import Augmentations, Mask, Noise, TimeShift
from ssmast.audio.segments import MixedBatch, SegmentBatch
from ssmast.classifier import Classifier, Outputs, classifier_info, window_log_mels
from ssmast.contrastive import ema_update_
from ssmast.encoder import Encoder
from ssmast.evaluation.class_scores import numbers_text, plain_numbers
from ssmast.evaluation.evaluate import part_scores, result_of
from ssmast.evaluation.processes import scoring_seconds
from ssmast.evaluation.results import write_result
from ssmast.model import Backbone, LoadReport, create_model
from ssmast.report import write_report
from ssmast.settings import require, to_dict
from ssmast.training.finetune.network import (
    HEAD_PARTS,
    HeadLayers,
    build_network,
    classification_loss,
    exported,
    features_of,
    fit_heads,
    frozen_features,
    head_scales,
)
from ssmast.training.finetune.selection import KeptWeights, Validation
from ssmast.training.finetune.setup import (
    FinetuneConfig,
    Setup,
    model_arguments,
    resolved,
    set_up,
    training_items,
)
from ssmast.training.init_weights import load_backbone_, read_weights, write_init_json
from ssmast.training.launch import on_main
from ssmast.training.objective import Objective, Panel, RunFacts, Step, StepLoss, TrainingData
from ssmast.training.optim import layer_groups
from ssmast.version import __version__

logger = logging.getLogger(__name__)

RESULT = "test.json"
_AUGMENT_STREAM = 0


class Inputs(NamedTuple):
    """One micro-batch, ready for the network.

    Attributes:
        log_mel: normalised (B, 1, F, T).
        lengths: frames of each clip int64 (B,); None where all have T.
        targets: shares of each class (B, C).
    """

    log_mel: Tensor
    lengths: Tensor | None
    targets: Tensor


@dataclass(kw_only=True)
class LabelledLoss(StepLoss):
    """The loss and the share of clips whose highest score, of every head, is their label."""

    train_accuracy: Tensor


class FineTuning(Objective[FinetuneConfig, Inputs, LabelledLoss]):
    """A network with heads, its moving average, and the weights that validated best.

    Attributes:
        network: backbone with `HeadLayers`.
        ema: average of its weights, or None.
        kept: weights that a validation set aside.
        outputs: classes of each head.
    """

    settings = FinetuneConfig
    num_segments = 1
    per_clip = True

    def __init__(self, config: FinetuneConfig, run: RunFacts) -> None:
        super().__init__(config, run)
        assert isinstance(run.data, Setup)
        self.setup = setup = run.data
        own = config.heads.pooling
        like = None if own else setup.encoder
        self.network = build_network(
            config.model,
            sizes=[len(head.classes) for head in setup.found.heads],
            pooling=own if like is None else like.pooling,
            layers="last" if like is None else like.layers,
            arguments=model_arguments(setup),
        )
        self.network.set_grad_checkpointing(config.grad_checkpointing)
        self.features_of, self.classification_loss = features_of, classification_loss
        self._was_frozen: bool | None = None
        averaged = bool(config.optim.ema)
        self.ema = copy.deepcopy(self.network).requires_grad_(False) if averaged else None
        self.kept = KeptWeights(
            num_clips=len(setup.split.valid), standard_errors=config.scoring.one_se_rule
        )
        self.outputs = Outputs(setup.found.heads, setup.found.multi_label)
        clips = config.clips
        self.augment = Augmentations(
            TimeShift(clips.time_shift),
            Noise(clips.noise_std),
            Mask("freq", resolved(clips.freq_mask)),
            Mask("time", clips.time_mask),
        )

    # -- before a run ----------------------------------------------------------------------------

    @classmethod
    def resolve(cls, config: FinetuneConfig) -> FinetuneConfig:
        """Read the set and the encoder's folder, and write out what they decide."""
        wanted = "false or auto with init=none, whose features are random"
        require(not config.heads.probe or config.init != "none", "heads.probe", "true", wanted)
        setup = set_up(config)
        if config.heads.smoothing and setup.found.multi_label:
            logger.warning(
                "heads.smoothing=%g has no effect: it is of the cross-entropy, and the clips of %s "
                "have several labels each",
                *(config.heads.smoothing, setup.found.folder),
            )
        return setup.config

    @classmethod
    def check(cls, config: FinetuneConfig) -> None:
        """Everything was looked at when the set was read."""

    @classmethod
    def open_data(cls, config: FinetuneConfig, *, runs: Path) -> Setup:
        """The labelled set; the clips of its training part."""
        return set_up(config)

    @classmethod
    def frames(cls, config: FinetuneConfig) -> int:
        """Frames of an input."""
        return config.clips.frames

    @classmethod
    def items(
        cls, config: FinetuneConfig, source: Corpus, data: TrainingData | None
    ) -> MixedSegments:
        """One segment a clip, some mixed with another's."""
        assert isinstance(data, Setup)
        return training_items(data, source)

    # -- one step --------------------------------------------------------------------------------

    @torch.no_grad()
    def views(self, segments: SegmentBatch, step: int) -> Inputs:
        """Waveforms (B, S) -> augmented, normalised log-mels and their targets."""
        assert isinstance(segments, MixedBatch)
        device = self.log_mel.filterbank.device
        log_mel, lengths = window_log_mels(
            self.log_mel,
            segments.waveform.to(device, non_blocking=True),
            segments.samples,
            fewest=self.network.fewest_frames,
            fast=True,
        )
        drawn = segments.uniform(self.config.seed, _AUGMENT_STREAM, self.augment.num_draws)
        positions, found = torch.from_numpy(self.setup.split.train), self.setup.found
        own, other = (found.one_hot(positions[clip]) for clip in (segments.clip, segments.partner))
        weight = segments.partner_weight[:, None]
        targets = (1 - weight) * own + weight * other
        targets, drawn, *both = self.sent(targets, drawn, *([] if lengths is None else [lengths]))
        lengths = both[0] if both else None
        return Inputs(self.augment(log_mel, draws=drawn, lengths=lengths), lengths, targets)

    def compile_(self) -> None:
        """The network up to its linear layers, and the loss."""
        self.features_of = torch.compile(features_of, fullgraph=True)
        self.classification_loss = torch.compile(classification_loss, fullgraph=True)

    def before_step(self, views: list[Inputs], step: Step) -> None:
        """Freeze or thaw the backbone; centre and scale what the heads see by the first batch."""
        frozen = step.number < round(self.config.heads.freeze * self.run.steps)
        self.network.train(not frozen)
        if frozen is not self._was_frozen:
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(not frozen or name.startswith(HEAD_PARTS))
            self._was_frozen = frozen
        if self.config.heads.standardize and not self.layers.is_calibrated:
            self._calibrate_(views, step)

    def embed(self, views: Inputs) -> Tensor:
        """Logits of all heads (B, C)."""
        frozen = not self.network.patch_embed.proj.weight.requires_grad
        features = self.features_of(
            self.network, views.log_mel, lengths=views.lengths, frozen=frozen
        )
        return self.layers(features)

    def targets(self, views: Inputs) -> Tensor:
        """Shares of each class (B, C)."""
        return views.targets

    def loss(self, embeddings: Tensor, targets: Tensor, step: Step) -> LabelledLoss:
        """Cross-entropy, the heads' summed; or binary cross-entropy."""
        losses = self.classification_loss(
            embeddings,
            targets,
            sizes=self.outputs.sizes,
            multi_label=self.outputs.multi_label,
            smoothing=resolved(self.config.heads.smoothing),
        )
        hits = self._hits(embeddings.detach(), targets)
        return LabelledLoss(loss=losses.mean(), train_accuracy=hits.mean())

    def after_step(self, loss: LabelledLoss, views: list[Inputs], step: Step) -> None:
        """The average follows."""
        if self.ema is not None:
            done = step.number + 1
            # Smaller in the first steps, so that the random heads are soon forgotten.
            decay = min(self.config.optim.ema, (1 + done) / (10 + done))
            ema_update_(self.ema, self.network, decay)

    def numbers(self, loss: LabelledLoss, step: int) -> dict[str, float]:
        """Loss and training accuracy."""
        return {"loss": float(loss.loss), "train_accuracy": float(loss.train_accuracy)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """By depth, with rates that fall towards the input; the heads have their own."""
        return layer_groups(
            self.network,
            weight_decay=self.config.optim.weight_decay,
            layer_decay=resolved(self.config.optim.layer_decay),
            scales=head_scales(self.config.heads.lr_scale, self.outputs.sizes),
        )

    @torch.no_grad()
    def _calibrate_(self, views: list[Inputs], step: Step) -> None:
        features = [
            features_of(self.network, one.log_mel, lengths=one.lengths, frozen=True).float()
            for one in views
        ]
        self.layers.calibrate_(step.gather(torch.cat(features)))
        self._start_average_()

    def _start_average_(self) -> None:
        """Let the moving average begin at the network as it is."""
        if self.ema is not None:
            self.ema.load_state_dict(self.network.state_dict())

    def _hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """1 for each clip whose highest score, of every head, is its largest share; float (B,).

        A clip with none of the classes is right where every probability is below a half.
        """
        sizes = [targets.shape[1]] if self.outputs.multi_label else self.outputs.sizes
        rows = zip(logits.split(sizes, 1), targets.split(sizes, 1), strict=True)
        right = [
            torch.where(
                wanted.amax(1) > 0,
                wanted.gather(1, own.argmax(1, keepdim=True))[:, 0] >= wanted.amax(1),
                own.amax(1) < 0,
            )
            for own, wanted in rows
        ]
        return torch.stack(right).all(dim=0).float()

    # -- the networks ----------------------------------------------------------------------------

    def encoders(self) -> dict[str, Backbone]:
        """The network that learns; what is kept of it is written at the end."""
        return {"student": self.network}

    @property
    def layers(self) -> HeadLayers:
        """The linear layers of the network."""
        return cast(HeadLayers, self.network.get_classifier())

    @property
    def scored(self) -> Backbone:
        """The network that is validated and kept: the average of the weights where there is one."""
        return self.network if self.ema is None else self.ema

    def classifier(self, network: Backbone) -> Classifier:
        """A network in use."""
        return Classifier(
            network,
            self.log_mel,
            outputs=self.outputs,
            frames=self.config.clips.frames,
            max_windows=self.config.scoring.max_windows,
            precision=self.config.scoring.precision,
        )

    def start_from_(self, source: Path, about: Path | None) -> LoadReport:
        """Weights into the backbone; the heads are fitted to it, or stay random."""
        config, fitted = self.config, resolved(self.config.heads.probe)
        weights = read_weights(source)
        bare = create_model(config.model, num_classes=0, **model_arguments(self.setup))
        report = load_backbone_(bare, weights, model=config.model, log_mel=self.log_mel)
        missing, left_over = self.network.load_state_dict(bare.state_dict(), strict=False)
        assert not left_over
        assert all(name.startswith(HEAD_PARTS) for name in missing)
        if fitted:
            self._fit_heads_()
        self._start_average_()
        if about is not None:
            write_init_json(
                about, report, weights, self.network, prefix="", heads=HEAD_PARTS, fitted=fitted
            )
        return report

    def _fit_heads_(self) -> None:
        """Let the heads begin as linear probes of the backbone as it is."""
        setup = self.setup
        features, places = frozen_features(
            self.classifier(self.network),
            setup.found,
            setup.corpus,
            setup.split,
            batch_seconds=self.batch_seconds,
        )
        heads = on_main(
            PartialState(),
            lambda: fit_heads(
                features,
                setup.found,
                setup.split,
                places=places,
                metric=setup.metric,
                seed=self.config.seed,
            ),
        )
        heads.write_(self.layers)
        for head, own in zip(setup.found.heads, heads.heads, strict=True):
            logger.info(
                "%s begins as a linear probe: %.4f on the validation part, learning rate %.2g, %s",
                *(head.name, own.valid, own.chosen["lr"]),
                "no penalty" if own.chosen["C"] is None else f"C {own.chosen['C']:g}",
            )

    # -- what is scored, shown and left ----------------------------------------------------------

    @property
    def batch_seconds(self) -> float:
        """Audio scored at once."""
        return self.config.scoring.batch_seconds or scoring_seconds()

    def watcher(self, history: list[dict[str, Any]]) -> Validation:
        """The validation part."""
        config, setup = self.config, self.setup
        per_epoch = max(1, math.ceil(len(setup.split.train) / config.batch_size))
        return Validation(
            self,
            found=setup.found,
            corpus=setup.corpus,
            positions=setup.split.valid,
            metric=setup.metric,
            every=config.scoring.every or per_epoch,
            average_from=(1 - config.optim.swa_fraction) * self.run.steps,
            batch_seconds=self.batch_seconds,
            from_start=resolved(config.heads.probe) and config.init != "none",
            events=config.events if config.events.when == "always" else None,
            history=history,
        )

    def panels(self, segments: SegmentBatch, step: int, *, clips: int) -> list[list[Panel]]:
        """The first clips as they are mixed and as the network is fed them, with their labels."""
        assert isinstance(segments, MixedBatch)
        inputs, rows = self.views(segments, step), []
        for i in range(min(clips, len(segments))):
            waveform = segments.waveform[i, : segments.samples[i]]
            with torch.no_grad():
                plain = self.log_mel(waveform[None].to(self.log_mel.filterbank.device))[0, 0]
            length = inputs.log_mel.shape[3] if inputs.lengths is None else int(inputs.lengths[i])
            fed = inputs.log_mel[i, 0, :, :length]
            label = _label(self.outputs, inputs.targets[i])
            rows.append([Panel("as it is cut", plain, waveform=waveform), Panel(label, fed)])
        return rows

    def picture_title(self, step: int) -> str:
        """Above the picture of `panels`."""
        return "What the network is fed, and the label it is to give"

    def finish(self, run: Path, facts: dict[str, Any], *, is_main: bool) -> None:
        """Settle on the weights, test them once, write encoder/, test.json and report.html."""
        setup = self.setup
        self._try_mixtures_()
        best = self.kept.best
        assert best is not None
        self.scored.load_state_dict(best.weights)
        part = part_scores(
            self.classifier(self.scored),
            setup.found,
            setup.corpus,
            setup.split.test,
            title="test",
            batch_seconds=self.batch_seconds,
            events=None if self.config.events.when == "off" else self.config.events,
        )
        if not is_main:
            return
        valid = {"score": best.score, "step": best.step, "n": len(setup.split.valid)}
        encoder = self.encoder({**facts, "valid": valid, "test": plain_numbers(part.numbers)})
        encoder.save(run / "encoder")
        result = result_of(
            setup.found,
            part,
            fold=self.config.fold,
            metric=setup.metric,
            encoder=str(run / "encoder"),
            sha256=encoder.sha256,
        )
        result = replace(
            result,
            valid=best.score,
            chosen=[{"split": setup.split.name, "step": best.step}],
            seed=self.config.seed,
            init=self.config.init,
            data=self.config.data,
        )
        write_result(run / RESULT, result)
        write_report(run / "report.html", run=run, results=[result])
        logger.info("test: %s", numbers_text(part.numbers))

    def _try_mixtures_(self) -> None:
        """Averaged weights compete with the best single ones, on the validation part.

        Source: Wortsman et al. 2022 (WiSE-FT) for those between the first and the last.
        """
        kept, optim, metric = self.kept, self.config.optim, self.setup.metric
        last = {name: value.clone() for name, value in self.scored.state_dict().items()}
        mixtures = {}
        if kept.num_averaged > 1:
            last = kept.averaged(self.scored)
            mixtures[f"average of {kept.num_averaged} validations' weights"] = last
        elif optim.swa_fraction:
            logger.info(
                "no average of weights was tried: optim.swa_fraction=%g of the run held %s;"
                " validate more often by scoring.every",
                optim.swa_fraction,
                "one validation" if kept.num_averaged else "no validation",
            )
        if kept.first is not None:
            for share in optim.wise_ft_alphas:
                name = f"{share:g} of the way from the first weights to the last"
                mixtures[name] = kept.between(last, share=share)
        validation = self.watcher([])
        for name, weights in mixtures.items():
            self.scored.load_state_dict(weights)
            numbers = validation.score()
            score, loss = numbers[metric], numbers["loss"]
            logger.info("%s: %s %.4f, loss %.4f", name, metric, score, loss)
            kept.keep_if_best_(self.scored, score=score, loss=loss, step=self.run.steps)

    def encoder(self, facts: dict[str, Any]) -> Encoder:
        """The classifier as an encoder folder holds it."""
        before, clips = self.setup.encoder, self.config.clips
        info = classifier_info(
            self.outputs, frames=clips.frames, max_windows=self.config.scoring.max_windows
        )
        return Encoder(
            exported(self.scored),
            self.log_mel,
            pooling="mean" if before is None else before.pooling,
            layers="last" if before is None else before.layers,
            window_seconds=10.0 if before is None else before.window_seconds,
            info={
                **facts,
                "network": "fine-tuned",
                "version": __version__,
                "classifier": info,
                "settings": to_dict(self.config),
            },
        )


def _label(outputs: Outputs, targets: Tensor) -> str:
    """`60 % dog, 40 % rain`: the shares of a clip's target, largest first."""
    classes = [name for _, own in outputs.heads for name in own]
    shares = sorted(
        ((float(share), name) for share, name in zip(targets, classes, strict=True) if share > 0),
        reverse=True,
    )
    return ", ".join(f"{share:.0%} {name}" for share, name in shares[:4]) or "none of the classes"
