"""Widgets in Jupyter Notebook, and in JupyterLab on a touch screen; see test_jupyterlab.py for the rest."""

import pytest
from playwright.sync_api import expect

from browser import Finger, middle_of, tab_to, type_into

SETUP = (
    "import fake_music\nfrom conftest import RATE, drum_loop\nfrom tiny import tiny_pipeline\n"
    "from riffusion_lab import Clip\nfrom riffusion_lab.widgets import Live, MaskPainter, Studio\n"
    "clip, pipe = Clip.from_audio(drum_loop(), RATE, loop=True), tiny_pipeline()"
)
LIVE_CELL, STUDIO_CELL, PAINTER_CELL = 1, 2, 3
CELLS = [
    SETUP,
    "live = Live(pipe, 'piano')\nlive",
    "studio = Studio(pipe, prompt='piano', words=True)\nstudio",
    "painter = MaskPainter(clip)\npainter",
]


# Jupyter Notebook


@pytest.fixture(scope="module")
def notebook(lab):
    """A notebook with Live, Studio and MaskPainter in Jupyter Notebook, run from top to bottom."""
    with lab.open(CELLS, name="notebook", front_end="notebook") as notebook:
        notebook.run_all()
        yield notebook
        assert notebook.errors == []


# How long after Enter a chip with a text is seen, in milliseconds
NOTE_CHIP = """(text) => {
    let pressed = 0;
    addEventListener("keydown", ({key}) => { if (key === "Enter") pressed = performance.now(); }, true);
    const chips = document.querySelector(".rl-chips");
    const look = () => {
        if (pressed && chips.textContent.includes(text)) window.chipAfter_ms ??= performance.now() - pressed;
    };
    new MutationObserver(look).observe(chips, {childList: true, subtree: true, characterData: true});
}"""


def test_a_prompt_typed_in_jupyter_notebook_is_a_chip_at_once(notebook):
    live = notebook.cell(LIVE_CELL)
    expect(live.locator(".rl-static")).to_be_hidden()
    live.get_by_test_id("rl-start").click()
    expect(live.locator(".rl-live")).to_have_attribute("data-state", "playing")
    notebook.page.evaluate(NOTE_CHIP, "church bells")
    type_into(live.get_by_test_id("rl-prompt"), "church bells")
    notebook.page.keyboard.press("Enter")
    notebook.page.wait_for_function("window.chipAfter_ms !== undefined")
    assert notebook.page.evaluate("chipAfter_ms") < 200
    expect(live.get_by_test_id("rl-said")).to_contain_text("Added: “church bells”")


def test_keys_in_a_widget_are_no_commands_of_jupyter_notebook(notebook):
    """Its commands: a and b add a cell, dd deletes it, Enter edits it, m makes text of it."""
    keys = ("a", "b", "d", "d", "m", "Enter")
    live = notebook.cell(LIVE_CELL)
    live.get_by_test_id("rl-prompt").click()
    for name in ("rl-prompt", "rl-dice", "rl-volume"):
        tab_to(notebook.page, name)
        for key in keys:
            notebook.page.keyboard.press(key)
    type_into(notebook.cell(STUDIO_CELL).get_by_label("Negative"), "abddm")
    assert notebook.evaluate("return cells.map(({type}) => type);") == ["code"] * len(CELLS)
    assert notebook.evaluate("return panel.content.activeCell.editor.hasFocus();") is False
    assert notebook.cell(STUDIO_CELL).get_by_label("Negative").input_value() == "abddm"


def test_studio_and_mask_painter_work_in_jupyter_notebook(notebook):
    studio, painter = notebook.cell(STUDIO_CELL), notebook.cell(PAINTER_CELL).locator(".rl-widget")
    expect(studio.locator(".rl-static")).to_be_hidden()
    for name, text in {"Steps": "2", "Seconds": "1.28", "Prompt": "jazz"}.items():
        type_into(studio.get_by_label(name), text)
    notebook.page.keyboard.press("Enter")
    expect(studio).to_contain_text("Saved as")
    plot = painter.locator(".rl-plot")
    plot.hover(position={"x": 50, "y": 50})
    notebook.page.mouse.down()
    plot.hover(position={"x": 150, "y": 120})
    notebook.page.mouse.up()
    expect(painter).not_to_have_attribute("data-marked", "0")
    notebook.page.keyboard.press("Control+z")  # of the painter, and of no cell
    expect(painter).to_have_attribute("data-marked", "0")
    assert notebook.evaluate("return cells.length;") == len(CELLS)


def test_jupyter_notebook_still_saves_by_a_key_in_a_widget(notebook):
    notebook.cell(LIVE_CELL).get_by_test_id("rl-prompt").click()
    assert notebook.evaluate("return panel.context.model.dirty;") is True
    notebook.page.keyboard.press("Control+s")
    assert notebook.evaluate("await until(() => !panel.context.model.dirty); return true;", timeout_s=20)


def test_a_restart_is_said_in_jupyter_notebook(notebook):
    notebook.restart_kernel()
    live = notebook.cell(LIVE_CELL)
    expect(live.locator(".rl-live")).to_have_attribute("data-state", "ended")
    expect(live.get_by_test_id("rl-status")).to_contain_text("run the cell again")
    for cell in (STUDIO_CELL, PAINTER_CELL):
        expect(notebook.cell(cell)).to_contain_text("The kernel was restarted or has ended: run this cell again")


# A touch screen


def test_a_finger_moves_a_prompt_in_jupyterlab(lab):
    with lab.open([SETUP, CELLS[LIVE_CELL], "print(live.session.status['queue'])"], has_touch=True) as notebook:
        for cell in (0, LIVE_CELL):
            notebook.run_cell(cell)
        live = notebook.cell(LIVE_CELL)
        for text in ("techno", "jazz"):
            live.get_by_test_id("rl-prompt").tap()
            notebook.page.keyboard.type(text)  # in the place of the one that was added
            notebook.page.keyboard.press("Enter")
            expect(live.get_by_test_id("rl-said")).to_contain_text(f"Added: “{text}”")
        live.get_by_test_id("rl-prompts").scroll_into_view_if_needed()
        grips = [middle_of(grip) for grip in live.locator(".rl-chip-grip").all()]
        Finger(notebook.page).drag(grips[1], grips[0])
        expect(live.get_by_test_id("rl-said")).to_contain_text("Moved.")
        notebook.run_cell(2)
        assert notebook.cell_text(2) == "['jazz', 'techno']"
        assert notebook.errors == []
