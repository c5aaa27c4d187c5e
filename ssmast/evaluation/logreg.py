"""Logistic regression by L-BFGS: no learning rate, no seed; a cross-check of the linear probe."""

import warnings

import torch
from torch import Tensor

from ssmast.evaluation.classifier import Fitted, Part
from ssmast.evaluation.metrics import Metric

C_GRID = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)


def fit_logreg(
    train: Part,
    valid: Part,
    *,
    num_classes: int,
    metric: Metric,
    c_grid: tuple[float, ...] = C_GRID,
    max_iter: int = 1000,
) -> Fitted:
    """scikit-learn's LogisticRegression, its C chosen on `valid`, fitted on `train` alone.

    Args:
        train: standardised features (n, D) and class numbers (n,), each of the C classes there.
        valid: the same; the stronger regularisation wins ties.
        num_classes: C.
        metric: what to choose by.
        c_grid: inverse strengths of the L2 penalty to try.
        max_iter: steps of L-BFGS.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    def scores(model: LogisticRegression, features: Tensor) -> Tensor:
        """(1, n, C)."""
        logits = torch.from_numpy(model.decision_function(features.cpu().numpy())).float()
        if logits.ndim == 1:  # two classes have one logit
            logits = torch.stack([-logits, logits], dim=1)
        return logits[None].to(features.device)

    models, values = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told in `chosen`
        for c in c_grid:
            model = LogisticRegression(C=c, max_iter=max_iter)
            model.fit(train[0].cpu().numpy(), train[1].cpu().numpy())
            if len(model.classes_) != num_classes:
                raise ValueError(
                    f"logreg needs clips of all {num_classes} classes to train on, "
                    f"got {len(model.classes_)}"
                )
            models.append(model)
            values.append(float(metric.score(scores(model, valid[0]), valid[1])))
    index = values.index(max(values))
    best = models[index]
    return Fitted(
        scores=lambda features: scores(best, features),
        chosen={"C": c_grid[index], "converged": bool(max(best.n_iter_) < max_iter)},
        valid=[values[index]],
    )
