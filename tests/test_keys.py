"""Keys that a command hands on to where they are tested: none is dropped on the way."""

import dataclasses
import importlib

import pytest
import torch

import ssmast.encoder.folder
import ssmast.prepare
from ssmast import export, predict, report
from ssmast.classifier import Outputs
from ssmast.encoder import Encoder
from ssmast.evaluation import evaluate
from ssmast.prepare import command as prepare
from ssmast.retrieval import index
from ssmast.settings import CHANNEL, parse


class StoppedError(Exception):
    """The call that is looked at was reached."""


def _seen_by(monkeypatch, owner, name: str) -> dict:
    """What a function is called with; the call ends the command."""
    seen: dict = {}

    def spy(*args, **kwargs):
        seen.update(kwargs, args=args)
        raise StoppedError

    monkeypatch.setattr(owner, name, spy)
    return seen


def test_every_key_of_prepare_is_handed_on(tmp_path, monkeypatch):
    (tmp_path / "clips.txt").write_text(f"{tmp_path / 'clips.txt'}\n")
    wanted = {
        "sample_rate": 8000, "segment_seconds": 3.0, "min_seconds": 0.5, "min_peak": 0.01,
        "codec": "opus", "near_duplicates": 0.5, "shard_mb": 3, "max_bad_fraction": 0.7,
        "engine": "ray", "workers": 3, "ray_address": "ray://here", "channel": "left",
    }  # fmt: skip
    usual = dataclasses.asdict(prepare.PrepareConfig())
    assert usual.keys() - wanted.keys() == {"src", "out"}
    assert not [key for key, value in wanted.items() if usual[key] == value]
    seen = _seen_by(monkeypatch, ssmast.prepare, "prepare_corpus")
    words = [str(tmp_path / "clips.txt"), f"out={tmp_path / 'out'}"]
    with pytest.raises(StoppedError):
        prepare.main([*words, *(f"{key}={value}" for key, value in wanted.items())])
    corpus, out = seen.pop("args")
    assert (len(corpus), out) == (1, tmp_path / "out")
    assert corpus.channel == wanted.pop("channel")
    assert seen.pop("shard_bytes") == wanted.pop("shard_mb") << 20
    assert seen == wanted


@pytest.mark.parametrize(
    "schema",
    [
        "prepare.command:PrepareConfig", "training.config:PretrainConfig",
        "training.finetune.config:FinetuneConfig", "evaluation.suite:ProbeConfig",
        "evaluation.evaluate:EvaluateConfig", "evaluation.cluster_task:ClusterConfig",
        "retrieval.embed_files:EmbedConfig", "retrieval.index:IndexConfig",
        "retrieval.search:SearchConfig", "predict:PredictConfig",
    ],
)  # fmt: skip
def test_every_command_that_reads_sound_has_the_key_channel(schema):
    module, name = schema.split(":")
    found = getattr(importlib.import_module(f"ssmast.{module}"), name)
    keys = {key.name: key for key in dataclasses.fields(found)}
    assert keys["channel"].default == "mean"
    assert keys["channel"].metadata["help"] == CHANNEL


def test_the_cells_that_a_query_looks_into_reach_the_index(monkeypatch, tmp_path):
    seen = _seen_by(monkeypatch, index.Index, "build")
    monkeypatch.setattr(index, "load_encoder", lambda path: torch.nn.Identity())
    monkeypatch.setattr(index, "_vectors", lambda config, encoder: (["a"], torch.ones(1, 2), ""))
    monkeypatch.setattr(index, "_about", lambda path, encoder: {})
    with pytest.raises(StoppedError):
        index.main(["embeddings=e.npz", "encoder=x", "out=y", "kind=ivfpq", "probes=3"])
    assert (seen["kind"], seen["probes"]) == ("ivfpq", 3)


@pytest.mark.parametrize("private", [True, False])
def test_an_encoder_is_pushed_where_and_as_it_is_asked_for(private, monkeypatch, tmp_path):
    seen = _seen_by(monkeypatch, ssmast.encoder.folder, "push_to_hub")
    monkeypatch.setattr(Encoder, "save", lambda self, out, extra: None)
    encoder = Encoder.__new__(Encoder)
    encoder.info = {}
    monkeypatch.setattr(export, "matching_scores", lambda folder, encoder: [])
    config = export.ExportConfig(run="run", out="out", push="org/name", private=private)
    with pytest.raises(StoppedError):
        export.export(config, encoder)
    assert seen["args"][1] == "org/name"
    assert seen["private"] is private


def test_classes_below_the_threshold_are_left_out():
    outputs = Outputs([("label", ["a", "b", "c"])], False)
    scores = torch.tensor([0.6, 0.3, 0.1]).log()
    for threshold, left in ((0.0, "abc"), (0.2, "ab"), (0.5, "a"), (0.9, "")):
        config = predict.PredictConfig(threshold=threshold)
        rows = predict.top_classes(scores, outputs, config)
        assert "".join(row["class"] for row in rows) == left


def test_evaluate_hands_on_what_chooses_the_clips_and_the_number(monkeypatch):
    seen = _seen_by(monkeypatch, evaluate, "load_set")

    class Classifier:
        outputs = Outputs([("label", ["a", "b"])], False)

    monkeypatch.setattr(evaluate, "load_classifier", lambda path, **_: Classifier())
    words = ["encoder=x", "data=sets", "task=tones", "labels=[pitch]", "held_out=0.4"]
    with pytest.raises(StoppedError):
        evaluate.main(words)
    assert seen["args"] == ("sets", "tones")
    assert (seen["labels"], seen["held_out"]) == (["pitch"], 0.4)


def test_the_page_of_an_evaluation_tells_every_key_that_was_set():
    words = ["encoder=a b", "data=sets", "task=tones", "fold=2", "held_out=0.4", "labels=[pitch]"]
    config = parse(evaluate.EvaluateConfig, words, command="test")
    assert config is not None
    again = parse(evaluate.EvaluateConfig, evaluate.to_words(config), command="test")
    assert again == config


def test_the_length_of_the_sounds_inside_a_page_is_the_one_asked_for(monkeypatch, tmp_path):
    seen = _seen_by(monkeypatch, report, "clusters")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(StoppedError):
        report.main([str(tmp_path), "audio_seconds=2", "audio_mb=3"])
    assert (seen["audio_seconds"], seen["audio_bytes"]) == (2.0, 3_000_000)
