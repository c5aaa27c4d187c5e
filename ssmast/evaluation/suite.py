"""Score a frozen encoder on labelled sets, beside an untrained encoder and log-mel statistics.

    ssmast probe encoder=runs/mine/encoder data=FOLDER_OF_LABELLED_SETS
    ssmast probe encoder=DIR data=DIR tasks=[fsdd,speech:label=speaker,split=split2]
    ssmast probe encoder=DIR data=DIR tasks=fsdd:protocol=leave_one_out:speaker baselines=all
    ssmast probe encoder=DIR data=DIR tasks=poster protocol=lape_finetune

It writes a JSON file for each task, results.md and report.html to `out`; tasks that have a result
there are not scored again.
"""

import logging
import sys
from pathlib import Path

from ssmast.evaluation.find_set import named_tasks
from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.evaluation.processes import process_state
from ssmast.evaluation.read_set import load_set
from ssmast.evaluation.results import (
    Result,
    beside,
    check_results,
    read_result,
    result_file,
    results_table,
    write_result,
)
from ssmast.evaluation.scorer import ProbeConfig, Scorer
from ssmast.files import check_output, write_atomic
from ssmast.html import PAGE_BEGINS
from ssmast.report import write_report
from ssmast.report.scores import POSTER_TABLE, filled_table
from ssmast.settings import UsageError, command, wants_dry_run

logger = logging.getLogger(__name__)

POSTER = "poster"


@command(ProbeConfig, "ssmast probe", dry_run=True)
def main(config: ProbeConfig, argv: list[str]) -> int:
    """`ssmast probe`: parse, run, print the table."""
    _check_outputs(config)
    if wants_dry_run(argv):
        for labelled in load_sets(config):
            counts = " + ".join(
                "/".join(str(len(part)) for part in split.parts().values())
                for split in labelled.splits
            )
            sys.stdout.write(
                f"{labelled.spec}: {len(labelled.classes)} classes, train/valid/test {counts}"
                + "".join(f", {n} left out ({why})" for why, n in labelled.left_out.items())
                + "\n"
            )
        return 0
    results = run_suite(config)
    if process_state().is_main:
        sys.stdout.write(results_table(results))
        if config.tasks == POSTER:
            sys.stdout.write(f"\n{poster_table(config, results)}")
    return 0


def poster_table(config: ProbeConfig, results: list[Result]) -> str:
    """The poster's table with a row of this encoder, as Markdown."""
    return filled_table(POSTER_TABLE, {f"this encoder: {config.encoder}": results})


def run_suite(config: ProbeConfig) -> list[Result]:
    """Score the encoder on every task; returns what the JSON files hold.

    Under `accelerate launch` the processes divide the embedding; the first one probes and has the
    results, the others return an empty list.
    """
    _check_outputs(config)
    sets = load_sets(config)
    state, out = process_state(), out_folder(config)
    scorer = Scorer(config, cache=Path(config.cache) if config.cache else out / "embeddings")
    shots = f"-{scorer.protocol.shots}" if scorer.protocol.shots else ""
    name = scorer.protocol.name + shots + ("-shuffled" if config.shuffled else "")
    if state.is_main:
        files = (result_file(out, labelled, name) for labelled in sets)
        check_results(*files, encoder=config.encoder)
    jobs = [scorer.job(labelled) for labelled in sets]
    if state.size > 1 and not scorer.protocol.updates_encoder:
        # Embed all first: nobody then waits for the first process to fit its probes.
        for job in jobs:
            scorer.embed_all(job)
    if not state.is_main:
        return []
    results = []
    for number, job in enumerate(jobs, start=1):
        inputs = scorer.inputs_sha256(job)
        file = result_file(out, job.labelled, name)
        result = _read_done(file, inputs)
        if result is not None and scorer.can_be_read_now(job, result.rejected):
            result = None
        done = "" if result is None else ", done before"
        logger.info("task %d of %d: %s%s", number, len(jobs), job.labelled.spec, done)
        if result is None:
            result = scorer.score(job, inputs_sha256=inputs)
            write_result(file, result)
        results.append(result)
    write_atomic(out / "results.md", results_table(results))
    if config.tasks == POSTER:
        write_atomic(out / "poster.md", poster_table(config, results))
    write_report(out / "report.html", results=results, title=f"Probe of {config.encoder}")
    logger.info("results: %s", out)
    return results


def _read_done(file: Path, inputs: str) -> Result | None:
    """The result of an earlier run with the very same inputs, if there is one."""
    try:
        result = read_result(file)
    except (OSError, ValueError):
        return None
    return result if isinstance(result, Result) and result.inputs_sha256 == inputs else None


def out_folder(config: ProbeConfig) -> Path:
    """Where results go: `out`, or probe/ beside the encoder's folder."""
    return Path(config.out) if config.out else beside(config.encoder, "probe")


def _check_outputs(config: ProbeConfig) -> None:
    out = out_folder(config)
    check_output(out, folder=True)
    check_results(out / "results.json")
    check_output(out / "poster.md", begins=r"\|")
    check_output(out / "report.html", begins=PAGE_BEGINS)
    if config.cache:
        check_output(config.cache, key="cache", folder=True)


def load_sets(config: ProbeConfig) -> list[LabelledSet]:
    """The labelled sets of `tasks`."""
    is_poster = config.tasks == POSTER
    names = named_tasks(config.data, "all" if is_poster else config.tasks)
    if is_poster:
        wanted = [task for _, task, _ in POSTER_TABLE.columns]
        absent = [task for task in wanted if task not in names]
        names = [task for task in wanted if task in names]
        if absent:
            logger.warning(
                "%d of the poster's %d sets are absent: %s; make them with `ssmast prepare task=`",
                *(len(absent), len(wanted), ", ".join(absent)),
            )
        if not names:
            raise UsageError(f"tasks=poster wants at least one of its sets in {config.data}")
    return [load_set(config.data, name) for name in names]
