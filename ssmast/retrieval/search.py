"""Find the sounds in an index that are most similar to one or several.

    ssmast search QUERY.wav index=DIR top=10
    ssmast search A.wav 'B.wav#t=3,8' not_like=[C.wav] index=DIR top=100 out=review.csv
    ssmast search A.wav reviewed=review.csv index=DIR top=100 out=more.csv

`FILE#t=START,STOP` is a part of a file, in seconds. An index made with `window=` gives windows of
recordings, with start and end. In a table (.csv) the column `like` is empty: write y or n, and
`reviewed=` takes those rows as examples too. A .txt file is a selection table for Raven.
"""

import csv
import io
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssmast.audio.read import named_excerpt, read_audio
from ssmast.encoder import Encoder, load_encoder
from ssmast.events import raven_table
from ssmast.files import as_text, check_output, csv_lines, write_atomic
from ssmast.retrieval.embed_files import event_of
from ssmast.retrieval.index import Index, Vectors
from ssmast.settings import (
    CHANNEL,
    Settings,
    UsageError,
    command,
    setting,
    several_names,
    wants_dry_run,
)

logger = logging.getLogger(__name__)

_COLUMNS = ("rank", "file", "start", "stop", "score", "like", "name")
_ANSWERS = {"y": True, "yes": True, "1": True, "n": False, "no": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Settings):
    """`ssmast search`: sounds to their nearest neighbours."""

    query: str = setting("", "sound files to look for; several are put together", required=True)
    not_like: list[str] = setting([], "sound files that what is found should not be like")
    minus: float = setting(0.5, "weight of what it should not be like", range="[0, 1000]")
    reviewed: str = setting("", "table that an earlier search wrote, with y or n in column like")
    index: str = setting("", "folder that `ssmast index` wrote", required=True)
    top: int = setting(10, "neighbours to print or write", range="[1, inf)")
    out: str = setting("", "table to write: .csv to review, .txt for Raven; empty: the terminal")
    encoder: str = setting("", "encoder folder, if it has moved since")
    channel: str = setting("mean", CHANNEL)
    json: bool = setting(False, "print JSON")

    def __post_init__(self) -> None:
        """Refuse a table of no known kind."""
        super().__post_init__()
        if self.out and Path(self.out).suffix not in (".csv", ".txt"):
            raise UsageError(f"out must end in .csv or .txt, got {self.out!r}")
        if self.out and self.json:
            raise UsageError("json=true is for the terminal; leave it or out= out")


@command(SearchConfig, "ssmast search", dry_run=True, positional="query", several=True)
def main(config: SearchConfig, argv: list[str]) -> int:
    """`ssmast search`: embed the examples, print names and cosines."""
    if config.out:
        check_output(config.out, begins=r"rank,file,start|Selection\t")
        _check_answers(Path(config.out))
    index = Index.load(config.index)
    lost = [key for key in ("encoder", "encoder_sha256", "settings") if key not in index.about]
    if lost:
        raise ValueError(
            f"{config.index} does not say its {' and '.join(lost)}; make it with `ssmast index`"
        )
    encoder = load_encoder(config.encoder or index.about["encoder"])
    wanted = (index.about["encoder_sha256"], index.about["settings"])
    if (encoder.sha256, json.loads(json.dumps(encoder.settings()))) != wanted:
        raise ValueError(
            f"{config.index} was made with another encoder than "
            f"{config.encoder or index.about['encoder']}; index again, or give that one"
        )
    if wants_dry_run(argv):
        return 0
    liked, disliked = _reviewed(index, config.reviewed)
    positive = np.concatenate([_embed(encoder, several_names(config.query), config.channel), liked])
    negative = np.concatenate([_embed(encoder, config.not_like, config.channel), disliked])
    query = index.query(positive, negative, minus=config.minus)
    if len(positive) == 1 and not len(negative):
        query = positive  # as it is, to the last bit
    (found,) = index.search(query, config.top)
    if config.out:
        _write(Path(config.out), found)
        logger.info("%d of %d sounds of the index: %s", len(found), len(index.names), config.out)
    elif config.json:
        sys.stdout.write(json.dumps([{"name": n, "cosine": round(c, 6)} for n, c in found]) + "\n")
    else:
        sys.stdout.writelines(f"{cosine:.4f}  {name}\n" for name, cosine in found)
    return 0


def _embed(encoder: Encoder, files: Sequence[str], channel: str) -> Vectors:
    """Vectors (n, D) of files and parts of files."""
    rows = [np.zeros((0, encoder.dim), dtype=np.float32)]
    for name in files:
        clip = read_audio(named_excerpt(name, channel=channel), sample_rate=encoder.sample_rate)
        rows.append(encoder.embed(clip, encoder.sample_rate).numpy())
    return np.concatenate(rows)


def _reviewed(index: Index, table: str) -> tuple[Vectors, Vectors]:
    """Vectors of the rows of a reviewed table that have y, and of those that have n."""
    names: dict[bool, list[str]] = {True: [], False: []}
    if table:
        rows = csv.DictReader(io.StringIO(as_text(Path(table).read_bytes(), table), newline=""))
        if not {"name", "like"} <= {*(rows.fieldnames or ())}:
            raise ValueError(f"{table} has no columns name and like, as `out=` writes")
        for row in rows:
            answer = (row["like"] or "").strip().lower()
            if answer and answer not in _ANSWERS:
                raise ValueError(f"{table}: like must be y, n or empty, got {row['like']!r}")
            if answer:
                names[_ANSWERS[answer]].append(row["name"])
    return index.vectors(names[True]), index.vectors(names[False])


def _check_answers(out: Path) -> None:
    """Refuse to replace a table that somebody has gone through."""
    if out.suffix != ".csv" or not out.is_file():
        return
    table = io.StringIO(as_text(out.read_bytes(), out), newline="")
    answers = sum(bool((row.get("like") or "").strip()) for row in csv.DictReader(table))
    if answers:
        raise FileExistsError(
            f"out={out} holds {answers} answers in column like, and is not replaced; give another "
            "out="
        )


def _write(out: Path, found: Sequence[tuple[str, float]]) -> None:
    events = [event_of(name, f"match {rank}", score) for rank, (name, score) in
              enumerate(found, start=1)]  # fmt: skip
    if out.suffix == ".txt":
        write_atomic(out, raven_table(events))
        return
    lines: list[tuple[str, ...]] = [_COLUMNS]
    for rank, (event, (name, score)) in enumerate(zip(events, found, strict=True), start=1):
        span = (f"{event.start:g}", f"{event.stop:g}") if event.stop else ("", "")
        lines.append((str(rank), event.file, *span, f"{score:.6f}", "", name))
    write_atomic(out, csv_lines(lines))
