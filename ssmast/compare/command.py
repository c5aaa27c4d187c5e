"""Tell which objective, recipe or setting is better for one's own sounds, at equal time.

    ssmast compare data=FOLDER sets=SETS out=compared objectives=[ss_mast] recipes=[ssast_nano]
    ssmast compare data=FOLDER sets=SETS out=compared minutes=5 variants=[usual,fast:optim.lr=1e-3]
    ssmast compare sets=SETS labelled=SET out=compared recipes=[real_nano,finetune_small]
    ssmast compare score=classifier labelled=SETS out=c variants=[mast,ast:model=ast_nano]

Each variant is pretrained for the same processor time of one core, with the same seeds on the same
stream of clips, and scored by the probe, beside the same network untrained, log-mel statistics and
a random convolution. A variant with a recipe of fine-tuning learns from scratch from the labels of
labelled= instead, for the same time, and its encoder is scored alike. With score=classifier all
variants do so, on each set of labelled=, and what is scored is the classifier. It ends in
compare.md, compare.json, report.html and one sentence: which is better by how much, or that it
cannot be told. Interrupted, the same command resumes it.
"""

import hashlib
import json
import logging
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path

from ssmast.command import StoppedError
from ssmast.compare.config import ENCODER, CompareConfig, Variant, variants_of
from ssmast.compare.equal_minutes import RUNS, Calibrations, is_trained, labelled_sets, train
from ssmast.compare.outcome import Comparison, Entry, as_markdown, checked
from ssmast.encoder import load_encoder
from ssmast.evaluation.baselines import UNTRAINED, random_twin
from ssmast.evaluation.embed import measured_whitening
from ssmast.evaluation.processes import process_state
from ssmast.evaluation.suite import ProbeConfig, load_sets, run_suite
from ssmast.files import check_output, lock_of, locked
from ssmast.html import PAGE_BEGINS
from ssmast.settings import command, wants_dry_run
from ssmast.training.config import PretrainConfig
from ssmast.training.inputs import open_data

logger = logging.getLogger(__name__)


@command(CompareConfig, "ssmast compare", dry_run=True)
def main(config: CompareConfig, argv: list[str]) -> int:
    """`ssmast compare`: parse, compare, print the table."""
    out = Path(config.out)
    check_output(out, folder=True)
    check_output(out / "compare.md", begins=r"\*\*")
    check_output(out / "compare.json", begins=r'\{\s*"version"')
    check_output(out / "report.html", begins=PAGE_BEGINS)
    if wants_dry_run(argv):
        for variant in variants_of(config):
            sys.stdout.write(f"{variant.name}: {' '.join(variant.words) or 'the recipe'}\n")
        return 0
    try:
        # A second one would remove the calibrations of the first.
        with locked(lock_of(out), doing=f"comparing in {out}"):
            comparison = compare(config)
    except StoppedError as error:  # a run would speak of its own resume=auto
        raise StoppedError(error.signal_number, "the same command resumes it") from error
    sys.stdout.write(as_markdown(comparison))
    return 0


def compare(config: CompareConfig) -> Comparison:
    """Compare as the settings say, or go on with it.

    Raises:
        ValueError, OSError: one sentence saying what to change; if no variant could be trained,
            why the first could not.
    """
    if process_state().size > 1:
        raise ValueError("ssmast compare runs as one process; start it without a launcher")
    variants = variants_of(config)
    seeds = range(config.seed, config.seed + config.seeds)
    entries = {one.row: Entry(name=one.row, words=one.words) for one in variants}
    comparison = Comparison(config=config, entries=list(entries.values()))
    if config.score == ENCODER:
        load_sets(_probe(config, encoder="log_mel"))  # a wrong name is said before hours
    calibrations = Calibrations(config, variants)
    if config.score == ENCODER:
        comparison.fixed = {name: run_suite(_probe(config, encoder=name)) for name in UNTRAINED}
        comparison.tasks = next(iter(comparison.fixed.values()))
    pairs = [(variant, entries[variant.row]) for variant in variants]
    for variant, entry in pairs:
        logger.info("%s: how many steps fit into %g minutes", variant.name, config.minutes)
        try:
            entry.steps.append(calibrations.of(variant).steps)
        except Exception as error:
            _give_up(entry, error)
    left = [(seed, variant, entry) for seed in seeds for variant, entry in pairs]
    left = [run for run in left if not run[2].failed]
    new = {(one.name, seed) for seed, one, _ in left if not is_trained(config, one, seed)}
    number, took = 0, list[float]()
    while left:
        seed, variant, entry = left.pop(0)
        number += 1
        is_new = (variant.name, seed) in new
        to_train = is_new + sum((other.name, of) in new for of, other, _ in left)
        each = sum(took) / len(took) if took else 60 * config.minutes
        calibration = calibrations.of(variant)
        logger.info(
            "run %d of %d: %s, seed %d, %d steps; %s %s left in all",
            *(number, number + len(left), variant.name, seed, calibration.steps),
            "about" if took else "at least",
            timedelta(seconds=round(each * to_train)),
        )
        start = time.monotonic()
        try:
            trained = train(config, variant, calibration, seed)
            key = f"{variant.task} {seed}".strip()
            entry.minutes[key], entry.curves[key] = trained.minutes, trained.curve
            entry.alarms = trained.alarms or entry.alarms
            if variant.task:
                comparison.take(entry, seed, trained.result)
            else:
                _score(config, variant, entry, trained.folder / "encoder", seed)
            if is_new:
                took.append(time.monotonic() - start)
        except Exception as error:
            _give_up(entry, error)
            left = [run for run in left if not run[2].failed]
        # A page without a score would replace the one of a comparison that went well.
        if comparison.compared and (not left or left[0][0] != seed):
            comparison.write()
    if not comparison.compared:
        first = comparison.entries[0]
        raise ValueError(f"no variant could be compared; {first.name} failed: {first.failed}")
    for note in comparison.notes():
        logger.info("%s", note)
    logger.info("results: %s", Path(config.out) / "report.html")
    return comparison


