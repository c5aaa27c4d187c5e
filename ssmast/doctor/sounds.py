"""What a folder of sounds is, in ten lines, and the command to run next."""

import logging
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ssmast.audio import AudioError, Corpus, LogMel, RemoteError, open_corpus
from ssmast.audio.corpus.open import CORPUS_FILE, MANIFEST, layout_of
from ssmast.audio.corpus.table import find_table, read_header, without_part
from ssmast.audio.decode import ForeignError, decode, opened
from ssmast.audio.read import Excerpt, split_excerpt
from ssmast.audio.stats import energy_outside, lost_energy
from ssmast.audio.streams import check_container
from ssmast.datasets import TASKS
from ssmast.doctor.finding import Finding, note, ok
from ssmast.evaluation.find_set import (
    are_class_folders,
    find_sets,
    has_layout,
    other_tables,
    read_columns,
)
from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.evaluation.read_set import load_set
from ssmast.evaluation.results import shared_note
from ssmast.splits import few_names

# Headers looked at, and files whose sound is: enough for a share of one in a hundred.
_MOST_HEADERS, _MOST_HEARD, _HEARD_SECONDS = 2000, 48, 10
# Above so much, decoding again and again costs more than preparing once.
_MANY_CLIPS, _MANY_HOURS = 10_000, 20.0


@dataclass(kw_only=True)
class _Looks:
    """What the headers of some clips say.

    Attributes:
        seconds: of each that says it.
        rates: in Hz, how many have it.
        channels: the same.
        unreadable: why, of those that are no sound.
        outside: fraction of the energy above the front end's highest frequency, and below its
            lowest, of each clip that was heard.
        silent: clips heard that hold zeros alone.
    """

    seconds: list[float] = field(default_factory=list)
    rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    outside: list[tuple[float, float]] = field(default_factory=list)
    silent: int = 0


def check_sounds(data: str) -> Iterator[Finding]:
    """Findings about a folder, list, table, tar or prepared corpus.

    Raises:
        FileNotFoundError, ValueError: if there is no sound, in one sentence.
    """
    folder = Path(data)
    with _warnings_kept() as said:
        sets, no_labels = _sets_in(folder) if folder.exists() else ([], [])
        several = bool(sets) and sets[0].folder != folder
        corpora = [one.corpus() for one in sets] or list(open_corpus(data).corpora)
        shared = [one.shared for one in sets]  # here, as it warns again of what it opens
    yield ok("layout", _layout(folder, sets, several=several))
    names = [corpus.name(i) for corpus in corpora for i in range(len(corpus))]
    yield ok("files", _files(corpora, names))
    looks = _looks(corpora)
    yield from _about_sound(looks, len(names))
    for why in no_labels:
        yield note("labels", why)
    tasks = _published(folder)
    build = f"ssmast prepare task={tasks[0]} root={shlex.quote(data)}" if tasks else ""
    if tasks:
        yield note("published", f"{build} builds the official set ({' or '.join(tasks)})")
    for one, alike in zip(sets, shared, strict=True):
        prefix = f"{one.spec.name}: " if several else ""
        counts = Counter(name for own in one.label_sets[0] for name in own)
        common = few_names([f"{name} ({count})" for name, count in counts.most_common()])
        yield ok("labels", f"{prefix}{len(one.classes)} classes: {common}")
        first = one.splits[0].parts()
        folds = f", the first of {len(one.splits)} folds" if len(one.splits) > 1 else ""
        parts = " / ".join(str(len(rows)) for rows in first.values())
        yield ok("splits", f"{prefix}{parts} clips train, validate and test{folds}")
        for why, count in one.left_out.items():
            yield note("problems", f"{prefix}{count} rows left out ({why})")
        if alike:
            yield note("problems", f"{prefix}{shared_note(alike)}")
    for message in dict.fromkeys(said):
        yield note("problems", message)
    yield from _problems(looks)
    if build and not (sets and all(_says_parts(one.folder) for one in sets)):
        yield ok("next", build)
    else:
        asked = sets if no_labels else []  # not those that cannot be read
        yield ok("next", _next_command(data, folder, sets, asked, looks, len(names)))


