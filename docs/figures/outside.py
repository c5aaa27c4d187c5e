"""Ideas around the encoder: queue of negatives, stateless order."""

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from paper import LIGHT, board, inset, note
from torch import Tensor
from torch.nn import functional as F

from ssmast.audio import StepSampler, sample_at
from ssmast.contrastive import KeyQueue, info_nce


def queue() -> Figure:
    """How the ring fills and wraps, what is masked, and what an unmasked own key does."""
    figure, axes = board(980, 400)
    note(axes, 24, 22, "a ring that wraps exactly", colour="ink", size=11, weight="bold")
    _ring(inset(axes, 62, 60, 280, 230))
    note(
        axes,
        62,
        348,
        "10 keys a step into 32 places: a key stays three steps.\n"
        "Empty places (white) are never negatives.",
        size=9.5,
    )
    note(axes, 390, 22, "a clip is no negative of itself", colour="ink", size=11, weight="bold")
    _mask(inset(axes, 434, 60, 230, 230))
    note(
        axes,
        434,
        348,
        "the clip of a query may still lie in the queue,\n"
        "and lies in the batch: those are masked by id",
        size=9.5,
    )
    note(axes, 700, 22, "why that matters", colour="ink", size=11, weight="bold")
    _floor(inset(axes, 746, 60, 206, 230))
    note(
        axes,
        716,
        348,
        "with its own key among the negatives, no query\ncan do better than log 2",
        size=9.5,
    )
    return figure


