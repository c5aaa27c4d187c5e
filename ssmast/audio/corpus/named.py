"""Corpora of clips that a list or table names: each looked up in a folder or in tars."""

import html
import itertools
import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from ssmast.audio.corpus.corpus import Corpus
from ssmast.audio.corpus.entries import EXCERPT, LOOSE, ArrayEntries
from ssmast.audio.corpus.remote import (
    Place,
    below,
    check_url,
    folder_of,
    is_hidden,
    is_sound,
    is_url,
    walk,
)
from ssmast.audio.corpus.shards import index_tar, safe_member_name
from ssmast.audio.corpus.table import TASK_FILE, Listing, table_of
from ssmast.audio.read import split_excerpt
from ssmast.progress import say_once
from ssmast.settings import in_home

# What ssmast writes beside a set's table: the task, and what the built-in corpus was made with.
_NOTES = (TASK_FILE, "synthetic.json")


def say_unused(root: Place, unused: Sequence[str], others: Sequence[str] = ()) -> None:
    """Count what a folder holds and nothing is made of, by kind, once a process.

    `others` are hidden files and folders, links to nothing, pipes and devices, and with a / at the
    end links to folders.
    """
    kinds = Counter(os.path.splitext(name)[1].lower() or "without an ending" for name in unused)
    for name in others:
        if name.endswith("/"):
            kinds["links to folders that are here already"] += 1
        else:
            hidden = is_hidden(name)
            is_link = not hidden and os.path.islink(os.path.join(root, name))
            kinds[
                "hidden" if hidden else "links to nothing" if is_link else "pipes or devices"
            ] += 1
    if not kinds:
        return
    first = [*unused, *others][0]
    shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(8))
    say_once(f"{root}: {kinds.total():,} files are not used: {shown}; the first is {first!r}")


def say_unnamed(root: Path, corpus: Corpus, *tables: str) -> None:
    """Count the files of a folder that its table does not name."""
    used = {split_excerpt(corpus.name(i))[0] for i in range(len(corpus))}
    real = os.path.realpath(root)
    for name in [name for name in used if os.path.isabs(name)]:
        folder, file = os.path.split(name)
        used.add(os.path.relpath(os.path.join(os.path.realpath(folder), file), real))
    used = {os.path.normpath(name) for name in used}
    used |= {*tables, *_NOTES}
    others: list[str] = []
    say_unused(root, [name for name, _ in walk(root, others=others) if name not in used], others)


def of_files(path: Place, names: list[str], table: pa.Table | None, root: Place) -> Corpus:
    """A corpus of loose files, or excerpts of them, in the order of their names.

    Args:
        path: of the list or table, for messages.
        names: paths, relative to `root` or absolute, URLs, or excerpts `a.wav#t=1.5,3`.
        table: what is known of the clips, row i of clip i.
        root: folder or URL.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if a name is a command, leads out of the folder, or there is none.
    """
    if not names:
        raise ValueError(f"{path} names no clip; wanted one path a line")
    sizes = np.zeros(len(names), dtype=np.int64)
    shard = np.full(len(names), LOOSE, dtype=np.int32)
    missing: list[int] = []
    for i, name in enumerate(names):
        file = safe_path(path, name)
        if isinstance(root, str) or is_url(file):
            continue  # one request a clip would take hours; what is missing shows when it is used
        if file.startswith("~"):
            file = names[i] = in_home(file)
        size = _size(root / file)
        if size is None:  # a file that really is called so comes first
            file, seconds = split_excerpt(file)
            size = None if seconds is None else _size(root / file)
            shard[i] = LOOSE if size is None else EXCERPT
        if size is None:
            missing.append(i)
        else:
            sizes[i] = size
    if missing and isinstance(root, Path):
        listing = [] if root == Path() else [name for name, _ in walk(root) if is_sound(name)]
        where = "" if root == Path() else f" in {root}"
        names = _otherwise_written(path, names, missing, _FileFinder(listing), where)
        for i in missing:
            file, seconds = split_excerpt(names[i])
            sizes[i], shard[i] = _size(root / file) or 0, LOOSE if seconds is None else EXCERPT
    return Corpus(root=root, entries=ArrayEntries.of(names, sizes, shard), table=table)


def of_listing(found: Listing, root: Path) -> Corpus:
    """A corpus of the files that a layout of another program lists, relative to a folder."""
    return of_files(found.path, found.names, table_of(found.columns, found.said), root)


def _size(file: Path) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:
        return None


def of_members(path: Place, names: list[str], shards: list[str], table: pa.Table) -> Corpus:
    """Clips of a table that lie in tars, each row looked up in the index of its own."""
    if not names:
        raise ValueError(f"{path} names no clip; wanted one row each")
    used = {shard: number for number, shard in enumerate(sorted(set(shards)))}
    tars = [below(folder_of(path), safe_path(path, shard)) for shard in used]
    index = ArrayEntries.joined([index_tar(tar, number=i) for i, tar in enumerate(tars)])
    where: dict[str, dict[str, int]] = {shard: {} for shard in used}  # row of each member
    order = list(used)
    for row, (name, number) in enumerate(zip(index.texts(), index.shard.tolist(), strict=True)):
        where[order[number]][name] = row
    rows = np.full(len(names), -1, dtype=np.int64)
    for i, (name, shard) in enumerate(zip(names, shards, strict=True)):
        rows[i] = where[shard].get(safe_member_name(safe_path(path, name)) or "", -1)
    missing = np.flatnonzero(rows < 0).tolist()
    for shard in sorted({shards[i] for i in missing}):
        mine, there = [i for i in missing if shards[i] == shard], where[shard]
        names = _otherwise_written(path, names, mine, _FileFinder(there), f" in {shard}")
        rows[mine] = [there[names[i]] for i in mine]
    if len(tars) > 1:
        names = [f"{shard}/{name}" for shard, name in zip(shards, names, strict=True)]
    found = index.take(rows)
    entries = ArrayEntries.of(names, found.sizes, found.shard, found.offset)
    return Corpus(root=folder_of(path), entries=entries, shards=tars, table=table)


