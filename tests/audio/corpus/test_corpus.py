import json
import logging
import os
import sys

import numpy as np
import pytest

from ssmast.audio.corpus.open import open_corpus, open_words, read_table
from ssmast.audio.read import AudioError, read_audio
from ssmast.retrieval.embed_files import EmbedConfig
from ssmast.settings import parse
from tests.audio.files import names_of, value_of, wav_bytes, write_tar


def test_a_folder_gives_every_sound_file_below_it_in_order(tmp_path):
    for number, name in enumerate(["b/2.wav", "a.FLAC.wav", "b/deep/er/3.WAV", "c d.wav"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav_bytes(number))
    for name in ["notes.txt", "b/x.png", ".hidden.wav", "b/._2.wav", ".git/4.wav"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav_bytes(9))
    corpus = open_corpus(tmp_path)
    assert names_of(corpus) == ["a.FLAC.wav", "b/2.wav", "b/deep/er/3.WAV", "c d.wav"]
    assert [value_of(corpus, i) for i in range(4)] == [1, 0, 2, 3]
    assert corpus.table is None
    assert corpus.source(1) == tmp_path / "b" / "2.wav"


def test_links_are_followed_and_loops_end(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1.wav").write_bytes(wav_bytes(1))
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "2.wav").write_bytes(wav_bytes(2))
    (root / "sub" / "up").symlink_to(root)
    (root / "sub" / "again").symlink_to(root / "sub")
    (root / "linked").symlink_to(outside)
    (root / "3.wav").symlink_to(outside / "1.wav")
    (root / "self.wav").symlink_to(root / "self.wav")
    (root / "gone.wav").symlink_to(root / "nowhere")
    assert names_of(open_corpus(root)) == ["2.wav", "3.wav", "linked/1.wav"]


def test_a_name_that_is_not_utf8_is_found_and_read(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.wav"), "wb") as file:
        file.write(wav_bytes(5))
    corpus = open_corpus(tmp_path)
    assert names_of(corpus) == [r"\xff.wav"]
    assert value_of(corpus, 0) == 5


def test_a_foreign_format_is_a_clip_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    (tmp_path / "1.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(99))
    (tmp_path / "3.wav").write_bytes(wav_bytes(3))
    corpus = open_corpus(tmp_path)
    assert names_of(corpus) == ["1.m4a", "3.wav"]
    with pytest.raises(AudioError, match=r"m4a is MPEG-4.*pip install 'ssmast\[codecs\]'.*FLAC"):
        read_audio(corpus.source(0))


def test_what_is_not_there_or_empty_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; wanted a folder"):
        open_corpus(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no sound file was found in .*known are .*\.flac"):
        open_corpus(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match="is no corpus: wanted a folder"):
        open_corpus(tmp_path / "a.json")
    (tmp_path / "a.wav").write_bytes(wav_bytes(0))
    corpus = open_corpus(tmp_path)
    with pytest.raises(IndexError, match=r"clip must lie in \[0, 1\), got 1"):
        corpus.source(1)


def test_a_list_of_paths_keeps_its_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(["b.wav", "sub/a#1.wav"]):
        (tmp_path / name).write_bytes(wav_bytes(number))
    absolute = tmp_path / "b.wav"
    path = tmp_path / "clips.txt"
    path.write_text(f"\ufeffsub/a#1.wav\r\n\r\n{absolute}\n", encoding="utf-8")
    corpus = open_corpus(path)
    assert names_of(corpus) == ["sub/a#1.wav", str(absolute)]
    assert [value_of(corpus, i) for i in range(2)] == [1, 0]
    path.write_text("")
    with pytest.raises(ValueError, match="names no clip"):
        open_corpus(path)
    path.write_text("b.wav\ngone.wav\nlost.wav\n")
    with pytest.raises(FileNotFoundError, match=r"2 of 3 files .* the first is 'gone\.wav'"):
        open_corpus(path)


def labelled_folder(folder, text, **encoding):
    for number in range(3):
        (folder / f"{number}.wav").write_bytes(wav_bytes(number))
    (folder / "metadata.csv").write_text(text, **encoding)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_gives_its_clips_in_its_order(tmp_path, mark, delimiter):
    lines = ["path,label,split", "2.wav,cat,train", "", "0.wav,dog,test", '1.wav,"c""t",train']
    labelled_folder(tmp_path, mark + "\n".join(lines).replace(",", delimiter), encoding="utf-8")
    for source in (tmp_path, tmp_path / "metadata.csv"):
        corpus = open_corpus(source)
        assert names_of(corpus) == ["2.wav", "0.wav", "1.wav"]
        assert [value_of(corpus, i) for i in range(3)] == [2, 0, 1]
        assert corpus.table["label"].to_pylist() == ["cat", "dog", 'c"t']
        assert corpus.table.column_names == ["path", "label", "split"]


def test_the_column_of_paths_can_be_chosen(tmp_path):
    labelled_folder(tmp_path, "file,label\n1.wav,x\n")
    assert names_of(open_corpus(tmp_path)) == ["1.wav"]
    labelled_folder(tmp_path, "clip,label\n1.wav,x\n")
    assert names_of(open_corpus(tmp_path, column="clip")) == ["1.wav"]
    with pytest.raises(ValueError, match=r"has no column 'path'; it has clip, label"):
        open_corpus(tmp_path)


def test_clips_are_selected_by_their_row(tmp_path):
    labelled_folder(tmp_path, "path,label,split\n2.wav,a,train\n0.wav,b,test\n1.wav,b,train\n")
    corpus = open_corpus(tmp_path)
    train = corpus.select(split="train")
    assert names_of(train) == ["2.wav", "1.wav"]
    assert value_of(train, 1) == 1
    assert train.table["label"].to_pylist() == ["a", "b"]
    assert train.listing_hash != corpus.listing_hash
    assert names_of(corpus.take(np.array([2, 0]))) == ["1.wav", "2.wav"]
    assert names_of(corpus.select(split="train", label="b")) == ["1.wav"]
    with pytest.raises(ValueError, match=r"no clip in .* has split=valid"):
        corpus.select(split="valid")
    with pytest.raises(ValueError, match="has no column 'fold'"):
        corpus.select(fold="1")
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"no metadata\.csv"):
        open_corpus(tmp_path).select(split="train")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.wav", "leads out of its folder"),
        ("a/../../secret.wav", "leads out of its folder"),
        ("pipe:cat 0.wav", "no command and no chain"),
        ("PIPE:cat 0.wav", "no command and no chain"),
        ("simplecache::https://example.com/0.wav", "no command and no chain"),
        ("reference://x/0.wav", "no command and no chain"),
        ("", "a row without a path"),
    ],
)
def test_a_table_cannot_reach_outside(tmp_path, name, reason):
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "secret.wav").write_bytes(wav_bytes(0))
    labelled_folder(folder, f'path,label\n0.wav,x\n"{name}",x\n')
    with pytest.raises(ValueError, match=reason):
        open_corpus(folder)


