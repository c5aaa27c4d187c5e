"""Sounds of the surroundings in official folds: UrbanSound8K and ESC-50."""

from collections.abc import Iterator, Mapping

from ssmast.datasets.dataset_files import DatasetFiles
from ssmast.datasets.download import Remote
from ssmast.datasets.task import BuildNotes, DataTask, Option, Row


def build_urbansound8k(
    files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes
) -> Iterator[Row]:
    """Slices in the ten official folds, which keep the slices of a recording together.

    Source: Salamon et al. 2014. `start` and `end` of the official table are places in the original
    Freesound recording, not in the slice, and so are not taken over.
    """
    columns = ("slice_file_name", "fsID", "salience", "fold", "class")
    for record in files.records("metadata/UrbanSound8K.csv", columns):
        fold = record["fold"]
        yield Row(
            path=f"audio/fold{fold}/{record['slice_file_name']}",
            labels=(record["class"],),
            split=fold,
            extra=(record["fsID"], record["salience"]),
        )


def build_esc50(
    files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes
) -> Iterator[Row]:
    """Clips in the five official folds, which keep the clips of a recording together.

    Source: Piczak 2015.
    """
    columns = ("filename", "fold", "category", "esc10", "src_file")
    for record in files.records("meta/esc50.csv", columns):
        if options["subset"] == "esc10" and record["esc10"].lower() != "true":
            notes.left_out["not in ESC-10"] += 1
            continue
        yield Row(
            path=f"audio/{record['filename']}",
            labels=(record["category"],),
            split=record["fold"],
            extra=(record["src_file"], record["esc10"]),
        )


TASKS = (
    DataTask(
        name="urbansound8k",
        title="UrbanSound8K",
        page="urbansound8k",
        homepage="https://urbansounddataset.weebly.com/urbansound8k.html",
        licence="CC BY-NC 3.0",
        markers=(("metadata/UrbanSound8K.csv",),),
        layout="audio/fold1 to audio/fold10 and metadata/UrbanSound8K.csv",
        build=build_urbansound8k,
        folds=True,
        columns=("fsID", "salience"),
        disjoint_by="fsID",
        downloads=(
            Remote(
                url="https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz?download=1",
                checksum="md5:9aa69802bbf37fb986f71ec1483a196e",
                unpack="tar -xzf {file} -C {root}",
            ),
        ),
    ),
    DataTask(
        name="esc50",
        title="ESC-50",
        page="esc50",
        homepage="https://github.com/karolpiczak/ESC-50",
        licence="CC BY-NC 3.0",
        markers=(("meta/esc50.csv",),),
        layout="audio/ and meta/esc50.csv",
        build=build_esc50,
        folds=True,
        columns=("src_file", "esc10"),
        options={
            "subset": Option(
                default="all", allowed=("all", "esc10"), help="50 classes, or the 10 of ESC-10"
            )
        },
        disjoint_by="src_file",
        downloads=(
            Remote(
                url="https://github.com/karoldvl/ESC-50/archive/master.zip",
                checksum="md5:7771e4b9d86d0945acce719c7a59305a",
                unpack="unzip -q {file} -d {root}",
                name="ESC-50-master.zip",
            ),
        ),
    ),
)
