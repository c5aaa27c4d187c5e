"""Scores on the page: dots with whiskers beside baselines, other runs and published rows.

Published scores (published_scores.yaml) also make tables with one's own below, on the page and as
Markdown.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ssmast.evaluation.results import TITLES, Result, Score, result_notes
from ssmast.html import details, markdown_table, section, table, text
from ssmast.report.sources import Source

_COLOURS = {"pretrained": "c0", "untrained": "c1", "log_mel": "c2", "random_conv": "c6"}


class Dot(NamedTuple):
    """One dot: name, value and half-width in percent, colour class, and what to say of it."""

    name: str
    mean: float
    reach: float
    shown: str
    colour: str
    note: str = ""

    @classmethod
    def of(cls, name: str, score: Score, *, colour: str, note: str = "") -> "Dot":
        """The dot of a score."""
        return cls(name, 100 * score.mean, 100 * (score.ci95 or 0.0), score.text, colour, note)


def scores(sources: Sequence[Source]) -> str:
    """The section of all tasks; the first source's results come first."""
    keys: dict[tuple[str, str, str, str], None] = {}
    for source in sources:
        keys |= {_key(result): None for result in source.probes}
    if not keys:
        return ""
    note = (
        "Scores in %, of frozen embeddings except where the protocol says that the encoder was "
        "trained. Whiskers: 95 % t interval over seeds, over the folds where there are folds. "
        "Tracks run from 0 to 100 %; the dotted mark is chance. Hollow dots are published scores "
        "by another protocol: they show where the field is, not who is better."
    )
    mistakes, events, is_open = "", "", True
    for source in sources:
        for result in source.probes:
            name = result.task if len(sources) < 2 else f"{result.task}, {source.name}"
            part = _confusion(result, name, is_open=is_open)
            events += _events(result, name)
            mistakes, is_open = mistakes + part, is_open and not part
    return section(
        "Scores",
        f'<p class="soft">{text(note)}</p>',
        *(_task(key, sources) for key in keys),
        f"<h3>Events</h3>{events}" if events else "",
        f"<h3>Most frequent mistakes</h3>{mistakes}" if mistakes else "",
    )


def _events(result: Result, name: str) -> str:
    """Onset and offset scores of a result, class by class."""
    if not result.events:
        return ""
    keys, whole = ("f1", "precision", "recall"), result.events
    rows = [("all", *(f"{100 * whole[key]:.1f}" for key in keys), "")]
    rows += [
        (label, *(f"{100 * row[key]:.1f}" for key in keys), f"{row['n']:,}")
        for label, row in whole["classes"].items()
    ]
    note = (
        f"{name}: events in the {result.part} part's recordings, in %. An event counts if its "
        "class, onset and offset are right; mean F1 of the classes "
        f"{100 * whole['mean_f1']:.1f} %."
    )
    head = ("class", "F1", "precision", "recall", "events")
    return f'<p class="soft">{text(note)}</p>{table(rows, head=head)}'


def _key(result: Result) -> tuple[str, str, str, str]:
    return result.task, result.protocol, result.metric, result.part


def _task(key: tuple[str, str, str, str], sources: Sequence[Source]) -> str:
    """One task: a row for each column of each source, then the published ones."""
    found = [(s, r) for s in sources for r in s.probes if _key(r) == key]
    _, first = found[0]
    rows: list[Dot] = []
    for position, (source, result) in enumerate(found):
        other = first.ids_sha256 != result.ids_sha256
        for name, score in result.columns.items():
            is_shared = name in ("log_mel", "random_conv")  # the same whatever the encoder
            if position and is_shared and not other:
                continue
            title = TITLES.get(name, name)
            if len(sources) > 1 and not is_shared:
                title = source.name if name == result.column else f"{source.name}, {title}"
            colour = _COLOURS.get(name, "c0") if not position else f"c{2 + min(position, 4)}"
            rows.append(Dot.of(title, score, colour=colour, note=_note(score, other_clips=other)))
    for row in published_of(first.task, str(first.built.get("task", "")), first.metric):
        reach = None if row.reach is None else row.reach / 100
        score, note = Score(mean=row.percent / 100, ci95=reach), f"{row.protocol}; {row.source}"
        rows.append(Dot.of(row.name, score, colour="published", note=note))
    facts = [f"{_counts(first)}; {first.metric_title}, protocol {first.protocol}"]
    return task_box(first.task, [*facts, *result_notes(first)], rows, chance=first.chance)


