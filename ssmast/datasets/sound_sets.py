"""Sounds of the surroundings and notes: UrbanSound8K, ESC-50, FSD50K and NSynth."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from ssmast.datasets.download import UNTAR, UNZIP, Remote
from ssmast.datasets.task import Build, DatasetFiles, DataTask, Option, Row, named


def build_urbansound8k(build: Build) -> Iterator[Row]:
    """Slices in the ten official folds, which keep the slices of a recording together.

    Source: Salamon et al. 2014. `start` and `end` of the official table are places in the original
    Freesound recording, not in the slice, and so are not taken over.
    """
    columns = ("slice_file_name", "fsID", "salience", "fold", "class")
    for record in build.files.records("metadata/UrbanSound8K.csv", columns):
        path = f"audio/fold{record['fold']}/{record['slice_file_name']}"
        yield Row(path, (record["class"],), record["fold"], (record["fsID"], record["salience"]))


def build_esc50(build: Build) -> Iterator[Row]:
    """Clips in the five official folds, which keep the clips of a recording together.

    Source: Piczak 2015.
    """
    columns = ("filename", "fold", "category", "esc10", "src_file")
    for record in build.files.records("meta/esc50.csv", columns):
        if build.options["subset"] == "esc10" and record["esc10"].lower() != "true":
            build.left_out["not in ESC-10"] += 1
            continue
        extra = (record["src_file"], record["esc10"])
        yield Row(f"audio/{record['filename']}", (record["category"],), record["fold"], extra)


TRUTH = "FSD50K.ground_truth"
_FSD50K_SPLITS = {"train": "train", "val": "valid"}


def build_fsd50k(build: Build) -> Iterator[Row]:
    """The official train, validation and evaluation splits with all labels up to the root.

    Labels are looked up by their ids in vocabulary.csv, not split at the commas of their names.

    Source: Fonseca et al. 2022; the labels in dev.csv and eval.csv are propagated upwards already.
    """
    names: dict[str, str] = {}
    for row in build.files.fields(f"{TRUTH}/vocabulary.csv"):
        if len(row) != 3:
            raise ValueError(f"vocabulary.csv must have rows of index,label,mid, got {row}")
        names[row[2].strip()] = row[1].strip()
    build.classes += names.values()
    for kind, columns in (("dev", ("fname", "mids", "split")), ("eval", ("fname", "mids"))):
        table = f"{TRUTH}/{kind}.csv"
        for record in build.files.records(table, columns):
            split = record["split"] if kind == "dev" else "test"
            if kind == "dev" and split not in _FSD50K_SPLITS:
                raise ValueError(
                    f"{build.files.root / table} must have train or val as split, got {split!r}"
                )
            mids = [mid.strip() for mid in record["mids"].split(",") if mid.strip()]
            what = f"{build.files.root / table}: clip {record['fname']}"
            labels = named(mids, names, what, "vocabulary.csv")
            path = f"FSD50K.{kind}_audio/{record['fname']}.wav"
            yield Row(path, labels, _FSD50K_SPLITS.get(split, split))


def _fsd50k_file(name: str, md5: str, unpack: str = "") -> Remote:
    url = f"https://zenodo.org/records/4060432/files/FSD50K.{name}?download=1"
    return Remote(url, f"md5:{md5}", unpack)


def _joined(kind: str) -> str:
    """Several files make one archive, which must be joined before it can be unpacked."""
    whole = f"{{root}}/{kind}-joined.zip"
    return f"zip -s 0 {{file}} --out {whole} && unzip -q {whole} -d {{root}}"


FAMILIES = (
    "bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string",
    "synth_lead", "vocal",
)  # fmt: skip
_NOTE_KEYS = ("instrument_str", "instrument_family_str", "pitch", "velocity")


def build_family(build: Build) -> Iterator[Row]:
    """Notes by instrument family, in the official split.

    Source: Engel et al. 2017; instruments of the training split are in no other split, and
    synth_lead is in the training split only.
    """
    build.classes += FAMILIES
    for split, name, note in _notes(build.files):
        yield _note_row(split, name, note, note["instrument_family_str"])


def build_pitch(build: Build) -> Iterator[Row]:
    """Notes by MIDI pitch, by default those of a piano as in HEAR.

    Source: Engel et al. 2017; the range 21 to 108 is HEAR's (Turian et al. 2022).
    """
    low, high = _range(build.options["pitches"])
    for split, name, note in _notes(build.files):
        if low <= int(note["pitch"]) <= high:
            yield _note_row(split, name, note, str(note["pitch"]))
        else:
            build.left_out[f"{split} notes outside the pitches {low} to {high}"] += 1


def _notes(files: DatasetFiles) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for split in ("train", "valid", "test"):
        path = f"nsynth-{split}/examples.json"
        for name, note in sorted(files.json(path).items()):
            lacking = [key for key in _NOTE_KEYS if key not in note]
            if lacking:
                raise ValueError(f"{files.root}/{path}: {name} lacks {', '.join(lacking)}")
            yield split, name, note


def _note_row(split: str, name: str, note: dict[str, Any], label: str) -> Row:
    extra = tuple(str(note[key]) for key in _NOTE_KEYS)
    return Row(f"nsynth-{split}/audio/{name}.wav", (label,), split, extra)


def _range(text: str) -> tuple[int, int]:
    if text == "all":
        return 0, 127
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(f"option pitches must be all or LOW-HIGH in MIDI numbers, got {text!r}")
    return int(found[1]), int(found[2])


def _nsynth_file(split: str, md5: str) -> Remote:
    host = "https://storage.googleapis.com/magentadata/datasets/nsynth"
    return Remote(f"{host}/nsynth-{split}.jsonwav.tar.gz", f"md5:{md5}", UNTAR)


_NSYNTH = DataTask(
    name="nsynth_family",
    title="NSynth",
    page="nsynth",
    homepage="https://magenta.tensorflow.org/datasets/nsynth",
    licence="CC BY 4.0",
    markers=(("nsynth-train", "nsynth-valid", "nsynth-test"),),
    layout="nsynth-train, nsynth-valid and nsynth-test, each with audio/ and examples.json",
    build=build_family,
    columns=("instrument", "family", "pitch", "velocity"),
    disjoint_by="instrument",
    downloads=(
        _nsynth_file("train", "fde6665a93865503ba598b9fac388660"),
        _nsynth_file("valid", "87e94a00a19b6dbc99cf6d4c0c0cae87"),
        _nsynth_file("test", "5e6f8719bf7e16ad0a00d518b78af77d"),
    ),
)


TASKS = (
    _NSYNTH,
    dataclasses.replace(
        _NSYNTH,
        name="nsynth_pitch",
        build=build_pitch,
        options={"pitches": Option("21-108", "MIDI pitches kept: LOW-HIGH or all")},
    ),
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
                "https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz?download=1",
                "md5:9aa69802bbf37fb986f71ec1483a196e",
                UNTAR,
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
        options={"subset": Option("all", "50 classes, or the 10 of ESC-10", ("all", "esc10"))},
        disjoint_by="src_file",
        downloads=(
            Remote(
                "https://github.com/karoldvl/ESC-50/archive/master.zip",
                "md5:7771e4b9d86d0945acce719c7a59305a",
                UNZIP,
                name="ESC-50-master.zip",
            ),
        ),
    ),
    DataTask(
        name="fsd50k",
        title="FSD50K",
        page="fsd50k",
        homepage="https://zenodo.org/records/4060432",
        licence="CC BY 4.0; each clip has its own (CC0, CC BY, CC BY-NC, CC Sampling+)",
        markers=((f"{TRUTH}/dev.csv", f"{TRUTH}/eval.csv", f"{TRUTH}/vocabulary.csv"),),
        layout="FSD50K.dev_audio, FSD50K.eval_audio and FSD50K.ground_truth",
        build=build_fsd50k,
        metric="map",
        multi_label=True,
        downloads=(
            _fsd50k_file("ground_truth.zip", "ca27382c195e37d2269c4c866dd73485", UNZIP),
            _fsd50k_file("dev_audio.z01", "faa7cf4cc076fc34a44a479a5ed862a3"),
            _fsd50k_file("dev_audio.z02", "8f9b66153e68571164fb1315d00bc7bc"),
            _fsd50k_file("dev_audio.z03", "1196ef47d267a993d30fa98af54b7159"),
            _fsd50k_file("dev_audio.z04", "d088ac4e11ba53daf9f7574c11cccac9"),
            _fsd50k_file("dev_audio.z05", "81356521aa159accd3c35de22da28c7f"),
            _fsd50k_file("dev_audio.zip", "c480d119b8f7a7e32fdb58f3ea4d6c5a", _joined("dev")),
            _fsd50k_file("eval_audio.z01", "3090670eaeecc013ca1ff84fe4442aeb"),
            _fsd50k_file("eval_audio.zip", "6fa47636c3a3ad5c7dfeba99f2637982", _joined("eval")),
        ),
    ),
)
