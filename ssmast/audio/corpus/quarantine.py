"""The list of clips that could not be used, on disk, and the limit on how many there may be."""

import csv
import io
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from ssmast.files import append_lines


class Quarantine:
    """Writes down clips that cannot be used, each once, and stops when there are too many.

    Args:
        path: of the CSV file with columns name and reason; read if it exists, so that the count
            survives a restart. None to keep no file.
        corpus_size: number of clips.
        max_fraction: largest fraction of bad clips allowed. The first 20 are always allowed where
            that is less than half of the corpus.

    Raises:
        ValueError: if the file is no quarantine list.
    """

    def __init__(
        self, path: str | PathLike[str] | None, *, corpus_size: int, max_fraction: float = 0.1
    ) -> None:
        self.path = None if path is None else Path(path)
        self.corpus_size = corpus_size
        self.max_fraction = max_fraction
        self._names: set[str] = set()
        if self.path is not None and self.path.exists():
            self._names = set(_read_quarantine(self.path))

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def add(self, rejected: Sequence[tuple[str, str]]) -> None:
        """Write clips, (name, reason), down, each once.

        Raises:
            ValueError: if there are now more bad clips than allowed; they are written down first.
        """
        new = [(name, reason) for name, reason in dict(rejected).items() if name not in self._names]
        if not new:
            return
        self._names.update(name for name, _ in new)
        try:
            if self.path is not None:
                _append_quarantine(self.path, new)
        finally:  # a process whose disk is full must stop where the others do
            self._check(last=new[-1][1])

    def _check(self, *, last: str) -> None:
        allowed = max(self.max_fraction * self.corpus_size, min(20, self.corpus_size // 2))
        if len(self._names) > allowed:
            raise ValueError(
                f"{len(self._names)} of {self.corpus_size} clips are bad, more than the allowed "
                f"{self.max_fraction:g}; the last: {last} (all reasons: {self.path})"
            )


def _append_quarantine(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    if not path.is_file() or not path.stat().st_size:
        writer.writerow(["name", "reason"])
    writer.writerows(rows)
    append_lines(path, text.getvalue().encode())


def _read_quarantine(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, None)
        if header not in (None, ["name", "reason"]):
            raise ValueError(
                f"{path} is no quarantine list: its first line must be name,reason, got "
                f"{','.join(header)!r}"
            )
        # A row that a crash cut short is dropped: the clip will be met again.
        return [row[0] for row in rows if len(row) == 2]