def test_a_broken_table_says_what_is_wrong(tmp_path):
    path = tmp_path / "t.csv"
    for data, reason in [
        (b"", "is empty"),
        (b"a,b\n1,2\n1,2,3\n", "has 3 fields in line 3; its header has 2"),
        (b"a,b\n1\n", "has 1 fields in line 2"),
        (b"a,a\n1,2\n", "names a column twice in its header: a"),
        (b"a,b\n\xff,2\n", "is not UTF-8 text"),
        ("a,b\n1,2\n".encode("utf-16-le"), "holds zero bytes, so it is no text"),
        (b"PK\3\4\0\0", "holds zero bytes, so it is no text"),
        (b'a,b\n"1,2\n', "is no valid CSV file"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=reason):
            read_table(path)
    with pytest.raises(FileNotFoundError, match="does not exist; a CSV file"):
        read_table(tmp_path / "none.csv")
    path.write_bytes(b'path,text\na.wav,"two\nlines"\n')
    assert read_table(path).to_pylist() == [{"path": "a.wav", "text": "two\nlines"}]


def test_the_listing_hash_tells_names_and_sizes_not_places(tmp_path):
    prints = []
    for name, members in {
        "one": [("1.wav", 40), ("2.wav", 50)],
        "moved": [("1.wav", 40), ("2.wav", 50)],
        "renamed": [("1.wav", 40), ("3.wav", 50)],
        "resized": [("1.wav", 40), ("2.wav", 52)],
        "longer": [("1.wav", 40), ("2.wav", 50), ("3.wav", 50)],
    }.items():
        (tmp_path / name).mkdir()
        for member, length in members:
            (tmp_path / name / member).write_bytes(wav_bytes(1, length))
        prints.append(open_corpus(tmp_path / name).listing_hash)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
    assert len(prints[0]) == 64


def test_the_files_hash_tells_samples_that_change_under_the_same_name_and_size(tmp_path):
    for name in ("clean", "noisy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.wav").write_bytes(wav_bytes(1 if name == "clean" else 2, 40))
    write_tar(tmp_path / "noisy.tar", [("1.wav", wav_bytes(2, 40))])
    hashes = [open_corpus(tmp_path / name).files_hash for name in ("clean", "noisy", "noisy.tar")]
    assert (
        open_corpus(tmp_path / "clean").listing_hash == open_corpus(tmp_path / "noisy").listing_hash
    )
    assert open_corpus(tmp_path / "clean").files_hash == hashes[0]
    assert open_corpus(tmp_path / "clean").take(np.array([0])).files_hash == hashes[0]
    file = tmp_path / "clean" / "1.wav"
    written = file.stat()
    file.write_bytes(wav_bytes(2, 40))
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns + 1000))
    hashes.append(open_corpus(tmp_path / "clean").files_hash)
    assert len(set(hashes)) == 4
    written = file.stat()
    copied = open_corpus(tmp_path / "clean").copied_hash
    file.write_bytes(wav_bytes(3, 40))  # and the time set back, as `touch -r` and `cp -p` do
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert open_corpus(tmp_path / "clean").files_hash not in hashes
    assert open_corpus(tmp_path / "clean").copied_hash == copied  # as a copy elsewhere would
    corpus = open_corpus(tmp_path / "clean")
    file.unlink()  # gone since it was opened: rejected where it is read
    assert corpus.files_hash not in hashes


