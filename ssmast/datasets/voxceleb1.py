"""VoxCeleb1: who of 1,251 celebrities speaks."""

from collections.abc import Iterator, Mapping

from ssmast.datasets.dataset_files import DatasetFiles
from ssmast.datasets.download import Remote
from ssmast.datasets.task import BuildNotes, DataTask, Row

_SPLITS = {"1": "train", "2": "valid", "3": "test"}
_FOLDERS = ("wav", "dev/wav", "test/wav", "vox1_dev_wav/wav", "vox1_test_wav/wav", "")


def build(files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes) -> Iterator[Row]:
    """The identification split; dev and test archives may be merged into wav/ or lie apart.

    Source: iden_split.txt of Nagrani et al. 2017, lines of `<1, 2 or 3> <speaker>/<video>/<clip>`.
    """
    folders = [place for place in _FOLDERS if not place or files.folders(place)]
    for number, line in enumerate(files.lines("iden_split.txt"), start=1):
        split, _, path = line.partition(" ")
        words = path.strip().split("/")
        if split not in _SPLITS or len(words) != 3:
            raise ValueError(
                f"{files.root / 'iden_split.txt'} must have lines such as "
                f"'3 id10003/na8-QEFmj44/00003.wav', got {line!r} in line {number}"
            )
        candidates = [f"{place}/{path.strip()}".lstrip("/") for place in folders]
        yield Row(
            path=files.first(*candidates),
            labels=(words[0],),
            split=_SPLITS[split],
            extra=("/".join(words[:2]),),
        )


TASKS = (
    DataTask(
        name="voxceleb1",
        title="VoxCeleb1",
        page="voxceleb1",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html",
        licence="CC BY 4.0 (metadata); the sound is from YouTube",
        markers=(("iden_split.txt",),),
        layout="iden_split.txt and wav/<speaker>/<video>/<clip>.wav of the dev and test archives",
        build=build,
        columns=("video",),
        disjoint_by="video",
        downloads=(
            Remote(url="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt"),
        ),
        request="the sound of VoxCeleb1 is given on request",
    ),
)
