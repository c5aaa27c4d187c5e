"""The protocols by name: how embeddings are made, what is fitted to them, and how often.

What differs between them, and where each stands to what it reproduces: docs/protocols.md.

Crops of one length, as published evaluations cut them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmast.evaluation.fitting import Fitted, Part
from ssmast.evaluation.linear import fit_linear
from ssmast.evaluation.metrics import Metric
from ssmast.evaluation.simple import fit_knn, fit_logreg
from ssmast.evaluation.trained_heads import fit_evar, fit_hear, fit_superb, fit_xares

# Seconds of the crops in the published evaluations, by the name of the built set.
# Source: EVAR's configurations; LAPE's loaders where it has one, EVAR's unit else.
EVAR_SECONDS = {
    "speech_commands_v1": 1.0, "speech_commands_v2": 1.0, "speech_commands_v2_12": 1.0,
    "voxceleb1": 8.2, "voxforge": 5.8, "nsynth_family": 4.0, "urbansound8k": 4.0, "esc50": 5.0,
    "fsd50k": 7.6358,
}  # fmt: skip
LAPE_SECONDS = EVAR_SECONDS | {"voxceleb1": 8.0, "voxforge": 6.0, "iemocap": 4.0}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What besides the fit belongs to a protocol.

    Attributes:
        num_seeds: repetitions where the user says nothing.
        first_seed: of them, to which the user's seed is added.
        standardise: features get mean 0 and std 1 on the training part.
        pooling: of the embeddings, where the user says nothing; empty for the encoder's own.
        layers: the same.
        crops: seconds by set: training and validation clips are embedded from one random crop, test
            clips from their head, shorter ones with zeros after them; None for whole clips.
        updates_encoder: the encoder is trained too, so there are no embeddings.
        random_valid: share of the training clips that validates where a set has folds; 0: the
            fold after the test fold does.
    """

    num_seeds: int = 5
    first_seed: int = 0
    standardise: bool = True
    pooling: str = ""
    layers: str = ""
    crops: dict[str, float] | None = None
    updates_encoder: bool = False
    random_valid: float = 0.0


PROTOCOLS = {
    "linear": Protocol(),
    "logreg": Protocol(num_seeds=1),
    "knn": Protocol(num_seeds=1),
    "evar_strict": Protocol(num_seeds=3, first_seed=42, crops=EVAR_SECONDS, random_valid=0.1),
    "hear_mlp": Protocol(num_seeds=1, first_seed=42, standardise=False),
    "xares": Protocol(num_seeds=1, first_seed=42, standardise=False, pooling="freq"),
    "superb": Protocol(num_seeds=1, standardise=False, pooling="mean", layers="blocks"),
    "lape_finetune": Protocol(
        num_seeds=1, pooling="mean", layers="last", crops=LAPE_SECONDS, updates_encoder=True
    ),
}


def get_protocol(name: str) -> Protocol:
    """The protocol called `name`.

    Raises:
        ValueError: if there is none, listing those there are.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]


def crop_seconds(name: str, built: str, asked: float) -> float:
    """Length of the crops of a protocol on a set; 0 for whole clips.

    Args:
        name: of the protocol.
        built: name that `ssmast prepare task=` knows the set by; empty for another set.
        asked: by the user; 0 for the published length.

    Raises:
        ValueError: if the protocol crops and no length is known.
    """
    crops = get_protocol(name).crops
    if crops is None:
        if asked:
            raise ValueError(
                f"protocol {name} embeds whole clips; leave crop_seconds={asked:g} out"
            )
        return 0.0
    if not asked and built not in crops:
        raise ValueError(
            f"protocol {name} cuts crops, and of this set no published length is known; give "
            "crop_seconds=SECONDS"
        )
    return asked or crops[built]


def fit(
    name: str,
    train: Part,
    valid: Part,
    *,
    num_classes: int,
    metric: Metric,
    num_seeds: int,
    seed: int,
    widths: Sequence[int] = (),
    lr: float = 0.0,
) -> Fitted:
    """Fit the probe of a protocol; it sees train and valid only.

    Args:
        name: of the protocol.
        train: features and targets.
        valid: the same.
        num_classes: C.
        metric: what validation decides by.
        num_seeds: repetitions; logreg and knn have no chance in them and run once.
        seed: added to the protocol's first seed.
        widths: lengths of the layers' vectors in the features, for "superb"; empty: one layer.
        lr: another fixed rate for "evar_strict" and "xares"; 0 for the protocol's.
    """
    if name == "logreg":
        return fit_logreg(train, valid, num_classes=num_classes, metric=metric)
    if name == "knn":
        return fit_knn(train, valid, num_classes=num_classes, metric=metric)
    first = get_protocol(name).first_seed + seed
    if name == "linear":
        return fit_linear(
            train, valid, num_classes=num_classes, metric=metric, num_seeds=num_seeds, seed=first
        )
    seeds = range(first, first + num_seeds)
    if name == "hear_mlp":
        return fit_hear(train, valid, num_classes=num_classes, metric=metric, seeds=seeds)
    if name == "superb":
        return fit_superb(
            *(train, valid), num_classes=num_classes, metric=metric, seeds=seeds,
            widths=widths or (train[0].shape[1],),
        )  # fmt: skip
    rate = {"lr": lr} if lr else {}
    fixed = {"evar_strict": fit_evar, "xares": fit_xares}[name]
    return fixed(train, valid, num_classes=num_classes, metric=metric, seeds=seeds, **rate)


class Crop(NamedTuple):
    """What is cut out of every clip; shorter clips have zeros after them.

    Attributes:
        seconds: length.
        place: "head", or "random": anywhere, all places alike.
        seed: of the random places.
    """

    seconds: float
    place: str
    seed: int = 0


def cut(waveform: Tensor, crop: Crop, *, sample_rate: int, clip: int) -> Tensor:
    """(S,) -> (S',) of `crop.seconds`; the place follows from seed and the clip's number."""
    samples = max(1, round(crop.seconds * sample_rate))
    spare = len(waveform) - samples
    if spare <= 0:
        return F.pad(waveform, (0, -spare))
    start = 0
    if crop.place == "random":
        # One generator a clip: threads and processes cut the same whatever their order.
        generator = torch.Generator().manual_seed(crop.seed * 1_000_003 + clip)
        start = int(torch.randint(spare + 1, (), generator=generator))
    return waveform[start : start + samples]
