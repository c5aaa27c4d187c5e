"""Settings that no run can mean, refused in one sentence before any audio is read."""

import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from ssmast.settings import UsageError

SHARE, ANY, COUNT = (0.0, 1.0), (0.0, math.inf), (1.0, math.inf)
"""Ranges for `in_range`: a share of a whole; any number that is not negative; one or more."""


def require(holds: bool, key: str, value: object, wanted: str) -> None:
    """Refuse a setting that is not what was wanted.

    Raises:
        UsageError: naming both.
    """
    if not holds:
        raise UsageError(f"{key} must be {wanted}, got {value}")


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is not one of those allowed.

    Raises:
        UsageError: naming them.
    """
    require(value in allowed, key, repr(value), " or ".join(allowed))


def in_range(settings: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuse numbers out of their range; NaN is out of every one.

    Args:
        settings: a dataclass of them.
        ranges: dotted key -> smallest and largest; of a list, of each of its numbers. A key that
            is left open (None) has none.

    Raises:
        UsageError: naming the first that is not.
    """
    for key, (low, high) in ranges.items():
        value = attrgetter(key)(settings)
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        wanted = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        require(all(low <= number <= high for number in numbers), key, value, wanted)
