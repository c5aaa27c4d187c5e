"""The step of SS-MAST: one optimiser step, EMA update and enqueue; exact under accumulation."""

import copy

import pytest
import torch

from ssmast.audio import LogMel
from ssmast.audio.segments import SegmentBatch
from ssmast.settings import UsageError
from ssmast.training.config import (
    FrontEnd,
    Head,
    Loss,
    Optim,
    PatchDropConfig,
    PretrainConfig,
    TeacherConfig,
    Views,
)
from ssmast.training.objective import Step
from ssmast.training.objectives.ss_mast import SSMAST
from ssmast.training.optim import learning_rate
from ssmast.training.step import TrainingState
from tests.training.states import state_of

_MELS, _FRAMES = 32, 32
_FRONT = LogMel(num_mels=_MELS, mean=-5.0, std=4.0)


def _config(**kwargs) -> PretrainConfig:
    defaults = {
        "steps": 10,
        "batch_size": 8,
        "front_end": FrontEnd(num_mels=_MELS),
        "views": Views(frames=_FRAMES, mixup_memory=16),
        "head": Head(hidden=64, dim=16, predictor=64),
        "loss": Loss(queue_size=20),
    }
    return PretrainConfig(**(defaults | kwargs))


def _trainer(config: PretrainConfig, kind: type[SSMAST] = SSMAST) -> TrainingState:
    return state_of(kind, config, log_mel=_FRONT)


def _batch(seed: int = 0, size: int = 8) -> SegmentBatch:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange((_FRAMES - 1) * 160) / 16000
    pitch = 200 * 1.3 ** torch.arange(size)[:, None, None]  # every clip its own
    tone = torch.sin(2 * torch.pi * pitch * time)
    return SegmentBatch(
        waveform=tone + torch.randn(size, 2, len(time), generator=generator) * 0.1,
        clip=torch.arange(size) + 100 * seed,
        epoch=torch.zeros(size, dtype=torch.long),
        position=torch.arange(size) + 8 * seed,
    )


def test_a_step_moves_student_teacher_queue_and_memory_once():
    trainer = _trainer(_config())
    objective = trainer.objective
    before = copy.deepcopy(objective.teacher.state_dict())
    result = trainer.train_step(_batch())
    assert not result.skipped
    assert trainer.step == 1
    assert objective.queue.total == 16  # both views' keys
    assert len(objective.mixup_memory) == 8
    student = objective.student.branch.state_dict()
    for name, teacher in objective.teacher.branch.state_dict().items():
        expected = 0.99 * before[f"branch.{name}"] + 0.01 * student[name]
        torch.testing.assert_close(teacher, expected, rtol=1e-4, atol=1e-6)


def test_no_key_of_the_own_clip_is_a_negative(monkeypatch):
    from ssmast.training.objectives import ss_mast

    seen = []
    original = ss_mast.info_nce

    def spy(queries, positives, negatives, **kwargs):
        seen.append((kwargs["query_ids"], kwargs["negative_ids"], len(negatives)))
        return original(queries, positives, negatives, **kwargs)

    monkeypatch.setattr(ss_mast, "info_nce", spy)
    trainer = _trainer(_config())
    trainer.train_step(_batch(0))
    trainer.train_step(_batch(1))
    # Both terms of a step see the same snapshot: nothing was enqueued between them.
    assert [num for _, _, num in seen] == [8, 8, 16 + 8, 16 + 8]
    assert torch.equal(seen[2][1], seen[3][1])
    assert not set(seen[2][0].tolist()) & set(seen[2][1][:16].tolist())


