"""FSD50K: 200 classes of sound events, several a clip."""

from collections.abc import Iterator, Mapping

from ssmast.datasets.dataset_files import DatasetFiles
from ssmast.datasets.download import Remote
from ssmast.datasets.task import BuildNotes, DataTask, Row

TRUTH = "FSD50K.ground_truth"
_SPLITS = {"train": "train", "val": "valid"}


def build(files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes) -> Iterator[Row]:
    """The official train, validation and evaluation splits with all labels up to the root.

    Labels are looked up by their ids in vocabulary.csv, not split at the commas of their names.

    Source: Fonseca et al. 2022; the labels in dev.csv and eval.csv are propagated upwards already.
    """
    names = vocabulary(files)
    notes.classes += names.values()
    for kind, columns in (("dev", ("fname", "mids", "split")), ("eval", ("fname", "mids"))):
        table = f"{TRUTH}/{kind}.csv"
        for record in files.records(table, columns):
            split = record["split"] if kind == "dev" else "test"
            if kind == "dev" and split not in _SPLITS:
                raise ValueError(
                    f"{files.root / table} must have train or val as split, got {split!r}"
                )
            mids = [mid.strip() for mid in record["mids"].split(",") if mid.strip()]
            unknown = [mid for mid in mids if mid not in names]
            if unknown:
                raise ValueError(
                    f"{files.root / table}: clip {record['fname']} has the label {unknown[0]}, "
                    "which vocabulary.csv lacks"
                )
            yield Row(
                path=f"FSD50K.{kind}_audio/{record['fname']}.wav",
                labels=tuple(names[mid] for mid in mids),
                split=_SPLITS.get(split, split),
            )


def vocabulary(files: DatasetFiles) -> dict[str, str]:
    """Class name of each id, in the official order."""
    names = {}
    for row in files.fields(f"{TRUTH}/vocabulary.csv"):
        if len(row) != 3:
            raise ValueError(f"vocabulary.csv must have rows of index,label,mid, got {row}")
        names[row[2].strip()] = row[1].strip()
    return names


def _remote(name: str, md5: str, unpack: str = "") -> Remote:
    return Remote(
        url=f"https://zenodo.org/records/4060432/files/FSD50K.{name}?download=1",
        checksum=f"md5:{md5}",
        unpack=unpack,
    )


def _joined(kind: str) -> str:
    """Several files make one archive, which must be joined before it can be unpacked."""
    whole = f"{{root}}/{kind}-joined.zip"
    return f"zip -s 0 {{file}} --out {whole} && unzip -q {whole} -d {{root}}"


TASKS = (
    DataTask(
        name="fsd50k",
        title="FSD50K",
        page="fsd50k",
        homepage="https://zenodo.org/records/4060432",
        licence="CC BY 4.0; each clip has its own (CC0, CC BY, CC BY-NC, CC Sampling+)",
        markers=((f"{TRUTH}/dev.csv", f"{TRUTH}/eval.csv", f"{TRUTH}/vocabulary.csv"),),
        layout="FSD50K.dev_audio, FSD50K.eval_audio and FSD50K.ground_truth",
        build=build,
        metric="map",
        multi_label=True,
        downloads=(
            _remote("ground_truth.zip", "ca27382c195e37d2269c4c866dd73485",
                    "unzip -q {file} -d {root}"),
            _remote("dev_audio.z01", "faa7cf4cc076fc34a44a479a5ed862a3"),
            _remote("dev_audio.z02", "8f9b66153e68571164fb1315d00bc7bc"),
            _remote("dev_audio.z03", "1196ef47d267a993d30fa98af54b7159"),
            _remote("dev_audio.z04", "d088ac4e11ba53daf9f7574c11cccac9"),
            _remote("dev_audio.z05", "81356521aa159accd3c35de22da28c7f"),
            _remote("dev_audio.zip", "c480d119b8f7a7e32fdb58f3ea4d6c5a", _joined("dev")),
            _remote("eval_audio.z01", "3090670eaeecc013ca1ff84fe4442aeb"),
            _remote("eval_audio.zip", "6fa47636c3a3ad5c7dfeba99f2637982", _joined("eval")),
        ),
    ),
)  # fmt: skip
