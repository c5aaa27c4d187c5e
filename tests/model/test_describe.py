"""The table of a model and its cost."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssmast.model import create_model
from ssmast.model.describe import count_macs, describe, main


def test_base_is_described_as_in_table_1_beside_ast():
    text = describe("mast_base")
    for row in (
        "| patch embed | 96 x 8192 (32x256) | 7x7 convolution, stride 4x4 |",
        "| 0-1 | 96 x 8192 (32x256) | attention + MLP |",
        "| 2 | 192 x 2048 (16x128) | pooling attention (2-D, stride 2x2) + MLP |",
        "| 3-4 | 192 x 2048 (16x128) | attention + MLP |",
        "| 5 | 384 x 512 (8x64) | pooling attention (2-D, stride 2x2) + MLP |",
        "| 6-20 | 384 x 512 (8x64) | attention + MLP |",
        "| 21 | 768 x 256 (8x32) | pooling attention (1-D, time, stride 1x2) + MLP |",
        "| 22-23 | 768 x 256 (8x32) | attention + MLP |",
        "| mast_base | 51.38 | 25.68 | 34.31 |",
        "| AST, as published | 88.1 | 103.4 |",
    ):
        assert row in text


def test_costs_of_base_are_the_papers_and_the_measured_one():
    with torch.device("meta"):
        net = create_model("mast_base")
    cost = count_macs(net, freq_bins=128, frames=1024)
    assert cost.papers == pytest.approx(25.7e9, abs=0.2e9)
    assert cost.full == pytest.approx(34.3e9, rel=0.002)


def test_ast_stands_next_to_the_mast_of_its_size():
    text = describe("mast_base")
    for row in (
        "mast_base: input 1 x 128 x 1024",
        "ast_base: input 1 x 128 x 1024",
        "| patch embed | 768 x 1212 (12x101) | 16x16 convolution, stride 10x10 |",
        "| 0-11 | 768 x 1214 (12x101 + 2 class tokens) | attention + MLP |",
        "| mast_base | 51.38 | 25.68 | 34.31 | 8192 to 256 |",
        "| ast_base | 86.59 | 103.52 | 130.51 | 1212 to 1214 |",
    ):
        assert row in text
    assert "mast_base: input" in describe("ast_base")
    assert "ast_base: input" in describe("mast_large")  # the largest AST there is
    short = describe(create_model("ast_nano", input_size=(64, 96), num_classes=0))
    assert "mast_nano: input 1 x 64 x 96" in short
    tiny = describe(create_model("mast_nano", input_size=(8, 96), num_classes=0))
    assert "\nast_nano: " not in tiny  # no patch of AST's fits


def test_ast_base_has_the_published_size():
    with torch.device("meta"):
        net = create_model("ast_base")
    parameters = sum(parameter.numel() for parameter in net.parameters())
    # AST's code keeps both ImageNet classifiers of DeiT; they are counted and never called.
    assert parameters + 2 * (768 * 1000 + 1000) == pytest.approx(88.1e6, abs=0.05e6)
    assert count_macs(net, freq_bins=128, frames=1024).papers == pytest.approx(103.4e9, rel=0.002)


def test_the_nanos_are_of_one_size():
    sizes = [
        sum(p.numel() for p in create_model(name, num_classes=0).parameters())
        for name in ("mast_nano", "ast_nano")
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


@pytest.mark.parametrize("name", ["mast_nano", "ast_nano"])
def test_our_count_is_that_of_ptflops(name):
    ptflops = pytest.importorskip("ptflops")
    net = create_model(name, num_classes=0, input_size=(128, 96))
    theirs, parameters = ptflops.get_model_complexity_info(
        net, (1, 128, 96), as_strings=False, print_per_layer_stat=False, backend="pytorch"
    )
    ours = count_macs(net, freq_bins=128, frames=96).papers
    assert ours == pytest.approx(theirs, rel=0.01)
    assert parameters == sum(parameter.numel() for parameter in net.parameters())


def test_the_full_count_of_ast_is_the_formula():
    net = create_model("ast_nano", num_classes=0, input_size=(128, 96))
    n, d = 12 * 9 + 2, 128
    products = 5 * (12 * n * d * d + 2 * n * n * d) + (n - 2) * d * 256
    assert count_macs(net, freq_bins=128, frames=96).full == products


def test_the_full_count_holds_every_product_that_runs():
    net = create_model("mast_nano", attention_path="reference").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.randn(1, 1, 80, 130))
    assert count_macs(net, freq_bins=80, frames=130).full == counter.get_total_flops() // 2


def test_describing_leaves_the_model_alone():
    net = create_model("mast_nano", num_classes=0, input_size=(64, 96), depths=(1, 1, 1, 1))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    text = describe(net)
    assert "input 1 x 64 x 96" in text
    assert net.training
    assert all(not module._forward_hooks for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_what_is_not_of_the_family_is_refused():
    with pytest.raises(ValueError, match=r"one of mast_base, .*, got 'resnet18'"):
        describe("resnet18")


@pytest.mark.parametrize("word", ["model=mast_nano", "mast_nano"])
def test_the_command_prints_the_table(word, capsys):
    assert main([word, "mels=64", "frames=96", "num_classes=0"]) == 0
    assert "mast_nano: input 1 x 64 x 96" in capsys.readouterr().out
