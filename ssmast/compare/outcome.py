"""What a comparison ends in: a table, its JSON and a page."""

import itertools
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssmast.compare.config import CompareConfig
from ssmast.compare.verdict import Difference, Scores, Verdict, difference, judge
from ssmast.evaluation.metrics import t_interval
from ssmast.evaluation.results import TITLES, Result, Score
from ssmast.files import write_atomic, write_json
from ssmast.html import markdown_table, page, section, table, text
from ssmast.report.curves import MOST_RUNS, SERIES_STYLES, curve
from ssmast.report.scores import Dot, dot, task_box
from ssmast.settings import to_dict, to_words
from ssmast.version import __version__

TOLERANCE = 0.1
"""A run that used this fraction of its time more or less than was asked for is pointed out."""
_TWIN = "untrained"


@dataclass(kw_only=True)
class Entry:
    """What became of a variant.

    Attributes:
        steps: that fit into the time; of classifiers, on each set.
        minutes: really used, by seed; of classifiers, by set and seed.
        scores: by seed and task.
        curves: (minutes, accuracy) while it trained, by run as `minutes`.
        untrained: scores of the same network with fresh weights; whitened or not, whichever is
            better on the validation part.
        best_stage: the same, of the layers that are best on the validation part.
        twins: which untrained network that is, by seed; variants of one architecture share it.
        failed: why it was given up; empty if it was not.
        alarms: what the alarm said of its runs.
    """

    name: str
    words: Sequence[str]
    steps: list[int] = field(default_factory=list)
    minutes: dict[str, float] = field(default_factory=dict)
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    untrained: dict[int, dict[str, float]] = field(default_factory=dict)
    best_stage: dict[int, dict[str, float]] = field(default_factory=dict)
    twins: dict[int, str] = field(default_factory=dict)
    failed: str = ""
    alarms: str = ""

    @property
    def gain(self) -> Difference | None:
        """Over the untrained network, where that was scored."""
        if not self.untrained:
            return None
        return difference(self.name, _TWIN, {self.name: self.scores, _TWIN: self.untrained})

    def time_off(self, minutes: float) -> float:
        """How much more time than was asked for its worst run used, as a fraction."""
        return max((used / minutes - 1 for used in self.minutes.values()), key=abs)


@dataclass(kw_only=True)
class Comparison:
    """All variants, what they are compared with, and what follows.

    Attributes:
        fixed: results of log-mel statistics and the random convolution, by name; none where
            classifiers are compared.
        tasks: one result of each task, for what is said about it.
    """

    config: CompareConfig
    entries: list[Entry]
    fixed: dict[str, list[Result]] = field(default_factory=dict)
    tasks: list[Result] = field(default_factory=list)

    def take(self, entry: Entry, seed: int, result: dict[str, Any] | None) -> None:
        """Add what the test part gave for a classifier.

        Raises:
            ValueError: if there is no score, or it is undefined.
        """
        if result is None:
            raise ValueError("it was not tested, for its set has no test part")
        found = Result.from_dict(result)
        entry.scores.setdefault(seed, {}).update(checked([found]))
        if found.task not in [one.task for one in self.tasks]:
            self.tasks.append(found)

    @property
    def compared(self) -> list[Entry]:
        """Variants that have scores and were not given up."""
        return [entry for entry in self.entries if entry.scores and not entry.failed]

    @property
    def verdict(self) -> Verdict | None:
        """None as long as nothing is scored."""
        scores = {entry.name: entry.scores for entry in self.compared}
        return judge(scores) if scores else None

    def rows(self) -> dict[str, Scores]:
        """Scores of all that stands in the table: variants, untrained networks, what is fixed."""
        rows: dict[str, Scores] = {entry.name: entry.scores for entry in self.compared}
        twins: dict[tuple[str, ...], list[Entry]] = {}
        for entry in self.compared:
            twins.setdefault(tuple(entry.twins.values()), []).append(entry)
        for group in twins.values():
            of = f" ({', '.join(entry.name for entry in group)})" if len(twins) > 1 else ""
            if group[0].untrained:
                rows[_TWIN + of] = group[0].untrained
            if group[0].best_stage:
                rows[f"{_TWIN}, its best layers{of}"] = group[0].best_stage
        for name, results in self.fixed.items():
            rows[TITLES[name]] = {0: {result.task: result.mean for result in results}}
        return rows

    def notes(self) -> list[str]:
        """What must be known beside the verdict."""
        minutes = self.config.minutes
        found = [
            f"a run of {e.name} used {100 + 100 * e.time_off(minutes):.0f} % of the time that was "
            "asked for"
            for e in self.compared
            if abs(e.time_off(minutes)) > TOLERANCE
        ]
        for entry in self.compared:
            gain = entry.gain
            if gain is not None and (gain.mean <= 0 or (gain.low is not None and gain.low <= 0)):
                found.append(f"{entry.name} is not surely better than untrained ({gain.text})")
        found += [f"{e.name}, alarm: {e.alarms}" for e in self.entries if e.alarms]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        verdict = self.verdict
        return {
            "version": __version__,
            "settings": to_dict(self.config),
            "verdict": verdict.sentence if verdict else "",
            "notes": self.notes(),
            "means": verdict.means if verdict else {},
            "differences": [vars(one) for one in verdict.differences] if verdict else [],
            "variants": [
                {**vars(entry), "over_untrained": vars(gain) if (gain := entry.gain) else None}
                for entry in self.entries
            ],
            "fixed": {
                name: {result.task: result.mean for result in results}
                for name, results in self.fixed.items()
            },
        }

    def write(self) -> None:
        """Write compare.md, compare.json and report.html into `out`."""
        out = Path(self.config.out)
        write_json(out / "compare.json", self.to_dict())
        write_atomic(out / "compare.md", as_markdown(self))
        write_atomic(out / "report.html", as_page(self))


