"""Build an index of embeddings, to search for similar sounds.

    ssmast index FILES_OR_DIR encoder=runs/mine/encoder out=index
    ssmast index RECORDINGS encoder=DIR out=index window=5 hop=2.5     a vector a window
    ssmast index embeddings=e.npz encoder=runs/mine/encoder out=index

Vectors are centred and scaled to length 1, so similarity is their cosine. The folder holds
`index.faiss` (faiss' own binary format), `names.json`, `index.json` (encoder, kind) and
`mean.safetensors`; nothing in it is pickled, and checksums are verified on load. Files that cannot
be read are left out and listed in OUT.quarantine.csv.
"""

import json
import logging
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssmast.audio import open_words
from ssmast.encoder import Encoder, load_encoder
from ssmast.evaluation.processes import process_state
from ssmast.files import check_output, new_folder, sha256_of, write_json
from ssmast.retrieval.embed_files import (
    WindowSettings,
    embed_in_parts,
    left_out,
    names_of,
    read_embeddings,
    sole_writer,
)
from ssmast.settings import UsageError, command, setting, wants_dry_run

logger = logging.getLogger(__name__)

KINDS = ("flat", "ivfpq")
# Up to here every vector is compared: exact, and some milliseconds for a query.
FLAT_UP_TO = 100_000
_FILES = ("index.faiss", "names.json", "mean.safetensors")
Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class IndexConfig(WindowSettings):
    """`ssmast index`: sounds or embeddings to an index."""

    data: str = setting("", "file, folder, list, CSV or tar(s) of audio")
    embeddings: str = setting("", "in place of data: what `ssmast embed` wrote, .npz or .parquet")
    out: str = setting("", "folder to write", required=True)
    kind: str = setting(
        "auto",
        "flat is exact, ivfpq small and fast; auto: by the number of vectors",
        choices=("auto", *KINDS),
    )
    probes: int = setting(
        16, "cells that a query visits with ivfpq; more is slower and finds more", range="[1, inf)"
    )


@command(IndexConfig, "ssmast index", dry_run=True, positional="data", several=True)
def main(config: IndexConfig, argv: list[str]) -> int:
    """`ssmast index`: parse, embed where need be, index."""
    if bool(config.data) == bool(config.embeddings):
        raise UsageError("give audio or embeddings=FILE, and not both; see `ssmast index --help`")
    if config.embeddings and config.window:
        raise UsageError("window= is for sounds to be embedded; leave it or embeddings= out")
    check_output(config.out, folder=True)
    check_folder(config.out)  # now, and not when all is embedded
    encoder = load_encoder(config.encoder).to(process_state().device)
    if wants_dry_run(argv):
        return 0
    with sole_writer(config.out):
        found = _vectors(config, encoder)
        if found is None:
            return 0
        names, values, note = found
        about = _about(config.encoder, encoder)
        index = Index.build(values, names, kind=config.kind, probes=config.probes, about=about)
        index.save(config.out)
        shutil.rmtree(f"{_embeddings_of(config)}.parts", ignore_errors=True)
    logger.info("%d vectors (%s) in %s%s", len(names), index.kind, config.out, note)
    return 0