def task_box(title: str, facts: Sequence[str], dots: Sequence[Dot], *, chance: float | None) -> str:
    """What is known of one task, and the dots of its scores, with a mark at chance."""
    mark = "" if chance is None else f'<s style="left:{100 * chance:.2f}%"></s>'
    said = "".join(f'<p class="soft">{text(fact)}</p>' for fact in facts)
    drawn = "".join(dot(row, mark) for row in dots)
    return f'<div class="task"><h3>{text(title)}</h3>{said}{drawn}</div>'


def _note(score: Score, *, other_clips: bool) -> str:
    """What keeps a row from being compared with the first one."""
    notes = ["other clips"] if other_clips else []
    if score.fitted_by is not None:  # statistics have nothing to fine-tune
        notes.append(f"protocol {score.fitted_by}")
    return "; ".join(notes)


def _counts(result: Result) -> str:
    part = "" if result.part == "test" else f", scored on the {result.part} part"
    counts = f"{result.n_train} / {result.n_valid} / {result.n_test} clips{part}"
    folds = f", {len(result.splits)} folds" if len(result.splits) > 1 else ""
    shuffled = ", labels shuffled" if result.shuffled else ""
    # A network that was fine-tuned has no frozen vector to speak of.
    vector = "" if result.dim is None else f"; {result.dim} dimensions"
    vector += f", pooling {result.pooling}" if result.pooling else ""
    return f"{result.num_classes} classes, {counts}{folds}{shuffled}{vector}"


def dot(row: Dot, mark: str) -> str:
    """The row of a dot with its whisker on a track from 0 to 100.

    `mark` is HTML of what else lies on the track, such as chance.
    """
    low, high = max(0.0, row.mean - row.reach), min(100.0, row.mean + row.reach)
    note = f'<small class="soft">{text(row.note)}</small>' if row.note else ""
    return (
        f'<div class="score {row.colour}"><span>{text(row.name)}</span>'
        f'<span class="track" aria-hidden="true">{mark}'
        f'<u style="left:{low:.2f}%;width:{high - low:.2f}%"></u>'
        f'<i style="left:{row.mean:.2f}%"></i></span><span>{text(row.shown)}</span>{note}</div>'
    )


def _confusion(result: Result, name: str, *, is_open: bool = False) -> str:
    """Worst pairs of classes, and the matrix where it is not too large to read."""
    matrix, classes = result.confusion, result.classes
    if not matrix or not classes:  # several labels a clip: no class is predicted in place of one
        return ""
    rows = [
        (pair["true"], pair["predicted"], f"{100 * pair['rate']:.0f} %")
        for pair in worst_pairs(matrix, classes)
    ]
    parts = [table(rows, head=("true class", "predicted as", "how often"))]
    if not rows:
        return ""
    if len(classes) <= 50:
        head = "".join(f"<th>{index}</th>" for index in range(1, len(classes) + 1))
        body = "".join(_matrix_row(i, classes[i], row) for i, row in enumerate(matrix))
        parts.append(
            '<p class="soft">Rows: the truth; columns: what was predicted; % of the row.</p>'
            '<div class="wide" tabindex="0" role="region" aria-label="confusion matrix">'
            f'<table class="matrix"><tr><th></th>{head}</tr>{body}</table></div>'
        )
    return details(name, "".join(parts), is_open=is_open)


def _matrix_row(index: int, name: str, row: list[int]) -> str:
    total = max(sum(row), 1)
    cells = "".join(
        f'<td style="--rate:{count / total:.3f}">{round(100 * count / total) or ""}</td>'
        for count in row
    )
    return f"<tr><th>{index + 1} {text(name)}</th>{cells}</tr>"


def worst_pairs(confusion: list[list[int]], classes: list[str]) -> list[dict[str, Any]]:
    """The eight worst mistakes, worst first: true, predicted, count, rate in the true class."""
    pairs = [
        {
            "true": classes[true],
            "predicted": classes[column],
            "count": int(count),
            "rate": count / max(sum(row), 1),
        }
        for true, row in enumerate(confusion)
        for column, count in enumerate(row)
        if column != true and count > 0
    ]
    pairs.sort(key=lambda pair: (-pair["rate"], -pair["count"], pair["true"], pair["predicted"]))
    return pairs[:8]


# -- published scores ------------------------------------------------------------------------------


class Published(NamedTuple):
    """One published number.

    Attributes:
        task: data set, as `ssmast prepare task=` calls it.
        name: encoder.
        reach: half-width of its 95 % interval, in percent; None if none was published.
        protocol: how it was measured.
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
    Path(__file__).with_name("published_scores.yaml").read_text(encoding="utf-8")
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

    `built` is the data set it was prepared from, empty for one made by hand, whose name counts.
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

    Own results by the name of their row; sets of the table without one are absent.
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
