"""The run folder: its name, who may write into it, and where it is resumed from."""

import json
import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssmast.encoder.folder import read_json
from ssmast.files import (
    append_lines,
    as_text,
    check_output,
    json_lines,
    locked,
    plain_yaml,
    write_atomic,
    write_json,
)
from ssmast.settings import flatten, refuse_renamed, to_dict, to_yaml
from ssmast.training.checkpoint import newest_checkpoint

logger = logging.getLogger(__name__)

# Settings that may differ when a run is resumed: they change no number that is trained on.
# `data` is compared by content; `optim.gradient_accumulation_steps` and the number of processes
# only change how float32 rounds.
MAY_CHANGE = {
    "run", "resume", "workers", "processes", "threads", "log_every", "checkpoint_every", "cache",
    "keep_checkpoints", "tensorboard", "track", "show_views", "recipe", "data", "precision",
    "alarm", "max_skipped", "probe.data", "probe.tasks", "probe.every", "probe.max_clips",
    "max_bad_fraction", "scoring.batch_seconds", "grad_checkpointing",
    "optim.gradient_accumulation_steps", "export.network", "export.pooling", "export.layers",
    "export.window_seconds",
}  # fmt: skip

_ITS_OWN = ("segments", "looks")  # what only the run itself needs of its facts


