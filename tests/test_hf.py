"""An encoder behind the Auto classes of transformers, and its card as the Hub reads it."""

import json

import pytest
import torch

import ssmast
from tests.encoder.test_encoder import make_encoder

pytest.importorskip("transformers", reason="needs the extra transformers")


def test_auto_classes_open_what_was_saved_and_give_the_encoders_vectors(tmp_path):
    from transformers import AutoFeatureExtractor, AutoModel

    import ssmast.hf

    encoder = make_encoder()
    encoder.save(tmp_path / "encoder")
    ssmast.hf.EncoderModel.from_pretrained(tmp_path / "encoder").save_pretrained(tmp_path / "saved")
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "saved")
    assert type(extractor) is ssmast.hf.EncoderExtractor
    clips = [0.1 * torch.randn(n) for n in (24000, 9000)]
    inputs = extractor([clip.numpy() for clip in clips], sampling_rate=24000)
    assert inputs["attention_mask"].sum(dim=1).tolist() == [16000, 6000]
    wanted = encoder.embed(clips, sample_rate=24000)
    for folder in ("encoder", "saved"):
        model = AutoModel.from_pretrained(tmp_path / folder)
        assert type(model) is ssmast.hf.EncoderModel
        found = model(**inputs).pooler_output
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    model.save_pretrained(tmp_path / "again")
    again = ssmast.load_encoder(tmp_path / "again")  # still an encoder folder
    assert again.sha256 == encoder.sha256
    model.train()(inputs["input_values"]).pooler_output.sum().backward()
    assert model.encoder.backbone.patch_embed.proj.weight.grad is not None


def test_the_card_passes_the_hubs_own_checks_without_a_network(tmp_path):
    from huggingface_hub import ModelCard

    encoder = make_encoder()
    encoder.save(tmp_path / "encoder")
    for folder in (tmp_path / "encoder", ssmast.weights.FOLDER):
        text = (folder / "README.md").read_text(encoding="utf-8")
        card = ModelCard(text, ignore_metadata_errors=False)
        data = card.data.to_dict()
        assert data["library_name"] == "ssmast"
        assert data["pipeline_tag"] == "feature-extraction"
        assert "model-index" in data or folder != ssmast.weights.FOLDER
        for result in card.data.eval_results or []:
            assert 0 <= result.metric_value <= 1 or result.metric_type != "accuracy"
            assert " " not in result.dataset_type
        assert ModelCard(str(card)).data.to_dict() == data
        assert json.loads((folder / "config.json").read_text())["architecture"] == "mast_nano"


def test_what_from_pretrained_is_asked_for_is_done_or_refused(tmp_path, monkeypatch):
    import ssmast.hf

    make_encoder().save(tmp_path / "encoder")
    load = ssmast.hf.EncoderModel.from_pretrained
    model = load(tmp_path / "encoder", dtype="bfloat16", revision="main")
    assert model.encoder.backbone.patch_embed.proj.weight.dtype == torch.bfloat16
    asked: list[str] = []

    def downloaded(name):
        asked.append(name)
        return make_encoder()

    monkeypatch.setattr(ssmast.hf, "load_encoder", downloaded)
    load("org/name", revision="v1")
    assert asked == ["org/name@v1"]
    with pytest.raises(ValueError, match="is loaded without device_map; load it plainly"):
        load("org/name", device_map="auto")


@pytest.mark.parametrize("mask", [[[0, 0, 1, 1]], [[1, 0, 1, 1]], [[0, 0, 0, 0]]])
def test_a_mask_of_anything_but_the_start_of_a_clip_is_refused(mask):
    import ssmast.hf

    model = ssmast.hf.EncoderModel(ssmast.hf.EncoderConfig(), make_encoder()).eval()
    mask = torch.tensor(mask).repeat_interleave(4000, dim=1)
    sound = 0.1 * torch.randn(1, 16000)
    with pytest.raises(ValueError, match="attention_mask must be 1 from the first sample"):
        model(sound, attention_mask=mask)
    with pytest.raises(ValueError, match=r"must be .batch, samples., got shape .16000,"):
        model(sound[0])
    with pytest.raises(ValueError, match=r"shape of input_values, .1, 16000., got .1, 8000."):
        model(sound, attention_mask=torch.ones(1, 8000))


def test_training_hears_the_clips_and_not_what_pads_them():
    import ssmast.hf

    encoder = make_encoder()
    model = ssmast.hf.EncoderModel(ssmast.hf.EncoderConfig(), encoder).train()
    clips = [0.1 * torch.randn(n) for n in (16000, 6000)]
    extractor = ssmast.hf.EncoderExtractor(encoder.sample_rate)
    asked = {"padding": True, "return_attention_mask": True, "return_tensors": "pt"}
    inputs = extractor(clips, encoder.sample_rate, **asked)
    inputs["input_values"][1, 6000:] = 0.1  # of no clip
    found = model(**inputs).pooler_output
    wanted = encoder.embed(clips, encoder.sample_rate)
    torch.testing.assert_close(found.detach(), wanted, atol=1e-5, rtol=1e-5)
    of_16_bits = (inputs["input_values"] * 32768).round().short()
    found = model.eval()(of_16_bits, inputs["attention_mask"]).pooler_output
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="has no max_length=9000, truncation=True; it pads clips"):
        extractor(clips, encoder.sample_rate, truncation=True, max_length=9000)
    with pytest.raises(ValueError, match="a config has no weights"):
        ssmast.hf.EncoderModel._from_config(ssmast.hf.EncoderConfig())
