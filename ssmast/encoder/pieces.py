"""Clips through a network piece by piece, and what the pieces give put together again."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ssmast.audio import LongSound
from ssmast.encoder.chunks import Chunks, batches

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
        tokens, grid, _ = cutter.backbone.encode(log_mel, lengths=lengths)
        maps = tokens.unflatten(1, grid[:]).transpose(1, 2).flatten(2)  # (b, t, f * C)
        for chunk, found in zip(batch, maps.float().cpu(), strict=True):
            num = cutter.columns(chunk.length)
            where = slice(chunk.start // hop, None, len(shifts))
            columns[chunk.clip, where][:num] = found[:num]
    return columns
