"""A whole pretraining run, small: its folder, its errors, stopping it and going on."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ssmast.audio import open_corpus
from ssmast.command import run_command
from ssmast.encoder import load_encoder
from ssmast.prepare import prepare_corpus
from ssmast.training import pretrain
from ssmast.training import run as run_module
from ssmast.training.checkpoint import checkpoints, load_checkpoint
from ssmast.training.metrics_log import read_metrics
from ssmast.training.step import TrainingState
from tests.held import held
from tests.training.processes import DOOR, SMALL, write_tones


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    """Twelve tones, one clip each, in a folder of folders."""
    return write_tones(tmp_path_factory.mktemp("audio"))


def _run(*words: str, audio: Path, run: Path) -> int:
    argv = [*SMALL, f"data={audio}", f"run={run}", *words]
    return run_command(pretrain.main, argv, name="ssmast pretrain")


def _final_state(run: Path) -> dict[str, torch.Tensor]:
    _, tensors = load_checkpoint(checkpoints(run / "checkpoints")[-1])
    return {f"{group}/{name}": t for group, items in tensors.items() for name, t in items.items()}


def _assert_same_state(one: Path, other: Path) -> None:
    a, b = _final_state(one), _final_state(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture(scope="module")
def finished(audio, tmp_path_factory) -> Path:
    """A finished run that others are compared with."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert _run(audio=audio, run=run) == 0
    return run


def test_a_signal_in_the_last_step_stops_the_run(finished, audio, tmp_path, monkeypatch, capsys):
    """Whitening, the encoder and the page would take minutes, and more runs may follow them."""
    run, usual = tmp_path / "run", TrainingState.train_step

    def last_is_disturbed(self, batch):
        result = usual(self, batch)
        if self.step == self.steps:
            signal.raise_signal(signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "train_step", last_is_disturbed)
        assert _run(audio=audio, run=run) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; the state is saved" in capsys.readouterr().err
    assert not (run / "encoder").exists()
    assert _run("resume=auto", audio=audio, run=run) == 0
    _assert_same_state(run, finished)
    assert load_encoder(run / "encoder").sha256 == load_encoder(finished / "encoder").sha256


def test_a_run_leaves_what_is_promised(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "encoder", "report.html"} <= names
    rows = read_metrics(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(row["loss"]) for row in rows)
    used = sum(row["processor_seconds"] for row in rows)
    assert 0 < used < time.process_time()
    encoder = load_encoder(finished / "encoder")
    assert encoder.embed(np.zeros(8000, np.float32), 16000).shape == (1, encoder.dim)


def test_the_same_command_gives_the_same_bits(finished, audio, tmp_path):
    assert _run(audio=audio, run=tmp_path / "again") == 0
    _assert_same_state(finished, tmp_path / "again")
    assert read_losses(finished) == read_losses(tmp_path / "again")


def test_a_prepared_corpus_normalises_by_what_it_knows_and_else_is_measured(
    audio, tmp_path, caplog
):
    corpus = tmp_path / "corpus"
    about = prepare_corpus(open_corpus(audio), corpus, workers=1, near_duplicates=0)
    known = (about["mean"], about["std"])
    for mels, uses in ((128, True), (32, False)):
        run, words = tmp_path / str(mels), ["steps=1", f"front_end.num_mels={mels}"]
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert _run(*words, audio=corpus, run=run) == 0
        facts = json.loads((run / "facts.json").read_text())
        front = load_encoder(run / "encoder").log_mel
        assert (facts["mean"], facts["std"]) == (front.mean, front.std)
        assert ((front.mean, front.std) == known) is uses
        assert (", from corpus.json" in caplog.text) is uses


def read_losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl")]


def test_a_killed_run_goes_on_to_the_same_bits(finished, audio, tmp_path, monkeypatch):
    run = tmp_path / "killed"
    step = TrainingState.train_step
    monkeypatch.setattr(TrainingState, "train_step", _dies_at(step, 5))
    with pytest.raises(RuntimeError, match="killed"):
        _run(audio=audio, run=run)
    monkeypatch.setattr(TrainingState, "train_step", step)
    assert _run("resume=auto", "workers=1", audio=audio, run=run) == 0
    _assert_same_state(finished, run)
    assert read_losses(finished) == read_losses(run)


def _dies_at(step, number):
    def train_step(self, segments):
        if self.step + 1 == number:
            raise RuntimeError("killed")
        return step(self, segments)

    return train_step


def test_a_run_folder_is_not_overwritten(finished, audio, capsys):
    assert _run(audio=audio, run=finished) == 1
    assert "already holds a run; add resume=auto" in capsys.readouterr().err


def test_going_on_with_other_settings_names_them(finished, audio, capsys):
    assert _run("resume=auto", "batch_size=6", audio=audio, run=finished) == 1
    assert "batch_size (was 4, now 6)" in capsys.readouterr().err


