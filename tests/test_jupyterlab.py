"""What the reader sees: clips and widgets in a real JupyterLab, in a real browser.

Widgets mirror their state in ``data-…`` attributes of their root element, so a test reads
``expect(notebook.widget("rl-…")).to_have_attribute("data-state", "…")``. See `lab.NotebookPage` for what a notebook
can do; what only a user's gesture may do is asked with its `evaluate`, which is none.
"""

import base64
import io
import sys
from pathlib import Path

import pytest
import soundfile
from playwright.sync_api import expect

import notebooks as tool
from browser import focused, tab_to, type_into
from lab import NotebookPage

WIDTHS, THEMES = (1280, 800), ("light", "dark")
IMPORTS = "from conftest import tone\nfrom riffusion_lab import Clip\nfrom riffusion_lab.widgets import Recorder"
CLIP_CELL, RECORDER_CELL, HTML_CELL, RECORDED_CELL = 1, 2, 3, 4
SOURCE = "data:audio/mpeg;base64,AAAA"
# JupyterLab's sanitizer takes away what is in here: if it does not, it did not look.
UNSAFE = f'<audio onplay="1"><source src="{SOURCE}"></audio>'
CELLS = [
    IMPORTS,
    "Clip.from_audio(tone(441), 44_100)",
    "recorder = Recorder()\nrecorder",
    f"from IPython.display import HTML\nHTML({UNSAFE!r})",
    "recorder.clip is not None and recorder.clip.duration_s > 0.2",
]


@pytest.fixture(scope="module")
def shown(lab):
    """A notebook with a clip and a recorder, run from top to bottom."""
    with lab.open(CELLS, name="shown") as notebook:
        notebook.run_all()
        yield notebook


# The looks of an element

# Text is clipped where a box that it stands in hides it or would have to be scrolled sideways, and overlaps where the
# lines of two texts share more than a third of their height: line boxes may touch, letters do not. Text in a box of
# one pixel is there for screen readers.
FIND_UNTIDY = """(root) => {
  const pieces = [], problems = new Set();
  const onePixel = (box) =>
    getComputedStyle(box).position === "absolute" && Math.min(box.clientWidth, box.clientHeight) === 1;
  const seen = (element) => {
    if (element.closest("option") || !element.checkVisibility({ visibilityProperty: true })) return false;
    for (let box = element; box !== root.parentElement; box = box.parentElement) if (onePixel(box)) return false;
    return true;
  };
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, range = document.createRange();
    if (!node.data.trim() || !seen(node.parentElement)) continue;
    range.selectNodeContents(node);
    pieces.push({ text: node.data.trim(), element: node.parentElement, lines: [...range.getClientRects()] });
  }
  for (const field of root.querySelectorAll("input, select, textarea")) {
    if (!seen(field)) continue;
    const text = `${field.tagName.toLowerCase()} ${field.ariaLabel ?? field.id}`;
    pieces.push({ text, element: field.parentElement, lines: [field.getBoundingClientRect()] });
    if (field.scrollWidth > field.clientWidth + 1) problems.add(`clipped: the value of ${text}: ${field.value}`);
  }
  const clips = (box, line, sideways) => {
    const { overflowX, overflowY, display } = getComputedStyle(box), outer = box.getBoundingClientRect();
    if (display === "inline" || display === "contents") return false;
    const left = outer.left + box.clientLeft, top = outer.top + box.clientTop, slack = line.height / 4;
    if (sideways) return overflowX !== "visible" && (line.left < left - 1 || line.right > left + box.clientWidth + 1);
    return overflowY !== "visible" && (line.top < top - slack || line.bottom > top + box.clientHeight + slack);
  };
  const scrolls = (box) => /auto|scroll/.test(getComputedStyle(box).overflowY) && box.scrollHeight > box.clientHeight;
  for (const { text, element, lines } of pieces)
    for (const line of lines) {
      let scrolled = false;
      for (let box = element; box; box = box.parentElement) {
        scrolled ||= scrolls(box);
        if (clips(box, line, true) || (!scrolled && clips(box, line, false))) problems.add(`clipped: ${text}`);
      }
      if (line.left < 0 || line.right > innerWidth + 1) problems.add(`outside of the window: ${text}`);
    }
  const overlap = (a, b) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > Math.min(a.height, b.height) / 3;
  pieces.forEach((one, i) => pieces.slice(i + 1).forEach((other) => {
    if (one.lines.some((a) => other.lines.some((b) => overlap(a, b))))
      problems.add(`overlapping: ${one.text} / ${other.text}`);
  }));
  return [...problems];
}"""


