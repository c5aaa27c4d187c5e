import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from ssmast.model import create_model
from ssmast.training.optim import GradientSum, PassWeights


def _parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(5))]


def test_the_sum_is_the_same_bits_in_any_order():
    pieces = [[torch.randn(3, 2) * 10.0**k, torch.randn(5) / 10.0**k] for k in range(-2, 3)]

    def summed(order: list[int]) -> list[torch.Tensor]:
        parameters = _parameters()
        sums = GradientSum(parameters)
        for i in order:
            for parameter, piece in zip(parameters, pieces[i], strict=True):
                parameter.grad = piece.clone()
            sums.add_()
            assert all(parameter.grad is None for parameter in parameters)
        sums.write_()
        return [parameter.grad for parameter in parameters]

    forward, backward = summed([0, 1, 2, 3, 4]), summed([3, 1, 4, 0, 2])
    for i, (a, b) in enumerate(zip(forward, backward, strict=True)):
        assert torch.equal(a, b)
        exact = sum(piece[i].double() for piece in pieces)
        assert torch.equal(a, exact.float())


def test_a_parameter_without_gradient_counts_as_zero_and_a_frozen_one_not_at_all():
    used, unused = _parameters()
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    used.grad = torch.ones(3, 2)
    sums = GradientSum([used, unused, frozen])
    sums.add_()
    sums.write_()
    assert torch.equal(used.grad, torch.ones(3, 2))
    assert torch.equal(unused.grad, torch.zeros(5))
    assert frozen.grad is None


@pytest.mark.parametrize(("model", "low"), [("mast_nano", False), ("ast_nano", True)])
def test_weights_of_two_passes_give_what_autocast_and_autograd_give(model, low):
    # Of a MAST in bfloat16 a CPU alone keeps the convolutions in float32.
    torch.manual_seed(0)
    network = create_model(model, num_classes=0, input_size=(32, 32), embed_dim=16)
    network.norm.bias.requires_grad_(False)
    views = torch.randn(2, 3, 1, 32, 32).unbind()

    def gradients(passes: list[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            rows = []
            for view, weights in zip(views, passes, strict=True):
                with weights:
                    rows.append(network(view))
        out = torch.stack(rows).float()
        (out.square().mean() + out.sum()).backward()
        return out.detach(), {name: own.grad for name, own in network.named_parameters()}

    wanted, by_autocast = gradients([contextlib.nullcontext()] * 2)
    before = dict(network.named_parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        weights = PassWeights(network, 2)
    found, once = gradients([weights.of(0), weights.of(1)])
    assert torch.equal(found, wanted)
    assert all(own is before[name] for name, own in network.named_parameters())
    assert once.keys() == by_autocast.keys()
    for name, gradient in by_autocast.items():
        assert (once[name] is None) == (gradient is None) == (name == "norm.bias"), name
        assert gradient is None or torch.equal(once[name], gradient), name


class _Work:
    """What two processes of the same gradients would have added up, when it is waited for."""

    def __init__(self, flat: torch.Tensor) -> None:
        self.flat = flat

    def wait(self) -> None:
        self.flat *= 2


def test_gradients_travel_while_the_backward_pass_goes_on(monkeypatch):
    torch.manual_seed(0)
    network = create_model("mast_nano", num_classes=0, input_size=(32, 32), embed_dim=16)
    heads = nn.Linear(network.num_features, 3)
    network.norm.bias.requires_grad_(False)
    parameters = [*network.parameters(), *heads.parameters()]
    views = torch.randn(2, 3, 1, 32, 32).unbind()
    sent: list[int] = []
    stems_when_sent: list[int] = []
    stems = 0  # passes whose gradient has come down to the stem

    def watched(module: nn.Module, _: Any, out: Any) -> None:
        def reached(_: torch.Tensor) -> None:
            nonlocal stems
            stems += 1

        out[0].x.register_hook(reached)

    def all_reduce(flat: torch.Tensor, *, async_op: bool) -> _Work:
        assert async_op
        assert flat.dtype == torch.float64  # on a CPU
        sent.append(flat.numel())
        stems_when_sent.append(stems)
        return _Work(flat)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr("ssmast.training.optim._BUCKET", 5000)

    def gradients(pieces: int, *, over_processes: bool) -> list[torch.Tensor | None]:
        sums = GradientSum(parameters, over_processes=over_processes)
        for number in range(pieces):
            weights, rows = PassWeights(network, 2), []
            for index, view in enumerate(views):
                with weights.of(index):
                    rows.append(network(view))
            if number == 0:  # the heads' gradients are there before the encoder's
                heads(torch.cat(rows).detach()).square().sum().backward()
                sums.send_(heads.parameters())
            with sums.piece(last=number == pieces - 1):
                torch.stack(rows).square().sum().backward()
        sums.write_()
        found = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return found

    own = gradients(2, over_processes=False)
    assert not sent
    network.patch_embed.register_forward_hook(watched)
    for pieces in (1, 2):
        sent.clear()
        stems_when_sent.clear()
        stems = 0
        of_two = gradients(pieces, over_processes=True)
        assert len(sent) > 10
        assert sum(sent) == sum(p.numel() for p in parameters if p.requires_grad)
        # All but the stem's are on their way when the second view's gradient comes down to it.
        pairs = zip(sent, stems_when_sent, strict=True)
        early = sum(num for num, reached in pairs if reached < 2 * pieces)
        assert early > 0.9 * sum(sent)
    for one, two in zip(own, of_two, strict=True):
        assert (one is None) == (two is None)
        assert one is None or torch.equal(two, 2 * one)


def test_what_is_reached_after_it_travelled_is_not_lost(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat, async_op: _Work(flat))
    early, late = (nn.Parameter(torch.ones(3)) for _ in range(2))
    sums = GradientSum([early, late], over_processes=True)
    (2 * early).sum().backward()
    sums.send_([early])
    assert early.grad is None
    with sums.piece(last=True):
        (5 * early + late).sum().backward()
    sums.write_()
    assert torch.equal(early.grad, torch.full((3,), 14.0))
    assert torch.equal(late.grad, torch.full((3,), 2.0))
