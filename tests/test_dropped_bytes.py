"""A front end that loses the bytes of Python's messages: the widgets say so and give what works without them."""

import pytest
from playwright.sync_api import expect

from browser import mount, open_page
from conftest import RATE, drum_loop, tone
from riffusion_lab import Clip
from riffusion_lab import live as live_module
from riffusion_lab.widgets import Live, MaskPainter, Player

EVIL = "<img src=x onerror='window.ran = true'>"


@pytest.fixture
def page(browser):
    with open_page(browser) as page:
        yield page


@pytest.fixture
def clip():
    return Clip.from_audio(drum_loop(), RATE, loop=True, recipe={"prompt": EVIL})


@pytest.mark.parametrize("widget", [Player, MaskPainter])
def test_plain_figure_takes_the_place_of_the_widget(page, clip, widget):
    mount(page, widget(clip), n_views=2, state="plain", loses_bytes=True)
    for view in (page.locator("#view0"), page.locator("#view1")):
        expect(view.get_by_test_id("rl-status")).to_contain_text("drops the bytes of sounds")
        expect(view.locator("img")).to_have_count(1)
        expect(view.locator("button, input")).to_have_count(0)
    assert page.evaluate("window.ran") is None


def test_plain_player_plays(page, clip):
    """The browser reads as much sound from the plain player as the clip is long, and from a new clip as well."""
    player = Player(clip)
    bring = mount(page, player, state="plain", loses_bytes=True)
    for seconds in (5.12, 10.24):
        length = "(audio) => new Promise((go) => { audio.ondurationchange = () => go(audio.duration); audio.load(); })"
        sound = page.locator("#view0 audio")
        sound.evaluate("(audio) => { audio.preload = 'metadata'; }")
        assert sound.evaluate(length) == pytest.approx(seconds, abs=0.1)  # MP3 adds up to 50 ms at either end
        player.clip = clip * 2
        bring()
        expect(page.locator("#view0 figcaption")).to_contain_text("10.24 s")


def test_lost_download_says_what_would_do(page, clip):
    """Only the file is lost: as on a front end that bounds the size of a message."""
    player = Player(clip)
    mount(page, player)
    page.evaluate("fromPython([{content: {kind: 'file', name: 'a.wav', type: 'audio/wav'}, buffers: []}])")
    expect(page.get_by_test_id("rl-status")).to_contain_text("clip.save(…) in a cell")


def test_live_says_where_it_plays(page, pipe, tmp_path, monkeypatch, request):
    monkeypatch.setattr(live_module, "generate_point", lambda *_: Clip.from_audio(tone(200), RATE, loop=True))
    live = Live(pipe, "piano", folder=tmp_path)
    request.addfinalizer(live.close)
    mount(page, live, loses_bytes=True)
    page.get_by_test_id("rl-play").click()
    expect(page.get_by_test_id("rl-status")).to_contain_text("It plays in JupyterLab", timeout=30_000)
    expect(page.locator("#view0")).to_have_attribute("data-state", "ended")
