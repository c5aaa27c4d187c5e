"""Result files: what they say of a task, and reading and writing them.

Results as a Markdown table: tasks down, columns across, means with intervals.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, cast

import numpy as np

from ssmast.evaluation.labelled_set import Task
from ssmast.version import __version__

_ORIGIN = ("task", "title", "options", "ids_sha256", "counts", "published", "differences")


def task_facts(task: Task) -> dict[str, Any]:
    """What was scored on; counts over folds are means of train and valid, the sum of test."""
    parts = [
        {"name": split.name, **{f"n_{part}": len(rows) for part, rows in split.parts().items()}}
        for split in task.splits
    ]
    counts = {key: [cast(int, part[key]) for part in parts] for key in parts[0] if key != "name"}
    return {
        "task": str(task.spec),
        "version": __version__,
        "n_train": round(float(np.mean(counts["n_train"]))),
        "n_valid": round(float(np.mean(counts["n_valid"]))),
        "n_test": sum(counts["n_test"]),
        "splits": parts,
        "num_classes": len(task.classes),
        "classes": task.classes,
        "ids_sha256": task.ids_sha256,
        "left_out": task.left_out,
        "num_unseen": task.num_unseen,
        "multi_label": task.multi_label,
        # Of a published data set: which, and where this copy is not what was published.
        "built": {key: task.origin[key] for key in _ORIGIN if key in task.origin},
    }


def beside(encoder: str | Path, name: str) -> Path:
    """Where results go if nothing is said: a folder beside the encoder's, else here."""
    folder = Path(encoder)
    return folder.resolve().parent / name if folder.is_dir() else Path(name)


def result_file(out: Path, task: Task, protocol: str) -> Path:
    """Where the result of a task belongs."""
    name = re.sub(r"[^\w.-]+", "-", str(task.spec)).strip("-")  # letters of any script stay
    return out / f"{name}.{protocol}.json"


def read_done(file: Path, inputs: str) -> dict[str, Any] | None:
    """The result of an earlier run with the very same inputs, if there is one."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("inputs_sha256") == inputs else None


def write_text(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


TITLES = {"pretrained": "pretrained", "untrained": "untrained", "log_mel": "log-mel"}


def columns_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scored columns of one result, the one asked for first."""
    return {result.get("column", "pretrained"): result, **result.get("baselines", {})}


def results_table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row a task, then the average with the differences to the first column.

    Args:
        results: what `run_suite` returns, all with the same columns.
    """
    if not results:
        return "no results\n"
    names = list(columns_of(results[0]))
    metric = ", ".join(dict.fromkeys(title_of(result["metric"]) for result in results))
    head = ["task", "classes", "train / valid / test", *(TITLES.get(n, n) for n in names)]
    differ = len({result["dim"] for result in results}) > 1
    lines = [_row(head), _row(["---"] * 3 + ["---:"] * len(names))]
    for result in results:
        counts = f"{result['n_train']} / {result['n_valid']} / {result['n_test']}"
        if len(result["splits"]) > 1:
            counts += f", {len(result['splits'])} folds"
        columns = columns_of(result)
        scores = [
            score_text(columns[name]) + (f" ({columns[name].get('dim', '?')})" if differ else "")
            for name in names
        ]
        lines.append(
            _row([_task_name(result, results), str(result["num_classes"]), counts, *scores])
        )
    averages = [
        sum(columns_of(result)[name]["mean"] for result in results) / len(results) for name in names
    ]
    shown = [f"{100 * averages[0]:.1f}"] + [
        f"{100 * value:.1f} ({100 * (value - averages[0]):+.1f})" for value in averages[1:]
    ]
    lines.append(_row([f"**average of {len(results)}**", "", "", *(f"**{v}**" for v in shown)]))
    first = results[0]
    dimensions = (
        "in brackets behind the scores"
        if differ
        else ", ".join(f"{TITLES.get(n, n)} {columns_of(first)[n].get('dim', '?')}" for n in names)
    )
    note = (
        f"\nTest {metric} in %, protocol {first['protocol']}, pooling "
        f"{', '.join(dict.fromkeys(str(result['pooling']) for result in results))}, "
        f"dimensions: {dimensions}. ± is the 95 % t interval over {len(first['scores'])} seed(s), "
        "over the folds where there are folds. In brackets: the difference to the first column.\n"
    )
    return "\n".join(lines) + "\n" + note


def title_of(metric: str) -> str:
    """A metric as people write it."""
    return {"map": "mAP", "auc": "ROC AUC"}.get(metric, metric.replace("_", " "))


def _task_name(result: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """The task, with its metric where the tasks' metrics differ."""
    several = len({other["metric"] for other in results}) > 1
    shuffled = ", shuffled labels" if result.get("shuffled") else ""
    return result["task"] + (f" ({title_of(result['metric'])})" if several else "") + shuffled


def score_text(column: dict[str, Any]) -> str:
    """`81.3 ± 0.4`, in percent."""
    ci95 = column["ci95"]
    return f"{100 * column['mean']:.1f}" + ("" if ci95 is None else f" ± {100 * ci95:.1f}")


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
