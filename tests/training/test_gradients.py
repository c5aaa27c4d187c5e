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
        sums.write_(over_processes=False)
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
    sums.write_(over_processes=False)
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
