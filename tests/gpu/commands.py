"""Every command of ssmast, tiny, one after the other in one process; what they computed, as JSON.

    python -m tests.gpu.commands FOLDER [name ...]                       on the CPU
    python -m tests.gpu.run -m tests.gpu.commands FOLDER [name ...]      on the stand-in of a card

FOLDER/given holds the labelled set and the encoder that `make_given` writes; what a command needs
of an earlier one is taken from FOLDER/cpu, so that devices are compared command by command.
"""

import contextlib
import io
import json
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from ssmast.adapters import MtebEncoder, UpstreamExpert, xares_encoder
from ssmast.cli import main as ssmast
from ssmast.hear import get_scene_embeddings, get_timestamp_embeddings, load_model
from tests.sets import write_set

Numbers = dict[str, Any]

_RUN = (
    "steps=2", "batch_size=4", "workers=0", "log_every=1", "checkpoint_every=1", "precision=fp32",
    "tensorboard=false", "threads=1",
)  # fmt: skip
_PRETRAIN = (
    *_RUN, "front_end.num_mels=32", "front_end.stats_clips=8", "show_views=1",
)  # fmt: skip
_SMOKE = (
    "recipe=smoke", *_PRETRAIN, "views.frames=32", "head.hidden=16", "head.dim=8",
    "head.predictor=16", "loss.queue_size=8",
)  # fmt: skip
_ALL_HEADS = (
    *("recipe=real_nano", *_PRETRAIN, "views.frames=32"),
    # Gently: Adam's first step makes whole ones of the last digits of small gradients.
    *("head.hidden=16", "head.dim=8", "optim.lr=1e-6", "optim.min_lr=0"),
)
_TONES = ("data=given/sets", "tasks=[tones]")


def _metrics(run: Path) -> Numbers:
    """Rows of metrics.jsonl without those that are times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found: Numbers = {}
    for row in rows:
        for key, value in row.items():
            is_time = any(word in key for word in ("second", "clips/s", "wait", "time", "per_s"))
            if isinstance(value, int | float) and not is_time:
                found[f"{key} at step {row['step']}"] = value
    return found


def _scores(folder: Path) -> Numbers:
    """All scores in the JSON files of a folder."""
    found = {}
    for file in sorted(folder.glob("**/*.json")):
        content = json.loads(file.read_text())
        for key in ("scores", "mean", "valid"):
            if key in content:
                found[f"{file.name} {key}"] = content[key]
    return found


def _embeddings(file: Path) -> Numbers:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: a.tolist() for name, a in arrays.items() if a.dtype.kind == "f"}


def _cluster_scores(folder: Path) -> Numbers:
    columns = json.loads((folder / "tones.clusters.json").read_text())["columns"]
    for column in columns.values():
        del column["seconds"]
    return {name: list(_leaves(column)) for name, column in columns.items()}


def _leaves(tree: Any) -> Iterator[float]:
    """The numbers of JSON in order."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        for branch in tree:
            yield from _leaves(branch)
    elif isinstance(tree, float):
        yield tree


def _weights(folder: Path) -> Numbers:
    return {
        name: t.flatten().tolist() for name, t in load_file(folder / "model.safetensors").items()
    }


def _nothing(_: Path) -> Numbers:
    return {}


class Command(NamedTuple):
    """Words of one command, and the numbers it leaves.

    Attributes:
        words: `{out}` is the device's folder, `{cpu}` that of the CPU.
        result: in the device's folder, what `numbers` reads; empty for what is printed.
        numbers: path -> name -> numbers, to be equal on all devices.
    """

    words: tuple[str, ...]
    result: str
    numbers: Callable[[Path], Numbers] = _nothing