def facts_of_encoder(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts of a run, less those of which its encoder tells nothing."""
    return {key: value for key, value in facts.items() if key not in _ITS_OWN}


@dataclass(kw_only=True)
class RunFolder:
    """Paths of one run, and the checkpoint it resumes from."""

    path: Path
    resume_from: Path | None = None
    finished: bool = False
    config_file: Path = field(init=False)

    def __post_init__(self) -> None:
        """Derive the paths."""
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.encoder = self.path / "encoder"
        self.report = self.path / "report.html"
        self.quarantine_file = self.path / "quarantine.csv"
        self.skipped_file = self.path / "skipped.jsonl"
        self.views = self.path / "views.png"
        self.facts_file = self.path / "facts.json"

    def write_config(self, config: Any) -> None:
        """Create the folder with its resolved settings."""
        write_atomic(self.config_file, to_yaml(config))

    def read_config(self) -> dict[str, Any]:
        """The settings that the run was made with.

        Raises:
            FileNotFoundError: if the folder is no run.
            ValueError: if the file is damaged.
            UsageError: if a version of ssmast wrote them that had other names for its keys.
        """
        file = self.config_file
        if not file.is_file():
            raise FileNotFoundError(f"{self.path} is no run folder: it has no {file.name}")
        found = plain_yaml(as_text(file.read_bytes(), file), file)
        if not isinstance(found, dict):
            raise ValueError(
                f"{file} holds no settings of a run; put back the file as it was written"
            )
        refuse_renamed(flatten(found), where=f"{file}, which ssmast 0.1.0 wrote,")
        return found

    @property
    def is_fine_tuning(self) -> bool:
        """True of a run of `ssmast finetune`: pretraining has no heads of classes."""
        return "heads" in self.read_config()

    def read_facts(self) -> dict[str, Any]:
        """What the run found out once and keeps (corpus, mean and std); empty before that.

        Raises:
            ValueError: if the file is damaged.
        """
        if not self.facts_file.is_file():
            return {}
        facts = read_json(self.facts_file)
        lost = [key for key in ("clips", "corpus", "mean", "std") if key not in facts]
        if lost:
            raise ValueError(
                f"{self.facts_file} has lost {', '.join(lost)}; put back the file as it was written"
            )
        return facts

    def write_facts(self, facts: dict[str, Any]) -> None:
        """Keep facts that a resumed run must not measure again."""
        write_json(self.facts_file, facts)

    def locked(self) -> AbstractContextManager[None]:
        """Keep a second run out, such as one started while an orphan of the first still saves.

        Raises:
            BlockingIOError: if another process holds it.
        """
        return locked(self.path / ".lock", doing=f"training in {self.path}", key="run")


def open_run(config: Any, *, root: Path = Path("runs")) -> RunFolder:
    """Decide where the run lives and whether it is resumed.

    Raises:
        FileExistsError: if the folder holds another run, or one that was not asked to be resumed.
        FileNotFoundError: if a named checkpoint does not exist.
        ValueError: if the settings of the run are damaged.
    """
    path = Path(config.run) if config.run else _free_name(config, root)
    folder = RunFolder(path=path)
    started = folder.config_file.is_file()
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"run folder {path} is a file; choose another run=")
    check_output(path, key="run", folder=True)
    # Hidden files are what a kill leaves of a file that was being written.
    if path.is_dir() and not started and any(f.name[0] != "." for f in path.iterdir()):
        raise FileExistsError(f"{path} holds files but is not a run folder; choose another run=")
    if config.resume not in {"never", "auto"}:
        folder.resume_from = Path(config.resume)
        if not folder.resume_from.is_dir():
            raise FileNotFoundError(
                f"checkpoint {config.resume} does not exist; give a folder such as "
                f"{folder.checkpoints}/00000200, or resume=auto"
            )
    elif config.resume == "auto" and started:
        folder.resume_from = newest_checkpoint(folder.checkpoints)
    elif started:
        raise FileExistsError(
            f"{path} already holds a run; add resume=auto to resume it or choose another run="
        )
    if started:
        _same_settings(config, folder)
        # The report is written last: a kill before it leaves the end of the run to be done again.
        done = (folder.encoder / "checksums.json", folder.report)
        folder.finished = all(file.is_file() for file in done)
    return folder


def _free_name(config: Any, root: Path) -> Path:
    name = Path(config.recipe).stem or "pretrain"
    taken = [root / name, *(root / f"{name}-{i}" for i in range(2, 10_000))]
    existing = [path for path in taken if path.exists()]
    if config.resume == "auto" and existing:
        return existing[-1]
    return next(path for path in taken if not path.exists())


def _same_settings(config: Any, folder: RunFolder) -> None:
    before = folder.read_config()
    known = flatten(before)
    lost = [key for key in flatten(to_dict(config)) if key not in known and key not in MAY_CHANGE]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise ValueError(
            f"{folder.config_file} has no {', '.join(lost[:3])}{more}: it is cut short, or of "
            "another command or version; put back the file as it was written or choose another run="
        )
    changed = changed_settings(before, to_dict(config))
    if changed:
        # Of fine-tuning, what is not given is sized by the set: rows added to it change optim.lr.
        data = ", on the same data=," if folder.is_fine_tuning else ""
        raise FileExistsError(
            f"{folder.path} was started with other settings: {'; '.join(changed)}; "
            f"use those again{data} or choose another run="
        )


def changed_settings(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Every setting (dotted) that differs though it must not, as `key (was 1, now 2)`."""
    changed = []
    for key in now:
        name, old, new = prefix + key, before.get(key), now[key]
        if isinstance(old, dict) and isinstance(new, dict):
            changed += changed_settings(old, new, f"{name}.")
        elif name not in MAY_CHANGE and old != new:
            changed.append(f"{name} (was {old}, now {new})")
    return changed


def write_skipped(
    file: Path, *, step: int, loss: float, grad_norm: float, items: list[dict[str, Any]]
) -> None:
    """Append one skipped step.

    Args:
        file: skipped.jsonl.
        step: number of the step, as in metrics.jsonl.
        loss: of one process; NaN and infinity become text.
        grad_norm: likewise.
        items: position, epoch, clip and name of each item, in the order of the batch.
    """
    row = {"step": step, "loss": str(loss), "grad_norm": str(grad_norm), "items": items}
    append_lines(file, json.dumps(row).encode() + b"\n")


def read_skipped(file: Path) -> list[dict[str, Any]]:
    """The skipped steps of a run, the last word on each step; empty if nothing was skipped.

    A line that a kill cut short is left out, with a warning.

    Raises:
        ValueError: if a line is not one of `write_skipped`.
    """
    found, lost = json_lines(file)
    try:
        rows = {int(row["step"]): row for row in found if row["items"] is not None}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no list of skipped steps; give the run's own file") from error
    if lost:
        logger.warning("%s: %d lines are cut short, left out", file, lost)
    return [rows[step] for step in sorted(rows)]
