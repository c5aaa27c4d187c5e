"""A linear head with the encoder under it trained too: LAPE's protocol, that of the poster.

Every other number of this package is of a frozen encoder. This one says how good a starting point
the weights are, and is the only one to be compared with the tables of SS-MAST.
"""

import copy
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssmast.audio import Corpus
from ssmast.encoder import Encoder
from ssmast.evaluation.embed import Crop, read_batches
from ssmast.evaluation.fitting import PreparedSplit
from ssmast.evaluation.labelled_set import LabelledSet, without
from ssmast.evaluation.metrics import Metric
from ssmast.evaluation.probe import Tally
from ssmast.evaluation.results import Score
from ssmast.evaluation.trained_heads import probe_loss
from ssmast.model import pool_tokens
from ssmast.progress import Progress

logger = logging.getLogger(__name__)

Rejected = list[tuple[str, str]]
_BATCH_SIZE = 32  # clips a step


def run_finetuned_probe(
    encoder: Encoder,
    corpus: Corpus,
    labelled: LabelledSet,
    *,
    metric: Metric,
    seconds: float,
    num_epochs: int = 100,
    num_seeds: int = 1,
    seed: int = 0,
    lr: float = 1e-3,
    title: str = "fine-tuning",
    workers: int = 0,
) -> tuple[Score, Rejected]:
    """Train encoder and head end to end on every split of a set; `encoder` itself stays as it is.

    It trains on a random crop of `seconds` of each clip, other parts are scored by the head of
    each. Seeds differ in the head's weights, the order and the crops. Tokens of the last layer are
    pooled as the encoder says.

    Returns:
        The result, and the clips that could not be read with their reasons.

    Source: LAPE (Ghosh et al. 2022): Adam 1e-3, batches of 32, 100 epochs, a linear head.
    Differs from LAPE: the epoch is chosen on the validation part, where LAPE reports the best one
    on test; test crops are the heads of the clips, where LAPE's are random.
    """
    rejected = _unreadable(corpus, labelled, encoder.sample_rate, workers)
    labelled = without(labelled, [clip for clip, _ in rejected])
    tally, started = Tally(labelled, metric), time.monotonic()
    for split in labelled.splits:
        # The positions of the clips stand for features: parts then hold the clips' numbers.
        positions = torch.arange(len(labelled.clips), dtype=torch.float32)[:, None]
        prepared = PreparedSplit(positions, labelled, split, standardise=False)
        runs = [
            _Run(
                encoder=encoder, corpus=corpus, labelled=labelled, prepared=prepared, metric=metric,
                seconds=seconds, lr=lr, seed=seed + index, workers=workers,
            )
            for index in range(num_seeds)
        ]  # fmt: skip
        logits = []
        for run in runs:
            run.train_(num_epochs=num_epochs, title=f"{title}, {split.name}")
            logits.append(run.scores("test"))
        tally.add(
            torch.stack(logits),
            prepared,
            valid=[run.best for run in runs],
            chosen={"split": split.name, "lr": lr, "epoch": [run.epoch for run in runs]},
        )
    return tally.score(seed=seed, seconds=time.monotonic() - started), rejected


@dataclass(kw_only=True)
class _Run:
    """One network under training, and the weights of its best epoch.

    Attributes:
        best: validation metric of the kept weights.
        epoch: passes after which they were kept.
    """

    encoder: Encoder
    corpus: Corpus
    labelled: LabelledSet
    prepared: PreparedSplit
    metric: Metric
    seconds: float
    lr: float
    seed: int
    workers: int
    best: float = -math.inf
    epoch: int = 0

    def __post_init__(self) -> None:
        self.encoder = copy.deepcopy(self.encoder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head = nn.Linear(self.encoder.dim, len(self.prepared.classes))
            self._head = head.to(self.encoder.device)
        self._net = nn.ModuleList([self.encoder.backbone, self._head])
        self._adam = torch.optim.Adam(self._net.parameters(), lr=self.lr)
        self._kept = copy.deepcopy(self._net.state_dict())

    def train_(self, *, num_epochs: int, title: str) -> None:
        """Train; afterwards the network has the weights of its best epoch."""
        positions, targets = self._part("train")
        generator, device = np.random.default_rng(self.seed), self.encoder.device
        own = [device] if device.type == "cuda" else []  # no other GPU is touched
        with (
            torch.random.fork_rng(devices=own),
            Progress(title, total=num_epochs * len(positions)) as progress,
        ):
            torch.manual_seed(self.seed)  # drop-path
            for epoch in range(1, num_epochs + 1):
                self._net.train()
                order = generator.permutation(len(positions))
                crop = Crop(self.seconds, "random", self.seed * num_epochs + epoch)
                done = 0
                for waveforms in self._batches(positions[order], crop):
                    truth = targets[order[done : done + len(waveforms)]].to(device)
                    self._adam.zero_grad()
                    probe_loss(self._logits(waveforms), truth).backward()
                    self._adam.step()
                    done += len(waveforms)
                    progress.advance(len(waveforms))
                score = float(self.metric.score(self.scores("valid"), self._part("valid")[1]))
                logger.info("%s: epoch %d of %d, valid %.3f", title, epoch, num_epochs, score)
                if score > self.best:
                    self.best, self.epoch = score, epoch
                    self._kept = copy.deepcopy(self._net.state_dict())
        self._net.load_state_dict(self._kept)

    @torch.no_grad()
    def scores(self, part: str) -> Tensor:
        """Class scores (n, C) of a part, on the CPU."""
        self._net.eval()
        crop = Crop(self.seconds, "head")
        batches = self._batches(self._part(part)[0], crop)
        return torch.cat([self._logits(waveforms).cpu() for waveforms in batches])

    def _part(self, name: str) -> tuple[NDArray[np.int64], Tensor]:
        """Positions of a part's clips in the set, and their targets."""
        positions, targets = self.prepared.part(name)
        return positions[:, 0].long().numpy(), targets

    def _logits(self, waveforms: Tensor) -> Tensor:
        log_mel = self.encoder.log_mel(waveforms.to(self.encoder.device))
        tokens = self.encoder.backbone.encode(log_mel)
        return self._head(pool_tokens(tokens, mode=self.encoder.pooling))

    def _batches(self, positions: NDArray[np.int64], crop: Crop) -> Iterator[Tensor]:
        """Waveforms (b, S) of clips in the order given."""
        rows, batch = self.labelled.rows[positions].tolist(), []
        for found in read_batches(self.corpus, rows, self.encoder.sample_rate, self.workers, crop):
            for row, audio in found:
                if isinstance(audio, str):
                    raise ValueError(f"clip {self.corpus.name(row)} cannot be read now: {audio}")
                batch.append(audio)
                if len(batch) == _BATCH_SIZE:
                    yield torch.stack(batch)
                    batch = []
        if batch:
            yield torch.stack(batch)


def _unreadable(corpus: Corpus, labelled: LabelledSet, sample_rate: int, workers: int) -> Rejected:
    """Clips of a set that cannot be decoded, with the reason."""
    clip = dict(zip(labelled.rows.tolist(), labelled.clips, strict=True))
    return sorted(
        (clip[row], audio)
        for batch in read_batches(corpus, list(clip), sample_rate, workers)
        for row, audio in batch
        if isinstance(audio, str)
    )
