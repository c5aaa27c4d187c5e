"""From a run to a folder that others can use."""

import html
import json
import re
import shutil

import pytest
import torch
import yaml

from ssmast import export
from ssmast.classifier import load_classifier
from ssmast.command import run_command
from ssmast.encoder import load_encoder
from ssmast.encoder.graph import OnnxEncoder
from ssmast.settings import UsageError
from ssmast.training import pretrain
from ssmast.training.checkpoint import checkpoints
from ssmast.training.finetune import command as finetune
from tests.encoder.test_encoder import RATE, noise
from tests.sets import write_set
from tests.training.processes import SMALL, write_tones


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with two checkpoints."""
    root = tmp_path_factory.mktemp("runs")
    audio = write_tones(root / "audio")
    words = [*SMALL, f"data={audio}", f"run={root / 'run'}", "export.network=teacher"]
    assert run_command(pretrain.main, words, name="ssmast pretrain") == 0
    return root / "run"


def test_the_teacher_is_what_the_run_itself_exported(run, tmp_path):
    assert export.main([str(run), f"out={tmp_path / 'e'}"]) == 0
    ours, theirs = load_encoder(tmp_path / "e"), load_encoder(run / "encoder")
    assert ours.sha256 == theirs.sha256
    assert torch.equal(ours.embed(noise(9000), RATE), theirs.embed(noise(9000), RATE))
    assert ours.info["network"] == "teacher"
    assert (ours.info["steps"], ours.info["planned_steps"]) == (6, 6)


def test_the_network_that_the_run_chose_and_scored_is_what_is_exported(run, tmp_path):
    chosen = tmp_path / "chosen"
    shutil.copytree(run, chosen)
    settings = yaml.safe_load((chosen / "config.yaml").read_text())
    settings["export"]["network"] = "student"
    (chosen / "config.yaml").write_text(yaml.safe_dump(settings))
    export.main([str(run), f"out={tmp_path / 'student'}", "network=student"])
    student = load_encoder(tmp_path / "student")
    result = {"task": "t", "protocol": "linear", "metric": "accuracy", "mean": 0.773, "splits": []}
    result |= {"num_classes": 2, "encoder_sha256": student.sha256, "pooling": student.pooling}
    (chosen / "probe").mkdir()
    (chosen / "probe" / "t.json").write_text(json.dumps(result))
    assert export.main([str(chosen), f"out={tmp_path / 'e'}"]) == 0
    found = load_encoder(tmp_path / "e")
    assert (found.sha256, found.info["network"]) == (student.sha256, "student")
    card = (tmp_path / "e" / "README.md").read_text()
    assert "| t | linear | accuracy | 77.3 |" in card
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.773
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("ssmast", "feature-extraction")
    assert metadata["tags"] == ["audio", "ssmast", "timm", "mast"]
    assert "No licence was stated" in card


def test_whitening_is_the_runs_own_or_measured_again_on_its_clips(run, tmp_path, monkeypatch):
    data = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert export.main([str(run), f"out={tmp_path / 'a'}", "whiten=2"]) == 0
    white, plain = load_encoder(tmp_path / "a"), load_encoder(run / "encoder")
    assert white.whitening is not None
    assert torch.allclose(
        white.embed(noise(9000), RATE), white.whitening(plain.embed(noise(9000), RATE)), atol=1e-5
    )
    # a folder keeps its own; of other vectors it is measured again, or left out, or refused
    assert export.main([str(tmp_path / "a"), f"out={tmp_path / 'b'}", "window_seconds=3"]) == 0
    assert load_encoder(tmp_path / "b").settings()["whitening"] == white.settings()["whitening"]
    words = [str(tmp_path / "a"), f"out={tmp_path / 'c'}"]
    with pytest.raises(FileNotFoundError, match="give data=FOLDER"):
        export.main([*words, "data=nowhere"])  # other clips than its own are measured
    words.append("pooling=mean")
    assert export.main([*words, "whiten=2", f"data={data}"]) == 0
    assert len(load_encoder(tmp_path / "c").whitening.mean) == load_encoder(tmp_path / "c").dim
    assert export.main([*words, "whiten=0"]) == 0
    assert load_encoder(tmp_path / "c").whitening is None
    with pytest.raises(FileNotFoundError, match=r"whitened by the sound.*give data=FOLDER"):
        export.main([*words, "whiten=2", "data=nowhere"])


def test_an_unfinished_run_gives_its_newest_checkpoint_and_says_so(run, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    shutil.rmtree(broken / "encoder")
    shutil.rmtree(checkpoints(broken / "checkpoints")[-1])
    export.main([str(broken), f"out={tmp_path / 'e'}", "network=student"])
    encoder = load_encoder(tmp_path / "e")
    assert encoder.info["network"] == "student"
    assert encoder.info["steps"] == 4
    assert encoder.sha256 != load_encoder(run / "encoder").sha256
    assert "not finished: 4 of 6 steps" in (tmp_path / "e" / "README.md").read_text()


# -- methods with one network ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def ssast_run(tmp_path_factory):
    """A finished SSAST run with two checkpoints."""
    root = tmp_path_factory.mktemp("ssast")
    words = [*SMALL[1:], "recipe=ssast_nano", "front_end.num_mels=64", "views.frames=96"]
    words = [word for word in words if not word.startswith(("head.", "loss."))]
    words += [f"data={write_tones(root / 'audio')}", f"run={root / 'run'}", "export.pooling=freq"]
    assert run_command(pretrain.main, words, name="ssmast pretrain") == 0
    return root / "run"


@pytest.mark.parametrize("network", ["", "network=student"])
def test_ssast_has_one_network_and_that_is_exported(ssast_run, tmp_path, network):
    words = [f"out={tmp_path / 'e'}", *filter(None, [network])]
    assert export.main([str(ssast_run), *words]) == 0
    ours, theirs = load_encoder(tmp_path / "e"), load_encoder(ssast_run / "encoder")
    assert ours.sha256 == theirs.sha256
    assert (ours.info["network"], ours.pooling) == ("student", "freq")
    card = (tmp_path / "e" / "README.md").read_text()
    assert "An Audio Spectrogram Transformer" in card
    assert "| objective | ssast |" in card
    assert "| patches masked | 0.78125 |" in card
    assert "temperature |" not in card


def test_ssast_is_exported_from_the_checkpoint_that_is_named(ssast_run, tmp_path):
    first, *_, last = checkpoints(ssast_run / "checkpoints")
    export.main([str(ssast_run), f"out={tmp_path / 'e'}", f"checkpoint={first}"])
    early = load_encoder(tmp_path / "e")
    assert early.info["steps"] < 6
    assert early.sha256 != load_encoder(ssast_run / "encoder").sha256
    export.main([str(ssast_run), f"out={tmp_path / 'f'}", f"checkpoint={last}"])
    assert load_encoder(tmp_path / "f").sha256 == load_encoder(ssast_run / "encoder").sha256


def test_ssast_has_no_teacher(ssast_run, tmp_path):
    with pytest.raises(ValueError, match="objective=ssast has no teacher, only its student"):
        export.main([str(ssast_run), f"out={tmp_path / 'e'}", "network=teacher"])


def test_a_checkpoint_of_another_run_is_refused(run, ssast_run, tmp_path):
    other = checkpoints(ssast_run / "checkpoints")[-1]
    with pytest.raises(ValueError, match=r"is not one of .*objective \(was ssast, now ss_mast\)"):
        export.main([str(run), f"out={tmp_path / 'e'}", f"checkpoint={other}"])


def test_a_checkpoint_of_a_run_on_other_audio_is_refused(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")  # same settings, another mean and std
    facts = json.loads((other / "facts.json").read_text())
    (other / "facts.json").write_text(json.dumps({**facts, "corpus": "0" * 64}))
    words = [
        str(other),
        f"out={tmp_path / 'e'}",
        f"checkpoint={checkpoints(run / 'checkpoints')[-1]}",
    ]
    with pytest.raises(ValueError, match=r"is not one of .*, which was trained on other audio"):
        export.main(words)


@pytest.mark.parametrize(
    ("name", "text", "lost"),
    [("facts.json", "{}", "mean"), ("config.yaml", "recipe: smoke\nseed: 0\n", "objective")],
)
def test_a_run_that_has_lost_what_it_knew_is_refused(run, tmp_path, name, text, lost):
    cut = shutil.copytree(run, tmp_path / "cut")
    (cut / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} has lost .*{lost}.*; put back the file"):
        export.main([str(cut), f"out={tmp_path / 'e'}"])


@pytest.fixture(scope="module")
def tuned(run, tmp_path_factory):
    """A finished fine-tuning of the first run's encoder."""
    root = tmp_path_factory.mktemp("tuned")
    tones = write_set(root / "tones", num_clips=24)
    words = ["recipe=finetune_small", f"init={run / 'encoder'}", f"data={tones}", "steps=4"]
    words += [f"run={root / 'run'}", "batch_size=4", "workers=0", "checkpoint_every=2"]
    words += ["clips.frames=32", "threads=1", "tensorboard=false", "scoring.every=2"]
    assert run_command(finetune.main, words, name="ssmast finetune") == 0
    return root / "run"


