"""The honest probe: what each part may decide, folds, and the price of peeking."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from paper import LIGHT, arrow, board, box, inset, note

from ssmast.splits import leave_one_out


def probe() -> Figure:
    """What each part may decide, folds that never leak, and the price of peeking."""
    figure, axes = board(980, 420)
    note(axes, 24, 22, "what each part may decide", colour="ink", size=11, weight="bold")
    box(axes, 24, 54, 130, 62, colour="grey", text="frozen encoder\nembeddings, once")
    texts = (
        ("blue", "train", "mean and std of the features,\nthe weights of the layer"),
        ("amber", "valid", "learning rate and penalty:\n2 rates × 4 penalties"),
        ("green", "test", "nothing: it is scored once,\nfor 5 seeds, with the interval"),
    )
    for number, (colour, name, text) in enumerate(texts):
        top = 150 + 78 * number
        box(axes, 24, top, 80, 56, colour=colour, text=name)
        note(axes, 116, top + 28, text, size=9.5)
        if number < 2:
            arrow(axes, (64, top + 56), (64, top + 78), colour="quiet")
    arrow(axes, (64, 116), (64, 150))
    note(
        axes,
        360,
        22,
        "folds: one is tested, the next one decides",
        colour="ink",
        size=11,
        weight="bold",
    )
    _folds(axes)
    note(axes, 690, 22, "what picking on the test part adds", colour="ink", size=11, weight="bold")
    _peeking(inset(axes, 740, 58, 212, 240))
    note(
        axes,
        690,
        372,
        "136 test clips, 4 classes, guesses that know nothing:\n"
        "the best of so many settings, chosen on the test part\n"
        "or on 31 validation clips; mean of 4,000 draws",
        size=9.5,
    )
    return figure


def _folds(axes: Axes) -> None:
    speakers = ["ann", "ben", "cem", "dan", "eva"]
    clips = [name for name in speakers for _ in range(4)]
    for number, split in enumerate(leave_one_out(clips)):
        parts = {**dict.fromkeys(split.train, "blue"), **dict.fromkeys(split.valid, "amber")}
        parts |= dict.fromkeys(split.test, "green")
        assert len(parts) == len(clips)
        top = 76 + 46 * number
        for clip in range(len(clips)):
            x = 360 + 13 * clip + 5 * (clip // 4)
            colour = parts[clip]
            axes.add_patch(
                Rectangle(
                    (x, top),
                    11,
                    30,
                    facecolor=LIGHT[f"{colour}_fill"],
                    edgecolor=LIGHT[colour],
                    linewidth=1,
                )
            )
    for number, name in enumerate(speakers):
        note(axes, 360 + 57 * number + 24, 60, name, size=9.5, ha="center")
    note(
        axes,
        360,
        336,
        "protocol=leave_one_out:speaker, five folds;\na speaker's clips are always in one part",
        size=9.5,
    )


def _peeking(axes: Axes) -> None:
    draws = np.random.default_rng(0)
    tried = [1, 2, 4, 8, 16, 32, 64]
    curves: dict[str, list[float]] = {"red": [], "green": []}
    for count in tried:
        test = draws.binomial(136, 0.25, size=(4000, count)) / 136
        valid = draws.binomial(31, 0.25, size=(4000, count)) / 31
        curves["red"].append(float(test.max(axis=1).mean()))
        curves["green"].append(
            float(np.take_along_axis(test, valid.argmax(axis=1)[:, None], 1).mean())
        )
    for colour, text, place in (
        ("red", "chosen on test", 0.305),
        ("green", "chosen on valid", 0.238),
    ):
        axes.plot(
            tried,
            100 * np.array(curves[colour]),
            color=LIGHT[colour],
            linewidth=2.2,
            marker="o",
            markersize=4,
        )
        axes.text(64, 100 * place, text, color=LIGHT[colour], size=9.5, ha="right", va="top")
    axes.set_xscale("log", base=2)
    axes.set_xticks(tried, [str(count) for count in tried])
    axes.set_ylim(22, 35)
    axes.set_xlabel("settings tried")
    axes.set_ylabel("test accuracy (%)")
