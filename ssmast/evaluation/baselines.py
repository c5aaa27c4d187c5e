"""What is scored side by side: an encoder, and the baselines that it must beat.

The baselines are the encoder itself untrained, statistics of a log-mel spectrogram, and a fixed
random convolution of it.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.audio import LongSound
from ssmast.audio.mel import mel_filterbank
from ssmast.encoder import Encoder, load_encoder
from ssmast.encoder.folder import build_parts
from ssmast.evaluation.foreign import (
    ForeignEncoder,
    TimmEncoder,
    TransformersEncoder,
    foreign_variants,
    is_foreign,
    load_foreign,
)
from ssmast.evaluation.probe import Protocol
from ssmast.model import Backbone
from ssmast.model.backbone import LAYERS
from ssmast.model.pool import POOL_MODES
from ssmast.progress import say_once

_LONGEST = 6000  # frames of a log-mel that are held at once: a minute
BEST = "best"
BASELINES = ("true", "false", "all")
BASELINES_HELP = (
    "also score the same encoder untrained (random weights) and log-mel statistics; all: a "
    "fixed random convolution too"
)


def layers_to_try(backbone: Backbone) -> list[str]:
    """What layers=best chooses from: each stage, all, all but the last, and all blocks."""
    stages = len(backbone.stage_ends)
    found = {tuple(backbone.blocks_of(layers)): layers for layers in reversed(LAYERS)}
    if stages > 1:
        for layers in (f"1-{stages - 1}", *map(str, range(1, stages))):
            found.setdefault(tuple(backbone.blocks_of(layers)), layers)
    return list(found.values())


def random_twin(encoder: Encoder, *, seed: int) -> Encoder:
    """The same architecture, front end and pooling with fresh weights: what training must beat.

    The global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone, _ = build_parts(encoder.config())
    twin = encoder.variant(backbone=backbone, info={"network": "untrained", "seed": seed})
    return twin.to(encoder.device)


