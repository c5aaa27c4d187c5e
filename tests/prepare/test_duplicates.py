import io

import numpy as np
import pytest
import soundfile
import torch

from ssmast.audio import LogMel, open_corpus, read_audio
from ssmast.prepare import duplicates
from ssmast.prepare.duplicates import changes, exact_duplicates, fingerprint, near_duplicates
from tests.prepare.conftest import RATE, tones

LOG_MEL = LogMel()


def print_of(audio):
    with torch.no_grad():
        return fingerprint(LOG_MEL.log_mel(torch.from_numpy(np.float32(audio))[None])[0, 0])


def cosine(one, other):
    one, other = one.astype(float), other.astype(float)
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def through(audio, kind, subtype, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, RATE, format=kind, subtype=subtype, **options)
    return read_audio(buffer.getvalue())


def test_the_first_of_equal_clips_is_the_one():
    assert exact_duplicates([b"a", b"b", b"a", b"c", b"b", b"a"]).tolist() == [-1, -1, 0, -1, 1, 0]


def test_a_fingerprint_does_not_hear_level_codec_or_faint_noise():
    audio = tones(4, seed=0)
    own = print_of(audio)
    assert own.shape == (512,)
    assert abs(np.linalg.norm(own.astype(float)) - 256) < 3
    rng = np.random.default_rng(0)
    for changed in (
        0.1 * audio,
        through(audio, "OGG", "OPUS"),
        through(audio, "MP3", "MPEG_LAYER_III")[: len(audio)],
        audio + 1e-4 * rng.standard_normal(len(audio)),
    ):
        assert cosine(own, print_of(changed)) > 0.985
    others = [cosine(own, print_of(tones(4, seed=seed))) for seed in range(1, 40)]
    assert max(others) < 0.9


def slow_near_duplicates(prints, samples, similarity):
    """The definition, pair by pair."""
    of = []
    for i in range(len(prints)):
        found = -1
        for j in range(i):
            as_long = 0.95 < samples[i] / samples[j] < 1 / 0.95
            if of[j] < 0 and as_long and cosine(prints[i], prints[j]) >= similarity:
                found = j
                break
        of.append(found)
    return of


@pytest.mark.parametrize("exact_up_to", [10**6, 50])
def test_near_duplicates_are_those_of_the_definition(monkeypatch, exact_up_to):
    monkeypatch.setattr(duplicates, "_BLOCK", 16)  # so that both ways of finding them are taken
    monkeypatch.setattr(duplicates, "_EXACT_UP_TO", exact_up_to)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 256))
    vectors = centres[rng.integers(0, 40, 130)] + 0.05 * rng.standard_normal((130, 256))
    prints = np.rint(256 * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.int8)
    samples = rng.choice([16000, 16100, 32000], 130)
    found = near_duplicates(prints, samples, similarity=0.98)
    assert found.tolist() == slow_near_duplicates(prints, samples, 0.98)
    assert 20 < (found < 0).sum() < 110
    assert near_duplicates(prints[:0], samples[:0], similarity=0.9).tolist() == []


@pytest.mark.data
def test_real_sounds_are_told_apart(shared_data):
    """Among different digits of one speaker, recorded alike, hardly any is called a repetition."""
    corpus = open_corpus(shared_data / "esc10")
    prints = np.stack([print_of(read_audio(corpus.source(i))) for i in range(0, 120, 2)])
    samples = np.array([len(read_audio(corpus.source(i))) for i in range(0, 120, 2)])
    assert (near_duplicates(prints, samples, similarity=0.99) >= 0).sum() <= 1


def changes_of(audio):
    with torch.no_grad():
        return changes(LOG_MEL.log_mel(torch.from_numpy(np.float32(audio))[None])[0, 0])


def night(pieces, *, seed=1, calls=True):
    """Steady noise falling with frequency, cut into pieces of 4 s, in each one call of its own."""
    rng = np.random.default_rng(seed)
    n = pieces * 4 * RATE
    spectrum = np.fft.rfft(rng.standard_normal(n)) / np.maximum(np.fft.rfftfreq(n, 1 / RATE), 50)
    sound = np.fft.irfft(spectrum, n)
    sound = (sound / sound.std()).reshape(pieces, -1)
    for piece in sound if calls else ():
        length, start = int(rng.uniform(0.2, 1) * RATE), int(rng.uniform(0, 3) * RATE)
        pitch = rng.uniform(1500, 6500) * np.arange(length) / RATE
        piece[start : start + length] += 0.45 * np.hanning(length) * np.sin(2 * np.pi * pitch)
    return 0.1 * sound


def duplicates_in(clips):
    samples = np.array([len(clip) for clip in clips])
    moved = np.stack([changes_of(clip) for clip in clips])
    prints = np.stack([print_of(clip) for clip in clips])
    return near_duplicates(prints, samples, similarity=0.99, changes=moved)


@pytest.mark.parametrize("calls", [True, False])
def test_pieces_of_one_steady_background_are_distinct_and_their_copies_are_found(calls):
    clips = list(night(12, calls=calls))
    found = duplicates_in(clips)
    assert (found < 0).all()
    alone = np.stack([print_of(clip) for clip in clips])
    assert (near_duplicates(alone, np.ones(12), similarity=0.98) >= 0).sum() > 3  # without them
    for change in (
        lambda audio: 0.2 * audio,
        lambda audio: 2.0 * audio,
        lambda audio: audio[3 * RATE // 1000 :],
        lambda audio: through(audio, "OGG", "OPUS"),
        lambda audio: through(audio, "MP3", "MPEG_LAYER_III")[: len(audio)],
    ):
        copies = [change(clip) for clip in clips[:4]]
        assert duplicates_in([*clips[:4], *copies])[4:].tolist() == [0, 1, 2, 3]


def test_a_sound_in_which_nothing_changes_has_no_changes_and_is_known_by_its_colour():
    steady = 0.3 * np.sin(2 * np.pi * 440 * np.arange(4 * RATE) / RATE)
    assert not changes_of(steady).any()
    assert changes_of(night(1)[0]).shape == (512,)
    other = 0.3 * np.sin(2 * np.pi * 2000 * np.arange(4 * RATE) / RATE)
    assert duplicates_in([steady, 0.5 * steady, other]).tolist() == [-1, 0, -1]
