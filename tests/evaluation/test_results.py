import json
import math
from pathlib import Path

from ssmast.evaluation.results import (
    ClusterResult,
    Result,
    Score,
    beside,
    parse_result,
    read_result,
    write_result,
)

CONTRACT = (
    "task", "protocol", "metric", "mean", "ci95", "scores", "n_train", "n_valid", "n_test",
    "num_classes", "ids_sha256", "chosen", "encoder_sha256", "version",
)  # fmt: skip


def test_a_result_comes_back_from_its_file(tmp_path):
    result = Result(
        task="a", protocol="linear", metric="accuracy", mean=0.5, num_classes=2, scores=[0.5],
        also={"balanced_accuracy": 0.25}, rejected=[["x.wav", "is empty"]],
        baselines={"untrained": Score(mean=0.25, ci95=0.01, dim=3)},
    )  # fmt: skip
    write_result(tmp_path / "a.json", result)
    content = json.loads((tmp_path / "a.json").read_text())
    assert set(CONTRACT) <= content.keys()
    assert content["ci95"] is None  # said, not left out
    assert "confusion" not in content
    assert read_result(tmp_path / "a.json") == result
    assert list(result.columns) == ["pretrained", "untrained"]
    assert parse_result({**content, "of another version": 1}) == result


def test_what_is_no_number_in_json_is_null():
    result = Result(
        task="a", protocol="linear", metric="map", mean=0.5, num_classes=2,
        also={"mean_d_prime": math.inf}, valid=math.nan,
    )  # fmt: skip
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["also"] == {"mean_d_prime": None}
    assert "valid" not in content


def test_other_files_are_no_results():
    clusters = ClusterResult(
        task="a", num_classes=2, n=4, normalisation="l2", num_seeds=1, columns={}
    )
    assert parse_result(clusters.to_dict()) == clusters
    assert parse_result({"task": "a", "mean": 0.5}) is None
    assert parse_result([1]) is None


def test_encoders_side_by_side_have_a_place_each(tmp_path):
    for name in ("run/encoder", "frogs"):
        (tmp_path / name).mkdir(parents=True)
    run = tmp_path / "run"
    assert beside(run / "encoder", "probe") == beside(run, "probe") == run / "probe"
    assert beside(tmp_path / "frogs", "probe") == tmp_path / "frogs-probe"
    assert beside("org/name", "probe") == Path("probe")
