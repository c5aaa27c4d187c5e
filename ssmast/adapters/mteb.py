"""MAEB (audio in mteb): an encoder that embeds the batches of a task.

import mteb
from ssmast.adapters.mteb import MtebEncoder

mteb.evaluate(MtebEncoder("runs/mine/encoder"), mteb.get_tasks(["ESC50"]))
"""

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssmast.adapters import name_of
from ssmast.encoder import load_encoder
from ssmast.encoder.input import mixed, read_clips


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
