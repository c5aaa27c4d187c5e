"""`ssmast fit`: a classifier from a frozen encoder and a few labels."""

import json
import logging

import pytest
import torch

from ssmast.audio import read_audio
from ssmast.classifier import load_classifier
from ssmast.cli import main
from ssmast.encoder import load_encoder
from ssmast.fit import headless

from .sets import write_set


def test_few_labels_make_a_classifier_that_predict_and_evaluate_take(tmp_path, capsys):
    data = write_set(tmp_path / "tones")
    assert main(["fit", f"data={data}", f"out={tmp_path / 'c'}"]) == 0
    said = capsys.readouterr().out
    assert "clips left out, each in turn: accuracy" in said
    assert "test part: accuracy 100.0 %" in said
    info = load_encoder(tmp_path / "c").info
    assert info["clips"] == 36  # train and valid
    assert info["test"]["accuracy"] == 1.0

    clip = next(iter(sorted(data.rglob("*.wav"))))
    assert main(["predict", str(clip), f"encoder={tmp_path / 'c'}", "format=json"]) == 0
    best = json.loads(capsys.readouterr().out)[0]["classes"][0]
    assert best["class"] in {"low", "middle", "high"}
    assert 0.5 < best["probability"] <= 1

    assert main(["evaluate", f"encoder={tmp_path / 'c'}", f"data={data}"]) == 0
    assert "accuracy 100.0 %" in capsys.readouterr().out


def test_the_folder_embeds_as_the_encoder_did_and_scores_by_its_vectors(tmp_path, caplog):
    data = write_set(tmp_path / "tones")
    caplog.set_level(logging.INFO, logger="ssmast")
    main(["fit", f"data={data}", f"out={tmp_path / 'c'}", "all=true"])
    assert "all=true: 48 clips are fitted, those of the test part too" in caplog.text
    clips = [torch.from_numpy(read_audio(file, sample_rate=16000)) for file in data.rglob("*.wav")]
    before, after = load_encoder(), load_encoder(tmp_path / "c")
    assert torch.equal(before.embed(clips, 16000), after.embed(clips, 16000))
    # the head is a linear layer on the encoder's vectors before they are whitened
    vectors = headless(before)(before.log_mel(clips[0][None]))
    logits = after.backbone.get_classifier()(vectors)
    scores = load_classifier(tmp_path / "c").embed_clips(clips[:1])
    assert torch.allclose(logits.log_softmax(1), scores, atol=1e-4)
    assert after.info["clips"] == 48
    assert "test" not in after.info


def test_the_encoder_it_is_made_of_is_not_replaced(tmp_path, capsys):
    data = write_set(tmp_path / "tones", num_clips=12)
    load_encoder().save(tmp_path / "mine")
    before = load_encoder(tmp_path / "mine").sha256
    words = ["fit", f"data={data}", f"encoder={tmp_path / 'mine'}", f"out={tmp_path / 'mine'}"]
    assert main(words) == 1
    assert "is not replaced; give another out=" in capsys.readouterr().err
    assert load_encoder(tmp_path / "mine").sha256 == before


@pytest.mark.parametrize("seconds", [0.5, 0.5003, 0.777])
def test_a_window_holds_what_it_is_asked_to_hold(tmp_path, seconds):
    data = write_set(tmp_path / "tones", num_clips=24)
    main(["fit", f"data={data}", f"out={tmp_path / 'c'}", f"window={seconds}"])
    window = load_classifier(tmp_path / "c").window_seconds
    assert seconds <= window < seconds + 0.02


def test_groups_are_left_out_together(tmp_path, capsys):
    data = write_set(tmp_path / "tones")
    assert main(["fit", f"data={data}", f"out={tmp_path / 'c'}", "group=speaker"]) == 0
    assert "clips left out, of one speaker in turn" in capsys.readouterr().out
    assert main(["fit", f"data={data}", f"out={tmp_path / 'd'}", "group=nothing"]) != 0


def test_a_set_without_a_test_part_can_be_fitted_whole(tmp_path, capsys):
    data = write_set(tmp_path / "tones")
    table = data / "metadata.csv"
    table.write_text(table.read_text().replace(",test,", ",train,"))
    words = ["fit", f"data={data}", f"out={tmp_path / 'c'}"]
    assert main(words) == 1
    assert "no clip in the test part of split" in capsys.readouterr().err
    assert main([*words, "all=true"]) == 0
    assert load_encoder(tmp_path / "c").info["clips"] == 48
    few = write_set(tmp_path / "few", num_clips=3)  # one clip a class: none validates
    (few / "metadata.csv").write_text("path,label\n000.wav,low\n001.wav,middle\n002.wav,high\n")
    assert main(["fit", f"data={few}", f"out={tmp_path / 'd'}", "all=true"]) == 0


def test_a_score_on_clips_that_were_fitted_is_called_so(tmp_path, capsys, caplog):
    data = write_set(tmp_path / "tones")
    assert main(["fit", f"data={data}", f"out={tmp_path / 'c'}"]) == 0
    assert main(["evaluate", f"encoder={tmp_path / 'c'}", f"data={data}"]) == 0
    assert "learnt by heart" not in caplog.text
    assert main(["fit", f"data={data}", f"out={tmp_path / 'd'}", "all=true"]) == 0
    assert main(["evaluate", f"encoder={tmp_path / 'd'}", f"data={data}"]) == 0
    assert "12 of 12 clips are among those that" in caplog.text


@pytest.mark.parametrize("word", ["out=", "data="])
def test_what_is_missing_is_named(tmp_path, word, capsys):
    words = {"out=": [f"data={tmp_path}"], "data=": [f"out={tmp_path / 'c'}"]}[word]
    assert main(["fit", *words]) == 2
    assert word.rstrip("=") in capsys.readouterr().err
