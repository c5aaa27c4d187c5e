"""Sounds whose folders are their classes, and what speaks for another reading.

    frog/a.wav, rain/night 1/b.flac     a folder a class
    train/frog/a.wav, frog/train/a.wav  with the parts above or below
    fold1/frog/a.wav                    with the folds above
    frog/a.wav, testing_list.txt        with lists of the parts beside

Where folders may be parts, sets or copies, it is asked, or said what they are taken as.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ssmast.audio import Corpus
from ssmast.audio.corpus.remote import is_hidden, is_sound, walk
from ssmast.audio.corpus.table import (
    find_column,
    read_header,
    read_table,
    split_word,
    without_part,
)
from ssmast.evaluation.task_spec import TaskSpec
from ssmast.files import as_text
from ssmast.progress import say_once
from ssmast.splits import few_names, part_of

Table = dict[str, list[str]]
"""Columns by name, a value a row."""

# What people call the one folder that holds those of the classes.
_CONTAINERS = {"audio", "audios", "clips", "data", "recordings", "sounds", "wav", "wavs"}
_FOLD = r"(?i)(fold|cv)[ _-]*\d+"
# Parts that may stand beside the classes and hold folders of the same names: none trains.
_SCORED = ({"valid"}, {"test"}, {"valid", "test"})


def class_folders(folder: Path, corpus: Corpus) -> Table:
    """Path, label and, where folders say it, split of sounds whose folders are their classes.

    Sounds that lie in no class folder have an empty label.
    """
    paths = names_of(corpus)
    levels = [path.split("/")[:-1] for path in paths]
    around = {above[0].lower() if above[1:] else "" for above in levels}
    # Beside a table, folders are hardly the classes.
    if len(around) == 1 and around <= _CONTAINERS:
        container = folder / next(above[0] for above in levels)
        if not tables_in(folder) and not tables_in(container):
            levels = [above[1:] for above in levels]
    tops = sorted({above[0] for above in levels if above})
    first = [[*above, "", ""][:2] for above in levels]
    upper, lower = ([pair[i] for pair in first] for i in (0, 1))
    if tops and all(re.fullmatch(_FOLD, top) for top in tops):
        folds = [re.sub(r"\D", "", top) for top in upper]
        return {"path": paths, "label": lower, "fold": folds}
    if listed := _listed_parts(folder, ["/".join(above) for above in levels], paths):
        return _by_lists(folder, paths, upper, listed)
    return {"path": paths, **_by_folders(folder, upper, lower)}


def _by_lists(folder: Path, paths: list[str], upper: list[str], listed: dict[str, str]) -> Table:
    """Path, label and split where lists beside the class folders name the clips of the parts."""
    unlisted = "" if "train" in map(part_of, listed.values()) else "train"
    # Of what they leave out, _background_noise_ is no class.
    named = {top for top, path in zip(upper, paths, strict=True) if path in listed}
    no_class = sorted({top for top in upper if top[:1] == "_" and top not in named})
    for top in no_class:
        say_once(
            f"{folder}: {top} is no class, as no list of a part names a clip of it",
            level=logging.WARNING,
        )
    return {
        "path": paths,
        "label": ["" if top in no_class else top for top in upper],
        "split": [listed.get(path, unlisted) for path in paths],
    }


def _by_folders(folder: Path, upper: list[str], lower: list[str]) -> Table:
    """Label and, where the folders say it, split, of the upper two folders of each sound.

    Raises:
        ValueError: where they may be parts, sets, classes or copies.
    """
    tops = sorted({*filter(None, upper)})
    part_by_name = {top: part_of(top) for top in tops}
    if "test" not in part_by_name.values():  # beside a test part it may be the validation part
        part_by_name |= {top: "test" for top in tops if top.lower() in ("eval", "evaluation")}
    parts = [top for top in tops if part_by_name[top]]
    others = [top for top in tops if not part_by_name[top]]
    # A class may be called train, but hardly one train and another test.
    if others and {"train", "test"} <= {part_by_name[top] for top in parts}:
        raise ValueError(
            f"{folder} holds the parts {', '.join(parts)} and beside them {few_names(others)}: "
            "are these parts or classes? Move the others elsewhere, or write a metadata.csv of "
            "path,label,split"
        )
    words = {top: part_of(split_word(top)) for top in tops}
    if all(words.values()) and len({*words.values()}) > 1:  # nsynth-train, nsynth-valid
        if others and len({without_part(top) for top in tops}) > 1:
            raise ValueError(
                f"{folder} holds {few_names(tops)}: are these parts, sets or classes? Give one of "
                "them as data=, or write a metadata.csv of path,label,split"
            )
        parts, others, part_by_name = tops, [], part_by_name if not others else words
    # The same class folders, in a folder of a part beside them.
    inside = {low for top, low in zip(upper, lower, strict=True) if top in parts}
    if others and inside <= {*others} and {part_by_name[top] for top in parts} in _SCORED:
        return {
            "label": [b if a in parts else a for a, b in zip(upper, lower, strict=True)],
            "split": [part_by_name.get(top, "") or "train" for top in upper],
        }
    for top in others:
        again = {low for one, low in zip(upper, lower, strict=True) if one == top and low}
        if len(again & {*others}) > 1:
            raise ValueError(
                f"{folder}: {top} holds folders called as those beside it, "
                f"{few_names(sorted(again))}; if it is a copy, move it elsewhere, else write "
                "a metadata.csv of path,label"
            )
    if not others and (any(lower) or len({*part_by_name.values()}) > 1):
        return {
            "label": lower,
            "split": [part_by_name.get(top, "") for top in upper],
        }
    below = [part_of(name) for name in lower]
    if all(below) and {"train", "test"} <= {*below}:
        return {"label": upper, "split": below}
    return {"label": upper}


def _listed_parts(folder: Path, above: list[str], paths: list[str]) -> dict[str, str]:
    """The part of each sound that a list beside the class folders names, such as testing_list.txt.

    Empty where there is no such list. `above` are the folders of the sounds in the classes' own.
    """
    names = (f"{a}/{path.rpartition('/')[2]}" for a, path in zip(above, paths, strict=True))
    called = dict(zip(paths, paths, strict=True)) | dict(zip(names, paths, strict=True))
    found: dict[str, str] = {}
    for file in sorted([*folder.glob("*.txt"), *folder.glob("*.lst")]):
        if not split_word(file.stem):
            continue
        lines = [line.strip() for line in as_text(file.read_bytes(), file).splitlines()]
        named = [called[line] for line in lines if line in called]
        twice = next((name for name in named if name in found), None)
        if twice is not None:
            raise ValueError(f"{file} names {twice!r}, which another list of a part names too")
        found |= dict.fromkeys(named, split_word(file.stem))
        if named:
            missing = len([*filter(None, lines)]) - len(named)
            less = f", {missing} that it names are not there" if missing else ""
            say_once(f"{file}: {len(named)} clips of this part{less}")
    return found


def warn_of_class_folders(place: Path, classes: Sequence[str]) -> None:
    """Say it where folders taken as classes may be none: Actor_01, or beside a table of sounds."""
    found = [re.fullmatch(r"(\D*)(\d+)", name) for name in classes]
    stems = {one[1] for one in found if one}
    if all(found) and len(stems) == 1 and (stems != {""} or any(c[0] == "0" for c in classes[1:])):
        say_once(
            f"{place}: folders that differ by a number alone are taken as classes: "
            f"{few_names(classes)}; if they are speakers, sessions or batches, write a "
            f"metadata.csv of path,label, or give task {by_pattern(place)} where names say it",
            level=logging.WARNING,
        )
    if _are_crossed(classes):
        say_once(
            f"{place}: folders named for two things are taken as classes: {few_names(classes)}; if "
            "one of the two is a speaker or a place, write a metadata.csv of path,label",
            level=logging.WARNING,
        )
    parts = [name for name in classes if split_word(name)]
    if len({part_of(split_word(name)) for name in parts}) > 1:
        say_once(
            f"{place}: folders whose names say parts are taken as classes: {few_names(parts)}; if "
            "each is a set, give one of them as data=",
            level=logging.WARNING,
        )
    for name, column in tables_naming(place).items():
        if column != find_column(read_header(place / name), "path"):
            continue
        say_once(
            f"{place}: its folders are taken as classes, though {name} names its sounds as well; "
            f"data={place / name} takes the labels of that",
            level=logging.WARNING,
        )


def _are_crossed(classes: Sequence[str]) -> bool:
    """Classes such as OAF_angry, OAF_sad, YAF_angry, YAF_sad: words before _ cross those after."""
    pairs = [name.lower().partition("_") for name in classes]
    first, second = (Counter(pair[i] for pair in pairs) for i in (0, 2))
    again = sum(count > 1 for count in second.values())
    crossed = "" not in second and min(first.values(), default=0) > 1 and len(first) > 1
    return crossed and 3 * again >= 2 * len(second)


def by_pattern(place: Path) -> str:
    """A task whose labels are what stands before the first _ of each file's name."""
    return str(TaskSpec(name=set_name(place), label=r"(\d+)_[^/]*$"))


