import os
import shutil

import numpy as np
import pytest
import soundfile

from ssmast import cli
from ssmast.audio import open_corpus
from ssmast.encoder import load_encoder
from ssmast.evaluation.embed import embed_corpus
from ssmast.retrieval import embed_files
from ssmast.retrieval.embed_files import main, read_embeddings
from ssmast.settings import UsageError
from tests.held import held
from tests.sets import write_set


def test_a_folder_of_sound_becomes_one_file(encoder_folder, tmp_path, caplog):
    data = write_set(tmp_path / "data", num_clips=6, bad=1)
    out = tmp_path / "deep" / "e.npz"
    assert main([f"encoder={encoder_folder}", f"data={data}", f"out={out}"]) == 0
    with np.load(out) as found:  # no pickle needed
        assert found["embeddings"].shape == (5, 320)
        assert found["embeddings"].dtype == np.float32
        assert found["names"].tolist() == [f"00{i}.wav" for i in range(5)]
        assert found["rejected"].shape == (1, 2)
        embedding = load_encoder(encoder_folder).embed(data / "003.wav")
        np.testing.assert_allclose(found["embeddings"][3:4], embedding, atol=1e-5, rtol=1e-4)
    assert "left out: 005.wav" in caplog.text


def test_sound_above_what_the_encoder_hears_is_said(encoder_folder, tmp_path, caplog):
    calls = 0.3 * np.sin(2 * np.pi * 45000 / 192000 * np.arange(19200))
    soundfile.write(tmp_path / "bat.wav", calls, 192000)
    corpus = open_corpus(tmp_path)
    main([f"{tmp_path}", f"encoder={encoder_folder}", f"out={tmp_path}/e.npz"])
    for _ in range(2):  # a run probes the same clips again and again
        embed_corpus(load_encoder(encoder_folder), corpus)
    assert caplog.text.count("100% of the energy lies above front_end.f_max=") == 2


def test_missing_words_are_usage_errors(encoder_folder, tmp_path):
    with pytest.raises(UsageError, match="data= is missing"):
        main([f"encoder={encoder_folder}"])
    with pytest.raises(UsageError, match="must end in"):
        main([f"encoder={encoder_folder}", f"data={tmp_path}", "out=x.csv"])


def test_parquet_holds_the_same(encoder_folder, tmp_path):
    data = write_set(tmp_path / "data", num_clips=4)
    for name in ("e.npz", "e.parquet"):
        main([str(data), f"encoder={encoder_folder}", f"out={tmp_path / name}"])
    names, values, about = read_embeddings(tmp_path / "e.parquet")
    wanted = read_embeddings(tmp_path / "e.npz")
    assert (names, about) == (wanted[0], wanted[2])
    np.testing.assert_array_equal(values, wanted[1])
    with pytest.raises(ValueError, match="not written by `ssmast embed`"):
        read_embeddings(data / "metadata.csv")


def test_what_was_broken_off_goes_on_and_bad_files_are_written_down(
    encoder_folder, tmp_path, monkeypatch
):
    data = write_set(tmp_path / "data", num_clips=9, bad=1)
    out = tmp_path / "e.npz"
    words = [str(data), f"encoder={encoder_folder}", f"out={out}", "part=4"]
    embed, calls = embed_files._embed_rows, []

    def counted(encoder, corpus, rows, config, progress):
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return embed(encoder, corpus, rows, config, progress)

    monkeypatch.setattr(embed_files, "_embed_rows", counted)
    with pytest.raises(KeyboardInterrupt):
        main(words)
    assert not out.exists()
    assert main(words) == 0
    assert calls == [range(0, 4), range(4, 8), range(4, 8), range(8, 9)]
    names, values, _ = read_embeddings(out)
    assert names == [f"00{i}.wav" for i in range(8)]
    alone = load_encoder(encoder_folder).embed([data / name for name in names])
    np.testing.assert_allclose(values, alone, atol=1e-5, rtol=1e-4)
    assert "008.wav" in (tmp_path / "e.npz.quarantine.csv").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data", "e.npz", "e.npz.quarantine.csv",
    ]  # fmt: skip


def test_files_may_be_named_one_by_one(encoder_folder, tmp_path):
    data = write_set(tmp_path / "data", num_clips=3)
    out = tmp_path / "e.npz"
    main([str(data / "000.wav"), str(data / "002.wav"), f"encoder={encoder_folder}", f"out={out}"])
    assert [name.rpartition("/")[2] for name in read_embeddings(out)[0]] == ["000.wav", "002.wav"]


def test_a_file_that_was_mended_is_no_longer_called_bad(encoder_folder, tmp_path):
    data = write_set(tmp_path / "data", num_clips=6, bad=2)
    out, listed = tmp_path / "e.npz", tmp_path / "e.npz.quarantine.csv"
    words = [str(data), f"encoder={encoder_folder}", f"out={out}"]
    assert main(words) == 0
    assert len(listed.read_text().splitlines()) == 3
    shutil.copy(data / "000.wav", data / "005.wav")
    assert main(words) == 0
    assert [line.split(",")[0] for line in listed.read_text().splitlines()] == ["name", "004.wav"]
    shutil.copy(data / "001.wav", data / "004.wav")
    assert main(words) == 0
    assert not listed.exists()
    assert len(read_embeddings(out)[0]) == 6


