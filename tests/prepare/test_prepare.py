import csv
import hashlib
import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from ssmast.audio import LogMel, open_corpus, read_audio
from ssmast.audio.encode import with_serial
from ssmast.prepare import prepare_corpus
from ssmast.prepare.job import Cut, clip_bounds, read_plan, run_job
from tests.held import held
from tests.prepare.conftest import RATE, tones
from tests.scripts import load_script

SETTINGS = {"segment_seconds": 2.0, "shard_bytes": 200_000, "workers": 1, "max_bad_fraction": 0.5}


def prepared(source, out, **settings):
    return prepare_corpus(open_corpus(source), out, **{**SETTINGS, **settings})


def contents(out):
    """SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def rejected_kinds(out):
    with (out / "rejected.csv").open(newline="", encoding="utf-8") as file:
        return {(row["name"], row["kind"]) for row in csv.DictReader(file)}


def test_every_clip_is_in_the_shards_or_in_the_list(source, tmp_path):
    about = prepared(source, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    clips = {}
    for row in rows:
        clips[row["source"]] = clips.get(row["source"], 0) + 1
    assert clips == {
        "0.wav": 1, "1.wav": 1, "2.wav": 1, "3.wav": 1, "44k.flac": 2, "deep/opus.ogg": 1,
        "long.flac": 4, "loud.wav": 1, "stereo.wav": 1,
    }  # fmt: skip
    assert rejected_kinds(tmp_path / "out") == {
        ("deep/copy of 0.flac@0", "duplicate"), ("deep/quieter 1.wav@0", "near duplicate"),
        ("silence.wav", "silent"), ("dc.wav", "silent"), ("short.wav", "short"),
        ("text.wav", "unreadable"), ("nan.wav", "unreadable"),
    }  # fmt: skip
    assert about["clips"] == len(rows) == 13
    assert about["source_clips"] == 16
    assert about["shards"] > 1
    assert not (tmp_path / "out" / ".work").exists()


def test_clips_are_the_samples_of_the_source(source, tmp_path):
    out = tmp_path / "out"
    prepared(source, out)
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    covered = {}
    for row in rows:
        with (out / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            data = file.read(row["size"])
        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
        assert (rate, len(samples)) == (row["rate"], row["samples"]) == (RATE, len(samples))
        assert hashlib.sha256(samples.tobytes()).hexdigest() == row["hash"]
        whole = read_audio(source / row["source"]) * np.float32(row["gain"])
        expected = whole[row["start"] : row["start"] + len(samples)]
        assert np.abs(samples / 32768 - expected).max() <= 1.01 / 32768
        covered[row["source"]] = covered.get(row["source"], 0) + len(samples)
        assert row["rms"] == pytest.approx(np.sqrt(np.mean((samples / 32768.0) ** 2)), rel=1e-5)
    for name, length in covered.items():
        assert length == len(read_audio(source / name))
    loud = next(row for row in rows if row["source"] == "loud.wav")
    assert loud["gain"] == pytest.approx(1 / 3.6, rel=1e-3)
    assert loud["decoder"].startswith("libsndfile 1.")


def test_shards_are_plain_tars_and_the_corpus_opens_through_its_index(source, tmp_path):
    out = tmp_path / "out"
    about = prepared(source, out)
    corpus = open_corpus(out)
    assert len(corpus) == about["clips"]
    members = {}
    for path in sorted(out.glob("shard-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                members[member.name] = tar.extractfile(member).read()
    assert len(members) == len(corpus)
    assert all(name.count(".") == 1 for name in members)  # WebDataset's key ends at the first dot
    for i in range(len(corpus)):
        assert corpus.source(i) == members[corpus.name(i)]
    keys = corpus.table["key"].to_pylist()
    assert [f"{key}.flac" for key in keys] == [corpus.name(i) for i in range(len(corpus))]
    (out / "corpus.json").unlink()  # as a manifest of another tool, without an index
    other = open_corpus(out)
    assert [other.source(i) for i in range(len(other))] == list(members.values())


def test_mean_and_std_are_those_of_all_cells(source, tmp_path):
    out = tmp_path / "out"
    about = prepared(source, out)
    corpus = open_corpus(out)
    log_mel = LogMel()
    with torch.no_grad():
        cells = torch.cat([
            log_mel.log_mel(torch.from_numpy(read_audio(corpus.source(i)))[None]).flatten()
            for i in range(len(corpus))
        ]).double()  # fmt: skip
    assert about["mean"] == pytest.approx(float(cells.mean()), rel=1e-9)
    assert about["std"] == pytest.approx(float(cells.std(correction=0)), rel=1e-6)


class _KilledError(BaseException):
    """As SIGKILL: nothing that would tidy up catches it."""


def test_a_kill_before_any_file_appears_changes_nothing(source, tmp_path, monkeypatch):
    """Killed at the k-th file that gets its name, for every k; and begun again each time."""
    monkeypatch.setattr("ssmast.prepare.job._JOB_CLIPS", 3)
    prepared(source, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    replace, done = os.replace, []
    budget = [0]

    def counted(one, other):
        if budget[0] == 0:
            raise _KilledError
        budget[0] -= 1
        replace(one, other)
        done.append(str(other))

    monkeypatch.setattr(os, "replace", counted)
    out, kills = tmp_path / "killed", 0
    while True:
        budget[0] = 1 + kills % 7  # some stages write up to four files in one go
        try:
            prepared(source, out)
            break
        except _KilledError:
            kills += 1
            if kills % 3 == 0:  # what was being written when the power went
                (out / ".work" / "jobs" / ".0000001.99.partial").write_bytes(b"half")
    assert kills >= 7
    audio = [name for name in done if "/jobs/" in name and name.endswith("parquet")]
    audio += [name for name in done if "/shard-" in name]
    assert len(audio) == len(set(audio)) >= 8  # no job was finished twice, nor a shard
    assert contents(out) == expected


def test_a_kill_while_tidying_up_is_finished_by_the_next_call(source, tmp_path, monkeypatch):
    def killed(path):
        raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(_KilledError):
            prepared(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    about = prepared(source, tmp_path / "out")
    assert about == json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert not (tmp_path / "out" / ".work").exists()
    after = contents(tmp_path / "out")
    assert {name: digest for name, digest in before.items() if name in after} == after


def test_a_finished_job_is_not_done_again(source, tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(
        "ssmast.prepare.pipeline.pack", lambda *a, **k: (_ for _ in ()).throw(_KilledError)
    )
    with pytest.raises(_KilledError):
        prepared(source, tmp_path / "out")
    plan = read_plan((tmp_path / "out" / ".work").resolve())
    monkeypatch.setattr("ssmast.prepare.job._write_clips", lambda *a: done.append(a))
    before = plan.file_of(0, "tar").stat().st_ino
    rejected = run_job(plan.work, 0)
    assert not done
    assert plan.file_of(0, "tar").stat().st_ino == before
    assert ("text.wav", "unreadable") in {(name, kind) for name, kind, _ in rejected}


@pytest.mark.parametrize("codec", ["flac", "opus"])
def test_the_same_bytes_come_out_again(source, tmp_path, codec, monkeypatch):
    one = prepared(source, tmp_path / "one", codec=codec)
    monkeypatch.setattr("ssmast.prepare.job._JOB_CLIPS", 2)  # other jobs, same corpus
    prepared(source, tmp_path / "two", codec=codec)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert one["clips"] == 13
    corpus = open_corpus(tmp_path / "one")
    assert corpus.name(0).endswith(codec)
    first = corpus.table.to_pylist()[0]
    decoded = read_audio(corpus.source(0))
    assert len(decoded) == first["samples"]
    original = read_audio(source / first["source"])[: len(decoded)]
    assert np.corrcoef(decoded, original)[0, 1] > (0.98 if codec == "opus" else 0.99999)


def test_an_opus_stream_with_another_serial_still_decodes_to_the_same():
    buffer = io.BytesIO()
    soundfile.write(buffer, tones(3, seed=1), RATE, format="OGG", subtype="OPUS")
    changed = with_serial(buffer.getvalue(), 12345)
    assert changed != buffer.getvalue()
    np.testing.assert_array_equal(read_audio(changed), read_audio(buffer.getvalue()))
    own = int.from_bytes(buffer.getvalue()[14:18], "little")
    assert with_serial(changed, own) == buffer.getvalue()  # the checksums are libogg's


def test_other_settings_or_other_audio_are_not_mixed_in(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("ssmast.prepare.pipeline.pack", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepared(source, out)
    with pytest.raises(ValueError, match=r"unfinished work, but cut was different .*another out="):
        prepared(source, out, segment_seconds=3.0)
    soundfile.write(source / "new.wav", tones(1, seed=30), RATE)
    with pytest.raises(ValueError, match="the audio has changed since"):
        prepared(source, out)
    (source / "new.wav").unlink()
    prepared(source, out)
    with pytest.raises(ValueError, match=r"made with sample_rate=16000, now 8000"):
        prepared(source, out, sample_rate=8000)
    soundfile.write(source / "new.wav", tones(1, seed=30), RATE)
    with pytest.raises(ValueError, match="holds a corpus of other audio"):
        prepared(source, out)


def test_samples_that_change_under_the_same_name_and_size_are_noticed(
    source, tmp_path, monkeypatch, caplog
):
    out, changed = tmp_path / "out", next(source.rglob("*.wav"))
    with monkeypatch.context() as patch:
        patch.setattr("ssmast.prepare.pipeline.pack", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepared(source, out)
    before = changed.stat()
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))
    with pytest.raises(ValueError, match="the audio has changed since"):
        prepared(source, out)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    prepared(source, out)
    prepared(source, out)
    assert "were written after" not in caplog.text
    os.utime(changed, (time.time() + 100, time.time() + 100))
    prepared(source, out)  # finished, and perhaps only copied anew: said, not refused
    assert f"1 files in {source} were written after {out} was finished" in caplog.text


def test_a_folder_with_other_files_and_one_inside_the_source_are_refused(source, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files"):
        prepared(source, tmp_path / "full")
    with pytest.raises(ValueError, match="lies inside"):
        prepared(source, source / "out")


def test_two_at_once_do_not_disturb_each_other(source, tmp_path, monkeypatch):
    lock = tmp_path / "out" / ".work" / "lock"
    with (
        held("from ssmast.files import locked", "locked(place, doing='x')", lock),
        pytest.raises(BlockingIOError, match="another process is preparing"),
    ):
        prepared(source, tmp_path / "out")
    prepared(source, tmp_path / "out")


def test_too_many_bad_files_stop_the_run_until_more_are_allowed(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(60):
        (source / f"bad{number:02d}.wav").write_bytes(b"hello" * 9)
    soundfile.write(source / "good.wav", tones(1, seed=1), RATE)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"of 61 clips are bad, more than the allowed 0\.1"):
        prepared(source, out, max_bad_fraction=0.1)
    with pytest.raises(ValueError, match="are bad"):
        prepared(source, out, max_bad_fraction=0.1)
    assert prepared(source, out, max_bad_fraction=0.99)["clips"] == 1


def test_nothing_usable_says_so(tmp_path):
    (tmp_path / "source").mkdir()
    soundfile.write(tmp_path / "source" / "a.wav", np.zeros(RATE), RATE)
    with pytest.raises(ValueError, match=r"nothing in .*source can be used; the first: a\.wav"):
        prepared(tmp_path / "source", tmp_path / "out")


def test_labels_go_into_the_manifest(source, tmp_path):
    (source / "metadata.csv").write_text("path,label,split\nlong.flac,up,test\n0.wav,down,train\n")
    prepared(source, tmp_path / "out")
    corpus = open_corpus(tmp_path / "out").select(split="test")
    assert corpus.table["source"].to_pylist() == ["long.flac"] * 4
    assert set(corpus.table["label"].to_pylist()) == {"up"}
    assert len(read_audio(corpus.source(3))) == len(read_audio(source / "long.flac")) - 3 * 2 * RATE


def test_a_prepared_corpus_can_be_prepared_again(source, tmp_path):
    prepared(source, tmp_path / "one")
    about = prepared(tmp_path / "one", tmp_path / "two", segment_seconds=0, shard_bytes=1 << 30)
    assert about["shards"] == 1
    assert about["clips"] == 13
    one = pq.read_table(tmp_path / "one" / "manifest.parquet")["hash"]
    assert (
        pq.read_table(tmp_path / "two" / "manifest.parquet")["hash"].to_pylist() == one.to_pylist()
    )


@pytest.mark.parametrize("length", [1, 15999, 16000, 16001, 33500, 33600, 160000])
def test_clips_cover_a_source_clip_without_a_gap(length):
    cut = Cut(sample_rate=16000, segment_seconds=1.0, min_seconds=0.1, min_peak=1e-4,
              codec="flac")  # fmt: skip
    bounds = clip_bounds(length, cut)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == length
    assert all(one[1] == other[0] for one, other in itertools.pairwise(bounds))
    assert len(bounds) == max(1, math.ceil((length - 1600 + 1) / 16000))
    assert all(stop - start == 16000 for start, stop in bounds[:-1])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"codec": "mp3"}, "codec must be flac or opus, got 'mp3'"),
        ({"codec": "opus", "sample_rate": 22050}, "Opus has rates of 8000"),
        ({"min_seconds": 0.0}, "min_seconds must be above 0"),
        ({"segment_seconds": 0.05}, "segment_seconds must be at least min_seconds=0.1"),
        ({"near_duplicates": 1.5}, r"near_duplicates must lie in \[0, 1\], got 1.5"),
        ({"engine": "spark"}, "engine must be local or ray, got 'spark'"),
    ],
)
def test_impossible_settings_are_refused(source, tmp_path, settings, reason):
    with pytest.raises(ValueError, match=reason):
        prepared(source, tmp_path / "out", **settings)


def test_a_list_is_prepared_as_one_and_weights_are_refused(source, tmp_path):
    about = prepared(f"[{source}, {source}]", tmp_path / "o", max_bad_fraction=1.0)
    once = prepared(source, tmp_path / "once", max_bad_fraction=1.0)
    assert (about["clips"], about["source_clips"]) == (once["clips"], 2 * once["source_clips"])
    assert about["seconds"] == once["seconds"]  # every clip is there twice, and kept once
    with pytest.raises(ValueError, match="prepare each part of the mixture on its own"):
        prepared(f"[{{path: {source}, weight: 1}}, {{path: {source}, weight: 2}}]", tmp_path / "w")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_engines_give_the_same_bytes(source, tmp_path, engine, monkeypatch):
    if engine == "ray":
        pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr("ssmast.prepare.job._JOB_CLIPS", 3)
    prepared(source, tmp_path / "one")
    prepared(source, tmp_path / "two", engine=engine, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


KILLED = """
import os, signal, sys
import ssmast.prepare.job as job
from ssmast.cli import main

