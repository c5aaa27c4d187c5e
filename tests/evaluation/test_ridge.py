"""Ridge regression: leaving out by the hat matrix is the same as fitting again without."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn import functional as F

from ssmast.evaluation.simple import fit_ridge


def _clips(n: int, dim: int, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    truth = torch.arange(n) % classes
    centres = torch.randn(classes, dim, generator=g)
    return centres[truth] + 1.5 * torch.randn(n, dim, generator=g), F.one_hot(truth, classes)


def _refitted(x, y, groups, penalty):
    """Scores of each group by scikit-learn, fitted to all others; in the whole set's scale."""
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double().numpy()
    strength = penalty * float((z**2).sum(1).mean())
    found = np.zeros(y.shape)
    for name in set(groups):
        own = np.array([group == name for group in groups])
        model = Ridge(alpha=strength).fit(z[~own], y.numpy()[~own])
        found[own] = model.predict(z[own])
    return found


@pytest.mark.parametrize(("n", "dim"), [(24, 40), (60, 7)])
@pytest.mark.parametrize("grouped", [False, True])
def test_leaving_out_equals_fitting_again_without(n, dim, grouped):
    x, y = _clips(n, dim)
    groups = [str(i // 4 if grouped else i) for i in range(n)]
    fit = fit_ridge(x, y, multi_label=True, groups=groups if grouped else None, penalties=[0.1])
    wanted = _refitted(x, y, groups, 0.1)
    # `left_out` is scaled and shifted to logits: by the same numbers everywhere
    slope, offset = np.polyfit(wanted.ravel(), fit.left_out.numpy().ravel(), 1)
    assert slope > 0
    assert np.allclose(slope * wanted + offset, fit.left_out.numpy(), atol=1e-7)


@pytest.mark.parametrize(("n", "dim"), [(24, 40), (60, 7)])
def test_the_layer_is_that_of_scikit_learn_up_to_one_scale(n, dim):
    x, y = _clips(n, dim)
    fit = fit_ridge(x, y, multi_label=False, penalties=[0.3])
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double().numpy()
    model = Ridge(alpha=0.3 * float((z**2).sum(1).mean())).fit(z, y.numpy())
    ours = (x.double() @ fit.weight.T + fit.bias).numpy()
    slope = np.polyfit(model.predict(z).ravel(), ours.ravel(), 1)[0]
    assert np.allclose(ours, slope * model.predict(z), atol=1e-6)


def test_probabilities_are_those_of_clips_that_were_left_out():
    # labels that have nothing to do with the clips: nothing may be sure of them
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(80, 300, generator=g), F.one_hot(torch.arange(80) % 4, 4)
    fit = fit_ridge(x, y, multi_label=False)
    assert fit.left_out.softmax(dim=1).max() < 0.5
    fitted = x.double() @ fit.weight.T + fit.bias
    assert fitted.softmax(dim=1).max() < 0.9  # though more numbers than clips could fit them all


def test_groups_keep_what_is_alike_from_being_told_apart_by_itself():
    # two recordings a class, whose clips are nearly equal: one by one they look easy
    g = torch.Generator().manual_seed(2)
    recordings = torch.randn(8, 50, generator=g).repeat_interleave(10, dim=0)
    x = recordings + 0.05 * torch.randn(80, 50, generator=g)
    y = F.one_hot(torch.arange(8).repeat_interleave(10) // 2, 4)
    names = [str(i // 10) for i in range(80)]
    alone, grouped = (
        fit_ridge(x, y, multi_label=False),
        fit_ridge(x, y, multi_label=False, groups=names),
    )
    right = [float((f.left_out.argmax(1) == y.argmax(1)).double().mean()) for f in (alone, grouped)]
    assert right[0] == 1.0
    assert right[1] < 0.6


def test_one_group_is_refused():
    x, y = _clips(6, 4)
    with pytest.raises(ValueError, match="two or more groups, found"):
        fit_ridge(x, y, multi_label=False, groups=["a"] * 6)
