import csv
import io
import itertools
import json
import logging

import numpy as np
import pytest

from ssmast.classifier import Head
from ssmast.evaluation.find_set import find_sets
from ssmast.evaluation.labelled_set import (
    random_validation,
    shuffled,
    with_heads,
    with_trained_classes,
    without,
)
from ssmast.evaluation.probe import metric_of
from ssmast.evaluation.read_set import load_set
from ssmast.evaluation.results import result_file
from ssmast.evaluation.task_spec import TaskSpec, parse_task, split_names
from ssmast.splits import label_set, look_alikes


def write(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.csv").write_text(text, encoding="utf-8")
    return folder


def test_specs_survive_being_written():
    for text in ("a", "a:label=speaker,split=s2", "a:protocol=leave_one_out:speaker", "a:group=g"):
        assert str(parse_task(text)) == text
    assert parse_task("a:label=x") == TaskSpec(name="a", label="x")


def test_commas_inside_a_task_do_not_split_it():
    wanted = ["a", "b:label=speaker,split=c", "d:protocol=leave_one_out:x,group=y"]
    assert split_names(f"[{', '.join(wanted)}]") == wanted
    assert split_names(",".join(wanted)) == wanted
    assert split_names("'a'") == ["a"]
    assert split_names("[]") == []


def test_dashes_quotes_and_full_stops_make_no_other_name():
    alike = [["sea lion", "sea-lion", "sea\u2010lion"], ["don't", "don\u2019t"], ["frog", "frog."]]
    others = ["-1", "1", "C#", "C", "frogs"]
    assert look_alikes(itertools.chain(others, *alike)) == sorted(alike)


@pytest.mark.parametrize("text", ["a:labels=x", "a:label", ":label=x"])
def test_a_spec_that_makes_no_sense_is_refused(text):
    with pytest.raises(ValueError, match="task"):
        parse_task(text)


def test_labelled_sets_are_found(sets):
    assert find_sets(sets) == ["more_tones", "tones"]
    assert find_sets(sets / "tones") == ["tones"]
    assert load_set(sets / "tones", "tones").clips == load_set(sets, "tones").clips


def test_missing_data_is_one_sentence(sets, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of labelled sets at"):
        find_sets(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no labelled set in"):
        find_sets(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no labelled set 'tonnes' in .*more_tones, tones"):
        load_set(sets, "tonnes")


@pytest.mark.parametrize(
    "header", ["path;label;split", "path\tlabel\tsplit", "path|label|split", "path, label, split"]
)
def test_a_set_is_found_however_its_columns_are_parted(tmp_path, header):
    mark = next(mark for mark in ";\t|," if mark in header)
    rows = ["a,x,train", "b,y,train", "c,x,valid", "d,y,test"]
    write(tmp_path / "s", "\n".join([header, *(row.replace(",", mark) for row in rows)]))
    assert find_sets(tmp_path) == ["s"]
    assert load_set(tmp_path, "s").labels == ["x", "y", "x", "y"]


def test_sets_named_in_any_script_have_results_of_their_own(tmp_path):
    rows = "path,label,split\na,x,train\nb,y,train\nc,x,valid\nd,x,test\n"
    files = set()
    for name in ("日本", "中文", "a b", "größe"):
        write(tmp_path / name, rows)
        files.add(result_file(tmp_path, load_set(tmp_path, name), "knn").name)
    assert files == {"日本.knn.json", "中文.knn.json", "a-b.knn.json", "größe.knn.json"}


def test_a_table_of_another_encoding_is_named(sets, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "metadata.csv").write_bytes(
        "path,label\na,hoch\nb,größer\n".encode("latin-1")
    )
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "metadata.csv").write_bytes("path,größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t/metadata\.csv is not UTF-8 text; save it as UTF-8"):
        find_sets(tmp_path)
    with pytest.raises(ValueError, match=r"s/metadata\.csv is not UTF-8 text; save it as UTF-8"):
        load_set(tmp_path, "s")


def test_what_was_hardly_meant_is_said(tmp_path, caplog):
    rows = "a,x,train\nb,y,train\nc,x|y,train\nd,x,valid\ne,nan,test\nf,y,test\n"
    write(tmp_path / "s", "path,label,split\n" + rows)
    assert "nan" in load_set(tmp_path, "s").classes
    assert "1 labels are the word nan, taken as a class" in caplog.text
    assert "'x|y' taken as one class each, though its parts are classes too" in caplog.text
    assert "multi_label=true,separator='|' makes" in caplog.text
    both = rows.replace("x|y", "x").replace(",x,", ",dog;rain,").replace(",y,", ",cat;rain,")
    write(tmp_path / "r", "path,label,split\n" + both)
    assert load_set(tmp_path, "r").classes == ["cat;rain", "dog;rain", "nan"]
    assert "'cat;rain', 'dog;rain' taken as one class each" in caplog.text
    load_set(tmp_path, "s:multi_label=true")
    assert "no clip has more than one label by the separator ';'" in caplog.text
    for mark in " /+&":  # between labels, where what they part is a class elsewhere
        write(tmp_path / "q", "path,label,split\n" + rows.replace("x|y", f"x{mark}y"))
        load_set(tmp_path, "q")
        assert f"'x{mark}y' taken as one class each" in caplog.text
        assert f"multi_label=true,separator='{mark}' makes" in caplog.text
    caplog.clear()
    assert load_set(tmp_path, "s:multi_label=true,separator=|").classes == ["nan", "x", "y"]
    assert "the separator" not in caplog.text
    assert "taken as one class" not in caplog.text


def test_lists_with_commas_and_annotations_are_no_classes(tmp_path, caplog):
    labels = ['"Bark,Dog"', "Rain", "Dog"] * 4
    rows = [f"{i},{label}\n" for i, label in enumerate(labels)]
    write(tmp_path / "a", "path,label\n" + "".join(rows))
    load_set(tmp_path / "a")
    assert "multi_label=true,separator=',' makes several labels of a cell" in caplog.text
    found = load_set(tmp_path / "a", "a:multi_label=true,separator=','")
    assert found.classes == ["Bark", "Dog", "Rain"]
    cell = '"[{""start"":0,""labels"":[""bird""]}]"'
    write(tmp_path / "b", "path,label\n" + "".join(f"{i},{cell}\n" for i in range(6)))
    with pytest.raises(ValueError, match="wanted labels, got annotations"):
        load_set(tmp_path / "b")


def test_speakers_that_are_trained_on_and_tested_are_counted(tmp_path, caplog):
    rows = "".join(f"{i},{'ab'[i % 2]},s{i // 2 % 5}\n" for i in range(40))
    write(tmp_path / "s", "path,label,client_id\n" + rows)
    load_set(tmp_path / "s")
    said = "8 of 8 test clips have a client_id that is trained on too; task s:group=client_id keeps"
    assert said in caplog.text
    caplog.clear()
    load_set(tmp_path / "s", "s:group=client_id")
    load_set(tmp_path / "s", "s:label=client_id")
    assert "trained on too" not in caplog.text


def test_columns_choose_what_is_learnt(sets):
    task = load_set(sets, "tones:label=speaker,protocol=folds")
    assert task.classes == ["s0", "s1", "s2", "s3"]
    assert [split.name for split in task.splits] == ["fold 1", "fold 2", "fold 3"]
    task = load_set(sets, "tones:protocol=leave_one_out:speaker")
    assert [split.name for split in task.splits] == [f"left out s{i}" for i in range(4)]
    task = load_set(sets, "tones")
    assert [len(rows) for rows in task.splits[0].parts().values()] == [24, 12, 12]
    assert task.rows.tolist() == list(range(48))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("tones:label=colour", "no column 'colour'; it has: path, label, split, fold, speaker"),
        ("tones:split=split2", "no column 'split2'"),
        ("tones:group=g", "no column 'g'"),
        ("tones:protocol=leave_one_out:g", "no column 'g' to leave out"),
        ("tones:protocol=kfold", "must be auto, split, folds or leave_one_out:COLUMN, got 'kfold'"),
        ("tones:split=label", "tones/metadata.csv, column 'label': .*valid or test, got 'low'"),
    ],
)
def test_wrong_columns_are_named(sets, spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_set(sets, spec)


def test_rows_without_label_or_split_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = ["a.wav,x,train", "b.wav,y,train", "c.wav,,train", "d.wav,x,valid", "e.wav,x,test"]
    write(tmp_path / "s", "path,label,split\n" + "\n".join([*rows, "f.wav,y,", ""]))
    task = load_set(tmp_path, "s")
    assert task.clips == ["a.wav", "b.wav", "d.wav", "e.wav"]
    assert task.rows.tolist() == [0, 1, 3, 4]
    assert task.left_out == {"empty label": 1, "empty split": 1}
    assert "rows left out: 1 (empty label), 1 (empty split)" in caplog.text


def test_classes_not_trained_on_are_counted(tmp_path):
    rows = "a,x,train\nb,y,train\nc,x,valid\nd,x,test\ne,z,test\nf,z,test\n"
    write(tmp_path / "s", "path,label,split\n" + rows)
    task = load_set(tmp_path, "s")
    assert (task.num_unseen, task.classes) == (2, ["x", "y", "z"])


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("a,x,train\nb,y,train\nc,x,valid\n", "no clip in the test part"),
        ("a,x,test\n", "no clip in the train part"),
        ("a,x,train\nb,x,train\nc,x,valid\nd,x,test\n", "trains on 1 class"),
        ("a,x,train\nb,y,train\nc,x,valid\nd,z,test\n", "no class of the test part"),
        ("a,x,train\na,y,train\nc,x,valid\nd,x,test\n", "lists 'a' twice"),
        ("a,x,train\nb,y,train\nc,x,valid\n./a,x,test\n", "lists 'a' twice"),
        ("a,x,\nb,y,\n", "neither a filled column 'split' nor 'fold'"),
        ("", "has no rows below its header"),
    ],
)
def test_what_cannot_be_scored_is_refused(tmp_path, rows, sentence):
    write(tmp_path / "s", "path,label,split\n" + rows)
    with pytest.raises(ValueError, match=sentence):
        load_set(tmp_path, "s")