def untidy(notebook: NotebookPage, selector: str) -> list[str]:
    """Return the texts in the first element that fits `selector` that are clipped or overlap others."""
    element = notebook.page.locator(selector).first
    element.scroll_into_view_if_needed()
    return element.evaluate(FIND_UNTIDY)


def check_looks(notebook: NotebookPage, selector: str, folder: Path, name: str) -> None:
    """Assert that an element is tidy and accessible, wide and narrow, light and dark; leave pictures in `folder`."""
    for theme in THEMES:
        notebook.set_theme(theme)
        for width in WIDTHS:
            notebook.set_width(width)
            problems = untidy(notebook, selector)
            notebook.screenshot(folder / f"{name}_{width}_{theme}.png")
            assert problems == [], f"at {width} px, {theme}"
            assert notebook.axe(selector) == [], f"at {width} px, {theme}"
    notebook.set_theme(THEMES[0])
    notebook.set_width(WIDTHS[0])


LONG = "some words that need room"
UNTIDY = {
    "cut at the right": f"<p style='width: 50px; overflow: hidden; white-space: nowrap'>{LONG}</p>",
    "cut at the right by the box around": f"<div style='width: 50px; overflow: hidden'><pre>{LONG}</pre></div>",
    "cut below": f"<p style='width: 50px; height: 20px; overflow: hidden'>{LONG}</p>",
    "ellipsis": f"<p style='width: 50px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap'>{LONG}</p>",
    "scrolled sideways": f"<p style='width: 50px; overflow: auto; white-space: nowrap'>{LONG}</p>",
    "outside of the window": "<p style='position: fixed; left: -30px'>some words</p>",
    "on each other": "<p style='margin: 0'>one</p><p style='margin: -12px 0 0'>two</p>",
    "button on text": "<div><b>some words</b><button style='margin-left: -30px'>press</button></div>",
    "field on text": "<div>some words<input aria-label='x' style='margin-left: -30px'></div>",
    "value longer than its field": f"<input aria-label='x' style='width: 50px' value='{LONG}'>",
}
TIDY = {
    "lines": f"<p style='width: 50px'>{LONG} <b>and <i>more</i></b> of {LONG}</p><p>two</p>",
    "fields": "<label>a <input value='b'></label> <select><option>c</option></select> <button>d</button>",
    "close lines": "<p style='line-height: 1; margin: 0'>one</p><p style='line-height: 1; margin: 0'>two</p>",
    "scrolled down": f"<div style='height: 30px; width: 90px; overflow: auto'>{LONG}, {LONG}</div>",
    "for screen readers": "<p>one</p><p style='position: absolute; width: 1px; height: 1px; overflow: hidden'>two</p>",
    "hidden": f"<p hidden>{LONG}</p><p style='visibility: hidden; height: 2px; overflow: hidden'>{LONG}</p>",
}


@pytest.mark.parametrize("name", [*UNTIDY, *TIDY])
def test_untidy_text_is_found(shown, name):
    shown.page.evaluate(
        """([cell, html]) => {
            const areas = document.querySelectorAll(".jp-Cell-outputArea");
            document.getElementById("example")?.remove();
            areas[cell].insertAdjacentHTML("beforeend", `<div id="example">${html}</div>`);
        }""",
        [HTML_CELL, {**UNTIDY, **TIDY}[name]],
    )
    assert bool(untidy(shown, "#example")) == (name in UNTIDY), untidy(shown, "#example")


# JupyterLab itself


def test_kernels_are_this_python_and_restart(lab):
    with lab.open(["import sys\nx = sys.prefix", "print(x)"], name="restarted") as notebook:
        notebook.run_all()
        assert notebook.cell_text(1) == sys.prefix
        notebook.restart_kernel()
        assert notebook.cell_text(1) == sys.prefix  # outputs outlive their kernel
        with pytest.raises(AssertionError, match="name 'x' is not defined"):
            notebook.run_from(1)
        notebook.run_cell(0)
        notebook.run_from(1)
        assert notebook.cell_text(1) == sys.prefix
        assert notebook.errors == []


