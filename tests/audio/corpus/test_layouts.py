"""Layouts of other programs, as data= and as labelled sets, and what is said of a wrong one."""

import io
import json
import logging
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from ssmast.audio import AudioError, open_corpus, read_audio
from ssmast.audio.corpus.cache import cache_decoded
from ssmast.audio.corpus.open import layout_of, read_table
from ssmast.doctor.sounds import check_sounds
from ssmast.evaluation.find_set import find_sets, read_columns
from ssmast.evaluation.read_set import load_set
from tests.data.make_layouts import wav

MADE = Path(__file__).parents[2] / "data" / "layouts"
RATE = 8000


def tone(file, *, seconds=0.05):
    file.parent.mkdir(parents=True, exist_ok=True)
    hertz = 200 + 150 * int(file.stem[-1]) if file.stem[-1].isdecimal() else 200
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(RATE * seconds)) / RATE)
    soundfile.write(file, wave, RATE)
    return file


def chirps(folder, names, *, seconds=4.0):
    """Recordings in which second k is a tone of 100 (k + 1) Hz."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(round(RATE * seconds)) / RATE
        wave = 0.3 * np.sin(2 * np.pi * 100 * (1 + np.floor(time)) * time)
        soundfile.write(folder / name, wave, RATE)
    return folder


def names(corpus):
    return [corpus.name(i) for i in range(len(corpus))]


def audio(corpus, i):
    return read_audio(corpus.source(i), sample_rate=RATE)


def layout(path):
    return next(one.text for one in check_sounds(str(path)) if one.area == "layout")


def peak(wave):
    """Frequency in Hz with the most energy."""
    return np.argmax(np.abs(np.fft.rfft(wave))) * RATE / len(wave)


# 1 and 2: class folders, with and without parts


def test_class_folders_are_split_by_their_names_or_in_whole_groups(tmp_path):
    for i in range(20):
        tone(tmp_path / f"s/{'ab'[i % 2]}/site{i // 4}_{i}.wav")
    found = load_set(tmp_path / "s")
    assert [len(part) for part in found.splits[0].parts().values()] == [14, 2, 4]
    grouped = load_set(tmp_path, "s:group='(site\\d)_'")
    parts = [{found.clips[i][2:7] for i in p} for p in grouped.splits[0].parts().values()]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert set().union(*parts) == {f"site{k}" for k in range(5)}
    for pattern in ("(none)", "site"):
        with pytest.raises(
            ValueError, match=r"takes nothing of the path 'a/site0_0\.wav'|no column"
        ):
            load_set(tmp_path, f"s:group='{pattern}'")
    with pytest.raises(ValueError, match="neither a column nor a pattern"):
        load_set(tmp_path, "s:group='(site'")


def test_no_class_loses_all_its_clips_to_the_test_part(tmp_path):
    for label, count in {"a": 8, "b": 2, "c": 3}.items():
        for i in range(count):
            tone(tmp_path / f"s/{label}/g{i}_{i}.wav")
    for task in ("s", "s:group='(g\\d)_'"):
        found = load_set(tmp_path, task)
        trained = {found.labels[i] for i in found.splits[0].train}
        assert trained == {"a", "b", "c"}
        assert len(found.splits[0].test)


def test_parts_above_the_classes(tmp_path):
    for part in ("train", "test"):
        for i in range(8):
            tone(tmp_path / f"{part}/{'ab'[i % 2]}/{i}.wav")
    found = load_set(tmp_path)
    assert [len(part) for part in found.splits[0].parts().values()] == [6, 2, 8]
    assert layout(tmp_path) == "a labelled set: a folder for each class"


# 3: AudioFolder


def audio_folder(folder, ending):
    for part in ("train", "test"):
        rows = [(f"{i}.wav", "ab"[i % 2], ["x", "y"][: 1 + i % 2]) for i in range(8)]
        for name, _, _ in rows:
            tone(folder / part / name)
        file = folder / part / f"metadata.{ending}"
        if ending == "csv":
            lines = ["file_name,label", *(f"{name},{label}" for name, label, _ in rows)]
        else:
            lines = [json.dumps({"file_name": n, "label": c, "tags": t}) for n, c, t in rows]
        file.write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_an_audio_folder_with_metadata_in_each_part(tmp_path, ending):
    folder = audio_folder(tmp_path / "set", ending)
    assert len(open_corpus(folder)) == 16
    found = load_set(folder)
    assert find_sets(folder) == ["set"]
    assert [len(part) for part in found.splits[0].parts().values()] == [6, 2, 8]
    assert found.clips[0] == "test/0.wav"
    assert names(found.corpus()) == found.clips
    assert layout(folder) == f"a labelled set: an AudioFolder with test/metadata.{ending}"
    if ending == "jsonl":
        many = load_set(tmp_path, "set:label=tags,multi_label=true")
        assert many.classes == ["x", "y"]


@pytest.mark.parametrize("name", ["keywords_test", "eval_birds", "dev"])
@pytest.mark.parametrize("others", [["birds"], ["other_test"], []])
def test_a_set_that_is_called_as_a_part_is_a_set(tmp_path, name, others):
    """Read as a part, all of its clips would be of that part, and other sets be gone."""
    for folder in (tmp_path / one for one in [name, *others]):
        rows = ["path,label,split"]
        for i in range(12):
            tone(folder / f"{i}.wav")
            rows.append(f"{i}.wav,{'ab'[i % 2]},{'train' if i % 3 else 'test'}")
        (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    assert find_sets(tmp_path) == sorted([name, *others])
    for found in (load_set(tmp_path, name), load_set(tmp_path / name, name)):
        assert len(found.splits[0].test) == 4


def test_shards_of_a_set_that_is_called_as_a_part(tmp_path):
    for name in ("cats_test", "dogs"):
        place = tmp_path / name / "train-00000-of-00001.parquet"
        place.parent.mkdir()
        audio = [{"bytes": wav(i), "path": f"{i}.wav"} for i in range(4)]
        pq.write_table(pa.table({"audio": audio, "label": [0, 1, 0, 1]}), place)
    assert find_sets(tmp_path) == ["cats_test", "dogs"]


def test_metadata_in_the_folder_itself_draws_its_test_part(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for i in range(10):
        tone(tmp_path / f"s/{i}.wav")
    rows = [json.dumps({"file_name": f"{i}.wav", "label": "ab"[i % 2]}) for i in range(10)]
    (tmp_path / "s/metadata.jsonl").write_text("\n".join(rows))
    assert [len(p) for p in load_set(tmp_path / "s").splits[0].parts().values()] == [6, 2, 2]
    assert "2 of 10 clips test, chosen in each class" in caplog.text
    text = "file_name,label\n" + "".join(f"{i}.wav,{'ab'[i % 2]}\n" for i in range(10))
    (tmp_path / "s/metadata.jsonl").unlink()
    (tmp_path / "s/metadata.csv").write_text(text)
    assert load_set(tmp_path / "s", labels=["label"], group=r"(\d)").num_unseen == 0
    (tmp_path / "s/metadata.csv").write_text(text.replace("label", "kind"))
    assert load_set(tmp_path / "s", labels=["kind"]).classes == ["a", "b"]
    (tmp_path / "s/metadata.csv").write_text(text)
    assert [len(p) for p in load_set(tmp_path / "s").splits[0].parts().values()] == [6, 2, 2]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"file_name": "1.wav"', r"line 2 is no valid JSON"),
        ('["1.wav"]', r"line 2 must be a JSON object"),
        ('{"file_name": "gone.wav"}', r"1 of 2 files of .*metadata.jsonl not found"),
        ('{"file_name": "../1.wav"}', r"leads out of its folder"),
    ],
)
def test_metadata_that_is_slightly_wrong(tmp_path, line, sentence):
    tone(tmp_path / "0.wav")
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "0.wav"}}\n{line}\n')
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        open_corpus(tmp_path)


# 4 and 5: what datasets wrote, see tests/data/make_layouts.py


@pytest.mark.parametrize("place", ["parquet", "saved"])
def test_a_set_of_datasets_holds_the_bytes_that_went_in(place):
    corpus = pickle.loads(pickle.dumps(open_corpus(MADE / place)))
    assert sorted(names(corpus)) == [f"{i:03d}.wav" for i in range(12)]
    for i in range(12):
        assert corpus.source(i) == wav(int(corpus.name(i)[:3]))
    found = load_set(MADE / place)
    assert found.classes == ["frog", "rain"]
    train, valid, test = found.splits[0].parts().values()
    assert {found.clips[i] for i in test} == {f"{i:03d}.wav" for i in range(8, 12)}
    assert len(train) + len(valid) == 8
    assert all(
        found.labels[i] == ["frog", "rain"][int(c[:3]) % 2] for i, c in enumerate(found.clips)
    )
    assert names(found.corpus()) == found.clips
    several = load_set(MADE, f"{place}:label=tags,multi_label=true")
    assert several.label_sets[0][several.clips.index("000.wav")] == ("wet", "loud")
    said = {"parquet": "Parquet shards with", "saved": "a folder of datasets' save_to_disk"}
    assert layout(MADE / place).startswith(f"a labelled set: {said[place]}")


def test_parquet_is_read_by_the_row_group_and_never_whole(tmp_path, monkeypatch):
    file = MADE / "parquet/train-00000-of-00001.parquet"
    read = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, columns: read.append((group, columns)) or whole(self, group, columns),
    )
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    monkeypatch.setattr(pq, "read_table", None)
    corpus = open_corpus(file)
    assert not any("audio.bytes" in columns for _, columns in read)
    read.clear()
    for i in (0, 1, 2, 3, 0):
        assert corpus.source(i) == wav(i)
    assert read == [(0, ["audio.bytes"]), (1, ["audio.bytes"]), (0, ["audio.bytes"])]
    assert corpus.reads_groups
    assert not open_corpus(MADE / "saved").reads_groups


def test_parquet_is_decoded_into_the_cache_though_its_wav_would_seek(tmp_path):
    corpus = open_corpus(MADE / "parquet")
    cached = cache_decoded(corpus, tmp_path, sample_rate=RATE)
    assert not cached.reads_groups
    assert names(cached) == names(corpus)
    for i in (11, 0, 5):
        np.testing.assert_array_equal(audio(cached, i), audio(corpus, i))
    assert cache_decoded(open_corpus(MADE / "saved"), tmp_path, sample_rate=RATE).shards != []
    assert len(list(tmp_path.glob("*.tar"))) == 1  # save_to_disk is read as it is


def test_parquet_at_a_url(tmp_path):
    import fsspec

    file = (MADE / "parquet/test-00000-of-00001.parquet").read_bytes()
    fsspec.filesystem("memory").pipe("/glue/test.parquet", file)
    corpus = open_corpus("memory://glue/test.parquet")
    assert corpus.source(3) == wav(11)


def test_parquet_of_another_program_is_one_binary_column(tmp_path):
    table = pa.table({"sound": [wav(0), wav(1), None], "label": [1, 2, 2]})
    pq.write_table(table, tmp_path / "x.parquet")
    corpus = open_corpus(tmp_path / "x.parquet")
    assert names(corpus)[1] == "x.parquet/0000001"
    assert corpus.source(1) == wav(1)
    assert corpus.table.to_pydict() == {"label": ["1", "2", "2"]}
    with pytest.raises(AudioError, match="has no bytes"):
        corpus.source(2)


def features(**columns):
    said = {"info": {"features": columns}}
    return {b"huggingface": json.dumps(said).encode()}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (pa.table({"label": [1]}), "has no sound; wanted one column of bytes and path"),
        (pa.table({"a": [b"x"], "b": [b"y"]}), "has 2 columns of sound, a, b"),
        (
            pa.table(
                {"audio": pa.array([None], pa.binary()), "label": [0]},
            ),
            "names files and holds no sound",
        ),
        (
            pa.table({"audio": [b"x"], "label": [7]}).replace_schema_metadata(
                features(label={"names": ["a", "b"], "_type": "ClassLabel"})
            ),
            "class 7 has no name; its schema names 2",
        ),
    ],
)
def test_parquet_that_is_slightly_wrong(tmp_path, table, sentence):
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=sentence):
        open_corpus(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"x\.parquet is no Parquet file"):
        open_corpus(tmp_path / "x.parquet")


def test_a_saved_folder_that_is_slightly_wrong(tmp_path):
    saved = tmp_path / "saved"
    shutil.copytree(MADE / "saved", saved)
    shard = saved / "train/data-00001-of-00002.arrow"
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(ValueError, match="is no Arrow file, or cut short"):
        open_corpus(saved)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"state\.json lists, is gone; copy it again"):
        open_corpus(saved)
    shutil.rmtree(saved)
    shutil.copytree(MADE / "saved", saved)
    shutil.rmtree(saved / "test")
    with pytest.raises(FileNotFoundError, match="lists the split 'test', which has no state"):
        open_corpus(saved)
    state = saved / "train/state.json"
    state.write_text(state.read_text().replace("data-00000", "../data-00000"))
    with pytest.raises(ValueError, match="which is not in its folder"):
        open_corpus(saved / "train")
    batch = pa.record_batch({"audio": pa.array([wav(0)] * 4)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(tmp_path / "z.arrow", batch.schema, options=options) as file:
        file.write_batch(batch)
    with pytest.raises(ValueError, match="compressed inside; load it with datasets"):
        open_corpus(tmp_path / "z.arrow")


# 6: WebDataset


def write_tar(file, members):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def test_labels_in_a_tar_of_webdataset(tmp_path):
    corpus = open_corpus(MADE / "shard.tar")
    assert [corpus.source(i) for i in range(6)] == [wav(i) for i in range(6)]
    assert corpus.table.to_pydict() == {
        "label": ["0", "1"] * 3,
        "site": ["s0", "s1", "s2"] * 2,
        "text": ["frog", "rain"] * 3,
    }
    found = load_set(MADE / "shard.tar", "shard:label=text")
    assert found.classes == ["frog", "rain"]
    assert sum(map(len, found.splits[0].parts().values())) == 6
    assert layout(MADE / "shard.tar") == "a labelled set: tars of WebDataset"


def test_tars_in_a_folder_are_parts_by_their_names(tmp_path):
    for part, first in (("train", 0), ("test", 8)):
        members = {}
        for i in range(first, first + 8):
            members |= {f"{i}.wav": wav(i % 12), f"{i}.json": b'{"label": ["%d", "x"]}' % (i % 2)}
        write_tar(tmp_path / f"s/{part}-0000.tar", members)
    found = load_set(tmp_path / "s")
    assert found.multi_label
    assert found.classes == ["0", "1", "x"]
    assert {found.clips[i].split("/")[0] for i in found.splits[0].test} == {"test-0000.tar"}


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"0.wav": wav(0), "0.json": b"{"}, r"0\.json in .* is no valid JSON"),
        ({"0.wav": wav(0), "0.cls": b"\xff"}, r"0\.cls in .* is not UTF-8 text"),
        ({"0.wav": wav(0)}, r"has no labels; wanted a table with them, or members \.cls"),
    ],
)
def test_a_tar_that_is_slightly_wrong(tmp_path, members, sentence):
    file = write_tar(tmp_path / "x.tar", members)
    assert len(open_corpus(file)) == 1  # to pretrain on, labels are not read
    with pytest.raises(ValueError, match=sentence):
        load_set(file)


# 7 to 9: annotations

RAVEN = (
    "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tCall\n"
)


def raven(spans, *, views=("Waveform 1", "Spectrogram 1")):
    rows = [
        f"{i}\t{view}\t1\t{start:.6f}\t{end:.6f}\t50.0\t900.0\t{label}\n"
        for i, (start, end, label) in enumerate(spans, start=1)
        for view in views
    ]
    return RAVEN + "".join(rows)


SPANS = [(0.0, 1.0, "low"), (1.0, 2.0, "mid"), (2.0, 3.0, "low"), (3.0, 3.5, "mid")]


def test_selections_of_raven_beside_their_recordings(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = chirps(tmp_path / "s", ["rec1.wav", "rec10.wav", "night/rec1.wav"])
    for name in ("rec1", "rec10", "night/rec1"):
        (folder / f"{name}.Table.1.selections.txt").write_text(raven(SPANS))
    assert len(open_corpus(folder)) == 3  # pretraining hears all
    corpus = open_corpus(folder, spans="spans")
    assert len(corpus) == 12
    assert names(corpus)[:2] == ["night/rec1.wav#t=0,1", "night/rec1.wav#t=1,2"]
    for i, name in enumerate(names(corpus)):
        begin = int(name.split("=")[1][0])
        assert abs(peak(audio(corpus, i)) - 100 * (begin + 1)) < 5
    found = load_set(folder)
    assert (found.classes, len(found.clips)) == (["low", "mid"], 12)
    assert names(found.corpus()) == found.clips
    assert "12 spans are there twice, taken once" in caplog.text
    assert layout(folder) == "a labelled set: recordings with annotations (Raven selection table)"
    one = folder / "rec10.Table.1.selections.txt"
    assert len(open_corpus(one)) == 4
    assert names(open_corpus(one, spans="whole")) == ["rec10.wav"]


def test_a_table_over_several_files_takes_the_offset_inside_each(tmp_path):
    chirps(tmp_path, ["a.wav", "b.wav"])
    header = RAVEN.strip("\n") + "\tBegin File\tFile Offset (s)\n"
    rows = [
        "1\tSpectrogram 1\t1\t1.0\t2.0\t0\t1\tx\ta.wav\t1.0\n",
        "2\tSpectrogram 1\t1\t6.0\t6.5\t0\t1\ty\tb.wav\t2.0\n",
    ]
    (tmp_path / "all.selections.txt").write_text(header + "".join(rows))
    corpus = open_corpus(tmp_path / "all.selections.txt")
    assert names(corpus) == ["a.wav#t=1,2", "b.wav#t=2,2.5"]


def test_tables_of_birdnet(tmp_path):
    """Columns as BirdNET-Analyzer writes them; two species in one window are two labels."""
    chirps(tmp_path, ["rec.wav"])
    table = (
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\t"
        "Common Name\tSpecies Code\tConfidence\tBegin Path\tFile Offset (s)\n"
        "1\tSpectrogram 1\t1\t0\t3.0\t0\t15000\tSong Thrush\tsonthr1\t0.9\tC:\\bird\\rec.wav\t0\n"
        "2\tSpectrogram 1\t1\t0\t3.0\t0\t15000\tGreat Tit\tgretit1\t0.5\tC:\\bird\\rec.wav\t0\n"
        "3\tSpectrogram 1\t1\t3.0\t4.0\t0\t15000\tGreat Tit\tgretit1\t0.4\tC:\\bird\\rec.wav\t3\n"
    )
    (tmp_path / "rec.BirdNET.selection.table.txt").write_text(table)
    corpus = open_corpus(tmp_path, spans="spans")
    assert names(corpus) == ["rec.wav#t=0,3", "rec.wav#t=3,4"]
    assert corpus.table["Common Name"].to_pylist() == ["Song Thrush;Great Tit", "Great Tit"]
    text = (
        "Start (s),End (s),Scientific name,Common name,Confidence,File\n"
        "0.0,3.0,Parus major,Great Tit,0.61,rec.wav\n"
    )
    (tmp_path / "results.csv").write_text(text)
    assert names(open_corpus(tmp_path / "results.csv")) == ["rec.wav#t=0,3"]


def test_a_label_track_of_audacity(tmp_path):
    folder = chirps(tmp_path / "s", ["rec.wav", "other.wav"], seconds=12)
    lines = [f"{k:.6f}\t{k + 1:.6f}\t{'ab'[k % 2]}\n\\\t100.0\t900.0\n" for k in range(12)]
    (folder / "rec.txt").write_text("".join(lines) + "5,500000\t5,500000\tpoint\n")
    corpus = open_corpus(folder / "rec.txt")
    assert len(corpus) == 12
    assert names(corpus)[3] == "rec.wav#t=3,4"
    found = load_set(folder)
    assert [len(part) for part in found.splits[0].parts().values()] == [8, 2, 2]
    assert "Audacity label track" in layout(folder)


def test_a_csv_of_spans_and_a_set_with_one(tmp_path, caplog):
    folder = chirps(tmp_path / "s", ["a.wav", "b.wav"])
    rows = [f"{f}.wav,{k},{k + 1},{'xy'[k % 2]}\n" for f in "ab" for k in range(4)]
    (folder / "metadata.csv").write_text("path,onset,offset,label\n" + "".join(rows))
    corpus = open_corpus(folder)
    assert names(corpus)[1] == "a.wav#t=1,2"
    assert names(open_corpus(folder, spans="whole")) == ["a.wav", "b.wav"]
    found = load_set(folder)
    assert (len(found.clips), found.classes) == (8, ["x", "y"])
    assert "one span" not in caplog.text
    (folder / "metadata.csv").write_text("path,start,end,label\na.wav,0,1,x\nb.wav,9,10,y\n")
    open_corpus(folder)
    assert "each recording has one span; where the files are cut already" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("rec.txt", "0.0\t1.0\ta\nx\t2\tb\n", r"line 2: a label track has start, end and label"),
        ("rec.txt", "2.0\t1.0\ta\n", r"span 1 goes from 2 to 1 s; wanted 0 <= start <= end"),
        ("gone.txt", "0.0\t1.0\ta\n", r"does not say of which recording it is"),
        ("rec.txt", "1.0\t1.0\ta\n", r"names no span; wanted rows with a start and a later end"),
        ("r.csv", "file,start,end\nrec.wav,soon,1\n", r"row 2: start must be seconds, got 'soon'"),
        ("r.csv", "file,start,end\nno.wav,0,1\n", r"1 of 1 files of .*r\.csv not found"),
    ],
)
def test_annotations_that_are_slightly_wrong(tmp_path, name, text, sentence):
    chirps(tmp_path, ["rec.wav"])
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        open_corpus(tmp_path / name)


# 10: Kaldi


def kaldi(folder, parts=("train", "test"), speakers=2):
    for part in parts:
        scp, spk, text = [], [], []
        for i in range(8):
            tone(folder / f"wav/{part}{i}.wav")
            scp.append(f"{part}{i} wav/{part}{i}.wav\n")
            spk.append(f"{part}{i} s{i % speakers}\n")
            text.append(f"{part}{i} HELLO WORLD {i}\n")
        (folder / part).mkdir(exist_ok=True)
        (folder / part / "wav.scp").write_text("".join(scp))
        (folder / part / "utt2spk").write_text("".join(spk))
        (folder / part / "text").write_text("".join(text))
    return folder


def test_folders_of_kaldi(tmp_path):
    folder = kaldi(tmp_path / "k")
    corpus = open_corpus(folder)
    assert len(corpus) == 16
    assert corpus.table["text"].to_pylist()[1] == "HELLO WORLD 1"
    found = load_set(folder)
    assert (found.classes, found.heads[0].name) == (["s0", "s1"], "speaker")
    assert [len(part) for part in found.splits[0].parts().values()] == [6, 2, 8]
    assert layout(folder) == "a labelled set: a folder of Kaldi (wav.scp)"
    for part in (folder, folder / "train"):  # as Kaldi's recipes have it: wav beside data/train
        shutil.copytree(folder, tmp_path / "egs/data", dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "egs/wav", ignore_errors=True)
        shutil.move(tmp_path / "egs/data/wav", tmp_path / "egs/wav")
        moved = open_corpus(tmp_path / "egs/data" / part.relative_to(folder))
        assert np.array_equal(audio(moved, 0), audio(open_corpus(part), 0))
    shutil.move(folder / "wav", folder / "train/wav")
    (folder / "train/segments").write_text("u1 train0 0.01 0.03\nu2 train1 0 0.02\n")
    for name in ("utt2spk", "text"):
        (folder / "train" / name).write_text("u1 s0\nu2 s1\n")
    corpus = open_corpus(folder / "train")
    assert names(corpus) == ["wav/train0.wav#t=0.01,0.03", "wav/train1.wav#t=0,0.02"]
    assert len(audio(corpus, 0)) == 160


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("u1 touch {} |", "is a command, .* commands are never run"),
        ("u1 | touch {}", "is a command, .* commands are never run"),
        ("u1 feats.ark:12", "lies in an archive of Kaldi"),
        ("u1", "line 1: wanted a key and what it stands for"),
        ("u1 a.wav\nu1 a.wav", "line 2: 'u1' is there twice"),
        ("u1 gone.wav", "1 of 1 files of .*wav.scp not found"),
        ("u1 ../a.wav", "leads out of its folder"),
    ],
)
def test_a_wav_scp_that_is_slightly_wrong(tmp_path, line, sentence):
    tone(tmp_path / "k/a.wav")
    (tmp_path / "k/wav.scp").write_text(line.format(tmp_path / "ran"))
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        open_corpus(tmp_path / "k")
    assert not (tmp_path / "ran").exists()


# 11: JSON lists


def ast_lists(folder):
    index = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'
    (folder / "datafiles").mkdir(parents=True)
    (folder / "class_labels_indices.csv").write_text(index)
    for part in ("train", "eval"):
        data = []
        for i in range(6):
            file = tone(folder / f"audio/{part}{i}.wav")
            labels = ["/m/09x0r", "/m/05zppz", "/m/09x0r,/m/05zppz"][i % 3]
            data.append({"wav": str(file), "labels": labels})
        (folder / f"datafiles/esc_{part}_data.json").write_text(json.dumps({"data": data}))
    return folder / "datafiles"


def test_json_lists_of_ast(tmp_path):
    folder = ast_lists(tmp_path / "egs")
    assert len(open_corpus(folder)) == 12
    found = load_set(folder)
    assert found.multi_label
    assert found.classes == ["Speech", "Male speech, man speaking"]
    assert found.label_sets[0][2] == ("Speech", "Male speech, man speaking")
    assert len(found.splits[0].test) == 6
    assert {Path(found.clips[i]).stem[:4] for i in found.splits[0].test} == {"eval"}
    one = load_set(folder / "esc_train_data.json")
    assert sum(map(len, one.splits[0].parts().values())) == 6
    assert layout(folder) == "a labelled set: JSON lists of AST"
    for file in folder.iterdir():  # the paths of another machine; the sounds lie beside the lists
        file.write_text(file.read_text().replace(str(tmp_path), "/data/sls"))
    assert sorted(names(open_corpus(folder))) == sorted(
        f"audio/{part}{i}.wav" for part in ("train", "eval") for i in range(6)
    )
    assert len(load_set(folder).splits[0].test) == 6


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[1]", r'in a \.json file \{"data": \[\{"wav": PATH'),
        ('{"data": [{"path": "a.wav"}]}', "entry 1: wanted wav and labels"),
        ('{"data": [{"wav": "a.wav", "labels": "/m/1"}', "is no valid JSON"),
        ('{"data": [{"wav": "a.wav", "labels": "/m/1"}]}', "entry 1: '/m/1' is no label of class_"),
        ('{"data": [{"wav": "b.wav", "labels": "/m/09x0r"}]}', "1 of 1 files of .* not found"),
    ],
)
def test_a_json_list_that_is_slightly_wrong(tmp_path, content, sentence):
    tone(tmp_path / "a.wav")
    text = "index,mid,display_name\n0,/m/09x0r,Speech\n"
    (tmp_path / "class_labels_indices.csv").write_text(text)
    (tmp_path / "x.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        open_corpus(tmp_path / "x.json")


def test_tables_of_spans_of_each_part_with_recordings_in_which_nothing_happens(tmp_path):
    for part in ("train", "validation"):  # as DESED has them
        chirps(tmp_path / "audio" / part, [f"{part[0]}{i}.wav" for i in range(3)])
        rows = [f"{part[0]}{i}.wav\t{s}\t{s + 1}\t{'ab'[s]}\n" for i in range(2) for s in (0, 1)]
        (tmp_path / "metadata" / part).mkdir(parents=True)
        text = "filename\tonset\toffset\tevent_label\n" + "".join(rows) + f"{part[0]}2.wav\t\t\t\n"
        (tmp_path / "metadata" / part / f"{part}.tsv").write_text(text)
    columns = read_columns(tmp_path)[0]
    assert columns["split"] == ["train"] * 4 + ["validation"] * 4
    found = load_set(tmp_path)
    assert {found.clips[i].split("/")[1] for i in found.splits[0].valid} == {"validation"}


def test_a_label_track_beside_the_only_recording_and_one_of_numbers(tmp_path, caplog):
    chirps(tmp_path / "a", ["birds.wav"])
    (tmp_path / "a/Label Track.txt").write_text("0.0\t1.0\tcall\n1.0\t2.0\tsong\n")
    assert read_columns(tmp_path / "a")[0]["label"] == ["call", "song"]
    chirps(tmp_path / "b", ["101.wav"])
    (tmp_path / "b/101.txt").write_text("0.0\t1.0\t0\t1\n1.0\t2.0\t1\t0\n")
    assert read_columns(tmp_path / "b")[0]["confidence"] == ["1", "0"]
    assert "a number, is taken as label, the fourth as confidence" in caplog.text


# 12: as before


def test_what_is_no_layout_of_another_program_stays_what_it_was(tmp_path):
    tone(tmp_path / "a/x.wav")
    (tmp_path / "a/notes.txt").write_text("1 2 3\n")
    (tmp_path / "clips.txt").write_text("a/x.wav\n")
    (tmp_path / "table.csv").write_text("path,start\na/x.wav,1\n")
    for place in ("a", "clips.txt", "table.csv", "."):
        assert layout_of(tmp_path / place) is None
        assert len(open_corpus(tmp_path / place)) == 1


# what people write otherwise


def _named_otherwise(folder, case):
    """Eight clips of a and b, written as few tests above do; returns what data= names."""
    clips = [(i, "ab"[i % 2]) for i in range(8)]
    parts = {"train": clips[:6], "test": clips[6:]}
    sounds = [{"bytes": wav(i), "path": f"{i}.wav"} for i, _ in clips]
    match case:
        case "one folder around the classes":
            for i, label in clips:
                tone(folder / f"audio/{label}/{i}.WAV")
        case "semicolons, other names of columns, Windows paths":
            for i, _ in clips:
                tone(folder / f"audio/{i}.wav")
            lines = [f"audio\\{i}.wav;{label}\r\n" for i, label in clips]
            (folder / "metadata.csv").write_text("File_Name;Category\r\n" + "".join(lines))
        case "metadata.parquet":
            rows = {"file_name": [f"{i}.wav" for i, _ in clips], "label": [c for _, c in clips]}
            for i, _ in clips:
                tone(folder / f"{i}.wav")
            pq.write_table(pa.table(rows), folder / "metadata.parquet")
        case "an AudioFolder's parts below data/":
            for part, own in parts.items():
                for i, _ in own:
                    tone(folder / f"data/{part}/{i}.wav")
                text = "file_name,label\n" + "".join(f"{i}.wav,{c}\n" for i, c in own)
                (folder / f"data/{part}/metadata.csv").write_text(text)
        case "the Hub's own Parquet, in upper case, of large and coded columns":
            for part, own in parts.items():
                (folder / "default" / part).mkdir(parents=True)
                kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
                audio = pa.array([sounds[i] for i, _ in own], kind)
                labels = pa.array([c for _, c in own]).dictionary_encode()
                table = pa.table({"sound": audio, "class": labels})
                pq.write_table(table, folder / "default" / part / "0000.PARQUET")
        case "Parquet with lists of words":
            table = pa.table(
                {"audio": sounds, "labels": [[c] if i else ["a", "b"] for i, c in clips]}
            )
            pq.write_table(table, folder / "x.parquet")
        case "tars in upper case, in a folder for each part":
            for part, own in parts.items():
                files = {f"./x/{i}.WAV": wav(i) for i, _ in own}
                files |= {f"./x/{i}.CLS": c.encode() for i, c in own}
                write_tar(folder / part / "000.TAR", files)
        case "selections in another case, of recordings elsewhere":
            chirps(folder / "Recordings", [f"REC{i}.wav" for i, _ in clips], seconds=1)
            (folder / "Annotations").mkdir()
            for i, label in clips:
                text = raven([(0.0, 0.5, label)]).lower().replace("\n", "\r\n")
                (folder / f"Annotations/rec{i}.Table.1.selections.txt").write_text(text)
        case "spans in a table of other names":
            chirps(folder / "x", [f"{i}.wav" for i, _ in clips], seconds=1)
            lines = [f"x\\{i}.wav;0,1;0,6;{label}\n" for i, label in clips]
            head = "Audio_Path;Start_Time (s);End_Time (s);Species\n"
            (folder / "a.csv").write_text(head + "".join(lines))
        case "AST's lists of another machine, its index by another name":
            for part, own in {"train": clips[:6], "eval": clips[6:]}.items():
                data = [{"wav": f"/data/sls/audio/{i}.wav", "labels": f"/m/{c}"} for i, c in own]
                (folder / f"esc_{part}_data.json").write_text(json.dumps({"data": data}))
                for i, _ in own:
                    tone(folder / f"audio/{i}.wav")
            text = "index,mid,display_name\n0,/m/a,a\n1,/m/b,b\n"
            (folder / "esc_class_labels_indices.csv").write_text(text)


@pytest.mark.parametrize(
    "case",
    [
        "one folder around the classes",
        "semicolons, other names of columns, Windows paths",
        "metadata.parquet",
        "an AudioFolder's parts below data/",
        "the Hub's own Parquet, in upper case, of large and coded columns",
        "Parquet with lists of words",
        "tars in upper case, in a folder for each part",
        "selections in another case, of recordings elsewhere",
        "spans in a table of other names",
        "AST's lists of another machine, its index by another name",
    ],
)
def test_what_people_write_otherwise_is_the_same_set(tmp_path, case):
    folder = tmp_path / "set"
    folder.mkdir()
    _named_otherwise(folder, case)
    found = load_set(folder)
    assert (len(found.clips), found.classes) == (8, ["a", "b"])
    assert found.multi_label == (case == "Parquet with lists of words")
    corpus = open_corpus(folder, spans="spans")
    assert len(corpus) == 8
    assert all(len(audio(corpus, i)) > 300 for i in range(8))


def test_the_table_of_urbansound8k_names_no_spans_and_its_folds_no_classes(tmp_path):
    for i in range(4):
        tone(tmp_path / f"audio/fold{i}/{i}.wav")
    rows = "".join(f"{i}.wav,1,9.5,13.5,{i},dog\n" for i in range(4))
    (tmp_path / "metadata").mkdir()
    table = tmp_path / "metadata/UrbanSound8K.csv"
    table.write_text("slice_file_name,fsID,start,end,fold,class\n" + rows)
    assert len(open_corpus(tmp_path, spans="spans")) == 4
    assert find_sets(tmp_path) == ["metadata/UrbanSound8K.csv"]
    found = read_columns(table)[0]
    assert (found["path"][1], found["fold"]) == ("audio/fold1/1.wav", list("0123"))


def test_a_table_beside_the_folder_of_its_sounds(tmp_path):
    for fold in "123":
        for c in "ab":
            tone(tmp_path / f"audio/{fold}-{c}.wav")
    rows = "".join(f"{fold}-{c}.wav,{fold},{c}\n" for fold in "123" for c in "ab")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/esc50.csv").write_text("filename,fold,category\n" + rows)
    for data in (tmp_path, tmp_path / "meta", tmp_path / "meta/esc50.csv"):
        found = load_set(data)
        assert (found.classes, found.folds) == (["a", "b"], ["1", "2", "3"])
        assert found.clips[0] == "audio/1-a.wav"
    assert len(open_corpus(tmp_path)) == len(open_corpus(tmp_path / "meta/esc50.csv")) == 6


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (("train.tsv", "dev.tsv", "test.tsv"), ["train", "dev", "test"]),
        (("annotations.train.tsv", "annotations.test.tsv"), ["train", "test"]),
        (("set/dev.tsv", "set/eval.tsv"), ["train", "test"]),
        (("fold1_train.tsv", "fold1_evaluate.tsv"), ["train", "test"]),
    ],
)
def test_a_table_for_each_part(tmp_path, files, parts):
    for k, file in enumerate(files):
        rows = []
        for i in range(4):
            tone(tmp_path / f"clips/{k}{i}.wav")
            rows.append(f"{k}{i}.wav\t{'ab'[i % 2]}\n")
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("path\tlabel\n" + "".join(rows))
    tone(tmp_path / "clips/other.wav")
    (tmp_path / "lengths.tsv").write_text("clip\tms\n")
    found = load_set(tmp_path)
    assert found.classes == ["a", "b"]
    columns = read_columns(found.folder)[0]
    del columns["label"]
    said = {path.split("/")[1][0]: part for path, part in zip(*columns.values(), strict=True)}
    assert said == {str(k): part for k, part in enumerate(parts)}
    assert all(clip.startswith("clips/") for clip in found.clips)
    assert len(open_corpus(tmp_path)) == 4 * len(files) + 1  # pretraining hears all of it


def test_a_tsv_whose_quotes_are_letters(tmp_path):
    said = ['""No,"" he said.', '"Open', "a", 'b"', "c", '"Yes"']
    rows = [f"{i}.wav\t{text}\t{'ab'[i % 2]}\n" for i, text in enumerate(said)]
    for i in range(6):
        tone(tmp_path / f"{i}.wav")
    (tmp_path / "t.tsv").write_text("path\tsentence\tlabel\n" + "".join(rows))
    assert read_table(tmp_path / "t.tsv")["sentence"].to_pylist() == said
    # A quote closed rows later would swallow them; a cell with a line break stays one.
    (tmp_path / "u.tsv").write_text('path\tsaid\n0.wav\t"x\n1.wav\ty\n2.wav\tz"\n')
    assert len(read_table(tmp_path / "u.tsv")) == 3
    (tmp_path / "v.tsv").write_text('path\tsaid\n0.wav\t"x\ny"\n')
    assert read_table(tmp_path / "v.tsv")["said"].to_pylist() == ["x\ny"]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "a,0,people whispering,train\n", "looks like a row: write a line with"),
        ("a.csv", "# Segments csv\n# x, y\n1,2\n", "delete the comment lines above the header"),
        ("a.txt", "a.wav\tbus\nb.wav\tpark\n", "has several columns; wanted one path a line"),
        ("a.tsv", "path\ttags\na\tx\nb\tx\ty\n", "fields in line 3.*into one cell, labels with ;"),
    ],
)
def test_a_table_without_a_header_is_told_so(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        open_corpus(tmp_path / name)


def test_a_headerless_table_beside_sounds_is_told_to_get_a_header(tmp_path):
    for i in range(3):
        tone(tmp_path / f"audio/{i}.wav")
    (tmp_path / "meta.csv").write_text("".join(f"audio/{i}.wav\tpark\n" for i in range(3)))
    with pytest.raises(FileNotFoundError, match=r"meta\.csv, with a line such as path,label above"):
        find_sets(tmp_path)


def test_nested_values_of_json_lines_are_named(tmp_path, caplog):
    tone(tmp_path / "0.wav")
    caplog.set_level(logging.INFO)
    row = {"file_name": "0.wav", "label": {"name": "dog"}, "tags": [{"a": 1}], "x": 1}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    open_corpus(tmp_path)
    assert "metadata.jsonl: nested values are left out, of label, tags" in caplog.text


def test_absolute_paths_of_another_machine_by_the_names_of_their_files(tmp_path):
    for i in range(6):
        tone(tmp_path / f"audio/{i:08x}-rec.wav")
    rows = "".join(f"/data/upload/1/{i:08x}-rec.wav,{'ab'[i % 2]}\n" for i in range(6))
    (tmp_path / "export.csv").write_text("audio,label\n" + rows)
    assert names(open_corpus(tmp_path / "export.csv"))[0] == "audio/00000000-rec.wav"
    (tmp_path / "export.csv").write_text("audio,label\n" + rows + "/x/00000000-rec.wav,a\n")
    with pytest.raises(FileNotFoundError, match="7 of 7 files"):
        open_corpus(tmp_path / "export.csv")


def test_tables_that_are_none_of_each_part(tmp_path):
    for i in range(4):
        tone(tmp_path / f"{i}.wav")
    rows = "".join(f"{i}.wav,{'ab'[i % 2]}\n" for i in range(4))
    (tmp_path / "train.csv").write_text("path,label\n" + rows)
    (tmp_path / "test.csv").write_text("path,id\n0.wav,1\n")  # as of a competition
    assert layout_of(tmp_path) is None
    assert find_sets(tmp_path) == ["train.csv"]
