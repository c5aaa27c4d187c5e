"""A corpus: clips by number, as files or byte ranges of tars, here or at a URL; and several."""

import copy
import functools
import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssmast.audio.corpus.entries import EXCERPT, ArrayEntries, Entries
from ssmast.audio.corpus.remote import Place, below, is_url, read_whole
from ssmast.audio.corpus.shards import RowGroupReader, reader_of
from ssmast.audio.corpus.table import column_of, read_columns
from ssmast.audio.order import Position, like, sample_at
from ssmast.audio.read import (
    Excerpt,
    Source,
    Stream,
    bytes_hash,
    check_channel,
    excerpt_name,
    file_of,
    split_excerpt,
)
from ssmast.files import as_text, yaml_list
from ssmast.progress import Progress
from ssmast.settings import in_home

_STAND_IN_SEED = 0x5EED  # another order than the stream's, so that a neighbour is no stand-in


class Corpus:
    """Clips by number. Made by `open_corpus`.

    Pickles small and opens files per process, so a DataLoader may fork or spawn its workers.

    Args:
        root: folder or URL that loose files are relative to.
        entries: where each clip lies; of a loose file the name is its path or URL, absolute or
            relative to `root`.
        shards: the archives, paths or URLs.
        table: what is known of the clips, row i of clip i; the path of a Parquet file with such
            rows, or a function that reads them, when they are asked for; or None.
        listing_hash: if it is known already.
        facts: what is known of the clips as a whole: `corpus.json` of a prepared corpus.
        channel: how one channel is made of several, see `Excerpt`.

    Attributes:
        roots: every folder or URL that it was opened from: several of `joined` corpora, none of
            sound files that were named one by one.
    """

    by_file = False
    """Whether clips are parts of files under whose names they are reported."""

    def __init__(
        self,
        *,
        root: Place,
        entries: Entries,
        shards: Sequence[Place] = (),
        table: pa.Table | Place | Callable[[], pa.Table | None] | None = None,
        listing_hash: str = "",
        facts: Mapping[str, Any] | None = None,
        channel: str = "mean",
    ) -> None:
        self.root = root
        self.roots = [root]
        self.channel = check_channel(channel)
        self.entries = entries
        self.facts = facts or {}
        self._table = table
        self._reader = reader_of(shards)
        self._listing_hash = listing_hash
        self._files_hash = ""

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, i: int) -> str:
        """Name of clip i: its path below the folder, or inside its tar (with the tar's if several).

        Bytes that are not UTF-8 are spelled out, so a name can be printed and written anywhere.
        """
        return self.entries[self._checked(i)].name.decode("utf-8", "backslashreplace")

    def reported(self, i: int) -> str:
        """What clip i is called where it cannot be used: its name, or its file's."""
        return split_excerpt(self.name(i))[0] if self.by_file else self.name(i)

    def origins(self, rows: Sequence[int]) -> list[str]:
        """Where clips come from: their names; of a prepared corpus SOURCE#t=START,STOP, seconds."""
        kept = self._table
        if not self.facts or kept is None or callable(kept):
            return [self.name(row) for row in rows]
        table: Any = _cuts_in(kept) if isinstance(kept, str | Path) else kept
        found = []
        for row in table.select(_CUT).take(pa.array(rows, pa.int64())).to_pylist():
            file, span = split_excerpt(row["source"])
            start = (span[0] if span else 0.0) + row["start"] / row["rate"]
            found.append(excerpt_name(file, start, start + row["samples"] / row["rate"]))
        return found

    def source(self, i: int) -> Source | Excerpt:
        """What `read_audio` takes for clip i: a path, an excerpt, the bytes of a tar member or URL.

        Raises:
            AudioError: if the file or tar is not there or has become shorter.
            RemoteError: if a URL cannot be reached.
        """
        entry, seconds = self.entries[self._checked(i)], None
        if entry.shard >= 0:
            name = entry.name.decode("utf-8", "backslashreplace")
            found = self._reader.read(entry.shard, entry.offset, entry.size, name)
        else:
            place, seconds = self._place(entry.name, entry.shard)
            found = read_whole(place) if isinstance(place, str) else place
        if seconds is None and self.channel == "mean":
            return found
        return Excerpt(found, *(seconds or (0.0, math.inf)), channel=self.channel)

    def sought(self, i: int) -> Source | Excerpt:
        """Where clip i lies, to be read in parts: as `source`, its channels not chosen yet.

        A member of a tar here comes as a part of that file, and no byte of it is read.
        """
        entry = self.entries[self._checked(i)]
        tar = self._reader.paths[entry.shard] if entry.shard >= 0 else ""
        if isinstance(tar, Path) and not self.reads_groups:
            return Stream(tar, entry.offset, entry.offset + entry.size)
        found = self.source(i)
        return found.source if isinstance(found, Excerpt) and found.is_whole else found

    def same_bytes(self, rows: Sequence[int]) -> list[list[int]]:
        """Which of some clips hold the same bytes (and the same seconds of them), in groups.

        Only clips of equal size are read. Those at URLs and in Parquet are not looked at: they
        would have to be fetched again.
        """
        if self.is_fetched:
            return []
        groups: dict[Any, list[int]] = defaultdict(list)
        for row in rows:
            entry = self.entries[row]
            if not entry.size:
                continue
            span = split_excerpt(self.name(row))[1] if entry.shard == EXCERPT else None
            groups[entry.size, span].append(row)
        hashes: dict[tuple[Source, int], str] = {}
        for most in (1 << 12, None):  # a look at the middle, then all
            equal = [group for group in groups.values() if len(group) > 1]
            groups = defaultdict(list)
            with Progress("comparing bytes", total=sum(map(len, equal))) as progress:
                for number, group in enumerate(equal):
                    for row in group:
                        source = file_of(self.sought(row))
                        key = source, most or 0
                        if key not in hashes:
                            hashes[key] = bytes_hash(source, most)
                        if hashes[key]:
                            groups[number, hashes[key]].append(row)
                        progress.advance(1)
        return [group for group in groups.values() if len(group) > 1]

    def with_channel(self, channel: str) -> "Corpus":
        """The same clips, where one channel is made of several in this way, see `Excerpt`."""
        made = copy.copy(self)
        made.channel, made._files_hash = check_channel(channel), ""
        return made

    def _place(self, name: bytes, shard: int) -> tuple[Place, tuple[float, float] | None]:
        """Path or URL of the file of a loose clip, and which seconds of it unless all."""
        text, seconds = os.fsdecode(name), None
        if shard == EXCERPT:
            text, seconds = split_excerpt(text)
        return below(self.root, text), seconds

    @property
    def table(self) -> pa.Table | None:
        """What is known of the clips, row i of clip i; None if nothing is."""
        if isinstance(self._table, Place):
            self._table = read_columns(self._table)
        elif callable(self._table):
            self._table = self._table()
        return self._table

    @property
    def listing_hash(self) -> str:
        """SHA-256 (hex) of all names and sizes in order: equal for the same clips anywhere."""
        if not self._listing_hash:
            digest = hashlib.sha256()
            for i in range(len(self)):
                digest.update(f"{self.name(i)}\t{self.entries[i].size}\n".encode())
            self._listing_hash = digest.hexdigest()
        return self._listing_hash

    @property
    def files_hash(self) -> str:
        """SHA-256 (hex) of `listing_hash` and the path, size and times of change of every file.

        The key of what is computed from the audio: `listing_hash` alone is equal for the clean and
        the noisy version of a set, whose WAV files have the same names and sizes. Files at a URL
        are taken not to change.
        """
        if not self._files_hash:
            self._files_hash = self._hash_of_files(with_status=True)
        return self._files_hash

    @property
    def copied_hash(self) -> str:
        """`files_hash` without the times that a copy does not keep.

        For work that goes on with a copy under the same path on another machine.
        """
        return self._hash_of_files(with_status=False)

    def _hash_of_files(self, *, with_status: bool) -> str:
        lines = [self.listing_hash]
        lines += [f"channel {self.channel}"] * (self.channel != "mean")
        for file in self.files():
            is_url = isinstance(file, str)
            lines.append(str(file) if is_url else _state_of(file, with_status=with_status))
        text = "\n".join(lines)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def corpora(self) -> "Sequence[Corpus]":
        """The corpora it is made of: itself."""
        return [self]

    @property
    def reads_groups(self) -> bool:
        """Whether a clip is read together with its neighbours, from Parquet."""
        return isinstance(self._reader, RowGroupReader)

    @property
    def is_fetched(self) -> bool:
        """Whether a look at a clip costs more than its bytes: from a URL, or in Parquet."""
        return self.reads_groups or any(isinstance(p, str) for p in (self.root, *self.shards))

    @property
    def shards(self) -> Sequence[Place]:
        """The archives, by number."""
        return self._reader.paths

    def files(self) -> Iterator[Place]:
        """Every file that holds clips, once: the tars in use, then the loose files."""
        for number in self.entries.used_shards():
            yield self._reader.paths[number]
        if not isinstance(self.entries, ArrayEntries):
            return
        seen: set[Place] = set()
        for i in np.flatnonzero(self.entries.shard < 0):
            place, seconds = self._place(self.entries[int(i)].name, self.entries[int(i)].shard)
            if place not in seen:
                yield place
            if seconds is not None:  # only then do clips share a file
                seen.add(place)

    def sample_at(self, position: Position, *, seed: int) -> tuple[Position, Position]:
        """Epoch and clip at a position of the endless shuffled stream; see `order.sample_at`."""
        return sample_at(position, size=len(self), seed=seed)

    def stand_in(self, epoch: int, clip: int, attempt: int, *, seed: int) -> int:
        """The clip itself (attempt 0), then others: a walk through all in an order of its own."""
        if attempt == 0:
            return clip
        place = epoch * len(self) + (clip + attempt) % len(self)
        return sample_at(place, size=len(self), seed=seed ^ _STAND_IN_SEED)[1]

    def select(self, **equals: str) -> "Corpus":
        """The clips whose row of the table says so, in the same order: `select(split="train")`.

        Raises:
            ValueError: if there is no table, no such column, or no such clip.
        """
        if self.table is None:
            raise ValueError(f"clips in {self.root} cannot be selected: they have no metadata.csv")
        keep = np.ones(len(self), dtype=bool)
        for column, wanted in equals.items():
            values = np.array(column_of(self.table, column, f"{self.root}/metadata.csv"), object)
            keep &= values == wanted
        if not keep.any():
            wanted = ", ".join(f"{column}={value}" for column, value in equals.items())
            raise ValueError(f"no clip in {self.root} has {wanted}")
        return self.take(np.flatnonzero(keep))

    def take(self, rows: np.ndarray) -> "Corpus":
        """The clips of some numbers, int64 (n,), in that order."""
        return Corpus(
            root=self.root,
            entries=self.entries.take(rows),
            shards=self._reader.paths,
            table=None if self.table is None else self.table.take(pa.array(rows)),
            channel=self.channel,
        )

    def moved_to(self, tar: Path, *, offsets: np.ndarray, sizes: np.ndarray) -> "Corpus":
        """The same clips, by name, table and hash, read from a tar that holds copies."""
        if not len(offsets) == len(sizes) == len(self):
            raise ValueError(f"{tar} must hold {len(self)} clips, got {len(offsets)}")
        names = (self.name(i) for i in range(len(self)))
        moved = Corpus(
            root=self.root,
            entries=ArrayEntries.of(names, sizes, np.zeros(len(self)), offsets),
            shards=[tar],
            table=self._table,
            listing_hash=self.listing_hash,
            channel=self.channel,
        )
        moved.by_file = self.by_file
        return moved

    def _checked(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"clip must lie in [0, {len(self)}), got {i}")
        return int(i)


