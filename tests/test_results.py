"""benchmarks/results.py: what it plans, how it joins seeds, the page it fills, one run of it."""

import json
import sys
from pathlib import Path

import pytest

from ssmast.audio import write_synthetic_corpus
from ssmast.command import run_command
from ssmast.settings import parse
from ssmast.training.config import RECIPES, PretrainConfig
from tests.scripts import load_script
from tests.sets import write_set

_FILE = Path(__file__).parents[1] / "benchmarks" / "results.py"


@pytest.fixture(scope="module")
def results():
    yield load_script(_FILE, name="results")
    del sys.modules["results"]


def test_every_row_is_a_run_that_the_recipe_can_make(results):
    settings = results.Keys(pool="here", data="there")
    folders = {}
    for part in results.PARTS:
        for name, runs in results.planned(settings, part).items():
            assert len(runs) == (3 if part == "modes" else 1)
            for run in runs:
                words = ["recipe=real_nano", f"run={run.folder}", *run.words]
                config = parse(PretrainConfig, words, command="test", recipes=RECIPES)
                assert config is not None
                assert config.steps == (3200 if part == "long" else 150)
                folders.setdefault(run.folder, set()).add(run.words)
                if name.startswith("the poster's"):
                    assert (config.head.kind, config.optim.name) == ("linear", "sgd")
    # One folder, one run: the recipe itself stands in two tables and is trained once.
    assert all(len(words) == 1 for words in folders.values())
    assert len(folders) == 3 * 3 + (7 - 1) + 1


def test_seeds_are_joined_with_their_interval_and_put_into_the_page(results, tmp_path):
    def result(mean, ci95=0.02):
        return {"mean": mean, "ci95": ci95, "valid": mean / 2, "n_train": 8, "n_test": 4,
                "num_classes": 2}  # fmt: skip

    rows = {
        "log-mel statistics": {"a": [result(0.5)], "b:label=c,split=d": [result(0.7)]},
        "SS-MAST": {
            "a": [result(0.6), result(0.8)],
            "b:label=c,split=d": [result(0.8), result(1.0)],
        },
    }
    text = results.table(rows)
    assert text.startswith("| | a | b<br>label=c<br>split=d | **average** | validation |\n")
    assert "| train / test clips | 2 classes, 8 / 4 | 2 classes, 8 / 4 | | |" in text
    assert "| log-mel statistics | 50.0 ± 2.0 | 70.0 ± 2.0 | **60.0** | 30.0 |" in text
    # t(0.975, 1) x sd / sqrt(2) over the two seeds
    seeds = "| SS-MAST (2 seeds) | 70.0 ± 127.1 | 90.0 ± 127.1 | **80.0 ± 127.1** | 40.0 ± 63.5 |"
    assert seeds in text
    page = "above\n<!-- modes -->\nold\n<!-- end of modes -->\nbelow\n"
    found = results.replaced(page, "modes", text)
    assert found == f"above\n<!-- modes -->\n\n{text}\n<!-- end of modes -->\nbelow\n"
    assert results.replaced(found, "modes", text) == found
    with pytest.raises(ValueError, match="<!-- long -->"):
        results.replaced(page, "long", text)


def test_the_page_has_a_place_for_every_table(results):
    text = (_FILE.parents[1] / "RESULTS.md").read_text(encoding="utf-8")
    for part in results.PARTS:
        assert results.replaced(text, part, "") != ""


def test_missing_words_and_a_failing_run_are_one_sentence(results, tmp_path, capsys):
    data = write_set(tmp_path / "tones", num_clips=24)
    for words, sentence in (
        (["pool=a", "data="], "go together"),
        (["pool=a", "parts=[modus]"], "parts must be one of modes"),
        (["pool=nowhere", "parts=[long]", "long_steps=1"], "nowhere"),
    ):
        words = [f"data={data}", *words, f"out={tmp_path}/out"]
        assert run_command(results.main, words, name="results.py") in {1, 2}
        assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_way_to_a_table_once(results, tmp_path, capsys):
    pool = write_synthetic_corpus(tmp_path / "pool", num_clips=100, seed=0)
    write_set(tmp_path / "sets" / "tones", num_clips=36)
    page = tmp_path / "page.md"
    page.write_text("<!-- long -->\n<!-- end of long -->\n")
    words = [
        f"pool={pool}", f"data={tmp_path}/sets", "parts=[long]", "long_steps=2",
        f"out={tmp_path}/out", f"page={page}",
    ]  # fmt: skip
    assert run_command(results.main, words, name="results.py") == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["long"]
    assert list(found)[:2] == ["log-mel statistics", "untrained"]
    assert "| | tones | **average** | validation |" in page.read_text()
    first = page.read_text()
    assert run_command(results.main, words, name="results.py") == 0  # nothing is made again
    assert page.read_text() == first
    assert "pretraining" not in capsys.readouterr().err.split("tones")[-1]
