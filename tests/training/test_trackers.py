"""Trackers without a network, and the progress line; those not installed are skipped."""

import json
import sqlite3

import pytest

from ssmast.settings import UsageError
from ssmast.training.metrics_log import COLUMNS, MetricsLog, Tracker, check_tracker, fitting

CONFIG = {"steps": 2, "optim": {"lr": 0.1, "betas": [0.9, 0.95]}, "export": {"network": "teacher"}}


def _run(name, folder):
    """Two steps, with a score at the last."""
    folder.mkdir()
    tracker = Tracker(name, folder, CONFIG)
    with MetricsLog(folder / "metrics.jsonl", steps=2, tracker=tracker) as log:
        log.write(1, {"loss": 3.0, "alarms": {"collapse": "x"}})
        log.write(2, {"loss": 2.5})
        log.write(2, {"probe/tones/knn": 0.75})


def test_tensorboard_gets_settings_curves_scores_and_the_report(tmp_path):
    _run("tensorboard", tmp_path / "mine")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "mine" / "tracking" / "mine"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 3.0), (2, 2.5)]
    assert [e.value for e in events.Scalars("probe/tones/knn")] == [0.75]
    (file,) = (tmp_path / "mine" / "tracking").rglob("hparams.yml")
    text = file.read_text()
    assert "optim.lr: 0.1" in text
    assert (tmp_path / "mine" / "report.html").as_uri() in text


def test_wandb_writes_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    _run("wandb", tmp_path / "mine")
    wandb.teardown()  # its process writes on after a run is finished
    (file,) = tmp_path.rglob("*.wandb")
    content = file.read_bytes()
    for wanted in (b"probe/tones/knn", b"optim.lr", b"report.html", b"mine"):
        assert wanted in content


def test_trackio_writes_into_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    _run("trackio", tmp_path / "mine")
    (file,) = tmp_path.rglob("ssmast.db")
    rows = sqlite3.connect(file).execute("select metrics from metrics").fetchall()
    assert any(json.loads(row[0]).get("probe/tones/knn") == 0.75 for row in rows)


def test_mlflow_writes_into_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny cannot write to a file of its own")
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    _run("mlflow", tmp_path / "mine")
    (run,) = mlflow.search_runs(experiment_names=["ssmast"], output_format="list")
    assert run.info.run_name == "mine"
    assert (run.data.metrics["loss"], run.data.params["optim.lr"]) == (2.5, "0.1")


def test_a_tracker_that_is_missing_is_said_before_anything_is_done():
    with pytest.raises(UsageError, match="track=no_such needs a package that is missing; pip"):
        check_tracker("no_such")
    check_tracker("")


def test_a_tracker_that_fails_costs_a_warning_and_no_step(tmp_path, caplog):
    class Broken:
        def log(self, values, step):
            raise ConnectionError("no network")

        finish = None

    tracker = Tracker("tensorboard", tmp_path / "mine", CONFIG)
    tracker.close()
    tracker._tracker = Broken()
    with MetricsLog(tmp_path / "metrics.jsonl", steps=1, tracker=tracker) as log:
        log.write(1, {"loss": 1.0})
    assert "track=tensorboard: no network" in caplog.text
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 1.0}


def test_the_progress_line_shows_what_fits_and_the_alarm_first():
    shown = {"loss": "5.71", "acc": "0.0312", "knn": "0.5", "rank": "17", "unif": "-2.02",
             "clips/s": "120", "wait": "0.01"}  # fmt: skip
    assert (
        fitting(shown, 200)
        == "loss=5.71 acc=0.0312 knn=0.5 rank=17 unif=-2.02 clips/s=120 wait=0.01"
    )
    assert fitting(shown, 30) == "loss=5.71 acc=0.0312 knn=0.5"
    assert fitting(shown | {"ALARM": "collapse"}, 30) == "ALARM=collapse loss=5.71"


def test_a_terminal_of_80_columns_gets_whole_lines_and_a_history(tmp_path, monkeypatch, capfd):
    class Terminal:
        """Standard error, said to be a terminal."""

        encoding = "utf-8"
        text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("ssmast.training.metrics_log._HISTORY_EVERY", 0.0)
    shown = {"loss": "5.71", "acc": "0.0312", "rank": "17.1", "unif": "-2.02", "clips/s": "1.2e+03"}
    with MetricsLog(tmp_path / "metrics.jsonl", steps=12000) as log:
        for step in range(1, 4):
            log.advance(step, shown | {"ALARM": "collapse,uniformity"})
    lines = terminal.text.replace("\n", "\r").split("\r")
    assert max(len(line) for line in lines) <= COLUMNS
    said = capfd.readouterr().out + terminal.text
    kept = [line for line in said.split("\n") if "step 2/12000" in line]
    assert len(kept) == 1
    assert "ALARM=collapse,uniformity loss=5.71" in kept[0]


def test_the_time_left_is_not_reckoned_from_the_first_steps(tmp_path, monkeypatch, caplog):
    """They wait for workers that start: ten of them take a minute here, ten others one second."""
    clock = iter([60.0, 61.0, 80.0])
    monkeypatch.setattr("ssmast.training.metrics_log.time.monotonic", lambda: next(clock))
    with (
        caplog.at_level("INFO"),
        MetricsLog(tmp_path / "metrics.jsonl", steps=1000, plain_every=0.0) as log,
    ):
        for step in (10, 20, 210):
            log.advance(step, {"loss": "5.71"})
    said = [record.getMessage() for record in caplog.records if "step " in record.getMessage()]
    assert said == [
        "step 10/1000, loss=5.71",
        "step 20/1000, 1:38 left, loss=5.71",
        "step 210/1000, 1:19 left, loss=5.71",
    ]
