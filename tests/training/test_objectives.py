"""The objectives of lightly's parts: their loss against lightly's, runs, alarm, processes."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightly.loss import BarlowTwinsLoss, DINOLoss, NTXentLoss, SwaVLoss, VICRegLoss
from torch.nn import functional as F

from ssmast.audio import ViewAugment, open_corpus
from ssmast.contrastive.monitors import feature_std
from ssmast.encoder import load_encoder
from ssmast.model import create_model
from ssmast.settings import UsageError, parse
from ssmast.training import pretrain
from ssmast.training.alarm import Alarm
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.metrics_log import read_metrics
from ssmast.training.objective import Objective, Step
from ssmast.training.objectives import OBJECTIVES
from ssmast.training.show_views import at_step, view_panels
from ssmast.training.step import TrainingState
from ssmast.training.views import build_augment
from tests.training.processes import DOOR, SMALL, Group, write_tones
from tests.training.states import state_of
from tests.training.test_pretrain import _assert_same_state, _dies_at
from tests.training.test_ss_mast import _batch

_NAMES = ["ss_mast_mosaic", "swav", "vicreg", "barlow_twins", "dino"]
_CROPS = ("ss_mast", "swav", "dino")  # that know short crops


def _words(name: str, *more: str) -> list[str]:
    small = [word for word in SMALL if not word.startswith(("loss.", "head.predictor"))]
    queue = "loss.queue_size=" + ("8" if name == "ss_mast" else "576")  # in place of the recipe's
    own = ["views.local=2"] if name in _CROPS else []
    own += ["views.columns=0"] if name == "ss_mast_mosaic" else []  # 32 frames are one group
    return [*small, queue, f"objective={name}", *own, *more]


def _config(name: str, *more: str) -> PretrainConfig:
    config = parse(PretrainConfig, _words(name, *more), command="test", recipes=RECIPES)
    assert config is not None
    return config


def _state(name: str, *more: str, kind: type[Objective[Any, Any, Any]] | None = None):
    return state_of(kind or OBJECTIVES[name], _config(name, "batch_size=8", *more))


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    return write_tones(tmp_path_factory.mktemp("audio"))


# -- the loss --------------------------------------------------------------------------------------


def _lightly(objective: Any, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same loss by lightly's own parts alone, on the heads of the objective."""
    config, name = objective.config, objective.config.objective
    crops = list(embeddings.unbind(1))
    if name == "dino":
        taught = [objective.teacher["head"](view) for view in targets.unbind(1)]
        loss = DINOLoss(config.dino.outputs, teacher_temp=0.04, student_temp=0.1)
        loss.center.copy_(objective.criterion.center)
        return loss(taught, [objective.head(crop) for crop in crops])
    if name == "ss_mast_mosaic":
        both = objective.projector(torch.stack(crops, dim=1).flatten(0, 1))
        return NTXentLoss(temperature=config.loss.temperature)(both[::2], both[1::2])
    z = [objective.projector(crop) for crop in crops]
    if name == "swav":
        similar = [
            F.normalize(x, dim=1) @ F.normalize(objective.prototypes.heads[0].weight, dim=1).T
            for x in z
        ]
        return SwaVLoss()(similar[:2], similar[2:])[0]
    return {"vicreg": VICRegLoss(), "barlow_twins": BarlowTwinsLoss()}[name](*z)


@pytest.mark.parametrize("name", _NAMES)
def test_the_loss_is_lightlys_of_the_same_tensors(name):
    state = _state(name)
    objective = state.objective
    for seed in range(2):  # a teacher and a centre of their own
        state.train_step(_batch(seed))
    num = 4 if name in _CROPS else 2
    embeddings = torch.randn(8, num, objective.embedding_dim)
    targets = torch.randn(8, 2, objective.embedding_dim)
    step = Step(number=1, ids=torch.arange(8), gather=lambda rows: rows)
    with torch.no_grad():
        found = objective.loss(embeddings, targets, step)
        wanted = _lightly(objective, embeddings, targets)
    assert found.loss.shape == ()
    assert float(found.loss) == pytest.approx(float(wanted), rel=1e-6)


