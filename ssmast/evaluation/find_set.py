"""Which folders and files are labelled sets, and the columns that they hold.

    metadata.csv      path,label,split,...   split is train, valid or test
    metadata.csv      path,label,fold,...    one score a fold
    no table          a folder a class: frog/a.wav, rain/night 1/b.flac; or train/frog/a.wav,
                      frog/train/a.wav, fold1/frog/a.wav
    other layouts     Hugging Face's, Kaldi's, Raven's and others, see `audio/corpus/open.py`
    audio.tar         or the audio files themselves, named by `path`

`read_set.py` makes clips, labels and splits of them.
"""

import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from ssmast.audio import Corpus, open_corpus
from ssmast.audio.corpus.listings import is_json_list
from ssmast.audio.corpus.open import MANIFEST, layout_of
from ssmast.audio.corpus.remote import is_hidden, is_sound, walk
from ssmast.audio.corpus.table import (
    METADATA,
    find_column,
    find_table,
    header_hint,
    read_header,
    read_table,
    said_of,
    split_word,
    without_part,
)
from ssmast.evaluation.task_spec import TaskSpec, parse_task
from ssmast.files import as_text
from ssmast.progress import say_once
from ssmast.splits import few_names, part_of

logger = logging.getLogger(__name__)

Table = dict[str, list[str]]
"""Columns by name, a value a row."""

# What people call the one folder that holds those of the classes.
_CONTAINERS = {"audio", "audios", "clips", "data", "recordings", "sounds", "wav", "wavs"}
_FOLD = r"(?i)(fold|cv)[ _-]*\d+"
# A part beside the classes that holds them once more, and no further ones to train on.
_SCORED = ({"valid"}, {"test"}, {"valid", "test"})


def find_sets(data: str | Path) -> list[str]:
    """Names of the labelled sets in `data`: sub-folders whose metadata.csv has a label column.

    If `data` is such a set itself, the answer is its own name.

    Raises:
        FileNotFoundError: if `data` is no folder or holds no labelled set.
        ValueError: if a metadata.csv is not UTF-8, or has no label column where there is no other.
    """
    data = Path(data)
    if not data.exists():
        raise FileNotFoundError(f"no folder of labelled sets at {data}; give data=FOLDER")
    if _is_set(data):
        if not has_layout(data) and find_table(data) is not None:
            check_columns(read_header(table_of(data)), TaskSpec(name=set_name(data)), data)
        return [set_name(data)]
    if not data.is_dir():
        raise FileNotFoundError(
            f"{data} is no labelled set; give data=FOLDER, or a table with labels, a .csv or .tsv "
            "whose first line names the columns"
        )
    tables = {folder.name: find_table(folder) for folder in sorted(data.iterdir())}
    columns = {name: read_header(table) for name, table in tables.items() if table is not None}
    names = [name for name, has in columns.items() if find_column(has, "label") in has]
    names += [name for name, table in tables.items() if not table and _may_be_set(data / name)]
    names = names or _one_below(data)
    if not names:
        other = "".join(
            f"; {name}/{METADATA} has the columns {', '.join(has)}, of which tasks=[{name}:label="
            "COLUMN] or task= names one"
            for name, has in list(columns.items())[:3]
        )
        raise FileNotFoundError(
            f"no labelled set in {data}: wanted sub-folders with a metadata.csv of "
            f"path,label,split, or a folder of sounds for each class{other or other_tables(data)}; "
            f"where file names say the class, 3_jackson_0.wav, give task {_by_pattern(data)}"
        )
    return sorted(names)


def find_folder(data: Path, name: str, *, label: str = "") -> Path:
    """The folder of one labelled set, in a folder of them or that folder itself.

    Where `label` is a pattern, the names of the sounds hold the labels, so any folder may be one.

    Raises:
        FileNotFoundError: naming the sets that are there.
    """
    for folder in (data / name, data if set_name(data) == name else None):
        if folder is not None and ((is_pattern(label) and folder.is_dir()) or _is_set(folder)):
            return folder
    found = ", ".join(find_sets(data))
    raise FileNotFoundError(f"no labelled set {name!r} in {data}; found: {found}")


