"""A fine-tuned folder in use: windows, their mean probability, and `ssmast predict`."""

import csv
import errno
import io
import json
import logging
import os
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch

from ssmast import load_classifier, progress
from ssmast.audio import LogMel, long
from ssmast.classifier import Classifier, Outputs, classifier_info, log_mean_probability
from ssmast.command import run_command
from ssmast.encoder import Encoder, load_encoder
from ssmast.model import create_model
from ssmast.predict import main as predict
from tests.held import held


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier of four classes in two heads that has learnt nothing."""
    torch.manual_seed(3)
    backbone = create_model(
        "mast_nano", num_classes=4, input_size=(32, 32), embed_dim=8, depths=(1, 1, 1, 1)
    )
    outputs = Outputs([("verb", ["cut", "wash"]), ("noun", ["pan", "lid"])], False)
    info = {"classifier": classifier_info(outputs, frames=32, max_windows=0)}
    path = tmp_path_factory.mktemp("tuned") / "run" / "encoder"
    Encoder(backbone, LogMel(num_mels=32, mean=-7.0, std=4.0), info=info).save(path)
    return path


def test_the_score_of_a_clip_is_that_of_its_windows_mean_probability():
    logits = torch.randn(5, 7)
    heads = [("a", list("xyz")), ("b", list("pqrs"))]
    one = log_mean_probability(logits, Outputs(heads, False))
    for part, own in zip(one.split([3, 4]), logits.split([3, 4], dim=1), strict=True):
        torch.testing.assert_close(part.exp(), own.double().softmax(dim=1).mean(dim=0))
    several = log_mean_probability(logits, Outputs([("a", list("abcdefg"))], True))
    torch.testing.assert_close(several.sigmoid(), logits.double().sigmoid().mean(dim=0))
    sure = log_mean_probability(torch.tensor([[40.0, 50.0]]), Outputs([("a", ["x", "y"])], True))
    assert sure[1] > sure[0]  # where the probabilities themselves round to 1


def _windows_of(samples: int, **words) -> list[int]:
    classifier = Classifier(
        torch.nn.Identity(), LogMel(), outputs=Outputs([], False), frames=101, **words
    )
    return classifier._starts(samples)


def test_windows_cover_a_clip_evenly_from_end_to_end():
    assert _windows_of(16000) == [0]
    assert _windows_of(8000) == [0]  # as it is
    assert _windows_of(40000) == [0, 12000, 24000]
    assert _windows_of(40000, max_windows=2) == [0, 24000]
    assert _windows_of(40000, max_windows=1) == [12000]


def test_a_clip_scores_alike_alone_and_among_others(folder):
    classifier = load_classifier(folder)
    clips = [torch.randn(size) * 0.1 for size in (3000, 12000, 5000)]
    together = classifier.embed_clips(clips, batch_seconds=0.7)
    assert together.shape == (3, 4)
    torch.testing.assert_close(together[:, :2].exp().sum(dim=1), torch.ones(3))
    for clip, row in zip(clips, together, strict=True):
        torch.testing.assert_close(classifier.embed_clips([clip])[0], row, atol=1e-5, rtol=1e-4)
    x = classifier.log_mel(clips[2][None, 20 : 20 + 31 * 160])
    assert classifier.network(x).shape == (1, 4)


def test_no_clips_have_no_scores(folder):
    assert load_classifier(folder).embed_clips([]).shape == (0, 4)


def test_what_would_be_taken_for_other_sound_is_refused(folder):
    classifier = load_classifier(folder)
    for clip, found in (
        (torch.zeros(9000, dtype=torch.int16), r"torch.int16 \(9000,\)"),
        (torch.zeros(1, 9000), r"torch.float32 \(1, 9000\)"),
        ("a.wav", r"str \(\)"),
    ):
        for way in (classifier.embed_clips, load_encoder(folder).embed_clips):
            with pytest.raises(ValueError, match=f"float samples .S,. at 16000 Hz.* got {found}"):
                way([clip])


def test_timestamps_run_along_the_clip(folder):
    classifier = load_classifier(folder.parent)  # the run folder does as well
    found = classifier.windows(torch.randn(16000), hop_seconds=0.2)
    assert found.start.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.69])
    assert found.stop.tolist() == pytest.approx([0.31, 0.51, 0.71, 0.91, 1.0])
    short = classifier.windows(torch.randn(1000))
    assert (short.start.tolist(), short.stop.tolist()) == ([0.0], [1000 / 16000])
    with pytest.raises(ValueError, match=r"hop must be at least one sample, got 1e-05 s"):
        classifier.windows(torch.randn(16000), hop_seconds=1e-5)


def test_the_length_of_a_window_may_be_another_than_that_of_training(folder, sounds, capsys):
    clip = torch.randn(16000) * 0.1
    classifier = load_classifier(folder, window_seconds=0.5)
    found = classifier.windows(clip)
    np.testing.assert_allclose(np.stack(found[:2]), [[0.0, 0.5], [0.5, 1.0]])
    usual = load_classifier(folder)
    usual.frames = 51
    torch.testing.assert_close(found.scores, usual.windows(clip).scores)
    words = [sounds[0], f"encoder={folder}", "window=0.25", "format=csv"]
    assert run_command(predict, words, name="predict") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {float(row["stop"]) - float(row["start"]) for row in rows} == {0.25}


def test_an_encoder_without_classes_is_refused(tmp_path):
    backbone = create_model("mast_nano", num_classes=0, input_size=(32, 32), embed_dim=8)
    Encoder(backbone, LogMel(num_mels=32)).save(tmp_path / "encoder")
    with pytest.raises(ValueError, match="is no fine-tuned encoder: it has no classes"):
        load_classifier(tmp_path / "encoder")


@pytest.fixture
def sounds(tmp_path):
    files = []
    for i, seconds in enumerate((0.5, 1.0)):
        file = tmp_path / f"a={i}.wav"
        noise = np.random.default_rng(i).normal(size=int(22050 * seconds)) * 0.1
        soundfile.write(file, noise, 22050)
        files.append(str(file))
    return files


def test_predict_names_the_classes_of_files_of_any_rate(folder, sounds, capsys):
    words = [*sounds, f"encoder={folder}", "top=1"]
    assert run_command(predict, words, name="predict") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{sounds[0]}  (0.50 s)"
    assert any("%" in line and "verb: " in line for line in said)
    assert any(line.strip().startswith("0.00 -     0.31 s") for line in said)
    assert run_command(predict, [*words, "format=json"], name="predict") == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["file"] for item in found] == sounds
    assert {row["head"] for row in found[0]["classes"]} == {"verb", "noun"}
    out = [f"out={folder.parent / 'x.csv'}", "format=csv", "top=0"]
    assert run_command(predict, [*sounds, f"encoder={folder}", *out], name="predict") == 0
    with (folder.parent / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "start", "stop", "head", "class", "probability"]
    first = [row for row in rows if row["file"] == sounds[0] and row["start"] == "0.0"]
    assert len(first) == 4
    assert sum(float(r["probability"]) for r in first) == pytest.approx(2.0, abs=1e-4)


def test_predict_reads_a_long_file_piece_by_piece(folder, tmp_path, capsys, monkeypatch):
    noise = 0.1 * np.random.default_rng(7).normal(size=22050 * 5)
    soundfile.write(tmp_path / "long.flac", noise, 22050)
    words = [str(tmp_path / "long.flac"), f"encoder={folder}", "format=json", "hop=0.2", "top=0"]
    assert run_command(predict, words, name="predict") == 0
    wanted = capsys.readouterr().out
    monkeypatch.setattr("ssmast.audio.long.LONG_SECONDS", 1.0)
    monkeypatch.setattr("ssmast.audio.long._SHORT_BYTES", 1)
    monkeypatch.setattr("ssmast.audio.long._joined", None)  # never whole
    assert run_command(predict, words, name="predict") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(wanted)


@pytest.mark.parametrize(("kind", "times"), [("flac", 1), ("mp3", 2)])  # an mp3 is counted first
def test_predict_decodes_a_long_file_once(folder, tmp_path, capsys, monkeypatch, kind, times):
    noise = 0.1 * np.random.default_rng(7).normal(size=22050 * 5)
    soundfile.write(tmp_path / f"long.{kind}", noise, 22050)
    monkeypatch.setattr("ssmast.audio.long.LONG_SECONDS", 1.0)
    monkeypatch.setattr("ssmast.audio.long._SHORT_BYTES", 1)
    blocks, begun = long.file_blocks, []
    monkeypatch.setattr(long, "file_blocks", lambda *words: begun.append(words) or blocks(*words))
    words = [str(tmp_path / f"long.{kind}"), f"encoder={folder}", "format=json"]
    assert run_command(predict, words, name="predict") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["seconds"] == pytest.approx(5, abs=0.1)
    assert len(begun) == times


@pytest.mark.parametrize("samples", [1000, 4960, 16000, 17003])
@pytest.mark.parametrize("hop", [0.0, 0.13])
def test_windows_and_the_whole_clip_come_together_as_they_do_apart(folder, samples, hop):
    classifier = load_classifier(folder)
    clip = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))
    windows, whole = classifier.windows_and_whole(clip, hop_seconds=hop)
    apart = classifier.windows(clip, hop_seconds=hop)
    assert windows.start.tolist() == apart.start.tolist()
    assert windows.stop.tolist() == apart.stop.tolist()
    torch.testing.assert_close(windows.scores, apart.scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole, classifier.embed_clips([clip])[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["a\x85b.wav", "a\nb.wav", "a\u2028b.wav"])
def test_predict_takes_any_name_that_a_file_can_have(name, folder, sounds, tmp_path, capsys):
    copy = shutil.copy(sounds[0], tmp_path / name)
    assert run_command(predict, [str(copy), f"encoder={folder}"], name="predict") == 0
    assert run_command(predict, [str(tmp_path), f"encoder={folder}"], name="predict") == 0
    words = [str(copy), sounds[1], str(copy), f"encoder={folder}"]
    assert run_command(predict, words, name="predict") == 0
    assert capsys.readouterr().err == ""


def test_predict_takes_a_part_of_a_file_at_its_times(folder, sounds, tmp_path, capsys):
    samples, rate = soundfile.read(sounds[1])
    soundfile.write(tmp_path / "part.wav", samples[rate // 4 : 3 * rate // 4], rate)
    words = [f"{sounds[1]}#t=0.25,0.75", str(tmp_path / "part.wav"), f"encoder={folder}"]
    assert run_command(predict, [*words, "format=json"], name="predict") == 0
    part, alone = json.loads(capsys.readouterr().out)
    assert (part["file"], part["seconds"]) == (sounds[1], alone["seconds"])
    for one, other in zip(part["windows"], alone["windows"], strict=True):
        assert one["start"] == pytest.approx(other["start"] + 0.25)
        assert one["stop"] == pytest.approx(other["stop"] + 0.25)
        for row, same in zip(one["classes"], other["classes"], strict=True):
            assert row["class"] == same["class"]
            assert row["probability"] == pytest.approx(same["probability"], abs=0.02)


def test_predict_goes_on_past_a_bad_file_and_says_what_is_missing(folder, sounds, tmp_path, capsys):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no sound")
    words = [str(bad), sounds[0], f"encoder={folder}"]
    assert run_command(predict, words, name="predict") == 1
    assert sounds[0] in capsys.readouterr().out
    for words, said in (
        ([sounds[0]], "encoder= is missing"),
        ([f"encoder={folder}"], "data= is missing; wanted: sound files"),
        ([sounds[0], f"encoder={folder}", "format=xml"], "format must be one of"),
        ([sounds[0], f"encoder={folder}", "tops=3"], "did you mean 'top'"),
    ):
        assert run_command(predict, words, name="predict") == 2
        assert said in capsys.readouterr().err
    assert run_command(predict, ["-h"], name="predict") == 0
    assert "fine-tuned encoder folder" in capsys.readouterr().out


def test_predict_says_how_far_it_is_within_a_long_file(folder, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="ssmast")
    monkeypatch.setattr(progress, "_PLAIN_EVERY", 0.0)
    noise = np.random.default_rng(0).normal(size=16000 * 4) * 0.1
    soundfile.write(tmp_path / "night.wav", noise, 16000)
    words = [str(tmp_path / "night.wav"), f"encoder={folder}", "hop=0.1", "batch_seconds=1"]
    assert run_command(predict, [*words, f"out={tmp_path / 'x.txt'}"], name="predict") == 0
    said = [one for one in caplog.messages if one.startswith("classifying: ")]
    assert said[0].startswith("classifying: 0.")
    assert " of 1 files, " in said[0]
    assert said[-1].startswith("classifying: 1 of 1 files, ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE])
def test_an_output_that_cannot_be_written_is_no_fault_of_the_files(
    folder, sounds, monkeypatch, caplog, capsys, number
):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sys, "stdout", Full())
    assert run_command(predict, [*sounds, f"encoder={folder}"], name="predict") == 1
    assert os.strerror(number) in capsys.readouterr().err
    assert "could not be classified" not in caplog.text


def test_predict_loses_nothing_over_a_name_or_a_place(folder, sounds, tmp_path, capsys):
    odd = tmp_path / os.fsdecode(b"\xff.wav")
    shutil.copy(sounds[0], odd)
    for words in ([], ["format=json"], ["format=csv", f"out={tmp_path / 'x.csv'}"]):
        assert run_command(predict, [str(odd), f"encoder={folder}", *words], name="predict") == 0
        said = capsys.readouterr().out or (tmp_path / "x.csv").read_text()
        assert "\\xff.wav" in said
    words = [sounds[0], f"encoder={folder}", f"out={tmp_path / 'none' / 'x.csv'}"]
    assert run_command(predict, words, name="predict") == 2
    assert "lies in a folder that does not exist" in capsys.readouterr().err


def test_predict_says_which_file_the_disk_has_no_room_for(folder, sounds, tmp_path, capsys):
    out = tmp_path / "full"
    out.symlink_to("/dev/full")
    words = [*sounds, f"encoder={folder}", f"out={out}"]
    assert run_command(predict, words, name="predict") == 1
    assert f"{out} cannot be written: No space left on device" in capsys.readouterr().err


def test_a_second_predict_does_not_empty_the_file_of_the_first(folder, sounds, tmp_path, capsys):
    out = tmp_path / "classes.csv"
    words = [sounds[0], f"encoder={folder}", f"out={out}", "format=csv"]
    assert run_command(predict, words, name="predict") == 0
    before = out.read_bytes()
    with held("from ssmast.files import lock_of, locked", "locked(lock_of(place), doing='')", out):
        assert run_command(predict, words, name="predict") == 1
    assert f"another process is writing {out}" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_short_clip_is_seen_without_silence_around_it(folder):
    classifier = load_classifier(folder)
    clips = [torch.randn(size) * 0.1 for size in (1000, 4000, 7, 2500)]
    found = classifier.each_window(clips)
    for clip, rows in zip(clips, found, strict=True):
        with torch.no_grad():
            alone = classifier.network(classifier.log_mel(clip[None]))
        torch.testing.assert_close(rows, alone, atol=1e-5, rtol=1e-4)


def test_predict_writes_tables_of_a_folder_for_raven_and_audacity(folder, sounds, tmp_path, capsys):
    words = [str(tmp_path), f"encoder={folder}", "merge=true"]
    assert run_command(predict, [*words, "format=raven"], name="predict") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t"))
    assert {row["Begin Path"] for row in rows} == set(sounds)
    assert [int(row["Selection"]) for row in rows] == list(range(1, len(rows) + 1))
    assert {row["Label"].partition(": ")[0] for row in rows} == {"verb", "noun"}
    out = tmp_path / "tables"
    assert run_command(predict, [*words, "format=audacity", f"out={out}"], name="predict") == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ["a=0.wav.labels.txt", "a=1.wav.labels.txt"]
    verbs = [line.split("\t") for line in (out / names[1]).read_text().splitlines()]
    verbs = [line for line in verbs if line[2].startswith("verb")]
    assert (float(verbs[0][0]), float(verbs[-1][1])) == (0, 1)  # windows overlap: no gap
    assert run_command(predict, [*words, "format=audacity"], name="predict") == 2
    assert "label track is of one sound; give out=FOLDER" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run_command(predict, [str(empty), f"encoder={folder}"], name="predict") == 2
    assert "holds no sound" in capsys.readouterr().err


def test_a_table_has_all_labels_of_a_clip_that_has_several(tmp_path, folder, sounds, capsys):
    encoder = load_encoder(folder)
    outputs = Outputs([("label", ["cut", "wash", "pan", "lid"])], True)
    encoder.info["classifier"] = classifier_info(outputs, frames=32, max_windows=0)
    encoder.save(tmp_path / "several")
    words = [sounds[0], f"encoder={tmp_path / 'several'}", "format=raven"]
    for further, count in (([], 1), (["threshold=0.01"], 4), (["threshold=0.01", "top=2"], 2)):
        assert run_command(predict, [*words, *further], name="predict") == 0
        rows = list(csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t"))
        windows = {row["Begin Time (s)"] for row in rows}
        assert len(rows) == count * len(windows)


def test_a_window_can_be_none_of_the_classes(folder, tmp_path, capsys):
    half = np.concatenate([np.zeros(16000), 0.1 * np.random.default_rng(0).normal(size=16000)])
    file = tmp_path / "half.wav"
    soundfile.write(file, half, 16000)
    words = [str(file), f"encoder={folder}", "format=csv", "merge=true"]
    assert run_command(predict, [*words, "min_level=-60"], name="predict") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    none = [row for row in rows if row["class"] == "none of these"]
    assert [(row["start"], row["probability"]) for row in none] == [("0.0", "")]
    assert 0.69 < float(none[0]["stop"]) <= 1.0
    for further in ("threshold=1", "background=[cut,wash,pan,lid]"):
        assert run_command(predict, [*words, further], name="predict") == 0
        (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
        assert (row["start"], row["stop"], row["class"]) == ("0.0", "2.0", "none of these")
    assert run_command(predict, [*words, "background=[fish]"], name="predict") == 2
    assert "background=['fish'] are no classes of" in capsys.readouterr().err
    found = load_classifier(folder).windows(torch.full((16000,), 0.1))
    assert found.level == pytest.approx(np.full(len(found.level), -20.0))
