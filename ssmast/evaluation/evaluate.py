"""Score a fine-tuned encoder folder on a labelled set: whole, class by class, and its mistakes.

    ssmast evaluate encoder=runs/mine/encoder data=SET
    ssmast evaluate encoder=runs/mine data=SETS task=esc50 fold=2 part=valid out=scores

One JSON file and report.html go to `out`; the table of classes goes to the terminal.
"""

import json
import logging
import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssmast.audio import Corpus, open_corpus
from ssmast.classifier import Classifier, load_classifier
from ssmast.evaluation.class_scores import (
    classes_table,
    confusion,
    main_metric,
    score_classes,
    score_part,
)
from ssmast.evaluation.embed import embed_corpus
from ssmast.evaluation.heads_set import Head, LabelledSet, load_labelled, with_heads
from ssmast.evaluation.processes import process_state, scoring_seconds
from ssmast.evaluation.results import beside, write_text
from ssmast.report import write_report
from ssmast.settings import Settings, parse, setting, to_words, wants_dry_run
from ssmast.version import __version__

logger = logging.getLogger(__name__)

PROTOCOL = "fine-tuned"
_MOST_CLASSES_SHOWN = 100


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
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
    out: str = setting("", "folder of the result; empty: evaluate/ beside the encoder folder")
    workers: int = setting(
        0, "threads that decode audio; 0: one for each core, at most 8", range="[0, inf)"
    )
    batch_seconds: float = setting(
        0.0, "seconds of audio scored at once; 0: 20, on a GPU 600", range="[0, inf)"
    )


class PartScores(NamedTuple):
    """What a classifier says of some clips.

    Attributes:
        scores: (n, classes of all heads) of the clips that could be read.
        positions: of those in the set (n,).
        numbers: every metric, and `n`.
        rejected: (name, reason) of the others.
    """

    scores: Tensor
    positions: NDArray[np.int64]
    numbers: dict[str, float]
    rejected: list[tuple[str, str]]


def part_scores(
    classifier: Classifier,
    found: LabelledSet,
    corpus: Corpus,
    positions: NDArray[np.int64],
    *,
    title: str,
    workers: int = 0,
    batch_seconds: float = 60.0,
) -> PartScores:
    """Score some clips of a set; processes share the work and all get the whole.

    Args:
        classifier: with the heads of the set.
        found: the set.
        corpus: of the set's folder.
        positions: of the clips in the set (n,).
        title: for the progress line.
        workers: threads that decode.
        batch_seconds: audio scored at once.

    Raises:
        ValueError: if no clip could be read.
    """
    embedded = embed_corpus(
        classifier,
        corpus.take(found.rows[positions]),
        title=title,
        workers=workers,
        batch_seconds=batch_seconds,
    )
    readable = positions[embedded.rows]
    numbers = score_part(found, embedded.values, readable)
    return PartScores(embedded.values, readable, {**numbers, "n": len(readable)}, embedded.rejected)


def result_of(
    found: LabelledSet, part: PartScores, *, fold: str, metric: str, encoder: str, sha256: str
) -> dict[str, Any]:
    """The result file of a scored part, in the form of a probe's, so that a report can show it.

    Args:
        found: the set, with the classifier's heads.
        part: what was scored.
        fold: of the set; empty for the first.
        metric: number that leads.
        encoder: what was scored.
        sha256: of its weights.

    Raises:
        ValueError: if the clips do not decide the metric.
    """
    split = found.split(fold)
    head = found.heads[0]
    counts = {f"n_{name}": len(rows) for name, rows in split.parts().items()}
    mean = part.numbers[metric]
    if not math.isfinite(mean):
        raise ValueError(
            f"{metric} cannot be told from {len(part.positions)} clips of {found.folder}: no class "
            "has both clips that are of it and others"
        )
    result = {
        "task": str(found.spec),
        "version": __version__,
        "protocol": PROTOCOL,
        "metric": metric,
        "mean": mean,
        "ci95": None,
        "scores": [mean],
        "numbers": plain_numbers(part.numbers),
        "column": PROTOCOL,
        **counts,
        "n": len(part.positions),
        "ids_sha256": found.ids_sha256(part.positions),
        "splits": [{"name": split.name, **counts}],
        "heads": [{"name": h.name, "num_classes": len(h.classes)} for h in found.heads],
        "num_classes": len(head.classes),
        "classes": head.classes,
        "per_class": score_classes(found, part.scores, part.positions),
        "multi_label": found.multi_label,
        "left_out": found.left_out,
        "rejected": [list(pair) for pair in part.rejected],
        "encoder": encoder,
        "encoder_sha256": sha256,
    }
    if not found.multi_label and len(head.classes) <= _MOST_CLASSES_SHOWN:
        own = part.scores[:, : len(head.classes)]
        result["confusion"] = confusion(found, own, part.positions, head=0).tolist()
    return result