def asked_task(data: Path, task: TaskSpec | str) -> TaskSpec:
    """The task that is meant; where none is named, the only set."""
    if isinstance(task, TaskSpec):
        return task
    if not task:
        # Which of its columns are labels may be said elsewhere.
        names = [set_name(data)] if _is_set(data) else find_sets(data)
        if len(names) > 1:
            raise ValueError(f"{data} holds {len(names)} sets, give one: task={' or '.join(names)}")
        return TaskSpec(name=names[0])
    # A set that is called exactly so is meant, whatever its name looks like.
    folders = [one for one in sorted(data.iterdir()) if one.is_dir()] if data.is_dir() else []
    named = {set_name(place) for place in (data, *folders) if place.exists()}
    return TaskSpec(name=task) if task in named else parse_task(task)


def is_pattern(name: str) -> bool:
    """Whether what stands for a column takes, in its first brackets, something of each path."""
    return "(" in name


def set_name(place: Path) -> str:
    """What a set is called: its folder, or its file without the ending."""
    return place.resolve().name if place.is_dir() else place.stem


def has_layout(place: Path) -> bool:
    """Whether a path has a layout of another program, or is a tar or table that may have labels."""
    if _is_table(place) or (place.is_file() and place.suffix.lower() == ".tar"):
        return True
    return layout_of(place) is not None or _is_of_tars(place)


def _is_set(place: Path) -> bool:
    """Whether a path is a set: a table, another program's layout, or a folder a class."""
    if not place.exists():
        return False
    if find_table(place) is not None or has_layout(place):
        return True
    if not place.is_dir() or any(
        find_table(one) or ((one.is_dir() or _is_table(one)) and _may_be_set(one))
        for one in place.iterdir()
    ):
        return False
    try:
        corpus = open_corpus(place)
    except ValueError:  # no sound
        return False
    return len(set(filter(None, _class_folders(place, corpus)["label"]))) > 1


def _is_table(place: Path) -> bool:
    is_of_text = place.suffix.lower() in (".csv", ".tsv") and not is_hidden(place.name)
    return is_of_text and place.is_file()


def _may_be_set(place: Path) -> bool:
    """Whether what lies in a folder is a set of its own, and no table of something else."""
    if place.suffix.lower() == ".json" and place.is_file() and not is_json_list(place):
        return False
    if not _is_table(place) or layout_of(place) is not None:
        return has_layout(place)
    columns = read_header(place)
    return all(find_column(columns, usual) in columns for usual in ("path", "label"))


def _is_of_tars(place: Path) -> bool:
    """Whether a folder holds tars and neither sounds nor folders but those of its parts."""
    if not place.is_dir() or (place / MANIFEST).is_file():
        return False
    found = [one for one in place.iterdir() if not one.name.startswith(".")]
    parts = [one for one in found if one.is_dir() and part_of(one.name)]
    found = [one for one in found if one not in parts] + [o for p in parts for o in p.iterdir()]
    kinds = {"/" if one.is_dir() else one.suffix.lower() for one in found}
    return ".tar" in kinds and find_table(place) is None and kinds <= {".tar", ".md", ".txt"}


def _by_pattern(place: Path) -> str:
    return str(TaskSpec(name=set_name(place), label=r"(\d+)_[^/]*$"))


def _one_below(data: Path) -> list[str]:
    """Sets where the folder itself holds none: tables such as meta/esc50.csv, or all its sound."""
    folders = [one for one in sorted(data.iterdir()) if one.is_dir() and not is_hidden(one.name)]
    tables = [one for folder in folders for one in sorted(folder.iterdir()) if _is_table(one)]
    names = [one.relative_to(data).as_posix() for one in tables if _may_be_set(one)]
    if names or any(is_sound(one.name) for one in data.iterdir()):
        return names
    sounding = [one for one in folders if any(is_sound(name) for name, _ in walk(one))]
    if len(sounding) != 1:
        return []
    only = sounding[0].name
    if _is_set(sounding[0]):
        beside = [name for name in _tables_in(data) if not name.startswith(f"{only}/")]
        return [] if beside and are_class_folders(sounding[0]) else [only]
    try:
        return [f"{only}/{name}" for name in find_sets(sounding[0])]
    except FileNotFoundError:
        return []


