"""Windows of recordings: their vectors, names and tables, and search by several examples."""

import csv
import logging

import numpy as np
import pytest
import soundfile

from ssmast import progress
from ssmast.audio import long
from ssmast.command import run_command
from ssmast.encoder import Encoder, load_encoder
from ssmast.retrieval import embed_files, index, search
from ssmast.retrieval.index import Index
from tests.retrieval.test_index import vectors


@pytest.fixture
def recording(tmp_path):
    """Seven seconds of near silence, but a tone from 2 to 3 s, another height from 4 to 5 s."""
    sound = 0.001 * np.random.default_rng(0).standard_normal(16000 * 7)
    time = np.arange(16000) / 16000
    sound[2 * 16000 : 3 * 16000] += 0.5 * np.sin(2 * np.pi * 300 * time)
    sound[4 * 16000 : 5 * 16000] += 0.5 * np.sin(2 * np.pi * 3000 * time)
    (tmp_path / "rec").mkdir()
    soundfile.write(tmp_path / "rec" / "a.wav", sound, 16000)
    return tmp_path / "rec"


@pytest.mark.parametrize("is_long", [False, True])
def test_every_window_has_the_vector_of_its_own_sound(
    recording, encoder_folder, tmp_path, monkeypatch, is_long
):
    if is_long:
        monkeypatch.setattr(long, "LONG_SECONDS", 1.0)
        monkeypatch.setattr(long, "_SHORT_BYTES", 1)
    out = tmp_path / "e.npz"
    words = [str(recording), f"encoder={encoder_folder}", f"out={out}", "window=2", "hop=1.5"]
    assert embed_files.main([*words, "format=raven"]) == 0
    names, values, _ = embed_files.read_embeddings(out)
    spans = ["0,2", "1.5,3.5", "3,5", "4.5,6.5", "5,7"]
    assert names == [f"a.wav#t={span}" for span in spans]
    sound, _ = soundfile.read(recording / "a.wav", dtype="float32")
    wanted = load_encoder(encoder_folder).embed(sound[24000:56000], 16000)
    np.testing.assert_allclose(values[1:2], wanted, atol=1e-5)
    table = tmp_path / "e.npz.tables" / "a.wav.selections.txt"
    rows = list(csv.DictReader(table.open(), delimiter="\t"))
    assert [row["Label"] for row in rows] == list("01234")
    assert (rows[2]["Begin Time (s)"], rows[2]["Begin Path"]) == ("3.000000", "a.wav")


def test_embedding_says_how_far_it_is_within_a_long_file(
    recording, encoder_folder, tmp_path, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, logger="ssmast")
    monkeypatch.setattr(progress, "_PLAIN_EVERY", 0.0)
    words = [str(recording), f"encoder={encoder_folder}", f"out={tmp_path / 'e.npz'}", "window=1"]
    assert embed_files.main([*words, "batch_seconds=1"]) == 0
    said = [one.split(",")[0] for one in caplog.messages if one.startswith("embedding: ")]
    shares = ("0.14", "0.29", "0.43", "0.57", "0.71", "0.86", "1")
    assert list(dict.fromkeys(said)) == [f"embedding: {share} of 1 clips" for share in shares]


def test_embedding_says_how_far_it_is_within_a_long_file_that_is_not_cut(
    encoder_folder, tmp_path, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, logger="ssmast")
    monkeypatch.setattr(progress, "_PLAIN_EVERY", 0.0)
    for name, seconds in (("a.wav", 100), ("b.wav", 1)):
        noise = np.random.default_rng(0).normal(0, 0.1, 16000 * seconds)
        soundfile.write(tmp_path / name, noise, 16000)
    words = [str(tmp_path), f"encoder={encoder_folder}", f"out={tmp_path / 'e.npz'}"]
    assert embed_files.main([*words, "batch_seconds=25"]) == 0
    said = [one.split()[1] for one in caplog.messages if one.startswith("embedding: ")]
    shares = list(map(float, said))
    assert shares == sorted(shares)
    assert shares[-1] == 2
    assert sum(0 < share < 1 for share in shares) > 3


