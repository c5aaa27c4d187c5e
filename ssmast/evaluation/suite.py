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
from dataclasses import dataclass, replace
from pathlib import Path

from ssmast.evaluation.baselines import BASELINES, BEST, UNTRAINED, make_columns
from ssmast.evaluation.foreign import NAMES
from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.evaluation.metrics import METRICS
from ssmast.evaluation.processes import process_state
from ssmast.evaluation.protocols import PROTOCOLS, get_protocol
from ssmast.evaluation.read_set import find_sets, load_set, split_names
from ssmast.evaluation.results import (
    Result,
    beside,
    read_result,
    result_file,
    results_table,
    write_result,
)
from ssmast.evaluation.scorer import Scorer
from ssmast.files import check_output, write_atomic
from ssmast.report import write_report
from ssmast.report.paper_tables import filled_table
from ssmast.report.published_scores import POSTER_TABLE
from ssmast.settings import (
    BATCH_SECONDS,
    CHANNEL,
    NETWORK_PRECISIONS,
    PRECISION,
    WORKERS,
    Settings,
    UsageError,
    parse,
    setting,
    wants_dry_run,
)
from ssmast.weights import DEFAULT

logger = logging.getLogger(__name__)

POSTER = "poster"


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Settings):
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
    out: str = setting("", "folder of results; empty: probe/ beside the encoder folder")
    protocol: str = setting("linear", "see docs/protocols.md", choices=PROTOCOLS)
    metric: str = setting(
        "", "metric of the score; empty: as the set says, else accuracy or map", choices=METRICS
    )
    seeds: int = setting(0, "repetitions; 0: as the protocol says, 5 for linear", range="[0, inf)")
    seed: int = setting(0, "first seed, also that of the untrained encoder's weights")
    baselines: str = setting(
        "true",
        "also score the same encoder untrained (random weights) and log-mel statistics; all: a "
        "fixed random convolution too",
        choices=BASELINES,
    )
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
    channel: str = setting("mean", CHANNEL)
    epochs: int = setting(100, "epochs of lape_finetune", range="[1, inf)")
    precision: str = setting("fp32", PRECISION, choices=NETWORK_PRECISIONS)
    workers: int = setting(0, WORKERS, range="[0, inf)")
    batch_seconds: float = setting(0.0, BATCH_SECONDS, range="[0, inf)")
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
        if protocol.updates_encoder and BEST in (self.pooling, self.layers):
            raise UsageError("pooling=best and layers=best need a protocol with a frozen encoder")


def main(argv: list[str]) -> int:
    """`ssmast probe`: parse, run, print the table."""
    config = parse(
        ProbeConfig, argv, command="ssmast probe", description=__doc__ or "", dry_run=True
    )
    if config is None:
        return 0
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

    Raises:
        ValueError, FileNotFoundError: one sentence saying what to change.
    """
    _check_outputs(config)
    sets = load_sets(config)
    state, out, protocol = process_state(), out_folder(config), get_protocol(config.protocol)
    protocol = replace(protocol, shots=config.shots or protocol.shots)
    columns = make_columns(
        config.encoder, protocol=protocol, pooling=config.pooling, layers=config.layers,
        baselines=config.baselines, seed=config.seed, device=state.device,
        precision=config.precision,
    )  # fmt: skip
    scorer = Scorer(
        columns,
        protocol=protocol,
        cache=Path(config.cache) if config.cache else out / "embeddings",
        metric=config.metric,
        num_seeds=config.seeds,
        seed=config.seed,
        lr=config.lr,
        crop_seconds=config.crop_seconds,
        num_epochs=config.epochs,
        shuffle=config.shuffled,
        workers=config.workers,
        batch_seconds=config.batch_seconds,
        channel=config.channel,
    )
    jobs = [scorer.job(labelled) for labelled in sets]
    if state.size > 1 and not protocol.updates_encoder:
        # Embed all first: nobody then waits for the first process to fit its probes.
        for job in jobs:
            scorer.embed_all(job, state)
    if not state.is_main:
        return []
    results = []
    for number, job in enumerate(jobs, start=1):
        spec = job.labelled.spec
        inputs = scorer.inputs_sha256(job, encoder=config.encoder)
        shots = f"-{protocol.shots}" if protocol.shots else ""
        name = protocol.name + shots + ("-shuffled" if config.shuffled else "")
        file = result_file(out, job.labelled, name)
        result = _read_done(file, inputs)
        if result is not None and scorer.can_be_read_now(job, result.rejected):
            result = None
        done = "" if result is None else ", done before"
        logger.info("task %d of %d: %s%s", number, len(jobs), spec, done)
        if result is None:
            result = replace(
                scorer.score(job), encoder=config.encoder, data=config.data, inputs_sha256=inputs
            )
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
    """Where results go: `out`, or probe/ beside the encoder folder."""
    return Path(config.out) if config.out else beside(config.encoder, "probe")


def _check_outputs(config: ProbeConfig) -> None:
    check_output(out_folder(config), folder=True)
    if config.cache:
        check_output(config.cache, key="cache", folder=True)


def load_sets(config: ProbeConfig) -> list[LabelledSet]:
    """The labelled sets of `tasks`.

    Raises:
        ValueError, FileNotFoundError: one sentence saying what to change.
    """
    names = find_sets(config.data) if config.tasks in ("all", POSTER) else split_names(config.tasks)
    if config.tasks == POSTER:
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
    if not names:
        raise UsageError(f"tasks={config.tasks} names no task; give tasks=all or tasks=[a,b]")
    return [load_set(config.data, name) for name in dict.fromkeys(names)]
