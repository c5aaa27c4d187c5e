"""Cutting the log-mels of clips into pieces that a network takes, without changing a frame.

Clips through a network piece by piece, and what the pieces give put together again.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssmast.audio import LogMel, LongSound
from ssmast.model import Backbone


class Chunk(NamedTuple):
    """Frames [start, start + length) of the log-mel of one clip of a list."""

    clip: int
    start: int
    length: int


class Chunks:
    """How one encoder cuts: in whole columns of tokens, all pieces of a clip about equal.

    Args:
        backbone: gives the stride of a column.
        log_mel: front end.
        seconds: longest piece, rounded up to whole columns.
    """

    def __init__(self, backbone: Backbone, log_mel: LogMel, *, seconds: float) -> None:
        stem = backbone.patch_embed
        self.backbone, self._log_mel = backbone, log_mel
        self.stride = backbone.time_stride
        self._frame_ms = 1000 * log_mel.hop_length / log_mel.sample_rate
        self._most_columns = math.ceil(self.frames_in(seconds) / self.stride)
        self._fewest = backbone.fewest_frames
        # Frames that a piece needs beyond columns x stride.
        self._overhang = max(0, stem.kernel[1] - 2 * stem.padding[1] - stem.stride[1])

    def frames_in(self, seconds: float) -> float:
        """Frames in so many seconds."""
        return 1000 * seconds / self._frame_ms

    def frames(self, samples: int) -> int:
        """Frames of a clip; one too short for the stem has silence after it."""
        return max(self._log_mel.frames(samples), self._fewest)

    def columns(self, frames: int) -> int:
        """Columns of tokens that so many frames give."""
        return self.backbone.grid_of(self._log_mel.num_mels, frames)[-1].time

    @property
    def column_dim(self) -> int:
        """Frequency rows x channels of a column of tokens."""
        frames = max(self.backbone.input_size[1], 1)
        rows = self.backbone.grid_of(self._log_mel.num_mels, frames)[-1].freq
        return rows * self.backbone.num_features

    def hop_ms(self, shifts: Sequence[int]) -> float:
        """Milliseconds from one column to the next of passes that begin at these frames."""
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

    def cut(self, clip: int, frames: int, *, first: int = 0) -> list[Chunk]:
        """Pieces of equal length, so that no short tail is left over; from frame `first` on."""
        if frames - first < self._fewest:
            return []
        chunks = self._cut(clip, frames - first)
        return [chunk._replace(start=chunk.start + first) for chunk in chunks]

    def _cut(self, clip: int, frames: int) -> list[Chunk]:
        columns = self.columns(frames)
        count = math.ceil(columns / self._most_columns)
        edges = [columns * part // count for part in range(count + 1)]
        chunks = []
        for start, stop in pairwise(edges):
            end = stop * self.stride + self._overhang if stop < columns else frames
            chunks.append(Chunk(clip, start * self.stride, end - start * self.stride))
        return chunks

    def log_mels(
        self, waveforms: Sequence[Tensor | LongSound], chunks: Sequence[Chunk]
    ) -> tuple[Tensor, Tensor | None]:
        """Normalised log-mels (B, 1, F, T) of the pieces: slices of those of the whole clips.

        The pieces of a long sound must come from front to back. The second value holds the frames
        of each, or is None where all have T.
        """
        hop = self._log_mel.hop_length
        # Each piece comes with the half window on both sides, which are cut off again.
        context = math.ceil(self._log_mel.n_fft // 2 / hop)
        longest = max(chunk.length for chunk in chunks)
        shape = (len(chunks), (longest + 2 * context) * hop)
        batch = torch.zeros(shape, dtype=torch.float32, device="cpu")
        for row, chunk in enumerate(chunks):
            first = (chunk.start - context) * hop
            last = (chunk.start + chunk.length + context) * hop
            samples = waveforms[chunk.clip][max(first, 0) : last]
            part = torch.as_tensor(samples, device="cpu")
            start = max(-first, 0)
            batch[row, start : start + len(part)] = part  # not a view: gradients may flow
        log_mel = self._log_mel(batch.to(self._log_mel.filterbank.device))[
            ..., context : context + longest
        ]
        lengths = torch.tensor([chunk.length for chunk in chunks], device="cpu")
        return log_mel, None if int(lengths.min()) == longest else lengths


def batches(chunks: Sequence[Chunk], *, most_frames: float) -> Iterator[list[Chunk]]:
    """Pieces of similar length together, each batch at most so many padded frames.

    Clips with long pieces come first; those of one clip, which are about equal, one after the
    other from front to back, so that a long file can be read meanwhile.
    """
    longest: dict[int, int] = {}
    for chunk in chunks:
        longest[chunk.clip] = max(longest.get(chunk.clip, 0), chunk.length)
    batch: list[Chunk] = []
    width = 0
    for chunk in sorted(chunks, key=lambda c: (-longest[c.clip], c.clip, c.start)):
        wider = max(width, chunk.length)
        # All are padded to the longest, and none to over twice its length.
        if batch and ((len(batch) + 1) * wider > most_frames or 2 * chunk.length < wider):
            yield batch
            batch, wider = [], chunk.length
        batch.append(chunk)
        width = wider
    if batch:
        yield batch


Clips = Sequence[Tensor | LongSound]

# Networks that someone evaluates now: by how many threads, and the modes from before the first.
_EVALUATED: dict[nn.Module, tuple[int, list[tuple[nn.Module, bool]]]] = {}
_LOCK = threading.Lock()


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards in its own again.

    Threads may be inside together: the first one sets the mode, the last one gives it back.
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


@torch.no_grad()
def embed_pieces(
    network: Callable[[Tensor, Tensor | None], Tensor],
    clips: Clips,
    cutter: Chunks,
    *,
    is_max: Tensor,
    batch_seconds: float,
) -> Tensor:
    """One vector a clip: the mean of its pieces' by length, or their maximum.

    Args:
        network: log-mels (B, 1, F, T), and the frames of each or None, to vectors (B, D).
        clips: (S,) at the front end's rate.
        cutter: cuts them.
        is_max: bool (D,), True where the maximum is wanted.
        batch_seconds: audio that goes through the network at once.

    Returns:
        Float32 (n, D) on the CPU.
    """
    # Said here and elsewhere: the caller may have set another type or device for new tensors.
    means = torch.zeros(len(clips), len(is_max), dtype=torch.float32, device="cpu")
    maxima = torch.full_like(means, -math.inf)
    totals = [cutter.frames(len(clip)) for clip in clips]
    chunks = [chunk for clip, total in enumerate(totals) for chunk in cutter.cut(clip, total)]
    for batch in batches(chunks, most_frames=cutter.frames_in(batch_seconds)):
        log_mel, lengths = cutter.log_mels(clips, batch)
        vectors = network(log_mel, lengths).float().cpu()
        for chunk, vector in zip(batch, vectors, strict=True):
            means[chunk.clip] += vector * (chunk.length / totals[chunk.clip])
            maxima[chunk.clip] = torch.maximum(maxima[chunk.clip], vector)
            clip = clips[chunk.clip]
            if isinstance(clip, LongSound) and chunk.start + chunk.length == totals[chunk.clip]:
                clip.close()  # there may be thousands, and each holds its last piece
    return torch.where(is_max, maxima, means)


@torch.no_grad()
def embed_columns(
    clips: Clips, cutter: Chunks, *, shifts: Sequence[int], batch_seconds: float
) -> Tensor:
    """One vector a column of tokens: the frequency rows of the last layer, joined.

    Args:
        clips: of one length, (S,) at the front end's rate.
        cutter: cuts them; its backbone runs once for each shift.
        shifts: frames to leave out before a clip, once a pass; of `Chunks.shifts`.
        batch_seconds: audio that goes through the backbone at once.

    Returns:
        Float32 (n, N, rows x channels) on the CPU, `cutter.stride / len(shifts)` frames apart.
    """
    total, hop = cutter.frames(len(clips[0])), cutter.stride // len(shifts)
    chunks = [
        chunk
        for clip in range(len(clips))
        for shift in shifts
        for chunk in cutter.cut(clip, total, first=shift)
    ]
    # Pass k gives the columns k, k + n, k + 2 n, ... ; a clip may be too short for the last.
    passes = [shift for shift in shifts if cutter.cut(0, total, first=shift)]
    count = sum(cutter.columns(total - shift) for shift in passes)
    shape = (len(clips), count, cutter.column_dim)
    columns = torch.zeros(shape, dtype=torch.float32, device="cpu")
    for batch in batches(chunks, most_frames=cutter.frames_in(batch_seconds)):
        log_mel, lengths = cutter.log_mels(clips, batch)
        tokens, grid, _, _ = cutter.backbone.encode(log_mel, lengths=lengths)
        maps = tokens.unflatten(1, grid[:]).transpose(1, 2).flatten(2)  # (b, t, f * C)
        for chunk, found in zip(batch, maps.float().cpu(), strict=True):
            num = cutter.columns(chunk.length)
            where = slice(chunk.start // hop, None, len(shifts))
            columns[chunk.clip, where][:num] = found[:num]
    return columns
