"""A real kernel with Google Colab's versions, and a front end in a few lines: ``make test-colab`` runs this.

The front end does with a kernel what the JavaScript of a widget does through Jupyter's protocol: it opens no window,
but sends the same messages and gets the same replies, with their buffers. Colab shows a reply only if its parent is
the message that it answers, so the others are left out here as well.

Run as a program it makes one virtual environment find in another what it does not have itself.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PINS = Path(__file__).parent / "colab_constraints.txt"
ANSWERS_WITHIN_S = 60
Message = dict[str, Any]
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def pinned_versions() -> dict[str, str]:
    """Return the version of each package in colab_constraints.txt."""
    lines = [line for line in PINS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def borrow_packages(environment: str) -> None:
    """Let the virtual environment at `environment` find the packages of this one behind its own."""
    folder = sysconfig.get_path("purelib", vars={"base": os.path.abspath(environment)})
    borrow = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    Path(folder, "borrowed.pth").write_text(borrow, encoding="utf-8")


class Reply(NamedTuple):
    """A custom message from a widget: what it says and the bytes that come with it."""

    content: Message
    buffers: list[bytes]


class FrontEnd:
    """A kernel of this Python, and what a notebook page does with it."""

    def __init__(self) -> None:
        from jupyter_client.manager import start_new_kernel

        self._manager, self._client = start_new_kernel(kernel_name="python3")
        self.states: dict[str, Message] = {}  # of each widget by its id: what it began with

    def stop(self) -> None:
        """End the kernel."""
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def _answers(self, request: str) -> Iterator[Message]:
        """Yield what the kernel publishes in answer to a request, until it says that it is idle again."""
        while True:
            message = self._client.get_iopub_msg(timeout=ANSWERS_WITHIN_S)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["content"].get("execution_state") == "idle":
                return
            if message["msg_type"] == "comm_open":
                self.states[message["content"]["comm_id"]] = message["content"]["data"]["state"]
            yield message

    def run(self, code: str) -> list[Message]:
        """Run a cell; return what it published. An error in it is one here."""
        messages = list(self._answers(self._client.execute(code)))
        errors = [message["content"] for message in messages if message["msg_type"] == "error"]
        assert not errors, "\n".join(errors[0]["traceback"])
        return messages

    def printed(self, code: str) -> str:
        """Run a cell; return what it printed."""
        streams = [message["content"] for message in self.run(code) if message["msg_type"] == "stream"]
        return "".join(stream["text"] for stream in streams if stream["name"] == "stdout").strip()

    def show(self, code: str) -> str:
        """Run a cell that displays one widget; return the widget's id."""
        data = [message["content"].get("data", {}) for message in self.run(code)]
        shown = [bundle[WIDGET_VIEW]["model_id"] for bundle in data if WIDGET_VIEW in bundle]
        assert len(shown) == 1, f"{len(shown)} widgets are shown by: {code}"
        return shown[0]

    def send(self, model: str, content: Message, buffers: Sequence[bytes] = ()) -> list[Reply]:
        """Do as ``model.send(content, undefined, buffers)`` in JavaScript; return the replies."""
        session = self._client.session
        data = {"method": "custom", "content": content}
        message = session.msg("comm_msg", {"comm_id": model, "data": data})
        session.send(self._client.shell_channel.socket, message, buffers=list(buffers))
        return [
            Reply(answer["content"]["data"]["content"], [bytes(buffer) for buffer in answer["buffers"]])
            for answer in self._answers(message["header"]["msg_id"])
            if answer["msg_type"] == "comm_msg"
            and answer["content"]["comm_id"] == model
            and answer["content"]["data"]["method"] == "custom"
        ]


