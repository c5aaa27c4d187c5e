import json
import tarfile
import threading

import numpy as np
import pytest
import soundfile
import torch

from ssmast.audio import AudioError, open_corpus, read_audio
from ssmast.evaluation import embed
from ssmast.evaluation.baselines import LogMelStatistics
from ssmast.evaluation.embed import Crop, cache_key, cut, embed_corpus
from ssmast.evaluation.embedding_cache import load
from tests.sets import write_set


class Counting(LogMelStatistics):
    """Log-mel statistics that count how many clips they saw."""

    seen = 0

    def embed_clips(self, waveforms, *, batch_seconds=60.0):
        self.seen += len(waveforms)
        return super().embed_clips(waveforms, batch_seconds=batch_seconds)


def test_every_clip_is_embedded_whole_in_the_order_of_the_corpus(sets, tiny_encoder):
    corpus = open_corpus(sets / "tones")
    found = embed_corpus(tiny_encoder, corpus, workers=3)
    assert found.rows.tolist() == list(range(48))
    assert found.rejected == []
    alone = [tiny_encoder.embed(corpus.source(row)) for row in (0, 17, 47)]
    torch.testing.assert_close(found.values[[0, 17, 47]], torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_small_windows_change_nothing(sets, tiny_encoder, monkeypatch):
    corpus = open_corpus(sets / "tones")
    wanted = embed_corpus(tiny_encoder, corpus)
    monkeypatch.setattr(embed, "_BATCH_SAMPLES", 10_000)
    monkeypatch.setattr(embed, "_BATCH_CLIPS", 5)
    found = embed_corpus(tiny_encoder, corpus)
    torch.testing.assert_close(found.values, wanted.values, atol=1e-5, rtol=1e-4)


def test_the_cache_is_used_and_a_damaged_one_replaced(sets, tmp_path, caplog):
    corpus = open_corpus(sets / "tones")
    counting = Counting()
    first = embed_corpus(counting, corpus, cache=tmp_path)
    second = embed_corpus(counting, corpus, cache=tmp_path)
    assert counting.seen == 48
    assert torch.equal(first.values, second.values)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    third = embed_corpus(counting, corpus, cache=tmp_path)
    assert counting.seen == 96
    assert "is damaged" in caplog.text
    assert torch.equal(first.values, third.values)
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]  # no leftovers
    data = bytearray(file.read_bytes())
    data[-200] ^= 64  # one bit of one vector, which safetensors does not notice
    file.write_bytes(data)
    assert load(file) is None
    assert "its checksum differs" in caplog.text


def test_the_key_follows_weights_settings_and_audio(sets, tiny_encoder, encoder_folder):
    from ssmast.encoder import load_encoder
    from ssmast.evaluation.baselines import random_twin

    corpus, other = open_corpus(sets / "tones"), open_corpus(sets / "more_tones")
    key = cache_key(tiny_encoder, corpus)
    loaded = load_encoder(encoder_folder)
    assert cache_key(loaded, corpus) == key
    loaded.pooling = "mean"
    keys = [
        cache_key(loaded, corpus),
        cache_key(random_twin(tiny_encoder, seed=0), corpus),
        cache_key(tiny_encoder, other),
        cache_key(LogMelStatistics(), corpus),
        cache_key(LogMelStatistics(num_mels=64), corpus),
    ]
    assert len({key, *keys}) == 6


def test_a_clip_that_can_be_read_again_is_embedded_and_no_other(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "set")
    real = embed.open_audio

    def broken(source, **options):
        if "005" in options["name"]:
            raise AudioError("005.wav: the disk is away")
        return real(source, **options)

    with monkeypatch.context() as patch:
        patch.setattr(embed, "open_audio", broken)
        first = embed_corpus(LogMelStatistics(), open_corpus(folder), cache=tmp_path / "cache")
    assert first.rejected == [("005.wav", "005.wav: the disk is away")]
    read = []
    monkeypatch.setattr(
        embed, "open_audio", lambda source, **o: read.append(o["name"]) or real(source, **o)
    )
    second = embed_corpus(LogMelStatistics(), open_corpus(folder), cache=tmp_path / "cache")
    assert read == ["005.wav"]
    assert second.rejected == []
    assert second.rows.tolist() == list(range(48))
    whole = embed_corpus(LogMelStatistics(), open_corpus(folder))
    assert torch.allclose(second.values, whole.values, atol=1e-5)
    read.clear()
    embed_corpus(LogMelStatistics(), open_corpus(folder), cache=tmp_path / "cache")
    assert read == []


