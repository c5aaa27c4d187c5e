"""Fit a classifier on a frozen encoder: seconds, and a few labelled clips of each class are enough.

    ssmast fit data=SET out=frogs                       the encoder that comes with the package
    ssmast fit data=SET out=frogs group=recording       clips of one recording are alike
    ssmast predict night.wav encoder=frogs

One linear layer by ridge regression, its penalty chosen by leaving out one clip (or group) after
the other; how often those are right is printed, class by class, so no labelled clip is needed for
a test. A set's own test part is left out of the fit and scored, unless all=true; a set with folds
is fitted whole. To train the encoder too: `ssmast finetune`.
"""

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssmast.audio import Corpus
from ssmast.audio.stats import look_at_lengths
from ssmast.classifier import Outputs, WindowMeans, as_classifier, classifier_info
from ssmast.encoder import Encoder, load_encoder
from ssmast.encoder.folder import build_parts, check_folder_to_write
from ssmast.evaluation.class_scores import (
    classes_table,
    numbers_text,
    plain_numbers,
    score_classes,
    score_part,
)
from ssmast.evaluation.embed import embed_corpus
from ssmast.evaluation.evaluate import part_scores
from ssmast.evaluation.labelled_set import LabelledSet, with_trained_classes
from ssmast.evaluation.read_set import load_set
from ssmast.evaluation.simple import fit_ridge
from ssmast.files import check_output
from ssmast.model import Backbone
from ssmast.settings import (
    CHANNEL,
    WORKERS,
    Settings,
    parse,
    setting,
    to_dict,
    wants_dry_run,
)
from ssmast.version import __version__
from ssmast.weights import DEFAULT

logger = logging.getLogger(__name__)

_LONGEST_WINDOW = 10.0  # s, of a window that is left open


@dataclass(frozen=True, kw_only=True)
class FitConfig(Settings):
    """`ssmast fit`: labelled clips to a classifier on a frozen encoder."""

    data: str = setting("", "labelled set, or a folder of sets with task=", required=True)
    out: str = setting("", "classifier folder to write", required=True)
    encoder: str = setting(
        DEFAULT, "encoder folder, or Hub name; default: the one that comes with the package"
    )
    task: str = setting("", "set in `data`: NAME or NAME:label=COLUMN,split=COLUMN,...")
    group: str = setting(
        "", "column of what is left out together, such as recording or speaker; empty: each clip"
    )
    all: bool = setting(False, "fit the set's test part too, and score nothing on it")
    window: float = setting(
        0.0,
        "seconds of a window, of which a longer file has several; 0: nine in ten clips fit into it",
        range="[0, inf)",
    )
    channel: str = setting("mean", CHANNEL)
    workers: int = setting(0, WORKERS, range="[0, inf)")
    batch_seconds: float = setting(
        20.0, "seconds of audio that go through the network at once", range="[0, inf)"
    )


def main(argv: list[str]) -> int:
    """`ssmast fit`: parse, fit, print how good it is."""
    config = parse(FitConfig, argv, command="ssmast fit", description=__doc__ or "", dry_run=True)
    if config is None:
        return 0
    check_output(config.out, folder=True)
    check_folder_to_write(Path(config.out))
    fitting = _Fitting(config)
    if wants_dry_run(argv):
        sys.stdout.write(f"{fitting.labelled.spec}: {len(fitting.train)} clips to fit\n")
        return 0
    encoder = fitting.fitted()
    encoder.save(config.out)
    sys.stdout.write(fitting.text)
    logger.info("classifier: %s", config.out)
    logger.info("use it:     ssmast predict FILE encoder=%s", config.out)
    return 0


