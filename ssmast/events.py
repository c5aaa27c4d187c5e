"""Sound events: windows put together to spans with a label, tables of them, and their score.

Raven opens the selection tables (tab-separated, `Begin Path` says of which file), Audacity the
label tracks (start, end, label; no header).
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from ssmast.files import write_atomic

logger = logging.getLogger(__name__)

NONE = "none of these"
TABLES = ("raven", "audacity")
_RAVEN = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"),
    *("Low Freq (Hz)", "High Freq (Hz)", "Begin Path", "File Offset (s)", "Label", "Score"),
)
_LONGEST_NAME = 200  # bytes
_SUFFIX = {"raven": ".selections.txt", "audacity": ".labels.txt"}


class Event(NamedTuple):
    """A span of a recording.

    Attributes:
        file: of the recording.
        start: in seconds from its beginning.
        stop: the end.
        label: what is heard.
        score: probability or similarity; of a span of several windows the highest.
    """

    file: str
    start: float
    stop: float
    label: str
    score: float = 1.0


def merged(events: Iterable[Event]) -> list[Event]:
    """Events of one file and label that overlap or touch made one, ordered by file and start."""
    open_: dict[tuple[str, str], Event] = {}
    done: list[Event] = []
    for event in sorted(events, key=lambda event: event.start):
        key = event.file, event.label
        last = open_.get(key)
        if last is not None and event.start <= last.stop + 1e-6:
            stop, score = max(last.stop, event.stop), max(last.score, event.score)
            open_[key] = last._replace(stop=stop, score=score)
        else:
            done += [last] if last is not None else []
            open_[key] = event
    return sorted([*done, *open_.values()], key=lambda event: (event.file, event.start))


def raven_table(events: Sequence[Event], *, header: bool = True, first: int = 1) -> str:
    """A selection table; times are those inside each file, as its `File Offset (s)`.

    Args:
        events: of one file or of several.
        header: whether the line of column names comes before.
        first: number of the first selection.
    """
    lines = ["\t".join(_RAVEN)] * header
    for number, event in enumerate(events, start=first):
        start, stop = f"{event.start:.6f}", f"{event.stop:.6f}"
        # The frequencies of a window are all there are: 0 is shown as the whole height.
        file = re.sub(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]", " ", event.file)
        values = [str(number), "Spectrogram 1", "1", start, stop, "0", "0", file, start]
        lines.append("\t".join([*values, _in_one_field(event.label), f"{event.score:.4f}"]))
    return "".join(f"{line}\n" for line in lines)


def audacity_labels(events: Sequence[Event]) -> str:
    """A label track of one file."""
    return "".join(
        f"{event.start:.6f}\t{event.stop:.6f}\t{_in_one_field(event.label)}\n" for event in events
    )


def _in_one_field(text: str) -> str:
    return " ".join(text.split())


def _shortened(name: str) -> str:
    """The first bytes of a long name: that of its table, while it is written, is longer."""
    return name.encode("utf-8", "backslashreplace")[:_LONGEST_NAME].decode("utf-8", "ignore")


def tables_writer(kind: str, out: str | Path) -> Callable[[str, Sequence[Event]], None]:
    """A function that writes the table of one file after the other, each when it is known.

    Args:
        kind: raven or audacity.
        out: one file for all (.txt; of raven only), else a folder with a table for each sound.

    Raises:
        ValueError: if there is no such kind.
    """
    if kind not in TABLES:
        raise ValueError(f"format must be one of {', '.join(TABLES)}, got {kind!r}")
    out, files, selections, taken = Path(out), 0, 0, set[Path]()
    earlier = sum(1 for _ in out.glob(f"*{_SUFFIX[kind]}"))
    if earlier:
        logger.warning(
            "%s holds %d tables of before; those of sounds called as one that is read now are "
            "replaced, the others stay as they are",
            *(out, earlier),
        )

    def to_one_file(file: str, events: Sequence[Event]) -> None:
        nonlocal files, selections
        text = raven_table(events, header=not files, first=selections + 1)
        with out.open("a" if files else "w", encoding="utf-8") as opened:
            opened.write(text if kind == "raven" else audacity_labels(events))
        files, selections = files + 1, selections + len(events)

    def to_folder(file: str, events: Sequence[Event]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        name, number = _shortened(PurePath(file).name), 1
        path = out / f"{name}{_SUFFIX[kind]}"
        while path in taken:  # files of one name from two folders
            number += 1
            path = out / f"{name}-{number}{_SUFFIX[kind]}"
        taken.add(path)
        write_atomic(path, raven_table(events) if kind == "raven" else audacity_labels(events))

    return to_one_file if out.suffix == ".txt" else to_folder


# -- scores ----------------------------------------------------------------------------------------


class EventScores(NamedTuple):
    """How well predicted events match true ones.

    Attributes:
        f1: over all events of all classes.
        precision: share of the predicted that match.
        recall: share of the true that are matched.
        mean_f1: mean of the classes that have true events.
        classes: of each class f1, precision, recall and the number of true events.
    """

    f1: float
    precision: float
    recall: float
    mean_f1: float
    classes: dict[str, dict[str, float]]


def score_events(
    truth: Sequence[Event], predicted: Sequence[Event], *, collar: float = 0.2
) -> EventScores:
    """Event-based scores: onset and offset both count.

    A predicted event matches a true one of its file and label if their onsets differ by at most
    `collar` seconds, and their offsets by at most `collar` or half the true length. Each matches at
    most one, so that as many as possible match.

    Raises:
        ValueError: if there is no true event.

    Source: Mesaros et al. 2016, Metrics for polyphonic sound event detection; sed_eval's
    EventBasedMetrics with optimal matching.
    """
    if not truth:
        raise ValueError("there is no true event to score against; check the labels' files")
    labels = sorted({event.label for event in [*truth, *predicted]})
    hits, found = dict.fromkeys(labels, 0), _by_file_and_label(predicted)
    for key, real in _by_file_and_label(truth).items():
        hits[key[1]] += _most_matches(real, found.get(key, []), collar)
    num_true = Counter(event.label for event in truth)
    num_found = Counter(event.label for event in predicted)
    classes = {
        label: {**_rates(hits[label], num_found[label], num_true[label]), "n": num_true[label]}
        for label in labels
    }
    whole = _rates(sum(hits.values()), len(predicted), len(truth))
    with_truth = [classes[label]["f1"] for label in labels if num_true[label]]
    return EventScores(**whole, mean_f1=sum(with_truth) / len(with_truth), classes=classes)


def _by_file_and_label(events: Sequence[Event]) -> dict[tuple[str, str], list[Event]]:
    found: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        found.setdefault((event.file, event.label), []).append(event)
    return found


def _rates(hits: int, found: int, real: int) -> dict[str, float]:
    return {
        "f1": 2 * hits / (found + real) if found + real else 0.0,
        "precision": hits / found if found else 0.0,
        "recall": hits / real if real else 0.0,
    }


def _most_matches(real: Sequence[Event], found: Sequence[Event], collar: float) -> int:
    if not real or not found:
        return 0
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    a = np.array([[event.start, event.stop] for event in real])[:, None]
    b = np.array([[event.start, event.stop] for event in found])[None]
    lengths = a[..., 1] - a[..., 0]  # (true, 1)
    onset = np.abs(a[..., 0] - b[..., 0]) <= collar
    offset = np.abs(a[..., 1] - b[..., 1]) <= np.maximum(collar, 0.5 * lengths)
    matched: Any = maximum_bipartite_matching(csr_matrix(onset & offset), perm_type="column")
    return int((matched >= 0).sum())