def set_name(place: Path) -> str:
    """What a set is called: its folder, or its file without the ending."""
    return place.resolve().name if place.is_dir() else place.stem


def is_table(place: Path) -> bool:
    """Whether a path is a CSV file, by its name."""
    is_of_text = place.suffix.lower() in (".csv", ".tsv") and not is_hidden(place.name)
    return is_of_text and place.is_file()


def tables_in(folder: Path) -> list[str]:
    """Names of what may be tables, in a folder or one below it."""
    kinds = {".csv", ".tsv", ".xlsx", ".xls", ".ods", ".json", ".parquet"}
    return [
        file.relative_to(folder).as_posix()
        for file in (*sorted(folder.glob("*")), *sorted(folder.glob("*/*")))
        if file.suffix.lower() in kinds and not file.name.startswith(".")
    ]


def tables_naming(folder: Path) -> dict[str, str]:
    """Tables in a folder, or one below it, that name sounds in it, and the column that does."""
    tables = [name for name in tables_in(folder) if is_table(folder / name)]
    sounds = walk(folder) if tables else ()  # a set may have a million
    there = {os.path.basename(name) for name, _ in sounds if is_sound(name)}
    there |= {os.path.splitext(name)[0] for name in there}
    found: dict[str, str] = {}
    for name in tables:
        with suppress(ValueError):  # no table that could be read
            table = read_table(folder / name)
            path = find_column(table.column_names, "path")
            for column in [path] if path in table.column_names else table.column_names:
                cells = {os.path.basename(c.replace("\\", "/")) for c in table[column].to_pylist()}
                if len(cells) > 1 and cells <= there:
                    found.setdefault(name, column)
    return found


def names_of(corpus: Corpus) -> list[str]:
    """The paths of all clips."""
    return [corpus.name(i) for i in range(len(corpus))]
