"""A labelled set -> its result: embeddings of every column, a probe of each."""

import hashlib
import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ssmast.audio import AudioError, Corpus, read_audio
from ssmast.encoder.whitening import Whitening
from ssmast.evaluation.baselines import Column, PooledEmbedder
from ssmast.evaluation.embed import (
    NOT_FINITE,
    Crop,
    Embeddings,
    SetEmbeddings,
    embed_corpus,
    rejected_clips,
)
from ssmast.evaluation.finetuned_probe import run_finetuned_probe
from ssmast.evaluation.labelled_set import LabelledSet, random_validation, shuffled, without
from ssmast.evaluation.metrics import Metric
from ssmast.evaluation.probe import chance, metric_of, run_probe
from ssmast.evaluation.processes import Processes, process_state, scoring_seconds
from ssmast.evaluation.protocols import Protocol, slots_of
from ssmast.evaluation.results import Result, Score, set_facts
from ssmast.version import __version__

logger = logging.getLogger(__name__)

# Part of what decides whether a result still stands: raise it when a probe would give another.
VERSION = 4
_MOST_CLASSES_SHOWN = 100
Rejected = list[tuple[str, str]]


class Job(NamedTuple):
    """One set to score, with all that the protocol decides of it.

    Attributes:
        labelled: its labels shuffled and its validation part drawn, where that is asked for.
        corpus: of its folder.
        metric: what it is scored by.
        crop_seconds: length that clips are cut to; 0 for whole clips.
    """

    labelled: LabelledSet
    corpus: Corpus
    metric: Metric
    crop_seconds: float