def _gradients(
    parts: int, kind: type[SSMAST] = SSMAST, **kwargs
) -> tuple[float, torch.Tensor, SSMAST]:
    """Loss, all gradients and the objective after one step of 32 clips in micro-batches."""
    config = _config(
        batch_size=32, optim=Optim(gradient_accumulation_steps=parts, max_grad_norm=0.0), **kwargs
    )
    trainer = _trainer(config, kind)
    objective = trainer.objective
    keys = torch.nn.functional.normalize(torch.randn(20, 16, generator=torch.Generator()))
    objective.queue.enqueue_(keys, torch.arange(500, 520), step=0)
    result = trainer.train_step(_batch(size=32))
    gradients = [p.grad.flatten() for p in objective.parameters() if p.grad is not None]
    return float(result.loss.loss), torch.cat(gradients).double(), objective


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_in_float64_4_times_8_equals_1_times_32_to_1e_10(norm, monkeypatch):
    """So what differs in float32 is rounding."""
    single = torch.Tensor.float

    class Double(SSMAST):
        def __init__(self, *args):
            super().__init__(*args)
            self.student.double()
            self.teacher.double()
            self.queue.double()

        def views(self, segments, step):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.Tensor, "float", single)
                views = super().views(segments, step)
            views.log_mels = (views.log_mels[0].double(), views.log_mels[1].double())
            return views

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    head = Head(hidden=32, dim=16, predictor=32, norm=norm)
    loss_1, one, _ = _gradients(1, Double, head=head)
    loss_4, four, _ = _gradients(4, Double, head=head)
    assert loss_4 == pytest.approx(loss_1, rel=1e-10)
    assert _distance(one, four) < 1e-10


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("mode", ["random", "structured"])
@pytest.mark.parametrize("batch_negatives", [True, False])
def test_4_times_8_equals_1_times_32(norm, mode, batch_negatives):
    """The gradient to 1e-5: in float32, another order of the same clips moves it by 2e-6."""
    kwargs = {
        "head": Head(hidden=32, dim=16, predictor=32, norm=norm),
        "patch_drop": PatchDropConfig(mode=mode),
        "loss": Loss(queue_size=20, batch_negatives=batch_negatives),
    }
    loss_1, one, a = _gradients(1, **kwargs)
    loss_4, four, b = _gradients(4, **kwargs)
    assert loss_4 == pytest.approx(loss_1, rel=1e-6)
    assert _distance(one, four) < 1e-5
    torch.testing.assert_close(a.queue.keys, b.queue.keys, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.mixup_memory.log_mel, b.mixup_memory.log_mel)


def test_the_gradient_through_the_cut_is_that_of_one_graph():
    """Against autograd through encoder, heads and loss in one piece: the same kernels and bits."""
    trainer = _trainer(_config(batch_size=8, optim=Optim(max_grad_norm=0.0)))
    reference = _trainer(_config(batch_size=8)).objective
    reference.train()
    views = reference.views(_batch(), 0)
    torch.manual_seed(0)
    step = Step(number=0, ids=_batch().clip, gather=lambda rows: rows)
    reference.loss(reference.embed(views), reference.targets(views), step).loss.backward()
    trainer.train_step(_batch())
    wanted = [p.grad.flatten() for p in reference.parameters() if p.grad is not None]
    got = [p.grad.flatten() for p in trainer.objective.parameters() if p.requires_grad]
    assert torch.equal(torch.cat(wanted), torch.cat(got))


def test_the_second_pass_drops_what_the_first_one_dropped():
    trainer = _trainer(_config(drop_path=0.5, patch_drop=PatchDropConfig(mode="random", rate=0.5)))
    objective = trainer.objective.train()
    views = objective.views(_batch(), 0)
    first = trainer._embed(_batch(), views)
    torch.rand(7)
    assert torch.equal(first, trainer._embed(_batch(), views))
    torch.manual_seed(1)
    with trainer.accelerator.autocast():
        other = objective.embed(views)
    assert not torch.allclose(first, other)  # so the draws matter


@pytest.mark.parametrize("mode", ["structured", "random"])
@pytest.mark.parametrize("model", ["mast_nano", "ast_nano"])
def test_checkpointing_gives_the_same_bits_with_drop_path(model, mode):
    """Of weights after two steps, so of every gradient; in two micro-batches."""
    trained = []
    for checkpointing in (False, True):
        config = _config(
            model=model,
            drop_path=0.5,
            patch_drop=PatchDropConfig(mode=mode, rate=0.5),
            optim=Optim(gradient_accumulation_steps=2),
            grad_checkpointing=checkpointing,
        )
        trainer = _trainer(config)
        parts = trainer.objective.student.modules()
        found = [part for part in parts if getattr(part, "grad_checkpointing", False)]
        assert bool(found) == checkpointing
        for seed in range(2):
            trainer.train_step(_batch(seed))
        trained.append(torch.cat([p.flatten() for p in trainer.objective.parameters()]))
    assert torch.equal(*trained)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_accumulation_costs_one_pass_more_for_all_but_the_last(parts, monkeypatch):
    trainer = _trainer(_config(optim=Optim(gradient_accumulation_steps=parts)))
    passes = []
    original = trainer.objective.embed
    monkeypatch.setattr(
        trainer.objective, "embed", lambda views: passes.append(1) or original(views)
    )
    trainer.train_step(_batch())
    assert len(passes) == 2 * parts - 1


