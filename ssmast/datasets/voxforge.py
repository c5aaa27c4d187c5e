"""VoxForge: which of six languages is spoken."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from ssmast.datasets.dataset_files import DatasetFiles, keyed_order
from ssmast.datasets.download import Remote
from ssmast.datasets.task import BuildNotes, DataTask, Option, Row

LANGUAGES = ("de", "en", "es", "fr", "it", "ru")
_LIST = "voxforge_urls.txt"
_RULES = {
    "speaker": {"train": 0.7, "valid": 0.1, "test": 0.2},
    "archive": {"train": 0.7, "valid": 0.15, "test": 0.15},
    "utterance": {"train": 0.8, "test": 0.2},
}
Archive = tuple[str, str]
"""(language, name)."""


def build(files: DatasetFiles, options: Mapping[str, str], notes: BuildNotes) -> Iterator[Row]:
    """Clips of the unpacked archives, split by speaker, by archive or by utterance.

    Source: `rule=speaker` is TensorFlow Datasets' split, speaker for speaker, if the list of
    archives is there (numpy's RandomState(0) shuffles the sorted speakers of the list).
    Differs from EVAR (`rule=archive`) and LAPE (`rule=utterance`): their draws are not published,
    so the same fractions are drawn by a hash of the names.
    """
    notes.classes += LANGUAGES
    listed = _listed(files)
    if listed is None:
        notes.remarks.append(f"no {_LIST} in the root: the split is drawn among the archives found")
    folders = _folders(files, listed, notes)
    split_of = _splits(options["rule"], listed or sorted(folders), folders, files)
    lost = len(set(listed or ()) - set(folders))
    if lost:
        notes.remarks.append(f"{lost:,} of {len(listed or ()):,} listed archives not found")
    for archive in sorted(folders):
        language, name = archive
        speaker = _speaker(name)
        for path in _clips(files, folders[archive]):
            key = path if options["rule"] == "utterance" else archive
            yield Row(path=path, labels=(language,), split=split_of[key], extra=(speaker, name))


def _listed(files: DatasetFiles) -> list[Archive] | None:
    """The archives of the official list, in its order; None if it is not there."""
    if not files.has(_LIST):
        return None
    archives = []
    for line in files.lines(_LIST):
        folder, _, name = line.strip("\"'").rpartition("/")
        place = folder.find("/Trunk")
        archives.append((folder[max(place - 2, 0) : place].lower(), name.removesuffix(".tgz")))
    return archives


def _folders(
    files: DatasetFiles, listed: list[Archive] | None, notes: BuildNotes
) -> dict[Archive, str]:
    """Folder of each unpacked archive; its language is a folder above it, or in the list."""
    languages: dict[str, set[str]] = defaultdict(set)
    for language, name in listed or ():
        languages[name].add(language)
    found: dict[Archive, str] = {}
    for below, names in files.walk():
        folder, _, last = below.rpartition("/")
        if last != "wav" or not any(name.lower().endswith(".wav") for name in names):
            continue
        above = [name for name in folder.lower().split("/")[:-1] if name in LANGUAGES]
        name = folder.rpartition("/")[2]
        known = {above[-1]} if above else languages[name]
        if len(known) == 1:
            found[known.copy().pop(), name] = folder
        else:
            notes.left_out["in an archive of no known language"] += len(names)
    return found


def _splits(
    rule: str, archives: list[Archive], folders: dict[Archive, str], files: DatasetFiles
) -> dict[Archive | str, str]:
    """Part of every archive, or for `rule=utterance` of every clip."""
    if rule == "speaker":
        speakers = sorted({_speaker(name) for _, name in archives})
        np.random.RandomState(0).shuffle(speakers)
        cut = _cut(speakers, _RULES[rule])
        # An archive that is not in the list joins the rest of its speaker, or train.
        return {
            archive: cut.get(_speaker(archive[1]), "train") for archive in {*archives, *folders}
        }
    splits: dict[Archive | str, str] = {}
    for language in LANGUAGES:
        mine = [archive for archive in {*archives, *folders} if archive[0] == language]
        if rule == "archive":
            names = keyed_order((name for _, name in mine), seed=0)
            cut = _cut(names, _RULES[rule])
            splits |= {(language, name): cut[name] for name in names}
        else:
            clips = [path for a in mine if a in folders for path in _clips(files, folders[a])]
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


def _clips(files: DatasetFiles, folder: str) -> list[str]:
    names = files.names(f"{folder}/wav")
    return [f"{folder}/wav/{name}" for name in names if name.lower().endswith(".wav")]


def _speaker(archive: str) -> str:
    return archive.split("-")[0]


TASKS = (
    DataTask(
        name="voxforge",
        title="VoxForge",
        page="voxforge",
        homepage="http://www.voxforge.org/home/downloads",
        licence="GPL",
        markers=tuple((name,) for name in (*LANGUAGES, _LIST, "www.repository.voxforge1.org")),
        layout=f"<language>/.../<archive>/wav/*.wav with the languages {', '.join(LANGUAGES)}, "
        f"best with {_LIST} beside them",
        build=build,
        columns=("speaker", "archive"),
        options={
            "rule": Option(
                default="speaker",
                allowed=tuple(_RULES),
                help="what is kept whole when splitting; only by speaker does no speaker recur",
            )
        },
        disjoint_by="speaker",
        downloads=(
            Remote(url="https://storage.googleapis.com/tfds-data/downloads/voxforge/" + _LIST),
        ),
        request=f"the archives in {_LIST} are fetched one by one (wget -x -i {_LIST}), then "
        "unpacked where they lie",
    ),
)
