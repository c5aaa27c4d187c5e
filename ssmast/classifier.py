"""Classifier: waveform -> class scores, from a fine-tuned encoder folder.

The folder is an encoder folder whose backbone has a classification head; in config.json,
`ssmast.info.classifier` holds the names of its classes and the length of its training windows.
"""

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.audio import LogMel, LongSound
from ssmast.encoder import Encoder, load_encoder
from ssmast.encoder.folder import encoder_folder
from ssmast.encoder.input import check_clips
from ssmast.encoder.windows import arithmetic, evaluating, window_starts


class Head(NamedTuple):
    """A label column and its classes; the position of a class is its number."""

    name: str
    classes: list[str]


class Outputs(NamedTuple):
    """What the numbers of a classification head mean.

    Attributes:
        heads: one a label column, one after the other.
        multi_label: clips have any number of classes, else one of each head.
    """

    heads: list[Head]
    multi_label: bool

    @property
    def sizes(self) -> list[int]:
        """Classes of each head."""
        return [len(classes) for _, classes in self.heads]

    def top(
        self, scores: Tensor, most: int, *, threshold: float = 0.0, background: Collection[str] = ()
    ) -> list[tuple[str, str, float]]:
        """Head, class and probability of the likeliest classes of each head, likeliest first.

        Args:
            scores: of the classes of all heads (C,), as `Classifier.embed_clips` gives them.
            most: classes of each head; 0 for all.
            threshold: least probability.
            background: classes that are left out; where one is the likeliest, its head has none.
        """
        found = []
        for (head, classes), own in zip(self.heads, scores.split(self.sizes), strict=True):
            chances = own.sigmoid() if self.multi_label else own.exp()
            best = chances.topk(min(most or len(classes), len(classes)))
            if classes[int(best.indices[0])] in background:
                continue
            found += [
                (head, classes[index], chance)
                for chance, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                if chance >= threshold and classes[index] not in background
            ]
        return found

    def label(self, head: str, name: str) -> str:
        """What a class is called: its name, with that of its head where there are several."""
        return name if len(self.heads) == 1 else f"{head}: {name}"


class WindowScores(NamedTuple):
    """Scores along a clip.

    Attributes:
        start: first moment of each window in seconds, float64 (n,).
        stop: its end.
        scores: (n, classes of all heads), as `Classifier.embed_clips` gives them.
        level: root mean square of each window in dB of full scale, float64 (n,); -inf for silence.
    """

    start: np.ndarray
    stop: np.ndarray
    scores: Tensor
    level: np.ndarray


