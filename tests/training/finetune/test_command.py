"""Fine-tuning, small: overfitting, exact resume, what is frozen, chosen and kept."""

import csv
import json
import logging
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from timm.optim import param_groups_layer_decay

from ssmast.audio import LogMel, open_corpus
from ssmast.classifier import load_classifier
from ssmast.command import run_command
from ssmast.encoder import Encoder, load_encoder
from ssmast.evaluation import evaluate
from ssmast.evaluation.read_set import load_set
from ssmast.model import create_model
from ssmast.settings import parse
from ssmast.training import replay
from ssmast.training.checkpoint import checkpoints, load_checkpoint
from ssmast.training.config import RECIPES
from ssmast.training.finetune import command as finetune
from ssmast.training.finetune.config import SCHEDULES, FinetuneConfig
from ssmast.training.finetune.objective import FineTuning
from ssmast.training.finetune.selection import KeptWeights
from ssmast.training.finetune.setup import set_up, sized
from ssmast.training.metrics_log import read_metrics
from ssmast.training.objective import RunFacts
from ssmast.training.step import TrainingState
from tests.sets import write_set
from tests.training.processes import Group
from tests.training.test_pretrain import _assert_same_state, _dies_at
from tests.training.test_survive import _logged, _until

SMALL = (
    "recipe=finetune_small", "steps=4", "batch_size=4", "workers=0", "checkpoint_every=2",
    "init=none", "log_every=1", "front_end.num_mels=32", "clips.frames=32", "tensorboard=false",
    "threads=1", "front_end.stats_clips=8", "scoring.every=2", "heads.freeze=0", "optim.lr=1e-5",
)  # fmt: skip


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("sets") / "tones", num_clips=24)


def _run(*words, data, run) -> int:
    argv = [*SMALL, f"data={data}", f"run={run}", *words]
    return run_command(finetune.main, argv, name="ssmast finetune")


def _network(run) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints(run / "checkpoints")[-1])[1]["network"]


@pytest.fixture(scope="module")
def finished(tones, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert _run(data=tones, run=run) == 0
    return run


def test_a_tiny_set_is_learnt_to_the_last_clip(tones, tmp_path):
    words = ["steps=50", "batch_size=12", "scoring.every=25", "optim.lr=1e-3", "heads.smoothing=0"]
    words += ["clips.mixup_rate=0", "clips.time_shift=0", "clips.freq_mask=0", "clips.time_mask=0"]
    words += ["drop_path=0"]
    assert _run(*words, data=tones, run=tmp_path / "run") == 0
    config = ["encoder=" + str(tmp_path / "run"), f"data={tones}", "part=train"]
    assert evaluate.main([*config, f"out={tmp_path / 'scores'}"]) == 0
    [file] = (tmp_path / "scores").glob("*.json")
    result = json.loads(file.read_text())
    assert result["numbers"]["accuracy"] == 1.0
    assert result["n"] == 12
    assert float(read_metrics(tmp_path / "run" / "metrics.jsonl")[-2]["loss"]) < 0.05


def test_a_run_leaves_a_classifier_its_test_and_a_report(finished, tones):
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "encoder", "report.html"} <= names
    result = json.loads((finished / "test.json").read_text())
    found = load_set(tones)
    test = found.splits[0].test
    assert result["n"] == len(test)
    assert result["ids_sha256"] == found.ids_sha256()  # as a probe of the set has it
    assert result["n_valid"] == len(found.splits[0].valid)
    assert np.array(result["confusion"]).sum() == len(test)
    assert "Most frequent mistakes" in (finished / "report.html").read_text()
    classifier = load_classifier(finished)
    assert classifier.outputs.heads == [("label", ["high", "low", "middle"])]
    encoder = load_encoder(finished / "encoder")
    assert encoder.embed(np.zeros(8000, np.float32), 16000).shape == (1, encoder.dim)


