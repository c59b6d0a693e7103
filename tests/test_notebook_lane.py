"""Notebooks run side by side: the cells of each one stay together, and what fails is named."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import frame

# Each cell needs what the one before left behind. The kernel's address is a file, where there are such sockets.
CELLS = [
    "x = 1",
    "x += 1",
    "x += 1",
    "import json, ipykernel.connect as c\nprint(x, json.loads(c.get_connection_info())['transport'])",
]


def write_notebook(path: Path, *, printed: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source, execution_count=number) for number, source in enumerate(CELLS, 1)]
    cells[-1].outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, path)
    return path


@pytest.mark.slow
def test_notebooks_run_side_by_side(tmp_path):
    transport = "tcp" if sys.platform == "win32" else "ipc"
    paths = [write_notebook(tmp_path / f"{name}.ipynb", printed=f"3 {transport}\n") for name in ("one", "two")]
    wrong = write_notebook(tmp_path / "wrong.ipynb", printed="4\n")
    options = ["-n", "2", "-p", "tests.notebook_lane", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "--nbval", "--nbval-current-env", "-q", "-rf"]
    run = subprocess.run([*command, *map(str, paths), str(wrong)], cwd=frame.ROOT, capture_output=True, text=True)
    assert run.returncode == 1, run.stdout
    failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1 and "wrong.ipynb::Cell 3" in failed[0]
    assert f"1 failed, {3 * len(CELLS) - 1} passed" in run.stdout
