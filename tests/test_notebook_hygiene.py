"""Every notebook keeps to the rules, and no rule passes on a notebook that breaks it."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import get_sanitize_patterns

import frame
import notebook_rules as rules
import notebooks as tool

LESSON = frame.ROOT / "notebooks" / "00_start_here.ipynb"
Change = Callable[[dict], None]


def markdown(number: int, source: str) -> dict:
    return {"cell_type": "markdown", "id": f"cell-{number}", "metadata": {}, "source": source}


def code(number: int, count: int, source: str, printed: str = "", tag: str = "") -> dict:
    outputs = [{"output_type": "stream", "name": "stdout", "text": printed}] if printed else []
    metadata = {"tags": [tag]} if tag else {}
    return {
        "cell_type": "code",
        "id": f"cell-{number}",
        "metadata": metadata,
        "execution_count": count,
        "source": source,
        "outputs": outputs,
    }


def smallest_notebook() -> dict:
    """Return the smallest lesson that breaks no rule."""
    course = f"<!-- begin course -->\n{frame.course_map()}\n<!-- end course -->"
    quiz = rules.QUIZ + 3 * "\n\n<details><summary>1 + 1?</summary>\n\n2\n\n</details>"
    exercises = ["## Exercises", "★ Add.", *rules.OPEN_EXERCISES]
    end = "\n\n".join(["## Recap", "Sums.", quiz, *exercises, "## The map of the course", course])
    cells = [
        markdown(0, frame.header(LESSON, "00 · Start here")),
        markdown(1, "## What you will learn\n\n- add\n\n## What you need\n\nnothing"),
        code(2, 1, frame.setup_cell()),
        *(code(2 + n, 1 + n, f"print({n} + {n})", f"{n + n}\n", rules.CHECK) for n in (1, 2, 3)),
        markdown(6, end),
    ]
    metadata = {"kernelspec": dict(tool.KERNEL), "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def put(**fields: object) -> Change:
    """Return a change that sets fields of the first cell that prints."""
    return lambda notebook: notebook["cells"][3].update(fields)


def print_also(output: dict) -> Change:
    return lambda notebook: notebook["cells"][3]["outputs"].append(output)


def show(data: dict) -> Change:
    return print_also({"output_type": "display_data", "metadata": {}, "data": data})


def show_html(html: str) -> Change:
    return show({"text/html": html})


def tag_all(tag: str) -> Change:
    return lambda notebook: [cell["metadata"].update(tags=[tag]) for cell in rules.code_cells(notebook)[1:]]


def replace(number: int, old: str, new: str, count: int = -1) -> Change:
    def change(notebook: dict) -> None:
        assert old in notebook["cells"][number]["source"]
        notebook["cells"][number]["source"] = notebook["cells"][number]["source"].replace(old, new, count)

    return change


ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
STDERR = {"output_type": "stream", "name": "stderr", "text": ["a warning"]}
TIMES = {"iopub.execute_input": "2026-01-01T09:00:00Z"}
LESSON_ADDRESS = "/blob/main/notebooks/00_start_here.ipynb"

MUTATIONS: list[tuple[rules.Rule, str, Change]] = [
    (rules.counts_run_from_one, "not run", put(execution_count=None)),
    (rules.counts_run_from_one, "run twice", put(execution_count=7)),
    (rules.outputs_are_present, "no field", lambda notebook: notebook["cells"][2].pop("outputs")),
    (rules.outputs_are_present, "stripped", put(outputs=[])),
    (rules.nothing_went_wrong, "error", print_also(ERROR)),
    (rules.nothing_went_wrong, "stderr", print_also(STDERR)),
    (rules.metadata_is_clean, "widgets", lambda notebook: notebook["metadata"].update(widgets={})),
    (rules.metadata_is_clean, "folded", put(metadata={"tags": [rules.CHECK], "jupyter": {"source_hidden": True}})),
    (rules.metadata_is_clean, "times", put(metadata={"tags": [rules.CHECK], "execution": TIMES})),
    (rules.cells_have_ids, "missing", lambda notebook: notebook["cells"][3].pop("id")),
    (rules.cells_have_ids, "twice", put(id="cell-0")),
    (rules.kernel_is_python3, "other", lambda notebook: notebook["metadata"]["kernelspec"].update(name="lab")),
    (rules.kernel_is_python3, "none", lambda notebook: notebook["metadata"].pop("kernelspec")),
    (rules.enough_is_checked, "two", put(metadata={})),
    (rules.little_is_ignored, "all", tag_all(rules.IGNORE)),
    (rules.nothing_is_skipped, "tag", put(metadata={"tags": [rules.CHECK, rules.SKIP]})),
    (rules.nothing_is_skipped, "comment", put(source="# NBVAL_SKIP\nprint(2)")),
    (rules.size_is_in_budget, "large", put(source="#" + "x" * rules.MAX_BYTES)),
    (rules.players_are_in_budget, "seven", show_html("<audio controls src='a'></audio>" * 7)),
    (rules.players_are_in_budget, "source", show_html("<audio controls><source src='a'></audio>")),
    (rules.widgets_leave_figures, "view", show({"text/plain": "IntSlider(value=3)", rules.WIDGET_VIEW: {}})),
    (rules.widgets_leave_figures, "box", show({"text/plain": "VBox(children=(Label(value='a'),))"})),
    (rules.widgets_leave_figures, "no figure", show({"text/plain": "Studio('piano', seed=1)"})),
    (rules.widgets_leave_figures, "large", show_html(f"<div class='rl-static'>{'x' * rules.MAX_FIGURE_BYTES}</div>")),
    (rules.paths_stay_private, "output", show_html("saved in /home/me/clip.png")),
    (rules.paths_stay_private, "code", put(source="open('/tmp/clip.png')")),
    (rules.header_is_generated, "no title", replace(0, "# 00", "00")),
    (rules.header_is_generated, "other title", replace(0, "Start here", "Begin")),
    (rules.header_is_generated, "other repository", replace(0, frame.address()[-8:], "elsewhere")),
    (rules.header_is_generated, "other notebook", replace(0, LESSON_ADDRESS, "/blob/main/other.ipynb")),
    (rules.setup_is_generated, "changed", replace(2, '"-q"', '"-U"')),
    (rules.setup_is_generated, "missing", lambda notebook: notebook["cells"].pop(2)),
    (rules.setup_is_generated, "twice", put(source=frame.setup_cell())),
    (rules.sections_are_complete, "missing", replace(6, "## Recap", "")),
    (rules.sections_are_complete, "order", lambda notebook: notebook["cells"].insert(1, notebook["cells"].pop())),
    (rules.predictions_are_answered, "no answer", replace(6, "Sums.", "**Predict**: 1 + 1?")),
    (rules.predictions_are_answered, "answer first", replace(6, "Sums.", f"{rules.ANSWER} 2. **Predict**: 1 + 1?")),
    (rules.predictions_are_answered, "one for two", replace(6, "Sums.", f"**Predict** **Predict** {rules.ANSWER}")),
    (rules.learners_can_check_themselves, "two questions", replace(6, "<details><summary>1 + 1?</summary>", "", 1)),
    (rules.learners_can_check_themselves, "no argument", replace(6, rules.OPEN_EXERCISES[1], "")),
    (rules.course_map_is_current, "stale", replace(6, "Inpainting", "Painting")),
    (rules.magics_are_known, "line", put(source="%writefle x\n1 / 0")),
    (rules.magics_are_known, "cell", put(source="%%bash\nfalse")),
    (rules.magics_are_known, "value", put(source="here = %pwd")),
    (rules.magics_are_known, "shell", put(source="!false")),
    (rules.magics_are_known, "shell value", put(source="names = !ls")),
]


def test_smallest_notebook_breaks_no_rule():
    nbformat.validate(nbformat.from_dict(smallest_notebook()))
    assert rules.broken_rules(smallest_notebook(), LESSON) == {}


@pytest.mark.parametrize(("rule", "change"), [pytest.param(r, c, id=f"{r.__name__}-{n}") for r, n, c in MUTATIONS])
def test_broken_notebook_fails(rule, change):
    notebook = copy.deepcopy(smallest_notebook())
    change(notebook)
    assert rule.__name__ in rules.broken_rules(notebook, LESSON)


def test_every_rule_is_proven():
    assert {rule for rule, _, _ in MUTATIONS} == set(rules.RULES)


def test_there_are_notebooks():
    assert LESSON in frame.notebooks()


@pytest.mark.parametrize("path", frame.notebooks(), ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    assert rules.broken_rules(notebook, path) == {}


@pytest.mark.slow
def test_tool_runs_and_cleans(tmp_path):
    """A drafted notebook comes out run and clean; run again it is the same file, and nbval agrees with it."""
    path = tmp_path / "draft.ipynb"
    draft = smallest_notebook()
    draft["metadata"] = {"widgets": {}, "kernelspec": dict(tool.KERNEL)}
    for cell in rules.code_cells(draft):
        cell.update(execution_count=None, outputs=[])
        del cell["id"]
    widget = "import ipywidgets\nfrom IPython.display import display\ndisplay(ipywidgets.IntSlider(3))"
    draft["cells"].insert(5, code(9, 5, widget))
    figure = "from riffusion_lab.widgets import Recorder\nRecorder()"
    draft["cells"].insert(6, code(10, 6, figure))
    path.write_text(json.dumps(draft))

    saved = []
    for _ in range(2):
        notebook = tool.read(path)
        tool.execute(notebook, tmp_path)
        tool.clean(notebook)
        tool.save(notebook, path)
        saved.append(path.read_text())
    assert saved[0] == saved[1]
    assert rules.broken_rules(json.loads(saved[0]), LESSON) == {}
    assert "IntSlider(value=3)" in saved[0] and tool.WIDGET_VIEW not in saved[0]
    (shown,) = rules.code_cells(json.loads(saved[0]))[4]["outputs"]  # the figure; what came after it is gone
    assert "rl-static" in rules.text_of(shown["data"]["text/html"])
    assert rules.text_of(shown["data"]["text/plain"]) == "Recorder(clip=None)"

    (tmp_path / "pytest.ini").write_text("[pytest]")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stdout


def test_tool_keeps_the_old_file_when_a_cell_fails(tmp_path, monkeypatch):
    path = tmp_path / "notebooks" / "draft.ipynb"
    path.parent.mkdir()
    notebook = smallest_notebook()
    notebook["cells"][3]["source"] = "1 / 0"
    path.write_text(before := json.dumps(notebook))
    monkeypatch.setattr(frame, "ROOT", tmp_path)
    shutil.copy(Path(tool.__file__).parent.parent / "pyproject.toml", tmp_path)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        tool.main([str(path)])
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == ["draft.ipynb"]


HOSTED = """
import importlib.metadata, json, subprocess, sys, types
from IPython.core.interactiveshell import InteractiveShell
cell, site, after, pip_fails = json.loads(sys.argv[1])
if site == "colab":
    sys.modules["google.colab"] = types.ModuleType("google.colab")