def test_a_random_tenth_of_many_clips_reads_their_labels_once(tmp_path, monkeypatch):
    rows = [f"{i},x;{'ab'[i % 2]},{1 + i % 5}\n" for i in range(500)]
    write(tmp_path / "s", "path,label,fold\n" + "".join(rows) + "500, ; ,1\n")
    task = load_set(tmp_path, "s:multi_label=true")
    calls = []
    monkeypatch.setattr(
        "ssmast.evaluation.labelled_set.label_set", lambda *a: calls.append(a) or label_set(*a)
    )
    drawn = random_validation(task, fraction=0.1)
    assert len(calls) <= 10 * len(task.clips)  # UrbanSound8K took minutes, by the square
    assert [len(split.valid) for split in drawn.splits] == [40] * 5


def test_the_hash_of_the_clips_follows_parts_and_not_order(tmp_path):
    lines = ["a,x,train", "b,y,train", "c,x,valid", "d,x,test", "e,y,test"]
    texts = [lines, lines[::-1], [*lines[:-1], "e,y,valid"], [*lines[:-1], "e,x,test"]]
    tasks = []
    for i, text in enumerate(texts):
        write(tmp_path / f"s{i}", "path,label,split\n" + "\n".join(text))
        tasks.append(load_set(tmp_path, f"s{i}"))
    hashes = [task.ids_sha256() for task in tasks]
    assert hashes[0] == hashes[1] == hashes[3] != hashes[2]
    assert tasks[0].labels_sha256() == tasks[1].labels_sha256() != tasks[3].labels_sha256()


