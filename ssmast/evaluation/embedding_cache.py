"""Embeddings on disk: of a whole corpus, and what there is of one after an interruption."""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmast.evaluation.processes import Processes, gather_list
from ssmast.files import replacing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Vectors of the clips of a corpus that could be read.

    Attributes:
        values: float32 (n, D).
        rows: number of each in the corpus, increasing, int64 (n,).
        rejected: (name, reason) of the others.
        seen: of a part of them, the rows it was made from.
        spans: of windows of clips, start and stop of each in seconds, float64 (n, 2); else None.
    """

    values: Tensor
    rows: NDArray[np.int64]
    rejected: list[tuple[str, str]]
    seen: list[int] = field(default_factory=list)
    spans: NDArray[np.float64] | None = None

    def of(self, rows: NDArray[np.int64]) -> Tensor:
        """Vectors (m, D) of rows of the corpus, all of which were embedded."""
        return self.values[torch.from_numpy(np.searchsorted(self.rows, rows))]


def joined(parts: Sequence[Embeddings], *, dim: int) -> Embeddings:
    """Several put together, in the order of the corpus; none give no vectors (0, `dim`)."""
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *(part.rows for part in parts)])
    order = np.argsort(rows, kind="stable")  # the windows of a clip stay in their order
    spans = [part.spans for part in parts if part.spans is not None]
    values = torch.cat([torch.zeros(0, dim), *(part.values for part in parts)])
    return Embeddings(
        values=values[torch.from_numpy(order)],
        rows=rows[order],
        rejected=[entry for part in parts for entry in part.rejected],
        spans=np.concatenate(spans)[order] if spans else None,
    )


class PartialEmbeddings:
    """What has been embedded so far: a file every few seconds, by whichever process.

    Args:
        folder: of the parts; made when there is one. None to keep none.
        state: processes; they must agree on what is done, so the first one reads for all.
        kept: what is there besides the parts.

    Attributes:
        EVERY: seconds between files; an interruption costs at most so much work.
    """

    EVERY = 20.0

    def __init__(self, folder: Path | None, state: Processes, kept: Embeddings | None) -> None:
        self._folder, self._state, self._kept = folder, state, kept
        self._pending: list[Embeddings] = []
        self._seen: list[int] = []
        self._last = time.monotonic()

    def read(self, total: int) -> tuple[list[Embeddings], list[int]]:
        """Embeddings done before (on the first process alone), and the rows that are left."""
        done: list[Embeddings] = []
        seen: list[int] = []
        if self._kept is not None and self._state.is_main:
            done.append(replace(self._kept, rejected=[]))  # those are tried again
            seen += self._kept.rows.tolist()
        for part in map(load, self._files() if self._state.is_main else []):
            if part is not None:
                done.append(part)
                seen += part.seen
        gone = set(gather_list(seen, self._state))
        if gone:
            logger.info("%d of %d clips were embedded before", len(gone), total)
        return done, [row for row in range(total) if row not in gone]

    def add(self, new: Embeddings, *, seen: list[int]) -> None:
        """Keep vectors; `seen` are the rows they came from, those of rejected clips too."""
        self._pending.append(new)
        self._seen += seen
        if self._folder is not None and time.monotonic() - self._last >= self.EVERY:
            first = min(self._seen)
            together = joined(self._pending, dim=new.values.shape[1])
            store(self._folder / f"{first:010d}.safetensors", together, self._seen)
            self._pending, self._seen, self._last = [], [], time.monotonic()

    def remove(self) -> None:
        """Delete the parts: they are in the whole now."""
        for file in self._files():
            file.unlink(missing_ok=True)
        if self._folder and self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.safetensors")) if self._folder else []


def store(file: Path, found: Embeddings, seen: Sequence[int] = ()) -> None:
    """Write embeddings, whole or not at all."""
    from safetensors.torch import save_file

    with replacing(file) as partial:
        tensors = {"values": found.values, "rows": torch.from_numpy(found.rows)}
        if found.spans is not None:
            tensors["spans"] = torch.from_numpy(found.spans)
        save_file(
            tensors,
            partial,
            metadata={
                "rejected": json.dumps(found.rejected),
                "seen": json.dumps(list(seen)),
                "sha256": _sha256(found),
            },
        )


def load(file: Path) -> Embeddings | None:
    """Read embeddings; None where there are none, or damaged ones."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            metadata, names = opened.metadata() or {}, set(opened.keys())
            found = Embeddings(
                values=opened.get_tensor("values"),
                rows=opened.get_tensor("rows").numpy(),
                rejected=[(name, reason) for name, reason in json.loads(metadata["rejected"])],
                seen=json.loads(metadata.get("seen", "[]")),
                spans=opened.get_tensor("spans").numpy() if "spans" in names else None,
            )
            if metadata.get("sha256", "") not in ("", _sha256(found)):  # older files have none
                raise ValueError("its checksum differs")
            return found
    except (SafetensorError, KeyError, ValueError) as error:
        logger.warning("%s is damaged (%s); embedding again", file, error)
        return None


def _sha256(found: Embeddings) -> str:
    """Of the numbers alone: safetensors has no checksum, and one wrong bit would be a score."""
    parts = [found.values.numpy(), found.rows]
    parts += [] if found.spans is None else [found.spans]
    total = hashlib.sha256()
    for part in parts:
        total.update(np.ascontiguousarray(part).data)
    return total.hexdigest()
