"""Turn the exercises of a lesson into an assignment for nbgrader: ``python tools/assignment.py 03 FOLDER``.

It writes ``FOLDER/source/03/03_text_to_music.ipynb``: what the checks need, the exercises with the answers of
notebooks/solutions between nbgrader's marks, and the items that a person grades. ``nbgrader generate_assignment 03``
in FOLDER then removes the answers. TEACHING.md has the commands around it.
"""

import json
import re
import sys
from pathlib import Path

import frame

STARS = re.compile(r"^\*\*(★+) \d+\.\*\*", flags=re.MULTILINE)
WRITTEN = re.compile(r"\*\*(?:For the ear|An argument)\.\*\*")
POINTS_WRITTEN = 3
CONFIG = """c = get_config()
c.CourseDirectory.course_id = "riffusion-lab"
c.ClearSolutions.code_stub = {"python": "answer = ..."}
c.ExecutePreprocessor.timeout = 300
"""


def read(path: Path) -> list[dict]:
    """Return the cells of the notebook at `path`, each with its source as one string."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{"type": cell["cell_type"], "source": "".join(cell["source"])} for cell in cells]


def cell(kind: str, source: str, name: str, *, points: int | None = None, is_answer: bool = False) -> dict:
    """Return a notebook cell with nbgrader's metadata; one with `points` is graded, others but answers are locked."""
    marks = {"grade": points is not None, "solution": is_answer, "locked": not is_answer, "task": False}
    marks |= {"schema_version": 3, "grade_id": name, "cell_type": kind}
    if points is not None:
        marks["points"] = points
    made = {"cell_type": kind, "id": name, "metadata": {"nbgrader": marks}, "source": source}
    return made if kind == "markdown" else made | {"execution_count": None, "outputs": []}


def checked(solutions: list[dict]) -> list[dict]:
    """Return the cells of the checked exercises: question, answer and check of each, the check worth its stars."""
    found = []
    for number, (question, answer, check) in enumerate(zip(solutions, solutions[1:], solutions[2:], strict=False), 1):
        stars = STARS.search(question["source"])
        if not stars:
            continue
        found.append(cell("markdown", question["source"][stars.start() :], f"question-{number}"))
        hidden = f"### BEGIN SOLUTION\n{answer['source']}\n### END SOLUTION"
        found.append(cell("code", hidden, f"answer-{number}", is_answer=True))
        # nbgrader gives full marks to a cell that raises nothing, and ours only says that there is no answer
        test = f'assert answer is not ..., "not answered yet"\n{check["source"]}'
        found.append(cell("code", test, f"check-{number}", points=len(stars[1])))
    return found


def written(lesson: list[dict]) -> list[dict]:
    """Return a question and an empty answer for each item of the lesson that a person grades."""
    texts = [part for each in lesson if each["type"] == "markdown" for part in each["source"].split("\n\n")]
    found = []
    for number, question in enumerate((text for text in texts if WRITTEN.match(text)), 1):
        found.append(cell("markdown", question, f"question-written-{number}"))
        name = f"answer-written-{number}"
        found.append(cell("markdown", "*Your answer.*", name, points=POINTS_WRITTEN, is_answer=True))
    return found


def assignment(lesson: Path) -> dict:
    """Return the source version of the assignment of `lesson`, a path in notebooks/."""
    solutions = read(lesson.parent / "solutions" / lesson.name)
    begin = next(index for index, each in enumerate(solutions) if STARS.search(each["source"]))
    code = [each["source"] for each in solutions[:begin] if each["type"] == "code"]
    setup = [cell("code", source, f"setup-{index}") for index, source in enumerate(code)]
    title = solutions[0]["source"].partition("\n")[0].replace("solutions", "exercises")
    cells = [cell("markdown", title, "title"), *setup, *checked(solutions), *written(read(lesson))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def main(number: str, folder: Path) -> None:
    """Write the assignment of the lesson with this number, and nbgrader's configuration unless there is one."""
    lesson = next(path for path in map(frame.lesson_path, frame.lessons()) if path.name.startswith(f"{number}_"))
    target = folder / "source" / number / lesson.name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(assignment(lesson), ensure_ascii=False, indent=1), encoding="utf-8")
    config = folder / "nbgrader_config.py"
    if not config.exists():
        config.write_text(CONFIG, encoding="utf-8")
    print(target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("python tools/assignment.py NUMBER FOLDER, such as: python tools/assignment.py 03 course")
    main(sys.argv[1], Path(sys.argv[2]))