def test_moved_clips_keep_name_table_and_hash(tmp_path):
    labelled_folder(tmp_path, "path,label\n2.wav,a\n0.wav,b\n")
    corpus = open_corpus(tmp_path)
    copy = write_tar(tmp_path / "copy.tar", [("a.wav", wav_bytes(7)), ("b.wav", wav_bytes(8))])
    sizes = np.full(2, len(wav_bytes(7)))
    moved = corpus.moved_to(copy, offsets=np.array([512, 512 + 1024]), sizes=sizes)
    assert names_of(moved) == names_of(corpus)
    assert [value_of(moved, i) for i in range(2)] == [7, 8]
    assert moved.listing_hash == corpus.listing_hash
    assert moved.table is corpus.table
    assert list(moved.files()) == [copy]
    assert list(corpus.files()) == [tmp_path / "2.wav", tmp_path / "0.wav"]
    with pytest.raises(ValueError, match="must hold 2 clips, got 1"):
        corpus.moved_to(copy, offsets=np.array([512]), sizes=sizes[:1])


@pytest.mark.data
def test_real_sets_open(shared_data):
    sizes = {"fsdd": 3000, "esc10": 398, "emodb_4": 339, "instruments": 1097, "pool": 6008}
    for name, size in sizes.items():
        corpus = open_corpus(shared_data / name)
        assert len(corpus) == corpus.table.num_rows == size
        for i in (0, size // 2, size - 1):
            seconds = float(corpus.table["duration_s"][i].as_py())
            assert corpus.name(i).endswith(corpus.table["path"][i].as_py())
            assert len(read_audio(corpus.source(i))) == pytest.approx(16000 * seconds, abs=20)


WRITTEN = {
    "Windows": r"dog\1.wav",
    "Windows, from the root": r"C:\Users\me\My set\dog\1.wav",
    "another machine": "/content/drive/set/dog/1.wav",
    "the folder's own name": "set/dog/1.wav",
    "percent": "dog/1%2Ewav",
    "Windows, escaped": r"dog\\1.wav",
    "HTML": "dog&#47;1.wav",
    "quotes": "'dog/1.wav'",
    "spaces": " dog/1.wav ",
    "another case": "Dog/1.WAV",
    "no ending": "dog/1",
    "a folder less": "1.wav",
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_path_written_elsewhere_finds_the_one_file_that_it_can_mean(tmp_path, kind, caplog):
    folder = tmp_path / "set"
    for number, name in enumerate(["dog/1.wav", "cat/2.wav", "cat/3.wav"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(wav_bytes(number))
    (folder / "metadata.csv").write_text(f'path,label\n"{WRITTEN[kind]}",x\ncat/2.wav,y\n')
    corpus = open_corpus(folder)
    assert names_of(corpus) == ["dog/1.wav", "cat/2.wav"]
    assert value_of(corpus, 0) == 0
    assert "1 of 2 paths are written otherwise than their files are called" in caplog.text
    assert corpus.table["path"].to_pylist()[0] == WRITTEN[kind]
    write_tar(folder / "audio.tar", [("dog/1.wav", wav_bytes(7)), ("cat/2.wav", wav_bytes(1))])
    assert value_of(open_corpus(folder), 0) == 7


def test_a_path_that_can_mean_several_files_or_none_is_refused(tmp_path, caplog):
    for number, name in enumerate(["dog/1.wav", "cat/1.wav", "Ä.wav"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(wav_bytes(number))
    for path in ("/x/1.wav", "bird/1.wav", "4.wav", r"..\1.wav"):
        (tmp_path / "metadata.csv").write_text(f"path\nÄ.wav\n{path}\n")
        with pytest.raises(FileNotFoundError, match=r"1 of 2 files .* 3 files are there, such as "):
            open_corpus(tmp_path)
    (tmp_path / "metadata.csv").write_text("path\n/x/dog/1.wav\n/y/dog/1.wav\n")
    with pytest.raises(ValueError, match=r"'/x/dog/1.wav' and '/y/dog/1.wav' can only mean 'dog/1"):
        open_corpus(tmp_path)
    (tmp_path / "metadata.csv").write_text('path\nA\u0308.wav\n"b#t=0,1"\n')
    (tmp_path / "B.wav").write_bytes(wav_bytes(3))
    assert names_of(open_corpus(tmp_path)) == ["Ä.wav", "B.wav#t=0,1"]
    assert "2 of 2 paths" in caplog.text


@pytest.mark.parametrize("name", ["metadata.csv", "Metadata.CSV", "metadata.tsv"])
@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nPath;Label\n1.wav;x\n;\n",
        "File Name,label,,\n1.wav,x,,\n,,,\n",
        "\ufeff,file_name,label\n0,1.wav,x\n",
        "FILEPATH\tlabel\n1.wav\tx\n",
        " \n\nsep=|\npath|label\n1.wav|x\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_what_spreadsheets_do_to_a_table_is_read(tmp_path, name, text, encoding):
    (tmp_path / "1.wav").write_bytes(wav_bytes(1))
    (tmp_path / "2.wav").write_bytes(wav_bytes(2))
    (tmp_path / name).write_text(text.removeprefix("\ufeff" * (encoding == "utf-16")), encoding)
    corpus = open_corpus(tmp_path)
    assert names_of(corpus) == ["1.wav"]
    assert corpus.table[corpus.table.column_names[-1]].to_pylist() == ["x"]


ODD = ["[1997] Album", "[brackets]", "year=2024/month=05", "a{000..002}.tar", "100 %s, ~1", "~me",
       "x.yaml", "album.wav", "pipe: dreams", "a#t=0,1", "b: c"]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_exists_under_exactly_that_name_is_taken(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "1, [2]=~.wav").write_bytes(wav_bytes(3))
    corpus = open_corpus(name)
    assert names_of(corpus) == ["1, [2]=~.wav"]
    assert value_of(corpus, 0) == 3
    config = parse(EmbedConfig, [name, "encoder=e"], command="", positional="data", several=True)
    assert (config.data, config.encoder) == (name, "e")
    assert names_of(open_words(name)) == ["1, [2]=~.wav"]
    (tmp_path / "mix.yaml").write_text(json.dumps([{"path": name}]))
    assert value_of(open_corpus("mix.yaml"), 0) == 3
    assert value_of(open_corpus(json.dumps([{"path": name, "weight": 2}])), 0) == 3
    (tmp_path / "list.txt").write_text(f"{name}/1, [2]=~.wav\n")
    if not name.startswith("pipe:"):  # in a list, which may be another's, it stays a command
        assert value_of(open_corpus("list.txt"), 0) == 3


def test_the_home_folder_is_understood_wherever_a_path_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    sound = tmp_path / "home/sounds/1.wav"
    sound.parent.mkdir(parents=True)
    sound.write_bytes(wav_bytes(4))
    (tmp_path / "list.txt").write_text("~/sounds/1.wav\n")
    (tmp_path / "table.csv").write_text("path\n~/sounds/1.wav\n")
    (tmp_path / "mix.yaml").write_text("- ~/sounds\n- {path: ~/sounds, weight: 2}\n")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/metadata.csv").write_text("path\n1.wav\n")
    task = {"format": "ssmast task 1", "audio": "~/sounds"}
    (tmp_path / "set/task.json").write_text(json.dumps(task))
    for data in ("~/sounds", "list.txt", "table.csv", "mix.yaml", "set"):
        assert value_of(open_corpus(data), 0) == 4
    words = ["data=~/sounds", "encoder=~/e", "out=~/e.npz"]
    config = parse(EmbedConfig, words, command="ssmast embed")
    assert config.data == f"{tmp_path}/home/sounds"
    assert (config.encoder, config.out) == (f"{tmp_path}/home/e", f"{tmp_path}/home/e.npz")
    assert value_of(open_words("\n".join(["~/sounds/1.wav"] * 2)), 1) == 4
    (tmp_path / "~").mkdir()  # called so exactly
    assert parse(EmbedConfig, ["data=~", "encoder=e"], command="ssmast embed").data == "~"


def test_what_a_folder_holds_beside_sound_is_counted_and_named_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "b").mkdir()
    for number, name in enumerate(["1.wav", "b/2.wav", "b/._2.wav", ".hidden.wav"]):
        (tmp_path / name).write_bytes(wav_bytes(number))
    for name in ("notes.txt", "b/more.TXT", "b/picture.jpg", "README"):
        (tmp_path / name).write_text("x")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "b/again").symlink_to(tmp_path)
    for _ in range(3):
        assert names_of(open_corpus(tmp_path)) == ["1.wav", "b/2.wav"]
    said = "8 files are not used: 2 .txt, 2 hidden, 1 without an ending, 1 .jpg, 1 links to nothing"
    said += ", 1 links to folders that are here already"
    assert caplog.text.count("files are not used") == 1
    assert f"{tmp_path}: {said}; the first is 'README'" in caplog.text
    (tmp_path / "metadata.csv").write_text("path\nb/2.wav\n")
    caplog.clear()
    open_corpus(tmp_path)
    assert "9 files are not used: 2 .txt, 2 hidden, 1 .wav, " in caplog.text
    write_tar(tmp_path / "b/c.tar", [("a.wav", wav_bytes(0)), ("a.json", b"{}")])
    caplog.clear()
    open_corpus(tmp_path / "b")
    assert "b/c.tar: 1 members are not used as sound" in caplog.text


def test_a_pipe_is_no_link_and_a_file_named_by_its_whole_path_is_used(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    files = [tmp_path / "set" / f"{i}.wav" for i in range(2)]
    for number, file in enumerate(files):
        file.write_bytes(wav_bytes(number))
    table = "".join(f"{folder}/{i}.wav\n" for i, folder in enumerate(("set", "link")))
    text = "path\n" + "".join(f"{tmp_path / line}\n" for line in table.split())
    (tmp_path / "set" / "metadata.csv").write_text(text)
    assert len(open_corpus(tmp_path / "set")) == 2
    assert "not used" not in caplog.text
    os.mkfifo(tmp_path / "set" / "pipe.wav")
    (tmp_path / "set" / "metadata.csv").unlink()
    open_corpus(tmp_path / "set")
    assert "1 files are not used: 1 pipes or devices; the first is 'pipe.wav'" in caplog.text


@pytest.mark.parametrize("kind", ["files", "tar"])
def test_clips_with_the_same_bytes_are_found_and_no_others(tmp_path, kind):
    same, other = wav_bytes(1, 40), wav_bytes(2, 40)
    start = bytes([*same[:-2], 1, 1])  # of equal size, with an end of its own
    members = [("a.wav", same), ("b.wav", other), ("c.wav", same), ("d.wav", start)]
    if kind == "tar":
        write_tar(tmp_path / "x.tar", members)
    for name, content in members if kind == "files" else ():
        (tmp_path / name).write_bytes(content)
    corpus = open_corpus(tmp_path)
    assert corpus.same_bytes(range(4)) == [[0, 2]]
    assert corpus.same_bytes([1, 2, 3]) == []


def test_excerpts_of_a_file_are_the_same_only_over_the_same_seconds(tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(wav_bytes(1, 40))
    names = ["a.wav#t=0,1", "a.wav#t=1,2", "b.wav#t=1,2"]
    (tmp_path / "metadata.csv").write_text("path\n" + "".join(f'"{n}"\n' for n in names))
    assert open_corpus(tmp_path).same_bytes(range(3)) == [[1, 2]]


def test_nothing_is_said_where_all_is_used(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for number in range(2):
        (tmp_path / f"{number}.wav").write_bytes(wav_bytes(number))
    open_corpus(tmp_path)
    (tmp_path / "metadata.csv").write_text('path\n./0.wav\n"1.wav#t=0,1"\n')
    open_corpus(tmp_path)
    assert caplog.text == ""
