"""What builders share: a task, its rows and options, and the files of a data set.

Names and tables lie below a root; draws are made by name; YouTube clips go by video and start.
What is known of each published set (homepage, licence, layout, counts) is data: tasks.yaml.
"""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ssmast.audio.source import AUDIO_EXTENSIONS, SOUND_EXTENSIONS
from ssmast.datasets.download import Remote
from ssmast.files import as_text
from ssmast.settings import UsageError


class DatasetFiles:
    """Files below a folder, each folder listed once; hidden ones (`.DS_Store`, `._copy`) left out.

    Two million clips are looked up by one listing for each folder. A table that is not there is a
    FileNotFoundError, a damaged one a ValueError that says what is wrong with it.
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
        """The lines of a text file below the root that are not empty."""
        return [line.strip() for line in self._text(path).splitlines() if line.strip()]

    def json(self, path: str) -> Any:
        """The content of a JSON file below the root."""
        try:
            return json.loads(self._text(path))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.root / path} is no valid JSON: {error}") from error

    def records(self, path: str, columns: Sequence[str]) -> Iterator[dict[str, str]]:
        """The rows of a CSV file with a header; the columns must be there, others may."""
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
        """The rows of a CSV file, less empty ones and those that start with `comment`."""
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
    """The names of some classes by their ids."""
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


@dataclass(frozen=True, slots=True)
class Row:
    """One clip of the official lists, whether its file exists or not.

    Attributes:
        path: below the root, with `/`, perhaps of an excerpt.
        labels: one, of a multi-label set any number, of an unlabelled set none.
        split: train, valid or test, or the name of the fold.
        extra: values of the further columns, in the order of `DataTask.columns`.
    """

    path: str
    labels: tuple[str, ...]
    split: str
    extra: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Build:
    """What a builder works on, and what it reports besides its rows.

    Attributes:
        files: of the data set.
        options: all of the task, with their values.
        left_out: clips that the rules of the task leave out, by reason.
        remarks: sentences for the reader of the report.
        classes: all class names in the official order; empty for those of the rows, sorted.
    """

    files: DatasetFiles
    options: Mapping[str, str]
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


Builder = Callable[[Build], Iterator[Row]]


@dataclass(frozen=True)
class Option:
    """A choice of the user in building a set.

    Attributes:
        default: its value if none is given.
        help: what it decides.
        allowed: its values; empty for any text.
    """

    default: str
    help: str
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataTask:
    """How one task is built from one data set.

    Attributes:
        name: what users write.
        title: of the data set.
        page: name of its page in docs/datasets.
        homepage: where it is published.
        licence: of the sounds, in short.
        markers: alternatives of paths that the unpacked layout holds, each a tuple of which all
            must be there; the root is the folder given or a folder in it.
        places: folders below the root that they may lie in, as `csv/`; empty for the root itself.
        layout: the layout in a line, for the error.
        build: makes the rows.
        folds: splits are folds, each tested on in turn, instead of train, valid and test.
        columns: names of the further columns.
        options: choices by name.
        group: column that hold-out validation clips must not share with training.
        disjoint_by: column no value of which should be in two splits (speakers); it is reported.
        metric: what the papers report.
        multi_label: a clip has any number of labels.
        labelled: False for a set to pretrain on.
        downloads: files that can be fetched openly.
        request: how to get the rest; empty if there is none.
    """

    name: str
    title: str
    page: str
    homepage: str
    licence: str
    markers: tuple[tuple[str, ...], ...]
    layout: str
    build: Builder
    places: tuple[str, ...] = ("",)
    folds: bool = False
    columns: tuple[str, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)
    group: str = ""
    disjoint_by: str = ""
    metric: str = "accuracy"
    multi_label: bool = False
    labelled: bool = True
    downloads: tuple[Remote, ...] = ()
    request: str = ""

    def chosen(self, options: Mapping[str, str]) -> dict[str, str]:
        """All options with their values.

        Raises:
            UsageError: for an unknown option or value, naming those there are.
        """
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise UsageError(f"task {self.name} has no option {name!r}; it has: {known}")
            allowed = self.options[name].allowed
            if allowed and value not in allowed:
                raise UsageError(
                    f"option {name} of task {self.name} must be one of {', '.join(allowed)}, got "
                    f"{value!r}"
                )
        return {name: options.get(name, option.default) for name, option in self.options.items()}

    def locate(self, root: Path) -> Path:
        """The folder that holds the layout: the one given, or the only one in it that does.

        Raises:
            FileNotFoundError: if none does.
            ValueError: if several do.
        """
        if not root.is_dir():
            raise FileNotFoundError(
                f"no folder {root}; root= must be the unpacked {self.title}: {self.layout}"
            )
        if self._fits(root):
            return root
        inside = sorted(folder for folder in root.iterdir() if folder.is_dir())
        found = [folder for folder in inside if self._fits(folder)]
        if not found:
            raise FileNotFoundError(
                f"{root} does not hold {self.title} as it is unpacked; wanted {self.layout}"
            )
        if len(found) > 1:
            raise ValueError(
                f"{root} holds {self.title} more than once ({', '.join(f.name for f in found)}); "
                f"give one of them as root"
            )
        return found[0]

    def _fits(self, folder: Path) -> bool:
        return any(
            all((folder / (place + name)).exists() for name in names)
            for place in self.places
            for names in self.markers
        )


@dataclass(frozen=True)
class Published:
    """What a data set should hold.

    Attributes:
        source: where the numbers come from.
        num_classes: classes over all splits; 0 where it is not to be checked.
        counts: clips of each split (or fold) whose number is published.
        labels: clips of each class, where that is published.
    """

    source: str
    num_classes: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


FACTS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("tasks.yaml").read_text(encoding="utf-8")
)
PUBLISHED = {
    f"{task},{option}".rstrip(","): Published(**counts)
    for task, facts in FACTS.items()
    for option, counts in facts.pop("published").items()
}
"""By task, and where its counts depend on an option, by "task,option=value"."""

COPIES: dict[str, dict[str, dict[str, int]]] = {
    task: facts.pop("copies") for task, facts in FACTS.items() if "copies" in facts
}
"""Task -> paper -> clips of each part in its copy of the set."""


def data_task(name: str, build: Builder) -> DataTask:
    """The task that tasks.yaml describes, with what makes its rows."""
    facts = dict(FACTS[name])
    downloads = tuple(Remote(**one) for one in facts.pop("downloads", ()))
    options = {
        key: Option(one["default"], one["help"], tuple(one.get("allowed", ())))
        for key, one in facts.pop("options", {}).items()
    }
    markers = tuple(map(tuple, facts.pop("markers")))
    facts |= {key: tuple(facts[key]) for key in ("columns", "places") if key in facts}
    return DataTask(
        name=name, build=build, markers=markers, options=options, downloads=downloads, **facts
    )


def published_of(task: str, options: Mapping[str, str]) -> Published | None:
    """The published counts of a task built with some options; None if none are known.

    >>> published_of("esc50", {"subset": "esc10"}).num_classes
    10
    """
    keys = [task, *(f"{task},{key}={value}" for key, value in options.items())]
    return next((PUBLISHED[key] for key in reversed(keys) if key in PUBLISHED), None)
