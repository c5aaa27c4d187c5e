"""Runs that fail: stopped by the alarm, or stepping over batches that are then made again."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssmast.audio.corpus import quarantine
from ssmast.settings import parse
from ssmast.training import loop, pretrain, replay
from ssmast.training.checkpoint import checkpoints, load_checkpoint
from ssmast.training.config import PretrainConfig
from ssmast.training.metrics_log import read_metrics
from ssmast.training.replay import open_dataset, replay_batch
from ssmast.training.run_folder import RunFolder, read_skipped, write_skipped
from ssmast.training.step import TrainingState
from tests.sets import write_set
from tests.training.processes import DOOR, SMALL, Group
from tests.training.test_pretrain import _run, audio

__all__ = ["audio"]  # a fixture


def test_the_alarm_can_stop_a_run_which_then_goes_on(audio, tmp_path, capsys):
    run = tmp_path / "run"
    words = ("optim.lr=9", "steps=30", "log_every=5", "checkpoint_every=0")
    words += ("loss.queue_fraction=0",)  # or the queue of two keys is the first to be all alike
    assert _run(*words, "alarm=stop", audio=audio, run=run) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "alarm=stop ended the run at step 25" in said
    assert "lower optim.lr (up to 9 so far)" in said
    [saved] = checkpoints(run / "checkpoints")
    state, _ = load_checkpoint(saved)
    assert state["step"] == 25
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert list(last["alarms"]) == ["learning_rate"]
    assert not (run / "encoder").exists()
    # The run stands where it was stopped, and may go on all the same; the alarm then only warns.
    assert _run(*words, "resume=auto", "alarm=warn", audio=audio, run=run) == 0
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, *range(5, 31, 5)]
    assert "alarms" in rows[6]
    assert "Alarm" in (run / "report.html").read_text()


def _with_a_nan_in(monkeypatch, steps: set[int]) -> list[dict[str, torch.Tensor]]:
    """Make the loss of some steps NaN; returns the batches of those steps, as they come."""
    step, batches = TrainingState.train_step, []

    def train_step(self, segments):
        if self.step + 1 in steps:
            parts = vars(replace(segments, ids=None)).items()  # on a card a copy of `clip`
            batches.append({k: v.clone() for k, v in parts if isinstance(v, torch.Tensor)})
            segments.waveform[1] = float("nan")
        return step(self, segments)

    monkeypatch.setattr(TrainingState, "train_step", train_step)
    return batches


def test_a_skipped_batch_can_be_made_again(audio, tmp_path, monkeypatch, capsys, caplog):
    run = tmp_path / "run"
    batches = _with_a_nan_in(monkeypatch, {2, 5})
    assert _run("views.waveform_augment=1.0", audio=audio, run=run) == 0
    rows = read_skipped(run / "skipped.jsonl")
    assert [row["step"] for row in rows] == [2, 5]
    assert [bool(row.get("skipped")) for row in read_metrics(run / "metrics.jsonl")] == [
        False, True, False, False, True, False,
    ]  # fmt: skip
    config = parse(PretrainConfig, [f"recipe={run / 'config.yaml'}"], command="test", recipes=run)
    assert config is not None
    dataset = open_dataset(RunFolder(path=run), config)
    for row, batch in zip(rows, batches, strict=True):
        again = replay_batch(dataset, row)
        for key, value in batch.items():
            assert torch.equal(getattr(again, key), value.cpu()), key
    capsys.readouterr()
    assert replay.main([f"run={run}", "step=5"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "step,position,clip,peak,rms,finite,name"
    assert [line.split(",")[0] for line in lines[1:]] == ["5"] * 4
    # A kill may have cut the last line short; what is written next is a line of its own.
    before = (run / "skipped.jsonl").read_bytes()
    (run / "skipped.jsonl").write_bytes(before + b'{"step": 6, "it')
    assert [row["step"] for row in read_skipped(run / "skipped.jsonl")] == [2, 5]
    write_skipped(run / "skipped.jsonl", step=7, loss=1, grad_norm=1, items=[])
    assert [row["step"] for row in read_skipped(run / "skipped.jsonl")] == [2, 5, 7]
    assert "skipped.jsonl: 1 lines are cut short, left out" in caplog.text
    (run / "skipped.jsonl").write_bytes(b"[1]\n")
    with pytest.raises(ValueError, match="is no list of skipped steps"):
        read_skipped(run / "skipped.jsonl")
    (run / "skipped.jsonl").write_bytes(before)
    rows[0]["items"][0]["name"] = "other.wav"
    with pytest.raises(ValueError, match=r"was other\.wav; replay on the same audio"):
        replay_batch(dataset, rows[0])
    with pytest.raises(ValueError, match="has no step 3"):
        replay.main([f"run={run}", "step=3"])


def test_a_skipped_batch_of_hidden_patches_has_one_segment_a_clip(audio, tmp_path, monkeypatch):
    run = tmp_path / "run"
    batches = _with_a_nan_in(monkeypatch, {2})
    small = [word for word in SMALL if not word.startswith(("recipe", "head.", "loss."))]
    words = [*small, "recipe=ssast_nano", "views.frames=64", "steps=3"]
    assert pretrain.main([*words, f"data={audio}", f"run={run}"]) == 0
    config = parse(PretrainConfig, [f"recipe={run / 'config.yaml'}"], command="test", recipes=run)
    assert config is not None
    [row] = read_skipped(run / "skipped.jsonl")
    again = replay_batch(open_dataset(RunFolder(path=run), config), row).waveform
    assert again.shape[1] == 1
    assert torch.equal(again, batches[0]["waveform"].cpu())


def test_too_many_non_finite_steps_in_a_row_end_the_run(audio, tmp_path, monkeypatch, capsys):
    _with_a_nan_in(monkeypatch, {2, 4, 5, 6})
    run = tmp_path / "run"
    assert _run("max_skipped=3", audio=audio, run=run) == 1
    said = capsys.readouterr().err
    assert "3 steps in a row gave a non-finite loss or gradient" in said
    assert "skipped.jsonl" in said
    assert [row["step"] for row in read_skipped(run / "skipped.jsonl")] == [2, 4, 5, 6]


def _group(size: int, *words: str, audio: Path, run: Path) -> Group:
    return Group(size, DOOR, *SMALL, f"data={audio}", f"run={run}", *words)


def test_a_full_disk_costs_the_lists_of_clips_and_not_the_run(tmp_path, monkeypatch, caplog):
    """What is in memory would be lost: nothing was saved since the last checkpoint."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _with_a_nan_in(monkeypatch, {2})
    monkeypatch.setattr(loop, "write_skipped", full)
    monkeypatch.setattr(quarantine, "_append_quarantine", full)
    audio, run = write_set(tmp_path / "data", num_clips=13, bad=1), tmp_path / "run"
    assert _run("steps=4", "log_every=1", audio=audio, run=run) == 0
    assert caplog.text.count("a list of clips could not be written") == 2
    assert "1 of 13 clips were left out" in caplog.text


