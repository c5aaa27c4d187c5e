"""VoxForge: which of six languages is spoken."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from ssmast.datasets.download import Remote
from ssmast.datasets.task import DataTask, Ledger, Option, Row
from ssmast.datasets.tree import Tree, keyed_order

LANGUAGES = ("de", "en", "es", "fr", "it", "ru")
_LIST = "voxforge_urls.txt"
_RULES = {
    "speaker": {"train": 0.7, "valid": 0.1, "test": 0.2},
    "archive": {"train": 0.7, "valid": 0.15, "test": 0.15},
    "utterance": {"train": 0.8, "test": 0.2},
}
Archive = tuple[str, str]
"""(language, name)."""


def build(tree: Tree, options: Mapping[str, str], ledger: Ledger) -> Iterator[Row]:
    """Clips of the unpacked archives, split by speaker, by archive or by utterance.

    Source: `rule=speaker` is TensorFlow Datasets' split, speaker for speaker, if the list of
    archives is there (numpy's RandomState(0) shuffles the sorted speakers of the list).
    Differs from EVAR (`rule=archive`) and LAPE (`rule=utterance`): their draws are not published,
    so the same shares are drawn by a hash of the names.
    """
    ledger.classes += LANGUAGES
    listed = _listed(tree)
    if listed is None:
        ledger.notes.append(
            f"no {_LIST} in the root: the split is drawn among the archives that are there"
        )
    folders = _folders(tree, listed, ledger)
    part_of = _parts(options["rule"], listed or sorted(folders), folders, tree)
    lost = len(set(listed or ()) - set(folders))
    if lost:
        ledger.notes.append(f"{lost:,} of {len(listed or ()):,} listed archives are not there")
    for archive in sorted(folders):
        language, name = archive
        speaker = _speaker(name)
        for path in _clips(tree, folders[archive]):
            key = path if options["rule"] == "utterance" else archive
            yield Row(path=path, labels=(language,), part=part_of[key], extra=(speaker, name))


def _listed(tree: Tree) -> list[Archive] | None:
    """The archives of the official list, in its order; None if it is not there."""
    if not tree.has(_LIST):
        return None
    archives = []
    for line in tree.lines(_LIST):
        folder, _, name = line.strip("\"'").rpartition("/")
        place = folder.find("/Trunk")
        archives.append((folder[max(place - 2, 0) : place].lower(), name.removesuffix(".tgz")))
    return archives


def _folders(tree: Tree, listed: list[Archive] | None, ledger: Ledger) -> dict[Archive, str]:
    """Folder of each unpacked archive; its language is a folder above it, or in the list."""
    languages: dict[str, set[str]] = defaultdict(set)
    for language, name in listed or ():
        languages[name].add(language)
    found: dict[Archive, str] = {}
    for below, names in tree.walk():
        folder, _, last = below.rpartition("/")
        if last != "wav" or not any(name.lower().endswith(".wav") for name in names):
            continue
        above = [part for part in folder.lower().split("/")[:-1] if part in LANGUAGES]
        name = folder.rpartition("/")[2]
        known = {above[-1]} if above else languages[name]
        if len(known) == 1:
            found[known.copy().pop(), name] = folder
        else:
            ledger.left_out["in an archive of no known language"] += len(names)
    return found


def _parts(
    rule: str, archives: list[Archive], folders: dict[Archive, str], tree: Tree
) -> dict[Archive | str, str]:
    """Part of every archive, or for `rule=utterance` of every clip."""
    if rule == "speaker":
        speakers = sorted({_speaker(name) for _, name in archives})
        np.random.RandomState(0).shuffle(speakers)
        part = _cut(speakers, _RULES[rule])
        # An archive that is not in the list goes where the rest of its speaker is, else to train.
        return {
            archive: part.get(_speaker(archive[1]), "train") for archive in {*archives, *folders}
        }
    parts: dict[Archive | str, str] = {}
    for language in LANGUAGES:
        mine = [archive for archive in {*archives, *folders} if archive[0] == language]
        if rule == "archive":
            names = keyed_order((name for _, name in mine), seed=0)
            cut = _cut(names, _RULES[rule])
            parts |= {(language, name): cut[name] for name in names}
        else:
            clips = [path for a in mine if a in folders for path in _clips(tree, folders[a])]
            parts |= _cut(keyed_order(clips, seed=0), _RULES[rule])
    return parts


def _cut(names: list[str], shares: Mapping[str, float]) -> dict[str, str]:
    """Consecutive shares of a list; boundaries are rounded down, the last part takes the rest."""
    parts, start, total = {}, 0, 0.0
    for part, share in shares.items():
        total += share
        stop = len(names) if part == list(shares)[-1] else int(total * len(names))
        parts |= dict.fromkeys(names[start:stop], part)
        start = stop
    return parts


def _clips(tree: Tree, folder: str) -> list[str]:
    names = tree.files(f"{folder}/wav")
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
        apart="speaker",
        downloads=(
            Remote(url="https://storage.googleapis.com/tfds-data/downloads/voxforge/" + _LIST),
        ),
        request=f"the archives in {_LIST} are fetched one by one (wget -x -i {_LIST}), then "
        "unpacked where they lie",
    ),
)
