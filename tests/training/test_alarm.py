"""Runs that fail are told so within a few dozen steps; runs that do not are left in peace."""

import logging

import pytest
import torch

from ssmast.audio.segments import SegmentBatch
from ssmast.contrastive import KeyQueue
from ssmast.contrastive.monitors import chance_loss, effective_rank, feature_std, queue_numbers
from ssmast.training.alarm import WINDOW_STEPS, Alarm
from ssmast.training.config import FrontEnd, Head, Loss, Optim, PretrainConfig, Views
from ssmast.training.objectives.ss_mast import SSMAST
from ssmast.training.step import TrainingState
from tests.training.states import state_of

_MELS, _FRAMES, _BATCH, _STEPS = 32, 32, 8, 26


def _trainer(**changes) -> TrainingState:
    config = PretrainConfig(
        steps=_STEPS,
        batch_size=_BATCH,
        front_end=FrontEnd(num_mels=_MELS),
        views=Views(frames=_FRAMES, mixup_memory=16),
        head=Head(**({"hidden": 32, "dim": 16, "predictor": 32} | changes.get("head", {}))),
        loss=Loss(queue_size=40),
        optim=Optim(**changes.get("optim", {})),
    )
    return state_of(SSMAST, config)


def _batch(step: int) -> SegmentBatch:
    """Tones of 24 clips, each with its own pitch and beat."""
    generator = torch.Generator().manual_seed(step)
    time = torch.arange((_FRAMES - 1) * 160) / 16000
    clip = torch.randperm(24, generator=generator)[:_BATCH]
    pitch = 150 * 1.18 ** clip[:, None, None]
    beat = 1 + 0.9 * torch.sin(2 * torch.pi * (3 + 5 * (clip % 5))[:, None, None] * time)
    noise = torch.randn(_BATCH, 2, len(time), generator=generator)
    return SegmentBatch(
        waveform=0.3 * torch.sin(2 * torch.pi * pitch * time) * beat + 0.02 * noise,
        clip=clip,
        epoch=torch.full((_BATCH,), step),
        position=torch.arange(_BATCH) + _BATCH * step,
    )


def _rows(trainer: TrainingState, *, every: int = 5) -> list[dict[str, object]]:
    """What the loop logs."""
    rows = []
    for step in range(1, _STEPS + 1):
        result = trainer.train_step(_batch(step))
        if step == 1 or step % every == 0:
            rows.append({"step": step, **trainer.numbers(result)})
    return rows


def _alarms(rows: list[dict[str, object]], **kwargs) -> dict[str, str]:
    """What the alarm has said by the end, by kind."""
    alarm = Alarm(num_embeddings=2 * _BATCH, **kwargs)
    return {kind: text for row in rows for kind, text in alarm.look(row).items()}


@pytest.mark.parametrize("head", [{}, {"norm": "layer"}, {"kind": "linear", "predictor": 0}])
def test_a_healthy_start_is_left_in_peace(head):
    # With "layer" and "linear" the keys of the untrained encoder nearly coincide.
    assert _alarms(_rows(_trainer(head=head))) == {}


@pytest.mark.parametrize(
    ("lr", "head"), [(0.05, {}), (5.0, {}), (1.0, {"kind": "linear", "predictor": 0})]
)
def test_a_learning_rate_that_is_too_high_is_told(lr, head):
    said = _alarms(_rows(_trainer(optim={"lr": lr}, head=head)))
    assert list(said) == ["learning_rate"]
    assert "lower optim.lr" in said["learning_rate"]


def test_a_constant_encoder_is_told(monkeypatch):
    trainer = _trainer()
    for branch in (trainer.objective.student.branch, trainer.objective.teacher.branch):
        encode = branch.backbone.encode
        constant = lambda x, encode=encode, **_: 0 * encode(x).x.mean(dim=1) + 0.7  # noqa: E731
        monkeypatch.setattr(branch.backbone, "embed", constant)
    said = _alarms(_rows(trainer))
    assert list(said) == ["constant_encoder"]
    assert "neither silent nor always the same" in said["constant_encoder"]


def _dropped(keys, ids, *, step):
    """An enqueue that does nothing."""


