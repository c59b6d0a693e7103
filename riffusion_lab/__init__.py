"""Text becomes a picture of sound becomes music: Riffusion opened up.

Importing the package is instant: torch, diffusers and matplotlib are loaded with the first name that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULE_OF = {
    "Clip": "clip",
    "Prompt": "prompts",
    "SpectrogramParams": "params",
    "audio_to_audio": "edit",
    "extend": "edit",
    "inpaint": "edit",
    "interpolate": "interpolation",
    "load_pipeline": "models",
    "replay": "generate",
    "stitch": "join",
    "text_to_audio": "generate",
    "vocabulary": "models",
    "walk": "interpolation",
}
__all__ = [*_MODULE_OF, "__version__"]  # noqa: PLE0604 - names of the table above


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_MODULE_OF)}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