def test_what_runs_is_interrupted_and_errors_are_noted(lab):
    with lab.open(["import time\nprint('begun')\nwhile True:\n    time.sleep(0.1)"], name="busy") as notebook:
        notebook.start_cell(0)
        expect(notebook.cell(0)).to_contain_text("begun")
        notebook.interrupt_kernel()
        assert notebook.outputs()[0][-1]["ename"] == "KeyboardInterrupt"
        assert notebook.errors == []
        with notebook.page.expect_event("pageerror"):
            notebook.evaluate("console.error('said'); setTimeout(() => { throw Error('thrown'); });")
        assert [error.partition(" (")[0] for error in notebook.errors] == ["said", "uncaught: thrown"]


def test_sound_needs_a_gesture(lab):
    state = "const context = new AudioContext(), { state } = context; await context.close(); return state;"
    with lab.open(["print(1)"], name="gesture") as notebook:
        notebook.run_all()
        assert notebook.evaluate(state) == "suspended"
        notebook.page.mouse.click(640, 600)
        assert notebook.evaluate(state) == "running"


# Clips


def check_players(notebook: NotebookPage) -> None:
    """Assert that the clip of `CELLS` shows its picture, and that the browser can play its sound."""
    cell = notebook.cell(CLIP_CELL)
    picture, player = cell.locator("img"), cell.locator("audio")
    assert len(picture.get_attribute("alt")) > 20
    assert picture.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") > 500
    kind, _, sound = player.get_attribute("src").partition(",")
    assert kind == "data:audio/mpeg;base64"
    assert soundfile.info(io.BytesIO(base64.b64decode(sound))).duration == pytest.approx(5.12, abs=0.1)  # MP3's frames
    player.evaluate("(player) => { player.preload = 'metadata'; player.load(); }")
    notebook.page.wait_for_function("(player) => player.duration > 5", arg=player.element_handle())
    assert "5.12 s · 44,100 Hz · mono" in notebook.cell_text(CLIP_CELL)


def test_clip_shows_picture_and_player(shown):
    assert all(shown.trusted())
    check_players(shown)
    assert shown.errors == []


def test_clip_looks_right(shown, tmp_path):
    check_looks(shown, "figure", tmp_path, "clip")


def test_saved_players_survive_the_sanitizer(lab, shown):
    """Whoever opens a saved notebook hears its clips before running, or trusting, anything."""
    saved = shown.save()
    tool.clean(saved)
    with lab.open(saved, name="saved") as notebook:
        assert not notebook.trusted()[CLIP_CELL]
        unsafe = notebook.cell(HTML_CELL).locator("audio")
        expect(unsafe).to_be_attached()
        assert SOURCE not in unsafe.evaluate("(element) => element.outerHTML")
        check_players(notebook)
        assert notebook.cell_text(RECORDER_CELL).startswith("● Record: a button that records the microphone")
        assert notebook.errors == []


# Recorder


def test_recorder_looks_right(shown, tmp_path):
    expect(shown.cell(RECORDER_CELL).get_by_role("button", name="Record")).to_be_visible()
    check_looks(shown, "[data-state]", tmp_path, "recorder")
    assert shown.errors == []


def test_recorder_records_into_the_kernel(shown):
    cell = shown.cell(RECORDER_CELL)
    cell.get_by_role("button", name="Record").click()
    expect(cell.locator("[data-state=recording]")).to_be_visible()
    shown.page.wait_for_timeout(500)  # what is to be recorded takes its time
    cell.get_by_role("button", name="Stop").click()
    expect(cell.get_by_role("status")).to_contain_text("s recorded")  # said by the kernel
    shown.run_cell(RECORDED_CELL)
    assert shown.cell_text(RECORDED_CELL) == "True"
    assert shown.errors == []


# Player, MaskPainter, Studio

PARTS = [
    "import asyncio, time\nfrom conftest import RATE, drum_loop\nfrom tiny import tiny_pipeline\n"
    "from riffusion_lab import Clip\nfrom riffusion_lab.widgets import MaskPainter, Player, Studio\n"
    "clip = Clip.from_audio(drum_loop(), RATE, loop=True, recipe={'prompt': 'drums <b>only</b>, 94 bpm'})",
    "Player(clip)",
    "painter = MaskPainter(clip)\npainter",
    "studio = Studio(tiny_pipeline(), prompt='piano', words=True)\nstudio",
    "painter.mask.sum() > 0",
    "for _ in range(100):\n    await asyncio.sleep(0.1)\n    if studio.status.value.count('Cancelled'):\n        break",
    "studio.status.value",
]
PLAYER_CELL, PAINTER_CELL, STUDIO_CELL, PAINTED_CELL, WAITING_CELL, CANCELLED_CELL = range(1, 7)


