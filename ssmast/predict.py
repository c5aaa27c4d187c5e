"""Classify sound files: top classes of each whole file and of its windows.

    ssmast predict a.wav b.mp3 encoder=runs/tuned/encoder
    ssmast predict *.flac encoder=runs/tuned top=3 hop=0.5 format=csv > classes.csv

A file is cut into windows as long as those of the training, `hop` seconds apart. Text has the
whole file first, then window by window. A file that cannot be read is named in a warning, and the
exit status is then 1.
"""

import csv
import io
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssmast.audio import AudioError, LongSound, open_audio
from ssmast.audio.decode import label_of
from ssmast.audio.read import Excerpt
from ssmast.classifier import Classifier, Outputs, load_classifier
from ssmast.files import check_output
from ssmast.settings import (
    CHANNEL,
    NETWORK_PRECISIONS,
    PRECISION,
    Settings,
    UsageError,
    in_home,
    named_files,
    parse,
    setting,
)

logger = logging.getLogger(__name__)

FORMATS = ("text", "json", "csv")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Settings):
    """`ssmast predict FILES...`: sound files to classes."""

    encoder: str = setting("", "fine-tuned encoder folder, or its run folder", required=True)
    channel: str = setting("mean", CHANNEL)
    precision: str = setting("fp32", PRECISION, choices=NETWORK_PRECISIONS)
    top: int = setting(5, "classes printed for each head; 0: all", range="[0, inf)")
    hop: float = setting(
        0.0, "seconds from one window to the next; 0: the length of a window", range="[0, inf)"
    )
    threshold: float = setting(0.0, "leave out classes of a lower probability", range="[0, 1]")
    format: str = setting("text", "format of the output", choices=FORMATS)
    out: str = setting("", "file to write; empty: the terminal")
    batch_seconds: float = setting(
        20.0, "seconds of audio that go through the network at once", range="[0, inf)"
    )


def main(argv: list[str]) -> int:
    """`ssmast predict`: words without = are files."""
    files = [in_home(word) for word in named_files(argv, PredictConfig)]
    words = [word for word in argv if in_home(word) not in files]
    config = parse(
        PredictConfig, words, command="ssmast predict FILES...", description=__doc__ or ""
    )
    if config is None:
        return 0
    if not files:
        raise UsageError("no file was given; `ssmast predict a.wav b.wav encoder=DIR`")
    if config.out and not Path(config.out).absolute().parent.is_dir():
        raise UsageError(f"out={config.out} lies in a folder that does not exist; make it first")
    if config.out:
        check_output(config.out)
    if config.out and any(Path(file).resolve() == Path(config.out).resolve() for file in files):
        raise UsageError(f"out={config.out} is one of the files to classify; give another name")
    classifier = load_classifier(config.encoder, precision=config.precision)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier.network.to(device)
    classifier.log_mel.to(device)
    predictions, failed = [], 0
    for file in files:
        try:
            predictions.append(predict_file(classifier, file, config))
        except (AudioError, OSError) as error:
            failed += 1
            logger.warning("%s", error)
    text = {"text": as_text, "json": as_json, "csv": as_csv}[config.format](predictions)
    if config.out:
        Path(config.out).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 1 if failed else 0


def predict_file(classifier: Classifier, file: str, config: PredictConfig) -> dict[str, Any]:
    """Classes of a file and of each window of it, plain JSON values.

    Raises:
        AudioError: if it cannot be read.
    """
    waveform, seconds = _open(file, classifier.sample_rate, config.channel), config.batch_seconds
    found, whole = classifier.windows_and_whole(
        waveform, hop_seconds=config.hop, batch_seconds=seconds
    )
    windows = [
        {
            "start": round(float(start), 3),
            "stop": round(float(stop), 3),
            "classes": top_classes(scores, classifier.outputs, config),
        }
        for start, stop, scores in zip(*found, strict=True)
    ]
    return {
        "file": label_of(file, None),
        "seconds": round(len(waveform) / classifier.sample_rate, 3),
        "classes": top_classes(whole, classifier.outputs, config),
        "windows": windows,
    }


def _open(file: str, sample_rate: int, channel: str) -> Tensor | LongSound:
    sound = open_audio(Excerpt(Path(file), channel=channel), sample_rate=sample_rate)
    return sound if isinstance(sound, LongSound) else torch.from_numpy(sound)


def top_classes(scores: Tensor, outputs: Outputs, config: PredictConfig) -> list[dict[str, Any]]:
    """The likeliest classes of each head, likeliest first.

    Args:
        scores: of the classes of all heads (C,), as `Classifier.embed_clips` gives them.
        outputs: what they mean.
        config: how many of them, and from which probability on.
    """
    rows = []
    for (head, classes), own in zip(outputs.heads, scores.split(outputs.sizes), strict=True):
        chances = own.sigmoid() if outputs.multi_label else own.exp()
        best = chances.topk(min(config.top or len(classes), len(classes)))
        for chance, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            if chance >= config.threshold:
                row = {"class": classes[index], "probability": round(chance, 6)}
                rows.append({"head": head, **row} if len(outputs.heads) > 1 else row)
    return rows


def as_text(predictions: list[dict[str, Any]]) -> str:
    """For people: a block a file."""
    lines = []
    for found in predictions:
        lines.append(f"{found['file']}  ({found['seconds']:.2f} s)")
        lines += [f"  {_line(row)}" for row in found["classes"]]
        if len(found["windows"]) > 1:
            for window in found["windows"]:
                named = ", ".join(_line(row) for row in window["classes"])
                lines.append(f"  {window['start']:8.2f} - {window['stop']:8.2f} s  {named}")
    return "".join(f"{line}\n" for line in lines)


def as_json(predictions: list[dict[str, Any]]) -> str:
    """One list."""
    return json.dumps(predictions, indent=1) + "\n"


def as_csv(predictions: list[dict[str, Any]]) -> str:
    """One row a window and class: file,start,stop,head,class,probability."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["file", "start", "stop", "head", "class", "probability"])
    for found in predictions:
        for window in found["windows"]:
            place = [found["file"], window["start"], window["stop"]]
            for row in window["classes"]:
                writer.writerow([*place, row.get("head", ""), row["class"], row["probability"]])
    return buffer.getvalue()


def _line(row: dict[str, Any]) -> str:
    head = f"{row['head']}: " if "head" in row else ""
    return f"{100 * row['probability']:5.1f} % {head}{row['class']}"
