"""Open JupyterLab on the first notebook of the course: ``make lab``, or ``python tools/open_lab.py [OPTION ...]``.

It is ``jupyter lab`` with defaults for this course; `OPTION` are JupyterLab's own. The user's settings and
configuration files hold as ever, and nothing is written into them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from jupyterlab.labapp import LabApp

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ROOT / "tools" / "jupyter"  # JupyterLab's defaults: it asks nothing about news, and looks for no updates
KERNEL = "python3"
OPTIONS = {
    "--ServerApp.root_dir": str(ROOT),
    "--ServerApp.contents_manager_class": "open_lab.Notebooks",
    # A workspace of its own: the user's default one may hold tabs of other folders, which cannot be opened here.
    "--LabApp.default_url": "/lab/workspaces/riffusion-lab/tree/notebooks/00_start_here.ipynb",
    "--LabApp.news_url": "None",
    "--LabApp.log_level": "ERROR",  # the address to visit is printed at every level
    "--ServerApp.log_level": "ERROR",
    "--KernelManager.transport_encryption": "auto",  # else each kernel prints a warning that it does not encrypt
}


class Notebooks(AsyncLargeFileManager):
    """The files of the course; a notebook that is opened already names the version of Python that will run it.

    JupyterLab copies the names and the version of a kernel into the notebook, and then takes the notebook for modified
    although nobody has touched it.
    """

    async def get(self, path: str, content: bool = True, **options: Any) -> dict[str, Any]:
        """Return the file or folder at `path` as Jupyter's contents API describes it."""
        model = await super().get(path, content=content, **options)
        if model["type"] == "notebook" and model["content"] is not None:
            metadata = model["content"]["metadata"]
            if metadata.get("kernelspec", {}).get("name") == KERNEL:
                metadata.update(self._kernel_metadata())
        return model

    def _kernel_metadata(self) -> dict[str, dict[str, Any]]:
        """Return what JupyterLab writes into a notebook when the kernel of this Python starts."""
        kernel = self.parent.kernel_spec_manager.get_kernel_spec(KERNEL)
        kernelspec = {"name": KERNEL, "display_name": kernel.display_name, "language": kernel.language}
        return {"kernelspec": kernelspec, "language_info": dict(IPythonKernel.language_info)}


def command_line(given: list[str]) -> list[str]:
    """Return the options for JupyterLab: those that are `given`, and those of `OPTIONS` that they do not set."""
    names = {option.partition("=")[0] for option in given}
    return [f"{name}={value}" for name, value in OPTIONS.items() if name not in names] + given


def main() -> None:
    """Start JupyterLab; it ends with Ctrl+C."""
    paths = [str(SETTINGS), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, paths))
    LabApp.launch_instance(command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
