"""The fine-tuned network: heads folded into one layer, losses, and pooling by frequency row."""

import pytest
import torch
from torch.nn import functional as F

from ssmast.model import create_model, pool_tokens
from ssmast.training.finetune.network import (
    HeadLayers,
    build_network,
    classification_loss,
    exported,
    features_of,
)

_SMALL = {"input_size": (32, 32), "embed_dim": 8, "depths": (1, 1, 1, 1)}


def _network(pooling: str = "freq+max", model: str = "mast_nano"):
    arguments = _SMALL if model.startswith("mast") else {"input_size": (32, 32)}
    return build_network(
        model, sizes=[3, 5], pooling=pooling, layers="last", arguments=arguments
    ).eval()


@pytest.mark.parametrize(
    ("model", "pooling"),
    [("mast_nano", "freq+max"), ("mast_nano", "attention"), ("ast_nano", "cls"),
     ("ast_nano", "freq+max")],
)  # fmt: skip
def test_heads_and_their_standardisation_fold_into_one_layer(model, pooling):
    network, x = _network(pooling, model), torch.randn(6, 1, 32, 32)
    layers = network.get_classifier()
    assert isinstance(layers, HeadLayers)
    layers.calibrate_(features_of(network, x, frozen=True).detach())
    for layer in layers.layers:
        torch.nn.init.normal_(layer.bias)
    one = exported(network)
    assert isinstance(one.get_classifier(), torch.nn.Linear)
    torch.testing.assert_close(one(x), network(x), atol=1e-5, rtol=1e-4)
    assert one(x).shape == (6, 8)


def test_calibrated_features_have_mean_zero_and_a_like_spread():
    features = torch.randn(200, 4) * torch.tensor([10.0, 1.0, 0.1, 0.0]) + 3.0
    layers = HeadLayers(4, [2])
    layers.calibrate_(features)
    seen = (features - layers.centre) / layers.scale
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)
    assert float(seen.std(dim=0).max()) < 1.01
    assert torch.isfinite(seen).all()
    bad = features.clone()
    bad[3, 1] = float("nan")
    layers.calibrate_(bad)  # a clip that is not finite does not spoil the run
    torch.testing.assert_close(layers.centre, features[torch.arange(200) != 3].mean(dim=0))
    fresh = HeadLayers(4, [2])
    fresh.calibrate_(torch.full((5, 4), float("nan")))
    assert not fresh.is_calibrated
    assert layers.is_calibrated


def test_a_head_may_pool_by_frequency_row():
    network = create_model("mast_nano", num_classes=4, global_pool="freq+max", **_SMALL).eval()
    x = torch.randn(2, 1, 32, 48)
    pooled = pool_tokens(network.encode(x), mode="freq+max")
    torch.testing.assert_close(network(x), network.head.fc(pooled))
    with pytest.raises(ValueError, match="needs more than the last tokens"):
        network.forward_head(network.forward_features(x))


def test_no_gradient_reaches_a_frozen_backbone():
    network, x = _network(), torch.randn(2, 1, 32, 32)
    network.get_classifier()(features_of(network, x, frozen=True)).sum().backward()
    moved = {name for name, p in network.named_parameters() if p.grad is not None}
    assert moved == {f"head.fc.layers.{i}.{what}" for i in (0, 1) for what in ("weight", "bias")}


def test_losses_are_torchs():
    logits, numbers = torch.randn(7, 8), torch.randint(0, 3, (7,))
    others = torch.randint(0, 5, (7,))
    targets = torch.cat([F.one_hot(numbers, 3), F.one_hot(others, 5)], dim=1).float()
    words = {"sizes": [3, 5], "multi_label": False}
    found = classification_loss(logits, targets, smoothing=0.1, **words)
    options = {"label_smoothing": 0.1, "reduction": "none"}
    expected = F.cross_entropy(logits[:, :3], numbers, **options)
    expected = expected + F.cross_entropy(logits[:, 3:], others, **options)
    torch.testing.assert_close(found, expected)
    several = classification_loss(logits, targets, sizes=[8], multi_label=True)
    oracle = torch.nn.BCEWithLogitsLoss()
    torch.testing.assert_close(several.mean(), oracle(logits, targets))


def test_guessing_costs_the_logarithm_of_the_classes():
    targets = F.one_hot(torch.arange(4) % 3, 3).float()
    loss = classification_loss(torch.zeros(4, 3), targets, sizes=[3], multi_label=False)
    torch.testing.assert_close(loss, torch.full((4,), 3.0).log())
