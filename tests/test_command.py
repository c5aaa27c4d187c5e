"""What stands around every command: where its output goes, and its exit status."""

import ast
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import ssmast
from ssmast.audio import open_corpus
from ssmast.command import run_command
from ssmast.prepare import prepare_corpus
from ssmast.settings import UsageError
from ssmast.training import pretrain
from tests.training.processes import SMALL, write_tones

_PRINTS = (
    "import sys\n"
    "from ssmast.command import run_command\n"
    "def main(argv):\n"
    "    for _ in range(int(argv[0])):\n"
    "        sys.stdout.write('Ä \\udcff ' + 'x' * 100 + '\\n')\n"
    "    open('done', 'w').write('yes')\n"
    "    return 0\n"
    "sys.exit(run_command(main, sys.argv[1:], name='ssmast test'))\n"
)


def _shell(line, folder, **environment):
    (folder / "prints.py").write_text(_PRINTS)
    line = line.replace("PYTHON ", f"{sys.executable} {folder / 'prints.py'} ")
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=60,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), **environment},
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_the_terminal_cannot_show_are_spelled_out(tmp_path, encoding):
    found = _shell("PYTHON 1", tmp_path, PYTHONIOENCODING=encoding)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(("\\xc4" if encoding == "ascii" else "Ä") + " \\udcff xxx")


@pytest.mark.parametrize("lines", [1, 5000])
def test_a_reader_that_leaves_early_is_no_error(tmp_path, lines):
    found = _shell(f"PYTHON {lines} | true; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert found.stderr == ""
    # A few lines may have been taken before the reader left.
    assert found.stdout.strip() in ({"0", "141"} if lines == 1 else {"141"})


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_stop_nothing(tmp_path, closed):
    found = _shell(f"PYTHON 3 {closed}; echo $? > status", tmp_path)
    assert (tmp_path / "status").read_text().strip() == "0", found.stderr
    assert (tmp_path / "done").read_text() == "yes"
    assert found.stderr == ""


def test_a_working_folder_that_was_deleted_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_command(lambda argv: pytest.fail("begun"), [], name="ssmast test") == 1
    said = capsys.readouterr().err
    assert said == "ssmast test: the current folder was deleted; change to another one\n"


def test_another_broken_pipe_is_an_error(capsys):
    def main(argv):
        raise BrokenPipeError(32, "a worker is gone")

    assert run_command(main, [], name="ssmast test") == 1
    assert "a worker is gone" in capsys.readouterr().err


# As PyTorch says it; the second is of a card that has no memory for anything at all.
_NO_MEMORY = {
    "OutOfMemoryError": "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total "
    "capacity of 139.81 GiB of which 12.50 MiB is free. This process has 1.00 GiB in use",
    "AcceleratorError": "CUDA error: out of memory\nCUDA kernel errors might be reported later",
}


@pytest.mark.parametrize(("name", "key"), [("embed", "batch_seconds"), ("pretrain", "batch_size")])
@pytest.mark.parametrize("kind", _NO_MEMORY)
def test_a_gpu_without_memory_ends_a_command_in_one_sentence(capsys, kind, name, key):
    def main(_):
        raise type(kind, (RuntimeError,), {})(_NO_MEMORY[kind])

    assert run_command(main, [], name=f"ssmast {name}") == 1
    about = " (20.00 MiB wanted, 12.50 MiB free)" if kind == "OutOfMemoryError" else ""
    assert capsys.readouterr().err == (
        f"ssmast {name}: CUDA out of memory{about}; lower {key}=, or end what else runs on that "
        "GPU\n"
    )


@pytest.mark.parametrize(("name", "key"), [("embed", "batch_seconds"), ("pretrain", "batch_size")])
@pytest.mark.parametrize("wants", ["torch.empty(2**58)", "np.ones(2**58)", "bytes(2**62)"])
def test_a_computer_without_memory_ends_a_command_in_one_sentence(capsys, wants, name, key):
    def main(_):
        eval(wants, {"torch": torch, "np": np})

    assert run_command(main, [], name=f"ssmast {name}") == 1
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"ssmast {name}: out of memory( \([\w. ]+ wanted at once\))?; "
        rf"lower {key}= or workers=, or end other programs\n",
        said,
    )
    assert ("wanted at once" in said) == ("bytes" not in wants)


