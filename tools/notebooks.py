"""Run notebooks from top to bottom and save them cleaned, with their outputs: ``python tools/notebooks.py [PATH ...]``.

The generated cells (title, set-up, course map) are written first. What would differ from run to run is left out of the
file: execution times, widget state, versions. A notebook that fails is not saved.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

import frame

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def read(path: Path) -> nbformat.NotebookNode:
    """Return the notebook at `path`; a cell without an id gets one that stays the same in every run."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["nbformat_minor"] = 5
    for number, cell in enumerate(raw["cells"]):
        cell.setdefault("id", f"cell-{number:02d}")
    return nbformat.reads(json.dumps(raw), as_version=4)


def execute(notebook: nbformat.NotebookNode, folder: Path, **options: Any) -> None:
    """Run every cell of `notebook` in place, in `folder`, in a new kernel of this Python; `options` are nbclient's."""
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=600,
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
        **options,
    ).execute()


def clean(notebook: nbformat.NotebookNode) -> None:
    """Remove from `notebook`, in place, all that is neither content nor the result of running it."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in ("tags", "jupyter") if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict(kept)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)  # names a model that ends with the kernel
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
        if "outputs" in cell:  # a widget's figure stays, in the output before that of the widget
            cell.outputs = [output for output in cell.outputs if output.get("data") != {}]


def save(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write `notebook` to `path`, or leave the old file as it is if that fails."""
    nbformat.validate(notebook)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def main(arguments: list[str]) -> None:
    """Run and save the notebooks named in `arguments`, all of them if there are none."""
    paths = [Path(argument).resolve() for argument in arguments] or frame.notebooks()
    for path in paths:
        start = time.monotonic()
        notebook = read(path)
        frame.write_cells(notebook, path)
        execute(notebook, path.parent)
        clean(notebook)
        save(notebook, path)
        print(f"{path.relative_to(frame.ROOT)}: {time.monotonic() - start:.0f} s, {path.stat().st_size / 1e3:.0f} kB")
    frame.write_pages()


if __name__ == "__main__":
    main(sys.argv[1:])
