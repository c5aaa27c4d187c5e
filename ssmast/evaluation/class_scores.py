"""Scores of a classifier on clips with known labels: overall and by class."""

from typing import Any

from torch import Tensor

from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.evaluation.metrics import (
    METRICS,
    average_precision,
    balanced_accuracy,
    confusion_matrix,
    roc_auc,
)
from ssmast.files import finite
from ssmast.html import markdown_table

EVENT_NUMBERS = ("f1", "precision", "recall", "mean_f1")
"""What of `EventScores` stands among the numbers of a part, as event_f1 and so on."""


def top_k(scores: Tensor, targets: Tensor, *, k: int) -> float:
    """Fraction of clips whose class number (n,) is among the k highest scores (n, C)."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return float((best == targets[:, None]).any(dim=1).double().mean())


def action_top_k(
    verb_scores: Tensor, noun_scores: Tensor, verbs: Tensor, nouns: Tensor, *, k: int
) -> float:
    """Fraction of clips whose pair is among the k likeliest, a pair's chance being the product.

    Of log-probabilities (n, V) and (n, N), and class numbers (n,).

    Source: Damen et al. 2022 (EPIC-KITCHENS-100), the action-recognition challenge.
    Differs from its code: logarithms are added in float64, where the code multiplies
    probabilities that can underflow.
    """
    hits = 0
    rows = zip(verb_scores.double(), noun_scores.double(), verbs, nouns, strict=True)
    for verb, noun, i, j in rows:
        pairs = (verb[:, None] + noun).flatten()  # (V * N,)
        best = pairs.topk(min(k, len(pairs))).indices
        hits += int(bool(i >= 0) and bool(j >= 0) and bool((best == i * len(noun) + j).any()))
    return hits / len(verbs)


def score_part(labelled: LabelledSet, scores: Tensor, positions: Any) -> dict[str, float]:
    """Every number of a part.

    Scores (n, classes of all heads) of the clips at `positions` are log-probabilities of each head,
    or logits where clips have several labels.
    """
    if labelled.multi_label:
        targets = labelled.one_hot(positions)
        several = [metric for metric in METRICS.values() if metric.multi_label]
        return {metric.name: float(metric.score(scores, targets)) for metric in several}
    numbers: dict[str, float] = {}
    by_head = scores.split([len(head.classes) for head in labelled.heads], dim=1)
    truths = [labelled.class_numbers(i, positions) for i in range(len(labelled.heads))]
    for head, own, truth in zip(labelled.heads, by_head, truths, strict=True):
        prefix = f"{head.name}_" if len(labelled.heads) > 1 else ""
        numbers[f"{prefix}accuracy"] = top_k(own, truth, k=1)
        numbers[f"{prefix}top5"] = top_k(own, truth, k=5)
        numbers[f"{prefix}balanced_accuracy"] = float(balanced_accuracy(own, truth))
    if len(labelled.heads) == 2:
        for name, k in (("action_accuracy", 1), ("action_top5", 5)):
            numbers[name] = action_top_k(*by_head, *truths, k=k)
    return numbers


def main_metric(labelled: LabelledSet, asked: str = "", *, events: bool = False) -> str:
    """What a set is chosen and reported by: asked for, its own, or what its labels suggest.

    With `events`, one of `EVENT_NUMBERS` may be asked for.

    Raises:
        ValueError: if that is no number of `score_part` for such labels.
    """
    if labelled.multi_label:
        known = ("map", "auc")  # a d' may be infinite
    elif len(labelled.heads) == 1:
        known = ("accuracy", "top5", "balanced_accuracy")
    else:
        known = tuple(f"{head.name}_accuracy" for head in labelled.heads)
        known = (("action_accuracy", "action_top5") if len(labelled.heads) == 2 else ()) + known
    if events:
        known += ("event_f1", "event_mean_f1")
    if asked and asked not in known:
        raise ValueError(f"metric must be one of {', '.join(known)} for this set, got {asked!r}")
    own = str(labelled.origin.get("metric") or "")
    return asked or (own if own in known else known[0])


def score_classes(labelled: LabelledSet, scores: Tensor, positions: Any) -> list[dict[str, Any]]:
    """One row a class of each head: clips, and how well it is labelled.

    Recall and precision where a clip has one class; average precision and AUC where it has several.
    """
    if labelled.multi_label:
        targets = labelled.one_hot(positions)
        precision, auc = average_precision(scores, targets), roc_auc(scores, targets)
        return [
            {"head": labelled.heads[0].name, "class": name, "n": int(targets[:, i].sum())}
            | plain_numbers({"average_precision": float(precision[i]), "auc": float(auc[i])})
            for i, name in enumerate(labelled.classes)
        ]
    rows: list[dict[str, Any]] = []
    by_head = scores.split([len(head.classes) for head in labelled.heads], dim=1)
    for number, (head, own) in enumerate(zip(labelled.heads, by_head, strict=True)):
        matrix = confusion(labelled, own, positions, head=number)
        right, clips, claimed = matrix.diag(), matrix.sum(dim=1), matrix.sum(dim=0)
        rows += [
            {
                "head": head.name,
                "class": name,
                "n": int(clips[i]),
                "recall": float(right[i] / clips[i]) if clips[i] else None,
                "precision": float(right[i] / claimed[i]) if claimed[i] else None,
            }
            for i, name in enumerate(head.classes)
        ]
    return rows


def confusion(labelled: LabelledSet, scores: Tensor, positions: Any, *, head: int) -> Tensor:
    """Counts (true class, predicted class) of one head, from its scores (n, C)."""
    return confusion_matrix(
        scores.argmax(dim=1),
        labelled.class_numbers(head, positions),
        num_classes=len(labelled.heads[head].classes),
    )


def event_rows(events: dict[str, Any]) -> list[dict[str, Any]]:
    """The classes of an `EventScores`, in the form of `score_classes`."""
    return [
        {"head": "", "class": name, **{key: row[key] for key in ("n", "f1", "precision", "recall")}}
        for name, row in events["classes"].items()
    ]


def classes_table(rows: list[dict[str, Any]], *, what: str = "clips") -> str:
    """`score_classes` as Markdown, the worst found first; classes without one of `what` last."""
    if not rows:
        return ""
    keys = [key for key in rows[0] if key not in ("head", "class", "n")]
    several = len({row["head"] for row in rows}) > 1

    def cell(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f}"

    ordered = sorted(
        rows, key=lambda row: (row["head"], row[keys[0]] is None, row[keys[0]] or 0.0, row["class"])
    )
    named = [*(["head"] if several else []), "class", "n"]
    head = [{"n": what}.get(key, key.replace("_", " ")) for key in [*named, *keys]]
    cells = [[*(row[key] for key in named), *(cell(row[key]) for key in keys)] for row in ordered]
    return markdown_table(head, cells, numbers=len(keys))


def plain_numbers(numbers: dict[str, float]) -> dict[str, float | None]:
    """The numbers as JSON has them: None for what is infinite or undefined."""
    return {name: finite(value) for name, value in numbers.items()}


def numbers_text(numbers: dict[str, float]) -> str:
    """Every number in a line: rates in percent, d' and counts as they are."""
    shown = [
        f"{name.replace('_', ' ')} {value:.2f}"
        if "prime" in name
        else f"{name.replace('_', ' ')} {100 * value:.1f} %"
        for name, value in numbers.items()
        if name != "n"
    ]
    return ", ".join([*shown, f"{int(numbers['n'])} clips"])
