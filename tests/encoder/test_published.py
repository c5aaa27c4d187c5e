"""Published ASTs: transformers' own model and feature extractor are the reference."""

import json

import pytest
import torch
from safetensors.torch import save_file

import ssmast
from ssmast.audio.mel import AUDIOSET, KaldiMel
from ssmast.encoder.graph import export_program

transformers = pytest.importorskip("transformers", reason="the reference is in the extra dev")
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(round(16000 * seconds), generator=draws)


def published(folder, *, frames: int = 128, num_labels: int = 5, extractor=None, **numbers):
    """Write a folder as on the Hub; gives waveform -> logits of transformers."""
    torch.manual_seed(0)
    numbers = {**SMALL, "intermediate_size": 128, "num_labels": num_labels, **numbers}
    net = transformers.ASTForAudioClassification(
        transformers.ASTConfig(max_length=frames, **numbers)
    ).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "embeddings" in name or "bias" in name:
                parameter.normal_(std=0.3)
    heard = transformers.ASTFeatureExtractor(max_length=frames, **(extractor or {}))
    net.save_pretrained(folder)
    heard.save_pretrained(folder)

    @torch.no_grad()
    def logits(waveform):
        inputs = heard(waveform.numpy(), sampling_rate=16000, return_tensors="pt")
        return net(**inputs).logits

    return logits


def test_a_folder_gives_the_logits_of_transformers(tmp_path):
    theirs = published(tmp_path, extractor={"mean": -6.8, "std": 5.5})
    classifier = ssmast.load_classifier(tmp_path)
    clips = [noise(s, seed=n) for n, s in enumerate((1.0, 0.5, 1.28, 1.2925))]
    wanted = torch.cat([theirs(clip) for clip in clips])
    found = torch.cat(classifier.each_window(clips))  # in one batch, of different lengths
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        classifier.embed_clips(clips), wanted.log_softmax(1), atol=1e-3, rtol=0
    )
    assert wanted.std(dim=0).min() > 0.02  # clips are told apart
    encoder = ssmast.load_encoder(tmp_path)
    assert (encoder.log_mel.mean, encoder.log_mel.std) == (-6.8, 11.0)
    for clip, row in zip(clips, wanted, strict=True):
        embedding = encoder.embed(clip, 16000)
        torch.testing.assert_close(encoder.backbone.head(embedding)[0], row, atol=1e-3, rtol=0)
        torch.testing.assert_close(encoder(clip[None]), embedding, atol=1e-4, rtol=0)


def test_of_a_longer_clip_windows_are_averaged_or_it_is_cut_as_transformers_cuts_it(tmp_path):
    theirs = published(tmp_path)
    clip = noise(3.0)
    cut = ssmast.load_classifier(tmp_path, cut=True).each_window([clip])[0]
    torch.testing.assert_close(cut, theirs(clip), atol=1e-3, rtol=0)
    classifier = ssmast.load_classifier(tmp_path)
    (windows,) = classifier.each_window([clip])
    length = classifier.log_mel.samples(128)
    starts = [round((48000 - length) * part / 2) for part in range(3)]
    wanted = torch.cat([theirs(clip[start : start + length]) for start in starts])
    torch.testing.assert_close(windows, wanted, atol=1e-3, rtol=0)
    mean = wanted.softmax(1).mean(0, keepdim=True).log()
    torch.testing.assert_close(classifier.embed_clips([clip]), mean, atol=1e-3, rtol=0)
    vectors, times = ssmast.load_encoder(tmp_path).embed_frames(noise(0.5), 16000)
    assert vectors.shape[1] == 4  # the columns of the clip, not of its padding
    assert times.max() < 500


