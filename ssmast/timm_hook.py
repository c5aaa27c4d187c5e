"""Register the models with timm at the moment timm is imported, be that before or after ssmast.

timm and torch take seconds to load, and timm has no entry points for models of others. So the
import of timm is followed, not forced: `import ssmast` costs nothing, and there is no moment at
which a timm that was imported lacks the models.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def register_models() -> None:
    """Now if timm is loaded, else right after it is."""
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
