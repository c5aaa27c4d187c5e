"""One night trains as many clips do; too little to contrast is refused; one channel is chosen."""

import logging
import re

import numpy as np
import pytest
import soundfile
import torch

from ssmast.command import run_command
from ssmast.training import pretrain
from ssmast.training.checkpoint import checkpoints, load_checkpoint
from ssmast.training.metrics_log import read_metrics
from ssmast.training.step import TrainingState
from tests.training.processes import SMALL, write_tones


def _run(*words: str) -> int:
    return run_command(pretrain.main, [*SMALL, *words], name="ssmast pretrain")


def _weights(run) -> dict[str, torch.Tensor]:
    _, tensors = load_checkpoint(checkpoints(run / "checkpoints")[-1])
    return {f"{group}/{name}": t for group, items in tensors.items() for name, t in items.items()}


@pytest.fixture(scope="module", params=["wav", "ogg"])
def night(request, tmp_path_factory):
    """90 s of tones, a new one every second; read in place, or from a decoded copy."""
    folder = tmp_path_factory.mktemp("night")
    time = np.arange(16000) / 16000
    pitch = np.random.default_rng(0).uniform(150, 3000, 90)
    sound = np.concatenate([0.3 * np.sin(2 * np.pi * hertz * time) for hertz in pitch])
    soundfile.write(folder / f"night.{request.param}", sound, 16000)
    return folder


def test_one_recording_trains_and_goes_on_to_the_same_bits(night, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="ssmast")
    assert _run(f"data={night}", f"run={tmp_path}/whole") == 0
    assert "1 of 1 files are over a minute" in caplog.text
    assert "9 clips of 10 s" in caplog.text
    assert min(row["loss"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")) > 0.1

    real = TrainingState.train_step

    def dies(self, batch):
        if self.step == 4:
            raise KeyboardInterrupt
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "train_step", dies)
        assert _run(f"data={night}", f"run={tmp_path}/cut") != 0
    assert _run(f"data={night}", f"run={tmp_path}/cut", "resume=auto") == 0
    whole, cut = _weights(tmp_path / "whole"), _weights(tmp_path / "cut")
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


def test_other_lengths_of_clips_are_other_audio(night, tmp_path, capsys):
    assert _run(f"data={night}", f"run={tmp_path}/a", "clip_seconds=20") == 0
    assert _run(f"data={night}", f"run={tmp_path}/a", "resume=auto") != 0
    assert "clip_seconds" in capsys.readouterr().err


def test_a_silent_piece_is_said_to_be_of_a_file_that_trains(tmp_path, caplog):
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000 * 90)
    noise[16000 * 20 : 16000 * 60] = 0
    (tmp_path / "nights").mkdir()
    soundfile.write(tmp_path / "nights/one.wav", noise, 16000)
    assert _run(f"data={tmp_path}/nights", f"run={tmp_path}/run") == 0
    assert "clips of 1 file(s) were left out" in caplog.text


@pytest.mark.parametrize("words", [("clip_seconds=0",), ("batch_size=1000",)])
def test_what_cannot_be_contrasted_is_refused(night, tmp_path, capsys, words):
    assert _run(f"data={night}", f"run={tmp_path}/a", *words) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"clip\(s\), 90 s or \d+ segments of 0\.32 s", said)
    assert "batch_size=" in said
    assert not (tmp_path / "a" / "metrics.jsonl").exists()


def test_a_training_hears_the_channel_that_was_asked_for(tmp_path):
    write_tones(tmp_path / "mono", num=6)
    for i, file in enumerate(sorted((tmp_path / "mono").rglob("*.wav"))):
        tone, rate = soundfile.read(file)
        other = np.random.default_rng(i).uniform(-0.3, 0.3, len(tone))
        copy = tmp_path / "stereo" / file.relative_to(tmp_path / "mono")
        copy.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(copy, np.stack([other, tone], axis=1), rate)
    asked = {"mono": "mean", "right": "right", "one": "1", "left": "left"}
    for name, channel in asked.items():
        data = tmp_path / ("mono" if name == "mono" else "stereo")
        assert (
            _run(f"data={data}", f"run={tmp_path}/run_{name}", f"channel={channel}", "steps=2") == 0
        )
    mono, right, one, left = (_weights(tmp_path / f"run_{name}") for name in asked)
    assert all(torch.equal(mono[name], right[name]) for name in mono)
    assert all(torch.equal(mono[name], one[name]) for name in mono)
    assert not all(torch.equal(mono[name], left[name]) for name in mono)