def as_markdown(comparison: Comparison) -> str:
    """Verdict, table of scores, table of differences."""
    verdict = comparison.verdict
    lines = [f"**{verdict.sentence}**" if verdict else "**No variant has been scored.**", ""]
    lines += [f"- {note}" for note in comparison.notes()] + [""]
    head, *rows = _score_rows(comparison)
    lines.append(markdown_table(head, rows, numbers=len(head) - 1))
    if verdict and verdict.differences:
        head, *rows = _difference_rows(verdict.differences)
        lines.append(markdown_table(head, rows))
    return "\n".join([*lines, _legend(comparison), ""])


def as_page(comparison: Comparison) -> str:
    """The whole HTML document."""
    verdict = comparison.verdict
    rows = comparison.rows()
    colours = dict.fromkeys(rows, "c6")
    names = [entry.name for entry in comparison.compared]
    colours |= dict(zip(names, itertools.cycle(SERIES_STYLES), strict=False))
    head, *cells = _score_rows(comparison, with_reasons=False)
    head = [re.sub(r"([:,])", "\\1\u200b", name) for name in head]  # may break there
    notes = "".join(f"<p>{text(note)}</p>" for note in comparison.notes())
    settings = [
        (entry.name, " ".join(entry.words) or "the recipe", entry.failed and _why(entry))
        for entry in comparison.entries
    ]
    command = shlex.join(["ssmast", "compare", *to_words(comparison.config)])
    return page(
        "Comparison at equal time",
        f"<p><b>{text(verdict.sentence if verdict else 'No variant has been scored.')}</b></p>",
        f'<div class="alarm">{notes}</div>' if notes else "",
        section(
            "Scores",
            table(cells, head=head, first_is_head=True, name="scores", style="numbers"),
            f'<p class="soft">{text(_legend(comparison))}</p>',
        ),
        section("Differences", *_differences(verdict.differences if verdict else [])),
        section("While training", _over_minutes(comparison)),
        section("Task by task", *(_task(result, rows, colours) for result in comparison.tasks)),
        section("Variants", table(settings, first_is_head=True, name="variants")),
        section("Reproduce", f"<pre>{text(command)}</pre>"),
    )


def _score_rows(comparison: Comparison, *, with_reasons: bool = True) -> list[list[str]]:
    """Head and rows of the table of scores; variants that failed come last, and say why."""
    tasks = [result.task for result in comparison.tasks]
    names = [
        result.task + ("" if result.metric == "accuracy" else f" ({result.metric_title})")
        for result in comparison.tasks
    ]
    over = ["over untrained"] if comparison.fixed else []
    found = [["variant", "average", *over, *names, "steps", "minutes"]]
    entries = {entry.name: entry for entry in comparison.compared}
    for name, scores in comparison.rows().items():
        entry = entries.get(name)
        each = [[of[task] for of in scores.values()] for task in tasks]
        means = [sum(of[task] for task in tasks) / len(tasks) for of in scores.values()]
        cells = [_score(values).text for values in each]
        about = ["", ""] if entry is None else [_steps(entry), _minutes(entry, comparison)]
        if over:
            gain = None if entry is None else entry.gain
            cells.insert(0, "" if gain is None else _points(gain))
        found.append([name, _score(means).text, *cells, *about])
    for entry in comparison.entries:
        if entry.failed:
            blank = [""] * (len(tasks) + len(over))
            why = _why(entry) if with_reasons else "failed"
            found.append([entry.name, why, *blank, _steps(entry), ""])
    return found


def _steps(entry: Entry) -> str:
    ends = sorted({min(entry.steps), max(entry.steps)}) if entry.steps else []
    return " to ".join(map(str, ends))


def _why(entry: Entry) -> str:
    return f"failed: {entry.failed}"


def _minutes(entry: Entry, comparison: Comparison) -> str:
    mean = sum(entry.minutes.values()) / len(entry.minutes)
    off = entry.time_off(comparison.config.minutes)
    return f"{mean:.3g}" + (f" ({100 * off:+.0f} %)" if abs(off) > TOLERANCE else "")


