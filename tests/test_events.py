"""Events: spans of windows, the tables of Raven and Audacity, onset and offset scores."""

import csv
import random

import pytest

from ssmast.events import (
    Event,
    audacity_labels,
    merged,
    raven_table,
    score_events,
    tables_writer,
)


def test_neighbours_of_one_label_become_one_span():
    found = merged(
        [
            Event("a", 0, 1, "x", 0.5),
            Event("a", 1, 2, "x", 0.9),
            Event("a", 1.5, 1.8, "x", 0.7),
            Event("a", 3, 4, "x", 0.6),
            Event("a", 1, 2, "y", 0.8),
            Event("b", 2, 3, "x", 0.4),
        ]
    )
    assert found == [
        Event("a", 0, 2, "x", 0.9),
        Event("a", 1, 2, "y", 0.8),
        Event("a", 3, 4, "x", 0.6),
        Event("b", 2, 3, "x", 0.4),
    ]
    assert merged(found) == found


def test_a_raven_table_has_ravens_columns_and_audacity_its_three():
    events = [Event("/rec/a\t.wav", 0.5, 2, "a\tbird", 0.75), Event("/rec/b.wav", 1, 3, "b", 1)]
    rows = list(csv.DictReader(raven_table(events).splitlines(), delimiter="\t"))
    assert [row["Selection"] for row in rows] == ["1", "2"]
    assert rows[0]["Begin Time (s)"] == rows[0]["File Offset (s)"] == "0.500000"
    assert (rows[0]["End Time (s)"], rows[0]["Label"]) == ("2.000000", "a bird")
    assert rows[0]["Begin Path"] == "/rec/a .wav"
    assert (rows[1]["Begin Path"], rows[1]["Score"]) == ("/rec/b.wav", "1.0000")
    assert audacity_labels(events[:1]) == "0.500000\t2.000000\ta bird\n"


def test_tables_are_written_sound_by_sound(tmp_path, caplog):
    write = tables_writer("audacity", tmp_path / "out")
    write("x/a.wav", [Event("x/a.wav", 0, 1, "one")])
    assert (tmp_path / "out" / "a.wav.labels.txt").read_text() == "0.000000\t1.000000\tone\n"
    write("y/a.wav", [])
    assert (tmp_path / "out" / "a.wav-2.labels.txt").read_text() == ""
    assert not caplog.records
    tables_writer("audacity", tmp_path / "out")
    assert "out holds 2 tables of before" in caplog.text
    for long in ("é" * 120, "é" * 120 + "2"):  # a name may have 255 bytes, and a table's is longer
        write(f"{long}.wav", [])
    names = sorted(file.name for file in (tmp_path / "out").glob("é*"))
    assert names == ["é" * 100 + end + ".labels.txt" for end in ("-2", "")]
    write = tables_writer("raven", tmp_path / "all.txt")
    write("a.wav", [])
    write("b.wav", [Event("b.wav", 0, 1, "one"), Event("b.wav", 1, 2, "two")])
    write("c.wav", [Event("c.wav", 0, 1, "three")])
    rows = list(csv.DictReader((tmp_path / "all.txt").open(), delimiter="\t"))
    assert [row["Selection"] for row in rows] == ["1", "2", "3"]


def test_onset_and_offset_decide():
    truth = [Event("f", 1.0, 2.0, "a"), Event("f", 5.0, 9.0, "b")]
    near = [Event("f", 1.1, 2.5, "a"), Event("f", 4.9, 7.0, "b")]  # offsets off by half the length
    assert score_events(truth, near).f1 == 1
    late = [Event("f", 1.21, 2.0, "a"), Event("f", 5.0, 6.9, "b")]
    assert score_events(truth, late).f1 == 0
    found = score_events(truth, [near[0], Event("f", 20, 21, "c"), Event("g", 1, 2, "a")])
    assert (found.precision, found.recall, found.f1) == (1 / 3, 1 / 2, 2 / 5)
    assert found.mean_f1 == pytest.approx((2 / 3 + 0) / 2)
    assert found.classes["c"] == {"f1": 0, "precision": 0, "recall": 0, "n": 0}


def test_as_many_match_as_can():
    """Taking the first that fits would leave the second true event without one."""
    truth = [Event("f", 0.0, 1.0, "a"), Event("f", 0.2, 1.2, "a")]
    found = [Event("f", 0.2, 1.0, "a"), Event("f", -0.2, 1.0, "a")]
    assert score_events(truth, found).f1 == 1


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_sed_eval(seed):
    sed_eval = pytest.importorskip("sed_eval")
    draw = random.Random(seed)

    def events(count):
        starts = [round(draw.uniform(0, 20), 2) for _ in range(count)]
        return [
            Event(draw.choice("fg"), start, start + draw.choice([0.3, 1, 2]), draw.choice("ab"))
            for start in starts
        ]

    truth = events(60)
    found = [
        event._replace(start=event.start + draw.uniform(-0.3, 0.3), stop=event.stop + 0.3)
        for event in truth[:40]
    ] + events(20)
    metric = sed_eval.sound_event.EventBasedMetrics(list("ab"))

    def rows(these, file):
        return [
            {"event_label": e.label, "event_onset": e.start, "event_offset": e.stop, "file": file}
            for e in these
            if e.file == file
        ]

    for file in "fg":
        metric.evaluate(rows(truth, file), rows(found, file))
    wanted = metric.results()
    ours = score_events(truth, found)
    assert ours.f1 == pytest.approx(wanted["overall"]["f_measure"]["f_measure"])
    assert ours.precision == pytest.approx(wanted["overall"]["f_measure"]["precision"])
    assert ours.mean_f1 == pytest.approx(wanted["class_wise_average"]["f_measure"]["f_measure"])


def test_no_truth_is_an_error():
    with pytest.raises(ValueError, match="no true event to score against"):
        score_events([], [])
