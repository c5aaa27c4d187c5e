"""Published scores, as data with their sources: what readers know the numbers of.

None of them was measured by this protocol on these clips; each row says how it was. Published
tables are shown with one's own rows below, as Markdown and on the page.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

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


_POSTER = "Ghosh et al. 2023 (arXiv 2211.01515), poster"
_TUNED = "encoder fine-tuned"
_LINEAR = "frozen, EVAR's linear layer"
_EVAR, _M2D = "EVAR's README", "M2D-CLAP, table 3"
_XARES, _SUPERB = "frozen, X-ARES's linear layer", "frozen, SUPERB's weighted layers"

# The poster's table: its rows, and task -> its numbers in %, one a row.
POSTER_ROWS = (
    "AST, random",
    "AST, ImageNet",
    "AST, ImageNet + SSAST",
    "AST, ImageNet + SS-MAST",
    "MAST, random",
    "MAST, ImageNet",
    "MAST, ImageNet + SS-MAST",
    "MAST, ImageNet + SS-MAST + patch-drop",
)
POSTER = {
    "speech_commands_v1": (87.3, 90.0, 95.5, 96.0, 91.0, 92.0, 97.0, 97.4),
    "speech_commands_v2_12": (88.2, 91.1, 94.2, 94.4, 92.2, 93.1, 96.8, 96.8),
    "speech_commands_v2": (92.7, 93.1, 94.4, 95.4, 93.4, 94.2, 96.4, 96.6),
    "voxceleb1": (30.1, 51.2, 53.3, 53.4, 33.2, 54.4, 56.7, 57.3),
    "iemocap": (51.9, 54.2, 55.2, 60.1, 58.3, 61.0, 64.0, 64.4),
    "voxforge": (72.3, 79.8, 81.8, 88.8, 74.3, 87.3, 89.2, 90.0),
    "nsynth_family": (70.9, 71.1, 74.3, 76.4, 73.4, 75.4, 80.6, 81.2),
    "urbansound8k": (50.1, 62.3, 68.3, 79.3, 54.4, 64.4, 84.0, 84.8),
}


class PublishedTable(NamedTuple):
    """A published table, in %.

    Attributes:
        title: what it is.
        source: where it was read.
        columns: header, task as `ssmast prepare task=` calls it, and metric.
        rows: name -> its numbers; None where it has none.
    """

    title: str
    source: str
    columns: tuple[tuple[str, str, str], ...]
    rows: dict[str, tuple[float | None, ...]]


POSTER_TABLE = PublishedTable(
    title="The SS-MAST poster",
    source=f"{_POSTER}; {_TUNED}",
    columns=tuple((task, task, "accuracy") for task in POSTER),
    rows={name: tuple(row[n] for row in POSTER.values()) for n, name in enumerate(POSTER_ROWS)},
)
_NONE = (None,)
MAST_TABLE = PublishedTable(
    title="The MAST paper, tables 2 to 5",
    source=f"Zhu & Omar 2023 (arXiv 2303.10757), tables 2 to 5; {_TUNED}; AudioSet as each had it: "
    "AST and MAST on the authors' download",
    columns=(
        ("Kinetics-Sounds top-1", "kinetics_sounds_32", "accuracy"),
        ("top-5", "kinetics_sounds_32", "top5"),
        ("VGGSound top-1", "vggsound", "accuracy"),
        ("top-5", "vggsound", "top5"),
        ("EPIC verb", "epic_kitchens_verb", "verb_accuracy"),
        ("noun", "epic_kitchens_verb", "noun_accuracy"),
        ("action", "epic_kitchens_verb", "action_accuracy"),
        ("AudioSet balanced mAP", "audioset_balanced", "map"),
        ("full mAP", "audioset_full", "map"),
    ),
    rows={
        "Chen et al.": (*2 * _NONE, 48.8, 76.5, *5 * _NONE),
        "AudioSlowFast": (*2 * _NONE, 50.1, 77.9, 46.5, 22.8, 15.4, *2 * _NONE),
        "Damen et al.": (*4 * _NONE, 42.1, 21.5, 14.8, *2 * _NONE),
        "AudioSet's baseline": (*8 * _NONE, 31.4),
        "PANNs": (*7 * _NONE, 27.8, 43.9),
        "PSLA": (*7 * _NONE, 31.9, 44.4),
        "MBT (AST)": (*7 * _NONE, 31.3, 44.3),
        "AST, as published": (*7 * _NONE, 34.7, 45.9),
        "AST": (52.6, 71.5, 52.3, 78.1, 44.3, 22.4, 13.0, 31.3, 38.9),
        "MAST": (74.8, 93.1, 57.0, 81.3, 50.1, 24.2, 17.4, 31.4, 39.0),
    },
)
# Those of them that a page shows beside a result.
_SHOWN = (
    "AST, random",
    "MAST, random",
    "AST, ImageNet + SSAST",
    "MAST, ImageNet + SS-MAST + patch-drop",
)


PUBLISHED: tuple[Published, ...] = (
    *(
        Published(task, name, percent, None, _TUNED, _POSTER)
        for task, numbers in POSTER.items()
        for name, percent in zip(POSTER_ROWS, numbers, strict=True)
        if name in _SHOWN
    ),
    *(
        Published(task, name, number, None, _TUNED, "Zhu & Omar 2023, tables 2 to 5", metric)
        for n, (_, task, metric) in enumerate(MAST_TABLE.columns)
        if metric in ("accuracy", "action_accuracy", "map")  # what a fine-tuned result is of
        for name, numbers in MAST_TABLE.rows.items()
        if (number := numbers[n]) is not None
    ),
    Published("speech_commands_v1", "Dasheng", 96.9, None, _XARES, "X-ARES's README"),
    Published("speech_commands_v2", "M2D/0.6", 96.2, 0.1, _LINEAR, _M2D),
    Published("speech_commands_v2", "Dasheng 1.2B", 97.6, None, _LINEAR, _EVAR),
    Published("voxceleb1", "M2D/0.6", 75.0, 0.3, _LINEAR, _M2D),
    Published("voxceleb1", "Dasheng 1.2B", 77.8, 0.7, _LINEAR, _EVAR),
    Published("iemocap", "M2D-S", 66.4, None, _SUPERB, "m2d/speech's README"),
    Published("voxforge", "ATST-Frame", 98.8, None, _LINEAR, _EVAR),
    Published("voxforge", "M2D", 98.3, None, _LINEAR, _EVAR),
    Published("nsynth_family", "M2D/0.6", 76.1, None, _LINEAR, _M2D),
    Published("nsynth_family", "CLAP 2023", 80.5, 0.1, _LINEAR, _M2D),
    Published("urbansound8k", "M2D", 87.6, 0.2, _LINEAR, "m2d/audioset, table V"),
    Published("urbansound8k", "M2D-AS (labels)", 89.8, 0.2, _LINEAR, "m2d/audioset, table V"),
    Published("esc50", "M2D/0.6", 91.6, None, _LINEAR, _M2D),
    Published("esc50", "M2D-CLAP 2025", 97.9, 0.5, _LINEAR, _EVAR),
    Published("fsd50k", "MW-MAE-B", 51.2, None, "frozen, HEAR's MLP", "MW-MAE's README", "map"),
    Published("fsd50k", "Dasheng", 40.9, None, _XARES, "X-ARES's README", "map"),
)  # fmt: skip


# Task, encoder, silhouette, adjusted Rand index, homogeneity; normalisation, distance and labels
# were not stated.
PUBLISHED_CLUSTERS = (
    ("vggsound", "AST", 0.343, 0.292, 0.695),
    ("vggsound", "MAST", 0.527, 0.375, 0.720),
)
CLUSTERS_SOURCE = "Zhu & Omar 2023 (arXiv 2303.10757), table 6; fine-tuned on the set"


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
