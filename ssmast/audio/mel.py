"""Waveform to log-mel spectrogram: one object for pretraining, probing, fine-tuning and export.

`LogMel` is ours, as BYOL-A's; `KaldiMel` what AST, SSAST, PSLA and most published audio
transformers take.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SETTINGS = ("sample_rate", "n_fft", "hop_length", "num_mels", "f_min", "f_max", "mean", "std")
EPS = 1.1920929e-07
"""Added to the mel power before the logarithm: float32 machine epsilon."""

# Frames that are transformed at once. On a CPU spectra of that size stay in the cache, at 2.5 times
# the speed of 2^15 frames. Elsewhere the number bounds memory, at 16 kB a frame in float64.
_FRAMES_AT_ONCE = {"cpu": 1 << 9, "else": 1 << 15}


class LogMel(nn.Module):
    """Log-mel spectrogram with its normalisation.

    The power spectrogram of librosa (periodic Hann window, centred frames, zeros beyond the ends)
    through Slaney's mel filters of unit area, then the natural logarithm. Autocast has no effect
    here: the transform is computed in float64 as librosa's is (in float32, quiet bins beside a loud
    tone come out 2e-3 off; devices without float64 use it), the rest in float32.

    Args:
        sample_rate: rate of the waveforms in Hz.
        n_fft: length of the window and the transform in samples.
        hop_length: samples between frames.
        num_mels: number of mel bins F.
        f_min: lowest frequency in Hz.
        f_max: highest frequency in Hz.
        mean: of the log-mel over the corpus, subtracted by `normalize`.
        std: of the log-mel over the corpus, divided out by `normalize`.

    Raises:
        ValueError: if the settings make no filterbank, or leave a mel bin without a frequency.

    Source: settings and normalisation as BYOL-A (Niizumi et al. 2021); filters as librosa.
    """

    filterbank: Tensor
    pad_frames: int = 0
    """Fewest frames; a shorter clip has zeros after it, see `padded`. 0: it is left as it is."""

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        n_fft: int = 1024,
        hop_length: int = 160,
        num_mels: int = 128,
        f_min: float = 60.0,
        f_max: float = 7800.0,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = {"sample_rate": sample_rate, "n_fft": n_fft, "hop_length": hop_length}
        for what, value in {**sizes, "num_mels": num_mels}.items():
            if value < 1:
                raise ValueError(f"{what} must be at least 1, got {value}")
        if not 0 <= f_min < f_max <= sample_rate / 2:
            raise ValueError(
                f"f_min and f_max must satisfy 0 <= f_min < f_max <= {sample_rate / 2:g} Hz (half "
                f"the sample rate), got {f_min:g} and {f_max:g}"
            )
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ValueError(f"mean must be finite and std positive, got {mean} and {std}")
        self.sample_rate = sample_rate
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.num_mels = num_mels
        self.f_min = float(f_min)
        self.f_max = float(f_max)
        self.mean = float(mean)
        self.std = float(std)
        # Not persistent: it follows from the settings, and a checkpoint holds those.
        self.register_buffer("filterbank", self._filterbank(), persistent=False)

    def _filterbank(self) -> Tensor:
        return mel_filterbank(self.sample_rate, self.n_fft, self.num_mels, self.f_min, self.f_max)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LogMel":
        super()._apply(fn, recurse)
        if self.filterbank.dtype != torch.float32:  # `encoder.half()` must not round the filters
            self.filterbank = self._filterbank().to(self.filterbank.device)
        return self

    def log_mel(self, waveform: Tensor, *, fast: bool = False) -> Tensor:
        """Natural logarithm of the mel power plus `EPS`, not normalised.

        Args:
            waveform: samples (B, S), floats of full scale 1; S >= 1.
            fast: transform in float32, at half the time. Bins far below a loud tone are then off
                by up to 2e-3, which no augmented view in training can tell.

        Returns:
            Float32 (B, 1, F, T) with T = 1 + S // hop_length.
        """
        _check_batch(waveform)
        with torch.autocast(waveform.device.type, enabled=False):
            if torch.compiler.is_compiling():  # an exported graph takes any batch: no loop over it
                return self._log_mel(waveform, fast)
            at_once = _FRAMES_AT_ONCE.get(waveform.device.type, _FRAMES_AT_ONCE["else"])
            clips = max(1, at_once // self.frames(waveform.shape[1]))
            return torch.cat([self._log_mel(some, fast) for some in waveform.split(clips)])

    def _log_mel(self, waveform: Tensor, fast: bool) -> Tensor:
        device, half, hop = waveform.device, self.n_fft // 2, self.hop_length
        precise = torch.float32 if fast or device.type == "mps" else torch.float64
        padded = F.pad(waveform.to(precise), (half, half))
        if torch.compiler.is_compiling():
            mel = self._mel(padded)
        else:  # a long clip in parts of about equal length
            frames = self.frames(waveform.shape[1])
            parts = math.ceil(frames / _FRAMES_AT_ONCE.get(device.type, _FRAMES_AT_ONCE["else"]))
            edges = [frames * part // parts for part in range(parts + 1)]
            spans = [slice(a * hop, (b - 1) * hop + self.n_fft) for a, b in pairwise(edges)]
            mel = torch.cat([self._mel(padded[:, span]) for span in spans], dim=-1)
        return (mel + EPS).log().unsqueeze(1)  # (B, 1, F, T)

    def _mel(self, padded: Tensor) -> Tensor:
        """Mel power (B, F, T) of samples with half a window more on both sides."""
        spectrum = torch.stft(
            padded,
            self.n_fft,
            hop_length=self.hop_length,
            window=torch.hann_window(self.n_fft, dtype=padded.dtype, device=padded.device),
            center=False,
            return_complex=True,
        )  # (B, n_fft / 2 + 1, T)
        power = (spectrum.real.square() + spectrum.imag.square()).float()
        return self._filtered(power)

    def _filtered(self, power: Tensor) -> Tensor:
        """Power spectra (B, n_fft / 2 + 1, T) through the filters, (B, F, T)."""
        if torch.compiler.is_exporting():  # the product below asks whether the batch is 1
            return torch.bmm(self.filterbank.expand(power.shape[0], -1, -1), power)
        return self.filterbank @ power

    def normalize(self, log_mel: Tensor) -> Tensor:
        """Subtract the corpus mean and divide by its standard deviation; any shape."""
        return (log_mel - self.mean) / self.std

    def padded(self, log_mel: Tensor, frames: Tensor | None = None) -> Tensor:
        """Log-mels (B, 1, F, T), not yet normalised, with zeros up to `pad_frames`.

        Args:
            log_mel: of clips.
            frames: of each clip, int64 (B,), where some are shorter than T: zeros come after them.

        Source: Gong et al. 2021 (AST), whose code pads features before it normalises them.
        """
        if not self.pad_frames:
            return log_mel
        missing: Any = torch.sym_max(self.pad_frames - log_mel.shape[3], 0)  # a symbol in a graph
        log_mel = F.pad(log_mel, (0, missing))
        if frames is None:
            return log_mel
        at = torch.arange(log_mel.shape[3], device=log_mel.device)
        beyond = at >= frames.to(log_mel.device)[:, None]
        return log_mel.masked_fill(beyond[:, None, None], 0.0)

    def forward(self, waveform: Tensor) -> Tensor:
        """Normalised log-mel spectrogram (B, 1, F, T) of waveforms (B, S)."""
        return self.normalize(self.padded(self.log_mel(waveform)))

    def frames(self, samples: Any) -> Any:
        """Number of frames of a waveform of `samples` samples (or of several, a tensor)."""
        return 1 + samples // self.hop_length

    def samples(self, frames: int) -> int:
        """Fewest samples that make `frames` frames: 15,200 (0.95 s) for 96 at the defaults."""
        return (frames - 1) * self.hop_length

    def span(self, start: int, frames: int) -> tuple[int, int, int]:
        """What of a clip makes its frames [start, start + frames).

        Returns:
            First sample (negative where zeros stand before the clip), number of samples, and how
            many of the frames that come of them to leave out at the start.
        """
        context = math.ceil(self.n_fft // 2 / self.hop_length)  # half a window on both sides
        return (
            (start - context) * self.hop_length,
            (frames + 2 * context) * self.hop_length,
            context,
        )

    def centres_hz(self) -> Tensor:
        """Frequency at which each mel filter peaks, in Hz (F,), float64."""
        return _mel_edges(self.num_mels, self.f_min, self.f_max)[1:-1]

    def settings(self) -> dict[str, Any]:
        """Constructor arguments in plain numbers; `LogMel(**settings)` is this object again."""
        return {name: getattr(self, name) for name in _SETTINGS}

    def extra_repr(self) -> str:
        """The settings, as `print` shows them."""
        return ", ".join(f"{name}={value}" for name, value in self.settings().items())


class ProductMel(LogMel):
    """A `LogMel` whose transform is matrix products alone, for graphs.

    onnxruntime's STFT takes twice the time of a whole mast_nano; PyTorch's is faster than these
    products. n_fft = a x b: frames of a x b samples go through transforms of length a, then through
    one of length b for each of the lower half of their outputs, the turn between them included.

    Differs from LogMel: all of it in float32, see `log_mel`'s `fast`.
    Source: Cooley and Tukey 1965.
    """

    window: Tensor
    first: Tensor
    second: Tensor
    filters: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        n, hop = self.n_fft, self.hop_length
        shared = math.gcd(n, hop)  # frames begin at whole rows of b samples
        self.b = min((d for d in range(1, shared + 1) if shared % d == 0), key=lambda d: d + n / d)
        self.a = n // self.b
        half = torch.arange(self.a // 2 + 1, dtype=torch.float64)  # of a real signal's outputs
        turn = 2 * math.pi * half[:, None] * torch.arange(self.a, dtype=torch.float64) / self.a
        row = torch.arange(self.b, dtype=torch.float64)
        bins = half[:, None] + self.a * row  # (half, b), of the outputs
        turns = row[:, None] * bins[:, None] / n  # (half, b, b)
        cos, sin = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
        second = [torch.cat([cos, -sin], dim=2), torch.cat([sin, cos], dim=2)]
        bins = bins.long().flatten()
        bins = torch.minimum(bins, n - bins)  # above half the rate stand the conjugates
        once = torch.zeros(len(bins), 1)
        for number in range(n // 2 + 1):
            once[(bins == number).nonzero()[0]] = 1.0
        constants = {
            "window": torch.hann_window(n, dtype=torch.float64).view(self.a, self.b),
            "first": torch.stack([turn.cos(), -turn.sin()], dim=1).flatten(0, 1),  # (2 half, a)
            "second": torch.cat(second, dim=1),
            "filters": self.filterbank.T[bins] * once,
        }
        for name, value in constants.items():
            self.register_buffer(name, value.float(), persistent=False)

    def _log_mel(self, waveform: Tensor, fast: bool) -> Tensor:
        steps = self.hop_length // self.b
        padded = F.pad(waveform, (self.n_fft // 2, self.n_fft // 2 + self.b))
        count = padded.shape[1] // self.b
        rows = padded[:, : count * self.b].unflatten(1, (count, self.b))
        first = torch.arange(self.frames(waveform.shape[1]), device=waveform.device) * steps
        at = first[:, None] + torch.arange(self.a, device=waveform.device)
        frames = rows[:, at] * self.window  # (B, T, a, b)
        x = (self.first @ frames).unflatten(2, (-1, 2)).flatten(3)  # (B, T, half, 2 b)
        # The product of the halves is that of all clips: a broadcast one asks whether the batch
        # is 1, which an exported graph leaves open.
        x = torch.bmm(x.permute(2, 0, 1, 3).flatten(1, 2), self.second)  # (half, B T, 2 b)
        real, imaginary = x.split(self.b, dim=2)
        # Not squares: in a graph those are powers, at three times the time.
        power = (real * real + imaginary * imaginary).transpose(0, 1).flatten(1)
        power = power.unflatten(0, frames.shape[:2])  # (B, T, half b)
        return (power @ self.filters + EPS).log().transpose(1, 2).unsqueeze(1)


def _check_batch(waveform: object) -> None:
    """Refuse all but float samples (B, S): integers would be samples far beyond full scale."""
    found = type(waveform).__name__
    if isinstance(waveform, Tensor):
        found = f"{str(waveform.dtype).removeprefix('torch.')} {tuple(waveform.shape)}"
        if waveform.is_floating_point() and waveform.ndim == 2 and 0 not in waveform.shape:
            return
    raise ValueError(
        "waveform must be (batch, samples) of floats, full scale 1, with at least one sample, "
        f"got {found}; an encoder's `embed` takes files, arrays and integers too"
    )


def mel_filterbank(
    sample_rate: int, n_fft: int, num_mels: int, f_min: float, f_max: float
) -> Tensor:
    """Triangular mel filters of unit area (F, n_fft // 2 + 1), float32, computed in float64.

    `f_min` is the lower edge of the first filter, `f_max` the upper edge of the last, in Hz.

    Raises:
        ValueError: if a filter falls between two frequencies of the transform.

    Source: Slaney 1998 (Auditory Toolbox), as in librosa.filters.mel.
    Differs from torchaudio.functional.melscale_fbanks: float64 without changing the default dtype
    of the whole process (in float32 a log-mel comes out up to 1e-4 off, in float64 the bits are
    equal), and right at odd rates, which it rounds (11025 Hz: up to 0.4 off).
    """
    edges = _mel_edges(num_mels, f_min, f_max)
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
    filters = _triangles(bins, edges)  # (F, n_fft / 2 + 1)
    empty = int((filters.sum(dim=1) == 0).sum())
    if empty:
        raise ValueError(
            f"{empty} of {num_mels} mel bins hold no frequency at n_fft={n_fft} and {sample_rate} "
            f"Hz; use fewer mel bins or a longer transform"
        )
    return (filters * (2.0 / (edges[2:] - edges[:-2]))[:, None]).float()


def _triangles(at: Tensor, edges: Tensor) -> Tensor:
    """Filters (F, N) at points (N,), that rise from an edge (F + 2,) to the next and fall again."""
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((at - low) / (centre - low), (high - at) / (high - centre)).clamp_min(0)


def _mel_edges(num_mels: int, f_min: float, f_max: float) -> Tensor:
    """Lower edge, all centres and upper edge of the filters in Hz, (F + 2,), float64."""
    scale = torch.linspace(_hz_to_mel(f_min), _hz_to_mel(f_max), num_mels + 2, dtype=torch.float64)
    return torch.where(
        scale < 15, scale * 200 / 3, 1000 * torch.exp((scale - 15) * math.log(6.4) / 27)
    )


def _hz_to_mel(hz: float) -> float:
    """Slaney's scale: linear to 1 kHz (mel 15), then 27 steps for each factor of 6.4."""
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


AUDIOSET = {"mean": -4.2677393, "std": 2 * 4.5689974}
"""Statistics that AST normalises with; its code divides by twice the standard deviation."""
_WINDOW_SECONDS, _PREEMPHASIS = 0.025, 0.97


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
        self.window_length = int(_WINDOW_SECONDS * sample_rate)
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
        emphasised = steps - _PREEMPHASIS * before
        window = torch.hann_window(size, periodic=False, dtype=torch.float64)
        spectrum = torch.fft.rfft(window[:, None] * emphasised, n=self.n_fft, dim=0)
        return torch.cat([spectrum.real, spectrum.imag]).T.contiguous()

    def _filterbank(self) -> Tensor:
        bins = torch.arange(self.n_fft // 2, dtype=torch.float64) * self.sample_rate / self.n_fft
        filters = _triangles(1127 * torch.log1p(bins / 700), self._edges())
        return F.pad(filters, (0, 1)).float()  # Kaldi leaves the highest frequency out

    def _edges(self) -> Tensor:
        low, high = (1127 * math.log1p(hz / 700) for hz in (self.f_min, self.f_max))
        return torch.linspace(low, high, self.num_mels + 2, dtype=torch.float64)

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
        return self._filtered(power).clamp_min(EPS).log().unsqueeze(1)

    def frames(self, samples: Any) -> Any:
        """Number of frames of a waveform of `samples` samples (or of several, a tensor)."""
        beyond = samples - self.window_length
        beyond = beyond.clamp(min=0) if isinstance(beyond, Tensor) else max(beyond, 0)
        return 1 + beyond // self.hop_length

    def samples(self, frames: int) -> int:
        """Fewest samples that make `frames` frames."""
        return (frames - 1) * self.hop_length + self.window_length

    def span(self, start: int, frames: int) -> tuple[int, int, int]:
        """See `LogMel.span`; a frame needs no samples before its window."""
        return start * self.hop_length, self.samples(frames), 0

    def centres_hz(self) -> Tensor:
        """Frequency at which each mel filter peaks, in Hz (F,), float64."""
        return 700 * torch.expm1(self._edges()[1:-1] / 1127)

    def settings(self) -> dict[str, Any]:
        """Constructor arguments and the kind, in plain values."""
        settings = {"kind": "kaldi", **super().settings()}
        return {**settings, "pad_frames": self.pad_frames} if self.pad_frames else settings


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