def test_the_loss_of_dino_moves_no_centre_and_a_step_does():
    state = _state("dino")
    centre = state.objective.criterion.center
    views = state.objective.views(_batch(), 0)
    rows, step = state.objective.embed(views), Step(number=0, ids=_batch().clip, gather=lambda r: r)
    loss = state.objective.loss(rows, state.objective.targets(views), step)
    assert float(centre.abs().max()) == 0
    state.train_step(_batch())
    now = state.objective.criterion.center
    torch.testing.assert_close(now[0, 0], 0.1 * loss.taught.mean(dim=(0, 1)), rtol=1e-4, atol=1e-6)


def test_prototypes_have_unit_length_after_a_step():
    state = _state("swav")
    state.train_step(_batch())
    [head] = state.objective.prototypes.heads
    assert head.bias is None
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize("name", _NAMES)
def test_the_loss_falls_when_the_same_batch_comes_again(name):
    state = _state(name, "steps=20", "optim.lr=1e-3", "optim.warmup=0", "views.mixup_rate=0")
    losses = [float(state.train_step(_batch()).loss.loss) for _ in range(20)]
    late = losses[1:4] if name == "dino" else losses[-3:]  # its centre moves what it aims at
    assert np.mean(late) < 0.97 * losses[0]


@pytest.mark.parametrize("name", _NAMES)
def test_the_alarm_fires_when_it_collapses(name):
    num = 4 if name in _CROPS else 2

    class Collapsed(OBJECTIVES[name]):
        def embed(self, views):
            ones = torch.ones(len(views.raw), num, self.embedding_dim)
            return ones + 1e-9 * next(self.encoders()["student"].parameters()).sum()

    state = _state(name, "steps=30", kind=Collapsed)
    alarm, raised = Alarm(mode="stop", num_embeddings=16), {}
    for number in range(1, 31):
        row = state.numbers(state.train_step(_batch(number)))
        if number % 5 == 0 or number == 1:
            raised = alarm.look({"step": number, **row})
    assert "constant_encoder" in raised
    assert alarm.wants_stop


# -- views -----------------------------------------------------------------------------------------


def test_short_crops_are_a_third_of_a_segment_and_follow_from_the_clip_alone():
    objective = _state("swav").objective
    objective.make_views.augment = ViewAugment(mixup_rate=0)  # that changes nothing
    whole, again = objective.views(_batch(), 0), objective.views(_batch(), 7)
    part = objective.views(_batch().split(4)[1], 0)
    assert [crop.shape for crop in whole.local] == [(8, 1, 32, 10)] * 2
    assert not torch.equal(*whole.local)
    for one, other, rows in zip(whole.local, again.local, part.local, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one[2:4], rows)
    # Each lies somewhere in one of the two segments.
    for crop in whole.local:
        for i in range(8):
            places = torch.cat([view[i, 0].unfold(1, 10, 1) for view in whole.log_mels], dim=1)
            apart = (places - crop[i, 0][:, None]).abs().amax(dim=(0, 2))
            assert float(apart.min()) < 1e-4


def test_a_batch_without_short_crops_has_the_same_views():
    with_crops = _state("swav").objective.views(_batch(), 0)
    without = _state("swav", "views.local=0").objective.views(_batch(), 0)
    assert without.local == ()
    for one, other in zip(with_crops.log_mels, without.log_mels, strict=True):
        assert torch.equal(one, other)