def _score(config: CompareConfig, variant: Variant, entry: Entry, encoder: Path, seed: int) -> None:
    """Score an encoder that was trained, and the same network untrained."""
    name = f"{variant.name}-{seed}"
    scores = checked(run_suite(_probe(config, encoder=str(encoder), name=name)))
    twins = _twins(config, variant, encoder, seed)
    ways = [run_suite(_probe(config, encoder=str(twin), name=twin.name)) for twin in twins]
    plain = twins[0].name
    best = _probe(config, encoder=str(twins[0]), name=f"{plain}-best", layers="best")
    entry.twins[seed] = plain
    better = [max(task, key=lambda way: way.valid or 0.0) for task in zip(*ways, strict=True)]
    entry.untrained[seed] = checked(better)
    entry.best_stage[seed] = checked(run_suite(best))
    entry.scores[seed] = scores
    # Some hundred megabytes a run; the results, which are written, need them no more.
    shutil.rmtree(_embeddings(config), ignore_errors=True)


def _twins(config: CompareConfig, variant: Variant, encoder: Path, seed: int) -> list[Path]:
    """Folders of the same network untrained: as it is, and whitened where the trained one is.

    Variants of one architecture share them.
    """
    trained = load_encoder(encoder)
    twin = random_twin(trained, seed=seed)
    words = json.dumps(twin.config(), sort_keys=True)
    plain = Path(config.out) / RUNS / f"untrained-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
    if not _is_saved(plain):
        twin.save(plain)
    if trained.whitening is None:
        return [plain]
    assert isinstance(variant.config, PretrainConfig), "classifiers are not whitened"
    count = len(trained.whitening.factors)
    whitened = plain.with_name(f"{plain.name}-whitened-{count}")
    if not _is_saved(whitened):  # thousands of clips are embedded for it
        clips = open_data(variant.config, runs=Path(config.out) / RUNS)
        twin.whitening = measured_whitening(twin, clips, directions=count, seed=seed)
        twin.save(whitened)
    return [plain, whitened]


def _embeddings(config: CompareConfig) -> Path:
    return Path(config.out) / "embeddings"


def _is_saved(folder: Path) -> bool:
    return (folder / "checksums.json").is_file()  # written with the folder, at once


def _probe(config: CompareConfig, *, encoder: str, name: str = "", layers: str = "") -> ProbeConfig:
    """What scores an encoder; embeddings that are shared are made once."""
    out = Path(config.out)
    return ProbeConfig(
        encoder=encoder,
        data=labelled_sets(config),
        tasks=config.tasks,
        out=str(out / "probe" / (name or encoder)),
        cache=str(_embeddings(config)),
        baselines="false",
        layers=layers,
    )


def _give_up(entry: Entry, error: Exception) -> None:
    """Keep why a variant failed; the others go on."""
    entry.failed = " ".join(str(error).split()) or type(error).__name__
    is_said = isinstance(error, ValueError | OSError)  # else it is a bug and keeps its traceback
    logger.warning("%s failed: %s", entry.name, entry.failed, exc_info=None if is_said else error)
