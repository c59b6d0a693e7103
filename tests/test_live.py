"""The endless player: its Python side without a browser, its JavaScript side in node and in a real browser."""

import contextlib
import errno
import json
import os
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import playwright
import pytest
import soundfile
from playwright.sync_api import expect

from browser import (
    Finger,
    focused,
    middle_of,
    mount,
    open_page,
    set_slider,
    start_before,
    tab_through,
    tab_to,
    type_into,
)
from conftest import N_SAMPLES, RATE, tone
from riffusion_lab import Clip
from riffusion_lab import live as live_module
from riffusion_lab.join import crossfade
from riffusion_lab.seed_clips import seed_clip
from riffusion_lab.widgets import Live, MaskPainter, Player, Recorder
from riffusion_lab.widgets import live as live_widget

CLIP_S = 2.56
EVIL = "<img src=x onerror='window.ran = true'>"


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """Make short tones instead of clips; `made.delay_s` says how long one takes, `made.error` fails."""

    class Made(list):
        delay_s, error = 0.0, None

    made = Made()

    def generate_point(_pipe, point, _options):
        time.sleep(made.delay_s)
        if made.error:
            raise made.error
        made.append(point)
        frequency_hz = round((200 + 110 * point.end.seed + 300 * point.alpha) * CLIP_S) / CLIP_S
        return Clip.from_audio(tone(frequency_hz, N_SAMPLES // 2, amplitude=0.3), RATE, loop=True)

    monkeypatch.setattr(live_module, "generate_point", generate_point)
    return made


@pytest.fixture
def live(pipe, tmp_path):
    live = Live(pipe, "piano", folder=tmp_path / "clips")
    live.sent = []
    live.send = lambda content, buffers=None: live.sent.append((content, buffers or []))
    yield live
    live.close()


@pytest.fixture
def page(browser):
    with open_page(browser) as page:
        yield page


def ask(live, **content):
    """What comes back for a message of the browser: contents and buffers."""
    live.sent.clear()
    live._handle_custom_msg(content, [])
    return list(live.sent)


def act(live, **content):
    """What is said to an action of the user. The status comes behind it: in a pause nobody asks for it."""
    (answer, _), (status, _) = ask(live, **content)
    assert status["kind"] == "status"
    return answer["kind"], answer["text"]


def told(*numbers, cut_s=None):
    """What the browser tells of clips that have begun; the one before the last was cut after `cut_s` seconds."""
    return [{"number": number, "cut_s": cut_s if number == numbers[-1] else None} for number in numbers]


def stop_recording(live, *numbers, heard_s=None):
    """What is said to *Stop recording* after some clips have begun, the last one `heard_s` seconds ago."""
    return act(live, kind="record", on=False, begun=told(*numbers), heard_s=heard_s)


def poll_until_ready(live, n_clips=1, have=0):
    ask(live, kind="poll", poll=1, have=have, begun=[])
    with live.session.changed:
        assert live.session.changed.wait_for(lambda: len(live.session.ready) >= n_clips, 30)
    return ask(live, kind="poll", poll=2, have=have, begun=[])


# Python


def test_nothing_is_made_before_somebody_asks(live, made):
    ((facts, _),) = ask(live, kind="ready")
    assert facts["kind"] == "facts"
    assert (facts["sample_rate"], facts["strength"]) == (RATE, None)
    assert made == []
    assert repr(live) == "Live(Session('piano'))"


def test_polls_are_answered_with_status_and_the_clips_not_had_yet(live):
    (status, _), *clips, (end, _) = poll_until_ready(live, 2)
    assert status["kind"] == "status"
    assert json.loads(json.dumps(status)) == status
    assert end == {"kind": "answered", "poll": 2}  # behind all clips: then the next one may be sent
    assert [content["number"] for content, _ in clips] == [1, 2]
    (content, (pcm, png)), _ = clips
    eighths = [N_SAMPLES // 16 * i for i in range(1, 8)]  # no beat is named, nor heard in a tone
    joins = {"at_beat": False, "beats": eighths}
    assert content == {"kind": "clip", "number": 1, "label": "piano", **joins}
    sound = np.frombuffer(pcm, "<i2") / 32_767
    np.testing.assert_allclose(sound, live.session.ready[0].clip.waveform[0], atol=0.5 / 32_767)
    assert png[:4] == b"\x89PNG"
    answers = ask(live, kind="poll", poll=3, have=1, begun=told(1))
    assert [content["number"] for content, _ in answers[1:-1]] == [2]
    assert [point.alpha for point, _ in live.session.heard] == [0]


def test_a_poll_with_a_clip_that_is_not_at_hand_is_answered_all_the_same(live):
    poll_until_ready(live, 2)
    (refusal, _), (status, _), *_, (end, _) = ask(live, kind="poll", poll=3, have=2, begun=told(99, 1))
    assert (refusal["kind"], status["kind"]) == ("refused", "status")
    assert "99" in refusal["text"]
    assert end == {"kind": "answered", "poll": 3}
    assert len(live.session.heard) == 1  # what came behind the wrong one counts


@pytest.mark.parametrize("text", ["", " ", "x" * 10_000, None, 3])
def test_a_bad_prompt_is_refused_in_words(live, text):
    kind, words = act(live, kind="prompt", text=text)
    assert kind == "refused"
    assert "prompt" in words
    assert live.session.status["queue"] == []


def test_the_refusal_of_a_long_prompt_names_its_length_and_quotes_its_beginning(live):
    _, words = act(live, kind="prompt", text="x" * 10_000)
    assert "10,000 characters" in words
    assert len(words) < 200


def test_every_action_is_answered_in_words(live):
    assert act(live, kind="prompt", text="techno") == ("said", "Added: “techno”.")
    assert act(live, kind="prompt", text="jazz") == ("said", "Added: “jazz” (1 before it).")
    kind, words = act(live, kind="prompt", text="slow " * 700)
    assert kind == "said" and len(words) < 200
    assert act(live, kind="change", guidance_scale=5) == ("said", "From the next clip on: guidance scale 5.")
    assert act(live, kind="change", strength=0.25) == ("said", "From the next clip on: strength 0.25.")
    assert act(live, kind="retry") == ("said", "Trying again.")
    assert stop_recording(live) == ("said", "Nothing is being recorded.")
    assert live.session.guidance_scale == 5


def test_what_the_model_does_not_know_is_said_with_the_prompt(live):
    _, words = act(live, kind="prompt", text="pianos")
    assert words.startswith("Added: “pianos”.")
    assert "nearest: piano" in words


def test_bad_settings_are_refused(live):
    before = live.session.guidance_scale
    for bad in ({"guidance_scale": "much"}, {"guidance_scale": -1}, {"nonsense": 1}):
        kind, _ = act(live, kind="change", **bad)
        assert kind == "refused"
    assert live.session.guidance_scale == before


def test_prompts_are_moved_and_taken_out_and_seeds_held_in_words(live):
    numbers = [ask(live, kind="prompt", text=text, action=7)[0][0]["number"] for text in ("techno", "jazz")]
    assert act(live, kind="move", number=numbers[1], place=0) == ("said", "Moved.")
    assert [each.number for each in live.session.waiting] == numbers[::-1]
    assert act(live, kind="remove", number=numbers[0]) == ("said", "Taken out.")
    kind, words = act(live, kind="remove", number=numbers[0])
    assert (kind, words) == ("refused", f"prompt {numbers[0]} does not wait any more: it was heard, or taken out")
    assert act(live, kind="seed", seed="hold")[1].startswith("The seed is held")
    assert act(live, kind="seed", seed="wander")[1].startswith("Seeds wander")
    assert act(live, kind="seed", seed="next") == ("said", "Going to the next seed.")
    assert act(live, kind="move", number=1)[0] == act(live, kind="load")[0] == "refused"


def test_answers_name_the_action_and_the_window_that_asked(live):
    (answer, _), (status, _) = ask(live, kind="prompt", text="techno", action=3, listener="a")
    assert (answer["action"], answer["listener"], answer["number"]) == (3, "a", 1)
    assert "listener" not in status
    (answer, _), _ = ask(live, kind="prompt", text="", action=4, listener="a")
    assert (answer["kind"], answer["action"]) == ("refused", 4)


def test_the_tempo_that_was_chosen_goes_to_prompts_that_name_none(live):
    assert act(live, kind="prompt", text="techno", tempo_bpm=94)[1] == "Added: “techno, 94 bpm”."
    assert act(live, kind="prompt", text="jazz, 105 bpm", tempo_bpm=94)[1].startswith("Added: “jazz, 105 bpm”")


def test_the_greeting_brings_the_seed_clip_and_prompts_that_the_model_knows(live):
    ((facts, (pcm, png)),) = ask(live, kind="ready")
    assert facts["intro"] == {"label": "the seed clip “groove”", "beats": [N_SAMPLES // 8 * i for i in range(1, 8)]}
    np.testing.assert_allclose(np.frombuffer(pcm, "<i2") / 32_767, seed_clip("groove").waveform[0], atol=1 / 32_767)
    assert png[:4] == b"\x89PNG"
    assert facts["tempi_bpm"] == [94, 105, 141]
    assert len(facts["ideas"]) > 4
    for idea in facts["ideas"]:
        words, tempo = idea.rsplit(", ", 1)
        assert words in ("piano", "church bells", "techno", "jazz") and tempo in ("94 bpm", "105 bpm", "141 bpm")
    json.dumps(facts)


@pytest.mark.parametrize("intro", ["nothing", 3, Clip.from_audio(tone(441), RATE)])
def test_a_wrong_intro_is_refused(pipe, intro):
    with pytest.raises((TypeError, ValueError), match="intro"):
        Live(pipe, "piano", intro=intro)


def test_of_a_kernels_players_one_window_of_one_plays(live, pipe, tmp_path):
    def poll(widget, listener, **more):
        return [content["kind"] for content, _ in ask(widget, kind="poll", have=0, begun=[], listener=listener, **more)]

    assert poll(live, "a", starts=True)[0] == "status"
    assert poll(live, "b") == ["halted", "answered"]  # another window that has not begun
    assert poll(live, "b", starts=True)[0] == "status"
    assert poll(live, "a") == ["halted", "answered"]
    with contextlib.closing(Live(pipe, "jazz", folder=tmp_path)) as other:
        other.sent = []
        other.send = lambda content, buffers=None: other.sent.append((content, buffers or []))
        assert poll(other, "c", starts=True)[0] == "status"
        assert live.session.status["paused"]
        assert poll(live, "b") == ["halted", "answered"]
        assert poll(live, "b", starts=True)[0] == "status"
        assert other.session.status["paused"] and not live.session.status["paused"]


def test_kept_files_come_in_parts_and_no_others(live, monkeypatch):
    monkeypatch.setattr(live_widget, "PART_BYTES", 100)
    act(live, kind="keep")
    (path,) = live.folder.glob("*.json")
    got = b""
    while len(got) < path.stat().st_size:
        ((part, (data,)),) = ask(live, kind="download", name=path.name, start=len(got))
        assert part == {"kind": "part", "name": path.name, "start": len(got)}
        got += bytes(data)
    assert got == path.read_bytes()
    for name in ("../secret", str(path), None):
        ((refusal, _),) = ask(live, kind="download", name=name)
        assert refusal["kind"] == "refused"


def test_unknown_messages_are_passed_over(live):
    assert ask(live, kind="nonsense") == []
    assert ask(live) == []


def test_recording_and_recipe_are_kept_in_files(live):
    poll_until_ready(live, 2)
    act(live, kind="record", on=True)
    ask(live, kind="poll", poll=3, have=2, begun=told(1, 2))
    _, words = stop_recording(live)
    path = Path(words.removeprefix("Recorded: "))
    assert path.parent == live.folder
    assert soundfile.info(path).frames == N_SAMPLES  # two halves
    _, words = act(live, kind="keep")
    (recipe,) = live.folder.glob("*.json")
    assert str(recipe) in words
    assert json.loads(recipe.read_text())["heard"][0]["times"] == 1


def test_a_recording_that_cannot_begin_is_refused_in_words(live):
    live.folder.write_text("a file where the folder should be")
    kind, words = act(live, kind="record", on=True)
    assert kind == "refused"
    assert str(live.folder) in words
    assert live.session.status["recording"] == ""


def test_a_recording_that_fails_is_said_and_the_polls_go_on(live, monkeypatch):
    def write(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    poll_until_ready(live, 2)
    act(live, kind="record", on=True)
    ask(live, kind="poll", poll=3, have=2, begun=told(1, 2))  # the second begins: the first is written
    monkeypatch.setattr(soundfile.SoundFile, "write", write)
    (status, _), *_, (end, _) = ask(live, kind="poll", poll=4, have=2, begun=told(2))
    assert end == {"kind": "answered", "poll": 4}
    assert status["recording"] == ""
    (path,) = live.folder.glob("*.wav")
    assert str(path) in status["recording_error"]
    assert os.strerror(errno.ENOSPC) in status["recording_error"]
    assert soundfile.info(path).frames == N_SAMPLES // 2  # the first clip, whole
    assert [times for _, times in live.session.heard] == [1, 2]


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
    const clips = sounds.map((samples, i) => ({number: i + 1, samples: Float32Array.from(samples), beats: [22050]}));
    const context = new OfflineAudioContext(1, 44100 * 6, 44100);
    const line = makeTimeline(context, context.destination, fade);
    const steps = {off: () => line.takeOff(), cut: () => line.cutAtBeat()};
    for (const step of order) step in steps ? steps[step]() : line.add(clips[step]);
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


def test_what_the_browser_renders_of_a_cut_has_no_bad_sample(page):
    """Of the second clip, which is taken off and comes again, nothing is heard at its first place."""
    rng = np.random.default_rng(0)
    sounds = np.float32(rng.uniform(-0.3, 0.3, (2, RATE)) + tone(100, RATE))
    fade, beat, order = 1323, 22050, [0, 1, "off", "cut", 1, 0]
    heard, _ = map(np.array, page.evaluate(RENDER, [str(Live._esm), sounds.tolist(), order, fade]))
    begin = round(0.05 * RATE)
    a, b = sounds[:1], sounds[1:]
    cut = crossfade(np.zeros_like(a), a, fade)[0, :beat]
    wanted = np.concatenate([cut, crossfade(a[:, beat:], b, fade)[0], crossfade(b, a, fade)[0]])
    assert np.flatnonzero(np.abs(heard[begin : begin + len(wanted)] - wanted) > 1e-6).tolist() == []
    assert not heard[:begin].any() and not heard[begin + len(wanted) :].any()


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


# What is heard when Enter is pressed; the player's own function, which writes it, comes first.
NOTE_ENTER = """() => {
    const note = () => {
        const {ctxTime, began, clip} = view0.dataset;
        window.asked = {time: Number(ctxTime), began: Number(began), clip: Number(clip)};
    };
    document.addEventListener("keydown", ({key}) => { if (key === "Enter") setTimeout(note); }, true);
}"""
BEAT_S = CLIP_S / 4


def press_enter_amid_a_clip(page, prompt):
    """Type a prompt, press Enter when a clip has begun, and wait until the prompt is heard; what was heard at Enter."""
    type_into(page.get_by_test_id("rl-prompt"), prompt)
    page.evaluate("window.before = view0.dataset.clip")
    page.wait_for_function("view0.dataset.clip !== before", timeout=20_000)
    page.keyboard.press("Enter")
    page.wait_for_function(f"view0.dataset.label.includes('{prompt}')", timeout=20_000)
    return page.evaluate("asked")


def test_a_prompt_that_is_typed_amid_a_clip_is_heard_at_the_next_beat(page, pipe, tmp_path):
    """On a busy computer a clip may be made just in time for the end of another; not three times."""
    with contextlib.closing(Live(pipe, "piano, 94 bpm", folder=tmp_path)) as live:
        mount(page, live)
        view = page.locator("#view0")
        page.evaluate(NOTE_ENTER)
        page.get_by_test_id("rl-play").click()
        page.wait_for_function("view0.dataset.clip >= 1", timeout=20_000)
        places = []
        for prompt in ("techno, 94 bpm", "jazz, 94 bpm", "slow, 94 bpm"):
            asked = press_enter_amid_a_clip(page, prompt)
            began = number(view, "began")
            assert began > asked["time"]
            n_beats = round((began - asked["began"]) / BEAT_S)
            assert began == pytest.approx(asked["began"] + n_beats * BEAT_S, abs=0.0015)  # of times with three digits
            places.append(n_beats % 4)
            page.wait_for_function(f"view0.dataset.label === '{prompt}'", timeout=20_000)
            n_clips = (number(view, "began") - began) / CLIP_S
            assert n_clips == pytest.approx(max(1, round(n_clips)), abs=0.001)  # the next one waits for the end
        assert any(places), "never before the end of a clip"
        cut = [times % 1 for _, times in live.session.heard if times % 1]
        assert cut == [place / 4 for place in places if place]
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
    expect(status).to_have_class("rl-dim rl-error")
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
    type_into(page.get_by_test_id("rl-prompt"), EVIL)
    page.keyboard.press("Enter")
    expect(page.locator("[data-testid=rl-now]")).to_contain_text("onerror", timeout=20_000)
    assert page.evaluate("window.ran") is None


def test_ten_quick_clicks_leave_nothing_stuck(page, live):
    view = mounted(page, live)
    for _ in range(9):
        page.locator("[data-testid=rl-play]").click()
    expect(view).to_have_attribute("data-state", "playing", timeout=10_000)
    for _ in range(10):
        type_into(page.get_by_test_id("rl-prompt"), "techno")
        page.get_by_test_id("rl-add").click()
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


# By keys alone

ASK = ["rl-chip", "rl-prompt", "rl-add", "rl-dice", "rl-tempo", *(f"rl-example-{i}" for i in range(4))]
TOOLS = ["rl-play", "rl-record", "rl-keep", "rl-load", "rl-code", "rl-seed", "rl-next-seed"]
CONTROLS = ["rl-start", *ASK, *TOOLS, "rl-guidance", "rl-strength", "rl-volume"]


@pytest.fixture
def restyling(pipe, tmp_path):
    """A player with a seed clip, which has a slider more."""
    live = Live(pipe, "piano", folder=tmp_path / "clips", seed_clip=Clip.from_audio(tone(441), RATE, loop=True))
    live.sent = []
    live.send = None
    yield live
    live.close()


def test_tab_leads_through_every_control_and_out_again_both_ways(page, restyling):
    mounted(page, restyling)
    start_before(page)
    assert tab_through(page) == CONTROLS
    assert tab_through(page, back=True) == CONTROLS[::-1]


def test_it_is_played_by_keys_alone(page, restyling):
    view = mounted(page, restyling)
    page.evaluate("window.leaked = []; document.addEventListener('keydown', ({key}) => leaked.push(key))")
    press, said = page.keyboard.press, page.get_by_test_id("rl-said")
    start_before(page)
    tab_to(page, "rl-prompt")
    page.keyboard.type("church bellz")
    press("Backspace")
    page.keyboard.type("s")
    assert page.get_by_test_id("rl-prompt").input_value() == "church bells"
    press("Enter")
    expect(said).to_have_text("Added: “church bells”.")
    page.keyboard.type("jazz")  # in the place of the one that was added
    press("Tab")
    press("Enter")
    expect(said).to_contain_text("Added: “jazz”")
    tab_to(page, "rl-play")
    press("Space")
    expect(view).to_have_attribute("data-state", "playing", timeout=20_000)
    tab_to(page, "rl-record")
    press("Enter")
    expect(page.get_by_test_id("rl-record")).to_have_text("Stop recording")
    expect(said).to_have_text("Recording begins with the next clip.")
    press("Enter")
    expect(said).to_contain_text("Recorded: ")
    tab_to(page, "rl-keep")
    press("Space")
    expect(said).to_contain_text("Kept: ")
    tab_to(page, "rl-guidance")
    press("ArrowRight")
    expect(said).to_have_text("From the next clip on: guidance scale 4.5.")
    tab_to(page, "rl-strength")
    press("ArrowLeft")
    expect(said).to_have_text("From the next clip on: strength 0.7.")
    tab_to(page, "rl-volume")
    press("ArrowDown")
    wait_until(page, lambda: restyling.volume == pytest.approx(0.75))
    tab_to(page, "rl-play", back=True)
    press("Enter")
    expect(view).to_have_attribute("data-state", "paused")
    assert restyling.session.guidance_scale == 4.5 and restyling.session.strength == pytest.approx(0.7)
    assert set(page.evaluate("leaked")) <= {"Tab", "Shift"}  # those pressed on the button before it


def test_after_try_again_the_focus_stays_in_the_player(page, live, made):
    made.error = RuntimeError("out of memory")
    mounted(page, live)
    start_before(page)
    tab_to(page, "rl-play")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("rl-retry")).to_be_visible(timeout=10_000)
    made.error = None
    tab_to(page, "rl-retry")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("rl-said")).to_have_text("Trying again.")
    expect(page.get_by_test_id("rl-retry")).to_be_hidden()
    assert focused(page) == "rl-play"


def test_enter_that_picks_a_character_adds_no_prompt(page, live):
    """While an input method composes a word, Enter is its own."""
    mounted(page, live)
    page.get_by_test_id("rl-prompt").click()
    devtools = page.context.new_cdp_session(page)
    devtools.send("Input.imeSetComposition", {"text": "ピアノ", "selectionStart": 3, "selectionEnd": 3})
    page.keyboard.press("Enter")
    assert [message["kind"] for message in page.evaluate("kernel.sent")] == ["ready"]


# Prompts that wait


def prompts(page):
    """Texts and states of the chips."""
    read = """() => [...document.querySelectorAll(".rl-chip")].map(
        (chip) => [chip.querySelector(".rl-chip-text").textContent, chip.dataset.state])"""
    return [tuple(chip) for chip in page.evaluate(read)]


def texts(page):
    return [text for text, _ in prompts(page)]


def test_prompts_wait_as_chips_which_keys_and_the_pointer_move_and_take_out(page, live):
    mounted(page, live)
    assert texts(page) == ["piano"]  # the first one, before Play
    page.evaluate("kernel.isBusy = true")
    for text in ("techno", "jazz", "slow"):
        type_into(page.get_by_test_id("rl-prompt"), text)
        page.keyboard.press("Enter")
        assert (text, "sent") in prompts(page)  # at once, though the kernel does not answer
    page.evaluate("kernel.isBusy = false")
    wait_until(page, lambda: prompts(page) == [("techno", "next"), ("jazz", "later"), ("slow", "later")])
    page.locator(".rl-chip").first.click(position={"x": 4, "y": 4})  # beside its buttons
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Alt+ArrowRight")
    wait_until(page, lambda: texts(page) == ["techno", "slow", "jazz"])
    assert page.evaluate("document.activeElement.querySelector('.rl-chip-text').textContent") == "jazz"
    page.keyboard.press("Alt+ArrowLeft")
    page.keyboard.press("Alt+ArrowLeft")
    wait_until(page, lambda: [each.prompt.text for each in live.session.waiting] == ["jazz", "techno", "slow"])
    page.keyboard.press("Delete")
    wait_until(page, lambda: texts(page) == ["techno", "slow"])
    assert focused(page) == "rl-chip"  # the next one
    boxes = [chip.bounding_box() for chip in page.locator(".rl-chip-text").all()]
    page.mouse.move(boxes[1]["x"] + 5, boxes[1]["y"] + 8)
    page.mouse.down()
    page.mouse.move(boxes[0]["x"] - 10, boxes[0]["y"] + 8, steps=5)
    page.mouse.up()
    wait_until(page, lambda: [each.prompt.text for each in live.session.waiting] == ["slow", "techno"])
    page.locator(".rl-chip-drop").first.click()
    wait_until(page, lambda: [each.prompt.text for each in live.session.waiting] == ["techno"])


@pytest.fixture
def touched(browser):
    """A page with a touch screen."""
    with open_page(browser, has_touch=True, viewport={"width": 800, "height": 500}) as page:
        yield page


def with_prompts(page, live, *prompts):
    """Show the player with prompts that wait."""
    mounted(page, live)
    for text in prompts:
        live.session.add(text)
    type_into(page.get_by_test_id("rl-prompt"), "last")
    page.keyboard.press("Enter")
    wait_until(page, lambda: texts(page) == [*prompts, "last"])


LANDING = """() => [...document.querySelectorAll(".rl-chip")].map(({dataset}) => dataset.landing ?? "")"""


@pytest.mark.parametrize("hand", ["mouse", "finger"])
def test_while_a_chip_is_dragged_a_mark_shows_where_it_lands(request, live, hand):
    page = request.getfixturevalue("page" if hand == "mouse" else "touched")
    with_prompts(page, live, "techno", "jazz", "slow")
    grips = [middle_of(grip) for grip in page.locator(".rl-chip-grip").all()]
    places = [middle_of(text) for text in page.locator(".rl-chip-text").all()]
    if hand == "mouse":
        pointer = page.mouse
        pointer.move(*grips[0])
        pointer.down()
    else:
        pointer = Finger(page)
        pointer.down(*grips[0])
    pointer.move(*places[2], steps=8)
    assert page.evaluate(LANDING) == ["", "", "behind", ""]
    mark = page.locator(".rl-chip").nth(2).evaluate("(chip) => getComputedStyle(chip, '::before').backgroundColor")
    assert mark == page.locator("#view0").evaluate(ACCENT)
    pointer.move(*grips[0], steps=8)
    assert page.evaluate(LANDING) == ["", "", "", ""]  # where it was
    pointer.move(*places[1], steps=8)
    pointer.up()
    assert page.evaluate(LANDING) == ["", "", "", ""]
    wait_until(page, lambda: texts(page) == ["jazz", "techno", "slow", "last"])
    wait_until(page, lambda: [each.prompt.text for each in live.session.waiting] == ["jazz", "techno", "slow", "last"])


# The colour of the accent, as a browser writes it
ACCENT = """(view) => {
    const probe = view.appendChild(document.createElement("i"));
    probe.style.color = "var(--rl-accent)";
    const { color } = getComputedStyle(probe);
    probe.remove();
    return color;
}"""


def test_a_finger_plays_takes_out_and_scrolls(touched, live):
    """Beside its grip a chip is no handle: a finger there scrolls the page, as on the picture."""
    page, finger = touched, Finger(touched)
    page.evaluate("document.body.style.paddingBottom = '2000px'")
    with_prompts(page, live, "techno", "jazz")
    page.get_by_test_id("rl-prompts").scroll_into_view_if_needed()
    for start in (page.locator(".rl-chip-text").nth(1), page.get_by_test_id("rl-strip")):
        x, y = middle_of(start)
        before = page.evaluate("scrollY")
        finger.drag((x, y), (x, y - 60))
        page.wait_for_function(f"scrollY > {before} + 20")
    assert texts(page) == ["techno", "jazz", "last"]
    page.evaluate("scrollTo(0, 0)")
    page.get_by_role("button", name="Take out: jazz").tap()
    wait_until(page, lambda: [each.prompt.text for each in live.session.waiting] == ["techno", "last"])
    page.get_by_test_id("rl-start").tap()
    expect(page.locator("#view0")).to_have_attribute("data-state", "playing", timeout=10_000)


def test_eight_prompts_at_once_a_double_click_and_odd_texts(page, live):
    mounted(page, live)
    type_into(page.get_by_test_id("rl-prompt"), "techno")
    page.get_by_test_id("rl-add").dblclick()
    wait_until(page, lambda: texts(page) == ["techno"])
    for number in range(8):
        type_into(page.get_by_test_id("rl-prompt"), f"jazz {number}")
        page.keyboard.press("Enter")
    said = page.get_by_test_id("rl-said")
    expect(said).to_contain_text("8 prompts are already waiting")
    page.get_by_test_id("rl-dismiss").click()
    expect(said).not_to_contain_text("already waiting")
    assert len(texts(page)) == 8
    type_into(page.get_by_test_id("rl-prompt"), " ")
    page.keyboard.press("Enter")
    expect(said).to_contain_text("The box is empty")
    live.session.remove(live.session.waiting[0].number)
    type_into(page.get_by_test_id("rl-prompt"), "")
    page.keyboard.insert_text("🎉🎶")  # no key types them
    page.keyboard.press("Enter")
    expect(said).to_contain_text("Added: “🎉🎶”")
    assert page.evaluate("window.ran") is None


# The seed clip before the first clip, and what is kept


def test_play_sounds_within_a_second_and_the_first_clip_joins_on_the_beat(page, live, made):
    """Until the first clip is made a seed clip goes round, which is in no recording and counts as nothing."""
    made.delay_s = 3.0
    view = mounted(page, live)
    page.evaluate("window.pressed = 0; addEventListener('pointerdown', () => { pressed = performance.now(); }, true)")
    page.get_by_test_id("rl-start").click()
    page.wait_for_function("view0.dataset.began > 0 || view0.dataset.label")
    waited_s = page.evaluate("(performance.now() - pressed) / 1000")
    assert waited_s < 1, waited_s
    assert focused(page) == "rl-play"
    page.get_by_test_id("rl-record").click()
    expect(page.get_by_test_id("rl-now")).to_contain_text("seed clip “groove” (not generated)")
    expect(page.get_by_test_id("rl-status")).to_contain_text("Making the first clip")
    assert live.session.heard == []
    intro_began = number(view, "began")
    page.wait_for_function("view0.dataset.clip == 1", timeout=20_000)
    beat_s = 0.64
    n_beats = (number(view, "began") - intro_began) / beat_s
    assert n_beats == pytest.approx(round(n_beats), abs=0.01) and n_beats >= 1
    assert number(view, "repeats") == number(view, "joins") == number(view, "underruns") == 0
    wait_until(page, lambda: len(live.session.heard) == 1)
    made.delay_s = 0
    page.wait_for_function("view0.dataset.clip >= 2", timeout=20_000)
    expect(page.get_by_test_id("rl-timer")).to_have_text(re.compile(r"^0:\d\d$"))
    page.get_by_test_id("rl-record").click()
    link = page.get_by_test_id("rl-download")
    expect(link).to_contain_text(".wav")
    with page.expect_download() as download:
        link.click()
    (path,) = live.folder.glob("*.wav")
    assert Path(download.value.path()).read_bytes() == path.read_bytes()
    sound, _ = soundfile.read(path)
    first = live.session.recent[0].clip.waveform[0]
    np.testing.assert_allclose(sound[2000 : N_SAMPLES // 2], first[2000:], atol=1 / 32_767)  # nothing of the seed clip


def test_a_recipe_is_kept_loaded_and_played_the_same_and_copied_as_code(page, live, tmp_path):
    mounted(page, live)
    page.get_by_test_id("rl-play").click()
    page.wait_for_function("view0.dataset.clip >= 2", timeout=20_000)
    type_into(page.get_by_test_id("rl-prompt"), "techno")
    page.keyboard.press("Enter")
    page.wait_for_function("view0.dataset.label === 'techno'", timeout=20_000)
    page.get_by_test_id("rl-keep").click()
    expect(page.get_by_test_id("rl-said")).to_contain_text("Kept: ")
    (path,) = live.folder.glob("*.json")
    kept = json.loads(path.read_text())["heard"]
    n_heard = len(live.session.heard)
    page.get_by_test_id("rl-file").set_input_files(path)
    expect(page.get_by_test_id("rl-said")).to_contain_text(f"Playing the recipe again: {len(kept)} clips")

    def is_heard_again():
        heard = live.session.recipe["heard"]
        return any(heard[i : i + len(kept)] == kept for i in range(n_heard, len(heard)))

    wait_until(page, is_heard_again, timeout_s=60)
    (tmp_path / "bad.json").write_text("[1, 2")
    page.get_by_test_id("rl-file").set_input_files(tmp_path / "bad.json")
    expect(page.get_by_test_id("rl-said")).to_contain_text("no recipe")
    page.get_by_test_id("rl-code").click()
    expect(page.get_by_test_id("rl-codetext")).to_have_value(live.session.code)
    expect(page.get_by_test_id("rl-said")).not_to_contain_text("no recipe")  # this action succeeded


# What is said


def test_what_is_said_is_seen_beside_what_goes_on(page, live, made):
    made.delay_s = 2 * CLIP_S
    mounted(page, live)
    page.get_by_test_id("rl-play").click()
    status, said = page.get_by_test_id("rl-status"), page.get_by_test_id("rl-said")
    expect(status).to_contain_text("Falling behind", timeout=20_000)
    page.get_by_test_id("rl-prompt").click()
    page.keyboard.insert_text("x" * 10_000)
    page.keyboard.press("Enter")
    expect(said).to_contain_text("10,000 characters")
    page.wait_for_timeout(1500)  # three polls: it stays
    expect(said).to_contain_text("10,000 characters")
    expect(status).to_contain_text("Falling behind")
    type_into(page.get_by_test_id("rl-prompt"), "techno")
    page.keyboard.press("Enter")
    expect(said).to_have_text("Added: “techno”.")


def test_a_pause_is_said_and_what_is_done_in_it_answered(page, live):
    mounted(page, live)
    play = page.get_by_test_id("rl-play")
    play.click()
    page.wait_for_function("view0.dataset.clip >= 1", timeout=20_000)
    play.click()
    status, said = page.get_by_test_id("rl-status"), page.get_by_test_id("rl-said")
    expect(status).to_contain_text("Paused")
    type_into(page.get_by_test_id("rl-prompt"), "techno")
    page.keyboard.press("Enter")
    expect(said).to_have_text("Added: “techno”.")
    for prompt in ("jazz", "slow"):
        type_into(page.get_by_test_id("rl-prompt"), prompt)
        page.keyboard.press("Enter")
    expect(page.get_by_test_id("rl-prompts")).to_contain_text("slow")  # the queue too, though nobody polls
    expect(status).to_contain_text("Paused")
    set_slider(page.get_by_test_id("rl-guidance"), 7)
    expect(said).to_have_text("From the next clip on: guidance scale 7.")
    wait_until(page, lambda: live.session.guidance_scale == 7)


def test_a_recording_that_fails_is_said_once(page, live, monkeypatch):
    def write(*_):
        raise soundfile.LibsndfileError(2)

    mounted(page, live)
    page.get_by_test_id("rl-play").click()
    page.wait_for_function("view0.dataset.clip >= 1", timeout=20_000)
    monkeypatch.setattr(soundfile.SoundFile, "write", write)
    page.get_by_test_id("rl-record").click()
    said = page.get_by_test_id("rl-said")
    expect(said).to_contain_text("is the disk full?", timeout=10_000)
    expect(page.get_by_test_id("rl-record")).to_have_text("Record")
    page.get_by_test_id("rl-keep").click()
    expect(said).to_contain_text("Kept: ")
    page.wait_for_timeout(1500)
    expect(said).to_contain_text("Kept: ")  # and not the error again
    heard = len(live.session.heard)
    wait_until(page, lambda: len(live.session.heard) > heard)


# The layout


def places(page, view=0):
    """Where the controls of a view are, and how large, in pixels from its upper left corner."""
    return page.evaluate(
        """(view) => {
            const {left, top} = view.getBoundingClientRect();
            const nodes = view.querySelectorAll("button, input, canvas, .rl-plot, .rl-bar, .rl-title");
            return [...nodes].filter((node) => !node.closest(".rl-chip")).map((node) => {
                const box = node.getBoundingClientRect();
                return [node.dataset.testid ?? node.className, box.left - left, box.top - top, box.width, box.height];
            });
        }""",
        page.locator(f"#view{view}").element_handle(),
    )


@pytest.mark.parametrize("text", ["x" * 10_000, "x" * 4_000, "techno " * 570])
def test_a_pasted_book_moves_no_control(page, live, text):
    mounted(page, live)
    before = places(page)
    page.get_by_test_id("rl-play").click()
    page.wait_for_function("view0.dataset.clip >= 1", timeout=20_000)
    for _ in range(3):
        page.get_by_test_id("rl-prompt").click()
        page.keyboard.insert_text(text)
        page.keyboard.press("Enter")
    expect(page.get_by_test_id("rl-said")).not_to_be_empty()
    assert places(page) == before
    if len(text) <= 4_000:
        expect(page.get_by_test_id("rl-now")).to_contain_text(text[:20], timeout=20_000)
        assert places(page) == before
    height = page.locator("#view0").bounding_box()["height"]
    assert height < 600  # nor does it push away what comes below


def test_a_pasted_book_comes_from_the_clipboard(page, live):
    """What the browser's own paste command brings is whole: a silent cut would be heard as another prompt."""
    mounted(page, live)
    prompt = page.get_by_test_id("rl-prompt")
    prompt.click()
    page.keyboard.insert_text("x" * 10_000)
    for keys in ("ControlOrMeta+A", "ControlOrMeta+X", "ControlOrMeta+V"):
        page.keyboard.press(keys)
    assert len(prompt.input_value()) == 10_000
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("rl-said")).to_contain_text("10,000 characters")


@pytest.mark.parametrize("is_first", [True, False])
def test_other_widgets_in_the_page_change_no_layout(page, live, is_first):
    clip = Clip.from_audio(tone(441, RATE), RATE)
    del live.send
    widgets = [live, Player(clip), MaskPainter(clip), Recorder()][:: 1 if is_first else -1]
    alone = {}
    for i, widget in enumerate(widgets):
        mount(page, widget)
        alone[i] = places(page, i)
    for i, widget in enumerate(widgets):
        assert places(page, i) == alone[i], type(widget).__name__


# A busy kernel


def test_a_busy_kernel_gets_one_poll_and_sends_no_clip_twice(page, live):
    view = mounted(page, live)
    page.get_by_test_id("rl-play").click()
    page.wait_for_function("view0.dataset.clip >= 2", timeout=20_000)
    page.evaluate("kernel.isBusy = true")
    expect(page.get_by_test_id("rl-status")).to_contain_text("The kernel is busy", timeout=10_000)
    page.wait_for_timeout(2_000)
    n_waiting = page.evaluate("kernel.nWaiting")
    n_heard = len(live.session.heard)
    page.evaluate("kernel.isBusy = false")
    expect(page.get_by_test_id("rl-status")).not_to_contain_text("busy")
    assert n_waiting == 1
    page.wait_for_function("kernel.clips.length > 0 && view0.dataset.behind === 'false'", timeout=20_000)
    came = page.evaluate("kernel.clips")
    assert len(came) == len(set(came)), came
    assert number(view, "underruns") == 0
    # each round of the last clip is told, though the kernel heard of none while it was busy
    wait_until(page, lambda: sum(times for _, times in live.session.heard) == number(view, "joins") + 1 + repeats(view))
    assert len(live.session.heard) > n_heard
    page.evaluate("kernel.sent.length = 0")
    page.wait_for_timeout(3_000)
    assert 3 <= page.evaluate("kernel.sent.length") <= 7  # one loop: twice a second


def repeats(view):
    return number(view, "repeats")


def test_what_is_asked_of_a_busy_kernel_is_said_to_be_on_its_way(page, live):
    mounted(page, live)
    page.evaluate("kernel.isBusy = true")
    type_into(page.get_by_test_id("rl-prompt"), "techno")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("rl-said")).to_have_text("Sent. The kernel has not answered yet.")
    page.evaluate("kernel.isBusy = false")
    expect(page.get_by_test_id("rl-said")).to_have_text("Added: “techno”.")


def test_a_poll_that_is_lost_is_followed_by_another_and_its_late_answer_by_none(page, live):
    """The page's clock is put forward by more than a minute: no test waits that long."""
    view = mounted(page, live)
    page.get_by_test_id("rl-play").click()
    page.wait_for_function("view0.dataset.clip >= 1", timeout=20_000)
    page.evaluate("kernel.isBusy = true")
    page.wait_for_function("kernel.nWaiting === 1")
    page.evaluate("() => { const now = Date.now; Date.now = () => now() + 61_000; }")
    page.wait_for_function("kernel.nWaiting === 2")
    expect(page.get_by_test_id("rl-status")).to_contain_text("The kernel does not answer")
    page.evaluate("kernel.isBusy = false; kernel.sent.length = 0")
    page.wait_for_function("kernel.sent.length > 2")  # it goes on
    page.evaluate("kernel.sent.length = 0")
    page.wait_for_timeout(3_000)
    assert 3 <= page.evaluate("kernel.sent.length") <= 7  # one loop, not two
    assert number(view, "underruns") == 0


# Several players in a page, and a page that loses sounds


def test_a_page_that_loses_the_bytes_of_sounds_says_where_they_play(page, live):
    del live.send
    mount(page, live, loses_bytes=True)
    page.get_by_test_id("rl-play").click()
    expect(page.get_by_test_id("rl-status")).to_contain_text("It plays in JupyterLab", timeout=30_000)
    expect(page.locator("#view0")).to_have_attribute("data-state", "ended")


def test_a_player_that_begins_pauses_the_other(page, live, pipe, tmp_path):
    first = mounted(page, live, n_views=2)
    other = Live(pipe, "jazz", folder=tmp_path)
    mount(page, other)
    second = page.locator("#view2")
    first.get_by_test_id("rl-play").click()
    expect(first).to_have_attribute("data-state", "playing", timeout=20_000)
    page.evaluate("removers[0]()")  # as when its cell runs again; the second view stays
    second.get_by_test_id("rl-play").click()
    expect(second).to_have_attribute("data-state", "playing", timeout=20_000)
    old = page.locator("#view1")
    expect(old).to_have_attribute("data-state", "paused")
    expect(old.get_by_test_id("rl-status")).to_have_text("Paused: another Live on this page began to play.")
    heard = len(live.session.heard)
    page.wait_for_timeout(round(1000 * CLIP_S) + 1000)
    assert len(live.session.heard) == heard
    old.get_by_test_id("rl-play").click()  # and back
    expect(old).to_have_attribute("data-state", "playing", timeout=20_000)
    expect(second).to_have_attribute("data-state", "paused")
    other.close()
