"""Several processes that share one training, started by torchrun or accelerate: what all of them print appears once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout

# Of torch's DDP, where a gradient lies in another order than the room for it; the gradient is copied, nothing else
STRIDES_WARNING = "Grad strides do not match bucket view strides"


def n_processes() -> int:
    """How many processes were started together; 1 for one that was started alone."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first_process() -> bool:
    """Whether this is the first of the processes that were started together, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def printed_once() -> Iterator[None]:
    """Print nothing in other processes than the first one, and no warning of torch that users can do nothing about.

    Errors appear in each.
    """
    with ExitStack() as stack:
        if not is_first_process():
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
        if n_processes() > 1:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message=STRIDES_WARNING)
        yield