present = ["torch", "torchvision", "numpy", "ipykernel", "ipywidgets", "ipython"]  # no torchaudio
versions = dict.fromkeys(present, "2.1+cu1")
importlib.metadata.version = versions.__getitem__
importlib.metadata.distributions = lambda: [types.SimpleNamespace(metadata={"Name": name}) for name in present]
def run(command, **options):
    print(json.dumps(command))
    print(json.dumps(open(command[command.index("-c") + 1]).read().splitlines()))
    versions.update(after)
    return subprocess.CompletedProcess(command, pip_fails, stdout="No space left on device")
subprocess.run = run
result = InteractiveShell().run_cell(cell)
print(json.dumps(str(result.error_in_exec)))
"""


def run_set_up(
    folder: Path, *, site: str = "colab", after: dict[str, str] | None = None, pip_fails: bool = False
) -> list:
    """Run the set-up cell with a fake pip; return what that was called with, the constraints, and the error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KAGGLE")}
    environment["IPYTHONDIR"] = str(folder)
    if site == "kaggle":
        environment["KAGGLE_KERNEL_RUN_TYPE"] = "Interactive"
    told = json.dumps([frame.setup_cell(), site, after or {}, pip_fails])
    command = [sys.executable, "-c", HOSTED, told]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=True)
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith(("[", '"'))]