@pytest.fixture(scope="module")
def parts(lab):
    """A notebook with a player, a mask painter and a studio, run but for its last cells."""
    with lab.open(PARTS, name="parts") as notebook:
        for cell in range(PAINTED_CELL):
            notebook.run_cell(cell)
        yield notebook


def test_player_plays_and_hides_the_plain_one(parts):
    cell = parts.cell(PLAYER_CELL)
    root = cell.locator(".rl-widget")
    expect(root).to_have_attribute("data-state", "ready")
    expect(cell.locator("audio")).to_be_hidden()
    cell.get_by_test_id("rl-play").click()
    expect(root).to_have_attribute("data-state", "playing")
    parts.page.wait_for_function("(root) => root.dataset.position > 0.5", arg=root.element_handle())
    cell.get_by_test_id("rl-play").click()
    assert parts.errors == []


def test_painted_mask_reaches_the_kernel(parts):
    root = parts.cell(PAINTER_CELL).locator(".rl-widget")
    plot = root.locator(".rl-plot")
    expect(root).to_have_attribute("data-marked", "0")
    plot.hover(position={"x": 50, "y": 50})  # scrolls there, and waits until nothing moves or lies above
    parts.page.mouse.down()
    plot.hover(position={"x": 150, "y": 120})
    parts.page.mouse.up()
    expect(root).not_to_have_attribute("data-marked", "0")
    parts.run_cell(PAINTED_CELL)
    assert "True" in parts.cell_text(PAINTED_CELL)
    assert parts.errors == []


def test_cancel_works_while_a_cell_runs(parts):
    cell = parts.cell(STUDIO_CELL)
    type_into(cell.get_by_label("Steps"), "1000")
    cell.get_by_role("button", name="Generate").click()
    expect(cell).to_contain_text("Making a clip")
    parts.start_cell(WAITING_CELL)
    cell.get_by_role("button", name="Cancel").click()
    expect(cell).to_contain_text("Cancelled", timeout=30_000)
    parts.run_cell(CANCELLED_CELL)
    assert "Cancelled" in parts.cell_text(CANCELLED_CELL)
    assert parts.errors == []


@pytest.mark.parametrize(
    ("name", "cell", "selector"),
    [
        ("player", PLAYER_CELL, ".rl-widget"),
        ("painter", PAINTER_CELL, ".rl-widget"),
        ("studio", STUDIO_CELL, ".widget-vbox"),
    ],
)
def test_parts_look_right(parts, tmp_path, name, cell, selector):
    parts.evaluate(f"panel.content.widgets[{cell}].node.id = 'the-{name}';")
    check_looks(parts, f"#the-{name} {selector}", tmp_path, name)


def test_saved_parts_have_plain_players(lab, parts):
    saved = parts.save()
    tool.clean(saved)
    with lab.open(saved, name="saved-parts") as notebook:
        for cell in (PLAYER_CELL, PAINTER_CELL):
            assert not notebook.trusted()[cell]
            expect(notebook.cell(cell).locator("img").first).to_be_visible()
        assert notebook.cell(PLAYER_CELL).locator("audio").get_attribute("src").startswith("data:audio/mpeg;base64,")
        assert notebook.errors == []


def test_reopened_parts_show_figures_and_no_error(lab, parts):
    """A user's own notebook, as JupyterLab has saved it: the models of its widgets ended with their kernel."""
    with lab.open(parts.save(), name="reopened") as notebook:
        for cell in (PLAYER_CELL, PAINTER_CELL, STUDIO_CELL):
            expect(notebook.cell(cell).locator(".rl-static")).to_be_visible()
            expect(notebook.cell(cell).locator(".jupyter-widgets")).to_have_text(
                "Error displaying widget: model not found"
            )
            expect(notebook.cell(cell).locator(".jupyter-widgets")).to_be_hidden()


def test_restart_is_said_where_the_panel_is(parts):
    cell = parts.cell(STUDIO_CELL)
    expect(cell.locator(".rl-static")).to_be_hidden()
    parts.restart_kernel()
    expect(cell).to_contain_text("The kernel was restarted or has ended: run this cell again")
    expect(parts.cell(PLAYER_CELL)).to_contain_text("The kernel was restarted or has ended: run this cell again")


