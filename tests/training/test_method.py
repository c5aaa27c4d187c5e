"""The choices of the method that a setting makes: negatives, temperature, the teacher's drop."""

import copy

import pytest
import torch

from ssmast.audio.segments import SegmentBatch
from ssmast.settings import UsageError
from ssmast.training.config import (
    FrontEnd,
    Head,
    Loss,
    Optim,
    PatchDropConfig,
    PretrainConfig,
    Views,
)
from ssmast.training.objectives import ss_mast
from ssmast.training.objectives.ss_mast import SSMAST
from ssmast.training.optim import (
    build_optimizer,
    decay_groups,
    load_optimizer_,
    optimizer_tensors,
)
from ssmast.training.step import TrainingState
from tests.training.states import state_of


def _trainer(**kwargs) -> TrainingState:
    defaults = {
        "steps": 10,
        "batch_size": 4,
        "front_end": FrontEnd(num_mels=64),
        "views": Views(frames=96, mixup_memory=8),
        "head": Head(hidden=16, dim=8, predictor=16),
        "loss": Loss(queue_size=12),
    }
    return state_of(SSMAST, PretrainConfig(**(defaults | kwargs)))


def _batch(seed: int = 0, size: int = 4) -> SegmentBatch:
    noise = torch.randn(size, 2, 95 * 160, generator=torch.Generator().manual_seed(seed))
    return SegmentBatch(
        waveform=noise * torch.arange(1, size + 1)[:, None, None] * 0.1,
        clip=torch.arange(size) + 100 * seed,
        epoch=torch.zeros(size, dtype=torch.long),
        position=torch.arange(size) + size * seed,
    )


@pytest.mark.parametrize(
    ("loss", "first", "second"),
    [
        (Loss(queue_size=12, batch_negatives=True), 4, 8 + 4),
        (Loss(queue_size=12, batch_negatives=False), 0, 8),
        (Loss(queue_size=0, batch_negatives=True), 4, 4),
    ],
    ids=["both", "queue", "in-batch"],
)
def test_negatives_come_from_queue_batch_or_both_and_never_from_the_own_clip(
    monkeypatch, loss, first, second
):
    seen = []
    original = ss_mast.info_nce

    def spy(queries, positives, negatives, **kwargs):
        seen.append(len(negatives))
        # The first query's own keys may be any vectors at all: they are no negatives of it.
        ids = {"query_ids": kwargs["query_ids"][:1], "negative_ids": kwargs["negative_ids"]}
        own = (ids["negative_ids"] == ids["query_ids"])[:, None]
        temperature = kwargs["temperature"]
        first_alone, changed = (
            original(queries[:1], positives[:1], keys, temperature=temperature, **ids)[0]
            for keys in (negatives, torch.where(own, 9.0, negatives))
        )
        assert torch.equal(first_alone, changed)
        out = original(queries, positives, negatives, **kwargs)
        return out

    monkeypatch.setattr(ss_mast, "info_nce", spy)
    trainer = _trainer(loss=loss)
    trainer.train_step(_batch(0))
    trainer.train_step(_batch(1))
    assert seen == [first, first, second, second]


def test_a_loss_without_any_negatives_is_refused():
    with pytest.raises(UsageError, match=r"loss\.queue_size must be above 0 with loss\.batch_neg"):
        _trainer(loss=Loss(queue_size=0, batch_negatives=False))
    few = Loss(queue_size=12, queue_fraction=0.0001, batch_negatives=False)
    with pytest.raises(ValueError, match="of 1000 clips leaves no negatives"):
        _trainer(loss=few)


def test_a_learnt_temperature_moves_and_a_fixed_one_stays():
    for learnt in (True, False):
        trainer = _trainer(loss=Loss(queue_size=12, learn_temperature=learnt), optim=Optim(lr=1e-2))
        before = trainer.objective.student.temperature.item()
        for seed in range(3):
            trainer.train_step(_batch(seed))
        assert before == pytest.approx(0.2)
        assert (trainer.objective.student.temperature.item() != before) == learnt


def test_patches_of_the_teachers_views_are_dropped_only_on_request(monkeypatch):
    for asked in (True, False):
        trainer = _trainer(patch_drop=PatchDropConfig(mode="random", teacher=asked))
        seen = []
        backbone = trainer.objective.teacher.branch.backbone
        encode = backbone.encode

        def spy(log_mel, *, patch_drop=None, encode=encode, seen=seen, **_):
            seen.append(patch_drop is not None)
            return encode(log_mel, patch_drop=patch_drop)

        monkeypatch.setattr(backbone, "encode", spy)
        trainer.train_step(_batch())
        assert seen == ([True, True] if asked else [False])  # both views in one pass


