"""Compare built labelled sets with the counts that were published, and with others' copies.

    ssmast datasets check sets/vggsound
    ssmast datasets check sets

Counts the rows of metadata.csv whose file is there, part by part. The status is 1 where a set is
not what was published; that others had another copy changes nothing.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ssmast.audio.corpus.table import (
    METADATA,
    audio_root,
    column_of,
    find_column,
    read_table,
    read_task_file,
)
from ssmast.audio.read import split_excerpt
from ssmast.datasets.task import COPIES, DatasetFiles, published_of
from ssmast.settings import Settings, UsageError, parse, setting
from ssmast.splits import ordered_parts


@dataclass(frozen=True, kw_only=True)
class CheckConfig(Settings):
    """`ssmast datasets check`: a built set against the published counts."""

    data: str = setting("", "built set, or folder of built sets", required=True)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A built set beside the published counts.

    Attributes:
        folder: of the set.
        task: that built it.
        here: clips of each part whose file is there.
        missing: rows whose file is not there.
        classes: how many the set has, and how many were published; 0 for not.
        columns: name of each source of counts -> clips of each part; the official ones first.
    """

    folder: Path
    task: str
    here: dict[str, int]
    missing: int
    classes: tuple[int, int]
    columns: dict[str, dict[str, int]]

    @property
    def is_as_published(self) -> bool:
        """Whether every part that has an official count has as many clips, and no file is gone."""
        wanted = self.columns.get("published", {})
        same = all(self.here.get(part, 0) == count for part, count in wanted.items())
        return same and not self.missing and self.classes[1] in (0, self.classes[0])

    def lines(self) -> list[str]:
        """The table as text."""
        rows = [["part", "here", *self.columns]]
        for part in ordered_parts({*self.here, *(p for own in self.columns.values() for p in own)}):
            here = self.here.get(part, 0)
            row = [part, f"{here:,}"]
            for counts in self.columns.values():
                count = counts.get(part)
                more = "" if count in (None, here) else f" ({here - count:+,})"
                row.append("" if count is None else f"{count:,}{more}")
            rows.append(row)
        if self.classes[0]:
            published = f"{self.classes[1]:,}" if self.classes[1] else ""
            official = [published] if "published" in self.columns else []
            rows.append(["classes", f"{self.classes[0]:,}", *official])
        widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
        text = [f"{self.task} in {self.folder}: the difference to each stands in brackets"]
        for row in rows:
            text.append(
                "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=False)).rstrip()
            )
        if self.missing:
            text.append(f"  {self.missing:,} rows of {METADATA} have no file; build the set again")
        if not self.columns:
            text.append("  no counts of this task were published")
        elif self.is_as_published:
            text.append("  as published, as far as counts are")
        return text


def check_set(folder: Path) -> Checked:
    """Count a built set.

    Raises:
        ValueError: if it was not built by `ssmast prepare task=`, or a table is damaged.
        FileNotFoundError: if its audio is gone.
    """
    facts = read_task_file(folder)
    if not facts.get("task"):
        raise ValueError(f"{folder} was not built by `ssmast prepare task=`: it has no task.json")
    task, options = str(facts["task"]), dict(facts.get("options") or {})
    table = read_table(folder / METADATA)
    split = find_column(table.column_names, "fold" if "fold" in facts else "split")
    files = DatasetFiles(audio_root(folder))
    here: Counter[str] = Counter()
    missing = 0
    paths = column_of(table, "path", folder / METADATA)
    for path, part in zip(paths, column_of(table, split, folder / METADATA), strict=True):
        if files.has(path) or files.has(split_excerpt(path)[0]):
            here[part] += 1
        else:
            missing += 1
    published = published_of(task, options)
    official = {"published": published.counts} if published and published.counts else {}
    return Checked(
        folder=folder,
        task=task,
        here=dict(here),
        missing=missing,
        classes=(len(facts.get("classes") or ()), published.num_classes if published else 0),
        columns={**official, **COPIES.get(task, {})},
    )


def main(argv: list[str]) -> int:
    """`ssmast datasets check`: parse, count, print."""
    if argv[:1] != ["check"] and not {"-h", "--help"} & set(argv):
        raise UsageError("the datasets command has one use: ssmast datasets check FOLDER")
    config = parse(
        CheckConfig,
        argv[argv[:1] == ["check"] :],
        command="ssmast datasets check",
        description=__doc__ or "",
        positional="data",
    )
    if config is None:
        return 0
    checked = [check_set(folder) for folder in _sets_in(Path(config.data))]
    sys.stdout.write("\n".join(line for one in checked for line in one.lines()) + "\n")
    return 0 if all(one.is_as_published for one in checked) else 1


def _sets_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; wanted a set that was built, or several")
    if read_task_file(folder):
        return [folder]
    found = [one for one in sorted(folder.iterdir()) if one.is_dir() and read_task_file(one)]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no set that `ssmast prepare task=` built: a set has a task.json"
        )
    return found
