"""The whole way in a few minutes: pretrain, score, fine-tune for a moment, export, embed, search.

    ssmast demo [key=value ...]        any key of `ssmast pretrain`, on top of the smoke recipe

It makes its sounds itself and needs no data, no network and no GPU. The same command gives the same
numbers. Each command that it runs is printed, to be used on one's own sounds.
"""

import importlib.util
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ssmast.evaluation.results import results_table
from ssmast.evaluation.suite import ProbeConfig, run_suite
from ssmast.export import main as export
from ssmast.report import write_report
from ssmast.retrieval.index import main as index
from ssmast.retrieval.search import main as search
from ssmast.settings import parse, wants_dry_run
from ssmast.training.config import PretrainConfig
from ssmast.training.finetune.command import main as finetune
from ssmast.training.inputs import built_in_corpus
from ssmast.training.pretrain import PRETRAINING, run

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """`ssmast demo`."""
    words = argv if any(word.startswith("run=") for word in argv) else [*argv, _free_run()]
    about = __doc__ or ""
    config = parse(PretrainConfig, words, command="ssmast demo", description=about, **PRETRAINING)
    if config is None:
        return 0
    started = time.monotonic()
    folder = run(config, dry_run=wants_dry_run(argv))
    if wants_dry_run(argv):
        return 0
    data = built_in_corpus(folder.parent)
    results = run_suite(
        ProbeConfig(encoder=str(folder / "encoder"), data=str(data), out=str(folder / "probe"))
    )
    write_report(folder / "report.html", run=folder, results=results)
    sys.stdout.write("\n" + results_table(results) + "\n")
    _use(folder, data)
    logger.info("encoder  %s", folder / "exported")
    logger.info("report   %s", (folder / "report.html").resolve())
    logger.info("time     %.0f s", time.monotonic() - started)
    logger.info("the same on your own sounds:")
    for line in [*_activation(), *YOURS]:
        logger.info("  %s", line)
    return 0


_ONNX = ("onnx", "onnxruntime", "onnxscript")  # of the extra onnx, which the demo does without

YOURS = (
    "ssmast doctor data=FOLDER",
    "ssmast pretrain recipe=real_nano data=FOLDER run=runs/mine",
    "ssmast probe encoder=runs/mine/encoder data=LABELLED_SETS",
)


def _use(folder: Path, data: Path) -> None:
    """What an encoder is for, each step by its command."""
    tuned, clip = str(folder / "tuned"), str(sorted((data / "audio").iterdir())[0])
    _run(
        finetune,
        *("finetune", f"init={folder / 'encoder'}", f"data={data}", f"run={tuned}"),
        *("epochs=2", "clips.mixup_rate=0.0", "heads.probe=true"),
    )
    onnx = all(importlib.util.find_spec(module) for module in _ONNX)
    exported = folder / "exported"
    _run(export, "export", str(folder), f"out={exported}", *["onnx=true"] * onnx)
    if not onnx:
        logger.info("without ONNX, which `pip install 'ssmast[onnx]'` adds; then onnx=true")
    _run(index, *("index", str(data), f"encoder={folder / 'exported'}", f"out={folder / 'index'}"))
    _run(search, "search", clip, f"index={folder / 'index'}", "top=3")


def _activation() -> list[str]:
    """What makes `ssmast` a command here, as after `make demo`; nothing where it is one."""
    script = Path(sys.prefix) / "bin" / "activate"
    if shutil.which("ssmast") or not script.is_file():
        return []
    is_below = script.is_relative_to(Path.cwd())
    return [f"source {shlex.quote(str(script.relative_to(Path.cwd()) if is_below else script))}"]


def _run(command: Callable[[list[str]], int], name: str, *words: str) -> None:
    logger.info("\n$ %s", shlex.join(["ssmast", name, *words]))
    sys.stdout.flush()
    command(list(words))


def _free_run() -> str:
    names = (Path("runs") / ("demo" if i == 1 else f"demo-{i}") for i in range(1, 10_000))
    return f"run={next(path for path in names if not path.exists())}"
