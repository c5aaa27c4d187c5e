"""Encoders of other programs under the probe; those that need a package are skipped without it."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssmast.evaluation.baselines import make_columns
from ssmast.evaluation.foreign import ForeignEncoder, is_foreign, load_foreign
from ssmast.evaluation.probe import LINEAR, PROTOCOLS
from ssmast.evaluation.suite import ProbeConfig, run_suite

HEAR = """
import torch

class Model(torch.nn.Module):
    sample_rate, scene_embedding_size, timestamp_embedding_size = 16000, 129, 1

def load_model(model_file_path=""):
    model = Model()
    model.scale = torch.nn.Parameter(torch.tensor(float(model_file_path or 1)))
    return model

def get_scene_embeddings(audio, model):
    power = torch.fft.rfft(audio.unfold(1, 256, 128)).abs().square()
    return model.scale * (power.mean(dim=1) + 1e-6).log()
"""


@pytest.fixture
def hear_module(tmp_path, monkeypatch):
    (tmp_path / "a_hear_module.py").write_text(HEAR)
    monkeypatch.syspath_prepend(tmp_path)
    yield "a_hear_module"
    sys.modules.pop("a_hear_module", None)


def _columns(encoder, **further):
    return make_columns(
        encoder, **{"protocol": LINEAR, "seed": 0, "device": torch.device("cpu"), **further}
    )


def test_a_hear_module_stands_in_the_table(hear_module, sets, tmp_path):
    (result,) = run_suite(
        ProbeConfig(
            encoder=f"hear:{hear_module}", data=str(sets), tasks="tones", baselines="all",
            out=str(tmp_path / "out"),
        )
    )  # fmt: skip
    assert (result.column, result.dim) == ("pretrained", 129)
    assert list(result.columns) == ["pretrained", "log_mel", "random_conv"]
    assert result.mean > 0.9
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"encoder=hear:{hear_module}" in page
    assert "pooling=&#x27;its" not in page


def test_what_a_hear_module_is_given_and_its_hash(hear_module):
    one, two = load_foreign(f"hear:{hear_module}"), load_foreign(f"hear:{hear_module}:2")
    clip = torch.randn(8000)
    torch.testing.assert_close(2 * one.embed_clips([clip]), two.embed_clips([clip]))
    assert one.sha256 != two.sha256
    assert one.sha256 == load_foreign(f"hear:{hear_module}").sha256


class _Moments(ForeignEncoder):
    """Mean and largest sample: what windows put together must give exactly."""

    dim, window_seconds, shortest_seconds = 2, 1.0, 0.0

    @property
    def is_max(self):
        return torch.tensor([False, True])

    def vectors(self, waveforms):
        assert waveforms.shape[1] <= 16000
        return torch.stack([waveforms.mean(dim=1), waveforms.amax(dim=1)], dim=1)


@pytest.mark.parametrize("batch_seconds", [0.0, 60.0])
def test_a_long_clip_is_that_of_its_windows(batch_seconds):
    clips = [torch.randn(n) for n in (16000, 50_001, 800, 16000, 31_999)]
    found = _Moments("moments").embed_clips(clips, batch_seconds=batch_seconds)
    wanted = torch.stack([torch.stack([clip.mean(), clip.max()]) for clip in clips])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_a_timm_model_is_its_pooled_features_of_the_standardised_spectrogram(tmp_path):
    timm = pytest.importorskip("timm")
    encoder = load_foreign("timm:resnet18:untrained")
    clip = 0.1 * torch.randn(1, 16000)
    image = encoder.log_mel(clip).double()
    image = ((image - image.mean()) / image.std()).float()
    torch.testing.assert_close(
        encoder.embed_clips(list(clip)), encoder.model(image).detach(), atol=1e-4, rtol=1e-4
    )
    file = tmp_path / "weights.safetensors"
    colour = timm.create_model("resnet18").state_dict()
    save_file(colour, file)
    loaded = load_foreign(f"timm:resnet18:{file}")
    torch.testing.assert_close(
        loaded.model.conv1.weight, colour["conv1.weight"].sum(dim=1, keepdim=True)
    )
    assert loaded.sha256 != encoder.sha256
    columns = _columns("timm:resnet18:untrained")
    assert [column.name for column in columns] == ["pretrained", "untrained", "log_mel"]


def test_a_model_of_one_size_of_picture_gets_the_window_stretched():
    encoder = load_foreign("timm:vit_tiny_patch16_224:untrained")
    assert encoder.embed_clips([torch.randn(5000), torch.randn(20_000)]).shape == (2, 192)


@pytest.fixture(scope="module")
def ast_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("ast")
    config = transformers.ASTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_length=128, num_mel_bins=32,
    )  # fmt: skip
    torch.manual_seed(5)
    transformers.ASTModel(config).save_pretrained(folder)
    transformers.ASTFeatureExtractor(max_length=128, num_mel_bins=32).save_pretrained(folder)
    return folder


def test_an_ast_folder_is_mean_and_max_of_its_hidden_states(ast_folder):
    import transformers

    encoder = load_foreign(f"transformers:{ast_folder}")
    assert (encoder.dim, encoder.window_seconds) == (32, 1.28)
    clip = 0.1 * torch.randn(16000)
    model = transformers.ASTModel.from_pretrained(ast_folder).eval()
    inputs = transformers.ASTFeatureExtractor.from_pretrained(ast_folder)(
        clip.numpy(), sampling_rate=16000, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True)
    last = states.last_hidden_state[0]
    wanted = torch.cat([last.mean(dim=0), last.amax(dim=0)])
    torch.testing.assert_close(encoder.embed_clips([clip])[0], wanted)
    (column, untrained, _) = _columns(str(f"transformers:{ast_folder}"), layers="best")
    assert [one.layers for one in column.variants] == ["last", "blocks"]
    blocks = column.variants[1].embed_clips([clip])[0]
    assert column.variants[1].layer_dims == [32] * 3
    torch.testing.assert_close(blocks[64:80], states.hidden_states[2][0].mean(dim=0))
    assert untrained.sha256 != column.sha256
    (superb, *_) = _columns(f"transformers:{ast_folder}", protocol=PROTOCOLS["superb"])
    assert [one.layers for one in superb.variants] == ["blocks"]


def test_a_wav2vec2_folder_and_long_clips(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_stride=(40, 8), conv_kernel=(40, 8), num_feat_extract_layers=2,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    encoder = load_foreign(f"transformers:{tmp_path}")
    clips = [torch.randn(8000), torch.randn(31 * 16000)]
    first, second = encoder.embed_clips(clips)
    torch.testing.assert_close(first, encoder.embed_clips(clips[:1])[0])
    assert second.isfinite().all()


def test_opensmile_gives_its_functionals():
    smile = pytest.importorskip("opensmile")
    encoder = load_foreign("opensmile:eGeMAPSv02")
    clip = 0.1 * torch.randn(16000)
    own = smile.Smile(smile.FeatureSet.eGeMAPSv02, smile.FeatureLevel.Functionals)
    wanted = own.process_signal(clip.numpy(), 16000).to_numpy()
    np.testing.assert_allclose(encoder.embed_clips([clip]), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="openSMILE has no set 'x'; take one of"):
        load_foreign("opensmile:x")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hear:no_such_module_anywhere", "needs no_such_module_anywhere, which is not installed"),
        ("hear:json", "hear:json has no load_model; wanted a module of the HEAR interface"),
        ("hear:", "encoder=hear: names nothing; give one of hear:MODULE"),
        ("timm:resnet99", "timm has no model 'resnet99'"),
        (f"timm:resnet18:{__file__}", "test_foreign.py cannot be read as safetensors"),
        ("timm:resnet18:untrained:more", "has a : too many"),
        ("transformers:/nowhere", "/nowhere has no config.json; wanted the folder of an audio"),
    ],
)
def test_what_is_missing_is_said(name, said):
    assert is_foreign(name)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        load_foreign(name)


def test_weights_that_are_not_on_this_machine_are_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"weights of timm:resnet18 are not on this machine; have"):
        load_foreign("timm:resnet18")


def test_opensmile_that_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "opensmile", None)
    with pytest.raises(ValueError, match=r"opensmile, which is not .*; pip install"):
        load_foreign("opensmile:eGeMAPSv02")


def test_settings_of_another_program_are_not_ours(hear_module):
    with pytest.raises(ValueError, match="pools as it does; leave pooling=mean out"):
        _columns(f"hear:{hear_module}", pooling="mean")
    with pytest.raises(ValueError, match="one vector a sound; leave layers=blocks out"):
        _columns(f"hear:{hear_module}", layers="blocks")
    assert not is_foreign("some/encoder")