def test_a_window_whose_vector_is_not_finite_takes_its_clip_out(
    recording, encoder_folder, tmp_path, monkeypatch
):
    embed_clips = Encoder.embed_clips

    def broken(self, clips, **words):
        found = embed_clips(self, clips, **words)
        found[-1, 0] = float("nan") if len(clips[-1]) < 16000 * 7 else 0.0
        return found

    monkeypatch.setattr(Encoder, "embed_clips", broken)
    words = [str(recording), f"encoder={encoder_folder}", f"out={tmp_path / 'e.npz'}", "window=2"]
    with pytest.raises(ValueError, match=r"none of 1 clips .* its embedding is not finite"):
        embed_files.main(words)


def test_windows_are_found_by_examples_and_reviewed(recording, encoder_folder, tmp_path, capsys):
    out, table = tmp_path / "index", tmp_path / "found.csv"
    words = [str(recording), f"encoder={encoder_folder}", f"out={out}", "window=1"]
    assert index.main(words) == 0
    low, high = f"{recording}/a.wav#t=2,3", f"{recording}/a.wav#t=4,5"
    assert run_command(search.main, [low, f"index={out}", "top=2"], name="search") == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("a.wav#t=2,3")
    words = [low, high, f"index={out}", "top=7", f"out={table}"]
    assert run_command(search.main, words, name="search") == 0
    rows = list(csv.DictReader(table.open()))
    assert {(row["start"], row["stop"]) for row in rows[:2]} == {("2", "3"), ("4", "5")}
    assert [row["rank"] for row in rows] == list("1234567")
    for row in rows:
        row["like"] = {"2": "y", "4": "n"}.get(row["start"], "")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    words = [low, f"reviewed={table}", f"index={out}", "top=7"]
    assert run_command(search.main, words, name="search") == 0
    said = capsys.readouterr().out.splitlines()
    assert (said[0].split("#t=")[1], said[-1].split("#t=")[1]) == ("2,3", "4,5")
    table.write_text(table.read_text(), encoding="utf-16")  # as spreadsheets save it
    assert run_command(search.main, words, name="search") == 0
    assert capsys.readouterr().out.splitlines() == said
    words = [low, f"not_like=['{high}']", f"index={out}", "top=7", f"out={tmp_path / 'x.txt'}"]
    assert run_command(search.main, words, name="search") == 0
    selections = list(csv.DictReader((tmp_path / "x.txt").open(), delimiter="\t"))
    assert (selections[0]["Begin Time (s)"], selections[-1]["End Time (s)"]) == (
        "2.000000", "5.000000",
    )  # fmt: skip
    table.write_text("name,like\na.wav,maybe\n")
    words = [low, f"reviewed={table}", f"index={out}"]
    assert run_command(search.main, words, name="search") == 1
    assert "like must be y, n or empty, got 'maybe'" in capsys.readouterr().err
    for content, reason in ((b"name,like\n\xe9.wav,y\n", "save it as UTF-8"), (b"", "no columns")):
        table.write_bytes(content)
        assert run_command(search.main, words, name="search") == 1
        said = capsys.readouterr().err
        assert str(table) in said
        assert reason in said


@pytest.mark.parametrize("kind", ["flat", "ivfpq"])
def test_several_examples_rank_by_mean_cosine_less_half_the_others(kind):
    values = vectors(300) + 2
    made = Index.build(values, [str(i) for i in range(300)], kind=kind, probes=1000)
    query = made.query(values[:3], values[3:5])
    (found,) = made.search(query, top=300)
    units = values - values.mean(axis=0)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    wanted = units @ units[:3].T.mean(axis=1) - 0.5 * units @ units[3:5].T.mean(axis=1)
    if kind == "flat":
        assert [int(name) for name, _ in found] == np.argsort(-wanted).tolist()
    back = made.vectors(["7", "2"]) - values.mean(axis=0)
    assert (back * units[[7, 2]]).sum(axis=1).min() > (0.999 if kind == "flat" else 0.8)
    with pytest.raises(ValueError, match="x is not in the index"):
        made.vectors(["x"])