class LogMelBaseline(nn.Module):
    """A vector computed from a log-mel spectrogram without any training.

    25 ms Hann window, 10 ms hop, FFT of 1024, 0-8 kHz, Slaney mel of the power, ln(x + 1e-6).
    It takes clips and gives vectors as an `Encoder` does, so both are scored by one path. A clip of
    more than a minute is computed in windows.
    """

    sample_rate = 16000
    n_fft = 1024
    win_length = 400
    hop_length = 160
    eps = 1e-6
    dim: int
    pooling = ""
    layers = ""
    context = 0
    """Frames that windows of a long clip have in common."""

    def __init__(self, *, num_mels: int = 128) -> None:
        super().__init__()
        self.num_mels = num_mels
        self.hann: Tensor
        self.filters: Tensor
        self.register_buffer("hann", torch.hann_window(self.win_length), persistent=False)
        filters = mel_filterbank(self.sample_rate, self.n_fft, num_mels, 0.0, 8000.0)
        self.register_buffer("filters", filters.T, persistent=False)

    @property
    def layer_dims(self) -> list[int]:
        """One layer."""
        return [self.dim]

    def settings(self) -> dict[str, Any]:
        """What makes the vectors what they are."""
        names = ("sample_rate", "n_fft", "win_length", "hop_length", "num_mels", "eps")
        return {name: getattr(self, name) for name in names}

    @property
    def sha256(self) -> str:
        """Hash of the settings; there are no trained weights."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()

    def summary(self, windows: Iterator[Tensor]) -> Tensor:
        """Log-mel (T, num_mels) in one or more windows -> vector (`dim`,)."""
        raise NotImplementedError

    @torch.no_grad()
    def embed_clips(
        self, waveforms: Sequence[Tensor | LongSound], *, batch_seconds: float = 60.0
    ) -> Tensor:
        """One vector for each clip (S,) at 16 kHz, on the CPU."""
        # One clip at a time, so `batch_seconds` has no say: padding would move the statistics.
        return torch.stack([self.summary(self.log_mels(clip)).cpu() for clip in waveforms])

    def log_mels(self, clip: Tensor | LongSound) -> Iterator[Tensor]:
        """Log-mel (t, num_mels) of a clip; each window begins with `context` frames of the last."""
        half, hop, total = self.n_fft // 2, self.hop_length, 1 + len(clip) // self.hop_length
        before = torch.zeros(0, self.num_mels, device=self.hann.device)
        for first in range(0, total, _LONGEST):
            stop = min(first + _LONGEST, total)
            begin, end = first * hop - half, (stop - 1) * hop + half  # zeros beyond the clip
            part = torch.as_tensor(clip[max(begin, 0) : min(end, len(clip))])
            padded = F.pad(part, (max(-begin, 0), max(end - len(clip), 0)))
            spectrum = torch.stft(
                padded.to(self.hann.device).float(),
                n_fft=self.n_fft,
                hop_length=hop,
                win_length=self.win_length,
                window=self.hann,
                center=False,
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()  # (n_fft / 2 + 1, t)
            window = torch.cat([before, (power.T @ self.filters + self.eps).log()])
            before = window[len(window) - self.context :]
            yield window


class LogMelStatistics(LogMelBaseline):
    """Mean and std over time of every mel bin: `num_mels` means, then as many stds."""

    pooling = "mean+std over time"

    def __init__(self, *, num_mels: int = 128) -> None:
        super().__init__(num_mels=num_mels)
        self.dim = 2 * num_mels

    def summary(self, windows: Iterator[Tensor]) -> Tensor:
        """Log-mel in windows -> (2 * num_mels,)."""
        mean = torch.zeros(self.num_mels, dtype=torch.float64)
        squares, total = torch.zeros_like(mean), 0  # squares are summed about the mean
        for window in windows:
            window = window.cpu().double()
            total += len(window)
            shift = window.mean(dim=0) - mean
            squares += (window - window.mean(dim=0)).square().sum(dim=0)
            squares += shift.square() * ((total - len(window)) * len(window) / total)
            mean += shift * (len(window) / total)
        return torch.cat([mean, (squares / total).sqrt()]).float()


class RandomConvolution(LogMelBaseline):
    """One convolution with fixed random filters, ReLU, mean and max over time: 512 numbers.

    256 filters over all mel bins and nine frames (90 ms), drawn with seed 0 as PyTorch initialises
    a convolution. What no training at all reaches: a stronger baseline than the statistics.
    """

    pooling = "mean+max over time"
    num_filters = 256
    num_frames = 9
    context = num_frames - 1

    def __init__(self, *, num_mels: int = 128) -> None:
        super().__init__(num_mels=num_mels)
        self.dim = 2 * self.num_filters
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.convolution = nn.Conv1d(num_mels, self.num_filters, self.num_frames)
        self.convolution.requires_grad_(False)

    def settings(self) -> dict[str, Any]:
        """What makes the vectors what they are."""
        own = {"num_filters": self.num_filters, "num_frames": self.num_frames, "seed": 0}
        return {**super().settings(), **own}

    def summary(self, windows: Iterator[Tensor]) -> Tensor:
        """Log-mel in windows -> (512,)."""
        total, highest, count = torch.zeros(()), torch.zeros(()), 0
        for window in windows:
            short = max(self.num_frames - len(window), 0)  # a clip of under 90 ms
            padded = F.pad(window, (0, 0, 0, short), value=float(torch.tensor(self.eps).log()))
            found = self.convolution(padded.T[None])[0].relu()  # (num_filters, t)
            total = total.to(found.device) + found.double().sum(dim=1)
            highest = torch.maximum(highest.to(found.device), found.amax(dim=1))
            count += found.shape[1]
        return torch.cat([(total / count).float(), highest])


UNTRAINED = {"log_mel": LogMelStatistics, "random_conv": RandomConvolution}


Scored = Encoder | LogMelBaseline | ForeignEncoder
"""What a probe scores: an encoder, or a baseline that looks like one."""


@dataclass(frozen=True)
class Column:
    """One column of the table; the hash of large weights is taken once.

    Attributes:
        name: pretrained, untrained, log_mel or random_conv.
        variants: the embedder; several, where pooling and layers are to be chosen.
        sha256: of the weights.
        trainable: the encoder, where it is one; baselines without weights cannot be fine-tuned.
        is_twin: the first column's network untrained: where that one's vectors are whitened, these
            are as well, by the clips of the labelled set, as it was trained on none.
    """

    name: str
    variants: Sequence[Scored]
    sha256: str
    trainable: Encoder | None = None
    is_twin: bool = False


def make_columns(
    encoder: str,
    *,
    protocol: Protocol,
    pooling: str = "",
    layers: str = "",
    baselines: str = "true",
    seed: int,
    device: torch.device,
    precision: str = "fp32",
) -> list[Column]:
    """What is scored; the first is the one asked for.

    Args:
        encoder: folder, Hub name, log_mel, random_conv, or one of another program (`foreign.py`).
        protocol: decides pooling and layers that are left open.
        pooling: empty for the protocol's or the encoder's own, "best" to try all.
        layers: the same.
        baselines: "true" for the twin and the log-mel statistics, "all" for the random convolution
            too, "false" for none.
        seed: of the twin's weights.
        device: to compute on.
        precision: of the encoder and its twin.

    Raises:
        UsageError, FileNotFoundError, ValueError: if there is no such encoder or setting.
    """
    if encoder in UNTRAINED:
        return [_without_weights(encoder, device)]
    has_twin = baselines != "false"
    if is_foreign(encoder):
        foreign = load_foreign(encoder).to(device)
        if not layers and isinstance(foreign, TransformersEncoder):
            layers = "blocks" if protocol.layers in ("blocks", "stages") else "last"
        columns = [Column("pretrained", foreign_variants(foreign, pooling, layers), foreign.sha256)]
        # Itself untrained, where its class can be made anew.
        if has_twin and isinstance(foreign, TimmEncoder | TransformersEncoder):
            fresh = foreign.untrained(seed).to(device)
            columns.append(Column("untrained", foreign_variants(fresh, "", layers), fresh.sha256))
    else:
        networks = {"pretrained": load_encoder(encoder, precision=precision).to(device).eval()}
        if has_twin:
            networks["untrained"] = random_twin(networks["pretrained"], seed=seed)
        columns = []
        for name, network in networks.items():
            own = _variants(network, pooling or protocol.pooling, layers or protocol.layers)
            is_twin = name == "untrained"
            columns.append(Column(name, own, network.sha256, trainable=own[0], is_twin=is_twin))
    names = {"true": ["log_mel"], "all": ["log_mel", "random_conv"]}.get(baselines, [])
    return columns + [_without_weights(name, device) for name in names]


def _without_weights(name: str, device: torch.device) -> Column:
    embedder = UNTRAINED[name]().to(device)
    return Column(name, [embedder], embedder.sha256)


def _variants(encoder: Encoder, pooling: str, layers: str) -> list[Encoder]:
    """The encoder with other settings, smaller vectors first; all with the same weights."""
    poolings, layer_modes = [pooling or encoder.pooling], [layers or encoder.layers]
    if pooling == BEST:
        has_class_tokens = encoder.backbone.num_class_tokens
        poolings = [mode for mode in POOL_MODES if mode != "cls" or has_class_tokens]
    if layers == BEST:
        layer_modes = layers_to_try(encoder.backbone)
    if (poolings, layer_modes) == ([encoder.pooling], [encoder.layers]):
        return [encoder]
    pairs = itertools.product(poolings, layer_modes)
    made = [encoder.variant(pooling=mode, layers=which) for mode, which in pairs]
    if encoder.whitening is not None:
        say_once(
            "vectors of other pooling or layers than %s of %s are not whitened: the encoder's "
            "whitening is of those alone",
            *(encoder.pooling, encoder.layers),
        )
    return sorted(made, key=lambda variant: variant.dim)
