"""Long clips through a network: their log-mels cut into windows, the windows' results joined."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssmast.audio import LogMel, LongSound
from ssmast.model import Backbone, Grid

Clips = Sequence[Tensor | LongSound]


class Window(NamedTuple):
    """Frames [start, start + length) of the log-mel of one clip of a list."""

    clip: int
    start: int
    length: int


class WindowCutter:
    """Cuts clips for one encoder: in whole columns of tokens, into windows of about equal length.

    Args:
        backbone: gives the stride of a column.
        log_mel: front end.
        seconds: longest window, rounded up to whole columns.
        level: whose columns: number of a stage (of an AST: a block), by default the last.
    """

    def __init__(
        self, backbone: Backbone, log_mel: LogMel, *, seconds: float, level: int = -1
    ) -> None:
        stem = backbone.patch_embed
        self.backbone, self._log_mel = backbone, log_mel
        self.level = range(len(backbone.level_ends))[level]
        self.stride = backbone.time_stride(level)
        self._frame_ms = 1000 * log_mel.hop_length / log_mel.sample_rate
        self._most_columns = math.ceil(self.frames_in(seconds) / self.stride)
        self._fewest = backbone.fewest_frames
        # Frames that a window needs beyond columns x stride.
        self._overhang = max(0, stem.kernel[1] - 2 * stem.padding[1] - stem.stride[1])

    def frames_in(self, seconds: float) -> float:
        """Frames in `seconds`."""
        return 1000 * seconds / self._frame_ms

    def frames(self, samples: int) -> int:
        """Frames of a clip; one too short for the stem has silence after it."""
        return max(self._log_mel.frames(samples), self._fewest)

    def columns(self, frames: int) -> int:
        """Columns of tokens of `frames`."""
        return self._grid(frames).time

    @property
    def column_dim(self) -> int:
        """Frequency rows x channels of a column of tokens."""
        rows = self._grid(max(self.backbone.input_size[1], 1)).freq
        return rows * self.backbone.block_channels[self.backbone.level_ends[self.level]]

    def _grid(self, frames: int) -> Grid:
        return self.backbone.level_grid(self._log_mel.num_mels, frames, self.level)

    def hop_ms(self, shifts: Sequence[int]) -> float:
        """Milliseconds between columns, of passes that begin at these frames."""
        return self.stride // len(shifts) * self._frame_ms

    def centres_ms(self, count: int, shifts: Sequence[int]) -> Tensor:
        """Milliseconds of the centres of the first columns, float32 (`count`,)."""
        stem = self.backbone.patch_embed
        first = max(0.0, (stem.kernel[1] - 1) / 2 - stem.padding[1])  # frame
        frames = torch.arange(count, device="cpu") * (self.stride // len(shifts)) + first
        return (frames.double() * self._frame_ms).float()

    def shifts(self, hop_ms: float | None) -> list[int]:
        """Frames to leave out before a clip, once a pass, so that columns come often enough.

        One pass gives a column every `stride` frames. n of them, each begun stride / n later, give
        n times as many, evenly spaced; n is the smallest that divides the stride and will do.

        Args:
            hop_ms: longest time between columns; None for that of one pass.

        Raises:
            ValueError: if it is shorter than a frame.
        """
        if hop_ms is None:
            return [0]
        wanted = hop_ms / self._frame_ms
        hops = [hop for hop in range(self.stride, 0, -1) if self.stride % hop == 0]
        fitting = [hop for hop in hops if hop <= wanted + 1e-9]
        if not fitting:
            raise ValueError(
                f"hop_ms must be at least one frame, {self._frame_ms:g} ms, got {hop_ms}"
            )
        return list(range(0, self.stride, fitting[0]))

    def cut(self, clip: int, frames: int, *, first: int = 0) -> list[Window]:
        """Windows of equal length, so that no short tail is left over; from frame `first` on."""
        if frames - first < self._fewest:
            return []
        windows = self._cut(clip, frames - first)
        return [window._replace(start=window.start + first) for window in windows]

    def _cut(self, clip: int, frames: int) -> list[Window]:
        columns = self.columns(frames)
        count = math.ceil(columns / self._most_columns)
        edges = [columns * part // count for part in range(count + 1)]
        windows = []
        for start, stop in pairwise(edges):
            end = stop * self.stride + self._overhang if stop < columns else frames
            windows.append(Window(clip, start * self.stride, end - start * self.stride))
        return windows

    def log_mels(self, waveforms: Clips, windows: Sequence[Window]) -> tuple[Tensor, Tensor | None]:
        """Normalised log-mels (B, 1, F, T) of windows: the same frames as those of whole clips.

        The windows of a long sound must come from front to back. The second value holds the frames
        of each, or is None where all have T.
        """
        longest = max(window.length for window in windows)
        _, width, skipped = self._log_mel.span(0, longest)
        batch = torch.zeros((len(windows), width), dtype=torch.float32, device="cpu")
        for row, window in enumerate(windows):
            # A window comes with what its first and last frames reach into, cut off again below.
            first, count, _ = self._log_mel.span(window.start, window.length)
            samples = waveforms[window.clip][max(first, 0) : first + count]
            part = torch.as_tensor(samples, device="cpu")
            start = max(-first, 0)
            batch[row, start : start + len(part)] = part  # not a view: gradients may flow
        front = self._log_mel
        log_mel = front.log_mel(batch.to(front.filterbank.device))
        log_mel = log_mel[..., skipped : skipped + longest]
        left = [front.frames(len(waveforms[clip])) - start for clip, start, _ in windows]
        sound = torch.tensor(left, device="cpu")
        lengths = torch.tensor([window.length for window in windows], device="cpu")
        log_mel = front.normalize(front.padded(log_mel, lengths.minimum(sound)))
        lengths = lengths.clamp(min=front.pad_frames)
        return log_mel, None if int(lengths.min()) == log_mel.shape[3] else lengths

    def batches(
        self, clips: Clips, windows: Sequence[Window], *, batch_seconds: float
    ) -> Iterator[tuple[list[Window], Tensor, Tensor | None]]:
        """Batches of windows with their `log_mels`.

        On a CPU a thread decodes and transforms the next batch while one goes through the network:
        files, FFTs and the network's products all run without Python's lock. A card is used by the
        calling thread alone.

        Raises:
            ValueError: if `batch_seconds` is not above 0.
        """
        if not batch_seconds > 0:  # NaN would put all into one batch
            raise ValueError(f"batch_seconds must be above 0, got {batch_seconds}")
        groups = list(batches(windows, most_frames=self.frames_in(batch_seconds)))
        made = ((group, *self.log_mels(clips, group)) for group in groups)
        if len(groups) < 2 or self._log_mel.filterbank.device.type != "cpu":
            yield from made
            return
        with ThreadPoolExecutor(1, thread_name_prefix="log-mel") as thread:
            following = thread.submit(next, made, None)
            while (batch := following.result()) is not None:
                following = thread.submit(next, made, None)
                yield batch


def window_starts(samples: int, *, size: int, hop: int) -> list[int]:
    """First sample of each window of `size` samples along a clip; the last ends where that ends."""
    slack = max(0, samples - size)
    return [*range(0, slack, hop), slack]


def batches(windows: Sequence[Window], *, most_frames: float) -> Iterator[list[Window]]:
    """Windows of similar length together, each batch of at most `most_frames` with padding.

    Clips with long windows come first; those of one clip, which are about equal, one after the
    other from front to back, so that a long file can be read meanwhile.
    """
    longest: dict[int, int] = {}
    for window in windows:
        longest[window.clip] = max(longest.get(window.clip, 0), window.length)
    batch: list[Window] = []
    width = 0
    for window in sorted(windows, key=lambda c: (-longest[c.clip], c.clip, c.start)):
        wider = max(width, window.length)
        # All are padded to the longest, and none to over twice its length.
        if batch and ((len(batch) + 1) * wider > most_frames or 2 * window.length < wider):
            yield batch
            batch, wider = [], window.length
        batch.append(window)
        width = wider
    if batch:
        yield batch


# Networks that are in use now: by how many threads, and the modes from before the first.
_EVALUATED: dict[nn.Module, tuple[int, list[tuple[nn.Module, bool]]]] = {}
_LOCK = threading.Lock()


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards in its own again.

    Threads may be inside together: the first one sets the mode, the last one restores it. So the
    count is the process's, beside the network. Without it: a copy of the module tree with its own
    modes runs the original behind a replaced `forward` (accelerate, torch.compile); modules of our
    own that ask for no mode leave out the dropout of an adapter; a lock while the network runs
    would have threads wait for one another.
    """
    with _LOCK:
        modes = [(module, module.training) for module in network.modules()]
        inside, modes = _EVALUATED.get(network, (0, modes))
        _EVALUATED[network] = inside + 1, modes
        network.eval()
    try:
        yield
    finally:
        with _LOCK:
            inside, modes = _EVALUATED.pop(network)
            if inside > 1:
                _EVALUATED[network] = inside - 1, modes
            else:
                for module, mode in modes:
                    module.training = mode


