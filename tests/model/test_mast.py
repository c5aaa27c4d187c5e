"""The encoder: its tables, any input, batches of different lengths, compiled."""

import pytest
import torch

from ssmast.model import create_model
from ssmast.model.block import PoolingAttention

# Ablations of Zhu & Omar 2023, §4: strides of the four stages, and tokens after the last stage.
SCHEDULES = {
    "table 1": (((1, 1), (2, 2), (2, 2), (1, 2)), (8, 32)),
    "2-D in block 21": (((1, 1), (2, 2), (2, 2), (2, 2)), (4, 32)),
    "two operators": (((1, 1), (2, 2), (2, 2), (1, 1)), (8, 64)),
    "only the first": (((1, 1), (2, 2), (1, 1), (1, 1)), (16, 128)),
    "none": (((1, 1), (1, 1), (1, 1), (1, 1)), (32, 256)),
}


def nano(frames: int = 96, **numbers):
    torch.manual_seed(1)
    numbers = {"num_classes": 0, "input_size": (128, frames), **numbers}
    return create_model("mast_nano", **numbers).eval()


def close(ours: torch.Tensor, reference: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, reference, rtol=0, atol=atol)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- the tables ----------------------------------------------------------------------------------


def test_base_is_table_1():
    with torch.device("meta"):
        net = create_model("mast_base", num_classes=527)
        outcomes = net.encode_blocks(torch.empty(1, 1, 128, 1024))
    assert net.patch_embed.proj.weight.shape == (96, 1, 7, 7)
    sizes = [(tokens.shape[-1], *grid) for tokens, grid, *_ in outcomes]
    assert sizes == (
        [(96, 32, 256)] * 2 + [(192, 16, 128)] * 3 + [(384, 8, 64)] * 16 + [(768, 8, 32)] * 3
    )
    assert sum(parameter.numel() for parameter in net.parameters()) == 51_379_919
    assert net.head.fc.weight.shape == (527, 768)


@pytest.mark.parametrize("row", SCHEDULES)
def test_every_ablation_of_the_paper_is_one_call(row):
    stride_q, last = SCHEDULES[row]
    net = nano(1024, stride_q=stride_q)
    grids = net.grid_of(128, 1024)
    assert grids[0] == (32, 256)
    assert grids[-1] == last
    small = torch.randn(1, 1, 64, 64)
    tokens, grid, _, _ = net.encode(small)
    assert grid == net.grid_of(64, 64)[-1]
    assert tokens.shape == (1, grid.freq * grid.time, 256)


def test_the_other_papers_stem_and_depths_are_one_call():
    numbers = {"stem_kernel": (16, 16), "stem_stride": (10, 10), "stem_padding": (0, 0)}
    net = nano(512, depths=(1, 2, 11, 2), **numbers)
    assert net.grid_of(128, 1024)[0] == (12, 101)  # AST's patches
    assert [len(stage.blocks) for stage in net.stages] == [1, 2, 11, 2]
    tokens, grid, _, _ = net.encode(torch.randn(2, 1, 128, 200))
    assert tokens.shape == (2, grid.freq * grid.time, 256)


def test_nano_is_small_enough_for_a_cpu():
    net = create_model("mast_nano", num_classes=0)
    assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(
        1.2e6, rel=0.05
    )
    heads = {module.head_dim for module in net.modules() if isinstance(module, PoolingAttention)}
    assert heads == {32}


def test_blocks_are_told_one_by_one_and_the_last_one_is_normed():
    net = nano()
    x = torch.randn(2, 1, 128, 96)
    outcomes = net.encode_blocks(x)
    assert len(outcomes) == 5
    assert net.stage_ends == [0, 1, 3, 4]
    tokens, grid, mask, _ = net.encode(x)
    assert torch.equal(outcomes[-1][0], tokens)
    assert outcomes[-1][1] == grid
    assert mask is None
    ends = net.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    for index, end in zip(net.stage_ends[:-1], ends[:-1], strict=True):
        assert torch.equal(outcomes[index][0], end)


