"""The protocols: how embeddings are made, what is fitted to them, and how often.

How they differ, and where each stands to the evaluation that it reproduces: docs/protocols.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ssmast.evaluation.fitting import Fitted, Problem
from ssmast.evaluation.linear import fit_linear
from ssmast.evaluation.simple import fit_few_shot, fit_knn, fit_logreg
from ssmast.evaluation.trained_heads import fit_attentive, fit_evar, fit_hear, fit_superb, fit_xares

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
    """One way to score an encoder.

    Attributes:
        name: what users write.
        fit: the probes of a split, one a seed; None for a protocol that trains the encoder too, so
            that there are no embeddings to fit to (`finetuned_probe.py`).
        num_seeds: repetitions where the user says nothing.
        first_seed: of them, to which the user's seed is added.
        standardise: features get mean 0 and std 1 on the training part.
        pooling: of the embeddings, where the user says nothing; empty for the encoder's own.
        layers: the same.
        crops: seconds by set: training and validation clips are embedded from one random crop, test
            clips from their head, shorter ones with zeros after them; None for whole clips.
        random_valid: fraction of the training clips that validates where a set has folds; 0: the
            fold after the test fold does.
        fixed_rate: one learning rate is given, which `lr=` replaces.
        shots: training clips drawn of each class, which `shots=` replaces; 0: all are used.
    """

    name: str
    fit: Callable[[Problem], Fitted] | None
    num_seeds: int = 1
    first_seed: int = 0
    standardise: bool = True
    pooling: str = ""
    layers: str = ""
    crops: dict[str, float] | None = None
    random_valid: float = 0.0
    fixed_rate: bool = False
    shots: int = 0

    @property
    def updates_encoder(self) -> bool:
        """Whether the encoder is trained too."""
        return self.fit is None

    def crop_seconds(self, built: str, asked: float) -> float:
        """Length of the crops on a set; 0 for whole clips.

        Args:
            built: name that `ssmast prepare task=` knows the set by; empty for another set.
            asked: by the user; 0 for the published length.

        Raises:
            ValueError: if the protocol crops and no length is known, or does not and one is asked.
        """
        if self.crops is None:
            if asked:
                raise ValueError(
                    f"protocol {self.name} embeds whole clips; leave crop_seconds={asked:g} out"
                )
            return 0.0
        if not asked and built not in self.crops:
            raise ValueError(
                f"protocol {self.name} cuts crops, and of this set no published length is known; "
                "give crop_seconds=SECONDS"
            )
        return asked or self.crops[built]


LINEAR = Protocol(name="linear", fit=fit_linear, num_seeds=5)
KNN = Protocol(name="knn", fit=fit_knn)
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        LINEAR,
        Protocol(name="logreg", fit=fit_logreg),
        KNN,
        Protocol(name="few_shot", fit=fit_few_shot, num_seeds=20, standardise=False, shots=8),
        Protocol(
            name="evar_strict", fit=fit_evar, num_seeds=3, first_seed=42, crops=EVAR_SECONDS,
            random_valid=0.1, fixed_rate=True,
        ),
        Protocol(name="hear_mlp", fit=fit_hear, first_seed=42, standardise=False),
        Protocol(
            name="xares", fit=fit_xares, first_seed=42, standardise=False, pooling="freq",
            fixed_rate=True,
        ),
        Protocol(
            name="superb", fit=fit_superb, standardise=False, pooling="mean", layers="blocks"
        ),
        Protocol(
            name="attentive", fit=fit_attentive, num_seeds=3, standardise=False,
            pooling="time16", layers="stages",
        ),
        Protocol(
            name="lape_finetune", fit=None, pooling="mean", layers="last", crops=LAPE_SECONDS,
            fixed_rate=True,
        ),
    )
}  # fmt: skip


def slots_of(pooling: str) -> int:
    """Parts of a clip that a pooling gives one after the other: 16 for time16, else 1."""
    number = pooling.removeprefix("time")
    return int(number) if pooling.startswith("time") and number.isdigit() else 1
