"""Scores on the page: dots with whiskers beside baselines, other runs and published rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ssmast.evaluation.results import TITLES, Result, Score, result_notes
from ssmast.html import details, section, table, text
from ssmast.report.published_scores import published_of
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

    Args:
        row: what to draw.
        mark: HTML of what else lies on the track, such as chance.
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
