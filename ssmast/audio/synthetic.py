"""A labelled corpus out of nothing: what tests, demo and smoke run learn from."""

import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ssmast.audio.sounds import CLASSES, make_sound

_FORMAT = 1  # raise it when the sounds change, so that an old corpus is not taken for this one
_MARKER = "synthetic.json"
_SHARES = (("train", 0.60), ("valid", 0.15), ("test", 0.25))


def write_synthetic_corpus(
    out: str | os.PathLike[str],
    *,
    num_clips: int,
    seed: int,
    seconds: float = 2.0,
    sample_rate: int = 16000,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a labelled set of twelve classes of synthetic sound.

    Clips are FLAC files with `metadata.csv` (path, label, split: about 60 % train, 15 % valid,
    25 % test of every class). The same arguments give the same samples. The folder appears at once
    when all is written; one that holds the same corpus already is checked and kept.

    Args:
        out: folder to write.
        num_clips: clips in all, the classes taking turns.
        seed: of everything drawn.
        seconds: length of a clip.
        sample_rate: in Hz.
        progress: called with (clips done, clips in all) after each clip.

    Returns:
        The folder.

    Raises:
        ValueError: if `num_clips` is too small, or the folder holds something else.
    """
    out = Path(out)
    if num_clips < len(CLASSES):
        raise ValueError(
            f"num_clips must be at least {len(CLASSES)}, one for each class, got {num_clips}"
        )
    if seconds * sample_rate < 2000:
        raise ValueError(f"clips must be 2000 samples or more, got {seconds:g} s, {sample_rate} Hz")
    settings = {
        "format": _FORMAT,
        "num_clips": num_clips,
        "seed": seed,
        "seconds": float(seconds),
        "sample_rate": sample_rate,
    }
    if _is_there(out, settings):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        _write(partial, settings, progress)
        partial.chmod(0o755)
        try:
            partial.rename(out)  # one step, and only onto nothing or an empty folder
        except OSError:
            if not _is_there(out, settings):  # another process may have been first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _is_there(out: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds this very corpus, whole; False where there is nothing yet."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    if {name: found.get(name) for name in settings} != settings:
        raise ValueError(
            f"{out} holds something else than the synthetic corpus with {settings}; choose another "
            f"folder or remove it"
        )
    if found.get("sha256") != _hash_of(out):
        raise ValueError(f"{out} is a damaged synthetic corpus; remove it to have it written anew")
    return True


def _write(
    folder: Path, settings: dict[str, Any], progress: Callable[[int, int], None] | None
) -> None:
    num_clips, sample_rate = settings["num_clips"], settings["sample_rate"]
    rows = _rows(num_clips, settings["seed"])
    (folder / "audio").mkdir()
    for i, (path, label, _) in enumerate(rows):
        audio = make_sound(
            label,
            rng=np.random.default_rng([settings["seed"] % 2**64, i]),
            num_samples=int(settings["seconds"] * sample_rate),
            sample_rate=sample_rate,
        )
        samples = np.round(audio * 32767).astype(np.int16)
        encoded = io.BytesIO()  # written to a path, libsndfile would wait for the disk each time
        soundfile.write(encoded, samples, sample_rate, format="FLAC", subtype="PCM_16")
        (folder / path).write_bytes(encoded.getvalue())
        if progress is not None:
            progress(i + 1, num_clips)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("path", "label", "split"), *rows])
    (folder / "metadata.csv").write_text(text.getvalue(), encoding="utf-8")
    marker = {**settings, "sha256": _hash_of(folder)}
    (folder / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _rows(num_clips: int, seed: int) -> list[tuple[str, str, str]]:
    """(path, label, split) of every clip; names and order tell nothing of the class."""
    rng = np.random.default_rng([seed % 2**64, num_clips, _FORMAT])
    labels = list(CLASSES)
    number = rng.permutation(np.arange(num_clips) % len(labels))
    split = np.empty(num_clips, dtype=object)
    for of_class in range(len(labels)):
        members = rng.permutation(np.flatnonzero(number == of_class))
        edges = np.round(np.cumsum([0.0, *(share for _, share in _SHARES)]) * len(members))
        for (name, _), first, last in zip(_SHARES, edges[:-1], edges[1:], strict=True):
            split[members[int(first) : int(last)]] = name
    return [(f"audio/{i:06d}.flac", labels[number[i]], split[i]) for i in range(num_clips)]


def _hash_of(folder: Path) -> str:
    """SHA-256 (hex) over the table and every sound file, name by name."""
    digest = hashlib.sha256()
    for path in [folder / "metadata.csv", *sorted((folder / "audio").glob("*.flac"))]:
        if path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
