"""The sound of videos: AudioSet, VGGSound, Kinetics-Sounds, EPIC-KITCHENS-100.

Also what SS-MAST was pretrained on: 10 % of AudioSet and FSD50K.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ssmast.audio.read import excerpt_name
from ssmast.datasets.sound_sets import TRUTH
from ssmast.datasets.task import Build, Builder, DatasetFiles, Row, YouTubeClips, keyed_order, named

# -- AudioSet --------------------------------------------------------------------------------------

_BALANCED, _UNBALANCED, _EVAL = (
    f"{name}_segments.csv" for name in ("balanced_train", "unbalanced_train", "eval")
)
_CLASSES = "class_labels_indices.csv"
_AUDIOSET_PLACES = ("", "csv/", "metadata/")


@dataclass(frozen=True)
class _Segment:
    """One line of a segment list."""

    video: str
    start: float
    stop: float
    mids: tuple[str, ...]

    def path(self, clips: YouTubeClips, table: str) -> str:
        """Path of the clip; where it is missing, the name it would have."""
        found = clips.path(self.video, self.start, self.stop)
        return found or f"{table.removesuffix('.csv')}/{self.video}.wav"


def _segments(files: DatasetFiles, table: str) -> Iterator[_Segment]:
    """The lines of a segment list: `YTID, start, end, "mid,mid"` below `#` comments."""
    path = files.first(table, places=_AUDIOSET_PLACES)
    for row in files.fields(path, comment="#"):
        try:
            video, start, stop, mids = (value.strip() for value in row)
            yield _Segment(video, float(start), float(stop), tuple(mids.split(",")))
        except ValueError as error:
            raise ValueError(
                f'{files.root / path} must have lines of YTID, start, end, "mid,mid", got {row}'
            ) from error


def _audioset_builder(splits: Mapping[str, str]) -> Builder:
    def rows(build: Build) -> Iterator[Row]:
        index = build.files.first(_CLASSES, places=_AUDIOSET_PLACES)
        columns = ("index", "mid", "display_name")
        names = {row["mid"]: row["display_name"] for row in build.files.records(index, columns)}
        build.classes += names.values()
        clips = YouTubeClips(build.files)
        for table, split in splits.items():
            for segment in _segments(build.files, table):
                labels = named(segment.mids, names, f"{table}: {segment.video}", _CLASSES)
                yield Row(segment.path(clips, table), labels, split, (segment.video,))

    return rows


# -- 10 % of AudioSet and FSD50K -------------------------------------------------------------------


def build_pretraining(build: Build) -> Iterator[Row]:
    """A fraction of the AudioSet training lists, drawn by a hash of the video ids, and FSD50K.

    The draw is made among all listed clips, so it does not depend on which of them were found.

    Source: the SS-MAST poster (Ghosh et al. 2022). Which tenth it took is not published.
    """
    fraction = _number(build.options["fraction"], "fraction")
    names = {name.lower(): name for name in build.files.folders()}
    for wanted in ("audioset", "fsd50k"):
        if wanted not in names:
            raise FileNotFoundError(f"{build.files.root} must hold the folders audioset and fsd50k")
    one, two = (DatasetFiles(build.files.root / names[name]) for name in ("audioset", "fsd50k"))
    listed = {
        segment.video: (table, segment)
        for table in (_UNBALANCED, _BALANCED)
        for segment in _segments(one, table)
    }
    clips = YouTubeClips(one)
    drawn = keyed_order(listed, seed=int(_number(build.options["seed"], "seed")))
    for video in sorted(drawn[: round(fraction * len(drawn))]):
        table, segment = listed[video]
        yield Row(f"{names['audioset']}/{segment.path(clips, table)}", (), "train", ("audioset",))
    for kind in ("dev", "eval") if build.options["fsd50k"] == "all" else ("dev",):
        for record in two.records(f"{TRUTH}/{kind}.csv", ("fname",)):
            path = f"{names['fsd50k']}/FSD50K.{kind}_audio/{record['fname']}.wav"
            yield Row(path, (), "train", ("fsd50k",))


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value < 0 or (what == "fraction" and value > 1):
        raise ValueError(f"option {what} must be a number, 0 to 1 for fraction, got {text!r}")
    return value


# -- VGGSound and Kinetics-Sounds ------------------------------------------------------------------

# The 31 of AdaMML; with strumming guitar the 32 of CrissCross; with typing and patting the 34 of
# Arandjelovic and Zisserman, seven of which Kinetics-400 as published calls otherwise or lacks.
CLASSES_31 = (
    "blowing nose", "blowing out candles", "bowling", "chopping wood", "dribbling basketball",
    "laughing", "mowing lawn", "playing accordion", "playing bagpipes", "playing bass guitar",
    "playing clarinet", "playing drums", "playing guitar", "playing harmonica",
    "playing keyboard", "playing organ", "playing piano", "playing saxophone",
    "playing trombone", "playing trumpet", "playing violin", "playing xylophone",
    "ripping paper", "shoveling snow", "shuffling cards", "singing", "stomping grapes",
    "tap dancing", "tapping guitar", "tapping pen", "tickling",
)  # fmt: skip
CLASSES_32 = tuple(sorted((*CLASSES_31, "strumming guitar")))
CLASSES_34 = tuple(sorted((*CLASSES_32, "patting", "typing")))
RENAMED = {
    "blowing out": "blowing out candles",
    "dribbling ball": "dribbling basketball",
    "fingerpicking": "strumming guitar",
    "mowing the lawn by pushing lawnmower": "mowing lawn",
    "stomping": "stomping grapes",
}
"""Names in the paper of 2017 and those of the same classes in Kinetics-400 as published."""

_KINETICS = {"train": ("train.csv",), "test": ("val.csv", "validate.csv", "validation.csv")}
_KINETICS_PLACES = ("", "annotations/", "kinetics400/")


def build_vggsound(build: Build) -> Iterator[Row]:
    """Clips of 10 s in the official split.

    Source: vggsound.csv of Chen et al. 2020: `video,start,label,split`, no header, labels with
    commas in quotes.
    """
    clips = YouTubeClips(build.files)
    for row in build.files.fields("vggsound.csv"):
        if len(row) != 4 or row[3] not in ("train", "test") or not row[1].isdecimal():
            raise ValueError(
                f"{build.files.root / 'vggsound.csv'} must have rows of video,start,label,split "
                f"with train or test, got {row}"
            )
        video, start, label, split = row
        path = clips.path(video, int(start), int(start) + 10)
        yield Row(path or f"audio/{video}_{int(start):06d}.wav", (label,), split, (video,))


def _kinetics_builder(classes: tuple[str, ...]) -> Builder:
    def rows(build: Build) -> Iterator[Row]:
        build.classes += classes
        clips = YouTubeClips(build.files)
        for split, names in _KINETICS.items():
            table = build.files.first(*names, places=_KINETICS_PLACES)
            for record in build.files.records(
                table, ("label", "youtube_id", "time_start", "time_end")
            ):
                label = record["label"].replace("_", " ")
                label = RENAMED.get(label, label)
                if label not in classes:
                    continue
                video = record["youtube_id"]
                start, stop = int(float(record["time_start"])), int(float(record["time_end"]))
                name = f"{split}/{video}_{start:06d}_{stop:06d}.wav"
                yield Row(clips.path(video, start, stop) or name, (label,), split, (video,))

    return rows


# -- EPIC-KITCHENS-100 -----------------------------------------------------------------------------

_EPIC_TABLES = {"train": "EPIC_100_train.csv", "test": "EPIC_100_validation.csv"}
_EPIC_CLASSES = ("EPIC_100_verb_classes.csv", "EPIC_100_noun_classes.csv")
_EPIC_PLACES = ("", "annotations/", "epic-kitchens-100-annotations/")
_TIME = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


def seconds(timestamp: str) -> float:
    """Seconds of `HH:MM:SS.ff`; the fraction has as many digits as it has.

    >>> seconds("00:01:02.5"), seconds("01:00:00.05")
    (62.5, 3600.05)
    """
    found = _TIME.fullmatch(timestamp.strip())
    if not found:
        raise ValueError(f"a timestamp must be HH:MM:SS.ff, got {timestamp!r}")
    return 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])


def _epic_builder(kind: str) -> Builder:
    """Rows labelled by "verb" or "noun"; both classes are columns as well.

    Source: Damen et al. 2022; the validation split is what papers report on, since the labels of
    the test split are not published.
    """

    def rows(build: Build) -> Iterator[Row]:
        place = build.files.first(_EPIC_TABLES["train"], places=_EPIC_PLACES)
        place = place.removesuffix(_EPIC_TABLES["train"])
        verbs, nouns = (
            {row["id"]: row["key"] for row in build.files.records(place + table, ("id", "key"))}
            for table in _EPIC_CLASSES
        )
        build.classes += (verbs if kind == "verb" else nouns).values()
        columns = ("narration_id", "participant_id", "video_id", "start_timestamp",
                   "stop_timestamp", "verb_class", "noun_class")  # fmt: skip
        for split, table in _EPIC_TABLES.items():
            for record in build.files.records(place + table, columns):
                start = seconds(record["start_timestamp"])
                stop = seconds(record["stop_timestamp"])
                if stop <= start:
                    build.left_out["of no length"] += 1
                    continue
                video, participant = record["video_id"], record["participant_id"]
                file = build.files.with_stem(video) or f"{participant}/{video}.wav"
                path = excerpt_name(file, start, stop, clip=record["narration_id"])
                verb, noun = verbs[record["verb_class"]], nouns[record["noun_class"]]
                label = verb if kind == "verb" else noun
                yield Row(path, (label,), split, (video, participant, verb, noun))

    return rows


BUILDERS = {
    "audioset_full": _audioset_builder({_UNBALANCED: "train", _BALANCED: "train", _EVAL: "test"}),
    "audioset_balanced": _audioset_builder({_BALANCED: "train", _EVAL: "test"}),
    "audioset_eval": _audioset_builder({_EVAL: "test"}),
    "vggsound": build_vggsound,
    "kinetics_sounds_31": _kinetics_builder(CLASSES_31),
    "kinetics_sounds_32": _kinetics_builder(CLASSES_32),
    "kinetics_sounds_34": _kinetics_builder(CLASSES_34),
    "epic_kitchens_verb": _epic_builder("verb"),
    "epic_kitchens_noun": _epic_builder("noun"),
    "audioset10_fsd50k": build_pretraining,
}