def test_unreadable_clips_are_left_out_with_a_reason(tmp_path):
    corpus = open_corpus(write_set(tmp_path / "set", bad=2))
    found = embed_corpus(LogMelStatistics(), corpus, cache=tmp_path / "cache")
    assert found.rows.tolist() == list(range(46))
    assert [name for name, _ in found.rejected] == ["046.wav", "047.wav"]
    assert all(name in reason for name, reason in found.rejected)
    again = embed_corpus(LogMelStatistics(), corpus, cache=tmp_path / "cache")
    assert again.rejected == found.rejected


@pytest.mark.parametrize("extra", [0, 1, 77, 6000 * 160 - 1])
def test_the_baseline_of_a_long_clip_is_that_of_its_pieces(monkeypatch, extra):
    baseline, generator = LogMelStatistics(), torch.Generator().manual_seed(0)
    clip = torch.randn(16000 * 9 + extra, generator=generator) * torch.linspace(
        0.001, 1, 16000 * 9 + extra
    )
    wanted = baseline.embed_clips([clip])
    monkeypatch.setattr("ssmast.evaluation.baselines._LONGEST", 101)

    class InOrder:  # as a `LongSound`, and never more than a piece
        last = 0

        def __len__(self):
            return len(clip)

        def __getitem__(self, where):
            assert where.start >= self.last
            assert where.stop - where.start <= 102 * 160 + 1024
            self.last = where.start
            return clip[where].numpy()

    torch.testing.assert_close(baseline.embed_clips([InOrder()]), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(baseline.embed_clips([clip]), wanted, atol=1e-6, rtol=0)


def test_vectors_that_are_not_finite_are_left_out(sets):
    class Broken(LogMelStatistics):
        def embed_clips(self, waveforms, *, batch_seconds=60.0):
            vectors = super().embed_clips(waveforms, batch_seconds=batch_seconds)
            vectors[3, 0] = torch.inf
            return vectors

    found = embed_corpus(Broken(), open_corpus(sets / "tones"))
    assert found.rejected == [("003.wav", "its embedding is not finite")]
    assert 3 not in found.rows


def test_a_set_of_nothing_readable_is_refused(tmp_path):
    corpus = open_corpus(write_set(tmp_path / "set", num_clips=3, bad=3))
    with pytest.raises(ValueError, match="none of 3 clips could be embedded; the first, 000"):
        embed_corpus(LogMelStatistics(), corpus)


def test_an_interruption_stops_the_reading_and_keeps_no_half_cache(sets, tmp_path):
    class Interrupted(LogMelStatistics):
        def embed_clips(self, waveforms, *, batch_seconds=60.0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_corpus(Interrupted(), open_corpus(sets / "tones"), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    # Nobody waits for a read that hangs; the others end by themselves.
    readers = [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    for reader in readers:
        reader.join(timeout=30)
    assert not any(reader.is_alive() for reader in readers)


def test_log_mel_statistics_equal_librosa(sets):
    import librosa

    audio = read_audio(sets / "tones" / "000.wav")
    power = librosa.feature.melspectrogram(
        y=audio, sr=16000, n_fft=1024, win_length=400, hop_length=160, n_mels=128,
        fmin=0, fmax=8000, power=2.0, pad_mode="constant",
    )  # fmt: skip
    log_mel = np.log(power + 1e-6)
    wanted = np.concatenate([log_mel.mean(axis=1), log_mel.std(axis=1)])
    (found,) = LogMelStatistics().embed_clips([torch.from_numpy(audio)])
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-3)


def test_log_mel_statistics_take_the_shortest_clip():
    (found,) = LogMelStatistics().embed_clips([torch.zeros(1)])
    assert found.isfinite().all()
    assert json.dumps(LogMelStatistics().settings())


class _Counting:
    """An encoder that counts the clips it embeds, and stops after some."""

    def __init__(self, encoder, *, stop_after: int = 10**9) -> None:
        self._encoder, self._stop_after, self.embedded = encoder, stop_after, 0

    def __getattr__(self, name: str):
        return getattr(self._encoder, name)

    def embed_clips(self, waveforms, *, batch_seconds):
        if self.embedded >= self._stop_after:
            raise KeyboardInterrupt
        self.embedded += len(waveforms)
        return self._encoder.embed_clips(waveforms, batch_seconds=batch_seconds)


def test_an_interrupted_embedding_continues(tmp_path, tiny_encoder, monkeypatch):
    write_set(tmp_path / "tones", num_clips=48, bad=1)
    corpus = open_corpus(tmp_path / "tones")
    wanted = embed_corpus(tiny_encoder, corpus)
    monkeypatch.setattr("ssmast.evaluation.embed._BATCH_CLIPS", 8)
    monkeypatch.setattr("ssmast.evaluation.embedding_cache.PartialEmbeddings.EVERY", 0.0)
    first = _Counting(tiny_encoder, stop_after=20)
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(first, corpus, cache=tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.suffix == ".parts"
    damaged = sorted(folder.iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:100])  # as a full disk leaves it: embedded again
    second = _Counting(tiny_encoder)
    found = embed_corpus(second, corpus, cache=tmp_path / "cache")
    assert first.embedded == 24
    assert second.embedded == 47 - 24 + 8
    torch.testing.assert_close(found.values, wanted.values, atol=1e-5, rtol=1e-4)
    assert found.rows.tolist() == wanted.rows.tolist()
    assert found.rejected == wanted.rejected
    (file,) = (tmp_path / "cache").iterdir()
    assert file.suffix == ".safetensors"
    third = _Counting(tiny_encoder)
    embed_corpus(third, corpus, cache=tmp_path / "cache")
    assert third.embedded == 0


def test_another_crop_is_another_embedding(sets, tmp_path, tiny_encoder):
    corpus = open_corpus(sets / "tones")
    crops = [None, Crop(0.1, "head"), Crop(0.1, "random"), Crop(0.1, "random", 1)]
    found = [embed_corpus(tiny_encoder, corpus, cache=tmp_path, crop=crop) for crop in crops]
    assert len(list(tmp_path.iterdir())) == 4
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(found[i].values, found[j].values)
    again = embed_corpus(tiny_encoder, corpus, crop=crops[2], workers=1)
    torch.testing.assert_close(again.values, found[2].values, atol=1e-5, rtol=1e-4)


def test_crops_are_cut_where_they_say():
    clip = torch.arange(100.0)
    assert cut(clip, Crop(0.3, "head"), sample_rate=100, clip=7).tolist() == list(range(30))
    padded = cut(clip, Crop(1.2, "random"), sample_rate=100, clip=7)
    assert padded.tolist() == [*range(100), *[0] * 20]
    starts = [
        int(cut(clip, Crop(0.3, "random", seed), sample_rate=100, clip=number)[0])
        for seed in range(3)
        for number in range(200)
    ]
    assert (min(starts), max(starts)) == (0, 70)
    assert len(set(starts[:200])) > 30


def test_long_clips_are_embedded_piece_by_piece_and_a_bad_one_harms_no_other(
    tiny_encoder, tmp_path, monkeypatch
):
    data, rng = tmp_path / "data", np.random.default_rng(0)
    data.mkdir()
    for name, seconds in (("a", 1), ("b", 5), ("c", 6), ("d", 1), ("e", 5)):
        samples = 0.1 * rng.standard_normal(16000 * seconds).astype(np.float32)
        if name == "c":
            samples[-2000] = np.nan  # shows long after the file was opened
        soundfile.write(data / f"{name}.wav", samples, 16000, subtype="FLOAT")
    loose = open_corpus(data)
    with tarfile.open(tmp_path / "audio.tar", "w") as tar:
        for file in sorted(data.glob("*.wav")):
            tar.add(file, file.name)
    wanted = embed_corpus(tiny_encoder, loose)
    monkeypatch.setattr("ssmast.audio.long.LONG_SECONDS", 2.0)
    monkeypatch.setattr("ssmast.audio.long._SHORT_BYTES", 1)
    monkeypatch.setattr("ssmast.audio.long._joined", None)  # never whole
    for corpus in (loose, open_corpus(tmp_path / "audio.tar")):
        found = embed_corpus(tiny_encoder, corpus)
        assert [corpus.name(int(row)) for row in found.rows] == [f"{n}.wav" for n in "abde"]
        torch.testing.assert_close(found.values, wanted.values, atol=1e-5, rtol=1e-4)
        ((name, reason),) = found.rejected
        assert name == "c.wav"
        assert "NaN or infinite" in reason
        statistics = embed_corpus(LogMelStatistics(), corpus)
        assert len(statistics.rows) == 4
