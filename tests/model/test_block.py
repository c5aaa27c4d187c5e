"""Pooling attention: its layers are called as modules, whatever a library has done to them."""

import copy
import warnings

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrizations

from ssmast.model import create_model
from ssmast.model.block import (
    PoolingAttention,
    Stretch,
    _head_by_head,
    _laid_head_by_head,
    _pool,
    _pooling,
)
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


class Silenced(nn.Module):
    """An adapter around a layer, as fine-tuning libraries put them in; it has no weight itself."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0 * self.layer(x)


class Rounded(nn.Module):
    """A linear layer in 8 bits, as quantisers put them in: `weight` is no float tensor."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.scale = layer.weight.abs().max() / 127
        self.register_buffer("weight", (layer.weight / self.scale).round().to(torch.int8))
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def wrapped(module, name):
    setattr(module, name, Silenced(module.get_submodule(name)))


def rounded(module, name):
    module.qkv = Rounded(module.qkv)


def own_forward(module, name):
    layer = module.get_submodule(name)
    forward = layer.forward
    layer.forward = lambda x: 0 * forward(x)  # as accelerate's hooks do


def weight_norm(module, name):
    layer = parametrizations.weight_norm(module.get_submodule(name))
    layer.parametrizations.weight.original0.data.zero_()


def forward_hook(module, name):
    module.get_submodule(name).register_forward_hook(lambda _, inputs, out: 0 * out)


def forward_pre_hook(module, name):
    module.get_submodule(name).register_forward_pre_hook(lambda _, inputs: (0 * inputs[0],))


def forward_hook_of_all(module, name):
    layer = module.get_submodule(name)
    return global_hooks.register_module_forward_hook(
        lambda own, inputs, out: 0 * out if own is layer else out
    )


# Silenced, not doubled: the norm after a pooling would undo a factor.
KINDS = [wrapped, own_forward, weight_norm, forward_hook, forward_pre_hook, forward_hook_of_all]


