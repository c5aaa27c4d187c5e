import json
import logging
import os
import subprocess
import sys
from contextlib import suppress
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
from ssmast.training.state import check_state


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
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "[]", "{}"])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path, file, damage, caplog):
    _save(tmp_path, 1)
    target = _save(tmp_path, 2) / file
    content = bytearray(target.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
    elif damage == "cut":
        target.write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        target.unlink()
    else:
        target.write_text(damage)
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

    monkeypatch.setattr(checkpoint, "flush", counted(checkpoint.flush))
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


def test_a_valid_checkpoint_of_the_same_step_is_never_touched(tmp_path):
    before = (_save(tmp_path, 2) / "checksums.json").read_bytes()
    _save(tmp_path, 2)  # its queue is drawn anew, so it would be another
    assert (tmp_path / "00000002" / "checksums.json").read_bytes() == before


def test_a_damaged_later_one_does_not_push_out_the_one_just_written(tmp_path):
    """After a fallback the damaged one still has the highest number."""
    _save(tmp_path, 1, keep=1)
    (_save(tmp_path, 9, keep=3) / "state.json").unlink()
    _save(tmp_path, 2, keep=1)
    assert newest_checkpoint(tmp_path).name == "00000002"
    assert [path.name for path in checkpoints(tmp_path)] == ["00000002", "00000009"]


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_as_many_are_kept_as_asked(tmp_path, keep):
    for step in range(1, 7):
        _save(tmp_path, step, keep=keep)
    kept = [int(path.name) for path in checkpoints(tmp_path)]
    assert kept == list(range(7 - keep, 7))


def test_any_flipped_bit_is_found(tmp_path):
    _save(tmp_path, 1)
    path = _save(tmp_path, 2)
    draw = torch.Generator().manual_seed(0)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for _ in range(20):
            content = bytearray(whole)
            bit = int(torch.randint(8 * len(content), (1,), generator=draw))
            content[bit // 8] ^= 1 << bit % 8
            file.write_bytes(content)
            assert newest_checkpoint(tmp_path).name == "00000001", (file.name, bit)
        file.write_bytes(whole)
    assert newest_checkpoint(tmp_path).name == "00000002"


def test_a_file_too_large_for_the_disk_is_an_oserror_whoever_writes_it(tmp_path):
    """In a process of its own: limits on file size hold for the whole process."""
    code = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from ssmast.training.checkpoint import newest_checkpoint, save_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "def save(step):\n"
        "    tensors = {'a': {'w': torch.ones(500)}, 'b': {'w': torch.ones(5000)}}\n"
        "    save_checkpoint(Path(sys.argv[1]), step, tensors=tensors, state={}, keep=2)\n"
        "save(1)\n"
        "for limit in (0, 10, 100, 1000, 3000, 10_000):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))\n"
        "    try:\n"
        "        save(2)\n"
        "    except OSError:\n"
        "        assert newest_checkpoint(Path(sys.argv[1])).name == '00000001'\n"
        "    else:\n"
        "        raise AssertionError(limit)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))\n"
        "save(2)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    assert [path.name for path in checkpoints(tmp_path)] == ["00000001", "00000002"]


def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "ssmast-test", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        _save(disk, 1)
        filler = disk / "filler"
        for room in range(0, 24_576, 4096):  # the disk counts in pages: fail at each file in turn
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
            filler.write_bytes(b"x" * (free - room))
            with suppress(OSError):
                _save(disk, 2, keep=1)
            assert newest_checkpoint(disk) is not None
            filler.unlink()
            if (disk / "00000002").exists():
                break
        else:
            pytest.fail("the disk was never large enough")
        assert room > 0  # it failed before it worked
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_that_another_device_began_is_told_the_precision_to_give():
    begun = {"settings": {"precision": "auto"}, "steps": 2, "mixed_precision": "bf16"}
    check_state(begun, {**begun, "settings": {"precision": "bf16"}}, path=Path("00000002"))
    with pytest.raises(ValueError, match=r": precision \(came to bf16, now to fp32\); use those"):
        check_state(begun, {**begun, "mixed_precision": "no"}, path=Path("00000002"))