def test_unreadable_clips_leave_all_parts(sets):
    task = load_set(sets, "tones")
    gone = [task.clips[task.splits[0].train[0]], task.clips[task.splits[0].test[-1]]]
    smaller = without(task, gone)
    assert smaller.left_out == {"unreadable": 2}
    assert len(smaller.clips) == 46
    for part, rows in smaller.splits[0].parts().items():
        old = [task.clips[i] for i in task.splits[0].parts()[part]]
        assert [smaller.clips[i] for i in rows] == [clip for clip in old if clip not in gone]
        assert [smaller.labels[i] for i in rows] == [
            task.labels[task.clips.index(smaller.clips[i])] for i in rows
        ]
    with pytest.raises(ValueError, match="no clip in the test part"):
        without(task, [task.clips[i] for i in task.splits[0].test])


@pytest.mark.data
def test_real_sets_have_the_counts_their_authors_state(shared_data):
    def counts(spec):
        return [[len(r) for r in s.parts().values()] for s in load_set(shared_data, spec).splits]

    assert counts("speech_commands_v2_test") == [[1267, 296, 532]]
    assert counts("speech_commands_v2_test:label=speaker,split=split_speaker") == [[746, 96, 203]]
    assert counts("instruments:label=midi,split=split_pitch") == [[491, 47, 119]]
    assert counts("emodb_4")[0][2] == 136
    assert sum(part[2] for part in counts("esc10")) == 398
    assert len(counts("emodb_4:protocol=leave_one_out:speaker")) == 10


