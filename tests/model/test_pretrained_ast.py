"""Weights of AST from elsewhere: three namings, and every key accounted for."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from ssmast.model import create_model, is_ast_state_dict, load_ast_file, load_ast_state_dict
from tests.model.test_ast import close, nano, oracle_of

TINY_DEIT = "deit_tiny_distilled_patch16_224"


def original_of(net) -> dict[str, torch.Tensor]:
    """The state dict as AST's code names it: DeiT in `v`, with its two ImageNet classifiers."""
    state = {f"v.{name}": value for name, value in net.state_dict().items() if "head." not in name}
    state |= {"mlp_head.0.weight": net.head.norm.weight, "mlp_head.0.bias": net.head.norm.bias}
    state |= {"mlp_head.1.weight": net.head.fc.weight, "mlp_head.1.bias": net.head.fc.bias}
    for head in ("head", "head_dist"):
        state[f"v.{head}.weight"] = torch.randn(1000, 128)
        state[f"v.{head}.bias"] = torch.randn(1000)
    return {f"module.{name}": value.detach().clone() for name, value in state.items()}


def test_a_file_that_transformers_wrote_is_read(tmp_path):
    oracle = oracle_of(128, 96)
    oracle.save_pretrained(tmp_path)  # with the names of the published files
    ours = nano(num_classes=7, norm_eps=1e-12)
    report = load_ast_file(ours, tmp_path / "model.safetensors")
    assert sum(".key." in key for key in report.adapted) == 2 * 5
    assert set(report.adapted.values()) == {"query, key and value joined"}
    assert not report.left
    x = torch.randn(2, 1, 128, 96)
    with torch.no_grad():
        close(ours(x), oracle(x[:, 0].transpose(1, 2)).logits)


@pytest.mark.parametrize("num_classes", [7, 5, 0])
def test_timms_overlay_of_a_file_leaves_no_weight_unloaded(tmp_path, num_classes):
    """With another number of classes timm loads what fits by name, and of the rest nothing."""
    oracle = oracle_of(128, 96)
    oracle.save_pretrained(tmp_path)
    numbers = {"num_classes": num_classes, "input_size": (128, 96), "norm_eps": 1e-12}
    file = {"file": str(tmp_path / "model.safetensors")}
    net = create_model("ast_nano", pretrained=True, pretrained_cfg_overlay=file, **numbers).eval()
    x = torch.randn(2, 1, 128, 96)
    with torch.no_grad():
        theirs = oracle.audio_spectrogram_transformer(x[:, 0].transpose(1, 2)).pooler_output
        close(net.forward_head(net.forward_features(x), pre_logits=True), theirs)
    for name, state in (
        ("ast_nano", {"cls_token": torch.zeros(1, 1, 128)}),
        ("mast_nano", {"stages.0.nothing": torch.zeros(1)}),
    ):
        save_file(state, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=r"must hold every tensor of M?AST, got none for"):
            create_model(
                name, pretrained=True, pretrained_cfg_overlay=file, num_classes=num_classes
            )


def test_the_base_model_of_transformers_is_read_too():
    oracle = oracle_of(128, 96).audio_spectrogram_transformer
    ours = nano(norm_eps=1e-12)
    assert is_ast_state_dict(oracle.state_dict())
    load_ast_state_dict(ours, oracle.state_dict())
    x = torch.randn(2, 1, 128, 96)
    with torch.no_grad():
        close(ours(x), oracle(x[:, 0].transpose(1, 2)).pooler_output)


def test_a_file_with_the_names_of_asts_code_is_read(tmp_path):
    theirs, ours = (
        nano(num_classes=7),
        create_model("ast_nano", num_classes=7, input_size=(128, 96)),
    )
    state = original_of(theirs)
    save_file(state, tmp_path / "audioset.safetensors")
    report = load_ast_file(ours, tmp_path / "audioset.safetensors")
    assert set(report.left) == {
        f"module.v.{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")
    }
    assert set(report.left.values()) == {"ImageNet's classifier"}
    assert not report.adapted
    assert set(report.used) | set(report.left) == set(state)
    x = torch.randn(2, 1, 128, 96)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs(x))