def test_every_student_parameter_gets_gradient():
    trainer = _trainer(_config())
    trainer.train_step(_batch(0))
    trainer.train_step(_batch(1))
    for name, parameter in trainer.objective.student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in trainer.objective.teacher.parameters())


def test_the_loss_falls_when_the_same_batch_comes_again():
    trainer = _trainer(_config(steps=30, optim=Optim(lr=1e-3), loss=Loss(queue_size=0)))
    losses = [float(trainer.train_step(_batch()).loss.loss) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_non_finite_clip_moves_nothing_that_is_learnt():
    trainer = _trainer(_config())
    trainer.train_step(_batch(0))
    objective = trainer.objective
    student = copy.deepcopy(objective.student.state_dict())
    teacher = copy.deepcopy(objective.teacher.state_dict())
    bad = _batch(1)
    bad.waveform[3] = float("nan")
    result = trainer.train_step(bad)
    assert result.skipped
    assert trainer.step == 2  # the place in the data moves on
    assert objective.queue.total == 16
    for name, value in objective.student.state_dict().items():
        assert torch.equal(value, student[name])
    for name, value in objective.teacher.state_dict().items():
        assert torch.equal(value, teacher[name])


def test_views_of_a_clip_do_not_depend_on_the_batch_around_it():
    trainer = _trainer(_config())
    whole = trainer.objective.views(_batch(), 0)
    part = trainer.objective.views(_batch().split(4)[1], 0)
    for a, b in zip(whole.log_mels, part.log_mels, strict=True):
        torch.testing.assert_close(a[2:4], b)


def test_a_drop_that_a_small_view_cannot_have_is_said(caplog):
    trainer = _trainer(_config(patch_drop=PatchDropConfig(rate=0.77)))
    drop = trainer.objective.views(_batch(), 0).drops[0]
    assert len(drop.rows) * len(drop.columns) == 32  # one of two groups of 8 x 8 patches
    assert "patch_drop.rate=0.77 is more than a view of 32 mel bins" in caplog.text
    assert "0.5 of them are dropped" in caplog.text


def test_measure_gives_finite_numbers():
    trainer = _trainer(_config())
    row = trainer.numbers(trainer.train_step(_batch()))
    assert all(isinstance(value, float) for value in row.values())
    assert row["queue_fill"] == pytest.approx(16 / 20)
    assert 1 <= row["rank_embedding"] <= 16


def test_what_is_logged_of_a_step_is_what_moved_it():
    trainer = _trainer(
        _config(optim=Optim(warmup=0.5), teacher=TeacherConfig(momentum=0.5, final_momentum=0.9))
    )
    for seed in range(2):
        wanted = _now(trainer)
        row = trainer.numbers(trainer.train_step(_batch(seed)))
        assert {name: row[name] for name in wanted} == wanted
        assert row["lr"] == trainer.optimizer.param_groups[0]["lr"] != _now(trainer)["lr"]
        assert row["momentum"] < _now(trainer)["momentum"]


def _now(trainer: TrainingState) -> dict[str, float]:
    """What the next step is taken with."""
    lr = learning_rate(trainer.config.optim, trainer.step, steps=trainer.steps)
    return {"lr": lr, "momentum": trainer.objective.momentum(trainer.step)}


def test_a_queue_of_more_than_a_tenth_of_the_corpus_warns(caplog):
    _trainer(_config(loss=Loss(queue_size=101, queue_fraction=0.0)))
    assert "more than a tenth of the 1000 clips" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"optim": Optim(lr=0.0)}, "optim.lr must be above 0 and below 10"),
        ({"patch_drop": PatchDropConfig(rate=0.95)}, "patch_drop.rate must be from 0 to 0.9"),
        ({"precision": "fp8"}, "precision must be one of auto, fp32, bf16, fp16"),
    ],
)
def test_settings_that_no_run_can_mean_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        _config(**wrong)