def test_every_parameter_gets_gradient():
    net = nano(num_classes=7, global_pool="attention").train()
    net(torch.randn(4, 1, 128, 96)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        # A key bias shifts all logits of a query alike: its true gradient is zero.
        if not name.endswith("norm_k.bias"):
            assert parameter.grad.abs().max() > 0, name


def test_weights_start_as_in_mvitv2():
    net = nano(num_classes=50)
    for name, parameter in net.named_parameters():
        if name.endswith("rel_pos_time") or name.endswith(("fc1.weight", "qkv.weight")):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25), name
        if name.endswith(("fc.bias", "fc1.bias", "qkv.bias")):
            assert (parameter == 0).all(), name


# -- any input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mels", [64, 80, 128, 255, 256])
@pytest.mark.parametrize("frames", [21, 96, 333])
@pytest.mark.parametrize("long_input", ["interpolate", "clamp"])
def test_any_size_works_and_tokens_fill_the_grid_at_every_stage(mels, frames, long_input):
    net = nano(long_input=long_input)
    with torch.no_grad():
        outcomes = net.encode_blocks(torch.randn(1, 1, mels, frames))
    grids = net.grid_of(mels, frames)[1:]
    assert [outcomes[index][1] for index in net.stage_ends] == grids
    for tokens, grid, *_ in outcomes:
        assert tokens.shape[1] == grid.freq * grid.time
        assert tokens.isfinite().all()


@pytest.mark.slow
def test_a_minute_of_sound_works():
    with torch.no_grad():
        assert nano()(torch.randn(1, 1, 128, 6001)).isfinite().all()


@pytest.mark.parametrize("long_input", ["interpolate", "clamp"])
@pytest.mark.parametrize(
    "lengths", [(96, 21, 57), (300, 22, 131), (97, 96, 95), (205, 205, 205), (160, 1, 41)]
)
def test_each_clip_of_a_padded_batch_gets_the_embedding_it_gets_alone(lengths, long_input):
    net = nano(long_input=long_input)
    batch = torch.full((3, 1, 128, max(lengths)), float("nan"))  # padding may hold anything
    clips = [torch.randn(1, 1, 128, length) for length in lengths]
    for row, clip in zip(batch, clips, strict=True):
        row[..., : clip.shape[-1]] = clip
    with torch.no_grad():
        tokens, grid, mask, _ = net.encode(batch, lengths=list(lengths))
        together = net(batch, lengths=torch.tensor(lengths))
        for index, clip in enumerate(clips):
            close(together[index : index + 1], net(clip))
            alone, alone_grid, _, _ = net.encode(clip)
            kept = tokens[index][mask[index]]
            close(kept, alone[0])
            rows = mask[index].unflatten(0, grid[:]).sum(1)
            assert (rows == alone_grid.time).all()


def test_the_other_stem_and_attention_pooling_keep_batches_exact():
    numbers = {"stem_kernel": (16, 16), "stem_stride": (10, 10), "stem_padding": (0, 0)}
    net = nano(100, num_classes=5, global_pool="attention", **numbers)
    batch = torch.randn(2, 1, 128, 260)
    with torch.no_grad():
        together = net(batch, lengths=[260, 47])
        close(together[:1], net(batch[:1]))
        close(together[1:], net(batch[1:, ..., :47]))


@pytest.mark.parametrize(
    ("stride_q", "stride_kv"),
    [
        (((1, 1), (3, 3), (1, 2), (2, 1)), (9, 9)),
        (((2, 4), (1, 1), (2, 1), (1, 4)), (4, 8)),
        (((1, 1), (1, 1), (1, 1), (1, 1)), (4, 4)),
    ],
)
def test_any_schedule_of_strides_keeps_batches_exact(stride_q, stride_kv):
    net = nano(50, stride_q=stride_q, stride_kv=stride_kv)
    batch = torch.randn(2, 1, 70, 83)
    drop = net.draw_patch_drop(70, 83, rate=0.5, mode="random", batch=2, generator=generator())
    with torch.no_grad():
        together = net(batch, lengths=[83, 38])
        close(together[:1], net(batch[:1]))
        close(together[1:], net(batch[1:, ..., :38]))
        assert net(batch, patch_drop=drop).isfinite().all()
        tokens, grid, _, _ = net.encode(batch)
    assert grid == net.grid_of(70, 83)[-1]
    assert tokens.shape[1] == grid.freq * grid.time


