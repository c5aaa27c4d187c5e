"""MAST with patches dropped: what is gone moves nothing, and what is kept keeps its place."""

import pytest
import torch

from ssmast.model import pool_tokens
from ssmast.model.patch import Tokens, drop_patches
from tests.model.test_mast import close, generator, nano


def test_a_dropped_patch_influences_nothing():
    net = nano()
    x = torch.randn(2, 1, 128, 96)
    drop = net.draw_patch_drop(128, 96, rate=0.4, mode="random", batch=2, generator=generator())

    def poison(module, inputs, outcome):
        tokens, columns = outcome
        x = tokens.x.masked_fill(~drop.keep[..., None], float("nan"))
        return tokens._replace(x=x), columns

    with torch.no_grad():
        clean = [tokens[mask] for tokens, _, mask, _ in [net.encode(x, patch_drop=drop)]]
        pooled = net(x, patch_drop=drop)
        handle = net.patch_embed.register_forward_hook(poison)
        dirty = [tokens[mask] for tokens, _, mask, _ in [net.encode(x, patch_drop=drop)]]
        dirty_pooled = net(x, patch_drop=drop)
        handle.remove()
        assert not torch.equal(pooled, net(x))
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(pooled, dirty_pooled)


@pytest.mark.parametrize("rate", [0.2, 0.9])
@pytest.mark.parametrize("mode", ["random", "structured"])
@pytest.mark.parametrize("frames", [24, 96, 203])
def test_patch_drop_fills_the_grid_and_gives_finite_numbers(mode, rate, frames):
    net = nano().train()
    x = torch.randn(2, 1, 128, frames)
    for seed in range(3):
        drop = net.draw_patch_drop(
            128, frames, rate=rate, mode=mode, batch=2, generator=generator(seed)
        )
        tokens, grid, _mask, _ = net.encode(x, patch_drop=drop)
        assert tokens.shape[1] == grid.freq * grid.time
        assert grid.full == net.grid_of(128, frames)[-1]
        net(x, patch_drop=drop).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_random_drop_and_padding_together_leave_every_clip_a_token():
    net = nano()
    x = torch.randn(2, 1, 128, 96)
    drop = net.draw_patch_drop(128, 96, rate=0.9, mode="random", batch=2, generator=generator())
    drop.keep[1] = False
    drop.keep[1, -1] = True  # in the padding of clip 1
    out = net(x, lengths=[96, 1], patch_drop=drop)
    assert out.isfinite().all()
    close(out[1:], net(x[1:, ..., :1]))


def test_structured_drop_of_clips_of_different_lengths_is_refused():
    net = nano()
    drop = net.draw_patch_drop(128, 96, rate=0.5, mode="structured", batch=2, generator=generator())
    with pytest.raises(ValueError, match="needs clips of one length"):
        net(torch.randn(2, 1, 128, 96), lengths=[96, 50], patch_drop=drop)


def test_a_drop_drawn_for_another_input_is_refused():
    net = nano()
    drop = net.draw_patch_drop(128, 80, rate=0.5, mode="random", batch=2, generator=generator())
    with pytest.raises(ValueError, match=r"stem grid \(32, 24\), got one for \(32, 20\)"):
        net(torch.randn(2, 1, 128, 96), patch_drop=drop)
    drop = net.draw_patch_drop(128, 96, rate=0.5, mode="random", batch=2, generator=generator())
    with pytest.raises(ValueError, match="drawn for 3 clips, got one for 2"):
        net(torch.randn(3, 1, 128, 96), patch_drop=drop)


