"""Pooling attention: the ways to hold the heads in memory compute one function."""

import pytest
import torch
from torch import nn

from ssmast.model.block import PoolingAttention, Stretch
from ssmast.model.patch import Grid

GRID = Grid(4, 8)


def attention(qkv_bias: bool = True) -> PoolingAttention:
    module = PoolingAttention(
        12,
        24,
        num_heads=3,
        train_grid=GRID,
        stride_q=(2, 2),
        stride_kv=(4, 4),
        qkv_bias=qkv_bias,
    )
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_heads_apart_and_side_by_side_are_one_function(masked, qkv_bias):
    module = attention(qkv_bias)
    x = torch.randn(2, 32, 12, requires_grad=True)
    mask = (torch.arange(8) < torch.tensor([[8], [5]])).repeat(1, 4) if masked else None
    inputs = (x, *module.parameters())
    outcomes = []
    for split in (module._heads_apart, module._heads_side_by_side):
        parts = split(x, GRID, mask)
        loss = sum((part.sin() * (1 + index)).sum() for index, part in enumerate(parts))
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
        outcomes.append((*parts, *(grad for grad in grads if grad is not None)))
    assert outcomes[0][0].shape == (2, 3, 8, 8)
    for apart, beside in zip(*outcomes, strict=True):
        torch.testing.assert_close(apart, beside, rtol=1e-5, atol=1e-5)


class Doubled(nn.Module):
    """An adapter around a layer, as fine-tuning libraries put them in."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer, self.in_features, self.weight, self.bias = layer, 12, layer.weight, layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.layer(x)


@torch.no_grad()
def test_an_adapter_and_a_hook_are_called():
    module, x = attention(), torch.randn(1, 32, 12)
    assert module._copies_cost(x, GRID)
    plain = module(x, GRID, None, Stretch())[0]
    module.qkv = Doubled(module.qkv)
    assert not torch.allclose(module(x, GRID, None, Stretch())[0], plain)
    module.qkv = module.qkv.layer
    calls = []
    handle = module.pool_k.register_forward_hook(lambda *_: calls.append(1))
    module(x, GRID, None, Stretch())
    handle.remove()
    assert len(calls) == 1
    assert torch.equal(module(x, GRID, None, Stretch())[0], plain)


def test_bfloat16_trains_with_float32s_gradients_and_pools_in_float32(monkeypatch):
    """On a CPU the depthwise convolutions of a training step run in float32; see `_pool`."""
    torch.manual_seed(0)
    module = attention()
    x = torch.randn(2, 32, 12)
    types = []
    conv2d = nn.functional.conv2d

    def spy(image, *args, **kwargs):
        types.append(image.dtype)
        return conv2d(image, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "conv2d", spy)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out, _, _ = module(x, GRID, None, Stretch())
        out.float().square().mean().backward()
        named = dict(module.named_parameters())
        gradients.append(
            torch.cat([p.grad.flatten() for p in named.values() if p.grad is not None])
        )
        module.zero_grad()
    assert types
    assert set(types) == {torch.float32}
    cosine = nn.functional.cosine_similarity(*gradients, dim=0)
    assert cosine > 0.99
    types.clear()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        module(x, GRID, None, Stretch())
    assert set(types) == {torch.bfloat16}  # without gradient it is the faster one
