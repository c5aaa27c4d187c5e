"""Score a fine-tuned encoder on a labelled set: overall, class by class, and its confusions.

    ssmast evaluate encoder=runs/mine/encoder data=SET
    ssmast evaluate encoder=runs/mine data=SETS task=esc50 fold=2 part=valid out=scores
    ssmast evaluate encoder=runs/mine data=RECORDINGS events=true hop=0.5 threshold=0.5

It writes a JSON file and report.html to `out`, and prints the table of classes. With `events`, the
clips of the set are spans of recordings: these are classified window by window too, neighbours of
one class make an event, and events are scored by onset and offset.
"""

import logging
import math
import shlex
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssmast.audio import AudioError, Corpus
from ssmast.audio.read import Excerpt, split_excerpt
from ssmast.classifier import Classifier, Outputs, load_classifier
from ssmast.encoder.input import open_clip
from ssmast.evaluation.class_scores import (
    EVENT_NUMBERS,
    classes_table,
    confusion,
    event_rows,
    main_metric,
    numbers_text,
    plain_numbers,
    score_classes,
    score_part,
)
from ssmast.evaluation.embed import embed_corpus
from ssmast.evaluation.labelled_set import LabelledSet, with_heads
from ssmast.evaluation.processes import gather_list, process_state, scoring_seconds
from ssmast.evaluation.read_set import load_set
from ssmast.evaluation.results import (
    MOST_CLASSES_SHOWN,
    Result,
    beside,
    check_results,
    file_name,
    result_notes,
    set_facts,
    write_result,
)
from ssmast.events import Event, EventScores, merged, score_events
from ssmast.files import check_output
from ssmast.html import PAGE_BEGINS
from ssmast.progress import Progress
from ssmast.report import write_report
from ssmast.settings import (
    NETWORK_PRECISIONS,
    PRECISION,
    WINDOW,
    SoundSettings,
    UsageError,
    command,
    setting,
    to_dict,
    to_words,
    wants_dry_run,
)

logger = logging.getLogger(__name__)

PROTOCOL = "fine-tuned"


