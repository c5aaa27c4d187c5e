"""What a report is made of: runs and results, found in the folders and files a user names."""

import csv
import io
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ssmast.evaluation.results import ClusterResult, Result, read_result

logger = logging.getLogger(__name__)

_RUN_FILES = ("config.yaml", "metrics.jsonl", "facts.json")
# Where `ssmast probe` and `ssmast cluster` put results of an encoder beside its folder.
_RESULT_FOLDERS = ("probe", "clusters")


@dataclass(kw_only=True)
class Source:
    """One encoder: the run that made it, as far as it is known, and what it scored.

    Attributes:
        run: its run folder; None where only results were given.
        probes: results of `ssmast probe`, `ssmast evaluate` and `ssmast finetune`.
        clusters: results of `ssmast cluster`.
    """

    name: str
    run: Path | None = None
    probes: list[Result] = field(default_factory=list)
    clusters: list[ClusterResult] = field(default_factory=list)

    @property
    def tuned(self) -> Result | None:
        """The result of its fine-tuning; None where it was only probed."""
        return next((result for result in self.probes if result.column == "fine-tuned"), None)

    def add(self, result: Result | ClusterResult) -> None:
        """Put a result where it belongs, once."""
        own: list[Any] = self.probes if isinstance(result, Result) else self.clusters
        if result not in own:
            own.append(result)

    def read(self, name: str) -> str:
        """Text of a file of the run; empty where there is none."""
        file = None if self.run is None else self.run / name
        if file is None or not file.is_file():
            return ""
        return file.read_text(encoding="utf-8", errors="replace")

    def read_mapping(self, name: str) -> dict[str, Any]:
        """A JSON or YAML file of the run; empty where there is none."""
        content = yaml.safe_load(self.read(name))  # JSON is YAML too
        return content if isinstance(content, dict) else {}

    @property
    def is_fine_tuning(self) -> bool:
        """True of a run of `ssmast finetune`: pretraining has no heads of classes."""
        return "heads" in self.read_mapping("config.yaml")

    @property
    def objective(self) -> str:
        """What the run was trained for, as its config.yaml says: ss_mast, ssast, finetune, ...

        Empty where that is not known.
        """
        config = self.read_mapping("config.yaml")
        named = config.get("objective") or config.get("method") or ""
        return "finetune" if self.is_fine_tuning else str(named)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that can be read: a run in progress may be writing one."""
        rows = []
        for line in self.read("metrics.jsonl").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line a kill cut short
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows

    def read_quarantine(self) -> list[tuple[str, str]]:
        """(name, reason) of every clip left out, in training and in scoring."""
        listed = csv.DictReader(io.StringIO(self.read("quarantine.csv"), newline=""))
        rows = {(row.get("name") or "", row.get("reason") or "") for row in listed}
        for result in (*self.probes, *self.clusters):
            rows |= {(name, reason) for name, reason in result.rejected}
        return sorted(rows)


def run_source(run: Path | None, probes: list[Result] | None = None) -> Source:
    """A run with the results that lie in it; `probes` take the place of those in probe/."""
    source = Source(name="" if run is None else run.resolve().name, run=run)
    for result in [] if run is None else _results_in(run):
        source.add(result)
    if probes is not None:
        source.probes = probes
    return source


def _results_in(path: Path) -> list[Result | ClusterResult]:
    return [one for name in ("", *_RESULT_FOLDERS) for one in read_results(path / name)]


def read_sources(paths: list[Path]) -> list[Source]:
    """Runs and results in the order they were named; results join the encoder they are of.

    Paths are run folders, folders of results, and result files.

    Raises:
        FileNotFoundError: if a path is not there, or holds neither a run nor a result.
    """
    sources: dict[str, Source] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"there is no run or result at {path}")
        is_run = path.is_dir() and any((path / name).is_file() for name in _RUN_FILES)
        if is_run:
            sources.setdefault(str(path.resolve()), Source(name="")).run = path
        results = _results_in(path)
        if not is_run and not results:
            raise FileNotFoundError(
                f"{path} holds neither a run (config.yaml, metrics.jsonl) nor a result of "
                "`ssmast probe` or `ssmast cluster` (*.json)"
            )
        for result in results:
            home = str(path.resolve()) if is_run else _home(result)
            sources.setdefault(home, Source(name="")).add(result)
    for home, source in sources.items():
        source.name = Path(home).name if home.startswith("/") else home
    _make_names_unique(sources)
    return list(sources.values())


def read_results(path: Path) -> list[Result | ClusterResult]:
    """The results in a file, or in the files (*.json) of a folder by name; other files are not."""
    results = []
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path] * path.is_file():
        try:
            found = read_result(file)
        except (ValueError, TypeError, OSError) as error:
            logger.warning("%s is no result (%s); left out of the report", file, error)
            continue
        if found is not None:
            results.append(found)
    return results


def _home(result: Result | ClusterResult) -> str:
    """The run folder that the encoder of a result lies in, else the encoder's name."""
    encoder = result.encoder or "results"
    folder = Path(encoder)
    if not folder.is_dir() and not folder.is_absolute():
        return encoder
    return str(folder.resolve().parent if folder.name == "encoder" else folder.resolve())


def _make_names_unique(sources: dict[str, Source]) -> None:
    """Give sources of the same name more of their path."""
    names = [source.name for source in sources.values()]
    for home, source in sources.items():
        if names.count(source.name) > 1:
            source.name = "/".join(Path(home).parts[-2:])
