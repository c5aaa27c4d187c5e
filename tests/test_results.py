"""benchmarks/results.py: the table of scores, the page it fills, one run of it."""

import sys
from pathlib import Path

import pytest

from ssmast.command import run_command
from ssmast.evaluation.results import Result, Score
from tests.scripts import load_script
from tests.sets import write_set

_FILE = Path(__file__).parents[1] / "benchmarks" / "results.py"


@pytest.fixture(scope="module")
def results():
    yield load_script(_FILE, name="results")
    del sys.modules["results"]


def _result(mean: float, task: str, ci95: float | None = 0.02) -> Result:
    return Result(
        task=task, mean=mean, ci95=ci95, dim=2240, num_classes=2, protocol="linear",
        metric="accuracy", n_train=8, n_valid=2, n_test=4,
    )  # fmt: skip


def test_the_best_average_comes_first_and_every_task_is_a_column(results):
    tasks = ("a", "b:label=c,split=d")
    rows = {
        "this encoder": {t: _result(m, t) for t, m in zip(tasks, (0.8, 0.6), strict=True)},
        "log-mel": {t: Score(mean=m, dim=256) for t, m in zip(tasks, (0.5, 0.94), strict=True)},
    }
    lines = results.table(rows).splitlines()
    assert lines[0] == "| | numbers | a | b<br>label=c<br>split=d | **average** |"
    assert lines[2] == "| train / test clips | | 2 classes, 8 / 4 | 2 classes, 8 / 4 | |"
    assert lines[3] == "| log-mel | 256 | 50.0 | 94.0 | **72.0** |"
    assert lines[4] == "| this encoder | 2,240 | 80.0 ± 2.0 | 60.0 ± 2.0 | **70.0** |"


def test_a_table_goes_between_its_comments_and_nowhere_else(results):
    page = "above\n<!-- frozen -->\nold\n<!-- end of frozen -->\nbelow\n"
    found = results.replaced(page, "frozen", "new\n")
    assert found == "above\n<!-- frozen -->\n\nnew\n\n<!-- end of frozen -->\nbelow\n"
    assert results.replaced(found, "frozen", "new\n") == found
    with pytest.raises(ValueError, match="<!-- few_shot -->"):
        results.replaced(page, "few_shot", "new\n")


def test_the_page_has_a_place_for_every_table_and_every_benchmark_is_there(results):
    text = (_FILE.parents[1] / "RESULTS.md").read_text(encoding="utf-8")
    for part in ("frozen", "few_shot"):
        assert results.replaced(text, part, "") != ""
    assert all(_FILE.with_name(f"{name}.py").is_file() for name in results.SPEED)


def test_what_cannot_be_made_is_one_sentence(results, tmp_path, capsys):
    data = write_set(tmp_path / "tones", num_clips=24)
    for words, sentence in (
        (["data=nowhere"], "nowhere"),
        (["parts=[modes]"], "parts must be one of frozen"),
        (["encoder=nowhere"], "nowhere"),
    ):
        given = [f"data={data}", f"out={tmp_path}/out", *words]
        assert run_command(results.main, given, name="results.py") in {1, 2}
        assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_way_to_a_table_once(results, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(results, "OPENSMILE", {})
    write_set(tmp_path / "sets" / "tones", num_clips=60)
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {n} -->\n<!-- end of {n} -->\n" for n in ("frozen", "few_shot")))
    words = [f"data={tmp_path}/sets", f"out={tmp_path}/out", f"page={page}"]
    assert run_command(results.main, words, name="results.py") == 0
    first = page.read_text()
    assert first.count("| | numbers | tones | **average** |") == 2
    assert "| this encoder | 2,240 |" in first
    assert "| log-mel statistics | 256 |" in first
    capsys.readouterr()
    assert run_command(results.main, words, name="results.py") == 0
    assert page.read_text() == first
    assert "pretrained: " not in capsys.readouterr().err  # nothing is embedded again
