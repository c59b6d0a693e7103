"""The recorder, its Python side without a browser, its JavaScript side in a real one; rules for all widgets."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from browser import focused, mount, open_page, start_before, tab_through, wait_for_python
from conftest import RATE, tone
from riffusion_lab import Clip
from riffusion_lab.widgets import Live, MaskPainter, Player, Recorder
from riffusion_lab.widgets.panel import PanelScript

ROOT = Path(__file__).parents[1]
TESTS = sorted(path for folder in ("tests", "tools") for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = sorted((ROOT / "riffusion_lab/widgets/static").glob("*.js"))
# What acts in a user's place without a key or a pointer, and so works where nobody could type or click: methods of
# Playwright, and JavaScript in a string
NO_USER = {"fill", "focus", "check", "uncheck", "set_checked", "select_option", "dispatch_event"}
NO_USER_SCRIPT = r"\.(click|focus|submit)\(\)|dispatchEvent|\.value\s*=[^=]"
# A property such as `onkeydown` cancels a key when its function happens to return false
AND_STATEMENT = r"\s*[\w.?()]+ && .*\);$"
HANDLER = r"\.on[a-z]+\s*=[^=]|\[[`'\"]on|\bon[a-z]+=[\"']|Object\.assign\([^)]*\bon[a-z]+:"


@pytest.fixture
def page(browser):
    """An empty page, in a browser with a beeping microphone."""
    with open_page(browser) as page:
        yield page


# Rules


def done_by_no_user(text):
    """Find the lines of a Python file where something is typed, clicked or chosen without a key or a pointer."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in NO_USER:
            if ast.unparse(node.func) != "frame.fill":  # of tools/frame.py: fills in a template
                found.add(node.lineno)
        elif isinstance(node, ast.Constant) and re.search(NO_USER_SCRIPT, str(node.value)):
            found.add(node.lineno)
    return sorted(found)


