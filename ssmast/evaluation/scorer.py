"""A labelled set -> its result: embeddings of every column, a probe of each."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ssmast.audio import AudioError, Corpus, read_audio
from ssmast.encoder import Encoder
from ssmast.encoder.whitening import Whitening
from ssmast.evaluation.baselines import (
    BASELINES,
    BASELINES_HELP,
    BEST,
    UNTRAINED,
    Column,
    Scored,
    make_columns,
)
from ssmast.evaluation.embed import NOT_FINITE, Crop, Embeddings, embed_corpus, rejected_clips
from ssmast.evaluation.finetuned_probe import run_finetuned_probe
from ssmast.evaluation.foreign import NAMES
from ssmast.evaluation.labelled_set import LabelledSet, random_validation, shuffled, without
from ssmast.evaluation.metrics import METRICS, Metric
from ssmast.evaluation.probe import (
    LINEAR,
    PROTOCOLS,
    Protocol,
    chance,
    metric_of,
    run_probe,
    slots_of,
)
from ssmast.evaluation.processes import Processes, process_state, scoring_seconds
from ssmast.evaluation.results import MOST_CLASSES_SHOWN, Result, Score, set_facts
from ssmast.settings import NETWORK_PRECISIONS, PRECISION, SEEDS, SoundSettings, UsageError, setting
from ssmast.version import __version__
from ssmast.weights import DEFAULT

logger = logging.getLogger(__name__)

# Part of what decides whether a result still stands: raise it when a probe would give another.
VERSION = 5
Rejected = list[tuple[str, str]]
Vectors = list[Embeddings]
"""Of a set's corpus: to train and validate on, and to test on where these differ."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(SoundSettings):
    """`ssmast probe`: a frozen encoder to scores."""

    encoder: str = setting(
        DEFAULT,
        f"encoder folder, Hub name, one of another program ({NAMES}), or a baseline in place of "
        f"an encoder: {', '.join(UNTRAINED)}; default: the one that comes with the package",
    )
    data: str = setting(
        "",
        "folder of labelled sets (sub-folders with metadata.csv), or one set; one may be a folder "
        "of sounds for each class",
        required=True,
    )
    tasks: str = setting(
        "all",
        "all, or [a,b:label=COLUMN,split=COLUMN,group=COLUMN]; poster: the eight sets of the "
        "SS-MAST poster that are there, beside its rows (its protocol is lape_finetune)",
    )
    out: str = setting(
        "",
        "folder of results; empty: probe/ beside encoder/, of another folder NAME-probe/",
    )
    protocol: str = setting("linear", "see docs/protocols.md", choices=PROTOCOLS)
    metric: str = setting(
        "", "metric of the score; empty: as the set says, else accuracy or map", choices=METRICS
    )
    seeds: int = setting(0, "repetitions; 0: as the protocol says, 5 for linear", range="[0, inf)")
    seed: int = setting(0, "first seed, also that of the untrained encoder's weights", range=SEEDS)
    baselines: str = setting("true", BASELINES_HELP, choices=BASELINES)
    shuffled: bool = setting(
        False, "permute the labels, as a control: scores must then be at chance"
    )
    pooling: str = setting(
        "",
        "another pooling than the encoder folder's: statistics joined by +, such as freq+max+std "
        "(see export.pooling of `ssmast pretrain`); best: chosen on the validation part",
    )
    layers: str = setting(
        "",
        "other layers than the encoder folder's: last, stages, blocks, or numbers of stages such "
        "as 2-3; best: chosen on the validation part",
    )
    shots: int = setting(0, "with few_shot: labelled clips of each class; 0: 8", range="[0, inf)")
    lr: float = setting(
        0.0,
        "learning rate of evar_strict, xares and lape_finetune; 0: the published one",
        range="[0, inf)",
    )
    crop_seconds: float = setting(
        0.0,
        "length of the crops of evar_strict and lape_finetune; 0: the published one",
        range="[0, inf)",
    )
    epochs: int = setting(100, "epochs of lape_finetune", range="[1, inf)")
    precision: str = setting("fp32", PRECISION, choices=NETWORK_PRECISIONS)
    cache: str = setting("", "folder where embeddings are kept; empty: embeddings/ in out")

    def __post_init__(self) -> None:
        """Refuse keys that do not go together."""
        super().__post_init__()
        protocol = PROTOCOLS[self.protocol]
        if self.precision != "fp32" and protocol.updates_encoder:
            raise UsageError(f"protocol {self.protocol} trains in fp32; leave precision= out")
        if self.shots and not protocol.shots:
            raise UsageError(f"protocol {self.protocol} draws no clips; leave shots= out")
        if self.lr and not protocol.fixed_rate:
            raise UsageError(f"protocol {self.protocol} has no fixed rate; leave lr= out")
        if self.epochs != ProbeConfig.epochs and not protocol.updates_encoder:
            raise UsageError(f"protocol {self.protocol} has no epochs to set; leave epochs= out")
        if protocol.updates_encoder and BEST in (self.pooling, self.layers):
            raise UsageError("pooling=best and layers=best need a protocol with a frozen encoder")


