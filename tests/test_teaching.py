"""TEACHING.md and docs/glossary.md agree with the notebooks, and the exercises become assignments."""

import json
import re
import unicodedata

import pytest

import assignment
import frame
import study_time

LESSONS = {path.name[:2]: path for path in map(frame.lesson_path, frame.lessons()) if path.exists()}
ENTRY = re.compile(r"- \*\*(?P<term>[^*]+)\*\* \(\[[^]]+\]\((?P<target>[^)]+)\)\): (?P<text>.+)")


def glossary() -> list[re.Match | None]:
    lines = (frame.ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    return [ENTRY.fullmatch(line) for line in lines if line.startswith("- ")]


def sorting_key(term: str) -> str:
    """Return the letters and digits of a term, without accents."""
    plain = unicodedata.normalize("NFKD", term).casefold()
    return "".join(character for character in plain if character.isascii() and character.isalnum())


def test_glossary_is_in_order_and_each_entry_names_a_lesson():
    entries = glossary()
    assert len(entries) > 100 and None not in entries
    terms = [sorting_key(entry["term"]) for entry in entries]
    assert terms == sorted(terms) and len(set(terms)) == len(terms)
    for entry in entries:
        target = (frame.ROOT / "docs" / entry["target"].partition("#")[0]).resolve()
        assert target in LESSONS.values() or target == frame.README, entry["term"]


def headings(number: str) -> set[str]:
    """Return the headings of a lesson, without their numbers."""
    cells = json.loads(LESSONS[number].read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return {re.sub(r"^\d+\. ", "", heading) for heading in re.findall(r"^#{2,3} (.+?) *$", text, flags=re.MULTILINE)}


def test_teaching_names_sections_that_exist():
    text = (frame.ROOT / "TEACHING.md").read_text(encoding="utf-8")
    parts = re.split(r"^### (\d\d) · .*\n", text.partition("## Hand out")[0], flags=re.MULTILINE)[1:]
    by_lesson = dict(zip(parts[::2], parts[1::2], strict=True))
    assert set(by_lesson) == set(LESSONS)
    for number, part in by_lesson.items():
        named = set(re.findall(r"\*§ (.+?)\*", part))
        assert named and named <= headings(number), named - headings(number)


@pytest.mark.parametrize("number", LESSONS)
def test_exercises_become_an_assignment(number):
    lesson = LESSONS[number]
    cells = assignment.assignment(lesson)["cells"]
    marks = [cell["metadata"]["nbgrader"] for cell in cells]
    assert len({mark["grade_id"] for mark in marks}) == len(cells)
    stars = [len(found) for found in re.findall(r"\*\*(★+) \d+\.\*\*", lesson.read_text(encoding="utf-8"))]
    checks = [cell for cell in cells if cell["cell_type"] == "code" and cell["metadata"]["nbgrader"]["grade"]]
    assert [cell["metadata"]["nbgrader"]["points"] for cell in checks] == stars
    assert all('assert answer is not ..., "not answered yet"\nif answer is ...:' in cell["source"] for cell in checks)
    answers = [cell["source"] for cell in cells if cell["metadata"]["nbgrader"]["solution"]][: len(stars)]
    assert all(re.fullmatch(r"### BEGIN SOLUTION\n.+\n### END SOLUTION", text, re.DOTALL) for text in answers)


def test_assignment_is_written_once_configured(tmp_path, capsys):
    assignment.main("03", tmp_path)
    (tmp_path / "nbgrader_config.py").write_text("mine", encoding="utf-8")
    assignment.main("03", tmp_path)
    assert (tmp_path / "nbgrader_config.py").read_text(encoding="utf-8") == "mine"
    notebook = json.loads((tmp_path / "source" / "03" / LESSONS["03"].name).read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and capsys.readouterr().out.count("source") == 2


def test_study_time_counts_words_cells_and_exercises(tmp_path):
    cells = [("markdown", "# Title"), ("code", "setup"), ("markdown", "one [two](https://a.b/c) three"), ("code", "1")]
    cells += [("markdown", "**★ 1.** a\n\n**★★ 2.** b\n\n**For the ear.** c\n\n## References\n\nmany words")]
    made = {"cells": [{"cell_type": kind, "source": source} for kind, source in cells]}
    (tmp_path / "a.ipynb").write_text(json.dumps(made), encoding="utf-8")
    found = study_time.minutes(tmp_path / "a.ipynb")
    assert found["cells"] == 1 and found["exercises"] == 5 + 10 + 10
    assert found["reading"] == pytest.approx(11 / 150)  # one two three, 1 a, 2 b, For the ear c