job._JOB_CLIPS = 4
if __name__ == "__main__":  # a worker process of its own starts here too
    out, left = sys.argv[1], int(sys.argv[2])

    def hook(event, args):
        global left
        if event in ("open", "os.mkdir", "os.rename", "os.remove") and str(args[0]).startswith(out):
            left -= 1
            if not left:
                os.killpg(0, signal.SIGKILL)  # the workers with it

    sys.addaudithook(hook)
    sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.slow
def test_sigkill_at_random_points_changes_nothing(source, tmp_path):
    """The command itself, killed at an n-th touch of a file below its folder, and begun again."""
    for number in range(40):
        soundfile.write(source / f"more {number}.wav", tones(6, seed=200 + number), RATE)
    words = ["segment_seconds=2", "near_duplicates=0.99", "shard_mb=1", "max_bad_fraction=0.5"]
    (tmp_path / "killed.py").write_text(KILLED)
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def run(out, touches, workers):
        command = [sys.executable, tmp_path / "killed.py", out, str(touches), "prepare", source]
        words_of_run = [*words, f"out={out}", f"workers={workers}"]
        result = subprocess.run(
            [*command, *words_of_run], stderr=subprocess.DEVNULL, start_new_session=True
        )
        return result.returncode

    assert run(whole, 0, 1) == 0
    rng, inodes = np.random.default_rng(0), {}
    for kill in range(8):
        workers = 1 + kill % 2  # of two, the process that is killed only reads what they write
        touches = int(rng.integers(4, 60 if workers == 1 else 24))
        assert run(killed, touches, workers) == -signal.SIGKILL
        for path in killed.glob(".work/jobs/*.parquet"):
            assert inodes.setdefault(path, path.stat().st_ino) == path.stat().st_ino
    assert len(inodes) > 0
    assert run(killed, 0, 2) == 0
    assert contents(killed) == contents(whole)


