"""Checks of single arguments, and warnings; importing this does not import torch."""

from __future__ import annotations

import math
import operator
import sys
import textwrap
import threading
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, SupportsIndex

if TYPE_CHECKING:
    from torch import Tensor

N_SEEDS = 2**32
_this_thread = threading.local()


def as_scalar(value: object) -> object:
    """Convert a scalar of NumPy or torch to a Python bool, int, float or str; return anything else unchanged.

    An array or a tensor without dimensions is a scalar too.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        scalar: object = value.item()
        return scalar
    return value


def as_list(values: object) -> list[Any] | None:
    """Convert a list, a tuple, a range, or an array with at least one dimension to a list; None for a single value."""
    if isinstance(values, str | bytes):
        return None
    if isinstance(values, Sequence):
        return list(values)
    if getattr(values, "ndim", 0) > 0 and hasattr(values, "tolist"):
        items: list[Any] = values.tolist()
        return items
    return None


def check_whole(name: str, value: object, least: float, most: float) -> int:
    """Return a whole number as an int.

    Raises
    ------
    TypeError, ValueError
        If it is not a whole number, or not between the two limits.
    """
    scalar = as_scalar(value)
    is_array = getattr(scalar, "ndim", 0) > 0
    if isinstance(scalar, bool) or is_array or not isinstance(scalar, SupportsIndex):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    number = operator.index(scalar)
    if not least <= number <= most:
        raise ValueError(f"{name} must be between {least} and {most}, not {number}")
    return number


def check_seed(seed: object) -> int:
    """Return a seed as an int.

    Noise is drawn on the CPU, where torch's generator uses only the lowest 32 bits of a seed: 5 and 2**32 + 5 would
    give the same noise, so larger seeds are refused.

    Raises
    ------
    TypeError, ValueError
        If it is not a whole number from 0 to 2**32 - 1.
    """
    number = check_whole("seed", seed, -math.inf, math.inf)
    if number >= N_SEEDS:
        same = f"torch uses the lowest 32 bits only, so its noise is that of seed {number % N_SEEDS}"
        raise ValueError(f"seed must be between 0 and {N_SEEDS - 1}, not {number}: {same}")
    return check_whole("seed", number, 0, N_SEEDS - 1)


def check_number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """Return a finite number as a float.

    Raises
    ------
    TypeError, ValueError
        If it is not a finite number, or not between the two limits.
    """
    scalar = as_scalar(value)
    if isinstance(scalar, bool) or not isinstance(scalar, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    number = float(scalar)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, not {scalar!r}")
    if not least <= number <= most:
        limits = f"{least:g} or more" if math.isinf(most) else f"between {least:.7g} and {most:.7g}"
        raise ValueError(f"{name} must be {limits}, not {scalar!r}")
    return number


def check_bool(name: str, value: object) -> bool:
    """Return True or False; other values, such as the text "no", are refused, since most of them count as true.

    Raises
    ------
    TypeError
        If it is neither True nor False, of Python, NumPy or torch.
    """
    scalar = as_scalar(value)
    if not isinstance(scalar, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return scalar


def check_finite(what: str, tensor: Tensor) -> None:
    """Refuse a computed tensor that contains NaN or infinity, which would become a black picture.

    Raises
    ------
    FloatingPointError
        If it does; the message begins with `what`, which names the likely culprit.
    """
    if bool(tensor.isfinite().all()):
        return
    message = f"{what}: not all numbers are finite"
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype != "float32":
        message += f"; numbers may be too large for {dtype}: try load_pipeline(..., dtype='float32')"
    raise FloatingPointError(message)


def in_one_line(error: Exception) -> str:
    """Message of an error in one line, shortened to 300 characters."""
    return textwrap.shorten(str(error), width=300, placeholder=" …") or type(error).__name__


def _is_ours(module: str) -> bool:
    """Whether a frame of this module lies inside the package: contextlib's are those of our decorators."""
    return module.startswith(f"{__package__}.") or module == "contextlib"


def warn(message: str) -> None:
    """Warn, and attribute the warning to the line outside this package that called it."""
    if getattr(_this_thread, "is_silent", False):
        return
    frame = sys._getframe(1)
    level = 2
    while frame.f_back and _is_ours(frame.f_globals["__name__"]):
        frame = frame.f_back
        level += 1
    warnings.warn(message, stacklevel=level)


def silence_thread() -> None:
    """Silence `warn` in this thread: in a notebook, a thread's warnings would appear below an arbitrary cell."""
    _this_thread.is_silent = True
