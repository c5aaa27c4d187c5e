import numpy as np
import pytest
import torch
from torch.nn import functional

from ssmast.audio.augment import (
    Mask,
    Noise,
    ResizedCrop,
    TimeShift,
    ViewAugment,
    log_mixup,
    resized_crop,
    white_noise,
)
from ssmast.audio.order import keyed_uniform

MEAN, STD = -7.0, 4.0


def batch(num=4, freq=16, frames=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return MEAN + STD * torch.randn(num, 1, freq, frames, generator=generator)


def draws_for(num, seed=0):
    return torch.from_numpy(keyed_uniform(seed, 0, np.arange(num), 0, ViewAugment.num_draws))


def view(log_mel, augment, *, draws=None, background=None):
    draws = draws_for(len(log_mel)) if draws is None else draws
    return augment(log_mel, draws=draws, background=background, mean=MEAN, std=STD)


def plain(*steps, mixup_rate=0.0, **settings):
    """No crop, no mixup, nothing but what is asked for."""
    off = {"freq": (1.0, 1.0), "time": (1.0, 1.0), "canvas": (1, 1)}
    return ViewAugment(ResizedCrop(**{**off, **settings}), *steps, mixup_rate=mixup_rate)


def everything():
    return ViewAugment(ResizedCrop(), Noise(0.2), Mask("freq", 4), Mask("time", 6))


def test_with_everything_off_a_view_is_the_normalised_log_mel():
    log_mel = batch()
    out = view(log_mel, plain(), background=batch(seed=1))
    torch.testing.assert_close(out, (log_mel - MEAN) / STD, atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.1, 0.4, 0.999, 1.0])
def test_mixup_equals_its_closed_form(share):
    log_mel, background = batch(), batch(seed=1)
    mixed = log_mixup(log_mel, background, fraction=torch.full((4,), share))
    share = np.float64(np.float32(share))
    expected = np.log(
        (1 - share) * np.exp(log_mel.double().numpy()) + share * np.exp(background.double().numpy())
    )
    np.testing.assert_allclose(mixed.numpy(), expected, atol=1e-5)


def test_mixup_survives_extreme_levels():
    log_mel = torch.tensor([-90.0, 90.0, 90.0]).reshape(3, 1, 1, 1)
    background = torch.tensor([90.0, -90.0, 90.0]).reshape(3, 1, 1, 1)
    mixed = log_mixup(log_mel, background, fraction=torch.full((3,), 0.25)).flatten()
    expected = [90 + np.log(0.25), 90 + np.log(0.75), 90.0]
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)


def test_a_view_mixes_in_at_most_the_mixup_rate():
    log_mel, background = batch(64), batch(64, seed=1)
    augment = plain(mixup_rate=0.4)
    # In the exp domain of normalised values, as BYOL-A mixes.
    out = view(log_mel, augment, background=background)
    power, other = (((x - MEAN) / STD).exp() for x in (log_mel, background))
    share = ((out.exp() - power) / (other - power)).flatten(1).median(dim=1).values
    torch.testing.assert_close(share, 0.4 * draws_for(64)[:, 0], atol=1e-3, rtol=0)


