import io
import logging
import multiprocessing
import os
import pickle
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from ssmast.audio.corpus import open_corpus, read_table
from ssmast.audio.read import AudioError, read_audio
from ssmast.audio.tar import TarReader


def wav_bytes(value, num_samples=50):
    """A clip that can be told from the others by its value."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(num_samples, value / 100), 16000, format="WAV")
    return buffer.getvalue()


def value_of(corpus, i):
    return round(100 * float(read_audio(corpus.source(i))[0]))


def names_of(corpus):
    return [corpus.name(i) for i in range(len(corpus))]


def write_tar(path, members, mode="w"):
    """Members: (name, bytes) or a TarInfo of another kind."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


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
    with pytest.raises(FileNotFoundError, match=r"2 of the 3 clips .* the first is 'gone\.wav'"):
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
    assert names_of(open_corpus(tmp_path, column="file")) == ["1.wav"]
    with pytest.raises(ValueError, match=r"has no column 'path'; it has file, label"):
        open_corpus(tmp_path)


def test_clips_are_selected_by_their_row(tmp_path):
    labelled_folder(tmp_path, "path,label,split\n2.wav,a,train\n0.wav,b,test\n1.wav,b,train\n")
    corpus = open_corpus(tmp_path)
    train = corpus.select(split="train")
    assert names_of(train) == ["2.wav", "1.wav"]
    assert value_of(train, 1) == 1
    assert train.table["label"].to_pylist() == ["a", "b"]
    assert train.fingerprint != corpus.fingerprint
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
        (b'a,b\n"1,2\n', "is no valid CSV file"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=reason):
            read_table(path)
    with pytest.raises(FileNotFoundError, match="does not exist; a CSV file"):
        read_table(tmp_path / "none.csv")
    path.write_bytes(b'path,text\na.wav,"two\nlines"\n')
    assert read_table(path).to_pylist() == [{"path": "a.wav", "text": "two\nlines"}]


def test_members_of_a_tar_are_read_by_byte_range(tmp_path):
    members = [(f"d/{n}.wav", wav_bytes(n, 40 + n)) for n in (3, 1, 2)]
    members.insert(1, ("d/notes.txt", b"no sound"))
    path = write_tar(tmp_path / "set.tar", members)
    corpus = open_corpus(path)
    assert names_of(corpus) == ["d/3.wav", "d/1.wav", "d/2.wav"]
    assert corpus.source(0) == members[0][1]
    assert [value_of(corpus, i) for i in range(3)] == [3, 1, 2]
    assert list(corpus.files()) == [path]
    assert sorted(os.listdir(tmp_path)) == ["set.tar"]  # nothing was extracted


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_survive_every_tar_format(tmp_path, form):
    name = "/".join(["a" * 60] * (2 if form == tarfile.USTAR_FORMAT else 5)) + "/1.wav"
    with tarfile.open(tmp_path / "t.tar", "w", format=form) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(wav_bytes(1))
        tar.addfile(info, io.BytesIO(wav_bytes(1)))
        info = tarfile.TarInfo("žluťoučký.wav")
        info.size = len(wav_bytes(2))
        tar.addfile(info, io.BytesIO(wav_bytes(2)))
    corpus = open_corpus(tmp_path / "t.tar")
    assert names_of(corpus) == [name, "žluťoučký.wav"]
    assert value_of(corpus, 1) == 2


def test_a_hostile_tar_gives_its_plain_members_only(tmp_path, caplog):
    path = write_tar(
        tmp_path / "bad.tar",
        [
            ("ok.wav", wav_bytes(1)),
            ("/etc/abs.wav", wav_bytes(2)),
            ("../up.wav", wav_bytes(2)),
            ("a/../../up.wav", wav_bytes(2)),
            special("sym.wav", tarfile.SYMTYPE, "/etc/passwd"),
            special("hard.wav", tarfile.LNKTYPE, "ok.wav"),
            special("null.wav", tarfile.CHRTYPE),
            special("fifo.wav", tarfile.FIFOTYPE),
            special("dir.wav", tarfile.DIRTYPE),
            ("x.pkl", b"\x80\x04."),
            ("._ok.wav", b"resource fork"),
            ("./last.wav", wav_bytes(3)),
        ],
    )
    with caplog.at_level(logging.WARNING):
        corpus = open_corpus(path)
    assert names_of(corpus) == ["ok.wav", "last.wav"]
    assert value_of(corpus, 1) == 3
    assert "left 7 links, devices or unsafe names alone" in caplog.text


