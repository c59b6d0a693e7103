"""Single numbers, checked: nothing here needs torch."""

from __future__ import annotations

import math
import operator
from numbers import Real


def check_whole(name: str, value: object, least: float, most: float) -> int:
    """Give back a whole number that lies between the two limits."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if not least <= operator.index(value) <= most:
        raise ValueError(f"{name} must be between {least} and {most}, not {value!r}")
    return operator.index(value)


def check_number(name: str, value: object) -> float:
    """Give back a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return float(value)
