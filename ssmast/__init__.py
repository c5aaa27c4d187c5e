"""ssmast: Multiscale Audio Spectrogram Transformers, from unlabelled audio to a deployed encoder.

Importing it registers mast_nano ... mast_large and ast_nano ... ast_base with timm, as soon as timm
itself is imported. The names below are imported when they are first used.
"""

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from ssmast.timm_hook import register_models
from ssmast.version import __version__

if TYPE_CHECKING:  # the names in _HOMES, for editors and type checkers
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


if not TYPE_CHECKING:  # else a type checker would take any misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            near = difflib.get_close_matches(name, _HOMES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise AttributeError(f"module 'ssmast' has no attribute {name!r}{hint}")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


register_models()
