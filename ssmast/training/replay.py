"""Batches that gave a non-finite loss or gradient: written down, and made again.

python -m ssmast.training.replay run=runs/mine            every clip of every skipped batch, in CSV
python -m ssmast.training.replay run=runs/mine step=120

A batch follows from the corpus, the settings in `config.yaml` and the positions in the stream of
samples, so `skipped.jsonl` holds no audio. How it was augmented also depends on the mixup memory of
that step; the waveforms do not.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ssmast.audio import Corpus, MixedSegments, SegmentDataset
from ssmast.audio.segments import SegmentBatch
from ssmast.command import run_command
from ssmast.files import csv_lines
from ssmast.settings import Settings, command, parse, setting
from ssmast.training.config import PretrainConfig, TrainConfig, stored_config
from ssmast.training.finetune.setup import FinetuneConfig, set_up, training_items
from ssmast.training.inputs import build_log_mel, decoded, open_data, segments_of
from ssmast.training.run_folder import RunFolder, read_skipped

_COMMAND = "python -m ssmast.training.replay"


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(Settings):
    """`python -m ssmast.training.replay`: which batch to make again."""

    run: str = setting("", "run folder with skipped.jsonl", required=True)
    step: int = setting(0, "step to replay; 0: all that were skipped", range="[0, inf)")
    data: str = setting("", "the audio, if it has moved since")


def replay_batch(dataset: SegmentDataset | MixedSegments, row: dict[str, Any]) -> SegmentBatch:
    """The batch of a step that `read_skipped` gave, as the loader had it, over all processes.

    Raises:
        ValueError: if the clips at those positions are not the ones that were written down.
    """
    items = [dataset[item["position"]] for item in row["items"]]
    batch = dataset.collate(cast(Any, items))
    corpus = dataset.segments.corpus if isinstance(dataset, MixedSegments) else dataset.corpus
    names = [corpus.name(clip) for clip in batch.clip.tolist()]
    for name, item in zip(names, row["items"], strict=True):
        if name != item["name"]:
            raise ValueError(
                f"position {item['position']} of step {row['step']} is {name} now and was "
                f"{item['name']}; replay on the same audio"
            )
    return batch


def open_dataset(
    folder: RunFolder, config: PretrainConfig | FinetuneConfig
) -> SegmentDataset | MixedSegments:
    """The segments that a run was trained on.

    Raises:
        ValueError: if the audio is not the run's.
    """
    runs = folder.path.parent
    if isinstance(config, FinetuneConfig):
        setup = set_up(config)
        _check_corpus(folder, config, setup.clips)
        return training_items(setup, decoded(config, setup.clips, runs=runs))
    corpus = open_data(config, runs=runs)
    _check_corpus(folder, config, corpus)
    return segments_of(
        config,
        decoded(config, corpus, runs=runs),
        num_samples=build_log_mel(config).samples(config.views.frames),
        num_segments=int(folder.read_facts()["segments"]),
    )


def _check_corpus(folder: RunFolder, config: TrainConfig, corpus: Corpus) -> None:
    expected = folder.read_facts().get("corpus")
    if corpus.listing_hash != expected:
        raise ValueError(
            f"{folder.path} was trained on other audio than {config.data or 'the built-in corpus'} "
            "holds now; give data= as it was"
        )


def _settings(folder: RunFolder, data: str) -> PretrainConfig | FinetuneConfig:
    """Those of the run, of whichever kind."""
    if folder.is_fine_tuning:
        words = [f"recipe={folder.config_file}", *([f"data={data}"] if data else [])]
        config = parse(FinetuneConfig, words, command=_COMMAND, recipes=folder.path)
    else:
        config = stored_config(folder.read_config(), data=data, command=_COMMAND)
    assert config is not None
    return config


@command(ReplayConfig, _COMMAND)
def main(wanted: ReplayConfig, argv: list[str]) -> int:
    """Print what each clip of the skipped batches looks like."""
    folder = RunFolder(path=Path(wanted.run))
    config = _settings(folder, wanted.data)
    rows = [row for row in read_skipped(folder.skipped_file) if wanted.step in (0, row["step"])]
    if not rows:
        raise ValueError(f"{folder.skipped_file} has no step {wanted.step or 'at all'}")
    dataset = open_dataset(folder, config)
    sys.stdout.write("step,position,clip,peak,rms,finite,name\n")
    for row in rows:
        waveforms = replay_batch(dataset, row).waveform
        for item, waveform in zip(row["items"], waveforms, strict=True):
            peak, rms = float(waveform.abs().max()), float(waveform.square().mean().sqrt())
            finite = bool(torch.isfinite(waveform).all())
            facts = (row["step"], item["position"], item["clip"], f"{peak:.4g}", f"{rms:.4g}")
            sys.stdout.write(csv_lines([(*facts, finite, item["name"])]))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="replay"))
