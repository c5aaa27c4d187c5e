"""Objectives outside the package: each a file of at most 60 lines with everything else working."""

import importlib.util
import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmast import export
from ssmast.command import run_command
from ssmast.encoder import load_encoder
from ssmast.evaluation import suite
from ssmast.settings import parse
from ssmast.training import pretrain, replay, show_views
from ssmast.training.checkpoint import checkpoints, load_checkpoint
from ssmast.training.config import RECIPES
from ssmast.training.metrics_log import read_metrics
from ssmast.training.objective import Objective
from ssmast.training.objectives import OBJECTIVES
from ssmast.training.run_folder import RunFolder
from ssmast.training.step import TrainingState
from tests.sets import write_set
from tests.training.processes import ROOT, SMALL, Group, write_tones
from tests.training.states import state_of
from tests.training.test_pretrain import _assert_same_state, _dies_at
from tests.training.test_ss_mast import _batch

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGE = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
OWN = [*(file.stem for file in EXAMPLES), "docs"]


def _module(name: str, folder: Path):
    """An example as a module, imported from its file."""
    file = ROOT / "examples" / f"{name}.py"
    if name == "docs":
        file = folder / "vicreg.py"
        [code] = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
        file.write_text(code)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, name, module)
        spec.loader.exec_module(module)
    return module


def _kind(name: str, folder: Path) -> type[Objective]:
    [kind] = [
        value
        for value in vars(_module(name, folder)).values()
        if isinstance(value, type) and issubclass(value, Objective)
    ]
    return kind


