"""Mean and spread of embeddings, as everything that standardises them takes them."""

import torch
from torch import Tensor


def mean_and_std(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of features (n, D), float64.

    The deviation is 1 for a feature that does not vary but for rounding, which must not be blown
    up.
    """
    wide = features.double()
    mean, std = wide.mean(dim=0), wide.std(dim=0, correction=0)
    return mean, torch.where(std <= 1e-6 * mean.abs() + 1e-12, 1.0, std)
