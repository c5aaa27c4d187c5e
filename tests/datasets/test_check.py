import json

import pytest

from ssmast.cli import main
from ssmast.datasets.check import check_set
from ssmast.evaluation.results import Result, result_notes
from ssmast.splits import other_copies
from tests.datasets.test_prepare import esc


def vggsound(mini):
    mini.text("vggsound.csv", "a0000000000,1,dog,train\nb0000000000,2,cat,test\n")
    for name in ("a0000000000_000001", "b0000000000_000002"):
        mini.sound(f"{name}.wav")
    return mini.build("vggsound")[1]


def test_a_built_set_is_compared_with_the_official_counts_and_the_copies_of_papers(mini, capsys):
    facts = vggsound(mini)
    out = mini.root.parent / "out"
    checked = check_set(out)
    assert checked.here == facts["counts"] == {"train": 1, "test": 1}
    assert list(checked.columns) == ["published", "Zhu & Omar 2023"]
    assert main(["datasets", "check", str(out)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split() for line in said[1:]] == [
        ["part", "here", "published", "Zhu", "&", "Omar", "2023"],
        ["train", "1", "159,223", "(-159,222)"],
        ["test", "1", "15,446", "(-15,445)", "12,790", "(-12,789)"],
        ["classes", "2", "309"],
    ]
    (mini.root / "b0000000000_000002.wav").unlink()
    assert check_set(out).missing == 1
    assert main(["datasets", "check", str(out.parent)]) == 1
    assert "1 rows of metadata.csv have no file" in capsys.readouterr().out


def test_a_set_that_is_as_published_ends_with_status_0(mini, capsys, monkeypatch):
    esc(mini)
    _, facts = mini.build("esc50", subset="esc10")
    from ssmast.datasets import task

    official = task.Published("made here", counts=facts["counts"])
    monkeypatch.setitem(task.PUBLISHED, "esc50,subset=esc10", official)
    assert main(["datasets", "check", f"data={mini.root.parent / 'out'}"]) == 0
    assert "as published" in capsys.readouterr().out


def test_what_is_no_built_set_is_one_sentence(tmp_path, capsys):
    (tmp_path / "metadata.csv").write_text("path,label\n")
    assert main(["datasets", "check", str(tmp_path)]) == 1
    assert "holds no set that `ssmast prepare task=` built" in capsys.readouterr().err
    assert main(["datasets", "chek", "x"]) == 2
    assert "ssmast datasets check FOLDER" in capsys.readouterr().err
    (tmp_path / "task.json").write_text(json.dumps({"format": "ssmast task 1"}))
    with pytest.raises(ValueError, match="was not built by"):
        check_set(tmp_path)


def test_the_report_of_a_result_tells_the_difference(mini):
    facts = vggsound(mini)
    built = {key: facts[key] for key in ("counts", "copies", "differences")}
    words = {"protocol": "linear", "metric": "accuracy", "mean": 0.5}
    notes = result_notes(Result(task="v", num_classes=2, built=built, **words))
    assert any(
        note.startswith("not as published: test: 15,446 published, 1 here") for note in notes
    )
    assert any("Zhu & Omar 2023 had train 159,223 (here 1, -159,222)" in note for note in notes)
    assert other_copies({"train": 3}, {"B": {"train": 3}}) == []