# Live


def number(element, name):
    return float(element.get_attribute(f"data-{name}"))


def reaches(notebook, condition, timeout_s=30):
    """Wait until an expression with the element `live` of the player becomes true."""
    code = f"() => {{ const live = document.querySelector('.rl-live').dataset; return {condition}; }}"
    notebook.page.wait_for_function(code, timeout=1000 * timeout_s)


LIVE = [
    "import asyncio, time\nimport fake_music\nfrom tiny import tiny_pipeline",
    "from riffusion_lab.widgets import Live\nlive = Live(tiny_pipeline(), 'piano')\nlive",
    "live",
    "await asyncio.sleep(6)",
    "time.sleep(6)",
    "print('\\n' * 300)",
]


@pytest.fixture(scope="module")
def live_notebook(lab):
    """A notebook with endless music (tones) in two views; to start a kernel for each test would take minutes."""
    with lab.open(LIVE, name="live") as notebook:
        yield notebook


@pytest.fixture
def playing(live_notebook):
    """The same with a new player, which plays; further cells can be run."""
    for cell in (0, 1, 2):
        live_notebook.run_cell(cell)
    live_notebook.widget("rl-play").first.click()
    reaches(live_notebook, "live.clip >= 1")
    yield live_notebook
    assert live_notebook.errors == []


def test_live_needs_a_gesture_and_then_plays_once(playing):
    first = playing.page.locator(".rl-live").first
    reaches(playing, "live.clip >= 3")
    assert number(first, "underruns") == 0
    views = "[...document.querySelectorAll('.rl-live')].map(({dataset: {clip, joins, state}}) => [clip, joins, state])"
    one, two = playing.page.evaluate(views)  # both at the same moment
    assert one == two
    before = number(first, "ctx-time")
    playing.page.wait_for_timeout(1000)
    assert 0.5 < number(first, "ctx-time") - before < 2


def test_live_goes_on_while_cells_run(playing):
    live = playing.page.locator(".rl-live").first
    before = number(live, "clip")
    playing.run_cell(3)  # this one lets the kernel answer
    assert number(live, "clip") > before
    playing.run_cell(4)  # this one does not: the last clip goes round
    reaches(playing, f"live.clip > {number(live, 'clip')}")
    assert number(live, "underruns") == 0


def test_live_plays_off_screen(playing):
    live = playing.page.locator(".rl-live").first
    playing.run_cell(5)
    playing.evaluate("panel.content.node.querySelector('.jp-WindowedPanel-outer').scrollTo(0, 1e6);")
    before = number(live, "clip")
    reaches(playing, f"live.clip > {before + 1}")
    assert number(live, "underruns") == 0
    live.scroll_into_view_if_needed()
    expect(live).to_have_attribute("data-state", "playing")


def test_live_ends_with_its_kernel(playing):
    playing.restart_kernel()
    expect(playing.page.locator(".rl-live").first).to_have_attribute("data-state", "ended")


def test_live_pauses_when_its_cell_runs_again(playing):
    playing.evaluate("panel.content.model.cells.get(2).outputs.clear();")
    playing.run_cell(1)
    expect(playing.page.locator(".rl-live").first).to_have_attribute("data-state", "ready")
    playing.page.wait_for_timeout(1500)
    heard = playing.evaluate("return document.querySelectorAll('.rl-live[data-state=playing]').length;")
    assert heard == 0


def test_a_second_view_of_the_old_player_falls_silent_when_the_new_one_plays(playing):
    playing.run_cell(1)  # cell 2 still shows the old one
    new, old = playing.page.locator(".rl-live").all()
    expect(new).to_have_attribute("data-state", "ready")
    expect(old).to_have_attribute("data-state", "playing")
    new.get_by_test_id("rl-play").click()
    expect(new).to_have_attribute("data-state", "playing")
    expect(old).to_have_attribute("data-state", "paused")
    expect(old.get_by_test_id("rl-status")).to_contain_text("another Live on this page")


def test_live_looks_right(playing, tmp_path):
    type_into(playing.widget("rl-prompt").first, "techno")
    playing.widget("rl-add").first.click()
    check_looks(playing, ".rl-live", tmp_path, "live")


