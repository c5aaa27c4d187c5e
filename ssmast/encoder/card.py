"""The model card: README.md of an encoder folder, with the metadata that the Hub reads."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssmast.audio.mel import front_end_of
from ssmast.html import markdown_table
from ssmast.model import IMAGENET
from ssmast.settings import flatten

# Settings that only one objective has: objective -> name on the card -> setting.
_OBJECTIVES = {
    "ss_mast": {
        "patches dropped": "patch_drop.rate",
        "temperature": "loss.temperature",
        "negatives kept": "loss.queue_size",
    },
    "ss_mast_mosaic": {"temperature": "loss.temperature"},
    "swav": {"prototypes": "swav.prototypes"},
    "dino": {"outputs": "dino.outputs"},
    "ssast": {"patches masked": "ssast.masked"},
}
# Entries of `info` with a section of their own.
_TOLD = ("scores", "onnx", "classifier", "test", "valid", "datasets", "title", "citation")


def model_card(config: dict[str, Any], *, dim: int, num_parameters: int) -> str:
    """README.md of an encoder folder, of its config.json and what is counted of it."""
    info = config["ssmast"]["info"]
    sections = [
        _metadata(config),
        _head(config),
        _facts(config, dim=dim, num_parameters=num_parameters),
        _classes(info.get("classifier")),
        _recipe(info),
        _scores(info),
        _limits(config),
        _onnx(config),
        _citation(info),
        _others(info),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _metadata(config: dict[str, Any]) -> list[str]:
    """The YAML block that the Hub reads."""
    info = config["ssmast"]["info"]
    task = "audio-classification" if info.get("classifier") else "feature-extraction"
    family = config["architecture"].partition("_")[0]
    metadata = {
        "library_name": "ssmast",
        "pipeline_tag": task,
        "license": info.get("license"),
        "datasets": info.get("datasets"),
        "base_model": _base_model(config),
        "tags": ["audio", "ssmast", "timm", family],
        "model-index": _results(info, task=task),
    }
    kept = {key: value for key, value in metadata.items() if value}
    return ["---", yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).rstrip(), "---"]


def _base_model(config: dict[str, Any]) -> str | None:
    """Name on the Hub of what the run started from, where it was on the Hub."""
    init = str((config["ssmast"]["info"].get("settings") or {}).get("init") or "")
    if init == "imagenet":
        weights = IMAGENET.get(config["architecture"])
        return weights and f"timm/{weights}"
    name = init.removeprefix("hf-hub:").partition("@")[0]
    is_name = re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None
    return name if is_name and (name != init or not Path(init).parent.exists()) else None


def _results(info: dict[str, Any], *, task: str) -> list[dict[str, Any]]:
    """Scores in the Hub's form, a "model-index"."""
    found = [
        (score["task"], f"{score['metric']} ({score['protocol']})", score["mean"])
        for score in info.get("scores") or []
    ]
    data = str(info.get("data", "test part"))
    found += [(data, name, value) for name, value in _test_numbers(info).items()]
    results = [
        {
            "task": {"type": task},
            "dataset": {"name": name, "type": re.sub(r"\W+", "-", name).strip("-") or "audio"},
            "metrics": [{"type": metric.split(" ")[0], "name": metric, "value": value}],
        }
        for name, metric, value in found
    ]
    name = str(info.get("title") or info.get("network", "encoder"))
    return [{"name": name, "results": results}] if results else []


def _head(config: dict[str, Any]) -> list[str]:
    info, rate = config["ssmast"]["info"], config["ssmast"]["front_end"]["sample_rate"]
    kind = "A Multiscale" if config["architecture"].startswith("mast_") else "An"
    kind = f"{kind} Audio Spectrogram Transformer"
    several = (info.get("classifier") or {}).get("multi_label")
    scale = "logits" if several else "log-probabilities"
    embed = [
        'encoder = ssmast.load_encoder("THIS FOLDER")  # or org/name on the Hugging Face Hub',
        'encoder.embed("sound.wav")  # float32 (1, D)',
        "encoder.embed(waveform, sample_rate)  # numpy or torch, (S,) or (B, S)",
        "encoder.embed_frames(waveform, sample_rate)  # (B, N, D), milliseconds (B, N)",
    ]
    usual = "Audio classifier" if info.get("classifier") else "Audio encoder"
    title = _cell(info.get("title") or usual)
    if not info.get("classifier"):
        return [
            *(f"# {title}", "", f"{kind}: waveform in, one vector out.", ""),
            *("```python", "import ssmast, timm", "", *embed, ""),
            'timm.create_model("local-dir:THIS FOLDER", pretrained=True)  # or hf-hub:org/name',
            "```",
        ]
    return [
        *(f"# {title}", "", f"{kind}, fine-tuned: waveform in, probabilities out.", ""),
        *("```bash", 'ssmast predict sound.wav encoder="THIS FOLDER"', "```", ""),
        *("```python", "import ssmast", ""),
        'classifier = ssmast.load_classifier("THIS FOLDER")',
        f"classifier.embed_clips([waveform])                # (S,) at {rate} Hz -> {scale} (1, C)",
        "classifier.outputs.heads                          # names of the classes",
        *("", "# without its head, as an encoder", *embed, "```"),
    ]