COMMANDS = {
    "pretrain": Command(("pretrain", *_SMOKE, "run={out}/mast"), "mast", _metrics),
    "resume": Command(("pretrain", *_SMOKE, "run={out}/mast", "resume=auto"), "mast", _metrics),
    "resume, begun on a CPU": Command(
        ("pretrain", *_SMOKE, "run={out}/begun", "resume=auto"), "begun", _metrics
    ),
    "pretrain, random drop": Command(
        ("pretrain", *_SMOKE, "patch_drop.mode=random", "run={out}/random"), "random", _metrics
    ),
    "pretrain, AST": Command(
        ("pretrain", *_SMOKE, "model=ast_nano", "patch_drop.mode=random", "run={out}/ast"),
        "ast",
        _metrics,
    ),
    "pretrain, SSAST": Command(
        (
            *("pretrain", "recipe=ssast_nano", *_PRETRAIN, "views.frames=64", "run={out}/ssast"),
            "ssast.cluster=[1,2]",
        ),
        "ssast",
        _metrics,
    ),
    **{
        f"pretrain, {name}": Command(
            ("pretrain", *_ALL_HEADS, f"objective={name}", *more, "run={out}/" + name),
            name,
            _metrics,
        )
        for name, more in {
            "ss_mast_mosaic": ("views.frames=64", "front_end.num_mels=64"),
            "swav": ("swav.prototypes=6", "views.local=1"),
            "vicreg": (),
            "barlow_twins": (),
            "dino": ("dino.outputs=6", "views.local=1"),
        }.items()
    },
    "finetune": Command(
        (
            *("finetune", *_RUN, "init=given/encoder", "data=given/sets/tones"),
            *("clips.frames=32", "run={out}/tuned"),
        ),
        "tuned",
        _metrics,
    ),
    "evaluate": Command(
        (
            *("evaluate", "encoder={cpu}/tuned", "data=given/sets/tones"),
            "out={out}/evaluated",
        ),
        "evaluated",
        _scores,
    ),
    "predict": Command(
        (
            *("predict", "given/sets/tones/000.wav", "encoder={cpu}/tuned", "format=json"),
            *("top=0", "out={out}/predicted.json"),
        ),
        "predicted.json",
        lambda file: {"classes": json.loads(file.read_text())},
    ),
    "probe": Command(
        ("probe", "encoder=given/encoder", *_TONES, "seeds=1", "out={out}/linear"),
        "linear",
        _scores,
    ),
    "embed": Command(
        ("embed", "given/sets/tones", "encoder=given/encoder", "out={out}/tones.npz"),
        "tones.npz",
        _embeddings,
    ),
    "index": Command(
        ("index", "given/sets/tones", "encoder=given/encoder", "out={out}/index"), "index"
    ),
    "search": Command(
        ("search", "given/sets/tones/003.wav", "index={cpu}/index", "json=true"),
        "",
    ),
    "export": Command(("export", "run={cpu}/mast", "out={out}/exported"), "exported", _weights),
    "cluster": Command(
        (
            *("cluster", "encoder=given/encoder", "data=given/sets", "task=tones"),
            *("umap=false", "seeds=1", "out={out}/clusters"),
        ),
        "clusters",
        _cluster_scores,
    ),
    "doctor": Command(("doctor",), ""),
    "adapters": Command(("adapters",), ""),  # no command: `_adapted`
} | {
    f"probe, {protocol}": Command(
        (
            *("probe", "encoder=given/encoder", *_TONES, f"protocol={protocol}", "seeds=1"),
            *("baselines=false", "out={out}/" + protocol, *more),
        ),
        protocol,
        _scores,
    )
    for protocol, more in {
        "logreg": (),
        "knn": (),
        "evar_strict": ("crop_seconds=0.2",),
        "hear_mlp": (),
        "xares": (),
        "superb": (),
        "lape_finetune": ("crop_seconds=0.2", "epochs=1"),
    }.items()
}


def _adapted() -> Numbers:
    """Two clips through every interface of another tool."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, clips = (
        "given/encoder",
        torch.randn(2, 9000, generator=torch.Generator().manual_seed(1)),
    )
    sounds = [{"array": clip.numpy(), "sampling_rate": 16000} for clip in clips]
    on_device, hear = clips.to(device), load_model(encoder).to(device)
    layers = UpstreamExpert(encoder).to(device)([*on_device])["hidden_states"]
    found = {
        "mteb": torch.from_numpy(MtebEncoder(encoder, device=device).encode([{"audio": sounds}])),
        "X-ARES": xares_encoder(encoder)().to(device)(on_device),
        "HEAR": get_scene_embeddings(on_device, hear),
        "HEAR, in time": get_timestamp_embeddings(on_device, hear)[0],
        **{f"s3prl, layer {number}": layer for number, layer in enumerate(layers)},
    }
    return {name: tensor.detach().cpu().flatten().tolist() for name, tensor in found.items()}


def make_given(folder: Path) -> None:
    """Write FOLDER/given: a labelled set of 24 tones, and an encoder of random weights."""
    from ssmast.audio import LogMel
    from ssmast.encoder import Encoder
    from ssmast.model import create_model

    write_set(folder / "given" / "sets" / "tones", num_clips=24)
    torch.manual_seed(5)
    backbone = create_model(
        "mast_nano", num_classes=0, input_size=(32, 32), embed_dim=8, depths=(1, 1, 1, 1)
    )
    front_end = LogMel(num_mels=32, mean=-7.0, std=4.0)
    Encoder(backbone, front_end).save(folder / "given" / "encoder")


def run(name: str, device: str) -> dict[str, Any]:
    """Run a command in this folder: its exit status, what it said, its numbers."""
    command = COMMANDS[name]
    out = Path(device)
    words = [word.format(out=out, cpu="cpu") for word in command.words]
    AcceleratorState._reset_state(True)  # else the precision of the command before stays
    printed = io.StringIO()
    if command.words == ("adapters",):
        return {"status": 0, "said": "", "numbers": _adapted()}
    if name == "resume, begun on a CPU":
        shutil.copytree("cpu/mast", out / "begun")
    if name.startswith("resume"):  # of the first step, as if the second had been lost
        begun = out / ("mast" if name == "resume" else "begun")
        shutil.rmtree(begun / "checkpoints" / "00000002")
        (begun / "report.html").unlink()  # with it the run would be finished
    roomy = mock.patch("ssmast.doctor.machine._LEAST_DISK", 0)  # a full disk is not the card's
    try:
        with contextlib.redirect_stdout(printed), roomy:
            status = ssmast(words)
    except Exception:
        return {"status": 1, "said": traceback.format_exc(), "numbers": {}}
    numbers: Numbers = {}
    if command.result and status == 0:
        numbers = command.numbers(out / command.result)
    elif name == "search":
        numbers = {"found": json.loads(printed.getvalue())}
    return {"status": status, "said": printed.getvalue(), "numbers": numbers}


def main(argv: list[str]) -> int:
    """Run those that are named, or all; write FOLDER/<device>.json."""
    device = "card" if torch.cuda.is_available() else "cpu"
    with contextlib.chdir(argv[0]):
        Path(device).mkdir(exist_ok=True)
        found = {name: run(name, device) for name in argv[1:] or COMMANDS}
        Path(f"{device}.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
