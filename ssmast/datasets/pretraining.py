"""The set that SS-MAST was pretrained on: 10 % of AudioSet and FSD50K."""

from collections.abc import Iterator, Mapping

from ssmast.datasets import audioset
from ssmast.datasets.fsd50k import TRUTH
from ssmast.datasets.task import DataTask, Ledger, Option, Row
from ssmast.datasets.tree import Tree, YouTubeClips, keyed_order


def build(tree: Tree, options: Mapping[str, str], ledger: Ledger) -> Iterator[Row]:
    """A share of the AudioSet training lists, drawn by a hash of the video ids, and FSD50K.

    The draw is made among all listed clips, so it does not depend on which of them one has.

    Source: the SS-MAST poster (Ghosh et al. 2022). Which tenth it took is not published.
    """
    share = _number(options["share"], "share")
    names = {name.lower(): name for name in tree.folders()}
    for wanted in ("audioset", "fsd50k"):
        if wanted not in names:
            raise FileNotFoundError(f"{tree.root} must hold the folders audioset and fsd50k")
    one = Tree(tree.root / names["audioset"])
    listed = {
        segment.video: (table, segment)
        for table in (audioset.UNBALANCED, audioset.BALANCED)
        for segment in audioset.segments(one, table)
    }
    clips = YouTubeClips(one)
    drawn = keyed_order(listed, seed=int(_number(options["seed"], "seed")))
    for video in sorted(drawn[: round(share * len(drawn))]):
        table, segment = listed[video]
        path = audioset.clip_path(clips, segment, table)
        yield Row(path=f"{names['audioset']}/{path}", labels=(), part="train", extra=("audioset",))
    two = Tree(tree.root / names["fsd50k"])
    for kind in ("dev", "eval") if options["fsd50k"] == "all" else ("dev",):
        for record in two.records(f"{TRUTH}/{kind}.csv", ("fname",)):
            path = f"{names['fsd50k']}/FSD50K.{kind}_audio/{record['fname']}.wav"
            yield Row(path=path, labels=(), part="train", extra=("fsd50k",))


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value < 0 or (what == "share" and value > 1):
        raise ValueError(f"option {what} must be a number, 0 to 1 for share, got {text!r}")
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
            "share": Option(default="0.1", help="of the AudioSet training lists"),
            "seed": Option(default="0", help="another one draws another tenth"),
            "fsd50k": Option(
                default="dev",
                allowed=("dev", "all"),
                help="its development part, or the evaluation part too",
            ),
        },
        labelled=False,
        metric="",
        request="get AudioSet and FSD50K by their own tasks into audioset/ and fsd50k/",
    ),
)
