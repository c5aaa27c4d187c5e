import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from ssmast.datasets import prepare_task
from ssmast.evaluation import suite
from ssmast.evaluation.cluster_task import ClusterConfig, run_clusters
from ssmast.evaluation.evaluate import PartScores, result_of
from ssmast.evaluation.find_set import find_sets
from ssmast.evaluation.labelled_set import without
from ssmast.evaluation.probe import metric_of
from ssmast.evaluation.read_set import load_set
from ssmast.evaluation.suite import ProbeConfig
from ssmast.evaluation.task_spec import TaskSpec, filled


def run_suite(config):
    """What the JSON files hold."""
    return [result.to_dict() for result in suite.run_suite(config)]


@pytest.fixture
def esc50(tmp_path):
    """Two classes in five folds, as ESC-50 is laid out, and its labelled set."""
    root = tmp_path / "ESC-50-master"
    rng = np.random.default_rng(0)
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    rows = [["filename", "fold", "target", "category", "esc10", "src_file", "take"]]
    for fold in range(1, 6):
        for target, name in ((0, "hum"), (1, "hiss")):
            for take in "AB":
                file = f"{fold}-{fold}{target}-{take}-{target}.wav"
                noise = rng.uniform(-0.3, 0.3, 8000)
                hum = 0.3 * np.sin(np.arange(8000) * (0.05 + 0.01 * fold))
                soundfile.write(root / "audio" / file, noise if target else hum, 16000)
                rows.append([file, str(fold), str(target), name, "True", f"{fold}{target}", take])
    with (root / "meta/esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    prepare_task("esc50", root=root, out=tmp_path / "sets/esc50")
    return tmp_path / "sets"


def test_a_built_set_is_scored_without_a_word_about_it(esc50, tmp_path):
    (result,) = run_suite(
        ProbeConfig(encoder="log_mel", data=str(esc50), out=str(tmp_path / "o"), protocol="knn")
    )
    assert result["task"] == "esc50"
    assert result["metric"] == "accuracy"
    assert result["mean"] == 1.0
    assert [split["name"] for split in result["splits"]] == [f"fold {i}" for i in range(1, 6)]
    built = result["built"]
    assert built["ids_sha256"] == json.loads((esc50 / "esc50/task.json").read_text())["ids_sha256"]
    assert "1: 400 published, 4 here" in built["differences"]


def test_one_hash_of_the_clips_in_preparation_probes_clusters_and_classifiers(
    esc50, sets, encoder_folder, tmp_path
):
    def hashes(data, task):
        words = {"data": str(data), "encoder": str(encoder_folder)}
        (probed,) = run_suite(
            ProbeConfig(
                **words, tasks=task, protocol="knn", out=str(tmp_path / "o"), baselines="false"
            )
        )
        clustered = run_clusters(
            ClusterConfig(
                **words,
                task=task,
                umap="false",
                out=str(tmp_path / "c"),
                baselines="false",
                seeds=1,
            )
        )
        return probed["ids_sha256"], clustered.ids_sha256

    prepared = json.loads((esc50 / "esc50/task.json").read_text())["ids_sha256"]
    assert hashes(esc50, "esc50") == (prepared, prepared)
    labelled = load_set(sets, "tones")
    test = labelled.splits[0].test
    scores = torch.rand(len(test), 3)
    scored = PartScores(scores, test, {"accuracy": 0.5, "n": len(test)}, [])
    whole = result_of(labelled, scored, fold="", metric="accuracy", encoder="x", sha256="y")
    assert hashes(sets, "tones") == (whole.ids_sha256, labelled.ids_sha256())
    less = PartScores(scores[1:], test[1:], {"accuracy": 0.5, "n": 11}, [("x", "unreadable")])
    fewer = result_of(labelled, less, fold="", metric="accuracy", encoder="x", sha256="y")
    smaller = without(labelled, [labelled.clips[test[0]]])
    assert fewer.ids_sha256 == smaller.ids_sha256() != whole.ids_sha256
    folds = load_set(sets, "tones:protocol=folds")
    second = replace(folds, splits=[folds.splits[1]])
    test = second.splits[0].test
    part = PartScores(torch.rand(len(test), 3), test, {"accuracy": 0.5, "n": len(test)}, [])
    of_fold = result_of(folds, part, fold="2", metric="accuracy", encoder="x", sha256="y")
    assert of_fold.ids_sha256 == second.ids_sha256() != folds.ids_sha256()


def test_the_set_decides_only_what_the_user_leaves_open():
    facts = {"label": "kind", "protocol": "folds", "group": "who", "metric": "map"}
    assert filled(TaskSpec(name="a"), facts) == TaskSpec(
        name="a", label="kind", protocol="folds", group="who"
    )
    asked = TaskSpec(name="a", label="x", protocol="leave_one_out:y")
    assert filled(asked, facts) == TaskSpec(
        name="a", label="x", protocol="leave_one_out:y", group="who"
    )
    assert filled(TaskSpec(name="a", split="s2"), facts).protocol == "auto"
    assert filled(asked, {}) == asked


def test_the_metric_of_the_set_is_the_default(esc50, tmp_path):
    path = esc50 / "esc50/task.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "metric": "balanced_accuracy"}))
    settings = {"encoder": "log_mel", "data": str(esc50), "protocol": "knn"}
    (result,) = run_suite(ProbeConfig(**settings, out=str(tmp_path / "a")))
    assert result["metric"] == "balanced_accuracy"
    (result,) = run_suite(ProbeConfig(**settings, out=str(tmp_path / "b"), metric="accuracy"))
    assert result["metric"] == "accuracy"


def test_another_column_of_a_multi_label_set_may_have_one_label_a_clip(esc50):
    path = esc50 / "esc50/task.json"
    facts = {"multi_label": True, "metric": "map", "classes": ["hum", "hiss"]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    task = load_set(esc50, "esc50")
    assert (task.multi_label, metric_of(task).name, task.classes) == (True, "map", ["hum", "hiss"])
    table = esc50 / "esc50/metadata.csv"  # another column may well have one
    rows = [line.split(",") for line in table.read_text().splitlines()]
    rows = [[*row, "kind" if row[1] == "label" else row[1]] for row in rows]
    table.write_text("\n".join(",".join(row) for row in rows) + "\n")
    task = load_set(esc50, "esc50:label=kind")
    assert (task.multi_label, metric_of(task).name) == (False, "accuracy")
    assert task.classes == ["hiss", "hum"]


@pytest.fixture
def fsd50k(tmp_path):
    """Three classes, any number a clip, as FSD50K is laid out, and its labelled set."""
    root, rng = tmp_path / "FSD50K", np.random.default_rng(0)
    truth = root / "FSD50K.ground_truth"
    truth.mkdir(parents=True)
    vocabulary = {"/m/1": "Bark, bow-wow", "/m/2": "Animal", "/m/3": "Music"}
    pitches = dict(zip(vocabulary, (300.0, 1000.0, 3000.0), strict=True))
    lines = [f'{i},"{name}",{mid}' for i, (mid, name) in enumerate(vocabulary.items())]
    (truth / "vocabulary.csv").write_text("\n".join(lines) + "\n")
    for kind, columns, count in (("dev", "split", 48), ("eval", "", 24)):
        (root / f"FSD50K.{kind}_audio").mkdir()
        rows = [["fname", "labels", "mids", *filter(None, [columns])]]
        for clip in range(count):
            mids = [mid for bit, mid in enumerate(vocabulary) if (clip % 7 + 1) >> bit & 1]
            time = np.arange(4800) / 16000
            heights = [pitches[mid] * rng.uniform(0.9, 1.1) for mid in mids]
            sound = sum(0.2 * np.sin(2 * np.pi * height * time) for height in heights)
            sound = sound + 0.02 * rng.standard_normal(4800)
            name = f"{clip + 100 * (kind == 'eval')}"
            soundfile.write(root / f"FSD50K.{kind}_audio/{name}.wav", sound, 16000)
            labels = ",".join(vocabulary[mid] for mid in mids)
            part = ["val" if clip % 3 == 2 else "train"] if columns else []
            rows.append([name, labels, ",".join(mids), *part])
        with (truth / f"{kind}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    prepare_task("fsd50k", root=root, out=tmp_path / "sets/fsd50k")
    return tmp_path / "sets"


@pytest.mark.parametrize("protocol", ["linear", "logreg", "knn"])
def test_fsd50k_is_scored_by_map(fsd50k, tmp_path, protocol):
    config = ProbeConfig(
        encoder="log_mel", data=str(fsd50k), out=str(tmp_path / "o"), protocol=protocol, seeds=2
    )
    (result,) = run_suite(config)
    wanted = {
        "task": "fsd50k", "metric": "map", "multi_label": True, "n_train": 32, "n_valid": 16,
        "n_test": 24, "num_classes": 3, "num_unseen": 0, "classes_scored": 3.0,
        "classes": ["Bark, bow-wow", "Animal", "Music"], "test_interval95": None,
    }  # fmt: skip
    assert {key: result[key] for key in wanted} == wanted
    assert result["mean"] > 0.97
    assert result["chance"] == pytest.approx((14 + 14 + 12) / 3 / 24, abs=0.03)
    assert set(result["also"]) == {"auc", "d_prime", "mean_d_prime"}
    assert result["also"]["auc"] > 0.97
    assert (tmp_path / "o/report.html").is_file()
    assert "Test mAP in %" in (tmp_path / "o/results.md").read_text()
    config = replace(config, shuffled=True)
    (control,) = run_suite(config)
    assert control["mean"] < 0.75 < result["mean"]
    assert control["shuffled"] is True


def test_a_metric_must_fit_the_labels(fsd50k, tmp_path):
    config = ProbeConfig(encoder="log_mel", data=str(fsd50k), out=str(tmp_path), metric="accuracy")
    with pytest.raises(ValueError, match="several labels each, which metric=accuracy does not"):
        run_suite(config)


def test_an_unlabelled_set_is_no_task(esc50):
    (esc50 / "pool").mkdir()
    (esc50 / "pool/metadata.csv").write_text("path,split,source\na.wav,train,x\n")
    assert find_sets(esc50) == ["esc50"]
