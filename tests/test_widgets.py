"""The widgets: their Python side without a browser, their JavaScript side in a real one."""

import re

import numpy as np
import pytest

from browser import open_page
from conftest import RATE, tone
from riffusion_lab.widgets import Recorder

# What a widget's JavaScript knows of its Python side, and what it has sent there
MODEL = """
const handlers = [];
window.sent = [];
window.model = {
  get: (name) => ({longest_s: 1})[name],
  on: (_, handler) => handlers.push(handler),
  off: (_, handler) => handlers.splice(handlers.indexOf(handler), 1),
  send: (content, callbacks, buffers) => sent.push({...content, samples: [...new Float32Array(buffers[0])]}),
};
window.answer = (message) => handlers.forEach((handler) => handler(message));
"""
SHOW = """(script) => import(URL.createObjectURL(new Blob([script], {type: "text/javascript"}))).then((module) => {
    window.cleanup = module.default.render({model, el: document.getElementById("here")});
})"""


@pytest.fixture
def page():
    """An empty page, in a browser with a beeping microphone."""
    with open_page() as page:
        page.evaluate(MODEL)
        yield page


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


def test_recorder_records_in_a_browser(page):
    page.evaluate(SHOW, Recorder()._esm)
    button, here = page.get_by_role("button"), page.locator("#here")
    button.click()
    page.wait_for_selector("#here[data-state=recording]")
    assert button.text_content() == "Stop"
    page.wait_for_function("sent.length == 1")  # stops by itself after `longest_s`
    sent = page.evaluate("sent[0]")
    assert sent["kind"] == "recorded" and sent["sample_rate"] >= 8_000
    assert 0.5 < len(sent["samples"]) / sent["sample_rate"] < 2
    assert np.abs(sent["samples"]).max() > 0.01  # Chromium's microphone beeps
    page.evaluate("""answer({kind: "refused", reason: "<b>no</b>"})""")
    assert page.get_by_role("status").text_content() == "<b>no</b>"
    assert here.get_attribute("data-state") == "ready" and button.text_content() == "Record"


def test_recorder_says_why_there_is_no_microphone(page):
    page.evaluate("""() => {
        navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error("denied"));
    }""")
    page.evaluate(SHOW, Recorder()._esm)
    page.get_by_role("button").click()
    page.wait_for_selector("#here[data-state=ready]")
    assert page.get_by_role("status").text_content() == "The microphone cannot be used: denied"