def _facts(config: dict[str, Any], *, dim: int, num_parameters: int) -> list[str]:
    ours, front = config["ssmast"], config["ssmast"]["front_end"]
    facts = {
        "architecture": f"`{config['architecture']}`, {num_parameters / 1e6:.1f} M parameters",
        "input": f"waveform at {front['sample_rate']} Hz (other rates are resampled), any length",
        "front end": f"{front.get('kind', 'log-mel')}, {front['num_mels']} bins, "
        f"{front['f_min']:g} to {front['f_max']:g} Hz, "
        f"{1000 * front['hop_length'] / front['sample_rate']:g} ms hop",
        "embedding": f"{dim} numbers: pooling `{ours['pooling']}`, layers `{ours['layers']}`",
        **(
            {
                "whitened": f"along {whitening['directions']} directions of the largest variance "
                f"in {whitening['clips']} clips"
            }
            if (whitening := ours.get("whitening"))
            else {}
        ),
        "long audio": f"in windows of {ours['window_seconds']:g} s, averaged",
    }
    info = {
        key: value
        for key, value in ours["info"].items()
        if key not in _TOLD and not isinstance(value, dict | list)
    }
    return [_table(["", ""], {**facts, **info}.items())]


def _classes(classifier: dict[str, Any] | None) -> list[str]:
    if not classifier:
        return []
    several = "any number of them" if classifier["multi_label"] else "exactly one of each line"
    lines = ["## Classes", "", f"A clip has {several}.", ""]
    for head in classifier["heads"]:
        names = ", ".join(_cell(name) for name in head["classes"])
        lines.append(f"- {_cell(head['name'])} ({len(head['classes'])}): {names}")
    return lines


def _objective(info: dict[str, Any]) -> str:
    """Name of what was trained for; "" for fine-tuning. 0.1.0 called it the method."""
    settings = info.get("settings") or {}
    named = (info.get("objective"), settings.get("objective"), settings.get("method"))
    return next((str(name) for name in named if name), "")


def _recipe(info: dict[str, Any]) -> list[str]:
    """The settings that matter most; all of them are below."""
    flat = flatten(info.get("settings") or {})
    objective = _objective(info)
    wanted = {
        "model": "model",
        "recipe": "recipe",
        "started from": "init",
        "clips a step": "batch_size",
        "frames of a view": "views.frames",
        "frames of a clip": "clips.frames",
        **_OBJECTIVES.get(objective, {}),
        "optimiser": "optim.name",
        "learning rate": "optim.lr",
        "weight decay": "optim.weight_decay",
        "seed": "seed",
    }
    named = {"objective": objective, **{name: flat.get(key) for name, key in wanted.items()}}
    rows = [(name, value) for name, value in named.items() if value not in (None, "")]
    return ["## Recipe", "", _table(["", ""], rows)] if rows else []


def _test_numbers(info: dict[str, Any]) -> dict[str, float]:
    """What fine-tuning measured on its test part: metric -> value."""
    test = info.get("test")
    numbers = test.items() if isinstance(test, dict) else ()
    return {
        name: float(value)
        for name, value in numbers
        if isinstance(value, int | float) and name not in ("n", "loss")
    }


def _is_scored(info: dict[str, Any]) -> bool:
    return bool(info.get("scores") or _test_numbers(info))


def _scores(info: dict[str, Any]) -> list[str]:
    if not _is_scored(info):
        command = "`ssmast probe encoder=THIS_FOLDER data=LABELLED_SETS`"
        return ["## Scores", "", f"Not scored yet: {command}."]
    lines = ["## Scores"]
    if numbers := _test_numbers(info):
        count = info["test"].get("n")
        clips = f" of {count:g} clips" if count else ""
        lines += ["", f"On the test part{clips}, which no choice was made on:", ""]
        rows = [(name, f"{value:.4f}") for name, value in numbers.items()]
        lines.append(_table(["metric", "value"], rows, numbers=1))
        valid = info.get("valid")
        if isinstance(valid, dict) and isinstance(valid.get("score"), int | float):
            step = f"; weights of step {valid['step']}" if "step" in valid else ""
            lines += ["", f"On the validation part: {valid['score']:.4f}{step}."]
    if scores := info.get("scores"):
        lines += ["", *_probes(scores)]
    return lines


