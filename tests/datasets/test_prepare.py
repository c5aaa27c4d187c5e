import hashlib
import json

import pytest

from ssmast.audio import open_corpus
from ssmast.cli import main as ssmast
from ssmast.datasets import TASKS, prepare_task
from ssmast.datasets.builder import main
from ssmast.datasets.task import keyed_order, keyed_unit
from ssmast.settings import UsageError
from tests.datasets.test_sounds import esc


def test_the_hash_of_the_ids_is_that_of_sorted_paths_splits_and_parts(mini):
    esc(mini)
    rows, facts = mini.build("esc50")
    lines = []
    for test in range(1, 6):
        for row in rows:
            part = {test: "test", test % 5 + 1: "valid"}.get(int(row["fold"]), "train")
            lines.append(f"{row['path']}\tfold {test}\t{part}\n")
    lines.sort()
    assert facts["ids_sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    table = mini.root / "meta/esc50.csv"
    header, *listed = table.read_text().splitlines()
    table.write_text("\n".join([header, *reversed(listed)]) + "\n")
    assert mini.build("esc50")[1]["ids_sha256"] == facts["ids_sha256"]  # in whatever order
    moved = mini.root.rename(mini.root.parent / "elsewhere")
    report = prepare_task("esc50", root=moved, out=mini.root.parent / "out")
    assert report.facts["ids_sha256"] == facts["ids_sha256"]  # wherever it lies
    (moved / "audio/1-1000-A-0.wav").unlink()
    report = prepare_task("esc50", root=moved, out=mini.root.parent / "out")
    assert report.facts["ids_sha256"] != facts["ids_sha256"]


def test_the_set_points_at_the_audio_and_copies_nothing(mini):
    esc(mini, sound=True)
    out = mini.root.parent / "out"
    report = prepare_task("esc50", root=mini.root, out=out)
    assert report.out == out
    assert sorted(path.name for path in out.iterdir()) == ["metadata.csv", "task.json"]
    corpus = open_corpus(out)
    assert corpus.source(0) == mini.root / "audio/1-1000-A-0.wav"
    assert json.loads((out / "task.json").read_text()) == report.facts


def test_a_set_inside_its_root_moves_with_it(mini):
    esc(mini, sound=True)
    prepare_task("esc50", root=mini.root, out=mini.root / "sets/esc50")
    moved = mini.root.rename(mini.root.parent / "elsewhere")
    assert open_corpus(moved / "sets/esc50").source(0).resolve().is_relative_to(moved)


def test_the_folder_above_the_layout_will_do(mini):
    inner = type(mini)(mini.root / "ESC-50-master")
    esc(inner)
    rows, facts = mini.build("esc50")
    assert rows[0]["path"].startswith("audio/")
    assert facts["audio"] == str(inner.root)
    esc(type(mini)(mini.root / "again"))
    with pytest.raises(ValueError, match="more than once"):
        mini.build("esc50")


def test_built_again_it_is_the_same_and_missing_files_are_forgotten_once_there(mini):
    esc(mini)
    gone = mini.root / "audio/1-1000-A-0.wav"
    gone.unlink()
    _, facts = mini.build("esc50")
    out = mini.root.parent / "out"
    assert facts["missing"] == {"1": 1}
    assert (out / "missing.csv").is_file()
    gone.write_bytes(b"")
    first, _ = mini.build("esc50")
    assert not (out / "missing.csv").exists()
    table = (out / "metadata.csv").read_bytes()
    second, _ = mini.build("esc50")
    assert first == second
    assert (out / "metadata.csv").read_bytes() == table


def test_a_clip_listed_twice_is_taken_once(mini):
    esc(mini)
    table = mini.root / "meta/esc50.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[-1]]) + "\n")
    rows, facts = mini.build("esc50")
    assert len(rows) == 10
    assert facts["left_out"] == {"listed twice": 1}


def test_another_set_is_not_overwritten(mini, tmp_path):
    esc(mini)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/metadata.csv").write_text("path,label\n")
    with pytest.raises(ValueError, match="that was not built here"):
        prepare_task("esc50", root=mini.root, out=tmp_path / "mine")
    prepare_task("esc50", root=mini.root, out=tmp_path / "out")
    with pytest.raises(ValueError, match="holds the set of task esc50"):
        prepare_task("urbansound8k", root=mini.root, out=tmp_path / "out")


def test_a_wrong_root_is_one_sentence_and_leaves_nothing_behind(mini, tmp_path):
    for root, sentence in ((tmp_path / "no", "no folder"), (mini.root, "does not hold ESC-50")):
        with pytest.raises(FileNotFoundError, match=sentence):
            prepare_task("esc50", root=root, out=tmp_path / "out")
    esc(mini)
    for file in (mini.root / "audio").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="none of the 10 clips that ESC-50 lists"):
        prepare_task("esc50", root=mini.root, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_index_without_a_column_is_one_sentence(mini):
    mini.text("meta/esc50.csv", "filename,fold\na.wav,1\n")
    with pytest.raises(ValueError, match="has no column category, esc10, src_file"):
        mini.build("esc50")
    mini.text("meta/esc50.csv", "filename,fold,category,esc10,src_file\na.wav,1\n")
    with pytest.raises(ValueError, match="has 2 fields in row 2"):
        mini.build("esc50")


def test_unknown_names_list_the_known_ones(mini):
    with pytest.raises(ValueError, match="did you mean esc50"):
        prepare_task("esc5", root=mini.root)
    with pytest.raises(ValueError, match="has no option 'fold'; it has: subset"):
        prepare_task("esc50", root=mini.root, options={"fold": "1"})
    with pytest.raises(ValueError, match="must be one of all, esc10, got 'x'"):
        prepare_task("esc50", root=mini.root, options={"subset": "x"})


def test_the_command_builds_into_sets_and_reports(mini, tmp_path, monkeypatch, capsys):
    esc(mini)
    monkeypatch.chdir(tmp_path)
    words = ["task=esc50", f"root={mini.root}", "options=subset=esc10"]
    assert ssmast(["prepare", *words]) == 0
    text = capsys.readouterr().out
    assert "differs: 1: 80 published, 1 here" in text
    assert "ids_sha256" in text
    assert (tmp_path / "sets/esc50-subset-esc10/metadata.csv").is_file()
    assert main([*words, "--dry-run"]) == 0
    assert "esc50, subset=esc10" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [[], ["task=esc50"], ["task=esc5", "root=."], ["task=esc50", "root=.", "options=x"]]
)
def test_a_wrong_command_line_is_a_usage_error(words):
    with pytest.raises(UsageError):
        main(words)


def test_a_keyed_draw_is_even_and_depends_on_names_alone():
    names = [f"clip{i}" for i in range(2000)]
    order = keyed_order(names, seed=0)
    assert order == keyed_order(reversed(names), seed=0)
    assert order != keyed_order(names, seed=1)
    assert [n for n in order if n in set(names[::2])] == keyed_order(names[::2], seed=0)
    units = [keyed_unit(name, seed=0) for name in names]
    assert abs(sum(units) / len(units) - 0.5) < 0.02
    assert 0 <= min(units) < max(units) < 1


def test_every_task_says_where_it_comes_from_and_what_it_reports():
    for name, task in TASKS.items():
        assert name == task.name
        assert task.homepage.startswith("http")
        assert task.downloads or task.request
        assert task.disjoint_by in ("", *task.columns)
        assert task.group in ("", *task.columns)
        for remote in task.downloads:
            kind, _, value = remote.checksum.partition(":")
            assert (kind, len(value)) in {("", 0), ("md5", 32), ("sha256", 64)}
