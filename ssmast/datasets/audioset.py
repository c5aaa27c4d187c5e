"""AudioSet: 527 classes of sounds, several a clip of 10 s."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ssmast.datasets.dataset_files import DatasetFiles, YouTubeClips
from ssmast.datasets.download import Remote
from ssmast.datasets.task import Builder, BuildNotes, DataTask, Row

BALANCED, UNBALANCED, EVAL = (
    f"{name}_segments.csv" for name in ("balanced_train", "unbalanced_train", "eval")
)
_CLASSES = "class_labels_indices.csv"
_PLACES = ("", "csv/", "metadata/")


@dataclass(frozen=True)
class Segment:
    """One line of a segment list."""

    video: str
    start: float
    stop: float
    mids: tuple[str, ...]


def segments(files: DatasetFiles, table: str) -> Iterator[Segment]:
    """The lines of a segment list: `YTID, start, end, "mid,mid"` below `#` comments.

    Args:
        files: of the root.
        table: name of the list, which may lie in csv/ or metadata/.

    Raises:
        FileNotFoundError, ValueError: if it is not there or has other lines.
    """
    path = files.first(*(place + table for place in _PLACES))
    for row in files.fields(path, comment="#"):
        try:
            video, start, stop, mids = (value.strip() for value in row)
            yield Segment(video, float(start), float(stop), tuple(mids.split(",")))
        except ValueError as error:
            raise ValueError(
                f'{files.root / path} must have lines of YTID, start, end, "mid,mid", got {row}'
            ) from error


def class_names(files: DatasetFiles) -> dict[str, str]:
    """Display name of each class id, in the order of the index."""
    path = files.first(*(place + _CLASSES for place in _PLACES))
    return {
        record["mid"]: record["display_name"]
        for record in files.records(path, ("index", "mid", "display_name"))
    }


def _builder(splits: Mapping[str, str]) -> Builder:
    def build(files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes) -> Iterator[Row]:
        names, clips = class_names(files), YouTubeClips(files)
        notes.classes += names.values()
        for table, split in splits.items():
            for segment in segments(files, table):
                unknown = [mid for mid in segment.mids if mid not in names]
                if unknown:
                    raise ValueError(
                        f"{table}: {segment.video} has the label {unknown[0]}, which {_CLASSES} "
                        "lacks"
                    )
                yield Row(
                    path=clip_path(clips, segment, table),
                    labels=tuple(names[mid] for mid in segment.mids),
                    split=split,
                    extra=(segment.video,),
                )

    return build


def clip_path(clips: YouTubeClips, segment: Segment, table: str) -> str:
    """Path of the clip; where it is missing, the name it would have."""
    found = clips.path(segment.video, segment.start, segment.stop)
    return found or f"{table.removesuffix('.csv')}/{segment.video}.wav"


_HOST = "https://storage.googleapis.com/us_audioset/youtube_corpus"
_URLS = {
    BALANCED: f"{_HOST}/v1/csv/{BALANCED}",
    UNBALANCED: f"{_HOST}/v1/csv/{UNBALANCED}",
    EVAL: f"{_HOST}/v1/csv/{EVAL}",
    _CLASSES: f"{_HOST}/v1/csv/{_CLASSES}",
}
HOMEPAGE = "https://research.google.com/audioset/download.html"
REQUEST = "the sound of AudioSet has to be gathered from YouTube or from who has done so"


def markers(*tables: str) -> tuple[tuple[str, ...], ...]:
    """Where the lists of a task may lie."""
    return tuple(tuple(place + name for name in (*tables, _CLASSES)) for place in _PLACES)


def remotes(*tables: str) -> tuple[Remote, ...]:
    """The lists, which are openly there."""
    return tuple(Remote(url=_URLS[name]) for name in (*tables, _CLASSES))


def _task(name: str, splits: Mapping[str, str]) -> DataTask:
    return DataTask(
        name=name,
        title="AudioSet",
        page="audioset",
        homepage=HOMEPAGE,
        licence="CC BY 4.0 (labels), CC BY-SA 4.0 (ontology); the sound is from YouTube",
        markers=markers(*splits),
        layout=f"{', '.join(splits)}, {_CLASSES} and the clips, each named by its video",
        build=_builder(splits),
        columns=("video",),
        disjoint_by="video",
        metric="map",
        multi_label=True,
        downloads=remotes(*splits),
        request=REQUEST,
    )


TASKS = (
    _task("audioset_full", {UNBALANCED: "train", BALANCED: "train", EVAL: "test"}),
    _task("audioset_balanced", {BALANCED: "train", EVAL: "test"}),
    _task("audioset_eval", {EVAL: "test"}),
)
