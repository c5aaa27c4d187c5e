"""IEMOCAP: four emotions, one session left out at a time."""

import re
from collections.abc import Iterator, Mapping

from ssmast.datasets.dataset_files import DatasetFiles
from ssmast.datasets.task import BuildNotes, DataTask, Option, Row

_LINE = re.compile(r"^\[(\d+\.\d+) - (\d+\.\d+)\]\s+(Ses0\dF?M?_\w+)\s+(\w+)\s")
_CLASSES = {"ang": "ang", "hap": "hap", "exc": "hap", "neu": "neu", "sad": "sad"}
_OTHERS = ("dis", "fea", "fru", "oth", "sur", "xxx")


def build(files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes) -> Iterator[Row]:
    """Turns whose majority label is angry, happy or excited (one class), neutral or sad.

    Source: the four-class subset used since Busso et al. 2008 and by SUPERB (Yang et al. 2021):
    excited counts as happy, frustrated and the rare labels are left out.
    Differs from SUPERB: the session after the one tested on is for validation, instead of a random
    fifth of the rest, so that no speaker of the training split is validated on.
    """
    notes.classes += sorted(set(_CLASSES.values()))
    for session in [name for name in files.folders() if re.fullmatch(r"Session\d", name)]:
        folder = f"{session}/dialog/EmoEvaluation"
        for name in files.names(folder):
            if name.endswith(".txt") and name.startswith("Ses"):
                for turn, emotion in _turns(files, f"{folder}/{name}"):
                    row = _row(session, turn, emotion, options["utterances"], notes)
                    if row:
                        yield row


def _turns(files: DatasetFiles, path: str) -> Iterator[tuple[str, str]]:
    for line in files.lines(path):
        if not line.startswith("["):
            continue
        found = _LINE.match(line)
        if found:
            yield found[3], found[4]
        elif not line.startswith("[START_TIME"):
            raise ValueError(
                f"{files.root / path} has the line {line!r}; wanted '[start - end] turn emotion'"
            )


def _row(session: str, turn: str, emotion: str, kind: str, notes: BuildNotes) -> Row | None:
    dialog, _, tail = turn.rpartition("_")
    style = "improvised" if "impro" in dialog else "scripted"
    if emotion not in _CLASSES:
        known = emotion if emotion in _OTHERS else f"{emotion} (unknown)"
        notes.left_out[f"labelled {known}"] += 1
        return None
    if kind not in ("all", style):
        notes.left_out[style] += 1
        return None
    return Row(
        path=f"{session}/sentences/wav/{dialog}/{turn}.wav",
        labels=(_CLASSES[emotion],),
        split=session.removeprefix("Session"),
        # The letter in the dialog's name says who wore the motion capture, that in the tail who
        # speaks.
        extra=(turn[:5] + tail[:1], emotion, style),
    )


TASKS = (
    DataTask(
        name="iemocap",
        title="IEMOCAP",
        page="iemocap",
        homepage="https://sail.usc.edu/iemocap/iemocap_release.htm",
        licence="on request, no redistribution",
        markers=(("Session1/dialog/EmoEvaluation", "Session1/sentences/wav"),),
        layout="Session1 to Session5, each with sentences/wav and dialog/EmoEvaluation",
        build=build,
        folds=True,
        columns=("speaker", "emotion", "style"),
        options={
            "utterances": Option(
                default="all",
                allowed=("all", "improvised", "scripted"),
                help="which turns",
            )
        },
        disjoint_by="speaker",
        request="IEMOCAP is given on request: fill in the form",
    ),
)