def test_sgd_follows_its_formula_and_its_state_comes_back():
    def built(model):
        optim = Optim(name="sgd", lr=0.1, momentum=0.9)
        return build_optimizer(decay_groups(model, weight_decay=0.5), optim)

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer, velocity = built(model), torch.zeros(2, 3)
    expected = model.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        velocity = 0.9 * velocity + model.weight.grad + 0.5 * expected  # decay is in the gradient
        expected = expected - 0.1 * velocity
        optimizer.step()
    torch.testing.assert_close(model.weight, expected)
    twin = torch.nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    again = built(twin)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, model).items()}
    load_optimizer_(again, twin, saved)
    for net, stepper in ((model, optimizer), (twin, again)):
        stepper.zero_grad()
        net(torch.ones(1, 3)).square().sum().backward()
        stepper.step()
    assert torch.equal(twin.weight, model.weight)


def test_muon_moves_given_matrices_as_torchs_and_everything_else_as_adamw():
    torch.manual_seed(0)
    optim = Optim(name="muon", lr=0.01, momentum=0.9)
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 8, bias=False)
    )
    twin = copy.deepcopy(net)
    optimizer = build_optimizer(
        decay_groups(net, weight_decay=0.5), optim, matrices=[net[2].weight]
    )
    reference = (
        torch.optim.Muon(
            [twin[2].weight],
            lr=0.01,
            weight_decay=0.5,
            momentum=0.9,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW([twin[0].weight], lr=0.01, betas=(0.9, 0.95), weight_decay=0.5),
        torch.optim.AdamW(
            [twin[0].bias, *twin[1].parameters()], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0
        ),
    )
    inputs = torch.randn(16, 6)
    for _ in range(3):
        for each in (net, twin):
            each.zero_grad()
            each(inputs).square().sum().backward()
        optimizer.step()
        for part in reference:
            part.step()
    for own, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, other)
    # A step turns every direction of a matrix alike: its singular values are near one another.
    before = net[2].weight.detach().clone()
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    optimizer.step()
    moved = torch.linalg.svdvals(net[2].weight - before) / (0.01 * 0.2 * 8**0.5)
    assert 0.4 < moved.min() <= moved.max() < 1.3


def test_muon_is_for_the_encoder_and_its_state_comes_back():
    trainer = _trainer(optim=Optim(name="muon"))
    trainer.train_step(_batch())
    saved = {
        name: tensor.clone()
        for name, tensor in optimizer_tensors(trainer.optimizer, trainer.objective).items()
    }
    by_muon = {name.split("|")[0] for name in saved if name.endswith("|momentum_buffer")}
    by_adamw = {name.split("|")[0] for name in saved if name.endswith("|exp_avg")}
    assert not by_muon & by_adamw
    assert sum(name.endswith("attn.qkv.weight") for name in by_muon) > 2
    assert all(name.startswith("student.branch.backbone.") for name in by_muon)
    assert not any("rel_pos" in name or "pool" in name or "patch" in name for name in by_muon)
    again = _trainer(optim=Optim(name="muon"))
    again.objective.load_state_dict(trainer.objective.state_dict())
    load_optimizer_(again.optimizer, again.objective, saved)
    again.step = trainer.step
    for each in (trainer, again):
        each.train_step(_batch(1))
    for own, other in zip(
        trainer.objective.parameters(), again.objective.parameters(), strict=True
    ):
        assert torch.equal(own, other)


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(
        UsageError, match=r"optim\.name must be one of adamw, muon, sgd, got 'lars'"
    ):
        _trainer(optim=Optim(name="lars"))


def test_the_warning_counts_the_queue_that_is_built(caplog):
    caplog.set_level("INFO", "ssmast")
    trainer = _trainer(loss=Loss(queue_size=500, queue_fraction=0.05))
    assert trainer.objective.queue.size == 50
    assert "loss.queue_size=500 is limited to 50, loss.queue_fraction=0.05 of the" in caplog.text
    assert "more than a tenth" not in caplog.text
    assert _trainer(loss=Loss(queue_size=500)).objective.queue.size == 100
    assert "more than a tenth" not in caplog.text
    _trainer(loss=Loss(queue_size=500, queue_fraction=0.0))
    assert "loss.queue_size=500 is more than a tenth of the 1000 clips" in caplog.text
