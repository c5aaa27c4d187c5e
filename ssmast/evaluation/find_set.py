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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ssmast.audio import open_corpus
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
)
from ssmast.evaluation.class_folders import (
    Table,
    by_pattern,
    class_folders,
    is_table,
    names_of,
    set_name,
    tables_in,
    tables_naming,
)
from ssmast.evaluation.task_spec import TaskSpec, parse_task, split_names
from ssmast.progress import say_once
from ssmast.settings import UsageError
from ssmast.splits import few_names, part_of

logger = logging.getLogger(__name__)


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
            f"where file names say the class, 3_jackson_0.wav, give task {by_pattern(data)}"
        )
    return sorted(names)


def named_tasks(data: str | Path, tasks: str, *, key: str = "tasks") -> list[str]:
    """The tasks that `tasks` means, each once: every set in `data` for "all", else those it names.

    Raises:
        UsageError: if it names none.
        FileNotFoundError, ValueError: of `find_sets`.
    """
    names = find_sets(data) if tasks == "all" else list(dict.fromkeys(split_names(tasks)))
    if not names:
        raise UsageError(f"{key}={tasks} names no task; give {key}=all or {key}=[a,b]")
    return names


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


def has_layout(place: Path) -> bool:
    """Whether a path has a layout of another program, or is a tar or table that may have labels."""
    if is_table(place) or (place.is_file() and place.suffix.lower() == ".tar"):
        return True
    return layout_of(place) is not None or _is_of_tars(place)


def _is_set(place: Path) -> bool:
    """Whether a path is a set: a table, another program's layout, or a folder a class."""
    if not place.exists():
        return False
    if find_table(place) is not None or has_layout(place):
        return True
    if not place.is_dir() or any(
        find_table(one) or ((one.is_dir() or is_table(one)) and _may_be_set(one))
        for one in place.iterdir()
    ):
        return False
    try:
        corpus = open_corpus(place)
    except ValueError:  # no sound
        return False
    return len(set(filter(None, class_folders(place, corpus)["label"]))) > 1


def _may_be_set(place: Path) -> bool:
    """Whether what lies in a folder is a set of its own, and no table of something else."""
    if place.suffix.lower() == ".json" and place.is_file() and not is_json_list(place):
        return False
    if not is_table(place) or layout_of(place) is not None:
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


def _one_below(data: Path) -> list[str]:
    """Sets where the folder itself holds none: tables such as meta/esc50.csv, or all its sound."""
    folders = [one for one in sorted(data.iterdir()) if one.is_dir() and not is_hidden(one.name)]
    tables = [one for folder in folders for one in sorted(folder.iterdir()) if is_table(one)]
    names = [one.relative_to(data).as_posix() for one in tables if _may_be_set(one)]
    if names or any(is_sound(one.name) for one in data.iterdir()):
        return names
    sounding = [one for one in folders if any(is_sound(name) for name, _ in walk(one))]
    if len(sounding) != 1:
        return []
    only = sounding[0].name
    if _is_set(sounding[0]):
        beside = [name for name in tables_in(data) if not name.startswith(f"{only}/")]
        return [] if beside and are_class_folders(sounding[0]) else [only]
    try:
        return [f"{only}/{name}" for name in find_sets(sounding[0])]
    except FileNotFoundError:
        return []


def other_tables(folder: Path) -> str:
    """Tables in a folder, or one below it, that may be the one that is missed, and what to do."""
    words = []
    for name, column in [*tables_naming(folder).items()][:3]:
        columns = read_header(folder / name)
        if header_hint(columns):
            words.append(f"data={folder / name}, with a line such as path,label above its first")
            continue
        renamed = "" if column == find_column(columns, "path") else f", its {column} renamed path,"
        task = TaskSpec(name=Path(name).stem, label="COLUMN")
        words.append(
            f"data={folder / name}{renamed} and task {task}, its columns are {few_names(columns)}"
        )
    if words:
        return "; tables without a column label name the sounds, so give " + ", or ".join(words)
    found = tables_in(folder)
    cure = f"save the table with the labels as {METADATA}, or give a .csv as data="
    return f"; found {few_names(found)}: {cure}" if found else ""


def table_of(folder: Path) -> Path:
    """The table of a set, or the folder itself where its sub-folders are the classes."""
    return find_table(folder) or folder


def read_columns(place: Path) -> tuple[Table, dict[str, Any]]:
    """Columns of a set, without the space around their values; and what it says of itself.

    Raises:
        ValueError: if there is no row.
    """
    if are_class_folders(place):
        table = class_folders(place, open_corpus(place))
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
    return {"path": names_of(corpus), **columns}, said_of(corpus.table)


def are_class_folders(place: Path) -> bool:
    """Whether the sub-folders of a place can only be its classes: no table, no other layout."""
    return place.is_dir() and find_table(place) is None and not has_layout(place)


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
