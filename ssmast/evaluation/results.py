"""Results: what is written as JSON and read back, and the table of them.

`Result` is what `ssmast probe`, `ssmast evaluate` and `ssmast finetune` write, `ClusterResult` what
`ssmast cluster` writes; both begin with `About`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from ssmast.encoder.folder import encoder_folder
from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.files import check_output, finite, write_json
from ssmast.html import markdown_table
from ssmast.splits import few_names, other_copies
from ssmast.version import __version__
from ssmast.weights import DEFAULT

_ORIGIN = ("task", "title", "options", "ids_sha256", "counts", "published", "copies")
_ORIGIN += ("differences",)
# None means something there: no interval, no folds.
_WRITTEN_AS_NULL = {"ci95", "fold_scores", "test_interval95"}
# Columns in the order of a table, and how people call them.
TITLES = {
    "pretrained": "pretrained",
    "fine-tuned": "fine-tuned",
    "untrained": "untrained",
    "log_mel": "log-mel",
    "random_conv": "random convolution",
}
MOST_CLASSES_SHOWN = 100
"""Of more classes no confusion is written."""
METRIC_TITLES = {"map": "mAP", "auc": "ROC AUC"}


class JsonRecord:
    """A dataclass that is written as JSON and read back.

    A number that is infinite or undefined becomes null; a null is left out unless it says
    something.
    """

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """What `to_dict` gave; keys of other versions are left out."""
        known = {f.name for f in fields(cast(Any, cls))}
        values = {key: value for key, value in content.items() if key in known}
        if "baselines" in values:
            values["baselines"] = {k: Score.from_dict(v) for k, v in values["baselines"].items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they come back from JSON."""
        return {
            f.name: plain
            for f in fields(cast(Any, self))
            if (plain := _plain(getattr(self, f.name))) is not None or f.name in _WRITTEN_AS_NULL
        }


@dataclass(frozen=True, kw_only=True)
class Score(JsonRecord):
    """What one embedding, or one network, scores on a labelled set.

    Attributes:
        mean: test metric, mean over seeds, of folds over folds too.
        ci95: half-width of the 95 % t interval over seeds, with several folds over folds; None
            for a single value.
        scores: test metric of each seed, over folds the mean.
        fold_scores: (folds, seeds), or None without folds.
        valid: validation metric of what was chosen, mean.
        test_interval95: where the accuracy may lie on other test clips (bootstrap over clips);
            None for another metric.
        also: the other metrics of the same predictions, means; None for an infinite d'.
        classes_scored: classes that the test part has positives and negatives of, mean over folds;
            with one label a clip, those it has clips of.
        chosen: what the validation part decided, one entry a split.
        confusion: counts (true, predicted) added up over seeds and folds; None where clips have
            several labels.
        dim: numbers of an embedding; None where a network was fine-tuned.
        fitted_by: protocol, where it is another than that of the result.
    """

    mean: float
    ci95: float | None = None
    scores: list[float] = field(default_factory=list)
    fold_scores: list[list[float]] | None = None
    valid: float | None = None
    test_interval95: tuple[float, float] | None = None
    also: dict[str, float | None] = field(default_factory=dict)
    classes_scored: float | None = None
    chosen: list[dict[str, Any]] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    seconds: float | None = None
    encoder_sha256: str = ""
    dim: int | None = None
    fitted_by: str | None = None

    @property
    def text(self) -> str:
        """`81.3 ± 0.4`, in percent."""
        return f"{100 * self.mean:.1f}" + ("" if self.ci95 is None else f" ± {100 * self.ci95:.1f}")