def test_structured_drop_keeps_original_distances():
    # Keys are pooled away from the gap here, so the first block's logits of two kept tokens must
    # be those of the undropped clip: with content set aside, only positions speak.
    net = nano()
    attention = net.stages[0].blocks[0].attn
    grid = net.grid_of(128, 96)[0]
    drop = next(
        drop
        for drop in (
            net.draw_patch_drop(
                128, 96, rate=0.6, mode="structured", batch=1, generator=generator(seed)
            )
            for seed in range(99)
        )
        if len(drop.columns) == 16 and drop.columns[8] == 16 and len(drop.rows) < 32
    )
    tokens = torch.randn(1, grid.freq * grid.time, 32)
    _, kept_grid, _, _ = net.encode(torch.randn(1, 1, 128, 96), patch_drop=drop)
    assert kept_grid == (len(drop.rows) // 4, 2)
    assert kept_grid.positions(1).tolist() == [0, 2]
    kept, stem_grid, *_ = drop_patches(Tokens(tokens, grid), drop)
    freq, time = attention._bias(tokens[:, None], grid, net._stretch(grid, None))
    kept_freq, kept_time = attention._bias(kept[:, None], stem_grid, net._stretch(grid, None))
    freq, time = freq.unflatten(2, grid[:]), time.unflatten(2, grid[:])
    rows, columns = drop.rows, drop.columns
    close(
        kept_freq.unflatten(2, stem_grid[:]),
        freq[:, :, rows][:, :, :, columns][..., rows[::4] // 4],
    )
    close(
        kept_time.unflatten(2, stem_grid[:]),
        time[:, :, rows][:, :, :, columns][..., columns[::4] // 4],
    )


def test_nothing_dropped_is_the_plain_encoder():
    net = nano()
    x = torch.randn(2, 1, 128, 96)
    drop = net.draw_patch_drop(128, 96, rate=0, mode="structured", batch=2)
    assert torch.equal(net(x, patch_drop=drop), net(x))


@pytest.mark.parametrize("mode", [None, "random", "structured"])
def test_clip_1_cannot_move_clip_0(mode):
    net = nano().train()
    x = torch.randn(2, 1, 128, 96)
    other = x.clone()
    other[1] = torch.randn(1, 128, 96) * 50
    drop = mode and net.draw_patch_drop(
        128, 96, rate=0.3, mode=mode, batch=2, generator=generator()
    )
    assert torch.equal(net(x, patch_drop=drop)[0], net(other, patch_drop=drop)[0])


def test_structured_drop_saves_its_share_of_the_products():
    from torch.utils.flop_counter import FlopCounterMode

    net = nano(attention_path="reference").train()
    x = torch.randn(2, 1, 128, 96)

    def cost(drop):
        with FlopCounterMode(display=False) as counter:
            net(x, patch_drop=drop).sum().backward()
        return counter.get_total_flops()

    costs = []
    for choice in (0.0, 0.99):  # the larger and the smaller of the two shares it mixes
        uniforms = torch.rand(12, generator=generator())
        uniforms[-1] = choice
        costs.append(
            cost(
                net.draw_patch_drop(
                    128, 96, rate=0.2, mode="structured", batch=2, uniforms=uniforms
                )
            )
            / cost(None)
        )
    # Shares 0.875 and 0.75, drawn 2 : 3; keys fall with queries, so products fall a little faster.
    assert costs[0] < 0.875
    assert costs[1] < 0.75
    assert 0.4 * costs[0] + 0.6 * costs[1] < 0.8


def test_pooling_by_row_has_one_length_whatever_was_dropped():
    net = nano()
    x = torch.randn(1, 1, 128, 96)
    whole = pool_tokens(net.encode(x), mode="freq+max")
    for seed in range(4):
        drop = net.draw_patch_drop(
            128, 96, rate=0.5, mode="structured", batch=1, generator=generator(seed)
        )
        tokens, grid, _, _ = net.encode(x, patch_drop=drop)
        assert pool_tokens(Tokens(tokens, grid), mode="freq+max").shape == whole.shape


def test_structured_drop_of_a_fifth_saves_at_least_15_percent_of_the_arithmetic():
    from torch.utils.flop_counter import FlopCounterMode

    net = nano().train()
    x = torch.randn(2, 1, 128, 96)
    uniforms = torch.rand(12, generator=generator())
    drops = [None]
    for choice in (0.0, 0.99):
        uniforms[-1] = choice
        drops.append(
            net.draw_patch_drop(128, 96, rate=0.2, mode="structured", batch=2, uniforms=uniforms)
        )

    def flops(drop):
        with FlopCounterMode(display=False) as counter:
            net(x, patch_drop=drop).square().mean().backward()
        return counter.get_total_flops()

    whole, more, less = map(flops, drops)
    # The two shares are drawn 2 : 3. Time, which follows, is what benchmarks/encoder.py measures.
    assert (0.4 * more + 0.6 * less) / whole < 0.85
