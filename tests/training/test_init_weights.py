"""Where a run starts: ImageNet weights and earlier encoders reach student and teacher alike."""

import copy
import dataclasses
import json
import logging

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from ssmast.audio import LogMel
from ssmast.contrastive import Teacher
from ssmast.encoder import Encoder
from ssmast.model import create_model
from ssmast.settings import UsageError
from ssmast.training.config import FrontEnd, Head, PretrainConfig, Views
from ssmast.training.init_weights import (
    IMAGENET,
    find_weights,
    published_front_end,
    read_weights,
    start_encoders_,
    write_init_json,
)
from ssmast.training.objectives.ss_mast import SSMAST, build_student


@pytest.fixture(scope="module")
def mvitv2(tmp_path_factory):
    """A timm model with random weights, and the file they are in, laid out as on the Hub."""
    torch.manual_seed(0)
    model = timm.create_model("mvitv2_tiny", img_size=64, num_classes=10)
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), file)
    return model, file


def _student(model: str = "mast_tiny", frames: int = 96, mels: int = 64):
    return build_student(
        PretrainConfig(
            model=model,
            views=Views(frames=frames),
            front_end=FrontEnd(num_mels=mels),
            head=Head(hidden=8, dim=8, predictor=8),
        )
    )


def _backbones(student, teacher):
    return student.branch.backbone, teacher.branch.backbone


def _save_encoder(folder, *, frames: int, mels: int = 64, jitter: float = 0.02) -> Encoder:
    backbone = create_model("mast_nano", num_classes=0, input_size=(mels, frames))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(jitter * torch.randn_like(parameter))
    encoder = Encoder(backbone, LogMel(num_mels=mels, mean=-5.0, std=4.0)).eval()
    encoder.save(folder)
    return encoder


def test_imagenet_weights_reach_student_and_teacher_and_every_key_is_accounted_for(
    mvitv2, tmp_path
):
    oracle, file = mvitv2
    student = _student()
    teacher = Teacher(student.branch)
    heads = copy.deepcopy(student.branch.projector.state_dict())
    weights = read_weights(file)
    report = start_encoders_(
        _backbones(student, teacher), weights, model="mast_tiny", log_mel=LogMel(num_mels=64)
    )
    mine, theirs = student.branch.backbone.state_dict(), oracle.state_dict()
    stem = "patch_embed.proj.weight"
    torch.testing.assert_close(mine[stem], theirs[stem].sum(1, keepdim=True))
    block = "stages.2.blocks.1.attn.qkv.weight"
    assert torch.equal(mine[block], theirs[block])
    for name, value in teacher.branch.state_dict().items():
        assert torch.equal(value, student.branch.state_dict()[name]), name
    for name, value in student.branch.projector.state_dict().items():
        assert torch.equal(value, heads[name]), name
    write_init_json(tmp_path / "init.json", report, weights, student, prefix="branch.backbone.")
    told = json.loads((tmp_path / "init.json").read_text())
    assert {*told["used"], *told["adapted"], *told["left"]} == set(theirs)
    assert told["adapted"][stem] == {
        "how": "3 input channels summed", "from": [96, 3, 7, 7], "to": [96, 1, 7, 7],
    }  # fmt: skip
    table = told["adapted"]["stages.0.blocks.0.attn.rel_pos_w"]
    assert table["from"] == [31, 96]
    assert table["to"] == [47, 96]  # 96 frames -> 24 columns
    assert told["left"]["head.fc.weight"]["shape"] == [10, 768]
    assert told["random"]
    assert all(n.startswith(("branch.proj", "predictor", "log_temp")) for n in told["random"])


