"""The first thing that a new user sees: `make lab` opens notebook 00, and nothing is in the way."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from playwright.sync_api import expect, sync_playwright

import frame
import open_lab
from external import require
from lab import CHROMIUM_OPTIONS, STARTS_WITHIN_S

LINES_OF_LAB = 7  # with the three of `make lab` ten
LOOKED_AT_FOR_S = 10  # the question about news and the mark of a change come seconds after the notebook
# A tab of another folder, left open in the workspace that JupyterLab takes if it is told no other
STALE_WORKSPACE = {
    "data": {
        "layout-restorer:data": {
            "main": {
                "dock": {"type": "tab-area", "currentIndex": 0, "widgets": ["notebook:gone.ipynb"]},
                "current": "notebook:gone.ipynb",
            }
        },
        "notebook:gone.ipynb": {"data": {"path": "gone.ipynb", "factory": "Notebook"}},
    },
    "metadata": {"id": "default"},
}


def test_options_that_are_given_replace_ours():
    assert open_lab.command_line([]) == [f"{name}={value}" for name, value in open_lab.OPTIONS.items()]
    line = open_lab.command_line(["--no-browser", "--LabApp.default_url=/lab"])
    assert line[-2:] == ["--no-browser", "--LabApp.default_url=/lab"]
    assert sum(option.startswith("--LabApp.default_url") for option in line) == 1


@pytest.fixture
def clone(tmp_path):
    """A folder with what the first screen needs of the repository: JupyterLab writes checkpoints beside notebooks."""
    first = frame.lesson_path(frame.lessons()[0]).relative_to(frame.ROOT)
    (tmp_path / "clone" / first.parent).mkdir(parents=True)
    shutil.copy(frame.ROOT / first, tmp_path / "clone" / first)
    shutil.copytree(frame.TOOLS, tmp_path / "clone" / "tools")
    return tmp_path / "clone"


@pytest.fixture
def printed(clone, tmp_path):
    """What JupyterLab prints while it runs, line by line: started as the Makefile does, by a user without settings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    others = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "PYTEST"))}
    environment = {**others, **{name: str(tmp_path / name.lower()) for name in names}}
    workspace = tmp_path / "jupyter_config_dir/lab/workspaces/default-37a8.jupyterlab-workspace"
    workspace.parent.mkdir(parents=True)
    workspace.write_text(json.dumps(STALE_WORKSPACE))
    options = ["--no-browser", "--allow-root", f"--ServerApp.port={port}", "--LabApp.expose_app_in_browser=True"]
    server = subprocess.Popen(
        [sys.executable, "tools/open_lab.py", *options],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(server.stdout))
    reader.start()
    yield lines
    server.terminate()
    server.wait(30)
    reader.join(30)


def address_in(lines: list[str]) -> str:
    """Wait until JupyterLab has printed the address to visit, with its token; return it."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline:
        if found := re.search(r"http://127\.0\.0\.1\S*\?token=\w+", "".join(lines)):
            return found.group()
        time.sleep(0.1)
    raise TimeoutError(f"JupyterLab printed no address within {STARTS_WITHIN_S} s:\n{''.join(lines)}")


def test_first_screen_is_notebook_00(printed, tmp_path):
    chromium = require("chromium")
    expect.set_options(timeout=1000 * STARTS_WITHIN_S)
    address = address_in(printed)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        tab = page.locator("#jp-main-dock-panel .lm-TabBar-tab.jp-mod-current")
        expect(tab).to_contain_text("00_start_here.ipynb")
        expect(page.locator(".jp-Notebook-ExecutionIndicator").first).to_have_attribute("data-status", "idle")
        for _ in range(LOOKED_AT_FOR_S):
            page.wait_for_timeout(1000)
            assert page.locator(".jp-Dialog, .Toastify__toast").all_inner_texts() == []
        assert page.locator("#jp-main-dock-panel .lm-TabBar-tab").all_inner_texts() == ["00_start_here.ipynb"]
        assert "jp-mod-dirty" not in tab.get_attribute("class")
        page.screenshot(path=tmp_path / "first_screen.png")
        browser.close()
    assert len(printed) <= LINES_OF_LAB, "".join(printed)
