"""A real browser for the widgets' JavaScript, with the real Python side of a widget at the other end.

`open_page` gives an empty page; `mount` shows a widget there, as anywidget does, and carries the messages.
"""

import base64
import contextlib
import functools
import http.server
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

from external import require
from riffusion_lab.widgets import recorder

STATIC = Path(recorder.__file__).parent / "static"
CHROMIUM_OPTIONS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # it beeps
# The front end's model of a widget, and its views. `fromPython` is what the kernel sends, `toPython` answers with that.
MOUNT = """
const fromBase64 = (text) => new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
const toBase64 = (buffer) => btoa(Array.from(new Uint8Array(buffer), (byte) => String.fromCharCode(byte)).join(""));
const handlers = [];
const emit = (event, ...values) => handlers.filter(([name]) => name === event).forEach(([, call]) => call(...values));
window.fromPython = (messages) => {
  for (const {content, buffers} of messages) {
    if (content.kind === "state") {
      Object.assign(state, content.state);
      Object.keys(content.state).forEach((name) => emit(`change:${name}`));
    } else emit("msg:custom", content, buffers.map(fromBase64));
  }
};
window.emit = emit;
window.mount = async (script, style, traits, nViews) => {
  window.state = traits;
  window.model = {
    get: (name) => state[name],
    set: (name, value) => { state[name] = value; emit(`change:${name}`); },
    save_changes: () => toPython({kind: "state", state}, []).then(fromPython),
    on: (name, call) => handlers.push([name, call]),
    off: (name, call) => handlers.splice(handlers.findIndex(([n, c]) => n === name && c === call), 1),
    send: (content, callbacks, buffers = []) => toPython(content, buffers.map(toBase64)).then(fromPython),
  };
  document.head.append(Object.assign(document.createElement("style"), {textContent: style}));
  const module = await import(URL.createObjectURL(new Blob([script], {type: "text/javascript"})));
  window.widget = typeof module.default === "function" ? await module.default() : module.default;
  window.destroy = await widget.initialize({model});
  window.removers = [];
  for (let i = 0; i < nViews; i++) {
    const el = document.createElement("div");
    el.id = `view${i}`;
    document.getElementById("here").append(el);
    removers.push(await widget.render({model, el}));
  }
};
undefined;
"""


@contextlib.contextmanager
def open_page(**options):
    """An empty page of a local server that has the widgets' JavaScript; an error in it is one of the test."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=STATIC))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require("chromium"), args=CHROMIUM_OPTIONS + MICROPHONE)
        page = browser.new_page(**options)
        page.set_default_timeout(10_000)
        page.goto(f"http://localhost:{server.server_port}/")
        page.set_content("<div id='here'></div>")
        errors = []
        page.on("pageerror", lambda error: errors.append(error))
        yield page
        browser.close()
    server.shutdown()
    server.server_close()
    assert errors == []


def mount(page, widget, *, n_views=1, state="ready", loses_bytes=False):
    """Show a widget in the page and wait until it is in a state.

    Returns a function that brings there what Python has sent meanwhile by itself. With `loses_bytes`, the page gets the
    messages of Python without their buffers.
    """
    outbox = []
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
            widget.set_state(content["state"])
        else:
            widget._handle_custom_msg(content, [memoryview(base64.b64decode(buffer)) for buffer in buffers])
        return taken()

    def say(change):
        outbox.append(({"kind": "state", "state": {change["name"]: change["new"]}}, None))

    widget.send = lambda content, buffers=None: outbox.append((content, buffers))
    if names:
        widget.observe(say, names)
    page.expose_function("toPython", receive)
    page.evaluate(MOUNT)
    traits = {name: getattr(widget, name) for name in names}
    page.evaluate("(given) => mount(...given)", [str(widget._esm), str(widget._css), traits, n_views])
    page.wait_for_selector(f"#view0[data-state={state}]")
    return lambda: page.evaluate("(messages) => fromPython(messages)", taken())
