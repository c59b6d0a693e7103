"""A real JupyterLab in a real browser: ``lab.open(["1 + 1"]).run_all()``.

`Lab` starts one server and one browser, apart from everything the user has set up, and without a way to the network.
`Lab.open` opens a notebook there as a `NotebookPage`, to be closed again: ``with lab.open(cells) as notebook:``. The
same server has Jupyter Notebook, whose page is opened with ``front_end="notebook"``.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import nbformat
from axe_playwright_python.sync_playwright import Axe
from nbconvert.filters import strip_ansi
from playwright.sync_api import ConsoleMessage, Error, Locator, Page, expect, sync_playwright

from external import require

TESTS = Path(__file__).parent
STARTS_WITHIN_S, ANSWERS_WITHIN_S, RUNS_WITHIN_S = 180, 60, 180  # on a computer that is busy with other things
CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",  # a microphone that beeps, and that the page may use without asking
    "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # whatever asks the network for something gets an error
]
# As browsers do by default, but headless ones do not: no sound before the user has pressed something in the page
GESTURE_NEEDED = "--autoplay-policy=document-user-activation-required"
SERVER_OPTIONS = [
    "--no-browser",
    "--allow-root",
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.port_retries=0",
    "--ServerApp.disable_check_xsrf=True",  # nobody else can reach this server
    "--ServerApp.terminals_enabled=False",
    "--IdentityProvider.token=",
    "--LabApp.expose_app_in_browser=True",
    "--JupyterNotebookApp.expose_app_in_browser=True",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
    "--LanguageServerManager.autodetect=False",
]
# No question in a corner of the window whether news may be fetched; saved is what a test saves.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
# Errors that JupyterLab itself leaves in the console: its debugger asks a kernel that is being restarted.
NOISE = ("Could not restore the debugger state",)
# And one that Jupyter Notebook throws while it opens a page, before any widget is there.
THROWN_NOISE = ("Cannot read properties of undefined (reading 'schema')", "/static/notebook/notebook_core")
# What JavaScript of `NotebookPage` may use: `app`, `panel` (the notebook that is open), `until` and `idle`
PREPARED = """
const until = async (done) => { while (!done()) await new Promise((go) => setTimeout(go, 50)); };
await until(() => window.jupyterapp?.shell.currentWidget?.context?.isReady);
const app = jupyterapp, panel = app.shell.currentWidget, cells = [...panel.content.model.cells];
// The kernel also says that it is idle when it has done something beside a cell that still runs.
const running = () => cells.some((cell) => cell.executionState === "running");
const idle = () => until(() => !running() && panel.sessionContext.kernelDisplayStatus === "idle");
"""


class NotebookPage:
    """A notebook open in one of the two; `page` is Playwright's page, `errors` what its console complained of."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page, self.path, self.errors = page, path, []
        self._devtools = page.context.new_cdp_session(page)
        page.on("pageerror", self._note_thrown)
        page.on("console", self._note)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(NOISE):
            self.errors.append(f"{message.text} ({message.location['url']})")

    def _note_thrown(self, error: Error) -> None:
        if not all(part in f"{error.message} {error.stack}" for part in THROWN_NOISE):
            self.errors.append(f"uncaught: {error}")

    def __enter__(self) -> NotebookPage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the kernel, and close the page without being asked to save."""
        self.evaluate("await panel.sessionContext.shutdown();")
        self.page.close()

    def evaluate(self, code: str, *, timeout_s: float = STARTS_WITHIN_S) -> Any:
        """Run the body of an asynchronous JavaScript function; return what it returns.

        Playwright's own ``evaluate``, locators and expectations count as a gesture of the user: after any of them a
        page may play sound. This does not, nor do the methods that say so.
        """
        late = f"new Promise((_, fail) => setTimeout(() => fail(Error('not done after {timeout_s} s')), {timeout_s}e3))"
        job = f"Promise.race([{late}, (async () => {{ {PREPARED} {code} }})()])"
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": False}
        answer = self._devtools.send("Runtime.evaluate", {"expression": job, **options})
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{answer['exceptionDetails']['exception']['description']}, in the page running: {code}")
        return answer["result"].get("value")

    def _command(self, name: str, timeout_s: float = STARTS_WITHIN_S, **arguments: Any) -> None:
        self.evaluate(f"await app.commands.execute('{name}', {json.dumps(arguments)});", timeout_s=timeout_s)

    def _select(self, cell: int) -> None:
        self.evaluate(f"panel.content.deselectAll(); panel.content.activeCellIndex = {cell};")

    def _run(self, command: str, cells: slice, timeout_s: float) -> None:
        """Run `cells`; wait until they are done and the kernel idle; fail with the traceback of one that failed."""
        self.evaluate("await idle();")
        self._command(command, timeout_s)
        self.evaluate("await idle();")
        failed = [output for cell in self.outputs()[cells] for output in cell if output["output_type"] == "error"]
        assert not failed, strip_ansi("\n".join(failed[0]["traceback"]))

    def run_all(self, *, timeout_s: float = RUNS_WITHIN_S) -> None:
        """Run every cell. No gesture, as far as the browser knows."""
        self._run("notebook:run-all-cells", slice(None), timeout_s)

    def run_from(self, cell: int, *, timeout_s: float = RUNS_WITHIN_S) -> None:
        """Run a cell and those below it. No gesture."""
        self._select(cell)
        self._run("notebook:run-all-below", slice(cell, None), timeout_s)

    def run_cell(self, cell: int, *, timeout_s: float = RUNS_WITHIN_S) -> None:
        """Run one cell. No gesture."""
        self._select(cell)
        self._run("notebook:run-cell", slice(cell, cell + 1), timeout_s)

    def start_cell(self, cell: int) -> None:
        """Start a cell that is not to be waited for. No gesture."""
        self._select(cell)
        self.evaluate("app.commands.execute('notebook:run-cell');")

    def interrupt_kernel(self) -> None:
        """Interrupt what runs, and wait until the kernel is idle. No gesture."""
        self.evaluate("await panel.sessionContext.session.kernel.interrupt(); await idle();")

    def restart_kernel(self) -> None:
        """Restart the kernel, without the question that the menu asks first; outputs stay. No gesture."""
        self.evaluate("await panel.sessionContext.restartKernel(); await idle();")

    def save(self) -> nbformat.NotebookNode:
        """Save the notebook and return what the file holds."""
        self._command("docmanager:save")
        return nbformat.read(self.path, as_version=4)

    def outputs(self) -> list[list[dict[str, Any]]]:
        """Return the outputs of each cell, as they would be saved. No gesture."""
        return self.evaluate("return cells.map((cell) => cell.outputs?.toJSON() ?? []);")

    def trusted(self) -> list[bool]:
        """Tell of each cell whether its outputs are trusted; else JupyterLab sanitizes their HTML. No gesture."""
        return self.evaluate("return cells.map((cell) => cell.trusted);")

    def cell(self, cell: int) -> Locator:
        """Return the outputs of a cell, on the screen."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".jp-Cell-outputArea")

    def cell_text(self, cell: int) -> str:
        """Return the text that a cell put out, on the screen."""
        return "\n".join(self.cell(cell).locator(".jp-OutputArea-output").all_inner_texts()).strip()

    def widget(self, test_id: str) -> Locator:
        """Return the element with the attribute ``data-testid=…``."""
        return self.page.get_by_test_id(test_id)

    def set_theme(self, theme: str) -> None:
        """Change to the theme "light" or "dark"."""
        if self.page.locator("body").get_attribute("data-jp-theme-name") == THEMES[theme]:
            return
        self._command("apputils:change-theme", theme=THEMES[theme])
        self.page.wait_for_selector(f"body[data-jp-theme-name='{THEMES[theme]}']", state="attached")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def set_width(self, width: int) -> None:
        """Make the window `width` pixels wide."""
        self.page.set_viewport_size({"width": width, "height": self.page.viewport_size["height"]})
        self.evaluate("await new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)));")

    def screenshot(self, path: Path, selector: str | None = None) -> None:
        """Save a picture of the window, or of the first element that fits `selector`."""
        (self.page.locator(selector).first if selector else self.page).screenshot(path=path)

    def axe(self, selector: str) -> list[str]:
        """Return the serious and critical violations of accessibility rules that axe finds in an element."""
        assert self.page.locator(selector).count(), f"nothing fits {selector!r}: axe would find nothing wrong with it"
        found = Axe().run(self.page, selector, {"resultTypes": ["violations"]}).response["violations"]
        return [
            f"{violation['impact']}: {violation['help']}: {node['html']}"
            for violation in found
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]