def test_the_folder_scores_as_the_run_did(finished, tones, tmp_path, capsys):
    words = [f"encoder={finished}", f"data={tones}", f"out={tmp_path}"]
    assert evaluate.main(words) == 0
    said = capsys.readouterr().out
    assert "| class | clips | recall | precision |" in said
    [file] = tmp_path.glob("*.json")
    again, before = json.loads(file.read_text()), json.loads((finished / "test.json").read_text())
    assert again["numbers"] == pytest.approx(before["numbers"])
    assert again["confusion"] == before["confusion"]
    assert again["encoder_sha256"] == before["encoder_sha256"]
    assert "Most frequent mistakes" in (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Ten recordings of 4 s with Raven's tables: a low tone, then a high one, elsewhere in each."""
    folder = tmp_path_factory.mktemp("field")
    time = np.arange(4 * 16000) / 16000
    for i in range(10):
        sound, rows = np.zeros_like(time), ["Selection\tBegin Time (s)\tEnd Time (s)\tCall"]
        for start, pitch, name in ((0.5 + i / 10, 300, "low"), (2.4, 3000, "high")):
            heard = (time >= start) & (time < start + 0.8)
            sound += heard * np.sin(2 * np.pi * pitch * time) / 4
            rows += [f"1\t{start:.1f}\t{start + 0.8:.1f}\t{name}"]
        soundfile.write(folder / f"r{i}.wav", sound, 16000)
        (folder / f"r{i}.Table.1.selections.txt").write_text("\n".join(rows) + "\n")
    return folder


def test_spans_of_recordings_are_scored_as_events_too(field, tmp_path, capsys):
    run, words = (
        tmp_path / "run",
        ["steps=20", "optim.lr=1e-3", "scoring.every=10", "events.hop=0.1"],
    )
    words += [
        "events.threshold=0.9",
        "clips.time_shift=0",
        "clips.freq_mask=0",
        "clips.time_mask=0",
    ]
    assert _run(*words, "scoring.metric=event_f1", data=field, run=run) == 0
    assert "| class | events | f1 | precision | recall |" in capsys.readouterr().out
    curve = [row["valid/event_f1"] for row in read_metrics(run / "metrics.jsonl")
             if "valid/event_f1" in row]  # fmt: skip
    result = json.loads((run / "test.json").read_text())
    found = load_set(field)
    tested = {found.clips[i].partition("#")[0] for i in found.splits[0].test}
    assert len(found.splits[0].test) == 2 * len(tested)  # whole recordings
    assert sum(row["n"] for row in result["events"]["classes"].values()) == 2 * len(tested)
    assert result["valid"] == max(curve)
    assert result["mean"] == result["numbers"]["event_f1"] == result["events"]["f1"]
    card = (run / "encoder" / "README.md").read_text()
    assert "| event_f1 |" in card
    assert "<h3>Events</h3>" in (run / "report.html").read_text()
    again = tmp_path / "scores"
    words = [f"encoder={run}", f"data={field}", f"out={again}", "hop=0.1", "threshold=0.9"]
    assert evaluate.main([*words, "events=true"]) == 0
    [file] = again.glob("*.json")
    assert json.loads(file.read_text())["events"] == result["events"]


@pytest.mark.parametrize(("metric", "when"), [("", "test"), ("event_f1", "always")])
def test_whole_recordings_are_heard_at_validations_only_to_choose_by_events(field, metric, when):
    words = [*SMALL, f"data={field}", f"scoring.metric={metric}"]
    parsed = parse(FinetuneConfig, words, command="", recipes=RECIPES)
    assert set_up(parsed).config.events.when == when


def test_events_are_left_out_where_recordings_are_in_several_parts(field, tmp_path, caplog):
    shutil.copytree(field, tmp_path / "few", ignore=shutil.ignore_patterns("r[4-9]*"))
    parsed = parse(
        FinetuneConfig, [*SMALL, f"data={tmp_path / 'few'}"], command="", recipes=RECIPES
    )
    assert set_up(parsed).config.events.when == "off"
    assert "drawn among the spans of 4 recordings" in caplog.text
    assert "events are not scored: r" in caplog.text
    with pytest.raises(ValueError, match="split by recording"):
        set_up(replace(parsed, events=replace(parsed.events, when="always")))


@pytest.mark.parametrize("change", [("high", "low"), ("test", "valid")])
def test_a_run_is_not_resumed_nor_its_result_given_for_other_labels_or_splits(
    finished, tones, tmp_path, capsys, change
):
    data, run = tmp_path / tones.name, tmp_path / "run"
    shutil.copytree(tones, data)
    shutil.copytree(finished, run)
    rows = (data / "metadata.csv").read_text().splitlines()
    assert _run("resume=auto", data=data, run=run) == 0  # the same elsewhere
    first = next(i for i, row in enumerate(rows) if f",{change[0]}" in row)
    rows[first] = rows[first].replace(f",{change[0]}", f",{change[1]}")
    (data / "metadata.csv").write_text("\n".join(rows) + "\n")
    capsys.readouterr()
    for _ in range(2):
        assert _run("resume=auto", data=data, run=run) == 1
        assert "was started with other labels or another split" in capsys.readouterr().err
        (run / "report.html").unlink(missing_ok=True)  # as if it had been interrupted
    words = [f"resume={checkpoints(finished / 'checkpoints')[0]}"]
    assert _run(*words, data=data, run=tmp_path / "new") == 1
    assert "belongs to a run on other" in capsys.readouterr().err


_EVERYTHING = (
    "drop_path=0.2", "optim.ema=0.5", "optim.swa_fraction=1.0", "clips.mixup_rate=0.5",
    "clips.noise_std=0.1", "clips.balanced=true", "heads.dropout=0.1", "heads.freeze=0.25",
    "clips.waveform_augment=0.5",
)  # fmt: skip


def test_a_killed_run_goes_on_to_the_same_bits(tones, tmp_path, monkeypatch):
    assert _run(*_EVERYTHING, data=tones, run=tmp_path / "whole") == 0
    step, run = TrainingState.train_step, tmp_path / "killed"
    monkeypatch.setattr(TrainingState, "train_step", _dies_at(step, 4))
    with pytest.raises(RuntimeError, match="killed"):
        _run(*_EVERYTHING, data=tones, run=run)
    monkeypatch.setattr(TrainingState, "train_step", step)
    assert _run(*_EVERYTHING, "resume=auto", "workers=1", data=tones, run=run) == 0
    _assert_same_state(tmp_path / "whole", run)
    results = [json.loads((r / "test.json").read_text()) for r in (tmp_path / "whole", run)]
    assert results[0]["numbers"] == results[1]["numbers"]
    assert results[0]["encoder_sha256"] == results[1]["encoder_sha256"]


def test_non_finite_steps_are_skipped_and_end_the_run_as_in_pretraining(
    tones, tmp_path, monkeypatch, capsys
):
    step = TrainingState.train_step

    def train_step(self, segments):
        if self.step in (0, 1, 2):
            segments.waveform[:] = float("nan")
        return step(self, segments)

    monkeypatch.setattr(TrainingState, "train_step", train_step)
    assert _run("max_skipped=2", "steps=5", data=tones, run=tmp_path / "run") == 1
    assert "2 steps in a row gave a non-finite loss" in capsys.readouterr().err
    assert _run("steps=5", data=tones, run=tmp_path / "other") == 0
    rows = read_metrics(tmp_path / "other" / "metrics.jsonl")
    assert [row["step"] for row in rows if row.get("skipped")] == [1, 2, 3]
    assert all(math.isfinite(row["loss"]) for row in rows if row["step"] > 3 and "loss" in row)
    capsys.readouterr()
    assert replay.main([f"run={tmp_path / 'other'}", "step=3"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "step,position,clip,peak,rms,finite,name"
    trained = {f"{i:03d}.wav" for i in range(24) if i // 3 % 4 < 2}
    assert len(lines) == 5
    for line in lines[1:]:
        step, position, *_, finite, name = line.split(",")
        assert (step, finite) == ("3", "True")
        assert 8 <= int(position) < 12
        assert name in trained


def test_a_run_draws_what_the_network_is_fed(finished, tones, tmp_path):
    assert (finished / "views.png").read_bytes()[:4] == b"\x89PNG"
    assert "data:image/png" in (finished / "report.html").read_text()
    assert _run("show_views=0", "steps=1", data=tones, run=tmp_path / "run") == 0
    assert not (tmp_path / "run" / "views.png").exists()


def test_micro_batches_give_the_whole_batchs_step(tones, tmp_path):
    words = ["steps=2", "drop_path=0", "heads.dropout=0", "optim.lr=1e-5", "precision=fp32"]
    for parts in (1, 2, 4):
        run = tmp_path / str(parts)
        assert _run(*words, f"optim.gradient_accumulation_steps={parts}", data=tones, run=run) == 0
    one = _network(tmp_path / "1")
    for parts in (2, 4):
        other = _network(tmp_path / str(parts))
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_frozen_backbone_stands_still_and_the_head_does_not(tones, tmp_path):
    assert _run("heads.freeze=1.0", "steps=2", data=tones, run=tmp_path / "run") == 0
    after = _network(tmp_path / "run")
    assert _run("heads.freeze=1.0", "steps=1", data=tones, run=tmp_path / "one") == 0
    one = _network(tmp_path / "one")
    moved = {name for name in after if not torch.equal(one[name], after[name])}
    assert moved == {"head.fc.layers.0.weight", "head.fc.layers.0.bias"}


def test_the_best_weights_are_those_of_the_best_validation(tones, tmp_path, monkeypatch):
    scores = iter([0.2, 0.9, 0.4, 0.9])
    keep = KeptWeights.keep_if_best_

    def keep_if_best_(self, network, *, score, loss, step):
        keep(self, network, score=next(scores), loss=1.0, step=step)

    monkeypatch.setattr(KeptWeights, "keep_if_best_", keep_if_best_)
    words = ["scoring.every=1", "optim.swa_fraction=0", "checkpoint_every=1", "keep_checkpoints=9"]
    assert _run(*words, data=tones, run=tmp_path / "run") == 0
    result = json.loads((tmp_path / "run" / "test.json").read_text())
    assert (result["chosen"][0]["step"], result["valid"]) == (2, 0.9)  # the first of equals
    at_2 = load_checkpoint(tmp_path / "run" / "checkpoints" / "00000002")[1]["network"]
    kept = load_encoder(tmp_path / "run" / "encoder").backbone.state_dict()
    for name, tensor in kept.items():
        if not name.startswith("head."):
            assert torch.equal(tensor, at_2[name])


def test_the_test_part_decides_nothing(tones, tmp_path, finished):
    """Other labels in the test part: the same weights come out."""
    other = tmp_path / "tones"
    other.mkdir()
    with (tones / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        (other / row["path"]).write_bytes((tones / row["path"]).read_bytes())
        if row["split"] == "test":
            row["label"] = "low"
    with (other / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert _run(data=other, run=tmp_path / "run") == 0
    one, two = (json.loads((r / "test.json").read_text()) for r in (finished, tmp_path / "run"))
    assert one["encoder_sha256"] == two["encoder_sha256"]
    assert one["confusion"] != two["confusion"]


def test_an_encoder_brings_its_own_front_end_and_architecture(tones, tmp_path, finished, capsys):
    words = [f"init={finished}", "front_end.num_mels=128", "clips.frames=48", "steps=1"]
    assert _run(*words, data=tones, run=tmp_path / "run") == 0  # 128 is what it is unless given
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "num_mels: 32" in config
    assert "model: mast_nano" in config
    init = json.loads((tmp_path / "run" / "init.json").read_text())
    assert "patch_embed.proj.weight" in init["used"]
    assert set(init["fitted"]) >= {"head.fc.layers.0.weight", "head.fc.layers.0.bias"}
    words = [f"init={finished}", "heads.probe=false", "steps=1", "clips.frames=48"]
    assert _run(*words, data=tones, run=tmp_path / "random") == 0
    init = json.loads((tmp_path / "random" / "init.json").read_text())
    assert set(init["random"]) >= {"head.fc.layers.0.weight", "head.fc.layers.0.bias"}
    before, after = load_encoder(finished / "encoder"), load_encoder(tmp_path / "run" / "encoder")
    assert after.log_mel.settings() == before.log_mel.settings()
    facts = json.loads((tmp_path / "random" / "facts.json").read_text())
    assert _run(*words, "resume=auto", data=tones, run=tmp_path / "random") == 0
    (tmp_path / "random" / "facts.json").write_text(json.dumps({**facts, "mean": -9.0}))
    assert _run(*words, "resume=auto", data=tones, run=tmp_path / "random") == 1
    assert "from an encoder with another mean and std than that of" in capsys.readouterr().err


def test_another_front_end_than_the_encoders_is_refused(tones, tmp_path, finished, capsys):
    words = [f"init={finished}", "front_end.num_mels=64"]
    assert _run(*words, data=tones, run=tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "front_end.num_mels must be left to init=" in said
    assert "whose weights were trained with 32, got 64" in said


def test_a_published_ast_is_fed_what_it_was_trained_on(tones, tmp_path, capsys):
    transformers = pytest.importorskip("transformers", reason="the reference is in the extra dev")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 9}
    config = transformers.ASTConfig(max_length=128, intermediate_size=128, **sizes)
    transformers.ASTForAudioClassification(config).save_pretrained(tmp_path / "ast")
    words = [f"init={tmp_path / 'ast'}", "front_end.num_mels=128", "steps=1"]
    capsys.readouterr()  # a bar of transformers
    assert _run(*words, data=tones, run=tmp_path / "run") == 0
    front = load_encoder(tmp_path / "run" / "encoder").log_mel.settings()
    assert (front["kind"], front["f_min"], front["pad_frames"]) == ("kaldi", 20.0, 32)
    assert (front["mean"], front["std"]) == (-4.2677393, 2 * 4.5689974)
    found = parse(
        FinetuneConfig, ["recipe=run"], command="test", recipes=_as_recipe(tmp_path / "run")
    )
    assert found is not None
    assert (found.front_end.kind, found.front_end.n_fft) == ("kaldi", 512)
    for word, value in (("kind=log_mel", "kaldi"), ("f_min=50", "20.0")):
        assert _run(*words, f"front_end.{word}", data=tones, run=tmp_path / "other") == 2
        said = capsys.readouterr().err
        assert f"whose weights were trained with {value}" in said
        assert said.strip().endswith(f"got {word.partition('=')[2]}".replace("50", "50.0"))


def _as_recipe(run):
    """A folder of recipes, in which a run's settings are called `run`."""
    (run / "run.yaml").write_text((run / "config.yaml").read_text())
    return run


def test_the_front_end_of_an_encoder_wins_over_a_recipes(tones, tmp_path, finished, caplog):
    recipe = tmp_path / "kaldi.yaml"
    recipe.write_text("front_end: {kind: kaldi, f_min: 20, f_max: 8000}\n")
    small = [word for word in SMALL if not word.startswith(("recipe=", "init="))]
    words = [*small, f"recipe={recipe}", f"init={finished}", "steps=1", f"data={tones}"]
    with caplog.at_level("INFO"):
        assert (
            run_command(finetune.main, [*words, f"run={tmp_path / 'run'}"], name="ssmast finetune")
            == 0
        )
    assert "not the recipe's kaldi" in caplog.text
    before, after = load_encoder(finished / "encoder"), load_encoder(tmp_path / "run" / "encoder")
    assert after.log_mel.settings() == before.log_mel.settings()


def test_an_ast_goes_on_from_ssasts_patches_with_overlapping_ones(tones, tmp_path, capsys):
    backbone = create_model("ssast_nano", num_classes=0, input_size=(32, 64))
    Encoder(backbone, LogMel(num_mels=32, mean=-5.0, std=4.0)).save(tmp_path / "ssast")
    words = [f"init={tmp_path / 'ssast'}", "steps=1"]
    assert _run(*words, "model=ast_nano", data=tones, run=tmp_path / "run") == 0
    after = load_encoder(tmp_path / "run" / "encoder").backbone
    assert after.patch_embed.stride == (10, 10)
    used = json.loads((tmp_path / "run" / "init.json").read_text())["used"]
    assert "blocks.0.attn.qkv.weight" in used
    assert _run(*words, "model=mast_nano", data=tones, run=tmp_path / "other") == 2
    assert "is a ssast_nano, this run trains mast_nano; use" in capsys.readouterr().err


def test_the_report_tells_how_to_do_it_again(finished):
    page = (finished / "report.html").read_text()
    recipe = f"recipe={finished / 'config.yaml'}"
    assert f"ssmast finetune {recipe} run=NEW_FOLDER" in page
    again = parse(FinetuneConfig, [recipe], command="test", recipes=RECIPES)
    assert again is not None
    assert (again.batch_size, again.steps, again.clips.frames) == (4, 4, 32)


def test_layers_learn_at_rates_of_their_own(tones, tmp_path):
    config = parse(
        FinetuneConfig,
        [*SMALL, f"data={tones}", "optim.layer_decay=0.5", "heads.lr_scale=[3.0]"],
        command="test",
        recipes=RECIPES,
    )
    assert config is not None
    trainer = _trainer(config)
    network = trainer.objective.network
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    scales = {
        names[id(parameter)]: group["lr_scale"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert scales.keys() == set(names.values())
    oracle = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(network, layer_decay=0.5)
        for parameter in group["params"]
    }
    head = {name: 3.0 for name in oracle if name.startswith("head.")}
    assert scales == pytest.approx(oracle | head)
    assert head.keys() == {"head.fc.layers.0.weight", "head.fc.layers.0.bias"}
    assert scales["patch_embed.proj.weight"] == 0.5**6


def _trainer(config):
    setup = set_up(config)
    log_mel = LogMel(num_mels=config.front_end.num_mels, mean=-5.0, std=4.0)
    run = RunFacts(log_mel=log_mel, num_clips=len(setup.clips), steps=4, data=setup)
    return TrainingState(FineTuning(setup.config, run), Accelerator(cpu=True))


def test_the_ablation_is_one_command(tones, tmp_path, capsys):
    words = ["pooling_schedule=all", "steps=1"]
    assert _run(*words, data=tones, run=tmp_path / "runs") == 0
    said = capsys.readouterr().out
    grids = []
    for name, strides in SCHEDULES.items():
        if strides is not None:
            assert f"| {name} | " in said
            backbone = load_encoder(tmp_path / "runs" / name / "encoder").backbone
            assert backbone.stride_q == strides
            grids.append(backbone.grid_of(32, 32)[-1][:])
    assert len(grids) == 5
    assert len(set(grids)) == 5


def test_what_cannot_be_is_refused_in_a_sentence(tones, tmp_path, capsys):
    wrong = {
        "fold=3": "one split and no folds",
        "scoring.metric=map": "metric must be one of accuracy",
        "model=mast_nan": "model 'mast_nan' is unknown",
        "labels=[pitch]": "has no column 'pitch'",
        "heads.pooling=cls": "needs class tokens",
        "pooling_schedule=three": "pooling_schedule must be one of",
        "heads.lr_scale=[1.0,2.0]": "heads.lr_scale must be one number",
        "heads.probe=true": "heads.probe must be false or auto with init=none",
        "optim.lr=1e-7": "optim.min_lr must be at most optim.lr=1e-07",
    }
    for word, said in wrong.items():
        assert _run(word, data=tones, run=tmp_path / word) in (1, 2), word
        assert said in capsys.readouterr().err


def test_what_an_average_or_a_length_leaves_out_is_said(tones, tmp_path, caplog, monkeypatch):
    """Validations at steps 2 and 4: of the last three tenths, one."""
    monkeypatch.setattr("ssmast.training.finetune.setup._MOST_FRAMES", 32)
    with caplog.at_level(logging.INFO):
        assert _run("clips.frames=0", data=tones, run=tmp_path / "run") == 0
    assert "optim.swa_fraction=0.3 of the run held one validation" in caplog.text
    assert "one clip in ten has 64 frames and more; inputs have 32" in caplog.text


def test_folds_and_sizes_are_settled_before_the_run(tones):
    config = parse(
        FinetuneConfig,
        [*SMALL, f"data={tones}", "task=tones:protocol=folds", "fold=2", "steps=0"],
        command="test",
        recipes=RECIPES,
    )
    assert config is not None
    config = replace(
        config,
        batch_size=0,
        epochs=0.0,
        clips=replace(config.clips, frames=0),
        optim=replace(config.optim, lr=0.0),
    )
    setup = set_up(config)
    assert setup.split.name == "fold 2"
    assert (setup.config.batch_size, setup.config.epochs) == (16, 50.0)
    lengths = [len(soundfile.read(file)[0]) for file in sorted(tones.glob("*.wav"))]
    assert setup.config.clips.frames == 64  # 0.2 to 0.4 s
    assert 0.9 * max(lengths) / 160 <= 64
    assert len(open_corpus(tones)) == 24
    assert setup.config.optim.lr == 5e-4  # nothing pretrained that could be carried away
    found = [sized(replace(config, init="imagenet"), num_clips=n) for n in (100, 1000, 9000)]
    assert [c.optim.lr for c in found] == pytest.approx([3e-5, 5e-4, 5e-4])
    assert [c.epochs for c in found] == [32, 50, 17]
    assert [c.batch_size for c in found] == [16, 32, 64]
    kept = replace(config, batch_size=8, epochs=3.0, optim=replace(config.optim, lr=0.1))
    kept = sized(kept, num_clips=100)
    assert (kept.batch_size, kept.epochs, kept.optim.lr) == (8, 3.0, 0.1)
    assert sized(kept, num_clips=5000) == kept


def test_small_sets_are_fine_tuned_gently_and_what_is_asked_for_is_kept():
    def settled(num_clips, *words):
        words = ("recipe=finetune_small", "data=x", *words)
        config = parse(FinetuneConfig, list(words), command="test", recipes=RECIPES)
        config = sized(config, num_clips=num_clips)
        heads, clips = config.heads, config.clips
        return (
            *(heads.probe, heads.lr_scale, heads.smoothing),
            *(clips.mixup_rate, clips.freq_mask, config.optim.layer_decay),
        )

    assert settled(999, "init=imagenet") == (True, [0.3], 0.0, 0.0, 0, 0.8)
    strong = (False, [1.0], 0.1, 0.3, 8, 1.0)
    assert settled(1000, "init=imagenet") == settled(5000, "init=none") == strong
    assert settled(10, "init=none") == strong
    asked = ["heads.probe=false", "heads.lr_scale=[3]", "clips.mixup_rate=0.5", "clips.freq_mask=2"]
    asked += ["optim.layer_decay=0.5", "heads.smoothing=0"]
    for clips in (10, 5000):
        assert settled(clips, "init=imagenet", *asked) == (False, [3.0], 0.0, 0.5, 2, 0.5)
    assert settled(5000, "init=imagenet", "heads.probe=true")[:2] == (True, [1.0])


@pytest.mark.slow
def test_two_processes_train_as_one_and_a_signal_ends_in_a_checkpoint(tones, tmp_path):
    door = Path(finetune.__file__)
    words = [*SMALL, f"data={tones}", "drop_path=0", "optim.lr=1e-5"]
    for size in (1, 2):
        group = Group(size, door, *words, f"run={tmp_path / str(size)}")
        assert group.wait() == [0] * size, group.said[0]
    one, two = (read_metrics(tmp_path / str(size) / "metrics.jsonl") for size in (1, 2))
    for before, after in zip(one, two, strict=True):
        for key in {"loss", "valid/accuracy"} & before.keys():
            assert after[key] == pytest.approx(before[key], rel=1e-4)
    results = [json.loads((tmp_path / str(size) / "test.json").read_text()) for size in (1, 2)]
    assert results[0]["ids_sha256"] == results[1]["ids_sha256"]
    run = tmp_path / "stopped"
    group = Group(2, door, *words, f"run={run}", "steps=4000", "checkpoint_every=0")
    _until(_logged(run, 3), group)
    for member in group.members:
        member.send_signal(signal.SIGTERM)
    assert group.wait(60) == [143, 143]
    assert "stopped by SIGTERM; the state is saved" in group.said[0]
    assert len(checkpoints(run / "checkpoints")) == 1


def test_a_class_without_training_clips_has_no_output_and_is_named(tones, tmp_path, capsys):
    other = tmp_path / "tones"
    shutil.copytree(tones, other)
    text = (other / "metadata.csv").read_text().splitlines()
    for i, line in enumerate(text):
        if ",high," in line:
            text[i] = line.replace(",train,", ",test,").replace(",valid,", ",test,")
    (other / "metadata.csv").write_text("\n".join(text))
    assert _run("steps=2", data=other, run=tmp_path / "run") == 0
    high = sum(",high," in line for line in text)
    said = f"classes without a training clip: high ({high} test clips, which count as wrong)"
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "run/report.html").read_text()
    result = json.loads((tmp_path / "run/test.json").read_text())
    assert (result["num_unseen"], result["untrained"]) == (high, {"high": high})
    assert [row["class"] for row in result["per_class"]] == ["low", "middle"]
    assert load_classifier(tmp_path / "run").outputs.heads == [("label", ["low", "middle"])]
    words = [f"encoder={tmp_path / 'run'}", f"data={other}", f"out={tmp_path / 'scores'}"]
    assert evaluate.main(words) == 0
    assert said in capsys.readouterr().out
