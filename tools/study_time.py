"""Estimate how long a student needs for each lesson, as TEACHING.md says: ``python tools/study_time.py``.

Nobody was timed. The estimate adds up reading (150 words a minute, references left out), a minute for each code cell
(run it, look, listen), and 5, 10 and 20 minutes for exercises of one, two and three stars; 10 for an item "For the ear"
or "An argument". Mini-projects, one to three hours each, come on top.
"""

import json
import re
from pathlib import Path

import frame

WORDS_PER_MINUTE = 150
MINUTES_BY_STARS = {1: 5, 2: 10, 3: 20}
MINUTES_WRITTEN = 10


def minutes(path: Path) -> dict[str, float]:
    """Return the estimated minutes for the lesson at `path`: ``reading``, ``cells``, ``exercises``."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells[1:] if cell["cell_type"] == "markdown")
    text = text.partition("\n## References")[0]
    prose = re.sub(r"<[^>]*>|\]\([^)]*\)|^\|.*", "", text, flags=re.MULTILINE)  # tags, links, tables
    stars = [len(found) for found in re.findall(r"\*\*(★+) \d+\.\*\*", text)]
    n_written = len(re.findall(r"\*\*(?:For the ear|An argument)\.\*\*", text))
    return {
        "reading": len(re.findall(r"\w[\w’'.,-]*", prose)) / WORDS_PER_MINUTE,
        "cells": sum(cell["cell_type"] == "code" for cell in cells) - 1,  # the set-up cell does nothing
        "exercises": sum(MINUTES_BY_STARS[n] for n in stars) + MINUTES_WRITTEN * n_written,
    }


def main() -> None:
    """Print the estimate of each lesson, to five minutes."""
    for lesson in frame.lessons():
        path = frame.lesson_path(lesson)
        if path.exists():
            parts = minutes(path)
            listed = ", ".join(f"{name} {value:.0f}" for name, value in parts.items())
            print(f"{path.stem[:2]}  {5 * round(sum(parts.values()) / 5)} minutes ({listed})")


if __name__ == "__main__":
    main()
