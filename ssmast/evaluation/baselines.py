"""What an encoder must beat: itself untrained, and statistics of a log-mel spectrogram.

What is scored beside each other: an encoder, its untrained twin, and log-mel statistics.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.audio import LongSound
from ssmast.audio.mel import mel_filterbank
from ssmast.encoder import Encoder, load_encoder
from ssmast.encoder.folder import build_parts
from ssmast.encoder.pooling import LAYERS
from ssmast.evaluation.embed import Embedder
from ssmast.evaluation.protocols import get_protocol
from ssmast.model.pool import POOL_MODES

_LONGEST = 6000  # frames of a log-mel that are held at once: a minute


def random_twin(encoder: Encoder, *, seed: int) -> Encoder:
    """The same architecture, front end and pooling with fresh weights: what training must beat.

    Args:
        encoder: to copy all but the weights of; made or loaded, on any device.
        seed: of the fresh weights; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone, _ = build_parts(encoder.config())
    twin = encoder.variant(backbone=backbone, info={"network": "untrained", "seed": seed})
    return twin.to(encoder.device)


class LogMelStatistics(nn.Module):
    """Mean and std over time of every mel bin: `num_mels` means, then as many stds.

    25 ms Hann window, 10 ms hop, FFT of 1024, 0-8 kHz, Slaney mel of the power, ln(x + 1e-6).
    It takes clips and gives vectors as an `Encoder` does, so both are scored by one path.

    Args:
        num_mels: mel bins; the vector has twice as many numbers.
    """

    sample_rate = 16000
    n_fft = 1024
    win_length = 400
    hop_length = 160
    eps = 1e-6

    def __init__(self, *, num_mels: int = 128) -> None:
        super().__init__()
        self.num_mels = num_mels
        self.dim = 2 * num_mels
        self.window: Tensor
        self.filters: Tensor
        self.register_buffer("window", torch.hann_window(self.win_length), persistent=False)
        filters = mel_filterbank(self.sample_rate, self.n_fft, num_mels, 0.0, 8000.0)
        self.register_buffer("filters", filters.T, persistent=False)

    def settings(self) -> dict[str, Any]:
        """What makes the vectors what they are."""
        names = ("sample_rate", "n_fft", "win_length", "hop_length", "num_mels", "eps")
        return {name: getattr(self, name) for name in names}

    @property
    def sha256(self) -> str:
        """Hash of the settings; there are no weights."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """(B, S) at 16 kHz -> (B, 2 * num_mels)."""
        log_mel = self._log_mel(waveform)
        return torch.cat([log_mel.mean(dim=1), log_mel.std(dim=1, correction=0)], dim=1)

    def _log_mel(self, waveform: Tensor, *, center: bool = True) -> Tensor:
        """(B, S) -> (B, T, num_mels); without `center` the half windows come with the samples."""
        spectrum = torch.stft(
            waveform.float(),
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            win_length=self.win_length,
            window=self.window,
            center=center,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()  # (B, n_fft / 2 + 1, T)
        return (power.transpose(1, 2) @ self.filters + self.eps).log()

    @torch.no_grad()
    def _streamed(self, clip: Tensor | LongSound) -> Tensor:
        """What `forward` gives for a clip (S,), from pieces of it; on the CPU."""
        half, hop, total = self.n_fft // 2, self.hop_length, 1 + len(clip) // self.hop_length
        mean = torch.zeros(self.num_mels, dtype=torch.float64)
        squares = torch.zeros_like(mean)  # summed about the mean
        for first in range(0, total, _LONGEST):
            stop = min(first + _LONGEST, total)
            begin, end = first * hop - half, (stop - 1) * hop + half  # zeros beyond the clip
            part = torch.as_tensor(clip[max(begin, 0) : min(end, len(clip))])
            padded = F.pad(part, (max(-begin, 0), max(end - len(clip), 0)))
            log_mel = self._log_mel(padded.to(self.window.device)[None], center=False)[0]
            log_mel = log_mel.cpu().double()  # (t, num_mels)
            shift = log_mel.mean(dim=0) - mean
            squares += (log_mel - log_mel.mean(dim=0)).square().sum(dim=0)
            squares += shift.square() * (first * len(log_mel) / stop)
            mean += shift * (len(log_mel) / stop)
        return torch.cat([mean, (squares / total).sqrt()])[None].float()

    def embed_clips(
        self, waveforms: Sequence[Tensor | LongSound], *, batch_seconds: float = 60.0
    ) -> Tensor:
        """One vector for each clip (S,) at 16 kHz, on the CPU; a long one piece by piece."""
        # One clip at a time, so `batch_seconds` has no say: padding would move the statistics.
        return torch.cat([self._embed(clip) for clip in waveforms])

    def _embed(self, clip: Tensor | LongSound) -> Tensor:
        if len(clip) > _LONGEST * self.hop_length:
            return self._streamed(clip)
        return self(torch.as_tensor(clip[:]).to(self.window.device)[None]).cpu()


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