def _probes(scores: list[dict[str, Any]]) -> list[str]:
    columns = sorted({name for score in scores for name in score.get("baselines", {})})
    head = ["task", "protocol", "metric", "this encoder", *columns]
    rows = [
        [*(score[key] for key in ("task", "protocol", "metric")), _percent(score)]
        + [_percent(score.get("baselines", {}).get(name)) for name in columns]
        for score in scores
    ]
    what = "Test scores of the frozen encoder in %, with the 95 % interval over seeds or folds."
    return [_table(head, rows, numbers=1 + len(columns)), "", what]


def _limits(config: dict[str, Any]) -> list[str]:
    """What it cannot do, as far as its settings and its run tell."""
    ours = config["ssmast"]
    front, info = ours["front_end"], ours["info"]
    limits = [
        f"Its input is {front['f_min']:g} to {front['f_max']:g} Hz in one channel; direction and "
        "what lies above are lost.",
        f"Clips beyond {ours['window_seconds']:g} s are embedded in windows that are independent "
        "of one another.",
    ]
    classifier = info.get("classifier")
    if classifier and not classifier.get("multi_label"):
        limits.append(
            "Every clip gets one of its classes, silence and sounds of no class too; a probability "
            "says nothing about those."
        )
    if info.get("clips"):
        limits.append(
            f"It was trained on {info['clips']} clips of {_cell(info.get('data', 'one corpus'))}; "
            "it may work badly on other sounds, and shares the imbalances of those."
        )
    flat = flatten(info.get("settings") or {})
    for key, what in (("views.frames", "Training views"), ("clips.frames", "Training clips")):
        if frames := flat.get(key):
            seconds = frames * front["hop_length"] / front["sample_rate"]
            limits.append(f"{what} lasted {seconds:.2f} s: it has learnt no longer context.")
    done, planned = info.get("steps"), info.get("planned_steps")
    if planned and done != planned:
        limits.append(f"The run was not finished: {done} of {planned} steps.")
    if info.get("network") == "untrained":
        limits.append("Its weights are random: it serves as a baseline.")
    if not _is_scored(info):
        limits.append("It has not been scored.")
    if not info.get("license"):
        limits.append("No licence was stated; `ssmast export ... license=` states one.")
    limits.append("It has not been tested for decisions about people.")
    return ["## Limits", "", *(f"- {limit}" for limit in limits)]


def _onnx(config: dict[str, Any]) -> list[str]:
    info = config["ssmast"]["info"]
    facts = info.get("onnx")
    if not facts:
        return []
    rate = config["ssmast"]["front_end"]["sample_rate"]
    outputs, length = "`embeddings` (batch, D)", config["ssmast"]["window_seconds"]
    if info.get("classifier"):
        outputs += " and `probabilities` (batch, C), classes in the order above"
        samples = front_end_of(config["ssmast"]["front_end"]).samples(info["classifier"]["frames"])
        length = samples / rate
    lines = [
        "## ONNX",
        "",
        f"`model.onnx`: `waveform` float32 (batch, samples) at {rate} Hz -> {outputs}; "
        f"{facts['min_samples']} samples or more, log-mel inside. Clips are not cut: keep them "
        f"below {length:g} s, or cut and average.",
        "",
        f"Largest difference of onnxruntime to PyTorch at {len(facts['checked_lengths'])} lengths: "
        f"{facts['largest_difference']:.1e}.",
    ]
    if "int8_cosine_mean" in facts:
        lines += [
            "",
            f"`model.int8.onnx`: weights in 8 bits, {facts['int8_size']:.0%} of the size; cosine "
            f"to the float32 embedding {facts['int8_cosine_mean']:.4f} on average, "
            f"{facts['int8_cosine_lowest']:.4f} at the lowest, over sounds of the built-in corpus.",
        ]
    return lines


def _citation(info: dict[str, Any]) -> list[str]:
    text = str(info.get("citation") or "")
    if not text:
        return []
    lines = ["```bibtex", text, "```"] if text.startswith("@") else [text]
    return ["## Citation", "", *lines]


def _others(info: dict[str, Any]) -> list[str]:
    """Every setting of the run, and whatever else there is."""
    rest = {
        key: value
        for key, value in info.items()
        if isinstance(value, dict | list) and key not in _TOLD
    }
    lines: list[str] = []
    for key, value in rest.items():
        text = json.dumps(value, indent=1, default=str)
        lines += ["", f"## {key}", "", "```json", text, "```"]
    return lines[1:]


def _percent(score: dict[str, Any] | None) -> str:
    if not score:
        return ""
    interval = score.get("ci95")
    spread = f" ± {100 * interval:.1f}" if isinstance(interval, int | float) else ""
    return f"{100 * score['mean']:.1f}{spread}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: int = 0) -> str:
    plain = ([_cell(cell) for cell in row] for row in rows)
    return markdown_table(head, plain, numbers=numbers).rstrip("\n")


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.replace("\n", " ")
