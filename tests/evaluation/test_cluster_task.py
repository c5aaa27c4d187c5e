import json

import numpy as np
import pytest
import torch
from sklearn import metrics

from ssmast.evaluation import cluster_task, clusters
from ssmast.evaluation.cluster_task import ClusterConfig, main
from ssmast.evaluation.suite import ProbeConfig, run_suite
from ssmast.settings import UsageError
from tests.sets import write_set


def run_clusters(config):
    """What the JSON file holds."""
    return cluster_task.run_clusters(config).to_dict()


def settings(sets, encoder_folder, tmp_path, **changes):
    words = {"data": str(sets), "task": "tones", "encoder": str(encoder_folder), "part": "all",
             "out": str(tmp_path / "out"), "cache": str(tmp_path / "cache"), "seeds": 2,
             "umap": "false", **changes}  # fmt: skip
    return ClusterConfig(**words)


def test_the_table_and_the_file_hold_every_column_and_chance(
    sets, encoder_folder, tmp_path, capsys
):
    out = tmp_path / "out"
    words = ["tones", f"encoder={encoder_folder}", f"data={sets}", f"out={out}", "umap=false"]
    assert main([*words, f"cache={tmp_path / 'cache'}", "seeds=2", "part=all"]) == 0
    table = capsys.readouterr().out
    assert (out / "tones.clusters.md").read_text() == table
    result = json.loads((out / "tones.clusters.json").read_text())
    assert list(result["columns"]) == ["pretrained", "untrained", "log_mel"]
    assert (result["n"], result["num_classes"], result["normalisation"]) == (48, 3, "l2")
    assert "picture" not in result
    for name in ("pretrained", "untrained", "log-mel", "random labels"):
        assert f"| tones | {name} |" in table
    assert "scaled to unit length" in table
    # Tones of three heights are three heaps of log-mel statistics.
    assert result["columns"]["log_mel"]["kmeans"]["adjusted_rand"] > 0.9
    assert result["columns"]["log_mel"]["random"]["adjusted_rand"] < 0.1


def test_embeddings_of_the_probe_are_used_again(sets, tmp_path, encoder_folder, monkeypatch):
    cache = tmp_path / "cache"
    run_suite(
        ProbeConfig(encoder=str(encoder_folder), data=str(sets), tasks="tones", seeds=1,
                    out=str(tmp_path / "probe"), cache=str(cache))
    )  # fmt: skip
    before = sorted(cache.iterdir())
    monkeypatch.setattr("ssmast.evaluation.embed.embed_batch", None)  # nothing is embedded again
    run_clusters(settings(sets, encoder_folder, tmp_path, part="test"))
    assert sorted(cache.iterdir()) == before
    assert len(before) == 3


def test_only_the_test_part_is_taken_unless_all_is_asked_for(sets, encoder_folder, tmp_path):
    few = run_clusters(settings(sets, encoder_folder, tmp_path, part="test", baselines="false"))
    assert few["n"] == 12
    assert list(few["columns"]) == ["pretrained"]
    folds = run_clusters(
        settings(sets, encoder_folder, tmp_path, part="test", task="tones:protocol=folds")
    )
    assert folds["n"] == 48  # of folds every clip is tested on


def test_what_is_not_clustered_may_be_missing(encoder_folder, tmp_path):
    """One clip of each class to train on leaves none to validate, which nothing here needs."""
    folder = write_set(tmp_path / "sets" / "tones", num_clips=12)
    head, *rows = (folder / "metadata.csv").read_text().splitlines()
    place = head.split(",").index("split")
    for number, row in enumerate(rows):
        cells = row.split(",")
        cells[place] = "train" if number < 3 else "test"
        rows[number] = ",".join(cells)
    (folder / "metadata.csv").write_text("\n".join([head, *rows]) + "\n")
    for part, num in (("test", 9), ("all", 12)):
        found = run_clusters(settings(folder.parent, encoder_folder, tmp_path / part, part=part))
        assert found is not None
        assert found["n"] == num


def test_unreadable_clips_are_left_out_and_named(encoder_folder, tmp_path):
    write_set(tmp_path / "data" / "tones", bad=1)
    result = run_clusters(settings(tmp_path / "data", encoder_folder, tmp_path))
    assert result["n"] == 47
    assert [name for name, _ in result["rejected"]] == ["047.wav"]