def test_a_minute_of_riffling_has_no_gap(lab):
    cells = [
        "from riffusion_lab import load_pipeline\nfrom riffusion_lab.widgets import Live",
        "live = Live(load_pipeline(), 'piano, 94 bpm')\nlive",
        "live.session.stop()",
    ]
    with lab.open(cells, name="riffling") as notebook:
        for cell in (0, 1):
            notebook.run_cell(cell)
        notebook.widget("rl-play").click()
        reaches(notebook, "live.clip >= 1", timeout_s=60)
        live = notebook.page.locator(".rl-live")
        before, n_clips = number(live, "ctx-time"), number(live, "clip")
        type_into(notebook.widget("rl-prompt"), "techno, 94 bpm")
        notebook.widget("rl-add").click()
        reaches(notebook, f"live.ctxTime > {before + 60}", timeout_s=80)
        assert number(live, "underruns") == 0
        assert number(live, "clip") > n_clips + 2  # a slow machine repeats some
        assert "techno" in live.get_attribute("data-label")
        notebook.run_cell(2)
        expect(notebook.widget("rl-status")).to_contain_text("stopped")
        assert notebook.errors == []


# By keys alone

KEYED = [
    "import fake_music\nfrom conftest import RATE, drum_loop\nfrom tiny import tiny_pipeline\n"
    "from riffusion_lab import Clip\n"
    "from riffusion_lab.widgets import Live, MaskPainter, Player, Recorder, Studio\n"
    "clip, pipe = Clip.from_audio(drum_loop(), RATE, loop=True), tiny_pipeline()",
    "recorder = Recorder()\nrecorder",
    "player = Player(clip)\nplayer",
    "painter = MaskPainter(clip)\npainter",
    "live = Live(pipe, 'piano')\nlive",
    "studio = Studio(pipe, prompt='piano')\nstudio",
    "recorder.clip is not None, player.loop, float(painter.mask.sum()) > 0, live.session.guidance_scale",
    "studio.clip.recipe['prompt'], studio.clip.recipe['negative_prompt'], studio.clip.recipe['seed']",
]


@pytest.fixture(scope="module")
def keyed(lab):
    """A notebook with all five widgets, which are used by keys only; no cell may come of it, or go."""
    with lab.open(KEYED, name="keyed") as notebook:
        for cell in range(6):
            notebook.run_cell(cell)
        yield notebook
        assert len(notebook.outputs()) == len(KEYED)
        assert notebook.errors == []


def enter(notebook, cell, *, most=20):
    """Click beside the controls of a cell, and press Tab until the focus is on one; return the widget's element."""
    output = notebook.cell(cell).locator(".jp-OutputArea-output").last
    output.click(position={"x": output.bounding_box()["width"] - 2, "y": 2})  # where no control is
    names = []
    while len(names) < most and not output.evaluate(HAS_FOCUS):
        notebook.page.keyboard.press("Tab")
        names.append(focused(notebook.page))
    assert output.evaluate(HAS_FOCUS), f"Tab does not lead into the widget, but to {names}"
    return output


HAS_FOCUS = "(root) => root.contains(document.activeElement)"


def leave(notebook, output, *, back=False, most=60):
    """Press Tab (or Shift + Tab) until the focus is outside of a widget; name the controls on the way."""
    names = []
    while len(names) < most and output.evaluate(HAS_FOCUS):
        names.append(focused(notebook.page))
        notebook.page.keyboard.press("Shift+Tab" if back else "Tab")
    assert len(names) < most, f"the focus does not leave the widget: {names[-20:]}"
    return names


def test_recorder_by_keys(keyed):
    press = keyed.page.keyboard.press
    output = enter(keyed, 1)
    assert focused(keyed.page) == "Record"
    press("Enter")
    expect(output.locator("[data-state=recording]")).to_be_visible()
    keyed.page.wait_for_timeout(500)
    press("Space")
    expect(output.get_by_role("status")).to_contain_text("s recorded")
    assert leave(keyed, output) == ["Record"]


def test_player_by_keys(keyed):
    press = keyed.page.keyboard.press
    output = enter(keyed, 2)
    root = output.locator(".rl-widget")
    press("ArrowRight")
    expect(root).to_have_attribute("data-position", "0.5000")
    tab_to(keyed.page, "rl-play")
    press("Enter")
    expect(root).to_have_attribute("data-state", "playing")
    press("Space")
    expect(root).to_have_attribute("data-state", "paused")
    tab_to(keyed.page, "rl-loop")
    press("Enter")
    tab_to(keyed.page, "rl-volume")
    press("ArrowLeft")
    expect(output.get_by_test_id("rl-volume")).to_have_value("0.99")
    tab_to(keyed.page, "rl-download-png")
    with keyed.page.expect_download():
        press("Enter")
    assert leave(keyed, output) == ["rl-download-png"]