def test_mosaic_views_lose_other_lines_and_the_encoder_computes_less():
    words = ["views.columns=0.5", "views.rows=0.25", "views.frames=64", "front_end.num_mels=64"]
    objective = _state("ss_mast_mosaic", *words).objective
    columns, rows = objective.views(_batch(), 3).drops
    grid = columns.grid
    assert (len(columns.rows), len(columns.columns)) == (grid.freq, grid.time // 2)
    assert (len(rows.rows), len(rows.columns)) == (3 * grid.freq // 4, grid.time)


def test_lost_lines_average_the_rate_that_was_asked_for():
    words = ["views.columns=0.6", "views.rows=0.3", "views.frames=128", "front_end.num_mels=64"]
    maker = _state("ss_mast_mosaic", *words).objective.make_views
    backbone = create_model("mast_nano", num_classes=0, input_size=(64, 128))
    drops = [
        maker.drop_lines(0, step=step, backbone=backbone, columns=0.6, rows=0.3)
        for step in range(400)
    ]
    grid = drops[0].grid
    columns = np.array([len(drop.columns) / grid.time for drop in drops])
    rows = np.array([len(drop.rows) / grid.freq for drop in drops])
    assert set(columns) == {0.25, 0.5}  # of 4 groups each
    assert set(rows) == {0.5, 0.75}
    assert columns.mean() == pytest.approx(0.4, abs=0.02)  # three standard errors
    assert rows.mean() == pytest.approx(0.7, abs=0.02)


def test_crops_are_as_wide_as_they_were_asked_for():
    augment = build_augment(_config("ss_mast", "views.crop_time=[3,3]", "views.mixup_rate=0"))
    clip = torch.zeros(64, 1, 32, 90)
    clip[..., 30:60] = 1.0
    draws = torch.rand(64, augment.num_draws)
    view = augment(clip, draws=draws, background=None, mean=0.0, std=1.0)
    middle = view[:, 0, 16]  # a clip is a third of its view, and its tone a third of that
    wide = (middle > middle.amax(dim=1, keepdim=True) / 2).sum(dim=1)
    assert wide.float().mean() == pytest.approx(10, abs=1)  # 20 of a canvas of 1.5


@pytest.mark.parametrize("name", ["swav", "ss_mast_mosaic"])
def test_the_views_that_are_drawn_are_those_that_it_is_fed(name, audio):
    words = ["views.frames=64", "views.columns=0.5"] if name == "ss_mast_mosaic" else []
    state = _state(name, "batch_size=4", *words)
    items = type(state.objective).items(state.config, open_corpus(audio), None)
    twin, segments = at_step(state.objective, items, step=0)
    [row] = view_panels(twin, segments, 0, clips=1)
    views = state.objective.views(segments, 0)
    titles = {panel.title: panel for panel in row}
    if name == "swav":
        for k, crop in enumerate(views.local):
            assert torch.equal(titles[f"short crop {k + 1}"].log_mel, crop[0, 0])
    else:
        lost = [titles[f"view {k}, its drop"].dropped for k in (1, 2)]
        assert [float(cells.float().mean()) for cells in lost] == [0.5, 0.5]
        assert any(line.all() for line in lost[0].T)
        assert any(line.all() for line in lost[1])


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("vicreg", "views.local=2", "views.local must be left alone by objective=vicreg"),
        ("ss_mast_mosaic", "views.local=1", "views.local must be left alone"),
        ("ss_mast_mosaic", "patch_drop.rate=0.4", "patch_drop.rate must be left alone"),
        ("ss_mast_mosaic", "loss.queue_size=9", "loss.queue_size must be left alone"),
        ("swav", "teacher.momentum=0.5", "teacher.momentum must be left alone"),
        ("dino", "head.norm=layer", "head.norm must be left alone"),
        ("dino", "swav.prototypes=9", "swav.prototypes must be left alone by objective=dino"),
        ("ss_mast", "ssast.masked=0.5", "ssast.masked must be left alone by objective=ss_mast"),
        ("swav", "views.frames=16", "views.frames must be at least 24 with views.local"),
        ("swav", "optim.lr=1e-7", "optim.min_lr must be at most optim.lr=1e-07, or the rate"),
    ],
)
def test_what_an_objective_does_not_use_is_refused(name, word, said):
    with pytest.raises(UsageError, match=said):
        _config(name, word)


