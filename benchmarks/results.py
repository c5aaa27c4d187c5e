"""The tables of RESULTS.md: what an encoder scores beside what one would take instead, and speed.

    python benchmarks/results.py                                  on the built-in corpus, printed
    python benchmarks/results.py data=SETS page=RESULTS.md        those of the encoder that ships
    python benchmarks/results.py data=SETS encoder=runs/mine/encoder parts=[frozen]

frozen: protocol linear, the whole training part; beside it the untrained twin, log-mel statistics,
the random convolution and, where openSMILE is installed, its two sets of features.
few_shot: 8 labelled clips of each class; without the tasks that have too few.
speed: the other benchmarks one after another, with the words that benchmarks/README.md gives.

What is done is not done again. Two cores take 20 minutes for seven tasks of 2,000 clips at most,
and an hour for speed, which wants a machine that does nothing else. Writes the tables of scores
into `page`, between the comments that name them, those of speed into `out`.
"""

import importlib.util
import logging
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from ssmast.command import run_command
from ssmast.evaluation.results import Result, Score
from ssmast.evaluation.suite import ProbeConfig, load_sets, run_suite
from ssmast.files import write_atomic
from ssmast.settings import Settings, parse, setting
from ssmast.training.inputs import built_in_corpus
from ssmast.weights import DEFAULT

logger = logging.getLogger(__name__)

ROWS = {
    "untrained": "the same untrained",
    "random_conv": "random convolution",
    "log_mel": "log-mel statistics",
}
OPENSMILE = {
    "opensmile:ComParE_2016": "openSMILE ComParE 2016",
    "opensmile:eGeMAPSv02": "openSMILE eGeMAPS v02",
}
# Script -> its words, as benchmarks/README.md has them.
SPEED = {
    "encoder": ["frames=[96,512,1024]", "batches=[1]", "paths=[reference]", "threads=1", "runs=5"],
    "data": [],
    "pretrain": [],
    "export": [],
    "probe": [],
    "clusters": [],
    "embed": [],
}
Rows = dict[str, dict[str, Score]]


@dataclass(frozen=True, kw_only=True)
class Keys(Settings):
    """Keys of this benchmark."""

    encoder: str = setting(DEFAULT, "as `ssmast probe` takes it")
    data: str = setting("", "folder of labelled sets; empty: the built-in corpus")
    tasks: str = setting("all", "all or [a,b:label=COLUMN], as `ssmast probe` takes them")
    parts: list[str] = setting(
        ["frozen", "few_shot"], "tables to make", choices=["frozen", "few_shot", "speed"]
    )
    out: str = setting("runs/results", "folder of results")
    page: str = setting("", "page whose tables of scores are written; empty: none")


def main(argv: list[str]) -> int:
    """Make the tables."""
    settings = parse(Keys, argv, command="results.py", description=__doc__ or "")
    if settings is None:
        return 0
    data = settings.data or str(built_in_corpus(Path(settings.out)))
    settings = replace(settings, data=data)
    for part in settings.parts:
        if part == "speed":
            tables = {name: timed(settings, name) for name in SPEED}
        else:
            tables = {part: table(scored(settings, part))}
        for name, markdown in tables.items():
            sys.stdout.write(f"\n{name}\n\n{markdown}")
            if settings.page and part != "speed":
                page = Path(settings.page)
                write_atomic(page, replaced(page.read_text(encoding="utf-8"), name, markdown))
    return 0


def scored(settings: Keys, part: str) -> Rows:
    """Row -> task -> score, of `frozen` or `few_shot`."""
    rows: Rows = {}
    config = ProbeConfig(
        encoder=settings.encoder,
        data=settings.data,
        tasks=settings.tasks,
        out=str(Path(settings.out) / "probe"),
        protocol="linear" if part == "frozen" else "few_shot",
        baselines="all",
    )
    others = OPENSMILE if part == "frozen" and importlib.util.find_spec("opensmile") else {}
    if not others and part == "frozen":
        logger.warning("openSMILE is not installed: its rows are left out")
    for task in [str(labelled.spec) for labelled in load_sets(config)]:
        try:
            (result,) = run_suite(replace(config, tasks=f"[{task}]"))
        except ValueError as error:
            if part == "frozen":
                raise
            logger.warning("%s is left out: %s", task, error)
            continue
        rows.setdefault("this encoder", {})[task] = result
        for key, title in ROWS.items():
            rows.setdefault(title, {})[task] = result.baselines[key]
        for name, title in others.items():
            out = str(Path(settings.out) / name.partition(":")[2])
            one = replace(config, encoder=name, tasks=f"[{task}]", out=out, baselines="false")
            rows.setdefault(title, {})[task] = run_suite(one)[0]
    return rows


def table(rows: Rows) -> str:
    """Markdown: a row an embedding, the best average first, a column a task."""
    first = next(iter(rows.values()))
    sizes = [
        f"{r.num_classes} classes, {r.n_train} / {r.n_test}"
        for r in first.values()
        if isinstance(r, Result)
    ]
    names = [task.replace(":", "<br>").replace(",", "<br>") for task in first]
    lines = [
        "| | numbers | " + " | ".join(names) + " | **average** |",
        "|---|" + "---:|" * (len(first) + 2),
        "| train / test clips | | " + " | ".join(sizes) + " | |",
    ]
    averages = {name: sum(s.mean for s in row.values()) / len(row) for name, row in rows.items()}
    for name in sorted(rows, key=lambda name: -averages[name]):
        scores = rows[name].values()
        dim = next(iter(scores)).dim or 0
        cells = " | ".join(score.text for score in scores)
        lines.append(f"| {name} | {dim:,} | {cells} | **{100 * averages[name]:.1f}** |")
    return "\n".join(lines) + "\n"


def timed(settings: Keys, name: str) -> str:
    """What a benchmark prints, run in a process of its own unless it was.

    Raises:
        ValueError: with the end of what it said, if it fails.
    """
    file = Path(settings.out) / f"{name}.md"
    if not file.is_file():
        logger.info("benchmarks/%s.py", name)
        script = Path(__file__).with_name(f"{name}.py")
        command = [sys.executable, str(script.resolve()), *SPEED[name]]
        file.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, cwd=file.parent)
        if done.returncode:
            raise ValueError(f"{' '.join(command)} failed: {done.stderr.strip()[-800:]}")
        write_atomic(file, done.stdout)
    return file.read_text(encoding="utf-8")


def replaced(text: str, part: str, markdown: str) -> str:
    """The page with another table between `<!-- part -->` and `<!-- end of part -->`.

    Raises:
        ValueError: if the page lacks these comments.
    """
    start, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    before, found, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the page needs the lines {start} and {end}, between which a table goes")
    return f"{before}{start}\n\n{markdown}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], name="results.py"))