def _sets_in(folder: Path) -> tuple[list[LabelledSet], list[str]]:
    """The labelled sets that a folder or file is or holds, and why others have no labels."""
    try:
        names = find_sets(folder)
    except FileNotFoundError:
        tables = other_tables(folder).removeprefix("; ") if folder.is_dir() else ""
        return [], [tables] * bool(tables)
    except ValueError as error:
        return [], [str(error)]
    sets, why = list[LabelledSet](), list[str]()
    for name in names:
        try:
            sets.append(load_set(folder, name))
        except (FileNotFoundError, ValueError) as error:  # mostly a column of another name
            why.append(str(error))
    return sets, why


def _says_parts(folder: Path) -> bool:
    return not are_class_folders(folder) or not {"split", "fold"}.isdisjoint(
        read_columns(folder)[0]
    )


def _published(folder: Path) -> list[str]:
    """Tasks of `ssmast prepare` whose published set a folder looks like."""
    found = []
    for name, task in TASKS.items() if folder.is_dir() else ():
        # Folders called de, or train.csv beside val.csv, do not tell.
        telling = [own for own in task.markers if len(without_part(Path(own[0]).stem)) > 2]
        with suppress(FileNotFoundError, ValueError):
            replace(task, markers=tuple(telling)).locate(folder)
            found.append(name)
    return found


def _files(corpora: list[Corpus], names: list[str]) -> str:
    """How many clips of which kinds, and the size of their files: of a recording once."""
    files = [split_excerpt(name)[0] for name in names]
    kinds = Counter(os.path.splitext(file)[1].lower() for file in files)
    shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5))
    entries = (corpus.entries[i] for corpus in corpora for i in range(len(corpus)))
    if any(file != name for file, name in zip(files, names, strict=True)):
        sizes = sum({file: one.size for file, one in zip(files, entries, strict=True)}.values())
        shown += f", parts of {len(set(files)):,} recordings"
    else:
        sizes = sum(one.size for one in entries)
    return f"{len(names):,} clips ({shown})" + (f", {sizes / 1e6:,.1f} MB" if sizes else "")


def _layout(folder: Path, sets: list[LabelledSet], *, several: bool) -> str:
    if several:
        sets_of = "1 labelled set" if len(sets) == 1 else f"{len(sets)} labelled sets"
        return f"a folder of {sets_of}: {few_names([s.spec.name for s in sets])}"
    layout = layout_of(folder) if folder.exists() else None
    if layout is not None:
        return f"{'a labelled set: ' * bool(sets)}{layout.name}"
    if sets:
        table = find_table(folder)
        usual = "a folder for each class"
        if folder.is_file() or has_layout(folder):
            usual = "a table" if folder.suffix in (".csv", ".tsv") else "tars of WebDataset"
        return "a labelled set: " + (usual if table is None else table.name)
    if (folder / MANIFEST).is_file():
        return f"a prepared corpus ({CORPUS_FILE})"
    table = find_table(folder)
    if table is not None:
        columns = ", ".join(read_header(table))
        return f"a table, {table.name}, without a column label: it has {columns}"
    return "a folder of sounds without labels" if folder.is_dir() else "a list, table or archive"


