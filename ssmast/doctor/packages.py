"""Packages: installed, in range, importable, and working together."""

import importlib
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

from ssmast.doctor.finding import Finding, note, ok, problem, reason

# Packages whose module has another name; the part of lightly that is used imports torchvision.
_MODULES = {
    "faiss-cpu": "faiss",
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
    "lightly": "lightly.loss",
}
_EXTRAS = {
    "codecs": ("torchcodec", "m4a, aac, webm, wma and the sound tracks of videos"),
    "onnx": ("onnx", "ssmast export onnx=true"),
    "ray": ("ray", "engine=ray of ssmast prepare and embed"),
    "umap": ("umap-learn", "the picture of ssmast cluster"),
}
_PYTHON = (3, 11)


def check_python() -> Iterator[Finding]:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _PYTHON:
        wanted = ".".join(map(str, _PYTHON))
        yield problem("python", "python_old", f"ssmast needs Python {wanted}, this is {version}")
    else:
        yield ok("python", f"{version} at {sys.executable}")


def requirements() -> dict[str, str]:
    """Package -> range of versions, as pyproject.toml declares what ssmast always needs.

    Raises:
        PackageNotFoundError: if ssmast runs from a folder without being installed.
    """
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("ssmast") or []]
    return {
        each.name: str(each.specifier)
        for each in wanted
        if each.marker is None or each.marker.evaluate({"extra": ""})
    }


def check_packages() -> Iterator[Finding]:
    """Every package that ssmast always needs: its version, and whether it can be imported."""
    try:
        wanted = requirements()
    except metadata.PackageNotFoundError:
        text = "ssmast is not installed but used from a folder, so its requirements are not known"
        yield problem("packages", "package_missing", text)
        return
    except ImportError as error:  # packaging itself
        yield problem("packages", "package_missing", f"versions cannot be read: {reason(error)}")
        return
    good = []
    for name, versions in sorted(wanted.items()):
        fault = _fault(name, versions)
        if fault is None:
            good.append(f"{name} {metadata.version(name)}")
        else:
            yield fault
    if good:
        yield ok("packages", ", ".join(good))


def _fault(name: str, versions: str) -> Finding | None:
    from packaging.specifiers import SpecifierSet

    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return problem("packages", "package_missing", f"{name} is not installed")
    if not SpecifierSet(versions).contains(found, prereleases=True):
        text = f"{name} is {found}, ssmast needs {versions}"
        return problem("packages", "package_version", text)
    if name in _CALLS:
        return None  # check_torch_family imports and uses them together
    try:
        importlib.import_module(_MODULES.get(name, name.replace("-", "_")))
    except Exception as error:
        text = f"{name} {found} cannot be imported: {reason(error)}"
        return problem("packages", "package_broken", text)
    return None


def check_torch_family() -> Iterator[Finding]:
    """Torch, torchvision and torchaudio: do they import together, and does a call of each work?

    Builds for different CUDA versions often work together, so version strings decide nothing.
    """
    loaded: dict[str, Any] = {}
    for name, call in _CALLS.items():
        try:
            loaded[name] = importlib.import_module(name)
        except Exception as error:
            code = "torch_family"
            if name == "torch":
                missing = isinstance(error, ModuleNotFoundError) and error.name == "torch"
                code = "package_missing" if missing else "package_broken"
            yield problem("torch", code, f"{name} cannot be imported: {reason(error)}")
            if name == "torch":
                return
            continue
        try:
            call(loaded)
        except Exception as error:
            text = f"{name} does not work ({_versions(loaded)}): {reason(error)}"
            yield problem("torch", "torch_family", text)
            return
    if len(loaded) == len(_CALLS):
        yield ok("torch", _versions(loaded))


def _versions(loaded: dict[str, Any]) -> str:
    return ", ".join(f"{name} {module.__version__}" for name, module in loaded.items())


def _nms(loaded: dict[str, Any]) -> None:
    """Torchvision's compiled part."""
    boxes = loaded["torch"].tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
    loaded["torchvision"].ops.nms(boxes, boxes[:, 3], 0.5)


_CALLS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "torch": lambda loaded: loaded["torch"].tensor([1.0]),
    "torchvision": _nms,
    "torchaudio": lambda loaded: loaded["torchaudio"].functional.melscale_fbanks(
        n_freqs=9, f_min=0.0, f_max=4000.0, n_mels=2, sample_rate=8000
    ),
}


def check_extras() -> Iterator[Finding]:
    """Optional packages: installed or not, and what they are for."""
    for extra, (package, purpose) in _EXTRAS.items():
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            text = f"{extra}: not installed; pip install 'ssmast[{extra}]' for {purpose}"
            yield note("extras", text)
            continue
        if package == "torchcodec":
            try:
                importlib.import_module("torchcodec.decoders")
            except Exception as error:
                text = f"torchcodec {found} cannot load FFmpeg ({reason(error)})"
                yield problem("extras", "codecs_broken", text)
                continue
        yield ok("extras", f"{extra}: {package} {found}, for {purpose}")
