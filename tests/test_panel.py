"""A panel in a real browser: words to pick, Enter, and what it says when its kernel does not answer."""

import pytest
from playwright.sync_api import expect

from browser import focused, mount, open_page, start_before, tab_through, tab_to, type_into, wait_for_python
from riffusion_lab.widgets.panel import PanelScript

GROUPS = {
    "instruments": (["piano", "church bells"], ["tubular bells", "<b>bells</b>"]),
    "styles": (["jazz"], ["bebop"]),
}
WORDS = ["piano", "church bells", "jazz"]


@pytest.fixture
def page(browser):
    with open_page(browser) as page:
        yield page


def shown_words(page):
    return page.locator(".rl-list button:visible").all_text_contents()


def test_words_are_one_tab_stop_and_arrow_keys_lead_through_them(page):
    picked = []
    mount(page, PanelScript(GROUPS, on_word=picked.append))
    assert shown_words(page) == WORDS
    assert page.get_by_test_id("rl-found").text_content() == "3 words; a search finds 3 more"
    start_before(page)
    assert tab_through(page) == ["rl-search", "rl-word"]
    assert tab_through(page, back=True) == ["rl-word", "rl-search"]
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    text = lambda: page.evaluate("document.activeElement.textContent")  # noqa: E731
    seen = [text()]
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "ArrowLeft", "Home", "End"):
        page.keyboard.press(key)
        seen.append(text())
    assert seen == ["piano", "church bells", "jazz", "jazz", "church bells", "piano", "jazz"]
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")
    assert focused(page) == "rl-search"
    page.keyboard.press("Tab")
    assert text() == "jazz"  # where it was left
    page.locator(".rl-list button", has_text="piano").click()
    wait_for_python(page)
    assert picked == ["jazz", "piano"]


def test_search_narrows_the_words_and_finds_other_names(page):
    picked = []
    mount(page, PanelScript(GROUPS, on_word=picked.append))
    type_into(page.get_by_test_id("rl-search"), "BELLS")
    assert shown_words(page) == ["church bells", "tubular bells", "<b>bells</b>"]
    assert page.get_by_test_id("rl-found").text_content() == "3 words"
    page.keyboard.press("Enter")  # the first
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    wait_for_python(page)
    assert picked == ["church bells", "tubular bells"]
    type_into(page.get_by_test_id("rl-search"), "style")  # a kind
    assert shown_words(page) == ["jazz", "bebop"]
    assert page.locator(".rl-kind:visible").all_text_contents() == ["styles"]
    type_into(page.get_by_test_id("rl-search"), "gamelan")
    assert shown_words(page) == []
    assert page.get_by_test_id("rl-found").text_content() == "No word fits: the model was not taught it"
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    tab_to(page, "after")


# Fields as those of ipywidgets, which let no key pass
ADD_FIELDS = """() => {
    document.getElementById("here").insertAdjacentHTML("afterbegin",
        "<input type='text' aria-label='Prompt'><input type='text' aria-label='Negative'><button>Generate</button>");
    for (const field of document.querySelectorAll("input[type=text]")) {
        field.addEventListener("keydown", (event) => { event.stopPropagation(); });
    }
}"""


def test_enter_in_a_field_sends_what_is_written_there(page):
    heard = []
    mount(page, PanelScript(GROUPS, on_enter=heard.append))
    page.evaluate(ADD_FIELDS)
    expect(page.locator("#here")).to_have_class("rl-panel")
    type_into(page.get_by_label("Negative"), "jazz")
    type_into(page.get_by_label("Prompt"), "slow piano")
    page.keyboard.press("Enter")
    wait_for_python(page)
    assert heard == [["slow piano", "jazz"]]


def test_a_kernel_that_does_not_answer_is_noticed_and_forgiven(page):
    mount(page, PanelScript(GROUPS))
    page.evaluate(ADD_FIELDS)
    expect(page.locator("#here")).to_have_class("rl-panel")
    gone = page.get_by_test_id("rl-gone")
    page.evaluate("kernel.isBusy = true")
    page.get_by_role("button", name="Generate").click()
    expect(gone).to_contain_text("does not answer. It is busy, or it was restarted", timeout=10_000)
    page.evaluate("kernel.isBusy = false")
    expect(gone).to_have_text("")
    page.evaluate("emit('comm_live_update')")
    expect(gone).to_have_text("The kernel was restarted or has ended: run this cell again.")
