"""Clips in tars: read by byte range, hostile members left out, damage noticed."""

import io
import logging
import multiprocessing
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from ssmast.audio.corpus.open import open_corpus
from ssmast.audio.corpus.shards import TarReader
from ssmast.audio.read import AudioError
from tests.audio.files import names_of, special, value_of, wav_bytes, write_tar


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
    assert "ignored 7 links, devices or unsafe names" in caplog.text


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
    with pytest.raises(FileNotFoundError, match=r"1 of 2 files .* not found in audio\.tar.*'x/7"):
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
    monkeypatch.setattr("ssmast.audio.corpus.shards._MAX_OPEN", 3)
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
