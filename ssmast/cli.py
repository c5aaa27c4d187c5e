"""The `ssmast` command: a table of commands, each loaded only when it is used."""

import difflib
import importlib
import sys

from ssmast.command import run_command
from ssmast.settings import UsageError
from ssmast.version import __version__

# name -> module with main(argv) -> int, and the line that `ssmast --help` shows.
COMMANDS = {
    "doctor": ("ssmast.doctor", "check this machine and installation; name each problem's cure"),
    "demo": ("ssmast.demo", "pretrain, score and report in minutes, on audio made here"),
    "prepare": ("ssmast.prepare.command", "pack audio into shards, or build a published data set"),
    "pretrain": ("ssmast.training.pretrain", "pretrain an encoder on unlabelled audio"),
    "probe": ("ssmast.evaluation.suite", "score a frozen encoder on labelled sets"),
    "fit": ("ssmast.fit", "fit a classifier on a frozen encoder, from a few labels"),
    "finetune": ("ssmast.training.finetune.command", "train a classifier from an encoder"),
    "paper": ("ssmast.paper", "fine-tune on the MAST paper's sets"),
    "evaluate": ("ssmast.evaluation.evaluate", "score a fine-tuned encoder, class by class"),
    "predict": ("ssmast.predict", "classify sound files, with timestamps"),
    "embed": ("ssmast.retrieval.embed_files", "compute embeddings of files (.npz, .parquet)"),
    "index": ("ssmast.retrieval.index", "build a search index of files or embeddings"),
    "search": ("ssmast.retrieval.search", "find the sounds in an index nearest to a sound"),
    "map": ("ssmast.retrieval.map_files", "draw a map of a folder's sounds; its points play"),
    "export": ("ssmast.export", "write a run's encoder: folder, model card, ONNX, the Hub"),
    "cluster": ("ssmast.evaluation.cluster_task", "score an encoder by clusters, and map them"),
    "report": ("ssmast.report", "write one HTML page about runs and results"),
    "compare": (
        "ssmast.compare.command",
        "tell which objective or setting is better, and how sure",
    ),
    "datasets": ("ssmast.datasets.check", "check built data sets by the published counts"),
    "show-views": ("ssmast.training.show_views", "draw the augmented views made in pretraining"),
    "describe": ("ssmast.model.describe", "list layers, parameters and MACs of a model"),
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console command."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in {"-h", "--help", "help"}:
        return run_command(lambda _: _print(_help()), [], name="ssmast")
    if words[0] in {"--version", "version"}:
        return run_command(lambda _: _print(f"ssmast {__version__}"), [], name="ssmast")
    name, *rest = words
    return run_command(lambda argv: _dispatch(name, argv), rest, name=f"ssmast {name}")


def _dispatch(name: str, argv: list[str]) -> int:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"unknown command {name!r}{hint}; the commands are {', '.join(COMMANDS)}")
    try:
        module = importlib.import_module(COMMANDS[name][0])
    except Exception as error:
        error.add_note("`ssmast doctor` names what is wrong with this installation, and its cure")
        raise
    return module.main(argv)


def _print(text: str) -> int:
    print(text)
    return 0


def _help() -> str:
    lines = ["ssmast COMMAND [key=value ...]", "", "Commands (`ssmast COMMAND --help` lists keys):"]
    lines += [f"  {name:<11} {text}" for name, (_, text) in COMMANDS.items()]
    several = "accelerate launch --multi_gpu --num_processes N -m ssmast COMMAND [key=value ...]"
    lines += ["", "Several processes, on GPUs or CPUs:", f"  {several}"]
    lines += ["", "`ssmast --version` says which version this is."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