def test_a_crop_of_the_whole_gives_the_input_back():
    log_mel = batch()
    zeros, freq, frames = (torch.full((4,), n) for n in (0, 16, 24))
    out = resized_crop(log_mel, bottom=zeros, left=zeros, height=freq, width=frames)
    torch.testing.assert_close(out, log_mel, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("bottom", "left", "height", "width"),
    [(0, 0, 16, 12), (3, 5, 10, 17), (0, -6, 16, 36), (2, 10, 9, 20), (-4, 0, 24, 5)],
)
def test_a_crop_equals_torch_interpolate_of_the_slice(bottom, left, height, width):
    log_mel = batch(3)
    padded = functional.pad(log_mel, (40, 40, 40, 40))
    window = padded[:, :, 40 + bottom :, 40 + left :][:, :, :height, :width]
    expected = functional.interpolate(window, size=(16, 24), mode="bicubic", align_corners=False)
    out = resized_crop(
        log_mel,
        bottom=torch.tensor([bottom] * 3),
        left=torch.tensor([left] * 3),
        height=torch.tensor([height] * 3),
        width=torch.tensor([width] * 3),
    )
    # `interpolate` repeats the window's edge; the two agree from two of its cells inwards.
    freq, time = -(-2 * 16 // height), -(-2 * 24 // width)
    inside = (..., slice(freq, 16 - freq), slice(time, 24 - time))
    assert out[inside].numel() > 0
    torch.testing.assert_close(out[inside], expected[inside], atol=1e-4, rtol=0)


def test_beyond_the_clip_a_crop_is_zero():
    log_mel = torch.ones(1, 1, 16, 24)
    box = {"bottom": [0], "left": [-12], "height": [16], "width": [36]}
    out = resized_crop(log_mel, **{name: torch.tensor(value) for name, value in box.items()})
    assert (out[..., 2:-2, :7] == 0).all()  # the first 8 of 24 cells look at the 12 frames of zeros
    torch.testing.assert_close(out[..., 2:-2, 10:-2], torch.ones(1, 1, 12, 12))


def test_each_clip_has_a_crop_of_its_own():
    log_mel = batch(3)
    boxes = {"bottom": [0, 2, -1], "left": [1, -3, 0], "height": [16, 9, 12], "width": [8, 30, 24]}
    together = resized_crop(log_mel, **{name: torch.tensor(v) for name, v in boxes.items()})
    for n in range(3):
        alone = resized_crop(
            log_mel[n : n + 1], **{name: torch.tensor(v[n : n + 1]) for name, v in boxes.items()}
        )
        torch.testing.assert_close(together[n : n + 1], alone)


def test_crop_sizes_and_places_follow_their_draws():
    """A ramp along time shows where a crop starts and ends."""
    frames = 200
    log_mel = (torch.arange(frames) * STD + MEAN).expand(300, 1, 4, frames).clone()
    augment = plain(time=(0.6, 1.5), canvas=(1.0, 1.5))
    draws = draws_for(300)
    out = view(log_mel, augment, draws=draws)[:, 0, 0]  # the ramp itself, zero outside
    width = ((0.6 + 0.9 * draws[:, 2]) * frames).long().clamp(max=300)
    left = (draws[:, 4] * (300 - width + 1)).long() - 50
    inside = (left >= 0) & (left + width <= frames)
    assert 10 < inside.sum() < 290
    step = width[inside] / frames
    middle = left[inside] + 100.5 * step - 0.5
    # The kernel (a = -0.75) bends a ramp by up to 0.05 between the samples.
    torch.testing.assert_close(out[inside][:, 100], middle, atol=0.06, rtol=0)
    before = left < -20
    assert before.any()
    assert (out[before][:, :5] == 0).all()
    assert width.min() < 130
    assert width.max() > 290


def test_a_crop_is_cut_down_to_the_canvas():
    draws = draws_for(50)
    tall = plain(freq=(1.5, 1.5), canvas=(1.0, 1.0))
    assert torch.equal(view(batch(50), tall, draws=draws), view(batch(50), plain(), draws=draws))


@pytest.mark.parametrize(("name", "axis", "size"), [("freq", 2, 16), ("time", 3, 24)])
def test_a_mask_is_one_band_of_zeros_no_wider_than_asked(name, axis, size):
    log_mel = batch(400)
    out = view(log_mel, plain(Mask(name, 5)))
    hidden = (out == 0).all(dim=5 - axis).squeeze(1)  # (B, size)
    widths = hidden.sum(dim=1)
    assert np.bincount(widths, minlength=6).min() > 40  # 0 to 5, all of them
    assert widths.max() == 5
    edges = hidden.int().diff(dim=1).abs().sum(dim=1)
    assert edges.max() <= 2
    assert hidden.float().mean(dim=0).min() > 0.02  # every place is reached
    shown = ~hidden.unsqueeze(1).unsqueeze(5 - axis).expand_as(out)
    torch.testing.assert_close(out[shown], ((log_mel - MEAN) / STD)[shown])
    assert hidden.shape[1] == size


def test_noise_is_normal_and_belongs_to_the_clip():
    draws = draws_for(8)[:, 11]
    noise = white_noise(draws, (8, 1, 128, 96))
    flat = noise.flatten(1).double()
    assert abs(flat.mean()) < 0.01
    assert flat.std() == pytest.approx(1, abs=0.01)
    assert (flat**4).mean() == pytest.approx(3, abs=0.1)
    assert torch.corrcoef(flat).triu(1).abs().max() < 0.04
    assert abs(torch.corrcoef(torch.stack([flat[0, 1:], flat[0, :-1]]))[0, 1]) < 0.03
    torch.testing.assert_close(white_noise(draws[3:4], (1, 1, 128, 96)), noise[3:4])
    added = view(batch(8), plain(Noise(0.1))) - view(batch(8), plain())
    std = 0.1 * draws_for(8)[:, 5]
    torch.testing.assert_close(added.std(dim=(1, 2, 3)), std, atol=0.01, rtol=0)


@pytest.mark.parametrize("step", [TimeShift(0), Noise(0.0), Mask("freq", 0), Mask("time", 0)])
def test_a_strength_of_0_changes_nothing(step):
    assert torch.equal(view(batch(), plain(step)), view(batch(), plain()))


def test_a_further_augmentation_moves_no_draw_of_the_others():
    background = batch(seed=1)
    one, other = ViewAugment(ResizedCrop()), ViewAugment(ResizedCrop(), Mask("freq", 4))
    first, second = (view(batch(), augment, background=background) for augment in (one, other))
    same = (first == second).all(dim=3).squeeze(1)  # (B, F)
    assert (second.squeeze(1)[~same] == 0).all()
    assert 12 * 4 <= same.sum() < 16 * 4


def test_one_clip_cannot_move_another():
    augment = everything()
    log_mel, background, draws = batch(5), batch(5, seed=1), draws_for(5)
    before = view(log_mel, augment, draws=draws, background=background)
    log_mel[1] = 50.0
    background[1] = float("nan")
    draws[1] = 0.99
    after = view(log_mel, augment, draws=draws, background=background)
    keep = [0, 2, 3, 4]
    assert torch.equal(before[keep], after[keep])
    alone = view(log_mel[3:4], augment, draws=draws[3:4], background=background[3:4])
    torch.testing.assert_close(alone, after[3:4], atol=1e-5, rtol=0)


def test_the_same_draws_give_the_same_view_and_others_another():
    augment = everything()
    log_mel = batch(3)
    first = view(log_mel, augment)
    assert torch.equal(first, view(log_mel, augment))
    other = view(log_mel, augment, draws=draws_for(3, seed=1))
    assert not torch.isclose(first, other).all()
    assert first.shape == log_mel.shape


def test_inputs_are_left_alone_and_half_precision_comes_out_in_float32():
    augment = everything()
    log_mel, draws = batch(3), draws_for(3)
    copies = log_mel.clone(), draws.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = view(log_mel, augment, draws=draws, background=batch(3, seed=1).half())
    assert out.dtype == torch.float32
    assert torch.equal(log_mel, copies[0])
    assert torch.equal(draws, copies[1])
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("extreme", [0.0, 1 - 2.0**-24])
def test_extreme_draws_stay_in_range(extreme):
    augment = everything()
    draws = torch.full((2, ViewAugment.num_draws), extreme)
    out = view(batch(2), augment, draws=draws, background=batch(2, seed=1))
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(("freq", "frames"), [(1, 1), (128, 1), (5, 300)])
def test_any_size_works(freq, frames):
    log_mel = batch(3, freq, frames)
    out = view(log_mel, everything(), background=log_mel)
    assert out.shape == log_mel.shape
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ViewAugment(mixup_rate=1.5), r"mixup_rate must lie in \[0, 1\], got 1.5"),
        (lambda: ResizedCrop(time=(1.5, 0.6)), "crop_time must be two rising factors"),
        (lambda: ResizedCrop(canvas=(0.9, 1.0)), r"canvas must be at least \(1, 1\)"),
        (lambda: Mask("freq", -1), "freq_mask must not be negative, got -1"),
        (lambda: ViewAugment(*[ResizedCrop()] * 3), "must take at most 11 draws, got 12"),
    ],
)
def test_impossible_settings_are_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()


def test_clips_of_different_lengths_are_not_cropped():
    with pytest.raises(ValueError, match="different lengths cannot be cropped"):
        ResizedCrop()(batch(), draws_for(4)[:, :4], lengths=torch.full((4,), 9))


def test_wrong_shapes_are_refused():
    augment = ViewAugment()
    with pytest.raises(ValueError, match=r"log_mel must be \(B, 1, F, T\), got \(4, 16, 24\)"):
        view(batch()[:, 0], augment)
    with pytest.raises(ValueError, match=r"draws must be \(4, 12\), got \(3, 12\)"):
        view(batch(), augment, draws=draws_for(3))
    with pytest.raises(ValueError, match="background must have the shape of log_mel"):
        view(batch(), augment, background=batch(3))
