"""A tiny run of every script in benchmarks/, on the CPU and on the stand-in of a card."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from ssmast.command import run_command
from tests.gpu.run import command
from tests.scripts import load_script
from tests.sets import write_set

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
_MAST = ("model=mast_nano", "runs=1")
_STEPS = ("batch_size=4", "views.frames=32", "front_end.num_mels=32", "front_end.stats_clips=8")

# Script -> its words; {out} is a JSON file to write, {given} holds `encoder` and `sets`.
CPU = {
    "attention": (*_MAST, "frames=96", "out={out}"),
    "clusters": ("clips=60", "dim=8", "classes=3", "seeds=1", "threads=1", "out={out}"),
    "data": ("clips=1", "rounds=1", "entries=[1000]", "workers=1", "out={out}"),
    "duplicates": ("data=[{given}/sets/tones]", "clips=5"),
    "embed": (
        *("encoder={given}/encoder", "minutes=0.02", "files=3", "rounds=1", "workers=[1,2]"),
        "out={out}",
    ),
    "encoder": (*_MAST, "frames=[32]", "batches=[1]", "ast=false", "threads=1", "out={out}"),
    "export": ("{given}/encoder", "seconds=0.5", "rounds=1", "threads=1"),
    "finetune": (
        *("encoder={given}/encoder", "data={given}/sets", "tasks=[tones]", "seeds=1"),
        "out={given}/finetuned",
        "words=steps=1 batch_size=4 clips.frames=32 threads=1 heads.probe=false show_views=0",
    ),
    "lape": (
        *("encoders=[random:{given}/encoder]", "data={given}/sets", "tasks=[tones]"),
        *("protocol=linear", "seeds=1", "out={given}/lape"),
    ),
    "pretrain": (
        *("recipe=smoke", "clips=12", "seconds=1", "warmup=1", "steps=1", "workers=[0]"),
        *("threads=[1]", f"set=[{','.join(_STEPS)}]", "out={out}"),
    ),
    "prepare": ("files=4", "workers=1", "out={out}"),
    "probe_set": ("encoder={given}/encoder", "clips=120", "out={out}"),
    "step": ("batch_size=4", "rounds=1", "threads=[1,2]", "profile=true", "out={out}"),
    "probe": ("clips=200", "dim=8", "classes=3", "seeds=1", "threads=1", "out={out}"),
}  # fmt: skip
ELSEWHERE = {"results": "test_results.py"}  # a run of it takes minutes and is tested there
PARTS = {"huge", "rivals", "timing"}  # of other scripts

# On a card: script -> (options of the stand-in, words). Numbers are compared by `attention`.
CARD = {
    "attention": ({}, (*_MAST, "frames=96", "device=cuda", "dtype=bfloat16", "out={out}")),
    "encoder": (
        {"compute": "false"},
        (*_MAST, "frames=[32]", "batches=[2]", "ast=false", "dtype=bfloat16", "out={out}"),
    ),
    "gpu": ({}, ("tiny=true", "out={out}")),
    "pretrain": ({}, CPU["pretrain"]),
    "probe": ({}, ("clips=60", "dim=8", "classes=3", "seeds=1", "device=cuda", "out={out}")),
}
for _name in ("finetune", "lape"):
    CARD[_name] = ({}, CPU[_name])
# Nothing of these runs on a card; what `probe_set` starts is in tests/gpu/commands.py.
CPU_ALONE = {
    "clusters", "data", "duplicates", "embed", "export", "prepare", "probe_set", "results", "step",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _logging_as_before():
    """A script may quiet the package, as it is a process of its own."""
    logger = logging.getLogger("ssmast")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def given(encoder_folder, tmp_path) -> Path:
    """Folder with an encoder and a labelled set."""
    (tmp_path / "encoder").symlink_to(encoder_folder)
    write_set(tmp_path / "sets" / "tones", num_clips=24)
    return tmp_path


def test_every_script_is_run_by_a_test():
    scripts = {file.stem for file in FOLDER.glob("*.py")}
    assert scripts == {*CPU, *CARD, *ELSEWHERE, *PARTS}
    assert scripts == CARD.keys() | CPU_ALONE | PARTS
    for name in CPU_ALONE:
        assert "cuda" not in (FOLDER / f"{name}.py").read_text(), name


def test_a_part_that_fails_on_a_card_costs_its_own_rows_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    gpu = load_script(FOLDER / "gpu.py", name="tiny_gpu")
    ran = []

    def broken(settings):
        ran.append("broken")
        yield {"a": 1.0}
        if len(ran) < 3:
            raise RuntimeError("no kernel\nsecond line")

    def whole(settings):
        ran.append("whole")
        yield {"b": 2}

    monkeypatch.setattr(gpu, "PARTS", {"broken": broken, "whole": whole})
    words = [f"out={tmp_path}/out.json"]
    assert run_command(gpu.main, words, name="gpu") == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found == {
        "broken": [{"a": 1.0}, {"failed": "RuntimeError: no kernel"}],
        "whole": [{"b": 2}],
    }
    assert "| RuntimeError: no kernel |" in capsys.readouterr().out
    assert run_command(gpu.main, words, name="gpu") == 0
    assert ran == ["broken", "whole", "broken"]  # what is done is not done again
    assert json.loads((tmp_path / "out.json").read_text())["broken"] == [{"a": 1.0}]
    assert run_command(gpu.main, [*words, "parts=[whole,broken]", "minutes=1e-9"], name="gpu") == 0
    assert ran == ["broken", "whole", "broken"]  # no time for anything
    del sys.modules["tiny_gpu"]


def test_rows_after_the_time_is_over_are_left_for_the_next_run(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    gpu = load_script(FOLDER / "gpu.py", name="timed_gpu")
    rows = gpu._rows(lambda _: iter([{"a": 1}, {"a": 2}]), gpu.Keys(), until=0.0)
    assert rows == [{"a": 1}, {"failed": "no time left"}]
    assert len(gpu._rows(lambda _: iter([{"a": 1}, {"a": 2}]), gpu.Keys(), until=1e12)) == 2
    del sys.modules["timed_gpu"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CPU)
def test_a_script_runs_on_the_cpu(name, given, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(given)
    out = given / "out.json"
    words = [word.format(given=given, out=out) for word in CPU[name]]
    script = load_script(FOLDER / f"{name}.py", name=f"tiny_{name}")
    try:
        assert run_command(script.main, words, name=name) == 0, capsys.readouterr().err
    finally:
        del sys.modules[f"tiny_{name}"]
    assert "|---" in capsys.readouterr().out  # a table
    if "out={out}" in CPU[name]:
        assert json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CARD)
def test_a_script_runs_on_a_card(name, stand_in, given):
    options, words = CARD[name]
    out = given / "out.json"
    words = [word.format(given=given, out=out) for word in words]
    line, environment = command(
        str(FOLDER / f"{name}.py"), *words, **options, out=given / "seen.json"
    )
    done = subprocess.run(line, env=environment, cwd=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads((given / "seen.json").read_text())
    assert seen["mixed"] == []
    assert seen["operations"] > 100
    found = json.loads(out.read_text()) if "out={out}" in CARD[name][1] else {}
    assert found or name in ("finetune", "lape")
    if name == "gpu":
        assert not [row for rows in found.values() for row in rows if "failed" in row]
        assert [row["exit status"] for row in found["commands"]] == [0] * len(found["commands"])
    assert "|---" in done.stdout
