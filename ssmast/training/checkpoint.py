"""Checkpoints that are always valid: written aside, checked, then renamed into place.

A checkpoint is a folder `<step>/` of safetensors files, `state.json`, and `checksums.json`, which
is written last. The folder gets its name only when all of it is on the disk, so a kill at any
moment leaves either the whole checkpoint or none of it.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssmast.files import flush, sha256_of

logger = logging.getLogger(__name__)

_MARKER = "checksums.json"
Tensors = dict[str, dict[str, Tensor]]


class DamagedCheckpointError(ValueError):
    """A checkpoint's files are not the ones that were written."""


def save_checkpoint(
    folder: Path, step: int, *, tensors: Tensors, state: dict[str, Any], keep: int
) -> Path:
    """Write `folder/<step>/` so that it is complete or absent, then drop older ones.

    A valid checkpoint of the same step is left as it is: replacing it would mean a moment without.

    Args:
        folder: holds one folder a checkpoint.
        step: optimiser steps done.
        tensors: file name (without suffix) -> name -> tensor.
        state: plain values, stored as JSON.
        keep: newest checkpoints that stay; older ones go only once this one has been verified.

    Raises:
        OSError: if the disk is full or not writable; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, partial = folder / f"{step:08d}", folder / f".partial-{step:08d}"
    if _is_valid(final):
        return final
    for left_over in folder.glob(".partial-*"):  # of a kill in the middle of a save
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        partial.mkdir()
        for name, group in tensors.items():
            _write_tensors(partial / f"{name}.safetensors", group)
        _write_json(partial / "state.json", {"step": step, **state})
        sums = {file.name: sha256_of(file) for file in sorted(partial.iterdir())}
        _write_json(partial / _MARKER, sums)
        flush(partial)
        if final.exists():  # a damaged one of the same step that was not worth loading
            shutil.rmtree(final)
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush(folder)
    verify_checkpoint(final)
    # Later ones, left by a run that went back, do not count: a damaged one must not push out this.
    older = [path for path in checkpoints(folder) if path.name < final.name]
    for path in older[: max(0, len(older) - (keep - 1))]:
        shutil.rmtree(path, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first, whether damaged or not."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.isdigit() and path.is_dir())


def verify_checkpoint(path: Path) -> None:
    """Compare every file with its checksum.

    Raises:
        DamagedCheckpointError: naming the first file that is missing or differs.
    """
    try:
        sums = json.loads((path / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"checkpoint {path} has no readable {_MARKER}") from error
    if not isinstance(sums, dict) or "state.json" not in sums:
        raise DamagedCheckpointError(f"checkpoint {path} has no checksums in its {_MARKER}")
    for name, expected in sums.items():
        file = path / name
        if not file.is_file():
            raise DamagedCheckpointError(f"checkpoint {path} has lost its file {name}")
        if sha256_of(file) != expected:
            raise DamagedCheckpointError(f"{file} is not what was written; its checksum differs")


def load_checkpoint(path: Path) -> tuple[dict[str, Any], Tensors]:
    """State and tensors of a verified checkpoint.

    Raises:
        FileNotFoundError: if there is no such folder.
        DamagedCheckpointError: if a file is missing or changed.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint {path} does not exist; give a folder of checkpoints/")
    verify_checkpoint(path)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedCheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    return state, tensors


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; damaged ones are named in a warning. None without any.

    Raises:
        DamagedCheckpointError: if there are checkpoints and every one is damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            verify_checkpoint(path)
        except DamagedCheckpointError as error:
            logger.warning("%s; trying the one before it", error)
        else:
            return path
    if found:
        raise DamagedCheckpointError(
            f"all {len(found)} checkpoints in {folder} are damaged; start again in another run="
        )
    return None


def _is_valid(path: Path) -> bool:
    try:
        verify_checkpoint(path)
    except DamagedCheckpointError:
        return False
    return True


def _write_tensors(path: Path, group: dict[str, Tensor]) -> None:
    flat = {key: value.detach().cpu().contiguous() for key, value in group.items()}
    try:
        save_file(flat, path)
    except SafetensorError as error:  # its way to say that the disk is full
        raise OSError(f"{path} cannot be written: {error}") from error
    flush(path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    flush(path)