@pytest.mark.parametrize("words", ["--help", "--version", "describe mast_nano"])
@pytest.mark.parametrize("to", ["/dev/full", "pipe"])
def test_an_output_that_takes_nothing_is_said_in_a_sentence(tmp_path, words, to):
    into = "> /dev/full" if to == "/dev/full" else "| true"
    line = f"{sys.executable} -u -m ssmast {words} {into}; exit ${{PIPESTATUS[0]}}"
    found = _shell(line, tmp_path)
    if to == "pipe":
        assert (found.returncode in (0, 141), found.stderr) == (True, "")
        return
    assert found.returncode == 1
    assert re.fullmatch(
        r"ssmast( \w+)?: a file, or what is printed, cannot be written: No space left on device; "
        r"make room and start again\n",
        found.stderr,
    )


def test_another_error_of_a_gpu_keeps_its_traceback():
    def main(_):
        raise type("AcceleratorError", (RuntimeError,), {})("CUDA error: an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_command(main, [], name="ssmast embed")


def test_an_unknown_command_names_the_nearest(capsys):
    from ssmast import cli

    assert cli.main(["prob", "x=1"]) == 2
    assert "unknown command 'prob'; did you mean 'probe'?" in capsys.readouterr().err
    with pytest.raises(UsageError, match="unknown command 'zzz'; the commands are doctor"):
        cli._dispatch("zzz", [])


def test_a_misspelt_name_is_an_error_for_people_and_for_type_checkers():
    with pytest.raises(AttributeError, match="no attribute 'load_encodr'; did you mean 'load_enc"):
        ssmast.load_encodr  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
    # A module's __getattr__ that a type checker sees makes every name one of Any.
    tree = ast.parse(Path(ssmast.__file__).read_text(encoding="utf-8"))
    assert not [each for each in tree.body if getattr(each, "name", "") == "__getattr__"]


@pytest.mark.parametrize("module", ["ssmast.training.pretrain", "ssmast.training.finetune.command"])
def test_a_module_of_training_that_is_run_does_something(module, tmp_path):
    """As `accelerate launch -m MODULE` runs it: it must not end with status 0 and nothing done."""
    line = [sys.executable, "-m", module, "no_such_key=1"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": ":".join(sys.path)})  # fmt: skip
    assert done.returncode == 2
    assert "unknown key 'no_such_key'" in done.stderr


def test_a_closed_terminal_stops_a_command_unless_nohup_has_that_ignored(capsys):
    def main(argv: list[str]) -> int:
        signal.raise_signal(signal.SIGHUP)
        return 0

    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, status in ((signal.SIG_IGN, 0), (signal.SIG_DFL, 129)):
            signal.signal(signal.SIGHUP, handler)
            assert run_command(main, [], name="ssmast test") == status
            assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)
    assert capsys.readouterr().err.endswith("ssmast test: stopped by SIGHUP\n")


def test_training_in_a_thread_leaves_signals_alone(tmp_path, caplog):
    """As in a sweep, a notebook's worker or a web server."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    data, run = write_tones(tmp_path / "audio"), tmp_path / "run"
    statuses: list[int] = []
    words = [*SMALL, f"data={data}", f"run={run}", "steps=2"]
    with caplog.at_level(logging.WARNING, logger="ssmast"):
        thread = threading.Thread(
            target=lambda: statuses.append(
                run_command(pretrain.main, words, name="ssmast pretrain")
            )
        )
        thread.start()
        thread.join()
    assert statuses == [0]
    assert (run / "encoder" / "checksums.json").is_file()
    assert "training in a thread" in caplog.text
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_daemonic_process_does_the_work_of_its_workers_itself(tmp_path, monkeypatch, caplog):
    """As in a Pool of multiprocessing, whose workers may start no others."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    data = write_tones(tmp_path / "audio")
    words = [*SMALL, f"data={data}", f"run={tmp_path / 'run'}", "steps=1", "workers=1"]
    assert run_command(pretrain.main, words, name="ssmast pretrain") == 0
    assert "a daemonic process may start no others" in caplog.text
    prepare_corpus(open_corpus(data), tmp_path / "out", workers=2)
    assert (tmp_path / "out/corpus.json").is_file()


def test_a_killed_reader_of_audio_is_a_sentence(capsys):
    def main(_: list[str]) -> int:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    assert run_command(main, [], name="x") == 1
    assert "killed by signal: Killed: is memory short? lower workers=" in capsys.readouterr().err
