"""Play live music in a real JupyterLab and print what happened: ``python tools/measure_live.py --minutes 10``.

Needs Chromium. ``--delay 4`` makes every clip take four seconds longer: the player has to fall behind, and say so.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from browser import type_into
from lab import Lab, NotebookPage

PROMPTS = ("techno, 94 bpm", "jazz with piano", "church organ", "funk", "slow ambient pad", "tropical")
CELL = """
import time
from riffusion_lab import live as live_module
from riffusion_lab import load_pipeline
from riffusion_lab.widgets import Live

generate_point = live_module.generate_point
live_module.generate_point = lambda *arguments: time.sleep({delay}) or generate_point(*arguments)
live = Live(load_pipeline(), "piano, 94 bpm")
live
"""


def facts(notebook: NotebookPage) -> dict[str, str]:
    """What the player says of itself."""
    return notebook.evaluate("return {...document.querySelector('.rl-live').dataset};")


def memory_mb(notebook: NotebookPage) -> tuple[float, float]:
    """Memory of the kernel, and of the page's JavaScript."""
    kernels = [p for p in psutil.Process().children(recursive=True) if "ipykernel_launcher" in " ".join(p.cmdline())]
    heap = notebook.evaluate("return performance.memory.usedJSHeapSize;")
    return sum(p.memory_info().rss for p in kernels) / 1e6, heap / 1e6


def main() -> None:
    """Play, change the prompt now and then, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--delay", type=float, default=0, help="seconds added to each clip")
    parser.add_argument("--screenshot", type=Path, help="of the player, at the end")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        with lab.open([CELL.format(delay=arguments.delay)], name="live") as notebook:
            notebook.run_all()
            pressed = time.monotonic()
            notebook.widget("rl-play").click()
            notebook.page.wait_for_function("document.querySelector('.rl-live').dataset.clip >= 1", timeout=60_000)
            print(f"Play → sound: {time.monotonic() - pressed:.1f} s")
            memory, waits = [memory_mb(notebook)], []
            end = time.monotonic() + 60 * arguments.minutes
            while time.monotonic() < end:
                prompt = PROMPTS[len(waits) % len(PROMPTS)]
                type_into(notebook.widget("rl-prompt"), prompt)
                notebook.widget("rl-add").click()
                asked, known = time.monotonic(), len(waits)
                while time.monotonic() < end and (len(waits) == known or time.monotonic() < asked + 45):
                    said = facts(notebook)
                    if len(waits) == known and prompt in said["label"]:
                        waits.append(time.monotonic() - asked)
                    notebook.page.wait_for_timeout(250)
                memory.append(memory_mb(notebook))
            said = facts(notebook)
            if arguments.screenshot:
                notebook.screenshot(arguments.screenshot, ".rl-live")
            errors = notebook.errors
        lab.stop()
    print(
        f"{arguments.minutes:g} minutes: clip {said['clip']} is heard, {said['joins']} joins, {said['repeats']} repeats"
    )
    print(f"underruns {said['underruns']}, largest step at a seam {said['jump']}, errors {errors}")
    print("prompt → sound (s): " + ", ".join(f"{wait:.1f}" for wait in waits))
    print("memory, kernel / page (MB): " + ", ".join(f"{kernel:.0f} / {page:.0f}" for kernel, page in memory))


if __name__ == "__main__":
    main()
