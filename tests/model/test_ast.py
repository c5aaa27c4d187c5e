"""AST: transformers' model is the oracle; then any input, padded batches, patch-drop, timm."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ssmast.model import AST, create_model, load_ast_state_dict, pool_tokens
from ssmast.model.ast import resize_positions
from ssmast.model.patch import Grid, Tokens


def nano(frames: int = 96, **numbers):
    torch.manual_seed(1)
    net = create_model("ast_nano", **{"num_classes": 0, "input_size": (128, frames), **numbers})
    with torch.no_grad():
        for name, parameter in net.named_parameters():  # weights of 0.02 would hide differences
            if name in {"pos_embed", "cls_token", "dist_token"}:
                parameter.normal_()
    return net.eval()


def close(ours: torch.Tensor, reference: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, reference, rtol=0, atol=atol)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def oracle_of(freq_bins: int, frames: int, *, num_labels: int = 7, **numbers):
    transformers = pytest.importorskip("transformers", reason="the test oracle is in extra dev")
    config = transformers.ASTConfig(
        hidden_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        intermediate_size=512,
        num_mel_bins=freq_bins,
        max_length=frames,
        num_labels=num_labels,
        **numbers,
    )
    oracle = transformers.ASTForAudioClassification(config).eval()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return oracle


# -- what it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(128, 96), (64, 213)])
def test_the_same_weights_give_the_numbers_of_transformers(size):
    oracle = oracle_of(*size)
    ours = nano(num_classes=7, norm_eps=1e-12, input_size=size)
    report = load_ast_state_dict(ours, oracle.state_dict())
    assert not report.left
    x = torch.randn(2, 1, *size)
    with torch.no_grad():
        base = oracle.audio_spectrogram_transformer(x[:, 0].transpose(1, 2))
        tokens, grid, mask, classes = ours.encode(x)
        close(tokens, base.last_hidden_state[:, 2:])
        close(classes, base.last_hidden_state[:, :2])
        close(ours.forward_features(x), base.last_hidden_state)
        close(pool_tokens(Tokens(tokens, grid, mask, classes), mode="cls"), base.pooler_output)
        close(ours(x), oracle(x[:, 0].transpose(1, 2)).logits)
    assert mask is None
    assert grid == ours.grid_of(*size)[-1]


def test_base_has_the_published_shapes():
    with torch.device("meta"):
        net = create_model("ast_base")
        tokens, grid, _, _ = net.encode(torch.empty(1, 1, 128, 1024))
    assert isinstance(net, AST)
    assert tokens.shape == (1, 1212, 768)
    assert grid == (12, 101)
    assert net.pos_embed.shape == (1, 1214, 768)
    assert net.head.fc.weight.shape == (527, 768)


def test_every_parameter_gets_gradient():
    net = nano(num_classes=7).train()
    net(torch.randn(4, 1, 128, 96)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# -- any input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mels", [16, 64, 80, 128, 255])
@pytest.mark.parametrize("frames", [16, 96, 333])
def test_any_size_works_and_tokens_fill_the_grid(mels, frames):
    net = nano()
    with torch.no_grad():
        outcomes = net.encode_blocks(torch.randn(1, 1, mels, frames))
    assert len(outcomes) == 5
    for tokens, grid, *_ in outcomes:
        assert grid == net.grid_of(mels, frames)[-1]
        assert tokens.shape == (1, grid.freq * grid.time, 128)
        assert tokens.isfinite().all()


@pytest.mark.parametrize("target", [(5, 20), (12, 60), (3, 4), (5, 7), (4, 9)])
def test_positions_are_cut_to_the_middle_or_interpolated_on_each_axis(target):
    source = Grid(5, 9)
    table = torch.randn(45, 6)
    image = table.T.reshape(1, 6, 5, 9)
    for axis, (size, wanted) in enumerate(zip(source, target, strict=True)):
        if wanted <= size:  # as AST's code cuts
            image = image.narrow(2 + axis, size // 2 - wanted // 2, wanted)
        else:
            shape = list(image.shape[2:])
            shape[axis] = wanted
            image = F.interpolate(image, size=shape, mode="bilinear", align_corners=False)
    close(resize_positions(table, source, Grid(*target)), image.flatten(2)[0].T)


@pytest.mark.parametrize(
    "lengths", [(96, 21, 57), (300, 22, 131), (97, 96, 95), (205, 205, 205), (160, 16, 41)]
)
def test_each_clip_of_a_padded_batch_gets_the_embedding_it_gets_alone(lengths):
    net = nano(num_classes=5)
    batch = torch.full((3, 1, 128, max(lengths)), float("nan"))  # padding may hold anything
    clips = [torch.randn(1, 1, 128, length) for length in lengths]
    for row, clip in zip(batch, clips, strict=True):
        row[..., : clip.shape[-1]] = clip
    with torch.no_grad():
        tokens, _, mask, classes = net.encode(batch, lengths=list(lengths))
        together = net(batch, lengths=torch.tensor(lengths))
        for index, clip in enumerate(clips):
            close(together[index : index + 1], net(clip))
            alone = net.encode(clip)
            close(tokens[index][mask[index]], alone.x[0])
            close(classes[index], alone.cls[0])


@pytest.mark.parametrize("global_pool", ["mean", "mean+max", "attention"])
def test_other_pooling_keeps_batches_exact(global_pool):
    net = nano(num_classes=5, global_pool=global_pool)
    batch = torch.randn(2, 1, 128, 260)
    with torch.no_grad():
        together = net(batch, lengths=[260, 47])
        close(together[:1], net(batch[:1]))
        close(together[1:], net(batch[1:, ..., :47]))


def test_wrong_input_and_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match=r"at least as large as the stem's kernel \(16, 16\)"):
        nano()(torch.randn(1, 1, 128, 15))
    with pytest.raises(ValueError, match=r"must lie in 16\.\.96 frames, got 15\.\.96"):
        nano()(torch.randn(2, 1, 128, 96), lengths=[15, 96])
    with pytest.raises(ValueError, match="num_heads must divide the width 128, got 3"):
        nano(num_heads=3)
    with pytest.raises(ValueError, match=r"pooling must be mean, .* or cls, got 'median'"):
        nano(global_pool="median")


# -- patch-drop ----------------------------------------------------------------------------------


def drop_of(net, frames: int = 96, *, rate: float = 0.2, mode: str = "random", batch: int = 2):
    return net.draw_patch_drop(
        128, frames, rate=rate, mode=mode, batch=batch, generator=generator()
    )


@pytest.mark.parametrize("mode", ["random", "structured"])
def test_dropped_patches_reach_no_block_and_cost_nothing(mode):
    net = nano()
    x = torch.randn(2, 1, 128, 96)
    drop = drop_of(net, mode=mode)
    seen = []
    net.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))

    def cost(drop):
        with FlopCounterMode(display=False) as counter:
            net(x, patch_drop=drop)
        return counter.get_total_flops()

    whole, less = cost(None), cost(drop)
    patches = 12 * 9
    kept = (
        patches - round(0.2 * patches) if mode == "random" else len(drop.rows) * len(drop.columns)
    )
    assert seen == [patches + 2, kept + 2]
    stem = 2 * patches * 128 * 256 * 2  # all patches are embedded before some are dropped
    assert (less - stem) / (whole - stem) < (kept + 2) / (patches + 2) + 1e-3
    if mode == "random":
        assert (less - stem) / (whole - stem) < 0.81


def test_random_drop_equals_masking_the_patches_out_of_every_block():
    net = nano()
    x = torch.randn(2, 1, 128, 96)
    drop = drop_of(net, rate=0.4)
    with torch.no_grad():
        tokens, grid, mask, classes = net.encode(x, patch_drop=drop)
        # The slow way: all patches stay, no query looks at a dropped one.
        keys = F.pad(drop.keep, (2, 0), value=True)[:, None, None]
        embedded = []
        with net.blocks[0].register_forward_pre_hook(lambda _, inputs: embedded.append(inputs[0])):
            net(x)
        h = embedded[0]
        for block in net.blocks:
            h = block(h, keys)
        h = net.norm(h)
    assert torch.equal(mask, drop.keep)
    close(tokens[mask], h[:, 2:][drop.keep])
    close(classes, h[:, :2])
    assert (tokens[~mask] == 0).all()
    assert grid == net.grid_of(128, 96)[-1]


@pytest.mark.parametrize("mode", ["mean", "mean+max", "freq+max", "cls"])
def test_a_dropped_patch_influences_no_pooling(mode):
    net = nano()
    x = torch.randn(2, 1, 128, 96)
    drop = drop_of(net, rate=0.4)

    def poison(module, inputs, outcome):
        tokens, columns = outcome
        x = tokens.x.masked_fill(~drop.keep[..., None], float("nan"))
        return tokens._replace(x=x), columns

    def pooled():
        with torch.no_grad():
            return pool_tokens(net.encode(x, patch_drop=drop), mode=mode)

    clean = pooled()
    net.patch_embed.register_forward_hook(poison)
    assert torch.equal(clean, pooled())


def test_random_drop_and_padding_together_keep_clips_exact():
    net = nano()
    x = torch.randn(2, 1, 128, 96)
    drop = drop_of(net, rate=0.5)
    with torch.no_grad():
        together = net(x, lengths=[96, 56], patch_drop=drop)
        alone_drop = drop_of(net, 56, batch=1)
        keep = drop.keep[1].unflatten(0, (12, 9))[:, :5].flatten()[None]
        close(
            together[1:],
            net(x[1:, ..., :56], patch_drop=alone_drop._replace(keep=keep, num_kept=0)),
        )


def test_nothing_dropped_is_the_plain_encoder():
    net = nano()
    x = torch.randn(2, 1, 128, 96)
    assert torch.equal(net(x, patch_drop=drop_of(net, rate=0.0)), net(x))


@pytest.mark.parametrize("mode", [None, "random", "structured"])
def test_clip_1_cannot_move_clip_0(mode):
    net = nano().train()
    x = torch.randn(2, 1, 128, 96)
    other = x.clone()
    other[1] = torch.randn(1, 128, 96) * 50
    drop = mode and drop_of(net, rate=0.3, mode=mode)
    assert torch.equal(net(x, patch_drop=drop)[0], net(other, patch_drop=drop)[0])


# -- timm's interface ----------------------------------------------------------------------------


def test_features_and_intermediates_are_the_encoders_own():
    net = nano(num_classes=5)
    x = torch.randn(2, 1, 128, 96)
    with torch.no_grad():
        features, intermediates = net.forward_intermediates(x, norm=True, output_fmt="NLC")
        tokens, _, _, classes = net.encode(x)
        blocks = net.encode_blocks(x)
        assert torch.equal(features, net.forward_features(x))
        assert torch.equal(net.forward_head(features), net(x))
        assert torch.equal(features[:, 2:], tokens)
        assert torch.equal(features[:, :2], classes)
        for (block, *_), intermediate in zip(blocks, intermediates, strict=True):
            assert torch.equal(block, intermediate)
    maps = create_model("ast_nano", features_only=True, out_indices=(1, 4))
    assert [m.shape[1:] for m in maps(x)] == [(128, 12, 9)] * 2
    assert maps.feature_info.reduction() == [10, 10]


@pytest.mark.parametrize("global_pool", ["cls", "mean+max", "attention"])
def test_a_saved_model_comes_back_bit_equal(tmp_path, global_pool):
    net = nano(num_classes=5, global_pool=global_pool)
    timm.models.save_for_hf(net, tmp_path, safe_serialization=True)
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 1, 128, 96)
    assert torch.equal(back(x), net(x))


def test_the_head_can_be_replaced():
    net = nano(num_classes=5, img_size=(128, 96))
    x = torch.randn(2, 1, 128, 96)
    embedding = net.forward_head(net.forward_features(x), pre_logits=True)
    net.reset_classifier(0)
    assert torch.equal(net(x), embedding)
    net.reset_classifier(11, "mean+max")
    assert net.get_classifier().in_features == 256
    assert net(x).shape == (2, 11)
    net.reset_classifier(3, "token")  # timm's word
    assert net.global_pool == "cls"
    assert net(x).shape == (2, 3)
    net.reset_classifier(0, "")
    assert net(x).shape == (2, 12 * 9, 128)


def test_layers_decay_by_block_and_tables_are_spared():
    with torch.device("meta"):
        net = create_model("ast_base")
    depth = timm.models.group_parameters(net, net.group_matcher(), reverse=True)
    assert depth["cls_token"] == depth["pos_embed"] == depth["patch_embed.proj.weight"] == 0
    assert {d for name, d in depth.items() if name.startswith("blocks.")} == set(range(1, 13))
    spared = net.no_weight_decay()
    assert spared == {"cls_token", "dist_token", "pos_embed"}
    groups = param_groups_layer_decay(net, weight_decay=0.1, no_weight_decay_list=spared)
    names = {parameter: name for name, parameter in net.named_parameters()}
    decayed = {names[p] for group in groups if group["weight_decay"] for p in group["params"]}
    assert not decayed & spared


def test_recomputing_blocks_changes_no_number():
    net = nano(drop_path_rate=0.3, num_classes=5).train()
    x = torch.randn(4, 1, 128, 96)

    def outcome():
        torch.manual_seed(3)
        net.zero_grad()
        out = net(x, lengths=[96, 40, 80, 96])
        out.square().sum().backward()
        return out, [parameter.grad.clone() for parameter in net.parameters()]

    plain, plain_gradients = outcome()
    net.set_grad_checkpointing()
    again, gradients = outcome()
    # Close, not equal: the last bits of a matrix product depend on where its operands lie.
    torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-5, atol=1e-6)


def test_the_encoder_is_one_graph():
    net = nano()
    x = torch.randn(2, 1, 128, 130)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), net(x))
