"""Notebook 00 from top to bottom as on Google Colab, set-up cell included: ``make test-colab`` runs this.

An environment that has Colab's versions but not the lab, and a kernel that believes to be on Colab. The set-up cell is
the one that all notebooks have; only the address in it is that of an archive that git makes here, as GitHub would.
There is no network for pip: whatever the cell had to download, Colab would have to download too.
"""

import json
import os
import subprocess
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from packaging.version import Version

import frame
from colab_lane import PINS, borrow_packages, pinned_versions
from external import require

CELL_TIMEOUT_S = 600  # only against a cell that hangs: on a busy computer one may take minutes
WHEELS = PINS.parent.parent / ".venv-colab" / "wheels"  # with setuptools, which pip needs to build the lab
# Colab has a package of this name, which every kernel imports. anywidget asks it for support of widgets.
STAND_IN_FOR_COLAB = """
class output:
    enable_custom_widget_manager = staticmethod(lambda: None)
"""
REPORT = """
import importlib.metadata, json, sys, torch
lab = sys.modules.get("riffusion_lab")
print(json.dumps({
    "versions": {name: importlib.metadata.version(name) for name in NAMES},
    "torch": torch.__version__,
    "is_colab": "google.colab" in sys.modules,
    "lab": lab and lab.__file__,
}))
"""


def make_archive(path: Path) -> None:
    """Write a zip of all that is tracked by git here, changes that are not committed included, as GitHub packs it."""
    git = [require("git"), "-c", "safe.directory=*", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    stash = subprocess.run([*git, "stash", "create"], cwd=frame.ROOT, capture_output=True, text=True, check=True)
    commit = stash.stdout.strip() or "HEAD"
    archive = [*git, "archive", "--format=zip", "--prefix=riffusion-lab-main/", f"--output={path}", commit]
    subprocess.run(archive, cwd=frame.ROOT, check=True)


def make_environment(folder: Path) -> Path:
    """Make an environment that finds all that this one has, and a stand-in for `google.colab`; return its Python.

    Its torch says that it is built for CUDA 12.8, as Colab's does: pip must take that for a version to keep.
    """
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    borrow_packages(str(folder))
    torch = f"{Version(version('torch')).public}+cu128"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    metadata = packages / f"torch-{torch}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n")
    colab = packages / "google" / "colab" / "__init__.py"
    colab.parent.mkdir(parents=True)
    colab.write_text(STAND_IN_FOR_COLAB)
    scripts = Path(sysconfig.get_path("scripts", vars={"base": str(folder)}))
    return scripts / ("python.exe" if os.name == "nt" else "python")


@pytest.fixture
def kernel_name(tmp_path, monkeypatch):
    """A kernel in an environment like Colab's, apart from everything the user has set up."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    start_up = tmp_path / "ipythondir" / "profile_default" / "startup" / "colab.py"
    start_up.parent.mkdir(parents=True)
    start_up.write_text("import google.colab")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(WHEELS))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    python = make_environment(tmp_path / "environment")
    specification = tmp_path / "kernel"
    specification.mkdir()
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    content = {"argv": argv, "display_name": "Colab", "language": "python"}
    (specification / "kernel.json").write_text(json.dumps(content))
    KernelSpecManager().install_kernel_spec(str(specification), "colab", user=True)
    return "colab"


def test_notebook_runs_on_colab(tmp_path, kernel_name):
    """The set-up cell installs the lab and changes no version, and the notebook runs with what it installed."""
    make_archive(tmp_path / "main.zip")
    notebook = nbformat.read(frame.lesson_path(frame.lessons()[0]), as_version=4)
    set_up = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert set_up.source == frame.setup_cell()
    set_up.source = frame.setup_cell(archive=(tmp_path / "main.zip").as_uri())
    pins = pinned_versions()
    report = nbformat.v4.new_code_cell(REPORT.replace("NAMES", repr(["torch", "torchaudio", *pins])))
    notebook.cells = [report, *notebook.cells, nbformat.from_dict(report)]
    work = tmp_path / "work"
    work.mkdir()
    resources = {"metadata": {"path": str(work)}}
    client = NotebookClient(notebook, kernel_name=kernel_name, timeout=CELL_TIMEOUT_S, resources=resources)
    client.execute()  # raises what a cell raises
    before, after = (json.loads(cell.outputs[0].text) for cell in (notebook.cells[0], notebook.cells[-1]))
    assert before["is_colab"] and before["lab"] is None
    assert before["versions"].items() >= pins.items()
    assert before["versions"]["torch"].endswith("+cu128")
    assert (after["versions"], after["torch"]) == (before["versions"], before["torch"])
    assert Path(after["lab"]).is_relative_to(tmp_path / "environment")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    # A display that fails is an output, and no error of its cell.
    wrong = [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert wrong == []
    players = sum("<audio controls" in output.get("data", {}).get("text/html", "") for output in outputs)
    assert players >= 1
