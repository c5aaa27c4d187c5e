import torch
from torch import nn

from ssmast.training.optim import GradientSum


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
