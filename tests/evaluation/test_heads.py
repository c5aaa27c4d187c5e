import pytest
import torch
from torch import nn

from ssmast.evaluation import trained_heads as heads
from ssmast.evaluation.fitting import Problem
from ssmast.evaluation.linear import fit_linear
from ssmast.evaluation.metrics import METRICS
from ssmast.evaluation.trained_heads import (
    HEAR_GRID,
    AttentiveHead,
    LayerSum,
    Schedule,
    fit_attentive,
    fit_evar,
    fit_hear,
    fit_superb,
    fit_xares,
    probe_loss,
    train_head,
)

ACCURACY = METRICS["accuracy"]


def parts(*, dim=6, classes=3, num=90, seed=0):
    """Classes around random centres: train and valid."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, dim, generator=generator)
    targets = torch.arange(num) % classes
    features = centres[targets] + torch.randn(num, dim, generator=generator)
    cut = 2 * num // 3
    return (features[:cut], targets[:cut]), (features[cut:], targets[cut:])


@pytest.mark.parametrize("fit", [fit_evar, fit_xares])
def test_a_fixed_rate_is_trained_with_every_seed_and_learns(fit):
    train, valid = parts()
    found = fit(Problem(train, valid, 3, ACCURACY, seeds=range(42, 44), lr=5e-2))
    assert found.chosen["lr"] == 5e-2
    scores = found.scores(valid[0])
    assert scores.shape == (2, 30, 3)
    assert not torch.equal(scores[0], scores[1])
    assert ACCURACY.score(scores, valid[1]).tolist() == pytest.approx(found.valid)
    assert min(found.valid) > 0.8


def test_one_epoch_equals_plain_adam_with_a_clipped_gradient():
    train, valid = parts()
    schedule = Schedule(lr=0.1, batch_size=20, num_epochs=1, weight_decay=0.01, clip=0.05)
    state = torch.get_rng_state()
    problem = Problem(train, valid, 3, ACCURACY)
    found = train_head(problem, lambda: nn.Linear(6, 3), schedule=schedule, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    layer = nn.Linear(6, 3)
    adam = torch.optim.Adam(layer.parameters(), lr=0.1, weight_decay=0.01)
    for batch in torch.randperm(60).split(20):
        adam.zero_grad()
        nn.functional.cross_entropy(layer(train[0][batch]), train[1][batch]).backward()
        norm = nn.utils.clip_grad_norm_(layer.parameters(), 0.05)
        assert norm > 0.05  # the clip does something
        adam.step()
    torch.testing.assert_close(found.head(valid[0]), layer(valid[0]))


def test_the_best_epoch_is_kept_and_patience_counts_looks():
    train, valid = parts()
    # A rate this large makes a good head worse again, at some time.
    schedule = Schedule(lr=5.0, batch_size=60, num_epochs=60, patience=2, look_every=3)
    seen = []

    class Watched:
        multi_label = False

        def score(self, scores, targets):
            seen.append(float(ACCURACY.score(scores, targets)))
            return torch.tensor([0.5, 0.7, 0.6, 0.6, 0.9][len(seen) - 1])

    problem = Problem(train, valid, 3, Watched())
    found = train_head(problem, lambda: nn.Linear(6, 3), schedule=schedule, seed=0)
    assert len(seen) == 4  # two looks without a better one: the fifth is never taken
    assert (found.epoch, found.score) == (6, pytest.approx(0.7))
    assert float(ACCURACY.score(found.head(valid[0]), valid[1])) == seen[1]


def test_the_cosine_falls_from_epoch_to_epoch():
    schedule = Schedule(lr=1e-3, batch_size=32, num_epochs=10, last_lr=0.1)
    assert schedule.rate(1) == pytest.approx(1e-3)
    assert schedule.rate(6) == pytest.approx(0.55e-3)
    assert schedule.rate(11) == pytest.approx(1e-4)  # where an eleventh epoch would be
    assert Schedule(lr=0.2, batch_size=1, num_epochs=5).rate(4) == pytest.approx(0.2)


def test_several_labels_are_binary_problems():
    logits, targets = torch.randn(5, 3), (torch.rand(5, 3) < 0.5).float()
    wanted = nn.functional.binary_cross_entropy(logits.sigmoid(), targets)
    torch.testing.assert_close(probe_loss(logits, targets), wanted)


def test_hear_tries_the_points_that_its_seed_of_42_draws(monkeypatch):
    """Worked out with sklearn's ParameterGrid, shuffled after random.seed(42), as HEAR does."""
    from random import Random

    from sklearn.model_selection import ParameterGrid

    grid = ParameterGrid(
        {
            "hidden_layers": [1, 2],
            "initialization": ["xavier_uniform", "xavier_normal"],
            "lr": [3.2e-3, 1e-3, 3.2e-4, 1e-4],
        }
    )
    points = [(p["hidden_layers"], p["initialization"], p["lr"]) for p in grid]
    assert points == list(HEAR_GRID)
    Random(42).shuffle(points)
    tried = []
    make = heads._mlp

    def watched(dim, num_classes, *, layers, init):
        tried.append((layers, init))
        return make(dim, num_classes, layers=layers, init=init)

    monkeypatch.setattr(heads, "_mlp", watched)
    train, valid = parts()
    found = fit_hear(Problem(train, valid, 3, ACCURACY, seeds=range(42, 44)), num_epochs=3)
    assert tried[:8] == [(layers, init) for layers, init, _ in points[:8]]
    assert len(tried) == 9  # the point chosen, with the second seed
    chosen = found.chosen
    assert (chosen["hidden_layers"], chosen["initialization"], chosen["lr"]) in points[:8]


