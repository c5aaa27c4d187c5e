"""Export a run's encoder: folder, model card with scores, ONNX, the Hugging Face Hub.

    ssmast export runs/mine out=encoder                      the network that the run chose
    ssmast export runs/mine out=encoder network=teacher onnx=true int8=true
    ssmast export runs/mine/encoder out=small pooling=mean   another pooling of an encoder folder

A run that is not finished, or was broken off, is exported from its newest valid checkpoint; one of
fine-tuning from its encoder/, head and classes included (in ONNX too: a second output).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ssmast.encoder import Encoder, load_encoder
from ssmast.encoder.folder import CONFIG, WEIGHTS, check_folder_to_write, is_encoder
from ssmast.encoder.whitening import Whitening
from ssmast.evaluation.embed import measured_whitening
from ssmast.files import as_text, check_output
from ssmast.model import create_model
from ssmast.report import read_probes
from ssmast.settings import Settings, UsageError, command, setting, wants_dry_run
from ssmast.training.checkpoint import load_checkpoint, newest_checkpoint
from ssmast.training.config import FrontEnd, stored_config
from ssmast.training.init_weights import backbone_weights
from ssmast.training.inputs import log_mel_of, open_data
from ssmast.training.run_folder import RunFolder, changed_settings, facts_of_encoder
from ssmast.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """`ssmast export`: a run to an encoder folder."""

    run: str = setting("", "run folder, or an encoder folder", required=True)
    out: str = setting("", "encoder folder to write", required=True)
    network: str = setting("", "network to export, such as student; empty: as the run says")
    checkpoint: str = setting("", "checkpoint folder; empty: the newest valid one of the run")
    pooling: str = setting(
        "", "statistics joined by +, such as freq+max+std; empty: as the run says"
    )
    layers: str = setting(
        "",
        "layers that are pooled: last, stages, blocks, or numbers of stages such as 2-3; empty: as "
        "the run says",
    )
    whiten: int = setting(
        -1,
        "directions of the largest variance that embeddings are whitened along, measured on the "
        "run's clips; 0: none; -1: as the run says",
        range="[-1, inf)",
    )
    data: str = setting("", "clips to whiten by; empty: those of the run")
    window_seconds: float = setting(
        0.0,
        "longer audio is embedded in windows of this many seconds; 0: as the run says",
        range="0 or [0.1, inf)",
    )
    scores: str = setting("", "folder of probe results for the card; empty: probe/ in the run")
    onnx: bool = setting(
        False, "also write model.onnx (waveform to embedding), compared with PyTorch"
    )
    int8: bool = setting(False, "with onnx: also write model.int8.onnx, and what that changes")
    license: str = setting("", "licence of the weights for the card, such as apache-2.0")
    datasets: list[str] = setting([], "names on the Hub of the training data, for the card")
    title: str = setting("", "heading of the card; empty: Audio encoder, or classifier")
    citation: str = setting(
        "", "how to cite it, for the card: a file, such as a .bib, or the text itself"
    )
    push: str = setting("", "upload to the Hugging Face Hub as ORGANISATION/NAME")
    private: bool = setting(False, "with push: as a private repository")

    def __post_init__(self) -> None:
        """Refuse keys that do not go together."""
        super().__post_init__()
        if self.int8 and not self.onnx:
            raise UsageError("int8=true needs onnx=true")
        if self.private and not self.push:
            raise UsageError("private=true needs push=ORGANISATION/NAME")


@command(ExportConfig, "ssmast export", dry_run=True, positional="run")
def main(config: ExportConfig, argv: list[str]) -> int:
    """`ssmast export`: parse, then export."""
    check_output(config.out, folder=True)
    check_folder_to_write(Path(config.out))
    if config.scores and not Path(config.scores).is_dir():
        raise FileNotFoundError(
            f"scores={config.scores} is no folder; give the one that `ssmast probe` wrote, or "
            "leave scores= out"
        )
    citation = _citation_of(config.citation)
    encoder = find_encoder(config)
    if wants_dry_run(argv):
        logger.info("%s, %d numbers, to %s", encoder.info.get("network"), encoder.dim, config.out)
        return 0
    encoder.whitening = whitening_for(config, encoder)
    export(replace(config, citation=citation), encoder)
    return 0


def _citation_of(text: str) -> str:
    """The text of a citation, or of the file that is named."""
    file = Path(text)
    if len(text) < 256 and file.is_file():
        return as_text(file.read_bytes(), file).strip()
    if file.suffix.lower() in (".bib", ".cff", ".txt"):
        raise FileNotFoundError(f"citation={text} does not exist; give a file or the text itself")
    return text.strip()


def export(config: ExportConfig, encoder: Encoder) -> Path:
    """Write the encoder folder that the settings ask for; returns it."""
    out = Path(config.out)
    stated = {key: getattr(config, key) for key in ("license", "datasets", "title", "citation")}
    encoder.info |= {key: value for key, value in stated.items() if value}
    encoder.info["scores"] = matching_scores(
        Path(config.scores) if config.scores else Path(config.run) / "probe", encoder
    )
    extra: dict[str, bytes] = {}
    if config.onnx:
        from ssmast.encoder.graph import graph_files

        logger.info("making and comparing the ONNX graph, which takes a minute or more")
        extra, encoder.info["onnx"] = graph_files(encoder, int8=config.int8)
        logger.info(
            "ONNX: largest difference to PyTorch %.1e", encoder.info["onnx"]["largest_difference"]
        )
        if config.int8:
            logger.info(
                "int8: cosine to the float32 embedding %.4f on average, %.4f at the lowest",
                encoder.info["onnx"]["int8_cosine_mean"],
                encoder.info["onnx"]["int8_cosine_lowest"],
            )
    encoder.save(out, extra=extra)
    scores = len(encoder.info["scores"])
    network = encoder.info.get("network", "-")
    logger.info("encoder: %s (%s, probe scores on its card: %d)", out, network, scores)
    if config.push:
        from ssmast.encoder.folder import push_to_hub

        logger.info("pushed: %s", push_to_hub(out, config.push, private=config.private))
    return out


def find_encoder(config: ExportConfig) -> Encoder:
    """The encoder to export, from a checkpoint of the run or from an encoder folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or the run or folder does not hold that network.
    """
    run = Path(config.run)
    if not run.is_dir():
        raise FileNotFoundError(f"there is no run folder at {run}")
    if config.checkpoint:
        return _of_checkpoint(Path(config.checkpoint), run, config)
    # Damaged or not: reading it tells what is wrong.
    if (run / CONFIG).is_file() or (run / WEIGHTS).is_file():
        return _of_folder(run, config)
    newest, made = newest_checkpoint(run / "checkpoints"), run / "encoder"
    # Checkpoints of fine-tuning hold the last weights; the best validated ones are in encoder/.
    if newest is None or (made.is_dir() and RunFolder(path=run).is_fine_tuning):
        if not made.is_dir():
            raise FileNotFoundError(
                f"{run} holds neither a checkpoint nor an encoder; give a run folder of "
                "`ssmast pretrain` or an encoder folder"
            )
        return _of_folder(made, config)
    return _of_checkpoint(newest, run, config)


def whitening_for(config: ExportConfig, encoder: Encoder) -> Whitening | None:
    """The whitening of an encoder that `find_encoder` gave, as the settings ask for it.

    That of the encoder itself or of the run's own, where it is of the same vectors; else measured
    again on the clips that the run was trained on.

    Raises:
        FileNotFoundError: if there is no sound to measure it on.
        UsageError: if there is, and nothing is to be whitened.
    """
    run, stored = Path(config.run), encoder.info.get("settings") or {}
    directions = config.whiten
    if directions < 0:
        if encoder.whitening is not None and not config.data:
            return encoder.whitening
        directions = int((stored.get("export") or {}).get("whiten", 0))
        if encoder.whitening is not None:
            directions = len(encoder.whitening.factors)
    if directions == 0:
        if config.data:
            raise UsageError(
                "data= is what embeddings are whitened by, and these are not whitened; give "
                "whiten=DIRECTIONS, or leave data= out"
            )
        return None
    if is_encoder(run / "encoder") and not config.data:
        made = load_encoder(run / "encoder")
        found, made.whitening = made.whitening, None
        same = (made.sha256, made.pooling, made.layers) == (
            *(encoder.sha256, encoder.pooling, encoder.layers),
        )
        if found is not None and same and config.whiten in (-1, len(found.factors)):
            return found
    settings = stored_config(stored, data=config.data, command="ssmast export")
    try:
        corpus = open_data(settings, runs=run.parent)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"embeddings are to be whitened by the sound of the run, which cannot be opened: "
            f"{error}; give data=FOLDER, or whiten=0"
        ) from error
    return measured_whitening(encoder, corpus, directions=directions, seed=settings.seed)


def _of_checkpoint(checkpoint: Path, run: Path, config: ExportConfig) -> Encoder:
    """An encoder from one of the run's checkpoints."""
    folder = RunFolder(path=run)
    settings, facts = folder.read_config(), folder.read_facts()
    if not facts:
        raise FileNotFoundError(f"{run} has lost its facts.json; put it back")
    state, tensors = load_checkpoint(checkpoint)
    lost = [key for key in state["settings"] if key not in settings]
    if lost:
        raise ValueError(
            f"{folder.config_file} has lost {', '.join(lost)}; put back the file as it was written"
        )
    changed = changed_settings(state["settings"], settings)
    if changed:
        raise ValueError(
            f"checkpoint {checkpoint} is not one of {run}: {'; '.join(changed)}; give the run "
            "folder that it was written in"
        )
    if state.get("corpus", facts.get("corpus")) != facts.get("corpus"):
        raise ValueError(
            f"checkpoint {checkpoint} is not one of {run}, which was trained on other audio; give "
            "the run folder that it was written in"
        )
    objective = settings.get("objective")
    if not objective:
        made = (run / "encoder").is_dir()
        raise ValueError(
            f"{checkpoint} is one of a fine-tuning, step {state['step']} of {state['steps']}, and "
            + (f"its classifier is {run / 'encoder'}; leave checkpoint= out" if made else
               f"no encoder yet; resume with the same command and resume=auto, then export {run}")
        )  # fmt: skip
    if "encoders" not in state:
        raise ValueError(
            f"{checkpoint} was written by ssmast {state.get('version', '0.1.0')}, whose "
            f"checkpoints {__version__} does not read; export it with that version"
        )
    networks = list(state["encoders"])  # the usual one first
    network = config.network or settings["export"]["network"] or networks[0]
    if network not in networks:
        raise ValueError(
            f"a run with objective={objective} has no {network}, only its "
            f"{' and '.join(networks)}; leave network= out"
        )
    weights = backbone_weights(state, tensors, network=network)
    encoder = _of_weights(settings, facts, weights, config)
    steps = {"steps": int(state["step"]), "planned_steps": int(state["steps"])}
    encoder.info = {**facts_of_encoder(facts), **steps, "settings": settings, "network": network}
    encoder.info["version"] = __version__
    logger.info("%s of step %d from %s", network, state["step"], checkpoint)
    return encoder


