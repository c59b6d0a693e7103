"""torch's own defaults, whatever the program around us has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import torch

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


class _Float32:
    """float32 as the default dtype, which all threads share: the first to come sets it, the last to go puts it back."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._n_inside = 0
        self._found = torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._found = torch.get_default_dtype()
                if self._found != torch.float32:
                    torch.set_default_dtype(torch.float32)
            self._n_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0 and self._found != torch.float32:
                torch.set_default_dtype(self._found)


_float32 = _Float32()


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Calculate with default dtype float32, default device CPU and without autocast; also a decorator of functions.

    So ``torch.set_default_dtype``, ``torch.set_default_device`` and ``torch.autocast`` of the program around us change
    neither pictures nor sounds. Which device and dtype a model computes in, `load_pipeline` says.
    """
    with ExitStack() as stack:
        stack.enter_context(_float32)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
