"""What every notebook of the course keeps to. Each rule yields one sentence for each thing that is wrong."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

import frame

Rule = Callable[[dict, Path], Iterator[str]]

CHECK, IGNORE, SKIP = "nbval-check-output", "nbval-ignore-output", "nbval-skip"
MAX_BYTES = 1_000_000
MAX_PLAYERS = 6
MAX_FIGURE_BYTES = 300_000
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
OWN_WIDGET = re.compile(r"(Live|MaskPainter|Panel|Player|Recorder|Studio)\(")
MIN_CHECKED = 3
MAX_IGNORED = 1 / 3
KNOWN_MAGICS = {"matplotlib", "time", "timeit"}  # an unknown one makes nbval skip the rest of its cell and pass
SECTIONS = ("What you will learn", "What you need", "Recap", "Exercises", "References")
ANSWER = "<summary>Answer</summary>"  # of a prediction, folded
QUIZ, MIN_QUESTIONS = "## Check yourself\n", 3
# Without a check; each is answered, or begun, in the solutions
OPEN_EXERCISES = ("For the ear", "An argument", "mini-project")
COURSE_SECTIONS = (*SECTIONS[:-1], "The map of the course")  # notebook 00
MACHINE_PATH = re.compile(r"(?<![\w:/.])(?:/root|/home|/Users|/tmp|/private|/var/folders|[A-Z]:\\Users)[/\\]")


def text_of(value: str | list[str]) -> str:
    """Return a multi-line field of a notebook file as one string."""
    return "".join(value)


def is_lesson(path: Path) -> bool:
    """Whether a notebook is a lesson: solutions and extras are none."""
    return path.parent == frame.ROOT / "notebooks"


def source(cell: dict) -> str:
    return text_of(cell["source"])


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def outputs(notebook: dict) -> list[dict]:
    return [output for cell in code_cells(notebook) for output in cell.get("outputs", [])]


def output_texts(notebook: dict) -> Iterator[str]:
    """Yield what the outputs say in words, without embedded sounds and pictures."""
    for output in outputs(notebook):
        data = {**output.get("data", {}), "stream": output.get("text", "")}
        for kind, content in data.items():
            if kind == "stream" or kind.startswith("text/"):
                yield re.sub(r"data:[\w/.+-]+;base64,[\w+/=]+", "", text_of(content))


def counts_run_from_one(notebook: dict, _: Path) -> Iterator[str]:
    counts = [cell.get("execution_count") for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}, not 1 to {len(counts)}: run `make notebooks`"


def outputs_are_present(notebook: dict, _: Path) -> Iterator[str]:
    for number, cell in enumerate(code_cells(notebook), 1):
        if "outputs" not in cell:
            yield f"code cell {number} has no `outputs` field: GitHub will not show the notebook"
        elif CHECK in tags(cell) and not cell["outputs"]:
            yield f"code cell {number} is tagged {CHECK} and has no output to check"


def nothing_went_wrong(notebook: dict, _: Path) -> Iterator[str]:
    for output in outputs(notebook):
        if output["output_type"] == "error":
            yield f"an output is the error {output['ename']}: {output['evalue']}"
        if output.get("name") == "stderr":
            yield f"an output went to stderr: {text_of(output['text'])[:80]!r}"


def metadata_is_clean(notebook: dict, _: Path) -> Iterator[str]:
    if "widgets" in notebook["metadata"]:
        yield "metadata.widgets is set: GitHub will not show the notebook"
    for cell in notebook["cells"]:
        folded = {"jupyter"} if source(cell) == frame.setup_cell() else set()  # by `frame.write_cells`
        if extra := set(cell["metadata"]) - {"tags"} - folded:
            yield f"cell {cell.get('id')} has metadata that differ from run to run: {sorted(extra)}"


def cells_have_ids(notebook: dict, _: Path) -> Iterator[str]:
    ids = [cell.get("id") for cell in notebook["cells"]]
    if None in ids or len(set(ids)) < len(ids):
        yield "each cell needs an id of its own"


def kernel_is_python3(notebook: dict, _: Path) -> Iterator[str]:
    name = notebook["metadata"].get("kernelspec", {}).get("name")
    if name != "python3":
        yield f"the kernel is {name!r}, not 'python3'"


def enough_is_checked(notebook: dict, _: Path) -> Iterator[str]:
    checked = sum(CHECK in tags(cell) for cell in code_cells(notebook))
    if checked < MIN_CHECKED:
        yield f"{checked} cells are tagged {CHECK}: at least {MIN_CHECKED}"


def little_is_ignored(notebook: dict, _: Path) -> Iterator[str]:
    cells = code_cells(notebook)
    ignored = sum(IGNORE in tags(cell) for cell in cells)
    if ignored > len(cells) * MAX_IGNORED:
        yield f"{ignored} of {len(cells)} code cells are tagged {IGNORE}: at most a third"


def nothing_is_skipped(notebook: dict, _: Path) -> Iterator[str]:
    for number, cell in enumerate(code_cells(notebook), 1):
        if SKIP in tags(cell):
            yield f"code cell {number} is tagged {SKIP}"
        if re.search(r"#\s*(NBVAL_|PYTEST_VALIDATE_)", source(cell)):
            yield f"code cell {number} speaks to nbval in a comment: use a tag"


def size_is_in_budget(notebook: dict, _: Path) -> Iterator[str]:
    size = len(json.dumps(notebook, ensure_ascii=False).encode())
    if size > MAX_BYTES:
        yield f"{size:,} bytes: at most {MAX_BYTES:,}"


def players_are_in_budget(notebook: dict, _: Path) -> Iterator[str]:
    pages = [text_of(output.get("data", {}).get("text/html", "")) for output in outputs(notebook)]
    players = sum(page.count("<audio") for page in pages)
    if players > MAX_PLAYERS:
        yield f"{players} players: at most {MAX_PLAYERS}"
    if any("<source" in page for page in pages):
        yield "a player uses <source>: JupyterLab removes its sound from a saved notebook; write <audio src=…>"


def widgets_leave_figures(notebook: dict, _: Path) -> Iterator[str]:
    for output in outputs(notebook):
        data = output.get("data", {})
        page, plain = text_of(data.get("text/html", "")), text_of(data.get("text/plain", ""))
        if WIDGET_VIEW in data:
            yield "an output names a widget whose model ended with its kernel: run `make notebooks`"
        if "(children=" in plain:
            yield f"readers without a kernel see {plain[:40]!r}: show a riffusion_lab.widgets.Panel, not a plain box"
        if OWN_WIDGET.match(plain) and "<figcaption>" not in page:
            yield f"readers without a kernel see {plain[:40]!r}, not a figure: run `make notebooks`"
        if "rl-static" in page and len(page.encode()) > MAX_FIGURE_BYTES:
            yield f"the figure of a widget has {len(page.encode()):,} bytes: at most {MAX_FIGURE_BYTES:,}"


def paths_stay_private(notebook: dict, _: Path) -> Iterator[str]:
    for text in [*map(source, notebook["cells"]), *output_texts(notebook)]:
        if match := MACHINE_PATH.search(text):
            yield f"a path of one machine is shown: {text[match.start() :][:60]!r}"


def header_is_generated(notebook: dict, path: Path) -> Iterator[str]:
    first = notebook["cells"][0]
    title = source(first).partition("\n")[0]
    if not title.startswith("# ") or source(first) != frame.header(path, title.removeprefix("# ")):
        yield "the first cell is not title, Colab badge and links as generated: run `python tools/frame.py`"


def setup_is_generated(notebook: dict, _: Path) -> Iterator[str]:
    sources = [source(cell) for cell in code_cells(notebook)]
    if not sources or sources[0] != frame.setup_cell() or sources.count(frame.setup_cell()) != 1:
        yield "the first code cell is not the set-up that tools/frame.py writes: run `python tools/frame.py`"


def sections_are_complete(notebook: dict, path: Path) -> Iterator[str]:
    if not is_lesson(path):
        return
    wanted = COURSE_SECTIONS if path.name.startswith("00_") else SECTIONS
    text = "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    headings = [heading for heading in re.findall(r"^## +(.+?) *$", text, flags=re.MULTILINE) if heading in wanted]
    if headings != list(wanted):
        yield f"the sections (## …) are {headings}: {list(wanted)}, in this order"


def predictions_are_answered(notebook: dict, _: Path) -> Iterator[str]:
    open_questions = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            for mark in re.findall(rf"\*\*Predict\*\*|{ANSWER}", source(cell)):
                open_questions += -1 if mark == ANSWER else 1
                if open_questions not in (0, 1):
                    yield f"cell {cell.get('id')}: each **Predict** has one folded answer after it, {ANSWER}"
                    return
    if open_questions:
        yield f"the last **Predict** has no folded answer after it, {ANSWER}"


def learners_can_check_themselves(notebook: dict, path: Path) -> Iterator[str]:
    if not is_lesson(path):
        return
    text = "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    n_questions = text.partition(QUIZ)[2].count("<details>")
    if n_questions < MIN_QUESTIONS:
        yield f"{n_questions} folded questions after {QUIZ.strip()!r}: at least {MIN_QUESTIONS}"
    solutions = path.parent / "solutions" / path.name
    answers = solutions.read_text(encoding="utf-8") if solutions.exists() else text
    for exercise in OPEN_EXERCISES:
        if exercise not in text or exercise not in answers:
            yield f"an exercise {exercise!r} is missing, or its answer in the solutions"


def course_map_is_current(notebook: dict, path: Path) -> Iterator[str]:
    if path == frame.lesson_path(frame.lessons()[0]):
        current = f"<!-- begin course -->\n{frame.course_map()}\n<!-- end course -->"
        if not any(current in source(cell) for cell in notebook["cells"]):
            yield "no cell holds the map of the course as tools/frame.py writes it: run `python tools/frame.py`"


def magics_are_known(notebook: dict, _: Path) -> Iterator[str]:
    for number, cell in enumerate(code_cells(notebook), 1):
        python = TransformerManager().transform_cell(source(cell))
        used = set(re.findall(r"get_ipython\(\)\.run_(?:line|cell)_magic\('(\w+)'", python))
        if unknown := used - KNOWN_MAGICS:
            yield f"code cell {number} uses the magics {sorted(unknown)}: only {sorted(KNOWN_MAGICS)} are sure to run"
        if re.search(r"get_ipython\(\)\.(system|getoutput)\(", python):
            yield f"code cell {number} calls a shell with `!`, whose failure nobody would see"


RULES: tuple[Rule, ...] = (
    counts_run_from_one,
    outputs_are_present,
    nothing_went_wrong,
    metadata_is_clean,
    cells_have_ids,
    kernel_is_python3,
    enough_is_checked,
    little_is_ignored,
    nothing_is_skipped,
    size_is_in_budget,
    players_are_in_budget,
    widgets_leave_figures,
    paths_stay_private,
    header_is_generated,
    setup_is_generated,
    sections_are_complete,
    predictions_are_answered,
    learners_can_check_themselves,
    course_map_is_current,
    magics_are_known,
)


def broken_rules(notebook: dict, path: Path) -> dict[str, list[str]]:
    """Return what is wrong with `notebook`, which is or would be at `path`, by the name of the rule."""
    found = {rule.__name__: list(rule(notebook, path)) for rule in RULES}
    return {name: problems for name, problems in found.items() if problems}
