"""Result files: what they say of a task, and reading and writing them."""

import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np

from ssmast.evaluation.task import Task

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
        "version": version("ssmast"),
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
