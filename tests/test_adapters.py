"""The encoder behind the interfaces of HEAR, X-ARES, s3prl and mteb."""

import sys
import types

import numpy as np
import pytest
import torch

from ssmast import hear
from ssmast.adapters import MtebEncoder, UpstreamExpert, xares_encoder
from ssmast.encoder import load_encoder
from tests.encoder.test_encoder import RATE, make_encoder, noise


@pytest.fixture(scope="module", params=["mast_nano", "ast_nano"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "encoder"
    make_encoder(request.param, window_seconds=1.5).save(folder)
    return folder


@pytest.mark.parametrize("seconds", [1.07, 1.98, 4.0, 2.74])
def test_hear_gives_what_its_api_says(folder, seconds):
    model = hear.load_model(str(folder))
    audio = torch.stack([noise(int(seconds * RATE), seed=n) for n in range(2)])
    scene = hear.get_scene_embeddings(audio, model)
    assert scene.shape == (2, model.scene_embedding_size)
    assert scene.dtype == torch.float32
    torch.testing.assert_close(model(audio), scene)
    frames, times = hear.get_timestamp_embeddings(audio, model)
    assert frames.shape == (*times.shape, model.timestamp_embedding_size)
    steps = times.diff(dim=1)
    torch.testing.assert_close(steps, steps[:1, :1].expand_as(steps), atol=1e-2, rtol=0)
    assert 10 < float(steps[0, 0]) <= 50  # milliseconds: a step of 0.05 would be seconds
    assert times.min() >= 0
    assert 1000 * seconds - 200 < times.max() <= 1000 * seconds


def test_hear_says_what_it_wants(folder):
    with pytest.raises(ValueError, match="needs an encoder folder"):
        hear.load_model()
    with pytest.raises(ValueError, match=r"\(batch, samples\), got \(5,\)"):
        hear.get_scene_embeddings(torch.zeros(5), hear.load_model(str(folder)))


@pytest.mark.parametrize("channels", ["mono", "first", "last"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64])
def test_mteb_gets_the_same_vector_of_sound_in_any_number_type(folder, channels, dtype):
    model = MtebEncoder(folder)
    samples = np.stack([noise(9000, seed=1).numpy(), noise(9000, seed=2).numpy()])
    if channels == "mono":
        samples = samples[:1]
    wanted = model.encoder.embed(samples.mean(axis=0), RATE)
    scale = 1 if dtype is np.float64 else np.iinfo(dtype).max + 1
    array = np.round(samples.astype(np.float64) * scale * 2**15) / 2**15
    array = array.astype(dtype) if channels != "last" else array.astype(dtype).T
    sound = {"array": array[0] if channels == "mono" else array, "sampling_rate": RATE}
    found = torch.from_numpy(model.encode([{"audio": [sound]}]))
    torch.testing.assert_close(found, wanted, atol=1e-2, rtol=1e-3)


def test_xares_makes_an_encoder_without_arguments(folder):
    encoder = xares_encoder(folder)()
    frames = encoder(noise(3 * RATE).repeat(2, 1))
    assert frames.shape[0] == 2
    assert frames.shape[2] == encoder.output_dim
    assert encoder.sampling_rate == RATE
    assert abs(frames.shape[1] - 3000 / encoder.hop_size_in_ms) <= 4


def test_xares_keeps_what_two_encoders_give_apart(folder, tmp_path):
    ours = load_encoder(folder)
    ours.variant(window_seconds=0.7).save(tmp_path / "shorter")
    ours.variant(pooling="mean").save(tmp_path / "pooled")
    paths = [folder, folder, tmp_path / "shorter", tmp_path / "pooled"]
    names = [type(xares_encoder(path)()).__name__ for path in paths]
    names.append(type(xares_encoder(folder, hop_ms=None)()).__name__)
    assert names[0] == names[1]
    assert len(set(names)) == 4
    assert all(name.isidentifier() and name.endswith("Encoder") for name in names)


def test_s3prl_layers_have_one_rate_and_one_width(folder):
    upstream = UpstreamExpert(ckpt=folder, model_config=None, refresh=False)  # as its runner does
    rate = upstream.get_downsample_rates("hidden_states")
    wavs = [noise(4 * RATE), noise(RATE)]
    found = upstream(wavs)
    layers = found["hidden_states"]
    assert found["last_hidden_state"] is layers[-1]
    assert found["hidden_state_0"] is layers[0]
    assert len(layers) == (4 if rate == 640 else 3)
    assert {layer.shape for layer in layers} == {layers[0].shape}
    assert abs(layers[0].shape[1] - 4 * RATE / rate) < 5
    alone = upstream(wavs[1:])["hidden_states"]
    for both, single in zip(layers, alone, strict=True):
        torch.testing.assert_close(both[1, : single.shape[1]], single[0], atol=1e-5, rtol=1e-4)
        assert not both[1, single.shape[1] :].any()
    layers[-1].sum().backward()
    assert upstream.encoder.backbone.patch_embed.proj.weight.grad is not None
    with pytest.raises(ValueError, match=r"must be float samples .S,. .* got torch\.int16"):
        upstream([(wavs[1] * 32767).short()])


def test_the_last_s3prl_layer_is_made_of_the_encoders_frames(folder):
    upstream = UpstreamExpert(folder)
    clip = noise(3 * RATE)
    frames, _ = upstream.encoder.embed_frames(clip, RATE)
    last = upstream([clip])["hidden_states"][-1][0]
    whole = frames[0].unflatten(1, (-1, upstream.encoder.backbone.num_features))
    rows = whole.unflatten(1, (last.shape[1] // whole.shape[2], -1)).mean(dim=2).flatten(1)
    assert torch.isclose(last[0], rows[0], atol=1e-4).all()
    assert torch.isclose(last[-1], rows[-1], atol=1e-4).all()


def test_mteb_batches_of_any_rate_and_channels_become_rows(folder):
    model = MtebEncoder(folder)
    clip = noise(RATE).numpy()
    stereo = np.stack([clip, clip])
    batches = [
        {"audio": [{"array": clip, "sampling_rate": RATE}]},
        {"audio": [{"array": stereo, "sampling_rate": RATE}]},
    ]
    rows = model.encode(batches, task_metadata=None, hf_split="test", hf_subset="default")
    torch.testing.assert_close(torch.from_numpy(rows[:1]), model.encoder.embed(clip, RATE))
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)
    np.testing.assert_allclose(np.diag(model.similarity(rows, rows)), 1, atol=1e-5)
    np.testing.assert_allclose(model.similarity_pairwise(rows, rows), 1, atol=1e-5)
    assert model.similarity(rows[0], rows[:1]).shape == (1, 1)  # one vector is (D,) there
    assert model.encode([]).shape == (0, model.encoder.dim)
    with pytest.raises(ValueError, match="batches with audio, got text"):
        model.encode([{"text": ["a"]}])


def test_mteb_is_told_that_the_model_takes_audio(folder, monkeypatch):
    class Meta(dict):
        @classmethod
        def create_empty(cls, overwrites):
            return cls(overwrites)

    known = types.SimpleNamespace(ModelMeta=Meta, ScoringFunction=types.SimpleNamespace(COSINE=1))
    for name in ("mteb", "mteb.models", "mteb.models.model_meta"):
        monkeypatch.setitem(sys.modules, name, known)
    model = MtebEncoder(folder)
    meta = model.mteb_model_meta
    assert meta["modalities"] == ["audio"]
    assert meta["revision"] == model.encoder.sha256
    assert meta["embed_dim"] == model.encoder.dim
    organisation, name = meta["name"].split("/")
    assert organisation == "ssmast"
    model.encoder = model.encoder.variant(pooling="mean")
    assert model.mteb_model_meta["name"] != meta["name"]
