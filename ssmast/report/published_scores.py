"""Published scores (published_scores.yaml) beside one's own, as Markdown and on the page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ssmast.evaluation.results import Result
from ssmast.html import details, markdown_table, section, table, text
from ssmast.report.sources import Source


class Published(NamedTuple):
    """One published number.

    Attributes:
        task: data set, as `ssmast prepare task=` calls it.
        name: encoder.
        percent: the score.
        reach: half-width of its 95 % interval, in percent; None if none was published.
        protocol: how it was measured.
        source: where it was read.
        metric: accuracy or map.
    """

    task: str
    name: str
    percent: float
    reach: float | None
    protocol: str
    source: str
    metric: str = "accuracy"


class PublishedTable(NamedTuple):
    """A published table, in %.

    Attributes:
        title: what it is.
        source: where it was read.
        columns: header, task as `ssmast prepare task=` calls it, and metric.
        rows: name -> its numbers; None where it has none.
        cited: the source, in short.
        shown: rows that a page shows beside a result; empty for all.
    """

    title: str
    source: str
    columns: list[tuple[str, str, str]]
    rows: dict[str, list[float | None]]
    cited: str
    shown: tuple[str, ...] = ()

    def published(self) -> list[Published]:
        """Its numbers that a page shows beside a result: of what a fine-tuned one is of."""
        return [
            Published(task, name, number, None, "encoder fine-tuned", self.cited, metric)
            for n, (_, task, metric) in enumerate(self.columns)
            if metric in ("accuracy", "action_accuracy", "map")
            for name, numbers in self.rows.items()
            if (number := numbers[n]) is not None and name in (self.shown or self.rows)
        ]


_DATA: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
)
POSTER_TABLE, MAST_TABLE = (PublishedTable(**table) for table in _DATA["tables"])
PUBLISHED = (
    *POSTER_TABLE.published(),
    *MAST_TABLE.published(),
    *(Published(*score) for score in _DATA["scores"]),
)
PUBLISHED_CLUSTERS: dict[str, Any] = _DATA["clusters"]
"""`source`, and `rows` of task, encoder, silhouette, adjusted Rand index and homogeneity."""


def _set_of(task: str, built: str) -> str:
    """The published set that a task is of; another label column than its own is of none.

    Args:
        task: as it was asked for.
        built: the data set it was prepared from; empty for one made by hand, whose name counts.
    """
    name, _, options = task.partition(":")
    return "" if "label=" in options else built or name


def published_of(task: str, built: str, metric: str) -> list[Published]:
    """The rows to show beside a result of a task by a metric, see `_set_of`."""
    return [r for r in PUBLISHED if (r.task, r.metric) == (_set_of(task, built), metric)]


ABSENT = "absent"
"""What stands in the cell of a set that is not there."""


def filled_table(published: PublishedTable, own: Mapping[str, Sequence[Result]]) -> str:
    """Markdown: the published rows, then one's own.

    Args:
        published: the table.
        own: name of each own row -> its results; sets of the table without one are absent.
    """
    heads = ["", *(header for header, _, _ in published.columns)]
    filled = markdown_table(heads, _rows(published, own), numbers=len(published.columns))
    return f"{filled}\nIn %. Published rows: {published.source}. {_said(own)}\n"


def paper_tables(sources: Sequence[Source]) -> str:
    """Section of the page: the published tables that some result belongs to."""
    parts = []
    for published in (POSTER_TABLE, MAST_TABLE):
        own = {source.name or "this": source.probes for source in sources}
        own = {name: found for name, found in own.items() if _has_any(published, found)}
        if own:
            heads = ["", *(header for header, _, _ in published.columns)]
            body = table(
                _rows(published, own), head=heads, first_is_head=True, name=published.title
            )
            note = f'<p class="soft">{text(f"In %. {published.source}. {_said(own)}")}</p>'
            parts.append(details(published.title, note + body))
    return section("Published tables", *parts)


def _rows(published: PublishedTable, own: Mapping[str, Sequence[Result]]) -> list[list[str]]:
    rows = [
        [name, *("" if number is None else f"{number:.1f}" for number in numbers)]
        for name, numbers in published.rows.items()
    ]
    for name, results in own.items():
        cells = [_cell(results, task, metric) for _, task, metric in published.columns]
        rows.append([name, *cells])
    return rows


def _cell(results: Sequence[Result], task: str, metric: str) -> str:
    """`74.8 ± 0.3` of the result of a task, of whichever protocol; or that there is none."""
    for result in results:
        if _set_of(result.task, str(result.built.get("task") or "")) == task:
            if result.metric == metric:
                return result.text
            number = (result.numbers or {}).get(metric)
            return "" if number is None else f"{100 * number:.1f}"
    return ABSENT


def _has_any(published: PublishedTable, results: Sequence[Result]) -> bool:
    cells = (_cell(results, task, metric) for _, task, metric in published.columns)
    return any(cell not in ("", ABSENT) for cell in cells)


def _said(own: Mapping[str, Sequence[Result]]) -> str:
    """How one's own rows were measured, and what is not there."""
    protocols = dict.fromkeys(one.protocol for results in own.values() for one in results)
    how = f"Own rows: protocol {', '.join(protocols)}. " if protocols else ""
    return f"{how}{ABSENT}: no such set was there."
