"""NSynth: the instrument family, or the pitch, of a note."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ssmast.datasets.dataset_files import DatasetFiles
from ssmast.datasets.download import Remote
from ssmast.datasets.task import BuildNotes, DataTask, Option, Row

FAMILIES = (
    "bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string",
    "synth_lead", "vocal",
)  # fmt: skip
_KEYS = ("instrument_str", "instrument_family_str", "pitch", "velocity")


def build_family(
    files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes
) -> Iterator[Row]:
    """Notes by instrument family, in the official split.

    Source: Engel et al. 2017; instruments of the training split are in no other split, and
    synth_lead is in the training split only.
    """
    notes.classes += FAMILIES
    for split, note in _notes(files):
        yield _row(split, note, note["instrument_family_str"])


def build_pitch(
    files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes
) -> Iterator[Row]:
    """Notes by MIDI pitch, by default those of a piano as in HEAR.

    Source: Engel et al. 2017; the range 21 to 108 is HEAR's (Turian et al. 2022).
    """
    low, high = _range(options["pitches"])
    for split, note in _notes(files):
        if low <= int(note["pitch"]) <= high:
            yield _row(split, note, str(note["pitch"]))
        else:
            notes.left_out[f"{split} notes outside the pitches {low} to {high}"] += 1


def _notes(files: DatasetFiles) -> Iterator[tuple[str, dict[str, Any]]]:
    for split in ("train", "valid", "test"):
        index = files.json(f"nsynth-{split}/examples.json")
        for name in sorted(index):
            note = index[name]
            lacking = [key for key in _KEYS if key not in note]
            if lacking:
                raise ValueError(
                    f"{files.root}/nsynth-{split}/examples.json: {name} lacks {', '.join(lacking)}"
                )
            yield split, {**note, "name": name}


def _row(split: str, note: dict[str, Any], label: str) -> Row:
    return Row(
        path=f"nsynth-{split}/audio/{note['name']}.wav",
        labels=(label,),
        split=split,
        extra=(
            note["instrument_str"],
            note["instrument_family_str"],
            str(note["pitch"]),
            str(note["velocity"]),
        ),
    )


def _range(text: str) -> tuple[int, int]:
    if text == "all":
        return 0, 127
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(f"option pitches must be all or LOW-HIGH in MIDI numbers, got {text!r}")
    return int(found[1]), int(found[2])


def _remote(split: str, md5: str) -> Remote:
    return Remote(
        url="https://storage.googleapis.com/magentadata/datasets/nsynth/"
        f"nsynth-{split}.jsonwav.tar.gz",
        checksum=f"md5:{md5}",
        unpack="tar -xzf {file} -C {root}",
    )


def _task(name: str, build: Any, options: dict[str, Option]) -> DataTask:
    return DataTask(
        name=name,
        title="NSynth",
        page="nsynth",
        homepage="https://magenta.tensorflow.org/datasets/nsynth",
        licence="CC BY 4.0",
        markers=(("nsynth-train", "nsynth-valid", "nsynth-test"),),
        layout="nsynth-train, nsynth-valid and nsynth-test, each with audio/ and examples.json",
        build=build,
        columns=("instrument", "family", "pitch", "velocity"),
        options=options,
        disjoint_by="instrument",
        downloads=(
            _remote("train", "fde6665a93865503ba598b9fac388660"),
            _remote("valid", "87e94a00a19b6dbc99cf6d4c0c0cae87"),
            _remote("test", "5e6f8719bf7e16ad0a00d518b78af77d"),
        ),
    )


TASKS = (
    _task("nsynth_family", build_family, {}),
    _task(
        "nsynth_pitch",
        build_pitch,
        {"pitches": Option(default="21-108", help="MIDI pitches kept: LOW-HIGH or all")},
    ),
)