@dataclass(frozen=True, kw_only=True)
class About(JsonRecord):
    """What was scored on which clips.

    Attributes:
        task: labelled set and columns, as asked for.
        column: name of what the result is about; others stand beside it for comparison.
        part: that was scored: test, valid, train or all.
        num_classes: classes of the (first) label column.
        ids_sha256: `splits.ids_sha256` of the clips that could be read.
        rejected: (name, reason) of the clips that could not.
        left_out: rows of the set that took no part, by reason.
        seed: the first one.
        pooling: of the embeddings; None where a network was fine-tuned.
        layers: the same.
    """

    task: str
    version: str = __version__
    encoder: str = ""
    data: str = ""
    column: str = "pretrained"
    part: str = "test"
    num_classes: int
    classes: list[str] = field(default_factory=list)
    ids_sha256: str = ""
    rejected: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    pooling: str | None = None
    layers: str | None = None


@dataclass(frozen=True, kw_only=True)
class Result(About, Score):
    """A score with all that has to be known to compare it.

    Attributes:
        protocol: how it was measured; "fine-tuned" for a classifier.
        metric: what `mean` and `scores` are of.
        n_train: clips of the training part, over folds the mean.
        n_valid: the same of the validation part.
        n_test: clips of the test part, over folds the sum.
        splits: name and counts of each.
        num_unseen: test clips of classes that are not trained on.
        untrained: classes without a training clip (in some fold), or that a classifier lacks ->
            scored clips of them.
        untested: classes of which no clip was scored.
        shared: test clips -> a clip of another part with the same bytes.
        multi_label: clips have any number of labels.
        built: of a published data set, which, and where this copy differs from what was published.
        shuffled: labels were permuted, as a control.
        chance: score of an encoder that knows nothing.
        encoder_updated: the protocol trained the encoder too.
        crop_seconds: that clips were cut to.
        candidates: poolings and layers that were tried on the validation part.
        baselines: what else was scored on the same clips, by column.
        inputs_sha256: hash of all that decides the result.
        n: clips that a classifier was scored on.
        numbers: every metric of a classifier; None for one that is infinite or undefined.
        events: `EventScores` of the recordings that the clips are spans of.
        init: weights that fine-tuning started from.
    """

    protocol: str
    metric: str
    n_train: int = 0
    n_valid: int = 0
    n_test: int = 0
    splits: list[dict[str, Any]] = field(default_factory=list)
    num_unseen: int = 0
    untrained: dict[str, int] = field(default_factory=dict)
    untested: list[str] = field(default_factory=list)
    shared: dict[str, str] = field(default_factory=dict)
    multi_label: bool = False
    built: dict[str, Any] = field(default_factory=dict)
    shuffled: bool = False
    chance: float | None = None
    encoder_updated: bool | None = None
    crop_seconds: float | None = None
    candidates: list[dict[str, Any]] | None = None
    baselines: dict[str, Score] = field(default_factory=dict)
    inputs_sha256: str | None = None
    n: int | None = None
    numbers: dict[str, float | None] | None = None
    heads: list[dict[str, Any]] | None = None
    per_class: list[dict[str, Any]] | None = None
    events: dict[str, Any] | None = None
    init: str | None = None

    @property
    def columns(self) -> dict[str, Score]:
        """Everything scored, the column asked for first."""
        return {self.column: self, **self.baselines}

    @property
    def metric_title(self) -> str:
        """The metric as people write it."""
        return METRIC_TITLES.get(self.metric, self.metric.replace("_", " "))


@dataclass(frozen=True, kw_only=True)
class ClusterResult(About):
    """Scores of clusters.

    Attributes:
        normalisation: of the embeddings.
        picture: what the scatter of the page shows; None where none was drawn.
    """

    n: int
    normalisation: str
    num_seeds: int
    columns: dict[str, dict[str, Any]]
    picture: dict[str, Any] | None = None
    kind: str = "clusters"


