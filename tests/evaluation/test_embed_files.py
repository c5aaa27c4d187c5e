import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from ssmast.audio import LogMel
from ssmast.encoder import Encoder, load_encoder
from ssmast.evaluation import embed_files
from ssmast.evaluation.embed_files import main, read_embeddings
from ssmast.model import create_model
from ssmast.settings import UsageError

from .conftest import write_set


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


def test_missing_words_are_usage_errors(encoder_folder, tmp_path):
    with pytest.raises(UsageError, match="encoder= is missing"):
        main([f"data={tmp_path}"])
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

    def counted(encoder, corpus, rows, config):
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return embed(encoder, corpus, rows, config)

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


@pytest.mark.slow
def test_embedding_a_folder_with_an_hour_in_it_takes_less_than_a_gigabyte(tmp_path):
    torch.manual_seed(0)
    nano = create_model("mast_nano", num_classes=0, input_size=(128, 96))
    Encoder(nano, LogMel(mean=-8.0, std=4.5)).save(tmp_path / "nano")
    (tmp_path / "data").mkdir()
    block = 0.1 * np.random.default_rng(0).standard_normal((60 * 44100, 2)).astype(np.float32)
    with soundfile.SoundFile(tmp_path / "data" / "hour.flac", "w", 44100, 2) as file:
        for _ in range(60):
            file.write(block)
    soundfile.write(tmp_path / "data" / "short.wav", block[:44100], 44100)
    code = (
        "import re, sys, pathlib;"
        "from ssmast.evaluation.embed_files import main;"
        "assert main(sys.argv[1:]) == 0;"
        "status = pathlib.Path('/proc/self/status').read_text();"
        "print(int(re.search(r'VmHWM:\\s*(\\d+) kB', status)[1]) * 1024)"
    )
    words = [str(tmp_path / "data"), f"encoder={tmp_path / 'nano'}", f"out={tmp_path / 'e.npz'}"]
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert len(read_embeddings(tmp_path / "e.npz")[0]) == 2
    # Held whole, the hour would be 230 MB more.
    assert int(done.stdout) < 1e9
