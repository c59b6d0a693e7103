"""A real browser for the widgets' JavaScript, with the real Python side of a widget at the other end.

`open_browser` starts it, `open_page` gives an empty page; `mount` shows a widget there, as anywidget does, and carries
the messages. The user's part is played by real keys and a real pointer: `type_into`, `set_slider`, `tab_to`,
`tab_through`, or by a `Finger` in a page with ``has_touch=True``. What the page sends reaches Python a little after
the key: `wait_for_python` before looking there.
"""

import base64
import contextlib
import functools
import http.server
import threading
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from external import require
from riffusion_lab.widgets import recorder

STATIC = Path(recorder.__file__).parent / "static"
CHROMIUM_OPTIONS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # it beeps
# The front end: models of widgets, and their views. `fromPython` is what a kernel sends, `toPython` answers with that.
# While `kernel.isBusy` is true, what goes to Python waits there; all of it is answered in turn once it is false.
MOUNT = """
const fromBase64 = (text) => new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
const toBase64 = (buffer) => btoa(Array.from(new Uint8Array(buffer), (byte) => String.fromCharCode(byte)).join(""));
// What was sent there, how much of it is unanswered, for each widget when it all is, and the numbers of clips that came
window.kernel = { isBusy: false, sent: [], nWaiting: 0, turns: [], clips: [] };
kernel.idle = async () => { while (kernel.isBusy) await new Promise((go) => setTimeout(go, 50)); };
window.mounted = [];  // the widgets in the page
window.mount = async (key, script, style, traits, nViews) => {
  const handlers = [], state = traits;
  const emit = (event, ...values) => {
    handlers.filter(([name]) => name === event).forEach(([, call]) => call(...values));
  };
  const fromPython = (messages) => {
    for (const {content, buffers} of messages) {
      if (content.kind === "state") {
        Object.assign(state, content.state);
        Object.keys(content.state).forEach((name) => emit(`change:${name}`));
        continue;
      }
      if (content.kind === "clip") kernel.clips.push(content.number);
      emit("msg:custom", content, buffers.map(fromBase64));
    }
  };
  let turn = Promise.resolve();  // a kernel answers one message after the other
  kernel.turns.push(() => turn);
  const ask = (content, buffers) => {
    kernel.sent.push(content);
    kernel.nWaiting++;
    turn = turn.then(kernel.idle).then(() => window[`toPython${key}`](content, buffers)).then(fromPython);
    turn = turn.finally(() => kernel.nWaiting--);
  };
  const model = {
    get: (name) => state[name],
    set: (name, value) => { state[name] = value; emit(`change:${name}`); },
    save_changes: () => ask({kind: "state", state: {...state}}, []),
    on: (name, call) => handlers.push([name, call]),
    off: (name, call) => handlers.splice(handlers.findIndex(([n, c]) => n === name && c === call), 1),
    send: (content, callbacks, buffers = []) => ask(content, buffers.map(toBase64)),
  };
  document.head.append(Object.assign(document.createElement("style"), {textContent: style}));
  const module = await import(URL.createObjectURL(new Blob([script], {type: "text/javascript"})));
  const widget = typeof module.default === "function" ? await module.default() : module.default;
  const destroy = await widget.initialize?.({model});
  const removers = [];
  for (let i = 0; i < nViews; i++) {
    const el = document.createElement("div");
    el.id = `view${document.querySelectorAll("#here > div").length}`;
    document.getElementById("here").append(el);
    removers.push(await widget.render({model, el}));
  }
  mounted[key] = {model, emit, fromPython, destroy, removers};
  if (!key) Object.assign(window, mounted[0]);  // of the first one, by their plain names
};
undefined;
"""


