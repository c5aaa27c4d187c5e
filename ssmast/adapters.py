"""Encoders behind the interfaces of other evaluation tools; see docs/use.md.

mteb:    mteb.evaluate(MtebEncoder("runs/mine/encoder"), mteb.get_tasks(["ESC50"]))
s3prl:   in `hubconf.py` of an upstream folder:
         `def ssmast(ckpt, *args, **kwargs): return UpstreamExpert(ckpt, *args, **kwargs)`
X-ARES:  `xares_encoder("runs/mine/encoder")` is a class that is made without arguments
"""

import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.encoder import Encoder, load_encoder
from ssmast.encoder.input import check_clips, mixed, read_clips
from ssmast.encoder.windows import Window
from ssmast.model.patch import Grid


def name_of(encoder: Encoder, **further: object) -> str:
    """A name that differs wherever embeddings do: weights, pooling, layers, all other settings.

    Args:
        encoder: to name.
        further: settings of the tool's own that change the vectors, plain JSON values.
    """
    settings = json.dumps({**encoder.settings(), **further}, sort_keys=True).encode()
    digest = hashlib.sha256(settings).hexdigest()
    return f"{encoder.sha256[:12]}-{encoder.pooling}-{encoder.layers}-{digest[:8]}"


# -- MAEB (audio in mteb) --------------------------------------------------------------------------


class MtebEncoder:
    """mteb's encoder protocol over an encoder folder or Hub name."""

    def __init__(self, path: str | Path, *, device: str = "cpu") -> None:
        self.encoder = load_encoder(path).to(device)

    @property
    def mteb_model_meta(self) -> Any:
        """Name for results and kind of input: mteb refuses audio tasks to a model without it."""
        meta = importlib.import_module("mteb.models.model_meta")
        parameters = sum(parameter.numel() for parameter in self.encoder.backbone.parameters())
        sha256 = self.encoder.sha256
        return meta.ModelMeta.create_empty(
            {
                # Results are kept by these two: other pooling must not be taken for the same.
                "name": f"ssmast/{name_of(self.encoder)}",
                "revision": sha256,
                "n_parameters": parameters,
                "embed_dim": self.encoder.dim,
                "modalities": ["audio"],
                "framework": ["PyTorch"],
                "similarity_fn_name": meta.ScoringFunction.COSINE,
            }
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **_: Any,
    ) -> NDArray[np.float32]:
        """Batches of a task -> (n, D).

        A batch has "audio": a list of {"array", "sampling_rate"}, or of objects with
        `get_all_samples()`, as datasets' audio columns give them. What else mteb passes is unused:
        the embedding does not depend on the task.

        Raises:
            ValueError: if a batch holds no audio.
        """
        rows = [np.zeros((0, self.encoder.dim), dtype=np.float32)]
        for batch in inputs:
            if "audio" not in batch:
                raise ValueError(f"wanted batches with audio, got {', '.join(batch)}")
            clips = [self._clip(sound) for sound in batch["audio"]]
            rows.append(self.encoder.embed_clips(clips).numpy())
        return np.concatenate(rows)

    def _clip(self, sound: Any) -> Tensor:
        """Mono samples (S,) at the encoder's rate."""
        channels = read_clips(*_samples(sound), wanted=self.encoder.sample_rate)
        return mixed(channels)

    def similarity(
        self, embeddings1: NDArray[Any], embeddings2: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Cosines (n, m) of vectors (n, D) and (m, D), or (D,) for one."""
        return _units(embeddings1) @ _units(embeddings2).T

    def similarity_pairwise(
        self, embeddings1: NDArray[Any], embeddings2: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Cosines (n,) of row and row."""
        return (_units(embeddings1) * _units(embeddings2)).sum(axis=1)


def _samples(sound: Any) -> tuple[NDArray[Any], int]:
    """Samples (S,) or (channels, S) of any number type, and their rate."""
    if hasattr(sound, "get_all_samples"):
        decoded = sound.get_all_samples()
        array, rate = np.asarray(decoded.data), decoded.sample_rate
    else:
        array, rate = np.asarray(sound["array"]), sound["sampling_rate"]
    if array.ndim == 2 and array.shape[0] >= array.shape[1]:
        array = array.T
    return array, int(rate)


def _units(values: Any) -> NDArray[np.float32]:
    values = np.atleast_2d(np.asarray(values, dtype=np.float32))
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


# -- s3prl and SUPERB ------------------------------------------------------------------------------


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
        check_clips(wavs, rate=self.encoder.sample_rate)
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


# -- X-ARES ----------------------------------------------------------------------------------------

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
