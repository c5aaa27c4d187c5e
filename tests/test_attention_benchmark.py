"""benchmarks/attention.py: the shapes of a model, calls that must agree, the tables it prints."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ssmast.command import run_command
from tests.scripts import load_script

_FILE = Path(__file__).parents[1] / "benchmarks" / "attention.py"


@pytest.fixture(scope="module")
def attention():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(_FILE.parent)  # of `rivals` and `timing`
        yield load_script(_FILE, name="attention")
    del sys.modules["attention"]


def test_shapes_are_those_of_the_papers_table(attention):
    found = attention.shapes_of("mast_base", 1024)
    # Zhu & Omar 2023, table 1: 2, 3, 16 and 3 blocks; the first of a stage has the keys of before.
    assert [(shape.heads, shape.queries, shape.dim) for shape in found] == [
        (1, 8192, 96), (2, 2048, 96), (2, 2048, 96), (4, 512, 96), (4, 512, 96), (8, 256, 96),
        (8, 256, 96),
    ]  # fmt: skip
    assert sum(found.values()) == 24


def test_calls_that_differ_are_not_timed(attention):
    settings = attention.Keys(runs=1)
    calls = {"first": torch.sin, "second": torch.cos}
    with pytest.raises(ValueError, match=r"second differs by 1\.0e"):
        attention.measured(calls, [torch.zeros(3)], settings, backward=False)

    def cannot(x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("no way. Really.")

    calls = {"first": torch.sin, "second": cannot}
    found = attention.measured(calls, [torch.zeros(3)], settings, backward=True)
    assert found["second"] == "cannot: no way"
    assert found["first"] > 0


def test_tables_of_a_small_model(attention, tmp_path, capsys):
    words = ["model=mast_nano", "frames=96", "runs=1", f"out={tmp_path}/out.json"]
    assert run_command(attention.main, words, name="attention.py") == 0
    printed = capsys.readouterr().out
    assert printed.count("| attention | reference | mask | augmented | tiled | auto takes |") == 2
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found) == {"forward", "forward and backward"}
    for rows in found.values():
        assert all(value > 0 for row in rows.values() for value in row.values())
