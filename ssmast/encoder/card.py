"""The model card: what an encoder is, how to use it, what it has heard and what it is worth.

Encoder folders to the Hugging Face Hub; `load_encoder("org/name")` brings them back.
"""

import json
from pathlib import Path
from typing import Any

from ssmast.encoder.folder import CARD, CHECKSUMS, CONFIG, WEIGHTS, read_folder
from ssmast.settings import flatten

# What an objective has of its own to say: name -> setting.
_OBJECTIVES = {
    "ss_mast": {
        "patches dropped": "patch_drop.rate",
        "temperature": "loss.temperature",
        "negatives kept": "loss.queue_size",
    },
    "ssast": {"patches masked": "ssast.masked"},
}


def model_card(config: dict[str, Any], *, dim: int, num_parameters: int) -> str:
    """README.md of an encoder folder.

    Args:
        config: content of config.json.
        dim: length of an embedding.
        num_parameters: of the backbone.
    """
    info = config["ssmast"]["info"]
    parts = [
        _head(config),
        _facts(config, dim=dim, num_parameters=num_parameters),
        _recipe(info.get("settings")),
        _scores(info.get("scores")),
        _limits(config),
        _onnx(config),
        _others(info),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _head(config: dict[str, Any]) -> list[str]:
    kind = "A Multiscale" if config["architecture"].startswith("mast_") else "An"
    return [
        "---",
        "library_name: ssmast",
        "pipeline_tag: feature-extraction",
        "tags: [audio, ssmast, timm]",
        "---",
        "",
        "# Audio encoder",
        "",
        f"{kind} Audio Spectrogram Transformer: sound in, one vector out.",
        "",
        "```python",
        "import ssmast",
        "",
        'encoder = ssmast.load_encoder("THIS FOLDER")      # or org/name on the Hugging Face Hub',
        'encoder.embed("sound.wav")                        # float32 (1, D)',
        "encoder.embed(waveform, sample_rate)              # numpy or torch, (S,) or (B, S)",
        "encoder.embed_frames(waveform, sample_rate)       # (B, N, D), milliseconds (B, N)",
        "",
        'timm.create_model("local-dir:THIS FOLDER", pretrained=True)  # after `import ssmast`',
        "```",
    ]


def _facts(config: dict[str, Any], *, dim: int, num_parameters: int) -> list[str]:
    ours, front = config["ssmast"], config["ssmast"]["front_end"]
    facts = {
        "architecture": f"`{config['architecture']}`, {num_parameters / 1e6:.1f} M parameters",
        "input": f"waveform at {front['sample_rate']} Hz (other rates are resampled), any length",
        "front end": f"log-mel, {front['num_mels']} bins, {front['f_min']:g} to "
        f"{front['f_max']:g} Hz, {1000 * front['hop_length'] / front['sample_rate']:g} ms hop",
        "embedding": f"{dim} numbers: pooling `{ours['pooling']}`, layers `{ours['layers']}`",
        "long audio": f"in pieces of {ours['chunk_seconds']:g} s, averaged",
    }
    info = {k: v for k, v in ours["info"].items() if not isinstance(v, dict | list)}
    return ["| | |", "|---|---|", *(_row(key, value) for key, value in {**facts, **info}.items())]


def _recipe(settings: dict[str, Any] | None) -> list[str]:
    """What the run was told, shortly; every key is among the details below."""
    if not isinstance(settings, dict):
        return []
    flat = flatten(settings)
    wanted = {
        "objective": "objective",
        "model": "model",
        "recipe": "recipe",
        "started from": "init",
        "clips a step": "batch_size",
        "frames of a view": "views.frames",
        **_OBJECTIVES.get(flat.get("objective", ""), {}),
        "optimiser": "optim.name",
        "learning rate": "optim.lr",
        "weight decay": "optim.weight_decay",
        "seed": "seed",
    }
    said = {name: flat.get(key) for name, key in wanted.items()}
    rows = [_row(name, value) for name, value in said.items() if value not in (None, "")]
    return ["## Recipe", "", "| | |", "|---|---|", *rows] if rows else []


def _scores(scores: list[dict[str, Any]] | None) -> list[str]:
    if not scores:
        command = "`ssmast probe encoder=THIS_FOLDER data=LABELLED_SETS`"
        return ["## Scores", "", f"Not scored yet: {command}."]
    columns = sorted({name for score in scores for name in score.get("baselines", {})})
    head = ["task", "protocol", "metric", "this encoder", *columns]
    rule = "|---" * 3 + "|---:" * (1 + len(columns)) + "|"
    lines = ["## Scores", "", "| " + " | ".join(head) + " |", rule]
    for score in scores:
        cells = [_cell(score[key]) for key in ("task", "protocol", "metric")]
        cells.append(_percent(score))
        cells += [_percent(score.get("baselines", {}).get(name)) for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    what = "Test scores of the frozen encoder in %, with the 95 % interval over seeds or folds."
    return [*lines, "", what]


def _limits(config: dict[str, Any]) -> list[str]:
    """What it cannot do, as far as its settings and its run tell."""
    ours = config["ssmast"]
    front, info = ours["front_end"], ours["info"]
    limits = [
        f"It hears {front['f_min']:g} to {front['f_max']:g} Hz in one channel; direction and what "
        "lies above are lost.",
        f"Clips beyond {ours['chunk_seconds']:g} s are embedded in pieces that do not know of one "
        "another.",
    ]
    if info.get("clips"):
        limits.append(
            f"It was trained on {info['clips']} clips of {_cell(info.get('data', 'one corpus'))}; "
            "sounds unlike those may be told apart badly, and what is over- or underrepresented "
            "there is so here."
        )
    frames = flatten(info.get("settings") or {}).get("views.frames")
    if frames:
        seconds = frames * front["hop_length"] / front["sample_rate"]
        limits.append(f"Training views lasted {seconds:.2f} s: no longer context has been learnt.")
    done, planned = info.get("steps"), info.get("planned_steps")
    if planned and done != planned:
        limits.append(f"The run was not finished: {done} of {planned} steps.")
    if info.get("network") == "untrained":
        limits.append("Its weights are random: it is here to be compared with.")
    if not info.get("scores"):
        limits.append("It has not been scored.")
    limits.append("It has not been tested for decisions about people.")
    return ["## Limits", "", *(f"- {limit}" for limit in limits)]


def _onnx(config: dict[str, Any]) -> list[str]:
    facts = config["ssmast"]["info"].get("onnx")
    if not facts:
        return []
    rate = config["ssmast"]["front_end"]["sample_rate"]
    lines = [
        "## ONNX",
        "",
        f"`model.onnx`: `waveform` float32 (batch, samples) at {rate} Hz -> `embeddings` "
        f"(batch, D); {facts['min_samples']} samples or more, log-mel inside. Clips are not cut: "
        f"keep them below {config['ssmast']['chunk_seconds']:g} s, or cut and average.",
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


def _others(info: dict[str, Any]) -> list[str]:
    """Every setting of the run, and whatever else there is."""
    rest = {
        key: value
        for key, value in info.items()
        if isinstance(value, dict | list) and key not in ("scores", "onnx")
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


def _row(key: object, value: object) -> str:
    return f"| {_cell(key)} | {_cell(value)} |"


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.replace("|", "\\|").replace("\n", " ")


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    message: str = "Upload encoder",
    token: str | None = None,
) -> str:
    """Upload an encoder folder in one commit, after checking it.

    The repository is made if need be. Only what belongs to an encoder goes: configuration, weights,
    card, checksums, ONNX.

    Args:
        folder: encoder folder.
        repo: `org/name`.
        private: nobody else sees it; of a repository that is made now.
        message: of the commit.
        token: of the Hub; by default the one that `hf auth login` keeps.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError, ValueError: if the folder is not a whole encoder.
        ConnectionError: if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    _, weights = read_folder(folder)
    names = [CONFIG, WEIGHTS, CARD, CHECKSUMS]
    names += sorted(file.name for file in weights.parent.glob("*.onnx"))
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=weights.parent,
            allow_patterns=names,
            commit_message=message,
            repo_type="model",
        )
    except (OSError, ValueError) as error:  # all of the Hub's errors are one of these
        reason = str(error).strip().split("\n")[0]
        raise ConnectionError(f"{repo} could not be pushed to the Hub: {reason}") from error
    return str(commit.commit_url)
