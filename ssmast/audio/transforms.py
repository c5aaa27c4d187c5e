"""Augmentations of waveforms by audiomentations: a built-in chain, or the one that a file lists.

A file is YAML or JSON: a list of transforms, each a name, or a name with its arguments. Folders
of sounds are relative to the file; OneOf, SomeOf and Compose hold further lists.

    - Gain: {min_gain_db: -6, max_gain_db: 6, p: 0.5}
    - OneOf:
        transforms:
          - AddBackgroundNoise: {sounds_path: noises, p: 1.0}
          - AddGaussianSNR
"""

import difflib
import inspect
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ssmast.files import as_text, yaml_list
from ssmast.settings import in_home

_GROUPS = ("Compose", "OneOf", "SomeOf")
_PATHS = ("sounds_path", "ir_path")
_FORM = "a list of audiomentations transforms such as [{Gain: {p: 0.5}}, PolarityInversion]"


# All cost at most about 2 ms for 6 s. Pitch shift and time stretch (12-17 ms) are left out.
_BUILT_IN: list[dict[str, dict[str, Any]]] = [
    {"PolarityInversion": {"p": 0.5}},
    {"Shift": {"min_shift": -0.1, "max_shift": 0.1, "rollover": False, "p": 0.3}},
    {"LowPassFilter": {"min_cutoff_freq": 2000.0, "max_cutoff_freq": 7500.0, "p": 0.1}},
    {"HighPassFilter": {"min_cutoff_freq": 60.0, "max_cutoff_freq": 600.0, "p": 0.1}},
    {"TanhDistortion": {"min_distortion": 0.01, "max_distortion": 0.2, "p": 0.1}},
    {"AddGaussianSNR": {"min_snr_db": 15.0, "max_snr_db": 40.0, "p": 0.3}},
    {"GainTransition": {"min_gain_db": -9.0, "max_gain_db": 3.0, "p": 0.2}},
    {"Gain": {"min_gain_db": -9.0, "max_gain_db": 6.0, "p": 0.7}},
]


class WaveformAugment:
    """Changes a waveform by transforms of audiomentations, all draws decided by a seed.

    Args:
        path: YAML or JSON file of transforms; None for the built-in chain, cheap changes to level,
            phase, tone and noise that leave the content in place.

    Raises:
        FileNotFoundError: if the file, or a folder of sounds that it names, does not exist.
        ValueError: if it lists what audiomentations does not have or take.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path("the built-in chain") if path is None else Path(path)
        # Kept as plain values: every process makes transforms of its own, from the same list.
        self._listed = _BUILT_IN if path is None else _read(self.path)
        self._chain = None if path is None else self._built()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chain": None}

    def __call__(self, waveform: np.ndarray, *, sample_rate: int, seed: int) -> np.ndarray:
        """Float32 samples (S,) -> as many; the seed is below 2^32.

        Raises:
            ValueError: if a transform of the file fails, or changes the length.
        """
        self._chain = self._chain or self._built()
        try:
            out = _seeded(seed, self._chain, samples=waveform, sample_rate=sample_rate)
        except Exception as error:  # transforms raise kinds of their own
            raise ValueError(
                f"the transforms of {self.path} failed on {len(waveform)} samples "
                f"({type(error).__name__}: {error}); correct its arguments, or leave it out"
            ) from error
        if out.shape != waveform.shape or not np.isfinite(out).all():
            raise ValueError(
                f"the transforms of {self.path} must give {len(waveform)} finite samples, got "
                f"{'some that are not' if out.shape == waveform.shape else len(out.T)}; leave out "
                f"the one that changes them"
            )
        return out.astype(np.float32, copy=False)

    def _built(self) -> Callable[..., np.ndarray]:
        """audiomentations.Compose; draws from the states of both `random` and `numpy.random`."""
        return _transform({"Compose": {"transforms": self._listed}}, self.path)


def _seeded(
    seed: int, augment: Callable[..., np.ndarray], *, samples: np.ndarray, sample_rate: int
) -> np.ndarray:
    """Run an augmentation in a state of both global generators that only `seed` decides.

    Both states are put back afterwards, so nobody else's draws move.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        return augment(samples=samples, sample_rate=sample_rate)
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _read(path: Path) -> list[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; wanted a YAML or JSON file with {_FORM}")
    return yaml_list(as_text(path.read_bytes(), path), path, f"hold {_FORM}")


def _known() -> dict[str, Any]:
    """The transforms of audiomentations by name, less the one that runs a function of one's own."""
    import audiomentations
    from audiomentations.core.transforms_interface import BaseWaveformTransform

    found = {
        name: value
        for name, value in vars(audiomentations).items()
        if inspect.isclass(value) and issubclass(value, BaseWaveformTransform)
    }
    del found["Lambda"]
    return found


def _transform(entry: Any, path: Path) -> Any:
    """The transform of `Name` or `{Name: {argument: value}}`."""
    import audiomentations

    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError(f"{path} must hold {_FORM}, got the entry {entry!r}")
    ((name, given),) = entry.items()
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise ValueError(f"{name} in {path} must have arguments as {{name: value}}, got {given!r}")
    known = _known()
    _check_name(name, [*known, *_GROUPS], f"{path} names", "transform of audiomentations")
    kind = known[name] if name in known else getattr(audiomentations, name)
    allowed = [key for key in inspect.signature(kind.__init__).parameters if key != "self"]
    for key in given:
        _check_name(key, allowed, f"{name} in {path} has", f"argument of {name}")
    listed = given.get("transforms")
    if name in _GROUPS and (not isinstance(listed, list) or not listed):
        raise ValueError(f"{name} in {path} must have transforms: {_FORM}, got {listed!r}")
    values = {key: _value(key, value, name, path) for key, value in given.items()}
    try:
        return kind(**values)
    except Exception as error:  # transforms raise kinds of their own
        raise ValueError(f"{name} in {path} cannot be made with {values}: {error}") from error


def _check_name(name: Any, allowed: list[str], who: str, what: str) -> None:
    if name not in allowed:
        near = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(allowed))}"
        raise ValueError(f"{who} {name!r}, which is no {what}; {hint}")


def _value(key: str, value: Any, name: str, path: Path) -> Any:
    """An argument: numbers and text as they are, folders of sounds as their files, transforms."""
    if key == "transforms":
        return [_transform(entry, path) for entry in value]
    if key == "num_transforms" and isinstance(value, list):
        return tuple(value)
    if key.endswith("_transform") and value is not None:
        return _transform(value, path)
    items = value if isinstance(value, list) else [value]
    if not all(item is None or isinstance(item, bool | int | float | str) for item in items):
        raise ValueError(f"{name} in {path} must have plain values, got {key}={value!r}")
    if key not in _PATHS:
        return value
    return [file for item in items for file in _sounds(path.parent / in_home(str(item)), key, path)]


def _sounds(place: Path, key: str, path: Path) -> list[str]:
    """The files of a folder in the order of their names: a listing's own differs between disks."""
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist; {path} names it as {key}")
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [str(file) for file in files if file.is_file()]
