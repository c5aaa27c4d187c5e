"""ssmast: Multiscale Audio Spectrogram Transformers, from unlabelled audio to a deployed encoder.

Importing it registers mast_nano ... mast_large and ast_nano ... ast_base with timm, as soon as timm
itself is imported. The names below are imported when they are first used.
"""

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from ssmast.timm_hook import register_models

if TYPE_CHECKING:  # the names in _HOMES, for editors and type checkers
    from ssmast.classifier import Classifier, load_classifier
    from ssmast.encoder import Encoder, load_encoder
    from ssmast.model import create_model, describe, list_models

__version__ = "0.1.0"

_HOMES = {
    "create_model": "ssmast.model",
    "list_models": "ssmast.model",
    "describe": "ssmast.model",
    "Classifier": "ssmast.classifier",
    "load_classifier": "ssmast.classifier",
    "Encoder": "ssmast.encoder",
    "load_encoder": "ssmast.encoder",
}
__all__ = [
    "Classifier",
    "Encoder",
    "create_model",
    "describe",
    "list_models",
    "load_classifier",
    "load_encoder",
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