@pytest.mark.slow
def test_two_processes_probe_and_are_stopped_by_the_alarm_together(audio, tmp_path):
    write_set(tmp_path / "tones")
    words = ("steps=60", "log_every=5", "checkpoint_every=0", "optim.lr=9", "alarm=stop")
    words += (f"probe.data={tmp_path / 'tones'}", "probe.max_clips=24", "probe.every=10")
    rows = []
    for size in (1, 2):
        run = tmp_path / str(size)
        group = _group(size, *words, audio=audio, run=run)
        assert group.wait() == [1] * size
        assert all("alarm=stop ended the run at step 25" in said for said in group.said)
        [saved] = checkpoints(run / "checkpoints")
        assert load_checkpoint(saved)[0]["step"] == 25
        rows.append(read_metrics(run / "metrics.jsonl"))
    one, two = rows
    assert [row["step"] for row in one] == [row["step"] for row in two]
    scores = [{k: v for k, v in row[0].items() if not k.endswith("seconds")} for row in rows]
    assert scores[0] == scores[1]  # of the untrained encoder
    for key in ("loss", "rank_embedding", "uniformity", "key_std", "chance_loss"):
        assert one[1][key] == pytest.approx(two[1][key], rel=1e-5), key


@pytest.mark.slow
def test_two_processes_skip_together_and_write_one_list(audio, tmp_path):
    run = tmp_path / "run"
    script = Path(__file__).with_name("nan_on_one_process.py")
    group = Group(2, script, *SMALL, f"data={audio}", f"run={run}")
    assert group.wait() == [0, 0]
    rows = read_skipped(run / "skipped.jsonl")
    assert [row["step"] for row in rows] == [3]
    assert [item["position"] for item in rows[0]["items"]] == [8, 9, 10, 11]
    assert [bool(row.get("skipped")) for row in read_metrics(run / "metrics.jsonl")] == [
        False, False, True, False, False, False,
    ]  # fmt: skip
    assert load_checkpoint(checkpoints(run / "checkpoints")[-1])[0]["step"] == 6


def test_what_ends_the_first_process_ends_all_with_its_sentence(audio, tmp_path):
    script = tmp_path / "broken.py"
    script.write_text(
        "import sys\n"
        "from ssmast.command import run_command\n"
        "from ssmast.training import inputs, pretrain\n"
        "def measure_mean_std(*_, **__):\n"
        "    raise KeyError('a broken disk')\n"
        "inputs.measure_mean_std = measure_mean_std\n"
        "sys.exit(run_command(pretrain.main, sys.argv[1:], name='ssmast pretrain'))\n"
    )
    group = Group(2, script, *SMALL, f"data={audio}", f"run={tmp_path / 'run'}")
    assert group.wait(60) == [1, 1]
    assert "KeyError: 'a broken disk'" in group.said[0]
    wanted = "ssmast pretrain: the main process ended: KeyError: 'a broken disk'"
    assert group.said[1].strip().splitlines()[-1] == wanted