def _looks(corpora: Iterable[Corpus]) -> _Looks:
    """Headers of clips spread evenly over the corpora, and the sound of some of them."""
    looks, front_end = _Looks(), LogMel()
    clips = [(corpus, i) for corpus in corpora for i in range(len(corpus))]
    chosen = np.unique(np.linspace(0, len(clips) - 1, _MOST_HEADERS).round().astype(int))
    heard = set(chosen[:: max(1, len(chosen) // _MOST_HEARD)].tolist())
    for at in chosen.tolist():
        corpus, i = clips[at]
        try:
            source = corpus.source(i)
            base = source.source if isinstance(source, Excerpt) else source
            with opened(base, corpus.name(i)) as file:
                check_container(file)
                rate = file.samplerate
                looks.rates[rate] += 1
                looks.channels[file.channels] += 1
                start, stop = 0, file.frames
                if isinstance(source, Excerpt):
                    start, stop = source.samples(file.frames, rate)
                looks.seconds.append((stop - start) / rate)
                if at in heard:
                    frames = min(file.frames, _HEARD_SECONDS * rate)
                    sound = decode(file, frames)
                    file.mixer.check()
                    share = energy_outside(sound, rate, front_end)
                    if share is None:
                        looks.silent += 1
                    else:
                        looks.outside.append(share)
        except ForeignError:
            continue  # read by FFmpeg, whose header this is not
        except (AudioError, RemoteError, OSError) as error:
            looks.unreadable.append(str(error))
    return looks


def _about_sound(looks: _Looks, clips: int) -> Iterator[Finding]:
    if not looks.seconds:
        return
    seconds = np.array(looks.seconds)
    looked = len(seconds) + len(looks.unreadable)
    about = "" if looked == clips else f"about, by {looked:,} of them: "
    shortest, middle, longest = np.quantile(seconds, (0, 0.5, 1))
    yield ok(
        "length",
        f"{about}{_hours(looks, clips):.3g} hours; a clip has {_seconds(shortest)} to "
        f"{_seconds(longest)} s, the median is {_seconds(middle)} s",
    )
    yield ok("rates", ", ".join(f"{n:,} x {rate} Hz" for rate, n in looks.rates.most_common(5)))
    counts = looks.channels.most_common(5)
    yield ok("channels", ", ".join(f"{n:,} x {channels}" for channels, n in counts))


def _hours(looks: _Looks, clips: int) -> float:
    """Of all clips, by those looked at, of which the unreadable ones have none."""
    looked = len(looks.seconds) + len(looks.unreadable)
    return sum(looks.seconds) * clips / max(looked, 1) / 3600


def _seconds(number: float) -> str:
    """Three digits below a thousand, and no exponent above it."""
    return f"{number:.3g}" if number < 999.5 else f"{number:,.0f}"


def _problems(looks: _Looks) -> Iterator[Finding]:
    if looks.unreadable:
        yield note("problems", f"{len(looks.unreadable)} unreadable: {looks.unreadable[0]}")
    if looks.silent:
        yield note("problems", f"{looks.silent} of {len(looks.outside) + looks.silent} are silent")
    for message in lost_energy(looks.outside, LogMel()):
        yield note("problems", message)


def _next_command(
    data: str,
    folder: Path,
    sets: list[LabelledSet],
    asked: list[LabelledSet],
    looks: _Looks,
    clips: int,
) -> str:
    word = shlex.quote(f"data={data}")
    if sets:
        tasks = shlex.quote(f"tasks=[{','.join(str(one.spec) for one in asked)}]")
        return f"ssmast probe {word}" + f" {tasks}" * bool(asked)
    is_much = clips > _MANY_CLIPS or _hours(looks, clips) > _MANY_HOURS
    if is_much and not (folder / MANIFEST).is_file():
        return f"ssmast prepare {shlex.quote(data)} out=corpus"
    return f"ssmast pretrain recipe=real_nano {word} run=runs/mine"


@contextmanager
def _warnings_kept() -> Iterator[list[str]]:
    """What is said while a set is read, in place of the lines on the screen."""
    said: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING or "not used" in record.getMessage():
                said.append(record.getMessage())

    logger, handler = logging.getLogger("ssmast"), Kept()
    before = logger.propagate, logger.level, logger.handlers
    logger.propagate, logger.handlers = False, [handler]
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.propagate, logger.level, logger.handlers = before
