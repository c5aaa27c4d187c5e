"""Scores while training: what they say, and that nothing which trains notices."""

import random

import numpy as np
import pytest
import torch

from ssmast.encoder import Encoder
from ssmast.training.checkpoint import checkpoints
from ssmast.training.metrics_log import read_metrics
from ssmast.training.online_probe import OnlineProbe, scores_shown
from ssmast.training.step import TrainingState
from tests.sets import write_set
from tests.training.test_pretrain import _assert_same_state, _dies_at, _run, audio, finished

__all__ = ["audio", "finished"]  # fixtures

_KEYS = {f"probe/tones/{what}" for what in ("knn", "linear", "chance")}


def _probe(data, encoder, **changes) -> OnlineProbe:
    settings = {"tasks": "all", "every": 2, "max_clips": 24}
    settings |= {"make_encoder": lambda: encoder}
    return OnlineProbe(data=str(data), **(settings | changes))


def _drawing(encoder: Encoder) -> Encoder:
    """The encoder, after a draw from every global generator."""
    random.random()
    np.random.random()
    torch.rand(1)
    return encoder


def test_it_scores_and_leaves_modes_and_generators_as_they_were(sets, tiny_encoder):
    probe = _probe(sets / "tones", tiny_encoder, make_encoder=lambda: _drawing(tiny_encoder))
    tiny_encoder.train()
    tiny_encoder.log_mel.eval()  # modes differ, and each must come back
    modes = [module.training for module in tiny_encoder.modules()]
    before = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())
    scores = probe.run(step=0)
    assert scores.keys() == _KEYS | {"probe/seconds"}
    assert scores["probe/tones/chance"] in (0.25, 0.375)  # 8 clips of 3 classes
    assert scores["probe/tones/linear"] > 0.8  # three pitches are easily told apart
    assert [module.training for module in tiny_encoder.modules()] == modes
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    again = _probe(sets / "tones", tiny_encoder).run(step=0)
    assert {key: again[key] for key in _KEYS} == {key: scores[key] for key in _KEYS}


def test_the_scores_are_those_of_the_suite_on_the_same_clips(sets, tiny_encoder):
    from ssmast.audio import open_corpus
    from ssmast.evaluation.embed import embed_corpus
    from ssmast.evaluation.labelled_set import small_sample
    from ssmast.evaluation.probe import PROTOCOLS, run_probe
    from ssmast.evaluation.read_set import load_set

    scores = _probe(sets / "tones", tiny_encoder).run(step=0)
    task = small_sample(load_set(sets, "tones"), max_clips=24)
    whole = embed_corpus(tiny_encoder, open_corpus(sets / "tones"), workers=1)
    features = whole.values[torch.from_numpy(task.rows)]
    for protocol in ("knn", "linear"):
        expected = run_probe(features, task, protocol=PROTOCOLS[protocol], num_seeds=1).mean
        assert scores[f"probe/tones/{protocol}"] == expected


def test_it_is_due_at_the_ends_and_every_so_often_once(sets, tiny_encoder):
    history = [{"step": 0, "probe/tones/knn": 0.4}, {"step": 2, "loss": 1.0}]
    probe = _probe(sets / "tones", tiny_encoder, every=3, history=history)
    assert [step for step in range(8) if probe.is_due(step, steps=7)] == [3, 6, 7]
    assert not _probe(sets / "tones", tiny_encoder, history=history).is_due(0, steps=7)


def test_all_sets_of_a_folder_are_scored_and_shown_as_one(sets, tiny_encoder):
    scores = _probe(sets, tiny_encoder, max_clips=12).run(step=4)
    assert {key.split("/")[1] for key in scores} == {"tones", "more_tones", "seconds"}
    mean = (scores["probe/tones/knn"] + scores["probe/more_tones/knn"]) / 2
    assert scores_shown(scores)["knn"] == f"{mean:.3f}"
    assert scores_shown({}) == {}


