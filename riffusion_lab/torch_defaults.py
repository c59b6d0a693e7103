"""torch's own defaults, whatever the calling program has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import torch

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


class _Float32:
    """float32 as the default dtype of all threads: the first one to enter sets it, the last one to leave resets it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._n_inside = 0
        self._previous = torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._previous = torch.get_default_dtype()
                if self._previous != torch.float32:
                    torch.set_default_dtype(torch.float32)
            self._n_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0 and self._previous != torch.float32:
                torch.set_default_dtype(self._previous)


_float32 = _Float32()


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Compute with default dtype float32, default device CPU and without autocast; also usable as a decorator.

    The calling program's ``torch.set_default_dtype``, ``torch.set_default_device`` and ``torch.autocast`` then change
    neither pictures nor sounds. The device and dtype of a model are set by `load_pipeline`.
    """
    with ExitStack() as stack:
        stack.enter_context(_float32)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
