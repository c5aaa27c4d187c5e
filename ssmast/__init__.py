"""ssmast: Multiscale Audio Spectrogram Transformers, from unlabelled sound to a served encoder.

Importing it registers mast_nano ... mast_large and ast_nano ... ast_base with timm, at the moment
timm itself is imported. The names below load on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ssmast.timm_hook import register_models
from ssmast.version import __version__

if TYPE_CHECKING:  # what _HOMES says, for editors and type checkers
    from ssmast.classifier import Classifier, load_classifier
    from ssmast.encoder import Encoder, load_encoder
    from ssmast.model import create_model, describe, list_models
    from ssmast.training.objective import Objective, StepLoss
    from ssmast.training.pretrain import train

_HOMES = {
    "create_model": "ssmast.model",
    "list_models": "ssmast.model",
    "describe": "ssmast.model",
    "Classifier": "ssmast.classifier",
    "load_classifier": "ssmast.classifier",
    "Encoder": "ssmast.encoder",
    "load_encoder": "ssmast.encoder",
    "Objective": "ssmast.training.objective",
    "StepLoss": "ssmast.training.objective",
    "train": "ssmast.training.pretrain",
}
__all__ = [
    "Classifier",
    "Encoder",
    "Objective",
    "StepLoss",
    "__version__",
    "create_model",
    "describe",
    "list_models",
    "load_classifier",
    "load_encoder",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ssmast' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


register_models()
