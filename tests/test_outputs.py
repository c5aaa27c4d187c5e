"""Every command looks at its output first: before any sound, set or encoder is looked for."""

import json
import os
import tempfile

import numpy as np
import pytest

from ssmast import predict
from ssmast.cli import main
from ssmast.events import Event, audacity_labels, raven_table
from ssmast.files import check_output
from ssmast.html import page

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
    "finetune": ["data=nowhere", "init=none", "run={}"],
    "demo": ["run={}"],
    "paper": ["data=nowhere", "run={}"],
    "compare": ["data=nowhere", "sets=nowhere", "objectives=[ss_mast]", "out={}"],
    "map": ["nowhere", "out={}"],
    "search": ["nowhere.wav", "index=nowhere", "out={}.csv"],
    "predict, folder": ["nowhere", "encoder=nowhere", "out={}", "format=raven"],
    "report": ["nowhere", "out={}"],
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
    with pytest.raises(ValueError, match=r"out=map\.HTML is called as a file is; .* give out=map$"):
        check_output("map.HTML", folder=True)
    with pytest.raises(ValueError, match="is not UTF-8; give another out="):
        check_output(os.fsdecode(b"e\xff.npz"))
    with pytest.raises(ValueError, match="is longer than 200 bytes; shorten it"):
        check_output("y" * 230 + ".npz")
    check_output("folder/new/deeper.v2", folder=True)
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


MINE = {
    "table": b"path,label\na.wav,dog\n",
    "recording": b"RIFF\x24\x00\x00\x00WAVEfmt ",
    "settings": b'{\n  "model": 1\n}\n',
}
OTHERS = {
    "show-views": ["data=nowhere", "out={}"],
    "report": [".", "out={}"],
    "search": ["nowhere.wav", "index=nowhere", "out={}.csv"],
    "search, Raven": ["nowhere.wav", "index=nowhere", "out={}.txt"],
    "predict": ["nowhere.wav", "encoder=nowhere", "out={}"],
    "predict, CSV": ["nowhere.wav", "encoder=nowhere", "out={}", "format=csv"],
    "embed": ["nowhere", "encoder=nowhere", "out={}.npz"],
    "probe, results.md": ["encoder=nowhere", "data=nowhere", "out=."],
    "probe, poster.md": ["encoder=nowhere", "data=nowhere", "out=."],
    "probe, report.html": ["encoder=nowhere", "data=nowhere", "out=."],
    "evaluate, report.html": ["encoder=nowhere", "data=nowhere", "out=."],
    "map, map.html": ["nowhere", "encoder=nowhere", "out=."],
    "map, map.csv": ["nowhere", "encoder=nowhere", "out=."],
    "paper, paper.md": ["data=nowhere", "run=."],
    "compare, compare.md": ["data=nowhere", "sets=nowhere", "objectives=[ss_mast]", "out=."],
    "compare, compare.json": ["data=nowhere", "sets=nowhere", "objectives=[ss_mast]", "out=."],
}


@pytest.mark.parametrize("kind", MINE)
@pytest.mark.parametrize("command", OTHERS)
def test_a_file_that_ssmast_did_not_write_is_not_replaced(
    command, kind, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (tmp_path / "config.yaml").write_text("model: mast_nano\n")
    name, _, written = command.partition(", ")
    words = [word.format("mine") for word in OTHERS[command]]
    (file,) = (tmp_path / word[4:] for word in words if word.startswith("out=") or word == "run=.")
    file = file / written if "." in written else file
    file.write_bytes(MINE[kind])
    assert main([name, *words]) == 1
    assert "is not replaced; give another" in capsys.readouterr().err
    assert file.read_bytes() == MINE[kind]


@pytest.mark.parametrize(
    ("begin", "begins"),
    [
        ("a b.wav  (1.25 s)\n", predict._BEGINS),
        ("[\n {", predict._BEGINS),
        ("file,start,stop,head,class,probability\n", predict._BEGINS),
        (raven_table([]), predict._BEGINS),
        (audacity_labels([Event("a.wav", 0.0, 1.0, "x", 1.0)]), predict._BEGINS),
        (page("x", ""), "<!doctype html"),
        ("", "anything"),
    ],
)
def test_what_a_command_wrote_itself_is_replaced(tmp_path, begin, begins):
    (tmp_path / "x").write_text(begin)
    check_output(tmp_path / "x", begins=begins)


def test_answers_in_a_table_of_search_are_not_lost(tmp_path, capsys):
    table = tmp_path / "review.csv"
    words = ["search", "nowhere.wav", f"index={tmp_path}", f"out={table}"]
    header = "rank,file,start,stop,score,like,name\n"
    table.write_text(header + "1,a.wav,,,0.9,,a.wav\n")
    assert main(words) == 1
    assert "there is no index" in capsys.readouterr().err
    table.write_text(header + "1,a.wav,,,0.9,y,a.wav\n")
    assert main(words) == 1
    assert "holds 1 answers in column like, and is not replaced" in capsys.readouterr().err
