"""Encoder: any sound in, one vector out."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from ssmast.audio import AudioError, LogMel, read_audio
from ssmast.encoder import Encoder, load_encoder
from ssmast.evaluation.baselines import random_twin
from ssmast.model import create_model, pool_tokens

RATE = 16000


def make_encoder(model: str = "mast_nano", **settings) -> Encoder:
    torch.manual_seed(1)
    numbers = {"embed_dim": 8, "depths": (1, 1, 1, 1)}
    if model == "ast_nano":
        numbers = {"embed_dim": 8, "depth": 3, "num_heads": 2}
    backbone = create_model(model, num_classes=0, input_size=(64, 96), **numbers)
    for parameter in backbone.parameters():  # fresh weights of 0.02 would hide differences
        torch.nn.init.normal_(parameter, std=0.2)
    log_mel = LogMel(num_mels=64, mean=-7.0, std=4.0)
    return Encoder(backbone, log_mel, info={"network": "teacher"}, **settings)


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return make_encoder()


# -- embed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["last", "stages", "blocks", "2-3", "1+4"])
@pytest.mark.parametrize("pooling", ["mean", "mean+max", "freq+max", "freq+max+std+time4"])
def test_clips_of_any_length_get_in_a_list_what_they_get_alone(layers, pooling):
    encoder = make_encoder(layers=layers, pooling=pooling, window_seconds=1.5)
    clips = [noise(n, seed=n) for n in (1, 5, 161, 3000, 15999, 16000, 24160, 40000)]
    together = encoder.embed(clips, RATE)
    alone = torch.cat([encoder.embed(clip, RATE) for clip in clips])
    assert together.shape == (8, encoder.dim)
    assert together.dtype == torch.float32
    assert together.isfinite().all()
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", ["last", "stages", "blocks"])
@pytest.mark.parametrize("pooling", ["mean", "freq+max", "cls"])
def test_ast_gives_clips_of_any_length_in_a_list_what_they_get_alone(layers, pooling):
    encoder = make_encoder("ast_nano", layers=layers, pooling=pooling, window_seconds=1.5)
    clips = [noise(n, seed=n) for n in (1, 161, 3000, 15999, 24160, 40000)]
    together = encoder.embed(clips, RATE)
    alone = torch.cat([encoder.embed(clip, RATE) for clip in clips])
    one = {"mean": 8, "freq+max": (5 + 1) * 8, "cls": 8}[pooling]
    assert together.shape == (6, encoder.dim) == (6, one * (3 if layers == "blocks" else 1))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_ast_comes_back_bit_equal_from_its_folder(tmp_path):
    encoder = make_encoder("ast_nano", pooling="cls")
    encoder.save(tmp_path / "encoder")
    back = load_encoder(tmp_path / "encoder")
    assert torch.equal(back.embed(noise(30000), RATE), encoder.embed(noise(30000), RATE))
    assert back.sha256 == encoder.sha256
    twin = random_twin(back, seed=3)
    assert twin.dim == back.dim
    assert not torch.equal(twin.embed(noise(4000), RATE), back.embed(noise(4000), RATE))


def test_class_tokens_of_a_mast_are_refused():
    with pytest.raises(ValueError, match=r"needs class tokens, which only ast_.* such as mean"):
        make_encoder(pooling="cls")


def test_dim_is_told_before_anything_is_embedded():
    # nano of width 8: 64 mels make 16, 8, 4, 4 rows of 8, 16, 32, 64 channels
    rows_channels = [(16, 8), (8, 16), (4, 32), (4, 64)]
    assert make_encoder(pooling="mean").dim == 64
    assert make_encoder(pooling="mean+max").dim == 128
    assert make_encoder(pooling="freq+max").dim == 5 * 64
    stages = sum((rows + 1) * channels for rows, channels in rows_channels)
    assert make_encoder(layers="stages").dim == stages


def test_file_numpy_torch_and_integers_are_one_clip(encoder, tmp_path):
    samples = (noise(8000).numpy() * 32767).astype(np.int16)
    soundfile.write(tmp_path / "clip.wav", samples, RATE, subtype="PCM_16")
    wanted = encoder.embed(torch.from_numpy(samples.astype(np.float32) / 32768), RATE)
    assert wanted.shape == (1, encoder.dim)
    for clip in (
        tmp_path / "clip.wav",
        str(tmp_path / "clip.wav"),
        samples,
        samples.astype(np.float64) / 32768,
        np.frombuffer((samples.astype(np.float32) / 32768).tobytes(), dtype=np.float32),
        torch.from_numpy(samples),
    ):
        torch.testing.assert_close(encoder.embed(clip, RATE), wanted, atol=1e-5, rtol=1e-4)
    listed = encoder.embed([tmp_path / "clip.wav", samples], RATE)
    torch.testing.assert_close(listed, wanted.repeat(2, 1), atol=1e-5, rtol=1e-4)


def test_a_part_of_a_file_has_the_name_that_commands_give_it(encoder, tmp_path):
    sound = 0.1 * noise(2 * RATE)
    soundfile.write(tmp_path / "a.wav", sound.numpy(), RATE, subtype="FLOAT")
    part = encoder.embed(f"{tmp_path / 'a.wav'}#t=0.5,1.25")
    torch.testing.assert_close(part, encoder.embed(sound[RATE // 2 : RATE * 5 // 4], RATE))
    (tmp_path / "a.wav").rename(tmp_path / "a.wav#t=0.5,1")  # a file that is called so comes first
    whole = encoder.embed([tmp_path / "a.wav#t=0.5,1"])
    torch.testing.assert_close(whole, encoder.embed(sound, RATE))
    with pytest.raises(AudioError, match=r"a\.wav#t=0,1 cannot be opened"):
        encoder.embed(tmp_path / "a.wav#t=0,1")


def test_rows_of_a_batch_are_clips(encoder):
    batch = torch.stack([noise(4000, seed=1), noise(4000, seed=2)])
    rows = torch.cat([encoder.embed(row, RATE) for row in batch])
    torch.testing.assert_close(encoder.embed(batch, RATE), rows, atol=1e-5, rtol=1e-4)


def test_samples_at_another_rate_equal_the_file_of_them(encoder, tmp_path):
    samples = noise(22050).numpy()
    soundfile.write(tmp_path / "clip.wav", samples, 44100, subtype="FLOAT")
    from_file = encoder.embed(tmp_path / "clip.wav")
    torch.testing.assert_close(encoder.embed(samples, 44100), from_file, atol=1e-5, rtol=1e-4)
    wrong_rate = encoder.embed(samples, 22050)
    assert (wrong_rate - from_file).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("waveform", "rate", "sentence"),
    [
        (torch.zeros(1, 1, 100), RATE, r"must be \(S,\) or \(B, S\), got shape \(1, 1, 100\)"),
        (torch.tensor(1.0), RATE, r"must be \(S,\) or \(B, S\), got shape \(\)"),
        (np.zeros(0), RATE, "at least one sample"),
        (np.zeros((0, 5)), RATE, "at least one sample"),
        (np.array([0.0, np.nan]), RATE, "must be finite, got NaN or infinity"),
        (torch.tensor([0.0, torch.inf]), RATE, "must be finite"),
        (np.array([1e300]), RATE, "must be finite"),
        (np.zeros(10), None, "need their sample_rate, a whole number of Hz .* got None"),
        (np.zeros(10), 0, "at least 100, got 0"),
        (np.zeros(10), 44.1, "at least 100, got 44.1"),
        (np.zeros(10), 22050.5, "a whole number of Hz .* got 22050.5"),
        (np.zeros(10), "16000", "got '16000'"),
        (np.zeros(10), True, "got True"),
        (np.zeros(10), float("nan"), "got nan"),
        (np.zeros((16000, 2)), RATE, "looks like .samples, channels."),
        (np.zeros(10, dtype=np.uint8), RATE, "signed integers of 16 bits or more, got uint8"),
        (np.zeros(10, dtype=bool), RATE, "floats or signed integers"),
        (np.array(["a"]), RATE, "got ndarray <U1; give a list of files"),
        ([], RATE, "at least one clip, got an empty list"),
        ([np.zeros((2, 5))], RATE, r"file or samples \(S,\), got \(2, 5\)"),
        ([[0.0, 1.0]], RATE, r"file or samples \(S,\), got list"),
        (None, RATE, "must be a file, a numpy array or a torch tensor, got NoneType"),
        (b"RIFF", RATE, "got bytes"),
    ],
)
def test_what_is_no_sound_is_refused_in_a_sentence(encoder, waveform, rate, sentence):
    with pytest.raises(ValueError, match=sentence):
        encoder.embed(waveform, rate)


def test_a_channel_is_picked_by_number_or_name_of_files_alone(encoder, tmp_path):
    left, right = noise(8000).numpy(), noise(8000, seed=1).numpy()
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), RATE, subtype="FLOAT")
    for channel in (1, "1", "right"):
        found = encoder.embed(tmp_path / "a.wav", channel=channel)
        torch.testing.assert_close(found, encoder.embed(right, RATE))
    for channel in (-1, True, 1.0, "middle"):
        with pytest.raises(ValueError, match=r"channel must be mean, first, .* a number from 0 on"):
            encoder.embed(tmp_path / "a.wav", channel=channel)
    # (2, S) are two clips: what is asked for must not be passed over
    for samples in (np.stack([left, right]), [left]):
        with pytest.raises(ValueError, match="channel=left is of files, and samples are one clip"):
            encoder.embed(samples, RATE, channel="left")


def test_embedding_leaves_modes_and_gradients_alone():
    encoder = make_encoder()
    encoder.train()
    encoder.backbone.norm.eval()
    before = [module.training for module in encoder.modules()]
    embedding = encoder.embed(noise(4000).requires_grad_(), RATE)
    assert [module.training for module in encoder.modules()] == before
    assert not embedding.requires_grad
    # usable for a head that is trained: an inference tensor would not be
    torch.nn.Linear(encoder.dim, 2)(embedding).sum().backward()


# -- long clips ------------------------------------------------------------------------------------


def test_pieces_of_a_long_clip_are_slices_of_its_log_mel(encoder):
    clip = noise(RATE * 5 + 77)
    cutter = make_encoder(window_seconds=1.0).window_cutter()
    total = cutter.frames(len(clip))
    chunks = cutter.cut(0, total)
    whole = encoder.log_mel(clip[None])
    assert sum(chunk.length for chunk in chunks) == total == whole.shape[-1]
    lengths = [chunk.length for chunk in chunks]
    assert max(lengths) - min(lengths) <= cutter.stride  # no short tail
    for chunk in chunks:
        log_mel, _ = cutter.log_mels([clip], [chunk])
        piece = whole[..., chunk.start : chunk.start + chunk.length]
        torch.testing.assert_close(log_mel, piece, atol=1e-4, rtol=1e-5)


def test_long_clip_is_the_weighted_mean_and_the_maximum_of_its_pieces():
    encoder = make_encoder(window_seconds=1.0)
    clip = noise(RATE * 3 + 999)
    whole = encoder.log_mel(clip[None])
    means, tops, total = 0, [], whole.shape[-1]
    with torch.no_grad():
        for chunk in encoder.window_cutter().cut(0, total):
            piece = whole[..., chunk.start : chunk.start + chunk.length]
            vector = pool_tokens(encoder.backbone.eval().encode(piece), mode="freq+max")
            means = means + vector[:, :-64] * chunk.length / total
            tops.append(vector[:, -64:])
    wanted = torch.cat([means, torch.stack(tops).amax(dim=0)], dim=1)
    torch.testing.assert_close(encoder.embed(clip, RATE), wanted, atol=1e-4, rtol=1e-4)


def test_batch_seconds_changes_memory_only():
    encoder = make_encoder(window_seconds=1.0)
    clip = noise(RATE * 6)
    one_by_one = encoder.embed(clip, RATE, batch_seconds=0.1)
    torch.testing.assert_close(one_by_one, encoder.embed(clip, RATE), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["flac", "mp3"])
def test_a_long_file_is_embedded_as_its_waveform(tmp_path, monkeypatch, kind):
    encoder = make_encoder(window_seconds=1.0)
    samples = noise(44100 * 9).view(-1, 2).repeat(2, 1) * torch.linspace(1, 3, 44100 * 9)[:, None]
    soundfile.write(tmp_path / f"long.{kind}", samples.numpy(), 44100)
    soundfile.write(tmp_path / "short.wav", noise(8000).numpy(), RATE)
    waveform = read_audio(tmp_path / f"long.{kind}")
    wanted = encoder.embed(waveform, RATE)
    frames, times = encoder.embed_frames(waveform, RATE, hop_ms=50)
    files = [tmp_path / f"long.{kind}", tmp_path / "short.wav", tmp_path / f"long.{kind}"]
    monkeypatch.setattr("ssmast.audio.long.LONG_SECONDS", 2.0)
    monkeypatch.setattr("ssmast.audio.long._SHORT_BYTES", 1)
    monkeypatch.setattr("ssmast.audio.long._joined", None)  # never whole
    found = encoder.embed(files, batch_seconds=3.0)
    assert (found[1] - wanted).abs().max() > 1e-2
    for row in (0, 2):
        torch.testing.assert_close(found[row : row + 1], wanted, atol=1e-5, rtol=1e-4)
    long_frames, long_times = encoder.embed_frames(files[0], hop_ms=50, batch_seconds=3.0)
    torch.testing.assert_close(long_frames, frames, atol=1e-5, rtol=1e-4)
    assert torch.equal(long_times, times)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flac", "mp3"])
def test_an_hour_takes_little_more_memory_than_twenty_seconds(tmp_path, kind):
    torch.manual_seed(0)
    nano = create_model("mast_nano", num_classes=0, input_size=(128, 96))
    Encoder(nano, LogMel(mean=-8.0, std=4.5)).save(tmp_path / "nano")
    block = 0.1 * np.random.default_rng(0).standard_normal((60 * 44100, 2))
    with soundfile.SoundFile(tmp_path / f"hour.{kind}", "w", 44100, 2) as file:
        for _ in range(60):
            file.write(block.astype(np.float32))
    code = (
        "import re, sys, pathlib, numpy, ssmast;"
        "encoder = ssmast.load_encoder(sys.argv[1]);"
        # Not ru_maxrss: that keeps the size of the process that started this one.
        "status = pathlib.Path('/proc/self/status');"
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+) kB', status.read_text())[1]) * 1024;"
        "encoder.embed(numpy.zeros(20 * 16000, dtype='float32'), 16000); before = peak();"
        "encoder.embed(sys.argv[2]); after = peak();"
        "frames, times = encoder.embed_frames(sys.argv[2]);"
        "print(before, after, peak() - frames.nbytes - times.nbytes)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "nano"), str(tmp_path / f"hour.{kind}")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    # PyTorch and timm take 0.8 to 0.9 GB before anything is read, which is theirs to change. The
    # hour is 635 MB at its own rate and 230 MB at the encoder's: it is not held.
    before, embed, embed_frames = map(int, done.stdout.split())
    assert embed - before < 200e6
    assert embed_frames - before < 200e6


# -- frames ----------------------------------------------------------------------------------------


def test_frames_are_evenly_spaced_in_milliseconds_and_end_with_the_clip():
    encoder = make_encoder(window_seconds=1.0)
    for samples in (9, 100, RATE, int(2.74 * RATE), 4 * RATE):
        embeddings, milliseconds = encoder.embed_frames(noise(samples).repeat(2, 1), RATE)
        assert embeddings.shape == (2, milliseconds.shape[1], 4 * 64)  # 4 rows of 64 channels
        assert embeddings.dtype == milliseconds.dtype == torch.float32
        assert milliseconds.shape[0] == 2
        torch.testing.assert_close(
            milliseconds[0], torch.arange(milliseconds.shape[1]) * 320.0, atol=1e-3, rtol=0
        )
        assert milliseconds.max() <= 1000 * samples / RATE


def test_time_mean_of_the_frames_is_the_frequency_part_of_the_embedding():
    encoder = make_encoder()
    clip = noise(RATE)
    frames, _ = encoder.embed_frames(clip, RATE)
    embedding = encoder.embed(clip, RATE)
    torch.testing.assert_close(frames.mean(dim=1), embedding[:, :-64], atol=1e-5, rtol=1e-4)


def test_a_click_moves_the_column_at_its_time():
    encoder = make_encoder()
    quiet = torch.zeros(4 * RATE)
    clicked = quiet.clone()
    clicked[int(1.92 * RATE)] = 1.0
    before, milliseconds = encoder.embed_frames(quiet, RATE)
    after, _ = encoder.embed_frames(clicked, RATE)
    moved = (after - before).norm(dim=2)[0]
    assert float(milliseconds[0, int(moved.argmax())]) == pytest.approx(1920, abs=1)


@pytest.mark.parametrize(("model", "hop", "wanted"), [("mast_nano", 50, 40), ("ast_nano", 50, 50)])
def test_frames_come_as_often_as_asked(model, hop, wanted):
    encoder = make_encoder(model, window_seconds=1.0)
    for samples in (2560, int(1.07 * RATE), 4 * RATE):
        clip = noise(samples)
        fine, milliseconds = encoder.embed_frames(clip, RATE, hop_ms=hop)
        coarse, own = encoder.embed_frames(clip, RATE)
        steps = milliseconds[0].diff()
        torch.testing.assert_close(steps, torch.full_like(steps, wanted), atol=1e-3, rtol=0)
        assert milliseconds.max() <= 1000 * samples / RATE
        times = round(float(own[0, 1] - own[0, 0]) / wanted) if own.shape[1] > 1 else 1
        torch.testing.assert_close(fine[:, ::times][:, : own.shape[1]], coarse)
        assert fine.shape[1] == 1 or fine[0].diff(dim=0).abs().amax(dim=1).min() > 1e-4
    with pytest.raises(ValueError, match="at least one frame, 10 ms, got 5"):
        encoder.embed_frames(noise(4000), RATE, hop_ms=5)


def test_frames_of_clips_of_different_lengths_are_refused(encoder):
    with pytest.raises(ValueError, match="call it once a clip"):
        encoder.embed_frames([noise(100), noise(200)], RATE)


# -- the rest --------------------------------------------------------------------------------------


def test_the_untrained_twin_shares_all_but_the_weights(encoder):
    state = torch.get_rng_state()
    twin = random_twin(encoder, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert twin.settings() == encoder.settings()
    assert twin.dim == encoder.dim
    assert twin.sha256 not in (encoder.sha256, random_twin(encoder, seed=4).sha256)
    assert twin.sha256 == random_twin(encoder, seed=3).sha256
    shapes = {name: value.shape for name, value in encoder.backbone.state_dict().items()}
    assert {name: value.shape for name, value in twin.backbone.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pooling": "sum"}, "pooling must be mean, freq, max, .* got 'sum'"),
        ({"layers": "first"}, "layers must be last, stages, blocks, .* got 'first'"),
        ({"window_seconds": 0}, "window_seconds must be above 0, got 0"),
    ],
)
def test_unknown_settings_name_the_allowed_ones(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_encoder(**settings)


def test_tensors_without_values_and_batches_of_no_length_are_refused(encoder):
    for clip in (torch.ones(4000, device="meta"), torch.ones(4000).to_sparse()):
        with pytest.raises(ValueError, match="waveform must be a dense tensor with values, got a"):
            encoder.embed(clip, sample_rate=16000)
    for seconds in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="batch_seconds must be above 0, got"):
            encoder.embed(noise(4000), sample_rate=16000, batch_seconds=seconds)


def test_another_family_is_refused():
    with pytest.raises(ValueError, match=r"ssmast\.create_model, got Linear"):
        Encoder(torch.nn.Linear(1, 1), LogMel())


@pytest.mark.data
def test_nasty_files_give_vectors_or_sentences(encoder, shared_data):
    from ssmast.audio import AudioError

    files = sorted((shared_data / "nasty" / "files").iterdir())
    good, sentences = 0, []
    for file in files:
        try:
            embedding = encoder.embed(file)
        except AudioError as error:
            sentences.append((file.name, str(error)))
        else:
            good += 1
            assert embedding.isfinite().all()
    assert 0 < good < len(files)
    assert all(name in text and "\n" not in text for name, text in sentences)


def test_a_variant_shares_the_weights_and_nothing_that_is_changed(encoder):
    settings, clip = encoder.settings(), noise(40000)
    other = encoder.variant(pooling="mean", layers="stages", window_seconds=1.0)
    assert (other.pooling, other.layers, other.window_seconds) == ("mean", "stages", 1.0)
    assert (other.sha256, other.info) == (encoder.sha256, encoder.info)
    assert other.backbone is encoder.backbone
    assert other.log_mel is not encoder.log_mel  # moved to a device by itself
    assert encoder.settings() == settings
    assert torch.equal(encoder.variant().embed(clip, RATE), encoder.embed(clip, RATE))
    assert encoder.variant(info={}).info == {}
    with pytest.raises(ValueError, match=r"layers must be last, stages, blocks, .* got 'first'"):
        encoder.variant(layers="first")


# -- layers by number ------------------------------------------------------------------------------


def test_layers_by_number_are_parts_of_all_stages_and_what_follows_them_is_not_run():
    every = make_encoder(layers="stages", pooling="freq+max+std")
    some = make_encoder(layers="2-3", pooling="freq+max+std")
    sizes = every.layer_dims
    wanted = every.embed(noise(9000), RATE).split(sizes, dim=1)
    some.backbone.stages[3].forward = None  # would be called
    torch.testing.assert_close(some.embed(noise(9000), RATE), torch.cat(wanted[1:3], dim=1))
    assert some.layer_dims == sizes[1:3]


def test_the_last_stage_by_its_number_is_last_with_the_final_norm():
    waveform = noise(9000)
    by_number = make_encoder(layers="4").embed(waveform, RATE)
    assert torch.equal(by_number, make_encoder(layers="last").embed(waveform, RATE))


def test_frames_come_from_the_deepest_layer_that_is_pooled():
    encoder = make_encoder(layers="1+3", window_seconds=1.0)
    waveform = noise(40000)
    frames, milliseconds = encoder.embed_frames(waveform, RATE)
    assert encoder.frame_hop_ms() == 160.0
    torch.testing.assert_close(milliseconds.diff(), torch.full_like(milliseconds[:, 1:], 160.0))
    whole = make_encoder(layers="1+3", window_seconds=10.0)
    log_mel = whole.log_mel(waveform[None])
    tokens = whole.backbone.encode_blocks(log_mel)[2]
    maps = tokens.x.unflatten(1, tokens.grid[:]).transpose(1, 2).flatten(2)
    alone, _ = whole.embed_frames(waveform, RATE)
    torch.testing.assert_close(alone, maps)
    assert frames.shape == alone.shape


@pytest.mark.parametrize("layers", ["5", "0", "2-9", "3-2", "1+3-2", "first", "2,3", ""])
def test_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(
        ValueError, match=r"layers must be last, .* numbers from 1 to 4 such as 2-4"
    ):
        make_encoder(layers=layers)


def test_the_maximum_of_windows_is_taken_of_maxima_alone_wherever_they_lie():
    encoder = make_encoder(layers="2-3", pooling="max+std+mean", window_seconds=1.0)
    clip = noise(32000)
    halves = [encoder.embed(half, RATE) for half in clip.split(16000)]
    is_max = torch.zeros(encoder.dim, dtype=torch.bool)
    start = 0
    for rows, channels in ((8, 16), (4, 32)):
        is_max[start : start + channels] = True
        start += channels * (1 + rows + 1)
    assert start == encoder.dim
    means, maxima = sum(halves) / 2, torch.maximum(*halves)
    found = encoder.embed(clip, RATE)
    # The halves are padded at their joint, so they are near, not equal.
    assert (found - maxima)[:, is_max].abs().mean() < 0.2 * maxima[:, is_max].abs().mean()
    assert (found - means)[:, ~is_max].abs().mean() < 0.2 * means[:, ~is_max].abs().mean()
