"""The files of a data set: names and tables below its root, draws by name, YouTube clips."""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssmast.audio.source import AUDIO_EXTENSIONS, SOUND_EXTENSIONS
from ssmast.files import as_text


class DatasetFiles:
    """Files below a folder, each folder listed once; hidden ones (`.DS_Store`, `._copy`) left out.

    Two million clips are looked up by one listing for each folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {}
        self._stems: dict[str, str] | None = None

    def names(self, folder: str = "") -> list[str]:
        """Names of the files in a folder below the root, sorted; none if there is no folder."""
        return sorted(self._list(folder)[0])

    def waves(self, folder: str) -> list[str]:
        """Paths of the WAV files in a folder below the root, sorted."""
        names = self.names(folder)
        return [f"{folder}/{name}" for name in names if name.lower().endswith(".wav")]

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders in a folder below the root, sorted."""
        return list(self._list(folder)[1])

    def has(self, path: str) -> bool:
        """Whether there is such a file below the root."""
        folder, _, name = path.rpartition("/")
        return name in self._list(folder)[0]

    def walk(self, folder: str = "") -> Iterator[tuple[str, list[str]]]:
        """Every folder from `folder` on down with the names of its files, sorted."""
        pending, seen = [folder], set()
        while pending:
            below = pending.pop()
            real = os.path.realpath(self.root / below)
            if real in seen:  # a link to a folder above
                continue
            seen.add(real)
            yield below, self.names(below)
            pending += [f"{below}/{name}".lstrip("/") for name in reversed(self.folders(below))]

    def with_stem(self, stem: str) -> str | None:
        """Path of the sound file called so, whatever its folder and its extension.

        Formats that soundfile decodes are preferred to videos.
        """
        if self._stems is None:
            videos: dict[str, str] = {}
            audio: dict[str, str] = {}
            for folder, names in self.walk():
                for name in names:
                    own, extension = os.path.splitext(name)
                    if extension.lower() in SOUND_EXTENSIONS:
                        found = audio if extension.lower() in AUDIO_EXTENSIONS else videos
                        found.setdefault(own, f"{folder}/{name}".lstrip("/"))
            self._stems = videos | audio
        return self._stems.get(stem)

    def lines(self, path: str) -> list[str]:
        """The lines of a text file below the root that are not empty.

        Raises:
            FileNotFoundError: if it is not there.
        """
        return [line.strip() for line in self._text(path).splitlines() if line.strip()]

    def json(self, path: str) -> Any:
        """The content of a JSON file below the root.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if it is no valid JSON.
        """
        try:
            return json.loads(self._text(path))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.root / path} is no valid JSON: {error}") from error

    def records(self, path: str, columns: Sequence[str]) -> Iterator[dict[str, str]]:
        """The rows of a CSV file with a header, as mappings.

        Args:
            path: below the root.
            columns: that must be there; others are returned as well.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if a column is missing or a row has another number of fields.
        """
        rows = self.fields(path)
        header = [name.strip() for name in next(rows, [])]
        lacking = [name for name in columns if name not in header]
        if lacking:
            raise ValueError(
                f"{self.root / path} has no column {', '.join(lacking)}; it has {', '.join(header)}"
            )
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise ValueError(
                    f"{self.root / path} has {len(row)} fields in row {number}, its header has "
                    f"{len(header)}"
                )
            yield dict(zip(header, (value.strip() for value in row), strict=True))

    def fields(self, path: str, *, comment: str = "") -> Iterator[list[str]]:
        """The rows of a CSV file as they are, less empty ones and those that start with `comment`.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if it is no valid CSV or not UTF-8.
        """
        self._check(path)
        try:
            with (self.root / path).open(encoding="utf-8-sig", newline="") as file:
                for row in csv.reader(file, skipinitialspace=True, strict=True):
                    if row and not (comment and row[0].startswith(comment)):
                        yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{self.root / path} is no valid CSV file: {error}") from error

    def first(self, *names: str, places: Sequence[str] = ("",)) -> str:
        """The first file of some names in some folders (`a/`), else the first name in the first."""
        paths = [place + name for place in places for name in names]
        return next((path for path in paths if self.has(path)), paths[0])

    def _list(self, folder: str) -> tuple[frozenset[str], tuple[str, ...]]:
        if folder not in self._listed:
            files, folders = [], []
            try:
                with os.scandir(self.root / folder) as entries:
                    for entry in entries:
                        if not entry.name.startswith("."):
                            (folders if entry.is_dir() else files).append(entry.name)
            except (FileNotFoundError, NotADirectoryError):
                pass
            self._listed[folder] = (frozenset(files), tuple(sorted(folders)))
        return self._listed[folder]

    def _check(self, path: str) -> None:
        if not (self.root / path).is_file():
            raise FileNotFoundError(f"{self.root} lacks {path}, which comes with the data set")

    def _text(self, path: str) -> str:
        self._check(path)
        return as_text((self.root / path).read_bytes(), self.root / path)


def named(ids: Iterable[str], names: Mapping[str, str], what: str, table: str) -> tuple[str, ...]:
    """The names of some classes by their ids.

    Raises:
        ValueError: if the table lacks one that `what` has.
    """
    for unknown in (one for one in ids if one not in names):
        raise ValueError(f"{what} has the label {unknown}, which {table} lacks")
    return tuple(names[one] for one in ids)


def keyed_order(names: Iterable[str], *, seed: int) -> list[str]:
    """The names in the order of a hash of each.

    The first n of them are a draw without replacement, the same on every machine.
    """
    return sorted(names, key=lambda name: _digest(name, seed))


def keyed_unit(name: str, *, seed: int) -> float:
    """A number in [0, 1) for a name."""
    return int.from_bytes(_digest(name, seed)[:6]) / 2**48


def _digest(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\t{name}".encode("utf-8", "surrogateescape")).digest()


# Names of downloaders: id, Yid, id_30, id_30.000, id_000030, id_30000, each also with the end.
_TIMES: tuple[Callable[[float], str], ...] = (
    lambda seconds: f"{seconds:.0f}",
    lambda seconds: f"{seconds:06.0f}",
    lambda seconds: f"{seconds:.3f}",
    lambda seconds: f"{1000 * seconds:.0f}",
)


class YouTubeClips:
    """Sound files of YouTube clips, found by video and start under any of the usual names."""

    def __init__(self, files: DatasetFiles) -> None:
        self.files = files
        self._last = 0  # the pattern that matched last is tried first

    def path(self, video: str, start: float, stop: float) -> str | None:
        """Path of the clip, in whatever folder; None if it is not there."""
        names = _names(video, start, stop)
        for number in (self._last, *range(len(names))):
            found = self.files.with_stem(names[number])
            if found is not None:
                self._last = number
                return found
        return None


def _names(video: str, start: float, stop: float) -> list[str]:
    names = [f"{video}_{time(start)}_{time(stop)}" for time in _TIMES]
    names += [f"{video}_{time(start)}" for time in _TIMES]
    names += [f"{video}_{start:.3f},{stop:.3f}", video]
    return [*names, *(f"Y{name}" for name in names)]
