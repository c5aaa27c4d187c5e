"""The SS-MAST poster's table: encoders by their start down, labelled sets across.

    python benchmarks/lape.py encoders=[random:runs/a,runs/a,random:runs/m,runs/m] data=SETS
    python benchmarks/lape.py encoders=[runs/m0+runs/m1+runs/m2] data=SETS protocol=linear

An encoder is an encoder or run folder, or `random:FOLDER` or `imagenet:FOLDER`: the same
architecture, front end and pooling with other weights. `+` joins runs that differ in their seed
into one row. Rows name themselves from what the folders say they are. A cell that is done is not
done again. Prints Markdown with the poster's own numbers beside; writes lape.json, lape.md.
"""

import json
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmast.command import run_command
from ssmast.encoder import Encoder, load_encoder
from ssmast.evaluation.baselines import random_twin
from ssmast.evaluation.metrics import t_interval
from ssmast.evaluation.suite import ProbeConfig, run_suite
from ssmast.files import write_atomic
from ssmast.report.published_scores import POSTER_TABLE
from ssmast.settings import Settings, UsageError, parse, setting
from ssmast.training.init_weights import find_weights, load_backbone_, read_weights

logger = logging.getLogger(__name__)

STARTS = ("random", "imagenet")


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    encoders: list[str] = setting(
        [], "rows: FOLDER, random:FOLDER, imagenet:FOLDER; seeds by +", required=True
    )
    data: str = setting("", "folder of labelled sets, as `ssmast probe` takes it")
    tasks: str = setting("all", "all or [a,b:label=COLUMN]")
    protocol: str = setting(
        "lape_finetune",
        "the poster's, which updates the encoder; or one of `ssmast probe`, as linear",
    )
    seeds: int = setting(0, "repetitions of a probe; 0: the protocol's own number")
    epochs: int = setting(100, "of lape_finetune")
    out: str = setting("runs/lape", "folder of cells, encoders made here, lape.json and lape.md")


def main(argv: list[str]) -> int:
    """Fill the table."""
    settings = parse(Keys, argv, command="lape.py", description=__doc__ or "")
    if settings is None:
        return 0
    out = Path(settings.out)
    rows = [_row(settings, asked, out) for asked in settings.encoders]
    write_atomic(out / "lape.json", json.dumps(rows, indent=1) + "\n")
    text = table(rows, protocol=settings.protocol)
    write_atomic(out / "lape.md", text)
    sys.stdout.write(text)
    return 0


def _row(settings: Keys, asked: str, out: Path) -> dict[str, Any]:
    """Score the encoders of one row on every task."""
    seeds, names = [], []
    for number, word in enumerate(asked.split("+")):
        folder, name = encoder_folder(word, out=out / "encoders", seed=number)
        names.append(name)
        logger.info("%s (%s)", name, word)
        results = run_suite(
            ProbeConfig(
                encoder=str(folder),
                data=settings.data,
                tasks=settings.tasks,
                out=str(out / "cells" / _slug(word, number)),
                cache=str(out / "embeddings"),
                protocol=settings.protocol,
                seeds=settings.seeds,
                epochs=settings.epochs,
                baselines="false",
            )
        )
        seeds.append({result.task: result.to_dict() for result in results})
    if len(set(names)) > 1:
        raise UsageError(f"{asked} joins rows of different kinds: {', '.join(sorted(set(names)))}")
    scores = {task: [found[task]["mean"] for found in seeds] for task in seeds[0]}
    ends = {task: t_interval(values)[1] for task, values in scores.items()}
    if len(seeds) == 1:
        ends = {task: found["ci95"] for task, found in seeds[0].items()}
    first = next(iter(seeds[0].values()))
    return {
        "name": names[0],
        "encoders": asked.split("+"),
        "dim": first["dim"],
        "pooling": first["pooling"],
        "built": {task: found.get("built", {}).get("task", "") for task, found in seeds[0].items()},
        "ids_sha256": {task: found["ids_sha256"] for task, found in seeds[0].items()},
        "scores": scores,
        "ci95": ends,
    }


