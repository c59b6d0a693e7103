"""Single numbers, checked, and warnings: nothing here needs torch."""

from __future__ import annotations

import math
import operator
import sys
import warnings
from numbers import Real


def check_whole(name: str, value: object, least: float, most: float) -> int:
    """Give back a whole number that lies between the two limits."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if not least <= operator.index(value) <= most:
        raise ValueError(f"{name} must be between {least} and {most}, not {value!r}")
    return operator.index(value)


def check_number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """Give back a finite number that lies between the two limits."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value!r}")
    if not least <= value <= most:
        limits = f"{least:g} or more" if math.isinf(most) else f"between {least:.7g} and {most:.7g}"
        raise ValueError(f"{name} must be {limits}, not {value!r}")
    return float(value)


def warn(message: str) -> None:
    """Warn, and name the line outside this package that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals["__name__"].startswith(f"{__package__}."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
