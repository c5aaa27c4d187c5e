"""The set that SS-MAST was pretrained on: 10 % of AudioSet and FSD50K."""

from collections.abc import Iterator, Mapping

from ssmast.datasets import audioset
from ssmast.datasets.dataset_files import DatasetFiles, YouTubeClips, keyed_order
from ssmast.datasets.fsd50k import TRUTH
from ssmast.datasets.task import BuildNotes, DataTask, Option, Row


def build(files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes) -> Iterator[Row]:
    """A fraction of the AudioSet training lists, drawn by a hash of the video ids, and FSD50K.

    The draw is made among all listed clips, so it does not depend on which of them were found.

    Source: the SS-MAST poster (Ghosh et al. 2022). Which tenth it took is not published.
    """
    fraction = _number(options["fraction"], "fraction")
    names = {name.lower(): name for name in files.folders()}
    for wanted in ("audioset", "fsd50k"):
        if wanted not in names:
            raise FileNotFoundError(f"{files.root} must hold the folders audioset and fsd50k")
    one = DatasetFiles(files.root / names["audioset"])
    listed = {
        segment.video: (table, segment)
        for table in (audioset.UNBALANCED, audioset.BALANCED)
        for segment in audioset.segments(one, table)
    }
    clips = YouTubeClips(one)
    drawn = keyed_order(listed, seed=int(_number(options["seed"], "seed")))
    for video in sorted(drawn[: round(fraction * len(drawn))]):
        table, segment = listed[video]
        path = audioset.clip_path(clips, segment, table)
        yield Row(path=f"{names['audioset']}/{path}", labels=(), split="train", extra=("audioset",))
    two = DatasetFiles(files.root / names["fsd50k"])
    for kind in ("dev", "eval") if options["fsd50k"] == "all" else ("dev",):
        for record in two.records(f"{TRUTH}/{kind}.csv", ("fname",)):
            path = f"{names['fsd50k']}/FSD50K.{kind}_audio/{record['fname']}.wav"
            yield Row(path=path, labels=(), split="train", extra=("fsd50k",))


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value < 0 or (what == "fraction" and value > 1):
        raise ValueError(f"option {what} must be a number, 0 to 1 for fraction, got {text!r}")
    return value


TASKS = (
    DataTask(
        name="audioset10_fsd50k",
        title="10 % of AudioSet + FSD50K",
        page="pretraining",
        homepage=audioset.HOMEPAGE,
        licence="as AudioSet and FSD50K",
        markers=tuple(
            (f"{one}/{place}{audioset.UNBALANCED}", f"{two}/{TRUTH}/dev.csv")
            for place in ("", "csv/", "metadata/")
            for one in ("audioset", "AudioSet")
            for two in ("fsd50k", "FSD50K")
        ),
        layout="audioset/ (lists and clips) and fsd50k/ (as FSD50K unpacks)",
        build=build,
        columns=("source",),
        options={
            "fraction": Option(default="0.1", help="of the AudioSet training lists"),
            "seed": Option(default="0", help="another one draws another tenth"),
            "fsd50k": Option(
                default="dev",
                allowed=("dev", "all"),
                help="its development split, or the evaluation split too",
            ),
        },
        labelled=False,
        metric="",
        request="get AudioSet and FSD50K by their own tasks into audioset/ and fsd50k/",
    ),
)
