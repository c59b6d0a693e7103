"""The endless player: its Python side without a browser, its JavaScript side in node and in a real browser."""

import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import playwright
import pytest
import soundfile
from playwright.sync_api import expect

from browser import mount, open_page
from conftest import N_SAMPLES, RATE, tone
from riffusion_lab import Clip
from riffusion_lab.join import crossfade
from riffusion_lab.widgets import Live, session

CLIP_S = 2.56
EVIL = "<img src=x onerror='window.ran = true'>"


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """Make short tones instead of clips; `made.delay_s` says how long one takes, `made.error` fails."""

    class Made(list):
        delay_s, error = 0.0, None

    made = Made()

    def make_point(_pipe, point, _settings):
        time.sleep(made.delay_s)
        if made.error:
            raise made.error
        made.append(point)
        frequency_hz = round((200 + 110 * point.end.seed + 300 * point.alpha) * CLIP_S) / CLIP_S
        return Clip.from_audio(tone(frequency_hz, N_SAMPLES // 2, amplitude=0.3), RATE, loop=True)

    monkeypatch.setattr(session, "make_point", make_point)
    return made


@pytest.fixture
def live(pipe, tmp_path):
    live = Live(pipe, "piano", folder=tmp_path / "clips")
    live.sent = []
    live.send = lambda content, buffers=None: live.sent.append((content, buffers or []))
    yield live
    live.close()


@pytest.fixture
def page():
    with open_page() as page:
        yield page


def ask(live, **content):
    """What comes back for a message of the browser."""
    live.sent.clear()
    live._handle_custom_msg(content, [])
    return list(live.sent)


def poll_until_ready(live, n_clips=1, have=0):
    ask(live, kind="poll", have=have, begun=[])
    with live.session.changed:
        assert live.session.changed.wait_for(lambda: len(live.session.ready) >= n_clips, 30)
    return ask(live, kind="poll", have=have, begun=[])


# Python


def test_nothing_is_made_before_somebody_asks(live, made):
    ((facts, _),) = ask(live, kind="ready")
    assert facts["kind"] == "facts"
    assert (facts["sample_rate"], facts["strength"]) == (RATE, None)
    assert made == []
    assert repr(live) == "Live(Session('piano'))"


def test_polls_are_answered_with_status_and_the_clips_not_had_yet(live):
    (status, _), *clips = poll_until_ready(live, 2)
    assert status["kind"] == "status"
    assert json.loads(json.dumps(status)) == status
    assert [content["number"] for content, _ in clips] == [1, 2]
    (content, (pcm, png)), _ = clips
    assert content == {"kind": "clip", "number": 1, "label": "piano"}
    sound = np.frombuffer(pcm, "<i2") / 32_767
    np.testing.assert_allclose(sound, live.session.ready[0].clip.waveform[0], atol=0.5 / 32_767)
    assert png[:4] == b"\x89PNG"
    assert [content["number"] for content, _ in ask(live, kind="poll", have=1, begun=[1])[1:]] == [2]
    assert [point.alpha for point, _ in live.session.heard] == [0]


@pytest.mark.parametrize("text", ["", " ", "x" * 10_000, None, 3])
def test_a_bad_prompt_is_refused_in_words(live, text):
    ((content, _),) = ask(live, kind="prompt", text=text)
    assert content["kind"] == "refused"
    assert "prompt" in content["text"]
    assert live.session.status["queue"] == []


def test_settings_are_changed_and_bad_ones_refused(live):
    assert ask(live, kind="change", guidance_scale=5) == []
    assert live.session.guidance_scale == 5
    for bad in ({"guidance_scale": "much"}, {"guidance_scale": -1}, {"nonsense": 1}):
        ((content, _),) = ask(live, kind="change", **bad)
        assert content["kind"] == "refused"
    assert live.session.guidance_scale == 5


def test_unknown_messages_are_passed_over(live):
    assert ask(live, kind="nonsense") == []
    assert ask(live) == []


def test_recording_and_recipe_are_kept_in_files(live):
    poll_until_ready(live, 2)
    ask(live, kind="record", on=True)
    ask(live, kind="poll", have=2, begun=[1, 2])
    ((content, _),) = ask(live, kind="record", on=False)
    path = Path(content["text"].removeprefix("Recorded: "))
    assert path.parent == live.folder
    assert soundfile.info(path).frames == N_SAMPLES  # two halves
    ((content, _),) = ask(live, kind="keep")
    (recipe,) = live.folder.glob("*.json")
    assert str(recipe) in content["text"]
    assert json.loads(recipe.read_text())["heard"][0]["times"] == 1
    assert ask(live, kind="record", on=False) == []


def test_closing_ends_the_thread(live):
    poll_until_ready(live)
    live.close()
    live.session._thread.join(10)
    assert not live.session._thread.is_alive()


# JavaScript in node


def test_joins_in_node(tmp_path):
    module = tmp_path / "live.mjs"
    module.write_text(str(Live._esm), encoding="utf-8")
    node = next((Path(playwright.__file__).parent / "driver").glob("node*"))
    environment = os.environ | {"LIVE_MODULE": str(module)}
    tests = Path(__file__).with_name("live.test.mjs")
    run = subprocess.run([node, "--test", tests], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert "fail 0" in run.stdout


# JavaScript in a browser

RENDER = """async ([script, sounds, order, fade]) => {
    const url = URL.createObjectURL(new Blob([script], {type: "text/javascript"}));
    const {crossfade, makeTimeline} = await import(url);
    const clips = sounds.map((samples, i) => ({number: i + 1, samples: Float32Array.from(samples)}));
    const context = new OfflineAudioContext(1, 44100 * 6, 44100);
    const line = makeTimeline(context, context.destination, fade);
    for (const i of order) line.add(clips[i]);
    const heard = await context.startRendering();
    return [[...heard.getChannelData(0)], [...crossfade(clips[0].samples, clips[1].samples, fade)]];
}"""


def test_what_the_browser_renders_has_no_bad_sample(page):
    rng = np.random.default_rng(0)
    sounds = np.float32(rng.uniform(-0.3, 0.3, (2, RATE)) + tone(100, RATE))
    fade, order = 1323, [0, 0, 1, 0]
    heard, joined = map(np.array, page.evaluate(RENDER, [str(Live._esm), sounds.tolist(), order, fade]))
    np.testing.assert_allclose(joined, crossfade(sounds[:1], sounds[1:], fade)[0], atol=1e-6)  # as in Python
    begin = round(0.05 * RATE)
    silence = np.zeros_like(sounds[:1])
    a, b = sounds[:1], sounds[1:]
    joins = [crossfade(before, after, fade)[0] for before, after in ((silence, a), (a, b), (b, a))]
    wanted = np.concatenate([joins[0], sounds[0], *joins[1:]])
    bad = np.abs(heard[begin : begin + len(wanted)] - wanted) > 1e-6
    assert bad.sum() == 0
    assert not heard[:begin].any()


def mounted(page, live, n_views=1):
    del live.send  # of the fixture; `mount` puts its own there
    mount(page, live, n_views=n_views)
    return page.locator("#view0")


def number(view, name):
    return float(view.get_attribute(f"data-{name}"))


def wait_until(page, reached, timeout_s=5):
    """Let messages come until `reached()`: the kernel hears of a clip half a second after it began at the latest."""
    end = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < end, f"not reached within {timeout_s} s"
        page.wait_for_timeout(50)


def test_it_plays_on_from_clip_to_clip(page, live):
    view = mounted(page, live, n_views=2)
    page.locator("#view0 [data-testid=rl-play]").click()
    expect(view).to_have_attribute("data-state", "playing", timeout=10_000)
    page.wait_for_function("view0.dataset.clip >= 3", timeout=20_000)
    assert number(view, "underruns") == 0
    assert number(view, "joins") >= 2
    assert number(view, "ctx-time") > 2 * CLIP_S
    largest_step = 2 * np.pi * 0.3 * 1500 / RATE
    assert number(view, "jump") < 2 * largest_step
    assert page.evaluate("view0.dataset.clip === view1.dataset.clip")  # one sound, two views
    wait_until(page, lambda: len(live.session.heard) >= 3)


def test_pausing_holds_the_clock_and_the_kernel(page, live, made):
    view = mounted(page, live)
    play = page.locator("[data-testid=rl-play]")
    play.click()
    expect(view).to_have_attribute("data-state", "playing", timeout=10_000)
    play.click()
    expect(view).to_have_attribute("data-state", "paused")
    before, n_made = number(view, "ctx-time"), len(made)
    page.wait_for_timeout(1500)
    assert number(view, "ctx-time") == pytest.approx(before, abs=0.05)
    assert len(made) <= n_made + live.session.ahead
    play.click()
    page.wait_for_function(f"view0.dataset.ctxTime > {before + 1}", timeout=10_000)
    assert number(view, "underruns") == 0


# Click when the view's time, which is written twice a second, is new; gives that time.
ADD_AT_A_KNOWN_TIME = """() => new Promise((tell) => {
    const observer = new MutationObserver(() => {
        observer.disconnect();
        document.querySelector("[data-testid=rl-add]").click();
        tell(Number(view0.dataset.ctxTime));
    });
    observer.observe(view0, {attributeFilter: ["data-ctx-time"]});
})"""


def test_a_prompt_is_heard_within_two_clips(page, live):
    view = mounted(page, live)
    page.locator("[data-testid=rl-play]").click()
    page.wait_for_function("view0.dataset.clip >= 2", timeout=20_000)
    page.locator("[data-testid=rl-prompt]").fill("techno")
    asked_at = page.evaluate(ADD_AT_A_KNOWN_TIME)
    page.wait_for_function("view0.dataset.label.includes('techno')", timeout=20_000)
    assert 0 < number(view, "began") - asked_at < 2 * CLIP_S
    assert number(view, "underruns") == 0


def test_falling_behind_is_said_and_recovered_from(page, live, made):
    made.delay_s = 2 * CLIP_S
    view = mounted(page, live)
    page.locator("[data-testid=rl-play]").click()
    expect(page.locator("[data-testid=rl-status]")).to_contain_text("Falling behind", timeout=20_000)
    assert view.get_attribute("data-behind") == "true"
    made.delay_s = 0
    expect(view).to_have_attribute("data-behind", "false", timeout=20_000)
    assert number(view, "repeats") >= 1
    assert number(view, "underruns") == 0


def test_an_error_is_shown_and_the_music_goes_on(page, live, made):
    view = mounted(page, live)
    page.locator("[data-testid=rl-play]").click()
    page.wait_for_function("view0.dataset.clip >= 1", timeout=20_000)
    made.error = RuntimeError(EVIL)
    status = page.locator("[data-testid=rl-status]")
    expect(status).to_contain_text("onerror", timeout=20_000)
    page.wait_for_function("view0.dataset.repeats >= 1", timeout=20_000)
    made.error = None
    page.locator("[data-testid=rl-retry]").click()
    expect(status).not_to_contain_text("onerror", timeout=10_000)
    page.wait_for_function("view0.dataset.behind === 'false'", timeout=20_000)
    assert number(view, "underruns") == 0
    assert page.evaluate("window.ran") is None


def test_html_in_a_prompt_runs_no_script(page, live):
    mounted(page, live)
    page.locator("[data-testid=rl-play]").click()
    page.locator("[data-testid=rl-prompt]").fill(EVIL)
    page.keyboard.press("Enter")
    expect(page.locator("[data-testid=rl-now]")).to_contain_text("onerror", timeout=20_000)
    assert page.evaluate("window.ran") is None


def test_ten_quick_clicks_leave_nothing_stuck(page, live):
    view = mounted(page, live)
    for _ in range(9):
        page.locator("[data-testid=rl-play]").click()
    expect(view).to_have_attribute("data-state", "playing", timeout=10_000)
    for _ in range(10):
        page.locator("[data-testid=rl-prompt]").fill("techno")
        page.locator("[data-testid=rl-add]").click()
    page.wait_for_function("view0.dataset.label.includes('techno')", timeout=20_000)
    assert number(view, "underruns") == 0


def test_the_kernels_end_is_the_musics_end(page, live):
    view = mounted(page, live)
    page.locator("[data-testid=rl-play]").click()
    expect(view).to_have_attribute("data-state", "playing", timeout=10_000)
    page.evaluate("emit('comm_live_update')")
    expect(view).to_have_attribute("data-state", "ended")
    expect(page.locator("[data-testid=rl-status]")).to_contain_text("run the cell again")
    expect(page.locator("[data-testid=rl-play]")).to_be_disabled()


def test_when_its_last_view_goes_the_music_pauses(page, live):
    mounted(page, live)
    page.locator("[data-testid=rl-play]").click()
    page.wait_for_function("view0.dataset.state === 'playing'", timeout=10_000)
    page.evaluate("removers[0]()")
    page.wait_for_timeout(1800)
    before = len(live.session.heard)
    page.wait_for_timeout(round(1000 * CLIP_S) + 500)
    assert len(live.session.heard) == before