@pytest.mark.parametrize("site", ["colab", "kaggle"])
def test_set_up_cell_installs_where_notebooks_are_hosted(tmp_path, site):
    """Pip is called once, with the versions that are there as constraints; what is not there is not asked for."""
    command, constraints, error = run_set_up(tmp_path, site=site)
    assert command[1:5] == ["-m", "pip", "install", "-q"]
    assert command[-2:] == [frame.archive_address(), "peft>=0.20"]
    kept = ["torch", "torchvision", "numpy", "ipykernel", "ipywidgets", "ipython"]
    assert constraints == [f"{name}==2.1+cu1" for name in kept]
    assert error == "None"


def test_set_up_cell_says_when_pip_fails(tmp_path):
    *_, error = run_set_up(tmp_path, pip_fails=True)
    assert "was not installed" in error and "No space left on device" in error


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_set_up_cell_says_what_pip_changed(tmp_path, name):
    *_, error = run_set_up(tmp_path, after={name: "2.2"})
    assert f"{name} 2.1+cu1 to 2.2" in error and "start again" in error


def test_set_up_cell_does_nothing_elsewhere(tmp_path):
    assert run_set_up(tmp_path, site="own computer") == ["None"]


def test_frame_is_written_without_running(tmp_path, monkeypatch):
    """Only generated cells change, and the file is what nbformat itself would write."""
    monkeypatch.setattr(frame, "ROOT", tmp_path)
    monkeypatch.setattr(frame, "address", lambda: "https://github.com/a/b")
    monkeypatch.setattr(frame, "version", lambda: "1.0")
    path = tmp_path / "notebooks" / LESSON.name
    path.parent.mkdir()
    shutil.copy(LESSON, path)
    frame.write_notebooks()
    old, new = (json.loads(file.read_text(encoding="utf-8")) for file in (LESSON, path))
    changed = [number for number, cell in enumerate(new["cells"]) if cell != old["cells"][number]]
    course = [number for number, cell in enumerate(new["cells"]) if "<!-- begin course -->" in rules.source(cell)]
    set_up = next(number for number, cell in enumerate(new["cells"]) if cell["cell_type"] == "code")
    assert changed == sorted([0, set_up, *course])  # no lesson but this one is in that folder
    assert rules.source(new["cells"][set_up]) == frame.setup_cell()
    assert "https://github.com/a/b/archive/refs/tags/v1.0.zip" in frame.setup_cell()
    assert path.read_text(encoding="utf-8") == nbformat.writes(nbformat.read(path, as_version=4)) + "\n"


