"""Speech: Speech Commands V1 and V2, VoxCeleb1, IEMOCAP and VoxForge."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from ssmast.audio.decode import opened
from ssmast.audio.read import excerpt_name
from ssmast.datasets.task import Build, DatasetFiles, Row, keyed_order, keyed_unit

# -- Speech Commands -------------------------------------------------------------------------------

WORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
SILENCE, UNKNOWN = "_silence_", "_unknown_"
_MAIN, _TEST_SET = "speech_commands_v0.02", "speech_commands_test_set_v0.02"
_NOISE, _VALID_NOISE = f"{_MAIN}/_background_noise_", "running_tap.wav"
_SPEAKER = re.compile(r"(?:^|_)([0-9a-f]{8})_nohash_")


def build_words(build: Build) -> Iterator[Row]:
    """Every word, split by the lists that come with the archive.

    Source: the README of the archive; validation_list.txt and testing_list.txt hold all clips of a
    speaker or none, and what neither names is for training.
    """
    yield from _words(build.files, "")


def build_twelve(build: Build) -> Iterator[Row]:
    """Ten words, unknown and silence; tested on the official test archive.

    Source: Warden 2018, section 7.1; `recipe=tfds` as TensorFlow Datasets builds it,
    `recipe=tensorflow` with the fractions of TensorFlow's own training script.
    """
    build.classes += [*WORDS, SILENCE, UNKNOWN]
    spoken = [row for row in _words(build.files, _MAIN) if row.split != "test"]
    wanted = [row for row in spoken if row.labels[0] in WORDS]
    others = [
        dataclasses.replace(row, labels=(UNKNOWN,)) for row in spoken if row.labels[0] not in WORDS
    ]
    yield from wanted
    if build.options["recipe"] == "tfds":
        yield from others
        yield from _regular_silence(build.files)
    else:
        for split in ("train", "valid"):
            count = math.ceil(0.1 * sum(row.split == split for row in wanted))
            rows = {row.path: row for row in others if row.split == split}
            yield from (rows[path] for path in sorted(keyed_order(rows, seed=0)[:count]))
            yield from _drawn_silence(build.files, split, count)
        build.remarks.append(
            "unknown words and silence are drawn by a hash of their names: TensorFlow's own draw "
            "depends on the order of its file system"
        )
    for label in (*WORDS, SILENCE, UNKNOWN):
        for path in build.files.waves(f"{_TEST_SET}/{label}"):  # some end .wav.wav
            yield Row(path, (label,), "test", (_word_speaker(path),))


def _words(files: DatasetFiles, main: str) -> Iterator[Row]:
    prefix = f"{main}/" if main else ""
    splits = {
        prefix + path: split
        for split, table in (("valid", "validation_list.txt"), ("test", "testing_list.txt"))
        for path in files.lines(prefix + table)
    }
    words = [name for name in files.folders(main) if not name.startswith("_")]
    found = [path for word in words for path in files.waves(prefix + word)]
    for path in sorted({*found, *splits}):
        word = path.removeprefix(prefix).partition("/")[0]
        yield Row(path, (word,), splits.get(path, "train"), (_word_speaker(path),))


def _word_speaker(path: str) -> str:
    found = _SPEAKER.search(path.rpartition("/")[2])
    return found[1] if found else ""


def _noises(files: DatasetFiles, split: str) -> Iterator[tuple[str, int, int]]:
    """(path, frames, rate) of the noises of a split: running_tap.wav is for validation."""
    for path in files.waves(_NOISE):
        if path.endswith(f"/{_VALID_NOISE}") == (split == "valid"):
            with opened(files.root / path, path) as file:
                yield path, file.frames, file.samplerate


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
    return Row(excerpt_name(path, start, start + 1), (SILENCE,), split, ("",))


# -- VoxCeleb1 -------------------------------------------------------------------------------------

_VOXCELEB_SPLITS = {"1": "train", "2": "valid", "3": "test"}
_VOXCELEB_FOLDERS = ("wav", "dev/wav", "test/wav", "vox1_dev_wav/wav", "vox1_test_wav/wav", "")


def build_voxceleb1(build: Build) -> Iterator[Row]:
    """The identification split; dev and test archives may be merged into wav/ or lie apart.

    Source: iden_split.txt of Nagrani et al. 2017, lines of `<1, 2 or 3> <speaker>/<video>/<clip>`.
    """
    places = [f"{name}/" for name in _VOXCELEB_FOLDERS if name and build.files.folders(name)]
    for number, line in enumerate(build.files.lines("iden_split.txt"), start=1):
        split, _, path = line.partition(" ")
        words = path.strip().split("/")
        if split not in _VOXCELEB_SPLITS or len(words) != 3:
            raise ValueError(
                f"{build.files.root / 'iden_split.txt'} must have lines such as "
                f"'3 id10003/na8-QEFmj44/00003.wav', got {line!r} in line {number}"
            )
        path = build.files.first(path.strip(), places=[*places, ""])
        yield Row(path, (words[0],), _VOXCELEB_SPLITS[split], ("/".join(words[:2]),))


# -- IEMOCAP ---------------------------------------------------------------------------------------

_TURN = re.compile(r"^\[(\d+\.\d+) - (\d+\.\d+)\]\s+(Ses0\dF?M?_\w+)\s+(\w+)\s")
_EMOTIONS = {"ang": "ang", "hap": "hap", "exc": "hap", "neu": "neu", "sad": "sad"}
_OTHERS = ("dis", "fea", "fru", "oth", "sur", "xxx")


def build_iemocap(build: Build) -> Iterator[Row]:
    """Turns whose majority label is angry, happy or excited (one class), neutral or sad.

    Source: the four-class subset used since Busso et al. 2008 and by SUPERB (Yang et al. 2021):
    excited counts as happy, frustrated and the rare labels are left out.
    Differs from SUPERB: the session after the one tested on is for validation, instead of a random
    fifth of the rest, so that no speaker of the training split is validated on.
    """
    build.classes += sorted(set(_EMOTIONS.values()))
    for session in [name for name in build.files.folders() if re.fullmatch(r"Session\d", name)]:
        for turn, emotion in _turns(build.files, f"{session}/dialog/EmoEvaluation"):
            dialog, _, tail = turn.rpartition("_")
            style = "improvised" if "impro" in dialog else "scripted"
            if emotion not in _EMOTIONS:
                known = emotion if emotion in _OTHERS else f"{emotion} (unknown)"
                build.left_out[f"labelled {known}"] += 1
            elif build.options["utterances"] not in ("all", style):
                build.left_out[style] += 1
            else:
                path = f"{session}/sentences/wav/{dialog}/{turn}.wav"
                # The letter in the dialog's name says who wore the motion capture, that in the tail
                # who speaks.
                extra = (turn[:5] + tail[:1], emotion, style)
                yield Row(path, (_EMOTIONS[emotion],), session.removeprefix("Session"), extra)


def _turns(files: DatasetFiles, folder: str) -> Iterator[tuple[str, str]]:
    """Names of turns, with their emotions."""
    for name in files.names(folder):
        if not (name.endswith(".txt") and name.startswith("Ses")):
            continue
        for line in files.lines(f"{folder}/{name}"):
            found = _TURN.match(line)
            if found:
                yield found[3], found[4]
            elif line.startswith("[") and not line.startswith("[START_TIME"):
                raise ValueError(
                    f"{files.root / folder / name} has the line {line!r}; wanted '[start - end] "
                    "turn emotion'"
                )


# -- VoxForge --------------------------------------------------------------------------------------

LANGUAGES = ("de", "en", "es", "fr", "it", "ru")
_LIST = "voxforge_urls.txt"
_RULES = {
    "speaker": {"train": 0.7, "valid": 0.1, "test": 0.2},
    "archive": {"train": 0.7, "valid": 0.15, "test": 0.15},
    "utterance": {"train": 0.8, "test": 0.2},
}
_Archive = tuple[str, str]
"""(language, name)."""


def build_voxforge(build: Build) -> Iterator[Row]:
    """Clips of the unpacked archives, split by speaker, by archive or by utterance.

    Source: `rule=speaker` is TensorFlow Datasets' split, speaker for speaker, if the list of
    archives is there (numpy's RandomState(0) shuffles the sorted speakers of the list).
    Differs from EVAR (`rule=archive`) and LAPE (`rule=utterance`): their draws are not published,
    so the same fractions are drawn by a hash of the names.
    """
    build.classes += LANGUAGES
    listed = _listed(build.files)
    if listed is None:
        build.remarks.append(f"no {_LIST} in the root: the split is drawn among the archives found")
    folders = _folders(build, listed)
    split_of = _splits(build.options["rule"], listed or sorted(folders), folders, build.files)
    lost = len(set(listed or ()) - set(folders))
    if lost:
        build.remarks.append(f"{lost:,} of {len(listed or ()):,} listed archives not found")
    for archive in sorted(folders):
        language, name = archive
        for path in build.files.waves(folders[archive]):
            key = path if build.options["rule"] == "utterance" else archive
            yield Row(path, (language,), split_of[key], (_speaker(name), name))


def _listed(files: DatasetFiles) -> list[_Archive] | None:
    """The archives of the official list, in its order; None if it is not there."""
    if not files.has(_LIST):
        return None
    archives = []
    for line in files.lines(_LIST):
        folder, _, name = line.strip("\"'").rpartition("/")
        place = folder.find("/Trunk")
        archives.append((folder[max(place - 2, 0) : place].lower(), name.removesuffix(".tgz")))
    return archives


def _folders(build: Build, listed: list[_Archive] | None) -> dict[_Archive, str]:
    """Folder wav/ of each unpacked archive; its language is a folder above it, or in the list."""
    languages: dict[str, set[str]] = defaultdict(set)
    for language, name in listed or ():
        languages[name].add(language)
    found: dict[_Archive, str] = {}
    for below, names in build.files.walk():
        *above, name, last = ["", "", *below.split("/")]
        if last != "wav" or not any(one.lower().endswith(".wav") for one in names):
            continue
        named = [folder.lower() for folder in above if folder.lower() in LANGUAGES]
        known = {named[-1]} if named else languages[name]
        if len(known) == 1:
            found[next(iter(known)), name] = below
        else:
            build.left_out["in an archive of no known language"] += len(names)
    return found


def _splits(
    rule: str, archives: list[_Archive], folders: dict[_Archive, str], files: DatasetFiles
) -> dict[_Archive | str, str]:
    """Part of every archive, or for `rule=utterance` of every clip."""
    if rule == "speaker":
        speakers = sorted({_speaker(name) for _, name in archives})
        np.random.RandomState(0).shuffle(speakers)
        cut = _cut(speakers, _RULES[rule])
        # An archive that is not in the list joins the rest of its speaker, or train.
        return {
            archive: cut.get(_speaker(archive[1]), "train") for archive in {*archives, *folders}
        }
    splits: dict[_Archive | str, str] = {}
    for language in LANGUAGES:
        mine = [archive for archive in {*archives, *folders} if archive[0] == language]
        if rule == "archive":
            names = keyed_order((name for _, name in mine), seed=0)
            cut = _cut(names, _RULES[rule])
            splits |= {(language, name): cut[name] for name in names}
        else:
            clips = [path for one in mine if one in folders for path in files.waves(folders[one])]
            splits |= _cut(keyed_order(clips, seed=0), _RULES[rule])
    return splits


def _cut(names: list[str], fractions: Mapping[str, float]) -> dict[str, str]:
    """Consecutive fractions of a list; bounds are rounded down, the last split takes the rest."""
    splits, start, total = {}, 0, 0.0
    for split, fraction in fractions.items():
        total += fraction
        stop = len(names) if split == list(fractions)[-1] else int(total * len(names))
        splits |= dict.fromkeys(names[start:stop], split)
        start = stop
    return splits


def _speaker(archive: str) -> str:
    return archive.split("-")[0]


BUILDERS = {
    "speech_commands_v1": build_words,
    "speech_commands_v2": build_words,
    "speech_commands_v2_12": build_twelve,
    "voxceleb1": build_voxceleb1,
    "iemocap": build_iemocap,
    "voxforge": build_voxforge,
}