class _Scored(NamedTuple):
    """Scores by column, the clips that could not be used, and what the first column is."""

    scores: dict[str, Score]
    rejected: Rejected
    embedder: PooledEmbedder
    candidates: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Scorer:
    """Scores labelled sets by one protocol.

    Attributes:
        columns: what is scored, the one asked for first.
        protocol: how.
        cache: folder of embeddings.
        metric: name; empty for each set's own.
        num_seeds: repetitions; 0 for the protocol's own number.
        seed: added to the protocol's first one; also that of shuffling.
        lr: 0 for the protocol's.
        crop_seconds: 0 for the published lengths.
        num_epochs: of a protocol that trains the encoder.
        shuffle: permute the labels.
        workers: threads that decode.
        batch_seconds: audio embedded at once; 0 for 20, on a GPU 600.
        channel: of clips that have several.
    """

    columns: list[Column]
    protocol: Protocol
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
    channel: str = "mean"
    _corpora: dict[Path, Corpus] = field(default_factory=dict)

    def job(self, labelled: LabelledSet) -> Job:
        """What there is to do for a set.

        Raises:
            ValueError: if the metric or the protocol does not fit it.
        """
        metric = metric_of(labelled, self.metric)
        crop = self.protocol.crop_seconds(str(labelled.origin.get("task", "")), self.crop_seconds)
        if self.protocol.random_valid and len(labelled.splits) > 1:
            labelled = random_validation(labelled, fraction=self.protocol.random_valid)
        if self.shuffle:
            labelled = shuffled(labelled, seed=self.seed)
        if labelled.folder not in self._corpora:
            corpus = labelled.corpus(channel=self.channel)
            self._corpora[labelled.folder] = corpus
        return Job(labelled, self._corpora[labelled.folder], metric, crop)

    def embed_all(self, job: Job, processes: Processes) -> None:
        """Fill the cache with all that scoring the set will take."""
        for column in self.columns:
            for embedder in column.variants:
                self._embed(job, column, embedder, processes)

    def score(self, job: Job) -> Result:
        """The first column's result, with the scores of the others as `baselines`.

        Raises:
            ValueError: if the protocol does not fit the columns, or too few clips can be read.
        """
        scored = self._finetuned(job) if self.protocol.updates_encoder else self._probed(job)
        labelled = without(job.labelled, [clip for clip, _ in scored.rejected])
        main, *others = (column.name for column in self.columns)
        score = scored.scores[main]
        if len(labelled.classes) > _MOST_CLASSES_SHOWN:
            score = replace(score, confusion=None)
        return Result(
            **vars(score),
            **set_facts(labelled),
            column=main,
            protocol=self.protocol.name,
            metric=job.metric.name,
            ids_sha256=labelled.ids_sha256(),
            seed=self.seed,
            shuffled=self.shuffle,
            chance=chance(labelled, job.metric, shuffled=self.shuffle),
            encoder_updated=self.protocol.updates_encoder,
            crop_seconds=job.crop_seconds or None,
            pooling=scored.embedder.pooling,
            layers=scored.embedder.layers,
            candidates=scored.candidates,
            rejected=scored.rejected,
            baselines={name: replace(scored.scores[name], confusion=None) for name in others},
        )

    def inputs_sha256(self, job: Job, *, encoder: str) -> str:
        """Hash of all that decides the result of a set."""
        labelled = job.labelled
        parts = {
            "columns": {
                column.name: [column.sha256, [e.settings() for e in column.variants]]
                for column in self.columns
            },
            "set": [
                *(str(labelled.spec), labelled.ids_sha256(), labelled.separator),
                *(labelled.labels_sha256(), job.corpus.files_hash),
            ],
            "probe": [
                *(
                    self.protocol.name,
                    self.protocol.shots,
                    job.metric.name,
                    self.num_seeds,
                    self.seed,
                ),
                *(self.lr, self.crop_seconds, self.num_epochs, self.shuffle),
            ],
            "encoder": encoder,
            "version": [VERSION, __version__],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def can_be_read_now(self, job: Job, rejected: Rejected) -> bool:
        """Whether one of the clips that an earlier result had to leave out can be read by now."""
        labelled = job.labelled
        row_of = dict(zip(labelled.clips, labelled.rows.tolist(), strict=True))
        for clip, reason in rejected:
            if clip not in row_of or reason == NOT_FINITE:
                continue
            try:
                read_audio(job.corpus.source(row_of[clip]), name=clip)
            except (AudioError, OSError):
                continue
            return True
        return False

    # -- frozen encoders -------------------------------------------------------------------------

    def _probed(self, job: Job) -> _Scored:
        alone = Processes(rank=0, size=1, device=process_state().device)
        main = self.columns[0]
        tried = [self._embed(job, main, embedder, alone) for embedder in main.variants]
        candidates, best = None, 0
        if len(tried) > 1:
            candidates = self._candidates(job, tried)
            valid = [candidate["valid"] for candidate in candidates]
            best = valid.index(max(valid))  # of equals the smallest
        # All columns are embedded alike, so that one comparison has one setting.
        embedders = [
            column.variants[min(best, len(column.variants) - 1)] for column in self.columns
        ]
        found = [tried[best]] + [
            self._embed(job, column, embedder, alone)
            for column, embedder in list(zip(self.columns, embedders, strict=True))[1:]
        ]
        rejected = self._rejected(job, found)
        labelled = without(job.labelled, [clip for clip, _ in rejected])
        scores = {
            column.name: self._probe(
                *(job, labelled, column, embedder, vectors),
                whitening=getattr(embedders[0], "whitening", None) if column.is_twin else None,
            )
            for column, embedder, vectors in zip(self.columns, embedders, found, strict=True)
        }
        return _Scored(scores, rejected, embedders[0], candidates)

    def _candidates(self, job: Job, tried: list[SetEmbeddings]) -> list[dict[str, Any]]:
        """Each variant of the first column with its validation score."""
        rejected = self._rejected(job, tried)
        labelled = without(job.labelled, [clip for clip, _ in rejected])
        candidates = []
        main = self.columns[0]
        for vectors, embedder in zip(tried, main.variants, strict=True):
            score = self._probe(job, labelled, main, embedder, vectors)
            candidates.append(
                {
                    "pooling": embedder.pooling,
                    "layers": embedder.layers,
                    "dim": embedder.dim,
                    "valid": score.valid,
                }
            )
            logger.info("%s: %s", labelled.spec, candidates[-1])
        return candidates

    def _probe(
        self,
        job: Job,
        labelled: LabelledSet,
        column: Column,
        embedder: PooledEmbedder,
        vectors: SetEmbeddings,
        *,
        whitening: Whitening | None = None,
    ) -> Score:
        features, test_features = vectors.of(labelled, process_state().device)
        if whitening is not None:
            own = Whitening.of(features, directions=len(whitening.factors))
            features = own(features)
            test_features = None if test_features is None else own(test_features)
        score = run_probe(
            features,
            labelled,
            protocol=self.protocol,
            metric=job.metric,
            num_seeds=self.num_seeds,
            seed=self.seed,
            test_features=test_features,
            widths=embedder.layer_dims,
            lr=self.lr,
            slots=slots_of(embedder.pooling),
        )
        return self._of_column(job, column, embedder, score)

    def _embed(
        self, job: Job, column: Column, embedder: PooledEmbedder, processes: Processes
    ) -> SetEmbeddings:
        """Vectors of the whole corpus of a set."""

        def embedded(crop: Crop | None) -> Embeddings:
            return embed_corpus(
                embedder,
                job.corpus,
                title=f"{job.labelled.spec.name}, {column.name}",
                cache=self.cache,
                workers=self.workers,
                batch_seconds=self.batch_seconds or scoring_seconds(),
                sha256=column.sha256,
                processes=processes,
                crop=crop,
            )

        if not job.crop_seconds:
            return SetEmbeddings(embedded(None))
        train = embedded(Crop(job.crop_seconds, "random", self.seed))
        return SetEmbeddings(train, embedded(Crop(job.crop_seconds, "head")))

    # -- encoders that are trained too -----------------------------------------------------------

    def _finetuned(self, job: Job) -> _Scored:
        if self.columns[0].trainable is None:
            raise ValueError(
                f"protocol {self.protocol.name} trains an encoder, which {self.columns[0].name} is "
                "not; give another"
            )
        alone = Processes(rank=0, size=1, device=process_state().device)
        scores: dict[str, Score] = {}
        rejected: Rejected = []
        for column in self.columns:
            embedder = column.variants[0]
            if column.trainable is None:
                # Nothing in it can be trained: a linear layer on it is what has to be beaten.
                readable = without(job.labelled, [clip for clip, _ in rejected])
                vectors = self._embed(job, column, embedder, alone)
                features, test_features = vectors.of(readable, alone.device)
                score = run_probe(
                    features,
                    readable,
                    metric=job.metric,
                    seed=self.seed,
                    test_features=test_features,
                )
                score = replace(score, fitted_by="linear")
            else:
                score, rejected = run_finetuned_probe(
                    column.trainable,
                    job.corpus,
                    job.labelled,
                    metric=job.metric,
                    seconds=job.crop_seconds,
                    num_epochs=self.num_epochs,
                    num_seeds=self.num_seeds or self.protocol.num_seeds,
                    seed=self.seed,
                    lr=self.lr or 1e-3,
                    title=f"{job.labelled.spec.name}, {column.name}",
                    workers=self.workers,
                )
            scores[column.name] = self._of_column(job, column, embedder, score)
        return _Scored(scores, rejected, self.columns[0].variants[0])

    # -- both ------------------------------------------------------------------------------------

    def _of_column(self, job: Job, column: Column, embedder: PooledEmbedder, score: Score) -> Score:
        logger.info("%s, %s: %.1f %%", job.labelled.spec, column.name, 100 * score.mean)
        return replace(score, encoder_sha256=column.sha256, dim=embedder.dim)

    def _rejected(self, job: Job, embedded: list[SetEmbeddings]) -> Rejected:
        """Clips that any column could not embed, with the reason: all are scored on the others."""
        rejected = rejected_clips(job.labelled, job.corpus, embedded)
        if rejected:
            logger.warning(
                "%s: %d clips are left out; the first: %s",
                *(job.labelled.spec, len(rejected), rejected[0][1]),
            )
        return rejected