def set_facts(labelled: LabelledSet) -> dict[str, Any]:
    """What results say of the labelled set, less clips that could not be read; for `Result`."""
    splits = labelled.splits
    counts = [{f"n_{part}": len(rows) for part, rows in split.parts().items()} for split in splits]
    return {
        "task": str(labelled.spec),
        "n_train": round(float(np.mean([count["n_train"] for count in counts]))),
        "n_valid": round(float(np.mean([count["n_valid"] for count in counts]))),
        "n_test": sum(count["n_test"] for count in counts),
        "splits": [
            {"name": split.name, **count} for split, count in zip(splits, counts, strict=True)
        ],
        "num_classes": len(labelled.classes),
        "classes": labelled.classes,
        "left_out": labelled.left_out,
        "num_unseen": labelled.num_unseen,
        "untrained": labelled.untrained,
        "untested": labelled.untested,
        "shared": labelled.shared,
        "multi_label": labelled.multi_label,
        "built": {key: labelled.origin[key] for key in _ORIGIN if key in labelled.origin},
    }


def result_notes(result: Result | ClusterResult) -> list[str]:
    """What the numbers of a result do not tell: the clips and classes that took no part."""
    left_out = dict(result.left_out)
    if result.rejected:
        left_out.setdefault("unreadable", len(result.rejected))
    counts = [f"{n:,} clip{'s' * (n != 1)} ({reason})" for reason, n in left_out.items() if n]
    notes = [f"left out: {', '.join(counts)}"] if counts else []
    if not isinstance(result, Result):
        return notes
    if result.untrained:
        fate = "" if result.multi_label else ", which count as wrong"
        names = [
            f"{name} ({f'{n:,} {result.part} clip' + 's' * (n != 1) + fate if n else 'nor others'})"
            for name, n in result.untrained.items()
        ]
        several = " in some fold" if len(result.splits) > 1 else ""
        notes.append(f"classes without a training clip{several}: {few_names(names)}")
    untested = [name for name in result.untested if name not in result.untrained]
    if untested:
        notes.append(f"classes without a {result.part} clip: {few_names(untested)}")
    if result.shared:
        notes.append(shared_note(result.shared))
    differences = list(result.built.get("differences") or ())
    if differences:
        notes.append(f"not as published: {few_names(differences, between='; ')}")
    copies = other_copies(result.built.get("counts") or {}, result.built.get("copies") or {})
    return notes + [f"other copies of the set: {'; '.join(copies)}"] * bool(copies)


def shared_note(shared: Mapping[str, str]) -> str:
    """That some test clips are known from training, with the first of them."""
    clip, other = next(iter(shared.items()))
    many = len(shared) > 1
    return (
        f"{len(shared):,} test clip{'s' * many} {'have' if many else 'has'} the bytes of a clip of "
        f"another part ({clip} those of {other}), so that what was learnt by heart counts as "
        "right; keep such clips in one part"
    )


def read_result(file: Path) -> Result | ClusterResult | None:
    """The result in a file; None where it is something else.

    Raises:
        OSError, ValueError: if the file cannot be read or is not JSON.
    """
    return parse_result(json.loads(file.read_text(encoding="utf-8")))


def parse_result(content: Any) -> Result | ClusterResult | None:
    """A result out of JSON's plain values; None where they are something else."""
    for kind, wanted in ((Result, {"protocol", "mean"}), (ClusterResult, {"kind", "columns"})):
        if isinstance(content, dict) and {"task", "num_classes", *wanted} <= content.keys():
            return kind.from_dict(content)
    return None


def check_results(*files: Path, encoder: str = "") -> None:
    """Refuse to replace what is no result: JSON files, and tables in Markdown beside them.

    With `encoder`, a folder or name, results of another one are not replaced either.

    Raises:
        FileExistsError, OSError: as `check_output`.
    """
    for file in files:
        check_output(file, begins=r'\{\s*($|"(mean|task)")')  # or cut short
        check_output(file.with_suffix(".md"), begins=r"\| task|no results")
        other = _encoder_of(file) if encoder else ""
        if other and _encoder_place(other) != _encoder_place(encoder):
            raise FileExistsError(
                f"{file} is the result of encoder={other}, and is not replaced by that of "
                f"{encoder}; give another out="
            )


