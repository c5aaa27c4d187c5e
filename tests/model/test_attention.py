"""The exact attention paths against one another and against the definition."""

import pytest
import torch

from ssmast.model import attention
from ssmast.model.attention import PATHS, choose_path, relative_attention

FAST = ("mask", "augmented", "tiled", "auto")


def inputs(freq: int = 3, time: int = 5, dim: int = 8, queries: int = 11) -> list[torch.Tensor]:
    shapes = [(queries, dim), (freq * time, dim), (freq * time, dim), (queries, freq)]
    shapes.append((queries, time))
    return [torch.randn(2, 3, *shape, requires_grad=True) for shape in shapes]


def key_mask(num_keys: int = 15) -> torch.Tensor:
    mask = torch.rand(2, num_keys) > 0.4
    mask[:, 2] = True
    return mask


def test_reference_is_the_definition_with_the_bias_unscaled():
    # Differs from Zhu & Omar, eq. 2, which divides the bias by the square root too.
    q, k, v, bias_freq, bias_time = inputs()
    logits = torch.einsum("bhnd,bhkd->bhnk", q, k) / 8**0.5
    for row in range(3):
        for column in range(5):
            logits[..., row * 5 + column] += bias_freq[..., row] + bias_time[..., column]
    expected = torch.einsum("bhnk,bhkd->bhnd", logits.softmax(-1), v)
    out = relative_attention(q, k, v, bias_freq, bias_time, path="reference")
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 8, 11), (1, 15, 32, 4), (15, 1, 7, 40)])
def test_paths_agree_in_value_and_gradient(path, masked, shape):
    freq, time, dim, queries = shape
    tensors = inputs(freq, time, dim, queries)
    mask = key_mask() if masked else None
    weight = torch.randn(2, 3, queries, dim)
    outcomes = []
    for chosen in ("reference", path):
        out = relative_attention(*tensors, key_mask=mask, path=chosen)
        outcomes.append((out, *torch.autograd.grad((out * weight).sum(), tensors)))
    for ours, reference in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logits", [1, 20, 1000])
def test_tiles_of_any_size_give_the_same_gradients(monkeypatch, logits):
    monkeypatch.setattr(attention, "TILE_LOGITS", logits)
    tensors, mask, weight = inputs(), key_mask(), torch.randn(2, 3, 11, 8)
    outcomes = []
    for path in ("reference", "tiled"):
        out = relative_attention(*tensors, key_mask=mask, path=path)
        outcomes.append((out, *torch.autograd.grad((out * weight).sum(), tensors)))
    for ours, reference in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


def test_tiles_have_no_second_derivative_and_say_so():
    q, *rest = inputs()
    out = relative_attention(q, *rest, path="tiled")
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("path", PATHS)
def test_a_masked_key_has_no_influence_at_all(path):
    q, k, v, bias_freq, bias_time = inputs()
    mask = key_mask()
    changed_k = torch.where(mask[:, None, :, None], k, torch.randn_like(k) * 10)
    changed_v = torch.where(mask[:, None, :, None], v, torch.randn_like(v) * 100)
    out = relative_attention(q, k, v, bias_freq, bias_time, key_mask=mask, path=path)
    changed = relative_attention(
        q, changed_k, changed_v, bias_freq, bias_time, key_mask=mask, path=path
    )
    assert torch.equal(out, changed)


@pytest.mark.parametrize("path", PATHS)
def test_paths_work_in_bfloat16_autocast(path):
    tensors = inputs()
    exact = relative_attention(*tensors, key_mask=None, path="reference")
    with torch.autocast("cpu", torch.bfloat16):
        out = relative_attention(*tensors, key_mask=None, path=path)
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("device", "trains", "queries", "time", "path"),
    [
        ("cpu", False, 8192, 64, "mask"),
        ("cpu", True, 192, 24, "reference"),
        ("cpu", True, 512, 64, "tiled"),
        ("cuda", True, 8192, 64, "augmented"),
        ("cuda", False, 512, 128, "augmented"),
        ("cuda", False, 8192, 376, "mask"),
        ("mps", True, 8192, 64, "mask"),
    ],
)
def test_the_path_is_chosen_by_device_gradient_and_size(device, trains, queries, time, path):
    chosen = choose_path(device, head_dim=96, queries=queries, freq=8, time=time, trains=trains)
    assert chosen == path


def test_an_unknown_path_names_the_known_ones():
    with pytest.raises(
        ValueError, match="one of auto, reference, mask, augmented, tiled, got 'fast'"
    ):
        relative_attention(*inputs(), path="fast")