def test_going_on_with_other_audio_is_refused_and_leaves_the_run_as_it_was(
    finished, tmp_path, capsys
):
    other = write_tones(tmp_path / "other", num=5)
    before = (finished / "config.yaml").read_text()
    for words in (["resume=auto"], ["resume=auto", "--dry-run"]):
        assert _run(*words, audio=other, run=finished) == 1
        said = capsys.readouterr().err
        assert "was started on other audio (12 clips, now 5); resume with the same data=" in said
    assert (finished / "config.yaml").read_text() == before


def test_going_on_with_other_audio_of_the_same_names_and_sizes_is_refused(
    finished, audio, tmp_path, capsys
):
    """A noisy version of the set; a copy of the clean one is taken."""
    noisy, copy = tmp_path / "noisy", tmp_path / "copy"
    shutil.copytree(audio, copy)
    shutil.copytree(audio, noisy)
    for file in noisy.glob("**/*.wav"):
        samples, rate = soundfile.read(file)
        soundfile.write(file, samples[::-1], rate)
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert _run("resume=auto", audio=copy, run=run) == 0
    assert _run("resume=auto", audio=noisy, run=run) == 1
    said = capsys.readouterr().err
    assert "clips of the same names and sizes hold other bytes now; resume with the same" in said


def test_a_checkpoint_of_a_run_on_other_audio_is_refused(finished, tmp_path, capsys):
    other = write_tones(tmp_path / "other", num=12)
    (other / "0" / "3.wav").rename(other / "0" / "99.wav")
    words = [f"resume={checkpoints(finished / 'checkpoints')[0]}"]
    assert _run(*words, audio=other, run=tmp_path / "run") == 1
    assert "belongs to a run on other audio; give the data= that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "a: [", "config.yaml cannot be read as plain YAML"),
        ("config.yaml", "", "config.yaml holds no settings of a run"),
        ("config.yaml", "seed: 0\noptim:\n  lr", " more: it is cut short, or of another command"),
        ("facts.json", '{"mean": ', "facts.json is damaged: it is not JSON"),
        ("facts.json", "[]", "facts.json is damaged: it holds no JSON object"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    file, content, message, finished, audio, tmp_path, capsys
):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / file).write_text(content)
    assert _run("resume=auto", audio=audio, run=run) == 1
    assert message in capsys.readouterr().err


def test_what_may_change_on_going_on_is_what_changes_no_number(finished, audio, capsys):
    may = [
        "workers=1",
        "checkpoint_every=1",
        "log_every=2",
        "threads=1",
        "optim.gradient_accumulation_steps=2",
    ]
    assert _run("resume=auto", *may, audio=audio, run=finished) == 0
    for word in ("steps=7", "optim.lr=1e-4", "seed=1", "loss.queue_size=16", "drop_path=0.1"):
        assert _run("resume=auto", word, audio=audio, run=finished) == 1
        assert f"{word.partition('=')[0]} (was " in capsys.readouterr().err


def test_a_checkpoint_of_another_config_is_refused_naming_what_differs(
    finished, audio, tmp_path, capsys
):
    foreign = finished / "checkpoints" / "00000004"
    words = [f"resume={foreign}", "optim.lr=1e-4", "views.mixup_rate=0.3"]
    assert _run(*words, audio=audio, run=tmp_path / "new") == 1
    said = capsys.readouterr().err
    assert "optim.lr (was 0.0005, now 0.0001); " in said
    assert "views.mixup_rate (was 0.2, now 0.3)" in said
    assert _run(f"resume={foreign}", audio=audio, run=tmp_path / "same") == 0
    _assert_same_state(finished, tmp_path / "same")


