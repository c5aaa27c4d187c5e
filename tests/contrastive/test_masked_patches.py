"""SSAST: which patches are hidden, that nothing of them is seen, and both losses."""

import math

import pytest
import torch
from torch.nn import functional as F

from ssmast.contrastive import MaskedPatchHeads, cut_patches, draw_masked_patches, masked_patch_loss
from ssmast.model import Grid, create_model


def draws(batch: int, num: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 1 + num, generator=torch.Generator().manual_seed(seed))


def hidden_one_by_one(grid: Grid, num_masked: int, side: int, moments: torch.Tensor) -> set[int]:
    """The same in words: squares fall in the order of their moments until enough is hidden."""
    hidden: list[int] = []
    for anchor in moments.argsort().tolist():
        row, column = divmod(anchor, grid.time)
        for cell in range(grid.freq * grid.time):
            near = (cell // grid.time - row + (side - 1) // 2, cell % grid.time - column)
            inside = 0 <= near[0] < side and 0 <= near[1] + (side - 1) // 2 < side
            if inside and cell not in hidden and len(hidden) < num_masked:
                hidden.append(cell)
    return set(hidden)


@pytest.mark.parametrize("num_masked", [1, 37, 100, 127])
@pytest.mark.parametrize("side", [1, 3, 4, 5])
def test_squares_fall_until_enough_is_hidden(num_masked, side):
    grid, rows = Grid(8, 16), draws(4, 128)
    masked = draw_masked_patches(grid, num_masked=num_masked, cluster=(side, side), draws=rows)
    assert masked.sum(dim=1).tolist() == [num_masked] * 4
    for clip in range(4):
        wanted = hidden_one_by_one(grid, num_masked, side, rows[clip, 1:])
        assert set(masked[clip].nonzero()[:, 0].tolist()) == wanted


def test_clusters_are_wider_than_single_patches_and_all_sizes_occur():
    def neighbours(masked: torch.Tensor) -> float:
        rows = masked.unflatten(1, (8, 64))
        return float((rows[:, :, 1:] & rows[:, :, :-1]).float().mean())

    grid, rows = Grid(8, 64), draws(200, 512)
    single = draw_masked_patches(grid, num_masked=150, cluster=(1, 1), draws=rows)
    square = draw_masked_patches(grid, num_masked=150, cluster=(3, 5), draws=rows)
    assert neighbours(square) > 2 * neighbours(single)
    alike = [
        (square[i] == draw_masked_patches(
            grid, num_masked=150, cluster=(side, side), draws=rows[i : i + 1]
        )[0]).all()
        for i in range(60)
        for side in (3, 4, 5)
    ]  # fmt: skip
    by_side = torch.stack(alike).view(60, 3)
    assert (by_side.sum(dim=1) == 1).all()  # each clip has one side ...
    assert (by_side.sum(dim=0) > 10).all()  # ... and each of the three occurs


def test_every_patch_is_hidden_equally_often():
    masked = draw_masked_patches(Grid(8, 16), num_masked=40, cluster=(1, 1), draws=draws(4000, 128))
    share = masked.float().mean(dim=0)
    assert float((share - 40 / 128).abs().max()) < 5 * math.sqrt(0.31 * 0.69 / 4000)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_masked": 0}, "1 to 31"),
        ({"num_masked": 32}, "1 to 31"),
        ({"cluster": (5, 3)}, "range"),
        ({"cluster": (0, 3)}, "range"),
        ({"draws": torch.rand(2, 32)}, "draws must be"),
    ],
)
def test_what_cannot_be_hidden_is_refused(change, word):
    good = {"num_masked": 10, "cluster": (3, 5), "draws": draws(2, 32)}
    with pytest.raises(ValueError, match=word):
        draw_masked_patches(Grid(4, 8), **{**good, **change})