# UMAP compiles for half a minute when it is first used: `make test` draws another layout instead.
@pytest.mark.parametrize("layout", ["two_columns", pytest.param("umap", marks=pytest.mark.slow)])
def test_the_picture_holds_the_chosen_classes(layout, sets, encoder_folder, tmp_path, monkeypatch):
    if layout == "umap":
        pytest.importorskip("umap", reason="needs the extra umap")
    else:
        monkeypatch.setattr(clusters, "draw_umap", lambda values, seed: values[:, :2].numpy())
        monkeypatch.setattr(clusters, "can_draw", lambda: True)
    config = settings(
        sets, encoder_folder, tmp_path, umap="true", classes=["low", "high"], points=20,
        baselines="false",
    )  # fmt: skip
    result = run_clusters(config)
    drawn = result["picture"]
    assert drawn["classes"] == ["high", "low"]
    assert len(drawn["clips"]) == len(drawn["labels"]) == 20
    assert drawn["num_candidates"] == 32
    assert result["n"] == 48  # the scores are of all classes
    for column in drawn["columns"].values():
        assert len(column["x"]) == len(column["y"]) == len(column["neighbours"]) == 20
        assert all(i not in row for i, row in enumerate(column["neighbours"]))
    assert drawn["columns"] == run_clusters(config)["picture"]["columns"]  # the seed decides


@pytest.mark.slow
def test_another_layer_and_the_first_classes_are_a_key_each(
    sets, encoder_folder, tiny_encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr(clusters, "draw_umap", lambda values, seed: values[:, :2].numpy())
    monkeypatch.setattr(clusters, "can_draw", lambda: True)
    words = {"layer": "before_last", "first_classes": 2, "umap": "true", "baselines": "true"}
    result = run_clusters(settings(sets, encoder_folder, tmp_path, **words))
    assert result["picture"]["classes"] == ["high", "low"]
    assert result["layers"] == "before_last"
    net = tiny_encoder.backbone
    assert net.blocks_of("before_last") == [len(net.block_channels) - 2] == [2]
    one = tiny_encoder.variant(layers="before_last", pooling="mean").eval()
    x, every = torch.randn(1, 1, 64, 96), []
    with torch.no_grad():
        net.encode(x, every=every)
        torch.testing.assert_close(one.pool(x), every[-2].x.mean(dim=1))
    with pytest.raises(UsageError, match="classes must be left out where first_classes"):
        run_clusters(settings(sets, encoder_folder, tmp_path, classes=["low"], **words))
    with pytest.raises(ValueError, match="before_last, or numbers from 1 to 4"):
        run_clusters(settings(sets, encoder_folder, tmp_path, layer="9"))


def test_umap_keeps_separate_heaps_apart():
    pytest.importorskip("umap", reason="needs the extra umap")
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    heaps = 20 * np.eye(3)[labels] + generator.standard_normal((60, 3))
    points = clusters.draw_umap(torch.from_numpy(heaps).float(), seed=0)
    assert metrics.silhouette_score(points, labels) > 0.7


def test_neighbours_are_those_of_highest_cosine():
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    numbers, similarity = clusters.nearest(features, limit=4)
    cosine = metrics.pairwise.cosine_similarity(features.numpy()) - 2 * np.eye(30)
    assert (numbers == np.argsort(-cosine, axis=1)[:, :4]).all()
    assert similarity == pytest.approx(-np.sort(-cosine, axis=1)[:, :4], abs=1e-6)


def test_without_umap_learn_it_says_what_to_install(
    sets, encoder_folder, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("ssmast.evaluation.clusters.can_draw", lambda: False)
    with pytest.raises(ValueError, match=r"umap=true needs .*pip install 'ssmast\[umap\]'"):
        run_clusters(settings(sets, encoder_folder, tmp_path, umap="true"))
    assert not (tmp_path / "out").exists()  # before anything is embedded
    result = run_clusters(settings(sets, encoder_folder, tmp_path, umap="auto"))
    assert "pip install 'ssmast[umap]'" in caplog.text
    assert "picture" not in result


def test_what_does_not_exist_is_named(sets, encoder_folder, tmp_path):
    for word, message in (
        ("normalise=l1", "l2, standard, raw, got 'l1'"),
        ("part=train", "test or all, got 'train'"),
        ("umap=maybe", "auto, true, false"),
        ("seeds=0", "at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            main(["tones", word])
    with pytest.raises(UsageError, match="are about the map; leave umap=false out"):
        main(["tones", f"data={sets}", "umap=false", "classes=[low]"])
    with pytest.raises(UsageError, match="an encoder folder or a Hub name, got log_mel"):
        main(["tones", f"data={sets}", "encoder=log_mel"])
    config = settings(sets, encoder_folder, tmp_path, umap="true", classes=["middel"])
    with pytest.raises(ValueError, match="'middel', which no clip has; there are: high, low"):
        run_clusters(config)