def test_any_table_may_hold_several_labels_a_clip(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = ["a.wav,x;y,train", "b.wav,y,train", "c.wav,x; z,valid", "d.wav,z;x,test", "e.wav,,test"]
    write(tmp_path / "s", "path,label,split\n" + "\n".join([*rows, ""]))
    task = load_set(tmp_path, "s:multi_label=true")
    assert (task.classes, metric_of(task).name) == (["x", "y", "z"], "map")
    assert task.label_sets[0] == [("x", "y"), ("y",), ("x", "z"), ("z", "x"), ()]
    assert task.targets().tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1], [1, 0, 1], [0, 0, 0]]
    assert task.num_unseen == 1  # z is not trained on
    assert task.left_out == {}
    assert "1 of 5 clips have an empty label cell, taken as clips with none of the" in caplog.text
    piped = (tmp_path / "s/metadata.csv").read_text().replace(";", "|")
    write(tmp_path / "p", piped)
    assert load_set(tmp_path, "p:multi_label=true,separator=|").label_sets == task.label_sets
    smaller = without(task, ["b.wav"])
    assert (smaller.multi_label, smaller.classes) == (True, ["x", "y", "z"])


def test_a_clip_with_none_of_the_classes_trains_and_is_scored(tmp_path):
    cells = ["x;y", "", "y", " ; ", "x", "", "x;y", ""]
    parts = ["train"] * 4 + ["valid"] * 2 + ["test"] * 2
    rows = [f"{i},{cell},{part}" for i, (cell, part) in enumerate(zip(cells, parts, strict=True))]
    write(tmp_path / "s", "path,label,split\n" + "\n".join([*rows, "9,x,", ""]))
    task = load_set(tmp_path, "s:multi_label=true")
    assert [len(part) for part in task.splits[0].parts().values()] == [4, 2, 2]
    assert task.left_out == {"empty split": 1}
    assert task.targets()[[1, 3, 5, 7]].abs().sum() == 0
    # Drawn as often as a class: x has one clip, y two, "none" two.
    assert task.weights(task.splits[0].train).tolist() == [1.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "write_list",
    [
        str,
        json.dumps,
        lambda own: f"[{', '.join(own)}]",
        lambda own: str(np.array(own)),
        lambda own: str(tuple(own)),
        lambda own: str(set(own)),
        lambda own: str(frozenset(own)),
    ],
)
def test_cells_that_hold_lists_are_several_labels(tmp_path, write_list):
    """pandas and datasets write a list of labels so; with one name in each it is that class."""
    own = [["dog"], ["dog", "sea lion"], [], ["sea lion"]] * 3
    parts = ["train", "train", "train", "train", "valid", "valid", "valid", "valid"] + ["test"] * 4

    def made(lists, name):
        rows = [("path", "label", "split")]
        rows += [(f"{i}.wav", write_list(one), parts[i]) for i, one in enumerate(lists)]
        table = io.StringIO()
        csv.writer(table).writerows(rows)
        write(tmp_path / name, table.getvalue())
        return load_set(str(tmp_path), name)

    several = made(own, "several")
    assert several.classes == ["dog", "sea lion"]
    assert several.multi_label
    assert several.one_hot(np.arange(4)).tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
    assert several.left_out == {}
    one = made([["dog"], ["sea lion"]] * 6, "one")
    plain = write_list(["dog"]) == "[dog]"  # which may be how a class is called
    assert one.classes == (["[dog]", "[sea lion]"] if plain else ["dog", "sea lion"])
    assert not one.multi_label


