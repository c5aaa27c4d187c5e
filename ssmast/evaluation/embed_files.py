"""Sound files -> embeddings in one .npz file.

    ssmast embed encoder=runs/mine/encoder data=FOLDER out=embeddings.npz

The file holds `embeddings` (n, D) float32 and `names` (n,); numpy.load reads it without pickle.
Files that cannot be read are left out and named in `rejected` (m, 2: name, reason).
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssmast.audio import open_corpus
from ssmast.encoder import load_encoder
from ssmast.evaluation.embed import embed_corpus
from ssmast.evaluation.processes import process_state
from ssmast.settings import UsageError, parse, setting, wants_dry_run

logger = logging.getLogger(__name__)


@dataclass
class EmbedConfig:
    """`ssmast embed`: files -> embeddings."""

    encoder: str = setting("", "encoder folder or Hub name")
    data: str = setting("", "folder, list, CSV or tar(s) of audio")
    out: str = setting("embeddings.npz", "file to write")
    workers: int = setting(0, "threads that decode audio; 0: one a core, at most 8")
    batch_seconds: float = setting(60.0, "audio embedded at once; bounds the memory")


def main(argv: list[str]) -> int:
    """`ssmast embed`: parse, embed, write."""
    config = parse(EmbedConfig, argv, command="ssmast embed", description=__doc__ or "")
    if config is None:
        return 0
    for key in ("encoder", "data"):
        if not getattr(config, key):
            raise UsageError(f"{key}= is missing; see `ssmast embed --help`")
    if not config.out.endswith(".npz"):
        raise UsageError(f"out must end in .npz, got {config.out!r}")
    corpus = open_corpus(config.data)
    encoder = load_encoder(config.encoder).to(process_state().device)
    if wants_dry_run(argv):
        logger.info("%d clips, %d numbers each, to %s", len(corpus), encoder.dim, config.out)
        return 0
    found = embed_corpus(
        encoder, corpus, workers=config.workers, batch_seconds=config.batch_seconds
    )
    if not process_state().is_main:
        return 0
    for name, reason in found.rejected[:10]:
        logger.warning("left out: %s (%s)", name, reason)
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            embeddings=found.values.numpy(),
            names=np.array([corpus.name(int(row)) for row in found.rows]),
            rejected=np.array(found.rejected, dtype=np.str_).reshape(-1, 2),
            encoder=np.array(json.dumps({"sha256": encoder.sha256, **encoder.settings()})),
        )
    temporary.replace(out)
    logger.info("%d embeddings in %s, %d clips left out", len(found.rows), out, len(found.rejected))
    return 0
