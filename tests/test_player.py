"""The player: its Python side without a browser, its JavaScript side in a real one."""

import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from browser import Finger, focused, mount, open_page, start_before, tab_through, tab_to, wait_for_python
from conftest import RATE, chirp, drum_loop, tone
from riffusion_lab import Clip, SpectrogramParams
from riffusion_lab.plot import FLOOR_DB, decibels
from riffusion_lab.widgets import Player, pictures
from riffusion_lab.widgets.base import NO_ERROR, WIDGET_VIEW
from riffusion_lab.widgets.player import file_stem

EVIL = "<img src=x onerror='window.ran = true'>"
# The one context of the page, but one that writes down what would be heard; it takes no time.
OFFLINE = """([channels, seconds, rate]) => {
    globalThis.riffusionLabAudio = new OfflineAudioContext(channels, seconds * rate, rate);
    riffusionLabAudio.resume = () => {};
}"""
RENDERED = """async () => {
    const sound = await riffusionLabAudio.startRendering();
    return Array.from({length: sound.numberOfChannels}, (_, channel) => [...sound.getChannelData(channel)]);
}"""


@pytest.fixture(scope="module")
def clip():
    return Clip.from_audio(drum_loop(), RATE, loop=True, recipe={"prompt": "Drums & bass, 94 bpm"})


@pytest.fixture
def page(browser):
    with open_page(browser) as page:
        yield page


def rounded(clip):
    """The samples as they travel: 16 bits."""
    return np.rint(clip.waveform * 32_767) / 32_767


def state(page, view=0):
    data = page.locator(f"#view{view}").evaluate("(el) => ({...el.dataset})")
    return data["state"], float(data["position"])


# Python


def test_clip_goes_out_when_the_script_is_ready(clip):
    player, sent = Player(clip), []
    player.send = lambda content, buffers=None: sent.append((content, buffers))
    player.clip = clip * 2
    assert sent == []  # nobody would hear it
    player.clip = clip
    player._handle_custom_msg({"kind": "ready"}, [])
    content, (png, pcm) = sent.pop()
    assert (content["kind"], content["title"], content["columns"], content["channels"]) == ("clip", clip.title, 512, 1)
    assert content["duration_s"] == 5.12 and content["sample_rate"] == RATE
    np.testing.assert_array_equal(np.frombuffer(pcm, "<i2"), np.rint(32_767 * clip.waveform[0]))
    assert Image.open(io.BytesIO(png)).size == (512, 512)
    player.clip = clip * 2
    assert sent.pop()[0]["columns"] == 1024


def test_sound_is_no_trait(clip):
    state = Player(clip).get_state()
    assert max(len(str(value)) for name, value in state.items() if name not in ("_esm", "_css")) < 200


def test_picture_shows_decibels_and_the_highest_frequency_on_top(clip):
    picture = Image.open(io.BytesIO(pictures.picture_png(clip)))
    levels = np.asarray(picture)[::-1] / 255 * -FLOOR_DB + FLOOR_DB
    np.testing.assert_allclose(levels, decibels(clip), atol=-FLOOR_DB / 255 / 2 + 1e-4)  # half a step of 256
    assert picture.getpalette()[:3] == [0, 0, 3] and picture.getpalette()[-3:] == [251, 252, 191]  # magma
    assert pictures.picture_png(clip) == pictures.picture_png(clip)


def test_picture_of_a_long_clip_stays_narrow_and_loses_no_peak(monkeypatch, clip):
    monkeypatch.setattr(pictures, "WIDEST", 100)
    picture = np.asarray(pictures.picture_image(clip))
    assert picture.shape == (512, 100)
    assert picture.max() == 255


def test_repr_is_stable(clip):
    assert repr(Player(clip)) == "Player(Clip(5.12 s, 44100 Hz, mono, loop))"


@pytest.mark.parametrize("value", [None, "drums.wav", np.zeros(9)])
def test_what_is_no_clip_is_refused_by_name(clip, value):
    words = f"Player shows a Clip, not the {type(value).__name__}.*from_audio"
    with pytest.raises(TypeError, match=words):
        Player(value)
    player = Player(clip)
    with pytest.raises(TypeError, match=words):
        player.clip = value
    assert player.clip is clip


