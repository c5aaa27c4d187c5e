"""Every command on the stand-in of a card: exit status, devices, and the CPU's numbers."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmast.cli import main as ssmast
from ssmast.encoder import load_encoder
from tests.gpu.build import ROOT
from tests.gpu.commands import COMMANDS, make_given
from tests.gpu.run import command

# Float32 numbers by kernels that add up in another order. Adam's first step divides gradients by
# themselves, so what is measured after it has grown apart from the last digit of small ones.
RELATIVE, AFTER_ADAM = 1e-5, 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the commands run."""
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def results(stand_in, folder) -> dict[str, dict[str, Any]]:
    """Device -> command -> what it left; "" -> what the stand-in saw."""
    make_given(folder)
    words = ["-W", "ignore", "-m", "tests.gpu.commands", str(folder)]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
    line, environment = command(*words[2:], out=folder / "seen.json")
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    read = {name: folder / f"{name}.json" for name in ("cpu", "card", "seen")}
    return {name: json.loads(Path(file).read_text()) for name, file in read.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_well_on_a_card_with_the_numbers_of_the_cpu(results, name):
    on_cpu, on_card = results["cpu"][name], results["card"][name]
    assert on_cpu["status"] == 0, on_cpu["said"]
    assert on_card["status"] == 0, on_card["said"]
    assert on_cpu["numbers"].keys() == on_card["numbers"].keys()
    for key, wanted in on_cpu["numbers"].items():
        bound = AFTER_ADAM if key.endswith("at step 2") else RELATIVE
        assert different(on_card["numbers"][key], wanted) <= bound, key


@pytest.mark.slow
def test_no_command_gives_a_kernel_tensors_of_both_devices(results):
    assert results["seen"]["mixed"] == []
    assert results["seen"]["operations"] > 10_000  # they did run there


@pytest.mark.slow
def test_what_a_card_began_and_exported_goes_on_without_one(results, folder, monkeypatch):
    run = folder / "begun/mast"
    shutil.copytree(folder / "card/mast", run)
    shutil.rmtree(run / "checkpoints/00000002")
    monkeypatch.chdir(folder)
    words = [word.format(out="begun", cpu="") for word in COMMANDS["resume"].words]
    assert ssmast(words) == 0
    found, wanted = (COMMANDS["resume"].numbers(each) for each in (run, folder / "cpu/mast"))
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert different(found[key], wanted[key]) <= AFTER_ADAM, key
    sound = torch.sin(torch.arange(16000) / 7.0)
    a, b = (load_encoder(folder / d / "exported").embed(sound, 16000) for d in ("cpu", "card"))
    assert torch.equal(a, b)  # both of {cpu}/mast


@pytest.mark.slow
def test_two_processes_pretrain_over_a_group_as_strict_as_nccl(stand_in, tmp_path):
    words = [word.format(out=tmp_path, cpu="") for word in COMMANDS["pretrain"].words]
    words = [
        "-m",
        "tests.gpu.run",
        "processes=2",
        f"out={tmp_path}/seen.json",
        "-m",
        "ssmast",
        *words,
    ]
    line = [sys.executable, "-W", "ignore", *words, "processes=2"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = [json.loads((tmp_path / f"seen.json{rank}").read_text()) for rank in ("", "1")]
    assert [each["mixed"] for each in seen] == [[], []]
    assert [each["cards"] for each in seen] == [[0], [1]]  # no process touches another's
    assert seen[0]["collectives"] == seen[1]["collectives"]
    assert "all_reduce" in seen[0]["collectives"]


@pytest.mark.slow
def test_two_processes_on_one_card_are_refused_in_a_sentence(stand_in, tmp_path):
    words = ["processes=2", "cards=1", "-m", "ssmast", "pretrain", "recipe=smoke", "run=x"]
    line = [sys.executable, "-W", "ignore", "-m", "tests.gpu.run", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "2 processes share 1 GPU(s)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_probe_on_cards_of_their_own(results, folder):
    """Clips that were shared, gathered over the group, and the scores of one process."""
    words = [word.format(out="two", cpu="cpu") for word in COMMANDS["probe"].words]
    line = [sys.executable, "-W", "ignore", "-m", "tests.gpu.run", "processes=2"]
    line += [f"out={folder}/two.json", "-m", "ssmast", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for rank, name in enumerate(("two.json", "two.json1")):
        seen = json.loads((folder / name).read_text())
        assert (seen["mixed"], seen["cards"]) == ([], [rank])
    found = COMMANDS["probe"].numbers(folder / "two/linear")
    assert different(found, results["cpu"]["probe"]["numbers"]) <= RELATIVE


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "used"), [(90, "bf16"), (75, "fp16"), (61, "no")])
def test_the_default_precision_is_one_that_the_card_has(stand_in, tmp_path, arch, used):
    words = [word.format(out=tmp_path, cpu="") for word in COMMANDS["pretrain"].words]
    words += ["precision=auto"]
    line, environment = command("-m", "ssmast", *words, arch=arch, out=tmp_path / "seen.json")
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "seen.json").read_text())["mixed"] == []
    rows = [json.loads(row) for row in (tmp_path / "mast/metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) for row in rows)
    state = json.loads((tmp_path / "mast/checkpoints/00000002/state.json").read_text())
    assert state["mixed_precision"] == used


def different(found: Any, wanted: Any) -> float:
    """Largest difference of two trees of numbers, relative to the larger of each list's."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        return max((different(found[key], wanted[key]) for key in wanted), default=0.0)
    if isinstance(wanted, list) and not all(isinstance(each, int | float) for each in wanted):
        assert len(found) == len(wanted)
        return max((different(a, b) for a, b in zip(found, wanted, strict=True)), default=0.0)
    if isinstance(wanted, str) or wanted is None:
        return 0.0 if found == wanted else math.inf
    found, wanted = ([x] if not isinstance(x, list) else x for x in (found, wanted))
    largest = max(map(abs, wanted), default=0.0)
    apart = max((abs(a - b) for a, b in zip(found, wanted, strict=True)), default=0.0)
    return apart / largest if largest else apart


def test_numbers_that_differ_are_seen():
    assert different({"a": [1.0, 2.0]}, {"a": [1.0, 2.0]}) == 0
    assert different([1.0, 2.0], [1.0, 2.001]) == pytest.approx(0.001 / 2.001)
    assert different([{"name": "x", "p": 1.0}], [{"name": "y", "p": 1.0}]) == math.inf
