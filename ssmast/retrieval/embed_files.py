"""Compute embeddings of sound files, in one .npz or .parquet file.

    ssmast embed FILES_OR_DIR encoder=runs/mine/encoder out=embeddings.npz

    ssmast embed RECORDINGS encoder=DIR window=5 hop=2.5 format=raven    a vector a window

    ssmast embed RECORDINGS engine=ray ray_address=HOST:6379    on all cores of a Ray cluster

An .npz holds `embeddings` (n, D) float32, `names` (n,), `rejected` (m, 2: name, reason) and
`encoder` (JSON); numpy.load reads it without pickle. A .parquet holds the columns name and
embedding. If interrupted, the same command resumes: finished parts are kept in OUT.parts until the
end. Files that cannot be read are left out and listed in OUT.quarantine.csv. A window is named
FILE#t=START,STOP in seconds, and so is a clip that `ssmast prepare` cut; with `format` the folder
OUT.tables gets a table of windows for each file, which Raven or Audacity opens, their labels the
numbers of the rows.
"""

import functools
import json
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssmast.audio import Corpus, Quarantine, open_words
from ssmast.audio.read import excerpt_name, split_excerpt
from ssmast.audio.stats import warn_of_lost_energy
from ssmast.command import num_cores
from ssmast.encoder import Encoder, load_encoder
from ssmast.engine import run_jobs
from ssmast.evaluation.embed import cache_key, check_any, embed_batch, read_batches
from ssmast.evaluation.embedding_cache import Embeddings, joined, load, store
from ssmast.evaluation.processes import gather_list, process_state, scoring_seconds
from ssmast.events import TABLES, Event, tables_writer
from ssmast.files import check_output, lock_of, locked, replacing
from ssmast.progress import Progress
from ssmast.settings import (
    NETWORK_PRECISIONS,
    PRECISION,
    WORKERS,
    SoundSettings,
    UsageError,
    command,
    setting,
    several_names,
    wants_dry_run,
)
from ssmast.weights import DEFAULT

logger = logging.getLogger(__name__)

FORMATS = (".npz", ".parquet")