def test_a_longer_input_reads_the_position_tables_stretched():
    # With tables that are linear in the distance, stretching them is a known change of values.
    net = nano(32)
    attention = net.stages[0].blocks[0].attn
    slope = torch.linspace(-1, 1, len(attention.rel_pos_time))[:, None]
    with torch.no_grad():
        attention.rel_pos_time.copy_(slope.expand_as(attention.rel_pos_time))
    q = torch.ones(1, 1, 16 * 16, 32)
    grid = net.grid_of(64, 64)[0]
    _, short = attention._bias(q, grid, net._stretch(net.train_grid, None))
    _, long = attention._bias(q, grid, net._stretch(grid, None))
    assert grid == (16, 16)
    # Query in column 0, second key in column 4: distance -4, twice the training length makes it -2.
    moved = (long - short)[0, 0, 0, 1].item()
    per_cell = 2 / (len(slope) - 1)
    assert moved == pytest.approx(2 * per_cell * 32, rel=1e-4)


def test_lengths_that_do_not_fit_are_refused():
    net = nano()
    x = torch.randn(2, 1, 128, 96)
    with pytest.raises(ValueError, match=r"must lie in 1\.\.96 frames, got 50\.\.97"):
        net.encode(x, lengths=[50, 97])
    with pytest.raises(ValueError, match=r"got 0\.\.96"):
        net.encode(x, lengths=[0, 96])
    with pytest.raises(ValueError, match="one number for each of 2 clips"):
        net.encode(x, lengths=[96])


def test_wrong_input_and_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match=r"shape \(B, 1, mel bins, frames\), got \(2, 3"):
        nano()(torch.randn(2, 3, 128, 96))
    with pytest.raises(ValueError, match="one stride for each of the 4 stages, got 3"):
        nano(stride_q=((1, 1), (2, 2), (2, 2)))
    with pytest.raises(ValueError, match="long_input must be one of interpolate, clamp, got 'cut'"):
        nano(long_input="cut")
    with pytest.raises(ValueError, match=r"attention_path must be one of auto, .* got 'flash'"):
        nano(attention_path="flash")
    with pytest.raises(ValueError, match=r"pooling must be mean, freq, max, .* got 'median'"):
        nano(global_pool="median")
    with pytest.raises(ValueError, match="strides must divide one another, got 3 and 4"):
        nano(stride_q=((3, 3), (1, 1), (1, 1), (1, 1)), stride_kv=(12, 12))


@pytest.mark.parametrize("path", ["reference", "mask", "augmented"])
def test_attention_paths_give_one_encoder(path):
    x = torch.randn(2, 1, 128, 130)
    close(nano(attention_path=path)(x, lengths=[130, 40]), nano()(x, lengths=[130, 40]))


# -- compiled ------------------------------------------------------------------------------------


def test_the_encoder_is_one_graph():
    net = nano()
    x = torch.randn(2, 1, 128, 96)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers", [{}, {"num_classes": 3, "pool_layers": "2-3", "global_pool": "freq+max+std"}]
)
def test_the_compiled_encoder_trains(numbers):
    net = nano(**numbers).train()
    x = torch.randn(2, 1, 128, 96)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    out = compiled(x)
    close(out, net(x))
    out.sum().backward()
    assert net.patch_embed.proj.weight.grad.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("long_input", "shortest", "longest"), [("clamp", 33, 6000), ("interpolate", 33, 96)]
)
def test_the_exported_encoder_takes_any_number_of_frames(long_input, shortest, longest):
    net = nano(long_input=long_input)
    frames = torch.export.Dim.DYNAMIC(min=shortest, max=longest)
    sizes = {"log_mel": {0: torch.export.Dim.DYNAMIC, 3: frames}}
    with torch.no_grad():
        exported = torch.export.export(net, (torch.randn(2, 1, 128, 80),), dynamic_shapes=sizes)
        for length in (shortest, 90, min(333, longest)):
            x = torch.randn(3, 1, 128, length)
            close(exported.module()(x), net(x))
