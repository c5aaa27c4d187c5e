import logging
import os
import pickle
import time

import fsspec
import numpy as np
import pytest
import soundfile
from torch.utils.data import DataLoader

from ssmast.audio import SegmentDataset, collate_segments, open_corpus, read_audio
from ssmast.audio.corpus.remote import RemoteError, RemoteFile, check_url, is_url, read_range
from ssmast.audio.read import AudioError
from ssmast.prepare import prepare_corpus
from tests.audio.files import wav_bytes, write_tar
from tests.audio.web import served

RATE = 16000


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch, tmp_path):
    monkeypatch.setattr("ssmast.audio.corpus.remote._WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def memory():
    """The in-memory file system, empty before and after."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def folder(tmp_path):
    """Loose files, a list, a table, two tars and a prepared corpus of eight clips."""
    root = tmp_path / "served"
    (root / "loose" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        name = f"deep/{number}.flac" if number % 2 else f"{number}.wav"
        soundfile.write(root / "loose" / name, 0.1 * rng.standard_normal(9000), RATE)
    files = sorted((root / "loose").rglob("*.*"))
    (root / "list.txt").write_text("".join(f"{f.relative_to(root)}\n" for f in files))
    (root / "table.csv").write_text(
        "path,label\n" + "".join(f"{f.relative_to(root)},x\n" for f in files)
    )
    (root / "tars").mkdir()
    for shard in range(2):
        members = [(f.name, f.read_bytes()) for f in files[4 * shard : 4 * shard + 4]]
        write_tar(root / "tars" / f"s-{shard:03d}.tar", members)
    prepare_corpus(open_corpus(root / "loose"), root / "prepared", workers=1, near_duplicates=0)
    return root


def samples_of(corpus):
    """What each clip decodes to, in an order of its own."""
    found = [read_audio(corpus.source(i), name=corpus.name(i)) for i in range(len(corpus))]
    return sorted(np.round(audio[:100] * 2**15).astype(int).tolist() for audio in found)


KINDS = ["loose", "list.txt", "table.csv", "tars", "tars/s-{000..001}.tar", "prepared"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_web_server_gives_what_the_folder_gives(folder, kind):
    here = open_corpus(folder / kind)
    assert len(here) == 8
    with served(folder) as (url, _):
        there = open_corpus(f"{url}/{kind}")
        assert len(there) == 8
        assert samples_of(there) == samples_of(here)
        assert (there.table is None) == (here.table is None)
        dataset = SegmentDataset(there, num_samples=4000, sample_rate=RATE, seed=0)
        near = SegmentDataset(here, num_samples=4000, sample_rate=RATE, seed=0)
        if kind != "loose":  # a listing may come in another order
            np.testing.assert_array_equal(dataset[3]["waveform"], near[3]["waveform"])


@pytest.mark.parametrize("kind", KINDS)
def test_any_file_system_of_fsspec_gives_what_the_folder_gives(folder, kind, memory):
    for path in filter(lambda path: path.is_file(), folder.rglob("*")):
        memory.pipe(f"/corpus/{path.relative_to(folder)}", path.read_bytes())
    there = open_corpus(f"memory://corpus/{kind}")
    assert samples_of(there) == samples_of(open_corpus(folder / kind))
    assert samples_of(pickle.loads(pickle.dumps(there))) == samples_of(there)


def test_a_clip_of_a_tar_costs_one_request_for_its_bytes(folder):
    with served(folder) as (url, state):
        corpus = open_corpus(f"{url}/prepared")
        state["asked"].clear()
        data = corpus.source(5)
        (asked,) = [entry for entry in state["asked"] if entry[0] == "GET"]
    assert asked[1] == "/prepared/shard-000000.tar"
    first, last = (int(part) for part in asked[2].removeprefix("bytes=").split("-"))
    assert last - first + 1 == len(data) == corpus.entries[5].size


def test_the_index_of_a_remote_corpus_is_fetched_once(folder):
    with served(folder) as (url, state):
        for _ in range(2):
            open_corpus(f"{url}/prepared")
        asked = [path for method, path, _ in state["asked"] if method == "GET"]
        assert asked.count("/prepared/manifest.index") == 1
        (folder / "prepared" / "corpus.json").write_text('{"index_sha256": "00"}')
        with pytest.raises(ValueError, match="does not belong to its corpus"):
            open_corpus(f"{url}/prepared")


def test_workers_read_from_the_web(folder):
    with served(folder) as (url, _):
        corpus = open_corpus(f"{url}/tars")
        corpus.source(0)  # a connection is open in this process already
        dataset = SegmentDataset(corpus, num_samples=4000, sample_rate=RATE, seed=0)
        loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=collate_segments)
        found = [int(clip) for batch in loader for clip in batch.clip]
    assert sorted(found) == list(range(8))


def test_faults_are_tried_again(folder, caplog):
    with served(folder) as (url, state), caplog.at_level(logging.WARNING):
        corpus = open_corpus(f"{url}/tars")
        state["faults"] = 3
        assert corpus.source(0) == open_corpus(folder / "tars").source(0)
        state["faults"] = 2
        assert len(open_corpus(f"{url}/prepared")) == 8
    assert "trying again" in caplog.text


def test_a_server_that_is_gone_ends_in_one_sentence(folder):
    with served(folder) as (url, state):
        corpus = open_corpus(f"{url}/tars")
        state["faults"] = 10**6
        with pytest.raises(
            RemoteError, match=r"could not be read in 4 attempts \(.*check the netw"
        ):
            corpus.source(0)
        with pytest.raises(RemoteError, match="4 attempts"):
            open_corpus(f"{url}/loose")
        state["faults"] = 0
        (folder / "tars" / "s-000.tar").unlink()
        with pytest.raises(AudioError, match=r"s-000\.tar does not exist"):
            corpus.source(0)
        with pytest.raises(FileNotFoundError, match="does not exist"):
            open_corpus(f"{url}/nothing.tar")
    with pytest.raises(RemoteError, match="4 attempts"):
        corpus.source(1)


def test_a_server_that_says_nothing_is_given_up(folder, monkeypatch):
    monkeypatch.setattr("ssmast.audio.corpus.remote._SILENCE", 0.2)
    with served(folder) as (url, state):
        corpus = open_corpus(f"{url}/tars")
        state["silent"].clear()
        started = time.monotonic()
        with pytest.raises(RemoteError, match=r"could not be read in 4 attempts \(.*imeout"):
            corpus.source(0)
        assert time.monotonic() - started < 10
        state["silent"].set()
        assert len(corpus.source(0)) > 0


def test_a_server_without_byte_ranges_is_refused(folder):
    with served(folder) as (url, state):
        corpus = open_corpus(f"{url}/tars")
        state["ranges"] = False
        with pytest.raises(RemoteError, match="gives no byte ranges"):
            corpus.source(0)


def test_a_remote_file_seeks_and_reads_like_one_here(memory):
    data = os.urandom(700_000)
    memory.pipe("/x.bin", data)
    with RemoteFile("memory://x.bin") as file:
        assert file.read(10) == data[:10]
        assert file.seek(-5, os.SEEK_END) == len(data) - 5
        assert file.read(100) == data[-5:]
        file.seek(300_000)
        assert file.read(300_000) == data[300_000:600_000]
        assert file.seek(1, os.SEEK_CUR) == 600_001
        assert file.readall() == data[600_001:]
    assert read_range("memory://x.bin", 5, 7) == data[5:12]


@pytest.mark.parametrize(
    "url",
    [
        "pipe:cat x.wav",
        "pipe://cat x.wav",
        "simplecache::http://x/a.tar",
        "zip://a.wav::http://x/b.zip",
        "reference://x.json",
        "ssh+git://x",
        "shell://rm",
        "jlab://x/y",
    ],
)
def test_only_urls_that_are_plain_reads_are_opened(url):
    with pytest.raises(ValueError, match=r"cannot be read; wanted a path or a URL with one of"):
        open_corpus(url)
    with pytest.raises(ValueError, match="no command and no chain"):
        check_url(url)


def test_paths_are_no_urls():
    assert is_url("s3://bucket/x")
    assert not any(is_url(text) for text in ("/a/b", "a.wav", "c:/x.wav", "a::b.wav", "x:y"))


def test_a_remote_table_cannot_name_files_of_this_machine(memory):
    memory.pipe("/set/metadata.csv", b"path,label\n/etc/hostname.wav,x\n")
    with pytest.raises(ValueError, match="a file of this machine; write a relative path"):
        open_corpus("memory://set")


def test_a_list_here_may_name_files_there(memory, tmp_path):
    memory.pipe("/one.wav", wav_bytes(7))
    (tmp_path / "two.wav").write_bytes(wav_bytes(8))
    (tmp_path / "list.txt").write_text("memory://one.wav\ntwo.wav\nmemory://lost.wav\n")
    corpus = open_corpus(tmp_path / "list.txt")
    assert corpus.source(0) == wav_bytes(7)
    assert corpus.source(1) == tmp_path / "two.wav"
    with pytest.raises(AudioError, match=r"memory://lost\.wav does not exist"):
        corpus.source(2)
