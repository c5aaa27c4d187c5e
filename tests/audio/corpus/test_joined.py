from pathlib import Path

import pytest

from ssmast.audio import open_words
from tests.audio.files import names_of, value_of, wav_bytes, write_tar

PARQUET = Path(__file__).parents[2] / "data" / "layouts" / "parquet"


def test_several_words_are_one_corpus_of_all_clips(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in (("a/1.wav", 1), ("a/deep/2.wav", 2), ("b/1.wav", 3), ("c.wav", 6)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(wav_bytes(value))
    Path("b/metadata.csv").write_text("path,label\n1.wav,dog\n")
    for number, tar in enumerate(("x.tar", "y.tar"), start=4):
        write_tar(Path(tar), [("1.wav", wav_bytes(number))])
    corpus = open_words("a\nx.tar\nb\ny.tar\nc.wav")
    named = ["a/1.wav", "a/deep/2.wav", "x.tar/1.wav", "b/1.wav", "y.tar/1.wav"]
    assert names_of(corpus) == [*named, str(tmp_path / "c.wav")]
    assert [value_of(corpus, i) for i in range(6)] == [1, 2, 4, 3, 5, 6]
    assert corpus.table is not None
    assert corpus.table["label"].to_pylist() == ["", "", "", "dog", "", ""]
    with pytest.raises(ValueError, match="some keep their sound in Parquet and others in tars"):
        open_words(f"x.tar\n{PARQUET}")


def test_a_stray_file_among_several_words_is_a_clip_that_can_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("1.wav").write_bytes(wav_bytes(1))
    Path("notes.md").write_text("no sound")
    assert len(open_words("1.wav\nnotes.md")) == 2
    with pytest.raises(FileNotFoundError, match="missing does not exist; wanted a folder"):
        open_words("1.wav\nmissing")
