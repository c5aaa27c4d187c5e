"""Every kind of bad input on one table: what training, prepare and embed make of it.

The files of FILES lie in one folder with good ones and go through all three once; each test looks
at what became of its kind. LISTS, TARS and NAMES name whole corpora that end in one sentence, or of
which only the good part is taken.
"""

import importlib
import os
import pickle
import sys
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from ssmast.audio import AudioError, SegmentDataset, open_corpus, read_audio
from ssmast.evaluation.baselines import LogMelStatistics
from ssmast.evaluation.embed import embed_corpus
from ssmast.prepare import prepare_corpus
from tests.audio.files import special, wav_bytes, write_tar
from tests.audio.test_read import encoded, headerless_vbr_mp3
from tests.prepare.conftest import tones

RATE = 16000
GOOD = tones(2.0, seed=1)


def sound(seed, kind="WAV", subtype=None, *, rate=RATE, seconds=2.0, channels=1):
    audio = tones(seconds, seed=100 + seed, rate=rate)
    audio = audio if channels == 1 else np.stack([audio] * channels, axis=1)
    return encoded(audio, rate, kind, subtype)


def part(data, share=0.5):
    return data[: int(len(data) * share)]


def with_value(value):
    audio = GOOD.copy()
    audio[len(audio) // 3] = value
    return encoded(audio, RATE, "WAV", "FLOAT")


# name: (bytes, then what training, prepare and embed say: a pattern, or None where it is used)
FILES = {
    "zero bytes.wav": (b"", "zero bytes", "zero bytes", "zero bytes"),
    "header only.wav": (encoded(GOOD[:0], RATE, "WAV"), *["zero frames"] * 3),
    "header only.flac": (sound(1, "FLAC")[:42], *["truncated|damaged|zero frames"] * 3),
    "truncated.wav": (part(sound(2)), *["truncated: its header promises"] * 3),
    "truncated float.wav": (part(sound(3, "WAV", "FLOAT")), *["truncated: its header"] * 3),
    "truncated.flac": (part(sound(4, "FLAC")), *["truncated"] * 3),
    "truncated.ogg": (part(sound(5, "OGG")), *["truncated: its last Ogg page"] * 3),
    "truncated.opus": (part(sound(6, "OGG", "OPUS")), *["truncated"] * 3),
    "truncated.mp3": (part(sound(7, "MP3")), *["truncated: its header promises"] * 3),
    "cut in its header.wav": (sound(8)[:20], *["damaged, truncated"] * 3),
    "text.wav": (b"hello\n" * 99, *["is a text file"] * 3),
    "web page.mp3": (b"<!DOCTYPE html><html>404</html>", *["is a text file"] * 3),
    "lfs pointer.wav": (b"version https://git-lfs.github.com/spec/v1\n", *["Git LFS"] * 3),
    "random bytes.flac": (np.random.default_rng(0).bytes(5000), *["no audio"] * 3),
    "picture.wav": (b"\x89PNG\r\n\x1a\n" + bytes(500), *["no audio"] * 3),
    "flac inside.wav": (sound(9, "FLAC"), None, None, None),
    "wav inside.mp3": (sound(10), None, None, None),
    "nan.wav": (with_value(np.nan), *["NaN or infinite"] * 3),
    "inf.wav": (with_value(-np.inf), *["NaN or infinite"] * 3),
    "wild.wav": (with_value(1e29), *["has a sample of 1e.29, above 100"] * 3),
    "loud.wav": (with_value(3e9), *["of 3e.09, above 100"] * 3),
    "silence.wav": (encoded(np.zeros(9000), RATE, "WAV"), "is silent", "it is silent", None),
    "dc.wav": (encoded(np.full(9000, 0.4), RATE, "WAV"), "a constant", "it is silent", None),
    "one sample.wav": (encoded(GOOD[:1], RATE, "WAV"), "silent|constant", "shorter than", None),
    "one sample at 192 kHz.wav": (encoded(GOOD[:1], 192000, "WAV"), *["too short"] * 3),
    "192 kHz.wav": (sound(11, rate=192000, seconds=0.5), None, None, None),
    "4 kHz.wav": (sound(12, rate=4000), None, None, None),
    "8 bit.wav": (sound(13, subtype="PCM_U8"), None, None, None),
    "24 bit.flac": (sound(14, "FLAC", "PCM_24"), None, None, None),
    "32 bit float.wav": (sound(15, subtype="FLOAT"), None, None, None),
    "7 channels.wav": (sound(16, channels=7), None, None, None),
    "no length.mp3": (headerless_vbr_mp3()[0], None, None, None),
    "line\nbreak.wav": (sound(17), None, None, None),
    "quotes ' \" , ; $(touch hacked) `touch hacked`.wav": (sound(18), None, None, None),
    "emoji 🎧 žluť.wav": (sound(19), None, None, None),
    "x" * 246 + ".wav": (sound(20), None, None, None),
    "-rf.wav": (sound(21), None, None, None),
    "%s {0} %n.wav": (sound(22), None, None, None),
    "song.m4a": (b"\0\0\0\x20ftypM4A " + bytes(99), *["install torchcodec"] * 3),
    "film.mp4": (b"\0\0\0\x20ftypisom" + bytes(99), *["install torchcodec"] * 3),
    "film.webm": (b"\x1a\x45\xdf\xa3" + bytes(99), *["install torchcodec"] * 3),
    "raw.aac": (b"\xff\xf1\x50\x80" + bytes(99), *["install torchcodec"] * 3),
    "playlist.mp4": (b"#EXTM3U\nfile:///etc/hostname\n", *["is a text file"] * 3),
    "pickle.wav": (pickle.dumps({"a": 1}) + bytes(99), *["no audio"] * 3),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of each file in training, prepare and embed: {way: {name: reason or None}}."""
    root = tmp_path_factory.mktemp("bad")
    folder = root / "source"
    folder.mkdir()
    for name, (data, *_) in FILES.items():
        (folder / name).write_bytes(data)
    for number in range(5):
        soundfile.write(folder / f"good {number}.wav", tones(1.5, seed=number), RATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchcodec.decoders", None)
        patch.chdir(root)
        corpus = open_corpus(folder)
        found = {"train": trained(corpus), "prepare": prepared(corpus, root / "out")}
        embedded = embed_corpus(LogMelStatistics(), corpus, workers=2)
    found["embed"] = dict(embedded.rejected)
    assert torch.isfinite(embedded.values).all()
    assert len(embedded.values) == len(corpus) - len(embedded.rejected)
    assert not (root / "hacked").exists()
    assert sorted(entry.name for entry in root.iterdir()) == ["out", "source"]
    return found


def trained(corpus):
    # Long enough for whole clips: what is bad in one place only is met each time.
    dataset = SegmentDataset(corpus, num_samples=10 * RATE, sample_rate=RATE, seed=0)
    rejected, used = {}, set()
    for position in range(2 * len(corpus)):  # two epochs: the second time is like the first
        item = dataset[position]
        assert torch.isfinite(item["waveform"]).all()
        assert float(item["waveform"].abs().max()) <= 100
        assert dataset[position]["clip"] == item["clip"]
        rejected |= dict(item["rejected"])
        used.add(corpus.name(item["clip"]))
    assert used.isdisjoint(rejected)
    assert used | set(rejected) == {corpus.name(i) for i in range(len(corpus))}
    return rejected


def prepared(corpus, out):
    import csv

    import pyarrow.parquet as pq

    prepare_corpus(corpus, out, workers=1, max_bad_fraction=0.9)
    used = set(pq.read_table(out / "manifest.parquet")["source"].to_pylist())
    with (out / "rejected.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rejected = {
        row["name"].rpartition("@")[0] if "duplicate" in row["kind"] else row["name"]: row["reason"]
        for row in rows
    }
    assert used.isdisjoint(rejected)
    assert used | set(rejected) == {corpus.name(i) for i in range(len(corpus))}
    return rejected


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_used_or_listed_with_its_reason(outcomes, name):
    import re

    for way, expected in zip(("train", "prepare", "embed"), FILES[name][1:], strict=True):
        reason = outcomes[way].get(name)
        if expected is None:
            assert reason is None, way
        else:
            assert reason is not None, way
            assert re.search(expected, reason), (way, reason)
            assert name in reason or reason == "its embedding is not finite"


def test_good_files_stay(outcomes):
    for rejected in outcomes.values():
        assert not any(name.startswith("good") for name in rejected)


# What lies in a folder without being a file of sound: it is passed by, or listed.
def test_loops_folders_pipes_and_locked_files_stop_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "source"
    folder.mkdir()
    soundfile.write(folder / "good.wav", GOOD, RATE)
    (folder / "up").symlink_to(folder)  # a loop
    (folder / "self.wav").symlink_to(folder / "self.wav")
    (folder / "gone.wav").symlink_to(tmp_path / "nowhere")
    (folder / "folder.wav").mkdir()  # a directory named like a file
    os.mkfifo(folder / "pipe.wav")
    (folder / "locked.wav").write_bytes(sound(1))
    corpus = open_corpus(folder)
    assert [corpus.name(i) for i in range(len(corpus))] == ["good.wav", "locked.wav"]
    real = os.stat

    def refuse(path, *args, **kwargs):  # root may read everything, so permission is played
        if str(path).endswith("locked.wav"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refuse)
    dataset = SegmentDataset(corpus, num_samples=4000, sample_rate=RATE, seed=0)
    reasons = [reason for p in range(2) for _, reason in dataset[p]["rejected"]]
    assert reasons
    assert all("locked.wav cannot be opened: Permission denied" in reason for reason in reasons)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_a_file_that_shrinks_after_it_was_listed_is_rejected(tmp_path, kind):
    soundfile.write(tmp_path / f"a.{kind}", GOOD, RATE)
    soundfile.write(tmp_path / "good.wav", GOOD, RATE)
    corpus = open_corpus(tmp_path)
    dataset = SegmentDataset(corpus, num_samples=4000, sample_rate=RATE, seed=0)
    assert dataset[0]["rejected"] == dataset[1]["rejected"] == []
    size = (tmp_path / f"a.{kind}").stat().st_size
    os.truncate(tmp_path / f"a.{kind}", size // 3)
    dataset = SegmentDataset(corpus, num_samples=4000, sample_rate=RATE, seed=0)
    rejected = [pair for p in range(8) for pair in dataset[p]["rejected"]]
    assert {name for name, _ in rejected} == {f"a.{kind}"}
    assert all("truncated" in reason for _, reason in rejected)


LISTS = {
    "an empty table": ("metadata.csv", b"", "is empty"),
    "no path column": ("metadata.csv", b"clip,label\na.wav,x\n", "no column 'path'; it has clip"),
    "a short row": ("metadata.csv", b"path,label\na.wav\n", "has 1 fields in line 2"),
    "a column twice": ("metadata.csv", b"path,path\na.wav,b\n", "names a column twice"),
    "no UTF-8": ("metadata.csv", "path\nž.wav\n".encode("latin2"), "is not UTF-8"),
    "an open quote": ("metadata.csv", b'path\n"a.wav\n', "is no valid CSV"),
    "a missing clip": ("metadata.csv", b"path\ngone.wav\n", "1 of 1 files"),
    "a way out": ("metadata.csv", b"path\n../secret.wav\n", "leads out of its folder"),
    "a command": ("list.txt", b"pipe:touch hacked\n", "no command"),
    "a command in disguise": ("list.txt", b" PIPE :touch hacked\n", "no command"),
    "a chain of file systems": ("list.txt", b"zip://a.wav::file://x.zip\n", "no chain"),
    "an empty list": ("list.txt", b"\n\n", "names no clip"),
    "a NUL in a path": ("list.txt", b"a\0b.wav\n", "a row without a path"),
    "YAML that runs code": ("mix.yaml", b"!!python/object/apply:os.system [touch hacked]", "YAML"),
    "YAML of another shape": ("mix.yaml", b"path: a\n", "must be a list of"),
    "a compressed tar": ("clips.tar.gz", b"\x1f\x8b" + bytes(99), "compressed with gzip"),
    "no tar": ("clips.tar", b"hello" * 500, "is not a tar archive"),
    "no sound": ("nothing.tar", bytes(10240), "no sound file was found"),
    "a manifest of nothing": ("manifest.parquet", b"PAR1nothing", "is no Parquet file"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_broken_list_ends_in_one_sentence(tmp_path, kind, monkeypatch):
    name, data, reason = LISTS[kind]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wav").write_bytes(wav_bytes(1))
    (tmp_path / name).write_bytes(data)
    with pytest.raises((ValueError, FileNotFoundError), match=reason) as caught:
        open_corpus(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == sorted(["a.wav", name])


@pytest.mark.parametrize("head", ["\ufeffpath;label", "path\tlabel", "\ufeffpath,label"])
def test_marks_and_semicolons_in_a_table_are_no_obstacle(tmp_path, head):
    mark = next(mark for mark in ";\t," if mark in head)
    (tmp_path / "a.wav").write_bytes(wav_bytes(1))
    (tmp_path / "metadata.csv").write_text(f"{head}\r\n\r\na.wav{mark}x\r\n", encoding="utf-8")
    assert open_corpus(tmp_path).table["label"].to_pylist() == ["x"]


TARS = {
    "an absolute path": ("/tmp/ssmast-hacked.wav", wav_bytes(2)),
    "a path out": ("../../out.wav", wav_bytes(2)),
    "a link out": special("link.wav", tarfile.SYMTYPE, "/etc/hostname"),
    "a hard link": special("hard.wav", tarfile.LNKTYPE, "good.wav"),
    "a device": special("zero.wav", tarfile.CHRTYPE),
    "a pipe": special("fifo.wav", tarfile.FIFOTYPE),
    "a folder": special("folder.wav", tarfile.DIRTYPE),
    "a pickle": ("x.pkl", pickle.dumps({"a": 1})),
    "a program": ("x.pyd", b"import os; os.system('touch hacked')"),
    "a text": ("x.json", b"{}"),
    "a hidden file": ("._good.wav", b"resource fork"),
}


@pytest.mark.parametrize("kind", TARS)
def test_a_bad_member_of_a_tar_is_left_alone(tmp_path, kind):
    path = write_tar(tmp_path / "t.tar", [("good.wav", wav_bytes(1)), TARS[kind]])
    corpus = open_corpus(path)
    assert [corpus.name(i) for i in range(len(corpus))] == ["good.wav"]
    assert corpus.source(0) == wav_bytes(1)
    assert os.listdir(tmp_path) == ["t.tar"]
    assert not os.path.exists("/tmp/ssmast-hacked.wav")


def test_a_tar_with_a_name_twice_holds_two_clips(tmp_path):
    path = write_tar(tmp_path / "t.tar", [("a.wav", wav_bytes(1)), ("a.wav", wav_bytes(2))])
    corpus = open_corpus(path)
    assert [corpus.source(i) for i in range(2)] == [wav_bytes(1), wav_bytes(2)]


def test_a_truncated_tar_gives_its_whole_members(tmp_path, caplog):
    path = write_tar(tmp_path / "t.tar", [(f"{n}.wav", wav_bytes(n)) for n in range(5)])
    path.write_bytes(path.read_bytes()[: 3 * 1024 + 600])
    assert len(open_corpus(path)) == 3
    assert "is damaged, 3 sound files kept" in caplog.text


def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in ("../secret.tar", "/etc/x.tar", "pipe:touch hacked", "http://x/a.tar"):
        table = pa.table({"key": ["a"], "shard": [shard], "offset": [0], "size": [10]})
        pq.write_table(table, tmp_path / "manifest.parquet")
        with pytest.raises(ValueError, match="outside its folder"):
            open_corpus(tmp_path)


def test_there_are_at_least_forty_kinds():
    assert len(FILES) + len(LISTS) + len(TARS) >= 70


@pytest.mark.data
def test_files_found_in_public_repositories_stop_nothing(shared_data, tmp_path):
    corpus = open_corpus(shared_data / "nasty" / "files")
    found = {"train": trained(corpus), "prepare": prepared(corpus, tmp_path / "out")}
    embedded = embed_corpus(LogMelStatistics(), corpus, workers=2)
    assert torch.isfinite(embedded.values).all()
    for name in ("1001_DFA_ANG_XX.wav", "empty_file.mp3", "106-invalid-streaminfo.flac"):
        assert all(name in rejected for rejected in (*found.values(), dict(embedded.rejected)))
    assert "truncated" in found["prepare"]["test-44100Hz-le-1ch-4bytes-early-eof.wav"]


def test_foreign_sound_is_decoded_where_torchcodec_is(tmp_path):
    try:
        encoders = importlib.import_module("torchcodec.encoders")
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"needs the extra codecs and FFmpeg: {error}")
    encoder = encoders.AudioEncoder(
        torch.from_numpy(tones(2.0, seed=1, rate=48000))[None], sample_rate=48000
    )
    for kind in ("m4a", "mp4", "webm", "aac"):
        path = tmp_path / f"clip.{kind}"
        try:
            encoder.to_file(str(path))
        except RuntimeError:
            data = encoder.to_tensor({"m4a": "mp4", "aac": "adts"}.get(kind, kind))
            path.write_bytes(bytes(data.numpy()))
        for source in (path, path.read_bytes()):
            audio = read_audio(source)
            assert len(audio) == pytest.approx(2 * RATE, abs=0.1 * RATE)
            assert float(np.abs(audio).max()) == pytest.approx(0.3, abs=0.1)
    dataset = SegmentDataset(open_corpus(tmp_path), num_samples=8000, sample_rate=RATE, seed=0)
    assert all(dataset[position]["rejected"] == [] for position in range(4))
    broken = part((tmp_path / "clip.m4a").read_bytes(), 0.3)
    with pytest.raises(AudioError, match="FFmpeg cannot decode"):
        read_audio(broken, name="broken.m4a")