def arithmetic(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """What a trained network computes in: "fp32", or "bf16" where that is asked for.

    Raises:
        ValueError: for another word, or a GPU that emulates it.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    if precision != "bf16":
        raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"precision=bf16 needs a GPU of compute capability 8.0 or newer, "
            f"{torch.cuda.get_device_name(device)} is older; use precision=fp32"
        )
    return torch.autocast(device.type, torch.bfloat16)


@torch.no_grad()
def embed_windows(
    network: Callable[[Tensor, Tensor | None], Tensor],
    clips: Clips,
    cutter: WindowCutter,
    *,
    is_max: Tensor,
    batch_seconds: float,
    precision: str = "fp32",
) -> Tensor:
    """One vector a clip: the mean of its windows' by length, or their maximum.

    Args:
        network: log-mels (B, 1, F, T), and the frames of each or None, to vectors (B, D).
        clips: (S,) at the front end's rate.
        cutter: cuts them.
        is_max: bool (D,), True where the maximum is wanted.
        batch_seconds: audio that goes through the network at once.
        precision: see `arithmetic`; log-mels and means are float32 in any case.

    Returns:
        Float32 (n, D) on the CPU.
    """
    # Said outright: the caller may have set another type or device for new tensors.
    means = torch.zeros(len(clips), len(is_max), dtype=torch.float32, device="cpu")
    maxima = torch.full_like(means, -math.inf)
    totals = [cutter.frames(len(clip)) for clip in clips]
    windows = [window for clip, total in enumerate(totals) for window in cutter.cut(clip, total)]
    for batch, log_mel, lengths in cutter.batches(clips, windows, batch_seconds=batch_seconds):
        with arithmetic(log_mel.device, precision):
            vectors = network(log_mel, lengths)
        vectors = vectors.float().cpu()
        for window, vector in zip(batch, vectors, strict=True):
            means[window.clip] += vector * (window.length / totals[window.clip])
            maxima[window.clip] = torch.maximum(maxima[window.clip], vector)
            clip = clips[window.clip]
            if isinstance(clip, LongSound) and window.start + window.length == totals[window.clip]:
                clip.close()  # there may be thousands, and each holds its last samples
    return torch.where(is_max, maxima, means)


@torch.no_grad()
def embed_columns(
    clips: Clips,
    cutter: WindowCutter,
    *,
    shifts: Sequence[int],
    batch_seconds: float,
    precision: str = "fp32",
) -> Tensor:
    """One vector a column of tokens: the frequency rows of the cutter's level, joined.

    Args:
        clips: of one length, (S,) at the front end's rate.
        cutter: cuts them; its backbone runs once for each shift.
        shifts: frames to leave out before a clip, once a pass; of `WindowCutter.shifts`.
        batch_seconds: audio that goes through the backbone at once.
        precision: see `arithmetic`.

    Returns:
        Float32 (n, N, rows x channels) on the CPU, `cutter.stride / len(shifts)` frames apart.
    """
    total, hop = cutter.frames(len(clips[0])), cutter.stride // len(shifts)
    windows = [
        window
        for clip in range(len(clips))
        for shift in shifts
        for window in cutter.cut(clip, total, first=shift)
    ]
    # Pass k gives the columns k, k + n, k + 2 n, ... ; a clip may be too short for the last.
    passes = [shift for shift in shifts if cutter.cut(0, total, first=shift)]
    count = sum(cutter.columns(total - shift) for shift in passes)
    shape = (len(clips), count, cutter.column_dim)
    columns = torch.zeros(shape, dtype=torch.float32, device="cpu")
    for batch, log_mel, lengths in cutter.batches(clips, windows, batch_seconds=batch_seconds):
        with arithmetic(log_mel.device, precision):
            tokens, grid, *_ = cutter.backbone.encode(
                log_mel, lengths=lengths, stop=cutter.level + 1
            )
        maps = tokens.unflatten(1, grid[:]).transpose(1, 2).flatten(2)  # (b, t, f * C)
        for window, found in zip(batch, maps.float().cpu(), strict=True):
            num = cutter.columns(window.length)
            where = slice(window.start // hop, None, len(shifts))
            columns[window.clip, where][:num] = found[:num]
    return columns