@contextlib.contextmanager
def open_browser():
    """A browser, for the pages of many tests: to start one takes longer than many a test."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require("chromium"), args=CHROMIUM_OPTIONS + MICROPHONE)
        yield browser
        browser.close()


@contextlib.contextmanager
def open_page(browser, **options):
    """An empty page of a local server that has the widgets' JavaScript; an error in it is one of the test.

    The page shares nothing with others but the browser.
    """

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=STATIC))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page(**options)
    page.set_default_timeout(10_000)
    page.goto(f"http://localhost:{server.server_port}/")
    page.set_content("<button>before</button><div id='here'></div><button>after</button>")
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    yield page
    page.close()  # and its context with it
    server.shutdown()
    server.server_close()
    assert errors == []


def mount(page, widget, *, n_views=1, state="ready", loses_bytes=False):
    """Show a widget in the page, below those that are there, and wait until it is in a state.

    Its views are #view0, #view1, … in the order of the page. Returns a function that brings there what Python has sent
    meanwhile by itself. With `loses_bytes`, the page gets the messages of Python without their buffers.
    """
    outbox = []
    from_page = {}  # values on their way from there: a front end hears no echo of them
    names = [name for name in widget.keys if name[0] != "_" and name not in ("layout", "tabbable", "tooltip")]

    def taken():
        messages = [
            {"content": content, "buffers": [base64.b64encode(buffer).decode() for buffer in buffers or ()]}
            for content, buffers in ((content, None if loses_bytes else buffers) for content, buffers in outbox)
        ]
        outbox.clear()
        return messages

    def receive(content, buffers):
        if content["kind"] == "state":
            from_page.update(content["state"])
            widget.set_state(content["state"])
            from_page.clear()
        else:
            widget._handle_custom_msg(content, [memoryview(base64.b64decode(buffer)) for buffer in buffers])
        return taken()

    def say(change):
        name, value = change["name"], change["new"]
        if name not in from_page or from_page[name] != value:
            outbox.append(({"kind": "state", "state": {name: value}}, None))

    widget.send = lambda content, buffers=None: outbox.append((content, buffers))
    if names:
        widget.observe(say, names)
    if not page.evaluate("'mounted' in window"):
        page.evaluate(MOUNT)
    key, first = page.evaluate("[mounted.length, document.querySelectorAll('#here > div').length]")
    page.expose_function(f"toPython{key}", receive)
    traits = {name: getattr(widget, name) for name in names}
    style = str(getattr(widget, "_css", ""))
    page.evaluate("(given) => mount(...given)", [key, str(widget._esm), style, traits, n_views])
    page.wait_for_selector(f"#view{first}[data-state={state}]")
    return lambda: page.evaluate("([key, messages]) => mounted[key].fromPython(messages)", [key, taken()])


def wait_for_python(page):
    """Wait until Python has heard and answered all that the page has sent."""
    page.evaluate("Promise.all(kernel.turns.map((turn) => turn()))")


def type_into(field, text):
    """Put a text in the place of the one in a field, key by key, as a user does."""
    field.click()
    field.press("ControlOrMeta+A")
    field.page.keyboard.press("Delete")
    field.page.keyboard.type(text)


def set_slider(slider, value):
    """Move a slider to a value by its arrow keys; as the value is a number of steps from where it stands."""
    slider.click()
    facts = slider.evaluate("({valueAsNumber, step}) => [valueAsNumber, Number(step) || 1]")
    n_steps = round((value - facts[0]) / facts[1])
    for _ in range(abs(n_steps)):
        slider.press("ArrowRight" if n_steps > 0 else "ArrowLeft")
    assert float(slider.input_value()) == pytest.approx(value)


class Finger:
    """A finger on the touch screen of a page; the browser makes of it what it does of a real one."""

    def __init__(self, page):
        self._page = page
        self._devtools = page.context.new_cdp_session(page)
        self._at = None

    def _send(self, kind, *places):
        points = [{"x": x, "y": y} for x, y in places]
        self._devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def down(self, x, y):
        self._at = (x, y)
        self._send("touchStart", self._at)

    def move(self, x, y, steps=8):
        """Move to a place in steps, as a hand does."""
        x0, y0 = self._at
        for step in range(1, steps + 1):
            self._at = (x0 + (x - x0) * step / steps, y0 + (y - y0) * step / steps)
            self._send("touchMove", self._at)

    def up(self):
        self._send("touchEnd")

    def drag(self, start, stop):
        """Drag from one place to another: pairs of pixels from the window's upper left corner.

        It rests before it is lifted: Chromium takes the tap after a swing for the one that stops it.
        """
        self.down(*start)
        self.move(*stop)
        self._page.wait_for_timeout(200)
        self.up()


def middle_of(node):
    """Where the middle of an element is in the window: x and y in pixels."""
    box = node.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def start_before(page):
    """Give the focus to the button before the widgets: the next Tab leads into them."""
    page.get_by_role("button", name="before", exact=True).click()


# The element that has the focus, as a test calls it: its test id, or else its label, its text or its kind
FOCUSED = """() => {
    const {activeElement: el} = document;
    const label = el.ariaLabel || el.labels?.[0]?.textContent.trim() || el.textContent.trim().slice(0, 40);
    return el.dataset.testid ?? (label || el.tagName);
}"""


def focused(page):
    """Name the element that has the focus."""
    return page.evaluate(FOCUSED)


def tab_through(page, *, back=False, most=200):
    """Press Tab (or Shift + Tab) until the focus is on the button "before" or "after"; name what was on the way."""
    names = []
    while len(names) < most:
        page.keyboard.press("Shift+Tab" if back else "Tab")
        name = focused(page)
        if name in ("before", "after"):
            return names
        names.append(name)
    raise AssertionError(f"the focus does not leave the widget: {names[-20:]}")


def tab_to(page, name, *, back=False, most=200):
    """Press Tab (or Shift + Tab) until the focus is on an element with this name."""
    for _ in range(most):
        if focused(page) == name:
            return
        page.keyboard.press("Shift+Tab" if back else "Tab")
    raise AssertionError(f"{name} is not reached by Tab")
