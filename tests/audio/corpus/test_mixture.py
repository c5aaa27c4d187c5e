import numpy as np
import pytest
import soundfile

from ssmast.audio import SegmentDataset, open_corpus
from ssmast.audio.corpus.cache import cache_decoded
from ssmast.audio.corpus.corpus import BLOCK, Mixture

RATE = 16000


def folder_of(path, count, *, level, suffix="wav"):
    path.mkdir()
    rng = np.random.default_rng(level)
    for number in range(count):
        noise = rng.uniform(-1, 1, 800) * level / 10
        soundfile.write(path / f"{number:03d}.{suffix}", noise, RATE, subtype="PCM_16")
    return path


@pytest.fixture
def folders(tmp_path):
    return [
        folder_of(tmp_path / name, count, level=level)
        for name, count, level in (("a", 30, 1), ("b", 7, 3), ("c", 12, 5))
    ]


def mixture_of(folders, weights):
    return Mixture([(open_corpus(f), w) for f, w in zip(folders, weights, strict=True)])


def test_every_block_holds_the_exact_shares(folders):
    mixture = mixture_of(folders, [0.5, 0.3, 0.2])
    assert len(mixture) == 49
    for block in (0, 3):
        positions = np.arange(block * BLOCK, (block + 1) * BLOCK)
        _, clip = mixture.sample_at(positions, seed=1)
        part = np.searchsorted([30, 37], clip, side="right")
        assert np.bincount(part).tolist() == [32768, 19661, 13107]
        # Shares hold in short stretches too: 400 draws, five standard deviations.
        assert abs((part[:400] == 1).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 400)


def test_each_part_is_walked_through_without_repeat_or_gap(folders):
    mixture = mixture_of(folders, [5, 1, 1])
    epoch, clip = mixture.sample_at(np.arange(2 * BLOCK), seed=4)
    for first, size in ((0, 30), (30, 7), (37, 12)):
        here = (clip >= first) & (clip < first + size)
        pairs, counts = np.unique(np.stack([epoch[here], clip[here]]), axis=1, return_counts=True)
        assert (counts == 1).all()
        last = pairs[0].max()
        full = [np.sum(pairs[0] == e) for e in range(last)]
        assert full == [size] * last


def test_the_order_is_computed_and_differs_by_seed(folders):
    mixture = mixture_of(folders, [1, 1, 2])
    positions = np.array([0, 5, BLOCK - 1, BLOCK, 10**9 * BLOCK + 17])
    epoch, clip = mixture.sample_at(positions, seed=9)
    for i, position in enumerate(positions.tolist()):
        assert mixture.sample_at(position, seed=9) == (epoch[i], clip[i])
    _, other = mixture.sample_at(np.arange(300), seed=10)
    assert (other != mixture.sample_at(np.arange(300), seed=9)[1]).any()


def test_clips_are_those_of_the_parts(folders):
    mixture = mixture_of(folders, [1, 1, 1])
    assert mixture.name(0) == "0:000.wav"
    assert mixture.name(36) == "1:006.wav"
    assert mixture.source(37) == folders[2] / "000.wav"
    assert len(list(mixture.files())) == 49
    with pytest.raises(IndexError):
        mixture.name(49)
    with pytest.raises(ValueError, match="cannot be selected"):
        mixture.select(split="train")
    assert mixture.listing_hash == mixture_of(folders, [2, 2, 2]).listing_hash
    assert mixture.listing_hash != mixture_of(folders, [2, 1, 1]).listing_hash
    nested = Mixture([(mixture, 1), (open_corpus(folders[0]), 1)])
    assert len(nested) == 79
    assert nested.name(78) == "1:029.wav"


def test_training_draws_by_weight_and_replaces_within_the_part(folders):
    (folders[1] / "003.wav").write_bytes(b"no sound")
    mixture = mixture_of(folders, [1, 2, 1])
    dataset = SegmentDataset(mixture, num_samples=400, sample_rate=RATE, seed=2)
    rejected = 0
    for position in range(120):
        item = dataset[position]
        _, drawn = mixture.sample_at(position, seed=2)
        assert (30 <= item["clip"] < 37) == (30 <= drawn < 37)
        peak = float(item["waveform"].abs().max())
        assert (
            0.05
            < peak
            < {0: 0.11, 1: 0.31, 2: 0.51}[int(np.searchsorted([30, 37], drawn, "right"))]
        )
        rejected += len(item["rejected"])
        assert {name for name, _ in item["rejected"]} <= {"1:003.wav"}
    assert rejected >= 1


def test_a_mixture_is_written_as_yaml_or_given_as_text(folders, tmp_path):
    text = f"[{{path: {folders[0]}, weight: 3}}, {{path: {folders[1]}}}]"
    assert len(open_corpus(text)) == 37
    file = tmp_path / "mix.yaml"
    file.write_text("- path: a\n  weight: 2\n- path: b\n- c\n")  # relative to the file
    mixture = open_corpus(file)
    assert len(mixture) == 49
    assert mixture.listing_hash == mixture_of(folders, [2, 1, 1]).listing_hash


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "must be a list of `{path: FOLDER, weight: 1}`"),
        ("[{weight: 1}]", "must be a list of"),
        ("[{path: a, wieght: 1}]", "must be a list of"),
        ("[{path: a, weight: 0}]", "weight of a must be a number above 0, got 0"),
        ("[{path: a, weight: .nan}]", "must be a number above 0"),
        ("[{path: a, weight: true}]", "must be a number above 0, got True"),
        ("[{path: 3}]", "path that is no text"),
        ("[{path: a", "cannot be read as plain YAML"),
        ("[!!python/object/apply:os.system [touch hacked]]", "cannot be read as plain YAML"),
        ("[{path: 'pipe:cat a'}]", "no command and no chain"),
    ],
)
def test_a_wrong_mixture_says_what_is_wrong(text, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=reason):
        open_corpus(text)
    (tmp_path / "mix.yml").write_text(text)
    with pytest.raises(ValueError, match=reason):
        open_corpus(tmp_path / "mix.yml")
    assert not (tmp_path / "hacked").exists()


def test_a_weight_too_small_to_appear_is_refused(folders):
    with pytest.raises(ValueError, match=r"a weight of 1e-06 out of 2 is too small"):
        mixture_of(folders, [1, 1, 1e-6])
    with pytest.raises(FileNotFoundError, match="a mixture was wanted"):
        open_corpus("nowhere.yaml")


def test_parts_are_decoded_once_each(tmp_path):
    parts = [folder_of(tmp_path / "w", 3, level=2)]
    (tmp_path / "o").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).uniform(-0.5, 0.5, 4000)
        soundfile.write(tmp_path / "o" / f"{number}.ogg", noise, RATE)
    mixture = mixture_of([*parts, tmp_path / "o"], [1, 1])
    cached = cache_decoded(mixture, tmp_path / "cache", sample_rate=RATE)
    assert cached.listing_hash == mixture.listing_hash
    assert cached.source(0) == mixture.source(0)
    assert isinstance(cached.source(3), bytes)
    assert cached.sample_at(77, seed=0) == mixture.sample_at(77, seed=0)