class _Fitting:
    """The set, the network, and what came out."""

    def __init__(self, config: FitConfig) -> None:
        self.config = config
        found = load_set(config.data, config.task, group=config.group)
        split, everything = found.splits[0], config.all or len(found.splits) > 1
        kept = [split.train, split.valid] + ([split.test] if everything else [])
        self.train: NDArray[np.int64] = np.sort(np.concatenate(kept))
        self.test = np.zeros(0, dtype=np.int64) if everything else split.test
        self.labelled: LabelledSet = with_trained_classes(found, replace(split, train=self.train))
        self.corpus: Corpus = found.corpus(channel=config.channel)
        self.encoder = load_encoder(config.encoder)
        self.text = ""

    def fitted(self) -> Encoder:
        """The encoder with a linear layer on its vectors, as a classifier folder holds it."""
        config, labelled = self.config, self.labelled
        rate, clips = self.encoder.sample_rate, self.corpus.take(labelled.rows[self.train])
        seconds = config.window or _usual_seconds(clips, sample_rate=rate)
        network = headless(self.encoder)
        front, samples = self.encoder.log_mel, round(seconds * rate)
        frames = front.frames(samples)
        frames += front.samples(frames) < samples  # or a usual clip would have two windows
        frames = max(frames, network.fewest_frames)
        embedded = embed_corpus(
            WindowMeans(network, front, dim=network.head_hidden_size, frames=frames),
            clips,
            workers=config.workers,
            batch_seconds=config.batch_seconds,
        )
        for name, why in embedded.rejected[:3]:
            logger.warning("left out: %s: %s", name, why)
        if len(embedded.rejected) > 3:
            logger.warning("left out: %d clips in all", len(embedded.rejected))
        positions = self.train[embedded.rows]
        groups = [labelled.groups[position] for position in positions] if config.group else None
        targets = labelled.one_hot(positions)
        lacking = [c for c, n in zip(labelled.classes, targets.sum(dim=0), strict=True) if not n]
        if lacking:
            raise ValueError(
                f"no clip of {', '.join(lacking)} could be read; mend the files, or drop the class"
            )
        fit = fit_ridge(embedded.values, targets, multi_label=labelled.multi_label, groups=groups)
        with torch.no_grad():
            before = network.state_dict()
            network.reset_classifier(len(labelled.classes))
            network.load_state_dict(before, strict=False)  # all but the new layer
            layer = cast(nn.Linear, network.get_classifier())
            layer.weight.copy_(fit.weight)
            layer.bias.copy_(fit.bias)
        left_out = fit.left_out if labelled.multi_label else fit.left_out.log_softmax(dim=1)
        return self._scored(network.eval(), frames, positions, left_out.float(), fit.penalty)

    def _scored(
        self,
        network: Backbone,
        frames: int,
        positions: NDArray[np.int64],
        left_out: Tensor,
        penalty: float,
    ) -> Encoder:
        labelled, encoder = self.labelled, self.encoder
        heads = [(head.name, head.classes) for head in labelled.heads]
        info: dict[str, Any] = {
            "network": "fitted",
            "version": __version__,
            "clips": len(positions),
            "classifier": classifier_info(
                Outputs(heads, labelled.multi_label), frames=frames, max_windows=0
            ),
            "settings": to_dict(self.config),
            "penalty": penalty,
        }
        numbers = score_part(labelled, left_out, positions)
        info["left_out"] = plain_numbers(numbers)
        what = f"of one {self.config.group}" if self.config.group else "each"
        rows = classes_table(score_classes(labelled, left_out, positions))
        shown = numbers_text({**numbers, "n": len(positions)})
        self.text = f"{rows}\nclips left out, {what} in turn: {shown}\n"
        made = Encoder(
            network,
            encoder.log_mel,
            pooling=encoder.pooling,
            layers=encoder.layers,
            window_seconds=encoder.window_seconds,
            whitening=encoder.whitening,
            info=info,
        ).eval()
        if len(self.test):
            part = part_scores(
                as_classifier(made),
                labelled,
                self.corpus,
                self.test,
                title="test",
                workers=self.config.workers,
                batch_seconds=self.config.batch_seconds,
            )
            made.info["test"] = plain_numbers(part.numbers)
            self.text += f"test part: {numbers_text(part.numbers)}\n"
        return made


def headless(encoder: Encoder) -> Backbone:
    """A copy of an encoder's network that gives its vectors, before any whitening."""
    config = encoder.config()
    config["model_args"].pop("drop_rate", None)  # of the training that is over
    config["model_args"] |= {
        "num_classes": 0,
        "global_pool": encoder.pooling,
        "pool_layers": encoder.layers,
    }
    network, _ = build_parts(config)
    weights = encoder.backbone.state_dict()
    network.load_state_dict({k: v for k, v in weights.items() if not k.startswith("head.fc.")})
    return network.eval()


def _usual_seconds(corpus: Corpus, *, sample_rate: int) -> float:
    """Length that nine in ten clips have at most, of a look at some; at most ten seconds."""
    lengths, _ = look_at_lengths(corpus, sample_rate=sample_rate)
    usual = float(np.quantile(lengths, 0.9)) / sample_rate if lengths else _LONGEST_WINDOW
    return min(usual, _LONGEST_WINDOW)