def _score(values: list[float]) -> Score:
    mean, reach = t_interval(values)
    return Score(mean=mean, ci95=reach)


def _points(found: Difference) -> str:
    reach = "" if found.high is None else f" ± {100 * (found.high - found.mean):.1f}"
    return f"{100 * found.mean:+.1f}{reach}"


def _difference_rows(pairs: Sequence[Difference]) -> list[list[str]]:
    return [
        ["difference", "points", "over", "p (Holm)", "told apart"],
        *(
            [
                f"{pair.first} minus {pair.second}",
                _points(pair),
                f"{pair.num} {pair.over if pair.num > 1 else pair.over.removesuffix('s')}",
                "" if pair.p is None else f"{pair.p:.2g}",
                "yes" if pair.is_apart else "no",
            ]
            for pair in pairs
        ),
    ]


def _differences(pairs: Sequence[Difference]) -> list[str]:
    """Dots with whiskers about 0, and the table."""
    if not pairs:
        return []
    head, *rows = _difference_rows(pairs)
    ends = [abs(end) for pair in pairs for end in (pair.mean, pair.low, pair.high) if end]
    scale = 48 / max(ends, default=1.0)
    dots = [
        dot(
            Dot(
                name=f"{pair.first} \u2212 {pair.second}",
                mean=50 + scale * pair.mean,
                reach=0.0 if pair.high is None else scale * (pair.high - pair.mean),
                shown=_points(pair),
                colour="c0" if pair.is_apart else "c6",
            ),
            '<s style="left:50%"></s>',
        )
        for pair in pairs
    ]
    width = 100 * max(ends, default=1.0) * 50 / 48
    note = (
        f"Differences of the average over tasks, paired by seed, in points; whiskers: 95 % "
        f"interval; the dotted mark is 0, the track runs from \u2212{width:.2g} to {width:.2g}. "
        "Grey: cannot be told apart."
    )
    return [
        f'<p class="soft">{text(note)}</p><div class="task">{"".join(dots)}</div>',
        table(rows, head=head, first_is_head=True, name="differences", style="numbers"),
    ]


def _over_minutes(comparison: Comparison) -> str:
    """A curve a variant, the mean over its seeds that were scored while they trained."""
    entries = [entry for entry in comparison.compared if any(entry.curves.values())][:MOST_RUNS]
    series = [
        [
            (sum(x for x, _ in at) / len(at), sum(y for _, y in at) / len(at))
            for at in zip(*filter(None, entry.curves.values()), strict=False)
        ]
        for entry in entries
    ]
    if not series:
        return ""
    key = "".join(
        f'<span class="{style}"><b>\u2501</b> {text(entry.name)}</span>'
        for style, entry in zip(SERIES_STYLES, entries, strict=False)
    )
    note = (
        "Accuracy of a linear layer on a sample of each set's training and validation part, not "
        "whitened; mean over the sets and seeds. At 0 the network is untrained."
        if comparison.fixed
        else "Score on the validation part, mean over the sets and seeds."
    )
    picture = curve("compare", series, {}, along="processor minutes")
    return (
        f'<p class="soft">{text(note)}</p><p class="key">{key}</p>'
        f'<div class="curves"><figure>{picture}</figure></div>'
    )


def _task(result: Result, rows: dict[str, Scores], colours: dict[str, str]) -> str:
    """The scores of everything on one task."""
    dots = [
        Dot.of(name, _score([of[result.task] for of in scores.values()]), colour=colours[name])
        for name, scores in rows.items()
    ]
    about = f"{result.num_classes} classes, {result.n_test} test clips; {result.metric_title}"
    return task_box(result.task, [about], dots, chance=result.chance)


def _legend(comparison: Comparison) -> str:
    config = comparison.config
    seeds = max((len(entry.scores) for entry in comparison.compared), default=0)
    what, untrained = "classifiers in %", ""
    paired = "learn from the same clips and test on the same."
    if comparison.fixed:
        what = "frozen embeddings in % (linear probe)"
        paired = "see the same clips in the same order."
        untrained = (
            "Untrained: the same network, its vector made in the same way, with fresh weights. "
        )
    return (
        f"Test scores of {what}; {config.minutes:g} processor minutes of one core for each run, "
        f"{seeds} of {config.seeds} seeds. \u00b1 and whiskers: half of the 95 % t interval over "
        f"seeds. {untrained}A difference is paired: the runs of one seed {paired}"
    )


def checked(results: Sequence[Result]) -> dict[str, float]:
    """Score by task.

    Raises:
        ValueError: if one is undefined.
    """
    for result in results:
        if not math.isfinite(result.mean):
            raise ValueError(f"its {result.metric_title} on {result.task} is undefined")
    return {result.task: result.mean for result in results}
