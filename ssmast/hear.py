"""The HEAR API over an encoder folder: `hear-validator ssmast.hear --model runs/mine/encoder`.

Source: Turian et al. 2022 (HEAR), common API.
"""

import torch
from torch import Tensor, nn

from ssmast.encoder import Encoder, load_encoder

# HEAR advises a timestamp at least every 50 ms.
HOP_MS = 50.0
_RATES = (16000, 22050, 32000, 44100, 48000)


class HearModel(nn.Module):
    """An encoder with the attributes that HEAR asks for.

    Raises:
        ValueError: if it is not.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        if encoder.sample_rate not in _RATES:
            allowed = ", ".join(map(str, _RATES))
            raise ValueError(f"HEAR knows {allowed} Hz, got an encoder at {encoder.sample_rate} Hz")
        self.encoder = encoder
        self.sample_rate = encoder.sample_rate
        self.scene_embedding_size = encoder.dim
        self.timestamp_embedding_size = encoder.frame_dim

    def forward(self, audio: Tensor) -> Tensor:
        """Scene embeddings (B, D) of audio (B, S)."""
        return get_scene_embeddings(audio, self)


def load_model(model_file_path: str = "") -> HearModel:
    """The model of HEAR's API, of an encoder folder or a name on the Hugging Face Hub.

    Raises:
        ValueError: without a path: there is no encoder to fall back on.
    """
    if not model_file_path:
        raise ValueError("load_model needs an encoder folder or Hub name, got nothing")
    return HearModel(load_encoder(model_file_path))


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Audio (B, S) at the model's rate -> float32 (B, D), on the device of the audio."""
    _check(audio)
    return model.encoder.embed(audio, model.sample_rate).to(audio.device)


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Audio (B, S) -> float32 (B, N, D) and their times in milliseconds (B, N), 50 ms or less."""
    _check(audio)
    embeddings, milliseconds = model.encoder.embed_frames(audio, model.sample_rate, hop_ms=HOP_MS)
    return embeddings.to(audio.device), milliseconds.to(audio.device)


def _check(audio: Tensor) -> None:
    if not isinstance(audio, torch.Tensor) or audio.ndim != 2:
        got = tuple(audio.shape) if isinstance(audio, torch.Tensor) else type(audio).__name__
        raise ValueError(f"audio must be a tensor (batch, samples), got {got}")
