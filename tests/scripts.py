"""Scripts outside the package, as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_script(file: Path, *, name: str) -> ModuleType:
    """Run a script as a module of that name, which stays known: dataclasses look theirs up."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