@pytest.fixture(scope="module", params=OWN)
def kind(request, tmp_path_factory):
    return _kind(request.param, tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    return write_tones(tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="module")
def finished(kind, audio, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert _train(kind, audio, run, "show_views=2") == 0
    return run


def _train(kind, audio: Path, run: Path, *words: str) -> int:
    small = [word for word in SMALL if not word.startswith("show_views")]
    return pretrain.train(kind, [*small, f"data={audio}", f"run={run}", *words])


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_at_most_60_lines(file):
    assert len(file.read_text().splitlines()) <= 60


def test_there_are_two_examples():
    assert [file.stem for file in EXAMPLES] == ["byol", "mosaic"]


def test_killed_it_ends_in_the_same_bits(kind, finished, audio, tmp_path, monkeypatch):
    run, step = tmp_path / "killed", TrainingState.train_step
    monkeypatch.setattr(TrainingState, "train_step", _dies_at(step, 5))
    with pytest.raises(RuntimeError, match="killed"):
        _train(kind, audio, run)
    monkeypatch.setattr(TrainingState, "train_step", step)
    assert _train(kind, audio, run, "resume=auto", "workers=1") == 0
    _assert_same_state(finished, run)


def test_what_it_trained_is_named_exported_embeds_and_probes(kind, finished, tmp_path, capsys):
    encoder = load_encoder(finished / "encoder")
    assert encoder.embed(np.zeros(8000, np.float32), 16000).shape == (1, encoder.dim)
    assert encoder.info["network"] == "student"
    assert export.main([str(finished), f"out={tmp_path / 'out'}"]) == 0
    assert load_encoder(tmp_path / "out").sha256 == encoder.sha256
    assert f"| objective | {kind.__name__} |" in (tmp_path / "out" / "README.md").read_text()
    page = (finished / "report.html").read_text()
    assert f"trained by {kind.__name__} on" in page
    assert "InfoNCE" not in page
    assert (finished / "views.png").stat().st_size > 10_000
    words = [f"encoder={finished / 'encoder'}", f"data={write_set(tmp_path / 'tones')}"]
    assert suite.main([*words, f"out={tmp_path / 'scores'}"]) == 0
    assert list((tmp_path / "scores").glob("*.json"))


def test_it_watches_itself_by_a_probe_and_says_what_it_would_do(kind, audio, tmp_path, capsys):
    words = [f"probe.data={write_set(tmp_path / 'tones')}", "probe.every=3", "probe.max_clips=12"]
    assert _train(kind, audio, tmp_path / "run", *words) == 0
    scored = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")
              if any(key.startswith("probe/") for key in row)]  # fmt: skip
    assert scored == [0, 3, 6]
    assert _train(kind, audio, tmp_path / "other", "--dry-run") == 0
    assert not (tmp_path / "other").exists()
    capsys.readouterr()
    assert pretrain.train(kind, ["--help"]) == 0
    assert "optim.lr" in capsys.readouterr().out
    assert _train(kind, audio, tmp_path / "other", "objective=ssast") == 2
    assert f"this file trains {kind.__name__}" in capsys.readouterr().err


def test_its_pictures_are_drawn_by_its_own_file_alone(kind, finished, tmp_path, capsys):
    out = tmp_path / "again.png"
    words = ["show-views", f"run={finished}", f"out={out}", "clips=2"]
    assert pretrain.train(kind, words) == 0
    assert out.read_bytes() == (finished / "views.png").read_bytes()
    words = [f"run={finished}", f"out={tmp_path / 'no.png'}"]
    assert run_command(show_views.main, words, name="show-views") == 2
    assert f"was trained by {kind.__name__}, an objective of its own" in capsys.readouterr().err


def test_a_skipped_batch_of_it_is_made_again(kind, audio, tmp_path, monkeypatch, capsys):
    step, run = TrainingState.train_step, tmp_path / "run"

    def train_step(self, segments):
        if self.step == 1:
            segments.waveform[1] = float("nan")
        return step(self, segments)

    monkeypatch.setattr(TrainingState, "train_step", train_step)
    assert _train(kind, audio, run) == 0
    capsys.readouterr()
    assert replay.main([f"run={run}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 4


def test_the_alarm_fires_when_it_collapses(kind, audio, tmp_path, capsys):
    class Collapsed(kind):
        def embed(self, views):
            return 1e-9 * super().embed(views) + 1.0

    Collapsed.__name__ = "Collapsed"
    words = ["steps=30", "alarm=stop", "log_every=5"]
    assert _train(Collapsed, audio, tmp_path / "run", *words) == 1
    assert "alarm=stop ended the run" in capsys.readouterr().err
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert "constant_encoder" in last["alarms"]


def test_an_encoder_that_is_no_part_of_it_is_refused(audio, tmp_path, capsys):
    class Hidden(_kind("mosaic", tmp_path)):
        def __init__(self, config, run):
            super().__init__(config, run)
            self.aside = [self.build_backbone()]

        def encoders(self):
            return {"student": self.backbone, "other": self.aside[0]}

    assert _train(Hidden, audio, tmp_path / "run") == 1
    assert "names other, which is no attribute" in capsys.readouterr().err


def test_a_network_that_it_lacks_is_not_exported(audio, tmp_path, capsys):
    kind = _kind("mosaic", tmp_path)
    assert _train(kind, audio, tmp_path / "run", "export.network=teacher") == 2
    assert "export.network must be student: Mosaic has no teacher" in capsys.readouterr().err


# -- every objective, in the package or not --------------------------------------------------------

_NAMES = [*OBJECTIVES, *OWN]


def _state(name: str, folder: Path, parts: int = 1) -> TrainingState:
    own = OBJECTIVES[name] if name in OBJECTIVES else _kind(name, folder)
    words = ["recipe=" + ("ssast_nano" if name == "ssast" else "smoke"), "batch_size=16"]
    words += ["front_end.num_mels=32", "views.frames=32", "optim.warmup=0.5", "steps=4"]
    words += ["optim.max_grad_norm=0", f"optim.gradient_accumulation_steps={parts}"]
    if name == "ssast":
        words.append("ssast.cluster=[1,1]")
    else:
        words += ["head.hidden=16", "head.dim=8", "views.mixup_memory=8"]
    if name in OBJECTIVES:
        words.append(f"objective={name}")
        words += ["views.columns=0"] if name == "ss_mast_mosaic" else []  # 32 frames: one group
        words += ["views.local=2"] if name in ("ss_mast", "swav", "dino") else []
    if name not in ("ssast", "ss_mast"):
        words.append("loss.queue_size=576")  # the recipe's own is for a queue
    config = parse(own.settings, words, command="test", recipes=RECIPES)
    return state_of(own, config)


def _segments(own: TrainingState, seed: int = 0):
    batch = _batch(seed, size=16)
    batch.waveform = batch.waveform[:, : own.objective.num_segments]
    return batch


@pytest.mark.parametrize("name", _NAMES)
def test_accumulation_of_four_gives_the_gradient_of_one(name, tmp_path):
    gradients = []
    for parts in (1, 4):
        state = _state(name, tmp_path, parts)
        result = state.train_step(_segments(state))
        found = [p.grad.flatten() for p in state.objective.parameters() if p.grad is not None]
        gradients.append((float(result.loss.loss), torch.cat(found).double()))
    (loss_1, one), (loss_4, four) = gradients
    assert loss_4 == pytest.approx(loss_1, rel=1e-5)
    assert float((one - four).norm() / one.norm()) < 1e-5


@pytest.mark.parametrize("name", _NAMES)
def test_a_skipped_step_moves_nothing(name, tmp_path):
    state = _state(name, tmp_path)
    state.train_step(_segments(state))
    before = _copies(state)
    bad = _segments(state, 1)
    bad.waveform[3] = float("nan")
    assert state.train_step(bad).skipped
    after = _copies(state)
    assert [key for key, value in before.items() if not torch.equal(value, after[key])] == []
    assert state.step == 2


@pytest.mark.parametrize("name", _NAMES)
def test_a_resumed_state_goes_on_to_the_same_bits(name, tmp_path):
    whole = _state(name, tmp_path)
    for seed in (0, 1):
        whole.train_step(_segments(whole, seed))
    folder = RunFolder(path=tmp_path / "run")
    whole.save(folder)
    again = _state(name, tmp_path)
    again.load_(checkpoints(folder.checkpoints)[-1])
    for seed in (2, 3):
        for state in (whole, again):
            state.train_step(_segments(state, seed))
    one, two = _copies(whole), _copies(again)
    assert [key for key, value in one.items() if not torch.equal(value, two[key])] == []


def _copies(state: TrainingState) -> dict[str, torch.Tensor]:
    groups = state.tensors().items()
    return {f"{group}/{name}": t.clone() for group, own in groups for name, t in own.items()}


def test_a_checkpoint_of_an_older_version_is_refused_by_name(tmp_path):
    state, folder = _state("mosaic", tmp_path), RunFolder(path=tmp_path / "run")
    state.save(folder)
    [path] = checkpoints(folder.checkpoints)
    file = path / "state.json"
    old = {key: v for key, v in json.loads(file.read_text()).items() if key != "encoders"}
    file.write_text(json.dumps({**old, "version": "0.0.9"}))
    sums = json.loads((path / "checksums.json").read_text())
    import hashlib

    sums["state.json"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (path / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(ValueError, match=r"was written by ssmast 0\.0\.9 and cannot be resumed"):
        state.load_(path)


# -- real processes --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_two_processes_train_as_one_and_are_killed_and_resumed(file, audio, tmp_path):
    words = [*SMALL, "batch_size=12", "optim.lr=1e-5", "head.hidden=64", f"data={audio}"]
    for size in (1, 2):
        group = Group(size, file, *words, f"run={tmp_path / str(size)}")
        assert group.wait(300) == [0] * size, group.said[0]
    losses = [
        [row["loss"] for row in read_metrics(tmp_path / str(size) / "metrics.jsonl")]
        for size in (1, 2)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    norms = [
        read_metrics(tmp_path / str(size) / "metrics.jsonl")[0]["grad_norm"] for size in (1, 2)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    run = tmp_path / "killed"
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, runpy, signal, sys\n"
        "from ssmast.training.step import TrainingState\n"
        "step = TrainingState.train_step\n"
        "def train_step(self, segments):\n"
        "    if self.step == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, segments)\n"
        "TrainingState.train_step = train_step\n"
        f"runpy.run_path({str(file)!r}, run_name='__main__')\n"
    )
    group = Group(2, script, *words, f"run={run}")
    assert -signal.SIGKILL in group.wait(300)
    group = Group(2, file, *words, f"run={run}", "resume=auto")
    assert group.wait(300) == [0, 0], group.said[0]
    _assert_same_state(tmp_path / "2", run)
    _, tensors = load_checkpoint(checkpoints(run / "checkpoints")[-1])
    assert tensors["optimizer"]
    shutil.rmtree(run)


def test_a_class_that_cannot_train_is_refused_before_anything_is_read():
    class NoLoss(Objective):
        pass

    for kind, sentence in ((NoLoss, "NoLoss must define loss"), (dict, "a subclass of")):
        with pytest.raises(TypeError, match=sentence):
            pretrain.train(kind, [])