class Job(NamedTuple):
    """One set to score, with all that the protocol decides of it.

    Attributes:
        labelled: its labels shuffled and its validation part drawn, where that is asked for.
        crop_seconds: length that clips are cut to; 0 for whole clips.
    """

    labelled: LabelledSet
    corpus: Corpus
    metric: Metric
    crop_seconds: float


class Scorer:
    """Scores labelled sets by one protocol.

    Attributes:
        protocol: how, with the shots that are asked for.
        columns: what is scored, the one asked for first.
    """

    def __init__(self, config: ProbeConfig, *, cache: Path) -> None:
        protocol = PROTOCOLS[config.protocol]
        self.protocol = replace(protocol, shots=config.shots or protocol.shots)
        self.config, self._cache = config, cache
        self.columns = make_columns(
            config.encoder, protocol=protocol, pooling=config.pooling, layers=config.layers,
            baselines=config.baselines, seed=config.seed, device=process_state().device,
            precision=config.precision,
        )  # fmt: skip
        self._corpora: dict[Path, Corpus] = {}

    def job(self, labelled: LabelledSet) -> Job:
        """What there is to do for a set.

        Raises:
            ValueError: if the metric or the protocol does not fit it.
        """
        metric = metric_of(labelled, self.config.metric)
        built = str(labelled.origin.get("task", ""))
        crop = self.protocol.crop_seconds(built, self.config.crop_seconds)
        if self.protocol.random_valid and len(labelled.splits) > 1:
            labelled = random_validation(labelled, fraction=self.protocol.random_valid)
        if self.config.shuffled:
            labelled = shuffled(labelled, seed=self.config.seed)
        if labelled.folder not in self._corpora:
            self._corpora[labelled.folder] = labelled.corpus(channel=self.config.channel)
        return Job(labelled, self._corpora[labelled.folder], metric, crop)

    def embed_all(self, job: Job) -> None:
        """Fill the cache with all that scoring the set will take; the processes divide it."""
        for column in self.columns:
            for embedder in column.variants:
                self._embed(job, column, embedder, process_state())

    def score(self, job: Job, *, inputs_sha256: str = "") -> Result:
        """The first column's result, with the scores of the others as `baselines`.

        Raises:
            ValueError: if the protocol does not fit the columns, or too few clips can be read.
        """
        candidates, chosen = None, [column.variants[0] for column in self.columns]
        if self.protocol.updates_encoder:
            scores, rejected = self._finetuned(job)
        else:
            scores, rejected, chosen, candidates = self._probed(job)
        labelled = without(job.labelled, [clip for clip, _ in rejected])
        main, *others = (column.name for column in self.columns)
        score = scores[main]
        if len(labelled.classes) > MOST_CLASSES_SHOWN:
            score = replace(score, confusion=None)
        return Result(
            **vars(score),
            **set_facts(labelled),
            encoder=self.config.encoder,
            data=self.config.data,
            column=main,
            protocol=self.protocol.name,
            metric=job.metric.name,
            ids_sha256=labelled.ids_sha256(),
            inputs_sha256=inputs_sha256,
            seed=self.config.seed,
            shuffled=self.config.shuffled,
            chance=chance(labelled, job.metric, shuffled=self.config.shuffled),
            encoder_updated=self.protocol.updates_encoder,
            crop_seconds=job.crop_seconds or None,
            pooling=chosen[0].pooling,
            layers=chosen[0].layers,
            candidates=candidates,
            rejected=rejected,
            baselines={name: replace(scores[name], confusion=None) for name in others},
        )

    def inputs_sha256(self, job: Job) -> str:
        """Hash of all that decides the result of a set."""
        labelled, config = job.labelled, self.config
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
                *(self.protocol.name, self.protocol.shots, job.metric.name),
                *(config.seeds, config.seed, config.lr, config.crop_seconds, config.epochs),
                config.shuffled,
            ],
            "encoder": config.encoder,
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

    def _probed(
        self, job: Job
    ) -> tuple[dict[str, Score], Rejected, list[Scored], list[dict[str, Any]] | None]:
        """Scores by column, clips left out, the variant of each column, and what was tried."""
        main, *others = self.columns
        tried = [self._embed(job, main, embedder) for embedder in main.variants]
        candidates, best = None, 0
        if len(tried) > 1:
            candidates = self._candidates(job, tried)
            valid = [candidate["valid"] for candidate in candidates]
            best = valid.index(max(valid))  # of equals the smallest
        # All columns are embedded alike, so that one comparison has one setting.
        chosen = [column.variants[min(best, len(column.variants) - 1)] for column in self.columns]
        found = [tried[best]]
        found += [self._embed(job, *pair) for pair in zip(others, chosen[1:], strict=True)]
        readable, rejected = self._readable(job, found)
        whitening = chosen[0].whitening if isinstance(chosen[0], Encoder) else None
        scores = {
            column.name: self._probe(
                *(job, readable, column, embedder, vectors),
                whitening=whitening if column.is_twin else None,
            )
            for column, embedder, vectors in zip(self.columns, chosen, found, strict=True)
        }
        return scores, rejected, chosen, candidates

    def _candidates(self, job: Job, tried: list[Vectors]) -> list[dict[str, Any]]:
        """Each variant of the first column with its validation score."""
        readable, _ = self._readable(job, tried)
        candidates, main = [], self.columns[0]
        # Seeds that change the order of the clips alone differ less than variants do.
        seeds = 0 if self.protocol.shots else 1
        for vectors, embedder in zip(tried, main.variants, strict=True):
            valid = self._probe(job, readable, main, embedder, vectors, num_seeds=seeds).valid
            about = {"pooling": embedder.pooling, "layers": embedder.layers, "dim": embedder.dim}
            candidates.append({**about, "valid": valid})
            logger.info("%s: %s", readable.spec, candidates[-1])
        return candidates

    def _readable(self, job: Job, found: Sequence[Vectors]) -> tuple[LabelledSet, Rejected]:
        """The set less the clips that any column could not embed: all are scored on the same."""
        parts = [part for vectors in found for part in vectors]
        rejected = rejected_clips(job.labelled, job.corpus, parts)
        return without(job.labelled, [clip for clip, _ in rejected]), rejected

    def _probe(
        self,
        job: Job,
        labelled: LabelledSet,
        column: Column,
        embedder: Scored,
        vectors: Vectors,
        *,
        whitening: Whitening | None = None,
        protocol: Protocol | None = None,
        num_seeds: int = 0,
    ) -> Score:
        found = [one.of(labelled.rows).to(process_state().device) for one in vectors]
        features, test_features = found[0], found[1] if len(found) > 1 else None
        ways = [(features, test_features)]
        if whitening is not None:
            own = Whitening.of(features, directions=len(whitening.factors))
            ways.append((own(features), None if test_features is None else own(test_features)))
        scores = [
            run_probe(
                features,
                labelled,
                protocol=protocol or self.protocol,
                metric=job.metric,
                num_seeds=num_seeds or (0 if protocol else self.config.seeds),
                seed=self.config.seed,
                test_features=test_features,
                widths=embedder.layer_dims,
                lr=self.config.lr,
                slots=slots_of(embedder.pooling),
            )
            for features, test_features in ways
        ]
        # An untrained network is whitened where its validation part gains: some lose by it.
        score = max(scores, key=lambda score: score.valid or 0.0)
        if whitening is not None:
            facts = {"whitened": score is scores[-1]}
            score = replace(score, chosen=[{**one, **facts} for one in score.chosen])
        return self._of_column(job, column, embedder, score)

    def _embed(
        self, job: Job, column: Column, embedder: Scored, processes: Processes | None = None
    ) -> Vectors:
        """Vectors of the whole corpus of a set; without `processes` by this one alone."""
        alone = Processes(rank=0, size=1, device=process_state().device)

        def embedded(crop: Crop | None) -> Embeddings:
            return embed_corpus(
                embedder,
                job.corpus,
                title=f"{job.labelled.spec.name}, {column.name}",
                cache=self._cache,
                workers=self.config.workers,
                batch_seconds=self.config.batch_seconds or scoring_seconds(),
                sha256=column.sha256,
                processes=processes or alone,
                crop=crop,
            )

        if not job.crop_seconds:
            return [embedded(None)]
        train = embedded(Crop(job.crop_seconds, "random", self.config.seed))
        return [train, embedded(Crop(job.crop_seconds, "head"))]

    # -- encoders that are trained too -----------------------------------------------------------

    def _finetuned(self, job: Job) -> tuple[dict[str, Score], Rejected]:
        if self.columns[0].trainable is None:
            raise ValueError(
                f"protocol {self.protocol.name} trains an encoder, which {self.columns[0].name} is "
                "not; give another"
            )
        scores: dict[str, Score] = {}
        rejected: Rejected = []
        for column in self.columns:
            embedder = column.variants[0]
            if column.trainable is None:
                # Nothing in it can be trained: a linear layer on it is what has to be beaten.
                readable = without(job.labelled, [clip for clip, _ in rejected])
                vectors = self._embed(job, column, embedder)
                score = self._probe(job, readable, column, embedder, vectors, protocol=LINEAR)
                scores[column.name] = replace(score, fitted_by="linear")
                continue
            score, rejected = run_finetuned_probe(
                column.trainable,
                job.corpus,
                job.labelled,
                metric=job.metric,
                seconds=job.crop_seconds,
                num_epochs=self.config.epochs,
                num_seeds=self.config.seeds or self.protocol.num_seeds,
                seed=self.config.seed,
                lr=self.config.lr or 1e-3,
                title=f"{job.labelled.spec.name}, {column.name}",
                workers=self.config.workers,
            )
            scores[column.name] = self._of_column(job, column, embedder, score)
        return scores, rejected

    def _of_column(self, job: Job, column: Column, embedder: Scored, score: Score) -> Score:
        logger.info("%s, %s: %.1f %%", job.labelled.spec, column.name, 100 * score.mean)
        return replace(score, encoder_sha256=column.sha256, dim=embedder.dim)