def test_loop_is_as_the_clip_says_unless_told(clip):
    assert Player(clip).loop and not Player(clip, loop=False).loop
    player = Player(clip)
    player.clip = clip[0:1]
    assert not player.loop


@pytest.mark.parametrize("suffix", ["wav", "mp3", "png"])
def test_files_are_those_of_save(clip, tmp_path, suffix):
    player, sent = Player(clip), []
    player.send = lambda content, buffers=None: sent.append((content, buffers))
    player._handle_custom_msg({"kind": "save", "format": suffix}, [])
    clip.save(tmp_path / f"x.{suffix}")
    content, buffers = sent.pop()
    assert content["name"] == f"drums-bass-94-bpm.{suffix}"
    assert buffers == [(tmp_path / f"x.{suffix}").read_bytes()]
    player._handle_custom_msg({"kind": "save", "format": "../../x.py"}, [])
    assert sent == []


@pytest.mark.parametrize(
    ("title", "stem"),
    [("", "clip"), ("../../etc", "etc"), ("Ünruhig,  2!", "ünruhig-2"), ("???", "clip"), ("a" * 99, "a" * 60)],
)
def test_file_names_are_harmless(title, stem):
    assert file_stem(Clip.from_audio(tone(441, 4410), RATE, recipe={"prompt": title})) == stem


def test_display_is_a_figure_then_the_widget(clip, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data))
    player = Player(clip)
    player._ipython_display_()
    figure, widget = shown
    assert figure["text/html"] == f'<div class="rl-static">{NO_ERROR}{clip._repr_html_()}</div>'
    assert figure["text/plain"] == repr(player)
    (view,) = widget.items()  # nothing else: the figure says what there is to say
    assert view == (WIDGET_VIEW, {"version_major": 2, "version_minor": 0, "model_id": player.model_id})


# JavaScript


def test_clock_advances_after_a_click_and_stops_after_another(page, clip):
    mount(page, Player(clip))
    assert page.evaluate("globalThis.riffusionLabAudio") is None  # not before a gesture
    assert state(page) == ("ready", 0)
    button = page.get_by_test_id("rl-play")
    assert button.get_attribute("aria-label") == "Play"
    button.click()
    page.wait_for_function("Number(view0.dataset.position) > 0.5 && Number(view0.dataset.ctxTime) > 0.5")
    assert state(page)[0] == "playing" and button.get_attribute("aria-label") == "Pause"
    button.click()
    paused = state(page)
    assert paused[0] == "paused" and 0.5 < paused[1] < 5
    page.wait_for_timeout(200)
    assert state(page) == paused


@pytest.mark.parametrize("playing", [False, True])
def test_seek_lands_where_clicked(page, clip, playing):
    mount(page, Player(clip))
    if playing:
        page.get_by_test_id("rl-play").click()
    picture = page.get_by_test_id("rl-picture")
    area = picture.bounding_box()
    picture.click(position={"x": area["width"] * 0.75, "y": 50})
    where, position = state(page)
    assert where == ("playing" if playing else "ready")
    assert 3.84 - 0.02 <= position <= 3.84 + (0.5 if playing else 0.02)
    picture.hover(position={"x": area["width"] / 2, "y": area["height"] / 2})
    hz = clip.params.frequency_hz(255.5)
    assert page.get_by_test_id("rl-where").text_content() == f"2.56 s · {hz:,.0f} Hz"
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.25, area["y"] + 10, steps=3)
    assert state(page)[1] == pytest.approx(1.28, abs=0.02)  # the playhead is held
    page.mouse.up()
    assert 1.28 - 0.02 <= state(page)[1] <= 1.28 + (0.5 if playing else 0.02)


