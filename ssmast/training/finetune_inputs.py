"""Labelled clips -> what the network is fed, step by step; and a picture of it."""

from pathlib import Path

import torch

from ssmast.audio import BalancedOrder, Corpus, MixedSegments, SegmentDataset, collate_mixed
from ssmast.training.build import build_log_mel
from ssmast.training.finetune_config import settled
from ssmast.training.finetune_setup import Setup
from ssmast.training.finetuning import Finetuning
from ssmast.training.view_panel import Panel, draw_panels


def training_items(setup: Setup, source: Corpus) -> MixedSegments:
    """One segment a clip of the training part, some mixed with another's.

    Args:
        setup: of the run.
        source: the training part, in its order.
    """
    config, found = setup.config, setup.found
    weights = found.weights(setup.split.train) if config.clips.balanced else None
    segments = SegmentDataset(
        source,
        num_samples=build_log_mel(config).samples(config.clips.frames),
        sample_rate=config.front_end.sample_rate,
        seed=config.seed,
        num_segments=1,
        waveform_augment=config.clips.waveform_augment,
        order=None if weights is None else BalancedOrder(weights),
        pad=False,
    )
    rate = settled(config.clips.mixup_rate)
    return MixedSegments(segments, rate=rate, alpha=config.clips.mixup_alpha)


def draw_inputs(out: Path, items: MixedSegments, trainer: Finetuning, *, clips: int) -> None:
    """A picture of the first clips: as they are cut, and as the network is fed them.

    Args:
        out: PNG file.
        items: of the run.
        trainer: whose augmentation, front end and labels are used.
        clips: how many.
    """
    batch = collate_mixed([items[position] for position in range(clips)])
    inputs = trainer.make_inputs(dict(batch))
    rows, names = [], []
    for i, clip in enumerate(batch["clip"].tolist()):
        own = items.segments[i]["waveform"][0]
        with torch.no_grad():
            cut = trainer.log_mel(own[None].to(trainer.device))[0, 0].cpu()
        length = inputs.log_mel.shape[3] if inputs.lengths is None else int(inputs.lengths[i])
        fed = inputs.log_mel[i, 0, :, :length].cpu()
        heard = batch["waveform"][i][: batch["samples"][i]]
        rows.append(
            [
                Panel(title="as it is cut", log_mel=cut, waveform=own),
                Panel(title=_label(trainer, inputs.targets[i]), log_mel=fed, waveform=heard),
            ]
        )
        names.append(items.segments.corpus.name(clip))
    draw_panels(
        out,
        rows,
        names=names,
        log_mel=trainer.log_mel,
        title="What the network is fed, and the label it is to give",
    )


def _label(trainer: Finetuning, targets: torch.Tensor) -> str:
    """`60 % dog, 40 % rain`: the shares of a clip's target, largest first."""
    classes = [name for _, own in trainer.outputs.heads for name in own]
    shares = sorted(
        ((float(share), name) for share, name in zip(targets, classes, strict=True) if share > 0),
        reverse=True,
    )
    return ", ".join(f"{share:.0%} {name}" for share, name in shares[:4])