def main(argv: list[str]) -> int:
    """`ssmast evaluate`: parse, score, print the table of classes."""
    config = parse(
        EvaluateConfig, argv, command="ssmast evaluate", description=__doc__ or "", dry_run=True
    )
    if config is None:
        return 0
    found, classifier = _open(config)
    positions = found.split(config.fold).parts()[config.part]
    if wants_dry_run(argv):
        sys.stdout.write(f"{found.spec}: {len(positions)} clips, {found.num_outputs} classes\n")
        return 0
    metric = main_metric(found, config.metric)
    state = process_state()
    classifier.network.to(state.device)
    classifier.log_mel.to(state.device)
    part = part_scores(
        classifier,
        found,
        open_corpus(found.folder),
        positions,
        title=f"{found.spec.name}, {config.part}",
        workers=config.workers,
        batch_seconds=config.batch_seconds or scoring_seconds(),
    )
    if state.is_main:
        result = result_of(
            found,
            part,
            fold=config.fold,
            metric=metric,
            encoder=config.encoder,
            sha256=classifier.sha256,
        )
        _write(config, {**result, "part": config.part})
        sys.stdout.write(
            classes_table(result["per_class"]) + "\n" + numbers_text(part.numbers) + "\n"
        )
    return 0


def plain_numbers(numbers: dict[str, float]) -> dict[str, float | None]:
    """The numbers as JSON has them: None for what is infinite or cannot be told."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def numbers_text(numbers: dict[str, float]) -> str:
    """Every number in a line: shares in percent, d' and counts as they are."""
    shown = [
        f"{name.replace('_', ' ')} {value:.2f}"
        if "prime" in name
        else f"{name.replace('_', ' ')} {100 * value:.1f} %"
        for name, value in numbers.items()
        if name != "n"
    ]
    return ", ".join([*shown, f"{int(numbers['n'])} clips"])


def _open(config: EvaluateConfig) -> tuple[LabelledSet, Classifier]:
    """The set in the classifier's class numbers."""
    classifier = load_classifier(config.encoder)
    heads = [Head(name=name, classes=classes) for name, classes in classifier.outputs.heads]
    labels = config.labels
    if not labels and len(heads) > 1:
        labels = [head.name for head in heads]  # a set has one label column of its own
    found = load_labelled(config.data, config.task, labels=labels, share=config.held_out)
    if found.multi_label != classifier.outputs.multi_label:
        kinds = {True: "several labels a clip", False: "one label a clip"}
        raise ValueError(
            f"{config.encoder} was trained for {kinds[classifier.outputs.multi_label]}, "
            f"{found.folder} has {kinds[found.multi_label]}"
        )
    return with_heads(found, heads), classifier


def _write(config: EvaluateConfig, result: dict[str, Any]) -> None:
    folder = Path(config.encoder)
    if (folder / "encoder").is_dir():
        folder = folder / "encoder"
    out = Path(config.out) if config.out else beside(folder, "evaluate")
    words = f"{result['task']}-{result['splits'][0]['name']}-{config.part}"
    name = "".join(c if c.isalnum() or c in "._" else "-" for c in words)
    write_text(out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    commands = [shlex.join(["ssmast", "evaluate", *to_words(config)])]
    write_report(
        out / "report.html",
        results=[result],
        title=f"{result['task']}, {config.part} part",
        commands=commands,
    )
    logger.info("results: %s", out)