class Classifier:
    """Clips of any length through a network with a head; an `Embedder` whose vectors are scores.

    A clip is cut into windows of the training's length, evenly spread over it, and their
    probabilities are averaged. A shorter clip is taken as it is, as in training.

    Args:
        network: log-mel (B, 1, F, T) -> logits (B, classes of all heads), with `lengths` where
            clips differ; a `Backbone`, or what can be called as one.
        log_mel: front end.
        outputs: what the logits mean.
        frames: of a window.
        max_windows: most windows of a clip; 0 for as many as cover it.
        cut: of a longer clip take the first window alone, as transformers' AST does.
        sha256: hash of the weights, where it is known.
        precision: of the network: "fp32" or "bf16".
        trained_on: `Corpus.listing_hash` of the clips it learnt from, where it is known.
    """

    def __init__(
        self,
        network: nn.Module,
        log_mel: LogMel,
        *,
        outputs: Outputs,
        frames: int,
        max_windows: int = 0,
        cut: bool = False,
        sha256: str = "",
        precision: str = "fp32",
        trained_on: str = "",
    ) -> None:
        self.network, self.log_mel, self.outputs, self.cut = network, log_mel, outputs, cut
        self.frames, self.max_windows, self.sha256 = frames, max_windows, sha256
        self.precision, self.trained_on = precision, trained_on

    def to(self, device: torch.device) -> "Classifier":
        """Itself, with network and front end on a device."""
        self.network.to(device)
        self.log_mel.to(device)
        return self

    @property
    def sample_rate(self) -> int:
        """Hz at which the front end works."""
        return self.log_mel.sample_rate

    @property
    def dim(self) -> int:
        """Classes of all heads."""
        return sum(self.outputs.sizes)

    @property
    def window_seconds(self) -> float:
        """Length of a window."""
        return self.log_mel.samples(self.frames) / self.sample_rate

    def settings(self) -> dict[str, Any]:
        """Settings that decide a score beside the weights, plain JSON values."""
        settings = {
            "front_end": self.log_mel.settings(),
            "frames": self.frames,
            "max_windows": self.max_windows,
            "cut": self.cut,
        }
        return settings if self.precision == "fp32" else {**settings, "precision": self.precision}

    def embed_clips(
        self, waveforms: Sequence[Tensor | LongSound], *, batch_seconds: float = 60.0
    ) -> Tensor:
        """Scores of clips (S,) at `sample_rate`.

        Returns:
            Float32 (n, `dim`) on the CPU: log-probabilities of each head, or the logit of each
            class where clips may have several.

        Raises:
            ValueError: for a clip that is not float samples (S,).
        """
        clips = self.each_window(waveforms, batch_seconds=batch_seconds)
        found = [log_mean_probability(clip, self.outputs).float() for clip in clips]
        return torch.stack(found) if found else torch.empty(0, self.dim)

    def each_window(
        self, waveforms: Sequence[Tensor | LongSound], *, batch_seconds: float = 60.0
    ) -> list[Tensor]:
        """Logits of the windows of each clip (S,), float32 (K, C) on the CPU."""
        if not waveforms:
            return []
        starts = [self._starts(len(waveform)) for waveform in waveforms]
        windows = [(clip, start) for clip, own in enumerate(starts) for start in own]
        logits, _ = self._logits(waveforms, windows, batch_seconds=batch_seconds)
        return list(logits.split([len(own) for own in starts]))

    def windows(self, waveform: Tensor | LongSound, *, hop_seconds: float = 0.0) -> WindowScores:
        """Scores of one window after the other.

        Args:
            waveform: clip (S,) at `sample_rate`.
            hop_seconds: from one window to the next; 0 for one window's length. The last window
                ends where the clip ends.
        """
        starts = self._hops(len(waveform), hop_seconds)
        found = self._logits([waveform], [(0, s) for s in starts], batch_seconds=60.0)
        return self._windows_at(starts, *found, len(waveform))

    def windows_and_whole(
        self,
        waveform: Tensor | LongSound,
        *,
        hop_seconds: float = 0.0,
        batch_seconds: float = 60.0,
        advance: Callable[[float], None] | None = None,
    ) -> tuple[WindowScores, Tensor]:
        """Results of `windows` and of `embed_clips` (C,), for a clip that is read once.

        `advance` is told after each batch which fraction of the windows it was.
        """
        along, over = self._hops(len(waveform), hop_seconds), self._starts(len(waveform))
        starts = sorted({*along, *over})  # a long sound is read from front to back
        logits, levels = self._logits(
            [waveform], [(0, s) for s in starts], batch_seconds=batch_seconds, advance=advance
        )
        at = {start: row for row, start in enumerate(starts)}
        whole = log_mean_probability(logits[[at[start] for start in over]], self.outputs)
        rows = [at[start] for start in along]
        windows = self._windows_at(along, logits[rows], levels[rows], len(waveform))
        return windows, whole.float()

    def _windows_at(
        self, starts: list[int], logits: Tensor, levels: Tensor, samples: int
    ) -> WindowScores:
        scores = torch.stack([log_mean_probability(row[None], self.outputs) for row in logits])
        first = np.array(starts)
        last = np.minimum(first + self.log_mel.samples(self.frames), samples)
        rate = self.sample_rate
        return WindowScores(first / rate, last / rate, scores.float(), levels.numpy())

    def _hops(self, samples: int, hop_seconds: float) -> list[int]:
        """First sample of each window along a clip; the last one ends where the clip ends."""
        length = self.log_mel.samples(self.frames)
        hop = round(hop_seconds * self.sample_rate) if hop_seconds else length
        if hop < 1:
            raise ValueError(f"hop must be at least one sample, got {hop_seconds} s")
        return window_starts(samples, size=length, hop=hop)

    def _starts(self, samples: int) -> list[int]:
        """First sample of each window of a clip."""
        length = self.log_mel.samples(self.frames)
        slack = samples - length
        if slack <= 0 or self.cut:
            return [0]
        count = math.ceil(samples / length)
        count = min(count, self.max_windows) if self.max_windows else count
        if count == 1:
            return [slack // 2]
        return [round(slack * part / (count - 1)) for part in range(count)]

    @torch.no_grad()
    def _logits(
        self,
        waveforms: Sequence[Tensor | LongSound],
        windows: Sequence[tuple[int, int]],
        *,
        batch_seconds: float,
        advance: Callable[[float], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (n, C) of windows (clip, first sample) and their levels in dB, float64 (n,).

        Those of like length go together.
        """
        check_clips(waveforms, rate=self.sample_rate)
        length = self.log_mel.samples(self.frames)
        device = self.log_mel.filterbank.device
        size = max(1, int(batch_seconds / self.window_seconds))
        samples = [min(length, len(waveforms[clip])) for clip, _ in windows]
        # Longest first; those of one clip, which are of one length, from front to back, so that a
        # long file can be read meanwhile.
        order = sorted(range(len(windows)), key=lambda index: -samples[index])
        logits: list[Tensor] = [torch.empty(0)] * len(windows)
        levels = torch.zeros(len(windows), dtype=torch.float64)
        with evaluating(self.network):
            for at in range(0, len(order), size):
                part = order[at : at + size]
                shape = (len(part), samples[part[0]])
                batch = torch.zeros(shape, dtype=torch.float32, device="cpu")
                for row, index in zip(batch, part, strict=True):
                    clip, start = windows[index]
                    window = waveforms[clip][start : start + length]
                    row[: samples[index]] = torch.as_tensor(window, device="cpu")
                    power = row[: samples[index]].double().square().mean()
                    levels[index] = 10 * power.log10()
                log_mel, frames = window_log_mels(
                    self.log_mel,
                    batch.to(device),
                    torch.tensor([samples[index] for index in part], device="cpu"),
                    fewest=getattr(self.network, "fewest_frames", 1),
                )
                with arithmetic(device, self.precision):
                    found = self.network(log_mel, lengths=frames)
                found = found.float().cpu()
                for index, row in zip(part, found, strict=True):
                    logits[index] = row
                if advance is not None:
                    advance(len(part) / len(order))
        return torch.stack(logits), levels


class WindowMeans(Classifier):
    """Vectors of clips by a network without classes, cut as a `Classifier` cuts; an `Embedder`.

    Of a clip longer than a window the mean over its windows. They are not kept on disk, so there is
    no hash of the weights. The network is as a `Classifier`'s, its vectors are (B, `dim`).
    """

    def __init__(
        self, network: nn.Module, log_mel: LogMel, *, dim: int, frames: int, max_windows: int = 0
    ) -> None:
        super().__init__(
            network, log_mel, outputs=Outputs([], False), frames=frames, max_windows=max_windows
        )
        self._dim = dim

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    def embed_clips(
        self, waveforms: Sequence[Tensor | LongSound], *, batch_seconds: float = 60.0
    ) -> Tensor:
        """Clips (S,) at `sample_rate` -> float32 (n, `dim`) on the CPU."""
        found = self.each_window(waveforms, batch_seconds=batch_seconds)
        return torch.stack([r.mean(dim=0) for r in found]) if found else torch.empty(0, self.dim)


def window_log_mels(
    front_end: LogMel, waveform: Tensor, samples: Tensor, *, fewest: int, fast: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Windows -> normalised log-mels (B, 1, F, T), and the frames of each int64 (B,).

    Those are None where all have T. A window too short for the network has silence after it.

    Of samples (B, S) with zeros behind the shorter ones, and the number of each (B,) on the CPU.
    `fewest` frames are what the network needs, `fast` is that of `LogMel.log_mel`.
    """
    missing = front_end.samples(fewest) - waveform.shape[1]
    if missing > 0:
        waveform = F.pad(waveform, (0, missing))
    frames = front_end.frames(samples)
    log_mel = front_end.padded(front_end.log_mel(waveform, fast=fast), frames)
    log_mel = front_end.normalize(log_mel)
    frames = frames.clamp(min=max(fewest, front_end.pad_frames))
    return log_mel, None if int(frames.min()) == log_mel.shape[3] else frames


def log_mean_probability(logits: Tensor, outputs: Outputs) -> Tensor:
    """Windows' logits (K, C) -> the clip's score (C,) float64: that of the mean probability.

    Returns:
        Log-probabilities of each head; for several labels the logit of each class. Worked out in
        logarithms, so that probabilities near 0 and 1 keep their order.
    """
    logits = logits.double()
    if outputs.multi_label:
        return torch.logsumexp(F.logsigmoid(logits), 0) - torch.logsumexp(F.logsigmoid(-logits), 0)
    parts = logits.split(outputs.sizes, dim=1)
    sums = [torch.logsumexp(part.log_softmax(dim=1), dim=0) for part in parts]
    return torch.cat(sums) - math.log(len(logits))


def classifier_info(outputs: Outputs, *, frames: int, max_windows: int) -> dict[str, Any]:
    """The entry about the head in a fine-tuned folder's config.json, plain JSON values."""
    return {
        "heads": [{"name": name, "classes": classes} for name, classes in outputs.heads],
        "multi_label": outputs.multi_label,
        "frames": frames,
        "max_windows": max_windows,
    }


def load_classifier(
    path: str | Path, *, cut: bool = False, precision: str = "fp32", window_seconds: float = 0.0
) -> Classifier:
    """The classifier in a fine-tuned encoder folder (or run folder); on the CPU.

    Args:
        path: the folder, or one with an AST that transformers wrote, see `load_encoder`.
        cut: of clips longer than a window take the first window alone, as transformers' AST does;
            by default the windows that cover a clip are averaged.
        precision: of the network: "fp32", or "bf16".
        window_seconds: of the windows; 0 for those of the training.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the folder is damaged, or holds an encoder that was not fine-tuned.
    """
    path = encoder_folder(path)
    encoder = load_encoder(path, precision=precision)
    made = as_classifier(encoder, name=str(path), cut=cut)
    if window_seconds:
        made.frames = made.log_mel.frames(max(1, round(window_seconds * made.sample_rate)))
    return made


def as_classifier(encoder: Encoder, *, name: str = "the encoder", cut: bool = False) -> Classifier:
    """A classifier from an encoder with a head.

    Messages call it `name`; `cut` as in `load_classifier`.

    Raises:
        ValueError: if its folder describes no head.
    """
    info = encoder.info.get("classifier") or {}
    try:
        heads = [Head(str(h["name"]), [str(c) for c in h["classes"]]) for h in info["heads"]]
        outputs = Outputs(heads, bool(info["multi_label"]))
        if sum(outputs.sizes) != encoder.backbone.num_classes:
            raise ValueError(
                f"{sum(outputs.sizes)} names for {encoder.backbone.num_classes} classes"
            )
        return Classifier(
            encoder.backbone,
            encoder.log_mel,
            outputs=outputs,
            frames=int(info["frames"]),
            max_windows=int(info["max_windows"]),
            cut=cut,
            sha256=encoder.sha256,
            precision=encoder.precision,
            trained_on=str(encoder.info.get("corpus", "")),
        )
    except (TypeError, KeyError, ValueError) as error:
        why = "it has no classes" if not info else f"its classes do not fit ({error})"
        raise ValueError(
            f"{name} is no fine-tuned encoder: {why}; make one with `ssmast finetune`"
        ) from error
