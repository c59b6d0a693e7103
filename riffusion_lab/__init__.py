"""Text becomes a picture of sound becomes music: Riffusion opened up.

Importing the package is instant: torch, diffusers and matplotlib are loaded with the first name that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0.dev0"

_NAMES_OF = {
    "clip": ["Clip"],
    "edit": ["audio_to_audio", "extend", "inpaint"],
    "generate": ["text_to_audio"],
    "interpolation": ["interpolate", "walk"],
    "join": ["stitch"],
    "models": ["load_pipeline", "vocabulary"],
    "params": ["SpectrogramParams"],
    "prompts": ["Prompt"],
    "replaying": ["replay"],
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}
__all__ = [*_MODULE_OF, "__version__"]  # noqa: PLE0604 - names of the table above


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_MODULE_OF)}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
