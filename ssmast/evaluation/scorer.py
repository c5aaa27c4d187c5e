"""A task -> the result file's content: embeddings of every column, a probe of each."""

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ssmast.audio import AudioError, Corpus, open_corpus, read_audio
from ssmast.encoder import Encoder
from ssmast.evaluation.baselines import Column
from ssmast.evaluation.embed import (
    NOT_FINITE,
    Embedder,
    Embeddings,
    TaskEmbeddings,
    embed_corpus,
    rejected_clips,
)
from ssmast.evaluation.finetuned_probe import run_finetuned_probe
from ssmast.evaluation.labelled_set import Task, random_validation, shuffled, without
from ssmast.evaluation.probe import ProbeResult, metric_of, run_probe
from ssmast.evaluation.processes import Processes, process_state, scoring_seconds
from ssmast.evaluation.protocols import Crop, crop_seconds, get_protocol
from ssmast.evaluation.results import task_facts
from ssmast.evaluation.small_task import chance
from ssmast.version import __version__

logger = logging.getLogger(__name__)

# Part of what decides whether a result still stands: raise it when a probe would give another.
VERSION = 3
_MOST_CLASSES_SHOWN = 100


@dataclass(frozen=True)
class Scorer:
    """Scores tasks by one protocol.

    Attributes:
        columns: what is scored, the one asked for first.
        protocol: name.
        metric: empty for each task's own.
        num_seeds: repetitions; 0 for the protocol's own number.
        seed: added to the protocol's first one; also that of shuffling.
        lr: 0 for the protocol's.
        crop_seconds: 0 for the published lengths.
        num_epochs: of a protocol that trains the encoder.
        shuffle: permute the labels.
        cache: folder of embeddings.
        workers: threads that decode.
        batch_seconds: audio embedded at once; 0 for 20, on a GPU 600.
    """

    columns: list[Column]
    protocol: str
    cache: Path
    metric: str = ""
    num_seeds: int = 0
    seed: int = 0
    lr: float = 0.0
    crop_seconds: float = 0.0
    num_epochs: int = 100
    shuffle: bool = False
    workers: int = 0
    batch_seconds: float = 0.0
    _corpora: dict[Path, Corpus] = field(default_factory=dict)

    def embed_all(self, task: Task, processes: Processes) -> None:
        """Fill the cache with all that scoring the task will take."""
        for column in self.columns:
            for embedder in column.variants:
                self._embed(task, column, embedder, processes)

    def score(self, task: Task) -> dict[str, Any]:
        """One task: the first column's result, those of the others under `baselines`.

        Raises:
            ValueError: if the metric or the protocol does not fit the task.
        """
        metric = metric_of(task, self.metric).name
        preset = get_protocol(self.protocol)
        if preset.random_valid and len(task.splits) > 1:
            task = random_validation(task, share=preset.random_valid)
        if self.shuffle:
            task = shuffled(task, seed=self.seed)
        if preset.updates_encoder:
            rows, settings, rejected, candidates = self._finetuned(task, metric)
        else:
            rows, settings, rejected, candidates = self._probed(task, metric)
        task = without(task, [clip for clip, _ in rejected])
        main, *others = rows
        for name in others if len(task.classes) <= _MOST_CLASSES_SHOWN else rows:
            del rows[name]["confusion"]
        crop = crop_seconds(self.protocol, self._built(task), self.crop_seconds)
        return {
            **task_facts(task),
            "protocol": self.protocol,
            "metric": metric,
            "seed": self.seed,
            "shuffled": self.shuffle,
            "chance": chance(task, metric, shuffled=self.shuffle),
            "encoder_updated": preset.updates_encoder,
            "crop_seconds": crop or None,
            "pooling": settings.get("pooling", "mean+std over time"),
            "layers": settings.get("layers", ""),
            **({"candidates": candidates} if candidates else {}),
            "column": main,
            **rows[main],
            "rejected": [[name, reason] for name, reason in rejected],
            "baselines": {name: rows[name] for name in others},
        }

    def inputs_sha256(self, task: Task, *, encoder: str) -> str:
        """Hash of all that decides the result of a task."""
        parts = {
            "columns": {
                column.name: [column.sha256, [e.settings() for e in column.variants]]
                for column in self.columns
            },
            "task": [
                *(str(task.spec), task.ids_sha256, task.labels_sha256, task.separator),
                self._corpus(task).files_hash,
            ],
            "probe": [
                *(self.protocol, metric_of(task, self.metric).name, self.num_seeds, self.seed),
                *(self.lr, self.crop_seconds, self.num_epochs, self.shuffle),
            ],
            "encoder": encoder,
            "version": [VERSION, __version__],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def can_be_read_now(self, task: Task, rejected: list[list[str]]) -> bool:
        """Whether one of the clips that an earlier result had to leave out can be read by now."""
        corpus, row_of = self._corpus(task), dict(zip(task.clips, task.rows.tolist(), strict=True))
        for clip, reason in rejected:
            if clip not in row_of or reason == NOT_FINITE:
                continue
            try:
                read_audio(corpus.source(row_of[clip]), name=clip)
            except (AudioError, OSError):
                continue
            return True
        return False

    # -- frozen encoders -------------------------------------------------------------------------

    def _probed(self, task: Task, metric: str) -> tuple[Any, ...]:
        alone = Processes(rank=0, size=1, device=process_state().device)
        main = self.columns[0]
        tried = [self._embed(task, main, embedder, alone) for embedder in main.variants]
        candidates: list[dict[str, Any]] = []
        best = 0
        if len(tried) > 1:
            best, candidates = self._choose(task, metric, tried)
        # All columns are embedded alike, so that one comparison has one setting.
        embedders = {
            column.name: column.variants[best if len(column.variants) > 1 else 0]
            for column in self.columns
        }
        found = {main.name: tried[best]} | {
            column.name: self._embed(task, column, embedders[column.name], alone)
            for column in self.columns[1:]
        }
        rejected = self._rejected(task, list(found.values()))
        task = without(task, [clip for clip, _ in rejected])
        rows = {}
        for column in self.columns:
            embedder = embedders[column.name]
            features, test = found[column.name].of(task, alone.device)
            result = self._probe(task, metric, embedder, features, test)
            rows[column.name] = self._row(task, column, embedder, result)
        return rows, embedders[main.name].settings(), rejected, candidates

    def _choose(
        self, task: Task, metric: str, tried: list[TaskEmbeddings]
    ) -> tuple[int, list[dict[str, Any]]]:
        """The variant of the first column that is best on validation; equals: the smallest."""
        rejected = self._rejected(task, tried)
        task = without(task, [clip for clip, _ in rejected])
        candidates = []
        for vectors, embedder in zip(tried, self.columns[0].variants, strict=True):
            features, test = vectors.of(task, process_state().device)
            result = self._probe(task, metric, embedder, features, test)
            settings = embedder.settings()
            candidates.append(
                {key: settings[key] for key in ("pooling", "layers")}
                | {"dim": embedder.dim, "valid": result.valid}
            )
            logger.info("%s: %s", task.spec, candidates[-1])
        scores = [candidate["valid"] for candidate in candidates]
        return scores.index(max(scores)), candidates

    def _probe(
        self, task: Task, metric: str, embedder: Embedder, features: Tensor, test: Tensor | None
    ) -> ProbeResult:
        return run_probe(
            features,
            task,
            protocol=self.protocol,
            metric=metric,
            num_seeds=self.num_seeds,
            seed=self.seed,
            test_features=test,
            widths=embedder.layer_dims if isinstance(embedder, Encoder) else (),
            lr=self.lr,
        )

    def _embed(
        self, task: Task, column: Column, embedder: Embedder, processes: Processes
    ) -> TaskEmbeddings:
        """Vectors of the whole corpus of a task."""
        corpus = self._corpus(task)

        def embedded(crop: Crop | None) -> Embeddings:
            return embed_corpus(
                embedder,
                corpus,
                title=f"{task.spec.name}, {column.name}",
                cache=self.cache,
                workers=self.workers,
                batch_seconds=self.batch_seconds or scoring_seconds(),
                sha256=column.sha256,
                processes=processes,
                crop=crop,
            )

        seconds = crop_seconds(self.protocol, self._built(task), self.crop_seconds)
        if not seconds:
            return TaskEmbeddings(embedded(None))
        train = embedded(Crop(seconds, "random", self.seed))
        return TaskEmbeddings(train, embedded(Crop(seconds, "head")))

    # -- encoders that are trained too -----------------------------------------------------------

    def _finetuned(self, task: Task, metric: str) -> tuple[Any, ...]:
        seconds = crop_seconds(self.protocol, self._built(task), self.crop_seconds)
        if not isinstance(self.columns[0].variants[0], Encoder):
            raise ValueError(
                f"protocol {self.protocol} trains an encoder, which log_mel is not; give another"
            )
        alone = Processes(rank=0, size=1, device=process_state().device)
        rows, rejected = {}, []
        for column in self.columns:
            embedder = column.variants[0]
            if not isinstance(embedder, Encoder):
                # Nothing in it can be trained: a linear layer on it is what has to be beaten.
                readable = without(task, [clip for clip, _ in rejected])
                vectors = self._embed(task, column, embedder, alone)
                features, test = vectors.of(readable, alone.device)
                result = run_probe(
                    features, readable, metric=metric, seed=self.seed, test_features=test
                )
                row = self._row(task, column, embedder, result)
                rows[column.name] = {**row, "protocol": "linear"}
            else:
                result, rejected = run_finetuned_probe(
                    embedder,
                    self._corpus(task),
                    task,
                    metric=metric,
                    seconds=seconds,
                    num_epochs=self.num_epochs,
                    num_seeds=self.num_seeds or 1,
                    seed=self.seed,
                    lr=self.lr or 1e-3,
                    title=f"{task.spec.name}, {column.name}",
                    workers=self.workers,
                )
                rows[column.name] = self._row(task, column, embedder, result)
        return rows, self.columns[0].variants[0].settings(), rejected, []

    # -- parts -----------------------------------------------------------------------------------

    def _row(
        self, task: Task, column: Column, embedder: Embedder, result: ProbeResult
    ) -> dict[str, Any]:
        logger.info("%s, %s: %.1f %%", task.spec, column.name, 100 * result.mean)
        return {**result.to_dict(), "encoder_sha256": column.sha256, "dim": embedder.dim}

    def _rejected(self, task: Task, embedded: list[TaskEmbeddings]) -> list[tuple[str, str]]:
        """Clips that any column could not embed, with the reason: all are scored on the others."""
        rejected = rejected_clips(task, self._corpus(task), embedded)
        if rejected:
            logger.warning(
                "%s: %d clips are left out; the first: %s",
                *(task.spec, len(rejected), rejected[0][1]),
            )
        return rejected

    def _corpus(self, task: Task) -> Corpus:
        if task.folder not in self._corpora:
            self._corpora[task.folder] = open_corpus(task.folder)
        return self._corpora[task.folder]

    def _built(self, task: Task) -> str:
        return str(task.origin.get("task", ""))