_CUT = ["source", "start", "samples", "rate"]


@functools.lru_cache(maxsize=2)
def _cuts_in(manifest: Place) -> pa.Table:
    return read_columns(manifest, _CUT)


def _state_of(file: Path, *, with_status: bool) -> str:
    path = os.path.abspath(file)
    try:
        info = os.stat(path)
    except OSError:
        return f"{path} cannot be looked at"  # it is rejected, with the reason, where it is read
    # Programs can set the time of the content, as `cp -p` and `touch -r` do, but not this one.
    status = f" {info.st_ctime_ns}" if with_status else ""
    return f"{path} {info.st_size} {info.st_mtime_ns}{status}"


BLOCK = 1 << 16
"""Positions of the stream in which every corpus has exactly the places of its weight."""

_FORM = "a list of `{path: FOLDER, weight: 1}`"


def read_mixture(text: str) -> list[tuple[str, float]] | None:
    """Paths and weights of a mixture; None where a text names something else.

    The text is the YAML itself, beginning with `[`, or the path of a `.yaml` file, whose paths are
    relative to its folder.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a list of `path` and `weight`.
    """
    if text.lstrip().startswith("["):
        return _weighted_paths(text, "the mixture", Path())
    if not text.lower().endswith((".yaml", ".yml")):
        return None
    file = Path(text)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; a mixture was wanted, {_FORM}")
    return _weighted_paths(as_text(file.read_bytes(), file), text, file.parent)


