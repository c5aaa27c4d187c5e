"""The drawn views are the trainer's own, bit for bit, and the picture says what is what."""

import re

import numpy as np
import pytest
import soundfile
import torch

from ssmast.audio import LogMel, open_corpus
from ssmast.command import run_command
from ssmast.model import PatchDrop
from ssmast.settings import parse
from ssmast.training import show_views
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.inputs import segment_loader
from ssmast.training.objectives.ss_mast import SSMAST
from ssmast.training.show_views import at_step, dropped_patches, view_panels
from tests.training.states import state_of

_SMALL = (
    "recipe=smoke", "batch_size=4", "workers=0", "front_end.num_mels=32", "views.frames=64",
    "head.hidden=16", "head.dim=8", "head.predictor=16", "loss.queue_size=8",
    "views.mixup_memory=6", "views.waveform_augment=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    time = np.arange(16000) / 16000
    for i in range(12):
        tone = 0.3 * np.sin(2 * np.pi * 150 * 1.25**i * time) * np.exp(-time * (i % 4))
        soundfile.write(folder / f"{i}.flac", tone, 16000)
    return folder


def _config(*words: str) -> PretrainConfig:
    config = parse(PretrainConfig, [*_SMALL, *words], command="test", recipes=RECIPES)
    assert config is not None
    return config


def _equal(a: PatchDrop | None, b: PatchDrop | None) -> bool:
    assert a is not None
    assert b is not None
    pairs = zip(a[1:], b[1:], strict=True)
    return a.grid == b.grid and all(x is y or torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("words", [(), ("patch_drop.mode=random", "views.segments=1")])
def test_the_drawn_views_are_those_that_the_trainer_makes(audio, words):
    config = _config("steps=6", *words)
    corpus = open_corpus(audio)
    log_mel = LogMel(num_mels=32, mean=-9.0, std=4.0)
    state = state_of(SSMAST, config, num_clips=12, log_mel=log_mel)
    seen = []
    views = state.objective.views

    def spy(segments, step):
        seen.append(views(segments, step))
        return seen[-1]

    state.objective.views = spy
    items = SSMAST.items(config, corpus, None)
    for batch in segment_loader(config, items, first_step=0, steps=6, rank=0, num_ranks=1):
        state.train_step(batch)
    for step in (0, 1, 5):  # at 5 the memory of 6 has gone round three times
        twin, segments = at_step(state.objective, items, step=step)
        shown = twin.views(segments, step)
        for drawn, used in zip(shown.log_mels, seen[step].log_mels, strict=True):
            assert torch.equal(drawn, used)
        for drawn, used in zip(shown.drops, seen[step].drops, strict=True):
            assert _equal(drawn, used)
        panels = view_panels(twin, segments, step, clips=1)[0]
        assert torch.equal(panels[2].log_mel, seen[step].log_mels[0][0, 0])
        assert torch.equal(panels[4].dropped, dropped_patches(seen[step].drops[0]))
    assert not torch.equal(seen[5].log_mels[0], seen[1].log_mels[0])


def test_a_picture_of_every_clip_and_mode_is_written(audio, tmp_path, monkeypatch, caplog):
    drawn = []
    original = show_views.draw_panels

    def spy(out, rows, **kwargs):
        drawn.append((rows, kwargs))
        original(out, rows, **kwargs)

    monkeypatch.setattr(show_views, "draw_panels", spy)
    out = tmp_path / "new" / "views.png"
    words = [*_SMALL, f"data={audio}", f"out={out}", "clips=2", "front_end.stats_clips=8"]
    words += ["front_end.num_mels=64", "views.frames=96"]
    assert run_command(show_views.main, words, name="ssmast show-views") == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    rows, kwargs = drawn[0]
    assert len(rows) == len(kwargs["names"]) == 2
    assert all(name.endswith(".flac") for name in kwargs["names"])
    titles = [panel.title for panel in rows[0]]
    assert titles[:4] == ["segment 1", "segment 2", "view 1", "view 2"]
    assert titles[4:] == ["view 1, structured drop, in use", "view 1, random drop"]
    structured, single = rows[0][4].dropped, rows[0][5].dropped
    # Whole rows or columns go in one mode, a fifth of the patches whichever they are in the other.
    assert single.float().mean() == pytest.approx(0.2, abs=0.01)
    lines = [line for line in (*structured, *structured.T) if line.all()]
    assert lines


def test_a_run_shows_its_own_settings_and_a_missing_patch_drop_covers_nothing(audio, tmp_path):
    from ssmast.training import pretrain

    run = tmp_path / "run"
    words = [*_SMALL, "steps=2", f"data={audio}", "patch_drop.rate=0", "tensorboard=false"]
    words += ["front_end.stats_clips=8", "show_views=1", f"run={run}"]
    assert run_command(pretrain.main, words, name="ssmast pretrain") == 0
    written = (run / "views.png").read_bytes()
    again = tmp_path / "again.png"
    words = [f"run={run}", f"out={again}", "clips=1"]
    assert run_command(show_views.main, words, name="ssmast show-views") == 0
    assert again.read_bytes() == written
    page = (run / "report.html").read_text()
    assert "What the networks are fed" in page
    assert re.search(r'<img alt="views" [^>]*src="data:image/png;base64,iVBOR', page)


def test_a_run_that_is_not_there_is_an_error_and_no_other_settings_are_shown(tmp_path, capsys):
    words = [f"run={tmp_path}/nowhere", f"out={tmp_path}/views.png"]
    assert run_command(show_views.main, words, name="ssmast show-views") == 1
    assert "there is no run at" in capsys.readouterr().err
    assert not (tmp_path / "views.png").exists()


@pytest.mark.parametrize("word", ["clips=0", "step=-1", "--dry-run"])
def test_a_picture_of_nothing_is_refused(word, tmp_path, capsys):
    assert run_command(show_views.main, [word, f"out={tmp_path}/v.png"], name="show-views") == 2
    assert word.partition("=")[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_fine_tuned_run_is_told_where_its_picture_is(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("heads: {probe: true}\n")
    assert run_command(show_views.main, [f"run={tmp_path}"], name="show-views") == 2
    assert "its views.png shows what it was fed" in capsys.readouterr().err


def test_mel_bins_peak_where_the_axis_says():
    log_mel = LogMel(num_mels=64)
    peaks = log_mel.filterbank.argmax(dim=1) * 16000 / 1024
    assert (log_mel.centres_hz() - peaks).abs().max() <= 16000 / 1024