def test_a_mosaic_that_loses_nothing_and_a_drop_twice_are_refused():
    with pytest.raises(UsageError, match=r"views\.columns must be above 0, or views\.rows"):
        _config("ss_mast_mosaic", "views.columns=0", "views.rows=0")
    with pytest.raises(UsageError, match=r"patch_drop\.rate must be 0 or left alone"):
        _config("ss_mast", "views.columns=0.5", "patch_drop.rate=0.4")
    lost = _config("ss_mast_mosaic", "patch_drop.rate=0", "views.columns=auto").lost_lines
    assert lost == (0.5, 0.5)
    with pytest.raises(ValueError, match=r"views\.columns=0\.5 is more than a view of 32 mel"):
        OBJECTIVES["ss_mast_mosaic"].check(_config("ss_mast_mosaic", "views.columns=auto"))
    assert _config("swav").lost_lines == (0, 0)


def test_crops_shorter_than_a_stem_are_refused_before_any_audio_is_read():
    config = _config("swav", "model=ast_nano")
    with pytest.raises(ValueError, match="at least as large as the stem's kernel"):
        OBJECTIVES["swav"].check(config)


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*_NAMES, "ss_mast"])
def test_killed_it_ends_in_the_same_bits_and_what_it_leaves_embeds(
    name, audio, tmp_path, monkeypatch
):
    words = ["steps=4", f"data={audio}"]
    whole = pretrain.run(_config(name, *words, f"run={tmp_path / 'whole'}"))
    step = TrainingState.train_step
    monkeypatch.setattr(TrainingState, "train_step", _dies_at(step, 3))
    with pytest.raises(RuntimeError, match="killed"):
        pretrain.run(_config(name, *words, f"run={tmp_path / 'killed'}"))
    monkeypatch.setattr(TrainingState, "train_step", step)
    pretrain.run(_config(name, *words, f"run={tmp_path / 'killed'}", "resume=auto"))
    _assert_same_state(whole, tmp_path / "killed")
    encoder = load_encoder(whole / "encoder")
    found = encoder.embed(np.random.default_rng(0).normal(size=8000).astype(np.float32), 16000)
    assert found.shape == (1, encoder.dim)
    assert feature_std(torch.cat([torch.as_tensor(found), torch.zeros(1, encoder.dim)])) > 0
    page = (whole / "report.html").read_text()
    assert "ssmast pretrain" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", [*_NAMES, "ss_mast"])
def test_two_processes_train_as_one_and_are_killed_and_resumed(name, audio, tmp_path):
    words = _words(name, "batch_size=12", "optim.lr=1e-5", "head.hidden=64", f"data={audio}")
    rows = {}
    for size in (1, 2):
        group = Group(size, DOOR, *words, f"run={tmp_path / str(size)}")
        assert group.wait(300) == [0] * size, group.said[0]
        rows[size] = read_metrics(tmp_path / str(size) / "metrics.jsonl")
    for key, lines in (("loss", len(rows[1])), ("grad_norm", 1)):
        one, two = ([row[key] for row in rows[size][:lines]] for size in (1, 2))
        assert two == pytest.approx(one, rel=1e-5)
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, runpy, signal\n"
        "from ssmast.training.step import TrainingState\n"
        "step = TrainingState.train_step\n"
        "def train_step(self, segments):\n"
        "    if self.step == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, segments)\n"
        "TrainingState.train_step = train_step\n"
        f"runpy.run_path({str(DOOR)!r}, run_name='__main__')\n"
    )
    group = Group(2, script, *words, f"run={tmp_path / 'killed'}")
    assert -signal.SIGKILL in group.wait(300)
    group = Group(2, DOOR, *words, f"run={tmp_path / 'killed'}", "resume=auto")
    assert group.wait(300) == [0, 0], group.said[0]
    _assert_same_state(tmp_path / "2", tmp_path / "killed")
