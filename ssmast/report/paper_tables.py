"""Published tables with one's own rows below, as Markdown and on the page."""

from collections.abc import Mapping, Sequence

from ssmast.evaluation.results import Result
from ssmast.html import details, markdown_table, section, text
from ssmast.html import table as html_table
from ssmast.report.published_scores import MAST_TABLE, POSTER_TABLE, PublishedTable
from ssmast.report.sources import Source

ABSENT = "absent"
"""What stands in the cell of a set that is not there."""


def filled_table(table: PublishedTable, own: Mapping[str, Sequence[Result]]) -> str:
    """Markdown: the published rows, then one's own.

    Args:
        table: published.
        own: name of each own row -> its results; sets of the table without one are absent.
    """
    heads = ["", *(header for header, _, _ in table.columns)]
    filled = markdown_table(heads, _rows(table, own), numbers=len(table.columns))
    return f"{filled}\nIn %. Published rows: {table.source}. {_said(own)}\n"


def paper_tables(sources: Sequence[Source]) -> str:
    """Section of the page: the published tables that some result belongs to."""
    parts = []
    for table in (POSTER_TABLE, MAST_TABLE):
        own = {source.name or "this": source.probes for source in sources}
        own = {name: found for name, found in own.items() if _has_any(table, found)}
        if own:
            heads = ["", *(header for header, _, _ in table.columns)]
            body = html_table(_rows(table, own), head=heads, first_is_head=True, name=table.title)
            note = f'<p class="soft">{text(f"In %. {table.source}. {_said(own)}")}</p>'
            parts.append(details(table.title, note + body))
    return section("Published tables", *parts)


def _rows(table: PublishedTable, own: Mapping[str, Sequence[Result]]) -> list[list[str]]:
    rows = [
        [name, *("" if number is None else f"{number:.1f}" for number in numbers)]
        for name, numbers in table.rows.items()
    ]
    for name, results in own.items():
        cells = [_cell(results, task, metric) for _, task, metric in table.columns]
        rows.append([name, *cells])
    return rows


def _cell(results: Sequence[Result], task: str, metric: str) -> str:
    """`74.8 ± 0.3` of the result of a task, of whichever protocol; or that there is none."""
    for result in results:
        if _task_of(result) == task:
            if result.metric == metric:
                return result.text
            number = (result.numbers or {}).get(metric)
            return "" if number is None else f"{100 * number:.1f}"
    return ABSENT


def _task_of(result: Result) -> str:
    """The published set that a result is of; another label column than its own is of none."""
    name, _, options = result.task.partition(":")
    return "" if "label=" in options else str(result.built.get("task") or name)


def _has_any(table: PublishedTable, results: Sequence[Result]) -> bool:
    cells = (_cell(results, task, metric) for _, task, metric in table.columns)
    return any(cell not in ("", ABSENT) for cell in cells)


def _said(own: Mapping[str, Sequence[Result]]) -> str:
    """How one's own rows were measured, and what is not there."""
    protocols = dict.fromkeys(one.protocol for results in own.values() for one in results)
    how = f"Own rows: protocol {', '.join(protocols)}. " if protocols else ""
    return f"{how}{ABSENT}: no such set was there."