@dataclass(frozen=True, kw_only=True)
class EventRules:
    """How windows of a recording become events, and which events match."""

    hop: float = setting(
        0.0, "of events: seconds from window to window; 0: half a window", range="0 or [0.001, inf)"
    )
    threshold: float = setting(
        0.5, "of events: least probability of a class in a window", range="[0, 1]"
    )
    background: list[str] = setting([], "of events: classes that are none, such as [noise]")
    collar: float = setting(
        0.2,
        "of events: seconds that an onset may be off; offsets also by half the event",
        range="(0, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EventRules, SoundSettings):
    """`ssmast evaluate`: a fine-tuned encoder to scores, class by class."""

    encoder: str = setting("", "fine-tuned encoder folder, or its run folder", required=True)
    data: str = setting("", "labelled set, or a folder of sets with task=", required=True)
    task: str = setting("", "set in `data`: NAME or NAME:label=COLUMN,split=COLUMN,...")
    labels: list[str] = setting([], "label columns, one for each head; empty: as the set says")
    fold: str = setting("", "fold to score; empty: the first")
    part: str = setting("test", "part to score", choices=("train", "valid", "test"))
    held_out: float = setting(
        0.15,
        "fraction of the training clips that is the validation part, if the set has none",
        range="(0, 1)",
    )
    metric: str = setting("", "metric that the report begins with; empty: by the labels")
    events: bool = setting(
        False, "also score events in the recordings whose spans the clips are, by onset and offset"
    )
    out: str = setting(
        "",
        "folder of the result; empty: evaluate/ beside encoder/, of another folder NAME-evaluate/",
    )
    precision: str = setting("fp32", PRECISION, choices=NETWORK_PRECISIONS)
    window: float = setting(0.0, WINDOW, range="0 or [0.01, inf)")

    def __post_init__(self) -> None:
        """Refuse rules of events where none are scored."""
        super().__post_init__()
        if self.events:
            return
        usual = to_dict(EventRules())
        changed = [key for key, value in usual.items() if getattr(self, key) != value]
        if changed:
            raise UsageError(f"{changed[0]}= is about events; give events=true too")


class PartScores(NamedTuple):
    """What a classifier says of some clips.

    Attributes:
        scores: (n, classes of all heads) of the clips that could be read.
        positions: of those in the set (n,).
        numbers: every metric, and `n`.
        rejected: (name, reason) of the others.
        events: of their recordings, where these are scored and one could be read.
    """

    scores: Tensor
    positions: NDArray[np.int64]
    numbers: dict[str, float]
    rejected: list[tuple[str, str]]
    events: EventScores | None = None


def part_scores(
    classifier: Classifier,
    labelled: LabelledSet,
    corpus: Corpus,
    positions: NDArray[np.int64],
    *,
    title: str,
    workers: int = 0,
    batch_seconds: float = 60.0,
    events: EventRules | None = None,
) -> PartScores:
    """Score some clips of a set; processes divide the work and all get the whole.

    With `events`, events in the clips' recordings are scored too, by these rules. See
    `embed_corpus` for the others.

    Raises:
        ValueError: if no clip could be read; with `events` as `true_events`.
    """
    embedded = embed_corpus(
        classifier,
        corpus.take(labelled.rows[positions]),
        title=title,
        workers=workers,
        batch_seconds=batch_seconds,
    )
    readable = positions[embedded.rows]
    numbers = score_part(labelled, embedded.values, readable)
    found = events and score_recordings(classifier, labelled, corpus, positions, events)
    if found is not None:
        numbers |= {f"event_{name}": getattr(found, name) for name in EVENT_NUMBERS}
    numbers["n"] = len(readable)
    return PartScores(embedded.values, readable, numbers, embedded.rejected, found)


def result_of(
    labelled: LabelledSet,
    scored: PartScores,
    *,
    fold: str,
    metric: str,
    encoder: str,
    sha256: str,
    part: str = "test",
) -> Result:
    """The result of a scored part, in the form of a probe's, so that a report can show it.

    Raises:
        ValueError: if the clips do not decide the metric.
    """
    split, head = labelled.split(fold), labelled.heads[0]
    mean = scored.numbers[metric]
    if not math.isfinite(mean):
        raise ValueError(
            f"{metric} cannot be computed from {len(scored.positions)} clips of {labelled.folder}: "
            "no class has both clips that are of it and others"
        )
    matrix = None
    if not labelled.multi_label and len(head.classes) <= MOST_CLASSES_SHOWN:
        own = scored.scores[:, : len(head.classes)]
        matrix = confusion(labelled, own, scored.positions, head=0).tolist()
    of_fold = replace(labelled, splits=[split])
    unread = np.setdiff1d(split.parts()[part], scored.positions)
    unknown = sum(
        any((numbers[position] < 0).any() for numbers in labelled.numbers)
        for position in scored.positions
    )
    return Result(
        mean=mean,
        scores=[mean],
        confusion=matrix,
        encoder_sha256=sha256,
        **{
            **set_facts(of_fold),
            "num_unseen": unknown,
            "untrained": labelled.unknown_in(scored.positions),
            "untested": labelled.missing_from(scored.positions),
            **({} if part == "test" else {"shared": {}}),
        },
        protocol=PROTOCOL,
        metric=metric,
        column=PROTOCOL,
        part=part,
        ids_sha256=of_fold.ids_sha256(np.setdiff1d(np.arange(len(labelled.clips)), unread)),
        rejected=scored.rejected,
        encoder=encoder,
        n=len(scored.positions),
        numbers=plain_numbers(scored.numbers),
        heads=[{"name": h.name, "num_classes": len(h.classes)} for h in labelled.heads],
        per_class=score_classes(labelled, scored.scores, scored.positions),
        events=None if scored.events is None else scored.events._asdict(),
    )


@command(EvaluateConfig, "ssmast evaluate", dry_run=True)
def main(config: EvaluateConfig, argv: list[str]) -> int:
    """`ssmast evaluate`: parse, score, print the table of classes."""
    out = _out(config)
    check_output(out, folder=True)
    check_output(out / "report.html", begins=PAGE_BEGINS)
    labelled, classifier = _open(config)
    split = labelled.split(config.fold)
    positions = split.parts()[config.part]
    file = out / f"{file_name(f'{labelled.spec}-{split.name}-{config.part}')}.json"
    check_results(file, encoder=config.encoder)
    if wants_dry_run(argv):
        sys.stdout.write(
            f"{labelled.spec}: {len(positions)} clips, {labelled.num_outputs} classes\n"
        )
        return 0
    metric = main_metric(labelled, config.metric, events=config.events)
    state = process_state()
    classifier.to(state.device)
    corpus = labelled.corpus(channel=config.channel)
    scored = part_scores(
        classifier,
        labelled,
        corpus,
        positions,
        title=f"{labelled.spec.name}, {config.part}",
        workers=config.workers,
        batch_seconds=config.batch_seconds or scoring_seconds(),
        events=config if config.events else None,
    )
    if state.is_main:
        result = result_of(
            labelled,
            scored,
            fold=config.fold,
            metric=metric,
            encoder=config.encoder,
            sha256=classifier.sha256,
            part=config.part,
        )
        result = replace(result, data=config.data)
        write_result(file, result)
        write_report(
            out / "report.html",
            results=[result],
            title=f"{result.task}, {config.part} part",
            commands=[shlex.join(["ssmast", "evaluate", *to_words(config)])],
        )
        logger.info("results: %s", out)
        sys.stdout.write(f"{tables_of(result)}\n{numbers_text(scored.numbers)}\n")
        sys.stdout.write("".join(f"{note}\n" for note in result_notes(result)))
        if config.part == "test":
            seen = _num_seen(labelled, corpus, positions, classifier.trained_on)
            if seen:
                logger.warning(
                    "%d of %d clips are among those that %s was trained or chosen on: what was "
                    "learnt by heart counts as right; with folds, give the fold= of its training",
                    *(seen, len(positions), config.encoder),
                )
    return 0


def _num_seen(
    labelled: LabelledSet, corpus: Corpus, positions: NDArray[np.int64], trained_on: str
) -> int:
    """How many of some clips a classifier learnt from, where it did so on this very set.

    That is known by the hash of its clips: `ssmast finetune` takes the training part of a split,
    `ssmast fit` the validation part too, or all.
    """
    if not trained_on:
        return 0
    every = np.arange(len(labelled.clips))
    pairs = [(every, every)]  # what was learnt from, and what that was chosen on besides
    for split in labelled.splits:
        known = np.sort(np.concatenate([split.train, split.valid]))
        pairs += [(split.train, known), (known, known)]
    for learnt, seen in pairs:
        if corpus.take(labelled.rows[learnt]).listing_hash == trained_on:
            return int(np.isin(positions, seen).sum())
    return 0


def true_events(
    labelled: LabelledSet,
    corpus: Corpus,
    positions: NDArray[np.int64],
    *,
    background: Collection[str] = (),
) -> tuple[list[Event], dict[str, Excerpt]]:
    """What is to be found in the recordings that some clips are spans of, and these recordings.

    Raises:
        ValueError: if a clip is no span, spans of one recording are in other parts too, a class of
            the background is none of the set's, or there is no event.
    """
    outputs, kept = Outputs(labelled.heads, labelled.multi_label), set(positions.tolist())
    unknown = {*background} - {name for head in labelled.heads for name in head.classes}
    if unknown:
        raise ValueError(f"background={sorted(unknown)} are no classes of {labelled.folder}")
    names = [corpus.name(int(row)) for row in labelled.rows]
    chosen = {split_excerpt(names[position])[0] for position in kept}
    truth, recordings = list[Event](), dict[str, Excerpt]()
    for position, name in enumerate(names):
        file, span = split_excerpt(name)
        if file not in chosen:
            continue
        if span is None:
            raise ValueError(
                f"events are scored in recordings that clips are spans of; {name} is a whole file"
            )
        if position not in kept:
            raise ValueError(
                f"{file} has spans in the part that is scored and in another; split by recording, "
                "with a split or fold column that is the same for all spans of a file, or with "
                f"task={labelled.spec.name}:group='(.*)#'"
            )
        source = corpus.source(int(labelled.rows[position]))
        assert isinstance(source, Excerpt)
        recordings[file] = source
        for head, sets in zip(labelled.heads, labelled.label_sets, strict=True):
            truth += [
                Event(file, *span, outputs.label(head.name, one))
                for one in sets[position]
                if one not in background
            ]
    if not truth:
        raise ValueError(
            f"{labelled.folder}: no span of the part has a class other than background"
        )
    return truth, recordings


def score_recordings(
    classifier: Classifier,
    labelled: LabelledSet,
    corpus: Corpus,
    positions: NDArray[np.int64],
    rules: EventRules,
) -> EventScores | None:
    """Onset and offset scores of the recordings that some clips are spans of, see `true_events`.

    Processes divide the recordings and all get the whole; None where no recording with an event
    can be read.

    Raises:
        ValueError: as `true_events`.
    """
    truth, recordings = true_events(labelled, corpus, positions, background=rules.background)
    state, predicted, failed = process_state(), list[Event](), list[str]()
    own = sorted(recordings)[state.rank :: state.size]
    with Progress("events", total=len(own)) as progress:
        for file in own:
            try:
                predicted += merged(_window_events(classifier, file, recordings[file], rules))
            except (AudioError, OSError) as error:
                failed.append(file)
                logger.warning("left out: %s", error)
            progress.advance(1)
    predicted, failed = gather_list(predicted, state), gather_list(failed, state)
    if failed:
        logger.warning("%d of %d recordings are left out", len(failed), len(recordings))
    truth = [event for event in truth if event.file not in failed]
    return score_events(truth, predicted, collar=rules.collar) if truth else None


def _window_events(
    classifier: Classifier, file: str, excerpt: Excerpt, rules: EventRules
) -> Iterator[Event]:
    """An event for each window of a recording and each class that is heard in it."""
    outputs = classifier.outputs
    whole = Excerpt(excerpt.source, channel=excerpt.channel)
    sound = open_clip(whole, sample_rate=classifier.sample_rate)
    windows = classifier.windows(sound, hop_seconds=rules.hop or classifier.window_seconds / 2)
    for start, stop, scores, _ in zip(*windows, strict=True):
        found = outputs.top(
            scores,
            0 if outputs.multi_label else 1,
            threshold=rules.threshold,
            background=rules.background,
        )
        for head, name, chance in found:
            yield Event(file, start, stop, outputs.label(head, name), chance)


def tables_of(result: Result) -> str:
    """The classes of a result as Markdown, and the same of its events where these are scored."""
    parts = [classes_table(result.per_class or [])]
    if result.events is not None:
        parts.append(classes_table(event_rows(result.events), what="events"))
    return "\n".join(parts)


def _open(config: EvaluateConfig) -> tuple[LabelledSet, Classifier]:
    """The set in the classifier's class numbers."""
    classifier = load_classifier(
        config.encoder, precision=config.precision, window_seconds=config.window
    )
    heads = classifier.outputs.heads
    labels = config.labels
    if not labels and len(heads) > 1:
        labels = [head.name for head in heads]  # a set has one label column of its own
    labelled = load_set(config.data, config.task, labels=labels, held_out=config.held_out)
    if labelled.multi_label != classifier.outputs.multi_label:
        kinds = {True: "several labels a clip", False: "one label a clip"}
        raise ValueError(
            f"{config.encoder} was trained for {kinds[classifier.outputs.multi_label]}, "
            f"{labelled.folder} has {kinds[labelled.multi_label]}"
        )
    return with_heads(labelled, heads), classifier


def _out(config: EvaluateConfig) -> Path:
    return Path(config.out) if config.out else beside(config.encoder, "evaluate")