def test_hold_out_of_a_multi_label_set_keeps_rare_classes_in_training(tmp_path):
    rows = [f"{i}.wav,common;{'rare' if i < 8 else 'other'},train" for i in range(80)]
    write(tmp_path / "s", "path,label,split\n" + "\n".join([*rows, "t.wav,rare,test", ""]))
    split = load_set(tmp_path, "s:multi_label=true").splits[0]
    rare = [int(index) < 8 for index in split.valid]
    assert (len(rare), sum(rare)) == (round(0.15 * 72) + 1, 1)


@pytest.mark.parametrize("text", ["a:multi_label=yes", "a:separator="])
def test_what_several_labels_cannot_mean_is_refused(text):
    with pytest.raises(ValueError, match="must"):
        parse_task(text)


def test_shuffled_labels_keep_clips_and_counts(sets):
    task = load_set(sets, "tones")
    mixed = shuffled(task, seed=0)
    assert sorted(mixed.labels) == sorted(task.labels)
    assert mixed.labels != task.labels
    assert mixed.ids_sha256() == task.ids_sha256()
    assert shuffled(task, seed=0).labels == mixed.labels != shuffled(task, seed=1).labels


def test_a_random_tenth_of_the_other_folds_validates(sets):
    task = load_set(sets, "tones:protocol=folds")
    other = random_validation(task, fraction=0.1)
    for before, after in zip(task.splits, other.splits, strict=True):
        assert after.test.tolist() == before.test.tolist()
        rest = [*after.train, *after.valid]
        assert sorted(rest) == sorted([*before.train, *before.valid])
        assert 0 < len(after.valid) <= 0.15 * len(rest)


LOOK_ALIKES = {
    "case": ("bell", "Bell"),
    "spaces": ("sea lion", "sea  lion"),
    "no-break space": ("sea lion", "sea\u00a0lion"),
    "underscore": ("sea lion", "sea_lion"),
    "form": ("\u017e\u00e1ba", "z\u030ca\u0301ba"),
    "width": ("\uff11", "1"),
    "unseen": ("bell", "bell\u200b"),
    "number": ("1", "1.0"),
    "zeros": ("01", "1"),
}


@pytest.mark.parametrize("kind", LOOK_ALIKES)
def test_one_class_written_in_two_ways_is_named(tmp_path, caplog, kind):
    one, other = LOOK_ALIKES[kind]
    names = (one, other, "dog", "dog 2")
    parts = ("train", "valid", "test")
    rows = [f"{part}{i},{name},{part}" for part in parts for i, name in enumerate(names)]
    write(tmp_path / "s", "path,label,split\n" + "\n".join(rows))
    assert len(load_set(tmp_path, "s").classes) == 4  # they are taken as they stand
    first, second = sorted((one, other))
    assert f"column 'label': names that look like one are taken as different ones: {first!r}, " in (
        caplog.text
    )
    assert f"{first!r}, {second!r}; write each in one way" in caplog.text
    assert "dog" not in caplog.text


def test_a_speaker_written_in_two_ways_is_named_before_it_leaks(tmp_path, caplog):
    rows = [f"{i},{'xy'[i % 2]},{('anna', 'Anna', 'bert', 'cleo')[i // 2 % 4]}" for i in range(16)]
    write(tmp_path / "s", "path,label,speaker\n" + "\n".join(rows))
    load_set(tmp_path, "s:protocol=leave_one_out:speaker")
    assert "column 'speaker': names that look like one" in caplog.text
    assert "'Anna', 'anna'" in caplog.text


def test_a_classifier_that_writes_a_class_otherwise_is_named(tmp_path, caplog):
    rows = "a,Dog,train\nb,cat,train\nc,Dog,valid\nd,cat,test\n"
    write(tmp_path / "s", "path,label,split\n" + rows)
    with_heads(load_set(tmp_path, "s"), [Head(name="label", classes=["cat", "dog", "eel", "Eel"])])
    assert "does not know it so: 'Dog', 'dog'; write it as the classifier does" in caplog.text
    assert "eel" not in caplog.text.lower()