def test_a_published_table_is_cut_for_a_shorter_clip_and_another_head_stays_random():
    theirs, ours = nano(1024, num_classes=527), nano(512, num_classes=50)
    before = ours.head.fc.weight.clone()
    report = load_ast_state_dict(ours, original_of(theirs))
    assert report.adapted == {"module.v.pos_embed": "position table 12x101 -> 12x50"}
    assert report.left["module.mlp_head.1.weight"] == "head of 527 classes, the model has 50"
    assert torch.equal(ours.head.fc.weight, before)
    table = theirs.pos_embed[0, 2:].unflatten(0, (12, 101))
    close(ours.pos_embed[0, 2:].unflatten(0, (12, 50)), table[:, 25:75])  # the middle


def test_deit_is_heard_as_a_spectrogram():
    deit = timm.create_model(TINY_DEIT)
    state = {
        name: value + 0.1 * torch.randn_like(value) for name, value in deit.state_dict().items()
    }
    ours = create_model("ast_tiny", num_classes=50)
    report = load_ast_state_dict(ours, state)
    assert report.adapted == {
        "patch_embed.proj.weight": "3 input channels summed",
        "pos_embed": "position table 14x14 -> 12x101",
    }
    assert set(report.left) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert len(report.used) + len(report.adapted) + len(report.left) == len(state)
    stem = state["patch_embed.proj.weight"].sum(1, keepdim=True)
    assert torch.equal(ours.patch_embed.proj.weight, stem)
    image = state["pos_embed"][:, 2:].transpose(1, 2).unflatten(2, (14, 14))
    stretched = torch.nn.functional.interpolate(image[:, :, 1:13], (12, 101), mode="bilinear")
    close(ours.pos_embed[:, 2:], stretched.flatten(2).transpose(1, 2))


def test_deit_gives_timms_numbers_on_a_square_image():
    deit = timm.create_model(TINY_DEIT, num_classes=10).eval()
    numbers = {"in_chans": 3, "input_size": (224, 224), "patch_stride": (16, 16), "num_classes": 0}
    ours = create_model("ast_tiny", **numbers).eval()
    report = load_ast_state_dict(ours, deit.state_dict())
    assert not report.adapted
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        close(ours.forward_features(x), deit.forward_features(x))


def test_ssasts_own_checkpoint_leaves_its_heads_behind():
    state = original_of(nano(num_classes=7))
    state |= {"module.mask_embed": torch.zeros(1, 1, 128), "module.p_input_fdim": torch.tensor(128)}
    state |= {"module.cpredlayer.0.weight": torch.zeros(128, 128)}
    report = load_ast_state_dict(nano(num_classes=7), state)
    assert report.left["module.cpredlayer.0.weight"] == "SSAST's prediction head"
    assert report.left["module.mask_embed"] == "SSAST's mask token"


def test_what_does_not_fit_is_refused(tmp_path):
    state = timm.create_model(TINY_DEIT).state_dict()
    with pytest.raises(ValueError, match="must have shape"):
        load_ast_state_dict(nano(), state)
    with pytest.raises(ValueError, match=r"got none for .* \(blocks\.12\.norm1\.weight"):
        load_ast_state_dict(create_model("ast_tiny", depth=13), state)
    plain = timm.create_model("deit_tiny_patch16_224").state_dict()
    with pytest.raises(ValueError, match="source_grid="):
        load_ast_state_dict(create_model("ast_tiny"), plain)
    odd = original_of(nano(83, num_classes=7))  # 12 x 7
    with pytest.raises(ValueError, match="84 patches, which are not 9 x 9"):
        load_ast_state_dict(nano(), odd)
    load_ast_state_dict(nano(), odd, source_grid=(12, 7))
    with pytest.raises(FileNotFoundError, match=r"wanted a \.safetensors file"):
        load_ast_file(nano(), tmp_path / "nothing.safetensors")
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match="may run code when it is read"):
        load_ast_file(nano(), tmp_path / "weights.pth")
