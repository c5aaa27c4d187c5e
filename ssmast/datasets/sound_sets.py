"""Sounds of the surroundings and notes: UrbanSound8K, ESC-50, FSD50K and NSynth."""

import re
from collections.abc import Iterator
from typing import Any

from ssmast.datasets.task import Build, DatasetFiles, Row, named


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


BUILDERS = {
    "nsynth_family": build_family,
    "nsynth_pitch": build_pitch,
    "urbansound8k": build_urbansound8k,
    "esc50": build_esc50,
    "fsd50k": build_fsd50k,
}
