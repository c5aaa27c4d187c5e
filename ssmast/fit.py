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
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

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
from ssmast.evaluation.processes import scoring_seconds
from ssmast.evaluation.read_set import load_set
from ssmast.evaluation.results import shared_note
from ssmast.evaluation.simple import fit_ridge
from ssmast.files import check_output
from ssmast.model import Backbone
from ssmast.settings import SoundSettings, command, setting, to_dict, wants_dry_run
from ssmast.version import __version__
from ssmast.weights import DEFAULT

logger = logging.getLogger(__name__)

_LONGEST_WINDOW = 10.0  # s, of a window that is left open


@dataclass(frozen=True, kw_only=True)
class FitConfig(SoundSettings):
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
        range="0 or [0.1, inf)",
    )


@command(FitConfig, "ssmast fit", dry_run=True)
def main(config: FitConfig, argv: list[str]) -> int:
    """`ssmast fit`: parse, fit, print how good it is."""
    check_output(config.out, folder=True)
    check_folder_to_write(Path(config.out))
    out = Path(config.out)
    if out.is_dir() and out.resolve() == Path(config.encoder).resolve():
        raise FileExistsError(
            f"out={config.out} is the encoder that the classifier is made of, and is not replaced; "
            "give another out="
        )
    # What would validate is fitted too.
    scored = () if config.all else ("test",)
    found = load_set(config.data, config.task, group=config.group, scored=scored)
    split, everything = found.splits[0], config.all or len(found.splits) > 1
    train = np.sort(np.concatenate([split.train, split.valid, *([split.test] * everything)]))
    labelled = with_trained_classes(found, replace(split, train=train))
    if config.all:
        logger.info("all=true: %d clips are fitted, those of the test part too", len(train))
    if wants_dry_run(argv):
        sys.stdout.write(f"{labelled.spec}: {len(train)} clips to fit\n")
        return 0
    encoder, text = fit(config, labelled, train, split.test[: 0 if everything else None])
    encoder.save(config.out)
    sys.stdout.write(text)
    logger.info("classifier: %s", config.out)
    logger.info("use it:     ssmast predict FILE encoder=%s", config.out)
    return 0


def fit(
    config: FitConfig, labelled: LabelledSet, train: NDArray[np.int64], test: NDArray[np.int64]
) -> tuple[Encoder, str]:
    """The encoder with a linear layer on its vectors, as a classifier folder holds it.

    Returns:
        The classifier, and what to say of it.
    """
    encoder, corpus = load_encoder(config.encoder), labelled.corpus(channel=config.channel)
    rate, clips = encoder.sample_rate, corpus.take(labelled.rows[train])
    seconds = config.window or _usual_seconds(clips, sample_rate=rate)
    network = headless(encoder)
    front, samples = encoder.log_mel, round(seconds * rate)
    frames = front.frames(samples)
    frames += front.samples(frames) < samples  # or a usual clip would have two windows
    frames = max(frames, network.fewest_frames)
    embedded = embed_corpus(
        WindowMeans(network, front, dim=network.head_hidden_size, frames=frames),
        clips,
        workers=config.workers,
        batch_seconds=config.batch_seconds or scoring_seconds(),
    )
    for name, why in embedded.rejected[:3]:
        logger.warning("left out: %s: %s", name, why)
    if len(embedded.rejected) > 3:
        logger.warning("left out: %d clips in all", len(embedded.rejected))
    positions = train[embedded.rows]
    groups = [labelled.groups[position] for position in positions] if config.group else None
    targets = labelled.one_hot(positions)
    lacking = [c for c, n in zip(labelled.classes, targets.sum(dim=0), strict=True) if not n]
    if lacking:
        raise ValueError(
            f"no clip of {', '.join(lacking)} could be read; mend the files, or drop the class"
        )
    ridge = fit_ridge(embedded.values, targets, multi_label=labelled.multi_label, groups=groups)
    with torch.no_grad():
        before = network.state_dict()
        network.reset_classifier(len(labelled.classes))
        network.load_state_dict(before, strict=False)  # all but the new layer
        layer = cast(nn.Linear, network.get_classifier())
        layer.weight.copy_(ridge.weight)
        layer.bias.copy_(ridge.bias)
    left_out = ridge.left_out if labelled.multi_label else ridge.left_out.log_softmax(dim=1)
    left_out = left_out.float()
    numbers = score_part(labelled, left_out, positions)
    outputs = Outputs(labelled.heads, labelled.multi_label)
    made = Encoder(
        network,
        encoder.log_mel,
        pooling=encoder.pooling,
        layers=encoder.layers,
        window_seconds=encoder.window_seconds,
        whitening=encoder.whitening,
        info={
            "network": "fitted",
            "version": __version__,
            "clips": len(positions),
            "corpus": clips.listing_hash,
            "classifier": classifier_info(outputs, frames=frames, max_windows=0),
            "settings": to_dict(config),
            "penalty": ridge.penalty,
            "left_out": plain_numbers(numbers),
        },
    ).eval()
    what = f"of one {config.group}" if config.group else "each"
    shown = numbers_text({**numbers, "n": len(positions)})
    rows = classes_table(score_classes(labelled, left_out, positions))
    text = f"{rows}\nclips left out, {what} in turn: {shown}\n"
    if len(test):
        part = part_scores(
            as_classifier(made),
            labelled,
            corpus,
            test,
            title="test",
            workers=config.workers,
            batch_seconds=config.batch_seconds or scoring_seconds(),
        )
        made.info["test"] = plain_numbers(part.numbers)
        text += f"test part: {numbers_text(part.numbers)}\n"
        text += f"{shared_note(labelled.shared)}\n" if labelled.shared else ""
    return made, text


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