def encoder_folder(word: str, *, out: Path, seed: int) -> tuple[Path, str]:
    """The encoder folder that a word of `encoders=` means, and the name of its row.

    Args:
        word: FOLDER, random:FOLDER or imagenet:FOLDER.
        out: where encoders with other weights than their folder's are written.
        seed: of random weights.
    """
    start, _, rest = word.rpartition(":")
    if start and start not in STARTS:
        rest, start = word, ""  # a colon of the path's own
    folder = Path(rest) / "encoder" if (Path(rest) / "encoder").is_dir() else Path(rest)
    if not folder.is_dir():
        raise FileNotFoundError(f"{word}: there is no encoder or run folder {rest}")
    encoder = load_encoder(folder)
    family = type(encoder.backbone).__name__
    if not start:
        return folder, f"{family}, {_training(encoder, folder)}"
    made = out / _slug(word, seed)
    if not (made / "checksums.json").is_file():
        twin = random_twin(encoder, seed=seed)
        if start == "imagenet":
            model = str(twin.backbone.pretrained_cfg["architecture"])  # pyright: ignore
            source = find_weights("imagenet", model)
            assert source is not None
            load_backbone_(twin.backbone, read_weights(source), model=model, log_mel=twin.log_mel)
        twin.save(made)
    return made, f"{family}, {'random' if start == 'random' else 'ImageNet'}"


def _training(encoder: Encoder, folder: Path) -> str:
    """`ImageNet + SS-MAST + patch-drop`, from the settings that the encoder was trained with."""
    settings = encoder.info.get("settings", {})
    if "model" not in settings:
        return folder.resolve().parent.name
    start = settings.get("init", "none")
    parts = [] if start == "none" else ["ImageNet" if start == "imagenet" else Path(start).name]
    if settings.get("objective", "ss_mast") == "ssast":
        return " + ".join([*parts, "SSAST"])
    dropped = ["patch-drop"] if settings["patch_drop"]["rate"] else []
    return " + ".join([*parts, "SS-MAST", *dropped])


def table(rows: list[dict[str, Any]], *, protocol: str) -> str:
    """Markdown: a row an encoder, a column a set; in brackets the poster's number."""
    tasks = list(rows[0]["scores"])
    lines = ["| encoder | " + " | ".join(tasks) + " | average |"]
    lines.append("|---|" + "---:|" * (len(tasks) + 1))
    has_poster = False
    for row in rows:
        cells = []
        for task in tasks:
            mean, ci95 = t_interval(row["scores"][task])[0], row["ci95"][task]
            cell = f"{100 * mean:.1f}" + ("" if ci95 is None else f" ± {100 * ci95:.1f}")
            poster = poster_number(row["name"], row["built"][task] or task)
            has_poster |= poster is not None
            cells.append(cell + ("" if poster is None else f" ({poster:.1f})"))
        means = [sum(values) / len(tasks) for values in zip(*row["scores"].values(), strict=True)]
        mean, ci95 = t_interval(means)
        average = f"**{100 * mean:.1f}**" + ("" if ci95 is None else f" ± {100 * ci95:.1f}")
        name = row["name"] + (f" ({len(means)} seeds)" if len(means) > 1 else "")
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {average} |")
    dims = ", ".join(sorted({f"{row['pooling']} ({row['dim']})" for row in rows}))
    note = (
        f"\nTest score in %, protocol {protocol}; pooling (dimensions): {dims}. ± is the 95 % t "
        "interval over pretraining seeds, of a single run over the probe's seeds or folds."
    )
    if has_poster:
        note += (
            " In brackets the poster's number: encoders of full size, pretrained ones started from "
            "ImageNet, all updated with the labels."
        )
    return "\n".join(lines) + "\n" + note + "\n"


def poster_number(name: str, task: str) -> float | None:
    """What the poster has for that row and set; its pretrained rows all start from ImageNet."""
    family, _, start = name.partition(", ")
    parts = [part for part in start.split(" + ") if part != "ImageNet"]
    is_trained = bool(parts) and parts != ["random"]
    wanted = f"{family}, " + (" + ".join(["ImageNet", *parts]) if is_trained else start)
    tasks = [column for _, column, _ in POSTER_TABLE.columns]
    numbers = POSTER_TABLE.rows.get(wanted)
    return numbers[tasks.index(task)] if numbers and task in tasks else None


def _slug(word: str, number: int) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", word).strip("-") + f"-{number}"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="lape.py"))
