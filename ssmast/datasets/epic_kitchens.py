"""EPIC-KITCHENS-100: the verb, or the noun, of an action in a long recording."""

import re
from collections.abc import Iterator, Mapping

from ssmast.audio.read import excerpt_name
from ssmast.datasets.dataset_files import DatasetFiles
from ssmast.datasets.download import Remote
from ssmast.datasets.task import Builder, BuildNotes, DataTask, Row

_TABLES = {"train": "EPIC_100_train.csv", "test": "EPIC_100_validation.csv"}
_PLACES = ("", "annotations/", "epic-kitchens-100-annotations/")
_TIME = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


def seconds(timestamp: str) -> float:
    """Seconds of `HH:MM:SS.ff`; the fraction has as many digits as it has.

    Raises:
        ValueError: if it is no such time.

    >>> seconds("00:01:02.5"), seconds("01:00:00.05")
    (62.5, 3600.05)
    """
    found = _TIME.fullmatch(timestamp.strip())
    if not found:
        raise ValueError(f"a timestamp must be HH:MM:SS.ff, got {timestamp!r}")
    return 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])


def _builder(kind: str) -> Builder:
    """Rows labelled by "verb" or "noun"; both classes are columns as well.

    Source: Damen et al. 2022; the validation split is what papers report on, since the labels of
    the test split are not published.
    """

    def build(files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes) -> Iterator[Row]:
        place = files.first(*(place + _TABLES["train"] for place in _PLACES))
        place = place.removesuffix(_TABLES["train"])
        names = {
            what: {
                record["id"]: record["key"]
                for record in files.records(f"{place}EPIC_100_{what}_classes.csv", ("id", "key"))
            }
            for what in ("verb", "noun")
        }
        notes.classes += names[kind].values()
        columns = ("narration_id", "participant_id", "video_id", "start_timestamp",
                   "stop_timestamp", "verb_class", "noun_class")  # fmt: skip
        for split, table in _TABLES.items():
            for record in files.records(place + table, columns):
                start = seconds(record["start_timestamp"])
                stop = seconds(record["stop_timestamp"])
                if stop <= start:
                    notes.left_out["of no length"] += 1
                    continue
                video, clip = record["video_id"], record["narration_id"]
                file = files.with_stem(video) or f"{record['participant_id']}/{video}.wav"
                verb = names["verb"][record["verb_class"]]
                noun = names["noun"][record["noun_class"]]
                yield Row(
                    path=excerpt_name(file, start, stop, clip=clip),
                    labels=(verb if kind == "verb" else noun,),
                    split=split,
                    extra=(video, record["participant_id"], verb, noun),
                )

    return build


_HOST = "https://raw.githubusercontent.com/epic-kitchens/epic-kitchens-100-annotations/master"
_CLASSES = ("EPIC_100_verb_classes.csv", "EPIC_100_noun_classes.csv")


def _task(kind: str) -> DataTask:
    return DataTask(
        name=f"epic_kitchens_{kind}",
        title="EPIC-KITCHENS-100",
        page="epic_kitchens",
        homepage="https://epic-kitchens.github.io/2024",
        licence="CC BY-NC 4.0",
        markers=tuple(
            tuple(place + name for name in (*_TABLES.values(), *_CLASSES)) for place in _PLACES
        ),
        layout="EPIC_100_train.csv, EPIC_100_validation.csv, EPIC_100_verb_classes.csv, "
        "EPIC_100_noun_classes.csv and the sound of each video as <video_id>.wav or .flac",
        build=_builder(kind),
        columns=("video", "participant", "verb", "noun"),
        group="video",
        disjoint_by="video",
        downloads=tuple(Remote(url=f"{_HOST}/{name}") for name in (*_TABLES.values(), *_CLASSES)),
        request="the videos come with the downloader of the project; take the sound out of them",
    )


TASKS = (_task("verb"), _task("noun"))
