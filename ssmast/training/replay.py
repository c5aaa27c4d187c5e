"""Batches that gave a non-finite loss or gradient: written down, and made again.

python -m ssmast.training.replay run=runs/mine            every clip of every skipped batch, in CSV
python -m ssmast.training.replay run=runs/mine step=120

A batch follows from the corpus, the settings in `config.yaml` and the positions in the stream of
samples, so `skipped.jsonl` holds no audio. How it was augmented also depends on the mixup memory of
that step; the waveforms do not.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssmast.audio import Corpus, MixedSegments, SegmentDataset, collate_mixed, collate_segments
from ssmast.command import run_command
from ssmast.settings import UsageError, parse, setting
from ssmast.training.build import build_dataset, decoded, open_data
from ssmast.training.config import PretrainConfig, TrainConfig
from ssmast.training.finetune.config import FinetuneConfig
from ssmast.training.finetune.setup import set_up, training_items
from ssmast.training.run_folder import RunFolder


@dataclass
class ReplayConfig:
    """`python -m ssmast.training.replay`: which batch to make again."""

    run: str = setting("", "run folder with skipped.jsonl")
    step: int = setting(0, "step to replay; 0: all that were skipped")
    data: str = setting("", "the audio, where it has moved since")


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
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(row) + "\n")


def read_skipped(file: Path) -> list[dict[str, Any]]:
    """The skipped steps of a run, the last word on each step; empty if nothing was skipped.

    Raises:
        ValueError: if a line is not one of `write_skipped`.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    try:
        rows = {int(row["step"]): row for row in map(json.loads, lines)}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no list of skipped steps; it may be cut short") from error
    return [rows[step] for step in sorted(rows)]


def replay_batch(dataset: SegmentDataset | MixedSegments, row: dict[str, Any]) -> dict[str, Any]:
    """The batch of a skipped step as the loader gave it, over all processes.

    Args:
        dataset: of the run, see `open_dataset`.
        row: from `read_skipped`.

    Returns:
        waveform (B, K, S) of K segments, clip, epoch and position (B,), rejected; of a fine-tuning
        run what `collate_mixed` gives.

    Raises:
        ValueError: if the clips at those positions are not the ones that were written down.
    """
    positions = [item["position"] for item in row["items"]]
    if isinstance(dataset, MixedSegments):
        batch, corpus = collate_mixed([dataset[p] for p in positions]), dataset.segments.corpus
    else:
        batch, corpus = collate_segments([dataset[p] for p in positions]), dataset.corpus
    names = [corpus.name(clip) for clip in batch["clip"].tolist()]
    for name, item in zip(names, row["items"], strict=True):
        if name != item["name"]:
            raise ValueError(
                f"position {item['position']} of step {row['step']} is {name} now and was "
                f"{item['name']}; replay on the same audio"
            )
    return dict(batch)


def open_dataset(
    folder: RunFolder, config: PretrainConfig | FinetuneConfig
) -> SegmentDataset | MixedSegments:
    """The segments that a run was trained on.

    Raises:
        ValueError: if the audio is not the run's.
    """
    if isinstance(config, FinetuneConfig):
        setup = set_up(config)
        corpus = setup.corpus.take(setup.found.rows[setup.split.train])
        _check_corpus(folder, config, corpus)
        return training_items(setup, decoded(config, folder, corpus))
    corpus = open_data(config, runs=folder.path.parent)
    _check_corpus(folder, config, corpus)
    return build_dataset(config, decoded(config, folder, corpus))


def _check_corpus(folder: RunFolder, config: TrainConfig, corpus: Corpus) -> None:
    expected = folder.read_facts().get("corpus")
    if corpus.listing_hash != expected:
        raise ValueError(
            f"{folder.path} was trained on other audio than {config.data or 'the built-in corpus'} "
            "holds now; give data= as it was"
        )


def _settings(folder: RunFolder, data: str, command: str) -> PretrainConfig | FinetuneConfig:
    """Those of the run, of whichever kind."""
    words = [f"recipe={folder.config_file}", *([f"data={data}"] if data else [])]
    schema = FinetuneConfig if folder.is_fine_tuning else PretrainConfig
    config = parse(schema, words, command=command, recipes=folder.path)
    assert config is not None
    return config


def main(argv: list[str]) -> int:
    """Print what each clip of the skipped batches looks like."""
    command = "python -m ssmast.training.replay"
    wanted = parse(ReplayConfig, argv, command=command, description=__doc__ or "")
    if wanted is None:
        return 0
    if not wanted.run:
        raise UsageError("run= is missing; give a run folder")
    folder = RunFolder(path=Path(wanted.run))
    if not folder.config_file.is_file():
        raise FileNotFoundError(f"{folder.path} is no run folder: it has no config.yaml")
    config = _settings(folder, wanted.data, command)
    rows = [row for row in read_skipped(folder.skipped_file) if wanted.step in (0, row["step"])]
    if not rows:
        raise ValueError(f"{folder.skipped_file} has no step {wanted.step or 'at all'}")
    dataset = open_dataset(folder, config)
    sys.stdout.write("step,position,clip,peak,rms,finite,name\n")
    for row in rows:
        waveforms = replay_batch(dataset, row)["waveform"]
        for item, waveform in zip(row["items"], waveforms, strict=True):
            peak, rms = float(waveform.abs().max()), float(waveform.square().mean().sqrt())
            finite = bool(torch.isfinite(waveform).all())
            facts = (row["step"], item["position"], item["clip"], f"{peak:.4g}", f"{rms:.4g}")
            sys.stdout.write(",".join(map(str, (*facts, finite, item["name"]))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="replay"))
