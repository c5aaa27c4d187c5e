import io
import json
import logging

import numpy as np
import pytest
import soundfile

from ssmast.doctor import main
from ssmast.doctor.sounds import check_sounds
from tests.sets import write_set


def lines(data):
    """Area -> texts."""
    found = {}
    for finding in check_sounds(str(data)):
        found.setdefault(finding.area, []).append(finding.text)
    return found


def write(folder, name, *, rate=16000, seconds=1.0, hertz=440.0, channels=1):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)
    soundfile.write(folder / name, np.tile(wave[:, None], channels), rate)


def test_sounds_without_labels(tmp_path, capsys):
    for i in range(4):
        write(tmp_path, f"{i}.wav", seconds=1 + i)
    write(tmp_path, "b/x.flac", rate=48000, channels=2, seconds=1)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    (tmp_path / "notes.txt").write_text("x")
    found = lines(tmp_path)
    assert found["layout"] == ["a folder of sounds without labels"]
    assert found["files"][0].startswith("6 clips (5 .wav, 1 .flac), ")
    assert "a clip has 1 to 4 s, the median is 2 s" in found["length"][0]
    assert found["rates"] == ["4 x 16000 Hz, 1 x 48000 Hz"]
    assert found["channels"] == ["4 x 1, 1 x 2"]
    assert any("1 files are not used: 1 .txt" in text for text in found["problems"])
    assert any(text.startswith("1 unreadable: bad.wav") for text in found["problems"])
    assert found["next"] == [f"ssmast pretrain recipe=real_nano data={tmp_path} run=runs/mine"]
    assert main([f"data={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 10
    assert main([f"data={tmp_path}", "format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"][0]["area"] == "layout"
    assert logging.getLogger("ssmast").propagate


def test_a_cut_recording_and_long_ones_in_seconds(tmp_path):
    write(tmp_path, "night.wav", seconds=1200, rate=2000)
    write(tmp_path, "cut.wav", seconds=20)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:1000])
    found = lines(tmp_path)
    clip = "a clip has 1,200 to 1,200 s, the median is 1,200 s"
    assert found["length"] == [f"0.333 hours; {clip}"]
    assert any("1 unreadable: cut.wav is truncated" in text for text in found["problems"])


def test_a_labelled_set_and_a_folder_of_sets(tmp_path):
    write_set(tmp_path / "sets/tones", num_clips=24)
    table = tmp_path / "sets/tones/metadata.csv"
    table.write_text(table.read_text().replace("low", "Low", 1).replace(",middle,", ",,", 1))
    found = lines(tmp_path / "sets/tones")
    assert found["layout"] == ["a labelled set: metadata.csv"]
    assert found["labels"][0].startswith("4 classes: high (8), ")
    assert found["splits"] == ["11 / 6 / 6 clips train, validate and test"]
    assert any("'Low', 'low'" in text for text in found["problems"])
    assert "1 rows left out (empty label)" in found["problems"]
    assert found["next"][0].startswith("ssmast probe data=")
    assert lines(tmp_path / "sets")["layout"] == ["a folder of 1 labelled set: tones"]
    for label in ("frog", "rain"):
        for i in range(6):
            write(tmp_path / "card", f"{label}/{i}.wav", seconds=0.1)
    assert lines(tmp_path / "card")["layout"] == ["a labelled set: a folder for each class"]


def test_labels_in_a_column_of_another_name_are_named_beside_the_sounds(tmp_path):
    for i in range(4):
        write(tmp_path, f"data/train/{i}.wav", seconds=0.1)
    rows = "".join(f"{i}.wav,d{i % 2}\n" for i in range(4))
    (tmp_path / "data/train/metadata.csv").write_text("file_name,digit\n" + rows)
    found = lines(tmp_path)
    assert found["layout"] == ["an AudioFolder with data/train/metadata.csv"]
    assert "has no column 'label'; it has: path, digit" in found["labels"][0]
    assert found["files"] == ["4 clips (4 .wav), 0.0 MB"]


def test_one_set_that_cannot_be_read_hides_no_other(tmp_path):
    for i in range(8):
        write(tmp_path, f"a/{i}.wav", seconds=0.1)
    for name, rows in {"a": range(8), "b": range(8, 12)}.items():
        text = "".join(f"a/{i}.wav,{'xy'[i % 2]}\n" for i in rows)
        (tmp_path / f"set_{name}.csv").write_text("fname,label\n" + text)
    found = lines(tmp_path)
    assert "4 of 4 files of" in found["labels"][0]
    assert found["labels"][1:] == ["set_a.csv: 2 classes: x (4), y (4)"]
    assert found["next"] == [f"ssmast probe data={tmp_path} 'tasks=[set_a.csv]'"]


def test_tables_and_published_sets_are_pointed_at(tmp_path):
    for i in range(8):
        write(tmp_path, f"clips/{i}.wav", seconds=0.1)
    rows = "".join(f"{i}.wav,v{i % 2}\n" for i in range(8))
    (tmp_path / "votes.csv").write_text("FileName,VoiceVote\n" + rows)
    (tmp_path / "other.json").write_text("{}")
    words = f"give data={tmp_path / 'votes.csv'} and task votes:label=COLUMN, its columns are"
    assert words in lines(tmp_path)["labels"][0]
    (tmp_path / "votes.csv").write_text("id,hasbird\n" + rows.replace(".wav", ""))
    assert (
        f"data={tmp_path / 'votes.csv'}, its id renamed path, and" in lines(tmp_path)["labels"][0]
    )
    for part in ("train", "valid", "test"):
        write(tmp_path, f"ns/nsynth-{part}/audio/1.wav", seconds=0.1)
    found = lines(tmp_path / "ns")
    assert found["next"] == [f"ssmast prepare task=nsynth_family root={tmp_path / 'ns'}"]
    assert found["layout"] == ["a folder of sounds without labels"]


def test_a_recording_counts_once_and_its_spans_are_the_clips(tmp_path):
    for i in range(2):
        write(tmp_path, f"audio/{i}.wav", seconds=10)
    rows = [f"D:\\audio\\{i}.wav,{s},{s + 0.5},{'ab'[s % 2]}\n" for i in range(2) for s in range(4)]
    (tmp_path / "spans.csv").write_text("path,start,end,label\n" + "".join(rows))
    kept = logging.StreamHandler(io.StringIO())
    logging.getLogger("ssmast").addHandler(kept)
    try:
        found = lines(tmp_path)
    finally:
        logging.getLogger("ssmast").removeHandler(kept)
    assert found["files"] == ["8 clips (8 .wav, parts of 2 recordings), 0.6 MB"]
    assert found["length"] == ["0.00111 hours; a clip has 0.5 to 0.5 s, the median is 0.5 s"]
    assert any("'D:/audio/0.wav#t=0,0.5', is taken as" in text for text in found["problems"])
    assert not kept.stream.getvalue()  # said among the findings, and nowhere else


@pytest.mark.parametrize(
    ("rate", "hertz", "said"),
    [(48000, 15000, "above front_end.f_max=7800"), (16000, 20, "below front_end.f_min=")],
)
def test_energy_that_the_front_end_throws_away_is_noticed(tmp_path, rate, hertz, said):
    write(tmp_path, "a.wav", rate=rate, hertz=hertz)
    assert any(f"100% of the energy lies {said}" in text for text in lines(tmp_path)["problems"])


def test_a_folder_without_sound_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no sound file"):
        list(check_sounds(str(tmp_path)))


def test_a_mixture_is_looked_at_part_by_part(tmp_path, capsys):
    for name in "ab":
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "1.wav", np.zeros(800), 8000)
    mixture = f"[{{path: {tmp_path}/a, weight: 1}}, {{path: {tmp_path}/b, weight: 2}}]"
    assert main([f"data={mixture}"]) == 0
    assert "2 x 8000 Hz" in capsys.readouterr().out
