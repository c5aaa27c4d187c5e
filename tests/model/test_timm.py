"""The family behind timm's interface."""

import json
import logging
import math

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.optim import param_groups_layer_decay

from ssmast.model import MAST, Backbone, create_model, list_models, load_timm_state_dict

NANO = {"num_classes": 5, "input_size": (128, 96)}


def test_the_family_is_registered():
    names = ["mast_base", "mast_large", "mast_micro", "mast_nano", "mast_small", "mast_tiny"]
    names += ["ast_base", "ast_nano", "ast_small", "ast_tiny"]
    names += ["ssast_base", "ssast_frame_base", "ssast_frame_nano", "ssast_nano"]
    assert list_models() == names
    assert set(names) <= set(timm.list_models("*ast_*"))
    net = timm.create_model("mast_nano")
    assert isinstance(net, MAST)
    assert net.pretrained_cfg["input_size"] == (1, 128, 1024)
    assert net.num_classes == 527


def test_a_family_that_lacks_a_part_cannot_be_made():
    class Half(MAST):
        time_stride = Backbone.time_stride

    with pytest.raises(TypeError, match=r"abstract method '?time_stride"):
        Half()


def test_weights_that_do_not_exist_are_an_error():
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        create_model("ast_nano", pretrained=True)


def test_pretrained_takes_timms_imagenet_weights_from_a_file(tmp_path, caplog):
    oracle = timm.create_model("mvitv2_tiny", img_size=64, num_classes=10)
    save_file(oracle.state_dict(), tmp_path / "model.safetensors")
    overlay = {"file": str(tmp_path / "model.safetensors")}
    numbers = {"pretrained": True, "pretrained_cfg_overlay": overlay, "input_size": (64, 96)}
    by_hand = create_model("mast_tiny", num_classes=0, input_size=(64, 96))
    load_timm_state_dict(by_hand, oracle.state_dict())
    x = torch.randn(1, 1, 64, 96)
    for num_classes in (0, 7, 527):  # 527 is the size of our own head
        with caplog.at_level(logging.INFO):
            net = create_model("mast_tiny", num_classes=num_classes, **numbers)
        assert "head.fc.weight (skipped on request)" in caplog.text
        torch.testing.assert_close(net.forward_features(x), by_hand.forward_features(x))
        assert num_classes == 0 or net(x).shape == (1, num_classes)
    maps = create_model("mast_tiny", features_only=True, **numbers)(x)
    assert len(maps) == 4


def test_pretrained_means_imagenet_where_timm_has_such_weights():
    cfg = create_model("mast_base").pretrained_cfg
    assert cfg["hf_hub_id"] == "timm/mvitv2_base.fb_in1k"
    assert cfg["tag"] == "fb_in1k"


def test_timms_names_for_sizes_and_pooling_are_understood():
    net = create_model("mast_nano", img_size=(64, 80), global_pool="avg", in_chans=2)
    assert net.input_size == (64, 80)
    assert net.pretrained_cfg["input_size"] == (2, 64, 80)
    assert net.global_pool == "mean"


@pytest.mark.parametrize("name", ["mast_nano", "ast_nano", "ssast_nano", "ssast_frame_nano"])
@pytest.mark.parametrize(
    "size", [{"img_size": 96}, {"input_size": (1, 96, 96)}, {"input_size": (96, 96)}]
)
def test_every_form_of_a_size_that_timm_knows_is_understood(name, size):
    net = create_model(name, num_classes=3, **size)
    assert (net.input_size, net.in_chans) == ((96, 96), 1)
    assert net.pretrained_cfg["input_size"] == (1, 96, 96)
    assert net(torch.randn(1, 1, 96, 96)).shape == (1, 3)


def test_a_size_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"must be \(mel bins, frames\), got \(1, 2, 3, 4\)"):
        create_model("mast_nano", input_size=(1, 2, 3, 4))
    with pytest.raises(ValueError, match="has 1 channels and in_chans is 3"):
        create_model("mast_nano", input_size=(1, 96, 96), in_chans=3)
    assert create_model("mast_nano", input_size=(3, 96, 96)).in_chans == 3
    for name, least in (("in_chans", 1), ("num_classes", 0)):
        with pytest.raises(ValueError, match=f"{name} must be at least {least}"):
            create_model("mast_nano", **{name: least - 1})


@pytest.mark.parametrize("name", ["mast_nano", "ast_nano"])
def test_weights_are_made_where_and_as_asked(name, tmp_path):
    net = create_model(name, device="meta", dtype=torch.bfloat16)
    kinds = {(parameter.device.type, parameter.dtype) for parameter in net.parameters()}
    assert kinds == {("meta", torch.bfloat16)}
    net = create_model(name, dtype=torch.float64, input_size=(64, 96))
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float64}
    timm.models.save_for_hf(net, tmp_path, safe_serialization=True)
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert next(back.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    "name", ["mast_nano", "mast_micro", "mast_tiny", "ast_nano", "ssast_frame_nano"]
)
def test_reduction_is_what_timm_takes_it_for(name):
    net = create_model(name, features_only=True)
    least = create_model(name).pretrained_cfg.get("min_input_size") or (1, 64, 64)
    for size in ((128, 96), (128, 333), least[1:]):
        for found, reduction in zip(
            net(torch.randn(1, 1, *size)), net.feature_info.reduction(), strict=True
        ):
            for cells, length in zip(found.shape[2:], size, strict=True):
                assert cells <= math.ceil(length / reduction) + 1


