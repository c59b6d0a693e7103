"""Old import paths, which work for one more release."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any


def moved(old_module: str, new_places: dict[str, str]) -> Callable[[str], Any]:
    """Build a module's ``__getattr__`` that finds names in their new places, with a DeprecationWarning.

    Parameters
    ----------
    old_module : str
        ``__name__`` of the module that the names have left.
    new_places : dict
        From the old name to the new place, such as ``"networks.circular_time"``.
    """

    def find(name: str) -> Any:
        if name not in new_places:
            raise AttributeError(f"module {old_module!r} has no attribute {name!r}")
        new_module, new_name = new_places[name].rsplit(".", 1)
        new_path = f"riffusion_lab.{new_module}"
        warnings.warn(
            f"{old_module}.{name} is deprecated: take {new_name} from {new_path}", DeprecationWarning, stacklevel=2
        )
        return getattr(import_module(new_path), new_name)

    return find
