import logging
import re

import numpy as np
import soundfile

from ssmast.audio import open_corpus
from ssmast.cli import main

RATE = 16000


def folder_of(path):
    path.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        tone = np.sin(np.cumsum(rng.uniform(0.05, 0.6, 20))[:, None] * np.arange(1600)).ravel()
        soundfile.write(path / f"{number}.wav", (0.5 * tone).astype(np.float32), RATE)
    (path / "<script>alert(1)</script>.wav".replace("/", "_")).write_text("no sound")
    return path


def test_the_command_writes_a_corpus_and_a_page(tmp_path, caplog, capsys):
    source, out = folder_of(tmp_path / "source"), tmp_path / "out"
    words = ["prepare", str(source), f"out={out}", "segment_seconds=1", "workers=1"]
    with caplog.at_level(logging.INFO):
        assert main([*words, "--dry-run"]) == 0
        assert not out.exists()
        assert main(words) == 0
    assert "0.00 hours in 6 clips" in caplog.text
    assert "left out: 1 unreadable" in caplog.text
    assert len(open_corpus(out)) == 6
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;_script&gt;.wav is a text file" in page
    assert "libsndfile" in page
    assert not re.search(r'src=|href="(?!#)|url\(|@import', page)  # it loads nothing
    (out / "report.html").unlink()
    assert main(words) == 0  # finished: only the page is written again
    assert (out / "report.html").read_text(encoding="utf-8") == page


def test_several_words_are_prepared_together(tmp_path, caplog):
    one, two = folder_of(tmp_path / "one"), folder_of(tmp_path / "two")
    (two / "2.wav").unlink()
    words = ["prepare", str(one), str(two), f"out={tmp_path / 'out'}", "max_bad_fraction=1"]
    with caplog.at_level(logging.INFO):
        assert main([*words, "workers=1"]) == 0
    assert f"7 clips in {one}, {two}" in caplog.text
    assert "left out: 2 duplicate, 2 unreadable" in caplog.text
    table = open_corpus(tmp_path / "out").table
    assert table is not None
    assert table["source"].to_pylist() == ["one/0.wav", "one/1.wav", "one/2.wav"]
    assert main(["prepare", str(one), str(two), f"out={two / 'out'}"]) == 1


def test_what_is_missing_or_wrong_is_said(tmp_path, capsys):
    assert main(["prepare", str(tmp_path)]) == 2
    assert "out= is missing" in capsys.readouterr().err
    assert main(["prepare", f"out={tmp_path}"]) == 2
    assert "src= is missing" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path / "none"), f"out={tmp_path / 'o'}"]) == 1
    assert "none does not exist; wanted a folder" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path), f"out={tmp_path / 'o'}", "shard_mb=0"]) == 2
    assert "shard_mb must be at least 1" in capsys.readouterr().err


def test_a_workers_error_is_one_sentence(capsys):
    from ssmast.command import run_command

    def fail(argv):
        raise ValueError(
            "Caught RemoteError in DataLoader worker process 0.\nOriginal Traceback (most recent "
            "call last):\n  File x\nssmast.audio.remote.RemoteError: http://x could not be read"
        )

    assert run_command(fail, [], name="ssmast pretrain") == 1
    assert capsys.readouterr().err == "ssmast pretrain: http://x could not be read\n"