def test_a_fine_tuned_run_gives_its_classifier(tuned, tmp_path):
    assert export.main([str(tuned), f"out={tmp_path / 'e'}", "pooling=mean"]) == 0
    ours, theirs = load_encoder(tmp_path / "e"), load_encoder(tuned / "encoder")
    assert (ours.sha256, ours.pooling) == (theirs.sha256, "mean")
    assert ours.info["network"] == "fine-tuned"
    assert load_classifier(tmp_path / "e").outputs == load_classifier(tuned).outputs


def test_the_card_of_a_classifier_is_one_of_a_classifier(tuned, tmp_path):
    words = [f"out={tmp_path / 'e'}", "license=cc-by-4.0", "datasets=[org/tones,org/more]"]
    assert export.main([str(tuned), *words]) == 0
    facts = json.loads((tuned / "test.json").read_text())
    for folder in (tuned / "encoder", tmp_path / "e"):
        card = (folder / "README.md").read_text()
        metadata = yaml.safe_load(card.split("---")[1])
        assert metadata["pipeline_tag"] == "audio-classification"
        assert "# Audio classifier" in card
        assert 'ssmast.load_classifier("THIS FOLDER")' in card
        assert "ot scored yet" not in card
        assert "not been scored" not in card
        assert "one vector out" not in card
        assert f"| accuracy | {facts['numbers']['accuracy']:.4f} |" in card
        for _, classes in load_classifier(folder).outputs.heads:
            assert f"({len(classes)}): {', '.join(classes)}" in card
        (results,) = metadata["model-index"]
        named = {r["metrics"][0]["name"]: r["metrics"][0]["value"] for r in results["results"]}
        assert named["accuracy"] == facts["numbers"]["accuracy"]
    assert (metadata["license"], metadata["datasets"]) == ("cc-by-4.0", ["org/tones", "org/more"])
    assert "No licence was stated" not in card


