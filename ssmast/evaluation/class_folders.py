"""A folder of sounds whose sub-folders are their classes, read as the table of a labelled set.

sounds/frog/a.wav, sounds/frog/night 1/b.WAV, sounds/rain/c.flac     the split follows the names
sounds/train/frog/a.wav, sounds/test/rain/c.flac                     train, valid, test above them
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from ssmast.audio import open_corpus
from ssmast.audio.corpus.named import is_sound
from ssmast.audio.corpus.remote import walk
from ssmast.splits import few_names, part_of

logger = logging.getLogger(__name__)


def has_class_folders(folder: Path) -> bool:
    """Whether a folder without a table has sounds in two or more folders of classes.

    Raises:
        ValueError: if some folders are parts and others are not.
    """
    names = [name for name, _ in walk(folder) if is_sound(name) or name.lower().endswith(".tar")]
    _, labels, _ = _columns(folder, names)
    return len(set(filter(None, labels))) > 1


def read_class_folders(folder: Path) -> dict[str, list[str]]:
    """Columns path, label and, where folders say it, split of the sounds in a folder.

    In the order of its corpus. Sounds that lie in no class folder have an empty label.

    Raises:
        ValueError: if some folders are parts and others are not, or no sound is found.
    """
    corpus = open_corpus(folder)
    paths, labels, parts = _columns(folder, [corpus.name(i) for i in range(len(corpus))])
    if any(parts) and "test" in parts:
        logger.info("%s: parts and classes are its folders", folder)
    columns = {"path": paths, "label": labels}
    return {**columns, "split": parts} if any(parts) else columns


def _columns(folder: Path, paths: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Path, label and part of each sound; the latter empty where no folder says it."""
    levels = [path.split("/")[:-1] for path in paths]
    tops = sorted({above[0] for above in levels if above})
    parts = [top for top in tops if part_of(top)]
    others = [top for top in tops if not part_of(top)]
    # A class may be called train, but hardly one train and another test.
    if others and {"train", "test"} <= set(map(part_of, parts)):
        raise ValueError(
            f"{folder} holds the parts {', '.join(parts)} and beside them {few_names(others)}: "
            "are these parts or classes? Move the others elsewhere, or write a metadata.csv of "
            "path,label,split"
        )
    if others or all(len(above) < 2 for above in levels):
        return paths, [_first(above) for above in levels], [""] * len(paths)
    return paths, [_first(above[1:]) for above in levels], [part_of(_first(a)) for a in levels]


def _first(folders: Sequence[str]) -> str:
    return folders[0] if folders else ""