def _encoder_of(file: Path) -> str:
    """The encoder that a result is of; empty for no result, or a folder that is there no more."""
    try:
        found = read_result(file)
    except (OSError, ValueError):
        return ""
    name = found.encoder if found else ""
    is_there = name in (DEFAULT, *TITLES) or ":" in name or Path(name).is_dir()
    return name if is_there else ""


def _encoder_place(name: str) -> Path | str:
    """What tells one encoder from another, however its folder is written."""
    return encoder_folder(name).resolve() if Path(name).is_dir() else name


def write_result(file: Path, result: Result | ClusterResult) -> None:
    """Write the JSON of a result, whole or not at all."""
    write_json(file, result.to_dict())


def _plain(value: Any) -> Any:
    if isinstance(value, JsonRecord):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return finite(value)


def beside(encoder: str | Path, name: str) -> Path:
    """Where results go if nothing is said: a folder beside the encoder's, else here.

    Encoders side by side have one each: probe/ is that of encoder/, frogs-probe/ of frogs/.
    """
    folder = encoder_folder(encoder).resolve()
    if not folder.is_dir():
        return Path(name)
    return folder.parent / (name if folder.name == "encoder" else f"{folder.name}-{name}")


def result_file(out: Path, labelled: LabelledSet, protocol: str) -> Path:
    """Where the result of a task belongs."""
    return out / f"{file_name(str(labelled.spec))}.{protocol}.json"


def file_name(task: str) -> str:
    """A task as the name of a file or folder; letters of any script stay.

    >>> file_name("fsdd:label=声,split=b")
    'fsdd-label-声-split-b'
    """
    return re.sub(r"[^\w.-]+", "-", task).strip("-")


def results_table(results: list[Result]) -> str:
    """Markdown: one row a task, then the average with the differences to the first column."""
    if not results:
        return "no results\n"
    first = results[0]
    names = list(first.columns)
    titles = [TITLES.get(name, name) for name in names]
    differ = len({result.dim for result in results}) > 1
    several = len({result.metric for result in results}) > 1
    rows = []
    for result in results:
        counts = f"{result.n_train} / {result.n_valid} / {result.n_test}"
        if len(result.splits) > 1:
            counts += f", {len(result.splits)} folds"
        task = result.task + (f" ({result.metric_title})" if several else "")
        task += ", shuffled labels" if result.shuffled else ""
        scores = [result.columns[name] for name in names]
        cells = [score.text + (f" ({score.dim or '?'})" if differ else "") for score in scores]
        rows.append([task, result.num_classes, counts, *cells])
    averages = [
        sum(result.columns[name].mean for result in results) / len(results) for name in names
    ]
    shown = [f"{100 * averages[0]:.1f}"] + [
        f"{100 * value:.1f} ({100 * (value - averages[0]):+.1f})" for value in averages[1:]
    ]
    many = f"average of {len(results)} tasks" if len(results) > 1 else "average"
    rows.append([f"**{many}**", "", "", *(f"**{v}**" for v in shown)])
    dims = ", ".join(
        f"{title} {score.dim or '?'}"
        for title, score in zip(titles, first.columns.values(), strict=True)
    )
    metrics = ", ".join(dict.fromkeys(result.metric_title for result in results))
    poolings = ", ".join(dict.fromkeys(str(result.pooling) for result in results))
    seeds = f"{len(first.scores)} seed" + ("s" if len(first.scores) != 1 else "")
    note = (
        f"\nTest {metrics} in %, protocol {first.protocol}, pooling {poolings}, dimensions: "
        f"{'in brackets behind the scores' if differ else dims}. ± is the 95 % t interval over "
        f"{seeds}, over the folds where there are folds. In brackets: the difference to the first "
        "column.\n"
    )
    note += "".join(f"\n{one.task}: {said}.\n" for one in results for said in result_notes(one))
    head = ["task", "classes", "train / valid / test", *titles]
    return markdown_table(head, rows, numbers=len(names)) + note
