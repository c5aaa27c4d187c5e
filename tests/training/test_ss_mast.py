"""The step of SS-MAST: one optimiser step, EMA update and enqueue; exact under accumulation."""

import copy

import pytest
import torch
from accelerate import Accelerator

from ssmast.audio import LogMel
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
from ssmast.training.loop import split_batch
from ssmast.training.objectives.ss_mast import Pretraining

_MELS, _FRAMES = 32, 32


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


def _trainer(config: PretrainConfig) -> Pretraining:
    return Pretraining(
        config,
        accelerator=Accelerator(cpu=True),
        log_mel=LogMel(num_mels=_MELS, mean=-5.0, std=4.0),
        num_clips=1000,
        steps=config.steps,
    )


def _batch(seed: int = 0, size: int = 8) -> dict[str, object]:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange((_FRAMES - 1) * 160) / 16000
    pitch = 200 * 1.3 ** torch.arange(size)[:, None, None]  # every clip its own
    tone = torch.sin(2 * torch.pi * pitch * time)
    return {
        "waveform": tone + torch.randn(size, 2, len(time), generator=generator) * 0.1,
        "clip": torch.arange(size) + 100 * seed,
        "epoch": torch.zeros(size, dtype=torch.long),
        "position": torch.arange(size) + 8 * seed,
        "rejected": [],
    }


def test_a_step_moves_student_teacher_queue_and_memory_once():
    trainer = _trainer(_config())
    before = copy.deepcopy(trainer.teacher.state_dict())
    values = trainer.train_step([_batch()])
    assert not values["skipped"]
    assert trainer.step == 1
    assert trainer.queue.total == 16  # both views' keys
    assert len(trainer.memory) == 8
    student = trainer.student.branch.state_dict()
    for name, teacher in trainer.teacher.branch.state_dict().items():
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
    trainer.train_step([_batch(0)])
    trainer.train_step([_batch(1)])
    # Both terms of a step see the same snapshot: nothing was enqueued between them.
    assert [num for _, _, num in seen] == [8, 8, 16 + 8, 16 + 8]
    assert torch.equal(seen[2][1], seen[3][1])
    assert not set(seen[2][0].tolist()) & set(seen[2][1][:16].tolist())


def _gradients(parts: int, **kwargs) -> tuple[float, torch.Tensor, Pretraining]:
    """Loss, all gradients and the trainer after one step of 32 clips in so many micro-batches."""
    config = _config(
        batch_size=32, optim=Optim(gradient_accumulation_steps=parts, max_grad_norm=0.0), **kwargs
    )
    trainer = _trainer(config)
    keys = torch.nn.functional.normalize(torch.randn(20, 16, generator=torch.Generator()))
    trainer.queue.enqueue_(keys, torch.arange(500, 520), step=0)
    values = trainer.train_step(split_batch(_batch(size=32), parts))
    gradients = [p.grad.flatten() for p in trainer.student.parameters() if p.grad is not None]
    return float(values["loss"]), torch.cat(gradients).double(), trainer


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_in_float64_4_times_8_equals_1_times_32_to_1e_10(norm, monkeypatch):
    """So what differs in float32 is rounding."""
    single = torch.Tensor.float

    class Double(Pretraining):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.student.double()
            self.teacher.double()
            self.queue.keys = self.queue.keys.double()
            make_views = self.make_views

            def in_double(micro, *, step):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(torch.Tensor, "float", single)
                    batch = make_views(micro, step=step)
                batch.views = (batch.views[0].double(), batch.views[1].double())
                return batch

            self.make_views = in_double

        def train_step(self, micro_batches):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.Tensor, "float", torch.Tensor.double)
                return super().train_step(micro_batches)

    monkeypatch.setitem(globals(), "Pretraining", Double)
    head = Head(hidden=32, dim=16, predictor=32, norm=norm)
    loss_1, one, _ = _gradients(1, head=head)
    loss_4, four, _ = _gradients(4, head=head)
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
    torch.testing.assert_close(a.memory.state()["log_mel"], b.memory.state()["log_mel"])


