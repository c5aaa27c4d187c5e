"""An encoder in the hands of others: odd arrays, threads, other types, a training loop."""

import copy
import os
import pickle
import threading
import warnings

import numpy as np
import pytest
import soundfile
import torch

from ssmast.audio.long import LOUDEST
from ssmast.encoder import load_encoder

from .test_encoder import RATE, make_encoder, noise


@pytest.fixture(scope="module")
def encoder():
    return make_encoder().eval()


@pytest.fixture(scope="module")
def alone(encoder):
    """Two clips and their vectors."""
    clips = torch.stack([noise(8000, seed=1), noise(8000, seed=2)])
    return clips, encoder.embed(clips, RATE)


ODD = {
    "backwards": lambda x: np.ascontiguousarray(x.numpy()[:, ::-1])[:, ::-1],
    "upside down": lambda x: np.ascontiguousarray(x.numpy()[::-1])[::-1],
    "column-major": lambda x: np.asfortranarray(x.numpy()),
    "every second": lambda x: np.repeat(x.numpy(), 2, axis=1)[:, ::2],
    "big-endian": lambda x: x.numpy().astype(">f4"),
    "matrix": lambda x: np.asmatrix(x.numpy()),
    "negated view": lambda x: torch._neg_view(-x),
    "transposed": lambda x: x.T.contiguous().T,
    "of a graph": lambda x: x.clone().requires_grad_(),
    "int32": lambda x: (x.double() * 2**31).to(torch.int32),
    "int64": lambda x: (x.double() * 2**63).to(torch.int64),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("kind", ODD)
def test_samples_may_lie_in_memory_in_any_way(encoder, alone, kind):
    clips, wanted = alone
    torch.testing.assert_close(encoder.embed(ODD[kind](clips), RATE), wanted, atol=1e-5, rtol=1e-5)


def test_memory_that_may_not_be_written_is_taken_without_a_warning(encoder, alone):
    samples = alone[0].numpy().copy()
    samples.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = encoder.embed(samples, RATE)
    torch.testing.assert_close(found, alone[1], atol=1e-5, rtol=1e-5)


def test_a_path_is_whatever_the_system_takes_for_one(encoder, alone, tmp_path):
    soundfile.write(tmp_path / "a.wav", alone[0][0].numpy(), RATE, subtype="FLOAT")
    (entry,) = os.scandir(tmp_path)
    torch.testing.assert_close(encoder.embed(entry), alone[1][:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder.embed([entry]), alone[1][:1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rate", [np.array(RATE), torch.tensor(RATE), np.float64(RATE)])
def test_a_rate_may_come_out_of_an_npz_or_a_data_loader(encoder, alone, rate):
    torch.testing.assert_close(encoder.embed(alone[0], rate), alone[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rate", [np.array([RATE, RATE]), torch.tensor([RATE]), np.array(True)])
def test_several_rates_are_not_one(encoder, alone, rate):
    with pytest.raises(ValueError, match="need their sample_rate, a whole number of Hz"):
        encoder.embed(alone[0], rate)


def test_files_in_a_list_are_not_all_held_at_once(encoder, alone, tmp_path, monkeypatch):
    clips, wanted = alone
    for number in range(7):
        soundfile.write(tmp_path / f"{number}.wav", clips[number % 2], RATE, subtype="FLOAT")
    files = sorted(tmp_path.glob("*.wav"))
    monkeypatch.setattr("ssmast.encoder.input._GROUP_SAMPLES", 2 * 8000)
    embed, sizes = encoder.embed_clips, []
    monkeypatch.setattr(
        encoder, "embed_clips", lambda group, **how: sizes.append(len(group)) or embed(group, **how)
    )
    found = encoder.embed(files)
    torch.testing.assert_close(found, wanted.repeat(4, 1)[:7], atol=1e-5, rtol=1e-5)
    assert sizes == [2, 2, 2, 1]


WIDER = {
    "int32": lambda x: x.astype(np.int32),
    "int64": lambda x: torch.from_numpy(x).long(),
    "float32": lambda x: torch.from_numpy(x).float(),
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: (x // 32 * 32).astype(np.float16),
    "batch": lambda x: x.astype(np.int64)[None],
    "list": lambda x: [x.astype(np.int32)],
    "left of 32": lambda x: x.astype(np.int32) * 65536,
    "left of 32 as floats": lambda x: x.astype(np.float64) * 65536,
}


@pytest.mark.parametrize("kind", WIDER)
def test_samples_of_16_bits_are_the_same_sound_in_any_type(encoder, alone, kind):
    samples = (alone[0][0] / alone[0][0].abs().max() * 32767).short().numpy()
    quiet = samples // 100  # what is quiet stays quiet
    for one in (samples, quiet):
        one = one // 32 * 32 if kind == "float16" else one
        torch.testing.assert_close(
            encoder.embed(WIDER[kind](one), RATE), encoder.embed(one, RATE), atol=1e-5, rtol=1e-5
        )


def test_samples_of_no_certain_scale_are_refused(encoder, alone):
    full = alone[0][0] / alone[0][0].abs().max()
    of_24 = (full * 2**22).round()
    for samples in (of_24, of_24.int(), of_24.long(), [of_24.numpy()]):
        with pytest.raises(ValueError, match="24 bits, or quiet ones of 32: divide them"):
            encoder.embed(samples, RATE)
    for loud in (full * 20000.5, full * 2.0**31, full * 1e31):  # not whole, far over full scale
        for way in (encoder.embed, encoder.embed_frames):
            with pytest.raises(ValueError, match=r"has a sample of .*, above 100") as caught:
                way(loud, RATE)
            assert "\n" not in str(caught.value)
    assert encoder.embed(full * (0.9 * LOUDEST), RATE).isfinite().all()
    square = full.sign()
    assert (encoder.embed(square, RATE) - encoder.embed(square * 0.99, RATE)).abs().max() < 0.1


def test_normalised_samples_are_embedded_with_one_warning(encoder, alone, monkeypatch, caplog):
    monkeypatch.setattr("ssmast.audio.long._named_loud", [])
    clip = alone[0][0]
    normalised = (clip - clip.mean()) / clip.std()  # as wav2vec2's feature extractor gives them
    peak = float(normalised.abs().max())
    hot = clip * (3.9 / clip.abs().max())
    encoder.embed(hot, RATE)
    assert not caplog.records
    for _ in range(3):
        encoder.embed(normalised * (8 / peak), RATE)
    (said,) = caplog.records
    assert "has a sample of 8, and full scale is 1" in said.getMessage()


@pytest.mark.parametrize("shape", [(16000, 2), (400, 2), (16000, 16), (100, 64)])
def test_samples_by_channels_are_no_batch(encoder, shape):
    for samples in (np.zeros(shape, np.float32), torch.zeros(shape), [np.zeros(shape)]):
        with pytest.raises(ValueError, match=r"looks like .samples, channels."):
            encoder.embed(samples, RATE)


@pytest.mark.parametrize(
    ("clip", "found"),
    [
        (np.array(["a.wav", "b.wav"]), "ndarray <U5"),
        (np.array(["a.wav"], dtype=object), "ndarray object"),
        ((name for name in ["a.wav"]), "generator"),
        ({"array": np.zeros(9), "sampling_rate": RATE}, "dict"),
        (b"RIFF", "bytes"),
    ],
)
def test_what_is_no_clip_is_told_from_a_list_of_them(encoder, clip, found):
    with pytest.raises(ValueError, match=f"got {found}; give a list of files, or samples and"):
        encoder.embed(clip)


@pytest.mark.parametrize(
    ("clip", "found"),
    [
        (torch.zeros(1, 9000, dtype=torch.int16), r"int16 \(1, 9000\)"),
        (torch.zeros(0, 9000), r"float32 \(0, 9000\)"),
        (np.zeros((1, 9000), np.float32), "ndarray"),
        ("a.wav", "str"),
    ],
)
def test_called_as_a_module_it_takes_float_tensors_alone(encoder, clip, found):
    with pytest.raises(
        ValueError, match=f"must be .batch, samples. of floats.* got {found}; an encoder's"
    ):
        encoder(clip)


def test_threads_that_embed_at_once_leave_a_training_encoder_training(alone):
    encoder = make_encoder()
    encoder.train()
    encoder.backbone.norm.eval()
    before = [module.training for module in encoder.modules()]
    first, second = threading.Barrier(2), threading.Barrier(2)
    pool, seen = encoder.statistics, []

    def meeting(log_mel, lengths=None):
        if threading.current_thread() is late:  # the other one comes and goes meanwhile
            first.wait(30)
            second.wait(30)
        seen.append(encoder.backbone.training)
        return pool(log_mel, lengths)

    encoder.statistics = meeting
    late = threading.Thread(target=lambda: encoder.embed(alone[0], RATE))
    late.start()
    first.wait(30)
    encoder.embed(alone[0], RATE)
    second.wait(30)
    late.join(30)
    assert seen == [False, False]
    assert [module.training for module in encoder.modules()] == before


@pytest.mark.parametrize("model", ["mast_nano", "ast_nano"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_encoder_of_another_type_embeds_in_it(model, dtype):
    encoder = make_encoder(model, window_seconds=1.0).eval()
    clips = [noise(8000, seed=1), noise(24000, seed=2)]
    wanted = encoder.embed(clips, RATE)
    frames, milliseconds = encoder.embed_frames(clips[1], RATE)
    other = copy.deepcopy(encoder).to(dtype)
    found = other.embed(clips, RATE)
    assert found.dtype == torch.float32
    tolerance = {torch.float16: 0.05, torch.bfloat16: 0.4, torch.float64: 1e-4}[dtype]
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)
    found_frames, found_milliseconds = other.embed_frames(clips[1], RATE)
    assert found_frames.dtype == torch.float32
    torch.testing.assert_close(found_frames, frames, atol=tolerance, rtol=tolerance)
    assert torch.equal(found_milliseconds, milliseconds)


def test_what_new_tensors_are_by_default_does_not_matter(encoder, alone):
    clips, wanted = alone
    frames, milliseconds = encoder.embed_frames(clips, RATE)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        found, found_frames = encoder.embed(clips, RATE), encoder.embed_frames(clips, RATE)
    finally:
        torch.set_default_dtype(before)
    assert {each.dtype for each in (found, *found_frames)} == {torch.float32}
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_frames[0], frames, atol=1e-5, rtol=1e-5)
    with torch.device("meta"):  # stands for a GPU: what is made without a word is not here
        found, found_frames = encoder.embed(clips, RATE), encoder.embed_frames(clips, RATE)
    assert torch.equal(found, wanted)
    assert torch.equal(found_frames[0], frames)
    assert torch.equal(found_frames[1], milliseconds)


def test_called_as_a_module_it_gives_the_embedding_with_its_gradient(alone):
    encoder, clips = make_encoder(), alone[0].clone().requires_grad_()
    network = torch.nn.Sequential(encoder, torch.nn.Linear(encoder.dim, 3)).train()
    network(clips).square().sum().backward()
    assert clips.grad is not None
    assert all(parameter.grad.abs().max() > 0 for parameter in encoder.parameters())
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.eval()(alone[0]), encoder.embed(alone[0], RATE), atol=1e-5, rtol=1e-5
        )


def test_copies_by_pickle_and_by_state_dict_embed_alike(encoder, alone, tmp_path):
    clips, wanted = alone
    assert torch.equal(pickle.loads(pickle.dumps(encoder)).embed(clips, RATE), wanted)
    encoder.save(tmp_path / "encoder")
    other = load_encoder(tmp_path / "encoder")
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    assert not torch.equal(other.embed(clips, RATE), wanted)
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other.embed(clips, RATE), wanted)