@pytest.mark.parametrize("global_pool", ["mean", "mean+max", "attention"])
def test_a_saved_model_comes_back_bit_equal(tmp_path, global_pool):
    numbers = {**NANO, "global_pool": global_pool, "stride_q": ((1, 1), (2, 2), (2, 2), (2, 2))}
    net = create_model("mast_nano", **numbers).eval()
    settings = {"ssmast": {"front_end": {"num_mels": 128}}}
    timm.models.save_for_hf(net, tmp_path, safe_serialization=True, model_config=settings)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["ssmast"] == settings["ssmast"]
    assert config["architecture"] == "mast_nano"
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 1, 128, 96)
    assert back.input_size == (128, 96)
    assert torch.equal(back(x), net(x))


def test_a_saved_model_comes_back_with_another_head_and_other_channels(tmp_path):
    net = create_model("mast_nano", **NANO).eval()
    timm.models.save_for_hf(net, tmp_path, safe_serialization=True)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, in_chans=3)
    assert other(torch.randn(2, 3, 128, 96)).shape == (2, 3)
    blocks = "stages.1.blocks.0.mlp.fc1.weight"
    assert torch.equal(other.state_dict()[blocks], net.state_dict()[blocks])


def test_features_only_gives_one_map_for_each_stage():
    net = create_model("mast_nano", features_only=True)
    maps = net(torch.randn(2, 1, 128, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (32, 32, 24), (64, 16, 12), (128, 8, 6), (256, 8, 3),
    ]  # fmt: skip
    assert net.feature_info.channels() == [32, 64, 128, 256]
    assert net.feature_info.reduction() == [4, 8, 16, 16]
    two = create_model("mast_nano", features_only=True, out_indices=(0, 2))
    assert len(two.model.stages) == 3
    assert [m.shape[1] for m in two(torch.randn(1, 1, 128, 96))] == [32, 128]


def test_intermediates_are_the_encoders_own_tokens():
    net = create_model("mast_nano", **NANO).eval()
    x = torch.randn(2, 1, 128, 96)
    tokens, intermediates = net.forward_intermediates(x, norm=True, output_fmt="NLC")
    assert torch.equal(tokens, net.forward_features(x))
    assert torch.equal(intermediates[-1], tokens)
    first = net.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(first[0].flatten(2).transpose(1, 2), intermediates[0])
    last_two = net.forward_intermediates(x, indices=2, intermediates_only=True)
    assert len(last_two) == 2
    with pytest.raises(ValueError, match='"NCHW" or "NLC"'):
        net.forward_intermediates(x, output_fmt="NHWC")


def test_the_head_can_be_replaced():
    net = create_model("mast_nano", **NANO).eval()
    x = torch.randn(2, 1, 128, 96)
    embedding = net.forward_head(net.forward_features(x), pre_logits=True)
    assert embedding.shape == (2, net.num_features) == (2, 256)
    net.reset_classifier(0)
    assert torch.equal(net(x), embedding)
    net.reset_classifier(11, "mean+max")
    assert net.head_hidden_size == 512
    assert net.get_classifier().in_features == 512
    assert net(x).shape == (2, 11)
    net.reset_classifier(3, "attention")
    assert net(x).shape == (2, 3)
    net.reset_classifier(3, "mean")
    assert net.attn_pool is None
    assert not net.head.training
    net.reset_classifier(0, "")
    assert net(x).shape == (2, 24, 256)


def test_layers_decay_by_block():
    with torch.device("meta"):
        net = create_model("mast_base")
    groups = timm.models.group_parameters(net, net.group_matcher(), reverse=True)
    blocks = {layer for name, layer in groups.items() if name.startswith("stages.")}
    assert len(blocks) == 24
    assert groups["patch_embed.proj.weight"] == 0
    assert blocks == set(range(1, 25))
    assert groups["stages.2.blocks.0.norm1.weight"] == 6
    assert groups["head.fc.weight"] == max(groups.values())
    coarse = timm.models.group_parameters(net, net.group_matcher(coarse=True), reverse=True)
    assert coarse["stages.3.blocks.2.norm1.weight"] == 4


def test_position_tables_are_spared_weight_decay():
    net = create_model("mast_nano", global_pool="attention", **NANO)
    spared = net.no_weight_decay()
    assert "attn_pool.query" in spared
    assert len(spared) == 1 + 2 * 5
    decayed = [
        group
        for group in param_groups_layer_decay(
            net, weight_decay=0.1, no_weight_decay_list=spared, layer_decay=0.8
        )
        if group["weight_decay"]
    ]
    names = {parameter: name for name, parameter in net.named_parameters()}
    assert not any("rel_pos" in names[p] for group in decayed for p in group["params"])


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.3])
def test_recomputing_blocks_changes_no_number(drop_path_rate):
    net = create_model("mast_nano", drop_path_rate=drop_path_rate, **NANO).train()
    x = torch.randn(4, 1, 128, 96)

    def outcome():
        torch.manual_seed(3)
        net.zero_grad()
        out = net(x, lengths=[96, 40, 80, 96])
        out.square().sum().backward()
        return out, [parameter.grad.clone() for parameter in net.parameters()]

    plain, plain_gradients = outcome()
    net.set_grad_checkpointing()
    again, gradients = outcome()
    assert torch.equal(plain, again)
    assert all(map(torch.equal, plain_gradients, gradients))


def test_stochastic_depth_rises_to_the_last_block_and_acts_only_in_training():
    net = create_model("mast_nano", drop_path_rate=0.4, **NANO)
    rates = [
        getattr(block.drop_path1, "drop_prob", 0.0)
        for stage in net.stages
        for block in stage.blocks
    ]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    x = torch.randn(8, 1, 128, 96)
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))
