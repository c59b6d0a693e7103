"""Play live music in a real JupyterLab and print what happened: ``python tools/measure_live.py --minutes 10``.

Needs Chromium. ``--delay 4`` makes every clip take four seconds longer: the player has to fall behind, and say so.

``--latency 20`` adds prompts at 20 random moments instead, by typing them and pressing Enter, and measures how long it
takes from the key to the first sample of a clip that is at least halfway to the prompt, by the clock of what comes out
of the loudspeaker. ``--made-up 0.5`` plays drum loops that a model would have made in half a second, without a model:
what is left is the waiting.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
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
live = Live(load_pipeline({model!r}), "piano, 94 bpm")
live
"""
# Clips that take as long to make as those of a model of four steps; a clip can be given up after each of them
MADE_UP_CELL = """
import time
from conftest import RATE, drum_loop
from riffusion_lab import Clip, load_pipeline
from riffusion_lab import live as live_module
from riffusion_lab.widgets import Live

sound = drum_loop()

def generate_point(pipe, point, options):
    for step in range(4):
        time.sleep({seconds} / 4)
        options.callback(pipe, step, None, {{}})
    return Clip.from_audio(sound, RATE, loop=True)

live_module.generate_point = generate_point
live = Live(load_pipeline({model!r}), "piano, 94 bpm")
live
"""
# What is heard when Enter is pressed; the player's own function, which writes it, comes first.
NOTE_ENTER = """
const note = () => { window.askedAt = Number(document.querySelector(".rl-live").dataset.ctxTime); };
document.addEventListener("keydown", ({key}) => { if (key === "Enter") setTimeout(note); }, true);
"""
BETWEEN_S = (11.0, 17.0)  # from prompt to prompt, at random: the one before is reached


def facts(notebook: NotebookPage) -> dict[str, str]:
    """What the player says of itself."""
    return notebook.evaluate("return {...document.querySelector('.rl-live').dataset};")


def memory_mb(notebook: NotebookPage) -> tuple[float, float]:
    """Memory of the kernel, and of the page's JavaScript."""
    kernels = [p for p in psutil.Process().children(recursive=True) if "ipykernel_launcher" in " ".join(p.cmdline())]
    heap = notebook.evaluate("return performance.memory.usedJSHeapSize;")
    return sum(p.memory_info().rss for p in kernels) / 1e6, heap / 1e6


def play(notebook: NotebookPage) -> None:
    """Press Play and wait for the first clip."""
    notebook.run_all()
    pressed = time.monotonic()
    notebook.widget("rl-play").click()
    notebook.page.wait_for_function("document.querySelector('.rl-live').dataset.clip >= 1", timeout=120_000)
    print(f"Play → sound: {time.monotonic() - pressed:.1f} s")


def print_joins(said: dict[str, str], errors: list[str]) -> None:
    """Print how the clips joined."""
    print(f"clip {said['clip']} is heard, {said['joins']} joins, {said['repeats']} repeats")
    print(f"underruns {said['underruns']}, largest step at a seam {said['jump']}, errors {errors}")


def measure_minutes(notebook: NotebookPage, minutes: float) -> None:
    """Change the prompt now and then."""
    memory, waits = [memory_mb(notebook)], []
    end = time.monotonic() + 60 * minutes
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
    print("prompt → sound (s): " + ", ".join(f"{wait:.1f}" for wait in waits))
    print("memory, kernel / page (MB): " + ", ".join(f"{kernel:.0f} / {page:.0f}" for kernel, page in memory))


def measure_latency(notebook: NotebookPage, n_prompts: int) -> None:
    """Type prompts at random moments."""
    notebook.evaluate(NOTE_ENTER)
    random = np.random.default_rng(0)
    waits = []
    for number in range(n_prompts):
        notebook.page.wait_for_timeout(1000 * random.uniform(*BETWEEN_S))
        prompt = PROMPTS[number % len(PROMPTS)]
        type_into(notebook.widget("rl-prompt"), prompt)
        notebook.page.keyboard.press("Enter")
        is_heard = "prompt => document.querySelector('.rl-live').dataset.label.includes(prompt)"
        notebook.page.wait_for_function(is_heard, arg=prompt, timeout=120_000)
        waits.append(float(facts(notebook)["began"]) - notebook.evaluate("return askedAt;"))
    print("Enter → first sample (s): " + ", ".join(f"{wait:.2f}" for wait in waits))
    median, most = np.quantile(waits, (0.5, 0.95))
    print(f"median of {n_prompts}: {median:.2f} s, 95 %: {most:.2f} s, longest {max(waits):.2f} s")


def main() -> None:
    """Play, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="riffling-turbo")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--latency", type=int, metavar="N", help="measure N prompts at random moments instead")
    parser.add_argument("--delay", type=float, default=0, help="seconds added to each clip")
    parser.add_argument("--made-up", type=float, metavar="S", help="no model: drum loops, each made in so many seconds")
    parser.add_argument("--screenshot", type=Path, help="of the player, at the end")
    arguments = parser.parse_args()
    cell = CELL.format(model=arguments.model, delay=arguments.delay)
    if arguments.made_up is not None:
        cell = MADE_UP_CELL.format(model=arguments.model, seconds=arguments.made_up)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        with lab.open([cell], name="live") as notebook:
            play(notebook)
            if arguments.latency:
                measure_latency(notebook, arguments.latency)
            else:
                measure_minutes(notebook, arguments.minutes)
            print_joins(facts(notebook), notebook.errors)
            if arguments.screenshot:
                notebook.screenshot(arguments.screenshot, ".rl-live")
        lab.stop()


if __name__ == "__main__":
    main()