def test_the_card_has_the_title_and_the_citation(tuned, tmp_path, capsys):
    bibtex = "@misc{birds,\n  title = {Bird | calls},\n}"
    (tmp_path / "own.bib").write_text(f"{bibtex}\n")
    words = [f"out={tmp_path / 'e'}", "title=Calls: of birds"]
    assert export.main([str(tuned), *words, f"citation={tmp_path / 'own.bib'}"]) == 0
    card = (tmp_path / "e" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["model-index"][0]["name"] == "Calls: of birds"
    assert "\n# Calls: of birds\n" in card
    assert f"## Citation\n\n```bibtex\n{bibtex}\n```\n" in card
    assert card.count("Calls: of birds") == 2
    assert export.main([str(tuned), *words, "citation=Doe (2026)"]) == 0
    assert "## Citation\n\nDoe (2026)\n" in (tmp_path / "e" / "README.md").read_text()
    with pytest.raises(FileNotFoundError, match=r"citation=none\.bib does not exist; give a file"):
        export.main([str(tuned), *words, "citation=none.bib"])


def test_a_classifier_leaves_python_with_its_head_and_classes(tuned, tmp_path):
    pytest.importorskip("onnxruntime")
    assert export.main([str(tuned), f"out={tmp_path / 'e'}", "onnx=true"]) == 0
    graph = OnnxEncoder(tmp_path / "e" / "model.onnx")
    classifier = load_classifier(tmp_path / "e")
    heads = [(head["name"], head["classes"]) for head in json.loads(graph.facts["classes"])]
    assert heads == classifier.outputs.heads
    assert graph.facts["multi_label"] == "false"
    length = int(graph.facts["classifier_samples"])
    assert length == classifier.log_mel.samples(classifier.frames)
    clips = torch.stack([noise(length, seed=n) for n in range(3)])
    wanted = classifier.embed_clips(list(clips)).exp()
    torch.testing.assert_close(graph.probabilities(clips), wanted, atol=1e-4, rtol=0)
    encoder = load_encoder(tmp_path / "e")
    torch.testing.assert_close(graph(clips), encoder.embed(clips, RATE), atol=1e-4, rtol=0)
    card = (tmp_path / "e" / "README.md").read_text()
    assert "`embeddings` (batch, D) and `probabilities` (batch, C)" in card


def test_a_fine_tuning_that_is_not_finished_says_how_to_go_on(tuned, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tuned, broken)
    shutil.rmtree(broken / "encoder")
    sentence = "no encoder yet; resume with the same command and resume=auto"
    with pytest.raises(ValueError, match=sentence):
        export.main([str(broken), f"out={tmp_path / 'e'}"])
    newest = checkpoints(tuned / "checkpoints")[-1]
    with pytest.raises(ValueError, match="one of a fine-tuning, step 4 of 4"):
        export.main([str(tuned), f"out={tmp_path / 'e'}", f"checkpoint={newest}"])
    with pytest.raises(ValueError, match="holds the fine-tuned network, not the student"):
        export.main([str(tuned), f"out={tmp_path / 'e'}", "network=student"])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "checksums.json"])