@pytest.fixture(scope="module")
def front_end(tmp_path_factory):
    """A kernel that the tests of this file share, apart from everything the user has set up."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(PINS.parent), os.environ.get("PYTHONPATH", "")]))  # for `tiny`
        front_end = FrontEnd()
        yield front_end
        front_end.stop()


def test_kernel_has_the_versions_of_colab(front_end):
    pins = pinned_versions()
    assert len(pins) > 5
    code = f"import importlib.metadata, json; print(json.dumps([importlib.metadata.version(n) for n in {list(pins)}]))"
    assert json.loads(front_end.printed(code)) == list(pins.values())
    assert front_end.printed("import IPython; print(IPython.__version__)") == pins["ipython"]
    assert front_end.printed("import sys; print(sys.prefix)") == sys.prefix


def test_clip_is_shown(front_end):
    code = "import numpy\nfrom riffusion_lab import Clip\nClip.from_audio(numpy.sin(numpy.arange(44_100) / 10), 44_100)"
    (shown,) = [message for message in front_end.run(code) if message["msg_type"] == "execute_result"]
    assert '<audio controls preload="none" src="data:audio/mpeg;base64,' in shown["content"]["data"]["text/html"]


def test_recorder_takes_a_recording(front_end):
    model = front_end.show("from riffusion_lab.widgets import Recorder\nrecorder = Recorder()\nrecorder")
    state = front_end.states[model]
    assert state["_model_module"] == "anywidget" and "export default" in state["_esm"]
    rate = 16_000
    samples = bytes(4 * rate)  # one second of float32 zeros
    replies = front_end.send(model, {"kind": "recorded", "sample_rate": rate}, [samples])
    assert replies == [({"kind": "taken", "duration_s": 1.0}, [])]
    assert front_end.printed("print(recorder.clip)") == "Clip(1.00 s, 44100 Hz, mono)"
    (refusal,) = front_end.send(model, {"kind": "recorded", "sample_rate": rate}, [b""])
    assert refusal.content["kind"] == "refused"


@pytest.mark.parametrize(
    ("made", "greeting", "n_buffers"),
    [("Player(clip)", "clip", 2), ("MaskPainter(clip)", "clip", 1), ("Live(pipe, 'piano')", "facts", 2)],
)
def test_widgets_greet_their_scripts(front_end, made, greeting, n_buffers):
    front_end.run(
        "import numpy\nfrom tiny import tiny_pipeline\nfrom riffusion_lab import Clip\n"
        "from riffusion_lab.widgets import Live, MaskPainter, Player\n"
        "clip = Clip.from_audio(numpy.sin(numpy.arange(44_100) / 10), 44_100)\npipe = tiny_pipeline()"
    )
    model = front_end.show(f"widget = {made}\nwidget")
    (reply,) = front_end.send(model, {"kind": "ready"})
    assert reply.content["kind"] == greeting
    assert len(reply.buffers) == n_buffers and all(reply.buffers)


def test_panels_answer_their_scripts(front_end):
    """The script of a panel is a widget of its own."""
    front_end.run("import ipywidgets\nfrom tiny import tiny_pipeline\nfrom riffusion_lab.widgets import Panel, Studio")
    for made in ("Panel([ipywidgets.Text()])", "Studio(tiny_pipeline(), prompt='piano')"):
        front_end.show(f"panel = {made}\npanel")
        scripts = "[each for each in panel.children if type(each).__name__ == 'PanelScript']"
        model = front_end.printed(f"print({scripts}[0].model_id)")
        assert [reply.content for reply in front_end.send(model, {"kind": "ping"})] == [{"kind": "pong"}]


def test_replies_bring_their_buffers(front_end):
    """What a player that asks for sound lives on: bytes go both ways, and come back as the answer to the question."""
    front_end.run(
        "import anywidget\n"
        "class Echo(anywidget.AnyWidget):\n"
        "    _esm = 'export default { render() {} }'\n"
        "echo = Echo()\n"
        "echo.on_msg(lambda widget, content, buffers: widget.send(content, [bytes(b)[::-1] for b in buffers]))"
    )
    model = front_end.show("echo")
    sound = os.urandom(450_000)  # a clip of 5 s
    assert front_end.send(model, {"kind": "poll"}, [sound]) == [({"kind": "poll"}, [sound[::-1]])]


if __name__ == "__main__":
    borrow_packages(sys.argv[1])