def _ring(axes: Axes) -> None:
    ring, rows = KeyQueue(size=32, dim=1), []
    for step in range(9):
        ring.enqueue_(torch.zeros(10, 1), torch.arange(10), step=step)
        age = torch.where(ring.steps < 0, torch.nan, (step - ring.steps).float())
        rows.append(age)
    axes.imshow(
        torch.stack(rows),
        cmap="YlOrBr_r",
        vmin=-0.6,
        vmax=4.5,
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_yticks(range(0, 9, 2))
    axes.set_xticks([0, 31], ["0", "31"])
    axes.set_xlabel("place in the queue")
    axes.set_ylabel("step")
    axes.set_title("age of each key: dark is new", size=9.5, loc="left", color=LIGHT["quiet"])


def _mask(axes: Axes) -> None:
    batches = [
        sample_at(np.arange(8 * step, 8 * step + 8), size=14, seed=5)[1] for step in (0, 1, 2)
    ]
    queries = batches[2]
    held = np.concatenate(batches)  # two earlier steps, then this one's batch
    own = queries[:, None] == held[None]
    axes.imshow(
        np.where(own, 1.0, 0.25),
        cmap="YlOrBr",
        vmin=0,
        vmax=1.3,
        aspect="auto",
        interpolation="nearest",
    )
    axes.axvline(15.5, color=LIGHT["ink"], linewidth=1.5)
    axes.set_xticks([7.5, 19.5], ["queue", "batch"])
    axes.set_yticks(range(8), [str(clip) for clip in queries])
    axes.set_ylabel("clip of the query")
    axes.set_title("dark: masked", size=9.5, loc="left", color=LIGHT["quiet"])


def _floor(axes: Axes) -> None:
    generator = torch.Generator().manual_seed(0)
    clips, dim = torch.arange(16), 64
    keys = F.normalize(torch.randn(16, dim, generator=generator), dim=1)
    shares = torch.linspace(0, 1, 41)
    masked, polluted = [], []
    for share in shares:
        queries = F.normalize(_between(keys, share, generator), dim=1)
        numbers = {"temperature": 0.1}
        masked.append(
            float(info_nce(queries, keys, keys, query_ids=clips, negative_ids=clips, **numbers)[0])
        )
        polluted.append(float(info_nce(queries, keys, keys, **numbers)[0]))
    axes.plot(shares, polluted, color=LIGHT["red"], linewidth=2.2)
    axes.plot(shares, masked, color=LIGHT["green"], linewidth=2.2)
    axes.axhline(math.log(2), color=LIGHT["quiet"], linewidth=1, linestyle=":")
    axes.text(1.0, math.log(2) + 0.06, "log 2", color=LIGHT["quiet"], size=9, ha="right")
    axes.text(0.42, 2.1, "own key left in", color=LIGHT["red"], size=9.5)
    axes.text(0.47, 0.12, "masked", color=LIGHT["green"], size=9.5)
    axes.set_xlabel("how well the views are matched")
    axes.set_ylabel("loss (nats)")
    axes.set_ylim(0, None)


def _between(keys: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
    generator.manual_seed(1)
    noise = F.normalize(torch.randn(keys.shape, generator=generator), dim=1)
    return share * keys + (1 - share) * noise


def order() -> Figure:
    """The clip at a position is computed; processes only share the positions out."""
    figure, axes = board(980, 400)
    note(axes, 24, 22, "which clip at which position", colour="ink", size=11, weight="bold")
    room = inset(axes, 70, 58, 370, 250)
    size = 48
    positions = np.arange(3 * size)
    _, clips = sample_at(positions, size=size, seed=0)
    for epoch, colour in enumerate(("blue", "amber", "green")):
        part = slice(epoch * size, (epoch + 1) * size)
        assert sorted(clips[part]) == list(range(size))
        room.plot(positions[part], clips[part], "o", markersize=3.6, color=LIGHT[colour])
        room.axvspan(
            epoch * size - 0.5, (epoch + 1) * size - 0.5, color=LIGHT[f"{colour}_fill"], zorder=0
        )
        room.text(
            (epoch + 0.5) * size,
            size + 1.5,
            f"epoch {epoch}",
            ha="center",
            color=LIGHT[colour],
            size=9.5,
        )
    room.set_xlim(-0.5, 3 * size - 0.5)
    room.set_xlabel("position in the stream")
    room.set_ylabel("clip")
    note(
        axes,
        24,
        366,
        "each epoch is a keyed permutation of all clips: a function of\n"
        "(seed, epoch, position), with no list and no generator to save",
        size=9.5,
    )
    note(
        axes,
        490,
        22,
        "any number of processes reads the same stream",
        colour="ink",
        size=11,
        weight="bold",
    )
    _strips(axes, size)
    note(
        axes,
        490,
        366,
        "two processes killed after two steps, then three go on: the state to keep\n"
        "is the number of the step. Workers and read-ahead cannot move it.",
        size=9.5,
    )
    return figure


def _strips(axes: Axes, size: int) -> None:
    colours = ("blue", "amber", "green")
    plans = {
        "1 process": [(0, 4, 1)],
        "2 processes": [(0, 4, 2)],
        "2, then 3": [(0, 2, 2), (2, 4, 3)],
    }
    for number, (name, pieces) in enumerate(plans.items()):
        top = 74 + 84 * number
        note(axes, 490, top - 14, name, colour="ink")
        for start, stop, ranks in pieces:
            for rank in range(ranks):
                sampler = StepSampler(
                    start=start, stop=stop, batch_size=6, rank=rank, num_ranks=ranks
                )
                for batch in sampler:
                    for position in batch:
                        _cell(
                            axes,
                            position,
                            sample_at(position, size=size, seed=0)[1],
                            top,
                            colours[rank],
                        )
        if len(pieces) > 1:
            x = 490 + 12 * 19 + 2
            axes.plot([x, x], [top - 8, top + 44], color=LIGHT["red"], linewidth=2)
            note(axes, x + 5, top - 14, "kill, resume=auto", colour="red", size=9)
    for step in range(4):
        note(axes, 490 + 54 + step * 118, 310, f"step {step}", size=9, ha="center")


def _cell(axes: Axes, position: int, clip: int, top: float, colour: str) -> None:
    x = 490 + 19 * position + 4 * (position // 6)
    axes.add_patch(
        Rectangle(
            (x, top),
            17,
            34,
            facecolor=LIGHT[f"{colour}_fill"],
            edgecolor=LIGHT[colour],
            linewidth=1,
        )
    )
    axes.text(x + 8.5, top + 17, str(clip), size=8.5, ha="center", va="center", color=LIGHT["ink"])