@pytest.mark.parametrize("what", ["run", "folder"])
def test_of_a_damaged_encoder_it_is_said_what_is_damaged(tuned, tmp_path, name, what):
    shutil.copytree(tuned, tmp_path / "run")
    file = tmp_path / "run" / "encoder" / name
    words = [str(tmp_path / "run" if what == "run" else file.parent), f"out={tmp_path / 'e'}"]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=re.escape(f"{file} is damaged")):
        export.main(words)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file.parent} is no encoder folder: .*{name}"):
        export.main(words)
    assert not (tmp_path / "e").exists()


# -- settings and card -----------------------------------------------------------------------------


def test_pooling_and_layers_can_be_chosen_again(run, tmp_path):
    export.main([str(run), f"out={tmp_path / 'e'}", "pooling=mean", "layers=stages"])
    one = load_encoder(tmp_path / "e")
    assert (one.pooling, one.layers) == ("mean", "stages")
    export.main([str(tmp_path / "e"), f"out={tmp_path / 'f'}", "layers=last"])
    other = load_encoder(tmp_path / "f")
    assert (other.pooling, other.layers, other.sha256) == ("mean", "last", one.sha256)


def test_the_card_has_the_scores_of_these_weights_alone(run, tmp_path):
    result = {
        "task": "fsdd",
        "protocol": "linear",
        "metric": "accuracy",
        "mean": 0.8125,
        "ci95": 0.012,
        "num_classes": 10,
        "splits": [],
        "encoder_sha256": load_encoder(run / "encoder").sha256,
        "pooling": "freq+max",
        "layers": "last",
        "baselines": {"untrained": {"mean": 0.5, "ci95": None}},
    }
    scores = tmp_path / "probe"
    scores.mkdir()
    (scores / "fsdd.json").write_text(json.dumps(result))
    (scores / "other.json").write_text(json.dumps({**result, "task": "other", "pooling": "mean"}))
    export.main([str(run), f"out={tmp_path / 'e'}", f"scores={scores}"])
    card = (tmp_path / "e" / "README.md").read_text()
    assert "| fsdd | linear | accuracy | 81.2 ± 1.2 | 50.0 |" in card
    assert "| other |" not in card
    for part in ("## Recipe", "## Scores", "## Limits", "12 clips", "learning rate", "0.32 s"):
        assert part in card


def test_onnx_goes_into_the_folder_with_a_checksum(run, tmp_path, monkeypatch):
    facts = {
        "min_samples": 5280,
        "checked_lengths": [1, 2, 3, 4, 5],
        "largest_difference": 2e-6,
        "int8_cosine_mean": 0.99,
        "int8_cosine_lowest": 0.98,
        "int8_size": 0.3,
    }
    # The graphs themselves: tests/encoder/test_graph.py.
    monkeypatch.setattr(
        "ssmast.encoder.graph.graph_files", lambda e, int8: ({"model.onnx": b"graph"}, facts)
    )
    out = tmp_path / "e"
    export.main([str(run), f"out={out}", "onnx=true", "int8=true"])
    card = (out / "README.md").read_text()
    assert "Largest difference of onnxruntime to PyTorch at 5 lengths: 2.0e-06" in card
    assert "0.9900 on average, 0.9800 at the lowest" in card
    load_encoder(out)
    (out / "model.onnx").write_bytes(b"grape")
    with pytest.raises(ValueError, match=r"model.onnx is damaged"):
        load_encoder(out)
    (out / "model.onnx").unlink()  # a copy may go without
    load_encoder(out)


