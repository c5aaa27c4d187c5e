"""Classify sound files: top classes of each whole file and of its windows.

    ssmast predict a.wav b.mp3 encoder=runs/tuned/encoder
    ssmast predict *.flac encoder=runs/tuned top=3 hop=0.5 format=csv > classes.csv

    ssmast predict recordings/ encoder=runs/tuned format=raven out=tables threshold=0.5 merge=true

A file, or a part of one (a.wav#t=0.5,2: from second 0.5 to 2), is cut into windows, as long as
those of the training or `window` says, `hop` seconds apart; times are those of the file.
Text has the whole file first, then window by window. What is known is written at once, file by
file. With raven and audacity, `out` is a folder that gets a table for each sound, or one .txt file.
A file that cannot be read is named in a warning, and the exit status is then 1.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from ssmast.audio import AudioError
from ssmast.audio.corpus.remote import walk
from ssmast.audio.read import SOUND_EXTENSIONS, named_excerpt
from ssmast.audio.source import label_of
from ssmast.classifier import Classifier, Outputs, load_classifier
from ssmast.encoder.input import open_clip
from ssmast.events import NONE, TABLES, Event, audacity_labels, merged, raven_table, tables_writer
from ssmast.files import check_output, csv_lines, lock_of, locked, oserror_if_full
from ssmast.progress import Progress
from ssmast.settings import (
    CHANNEL,
    NETWORK_PRECISIONS,
    PRECISION,
    WINDOW,
    Settings,
    UsageError,
    command,
    setting,
    several_names,
)

logger = logging.getLogger(__name__)

FORMATS = ("text", "json", "csv", *TABLES)
# First line of a file in any of them.
_BEGINS = (
    r".*  \(\d+\.\d\d s\)\n|\[\n|\[\]|file,start,stop,head,|Selection\t"
    r"|\d+\.\d{6}\t\d+\.\d{6}\t"
)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Settings):
    """`ssmast predict a.wav b.wav`: sound files to classes."""

    data: str = setting("", "sound files, and folders of them", required=True)
    encoder: str = setting("", "fine-tuned encoder folder, or its run folder", required=True)
    channel: str = setting("mean", CHANNEL)
    precision: str = setting("fp32", PRECISION, choices=NETWORK_PRECISIONS)
    top: int = setting(
        -1,
        "classes of each head; 0: all; -1: 5, with merge, raven and audacity 1, or of several "
        "labels a clip all from threshold on",
        range="[-1, inf)",
    )
    window: float = setting(0.0, WINDOW, range="0 or [0.01, inf)")
    hop: float = setting(
        0.0,
        "seconds from one window to the next; 0: the length of a window",
        range="0 or [0.001, inf)",
    )
    threshold: float = setting(
        0.0,
        f"leave out classes of a lower probability; a window without one is {NONE!r}",
        range="[0, 1]",
    )
    background: list[str] = setting(
        [], f"classes of no interest, such as [noise,silence]: a window of one is {NONE!r}"
    )
    min_level: float = setting(
        0.0,
        f"dB of full scale (such as -60) below which a window is {NONE!r}; 0: no such limit",
        range="(-inf, 0]",
    )
    merge: bool = setting(False, "make one span of windows of the same class that overlap or touch")
    format: str = setting(
        "text",
        "format of the output; raven: selection tables, audacity: label tracks",
        choices=FORMATS,
    )
    out: str = setting(
        "", "file to write, or with raven and audacity a folder; empty: the terminal"
    )
    batch_seconds: float = setting(
        20.0, "seconds of audio that go through the network at once", range="[0, inf)"
    )


@command(PredictConfig, "ssmast predict", positional="data", several=True)
def main(config: PredictConfig, argv: list[str]) -> int:
    """`ssmast predict`: words without = are files and folders."""
    is_folder = config.format in TABLES and not config.out.endswith(".txt")
    if config.out and not is_folder and not Path(config.out).absolute().parent.is_dir():
        raise UsageError(f"out={config.out} lies in a folder that does not exist; make it first")
    files = list(_sounds_in(several_names(config.data)))
    if config.format == "audacity" and len(files) > 1 and (not config.out or not is_folder):
        raise UsageError(
            "an Audacity label track is of one sound; give out=FOLDER, which gets one for each"
        )
    if config.out and any(Path(file).resolve() == Path(config.out).resolve() for file in files):
        raise UsageError(f"out={config.out} is one of the files to classify; give another name")
    if config.out:
        check_output(config.out, folder=is_folder, begins=_BEGINS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = load_classifier(
        config.encoder, precision=config.precision, window_seconds=config.window
    ).to(device)
    names = {name for _, classes in classifier.outputs.heads for name in classes}
    unknown = {*config.background} - names
    if unknown:
        raise UsageError(f"background={sorted(unknown)} are no classes of {config.encoder}")
    failed, started = 0, time.monotonic()
    is_told = bool(config.out) or not sys.stdout.isatty()  # else the output itself is seen to grow
    alone = nullcontext()
    if config.out and not is_folder:  # a second one would empty the file under the first
        alone = locked(lock_of(config.out), doing=f"writing {config.out}")
    with (
        alone,
        _opened(config) as write,
        Progress("classifying", total=len(files), enabled=is_told, unit="file") as progress,
    ):
        for done, file in enumerate(files, 1):
            try:
                found = predict_file(classifier, file, config, advance=progress.advance)
            except (AudioError, OSError) as error:
                failed += 1
                logger.warning("%s", error)
            else:  # not above: a full disk or a closed pipe is no fault of the file
                write(found)
            progress.reach(done)
    if failed:
        logger.warning("%d of %d files could not be classified", failed, len(files))
    if config.out:
        seconds, done = time.monotonic() - started, len(files) - failed
        logger.info("%d of %d files in %.0f s: %s", done, len(files), seconds, config.out)
    return 1 if failed else 0


def _sounds_in(names: Sequence[str]) -> Iterator[str]:
    """The files named, and of folders the sounds at any depth, sorted."""
    for name in names:
        if not Path(name).is_dir():
            yield name
            continue
        below = [one for one, _ in walk(Path(name))]
        sounds = [one for one in below if Path(one).suffix.lower() in SOUND_EXTENSIONS]
        if not sounds:
            raise UsageError(f"{name} holds no sound; wanted files such as .wav or .flac in it")
        yield from (str(Path(name) / one) for one in sounds)


@contextmanager
def _opened(config: PredictConfig) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What takes the prediction of one file after the other and writes each at once."""
    if not config.out:
        yield from _writing(config, sys.stdout)
        return
    with oserror_if_full(Path(config.out)):
        if config.format in TABLES:
            to_table = tables_writer(config.format, config.out)
            yield lambda found: to_table(found["file"], as_events(found))
        else:
            with open(config.out, "w", encoding="utf-8", newline="") as opened:
                yield from _writing(config, opened)


