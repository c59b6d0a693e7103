"""Single numbers, checked, and warnings: nothing here needs torch."""

from __future__ import annotations

import math
import operator
import sys
import textwrap
import threading
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

N_SEEDS = 2**32
_this_thread = threading.local()


def as_scalar(value: object) -> object:
    """Give a scalar of NumPy or torch as Python's own bool, int, float or str; anything else as it is.

    An array or a tensor without dimensions is a scalar too.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


def as_list(values: object) -> list | None:
    """Give a list, a tuple, a range, or an array of one dimension or more as a list; None for a single value."""
    if isinstance(values, str | bytes):
        return None
    if isinstance(values, Sequence):
        return list(values)
    if getattr(values, "ndim", 0) > 0 and hasattr(values, "tolist"):
        return values.tolist()
    return None


def check_whole(name: str, value: object, least: float, most: float) -> int:
    """Give back a whole number that lies between the two limits, as an int."""
    scalar = as_scalar(value)
    is_array = getattr(scalar, "ndim", 0) > 0
    if isinstance(scalar, bool) or is_array or not hasattr(scalar, "__index__"):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    number = operator.index(scalar)
    if not least <= number <= most:
        raise ValueError(f"{name} must be between {least} and {most}, not {number}")
    return number


def check_seed(seed: object) -> int:
    """Give back a seed as an int, if torch uses the whole of it.

    Noise is drawn on the CPU, where torch's generator uses the lowest 32 bits of a seed: 5 and 2**32 + 5 would be the
    same noise.
    """
    number = check_whole("seed", seed, -math.inf, math.inf)
    if number >= N_SEEDS:
        same = f"torch uses the lowest 32 bits only, so its noise is that of seed {number % N_SEEDS}"
        raise ValueError(f"seed must be between 0 and {N_SEEDS - 1}, not {number}: {same}")
    return check_whole("seed", number, 0, N_SEEDS - 1)


def check_number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """Give back a finite number that lies between the two limits, as a float."""
    scalar = as_scalar(value)
    if isinstance(scalar, bool) or not isinstance(scalar, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(scalar):
        raise ValueError(f"{name} must be finite, not {scalar!r}")
    if not least <= scalar <= most:
        limits = f"{least:g} or more" if math.isinf(most) else f"between {least:.7g} and {most:.7g}"
        raise ValueError(f"{name} must be {limits}, not {scalar!r}")
    return float(scalar)


def check_finite(what: str, tensor: Tensor) -> None:
    """Refuse a calculated tensor with a NaN or an infinity in it, from which a black picture would be made.

    Raises
    ------
    FloatingPointError
        If there is one; the message begins with `what`, which says whose fault that is likely to be.
    """
    if bool(tensor.isfinite().all()):
        return
    dtype = str(tensor.dtype).removeprefix("torch.")
    overflow = f"; numbers may be too large for {dtype}: try load_pipeline(..., dtype='float32')"
    raise FloatingPointError(f"{what}: not all numbers are finite{'' if dtype == 'float32' else overflow}")


def in_one_line(error: Exception) -> str:
    """Give what an error says in one line, without what goes on for more than 300 characters."""
    return textwrap.shorten(str(error), width=300, placeholder=" …") or type(error).__name__


def warn(message: str) -> None:
    """Warn, and name the line outside this package that led here."""
    if getattr(_this_thread, "is_silent", False):
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals["__name__"].startswith(f"{__package__}."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def silence_thread() -> None:
    """Give no warnings in this thread any more: a thread's warnings end up in any cell of a notebook."""
    _this_thread.is_silent = True
