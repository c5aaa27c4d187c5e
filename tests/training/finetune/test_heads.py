"""Heads that begin as linear probes: exactly the probe's scores, and never below them on valid."""

import json

import pytest
import torch

from ssmast.audio import open_corpus
from ssmast.classifier import Classifier, Outputs
from ssmast.encoder import load_encoder
from ssmast.evaluation.probe import run_probe
from ssmast.evaluation.read_set import load_set
from ssmast.training.finetune.network import (
    FrozenFeatures,
    build_network,
    fit_heads,
    frozen_features,
)
from ssmast.training.finetune.selection import KeptWeights
from ssmast.training.metrics_log import read_metrics
from tests.sets import write_set
from tests.training.finetune.test_command import _network, _run

PROBED = (
    "heads.probe=true", "heads.pooling=freq+max", "clips.frames=96", "steps=2", "scoring.every=1",
    "front_end.num_mels=128",  # as usual: the encoder brings its own
)  # fmt: skip


def test_the_frozen_features_are_the_encoders_own(encoder_folder, sets):
    encoder = load_encoder(encoder_folder)
    arguments = {k: v for k, v in encoder.backbone._model_args.items() if k != "num_classes"}
    arguments["input_size"] = encoder.backbone.input_size
    network = build_network(
        "mast_nano", sizes=[3], pooling=encoder.pooling, layers=encoder.layers, arguments=arguments
    )
    network.load_state_dict(encoder.backbone.state_dict(), strict=False)
    clips = [torch.randn(size) * 0.1 for size in (3000, 12000, 15200, 40)]
    classifier = Classifier(network, encoder.log_mel, outputs=Outputs([], False), frames=96)
    features = FrozenFeatures(classifier)
    torch.testing.assert_close(features.embed_clips(clips), encoder.embed(clips, 16000))
    assert features.embed_clips([torch.randn(40000)]).shape == (1, encoder.dim)
    found = load_set(sets / "tones")
    values, places = frozen_features(
        classifier, found, open_corpus(found.folder), found.splits[0], batch_seconds=60.0
    )
    split = found.splits[0]
    assert places.tolist() == [*split.train.tolist(), *split.valid.tolist()]
    assert values.shape == (len(places), encoder.dim)


def test_fitted_heads_are_the_linear_probe(sets, tiny_encoder):
    task = load_set(sets, "tones")
    found = load_set(sets / "tones")
    assert list(task.clips) == found.clips
    features = torch.randn(len(found.clips), 20, generator=torch.Generator().manual_seed(1))
    truth = found.class_numbers(0, torch.arange(len(features)).numpy())
    features[torch.arange(len(features)), truth] += 1.0
    heads = fit_heads(
        features, found, found.splits[0], places=torch.arange(len(features)), metric="accuracy",
        seed=0,
    )  # fmt: skip
    oracle = run_probe(features, task, num_seeds=1)
    test = found.splits[0].test
    [head] = heads.heads
    x = (features[test] - heads.centre) / heads.scale
    right = (x @ head.weight.T + head.bias).argmax(dim=1) == truth[test]
    assert head.valid == oracle.valid
    assert float(right.float().mean()) == pytest.approx(oracle.mean)
    assert head.chosen == {k: v for k, v in oracle.chosen[0].items() if k != "split"}


def test_a_run_begins_at_the_probe_and_never_ends_below_it(encoder_folder, tmp_path):
    tones = write_set(tmp_path / "tones", num_clips=36)
    words = [*PROBED, f"init={encoder_folder}", "optim.lr=1e-9", "optim.min_lr=0"]
    assert _run(*words, data=tones, run=tmp_path / "run") == 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    [first] = [row for row in rows if row["step"] == 0]
    result = json.loads((tmp_path / "run" / "test.json").read_text())
    assert result["valid"] >= first["valid/accuracy"]
    encoder = load_encoder(encoder_folder)
    task = load_set(tmp_path, "tones")
    features = encoder.embed([tones / clip for clip in task.clips])
    probe = run_probe(features, task, num_seeds=1)
    assert result["mean"] == pytest.approx(probe.mean, abs=1e-6)
    assert first["valid/accuracy"] == pytest.approx(probe.valid, abs=1e-6)
    layers = _network(tmp_path / "run")
    assert layers["head.fc.centre"].any()


def test_of_equal_scores_the_lower_loss_is_kept_and_comes_back_from_a_checkpoint():
    kept, network = KeptWeights(), torch.nn.Linear(2, 1)
    for step, (score, loss) in enumerate([(0.5, 1.0), (0.5, 0.8), (0.4, 0.1), (0.5, 0.9)]):
        torch.nn.init.constant_(network.weight, step)
        kept.keep_if_best_(network, score=score, loss=loss, step=step)
        kept.average_(network)
    again = KeptWeights()
    again.load_state_dict(kept.state_dict())
    for one in (kept, again):
        assert one.best is not None
        assert (one.best.step, one.best.score, one.best.loss) == (1, 0.5, 0.8)
        assert one.best.weights["weight"].tolist() == [[1.0, 1.0]]
        assert one.averaged(network)["weight"].tolist() == [[1.5, 1.5]]
        assert one.num_averaged == 4
        one.keep_if_best_(network, score=0.5, loss=0.9, step=5)
        assert one.best.step == 1
        assert one.first is not None
        assert one.first["weight"].tolist() == [[0.0, 0.0]]
        between = one.between(
            {name: tensor + 8.0 for name, tensor in one.first.items()}, share=0.25
        )
        assert between["weight"].tolist() == [[2.0, 2.0]]


def test_within_a_standard_error_of_the_highest_score_the_loss_decides():
    kept, network = KeptWeights(num_clips=100, standard_errors=1.0), torch.nn.Linear(2, 1)
    best = []
    # One standard error at 0.9 is 0.03, at 0.8 it is 0.04.
    for step, (score, loss) in enumerate(
        [
            (0.80, 1.0),
            (0.77, 0.5),
            (0.75, 0.1),
            (0.90, 0.8),
            (0.88, 0.7),
            (0.86, 0.2),
            (0.905, 0.75),
        ]
    ):
        kept.keep_if_best_(network, score=score, loss=loss, step=step)
        assert kept.best is not None
        best.append(kept.best.step)
    assert best == [0, 1, 1, 3, 4, 4, 4]
    again = KeptWeights(num_clips=100, standard_errors=1.0)
    again.load_state_dict(kept.state_dict())
    again.keep_if_best_(network, score=0.86, loss=0.1, step=9)  # the highest is remembered
    assert again.best is not None
    assert again.best.step == 4
