import json
import logging
import os
from pathlib import Path

import pytest
import torch

from ssmast.training import checkpoint
from ssmast.training.checkpoint import (
    DamagedCheckpointError,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)


def _save(folder: Path, step: int, keep: int = 2) -> Path:
    tensors = {
        "student": {"w": torch.full((3, 2), float(step)), "b": torch.arange(4)},
        "queue": {"keys": torch.randn(5, 2).t()},  # not contiguous
    }
    return save_checkpoint(folder, step, tensors=tensors, state={"note": "x"}, keep=keep)


def test_round_trip_is_exact(tmp_path):
    state, tensors = load_checkpoint(_save(tmp_path, 7))
    assert state == {"step": 7, "note": "x"}
    assert torch.equal(tensors["student"]["w"], torch.full((3, 2), 7.0))
    assert tensors["student"]["b"].dtype == torch.long
    assert tensors["queue"]["keys"].shape == (2, 5)


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        _save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["00000003", "00000004"]


@pytest.mark.parametrize("file", ["student.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path, file, damage, caplog):
    _save(tmp_path, 1)
    target = _save(tmp_path, 2) / file
    content = bytearray(target.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
    elif damage == "cut":
        target.write_bytes(content[: len(content) // 2])
    else:
        target.unlink()
    with caplog.at_level(logging.WARNING):
        found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "00000001"
    assert "trying the one before it" in caplog.text
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(tmp_path / "00000002")


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    (_save(tmp_path, 1) / "state.json").unlink()
    with pytest.raises(DamagedCheckpointError, match="all 1 checkpoints"):
        newest_checkpoint(tmp_path)


def test_none_without_checkpoints(tmp_path):
    assert newest_checkpoint(tmp_path / "absent") is None


def test_missing_path_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_checkpoint(tmp_path / "00000009")


def _fail_at(monkeypatch, number: int, error: BaseException) -> None:
    """Raise at the n-th operation that touches the disk: flush, file write, rename, rmtree."""
    calls = {"n": 0}

    def counted(function):
        def wrapper(*args, **kwargs):
            calls["n"] += 1
            if calls["n"] == number:
                raise error
            return function(*args, **kwargs)

        return wrapper

    monkeypatch.setattr(checkpoint, "_flush", counted(checkpoint._flush))
    monkeypatch.setattr(checkpoint, "save_file", counted(checkpoint.save_file))
    monkeypatch.setattr(Path, "write_text", counted(Path.write_text))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(os, "fsync", counted(os.fsync))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_fault_after_any_single_write_leaves_a_valid_newest(tmp_path, error):
    faults = 0
    for number in range(1, 40):
        folder = tmp_path / str(number)
        _save(folder, 1)
        with pytest.MonkeyPatch.context() as patch:
            _fail_at(patch, number, error)
            try:
                _save(folder, 2)
            except (OSError, KeyboardInterrupt):
                faults += 1
            else:
                break
        found = newest_checkpoint(folder)
        assert found is not None
        step = json.loads((found / "state.json").read_text())["step"]
        assert step in (1, 2)
        load_checkpoint(found)
        _save(folder, 3)  # and the run can go on
        assert newest_checkpoint(folder).name == "00000003"
    assert faults > 10


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    _save(tmp_path, 1)
    (_save(tmp_path, 2) / "state.json").unlink()
    _save(tmp_path, 2)
    assert newest_checkpoint(tmp_path).name == "00000002"
