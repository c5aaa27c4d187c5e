"""Types of the builders: a task, the rows of its clips, its options, and notes on a set."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ssmast.datasets.dataset_files import DatasetFiles
from ssmast.datasets.download import Remote


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
class BuildNotes:
    """What a builder reports besides its rows.

    Attributes:
        left_out: clips that the rules of the task leave out, by reason.
        remarks: sentences for the reader of the report.
        classes: all class names in the official order; empty for those of the rows, sorted.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


Builder = Callable[[DatasetFiles, Mapping[str, str], BuildNotes], Iterator[Row]]


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
            ValueError: for an unknown option or value, naming those there are.
        """
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise ValueError(f"task {self.name} has no option {name!r}; it has: {known}")
            allowed = self.options[name].allowed
            if allowed and value not in allowed:
                raise ValueError(
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