def test_a_queue_that_never_fills_is_told(monkeypatch):
    trainer = _trainer()
    monkeypatch.setattr(trainer.objective.queue, "enqueue_", _dropped)
    said = _alarms(_rows(trainer))
    assert list(said) == ["queue"]
    assert "is dead, it stays empty: " in said["queue"]
    assert "loss.queue_size=0" in said["queue"]


def _queue_rows(queue: KeyQueue, enqueue_) -> list[dict[str, object]]:
    """Lines of 30 steps whose keys nearly coincide, as those of an untrained encoder do."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for step in range(1, 31):
        near = torch.ones(16, 8) + 0.01 * torch.randn(16, 8, generator=generator)
        keys = torch.nn.functional.normalize(near, dim=1)
        enqueue_(keys, torch.arange(16), step=step - 1)
        spread = torch.randn(16, 8, generator=generator)
        numbers = {
            "loss": 8.7, "accuracy": 0.0, "chance_loss": chance_loss(80), "lr": 1e-4,
            "rank_embedding": effective_rank(spread), "feature_std": feature_std(spread),
            "teacher_distance": 0.0,
        }  # fmt: skip
        rows.append({"step": step, **numbers, **queue_numbers(queue, keys, step=step)})
    return rows


def _full_queue() -> KeyQueue:
    queue = KeyQueue(size=400, dim=8)
    noise = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    old = torch.nn.functional.normalize(torch.ones(400, 8) + 0.01 * noise, dim=1)
    queue.enqueue_(old, torch.arange(400), step=0)
    return queue


def test_a_queue_of_keys_that_nearly_coincide_is_left_in_peace():
    for queue in (_full_queue(), KeyQueue(size=400, dim=8), KeyQueue(size=0, dim=8)):
        assert _alarms(_queue_rows(queue, queue.enqueue_)) == {}


def test_a_queue_whose_keys_do_not_change_is_told():
    said = _alarms(_queue_rows(_full_queue(), _dropped))
    assert "it is 100% full and lacks the keys just put in" in said["queue"]


def test_a_queue_of_one_key_is_told():
    queue = KeyQueue(size=400, dim=8)

    def repeat(keys, ids, *, step):
        queue.enqueue_(torch.full_like(keys, 8**-0.5), ids, step=step)

    said = _alarms(_queue_rows(queue, repeat))
    assert "it holds one key over and over" in said["queue"]


def test_a_queue_that_is_written_at_one_place_only_is_told():
    queue = _full_queue()

    def in_place(keys, ids, *, step):
        queue.enqueue_(keys, ids, step=step)
        queue.total = 400

    said = _alarms(_queue_rows(queue, in_place))
    assert "steps old and are not replaced" in said["queue"]


# -- the rule alone, on lines made by hand -------------------------------------------------------

_HEALTHY = {
    "loss": 8.0, "chance_loss": 10.0, "accuracy": 0.4, "rank_embedding": 20.0, "feature_std": 0.3,
    "lr": 5e-4, "teacher_distance": 0.05, "queue_fill": 1.0, "queue_age": 2.0, "queue_newest": 1.0,
    "queue_std": 0.8, "key_std": 0.8,
}  # fmt: skip
_FALLEN = {**_HEALTHY, "loss": 9.9, "accuracy": 0.0, "rank_embedding": 1.1}


def _lines(*parts: dict[str, float], every: int = 10) -> list[dict[str, float]]:
    return [{"step": every * (i + 1), **part} for i, part in enumerate(parts)]


def test_what_was_learnt_and_is_lost_again_is_told():
    lost = {**_HEALTHY, "loss": 9.9, "accuracy": 0.01}
    said = _alarms(_lines(*[_HEALTHY] * 4, *[lost] * 3))
    assert "40% of the positives were found around step 30, 1.0% now" in said["learning_rate"]


def test_an_encoder_that_finds_its_positives_is_not_collapsed():
    flat = {**_FALLEN, "accuracy": 0.6, "loss": 6.0}
    assert _alarms(_lines(*[_HEALTHY], *[flat] * 6)) == {}


def test_one_bad_line_is_not_enough():
    assert _alarms(_lines(*[_HEALTHY] * 3, _FALLEN, _FALLEN, _HEALTHY, _FALLEN)) == {}


def test_lines_must_span_enough_steps():
    rows = _lines(_HEALTHY, *[_FALLEN] * (WINDOW_STEPS + 5), every=1)
    alarm = Alarm()
    raised = [row["step"] for row in rows if alarm.look(row)]
    assert raised[0] == WINDOW_STEPS + 2  # every step of the window is a bad one


def test_skipped_steps_neither_accuse_nor_excuse_the_queue():
    aged = [{**_HEALTHY, "queue_age": 2.0 + 10 * i} for i in range(3)]
    assert "queue" in _alarms(_lines(*aged))
    rows = _lines(*aged)
    rows.insert(2, {"step": 25, "skipped": True})
    assert _alarms(rows) == {}


def test_a_training_without_a_queue_has_no_dead_one():
    none = {**_HEALTHY, "queue_fill": 0.0, "queue_age": 0.0, "queue_std": 0.0}
    assert _alarms(_lines(*[none] * 6)) == {}


def test_it_goes_on_where_the_lines_end(caplog):
    rows = _lines(_HEALTHY, *[_FALLEN] * 5)
    whole = Alarm(mode="stop")
    said = [whole.look(row) for row in rows]
    assert [bool(alarms) for alarms in said] == [False] * 3 + [True] * 3
    assert caplog.text.count("ALARM (learning rate)") == 1  # said once, while it stands
    written = [row | ({"alarms": a} if a else {}) for row, a in zip(rows, said, strict=True)]
    for cut in range(len(rows)):
        resumed = Alarm(mode="stop", history=written[:cut])
        assert not resumed.wants_stop
        assert [resumed.look(row) for row in rows[cut:]] == said[cut:]
    assert caplog.text.count("ALARM (learning rate)") == 1 + 4  # and not again by a resumed run


def test_off_says_nothing_and_only_stop_stops(caplog):
    rows = _lines(_HEALTHY, *[_FALLEN] * 5)
    with caplog.at_level(logging.WARNING):
        assert _alarms(rows, mode="off") == {}
    assert caplog.text == ""
    for mode in ("warn", "stop"):
        alarm = Alarm(mode=mode)
        for row in rows:
            alarm.look(row)
        assert alarm.said
        assert alarm.wants_stop == (mode == "stop")


def _line(step: int, **numbers: float) -> dict[str, object]:
    known = {"loss": 12.5, "chance_loss": 13.0, "accuracy": 0.0, "lr": 1e-3}
    return {"step": step, **known, "rank_embedding": 56.0, "feature_std": 0.5, **numbers}


@pytest.mark.parametrize(
    ("later", "sign"),
    [
        ({"loss": 13.6}, "the loss rose to 13.60"),
        ({"rank_embedding": 11.0}, "the rank fell from 56.0 to 11.0"),
        ({"loss": 20.0, "rank_embedding": 3.0}, "and the rank fell"),
    ],
)
def test_nothing_found_with_rising_loss_or_falling_rank_is_told(later, sign):
    rows = [_line(1), *(_line(step, **later) for step in (10, 20, 30, 40))]
    said = _alarms(rows)
    assert list(said) == ["nothing_found"]
    assert sign in said["nothing_found"]


def test_an_objective_that_says_accuracy_and_no_rank_is_watched_too():
    rows = [
        {"step": step, "loss": 4.0 + step / 10, "accuracy": 0.0, "lr": 1e-3}
        for step in (1, 10, 20, 30, 40)
    ]
    assert list(_alarms(rows)) == ["nothing_found"]
    assert _alarms([row | {"loss": 4.0} for row in rows]) == {}


@pytest.mark.parametrize(
    "later",
    [
        {},  # a large queue: nothing is found for long, and nothing else is wrong
        {"loss": 13.6, "accuracy": 0.02},  # something is
        {"loss": 11.0, "rank_embedding": 20.0},  # it learns: the loss is well below guessing
        {"rank_embedding": 40.0},
    ],
)
def test_nothing_found_at_a_healthy_start_is_left_in_peace(later):
    assert _alarms([_line(1), *(_line(step, **later) for step in (10, 20, 30, 40))]) == {}
