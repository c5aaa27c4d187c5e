"""Speech Commands V1 (30 words), V2 (35 words), and V2 with 12 classes."""

import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from ssmast.audio.decode import opened
from ssmast.audio.read import excerpt_name
from ssmast.datasets.dataset_files import DatasetFiles, keyed_order, keyed_unit
from ssmast.datasets.download import Remote
from ssmast.datasets.task import BuildNotes, DataTask, Option, Row

WORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
SILENCE, UNKNOWN, NOISE = "_silence_", "_unknown_", "_background_noise_"
_MAIN, _TEST_SET = "speech_commands_v0.02", "speech_commands_test_set_v0.02"
_VALID_NOISE = "running_tap.wav"
_SPEAKER = re.compile(r"(?:^|_)([0-9a-f]{8})_nohash_")


def build_words(
    files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes
) -> Iterator[Row]:
    """Every word, split by the lists that come with the archive.

    Source: the README of the archive; validation_list.txt and testing_list.txt hold all clips of a
    speaker or none, and what neither names is for training.
    """
    yield from _words(files, "")


def build_twelve(
    files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes
) -> Iterator[Row]:
    """Ten words, unknown and silence; tested on the official test archive.

    Source: Warden 2018, section 7.1; `recipe=tfds` as TensorFlow Datasets builds it,
    `recipe=tensorflow` with the fractions of TensorFlow's own training script.
    """
    notes.classes += [*WORDS, SILENCE, UNKNOWN]
    spoken = [row for row in _words(files, _MAIN) if row.split != "test"]
    wanted = [row for row in spoken if row.labels[0] in WORDS]
    others = [_as_unknown(row) for row in spoken if row.labels[0] not in WORDS]
    yield from wanted
    if options["recipe"] == "tfds":
        yield from others
        yield from _regular_silence(files)
    else:
        for split in ("train", "valid"):
            count = math.ceil(0.1 * sum(row.split == split for row in wanted))
            rows = {row.path: row for row in others if row.split == split}
            yield from (rows[path] for path in sorted(keyed_order(rows, seed=0)[:count]))
            yield from _drawn_silence(files, split, count)
        notes.remarks.append(
            "unknown words and silence are drawn by a hash of their names: TensorFlow's own draw "
            "depends on the order of its file system"
        )
    for label in (*WORDS, SILENCE, UNKNOWN):
        for name in files.names(f"{_TEST_SET}/{label}"):
            if name.endswith(".wav"):  # some end .wav.wav
                yield Row(
                    path=f"{_TEST_SET}/{label}/{name}",
                    labels=(label,),
                    split="test",
                    extra=(_speaker(name),),
                )


def _words(files: DatasetFiles, main: str) -> Iterator[Row]:
    prefix = f"{main}/" if main else ""
    splits = dict.fromkeys(files.lines(f"{prefix}validation_list.txt"), "valid")
    splits |= dict.fromkeys(files.lines(f"{prefix}testing_list.txt"), "test")
    found = [
        f"{word}/{name}"
        for word in files.folders(main)
        if not word.startswith("_")
        for name in files.names(f"{prefix}{word}")
        if name.endswith(".wav")
    ]
    for path in sorted({*found, *splits}):
        word, _, name = path.partition("/")
        yield Row(
            path=prefix + path,
            labels=(word,),
            split=splits.get(path, "train"),
            extra=(_speaker(name),),
        )


def _as_unknown(row: Row) -> Row:
    return Row(path=row.path, labels=(UNKNOWN,), split=row.split, extra=row.extra)


def _noises(files: DatasetFiles, split: str) -> list[tuple[str, int, int]]:
    """(path, frames, rate) of the noises of a split: running_tap.wav is for validation."""
    noises = []
    for name in files.names(f"{_MAIN}/{NOISE}"):
        if name.endswith(".wav") and (name == _VALID_NOISE) == (split == "valid"):
            path = f"{_MAIN}/{NOISE}/{name}"
            with opened(files.root / path, path) as file:
                noises.append((path, file.frames, file.samplerate))
    return noises


def _regular_silence(files: DatasetFiles) -> Iterator[Row]:
    """Silence as in TensorFlow Datasets: 1 s every 0.5 s, the last full second left out."""
    for split in ("train", "valid"):
        for path, frames, rate in _noises(files, split):
            for start in range(0, frames - rate, rate // 2):
                yield _silence(path, start / rate, split)


def _drawn_silence(files: DatasetFiles, split: str, count: int) -> Iterator[Row]:
    """Silence as in TensorFlow: `count` excerpts of 1 s at drawn times, the noises taking turns."""
    noises = [noise for noise in _noises(files, split) if noise[1] > noise[2]]
    taken: set[str] = set()
    number = 0
    while noises and len(taken) < count and number < 50 * count + 50:
        path, frames, rate = noises[number % len(noises)]
        # Steps of 1 ms: fine enough for thousands of different excerpts of a minute.
        start = int(np.floor(keyed_unit(f"{path} {number}", seed=0) * (frames / rate - 1) * 1000))
        row = _silence(path, start / 1000, split)
        number += 1
        if row.path not in taken:
            taken.add(row.path)
            yield row


def _silence(path: str, start: float, split: str) -> Row:
    return Row(
        path=excerpt_name(path, start, start + 1), labels=(SILENCE,), split=split, extra=("",)
    )


def _speaker(name: str) -> str:
    found = _SPEAKER.search(name)
    return found[1] if found else ""


_HOMEPAGE = "https://www.tensorflow.org/datasets/catalog/speech_commands"
_HOST = "https://storage.googleapis.com/download.tensorflow.org/data"


def _archive(name: str, sha256: str) -> Remote:
    folder = f"{{root}}/{name}"
    return Remote(
        url=f"{_HOST}/{name}.tar.gz",
        checksum=f"sha256:{sha256}",
        unpack=f"mkdir -p {folder} && tar -xzf {{file}} -C {folder}",
    )


_V1 = _archive(
    "speech_commands_v0.01", "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d"
)
_V2 = _archive(
    "speech_commands_v0.02", "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
)
_TEST = _archive(
    "speech_commands_test_set_v0.02",
    "cc2a00c1147c2254e9be3fa0f779d8c17421dc349b86366567a8edfa9acd51df",
)
_LISTS = (("testing_list.txt", "validation_list.txt"),)


def _task(name: str, title: str, remote: Remote) -> DataTask:
    return DataTask(
        name=name,
        title=title,
        page="speech_commands",
        homepage=_HOMEPAGE,
        licence="CC BY 4.0",
        markers=_LISTS,
        layout="a folder a word, validation_list.txt and testing_list.txt",
        build=build_words,
        columns=("speaker",),
        disjoint_by="speaker",
        downloads=(remote,),
    )


TASKS = (
    _task("speech_commands_v1", "Speech Commands V1", _V1),
    _task("speech_commands_v2", "Speech Commands V2", _V2),
    DataTask(
        name="speech_commands_v2_12",
        title="Speech Commands V2, 12 classes",
        page="speech_commands",
        homepage=_HOMEPAGE,
        licence="CC BY 4.0",
        markers=((f"{_MAIN}/testing_list.txt", f"{_TEST_SET}/{SILENCE}"),),
        layout=f"{_MAIN}/ and {_TEST_SET}/, each as its archive unpacks",
        build=build_twelve,
        columns=("speaker",),
        options={
            "recipe": Option(
                default="tfds",
                allowed=("tfds", "tensorflow"),
                help="all unknown words and all noise, or 10 % of each",
            )
        },
        disjoint_by="speaker",
        downloads=(_V2, _TEST),
    ),
)
