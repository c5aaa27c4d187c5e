"""ssmast: Multiscale Audio Spectrogram Transformers, from unlabelled audio to a deployed encoder.

Importing it registers mast_nano ... mast_large and ast_nano ... ast_base with timm, as soon as timm
itself is imported. The names below are imported when they are first used.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

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


def register_models() -> None:
    """Register the models with timm: now if it is loaded, else right after it is.

    timm and torch take seconds to load, and timm has no entry points for models of others. So the
    import of timm is followed, not forced: `import ssmast` costs nothing, and there is no moment at
    which a timm that was imported lacks the models.
    """
    if "timm" in sys.modules:
        importlib.import_module("ssmast.model")
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


class _TimmFinder(MetaPathFinder):
    """Finds timm where Python does, and has our models imported after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _TimmLoader(spec.loader)
        return spec


class _TimmLoader(Loader):
    """timm's own loader, and then `import ssmast.model`."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # timm goes on as if nobody had looked: with its own loader, and found without us.
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, _TimmFinder)]
        if "ssmast.model" not in sys.modules:
            importlib.import_module("ssmast.model")


register_models()
