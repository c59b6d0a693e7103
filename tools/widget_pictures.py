"""Take README's pictures of the widgets in a real JupyterLab: ``python tools/widget_pictures.py``. Needs Chromium."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT / "tests"))

from browser import type_into  # noqa: E402
from lab import Lab, NotebookPage  # noqa: E402

BEGIN = """from riffusion_lab import load_pipeline, text_to_audio
from riffusion_lab.widgets import Live, MaskPainter, Player"""
CLIP = "clip = text_to_audio(load_pipeline(), 'funky groove with organ, 94 bpm', seed=1)"
BOX = {"start": 2.05, "stop": 3.07, "low": 500, "high": 3000}  # what is painted, in s and Hz


def take(notebook: NotebookPage, name: str) -> None:
    """Save the widget that the notebook shows as docs/images/`name`.png."""
    notebook.page.mouse.move(0, 0)
    notebook.screenshot(IMAGES / f"{name}.png", ".jp-OutputArea-output .rl-widget, .jp-OutputArea-output .rl-live")


def main() -> None:
    """Write the three pictures."""
    with TemporaryDirectory() as folder:
        lab = Lab(Path(folder), gesture_needed=False)
        try:
            with lab.open([f"{BEGIN}\n{CLIP}", "Player(clip)"], name="player", width=800) as notebook:
                notebook.run_all()
                picture = notebook.widget("rl-picture").bounding_box()
                notebook.widget("rl-picture").click(position={"x": 0.4 * picture["width"], "y": 80})
                take(notebook, "player")
            with lab.open([f"{BEGIN}\n{CLIP}", "MaskPainter(clip)"], name="painter", width=800) as notebook:
                notebook.run_all()
                for field, value in BOX.items():
                    type_into(notebook.widget(f"rl-{field}"), str(value))
                notebook.widget("rl-high").press("Enter")
                take(notebook, "mask_painter")
            cells = [f"{BEGIN}\nlive = Live(load_pipeline('riffling-turbo'), 'piano, 94 bpm')\nlive"]
            with lab.open(cells, name="live", width=1200) as notebook:
                notebook.run_all()
                notebook.widget("rl-play").click()
                notebook.page.wait_for_timeout(8_000)
                type_into(notebook.widget("rl-prompt"), "jazz with piano")
                notebook.widget("rl-add").click()
                notebook.page.wait_for_function(
                    "document.querySelector('[data-testid=rl-now]').textContent === 'Now: jazz with piano'"
                )
                notebook.page.wait_for_timeout(2_000)
                take(notebook, "live")
        finally:
            lab.stop()


if __name__ == "__main__":
    main()