def test_what_is_not_there_is_said(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scores=.*nope is no folder; give the one that"):
        export.main([str(run), f"out={tmp_path / 'e'}", f"scores={tmp_path / 'nope'}"])
    with pytest.raises(FileNotFoundError, match="no run folder at"):
        export.main([str(tmp_path / "none"), f"out={tmp_path / 'x'}"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither a checkpoint nor an encoder"):
        export.main([str(tmp_path / "empty"), f"out={tmp_path / 'x'}"])
    with pytest.raises(ValueError, match="holds the teacher network, not the student"):
        export.main([str(run / "encoder"), f"out={tmp_path / 'x'}", "network=student"])
    with pytest.raises(UsageError, match="needs onnx=true"):
        export.main([str(run), f"out={tmp_path / 'x'}", "int8=true"])
    with pytest.raises(UsageError, match="private=true needs push="):
        export.main([str(run), f"out={tmp_path / 'x'}", "private=true"])
    with pytest.raises(UsageError, match="data= is what embeddings are whitened by"):
        export.main([str(run), f"out={tmp_path / 'x'}", "data=clips"])
    with pytest.raises(UsageError, match="out= is missing"):
        export.main([str(run)])


# -- what leaves a run is what the run says --------------------------------------------------------


def _page_text(file) -> str:
    page = re.sub(r"<(style|script|svg).*?</\1>", "", file.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def _close(name: str, value: float, text: str) -> bool:
    """Whether a text gives a number under a name, however many digits of it."""
    found = re.findall(rf"\b{name}\s*\|?\s*(-?\d[\d.]*(?:e-?\d+)?)", text)
    return any(abs(float(one.rstrip(".")) - value) <= 1e-4 * abs(value) for one in found)


@pytest.mark.parametrize("kind", ["run", "ssast_run", "tuned"])
def test_card_page_and_files_of_a_run_agree(kind, request, tmp_path):
    run = request.getfixturevalue(kind)
    encoder, facts = load_encoder(run / "encoder"), json.loads((run / "facts.json").read_text())
    settings = yaml.safe_load((run / "config.yaml").read_text())
    card, page = (run / "encoder" / "README.md").read_text(), _page_text(run / "report.html")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = max(row["step"] for row in rows)
    assert encoder.info["steps"] == settings["steps"] == steps
    front = encoder.log_mel.settings()
    for name, value in (("mean", front["mean"]), ("std", front["std"]), ("clips", facts["clips"])):
        assert encoder.info[name] == pytest.approx(facts[name])
        assert value == pytest.approx(facts[name])
        assert _close(name, value, card), name
        assert _close(name, value, page), name
    for text in (card, page):
        assert _close("steps", steps, text)
        assert settings["model"] in text
        assert facts["corpus"] in text
    assert f"{encoder.dim} numbers: pooling `{encoder.pooling}`, layers `{encoder.layers}`" in card
    assert f"| network | {encoder.info['network']} |" in card
    assert export.main([str(run), f"out={tmp_path / 'e'}"]) == 0
    assert load_encoder(tmp_path / "e").sha256 == encoder.sha256
    if kind == "tuned":
        told = json.loads((run / "test.json").read_text())
        assert encoder.info["test"] == told["numbers"]
        accuracy = told["numbers"]["accuracy"]
        assert f"| accuracy | {accuracy:.4f} |" in card
        assert f"{100 * accuracy:.1f}" in page
    else:
        assert _close("loss", float(f"{rows[-1]['loss']:.3g}"), page)


def test_card_table_page_and_file_of_a_probe_agree(run, tmp_path, capsys):
    from ssmast import report
    from ssmast.evaluation import suite

    sets = write_set(tmp_path / "sets" / "tones", num_clips=24).parent
    words = [f"encoder={run / 'encoder'}", f"data={sets}", f"out={tmp_path / 'scores'}"]
    assert run_command(suite.main, [*words, "baselines=false"], name="ssmast probe") == 0
    table = capsys.readouterr().out
    (file,) = (tmp_path / "scores").rglob("*.json")
    told = json.loads(file.read_text())
    score = f"{100 * told['mean']:.1f}"
    assert told["encoder_sha256"] == load_encoder(run / "encoder").sha256
    assert score in table
    words = [str(tmp_path / "scores"), f"out={tmp_path / 'page.html'}"]
    assert run_command(report.main, words, name="ssmast report") == 0
    assert score in _page_text(tmp_path / "page.html")
    export.main([str(run), f"out={tmp_path / 'e'}", f"scores={tmp_path / 'scores'}"])
    card = (tmp_path / "e" / "README.md").read_text()
    assert f"| tones | {told['protocol']} | {told['metric']} | {score}" in card
