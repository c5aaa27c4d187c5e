import numpy as np
import pytest

from ssmast.encoder import load_encoder
from ssmast.evaluation.embed_files import main
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
