"""An s3prl-style upstream: hidden states of all stages at one frame rate and one width.

`hubconf.py` of an upstream folder of s3prl needs the import and one line:
`def ssmast(ckpt, *args, **kwargs): return UpstreamExpert(ckpt, *args, **kwargs)`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.encoder import load_encoder
from ssmast.encoder.windows import Window
from ssmast.model.patch import Grid


class UpstreamExpert(nn.Module):
    """Layers for SUPERB's downstream models, whose weighted sum over layers needs equal shapes.

    MAST's stages grow coarser in time and wider: coarser ones are repeated up to the first one's
    rate, and of each the frequency rows are averaged in groups until rows x channels is the
    narrowest stage's. AST has one resolution, so its every block is a layer.

    Args:
        ckpt: encoder folder or Hub name.
        model_config: unused, as is all else that s3prl's runner passes to an upstream (`refresh`).
    """

    def __init__(self, ckpt: str | Path, model_config: Any = None, **_: Any) -> None:
        super().__init__()
        self.encoder = load_encoder(ckpt)
        backbone, log_mel = self.encoder.backbone, self.encoder.log_mel
        ends = backbone.stage_ends
        self._layers = ends if len(ends) > 1 else list(range(len(backbone.block_channels)))
        grids = backbone.grid_of(log_mel.num_mels, max(backbone.input_size[1], 1))
        rows = [grids[1 + number].freq for number in range(len(ends))]
        rows = rows if len(ends) > 1 else rows * len(self._layers)
        channels = [backbone.block_channels[layer] for layer in self._layers]
        self.output_dim = min(r * c for r, c in zip(rows, channels, strict=True))
        if any(self.output_dim % channel for channel in channels):
            raise ValueError(f"stages of {channels} channels cannot be brought to one width")
        self._stride = backbone.patch_embed.stride[1]
        self._rate = self._stride * log_mel.hop_length

    def get_downsample_rates(self, key: str) -> int:
        """Samples from one frame to the next, of every layer."""
        return self._rate

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """Clips (S,) at the encoder's rate -> "hidden_states": [(B, T, D), one a layer].

        "last_hidden_state" is the last of them and "hidden_state_0", ... each, as in s3prl's own.
        Shorter clips have zeros after their end, as s3prl's `pad_sequence` makes them. Gradients
        flow, so that an upstream can be fine-tuned.
        """
        clips = [self._clip(wav) for wav in wavs]
        layers = [
            nn.utils.rnn.pad_sequence([clip[layer] for clip in clips], batch_first=True)
            for layer in range(len(self._layers))
        ]
        each = {f"hidden_state_{number}": layer for number, layer in enumerate(layers)}
        return {"hidden_states": layers, "last_hidden_state": layers[-1], **each}

    def _clip(self, wav: Tensor) -> list[Tensor]:
        """Layers (T, D) of one clip, window by window."""
        cutter = self.encoder.window_cutter()
        windows = cutter.cut(0, cutter.frames(len(wav)))
        layers = [self._window(wav, window) for window in windows]
        return [torch.cat(layer) for layer in zip(*layers, strict=True)]

    def _window(self, wav: Tensor, window: Window) -> list[Tensor]:
        cutter = self.encoder.window_cutter()
        log_mel, _ = cutter.log_mels([wav], [window])
        outcomes = self.encoder.backbone.encode_blocks(log_mel)
        stem = self.encoder.backbone.patch_embed.length(1, window.length)
        if window.start + window.length < cutter.frames(len(wav)):
            stem = cutter.columns(window.length) * (cutter.stride // self._stride)
        return [self._level(*outcomes[layer][:2], stem) for layer in self._layers]

    def _level(self, tokens: Tensor, grid: Grid, columns: int) -> Tensor:
        """Tokens (1, N, C) of one stage -> (columns, D)."""
        image = tokens[0].unflatten(0, grid[:]).permute(2, 0, 1)  # (C, f, t)
        rows = self.output_dim // image.shape[0]
        image = F.adaptive_avg_pool2d(image, (rows, grid.time))  # (C, rows, t)
        times = torch.arange(columns, device=image.device) * grid.time // columns
        return image[..., times].permute(2, 1, 0).flatten(1)  # (columns, rows * C)