def _of_weights(
    settings: dict[str, Any],
    facts: dict[str, Any],
    weights: Mapping[str, Tensor],
    config: ExportConfig,
) -> Encoder:
    """Front end, backbone and pooling of a run around weights of a checkpoint."""
    front = FrontEnd(**settings["front_end"])
    size = (front.num_mels, settings["views"]["frames"])
    backbone = create_model(settings["model"], num_classes=0, input_size=size)
    backbone.load_state_dict(weights)
    wanted = settings["export"]
    encoder = Encoder(
        backbone,
        log_mel_of(front, mean=facts["mean"], std=facts["std"]),
        pooling=config.pooling or wanted["pooling"],
        layers=config.layers or wanted["layers"],
        window_seconds=config.window_seconds or wanted["window_seconds"],
    )
    return encoder.eval()


def _of_folder(folder: Path, config: ExportConfig) -> Encoder:
    """An encoder folder with other settings."""
    found = load_encoder(folder)
    holds = found.info.get("network")
    if config.network and holds != config.network:
        raise ValueError(
            f"{folder} holds the {holds or 'other'} network, not the "
            f"{config.network}; leave network= out, or give a run folder with its checkpoints"
        )
    return found.variant(
        pooling=config.pooling,
        layers=config.layers,
        window_seconds=config.window_seconds,
        info={key: value for key, value in found.info.items() if key not in ("onnx", "scores")},
    )


def matching_scores(folder: Path, encoder: Encoder) -> list[dict[str, Any]]:
    """Probe results in a folder for exactly this encoder: weights, pooling, layers."""
    kept, others, sha256 = [], 0, encoder.sha256
    for result in (probe.to_dict() for probe in read_probes(folder)):
        same = (
            result.get("encoder_sha256") == sha256
            and result.get("pooling", encoder.pooling) == encoder.pooling
            and result.get("layers", encoder.layers) == encoder.layers
        )
        if not same:
            others += 1
            continue
        wanted = ("task", "protocol", "metric", "mean", "ci95", "n_train", "n_test", "num_classes")
        score = {key: result[key] for key in wanted if key in result}
        score["baselines"] = {
            name: {key: row.get(key) for key in ("mean", "ci95")}
            for name, row in result.get("baselines", {}).items()
        }
        kept.append(score)
    if others:
        logger.info("%d results in %s are of other weights or pooling; left out", others, folder)
    return kept