def test_a_negative_size_does_not_send_the_reader_in_circles(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, pax in (("1.wav", {}), ("2.wav", {"size": "-1024"})):
            info = tarfile.TarInfo(name)
            info.pax_headers = pax
            info.size = len(wav_bytes(1))
            tar.addfile(info, io.BytesIO(wav_bytes(1)))
    assert names_of(open_corpus(path)) == ["1.wav"]


@pytest.mark.parametrize("cut", [0.97, 0.6, 0.5])
def test_a_truncated_tar_keeps_its_whole_members(tmp_path, caplog, cut):
    path = write_tar(tmp_path / "t.tar", [(f"{n}.wav", wav_bytes(n, 4000)) for n in range(9)])
    data = path.read_bytes()[: 9 * (512 + 8192)]
    length = int(len(data) * cut)
    path.write_bytes(data[:length])
    with caplog.at_level(logging.WARNING):
        corpus = open_corpus(path)
    whole = length // (512 + 8192)
    assert names_of(corpus) == [f"{n}.wav" for n in range(whole)]
    assert value_of(corpus, whole - 1) == whole - 1
    assert f"is damaged, {whole} sound files kept" in caplog.text


def test_a_whole_tar_is_not_called_damaged(tmp_path, caplog):
    for padded in (True, False):
        path = write_tar(tmp_path / "t.tar", [(f"{n}.wav", wav_bytes(n)) for n in range(3)])
        if not padded:  # the two end blocks alone, without padding to 10 kB
            path.write_bytes(path.read_bytes()[: 3 * 1024 + 1024])
        with caplog.at_level(logging.WARNING):
            assert len(open_corpus(path)) == 3
    assert caplog.text == ""


def test_a_damaged_header_in_the_middle_is_noticed(tmp_path, caplog):
    path = write_tar(tmp_path / "t.tar", [(f"{n}.wav", wav_bytes(n)) for n in range(3)])
    data = bytearray(path.read_bytes())
    data[1024:1100] = b"\xaa" * 76
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert len(open_corpus(path)) == 1
    assert "unreadable header" in caplog.text


def test_a_tar_cut_after_indexing_is_a_bad_clip(tmp_path):
    path = write_tar(tmp_path / "t.tar", [(f"{n}.wav", wav_bytes(n, 4000)) for n in range(3)])
    corpus = open_corpus(path)
    with open(path, "r+b") as file:
        file.truncate(10000)
    assert value_of(corpus, 0) == 0
    with pytest.raises(AudioError, match=r"2\.wav is cut off"):
        corpus.source(2)
    corpus = pickle.loads(pickle.dumps(corpus))
    path.unlink()
    with pytest.raises(AudioError, match=r"0\.wav in .*t\.tar cannot be read: No such file"):
        corpus.source(0)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_refused(tmp_path, kind):
    path = write_tar(tmp_path / f"t.tar.{kind}", [("1.wav", wav_bytes(1))], f"w:{kind}")
    with pytest.raises(ValueError, match=r"compressed with .*decompress it once"):
        open_corpus(path)
    path.rename(tmp_path / "t.tar")
    with pytest.raises(ValueError, match="compressed with"):
        open_corpus(tmp_path / "t.tar")


def test_what_is_no_tar_is_refused(tmp_path):
    (tmp_path / "t.tar").write_bytes(b"hello" * 300)
    with pytest.raises(ValueError, match="is not a tar archive"):
        open_corpus(tmp_path / "t.tar")
    write_tar(tmp_path / "t.tar", [("a.txt", b"x")])
    with pytest.raises(ValueError, match="no sound file was found"):
        open_corpus(tmp_path / "t.tar")


def test_a_folder_of_tars_is_one_corpus(tmp_path):
    (tmp_path / "sub").mkdir()
    write_tar(tmp_path / "b.tar", [("1.wav", wav_bytes(1)), ("2.wav", wav_bytes(2))])
    write_tar(tmp_path / "sub" / "a.tar", [("1.wav", wav_bytes(3))])
    (tmp_path / "loose.wav").write_bytes(wav_bytes(4))
    corpus = open_corpus(tmp_path)
    assert names_of(corpus) == ["loose.wav", "b.tar/1.wav", "b.tar/2.wav", "sub/a.tar/1.wav"]
    assert [value_of(corpus, i) for i in range(4)] == [4, 1, 2, 3]


def test_a_table_finds_its_clips_in_audio_tar(tmp_path):
    write_tar(tmp_path / "audio.tar", [("./x/1.wav", wav_bytes(1)), ("x/2.wav", wav_bytes(2))])
    (tmp_path / "metadata.csv").write_text("path,label\nx/2.wav,b\nx/1.wav,a\n")
    corpus = open_corpus(tmp_path)
    assert names_of(corpus) == ["x/2.wav", "x/1.wav"]
    assert [value_of(corpus, i) for i in range(2)] == [2, 1]
    (tmp_path / "metadata.csv").write_text("path,label\nx/2.wav,b\nx/7.wav,a\n")
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 clips .* not in audio\.tar.*'x/7"):
        open_corpus(tmp_path)


def test_a_shard_column_names_the_tar(tmp_path):
    write_tar(tmp_path / "s0.tar", [("1.wav", wav_bytes(1)), ("2.wav", wav_bytes(2))])
    write_tar(tmp_path / "s1.tar", [("1.wav", wav_bytes(3))])
    table = tmp_path / "metadata.csv"
    table.write_text("shard,path\ns1.tar,1.wav\ns0.tar,2.wav\ns0.tar,1.wav\n")
    corpus = open_corpus(tmp_path)
    assert names_of(corpus) == ["s1.tar/1.wav", "s0.tar/2.wav", "s0.tar/1.wav"]
    assert [value_of(corpus, i) for i in range(3)] == [3, 2, 1]
    table.write_text("shard,path\n../s1.tar,1.wav\n")
    with pytest.raises(ValueError, match="leads out of its folder"):
        open_corpus(tmp_path)
    table.write_text("shard,path\ns9.tar,1.wav\n")
    with pytest.raises(FileNotFoundError, match=r"s9\.tar does not exist"):
        open_corpus(tmp_path)


def test_the_fingerprint_tells_names_and_sizes_not_places(tmp_path):
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
        prints.append(open_corpus(tmp_path / name).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
    assert len(prints[0]) == 64


def test_the_stamp_tells_samples_that_change_under_the_same_name_and_size(tmp_path):
    for name in ("clean", "noisy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.wav").write_bytes(wav_bytes(1 if name == "clean" else 2, 40))
    write_tar(tmp_path / "noisy.tar", [("1.wav", wav_bytes(2, 40))])
    stamps = [open_corpus(tmp_path / name).stamp for name in ("clean", "noisy", "noisy.tar")]
    assert (
        open_corpus(tmp_path / "clean").fingerprint == open_corpus(tmp_path / "noisy").fingerprint
    )
    assert open_corpus(tmp_path / "clean").stamp == stamps[0]
    assert open_corpus(tmp_path / "clean").take(np.array([0])).stamp == stamps[0]
    file = tmp_path / "clean" / "1.wav"
    written = file.stat()
    file.write_bytes(wav_bytes(2, 40))
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns + 1000))
    stamps.append(open_corpus(tmp_path / "clean").stamp)
    assert len(set(stamps)) == 4
    corpus = open_corpus(tmp_path / "clean")
    file.unlink()  # gone since it was opened: rejected where it is read
    assert corpus.stamp not in stamps


