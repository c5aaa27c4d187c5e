"""Kaldi's filterbank features: what AST, SSAST, PSLA and most published audio transformers take."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmast.audio.mel import EPS, LogMel

AUDIOSET = {"mean": -4.2677393, "std": 2 * 4.5689974}
"""Statistics that AST normalises with; its code divides by twice the standard deviation."""
WINDOW_SECONDS, PREEMPHASIS = 0.025, 0.97


class KaldiMel(LogMel):
    """Kaldi's log mel filterbank, as `torchaudio.compliance.kaldi.fbank` computes it for AST.

    Windows of 25 ms that lie wholly in the clip (a shorter clip has zeros after it), each without
    its mean, with pre-emphasis 0.97 and a symmetric Hann window; the power spectrum of the next
    power of two; triangular filters on the mel scale 1127 ln(1 + f / 700); the logarithm of at
    least float32's epsilon; no dither. Mean, pre-emphasis, window and transform are linear, so
    together they are one matrix, which all windows of a batch are multiplied by.

    Args:
        sample_rate: rate of the waveforms in Hz.
        hop_length: samples between frames.
        num_mels: number of mel bins F.
        f_min: lowest frequency in Hz.
        f_max: highest frequency in Hz.
        mean: of the features over the corpus, subtracted by `normalize`.
        std: what `normalize` divides by; AST's code takes twice the standard deviation.
        n_fft: length of the transform; 0 for the next power of two.
        pad_frames: fewest frames; a shorter clip has zeros after it, before it is normalised.

    Raises:
        ValueError: if the settings make no filterbank.

    Source: Povey et al. 2011 (Kaldi); settings as Gong et al. 2021 (AST) call it.
    """

    transform: Tensor

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        hop_length: int = 160,
        num_mels: int = 128,
        f_min: float = 20.0,
        f_max: float = 8000.0,
        mean: float = AUDIOSET["mean"],
        std: float = AUDIOSET["std"],
        n_fft: int = 0,
        pad_frames: int = 0,
    ) -> None:
        self.window_length = int(WINDOW_SECONDS * sample_rate)
        usual = 1 << max(0, math.ceil(math.log2(max(1, self.window_length))))
        if n_fft not in (0, usual):
            raise ValueError(f"n_fft must be {usual} with kind=kaldi at this rate, got {n_fft}")
        super().__init__(
            sample_rate=sample_rate, n_fft=usual, hop_length=hop_length, num_mels=num_mels,
            f_min=f_min, f_max=f_max, mean=mean, std=std,
        )  # fmt: skip
        self.pad_frames = pad_frames
        self.register_buffer("transform", self._transform(), persistent=False)

    def _transform(self) -> Tensor:
        """Windows (..., W) times this: real and imaginary parts (..., n_fft + 2), float64."""
        size = self.window_length
        steps = torch.eye(size, dtype=torch.float64) - 1 / size  # without its mean
        before = torch.cat([steps[:1], steps[:-1]])  # the first sample's own in place of none
        emphasised = steps - PREEMPHASIS * before
        window = torch.hann_window(size, periodic=False, dtype=torch.float64)
        spectrum = torch.fft.rfft(window[:, None] * emphasised, n=self.n_fft, dim=0)
        return torch.cat([spectrum.real, spectrum.imag]).T.contiguous()

    def _filterbank(self) -> Tensor:
        low, high = _mel(self.f_min), _mel(self.f_max)
        edges = torch.linspace(low, high, self.num_mels + 2, dtype=torch.float64)[:, None]
        bins = torch.arange(self.n_fft // 2, dtype=torch.float64) * self.sample_rate / self.n_fft
        mel = 1127 * torch.log1p(bins / 700)
        rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
        filters = torch.minimum(rising, falling).clamp_min(0)
        return F.pad(filters, (0, 1)).float()  # Kaldi leaves the highest frequency out

    def _apply(self, fn: Any, recurse: bool = True) -> "KaldiMel":
        super()._apply(fn, recurse)
        on = self.filterbank.device
        if self.transform.dtype != torch.float64 and on.type != "mps":
            self.transform = self._transform().to(on)
        return self

    def _log_mel(self, waveform: Tensor, fast: bool) -> Tensor:
        missing = self.window_length - waveform.shape[1]
        if not torch.compiler.is_exporting() and missing > 0:
            waveform = F.pad(waveform, (0, missing))
        matrix = self.transform.float() if fast else self.transform
        windows = waveform.to(matrix.dtype).unfold(1, self.window_length, self.hop_length)
        real, imaginary = (windows @ matrix).chunk(2, dim=-1)
        power = (real.square() + imaginary.square()).float().transpose(1, 2)  # (B, n_fft/2 + 1, T)
        if torch.compiler.is_exporting():  # the product below asks whether the batch is 1
            mel = torch.bmm(self.filterbank.expand(power.shape[0], -1, -1), power)
        else:
            mel = self.filterbank @ power
        return mel.clamp_min(EPS).log().unsqueeze(1)

    def frames(self, samples: Any) -> Any:
        """Number of frames of a waveform of `samples` samples (or of several, a tensor)."""
        return 1 + _positive(samples - self.window_length) // self.hop_length

    def samples(self, frames: int) -> int:
        """Fewest samples that make `frames` frames."""
        return (frames - 1) * self.hop_length + self.window_length

    def span(self, start: int, frames: int) -> tuple[int, int, int]:
        """See `LogMel.span`; a frame needs no samples before its window."""
        return start * self.hop_length, self.samples(frames), 0

    def centres_hz(self) -> Tensor:
        """Frequency at which each mel filter peaks, in Hz (F,), float64."""
        low, high = _mel(self.f_min), _mel(self.f_max)
        mels = torch.linspace(low, high, self.num_mels + 2, dtype=torch.float64)[1:-1]
        return 700 * torch.expm1(mels / 1127)

    def settings(self) -> dict[str, Any]:
        """Constructor arguments and the kind, in plain values."""
        settings = {"kind": "kaldi", **super().settings()}
        return {**settings, "pad_frames": self.pad_frames} if self.pad_frames else settings


def _mel(hz: float) -> float:
    return 1127 * math.log1p(hz / 700)


def _positive(number: Any) -> Any:
    return number.clamp(min=0) if isinstance(number, Tensor) else max(number, 0)


FRONT_ENDS: dict[str, type[LogMel]] = {"log_mel": LogMel, "kaldi": KaldiMel}


def front_end_of(settings: dict[str, Any]) -> LogMel:
    """The front end of what `LogMel.settings` gave, of any kind.

    Raises:
        ValueError: for an unknown kind.
    """
    arguments = dict(settings)
    kind = arguments.pop("kind", "log_mel")
    if kind not in FRONT_ENDS:
        raise ValueError(f"front_end.kind must be {' or '.join(FRONT_ENDS)}, got {kind!r}")
    return FRONT_ENDS[kind](**arguments)