@pytest.mark.parametrize(
    ("stated", "several"),
    [({"problem_type": "multi_label_classification"}, True), ({}, False)],
)
def test_it_is_saved_as_any_encoder_with_its_classes(tmp_path, stated, several):
    names = {0: "rain", 1: "dog", 2: "bell"}
    published(tmp_path / "ast", num_labels=3, id2label=names, time_stride=16, **stated)
    encoder = ssmast.load_encoder(tmp_path / "ast")
    encoder.save(tmp_path / "ours")
    again = ssmast.load_classifier(tmp_path / "ours")
    assert again.outputs.heads == [("label", ["rain", "dog", "bell"])]
    assert again.outputs.multi_label is several
    clip = noise(0.7)
    assert torch.equal(
        again.embed_clips([clip]), ssmast.load_classifier(tmp_path / "ast").embed_clips([clip])
    )


def test_without_an_extractor_the_front_end_is_audiosets_and_without_a_head_none_is_made(tmp_path):
    published(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    front = ssmast.load_encoder(tmp_path).log_mel
    assert isinstance(front, KaldiMel)
    assert {"mean": front.mean, "std": front.std} == AUDIOSET
    config = transformers.ASTConfig(max_length=128, intermediate_size=128, **SMALL)
    transformers.ASTModel(config).save_pretrained(tmp_path / "bare")
    assert ssmast.load_encoder(tmp_path / "bare").dim == 64
    with pytest.raises(ValueError, match="it has no classes"):
        ssmast.load_classifier(tmp_path / "bare")


def test_a_file_of_a_published_size_needs_no_config_and_another_says_so(tmp_path):
    theirs = published(tmp_path, frames=1024, frequency_stride=16, time_stride=16, hidden_size=64,
                       num_attention_heads=1)  # fmt: skip
    file = (tmp_path / "model.safetensors").rename(tmp_path / "alone.safetensors")
    (tmp_path / "config.json").unlink()
    (tmp_path / "preprocessor_config.json").unlink()
    clip = noise(2.0)
    (found,) = ssmast.load_classifier(file).each_window([clip])
    torch.testing.assert_close(found, theirs(clip), atol=1e-3, rtol=0)
    assert ssmast.load_classifier(file).outputs.heads[0][1][0] == "class 0"
    published(tmp_path / "odd", frames=200)
    odd = (tmp_path / "odd" / "model.safetensors").rename(tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="of no published size; put"):
        ssmast.load_encoder(odd)


def test_files_that_disagree_are_refused(tmp_path):
    published(tmp_path)
    extractor = tmp_path / "preprocessor_config.json"
    stated = json.loads(extractor.read_text())
    extractor.write_text(json.dumps({**stated, "max_length": 256}))
    with pytest.raises(ValueError, match="must have the 128 mel bins x 128 frames"):
        ssmast.load_encoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    with pytest.raises(ValueError, match="hidden_act gelu, got 'relu'"):
        ssmast.load_encoder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="wanted the safetensors"):
        ssmast.load_encoder(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="position table"):
        ssmast.load_encoder(tmp_path / "x.safetensors")


def test_the_graph_pads_as_the_encoder_does(tmp_path):
    published(tmp_path)
    encoder = ssmast.load_encoder(tmp_path)
    program = export_program(encoder).module()
    for seconds in (0.9, 1.28, 1.6):
        clips = torch.stack([noise(seconds), noise(seconds, seed=1)])
        with torch.no_grad():
            torch.testing.assert_close(program(clips)[0], encoder(clips), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_real_size_gives_the_logits_of_transformers_from_a_second_to_its_length(tmp_path):
    theirs = published(
        tmp_path, frames=1024, num_labels=527, hidden_size=768, num_hidden_layers=12,
        num_attention_heads=12, intermediate_size=3072, initializer_range=0.02,
    )  # fmt: skip
    classifier = ssmast.load_classifier(tmp_path)
    assert classifier.outputs.multi_label
    for seconds in (1.0, 4.7, 10.0, 10.255):
        clip = noise(seconds, seed=round(seconds))
        torch.testing.assert_close(classifier.embed_clips([clip]), theirs(clip), atol=1e-3, rtol=0)
