"""The `ssmast` command: a table of commands, each loaded only when it is used."""

import difflib
import importlib
import sys

from ssmast.command import run_command
from ssmast.settings import UsageError
from ssmast.version import __version__

# name -> module with main(argv) -> int, and the line `ssmast --help` shows.
COMMANDS = {
    "doctor": ("ssmast.doctor", "is this machine ready? every problem with its cure"),
    "demo": ("ssmast.demo", "the whole way in a few minutes, on sounds made here"),
    "prepare": (
        "ssmast.prepare.command",
        "any audio -> shards with a manifest, for training at any size",
    ),
    "pretrain": ("ssmast.training.pretrain", "pretrain an encoder on unlabelled audio"),
    "probe": ("ssmast.evaluation.suite", "score a frozen encoder on labelled sets"),
    "finetune": ("ssmast.training.finetune.command", "labels and an encoder -> a classifier"),
    "evaluate": ("ssmast.evaluation.evaluate", "score a fine-tuned encoder, class by class"),
    "predict": ("ssmast.predict", "top classes of any sound file, with timestamps"),
    "embed": ("ssmast.retrieval.embed_files", "files -> embeddings (.npz, .parquet)"),
    "index": ("ssmast.retrieval.index", "files or embeddings -> an index to search in"),
    "search": ("ssmast.retrieval.search", "a sound -> the nearest ones of an index"),
    "export": ("ssmast.export", "a run's encoder -> folder with model card, ONNX, the Hub"),
    "cluster": ("ssmast.evaluation.cluster_task", "score an encoder by clusters, and draw them"),
    "report": ("ssmast.report", "one HTML page from a run or from results"),
    "show-views": ("ssmast.training.show_views", "draw the views that training makes of clips"),
    "describe": ("ssmast.model.describe", "layers, parameters and MACs of a model"),
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console command."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in {"-h", "--help", "help"}:
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"ssmast {__version__}")
        return 0
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
        error.add_note("`ssmast doctor` says what is wrong with this installation, and its cure")
        raise
    return module.main(argv)


def _help() -> str:
    lines = ["ssmast COMMAND [key=value ...]", "", "Commands (each explains its keys by --help):"]
    lines += [f"  {name:<11} {text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", "Several processes: accelerate launch -m ssmast COMMAND [key=value ...]"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