def test_a_finger_plays_and_seeks_and_scrolls_past_the_picture(browser, clip):
    with open_page(browser, has_touch=True, viewport={"width": 800, "height": 600}) as page:
        page.evaluate("document.body.style.paddingBottom = '2000px'")
        mount(page, Player(clip))
        view, finger = page.locator("#view0"), Finger(page)
        box = page.get_by_test_id("rl-picture").bounding_box()
        x = [box["x"] + share * box["width"] for share in (0.25, 0.5, 0.75)]
        y = box["y"] + box["height"] / 2
        at = lambda: float(view.get_attribute("data-position")) / clip.duration_s  # noqa: E731
        page.touchscreen.tap(x[0], y)
        assert at() == pytest.approx(0.25, abs=0.01)
        finger.drag((x[0], y), (x[2], y))
        assert at() == pytest.approx(0.75, abs=0.01)
        finger.drag((x[1], y), (x[1], y - 100))
        page.wait_for_function("scrollY > 30")
        assert at() == pytest.approx(0.75, abs=0.01)  # up and down it scrolls
        page.get_by_test_id("rl-play").tap()
        page.wait_for_selector("#view0[data-state=playing]")


@pytest.mark.parametrize("stereo", [False, True])
def test_loop_has_no_gap_and_two_views_play_once(page, stereo):
    """What is heard over two seams is the clip again and again, sample by sample: nothing doubled, nothing left out."""
    sound = np.stack([drum_loop(RATE), chirp(200, 2_000, RATE)])[: 1 + stereo]  # 1 s
    clip = Clip.from_audio(sound, RATE, params=SpectrogramParams(stereo=stereo), loop=True)
    mount(page, Player(clip), n_views=2)
    page.evaluate(OFFLINE, [1 + stereo, 2.5, RATE])
    page.locator("#view1").get_by_test_id("rl-play").click()
    assert state(page)[0] == state(page, 1)[0] == "playing"
    heard = np.array(page.evaluate(RENDERED))
    expected = np.tile(rounded(clip), 3)[:, : 5 * RATE // 2]
    np.testing.assert_allclose(heard, expected, atol=1e-7)  # float32
    assert np.abs(heard[:, RATE - 5 : RATE + 5]).max() > 0  # at the seam there is something to lose


def test_without_loop_it_ends_and_starts_again(page):
    mount(page, Player(Clip.from_audio(tone(441, 44_100), RATE)))
    play = page.get_by_test_id("rl-play")
    page.get_by_test_id("rl-picture").click(position={"x": 2, "y": 20})
    play.click()
    page.wait_for_selector("#view0[data-state=paused]")
    assert state(page) == ("paused", 0)
    assert page.get_by_test_id("rl-status").text_content() == "The end"
    play.click()
    assert state(page)[0] == "playing"


def test_loop_button_while_playing(page):
    player = Player(Clip.from_audio(tone(441, 22_050), RATE, loop=True))
    mount(page, player)
    page.get_by_test_id("rl-play").click()
    page.wait_for_function("Number(view0.dataset.ctxTime) > 1.2")  # twice round
    before = state(page)[1]
    page.get_by_test_id("rl-loop").click()
    assert page.get_by_test_id("rl-loop").get_attribute("aria-pressed") == "false"
    assert state(page)[1] <= 0.5 and before <= 0.5
    page.wait_for_selector("#view0[data-state=paused]")
    wait_for_python(page)
    assert not player.loop


def test_keys_play_seek_and_loop_and_do_not_reach_the_notebook(page, clip):
    player = Player(clip)
    mount(page, player)
    press = page.keyboard.press
    start_before(page)
    tab_to(page, "rl-picture")
    page.evaluate("window.leaked = []; document.addEventListener('keydown', ({key}) => leaked.push(key)); undefined")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        press(key)
    assert state(page) == ("ready", 1.0)
    press("Home")
    press("ArrowLeft")
    assert state(page) == ("ready", 0)
    press("l")
    assert page.get_by_test_id("rl-loop").get_attribute("aria-pressed") == "false"
    press("ArrowDown")
    press("ArrowDown")
    press("ArrowUp")
    assert float(page.get_by_test_id("rl-volume").input_value()) == pytest.approx(0.95)
    press(" ")
    assert state(page)[0] == "playing"
    press(" ")
    assert state(page)[0] == "paused"
    tab_to(page, "rl-play")
    press(" ")  # the button itself takes it: once, not twice
    assert state(page)[0] == "playing"
    press("d")
    press("a")
    assert page.evaluate("leaked") == []
    press("Control+s")
    assert page.evaluate("leaked") == ["Control", "s"]
    wait_for_python(page)
    assert not player.loop and player.volume == pytest.approx(0.95)


CONTROLS = ["picture", "play", "loop", "volume", "download-wav", "download-mp3", "download-png"]


def test_tab_leads_through_every_control_and_out_again_both_ways(page, clip):
    mount(page, Player(clip))
    start_before(page)
    assert tab_through(page) == [f"rl-{name}" for name in CONTROLS]
    assert tab_through(page, back=True) == [f"rl-{name}" for name in CONTROLS[::-1]]


def test_every_control_is_used_by_keys(page, clip):
    player = Player(clip)
    mount(page, player)
    press = page.keyboard.press
    start_before(page)
    tab_to(page, "rl-play")
    press("Enter")
    assert state(page)[0] == "playing"
    press("Enter")
    assert state(page)[0] == "paused"
    tab_to(page, "rl-loop")
    press("Space")
    assert page.get_by_test_id("rl-loop").get_attribute("aria-pressed") == "false"
    tab_to(page, "rl-volume")
    for key in ("ArrowLeft", "ArrowDown", "ArrowRight"):  # the slider's own steps
        press(key)
    assert float(page.get_by_test_id("rl-volume").input_value()) == pytest.approx(0.99)
    for suffix in ("wav", "mp3", "png"):
        tab_to(page, f"rl-download-{suffix}")
        with page.expect_download() as download:
            press("Enter")
        assert download.value.suggested_filename.endswith(suffix)
        assert focused(page) == f"rl-download-{suffix}"
    press("Tab")
    assert focused(page) == "after"
    wait_for_python(page)
    assert not player.loop and player.volume == pytest.approx(0.99)


def test_a_file_that_cannot_be_written_is_refused_in_words(clip, monkeypatch):
    def save(*_):
        raise soundfile.LibsndfileError(2)

    player, sent = Player(clip), []
    player.send = sent.append
    monkeypatch.setattr(Clip, "save", save)
    player._handle_custom_msg({"kind": "save", "format": "wav"}, [])
    (answer,) = sent
    assert answer["kind"] == "refused"
    assert "drums-bass-94-bpm.wav could not be made (System error.)" in answer["reason"]


def test_volume_is_heard(page, clip):
    mount(page, Player(clip, volume=0.5))
    page.evaluate(OFFLINE, [1, 1, RATE])
    page.get_by_test_id("rl-play").click()
    np.testing.assert_allclose(page.evaluate(RENDERED), rounded(clip)[:, :RATE] / 2, atol=1e-7)


@pytest.mark.parametrize("suffix", ["wav", "mp3", "png"])
def test_download_is_what_save_writes(page, clip, tmp_path, suffix):
    mount(page, Player(clip))
    with page.expect_download() as download:
        page.get_by_test_id(f"rl-download-{suffix}").click()
    clip.save(tmp_path / f"x.{suffix}")
    assert download.value.suggested_filename == f"drums-bass-94-bpm.{suffix}"
    assert download.value.path().read_bytes() == (tmp_path / f"x.{suffix}").read_bytes()
    assert page.get_by_test_id("rl-status").text_content() == f"Saved as drums-bass-94-bpm.{suffix}"


def test_html_in_a_title_stays_text(page):
    clip = Clip.from_audio(tone(441, 44_100), RATE, recipe={"prompt": EVIL})
    player = Player(clip)
    mount(page, player)
    page.evaluate("fromPython([{content: {kind: 'refused', reason: '<b>no</b>'}, buffers: []}])")
    assert page.get_by_test_id("rl-title").text_content() == EVIL
    assert page.get_by_test_id("rl-status").text_content() == "<b>no</b>"
    assert page.locator("#view0 b, #view0 img[src=x]").count() == 0
    page.set_content(player._figure_html())
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") is None


def test_python_exchanges_the_clip_and_the_switches(page, clip):
    player = Player(clip)
    flush = mount(page, player)
    page.get_by_test_id("rl-play").click()
    player.clip = Clip.from_audio(tone(441, 88_200), RATE, recipe={"prompt": "another"})
    flush()
    assert state(page) == ("ready", 0)
    assert page.get_by_test_id("rl-title").text_content() == "another"
    assert page.get_by_test_id("rl-time").text_content() == "0.00 of 2.00 s"
    assert page.get_by_test_id("rl-loop").get_attribute("aria-pressed") == "false"
    player.loop, player.volume = True, 0.25
    flush()
    assert page.get_by_test_id("rl-loop").get_attribute("aria-pressed") == "true"
    assert page.get_by_test_id("rl-volume").input_value() == "0.25"


@pytest.mark.parametrize("end", ["destroy()", "emit('comm_live_update')", "removers.forEach((remove) => remove())"])
def test_sound_stops_with_the_model_the_kernel_or_the_last_view(page, clip, end):
    """Counted at the source nodes, since the views may be gone."""
    mount(page, Player(clip), n_views=2)
    page.evaluate("""() => {
        window.sounding = 0;
        const {start, stop} = AudioBufferSourceNode.prototype.__proto__;
        AudioBufferSourceNode.prototype.start = function (...at) {
            sounding += 1;
            return AudioScheduledSourceNode.prototype.start.apply(this, at.slice(0, 1));
        };
        AudioScheduledSourceNode.prototype.stop = function (...at) { sounding -= 1; return stop.apply(this, at); };
    }""")
    page.locator("#view0").get_by_test_id("rl-play").click()
    assert page.evaluate("sounding") == 1
    page.evaluate("removers.pop()()")
    assert page.evaluate("sounding") == 1  # there is still a view
    page.evaluate(end)
    assert page.evaluate("sounding") == 0


OUTPUTS = """<div class="jp-Cell"><pre>code</pre><div class="jp-OutputArea">
<div class="jp-OutputArea-child"><div></div><div><div id="figure">{}</div></div></div>
<div class="jp-OutputArea-child"><div></div><div class="widget-subarea">{}<div id="here"></div></div></div>
</div></div>"""


@pytest.mark.parametrize(
    ("before", "beside", "hidden"),
    [
        ('<div class="rl-static"><figure><figcaption>5.12 s</figcaption></figure></div>', "", True),
        ('<div class="rl-static"><figcaption>5.12 s</figcaption></div>', "<label>in a box of widgets</label>", False),
        ("<figure><figcaption>another clip</figcaption></figure>", "", False),
        ('<p>text</p><div class="rl-static"><figcaption>5.12 s</figcaption></div>', "", False),
    ],
)
def test_live_widget_hides_its_own_figure_only(page, clip, before, beside, hidden):
    page.set_content(OUTPUTS.format(before, beside))
    mount(page, Player(clip))
    page.wait_for_timeout(100)
    assert page.locator("#figure").is_visible() != hidden
    page.evaluate("removers[0]()")
    assert page.locator("#figure").is_visible()


@pytest.mark.parametrize("width", [480, 800, 1280])
def test_nothing_is_clipped_or_on_top_of_another(page, clip, width):
    page.set_viewport_size({"width": width, "height": 600})
    mount(page, Player(clip))
    seen = page.locator("#view0").locator("button, input, .rl-hz span, .rl-s span, [data-testid=rl-time]")
    areas = [node.bounding_box() for node in seen.all()]
    boxes = [(area["x"], area["y"], area["x"] + area["width"], area["y"] + area["height"]) for area in areas]
    assert len(boxes) > 12
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left and right <= width
        for x0, y0, x1, y1 in boxes[:i]:
            assert right <= x0 or x1 <= left or bottom <= y0 or y1 <= top
