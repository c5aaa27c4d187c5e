"""Read by every Python that the stand-in's environment starts: kernels are emulated there too.

A program starts others: commands in tests, loaders' workers, `accelerate launch`. Their kernels
would do nothing, as nobody enters the mode for them.
"""

import importlib.abc
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Enters the mode once torch is imported; what does without torch stays without."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            read = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                read(module)
                from tests.gpu import emulation

                if int(os.environ.get("WORLD_SIZE", 1)) > 1:
                    from tests.gpu.group import be_strict_

                    be_strict_()
                emulation.trace_without_mode_()
                emulation.print_from_host_()
                compute = os.environ["STAND_IN_KERNELS"] == "computed"
                emulation.enter_in_threads_(compute=compute)
                emulation.Emulation(compute=compute).__enter__()

            spec.loader.exec_module = exec_module
        return spec


if os.environ.get("STAND_IN_KERNELS") in ("computed", "counted"):
    sys.meta_path.insert(0, _AfterTorch())