def _writing(config: PredictConfig, to: TextIO) -> Iterator[Callable[[dict[str, Any]], None]]:
    """The same for one stream, with what stands before and after all of them."""
    files = events = 0

    def write(found: dict[str, Any]) -> None:
        nonlocal files, events
        match config.format:
            case "text":
                to.write(as_text(found))
            case "json":
                text = json.dumps(found, indent=1).replace("\n", "\n ")
                to.write(f"{',' if files else ''}\n {text}")
            case "csv":
                to.write(csv_lines(csv_rows(found)))
            case "raven":
                new = as_events(found)
                to.write(raven_table(new, header=not files, first=events + 1))
                events += len(new)
            case _:
                to.write(audacity_labels(as_events(found)))
        files += 1
        to.flush()

    if config.format == "csv":
        to.write("file,start,stop,head,class,probability\n")
    if config.format == "json":
        to.write("[")
    yield write
    if config.format == "json":
        to.write("\n]\n" if files else "]\n")


def predict_file(
    classifier: Classifier,
    file: str,
    config: PredictConfig,
    *,
    advance: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Classes of a file, or of a part of one, and of each window of it, plain JSON values.

    Of a part, `a.wav#t=0.5,2`, times are those of the file. `advance` is told after each batch of
    windows which fraction of the file it was.

    Raises:
        AudioError: if it cannot be read.
    """
    source = named_excerpt(file, channel=config.channel)
    waveform = open_clip(source, sample_rate=classifier.sample_rate)
    found, whole = classifier.windows_and_whole(
        waveform, hop_seconds=config.hop, batch_seconds=config.batch_seconds, advance=advance
    )
    windows = []
    for start, stop, scores, level in zip(*found, strict=True):
        is_quiet = bool(config.min_level) and level < config.min_level
        classes = [] if is_quiet else top_classes(scores, classifier.outputs, config)
        first, last = (round(source.start + float(moment), 3) for moment in (start, stop))
        windows.append({"start": first, "stop": last, "classes": classes})
    if config.merge:
        windows = _merged(windows)
    return {
        "file": label_of(source.source, None),
        "seconds": round(len(waveform) / classifier.sample_rate, 3),
        "classes": top_classes(whole, classifier.outputs, config),
        "windows": windows,
    }


def _merged(windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spans in place of windows, one class each; those of no class are spans as well."""
    events = [
        Event(
            row.get("head", ""), window["start"], window["stop"], row["class"], row["probability"]
        )
        for window in windows
        for row in window["classes"] or [{"class": "", "probability": 0.0}]
    ]
    spans = []
    for event in sorted(merged(events), key=lambda event: (event.start, event.file)):
        row = {"class": event.label, "probability": event.score}
        row = {"head": event.file, **row} if event.file else row
        classes = [row] if event.label else []
        spans.append({"start": event.start, "stop": event.stop, "classes": classes})
    return spans


def as_events(found: dict[str, Any]) -> list[Event]:
    """What was found in a file, without the windows that are none of the classes."""
    return [
        Event(
            found["file"],
            window["start"],
            window["stop"],
            f"{row['head']}: {row['class']}" if "head" in row else row["class"],
            row["probability"],
        )
        for window in found["windows"]
        for row in window["classes"]
    ]


def top_classes(scores: Tensor, outputs: Outputs, config: PredictConfig) -> list[dict[str, Any]]:
    """The classes that `Outputs.top` gives for the settings, as JSON has them."""
    top = config.top
    if top < 0:
        few = config.merge or config.format in TABLES
        # Of several labels a clip, all that reach the threshold are there.
        top = 5 if not few else 0 if outputs.multi_label and config.threshold else 1
    found = outputs.top(scores, top, threshold=config.threshold, background=config.background)
    rows = [(head, {"class": name, "probability": round(p, 6)}) for head, name, p in found]
    return [{"head": head, **row} if len(outputs.heads) > 1 else row for head, row in rows]


def as_text(found: dict[str, Any]) -> str:
    """For people: a block a file."""
    lines = [f"{found['file']}  ({found['seconds']:.2f} s)"]
    lines += [f"  {_line(row)}" for row in found["classes"]]
    if len(found["windows"]) > 1 or not found["classes"]:
        for window in found["windows"]:
            named = ", ".join(_line(row) for row in window["classes"]) or NONE
            lines.append(f"  {window['start']:8.2f} - {window['stop']:8.2f} s  {named}")
    return "".join(f"{line}\n" for line in lines)


def csv_rows(found: dict[str, Any]) -> list[list[Any]]:
    """One row a window and class; of a window that is none of them one without a probability."""
    return [
        [found["file"], window["start"], window["stop"], row.get("head", ""), *of_class]
        for window in found["windows"]
        for row in window["classes"] or [{}]
        for of_class in [[row["class"], row["probability"]] if row else [NONE, ""]]
    ]


def _line(row: dict[str, Any]) -> str:
    head = f"{row['head']}: " if "head" in row else ""
    return f"{100 * row['probability']:5.1f} % {head}{row['class']}"
