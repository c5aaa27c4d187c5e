"""The sound of video sets with one label a clip: VGGSound and Kinetics-Sounds."""

from collections.abc import Iterator, Mapping

from ssmast.datasets.dataset_files import DatasetFiles, YouTubeClips
from ssmast.datasets.download import Remote
from ssmast.datasets.task import Builder, BuildNotes, DataTask, Row

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

_TABLES = {"train": ("train.csv",), "test": ("val.csv", "validate.csv", "validation.csv")}
_PLACES = ("", "annotations/", "kinetics400/")


def build_vggsound(
    files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes
) -> Iterator[Row]:
    """Clips of 10 s in the official split.

    Source: vggsound.csv of Chen et al. 2020: `video,start,label,split`, no header, labels with
    commas in quotes.
    """
    clips = YouTubeClips(files)
    for row in files.fields("vggsound.csv"):
        if len(row) != 4 or row[3] not in ("train", "test") or not row[1].isdecimal():
            raise ValueError(
                f"{files.root / 'vggsound.csv'} must have rows of video,start,label,split with "
                f"train or test, got {row}"
            )
        video, start, label, split = row
        name = f"{video}_{int(start):06d}"
        yield Row(
            path=clips.path(video, int(start), int(start) + 10) or f"audio/{name}.wav",
            labels=(label,),
            split=split,
            extra=(video,),
        )


def _kinetics(classes: tuple[str, ...]) -> Builder:
    def build(files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes) -> Iterator[Row]:
        notes.classes += classes
        clips = YouTubeClips(files)
        for split, names in _TABLES.items():
            table = files.first(*(place + name for place in _PLACES for name in names))
            for record in files.records(table, ("label", "youtube_id", "time_start", "time_end")):
                label = record["label"].replace("_", " ")
                label = RENAMED.get(label, label)
                if label not in classes:
                    continue
                video = record["youtube_id"]
                start, stop = int(float(record["time_start"])), int(float(record["time_end"]))
                name = f"{video}_{start:06d}_{stop:06d}"
                yield Row(
                    path=clips.path(video, start, stop) or f"{split}/{name}.wav",
                    labels=(label,),
                    split=split,
                    extra=(video,),
                )

    return build


def _kinetics_task(name: str, classes: tuple[str, ...]) -> DataTask:
    return DataTask(
        name=name,
        title="Kinetics-Sounds",
        page="kinetics_sounds",
        homepage="https://github.com/cvdfoundation/kinetics-dataset",
        licence="CC BY 4.0 (annotations); the sound is from YouTube",
        markers=tuple(
            (f"{place}train.csv", place + valid) for place in _PLACES for valid in _TABLES["test"]
        ),
        layout="train.csv and val.csv of Kinetics-400 and the sound of its clips, named as there",
        build=_kinetics(classes),
        columns=("video",),
        disjoint_by="video",
        request="annotations and clips of Kinetics-400 are at its page, the sound is inside the "
        "videos",
    )


TASKS = (
    DataTask(
        name="vggsound",
        title="VGGSound",
        page="vggsound",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/vggsound/",
        licence="CC BY 4.0 (labels); the sound is from YouTube",
        markers=(("vggsound.csv",),),
        layout="vggsound.csv and the clips, named <video>_<start, 6 digits>",
        build=build_vggsound,
        columns=("video",),
        disjoint_by="video",
        downloads=(Remote(url="https://www.robots.ox.ac.uk/~vgg/data/vggsound/vggsound.csv"),),
        request="the sound of VGGSound has to be gathered from YouTube or from who has done so",
    ),
    _kinetics_task("kinetics_sounds_31", CLASSES_31),
    _kinetics_task("kinetics_sounds_32", CLASSES_32),
    _kinetics_task("kinetics_sounds_34", CLASSES_34),
)