@pytest.mark.parametrize("path", [path for path in TESTS if path != Path(__file__)], ids=lambda path: path.name)
def test_users_have_keys_and_a_pointer(path):
    assert done_by_no_user(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_no_handler_is_a_property(script):
    assert re.findall(HANDLER, script.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("line", "is_wrong"),
    [
        ('page.locator("input").fill("techno")', True),
        ("frame.fill(text, blocks)", False),
        ("page.evaluate(\"document.querySelector('button').click()\")", True),
        ('button.evaluate("(el) => el.click()")', True),
        ('page.get_by_test_id("rl-add").click()', False),
        ('button.dispatch_event("click")', True),
        ("page.evaluate(\"button.dispatchEvent(new Event('input'))\")", True),
        ('page.get_by_role("button").focus()', True),
    ],
)
def test_what_no_user_does_is_found(line, is_wrong):
    assert bool(done_by_no_user(line)) == is_wrong


@pytest.mark.parametrize(
    ("line", "is_wrong"),
    [
        ('prompt.onkeydown = (event) => event.key === "Enter" && send();', True),
        ("el.onkeydown=stop", True),
        ("over[`onpointer${name}`] = (event) => {", True),
        ("Object.assign(node, { onclick: press })", True),
        ("el.innerHTML = \"<button onclick='go()'>\"", True),
        ('prompt.addEventListener("keydown", (event) => {', False),
        ('make("button", { onclick: press })', False),  # makes a listener of it
        ("recorded.onset == 3", False),
    ],
)
def test_handlers_that_are_properties_are_found(line, is_wrong):
    assert bool(re.search(HANDLER, line)) == is_wrong


def test_no_statement_is_an_and():
    """`if` says what `a && b();` hides."""
    found = [
        f"{script.name}: {line.strip()}"
        for script in SCRIPTS
        for line in script.read_text(encoding="utf-8").splitlines()
        if re.match(AND_STATEMENT, line)
    ]
    assert found == []


# Design

GROUND = """(el) => { const { color, backgroundColor } = getComputedStyle(el); return [color, backgroundColor]; }"""
OF_JUPYTERLAB = "--jp-ui-font-color1: rgb(7, 8, 9); --jp-layout-color1: rgb(10, 11, 12)"
# In VS Code, ipywidgets bring the colours of JupyterLab's light theme along
OF_VS_CODE = f"--vscode-editor-foreground: rgb(1, 2, 3); --vscode-editor-background: rgb(4, 5, 6); {OF_JUPYTERLAB}"


@pytest.mark.parametrize(
    ("system", "variables", "colours"),
    [
        ("light", "", ["rgb(33, 33, 33)", "rgb(255, 255, 255)"]),
        ("dark", "", ["rgb(230, 230, 230)", "rgb(28, 28, 28)"]),
        ("dark", OF_VS_CODE, ["rgb(1, 2, 3)", "rgb(4, 5, 6)"]),
        ("dark", OF_JUPYTERLAB, ["rgb(7, 8, 9)", "rgb(10, 11, 12)"]),
    ],
    ids=["light", "dark", "VS Code", "JupyterLab"],
)
def test_colours_are_the_themes_else_ours_for_light_or_dark(page, system, variables, colours):
    page.emulate_media(color_scheme=system)
    page.evaluate("(style) => document.documentElement.setAttribute('style', style)", variables)
    mount(page, Recorder())
    assert page.locator("#view0").evaluate(GROUND) == colours


# The themes that VS Code has had by default, as its variables
VS_CODE = {
    "Dark Modern": "editor-foreground #cccccc editor-background #1f1f1f descriptionForeground #9d9d9d "
    "button-background #0078d4 button-foreground #ffffff button-secondaryBackground #313131 "
    "button-secondaryForeground #cccccc focusBorder #0078d4 input-border #3c3c3c textLink-foreground #4daafc",
    "Light Modern": "editor-foreground #3b3b3b editor-background #ffffff descriptionForeground #3b3b3b "
    "button-background #005fb8 button-foreground #ffffff button-secondaryBackground #e5e5e5 "
    "button-secondaryForeground #3b3b3b focusBorder #005fb8 input-border #cecece textLink-foreground #005fb8",
    "Dark+": "editor-foreground #d4d4d4 editor-background #1e1e1e descriptionForeground #ccccccb3 "
    "button-background #0e639c button-foreground #ffffff button-secondaryBackground #3a3d41 "
    "button-secondaryForeground #ffffff focusBorder #007fd4 textLink-foreground #3794ff",
    "Light+": "editor-foreground #000000 editor-background #ffffff descriptionForeground #717171 "
    "button-background #007acc button-foreground #ffffff button-secondaryBackground #5f6a79 "
    "button-secondaryForeground #ffffff focusBorder #0090f1 textLink-foreground #006ab1",
}
WORDS = {"instruments": (["piano", "church bells"], ["tubular bells"]), "styles": (["jazz"], ["bebop"])}


def mount_all(page, pipe):
    """Show all widgets, and of the panel what its script adds."""
    clip = Clip.from_audio(tone(441), RATE, loop=True, recipe={"prompt": "a tone"})
    live = Live(pipe, "piano")
    for widget in (live, Player(clip), MaskPainter(clip), Recorder(), PanelScript(WORDS)):
        mount(page, widget)
    return live


@pytest.mark.parametrize("theme", VS_CODE)
def test_all_text_is_readable_in_vs_code(page, pipe, theme):
    """The system is light where the theme is dark, as it may be: what VS Code says counts."""
    kind = "dark" if theme.startswith("Dark") else "light"
    page.emulate_media(color_scheme={"dark": "light", "light": "dark"}[kind])
    words = VS_CODE[theme].split()
    variables = "; ".join(f"--vscode-{name}: {value}" for name, value in zip(words[::2], words[1::2], strict=True))
    page.evaluate("(kind) => document.body.classList.add(`vscode-${kind}`)", kind)
    page.evaluate("(style) => document.documentElement.setAttribute('style', style)", variables)
    live = mount_all(page, pipe)
    for text in ("techno", "jazz"):
        live.session.add(text)
    page.get_by_test_id("rl-prompt").click()
    page.keyboard.type("slow")
    page.keyboard.press("Enter")
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.press("Delete")
    page.keyboard.press("Enter")  # an error
    expect(page.locator(".rl-chip")).to_have_count(3)
    expect(page.locator(".rl-error")).to_contain_text("The box is empty")
    found = Axe().run(page, "#here", {"runOnly": ["color-contrast"]}).response
    assert [node["html"] for violation in found["violations"] for node in violation["nodes"]] == []
    assert sum(len(passed["nodes"]) for passed in found["passes"]) > 40
    live.close()


SMALL = """(least) => [...document.querySelectorAll(".rl-widget :is(button, select, input, .rl-chip)")]
    .filter((node) => node.checkVisibility({visibilityProperty: true}))
    .map((node) => [node.dataset.testid ?? node.className, node.getBoundingClientRect()])
    .filter(([, {width, height}]) => Math.min(width, height) < least)
    .map(([name, {width, height}]) => `${name}: ${width} × ${height}`)"""


@pytest.mark.parametrize(("pointer", "least_px"), [("fine", 24), ("coarse", 32)])
def test_what_can_be_pressed_is_large_enough(browser, pipe, pointer, least_px):
    """24 px is what WCAG 2.2 asks for; a finger gets more."""
    with open_page(browser, has_touch=pointer == "coarse") as page:
        assert page.evaluate(f"matchMedia('(pointer: {pointer})').matches")
        live = mount_all(page, pipe)
        live.session.add("techno")
        page.get_by_test_id("rl-prompt").click()
        page.keyboard.type("slow")
        page.keyboard.press("Enter")
        expect(page.locator(".rl-chip")).to_have_count(2)
        assert page.evaluate(SMALL, least_px) == []
        live.close()


# Recorder


def test_recording_becomes_a_clip():
    widget, heard, answers = Recorder(), [], []
    widget.send = answers.append
    widget.observe(lambda change: heard.append(change["new"]), "clip")
    sound = tone(441)
    widget._handle_custom_msg({"kind": "recorded", "sample_rate": RATE}, [memoryview(sound.tobytes())])
    np.testing.assert_array_equal(widget.clip.waveform[0], sound)
    assert heard == [widget.clip]
    assert answers == [{"kind": "taken", "duration_s": 5.12}]
    assert repr(widget) == "Recorder(clip=Clip(5.12 s, 44100 Hz, mono))"


@pytest.mark.parametrize(
    ("rate", "samples", "words"),
    [
        (RATE, [], "too short|empty|no samples"),
        (0, [0.1] * 1000, "0"),
        (None, [0.1] * 1000, "rate"),
        (RATE, [np.nan] * 999, "NaN"),
    ],
)
def test_bad_recording_is_refused_in_words_and_keeps_the_last(rate, samples, words):
    widget, answers = Recorder(), []
    widget.send = answers.append
    widget._handle_custom_msg({"kind": "recorded", "sample_rate": RATE}, [memoryview(tone(441).tobytes())])
    last = widget.clip
    widget._handle_custom_msg({"kind": "recorded", "sample_rate": rate}, [np.array(samples, "f4").tobytes()])
    assert answers[-1]["kind"] == "refused"
    assert re.search(words, answers[-1]["reason"]), answers[-1]
    assert widget.clip is last


@pytest.mark.filterwarnings("ignore:the sound peaks")  # so does the beep of Chromium's microphone
def test_recorder_records_in_a_browser(page):
    recorder = Recorder(longest_s=1.0)
    mount(page, recorder)
    view = page.locator("#view0")
    button, status = view.get_by_role("button"), view.get_by_role("status")
    button.click()
    page.wait_for_selector("#view0[data-state=recording]")
    assert button.text_content() == "Stop"
    page.wait_for_selector("#view0[data-state=ready]")  # stops by itself after `longest_s`
    assert 0.5 < recorder.clip.duration_s < 2
    assert np.abs(recorder.clip.waveform).max() > 0.01  # Chromium's microphone beeps
    assert status.text_content() == f"{recorder.clip.duration_s:.1f} s recorded"
    page.evaluate("fromPython([{content: {kind: 'refused', reason: '<b>no</b>'}, buffers: []}])")
    assert status.text_content() == "<b>no</b>"
    assert view.get_attribute("data-state") == "ready" and button.text_content() == "Record"


@pytest.mark.filterwarnings("ignore:the sound peaks")  # so does the beep of Chromium's microphone
def test_recorder_says_that_the_kernel_does_not_answer(page):
    recorder = Recorder(longest_s=0.5)
    mount(page, recorder)
    status = page.locator("#view0").get_by_role("status")
    wait_for_python(page)
    page.evaluate("kernel.isBusy = true")
    page.locator("#view0").get_by_role("button").click()
    expect(status).to_contain_text("does not answer. It is busy, or it was restarted", timeout=15_000)
    page.evaluate("kernel.isBusy = false")
    expect(status).to_contain_text("s recorded")
    page.evaluate("emit('comm_live_update')")
    expect(status).to_have_text("The kernel was restarted or has ended: run this cell again.")


def test_recorder_says_why_there_is_no_microphone(page):
    page.evaluate("""() => {
        navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error("denied"));
    }""")
    mount(page, Recorder())
    view = page.locator("#view0")
    view.get_by_role("button").click()
    expect(view.get_by_role("status")).to_have_text("The microphone cannot be used: denied")
    assert view.get_attribute("data-state") == "ready"


@pytest.mark.filterwarnings("ignore:the sound peaks")  # so does the beep of Chromium's microphone
def test_recorder_is_used_by_keys_alone(page):
    recorder = Recorder()
    mount(page, recorder)
    start_before(page)
    assert tab_through(page) == ["Record"]
    assert tab_through(page, back=True) == ["Record"]
    page.keyboard.press("Tab")
    page.evaluate("window.leaked = []; document.addEventListener('keydown', ({key}) => leaked.push(key)); undefined")
    page.keyboard.press("Enter")
    page.wait_for_selector("#view0[data-state=recording]")
    assert focused(page) == "Stop"
    page.wait_for_timeout(500)
    page.keyboard.press("Space")
    page.wait_for_selector("#view0[data-state=ready]")
    assert focused(page) == "Record"
    assert recorder.clip.duration_s > 0.3
    page.keyboard.press("b")
    assert page.evaluate("leaked") == []  # JupyterLab's shortcuts: Enter edits the cell, b adds one below
    page.keyboard.press("Tab")
    assert focused(page) == "after"
