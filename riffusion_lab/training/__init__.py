"""Train a model of your own, or riffling again: compose or collect clips, train on them, judge. See `train`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "Dataset": "dataset",
    "DistillConfig": "config",
    "TrainConfig": "config",
    "distill": "distillation",
    "evaluate": "evaluation",
    "export": "exporting",
    "train": "denoiser",
}
__all__ = list(_MODULE_OF)  # noqa: PLE0604 - names of the table above


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_MODULE_OF)}")
    from ..models import quiet

    with quiet(bars=True):  # importing diffusers' pipeline makes transformers log warnings
        module = import_module(f".{_MODULE_OF[name]}", __name__)
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
