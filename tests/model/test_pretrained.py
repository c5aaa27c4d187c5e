"""timm's MViTv2 is the oracle: the same weights give the same numbers on a square RGB input."""

from pathlib import Path

import pytest
import timm
import torch
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

from ssmast.model import create_model
from ssmast.model.pretrained import load_timm_state_dict
from tests.scripts import load_script

SQUARE = ((1, 1), (2, 2), (2, 2), (2, 2))

# Every feature of mvitv2_large (width grows in the MLP, two heads) at a size that tests can afford.
NARROW_LARGE = {"depths": (1, 2, 2, 1), "embed_dim": 48, "num_heads": 2, "expand_attn": False}


def jitter(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights that no initialisation leaves at zero or one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def pair(size: str, image: int = 64):
    oracle = jitter(timm.create_model(f"mvitv2_{size}", img_size=image, num_classes=10))
    numbers = {"in_chans": 3, "input_size": (image, image), "num_classes": 10, "stride_q": SQUARE}
    return oracle, create_model(f"mast_{size}", **numbers).eval()


def assert_equal_in_value_and_gradient(oracle, ours, image: int) -> None:
    x = torch.randn(2, 3, image, image)
    expected, out = oracle(x), ours(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    gradients = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    for name, parameter in ours.named_parameters():
        name = name.replace("rel_pos_freq", "rel_pos_h").replace("rel_pos_time", "rel_pos_w")
        reference = gradients[name]
        scale = max(1.0, reference.abs().max().item())
        torch.testing.assert_close(parameter.grad, reference, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("image", [64, 96])
def test_tiny_equals_timm(image):
    oracle, ours = pair("tiny", image)
    report = load_timm_state_dict(ours, oracle.state_dict())
    assert len(report.used) == len(oracle.state_dict())
    assert not report.adapted
    assert not report.left
    assert_equal_in_value_and_gradient(oracle, ours, image)


def test_a_narrow_large_equals_timm():
    oracle = MultiScaleVit(MultiScaleVitCfg(**NARROW_LARGE), img_size=64, num_classes=10)
    jitter(oracle)
    numbers = {"in_chans": 3, "input_size": (64, 64), "num_classes": 10, "stride_q": SQUARE}
    ours = create_model("mast_large", **NARROW_LARGE, **numbers).eval()
    load_timm_state_dict(ours, oracle.state_dict())
    assert_equal_in_value_and_gradient(oracle, ours, 64)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_the_larger_ones_equal_timm(size):
    oracle, ours = pair(size)
    load_timm_state_dict(ours, oracle.state_dict())
    assert_equal_in_value_and_gradient(oracle, ours, 64)


def test_a_spectrogram_equals_timm_with_position_tables_for_each_axis():
    # The benchmark's twin: timm's blocks with our pooling schedule on a non-square input.
    path = Path(__file__).parents[2] / "benchmarks" / "rivals.py"
    rivals = load_script(path, name="rivals")
    ours = jitter(create_model("mast_tiny", input_size=(64, 160)))
    assert rivals.check_twin(ours, rivals.timm_twin(ours)) < 1e-4


def test_a_spectrogram_model_takes_the_stem_summed_and_the_tables_read_anew():
    oracle = jitter(timm.create_model("mvitv2_tiny", img_size=64, num_classes=1000))
    ours = create_model("mast_tiny", num_classes=0, input_size=(128, 1024))
    report = load_timm_state_dict(ours, oracle.state_dict())
    source, loaded = oracle.state_dict(), ours.state_dict()
    stem = source["patch_embed.proj.weight"]
    assert torch.equal(loaded["patch_embed.proj.weight"], stem.sum(1, keepdim=True))
    assert report.adapted["patch_embed.proj.weight"] == "3 input channels summed"
    assert set(report.left) == {"head.fc.weight", "head.fc.bias"}
    assert sum("rel_pos" in key for key in report.adapted) > 10
    assert len(report.used) + len(report.adapted) + len(report.left) == len(source)
    # A grey image through three channels is the same image through their sum.
    grey = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(
        ours.patch_embed(grey)[0].x,
        oracle.patch_embed(grey.expand(-1, 3, -1, -1))[0],
        rtol=0,
        atol=1e-4,
    )
    assert "adapted" in str(report)
    assert "head.fc.bias" in str(report)


def test_distance_zero_stays_at_zero_and_a_distance_covers_the_same_share_of_the_input():
    # Tables that hold the distance itself, in cells of a 16-cell image axis.
    oracle = timm.create_model("mvitv2_tiny", img_size=64, num_classes=0)
    state = oracle.state_dict()
    table = state["stages.0.blocks.0.attn.rel_pos_w"]
    zero = (16 // 4 - 1) * 4
    state["stages.0.blocks.0.attn.rel_pos_w"] = (
        (torch.arange(len(table)) - zero).float()[:, None].expand_as(table)
    )
    ours = create_model("mast_tiny", num_classes=0, input_size=(128, 512))
    load_timm_state_dict(ours, state)
    attention = ours.stages[0].blocks[0].attn
    own_zero = (128 // 4 - 1) * 4  # 512 frames -> 128 columns -> keys every 4
    for cells in (-64, -8, 0, 4, 100):
        expected = cells * 16 / 128
        assert attention.rel_pos_time[own_zero + cells, 0].item() == pytest.approx(expected)


def test_a_checkpoint_of_another_depth_is_refused():
    oracle = timm.create_model("mvitv2_tiny", img_size=64)
    deeper = create_model("mast_small", in_chans=3, input_size=(64, 64))
    with pytest.raises(ValueError, match="build the model with the same depths"):
        load_timm_state_dict(deeper, oracle.state_dict())
    wider = create_model("mast_tiny", embed_dim=32, in_chans=3, input_size=(64, 64))
    with pytest.raises(ValueError, match="must have shape"):
        load_timm_state_dict(wider, oracle.state_dict())


def test_another_stem_is_refused_unless_it_is_skipped():
    oracle = timm.create_model("mvitv2_tiny", img_size=64)
    ours = create_model(
        "mast_tiny", stem_kernel=(16, 16), stem_stride=(10, 10), stem_padding=(0, 0)
    )
    with pytest.raises(ValueError, match=r"pass skip=\('patch_embed.proj',\)"):
        load_timm_state_dict(ours, oracle.state_dict())
    before = ours.patch_embed.proj.weight.clone()
    report = load_timm_state_dict(ours, oracle.state_dict(), skip=("patch_embed",))
    assert torch.equal(ours.patch_embed.proj.weight, before)
    assert report.left["patch_embed.proj.weight"] == "skipped on request"