@pytest.mark.parametrize("model", ["ssast_nano", "ssast_frame_nano"])
def test_what_is_hidden_moves_nothing_and_what_is_shown_does(model):
    torch.manual_seed(0)
    net = create_model(model, num_classes=0, input_size=(64, 96)).eval()
    grid, size = net.grid_of(64, 96)[0], net.patch_embed.kernel
    num = grid.freq * grid.time
    x = torch.randn(2, 1, 64, 96)
    masked = draw_masked_patches(grid, num_masked=num // 2, cluster=(1, 1), draws=draws(2, num))
    token = torch.randn(128)
    other = cut_patches(torch.randn(2, 1, 64, 96), size=size)
    patches = cut_patches(x, size=size)

    def image(rows: torch.Tensor) -> torch.Tensor:
        return F.fold(rows.transpose(1, 2), (64, 96), kernel_size=size, stride=size)

    with torch.no_grad():
        tokens, seen, mask, _ = net.encode_masked(x, masked=masked, mask_token=token)
        changed = image(torch.where(masked[..., None], other, patches))
        again, *_ = net.encode_masked(changed, masked=masked, mask_token=token)
        torch.testing.assert_close(tokens, again, rtol=0, atol=0)
        moved = image(torch.where(masked[..., None], patches, other))
        shown, *_ = net.encode_masked(moved, masked=masked, mask_token=token)
        assert not torch.allclose(tokens, shown)
        # Nothing hidden: the encoder as everywhere else.
        plain, *_ = net.encode_masked(x, masked=torch.zeros_like(masked), mask_token=token)
        torch.testing.assert_close(plain, net.encode(x)[0], rtol=0, atol=0)
    assert (seen, mask) == (grid, None)


def test_overlapping_patches_and_a_wrong_mask_are_refused():
    x = torch.randn(1, 1, 64, 96)
    hidden, token = torch.zeros(1, 24, dtype=torch.bool), torch.zeros(128)
    net = create_model("ast_nano", num_classes=0, input_size=(64, 96))
    with pytest.raises(ValueError, match="must not overlap"):
        net.encode_masked(x, masked=hidden, mask_token=token)
    net = create_model("ssast_nano", num_classes=0, input_size=(64, 96))
    with pytest.raises(ValueError, match=r"masked must be \(1, 24\), got \(1, 23\)"):
        net.encode_masked(x, masked=hidden[:, :23], mask_token=token)


def test_patches_are_those_that_the_stem_sees():
    x = torch.randn(2, 1, 64, 96)
    net = create_model("ssast_nano", num_classes=0, input_size=(64, 96))
    (tokens, *_), _ = net.patch_embed(x)
    proj = net.patch_embed.proj
    ours = cut_patches(x, size=(16, 16)) @ proj.weight.flatten(1).T + proj.bias
    torch.testing.assert_close(ours, tokens, rtol=0, atol=1e-5)


def test_loss_of_equal_patches_is_log_m_and_of_a_sure_guess_zero():
    alike = torch.randn(2, 1, 16).expand(-1, 30, -1)
    loss = masked_patch_loss(torch.randn(2, 30, 16), alike, alike)
    assert float(loss.discriminative) == pytest.approx(math.log(30), abs=1e-5)
    assert float(loss.generative) == 0
    assert float(loss.accuracy) == 0  # nothing tells equal patches apart
    patches = torch.eye(16)[None]
    loss = masked_patch_loss(100 * patches, patches + 2, patches)
    assert float(loss.discriminative) == pytest.approx(0, abs=1e-6)
    assert float(loss.generative) == pytest.approx(4)
    assert float(loss.accuracy) == 1


def test_losses_are_the_papers_sums():
    """Equations 1 and 2, patch by patch in float64."""
    guess, made, patches = torch.randn(3, 2, 7, 5, dtype=torch.float64).unbind()
    nats, squares = [], []
    for b in range(2):
        for i in range(7):
            scores = [float(guess[b, i] @ patches[b, j]) for j in range(7)]
            nats.append(-math.log(math.exp(scores[i]) / sum(map(math.exp, scores))))
            squares.append(float(((made[b, i] - patches[b, i]) ** 2).mean()))
    loss = masked_patch_loss(guess, made, patches)
    assert float(loss.discriminative) == pytest.approx(sum(nats) / 14, rel=1e-5)
    assert float(loss.generative) == pytest.approx(sum(squares) / 14, rel=1e-5)


def test_losses_stay_in_float32_under_autocast():
    guess, patches = torch.randn(2, 1, 9, 64)
    plain = masked_patch_loss(guess, patches, patches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = masked_patch_loss(guess, patches, patches)
    torch.testing.assert_close(plain, same, rtol=0, atol=0)


def test_published_shapes():
    """512 patches or frames of 256 numbers each, of which 400 are hidden."""
    with torch.device("meta"):
        for model, grid in (("ssast_base", (8, 64)), ("ssast_frame_base", (1, 512))):
            net = create_model(model, num_classes=0)
            assert net.grid_of(128, 1024)[0] == grid
            rows, columns = net.patch_embed.kernel
            heads = MaskedPatchHeads(net.num_features, patch_dim=rows * columns)
            guess, made = heads(torch.empty(1, 400, 768))
            assert guess.shape == made.shape == (1, 400, 256)