def test_a_folder_that_is_no_run_and_a_file_are_left_alone(audio, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    for resume in ("never", "auto"):
        assert _run(f"resume={resume}", audio=audio, run=tmp_path) == 1
        assert "holds files but is not a run folder" in capsys.readouterr().err
    assert _run(audio=audio, run=tmp_path / "thesis.tex") == 1
    assert "is a file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("words", [("seed=7",), ("resume=auto",)])
def test_what_another_process_did_while_data_were_opened_is_seen(
    audio, tmp_path, monkeypatch, capsys, words
):
    run, usual, before = tmp_path / "run", run_module.steps_of, list[bytes]()

    def slow(config, **sizes):
        monkeypatch.setattr(run_module, "steps_of", usual)
        assert _run("steps=1", audio=audio, run=run) == 0
        before.append((run / "metrics.jsonl").read_bytes())
        return usual(config, **sizes)

    monkeypatch.setattr(run_module, "steps_of", slow)
    status = _run("steps=1", *words, audio=audio, run=run)
    assert status == (0 if "resume=auto" in words else 1)
    assert ("already holds a run" in capsys.readouterr().err) == bool(status)
    assert (run / "metrics.jsonl").read_bytes() == before[0]


def test_a_second_process_is_kept_out(audio, tmp_path, capsys):
    run = tmp_path / "run"
    imports = "from ssmast.training.run_folder import RunFolder"
    with held(imports, "RunFolder(path=place).locked()", run):
        assert _run(audio=audio, run=run) == 1
        assert "another process is training in" in capsys.readouterr().err
    assert _run("steps=1", audio=audio, run=run) == 0


def test_a_run_killed_between_encoder_and_report_gets_its_report(finished, audio, tmp_path):
    run = tmp_path / "run"
    assert _run(audio=audio, run=run) == 0
    (run / "report.html").unlink()
    assert _run("resume=auto", audio=audio, run=run) == 0
    assert (run / "report.html").is_file()
    _assert_same_state(finished, run)


def test_going_on_with_a_finished_run_changes_nothing(finished, audio):
    before = (finished / "metrics.jsonl").read_bytes()
    assert _run("resume=auto", audio=audio, run=finished) == 0
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_half_written_checkpoint_falls_back(finished, audio, tmp_path, capsys, caplog):
    run = tmp_path / "half"
    assert _run(audio=audio, run=run) == 0
    newest = checkpoints(run / "checkpoints")[-1]
    (newest / "student.safetensors").write_bytes(b"half")
    for file in (run / "encoder").iterdir():
        file.unlink()
    assert _run("resume=auto", audio=audio, run=run) == 0
    assert "student.safetensors is not what was written" in caplog.text
    _assert_same_state(finished, run)


def test_a_run_starts_from_an_earlier_one_and_going_on_does_not_start_again(
    finished, audio, tmp_path, monkeypatch, caplog
):
    source, whole, killed = (tmp_path / name for name in ("source", "whole", "killed"))
    shutil.copytree(finished, source)
    with caplog.at_level("INFO"):
        assert _run(f"init={source}", audio=audio, run=whole) == 0
    assert "tensors used as they are" in caplog.text
    told = json.loads((whole / "init.json").read_text())
    assert told["used"]
    assert not told["left"]
    assert read_losses(whole) != read_losses(finished)
    step = TrainingState.train_step
    monkeypatch.setattr(TrainingState, "train_step", _dies_at(step, 5))
    with pytest.raises(RuntimeError, match="killed"):
        _run(f"init={source}", audio=audio, run=killed)
    monkeypatch.setattr(TrainingState, "train_step", step)
    shutil.rmtree(source)
    assert _run(f"init={source}", "resume=auto", audio=audio, run=killed) == 0
    _assert_same_state(whole, killed)


def test_a_missing_resume_point_is_an_error(audio, tmp_path, capsys):
    assert _run(f"resume={tmp_path}/nothing", audio=audio, run=tmp_path / "run") == 1
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["data=/no/such/folder"], 1, "does not exist"),
        (["optim.lrr=1"], 2, "did you mean 'optim.lr'"),
        (["recipe=nothing"], 2, "recipe 'nothing' was not found"),
        (["processes=2"], 1, "2 processes were asked for but 1 is running"),
        (
            ["batch_size=6", "optim.gradient_accumulation_steps=4", "head.norm=layer"],
            1,
            "batch_size=6",
        ),
        (["model=mast_huge"], 2, "the models are mast_base"),
        (["init=imagenet"], 2, "init=imagenet needs a model that timm has weights for"),
        (["init=weights.pth"], 1, "may hold a pickle"),
    ],
)
def test_mistakes_end_in_one_sentence(words, status, message, audio, tmp_path, capsys):
    assert _run(*words, audio=audio, run=tmp_path / "run") == status
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said
    assert said.startswith("ssmast pretrain: ")


def test_an_empty_folder_and_one_of_broken_files_are_refused(audio, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert _run(audio=empty, run=tmp_path / "a") == 1
    assert "no sound file was found" in capsys.readouterr().err
    broken = tmp_path / "broken"
    broken.mkdir()
    for i in range(30):
        (broken / f"{i}.wav").write_text("not audio")
    assert _run(audio=broken, run=tmp_path / "b") == 1
    assert "could be used" in capsys.readouterr().err


def test_a_few_broken_files_are_listed_and_skipped(audio, tmp_path, caplog):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i, file in enumerate(sorted(audio.rglob("*.wav"))):
        (mixed / f"{i}.wav").write_bytes(file.read_bytes())
    (mixed / "bad.wav").write_text("version https://git-lfs.github.com/spec/v1\n")
    (mixed / "nan.wav").write_bytes(b"")
    assert _run("steps=8", audio=mixed, run=tmp_path / "run") == 0
    assert " clips were left out, see " in caplog.text
    listed = (tmp_path / "run" / "quarantine.csv").read_text()
    assert "bad.wav" in listed
    assert "nan.wav" in listed


@pytest.mark.slow
def test_asking_for_two_and_getting_one_is_an_error(audio, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += [str(DOOR), *SMALL, f"data={audio}", f"run={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "2 processes were asked for but 1 is running" in done.stderr
