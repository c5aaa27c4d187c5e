"""Finding sounds that are like one another."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmast.retrieval import embed_files, index, search
from ssmast.retrieval.index import Index
from ssmast.settings import UsageError
from tests.sets import write_set


def vectors(num: int, dim: int = 24) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((num, dim)).astype(np.float32)


def test_flat_is_the_cosine_of_centred_vectors(tmp_path):
    values = vectors(200) + 3
    names = [str(i) for i in range(200)]
    Index.build(values, names).save(tmp_path / "i")
    found = Index.load(tmp_path / "i").search(values[:5] * 1.0, top=4)
    centred = values - values.mean(axis=0)
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    for query, result in enumerate(found):
        cosines = units @ units[query]
        order = np.argsort(-cosines)[:4]
        assert [name for name, _ in result] == [names[i] for i in order]
        np.testing.assert_allclose([c for _, c in result], cosines[order], atol=1e-5)


def test_ivfpq_finds_most_of_what_flat_finds(tmp_path):
    centres = vectors(40)
    values = np.repeat(centres, 50, axis=0) + 0.2 * vectors(2000)
    names = [str(i // 50) for i in range(2000)]
    made = Index.build(values, names, kind="ivfpq")
    made.save(tmp_path / "i")
    assert made.kind == "ivfpq"
    assert (tmp_path / "i" / "index.faiss").stat().st_size < values.nbytes
    results = Index.load(tmp_path / "i").search(values[::97])
    for query, result in zip(range(0, 2000, 97), results, strict=True):
        assert sum(name == names[query] for name, _ in result) >= 8
    few = Index.build(values, names, kind="ivfpq", probes=1)  # a cell of them holds about 40
    assert [len(result) for result in few.search(values[::97], top=300)] == [300] * 21
    assert len(few.search(values[:1], top=9999)[0]) == 2000
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        Index.build(values, names, kind="ivfpq", probes=0)
    with pytest.raises(ValueError, match="at least 256 vectors, got 100"):
        Index.build(vectors(100), names[:100], kind="ivfpq")


@pytest.mark.parametrize(("shape", "count"), [((3, 4), 2), ((0, 4), 0), ((4,), 4)])
def test_vectors_and_names_must_fit(shape, count):
    with pytest.raises(ValueError, match=r"needs vectors \(n, D\) and n names, got shape"):
        Index.build(np.zeros(shape, dtype=np.float32), ["a"] * count)


def test_vectors_of_any_kind_are_indexed_under_names_of_any_kind(tmp_path):
    values, names = vectors(5), [Path(name) for name in "abcde"]
    Index.build(torch.from_numpy(values).double(), iter(names)).save(tmp_path / "i")
    found = Index.load(tmp_path / "i").search(torch.from_numpy(values[2:3]), top=1)
    assert found == [[("c", pytest.approx(1.0, abs=1e-6))]]
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "i").iterdir()} == {
        (tmp_path / "i" / "index.json").stat().st_mode & 0o777
    }


def test_what_would_be_searched_for_in_vain_is_refused():
    values, names = vectors(300), [str(i) for i in range(300)]
    with pytest.raises(ValueError, match="kind must be auto, flat or ivfpq, got 'hnsw'"):
        Index.build(values, names, kind="hnsw")
    with pytest.raises(ValueError, match="vectors must be finite"):
        Index.build(values * np.nan, names)
    with pytest.raises(ValueError, match="vectors must be finite"):
        Index.build(values, names).search(values[:1] * np.nan)
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        Index.build(values, names).search(values[:1], top=0)


def test_an_index_that_cannot_be_replaced_is_still_there(tmp_path, monkeypatch):
    Index.build(vectors(5), list("abcde")).save(tmp_path / "i")
    rename = Path.rename

    def refuse(path, target):
        if Path(target) == tmp_path / "i" and path.name != "old":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space left"):
        Index.build(vectors(3), list("xyz")).save(tmp_path / "i")
    assert Index.load(tmp_path / "i").names == list("abcde")


def test_files_are_indexed_one_by_one_whatever_their_names(encoder_folder, tmp_path):
    data = write_set(tmp_path / "data", num_clips=3)
    (data / "000.wav").rename(data / "take=1.wav")
    out, npz = tmp_path / "index", tmp_path / "e.npz"
    files = [str(data / "take=1.wav"), str(data / "002.wav")]
    assert index.main([*files, f"encoder={encoder_folder}", f"out={out}"]) == 0
    assert [name.rpartition("/")[2] for name in Index.load(out).names] == ["take=1.wav", "002.wav"]
    embed_files.main([files[0], f"encoder={encoder_folder}", f"out={npz}"])
    assert [name.rpartition("/")[2] for name in embed_files.read_embeddings(npz)[0]] == [
        "take=1.wav"
    ]


def test_a_folder_of_sound_is_indexed_and_searched(encoder_folder, tmp_path, capsys):
    data = write_set(tmp_path / "data", num_clips=12, bad=1)
    out = tmp_path / "index"
    assert index.main([str(data), f"encoder={encoder_folder}", f"out={out}"]) == 0
    assert search.main([str(data / "004.wav"), f"index={out}", "top=3", "json=true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0] == {"name": "004.wav", "cosine": pytest.approx(1.0, abs=1e-4)}
    assert len(found) == 3
    assert "011.wav" in (tmp_path / "index.quarantine.csv").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data", "index", "index.quarantine.csv",
    ]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == [
        "index.faiss", "index.json", "mean.safetensors", "names.json",
    ]  # fmt: skip
    npz = tmp_path / "e.npz"
    embed_files.main([str(data), f"encoder={encoder_folder}", f"out={npz}"])
    words = [f"embeddings={npz}", f"encoder={encoder_folder}", f"out={tmp_path / 'second'}"]
    assert index.main(words) == 0
    assert search.main([str(data / "004.wav"), f"index={tmp_path / 'second'}", "top=3"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "1.0000  004.wav"
    (out / "names.json").write_text("[]")
    with pytest.raises(ValueError, match=r"names.json is damaged"):
        Index.load(out)
    about = json.loads((out / "index.json").read_text())
    for changed in (None, [], 3, {**about, "sha256": None}, {**about, "encoder": 3}):
        (out / "index.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=r"index.json is damaged; index again"):
            Index.load(out)
    npz.write_bytes(b"")
    with pytest.raises(ValueError, match="was not written by `ssmast embed`"):
        embed_files.read_embeddings(npz)


def test_an_index_of_vectors_alone_does_not_say_its_encoder(tmp_path):
    Index.build(vectors(5), "abcde").save(tmp_path / "i")
    for further in ([], ["--dry-run"]):
        with pytest.raises(ValueError, match="does not say its encoder and encoder_sha256"):
            search.main([str(tmp_path / "a.wav"), f"index={tmp_path / 'i'}", *further])


def test_every_clip_that_is_left_out_is_counted_and_none_of_an_index_before(
    encoder_folder, tmp_path, caplog
):
    caplog.set_level("INFO")
    listed = tmp_path / "index.quarantine.csv"
    words = [f"encoder={encoder_folder}", f"out={tmp_path / 'index'}"]
    bad = write_set(tmp_path / "bad", num_clips=16, bad=12)
    assert index.main([str(bad), *words]) == 0
    assert f"4 vectors (flat) in {tmp_path / 'index'}, 12 clips left out ({listed})" in caplog.text
    assert index.main([str(write_set(tmp_path / "good", num_clips=4)), *words]) == 0
    assert not listed.exists()


def test_embeddings_are_kept_until_the_index_is_written(encoder_folder, tmp_path, monkeypatch):
    data = write_set(tmp_path / "data", num_clips=6)
    words = [str(data), f"encoder={encoder_folder}", f"out={tmp_path / 'index'}"]
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(Index, "save", lambda *_: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space"):
            index.main(words)
    with monkeypatch.context() as patch:
        patch.setattr(embed_files, "_embed_rows", lambda *_: pytest.fail("embedded again"))
        assert index.main(words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "index"]


def test_a_place_where_no_index_can_be_is_refused_before_anything_is_embedded(
    encoder_folder, tmp_path, monkeypatch
):
    data = write_set(tmp_path / "data", num_clips=3)
    monkeypatch.setattr(embed_files, "_embed_rows", lambda *_: pytest.fail("embedded"))
    for out, said in ((data, "holds files but no index"), (data / "000.wav", "is a file")):
        with pytest.raises(FileExistsError, match=said):
            index.main([str(data), f"encoder={encoder_folder}", f"out={out}"])


def test_what_is_missing_is_said(tmp_path, encoder_folder):
    with pytest.raises(FileNotFoundError, match="no index at"):
        search.main(["a.wav", f"index={tmp_path}"])
    with pytest.raises(UsageError, match="window= is for sounds to be embedded"):
        index.main(["embeddings=e.npz", f"encoder={encoder_folder}", "out=x", "window=1"])
    with pytest.raises(UsageError, match="json=true is for the terminal"):
        search.main(["a.wav", f"index={tmp_path}", "json=true", "out=x.csv"])
    with pytest.raises(UsageError, match="not both"):
        index.main([f"encoder={encoder_folder}", "out=x"])
