"""Several notebooks at once: ``pytest -n 2 --dist loadgroup -p tests.notebook_lane --nbval notebooks``.

As a plugin of pytest this module keeps the cells of a notebook together, in their order, in one process. Kernels talk
through files of their own instead of ports: two kernels that start at the same moment may choose the same port.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

import nbval.kernel
import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager
from nbval.plugin import IPyNbFile
from traitlets import default


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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the cells of a notebook into one group: pytest-xdist hands a group to one process."""
    for item in items:
        if isinstance(item.parent, IPyNbFile):
            notebook = item.path.relative_to(item.config.rootpath).as_posix()
            item.add_marker(pytest.mark.xdist_group(notebook))
