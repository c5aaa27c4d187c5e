"""Every command looks at its output first: before any sound, set or encoder is looked for."""

import json
import tempfile

import numpy as np
import pytest

from ssmast.cli import main
from ssmast.files import check_output

COMMANDS = {
    "probe": ["encoder=nowhere", "data=nowhere", "out={}"],
    "probe, cache": ["encoder=nowhere", "data=nowhere", "out=free", "cache={}"],
    "cluster": ["encoder=nowhere", "data=nowhere", "out={}"],
    "evaluate": ["encoder=nowhere", "data=nowhere", "out={}"],
    "fit": ["encoder=nowhere", "data=nowhere", "out={}"],
    "embed": ["nowhere", "encoder=nowhere", "out={}.npz"],
    "index": ["nowhere", "encoder=nowhere", "out={}"],
    "export": ["nowhere", "out={}"],
    "show-views": ["data=nowhere", "out={}"],
    "prepare": ["nowhere", "out={}"],
    "prepare, task": ["task=esc50", "root=nowhere", "out={}"],
    "pretrain": ["data=nowhere", "run={}"],
    "demo": ["run={}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_is_refused_before_anything_else(
    command, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    for place, said in (("file/out", "lies below the file file"), ("free/out", "denied")):
        if said == "denied":
            monkeypatch.setattr(tempfile, "TemporaryFile", _denied)
        words = [word.format(place) for word in COMMANDS[command]]
        assert main([command.partition(",")[0], *words]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert said in error, error
        assert place in error or "cache" in command
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _denied(**_):
    raise PermissionError(13, "Permission denied")


def test_a_place_that_is_taken_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="out=folder is a folder; a file is to be written"):
        check_output("folder")
    with pytest.raises(FileExistsError, match="run=file is a file; a folder is to be written"):
        check_output("file", key="run", folder=True)
    check_output("folder/new/deeper", folder=True)
    check_output("new/a.npz")
    assert not list((tmp_path / "folder").iterdir())
    for name in ("mine.npz", "mine.parquet", "other.npz"):
        (tmp_path / name).write_text(json.dumps({"precious": 1}))
        if name == "other.npz":
            np.savez(tmp_path / name, precious=np.ones(3))
        assert main(["embed", "nowhere", "encoder=nowhere", f"out={name}"]) == 1
        assert "was not written by `ssmast embed`, and is not replaced" in capsys.readouterr().err
    (tmp_path / "folder" / "a.wav").write_text("x")
    assert main(["export", "nowhere", "out=folder"]) == 1
    assert "holds files but no encoder" in capsys.readouterr().err
    assert main(["predict", "file", "encoder=nowhere", "out=./file"]) == 2
    assert "is one of the files to classify" in capsys.readouterr().err
