"""Compute embeddings of sound files, in one .npz or .parquet file.

    ssmast embed FILES_OR_DIR encoder=runs/mine/encoder out=embeddings.npz

    ssmast embed RECORDINGS encoder=DIR window=5 hop=2.5 format=raven    a vector a window

An .npz holds `embeddings` (n, D) float32, `names` (n,), `rejected` (m, 2: name, reason) and
`encoder` (JSON); numpy.load reads it without pickle. A .parquet holds the columns name and
embedding. If interrupted, the same command resumes: finished parts are kept in OUT.parts until the
end. Files that cannot be read are left out and listed in OUT.quarantine.csv. A window is named
FILE#t=START,STOP in seconds; with `format` the folder OUT.tables gets a table of windows for each
file, which Raven or Audacity opens, their labels the numbers of the rows.
"""

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmast.audio import AudioError, Corpus, LongSound, Quarantine, RemoteError, open_corpus
from ssmast.audio.read import excerpt_name, split_excerpt
from ssmast.audio.stats import warn_of_lost_energy
from ssmast.encoder import Encoder, load_encoder
from ssmast.evaluation.embed import Batch, cache_key, embed_batch, read_batches
from ssmast.evaluation.embedding_cache import Embeddings, joined, load, store
from ssmast.evaluation.processes import Processes, gather_list, process_state, scoring_seconds
from ssmast.events import TABLES, Event, tables_writer
from ssmast.files import check_output, replacing
from ssmast.progress import Progress
from ssmast.settings import (
    BATCH_SECONDS,
    CHANNEL,
    NETWORK_PRECISIONS,
    PRECISION,
    WORKERS,
    Settings,
    UsageError,
    in_home,
    named_files,
    parse,
    setting,
    wants_dry_run,
)
from ssmast.weights import DEFAULT

logger = logging.getLogger(__name__)