def other_tables(folder: Path) -> str:
    """Tables in a folder, or one below it, that may be the one that is missed, and what to do."""
    words = []
    for name, column in [*_naming(folder).items()][:3]:
        columns = read_header(folder / name)
        renamed = "" if column == find_column(columns, "path") else f", its {column} renamed path,"
        task = TaskSpec(name=Path(name).stem, label="COLUMN")
        words.append(
            f"data={folder / name}{renamed} and task {task}, its columns are {few_names(columns)}"
        )
    if words:
        return "; tables without a column label name the sounds, so give " + ", or ".join(words)
    found = _tables_in(folder)
    cure = f"save the table with the labels as {METADATA}, or give a .csv as data="
    return f"; found {few_names(found)}: {cure}" if found else ""


def _tables_in(folder: Path) -> list[str]:
    kinds = {".csv", ".tsv", ".xlsx", ".xls", ".ods", ".json", ".parquet"}
    return [
        file.relative_to(folder).as_posix()
        for file in (*sorted(folder.glob("*")), *sorted(folder.glob("*/*")))
        if file.suffix.lower() in kinds and not file.name.startswith(".")
    ]


def _naming(folder: Path) -> dict[str, str]:
    """Tables in a folder, or one below it, that name sounds in it, and the column that does."""
    there = {os.path.basename(name) for name, _ in walk(folder) if is_sound(name)}
    there |= {os.path.splitext(name)[0] for name in there}
    found: dict[str, str] = {}
    for name in filter(lambda one: _is_table(folder / one), _tables_in(folder)):
        with suppress(ValueError):  # no table that could be read
            table = read_table(folder / name)
            path = find_column(table.column_names, "path")
            for column in [path] if path in table.column_names else table.column_names:
                cells = {os.path.basename(c.replace("\\", "/")) for c in table[column].to_pylist()}
                if len(cells) > 1 and cells <= there:
                    found.setdefault(name, column)
    return found


def table_of(folder: Path) -> Path:
    """The table of a set, or the folder itself where its sub-folders are the classes."""
    return find_table(folder) or folder


def read_columns(place: Path) -> tuple[Table, dict[str, Any]]:
    """Columns of a set, without the space around their values; and what it says of itself.

    Raises:
        ValueError: if there is no row.
    """
    if are_class_folders(place):
        table = _class_folders(place, open_corpus(place))
        if "fold" in table or "test" in table.get("split", ()):
            what = "folds" if "fold" in table else "parts"
            say_once(f"{place}: {what} and classes are its folders")
        return table, {}
    if layout_of(place) is None and place.is_dir() and find_table(place) is not None:
        table = read_table(table_of(place))
        if not len(table):
            raise ValueError(f"{table_of(place)} has no rows below its header")
        return _stripped(table), {}
    corpus = open_corpus(place, spans="spans")
    if corpus.table is None:
        raise ValueError(
            f"{place} has no labels; wanted a table with them, or members .cls, .json or .txt of a "
            "tar beside each sound"
        )
    columns = _stripped(corpus.table)
    columns.pop(find_column(list(columns), "path"), None)
    return {"path": _names(corpus), **columns}, said_of(corpus.table)


def warn_of_class_folders(place: Path, classes: Sequence[str]) -> None:
    """Say it where folders taken as classes may be none: Actor_01, or beside a table of sounds."""
    found = [re.fullmatch(r"(\D*)(\d+)", name) for name in classes]
    stems = {one[1] for one in found if one}
    if all(found) and len(stems) == 1 and (stems != {""} or any(c[0] == "0" for c in classes[1:])):
        say_once(
            f"{place}: folders that differ by a number alone are taken as classes: "
            f"{few_names(classes)}; if they are speakers, sessions or batches, write a "
            f"metadata.csv of path,label, or give task {_by_pattern(place)} where names say it",
            level=logging.WARNING,
        )
    parts = [name for name in classes if split_word(name)]
    if len({part_of(split_word(name)) for name in parts}) > 1:
        say_once(
            f"{place}: folders whose names say parts are taken as classes: {few_names(parts)}; if "
            "each is a set, give one of them as data=",
            level=logging.WARNING,
        )
    for name, column in _naming(place).items():
        if column != find_column(read_header(place / name), "path"):
            continue
        say_once(
            f"{place}: its folders are taken as classes, though {name} names its sounds as well; "
            f"data={place / name} takes the labels of that",
            level=logging.WARNING,
        )