def check_folder(folder: str | Path) -> None:
    """Refuse a place where an index cannot be written.

    Raises:
        FileExistsError: if it holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; an index is a folder, so give another name")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "index.json").is_file():
        raise FileExistsError(f"{folder} holds files but no index; choose another folder")


def _embeddings_of(config: IndexConfig) -> Path:
    """Under what name embeddings are kept until the index is there."""
    out = Path(config.out)
    return out.with_name(f".{out.name}.npz")


def _about(path: str, encoder: Encoder) -> dict[str, Any]:
    where = str(Path(path).absolute()) if Path(path).is_dir() else path
    return {"encoder": where, "encoder_sha256": encoder.sha256, "settings": encoder.settings()}


def _vectors(config: IndexConfig, encoder: Encoder) -> tuple[list[str], Vectors, str] | None:
    """Names, vectors, and what is to be said of the clips that have none."""
    listed = Path(f"{Path(config.out)}.quarantine.csv")
    if config.embeddings:
        names, values, about = read_embeddings(config.embeddings)
        if about != json.loads(json.dumps({"sha256": encoder.sha256, **encoder.settings()})):
            raise ValueError(
                f"{config.embeddings} was not made with {config.encoder} as it is now; embed the "
                "files again or give the encoder that they were embedded with"
            )
        listed.unlink(missing_ok=True)  # of an earlier index here
        return names, values, ""
    corpus = open_words(config.data).with_channel(config.channel)
    found = embed_in_parts(encoder, corpus, config.to_embed(_embeddings_of(config)))
    if found is None:
        return None
    listed.unlink(missing_ok=True)
    if found.rejected:
        Path(f"{_embeddings_of(config)}.quarantine.csv").replace(listed)
    return names_of(found, corpus), found.values.numpy(), f", {left_out(found, Path(config.out))}"


class Index:
    """Names and vectors, searched by cosine.

    Args:
        mean: subtracted from every vector, float32 (D,).
        about: encoder and kind, plain JSON values.
    """

    def __init__(self, index: Any, names: list[str], mean: Vectors, about: dict[str, Any]) -> None:
        self._index, self.names, self._mean, self.about = index, names, mean, about

    @property
    def kind(self) -> str:
        """Either flat or ivfpq."""
        return self.about["kind"]

    @classmethod
    def build(
        cls,
        values: Vectors | Tensor,
        names: Iterable[str | Path],
        *,
        kind: str = "auto",
        probes: int = 16,
        about: dict[str, Any] | None = None,
    ) -> "Index":
        """Index vectors.

        Of vectors (n, D) and n names. auto is flat up to 100,000 vectors; a query looks into
        `probes` cells of ivfpq; `about` is kept with it.

        Raises:
            ValueError: if there are too few vectors for ivfpq, values and names do not fit, a value
                is not finite, `probes` is below 1, or the kind is unknown.
        """
        import faiss

        values, names = _finite(values), [str(name) for name in names]
        if kind not in ("auto", *KINDS):
            raise ValueError(f"kind must be auto, {' or '.join(KINDS)}, got {kind!r}")
        if values.ndim != 2 or not 0 < len(values) == len(names):
            raise ValueError(
                f"an index needs vectors (n, D) and n names, got shape {tuple(values.shape)} and "
                f"{len(names)} names"
            )
        num, dim = values.shape
        if kind == "auto":
            kind = "flat" if num <= FLAT_UP_TO else "ivfpq"
        if probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}")
        if kind == "ivfpq" and num < 256:
            raise ValueError(f"kind=ivfpq needs at least 256 vectors, got {num}; use kind=flat")
        mean = values.mean(axis=0, dtype=np.float64).astype(np.float32)
        units = _units(values - mean)
        if kind == "flat":
            index: Any = faiss.IndexFlatIP(dim)
        else:
            cells = max(1, min(int(4 * math.sqrt(num)), num // 39))
            parts = max(part for part in range(1, 97) if dim % part == 0)
            quantizer = faiss.IndexFlatIP(dim)
            index = faiss.IndexIVFPQ(quantizer, dim, cells, parts, 8, faiss.METRIC_INNER_PRODUCT)
            index.cp.seed, index.pq.cp.seed = 1, 1
            picked = np.random.default_rng(0).permutation(num)[: max(64 * cells, 65536)]
            index.train(units[np.sort(picked)])
            index.nprobe = min(probes, cells)
        index.add(units)
        return cls(index, names, mean, {**(about or {}), "kind": kind, "dim": dim})

    def search(self, queries: Vectors | Tensor, top: int = 10) -> list[list[tuple[str, float]]]:
        """The nearest names of each query (m, D) with their cosine, best first; `top` or all.

        Where the cells that a query of ivfpq visits hold fewer, twice as many are visited, until
        there are so many.

        Raises:
            ValueError: for queries of another length or not finite, or a `top` below 1.
        """
        import faiss

        queries = _finite(queries)
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        if queries.ndim != 2 or queries.shape[1] != len(self._mean):
            raise ValueError(
                f"queries must have shape (n, {len(self._mean)}), got {tuple(queries.shape)}"
            )
        units, wanted = _units(queries - self._mean), min(top, len(self.names))
        found, rows = self._index.search(units, wanted)
        visiting: Any = faiss.SearchParametersIVF  # its stub knows no arguments
        cells = getattr(self._index, "nlist", 0)
        probes = min(getattr(self._index, "nprobe", 0), cells)
        while (rows < 0).any() and probes < cells:
            probes = min(2 * probes, cells)
            few = (rows < 0).any(axis=1)
            found[few], rows[few] = self._index.search(
                units[few], wanted, params=visiting(nprobe=probes)
            )
        return [
            [(self.names[row], float(score)) for row, score in zip(*pair, strict=True) if row >= 0]
            for pair in zip(rows, found, strict=True)
        ]

    def query(self, positive: Vectors, negative: Vectors, *, minus: float = 0.5) -> Vectors:
        """One query (1, D) from several examples, to be given to `search`.

        It is the mean of the directions of `positive` (n, D), less `minus` times that of
        `negative` (m, D), of which there may be none; so the order of what is found is that of the
        mean cosine to the one, less `minus` times the mean cosine to the other.

        Source: Rocchio 1971, relevance feedback.
        """
        wanted = _units(positive - self._mean).mean(axis=0)
        if len(negative):
            wanted = wanted - minus * _units(negative - self._mean).mean(axis=0)
        return self._mean + wanted[None]

    def vectors(self, names: Sequence[str]) -> Vectors:
        """Vectors (n, D) of clips that are in the index, scaled to length 1 about the mean.

        Raises:
            ValueError: if one is not in it.
        """
        rows = {name: row for row, name in enumerate(self.names)}
        missing = [name for name in names if name not in rows]
        if missing:
            raise ValueError(f"{missing[0]} is not in the index; wanted names as it gives them")
        if hasattr(self._index, "make_direct_map"):
            self._index.make_direct_map()
        found = [self._index.reconstruct(rows[name]) for name in names]
        return self._mean + np.array(found, dtype=np.float32).reshape(-1, len(self._mean))

    def save(self, folder: str | Path) -> None:
        """Write the index folder; an older index there is replaced.

        Raises:
            FileExistsError: if the folder holds something else.
        """
        import faiss
        from safetensors.numpy import save_file

        folder = Path(folder)
        check_folder(folder)
        with new_folder(folder) as partial:
            faiss.write_index(self._index, str(partial / "index.faiss"))
            write_json(partial / "names.json", self.names, indent=None)
            save_file({"mean": self._mean}, partial / "mean.safetensors")
            sums = {name: sha256_of(partial / name) for name in _FILES}
            write_json(partial / "index.json", {**self.about, "sha256": sums})

    @classmethod
    def load(cls, folder: str | Path) -> "Index":
        """The index in a folder, after checking its files.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if a file is damaged.
        """
        import faiss
        from safetensors.numpy import load_file

        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise FileNotFoundError(f"there is no index at {folder}; make one with `ssmast index`")
        try:
            about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            sums = about.pop("sha256")
            kinds = {"encoder": str, "encoder_sha256": str, "settings": dict}
            if not all(isinstance(about.get(key, kind()), kind) for key, kind in kinds.items()):
                raise ValueError("a value is of another type")
            sums = dict(sums)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / 'index.json'} is damaged; index again") from error
        for name in _FILES:
            file = folder / name
            if not file.is_file() or sha256_of(file) != sums.get(name):
                raise ValueError(f"{file} is damaged; index again")
        index = faiss.read_index(str(folder / "index.faiss"))
        names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        return cls(index, names, load_file(folder / "mean.safetensors")["mean"], about)


def _finite(values: Vectors | Tensor) -> Vectors:
    """Vectors as float32: faiss answers NaN with nothing found, and no word of it."""
    found = np.asarray(values, dtype=np.float32)
    if not np.isfinite(found).all():
        raise ValueError("vectors must be finite, got NaN or infinity; embed the sounds again")
    return found


def _units(values: Vectors) -> Vectors:
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.ascontiguousarray(values / np.maximum(lengths, 1e-12), dtype=np.float32)
