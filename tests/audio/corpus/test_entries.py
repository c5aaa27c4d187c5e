import pickle

import numpy as np
import pyarrow as pa
import pytest

from ssmast.audio import Corpus
from ssmast.audio.corpus.entries import ArrayEntries, IndexFile, write_index


def arrays(count):
    rng = np.random.default_rng(count)
    names = [f"clip ž {n}".encode() * (1 + n % 3) + b"\xff.flac" for n in range(count)]
    return {
        "names": pa.array(names, type=pa.large_binary()),
        "sizes": rng.integers(1, 1 << 40, count),
        "shard": rng.integers(0, 3, count).astype(np.int32),
        "offset": rng.integers(0, 1 << 50, count),
    }


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_an_index_gives_what_the_arrays_give(tmp_path, count):
    data = arrays(count)
    write_index(tmp_path / "i", ArrayEntries(**data), shards=["a", "b", "c"], listing_hash="f")
    one, other = IndexFile(tmp_path / "i"), ArrayEntries(**data)
    for index in (one, pickle.loads(pickle.dumps(one))):
        assert [index[i] for i in range(count)] == [other[i] for i in range(count)]
    assert len(one) == count
    assert one.suffixes() == other.suffixes() == {".flac"}
    assert one.shards == ["a", "b", "c"]
    rows = np.array([count - 1, 0])
    taken = one.take(rows)
    assert [taken[i] for i in range(2)] == [other[int(i)] for i in rows]


def test_an_index_is_small_wherever_it_goes(tmp_path):
    write_index(tmp_path / "i", ArrayEntries(**arrays(5000)), shards=["a"], listing_hash="f")
    corpus = Corpus(root=tmp_path, entries=IndexFile(tmp_path / "i"), shards=[tmp_path / "a"])
    assert len(pickle.dumps(corpus)) < 1000


def test_a_damaged_index_is_noticed(tmp_path):
    path = tmp_path / "i"
    write_index(path, ArrayEntries(**arrays(50)), shards=["a"], listing_hash="f")
    data = path.read_bytes()
    far = data[:8] + (1 << 29).to_bytes(8, "little") + data[16:]
    for broken in (b"", b"hello", data[:-1], data + b"x", data[: len(data) // 2], far):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="run prepare again"):
            IndexFile(path)
    with pytest.raises(FileNotFoundError):
        IndexFile(tmp_path / "none")