def are_class_folders(place: Path) -> bool:
    """Whether the sub-folders of a place can only be its classes: no table, no other layout."""
    return place.is_dir() and find_table(place) is None and not has_layout(place)


def _class_folders(folder: Path, corpus: Corpus) -> Table:
    """Path, label and, where folders say it, split of sounds whose folders are their classes.

    Sounds that lie in no class folder have an empty label.
    """
    paths = _names(corpus)
    levels = [path.split("/")[:-1] for path in paths]
    around = {above[0].lower() if above[1:] else "" for above in levels}
    # Beside a table, folders are hardly the classes.
    if len(around) == 1 and around <= _CONTAINERS:
        container = folder / next(above[0] for above in levels)
        if not _tables_in(folder) and not _tables_in(container):
            levels = [above[1:] for above in levels]
    tops = sorted({above[0] for above in levels if above})
    first = [[*above, "", ""][:2] for above in levels]
    upper, lower = ([pair[i] for pair in first] for i in (0, 1))
    if tops and all(re.fullmatch(_FOLD, top) for top in tops):
        folds = [re.sub(r"\D", "", top) for top in upper]
        return {"path": paths, "label": lower, "fold": folds}
    if listed := _listed_parts(folder, ["/".join(above) for above in levels], paths):
        unlisted = "" if "train" in map(part_of, listed.values()) else "train"
        # Of what they leave out, _background_noise_ is no class.
        named = {top for top, path in zip(upper, paths, strict=True) if path in listed}
        for top in tops:
            if top not in named and top[:1] == "_":
                say_once(
                    f"{folder}: {top} is no class, as no list of a part names a clip of it",
                    level=logging.WARNING,
                )
        labels = [top if top in named or top[:1] != "_" else "" for top in upper]
        return {
            "path": paths,
            "label": labels,
            "split": [listed.get(path, unlisted) for path in paths],
        }
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
    # As the classes once more, in a folder of a part beside them.
    inside = {low for top, low in zip(upper, lower, strict=True) if top in parts}
    if others and inside <= {*others} and {part_by_name[top] for top in parts} in _SCORED:
        return {
            "path": paths,
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
            "path": paths,
            "label": lower,
            "split": [part_by_name.get(top, "") for top in upper],
        }
    below = [part_of(name) for name in lower]
    if all(below) and {"train", "test"} <= {*below}:
        return {"path": paths, "label": upper, "split": below}
    return {"path": paths, "label": upper}


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


def _names(corpus: Corpus) -> list[str]:
    return [corpus.name(i) for i in range(len(corpus))]


def _stripped(table: pa.Table) -> Table:
    return {
        name: [value.strip() for value in table[name].to_pylist()] for name in table.column_names
    }


def check_columns(columns: Sequence[str], spec: TaskSpec, folder: Path) -> None:
    """Refuse a table that lacks a column which the task names.

    Raises:
        ValueError: naming the columns there are.
    """
    wanted = [find_column(columns, "path"), find_column(columns, spec.label)]
    wanted += filter(None, [spec.group])
    if spec.split != "split" or spec.protocol == "split":
        wanted.append(spec.split)
    if spec.fold != "fold" or spec.protocol == "folds":
        wanted.append(spec.fold)
    for column in wanted:
        if column not in columns:
            hint = ""
            if column == "path":
                usual = "; call the one with the names of the sound files path"
                hint = header_hint(columns) or usual
            if column == "label":
                hint = (
                    f"; name the one with the labels: tasks=[{spec.name}:label=COLUMN] for probes, "
                    "labels=[COLUMN] to fine-tune, else task="
                    f"{spec.name}:label=COLUMN"
                )
            raise ValueError(
                f"{table_of(folder)} has no column {column!r}; it has: {', '.join(columns)}{hint}"
            )