def test_any_name_that_a_file_can_have_is_taken(encoder_folder, tmp_path):
    data = write_set(tmp_path / "data", num_clips=3)
    odd = data / os.fsdecode(b"\xff \x85.wav")
    spaced = data / " a .wav"
    (data / "000.wav").rename(odd)
    (data / "001.wav").rename(spaced)
    out = tmp_path / "e.npz"
    main([str(odd), str(spaced), f"encoder={encoder_folder}", f"out={out}"])
    names = [name.rpartition("/")[2] for name in read_embeddings(out)[0]]
    assert names == ["\\xff \\x85.wav", " a .wav"]
    with pytest.raises(FileNotFoundError, match=r"1 of 2 files .* not found.*nope\.wav"):
        main([str(spaced), str(data / "nope.wav"), f"encoder={encoder_folder}", f"out={out}"])


@pytest.mark.parametrize("changed", ["names", "embeddings"])
def test_embeddings_that_were_changed_are_refused(changed, encoder_folder, tmp_path):
    data, out = write_set(tmp_path / "data", num_clips=2), tmp_path / "e.npz"
    main([str(data), f"encoder={encoder_folder}", f"out={out}"])
    with np.load(out) as found:
        arrays = dict(found)
    arrays[changed] = arrays[changed][:1] if changed == "names" else arrays[changed] * np.nan
    np.savez(out, **arrays)
    with pytest.raises(ValueError, match=r"e\.npz was changed since .* wrote it"):
        read_embeddings(out)


def test_half_of_a_file_of_embeddings_is_refused_in_a_sentence(encoder_folder, tmp_path):
    data, out = write_set(tmp_path / "data", num_clips=2), tmp_path / "e.npz"
    main([str(data), f"encoder={encoder_folder}", f"out={out}"])
    whole = out.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:100] + b"\xff" * 100 + whole[200:]):
        out.write_bytes(broken)
        with pytest.raises(ValueError, match=r"e\.npz was not written by `ssmast embed`"):
            read_embeddings(out)


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_vectors_and_the_same_list_of_bad_files(
    encoder_folder, tmp_path, monkeypatch
):
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.chdir(tmp_path)  # relative paths mean the same to the processes
    write_set(tmp_path / "data", num_clips=9, bad=1)
    words = ["data", f"encoder={encoder_folder}", "part=2"]
    assert main([*words, "out=one.npz"]) == 0
    assert main([*words, "out=ray.npz", "engine=ray", "workers=2"]) == 0
    one, ray = (np.load(name) for name in ("one.npz", "ray.npz"))
    assert ray["names"].tolist() == one["names"].tolist()
    assert ray["rejected"].tolist() == one["rejected"].tolist() != []
    np.testing.assert_allclose(ray["embeddings"], one["embeddings"], rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "ray.npz.parts").exists()


def test_parts_that_other_machines_did_not_write_are_missed(encoder_folder, tmp_path, monkeypatch):
    data = write_set(tmp_path / "data", num_clips=3)
    monkeypatch.setattr(embed_files, "run_jobs", lambda *a, **k: iter(()))
    with pytest.raises(ValueError, match=r"2 of 2 parts are missing from .* must see the same"):
        main([str(data), f"encoder={encoder_folder}", f"out={tmp_path / 'e.npz'}", "part=2"])


def test_engines_are_not_mixed(encoder_folder, tmp_path, monkeypatch):
    words = [str(write_set(tmp_path / "data", num_clips=2)), f"out={tmp_path / 'e.npz'}"]
    with pytest.raises(UsageError, match="ray_address= needs engine=ray"):
        main([*words, "ray_address=host:6379"])
    state = embed_files.process_state()._replace(size=2)
    monkeypatch.setattr(embed_files, "process_state", lambda: state)
    with pytest.raises(ValueError, match="2 of `accelerate launch` run already"):
        main([*words, f"encoder={encoder_folder}", "engine=ray"])


@pytest.mark.parametrize("command", ["embed", "index", "map"])
def test_a_second_command_is_kept_from_an_output_while_it_is_written(
    command, encoder_folder, tmp_path, capsys
):
    data = write_set(tmp_path / "data", num_clips=5)
    out = tmp_path / ("out.npz" if command == "embed" else "out")
    words = [command, str(data), f"encoder={encoder_folder}", f"out={out}"]
    words += ["groups=2", "layout=tsne"] * (command == "map")
    imports = "from ssmast.retrieval.embed_files import sole_writer"
    with held(imports, "sole_writer(place)", out):
        assert cli.main(words) == 1
        assert f"another process is writing {out}; wait until" in capsys.readouterr().err
        assert not out.exists()
    assert cli.main(words) == 0
    assert out.exists()
    assert not list(tmp_path.glob("*.lock"))
    assert not list(tmp_path.glob(".*.lock"))