def test_classes_that_a_part_lacks_are_named(tmp_path, caplog):
    rows = "a,x,train\nb,y,train\nh,only,train\nc,x,valid\ni,shown,valid\nd,x,test\ne,z,test\n"
    write(tmp_path / "s", "path,label,split\n" + rows + "f,z,test\ng,y,test\n")
    task = load_set(tmp_path, "s")
    assert task.untrained == {"shown": 0, "z": 2}
    assert task.untested == ["only", "shown"]
    assert "s: classes without a clip in the training part: z\n" in caplog.text
    assert "s: classes without a clip in the test part: only\n" in caplog.text
    known = with_trained_classes(task, task.splits[0])
    assert known.classes == ["only", "x", "y"]
    assert known.unknown_in(known.splits[0].test) == {"z": 2}
    assert known.missing_from(known.splits[0].test) == ["only"]
    two = write(tmp_path / "t", "path,label,sex,split\na,x,f,train\nb,y,f,train\nh,y,m,train\n"
                "c,x,m,valid\nd,x,d,test\ne,z,m,test\n")  # fmt: skip
    assert load_set(two, labels=["label", "sex"]).untrained == {"label z": 1, "sex d": 1}
    rows = [f"{i},{'xyz'[i % 3]},{i % 4}" for i in range(24)] + ["30,rare,2"]
    write(tmp_path / "f", "path,label,fold\n" + "\n".join(rows))
    assert load_set(tmp_path, "f").untrained == {"rare": 1}


@pytest.mark.parametrize(
    "header",
    ["path,Label,Split", "File Name, LABELS ,split", "path,label,subset", "PATH,label,SPLIT"],
)
def test_columns_are_known_by_other_forms_of_their_names(tmp_path, header):
    write(tmp_path / "s", header + "\na,x,train\nb,y,train\nc,x,valid\nd,y,test\n")
    assert find_sets(tmp_path) == ["s"]
    task = load_set(tmp_path)
    assert (task.labels, task.clips) == (["x", "y", "x", "y"], list("abcd"))
    assert [part.tolist() for part in task.splits[0].parts().values()] == [[0, 1], [2], [3]]


def test_another_label_column_is_enough_and_the_columns_are_listed(tmp_path):
    rows = "a,x,train\nb,y,train\nc,x,valid\nd,y,test\n"
    folder = write(tmp_path / "s", "path,bird,split\n" + rows)
    assert load_set(folder, labels=["bird"]).labels == ["x", "y", "x", "y"]
    assert load_set(folder, labels=["Bird"]).heads[0].name == "bird"
    said = r"s/metadata.csv has no column 'label'; it has: path, bird, split; name the one .*"
    for read in (find_sets, load_set):
        with pytest.raises(ValueError, match=said + r"tasks=\[s:label=COLUMN\].*labels=\[COLUMN\]"):
            read(folder)
    with pytest.raises(FileNotFoundError, match=r"s/metadata.csv has the columns path, bird, "):
        find_sets(tmp_path)
    write(tmp_path / "u", "path,Label,label ,split\n" + rows.replace(",x", ",x,x"))
    with pytest.raises(ValueError, match="fields in line"):
        load_set(tmp_path, "u")
    (tmp_path / "t").mkdir()
    (tmp_path / "t/annotations.xlsx").write_bytes(b"PK")
    with pytest.raises(
        FileNotFoundError, match=r"found annotations\.xlsx: save the table with the"
    ):
        find_sets(tmp_path / "t")


@pytest.mark.parametrize(
    "name", ["a,b", "a:b", "[a]", "it's", 'say "x"', "a:label=x", "50 %", "~s"]
)
def test_marks_of_the_syntax_are_letters_in_names_and_columns(tmp_path, name):
    rows = "a,x,1,train\nb,y,2,train\nc,x,1,valid\nd,y,2,test\n"
    write(tmp_path / "other", "path,label,split\n" + rows.replace(",1,", ",").replace(",2,", ","))
    write(tmp_path / name, 'path,label,"my, [lab]el=:",split\n' + rows)
    assert sorted(find_sets(tmp_path)) == sorted([name, "other"])
    assert load_set(tmp_path, name).spec == TaskSpec(name=name)
    spec = TaskSpec(name=name, label="my, [lab]el=:", group="label")
    assert parse_task(str(spec)) == spec
    tasks = split_names(f"[other, {spec}, {TaskSpec(name=name)}]")
    loaded = [load_set(tmp_path, text) for text in tasks]
    assert [task.spec.name for task in loaded] == ["other", name, name]
    assert [task.classes for task in loaded] == [["x", "y"], ["1", "2"], ["x", "y"]]
    assert load_set(tmp_path / name, labels=["my, [lab]el=:"]).classes == ["1", "2"]
