"""Several notebooks at once: ``pytest -n 2 -p tests.notebook_lane --nbval notebooks``.

As a plugin of pytest this module keeps the cells of a notebook together, in their order, in one process. Kernels talk
through files of their own instead of ports: two kernels that start at the same moment may choose the same port.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import nbval.kernel
import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager
from traitlets import default
from xdist.scheduler import LoadScopeScheduling


class _OwnFiles:
    """The part of a kernel manager that chooses where its kernel is to be reached."""

    @default("transport")
    def _transport_default(self) -> str:
        return "tcp" if os.name == "nt" else "ipc"

    @default("ip")
    def _ip_default(self) -> str:
        return "127.0.0.1" if os.name == "nt" else str(Path(tempfile.gettempdir(), f"kernel-{uuid.uuid4().hex}"))


class OwnFilesKernelManager(_OwnFiles, KernelManager):
    """For nbval."""


class AsyncOwnFilesKernelManager(_OwnFiles, AsyncKernelManager):
    """For nbclient."""


def pytest_configure() -> None:
    """Let nbval start its kernels with files of their own."""
    nbval.kernel.KernelManager = OwnFilesKernelManager


class NotebookScheduling(LoadScopeScheduling):
    """Hands out whole notebooks and single tests; with ``--no-loadscope-reorder`` in the order of the command."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return path if path.endswith(".ipynb") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> NotebookScheduling:
    """Tell pytest-xdist how to share the work out, whatever its option ``--dist`` says."""
    return NotebookScheduling(config, log)