def test_hears_first_weights_have_the_gain_of_what_comes_before():
    mlp = heads._mlp(400, 50, layers=2, init="xavier_normal")
    kinds = [type(module) for module in mlp[:4]]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.Dropout, nn.ReLU]
    linear = [module for module in mlp if isinstance(module, nn.Linear)]
    for layer, gain in zip(linear, (1.0, 2**0.5, 2**0.5), strict=True):
        wanted = gain * (2 / (layer.in_features + layer.out_features)) ** 0.5
        assert float(layer.weight.detach().std()) == pytest.approx(wanted, rel=0.03)


def test_layers_are_summed_by_shares_and_each_width_has_its_matrix():
    torch.manual_seed(0)
    head = LayerSum([4, 4, 6], 3, hidden=5)
    assert set(head.projections) == {"4", "6"}
    torch.testing.assert_close(head.layer_weights, torch.full((3,), 1 / 3))
    with torch.no_grad():
        head.logits.copy_(torch.tensor([0.0, 1.0, -1.0]))
    x = torch.randn(7, 14)
    shares = head.logits.softmax(dim=0)
    narrow, wide = head.projections["4"], head.projections["6"]
    summed = (
        shares[0] * narrow(x[:, :4]) + shares[1] * narrow(x[:, 4:8]) + shares[2] * wide(x[:, 8:])
    )
    torch.testing.assert_close(head(x), head.head(summed))


def test_superb_chooses_the_rate_and_says_which_layer_it_hears():
    (x, y), (vx, vy) = parts(dim=4)
    noise, more = torch.randn(60, 4), torch.randn(30, 4)
    train, valid = (torch.cat([noise, x], dim=1), y), (torch.cat([more, vx], dim=1), vy)
    found = fit_superb(Problem(train, valid, 3, ACCURACY, widths=(4, 4)), num_epochs=30)
    assert found.chosen["lr"] in heads.SUPERB_RATES
    shares = found.chosen["layer_weights"]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert shares[1] > shares[0]
    assert found.valid[0] > 0.7


def test_with_equal_weights_attention_is_the_sum_of_the_means_over_time():
    torch.manual_seed(0)
    head = AttentiveHead([16, 16, 24], 3, slots=4, hidden=8, num_heads=2)
    plain = LayerSum([4, 4, 6], 3, hidden=8)
    plain.projections, plain.head, plain.logits = head.sum.projections, head.head, head.sum.logits
    x = torch.randn(7, 56)
    layers = [layer.unflatten(1, (4, -1)) for layer in x.split([16, 16, 24], dim=1)]
    means = torch.cat([layer.mean(dim=1) for layer in layers], dim=1)
    torch.testing.assert_close(head(x), plain(means))
    with torch.no_grad():
        head.query.copy_(torch.randn(2, 4))
    order = torch.tensor([2, 0, 3, 1])
    mixed = torch.cat([layer[:, order].flatten(1) for layer in layers], dim=1)
    torch.testing.assert_close(head(mixed), head(x))  # attention knows no order
    assert not torch.allclose(head(x), plain(means))


def test_attention_finds_one_part_among_many_where_the_mean_is_lost():
    """A loud marker says which part counts; the others hold as many signs of the wrong class."""
    generator = torch.Generator().manual_seed(0)

    def clips(n):
        y = torch.randint(2, (n,), generator=generator)
        x = torch.randn(n, 8, 3, generator=generator)
        x[:, :, 2] = 0
        where = torch.randint(8, (n,), generator=generator)
        x[torch.arange(n), where] = torch.stack(
            [2.0 * y - 1, torch.zeros(n), torch.full((n,), 3.0)], dim=1
        )
        # The mean of the first channel is the same for both classes.
        x[:, :, 0] -= x[:, :, 0].mean(dim=1, keepdim=True) * (x[:, :, 2] == 0) * 8 / 7
        return x.flatten(1), y

    train, valid, (x, y) = clips(400), clips(200), clips(400)
    problem = Problem(train, valid, 2, ACCURACY, widths=(24,), slots=8)
    found = fit_attentive(problem, num_epochs=30)
    assert float(ACCURACY.score(found.scores(x), y)[0]) > 0.95

    def means(of):
        return of[0].unflatten(1, (8, 3)).mean(dim=1), of[1]

    linear = fit_linear(Problem(means(train), means(valid), 2, ACCURACY))
    assert float(ACCURACY.score(linear.scores(means((x, y))[0]), y)[0]) < 0.6