def test_a_long_file_is_cut_block_by_block_to_the_same_bytes(tmp_path, monkeypatch):
    (tmp_path / "audio").mkdir()
    generator = np.random.default_rng(0)
    sound = (0.2 * generator.standard_normal(9 * RATE)).astype(np.float32)
    loud = sound.copy()
    loud[-100] = 2.0  # beyond full scale: all of it is scaled, by what shows at the end
    for name, samples in (("a", sound), ("b", loud)):
        soundfile.write(tmp_path / "audio" / f"{name}.wav", samples, RATE, subtype="FLOAT")
        soundfile.write(tmp_path / "audio" / f"{name}.flac", samples.clip(-1, 1), 3 * RATE)
    data = (tmp_path / "audio" / "a.flac").read_bytes()
    (tmp_path / "audio" / "cut.flac").write_bytes(data[: len(data) // 2])
    prepared(tmp_path / "audio", tmp_path / "at once", near_duplicates=0)
    monkeypatch.setattr("ssmast.audio.long.LONG_SECONDS", 1.0)
    monkeypatch.setattr("ssmast.audio.long._SHORT_BYTES", 1)
    monkeypatch.setattr("ssmast.prepare.job.decode_whole", None)  # not this way
    prepared(tmp_path / "audio", tmp_path / "by blocks", near_duplicates=0)
    assert contents(tmp_path / "at once") == contents(tmp_path / "by blocks")


def _peak_of_preparing(folder: Path, *words: str) -> float:
    """GiB that a process of its own held at most."""
    timing = load_script(Path(__file__).parents[2] / "benchmarks" / "timing.py", name="timing")
    return timing.peak_mb("prepare", str(folder), f"out={folder}-out", "workers=1", *words) / 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path):
    """Half an hour may take no more than 0.3 GB above two minutes; at once it took 0.9 GB."""
    peaks = []
    for minutes in (2, 30):
        folder = tmp_path / str(minutes)
        folder.mkdir()
        block = (0.02 * np.random.default_rng(0).standard_normal(48000 * 60)).astype(np.float32)
        with soundfile.SoundFile(folder / "night.wav", "w", 48000, 2, "PCM_16") as file:
            for number in range(minutes):
                file.write(np.stack([np.roll(block, 997 * number), block], axis=1))
        peaks.append(_peak_of_preparing(folder))
    assert peaks[1] < peaks[0] + 0.3


@pytest.mark.slow
def test_six_hours_in_one_file_take_little_memory(tmp_path):
    """A night of a recorder at 8 kHz, all of it: at once its float32 at 16 kHz took 2.6 GB."""
    folder, rate = tmp_path / "night", 8000
    folder.mkdir()
    block = 0.02 * np.random.default_rng(0).standard_normal(rate * 60)
    block += 0.1 * np.sin(2 * np.pi * 440 / rate * np.arange(rate * 60))
    with soundfile.SoundFile(folder / "night.wav", "w", rate, 1, "PCM_16") as file:
        for number in range(6 * 60):
            file.write(np.roll(block, 997 * number))
    assert _peak_of_preparing(folder, "near_duplicates=0") < 1.5  # all of it is alike
    rows = pq.read_table(tmp_path / "night-out" / "manifest.parquet").to_pylist()
    assert sum(row["samples"] for row in rows) == 6 * 3600 * 16000