def test_the_gradient_through_the_cut_is_that_of_one_graph():
    """Against autograd through encoder, heads and loss in one piece: the same kernels and bits."""
    trainer = _trainer(_config(batch_size=8, optim=Optim(max_grad_norm=0.0)))
    reference = _trainer(_config(batch_size=8))
    reference.student.train()
    batch = reference.make_views(_batch(), step=0)
    embeddings = reference._embed(batch)
    reference.contrast(embeddings, [batch])[0]["loss"].backward()
    trainer.train_step([_batch()])
    wanted = [p.grad.flatten() for p in reference.student.parameters() if p.grad is not None]
    got = [p.grad.flatten() for p in trainer.student.parameters() if p.requires_grad]
    assert torch.equal(torch.cat(wanted), torch.cat(got))


def test_the_second_pass_drops_what_the_first_one_dropped():
    trainer = _trainer(_config(drop_path=0.5, patch_drop=PatchDropConfig(mode="random", rate=0.5)))
    trainer.student.train()
    batch = trainer.make_views(_batch(), step=0)
    first = trainer._embed(batch)
    torch.rand(7)
    assert torch.equal(first, trainer._embed(batch))
    torch.manual_seed(1)
    with trainer.accelerator.autocast():
        other = trainer.student.branch.embed(batch.views[0], batch.drops[0])
    assert not torch.allclose(first[:, 0], other)  # so the draws matter


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_accumulation_costs_one_pass_more_for_all_but_the_last(parts, monkeypatch):
    trainer = _trainer(_config())
    passes = []
    original = trainer._embed
    monkeypatch.setattr(trainer, "_embed", lambda batch: passes.append(1) or original(batch))
    trainer.train_step(split_batch(_batch(), parts))
    assert len(passes) == 2 * parts - 1


def test_every_student_parameter_gets_gradient():
    trainer = _trainer(_config())
    trainer.train_step([_batch(0)])
    trainer.train_step([_batch(1)])
    for name, parameter in trainer.student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in trainer.teacher.parameters())


def test_the_loss_falls_when_the_same_batch_comes_again():
    trainer = _trainer(_config(steps=30, optim=Optim(lr=1e-3), loss=Loss(queue_size=0)))
    losses = [float(trainer.train_step([_batch()])["loss"]) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_non_finite_clip_moves_nothing_that_is_learnt():
    trainer = _trainer(_config())
    trainer.train_step([_batch(0)])
    student = copy.deepcopy(trainer.student.state_dict())
    teacher = copy.deepcopy(trainer.teacher.state_dict())
    bad = _batch(1)
    bad["waveform"][3] = float("nan")
    values = trainer.train_step([bad])
    assert values["skipped"]
    assert trainer.step == 2  # the place in the data moves on
    assert trainer.queue.total == 16
    for name, value in trainer.student.state_dict().items():
        assert torch.equal(value, student[name])
    for name, value in trainer.teacher.state_dict().items():
        assert torch.equal(value, teacher[name])


def test_views_of_a_clip_do_not_depend_on_the_batch_around_it():
    trainer = _trainer(_config())
    whole = trainer.make_views(_batch(), step=0)
    part = trainer.make_views({key: value[2:4] for key, value in _batch().items()}, step=0)
    for a, b in zip(whole.views, part.views, strict=True):
        torch.testing.assert_close(a[2:4], b)


def test_measure_gives_finite_numbers():
    trainer = _trainer(_config())
    row = trainer.measure(trainer.train_step([_batch()]))
    assert all(isinstance(value, float) for value in row.values())
    assert row["queue_fill"] == pytest.approx(16 / 20)
    assert 1 <= row["rank_embedding"] <= 16


def test_what_is_logged_of_a_step_is_what_moved_it():
    trainer = _trainer(_config(optim=Optim(warmup=0.5), teacher=TeacherConfig(0.5, 0.9)))
    for seed in range(2):
        wanted = {"lr": trainer.lr, "momentum": trainer.momentum}
        row = trainer.measure(trainer.train_step([_batch(seed)]))
        assert {name: row[name] for name in wanted} == wanted
        assert row["lr"] == trainer.optimizer.param_groups[0]["lr"] != trainer.lr
        assert row["momentum"] < trainer.momentum


def test_a_queue_of_more_than_a_tenth_of_the_corpus_warns(caplog):
    _trainer(_config(loss=Loss(queue_size=101)))
    assert "more than a tenth of the 1000 clips" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"optim": Optim(lr=0.0)}, "optim.lr must be between 0 and 10"),
        ({"patch_drop": PatchDropConfig(rate=0.95)}, "patch_drop.rate must be from 0 to 0.9"),
        ({"precision": "fp16"}, "precision must be auto or fp32 or bf16"),
    ],
)
def test_settings_that_no_run_can_mean_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        _config(**wrong)