def test_imagenet_comes_from_timms_place_on_the_hub(mvitv2, monkeypatch):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *names: asked.append(names) or str(mvitv2[1])
    )
    for model in IMAGENET:
        assert find_weights("imagenet", model) == mvitv2[1]
    names = [f"mvitv2_{size}" for size in ("tiny", "small", "base", "large")]
    names += [f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small")]
    names += 2 * ["deit_base_distilled_patch16_384"]  # of ast_base and of ssast_base
    assert asked == [(f"timm/{name}.fb_in1k", "model.safetensors") for name in names]


def test_without_network_one_sentence_says_what_to_fetch_and_which_key_to_set(monkeypatch):
    def offline(*names):
        raise LocalEntryNotFoundError("cannot find the file in the cache.\nand much more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(FileNotFoundError) as caught:
        find_weights("imagenet", "mast_base")
    said = str(caught.value)
    assert "\n" not in said
    assert "timm/mvitv2_base.fb_in1k/resolve/main/model.safetensors" in said
    assert "init=PATH/model.safetensors" in said


def test_the_smallest_model_has_no_imagenet_weights():
    with pytest.raises(UsageError, match=r"mast_tiny, .*got model=mast_nano"):
        find_weights("imagenet", "mast_nano")


def test_random_weights_need_no_file():
    assert find_weights("none", "mast_nano") is None


@pytest.mark.parametrize("name", ["model.pth", "model.bin", "model.ckpt"])
def test_a_pickle_is_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match=r"pickle, which can run code.*safetensors"):
        find_weights(str(tmp_path / name), "mast_tiny")


def test_a_missing_path_is_an_error():
    with pytest.raises(
        FileNotFoundError, match="init=no/such does not exist; give none, default, imagenet"
    ):
        find_weights("no/such", "mast_tiny")


def test_what_is_no_weights_file_is_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_weights(file)
    save_file({"some.weight": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"got some.weight, \.\.\.; for an encoder of ssmast"):
        read_weights(file)


@pytest.mark.parametrize(("before", "now"), [((64, 96), (64, 96)), ((64, 96), (80, 224))])
def test_an_encoder_goes_on_with_what_it_computes_on_inputs_of_the_new_size(tmp_path, before, now):
    encoder = _save_encoder(tmp_path / "run" / "encoder", frames=before[1], mels=before[0])
    student = _student("mast_nano", frames=now[1], mels=now[0])
    start = find_weights(str(tmp_path / "run"), "mast_nano")
    assert start == tmp_path / "run" / "encoder"
    weights = read_weights(start)
    start_encoders_(
        _backbones(student, Teacher(student.branch)),
        weights,
        model="mast_nano",
        log_mel=LogMel(num_mels=now[0]),
    )
    x = torch.randn(2, 1, *now)
    with torch.no_grad():
        expected = encoder.backbone.eval().encode(x)[0]
        got = student.branch.backbone.eval().encode(x)[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_shorter_input_gets_the_middle_of_the_tables(tmp_path):
    encoder = _save_encoder(tmp_path / "encoder", frames=224)
    student = _student("mast_nano", frames=96)
    weights = read_weights(find_weights(str(tmp_path / "encoder"), "mast_nano"))
    start_encoders_(
        _backbones(student, Teacher(student.branch)),
        weights,
        model="mast_nano",
        log_mel=LogMel(num_mels=64),
    )
    x = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(
            student.branch.backbone.eval().encode(x)[0],
            encoder.backbone.encode(x)[0],
            rtol=1e-4,
            atol=1e-5,
        )


def test_an_encoder_of_another_model_or_front_end_is_named(tmp_path, caplog):
    _save_encoder(tmp_path / "encoder", frames=96)
    weights = read_weights(tmp_path / "encoder")
    tiny, nano = _student("mast_tiny"), _student("mast_nano")
    with pytest.raises(UsageError, match="is a mast_nano, this run trains mast_tiny"):
        start_encoders_(
            _backbones(tiny, Teacher(tiny.branch)), weights, model="mast_tiny", log_mel=LogMel()
        )
    other = LogMel(num_mels=64, hop_length=320)
    with caplog.at_level(logging.WARNING):
        start_encoders_(
            _backbones(nano, Teacher(nano.branch)), weights, model="mast_nano", log_mel=other
        )
    assert "hop_length (was 160, now 320)" in caplog.text


def test_deit_starts_an_ast_and_every_key_is_accounted_for(tmp_path):
    oracle = timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, num_classes=10)
    file = tmp_path / "deit.safetensors"
    save_file(oracle.state_dict(), file)
    student = _student("ast_tiny")
    teacher = Teacher(student.branch)
    weights = read_weights(file)
    report = start_encoders_(
        _backbones(student, teacher), weights, model="ast_tiny", log_mel=LogMel(num_mels=64)
    )
    mine, theirs = student.branch.backbone.state_dict(), oracle.state_dict()
    block = "blocks.3.attn.qkv.weight"
    assert torch.equal(mine[block], theirs[block])
    assert torch.equal(mine[block], teacher.branch.backbone.state_dict()[block])
    write_init_json(tmp_path / "init.json", report, weights, student, prefix="branch.backbone.")
    told = json.loads((tmp_path / "init.json").read_text())
    assert {*told["used"], *told["adapted"], *told["left"]} == set(theirs)
    assert set(told["left"]) == {
        f"{h}.{n}" for h in ("head", "head_dist") for n in ("weight", "bias")
    }


def test_an_earlier_ast_starts_an_ast_of_another_length(tmp_path):
    backbone = create_model("ast_nano", num_classes=0, input_size=(64, 128))
    Encoder(backbone, LogMel(num_mels=64), pooling="mean").eval().save(tmp_path)
    student = _student("ast_nano", frames=96)
    weights = read_weights(find_weights(str(tmp_path), "ast_nano"))
    report = start_encoders_(
        _backbones(student, Teacher(student.branch)),
        weights,
        model="ast_nano",
        log_mel=LogMel(num_mels=64),
    )
    assert list(report.adapted) == ["pos_embed"]
    loaded = student.branch.backbone.state_dict()
    assert torch.equal(loaded["norm.weight"], backbone.state_dict()["norm.weight"])


def test_what_ssast_learns_starts_an_ast_whose_patches_overlap(tmp_path):
    backbone = create_model("ssast_nano", num_classes=0, input_size=(64, 128))
    Encoder(backbone, LogMel(num_mels=64), pooling="mean").eval().save(tmp_path)
    student = _student("ast_nano", frames=96)
    weights = read_weights(find_weights(str(tmp_path), "ast_nano"))
    teacher, front = Teacher(student.branch), LogMel(num_mels=64)
    report = start_encoders_(_backbones(student, teacher), weights, model="ast_nano", log_mel=front)
    assert list(report.adapted) == ["pos_embed"]
    loaded = student.branch.backbone.state_dict()
    for name in ("patch_embed.proj.weight", "blocks.4.mlp.fc1.weight"):
        assert torch.equal(loaded[name], backbone.state_dict()[name])
    assert loaded["pos_embed"].shape == (1, 2 + 5 * 9, 128)
    frames = create_model("ssast_frame_nano", num_classes=0, input_size=(64, 128))
    Encoder(frames, LogMel(num_mels=64), pooling="mean").eval().save(tmp_path / "frames")
    weights = read_weights(find_weights(str(tmp_path / "frames"), "ast_nano"))
    with pytest.raises(UsageError, match="is a ssast_frame_nano, this run trains ast_nano"):
        start_encoders_(_backbones(student, teacher), weights, model="ast_nano", log_mel=front)


def test_weights_of_the_other_family_are_refused(mvitv2):
    student = _student("ast_nano")
    with pytest.raises(UsageError, match="holds a MAST, this run trains ast_nano"):
        start_encoders_(
            _backbones(student, Teacher(student.branch)),
            read_weights(mvitv2[1]),
            model="ast_nano",
            log_mel=LogMel(num_mels=64),
        )


def test_pretraining_from_a_published_ast_takes_its_front_end(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the reference is in the extra dev")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ASTConfig(max_length=128, intermediate_size=128, **sizes)
    transformers.ASTModel(config).save_pretrained(tmp_path)
    asked = PretrainConfig(model="ast_base", init=str(tmp_path))
    front = SSMAST.resolve(asked).front_end
    assert (front.kind, front.f_min, front.f_max, front.n_fft) == ("kaldi", 20.0, 8000.0, 512)
    found = published_front_end(asked.init, asked.model)
    assert found is not None
    assert (found.mean, found.std, found.pad_frames) == (-4.2677393, 2 * 4.5689974, 0)
    assert SSMAST.open_data(asked, runs=tmp_path / "runs").log_mel is not None
    with pytest.raises(UsageError, match=r"front_end\.hop_length must be left to init="):
        SSMAST.resolve(dataclasses.replace(asked, front_end=FrontEnd(hop_length=80)))
    assert SSMAST.resolve(dataclasses.replace(asked, init="none")).front_end == FrontEnd()