def test_mask_painter_by_keys(keyed):
    press = keyed.page.keyboard.press
    output = enter(keyed, 3)
    root = output.locator(".rl-widget")
    tab_to(keyed.page, "rl-start")
    keyed.page.keyboard.type("1.25")
    press("Tab")
    keyed.page.keyboard.type("2.5")
    tab_to(keyed.page, "rl-add-box")
    press("Space")
    expect(root).not_to_have_attribute("data-marked", "0")
    tab_to(keyed.page, "rl-clear", back=True)
    press("Enter")
    expect(root).to_have_attribute("data-marked", "0")
    tab_to(keyed.page, "rl-undo", back=True)
    press("Enter")
    expect(root).not_to_have_attribute("data-marked", "0")
    names = leave(keyed, output)
    assert names[0] == "rl-undo" and names[-1] == "rl-add-box"


def test_live_by_keys(keyed):
    press = keyed.page.keyboard.press
    output = enter(keyed, 4)
    root, said = output.locator(".rl-live"), output.get_by_test_id("rl-said")
    assert focused(keyed.page) == "rl-start"
    tab_to(keyed.page, "rl-prompt")
    keyed.page.keyboard.type("church bells")
    expect(output.get_by_test_id("rl-prompt")).to_have_value("church bells")
    press("Enter")
    expect(said).to_contain_text("Added: “church bells”.")
    tab_to(keyed.page, "rl-play")
    press("Space")
    expect(root).to_have_attribute("data-state", "playing")
    tab_to(keyed.page, "rl-guidance")
    press("ArrowRight")
    expect(said).to_contain_text("guidance scale")
    tab_to(keyed.page, "rl-play", back=True)
    press("Enter")
    expect(root).to_have_attribute("data-state", "paused")
    tools = ["rl-play", "rl-record", "rl-keep", "rl-load", "rl-code", "rl-seed", "rl-next-seed"]
    names = [*tools, "rl-guidance", "rl-volume"]
    assert leave(keyed, output) == names
    enter(keyed, 4)
    tab_to(keyed.page, "rl-volume")
    ask = ["rl-chip", "rl-prompt", "rl-add", "rl-dice", *(f"rl-example-{i}" for i in range(4))]
    assert leave(keyed, output, back=True) == [*ask, *names][::-1]


def test_studio_by_keys(keyed):
    press, keys = keyed.page.keyboard.press, keyed.page.keyboard
    output = enter(keyed, 5)
    for name, text in {"Prompt": "church bells", "Negative": "jazz", "Seed": "7"}.items():
        tab_to(keyed.page, name)
        press("ControlOrMeta+A")
        keys.type(text)
    tab_to(keyed.page, "Next seed")
    press("Space")
    for name, text in {"Steps": "2", "Guidance": "3.5", "Seconds": "1.28"}.items():
        tab_to(keyed.page, name)
        press("ControlOrMeta+A")
        keys.type(text)
    tab_to(keyed.page, "Generate")
    press("Enter")
    expect(output).to_contain_text("Saved as")
    output.get_by_label("Prompt").click()
    tab_to(keyed.page, "rl-play")
    press("Enter")
    player = output.get_by_role("group", name="Player church bells")
    expect(player).to_have_attribute("data-state", "playing")
    press("Space")
    expect(player).to_have_attribute("data-state", "paused")
    tab_to(keyed.page, "church-bells-seed-8")
    press("Space")
    assert leave(keyed, output)[-1].startswith("church-bells-seed-8")
    type_into(output.get_by_label("Prompt"), "church bells, slow")
    press("Enter")  # at once: ipywidgets may not have sent the last letters yet
    expect(output).to_contain_text("church-bells-slow-seed-8")


def test_what_was_done_by_keys_reached_the_kernel(keyed):
    keyed.run_from(6)
    assert keyed.cell_text(6) == "(True, False, True, 7.5)"  # a step above Stable Diffusion's default of 7
    assert keyed.cell_text(7) == "('church bells, slow', 'jazz', 8)"