@pytest.mark.parametrize("name", ["qkv", "pool_q", "pool_k", "pool_v", "proj"])
@pytest.mark.parametrize("change", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("with_gradient", [False, True])
def test_whatever_was_done_to_a_layer_acts(change, name, with_gradient):
    module, x = attention(), torch.randn(1, 32, 12)
    with torch.set_grad_enabled(with_gradient):
        plain = module(x, GRID, None, Stretch()).x
        handle = change(module, name)
        try:
            changed = module(x, GRID, None, Stretch()).x
        finally:
            if handle is not None:
                handle.remove()
    assert not torch.allclose(changed, plain, atol=1e-3)


def test_quantised_weights_are_those_that_act():
    module, x = attention(), torch.randn(1, 32, 12)
    plain = module(x, GRID, None, Stretch()).x
    rounded(module, "qkv")
    changed = module(x, GRID, None, Stretch()).x
    assert 0 < (changed - plain).abs().max() < 0.1 * plain.abs().max()


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("name", ["qkv", "pool_q", "pool_k", "pool_v"])
def test_backward_hooks_are_called(name, kind):
    module, calls = attention(), []
    x = torch.randn(1, 32, 12, requires_grad=True)
    getattr(module.get_submodule(name), kind)(lambda *_: calls.append(name))
    module(x, GRID, None, Stretch()).x.sum().backward()
    assert calls == [name]


@pytest.mark.parametrize("part", ["stages.0", "stages.1.blocks.0", "stages.1.blocks.0.attn"])
def test_hooks_of_stages_and_blocks_see_their_tokens(part):
    net, seen = create_model("mast_nano", num_classes=3, input_size=(128, 96)), []
    net.get_submodule(part).register_full_backward_hook(
        lambda _, grads_in, grads_out: seen.append((grads_in[0].shape, grads_out[0].shape))
    )
    x = torch.randn(2, 1, 128, 96)
    wanted = net(x)
    wanted.sum().backward()
    ((inner, outer),) = seen
    assert (len(inner), len(outer)) == (3, 3)
    assert inner[0] == outer[0] == 2
    assert len(net.encode_blocks(x)) == 5


@pytest.mark.parametrize("model", ["mast_nano", "ast_nano"])
@torch.no_grad()
def test_weights_that_accelerate_keeps_elsewhere_give_the_same(model, tmp_path):
    net = create_model(model, num_classes=3, input_size=(128, 96)).eval()
    x = torch.randn(1, 1, 128, 96)
    wanted = net(x)
    away = cpu_offload(copy.deepcopy(net), execution_device="cpu")
    assert next(away.parameters()).device.type == "meta"
    assert torch.equal(away(x), wanted)
    away = disk_offload(copy.deepcopy(net), str(tmp_path), execution_device="cpu")
    assert torch.equal(away(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("model", ["mast_nano", "ast_nano"])
def test_weights_of_another_type_train_on_a_cpu(model, dtype):
    net = create_model(model, num_classes=3, input_size=(128, 96))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.05)
    x = torch.randn(1, 1, 128, 96)
    net(x).sum().backward()
    wanted = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    net.to(dtype)(x).sum().backward()
    found = [parameter.grad for parameter in net.parameters()]
    assert {gradient.dtype for gradient in found} == {dtype}
    wanted, found = (torch.cat([g.double().flatten() for g in gs]) for gs in (wanted, found))
    assert nn.functional.cosine_similarity(wanted, found, dim=0) > 0.99


@pytest.mark.parametrize("model", ["mast_nano", "ast_nano"])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_a_fresh_model_can_be_traced(model, with_gradient):
    net = create_model(model, num_classes=3, input_size=(128, 96)).eval()
    x = torch.randn(1, 1, 128, 96)
    with torch.set_grad_enabled(with_gradient), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a trace holds one size, says the tracer
        traced = torch.jit.trace(net, x)
    torch.testing.assert_close(traced(x), net(x), rtol=0, atol=1e-5)


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
            out = module(x, GRID, None, Stretch()).x
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


def test_weights_in_bfloat16_are_given_gradients_where_the_kernel_sees_padding_alone():
    """Of a channels-last image oneDNN leaves them as it finds the memory: 1e37, or NaN."""
    torch.manual_seed(0)
    conv, _ = _pooling(64, (3, 3), (4, 4), 1e-5)
    exact, grid = copy.deepcopy(conv).double(), Grid(4, 2)
    conv.bfloat16()
    x = torch.randn(16, 8, 64, dtype=torch.bfloat16)
    _pool(x.double(), grid, exact).square().sum().backward()
    for _ in range(30):
        junk = [torch.full((size,), float("nan")) for size in (64, 576, 1152, 4096, 9216)]
        del junk  # what is freed is given to the next that asks
        conv.zero_grad()
        _pool(x, grid, conv).square().sum().backward()
        assert conv.weight.grad is not None
        assert exact.weight.grad is not None
        scale = exact.weight.grad.abs().max()
        assert (conv.weight.grad - exact.weight.grad).abs().max() < 0.03 * scale


def test_heads_laid_side_by_side_again_have_the_same_bits():
    """The gradient of queries, keys and values, one at a time and as autograd has it."""
    qkv = torch.randn(2, 6, 3, 4, 8, requires_grad=True)
    weights = torch.randn(3, 8, 6, 8)
    gradients = []
    for split in (_head_by_head, _laid_head_by_head):
        parts = split(qkv)
        assert [part.shape for part in parts] == [(8, 6, 8)] * 3
        loss = sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))
        gradients += torch.autograd.grad(loss + parts[0].square().sum(), qkv)
    assert torch.equal(*gradients)
    queries, *_ = _head_by_head(qkv)
    (of_one,) = torch.autograd.grad(queries.sum(), qkv)
    assert torch.equal(of_one[:, :, 0], torch.ones(2, 6, 4, 8))
    assert not of_one[:, :, 1:].any()
