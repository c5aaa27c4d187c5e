"""X-ARES: an encoder of frames, as a class that is made without arguments."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from ssmast.adapters import name_of
from ssmast.encoder import load_encoder

HOP_MS = 50.0


class SsmastEncoder(nn.Module):
    """X-ARES' encoder interface; `xares_encoder` binds it to one folder.

    Args:
        path: encoder folder or Hub name.
        hop_ms: longest time between frames; None for the network's own.
    """

    def __init__(self, path: str | Path, *, hop_ms: float | None = HOP_MS) -> None:
        super().__init__()
        self.encoder = load_encoder(path)
        self.sampling_rate = self.encoder.sample_rate
        self.output_dim = self.encoder.frame_dim
        self.hop_size_in_ms = self.encoder.frame_hop_ms(hop_ms)
        self._hop_ms = hop_ms

    def forward(self, audio: Tensor) -> Tensor:
        """Samples (B, S) or (S,) -> frames (B, N, `output_dim`); long clips in windows."""
        audio = torch.atleast_2d(audio)
        frames, _ = self.encoder.embed_frames(audio, self.sampling_rate, hop_ms=self._hop_ms)
        return frames.to(audio.device)


def xares_encoder(path: str | Path, *, hop_ms: float | None = HOP_MS) -> type[SsmastEncoder]:
    """A class bound to one folder, which X-ARES can make by itself."""

    class BoundEncoder(SsmastEncoder):
        """An encoder of one folder."""

        def __init__(self) -> None:
            super().__init__(path, hop_ms=hop_ms)
            # X-ARES keeps embeddings by this name: those of another folder must not be taken.
            name = re.sub(r"\W", "_", name_of(self.encoder, hop_ms=hop_ms))
            type(self).__name__ = f"Ssmast_{name}_Encoder"

    return BoundEncoder
