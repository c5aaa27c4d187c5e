"""Files that are there whole or not at all."""

import errno
import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ssmast.files import new_folder, replacing, sha256_of, write_atomic, write_json


def test_a_file_is_written_with_the_folders_above_it(tmp_path):
    write_atomic(tmp_path / "a" / "b.txt", "größer")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "größer"


def test_others_may_read_what_safetensors_writes(tmp_path):
    (tmp_path / "usual").touch()
    with replacing(tmp_path / "a.safetensors") as partial:
        save_file({"a": np.zeros(1)}, partial)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_an_error_while_writing_leaves_the_earlier_file_and_nothing_else(tmp_path):
    write_atomic(tmp_path / "a.bin", b"old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.bin") as partial:  # noqa: PT012
        partial.write_bytes(b"half")
        raise RuntimeError
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_two_writers_of_one_file_do_not_mix_their_parts(tmp_path):
    both = threading.Barrier(2, timeout=30)

    def write(letter):
        with replacing(tmp_path / "a.txt") as partial, partial.open("w") as file:
            for _ in range(3):
                both.wait()
                file.write(letter * 1000)
                file.flush()

    threads = [threading.Thread(target=write, args=letter) for letter in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a.txt").read_text() in ("x" * 3000, "y" * 3000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_an_oserror_whoever_notices_it(tmp_path):
    """As safetensors and faiss say it; other errors stay what they are."""
    for writing in (replacing, new_folder):
        with pytest.raises(OSError, match="x cannot be written: write"), writing(tmp_path / "x"):
            raise RuntimeError(f"write error ({os.strerror(errno.ENOSPC)})")
        with pytest.raises(OSError, match="x cannot be written: No"), writing(tmp_path / "x"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with pytest.raises(RuntimeError, match="of another kind"), writing(tmp_path / "x"):
            raise RuntimeError("of another kind")
    assert not list(tmp_path.iterdir())


def test_a_number_that_json_lacks_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_folder_replaces_an_older_one_whole(tmp_path):
    for content in ("old", "new"):
        with new_folder(tmp_path / "made") as partial:
            (partial / f"{content}.txt").write_text(content)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_an_error_while_filling_a_folder_leaves_the_older_one(tmp_path):
    with new_folder(tmp_path / "made") as partial:
        (partial / "old.txt").write_text("old")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "made") as partial:  # noqa: PT012
        (partial / "half.txt").write_text("half")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["old.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_signal_between_the_two_renames_leaves_the_older_folder(tmp_path, monkeypatch):
    with new_folder(tmp_path / "made") as partial:
        (partial / "old.txt").write_text("old")
    rename = Path.rename

    def stopped(self, target):
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "made") as partial:
        (partial / "new.txt").write_text("new")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["old.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_the_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"ssmast" * 100_000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"ssmast" * 100_000).hexdigest()
