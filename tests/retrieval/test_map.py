"""A map of any sounds: groups, points, a page that plays them, a table."""

import csv
import json
import logging
import re

import numpy as np
import pytest
import torch

from ssmast.audio import open_corpus
from ssmast.command import run_command
from ssmast.evaluation import clusters
from ssmast.prepare import prepare_corpus
from ssmast.retrieval import embed_files, map_files
from ssmast.settings import UsageError
from tests.retrieval.test_windows import recording  # noqa: F401 - a fixture
from tests.sets import write_set


def _drawn(page):
    """The data of the scatter."""
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', page.read_text())
    return json.loads(text)


def test_a_folder_becomes_a_page_and_a_table(encoder_folder, tmp_path):
    data, out = write_set(tmp_path / "sounds", num_clips=12, bad=1), tmp_path / "map"
    words = [str(data), f"encoder={encoder_folder}", f"out={out}", "layout=tsne", "groups=3"]
    assert map_files.main(words) == 0
    assert not (out / "map.npz.parts").exists()
    rows = list(csv.DictReader((out / "map.csv").open()))
    assert [row["file"] for row in rows] == [f"{i:03d}.wav" for i in range(11)]
    assert {row["group"] for row in rows} == {"group 1", "group 2", "group 3"}
    drawn = _drawn(out / "map.html")
    assert all(one.startswith("data:audio/ogg") for one in drawn["sound"])
    assert "t-SNE (seed 0) of 11 of 11 clips" in (out / "map.html").read_text()
    page = (out / "map.html").read_text()
    assert "Shown: groups of k-means, which are no classes" in page
    assert "<p hidden><label>Embedding" in page  # there is one alone
    assert (out / "map.npz.quarantine.csv").is_file()
    first = (out / "map.csv").read_text()
    assert map_files.main([*words, "audio_mb=0"]) == 0
    assert (out / "map.csv").read_text() == first  # the seed decides
    assert _drawn(out / "map.html")["sound"][0] == "../sounds/000.wav"


def test_windows_of_a_recording_are_points_that_play_their_part(
    recording,  # noqa: F811
    encoder_folder,
    tmp_path,
):
    out = tmp_path / "map"
    words = [str(recording), f"encoder={encoder_folder}", f"out={out}", "layout=tsne", "window=1"]
    assert run_command(map_files.main, [*words, "groups=2", "audio_mb=0"], name="map") == 0
    rows = list(csv.DictReader((out / "map.csv").open()))
    assert [(row["start"], row["stop"]) for row in rows[:2]] == [("0.0", "1.0"), ("1.0", "2.0")]
    assert _drawn(out / "map.html")["sound"][2] == "../rec/a.wav#t=2,3"


def test_clips_that_prepare_cut_are_named_after_their_place_in_the_recording(
    recording,  # noqa: F811
    encoder_folder,
    tmp_path,
):
    corpus, file, out = tmp_path / "corpus", tmp_path / "e.npz", tmp_path / "map"
    prepare_corpus(open_corpus(recording), corpus, segment_seconds=2.5, workers=1)
    words = [str(corpus), f"encoder={encoder_folder}", f"out={file}"]
    assert embed_files.main(words) == 0
    whole = ["a.wav#t=0,2.5", "a.wav#t=2.5,5", "a.wav#t=5,7"]
    assert embed_files.read_embeddings(file)[0] == whole
    assert embed_files.main([*words, "window=1"]) == 0
    names = embed_files.read_embeddings(file)[0]
    spans = ["0,1", "1,2", "1.5,2.5", "2.5,3.5", "3.5,4.5", "4,5", "5,6", "6,7"]
    assert names == [f"a.wav#t={span}" for span in spans]
    words = [str(corpus), f"embeddings={file}", f"out={out}", "layout=tsne", "groups=2"]
    assert map_files.main(words) == 0
    rows = list(csv.DictReader((out / "map.csv").open()))
    assert [f"{float(row['start']):g},{float(row['stop']):g}" for row in rows] == spans
    assert all(sound.startswith("data:audio/ogg") for sound in _drawn(out / "map.html")["sound"])


def test_what_embed_wrote_is_drawn_without_an_encoder(encoder_folder, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO, logger="ssmast")
    data, file = str(write_set(tmp_path / "sounds", num_clips=7, bad=1)), str(tmp_path / "e.npz")
    more = ["layout=tsne", "groups=2", "audio_mb=0"]
    for window in ([], ["window=0.4"]):
        words = [data, f"encoder={encoder_folder}", *window]
        assert embed_files.main([*words, f"out={file}"]) == 0
        assert map_files.main([*words, *more, f"out={tmp_path / 'a'}"]) == 0
        again = [data, *more, f"embeddings={file}", f"out={tmp_path / 'b'}"]
        with pytest.raises(UsageError, match="encoder= is for sounds to be embedded"):
            map_files.main([*again, f"encoder={encoder_folder}"])
        assert map_files.main(again) == 0
        tables, pages = ([tmp_path / a / f"map.{kind}" for a in "ab"] for kind in ("csv", "html"))
        assert tables[0].read_text() == tables[1].read_text()
        apart = [{k: v for k, v in _drawn(page).items() if k != "plot"} for page in pages]
        assert apart[0] == apart[1]
        assert f"1 clips are not in {file}; " in caplog.messages[-1]
    other = str(write_set(tmp_path / "other", num_clips=5))
    assert run_command(map_files.main, [other, f"embeddings={file}"], name="map") == 1
    assert "005.wav#t=0,0.357312, which is not among the sounds" in capsys.readouterr().err


def test_too_few_sounds_and_no_umap_are_said(encoder_folder, tmp_path, monkeypatch, capsys):
    data = write_set(tmp_path / "sounds", num_clips=3)
    words = [str(data), f"encoder={encoder_folder}", f"out={tmp_path / 'map'}"]
    assert run_command(map_files.main, words, name="map") == 1
    assert "needs at least 4 sounds, got 3; window= cuts long ones" in capsys.readouterr().err
    monkeypatch.setattr(clusters, "can_draw", lambda: False)
    assert run_command(map_files.main, [*words, "layout=umap"], name="map") == 2
    assert "pip install 'ssmast[umap]'" in capsys.readouterr().err


def test_tsne_keeps_heaps_apart():
    heaps = np.repeat(np.eye(3), 12, axis=0) * 20
    values = torch.from_numpy(heaps + np.random.default_rng(0).standard_normal((36, 3)))
    points = clusters.draw_tsne(values, seed=0)
    centres = points.reshape(3, 12, 2).mean(axis=1)
    spread = np.linalg.norm(points.reshape(3, 12, 2) - centres[:, None], axis=2).mean()
    apart = np.linalg.norm(centres[0] - centres[1])
    assert apart > 2 * spread
    with pytest.raises(ValueError, match="at least 4 clips"):
        clusters.draw_tsne(values[:3], seed=0)


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_sounds_that_are_all_the_same_are_drawn(value):
    points = clusters.draw_tsne(torch.full((6, 3), value), seed=0)
    assert np.isfinite(points).all()