@dataclass(frozen=True, kw_only=True)
class WindowSettings(SoundSettings):
    """What `ssmast embed`, `index` and `map` have in common."""

    data: str = setting("", "file, folder, list, CSV or tar(s) of audio", required=True)
    encoder: str = setting(
        DEFAULT, "encoder folder or Hub name; default: the one that comes with the package"
    )
    window: float = setting(
        0.0,
        "seconds of the windows that clips are cut into; 0: each clip as a whole",
        range="0 or [0.01, inf)",
    )
    hop: float = setting(
        0.0, "seconds from window to window; 0: the length of one", range="0 or [0.001, inf)"
    )

    def __post_init__(self) -> None:
        """Refuse a hop without windows."""
        super().__post_init__()
        if self.hop and not self.window:
            raise UsageError("hop= is about windows; give window=SECONDS too")

    def to_embed(self, out: Path) -> "EmbedConfig":
        """The same for `embed_in_parts`, whose parts lie beside `out`."""
        common = {field.name: getattr(self, field.name) for field in fields(WindowSettings)}
        return EmbedConfig(out=str(out), **common)


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(WindowSettings):
    """`ssmast embed`: files to embeddings."""

    out: str = setting("embeddings.npz", "file to write: .npz or .parquet")
    precision: str = setting("fp32", PRECISION, choices=NETWORK_PRECISIONS)
    workers: int = setting(
        0, f"{WORKERS}; with engine=ray: processes, 0: one for each core", range="[0, inf)"
    )
    engine: str = setting(
        "local",
        "local (this process, or those of `accelerate launch`) or ray (a process a CPU core)",
        choices=("local", "ray"),
    )
    ray_address: str = setting(
        "", "running Ray cluster that can read the files and write out; empty: start one here"
    )
    format: str = setting(
        "", "with window=: also write tables that raven or audacity opens", choices=("", *TABLES)
    )
    part: int = setting(
        512, "clips after which finished embeddings are saved, for resuming", range="[1, inf)"
    )
    max_bad_fraction: float = setting(
        1.0, "stop if more than this fraction of the clips is unreadable", range="[0, 1]"
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be written."""
        super().__post_init__()
        if not self.out.endswith(FORMATS):
            raise UsageError(f"out must end in .npz or .parquet, got {self.out!r}")
        if self.format and not self.window:
            raise UsageError("format= is about windows; give window=SECONDS too")
        if self.ray_address and self.engine != "ray":
            raise UsageError("ray_address= needs engine=ray")


@command(EmbedConfig, "ssmast embed", dry_run=True, positional="data", several=True)
def main(config: EmbedConfig, argv: list[str]) -> int:
    """`ssmast embed`: parse, embed, write."""
    check_output(config.out)
    if Path(config.out).exists() and not _holds_embeddings(Path(config.out)):
        raise FileExistsError(
            f"out={config.out} was not written by `ssmast embed`, and is not replaced; give another"
        )
    corpus = open_words(config.data).with_channel(config.channel)
    encoder = load_encoder(config.encoder, precision=config.precision).to(process_state().device)
    if wants_dry_run(argv):
        logger.info("%d clips, %d numbers each, to %s", len(corpus), encoder.dim, config.out)
        return 0
    out = Path(config.out)
    with sole_writer(out):
        found = embed_in_parts(encoder, corpus, config)
        if found is None:
            return 0
        write_embeddings(out, found, corpus, encoder)
        if config.format:
            _write_tables(config, names_of(found, corpus))
    logger.info("%d embeddings in %s, %s", len(found.rows), out, left_out(found, out))
    return 0


def sole_writer(out: str | Path) -> AbstractContextManager[None]:
    """Keep other commands from `out` and its parts; of several processes the first one does."""
    if process_state().is_main:
        return locked(lock_of(out), doing=f"writing {out}")
    return nullcontext()


def embed_in_parts(encoder: Encoder, corpus: Corpus, config: EmbedConfig) -> Embeddings | None:
    """Embed a corpus a part at a time, each kept on disk until all are done.

    Under `accelerate launch` the processes divide the parts; the first one gets the whole, the
    others None.

    Raises:
        ValueError: if no clip could be read, or too many could not.
    """
    out, state = Path(config.out), process_state()
    if config.engine == "ray" and state.size > 1:
        raise ValueError(
            f"engine=ray starts its processes itself, and {state.size} of `accelerate launch` run "
            "already; use one of the two"
        )
    files = _part_files(encoder, corpus, config)
    bad = out.with_name(f"{out.name}.quarantine.csv") if state.is_main else None
    if bad is not None:
        bad.unlink(missing_ok=True)  # counted anew: a file may have been repaired since
    quarantine = Quarantine(bad, corpus_size=len(corpus), max_fraction=config.max_bad_fraction)
    mine = list(files)[state.rank :: state.size]
    sizes = {start: min(config.part, len(corpus) - start) for start in mine}
    todo = []
    if state.is_main:
        warn_of_lost_energy(corpus, encoder.log_mel)
    with Progress("embedding", total=sum(sizes.values()), enabled=state.is_main) as progress:
        for start in mine:
            kept = load(files[start])
            if kept is None:
                todo.append(start)
                continue
            quarantine.add(kept.rejected)
            progress.advance(sizes[start])
        done = progress.done
        call, workers = partial(_embed_part, encoder, corpus, files, config, progress), 1
        if config.engine == "ray":
            named = "\n".join(map(_absolute, several_names(config.data)))
            there = replace(
                config,
                data=named,
                encoder=_absolute(config.encoder),
                out=os.path.abspath(config.out),
                workers=1,  # thread that decodes
            )
            call, workers = partial(_embed_part_elsewhere, there), config.workers or num_cores()
        for start, rejected in run_jobs(
            call, todo, engine=config.engine, workers=workers, address=config.ray_address
        ):
            quarantine.add(rejected)
            done += sizes[start]
            progress.reach(done)
    gather_list([0], state)  # until every process has written its parts
    if not state.is_main:
        return None
    parts = [part for part in map(load, files.values()) if part is not None]
    if len(parts) < len(files):
        raise ValueError(
            f"{len(files) - len(parts)} of {len(files)} parts are missing from {files[0].parent}: "
            "other machines must see the same encoder, sounds and out= under the same paths"
        )
    found = joined(parts, dim=encoder.dim)
    quarantine.add(found.rejected)
    check_any(found, corpus)
    for name, reason in found.rejected[:10]:
        logger.warning("left out: %s (%s)", name, reason)
    return found


def left_out(found: Embeddings, out: Path) -> str:
    """How many clips were left out, and where they are listed."""
    where = f" ({out}.quarantine.csv)" if found.rejected else ""
    return f"{len(found.rejected)} clips left out{where}"


def _part_files(encoder: Encoder, corpus: Corpus, config: EmbedConfig) -> dict[int, Path]:
    """Where the vectors of each part are kept until all are there, by the first row of it."""
    out = Path(config.out)
    how = f"-{config.window:g}-{config.hop:g}" if config.window else ""
    folder = out.with_name(f"{out.name}.parts") / (cache_key(encoder, corpus)[:16] + how)
    starts = range(0, len(corpus), config.part)
    return {start: folder / f"{config.part}-{start:09d}.safetensors" for start in starts}


def _absolute(path: str) -> str:
    return os.path.abspath(path) if os.path.exists(path) else path


def _embed_part(
    encoder: Encoder,
    corpus: Corpus,
    files: dict[int, Path],
    config: EmbedConfig,
    progress: Progress | None,
    start: int,
) -> list[tuple[str, str]]:
    """Keep the vectors of a part; returns what it left out."""
    rows = range(start, min(start + config.part, len(corpus)))
    part = _embed_rows(encoder, corpus, rows, config, progress)
    store(files[start], part)
    return part.rejected


def _embed_part_elsewhere(config: EmbedConfig, start: int) -> list[tuple[str, str]]:
    """`_embed_part` in a process that has only the settings."""
    return _embed_part(*_opened(config), config, None, start)


@functools.lru_cache(maxsize=1)
def _opened(config: EmbedConfig) -> tuple[Encoder, Corpus, dict[int, Path]]:
    """What the settings name, and the files of the parts; a process embeds many of them."""
    torch.set_num_threads(1)
    encoder = load_encoder(config.encoder, precision=config.precision)
    corpus = open_words(config.data).with_channel(config.channel)
    return encoder, corpus, _part_files(encoder, corpus, config)


def _embed_rows(
    encoder: Encoder,
    corpus: Corpus,
    rows: Sequence[int],
    config: EmbedConfig,
    progress: Progress | None,
) -> Embeddings:
    seconds, made = config.batch_seconds or scoring_seconds(), []
    done = progress.done if progress else 0.0
    for batch in read_batches(corpus, rows, encoder.sample_rate, config.workers, stream=True):
        found = embed_batch(
            encoder, corpus, batch, batch_seconds=seconds, window=config.window, hop=config.hop,
            advance=progress.advance if progress else None,
        )  # fmt: skip
        made.append(found)
        done += len(batch)
        if progress:
            progress.reach(done)
    return joined(made, dim=encoder.dim)


def names_of(found: Embeddings, corpus: Corpus) -> list[str]:
    """Origin of the clip of each vector; of a window with its start and stop in the file."""
    names = corpus.origins(found.rows.tolist())
    if found.spans is None:
        return names
    windows = []
    for name, (start, stop) in zip(names, found.spans.tolist(), strict=True):
        file, span = split_excerpt(name)
        begin = span[0] if span else 0.0
        windows.append(excerpt_name(file, begin + start, begin + stop))
    return windows


def event_of(name: str, label: str, score: float = 1.0) -> Event:
    """The span that a name stands for; of a whole file from 0 to 0, as its end is not in it."""
    file, span = split_excerpt(name)
    return Event(file, *(span or (0.0, 0.0)), label, score)


def _write_tables(config: EmbedConfig, names: Sequence[str]) -> None:
    events: dict[str, list[Event]] = {}
    for number, name in enumerate(names):
        event = event_of(name, str(number))
        events.setdefault(event.file, []).append(event)
    write = tables_writer(config.format, f"{config.out}.tables")
    for file, own in events.items():
        write(file, own)
    logger.info("tables of %d files in %s.tables", len(events), config.out)


def write_embeddings(out: Path, found: Embeddings, corpus: Corpus, encoder: Encoder) -> None:
    """Write the file whole or not at all, then drop the parts."""
    names = names_of(found, corpus)
    about = json.dumps({"sha256": encoder.sha256, **encoder.settings()})
    with replacing(out) as partial:
        if out.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            flat = pa.array(found.values.numpy().reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(flat, found.values.shape[1])
            table = pa.table({"name": names, "embedding": vectors})
            pq.write_table(table.replace_schema_metadata({"encoder": about}), partial)
        else:
            with partial.open("wb") as file:
                np.savez(
                    file,
                    embeddings=found.values.numpy(),
                    names=np.array(names),
                    rejected=np.array(found.rejected, dtype=np.str_).reshape(-1, 2),
                    encoder=np.array(about),
                )
    shutil.rmtree(out.with_name(f"{out.name}.parts"), ignore_errors=True)


def _holds_embeddings(file: Path) -> bool:
    """Whether a file is one that `write_embeddings` wrote; reads no vector."""
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            return b"encoder" in (pq.read_schema(file).metadata or {})
        with np.load(file, allow_pickle=False) as found:
            return {"embeddings", "names", "encoder"} <= set(found.files)
    # An .npy has no `files`; an empty file is at its end.
    except (ValueError, OSError, AttributeError, EOFError, zipfile.BadZipFile):
        return False


def read_embeddings(file: str | Path) -> tuple[list[str], np.ndarray[Any, Any], dict[str, Any]]:
    """Names, float32 vectors (n, D) and the encoder's facts in a file that `ssmast embed` wrote.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no such file, or one that was changed.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; write it with `ssmast embed`")
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(file)
            about = (table.schema.metadata or {})[b"encoder"].decode()
            flat = table["embedding"].combine_chunks().flatten().to_numpy()
            values = flat.reshape(len(table), -1).astype(np.float32, copy=False)
            names = table["name"].to_pylist()
        else:
            with np.load(file, allow_pickle=False) as found:
                about = str(found["encoder"])
                names, values = found["names"].tolist(), found["embeddings"]
        encoder = json.loads(about)
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} was not written by `ssmast embed` ({error})") from error
    if len(names) != len(values) or not np.isfinite(values).all():
        raise ValueError(
            f"{file} was changed since `ssmast embed` wrote it: {len(names)} names, {len(values)} "
            "vectors, and every number must be finite; embed the files again"
        )
    return names, values, encoder
