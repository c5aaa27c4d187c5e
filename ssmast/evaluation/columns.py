"""What is scored beside each other: an encoder, its untrained twin, and log-mel statistics."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ssmast.encoder import Encoder, load_encoder
from ssmast.encoder.pooling import LAYERS
from ssmast.evaluation.baselines import LogMelStatistics, random_twin
from ssmast.evaluation.embed import Embedder
from ssmast.evaluation.protocols import get_protocol
from ssmast.model.pool import POOL_MODES
from ssmast.settings import UsageError

LOG_MEL = "log_mel"
BEST = "best"


@dataclass(frozen=True)
class Column:
    """One column of the table; the hash of large weights is taken once.

    Attributes:
        name: pretrained, untrained or log_mel.
        variants: the embedder; several, where pooling and layers are to be chosen.
        sha256: of the weights.
    """

    name: str
    variants: Sequence[Embedder]
    sha256: str


def make_columns(
    encoder: str,
    *,
    protocol: str,
    pooling: str,
    layers: str,
    baselines: bool,
    seed: int,
    device: torch.device,
) -> list[Column]:
    """What is scored; the first is the one asked for.

    Args:
        encoder: folder, Hub name or log_mel.
        protocol: decides pooling and layers that are left open.
        pooling: empty for the protocol's or the encoder's own, "best" to try all.
        layers: the same.
        baselines: the twin and the log-mel too.
        seed: of the twin's weights.
        device: to compute on.

    Raises:
        UsageError, FileNotFoundError, ValueError: if there is no such encoder or setting.
    """
    if not encoder:
        raise UsageError("encoder= is missing; give an encoder folder, a Hub name, or log_mel")
    statistics = LogMelStatistics().to(device)
    log_mel = Column(LOG_MEL, [statistics], statistics.sha256)
    if encoder == LOG_MEL:
        return [log_mel]
    loaded = load_encoder(encoder).to(device).eval()
    preset = get_protocol(protocol)
    wanted = pooling or preset.pooling, layers or preset.layers
    columns = [Column("pretrained", _variants(loaded, *wanted), loaded.sha256)]
    if baselines:
        twin = random_twin(loaded, seed=seed)
        columns += [Column("untrained", _variants(twin, *wanted), twin.sha256), log_mel]
    return columns


def _variants(encoder: Encoder, pooling: str, layers: str) -> list[Encoder]:
    """The encoder with other settings, smaller vectors first; they share the weights."""
    # Class tokens sum a clip up as the mean does: tried where the model has them.
    known = [m for m in POOL_MODES if m != "cls" or encoder.backbone.num_class_tokens]
    poolings = known if pooling == BEST else [pooling or encoder.pooling]
    layer_modes = LAYERS if layers == BEST else [layers or encoder.layers]
    if (poolings, layer_modes) == ([encoder.pooling], [encoder.layers]):
        return [encoder]
    made = [
        encoder.variant(pooling=mode, layers=which) for mode in poolings for which in layer_modes
    ]
    return sorted(made, key=lambda variant: variant.dim)