SANITIZER = get_sanitize_patterns((Path(__file__).parent / "nbval_sanitize.cfg").read_text(encoding="utf-8"))


def sanitize(text: str) -> str:
    for pattern, replacement in SANITIZER:
        text = re.sub(pattern, replacement, text)
    return text


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("<Clip object at 0x7f3a5c0d1e50>", "<Clip object at 0x10b3f4a90>"),
        ("/tmp/tmpk3x9/clip.png", "/private/var/folders/zz/T/clip.png"),
        (r"C:\Users\me\AppData\Local\Temp\a1\clip.png", "/tmp/b2/clip.png"),
        ("took 1.8 s", "took about 12 s"),
        ("<audio src='data:audio/mpeg;base64,SUQz+/8='>", "<audio src='data:audio/mpeg;base64,AAAA'>"),
        ('<img src="data:image/png;base64,iVBOR/+=">', '<img src="data:image/png;base64,AA==">'),
        (
            "<figcaption>“rock” · 5.12 s · mono · peak −4.0 dBFS · RMS −18.1 dBFS · loop</figcaption>",
            "<figcaption>“rock” · 5.12 s · mono · peak −4.4 dBFS · RMS −18.0 dBFS · loop</figcaption>",
        ),
        (
            "<figcaption>5.12 s · peak 0.0 dBFS · RMS −6.5 dBFS · peaks limited by 6 dB</figcaption>",
            "<figcaption>5.12 s · peak −0.1 dBFS · RMS −6.6 dBFS · peaks limited by 7 dB</figcaption>",
        ),
    ],
)
def test_sanitizer_masks_what_may_differ(first, second):
    assert sanitize(first) == sanitize(second) != first


def test_sanitizer_masks_nothing_else():
    """Numbers that the notebooks claim differ after sanitizing as before."""
    claims = [
        "5.12 s · 44,100 Hz · peak -1.0 dB · RMS -18.0 dB", "5.12 s · mono · peak −4.0 dBFS · RMS −18.2 dBFS",
        "<figcaption>“rock” · 5.12 s · mono · loop</figcaption>", "<figcaption>“rock” · 5.13 s · stereo</figcaption>",
        "<figcaption>5.12 s</figcaption> peak −4.2 dBFS · RMS −18.0 dBFS",
        "5.13 s in 512 columns, a hop of 441 samples (10 ms)",
        "the first 1.8 s", "after 2 s", "in 25 steps", "step took 3 tokens", "141 bpm", "0x1f", "0xff00", "3fa4c01d9b",
        "torch.Size([4, 64, 64])", "27.4 dB", "clip.png", "/tmp/x/one.png"[-7:], "loop=True", "1e-05", "#1f77b4",
    ]  # fmt: skip
    assert [sanitize(claim) for claim in claims] == claims
    assert sanitize("/tmp/x/one.png") != sanitize("/tmp/x/two.png")
