import json

import pytest
import soundfile

from ssmast.audio import open_corpus
from ssmast.audio.corpus.table import FORMAT, read_task_file


def write(folder, **content):
    folder.mkdir(exist_ok=True)
    (folder / "task.json").write_text(json.dumps({"format": FORMAT, **content}))
    (folder / "metadata.csv").write_text("path\nsub/a.wav\n")
    return folder


def audio(folder):
    (folder / "sub").mkdir(parents=True)
    soundfile.write(folder / "sub/a.wav", [0.1] * 100, 16000)
    return folder


@pytest.mark.parametrize("absolute", [True, False])
def test_the_audio_of_a_set_may_lie_elsewhere(tmp_path, absolute):
    elsewhere = audio(tmp_path / "elsewhere")
    folder = write(tmp_path / "set", audio=str(elsewhere) if absolute else "../elsewhere")
    corpus = open_corpus(folder)
    assert corpus.name(0) == "sub/a.wav"
    assert corpus.source(0).resolve() == (elsewhere / "sub/a.wav").resolve()
    beside = write(audio(tmp_path / "beside"))
    assert open_corpus(beside).listing_hash == corpus.listing_hash  # wherever it lies


def test_paths_stay_below_the_named_folder(tmp_path):
    audio(tmp_path / "elsewhere")
    folder = write(tmp_path / "set", audio="../elsewhere/sub")
    (folder / "metadata.csv").write_text("path\n../sub/a.wav\n")
    with pytest.raises(ValueError, match="leads out of its folder"):
        open_corpus(folder)


def test_a_folder_that_is_gone_is_one_sentence(tmp_path):
    folder = write(tmp_path / "set", audio="../gone")
    with pytest.raises(FileNotFoundError, match="which is no folder now"):
        open_corpus(folder)


@pytest.mark.parametrize("named", [3, "", "a\x00b", ["x"]])
def test_something_that_is_no_path_is_refused(tmp_path, named):
    folder = write(tmp_path / "set", audio=named)
    with pytest.raises(ValueError, match="must name a folder as `audio`"):
        open_corpus(folder)


def test_a_file_of_another_program_is_not_read(tmp_path):
    (tmp_path / "task.json").write_text('{"audio": "/nowhere"}')
    assert read_task_file(tmp_path) == {}
    (tmp_path / "task.json").write_text("[1]")
    assert read_task_file(tmp_path) == {}
    (tmp_path / "task.json").write_text("{")
    with pytest.raises(ValueError, match="no valid JSON"):
        read_task_file(tmp_path)