class _FileFinder:
    """Finds the files that paths mean which were written by another system or for another place.

    Windows' separators and drives, another folder above, a folder more or less, `%20` and `&amp;`,
    quotes, another case or Unicode form, an ending left out: what is meant is found if it can be
    one file alone of those there are, whose names are relative, with /.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self._by_end: dict[str, list[tuple[list[str], str]]] = defaultdict(list)
        for name in self.names:
            parts = _folded(name).split("/")
            for end in {parts[-1], os.path.splitext(parts[-1])[0]}:
                self._by_end[end].append((parts[:-1], name))

    def by_name(self, written: Sequence[str]) -> dict[str, str]:
        """The files of absolute paths of another machine, by the names of the files alone.

        Of all paths or of none: each must be of another name, and one file must have it.
        """
        files = {one: _folded(os.path.basename(one)) for one in written if os.path.isabs(one)}
        if not files or len(files) < len({*written}) or len({*files.values()}) < len(files):
            return {}
        found = {one: self._by_end.get(file, []) for one, file in files.items()}
        if any(len(own) != 1 for own in found.values()):
            return {}
        return {one: own[0][1] for one, own in found.items()}

    def find(self, written: str) -> str | None:
        """The name of the one file that a path can mean; None for none or several."""
        for form in _forms(written):
            parts = [part for part in _folded(form).split("/") if part not in ("", ".")]
            if not parts or ".." in parts:
                continue
            above, found = parts[:-1], []
            for folders, name in self._by_end.get(parts[-1], ()):
                shared = sum(
                    1
                    for _ in itertools.takewhile(
                        lambda pair: pair[0] == pair[1],
                        zip(reversed(folders), reversed(above), strict=False),
                    )
                )
                # All of the one must lie at the end of the other: cat/1.wav is not dog/1.wav.
                if shared == min(len(folders), len(above)):
                    found.append((shared, name))
            best = [name for shared, name in found if shared == max(found)[0]]
            if len(best) == 1:
                return best[0]
            exact = [name for name in best if name == form]
            if exact:
                return exact[0]
        return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _forms(written: str) -> list[str]:
    """A path as it stands, then with what other programs did to it undone, step by step."""
    forms = [written.strip().strip("\"'").strip()]
    forms.append(re.sub(r"^[A-Za-z]:", "", forms[-1].replace("\\", "/")))
    forms.append(unquote(forms[-1]))
    forms.append(html.unescape(forms[-1]))
    return list(dict.fromkeys(forms))


def safe_path(path: Place, name: str) -> str:
    """The name of a clip, unless it is empty, a command, or climbs out of the folder."""
    if not name.strip():
        raise ValueError(f"{path} has a row without a path")
    if "\x00" in name:
        raise ValueError(f"{path} has a row without a path: {name!r} holds a zero byte")
    if is_url(name) or name.split(":", 1)[0].strip().lower() == "pipe":
        try:
            check_url(name)
        except ValueError as error:
            raise ValueError(f"{path} names a clip that cannot be: {error}") from error
        return name
    if isinstance(path, str) and os.path.isabs(name):
        raise ValueError(f"{path} names {name!r}, a file of this machine; write a relative path")
    if not os.path.isabs(name) and os.path.normpath(name).split(os.sep)[0] == "..":
        raise ValueError(
            f"{path} names {name!r}, which leads out of its folder; write an absolute path or move "
            f"the table"
        )
    return name


def _otherwise_written(
    path: Place, names: list[str], missing: list[int], finder: _FileFinder, where: str
) -> list[str]:
    """The names with those that are not there replaced by the files that they can only mean."""
    found = list(names)
    lost: list[str] = []
    by_name = finder.by_name([split_excerpt(name)[0] for name in names])
    for i in missing:
        file = split_excerpt(names[i])[0]
        meant = finder.find(file) or by_name.get(file)
        if meant is None:
            lost.append(names[i])
        else:
            found[i] = meant + names[i][len(file) :]
    if lost:
        there = "".join(
            f"; {len(finder.names)} files are there, such as {name!r}" for name in finder.names[:1]
        )
        raise FileNotFoundError(
            f"{len(lost)} of {len(names)} files of {path} not found{where}; the first is "
            f"{lost[0]!r}{there}"
        )
    first_of: dict[str, int] = {}
    for i, name in enumerate(found):
        other = first_of.setdefault(name, i)
        if other != i and names[other] != names[i]:
            raise ValueError(
                f"{path}: {names[other]!r} and {names[i]!r} can only mean {name!r}; write each "
                "path as the file is called"
            )
    say_once(
        f"{path}: {len(missing)} of {len(names)} paths are written otherwise than their files are "
        f"called; the first, '{names[missing[0]]}', is taken as '{found[missing[0]]}'",
        level=logging.WARNING,
    )
    return found
