import pytest

from ssmast.audio.corpus.quarantine import Quarantine


def test_each_clip_is_written_down_once(tmp_path):
    path = tmp_path / "run" / "quarantine.csv"
    quarantine = Quarantine(path, corpus_size=100)
    quarantine.add([("a.wav", "is empty, they say"), ("b.wav", 'is "silent"')])
    quarantine.add([("a.wav", "is empty again")])
    quarantine.add([])
    assert path.read_text().splitlines() == [
        "name,reason",
        'a.wav,"is empty, they say"',
        'b.wav,"is ""silent"""',
    ]
    assert len(quarantine) == 2
    assert "a.wav" in quarantine
    assert "c.wav" not in quarantine


def test_a_restart_goes_on_counting(tmp_path):
    path = tmp_path / "q.csv"
    Quarantine(path, corpus_size=100).add([("a.wav", "x"), ("b.wav", "x")])
    again = Quarantine(path, corpus_size=100)
    assert len(again) == 2
    again.add([("b.wav", "x"), ("c.wav", "x")])
    assert path.read_text().count("\n") == 4


def test_a_row_cut_short_by_a_crash_spoils_nothing(tmp_path):
    path = tmp_path / "q.csv"
    path.write_bytes(b"name,reason\r\na.wav,x\r\nb.wa")
    quarantine = Quarantine(path, corpus_size=100)
    assert len(quarantine) == 1
    quarantine.add([("c.wav", "y")])
    assert len(Quarantine(path, corpus_size=100)) == 2
    assert "c.wav" in Quarantine(path, corpus_size=100)
    path.write_bytes(b"")
    Quarantine(path, corpus_size=100).add([("c.wav", "y")])
    assert path.read_text().splitlines()[0] == "name,reason"


@pytest.mark.parametrize(
    ("corpus_size", "max_fraction", "allowed"),
    [(1000, 0.1, 100), (100, 0.1, 20), (30, 0.1, 15), (10, 0.1, 5), (1000, 0.0, 20)],
)
def test_too_many_bad_clips_stop_the_run(tmp_path, corpus_size, max_fraction, allowed):
    path = tmp_path / "q.csv"
    quarantine = Quarantine(path, corpus_size=corpus_size, max_fraction=max_fraction)
    quarantine.add([(f"{n}.wav", "is empty") for n in range(allowed)])
    with pytest.raises(
        ValueError, match=rf"{allowed + 1} of {corpus_size} clips are bad.*is empty"
    ):
        quarantine.add([("last.wav", "is empty")])
    assert "last.wav" in path.read_text()


def test_without_a_file_it_counts_all_the_same():
    quarantine = Quarantine(None, corpus_size=10)
    with pytest.raises(ValueError, match="6 of 10 clips are bad"):
        quarantine.add([(f"{n}.wav", "x") for n in range(6)])


def test_another_csv_file_is_refused(tmp_path):
    (tmp_path / "q.csv").write_text("path,label\n")
    with pytest.raises(ValueError, match=r"is no quarantine list.*got 'path,label'"):
        Quarantine(tmp_path / "q.csv", corpus_size=10)


def test_too_many_bad_clips_are_told_though_they_cannot_be_written(tmp_path):
    quarantine = Quarantine(tmp_path / "q.csv", corpus_size=10)
    (tmp_path / "q.csv").mkdir()
    with pytest.raises(OSError, match="directory"):
        quarantine.add([("a.wav", "x")])
    with pytest.raises(ValueError, match=r"6 of 10 clips are bad, more than the allowed 0\.1"):
        quarantine.add([(f"{i}.wav", "x") for i in range(5)])