def test_unreadable_clips_are_left_out_and_an_unreadable_set_is_refused(
    tmp_path, tiny_encoder, caplog
):
    write_set(tmp_path / "some", bad=6)
    probe = _probe(tmp_path / "some", tiny_encoder, max_clips=1000)
    assert "clips are left out; the first: 0" in caplog.text
    assert probe.run(step=0)["probe/some/linear"] > 0.5
    write_set(tmp_path / "none", bad=48)
    with pytest.raises(ValueError, match="clips could be embedded"):
        _probe(tmp_path / "none", tiny_encoder)


def test_an_encoder_gone_astray_gives_no_score_but_no_error_either(sets, tiny_encoder, caplog):
    state = {name: torch.full_like(x, torch.nan) for name, x in tiny_encoder.state_dict().items()}
    lost = Encoder(tiny_encoder.backbone, tiny_encoder.log_mel)
    kept = {name: x.clone() for name, x in tiny_encoder.state_dict().items()}
    try:
        lost.load_state_dict(state)
        scores = _probe(sets / "tones", lost).run(step=8)
    finally:
        tiny_encoder.load_state_dict(kept)
    assert scores.keys() == {"probe/tones/chance", "probe/seconds"}
    assert "no score of tones at step 8" in caplog.text


@pytest.fixture(scope="module")
def probed(audio, sets, tmp_path_factory):
    """The run `finished`, with scores on the way."""
    run = tmp_path_factory.mktemp("probed") / "run"
    words = (f"probe.data={sets / 'tones'}", "probe.every=4", "probe.max_clips=24")
    assert _run(*words, audio=audio, run=run) == 0
    return run


def test_a_run_with_scores_has_the_bits_of_one_without(finished, probed):
    _assert_same_state(finished, probed)


def test_scores_are_logged_drawn_and_begin_with_the_untrained_encoder(probed, finished):
    rows = [row for row in read_metrics(probed / "metrics.jsonl") if "probe/seconds" in row]
    assert [row["step"] for row in rows] == [0, 4, 6]
    assert all(row.keys() == _KEYS | {"step", "probe/seconds"} for row in rows)
    page = (probed / "report.html").read_text()
    assert "tones: linear layer while training (accuracy)" in page
    assert ">untrained<" in page
    assert ">chance<" in page
    assert "while training" not in (finished / "report.html").read_text()


def test_a_killed_run_goes_on_without_scoring_twice(audio, sets, probed, tmp_path, monkeypatch):
    run, words = tmp_path / "run", (f"probe.data={sets / 'tones'}", "probe.max_clips=24")
    step = TrainingState.train_step
    monkeypatch.setattr(TrainingState, "train_step", _dies_at(step, 6))
    with pytest.raises(RuntimeError, match="killed"):
        _run(*words, "probe.every=4", audio=audio, run=run)
    monkeypatch.setattr(TrainingState, "train_step", step)
    assert _run(*words, "probe.every=4", "resume=auto", audio=audio, run=run) == 0
    _assert_same_state(probed, run)
    strip = [
        [{k: v for k, v in row.items() if "second" not in k and k != "data_wait"} for row in rows]
        for rows in (read_metrics(probed / "metrics.jsonl"), read_metrics(run / "metrics.jsonl"))
    ]
    assert strip[0] == strip[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probe.data=/no/such/set"], "no folder of labelled sets at /no/such/set"),
        (["probe.data={sets}/tones", "probe.max_clips=5"], "probe.max_clips=5 is too few"),
        (["probe.data={sets}", "probe.tasks=birds"], "no labelled set 'birds'"),
        (["probe.data={sets}/tones", "probe.tasks=tones:label=species"], "no column 'species'"),
    ],
)
def test_an_unusable_set_is_an_error_before_the_first_step(
    words, message, audio, sets, tmp_path, capsys
):
    run = tmp_path / "run"
    assert _run(*[word.format(sets=sets) for word in words], audio=audio, run=run) == 1
    assert message in capsys.readouterr().err
    assert checkpoints(run / "checkpoints") == []
    assert read_metrics(run / "metrics.jsonl") == []
