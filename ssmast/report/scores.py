"""Scores on the page: dots with whiskers beside baselines, other runs and published rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssmast.evaluation.metrics import worst_pairs
from ssmast.evaluation.results import TITLES, columns_of, score_text
from ssmast.html import details, section, text
from ssmast.report.published_scores import published_of
from ssmast.report.sources import Source

_COLOURS = {"pretrained": "c0", "untrained": "c1", "log_mel": "c2"}
_METRICS = {"map": "mAP", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One dot: name, value and half-width in percent, colour class, and what to say of it."""

    name: str
    mean: float
    reach: float
    shown: str
    colour: str
    note: str = ""


def scores(sources: Sequence[Source]) -> str:
    """The section of all tasks; the first source's results come first."""
    keys: dict[tuple[str, str, str], None] = {}
    for source in sources:
        keys |= {_key(result): None for result in source.probes}
    if not keys:
        return ""
    note = (
        "Scores on the test part in %, of frozen embeddings but where the protocol says that the "
        "encoder was trained. Whiskers: 95 % t interval over seeds, over the folds where there are "
        "folds. Tracks run from 0 to 100 %; the dotted mark is chance. Hollow dots are published "
        "scores by another protocol: they tell where the field is, not who is better."
    )
    mistakes, is_open = "", True
    for source in sources:
        for result in source.probes:
            name = result["task"] if len(sources) < 2 else f"{result['task']}, {source.name}"
            part = _confusion(result, str(name), is_open=is_open)
            mistakes, is_open = mistakes + part, is_open and not part
    return section(
        "Scores",
        f'<p class="soft">{text(note)}</p>',
        *(_task(key, sources) for key in keys),
        f"<h3>What is mistaken for what</h3>{mistakes}" if mistakes else "",
    )


def _key(result: dict[str, Any]) -> tuple[str, str, str]:
    return str(result["task"]), str(result["protocol"]), str(result["metric"])


def _task(key: tuple[str, str, str], sources: Sequence[Source]) -> str:
    """One task: a row for each column of each source, then the published ones."""
    found = [(s, r) for s in sources for r in s.probes if _key(r) == key]
    _, first = found[0]
    rows: list[_Row] = []
    for position, (source, result) in enumerate(found):
        other = first.get("ids_sha256") != result.get("ids_sha256")
        for name, column in columns_of(result).items():
            if position and name == "log_mel" and not other:
                continue  # the same statistics of the same clips
            title = TITLES.get(name, name)
            rows.append(
                _Row(
                    name=title if len(sources) < 2 or name == "log_mel"
                    else f"{source.name}, {title}" if name != result.get("column", "pretrained")
                    else source.name,
                    mean=100 * column["mean"],
                    reach=100 * (column.get("ci95") or 0.0),
                    shown=score_text(column),
                    colour=_COLOURS.get(name, "c0") if not position else f"c{2 + min(position, 4)}",
                    note=_note(column, protocol=key[1], other_clips=other),
                )
            )  # fmt: skip
    task, protocol, metric = key
    for row in published_of(task, str(first.get("built", {}).get("task", "")), metric):
        reach = row.reach or 0.0
        rows.append(
            _Row(
                name=row.name,
                mean=100 * row.value,
                reach=100 * reach,
                shown=f"{100 * row.value:.1f}" + (f" ± {100 * reach:.1f}" if reach else ""),
                colour="published",
                note=f"{row.protocol}; {row.source}",
            )
        )
    chance = first.get("chance", None if metric == "map" else 1 / first["num_classes"])
    mark = "" if chance is None else f'<s style="left:{100 * chance:.2f}%"></s>'
    return (
        f'<div class="task"><h3>{text(task)}</h3>'
        f'<p class="soft">{text(_counts(first))}; {text(_METRICS.get(metric, metric))}, protocol '
        f"{text(protocol)}</p>{''.join(_dot(row, mark) for row in rows)}</div>"
    )


def _note(column: dict[str, Any], *, protocol: str, other_clips: bool) -> str:
    """What keeps a row from being compared with the first one."""
    notes = ["other clips"] if other_clips else []
    if column.get("protocol", protocol) != protocol:  # statistics have nothing to fine-tune
        notes.append(f"protocol {column['protocol']}")
    return "; ".join(notes)


def _counts(result: dict[str, Any]) -> str:
    counts = f"{result['n_train']} / {result['n_valid']} / {result['n_test']} clips"
    folds = f", {len(result['splits'])} folds" if len(result["splits"]) > 1 else ""
    unseen = result.get("num_unseen", 0)
    notes = f", {unseen} test clips of classes not trained on" if unseen else ""
    shuffled = ", labels shuffled" if result.get("shuffled") else ""
    # A network that was fine-tuned has no frozen vector to speak of.
    vector = f"; {result['dim']} dimensions" if "dim" in result else ""
    vector += f", pooling {result['pooling']}" if result.get("pooling") else ""
    return f"{result['num_classes']} classes, {counts}{folds}{notes}{shuffled}{vector}"


def _dot(row: _Row, mark: str) -> str:
    low, high = max(0.0, row.mean - row.reach), min(100.0, row.mean + row.reach)
    note = f'<small class="soft">{text(row.note)}</small>' if row.note else ""
    return (
        f'<div class="score {row.colour}"><span>{text(row.name)}</span>'
        f'<span class="track" aria-hidden="true">{mark}'
        f'<u style="left:{low:.2f}%;width:{high - low:.2f}%"></u>'
        f'<i style="left:{row.mean:.2f}%"></i></span><span>{text(row.shown)}</span>{note}</div>'
    )


def _confusion(result: dict[str, Any], name: str, *, is_open: bool = False) -> str:
    """Worst pairs of classes, and the matrix where it is not too large to read."""
    matrix, classes = result.get("confusion"), result.get("classes")
    if not matrix or not classes:  # several labels a clip: nothing is taken for one other thing
        return ""
    pairs = "".join(
        f"<tr><td>{text(pair['true'])}</td><td>{text(pair['predicted'])}</td>"
        f"<td>{100 * pair['share']:.0f} %</td></tr>"
        for pair in worst_pairs(matrix, classes)
    )
    if not pairs:
        return ""
    parts = [
        '<div class="wide" tabindex="0"><table><tr><th>clip of</th><th>taken for</th>'
        f"<th>how often</th></tr>{pairs}</table></div>"
    ]
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
        f'<td style="--share:{count / total:.3f}">{round(100 * count / total) or ""}</td>'
        for count in row
    )
    return f"<tr><th>{index + 1} {text(name)}</th>{cells}</tr>"
