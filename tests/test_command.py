"""What stands around every command: where its output goes, and its exit status."""

import subprocess
import sys

import pytest

from ssmast.command import run_command
from ssmast.settings import UsageError

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


def test_an_unknown_command_names_the_nearest(capsys):
    from ssmast import cli

    assert cli.main(["prob", "x=1"]) == 2
    assert "unknown command 'prob'; did you mean 'probe'?" in capsys.readouterr().err
    with pytest.raises(UsageError, match="unknown command 'zzz'; the commands are doctor"):
        cli._dispatch("zzz", [])
