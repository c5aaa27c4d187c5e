"""benchmarks/lape.py: rows that name themselves, seeds joined, cells kept, the poster beside."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ssmast.audio import LogMel
from ssmast.command import run_command
from ssmast.encoder import Encoder, load_encoder
from ssmast.evaluation import suite
from ssmast.model import create_model
from ssmast.report.published_scores import POSTER_TABLE
from tests.scripts import load_script
from tests.sets import write_set

_FILE = Path(__file__).parents[1] / "benchmarks" / "lape.py"


@pytest.fixture(scope="module")
def lape():
    yield load_script(_FILE, name="lape")
    del sys.modules["lape"]


def _run(folder: Path, model: str, *, seed: int, **settings) -> Path:
    torch.manual_seed(seed)
    numbers = {"embed_dim": 8, "depths": (1, 1, 1, 1)} if model == "mast_nano" else {"depth": 1}
    net = create_model(model, num_classes=0, input_size=(64, 96), **numbers)
    facts = {"model": model, "init": "none", "patch_drop": {"rate": 0.2}, **settings}
    log_mel = LogMel(num_mels=64, mean=-5.0, std=4.0)
    Encoder(net, log_mel, pooling="mean", info={"settings": facts}).eval().save(folder / "encoder")
    return folder


def test_the_table_is_filled_once_and_names_its_rows(lape, tmp_path, capsys, monkeypatch):
    data = tmp_path / "sets"
    write_set(data / "tones", num_clips=36)
    mast = [_run(tmp_path / f"m{seed}", "mast_nano", seed=10 + seed) for seed in (0, 1)]
    ssast = _run(tmp_path / "s", "ssast_nano", seed=0, objective="ssast", init="imagenet")
    rows = [f"random:{mast[0]}", f"{mast[0]}+{mast[1]}", str(ssast)]
    words = [
        f"encoders=[{','.join(rows)}]", f"data={data}", "protocol=logreg", f"out={tmp_path}/out",
    ]  # fmt: skip
    assert run_command(lape.main, words, name="lape.py") == 0
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "lape.json").read_text())
    names = [row["name"] for row in found]
    assert names == ["MAST, random", "MAST, SS-MAST + patch-drop", "AST, ImageNet + SSAST"]
    assert "| MAST, SS-MAST + patch-drop (2 seeds) |" in text
    assert [len(row["scores"]["tones"]) for row in found] == [1, 2, 1]
    assert found[1]["ci95"]["tones"] is not None
    assert (tmp_path / "out" / "lape.md").read_text() == text
    # Other weights, all else alike.
    made = load_encoder(found_encoder(tmp_path / "out" / "encoders"))
    trained = load_encoder(mast[0] / "encoder")
    assert made.settings() == trained.settings()
    assert made.sha256 != trained.sha256
    # A second time nothing is scored again.
    monkeypatch.setattr(suite.Scorer, "score", lambda *_: pytest.fail("scored again"))
    assert run_command(lape.main, words, name="lape.py") == 0
    assert capsys.readouterr().out == text


def found_encoder(folder: Path) -> Path:
    (made,) = folder.iterdir()
    return made


def test_what_cannot_be_a_row_is_one_sentence(lape, tmp_path, capsys):
    write_set(tmp_path / "tones", num_clips=24)
    a = _run(tmp_path / "a", "mast_nano", seed=0)
    b = _run(tmp_path / "b", "mast_nano", seed=0, patch_drop={"rate": 0})
    for words, sentence in (
        ([], "encoders= is missing"),
        (["encoders=[nowhere]"], "there is no encoder or run folder nowhere"),
        ([f"encoders=[{a}+{b}]"], "joins rows of different kinds: MAST, SS-MAST, MAST, SS-MAST"),
    ):
        words = [*words, f"data={tmp_path}/tones", "protocol=logreg", f"out={tmp_path}/out"]
        assert run_command(lape.main, words, name="lape.py") in {1, 2}
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("AST, random", "AST, random"),
        ("MAST, ImageNet", "MAST, ImageNet"),
        ("MAST, SS-MAST + patch-drop", "MAST, ImageNet + SS-MAST + patch-drop"),
        ("AST, ImageNet + SSAST", "AST, ImageNet + SSAST"),
    ],
)
def test_the_posters_number_is_that_of_its_row(lape, name, row):
    number = lape.poster_number(name, "urbansound8k")
    assert number == POSTER_TABLE.rows[row][-1]
    assert POSTER_TABLE.columns[-1][1] == "urbansound8k"
    assert lape.poster_number(name, "esc50") is None
    assert lape.poster_number("MAST, SSAST", "urbansound8k") is None


def test_the_posters_averages_are_those_it_states():
    """Copying errors would move them: patch-drop is worth 0.5 points, as the poster says."""
    average = [sum(numbers) / 8 for numbers in POSTER_TABLE.rows.values()]
    assert average[7] - average[6] == pytest.approx(0.5, abs=0.05)
    assert average.index(max(average)) == 7