def test_moved_clips_keep_name_table_and_fingerprint(tmp_path):
    labelled_folder(tmp_path, "path,label\n2.wav,a\n0.wav,b\n")
    corpus = open_corpus(tmp_path)
    copy = write_tar(tmp_path / "copy.tar", [("a.wav", wav_bytes(7)), ("b.wav", wav_bytes(8))])
    sizes = np.full(2, len(wav_bytes(7)))
    moved = corpus.moved_to(copy, offsets=np.array([512, 512 + 1024]), sizes=sizes)
    assert names_of(moved) == names_of(corpus)
    assert [value_of(moved, i) for i in range(2)] == [7, 8]
    assert moved.fingerprint == corpus.fingerprint
    assert moved.table is corpus.table
    assert list(moved.files()) == [copy]
    assert list(corpus.files()) == [tmp_path / "2.wav", tmp_path / "0.wav"]
    with pytest.raises(ValueError, match="must hold 2 clips, got 1"):
        corpus.moved_to(copy, offsets=np.array([512]), sizes=sizes[:1])


def _value_in_process(corpus, i, results):
    results.put(value_of(corpus, i))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_other_processes_read_too(tmp_path, method):
    corpus = open_corpus(
        write_tar(tmp_path / "t.tar", [(f"{n}.wav", wav_bytes(n)) for n in range(5)])
    )
    assert value_of(corpus, 0) == 0  # the parent's handle is open now
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=_value_in_process, args=(corpus, 3, results))
    process.start()
    assert results.get(timeout=60) == 3
    process.join()
    assert value_of(corpus, 4) == 4


def test_more_tars_than_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("ssmast.audio.tar._MAX_OPEN", 3)
    for n in range(8):
        write_tar(tmp_path / f"{n}.tar", [("1.wav", wav_bytes(n))])
    corpus = open_corpus(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert [value_of(corpus, i) for i in range(8)] == list(range(8))
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_a_big_corpus_is_small(tmp_path):
    path = tmp_path / "clips.tar"
    info = tarfile.TarInfo("0000000.wav")
    with open(path, "wb") as file:
        for n in range(20000):
            info.name = f"{n:07d}.wav"
            file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(1024))
    corpus = open_corpus(path)
    assert len(corpus) == 20000
    assert len(pickle.dumps(corpus)) < 45 * 20000


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


def test_a_tar_stays_open_while_another_thread_puts_its_own_handle_in_place(tmp_path):
    """Two threads that open one tar at once: the handle that loses must last until it has read."""

    class Overwritten(dict):
        def __setitem__(self, key, handle):
            pass  # as if another thread's handle stood there at once

    file = tmp_path / "a.tar"
    file.write_bytes(bytes(range(256)))
    reader = TarReader([file])
    reader._handles = Overwritten()
    assert reader.read(0, 10, 5, "clip") == bytes(range(10, 15))


def test_many_threads_open_one_tar_at_once(tmp_path):
    file = tmp_path / "a.tar"
    file.write_bytes(bytes(range(256)) * 40)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(200):
            reader = TarReader([file])
            found = pool.map(lambda at, own=reader: own.read(0, at, 3, "clip"), range(8))
            assert list(found) == [bytes(range(at, at + 3)) for at in range(8)]