FORMATS = (".npz", ".parquet")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(Settings):
    """`ssmast embed`: files to embeddings."""

    data: str = setting("", "file, folder, list, CSV or tar(s) of audio", required=True)
    encoder: str = setting(
        DEFAULT, "encoder folder or Hub name; default: the one that comes with the package"
    )
    out: str = setting("embeddings.npz", "file to write: .npz or .parquet")
    channel: str = setting("mean", CHANNEL)
    precision: str = setting("fp32", PRECISION, choices=NETWORK_PRECISIONS)
    workers: int = setting(0, WORKERS, range="[0, inf)")
    batch_seconds: float = setting(0.0, BATCH_SECONDS, range="[0, inf)")
    window: float = setting(
        0.0,
        "seconds of the windows that get a vector each; 0: a vector for each clip",
        range="[0, inf)",
    )
    hop: float = setting(
        0.0, "seconds from window to window; 0: the length of one", range="[0, inf)"
    )
    format: str = setting(
        "",
        "with window=: also write tables that raven or audacity opens",
        choices=("", *TABLES),
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
        if (self.hop or self.format) and not self.window:
            raise UsageError("hop= and format= are about windows; give window=SECONDS too")


def main(argv: list[str]) -> int:
    """`ssmast embed`: parse, embed, write."""
    config = parse(
        EmbedConfig,
        join_files(argv, EmbedConfig),
        command="ssmast embed",
        description=__doc__ or "",
        dry_run=True,
        positional="data",
    )
    if config is None:
        return 0
    check_output(config.out)
    if Path(config.out).exists() and not _holds_embeddings(Path(config.out)):
        raise FileExistsError(
            f"out={config.out} was not written by `ssmast embed`, and is not replaced; give another"
        )
    corpus = open_files(config.data).with_channel(config.channel)
    encoder = load_encoder(config.encoder, precision=config.precision).to(process_state().device)
    if wants_dry_run(argv):
        logger.info("%d clips, %d numbers each, to %s", len(corpus), encoder.dim, config.out)
        return 0
    found = embed_in_parts(encoder, corpus, config)
    if found is None:
        return 0
    out = Path(config.out)
    write_embeddings(out, found, corpus, encoder)
    if config.format:
        _write_tables(config, names_of(found, corpus))
    logger.info("%d embeddings in %s, %d clips left out", len(found.rows), out, len(found.rejected))
    return 0


def open_files(data: str) -> Corpus:
    """A corpus of what is named; one sound file, or several joined by new lines, is one as well."""
    from ssmast.audio.corpus.open import corpus_of_files
    from ssmast.audio.read import SOUND_EXTENSIONS

    files = [data] if os.path.exists(data) else data.split("\n")
    is_sound = Path(files[0]).suffix.lower() in SOUND_EXTENSIONS
    is_sound = is_sound and not os.path.isdir(files[0])
    return corpus_of_files(files) if len(files) > 1 or is_sound else open_corpus(data)


def join_files(argv: list[str], schema: type) -> list[str]:
    """Several files as one word, `data=`; whatever is a key of the schema or a flag stays."""
    files = named_files(argv, schema)
    if not files:
        return argv
    named = "\n".join(map(in_home, files))
    return [f"data={named}", *(word for word in argv if word not in files)]


def embed_in_parts(encoder: Encoder, corpus: Corpus, config: EmbedConfig) -> Embeddings | None:
    """Embed a corpus a part at a time, each kept on disk until all are done.

    Under `accelerate launch` the processes divide the parts; the first one gets the whole, the
    others None.

    Raises:
        ValueError: if no clip could be read, or too many could not.
    """
    out, state = Path(config.out), process_state()
    how = f"-{config.window:g}-{config.hop:g}" if config.window else ""
    kept = out.with_name(f"{out.name}.parts") / (cache_key(encoder, corpus)[:16] + how)
    starts = range(0, len(corpus), config.part)
    files = [kept / f"{config.part}-{start:09d}.safetensors" for start in starts]
    bad = out.with_name(f"{out.name}.quarantine.csv") if state.is_main else None
    if bad is not None:
        bad.unlink(missing_ok=True)  # counted anew: a file may have been repaired since
    quarantine = Quarantine(bad, corpus_size=len(corpus), max_fraction=config.max_bad_fraction)
    mine = list(zip(starts, files, strict=True))[state.rank :: state.size]
    total = sum(min(config.part, len(corpus) - start) for start, _ in mine)
    if state.is_main:
        warn_of_lost_energy(corpus, encoder.log_mel)
    with Progress("embedding", total=total, enabled=state.is_main) as progress:
        for start, file in mine:
            rows = range(start, min(start + config.part, len(corpus)))
            part = load(file)
            if part is None:
                part = _embed_rows(encoder, corpus, rows, config)
                store(file, part)
            quarantine.add(part.rejected)
            progress.advance(len(rows))
    _wait(state)
    if not state.is_main:
        return None
    parts = [part for part in map(load, files) if part is not None]
    found = joined(parts, dim=encoder.dim)
    quarantine.add(found.rejected)
    if not len(found.rows):
        name, reason = found.rejected[0]
        raise ValueError(
            f"none of {len(corpus)} clips could be embedded; the first, {name}: {reason}"
        )
    for name, reason in found.rejected[:10]:
        logger.warning("left out: %s (%s)", name, reason)
    return found


def _embed_rows(
    encoder: Encoder, corpus: Corpus, rows: Sequence[int], config: EmbedConfig
) -> Embeddings:
    batches = read_batches(corpus, rows, encoder.sample_rate, config.workers, stream=True)
    seconds = config.batch_seconds or scoring_seconds()
    if config.window:
        made = [
            part
            for batch in batches
            for part in _embed_windows(encoder, corpus, batch, config, seconds)
        ]
    else:
        made = [embed_batch(encoder, corpus, batch, batch_seconds=seconds) for batch in batches]
    return joined(made, dim=encoder.dim)


def _embed_windows(
    encoder: Encoder, corpus: Corpus, batch: Batch, config: EmbedConfig, batch_seconds: float
) -> Iterator[Embeddings]:
    """Vectors of the windows of clips, a clip at a time, read from front to back."""
    rate = encoder.sample_rate
    size, hop = round(config.window * rate), round((config.hop or config.window) * rate)
    for row, clip in batch:
        found: list[Tensor] = []
        spans: list[tuple[float, float]] = []
        if isinstance(clip, str):
            yield joined([embed_batch(encoder, corpus, [(row, clip)], batch_seconds=0)],
                         dim=encoder.dim)  # fmt: skip
            continue
        # The last window ends where the clip ends.
        slack = max(0, len(clip) - size)
        starts = [*range(0, slack, max(hop, 1)), slack]
        at_once = max(1, int(batch_seconds / config.window))
        try:
            for first in range(0, len(starts), at_once):
                some = starts[first : first + at_once]
                windows = [torch.as_tensor(clip[s : s + size]).clone() for s in some]
                found.append(encoder.embed_clips(windows, batch_seconds=batch_seconds))
                spans += [(s / rate, min(s + size, len(clip)) / rate) for s in some]
        except RemoteError:
            raise  # the network failed, not the clip
        except (AudioError, OSError) as error:
            why = [(corpus.name(row), str(error))]
            none = np.zeros(0, dtype=np.int64)
            yield Embeddings(values=torch.zeros(0, encoder.dim), rows=none, rejected=why)
            continue
        finally:
            if isinstance(clip, LongSound):
                clip.close()
        yield Embeddings(
            values=torch.cat(found),
            rows=np.full(len(spans), row, dtype=np.int64),
            rejected=[],
            spans=np.array(spans, dtype=np.float64),
        )


def names_of(found: Embeddings, corpus: Corpus) -> list[str]:
    """Name of the clip of each vector; of a window with its start and stop in the file."""
    names = [corpus.name(int(row)) for row in found.rows]
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


def _wait(state: Processes) -> None:
    """Until every process has written its parts."""
    gather_list([(str(state.rank), "")], state)


def write_embeddings(out: Path, found: Embeddings, corpus: Corpus, encoder: Encoder) -> None:
    """Write the file whole or not at all, then drop the parts.

    Args:
        out: .npz or .parquet.
        found: vectors.
        corpus: that they are of.
        encoder: that they are from.
    """
    names = names_of(found, corpus)
    about = json.dumps({"sha256": encoder.sha256, **encoder.settings()})
    with replacing(out) as partial:
        if out.suffix == ".parquet":
            _write_parquet(partial, names, found.values.numpy(), about)
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
    except (ValueError, OSError, AttributeError, zipfile.BadZipFile):  # an .npy has no `files`
        return False


def _write_parquet(file: Path, names: list[str], values: np.ndarray[Any, Any], about: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    table = pa.table({"name": names, "embedding": vectors})
    pq.write_table(table.replace_schema_metadata({"encoder": about}), file)


def read_embeddings(file: str | Path) -> tuple[list[str], np.ndarray[Any, Any], dict[str, Any]]:
    """Names, float32 vectors (n, D) and the encoder's facts in a file that `ssmast embed` wrote.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no such file.
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
            return table["name"].to_pylist(), values, json.loads(about)
        with np.load(file, allow_pickle=False) as found:
            about = json.loads(str(found["encoder"]))
            return found["names"].tolist(), found["embeddings"], about
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{file} was not written by `ssmast embed` ({error})") from error
