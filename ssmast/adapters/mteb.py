"""MAEB (audio in mteb): an encoder that embeds the batches of a task.

import mteb
from ssmast.adapters.mteb import MtebEncoder

mteb.evaluate(MtebEncoder("runs/mine/encoder"), mteb.get_tasks(["ESC50"]))
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmast.encoder import load_encoder


class MtebEncoder:
    """mteb's encoder protocol over an encoder folder; mteb itself is not imported.

    Args:
        path: encoder folder or Hub name.
        device: where to embed.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu") -> None:
        self.encoder = load_encoder(path).to(device)
        self.model_name = f"ssmast/{self.encoder.sha256[:12]}"
        self.mteb_model_meta = None

    def encode(self, inputs: Iterable[Mapping[str, Any]], **_: Any) -> NDArray[np.float32]:
        """Batches of a task -> (n, D).

        Args:
            inputs: batches with "audio": a list of {"array", "sampling_rate"}, or of objects with
                `get_all_samples()`, as datasets' audio columns give them.
            _: task, split and prompt, which do not matter to sound.

        Raises:
            ValueError: if a batch holds no audio.
        """
        rows: list[NDArray[np.float32]] = []
        for batch in inputs:
            if "audio" not in batch:
                raise ValueError(f"wanted batches with audio, got {', '.join(batch)}")
            for sound in batch["audio"]:
                samples, rate = _samples(sound)
                rows.append(self.encoder.embed(samples, rate).numpy())
        if not rows:
            return np.zeros((0, self.encoder.dim), dtype=np.float32)
        return np.concatenate(rows)

    def similarity(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float32]:
        """Cosines (n, m)."""
        return _units(one) @ _units(other).T

    def similarity_pairwise(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float32]:
        """Cosines (n,) of row and row."""
        return (_units(one) * _units(other)).sum(axis=1)


def _samples(sound: Any) -> tuple[NDArray[np.float32], int]:
    """Mono samples and their rate."""
    if hasattr(sound, "get_all_samples"):
        decoded = sound.get_all_samples()
        array, rate = np.asarray(decoded.data), decoded.sample_rate
    else:
        array, rate = np.asarray(sound["array"]), sound["sampling_rate"]
    if array.ndim == 2:
        array = array.mean(axis=0 if array.shape[0] < array.shape[1] else 1)
    return array.astype(np.float32), int(rate)


def _units(values: Any) -> NDArray[np.float32]:
    values = np.asarray(values, dtype=np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