class Lab:
    """A JupyterLab server of this Python in `folder`, and a browser; `stop` ends both."""

    def __init__(self, folder: Path, *, gesture_needed: bool = True) -> None:
        chromium = require("chromium")
        expect.set_options(timeout=1000 * ANSWERS_WITHIN_S)
        self.root = folder / "notebooks"
        self.root.mkdir()
        options = CHROMIUM_OPTIONS + [GESTURE_NEEDED] * gesture_needed
        with contextlib.ExitStack() as started:
            self._start_server(folder)
            started.callback(self._stop_server)
            playwright = started.enter_context(sync_playwright())
            self._browser = started.enter_context(playwright.chromium.launch(executable_path=chromium, args=options))
            self._context = self._browser.new_context()
            self._started = started.pop_all()

    def _start_server(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
        own = {name: str(folder / name.lower()) for name in names}
        others = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "PYTEST"))}
        path = os.pathsep.join([str(TESTS), str(TESTS.parent)])  # kernels can import what tests can, and this package
        environment = {**others, **own, "PYTHONPATH": path}
        for name, content in SETTINGS.items():
            settings = folder / f"jupyter_config_dir/lab/user-settings/@jupyterlab/{name}.jupyterlab-settings"
            settings.parent.mkdir(parents=True)
            settings.write_text(json.dumps(content))
        command = [sys.executable, "-m", "jupyterlab", *SERVER_OPTIONS, f"--ServerApp.port={port}"]
        self._log = folder / "server.log"
        with self._log.open("w") as log:
            self._server = subprocess.Popen(
                [*command, f"--ServerApp.root_dir={self.root}"], env=environment, stdout=log, stderr=log
            )
        self.address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                self._server.kill()
                raise RuntimeError(f"JupyterLab did not start:\n{self._log.read_text()[-4000:]}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.address}/api/status", timeout=5).status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def open(
        self,
        cells: list[str] | nbformat.NotebookNode,
        *,
        name: str = "test",
        front_end: str = "lab",
        width: int = 1280,
        height: int = 900,
        **context: Any,
    ) -> NotebookPage:
        """Write a notebook of code cells, or one that is given, and open it; nothing in it runs by itself.

        `front_end` is "lab", or "notebook" for Jupyter Notebook. With further options the page has a context of its
        own in the browser: ``has_touch=True`` gives it a touch screen.
        """
        if isinstance(cells, list):
            kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
            cells = nbformat.v4.new_notebook(
                cells=[nbformat.v4.new_code_cell(source) for source in cells], metadata={"kernelspec": kernel}
            )
        path = self.root / f"{name}.ipynb"
        nbformat.write(cells, path)
        page = self._browser.new_page(**context) if context else self._context.new_page()
        page.set_default_timeout(1000 * ANSWERS_WITHIN_S)
        page.set_viewport_size({"width": width, "height": height})
        notebook = NotebookPage(page, path)
        # A workspace of its own: else Lab goes to another address if the same workspace is open in another page.
        paths = {"lab": f"lab/workspaces/{name}/tree/{path.name}?reset", "notebook": f"notebooks/{path.name}"}
        page.goto(f"{self.address}/{paths[front_end]}")
        notebook.evaluate("await app.restored; app.shell.collapseLeft();")
        notebook.evaluate("await panel.sessionContext.ready; await idle();")  # else running asks for a kernel
        return notebook

    def stop(self) -> None:
        """Close the browser, and end the server with its kernels."""
        self._started.close()

    def _stop_server(self) -> None:
        self._server.terminate()
        try:
            self._server.wait(20)
        except subprocess.TimeoutExpired:
            self._server.kill()
