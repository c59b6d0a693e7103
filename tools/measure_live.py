"""Play live music in a real JupyterLab and print what happened: ``python tools/measure_live.py``.

Ten minutes with 20 prompts, typed at random moments by real keys. For each: how long it takes from Enter until its
chip is on the screen, and until the first sample of a clip that is at least halfway to the prompt, by the clock of what
comes out of the loudspeaker. Also how the clips joined, and the memory of the kernel and the page. Needs Chromium.

``--delay 4`` makes every clip take four seconds longer: the player has to fall behind, and say so. ``--made-up 0.5``
plays drum loops that a model would have made in half a second, without a model: what is left is the waiting.
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

PROMPTS = (
    "techno, 94 bpm", "jazz with piano", "church organ", "funk", "slow ambient pad", "tropical", "solo violin, slow",
    "hip hop with drums", "marimba", "rock band, 141 bpm", "choir", "house", "bells", "acoustic guitar",
    "trap, 141 bpm", "string quartet", "bossa nova", "synth pad", "drums only", "classical piano",
)  # fmt: skip
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
# Notes when Enter is pressed, what is heard then, and when the prompt's chip has been drawn. The player's own function,
# which writes what is heard, comes before `note`.
NOTE_ENTER = """
const chips = () => [...document.querySelectorAll('[data-testid="rl-chip"] .rl-chip-text')].map((el) => el.textContent);
document.addEventListener("keydown", ({key, target}) => {
  if (key !== "Enter" || target.dataset.testid !== "rl-prompt") return;
  const [pressed, text] = [performance.now(), target.value];
  Object.assign(window, {askedAt: null, shownMs: null});
  const note = () => { window.askedAt = Number(document.querySelector(".rl-live").dataset.ctxTime); };
  const look = () => {
    if (!chips().includes(text)) requestAnimationFrame(look);
    else requestAnimationFrame(() => { window.shownMs = performance.now() - pressed; });
  };
  setTimeout(note);
  requestAnimationFrame(look);
}, true);
"""
IS_HEARD = "prompt => document.querySelector('.rl-live').dataset.label.includes(prompt)"
TRIES_FOR_MS = 180_000  # to be heard, on a slow machine
POLLING_MS = 100  # of the page, where looking at each frame would make Chromium draw frames that nothing else asks for


def facts(notebook: NotebookPage) -> dict[str, str]:
    """What the player says of itself."""
    return notebook.evaluate("return {...document.querySelector('.rl-live').dataset};")


def memory_mb(notebook: NotebookPage) -> tuple[float, float]:
    """Memory of the kernel, and of the page's JavaScript."""
    kernels = [p for p in psutil.Process().children(recursive=True) if "ipykernel_launcher" in " ".join(p.cmdline())]
    heap = notebook.evaluate("return performance.memory.usedJSHeapSize;")
    return sum(p.memory_info().rss for p in kernels) / 1e6, heap / 1e6


def play(notebook: NotebookPage) -> None:
    """Press Play and wait for the first clip of the model."""
    notebook.run_all()
    pressed = time.monotonic()
    notebook.widget("rl-play").click()
    notebook.page.wait_for_function("document.querySelector('.rl-live').dataset.state == 'playing'", timeout=120_000)
    notebook.page.wait_for_function("document.querySelector('.rl-live').dataset.clip >= 1", timeout=120_000)
    print(f"Play → music of the model: {time.monotonic() - pressed:.1f} s", flush=True)


def ask(notebook: NotebookPage, prompt: str) -> tuple[float, float]:
    """Type a prompt, press Enter; return the milliseconds to its chip and the seconds to its first sample."""
    type_into(notebook.widget("rl-prompt"), prompt)
    notebook.page.keyboard.press("Enter")
    notebook.page.wait_for_function(IS_HEARD, arg=prompt, timeout=TRIES_FOR_MS, polling=POLLING_MS)
    shown_ms = notebook.evaluate("await until(() => shownMs !== null); return shownMs;")
    return shown_ms, float(facts(notebook)["began"]) - notebook.evaluate("return askedAt;")


def measure(notebook: NotebookPage, minutes: float, n_prompts: int) -> None:
    """Type prompts at random moments, one in each part of the time; print what happened to each."""
    notebook.evaluate(NOTE_ENTER)
    part_s = 60 * minutes / n_prompts
    moments = (np.arange(n_prompts) + np.random.default_rng(0).uniform(0.1, 0.7, n_prompts)) * part_s
    began = time.monotonic()
    waits, acknowledged, memory = [], [], [memory_mb(notebook)]
    for number, moment in enumerate(moments):
        notebook.page.wait_for_timeout(max(0, 1000 * (began + moment - time.monotonic())))
        prompt = PROMPTS[number % len(PROMPTS)]
        shown_ms, wait = ask(notebook, prompt)
        acknowledged.append(shown_ms)
        waits.append(wait)
        memory.append(memory_mb(notebook))
        print(f"{prompt}: chip after {shown_ms:.0f} ms, heard after {wait:.2f} s", flush=True)
    notebook.page.wait_for_timeout(max(0, 1000 * (began + 60 * minutes - time.monotonic())))
    memory.append(memory_mb(notebook))
    for name, values, unit in (("chip", acknowledged, "ms"), ("first sample", waits, "s")):
        median, most = np.quantile(values, (0.5, 0.95))
        print(f"Enter → {name}: median {median:.4g} {unit}, 95 % {most:.4g} {unit}, longest {max(values):.4g} {unit}")
    print("memory, kernel / page (MB): " + ", ".join(f"{kernel:.0f} / {page:.0f}" for kernel, page in memory))


def main() -> None:
    """Play, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="riffling-turbo")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--prompts", type=int, default=20, metavar="N")
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
            measure(notebook, arguments.minutes, arguments.prompts)
            said = facts(notebook)
            print(f"clip {said['clip']} is heard, {said['joins']} joins, {said['repeats']} repeats")
            print(f"underruns {said['underruns']}, largest step at a seam {said['jump']}, errors {notebook.errors}")
            if arguments.screenshot:
                notebook.screenshot(arguments.screenshot, ".rl-live")
        lab.stop()


if __name__ == "__main__":
    main()