def _weighted_paths(text: str, what: str, folder: Path) -> list[tuple[str, float]]:
    return [_weighted_path(item, what, folder) for item in yaml_list(text, what, f"be {_FORM}")]


def _weighted_path(item: Any, what: str, folder: Path) -> tuple[str, float]:
    if isinstance(item, str):
        item = {"path": item}
    if not isinstance(item, dict) or not {"path"} <= set(item) <= {"path", "weight"}:
        raise ValueError(f"{what} must be {_FORM}, got {item!r}")
    path, weight = item["path"], item.get("weight", 1)
    if not isinstance(path, str) or not path:
        raise ValueError(f"{what} has a path that is no text: {path!r}")
    if not (folder / path).exists():
        path = in_home(path)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"the weight of {path} must be a number above 0, got {weight!r}")
    inside = "://" in path or path.lstrip().startswith("pipe:") or Path(path).is_absolute()
    return (path if inside else str(folder / path)), float(weight)


class Mixture(Corpus):
    """Several corpora as one: clip i of corpus k is clip `first[k] + i`.

    Of every 65536 positions of the stream each corpus has as many as its weight says, rounded and
    shuffled. Each corpus keeps its own order, every clip once an epoch, so a small one with a large
    weight is in a later epoch than a large one. The clip at a position is computed, as for a single
    corpus.

    Raises:
        ValueError: if a weight is too small for its corpus to appear.
    """

    def __init__(self, weighted: Sequence[tuple[Corpus, float]]) -> None:
        self._corpora = [corpus for corpus, _ in weighted]
        self._weights = [weight for _, weight in weighted]
        self._quotas = _quotas(self._weights)
        self._ends = np.cumsum([len(corpus) for corpus in self._corpora])
        self._firsts = self._ends - [len(corpus) for corpus in self._corpora]
        super().__init__(root=Path(), entries=ArrayEntries.of([], np.zeros(0)))

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def corpora(self) -> Sequence[Corpus]:
        """The corpora it is made of."""
        return self._corpora

    @property
    def is_even(self) -> bool:
        """Whether all weights are equal, as those of `[A, B]` are."""
        return len(set(self._weights)) == 1

    def with_channel(self, channel: str) -> "Mixture":
        """The same mixture, its clips with another channel."""
        return self.with_corpora([corpus.with_channel(channel) for corpus in self._corpora])

    def with_corpora(self, corpora: Sequence[Corpus]) -> "Mixture":
        """The same weights over other corpora, one for each."""
        return Mixture(list(zip(corpora, self._weights, strict=True)))

    def name(self, i: int) -> str:
        """Name of clip i, after the number of its corpus."""
        which, corpus, clip = self._locate(i)
        return f"{which}:{corpus.name(clip)}"

    def reported(self, i: int) -> str:
        """What clip i is called where it cannot be used, after the number of its corpus."""
        which, corpus, clip = self._locate(i)
        return f"{which}:{corpus.reported(clip)}"

    def source(self, i: int) -> Source | Excerpt:
        """What `read_audio` takes for clip i."""
        _, corpus, clip = self._locate(i)
        return corpus.source(clip)

    def sought(self, i: int) -> Source | Excerpt:
        """Where clip i lies."""
        _, corpus, clip = self._locate(i)
        return corpus.sought(clip)

    @property
    def listing_hash(self) -> str:
        """SHA-256 (hex) of the listing hashes of the corpora and their weights."""
        lines = [
            f"{corpus.listing_hash}\t{quota}\n"
            for corpus, quota in zip(self._corpora, self._quotas, strict=True)
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def files(self) -> Iterator[Place]:
        """Every file that holds clips."""
        for corpus in self._corpora:
            yield from corpus.files()

    def sample_at(self, position: Position, *, seed: int) -> tuple[Position, Position]:
        """Epoch of its corpus, and clip, at a position of the endless shuffled stream."""
        positions = np.atleast_1d(np.asarray(position, dtype=np.int64))
        block, slot = sample_at(positions, size=BLOCK, seed=seed)
        which = np.searchsorted(np.cumsum(self._quotas), slot, side="right")
        epoch, clip = np.zeros_like(positions), np.zeros_like(positions)
        for k, corpus in enumerate(self._corpora):
            here = which == k
            within = slot[here] - int(sum(self._quotas[:k]))
            nth = block[here] * self._quotas[k] + within  # its own stream, without a gap
            epoch[here], clip[here] = corpus.sample_at(nth, seed=seed + 1 + k)
            clip[here] += self._firsts[k]
        return like(position, epoch, clip)

    def stand_in(self, epoch: int, clip: int, attempt: int, *, seed: int) -> int:
        """The clip itself, then others of the same corpus."""
        which, corpus, inside = self._locate(clip)
        return int(self._firsts[which]) + corpus.stand_in(epoch, inside, attempt, seed=seed)

    def _locate(self, i: int) -> tuple[int, Corpus, int]:
        """Number of the corpus of clip i, the corpus, and the number of the clip in it."""
        which = int(np.searchsorted(self._ends, self._checked(i), side="right"))
        return which, self._corpora[which], i - int(self._firsts[which])


def _quotas(weights: Sequence[float]) -> list[int]:
    """Positions of a block for each corpus, rounded, the largest remainders first."""
    total = math.fsum(weights)
    exact = [BLOCK * weight / total for weight in weights]
    quotas = [math.floor(number) for number in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: (quotas[k] - exact[k], k))
    for k in by_remainder[: BLOCK - sum(quotas)]:
        quotas[k] += 1
    for weight, quota in zip(weights, quotas, strict=True):
        if quota < 1:
            raise ValueError(
                f"a weight of {weight:g} out of {total:g} is too small: below one in {BLOCK} clips"
            )
    return quotas


# -- several as one --------------------------------------------------------------------------------


def joined(corpora: Sequence[Corpus]) -> Corpus:
    """One corpus of all clips of several, in their order.

    Clips are named from the folder that holds all the folders, members of the only tar of a corpus
    after that tar. What a table lacks that another one has is empty.

    Raises:
        ValueError: if some keep their sound in Parquet and others in tars; from `table`, if a
            column has values of two types.
    """
    if len({corpus.reads_groups for corpus in corpora if corpus.shards}) > 1:
        raise ValueError(
            f"{_roots_of(corpora)}: some keep their sound in Parquet and others in tars, which are "
            "read in two ways; give those of one kind"
        )
    folders = [os.path.abspath(corpus.root) for corpus in corpora if isinstance(corpus.root, Path)]
    home = os.path.commonpath(folders) if folders else "/"
    entries, shards = list[ArrayEntries](), list[Place]()
    for corpus in corpora:
        own = corpus.entries.take(np.arange(len(corpus)))
        root = _from_home(home, corpus.root)
        tar = _from_home(home, corpus.shards[0]) if len(corpus.shards) == 1 else root
        names = [
            _named_below(root if shard < 0 else tar, name)
            for name, shard in zip(own.texts(), own.shard.tolist(), strict=True)
        ]
        shard = np.where(own.shard < 0, own.shard, own.shard + len(shards))
        entries.append(ArrayEntries.of(names, own.sizes, shard, own.offset))
        shards += corpus.shards
    made = Corpus(
        root=Path(home),
        entries=ArrayEntries.joined(entries),
        shards=shards,
        table=lambda: _joined_tables(corpora),
        channel=corpora[0].channel,
    )
    made.roots = [root for corpus in corpora for root in corpus.roots]
    return made


def _from_home(home: str, place: Place) -> str:
    return place if isinstance(place, str) else os.path.relpath(place, home)


def _named_below(above: str, name: str) -> str:
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{above.rstrip('/')}/{name}" if is_url(above) else os.path.normpath(f"{above}/{name}")


def _joined_tables(corpora: Sequence[Corpus]) -> pa.Table | None:
    tables = [corpus.table for corpus in corpora]
    columns = [name for table in tables if table is not None for name in table.column_names]
    if not columns:
        return None
    filled = [
        pa.table({columns[0]: pa.nulls(len(corpus))}) if table is None else table
        for corpus, table in zip(corpora, tables, strict=True)
    ]
    try:
        found = pa.concat_tables(filled, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(
            f"{_roots_of(corpora)}: a column of their tables has values of two types ({error}); "
            "give those of one kind"
        ) from error
    for number, field in enumerate(found.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            full = pc.call_function("coalesce", [found[number], pa.scalar("", field.type)])
            found = found.set_column(number, field.name, full)
    return found.replace_schema_metadata(None)


def _roots_of(corpora: Sequence[Corpus]) -> str:
    return ", ".join(str(corpus.root) for corpus in corpora)
