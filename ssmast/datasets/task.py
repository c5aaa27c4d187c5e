"""What a builder of a labelled set is: rows out of an official layout, and what is known of it."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ssmast.datasets.download import Remote
from ssmast.datasets.tree import Tree

LABEL_SEPARATOR = ";"
"""Between the labels of a clip; class names hold commas, so a comma cannot be it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One clip that the official lists name, whether its file is there or not.

    Attributes:
        path: below the root, with `/`, perhaps with a span.
        labels: one, of a multi-label set any number, of an unlabelled set none.
        part: train, valid or test, or the name of the fold.
        extra: values of the further columns, in the order of `DataTask.columns`.
    """

    path: str
    labels: tuple[str, ...]
    part: str
    extra: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Ledger:
    """What a builder says besides its rows.

    Attributes:
        left_out: clips that the rules of the task leave out, by reason.
        notes: sentences for the reader of the report.
        classes: all class names in the official order; empty for those of the rows, sorted.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


Builder = Callable[[Tree, Mapping[str, str], Ledger], Iterator[Row]]


@dataclass(frozen=True, kw_only=True)
class Option:
    """A choice the user has in building a set.

    Attributes:
        default: its value where nothing is said.
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
        layout: the layout in a line, for the error.
        build: makes the rows.
        folds: parts are folds, each tested on in turn, instead of train, valid and test.
        columns: names of the further columns.
        options: choices by name.
        group: column that hold-out validation clips must not share with training.
        apart: column no value of which should be in two parts (speakers), checked and reported.
        metric: what the papers report.
        multi_label: a clip has any number of labels.
        labelled: False for a set to pretrain on.
        downloads: files that are openly there to fetch.
        request: how to get what `downloads` does not bring; empty if it brings all.
    """

    name: str
    title: str
    page: str
    homepage: str
    licence: str
    markers: tuple[tuple[str, ...], ...]
    layout: str
    build: Builder
    folds: bool = False
    columns: tuple[str, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)
    group: str = ""
    apart: str = ""
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
        """The folder that holds the layout: the one given, or the one folder in it that does.

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
        return any(all((folder / name).exists() for name in names) for names in self.markers)
