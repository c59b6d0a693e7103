"""The mask painter: its Python side without a browser, its JavaScript side in a real one."""

import numpy as np
import pytest
from PIL import Image

from browser import (
    Finger,
    focused,
    mount,
    open_page,
    set_slider,
    start_before,
    tab_through,
    tab_to,
    type_into,
    wait_for_python,
)
from conftest import RATE, chirp
from riffusion_lab import Clip
from riffusion_lab.masks import as_mask, box_mask
from riffusion_lab.widgets import MaskPainter

EVIL = "<img src=x onerror='window.ran = true'>"
SIZE = (512, 512)


@pytest.fixture(scope="module")
def clip():
    return Clip.from_audio(chirp(200, 8_000), RATE, recipe={"prompt": EVIL})


@pytest.fixture
def page(browser):
    with open_page(browser) as page:
        yield page


def area(page):
    return page.get_by_test_id("rl-picture").bounding_box()


def drag(page, start, stop):
    """Drag from one place to another: shares of the picture's width (from the left) and height (from the top)."""
    box = area(page)
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, stop)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=5)
    page.mouse.up()
    wait_for_python(page)


def choose(page, name, *, view=0):
    page.locator(f"#view{view}").get_by_test_id(f"rl-{name}").click()
    wait_for_python(page)


def press(page, key):
    page.keyboard.press(key)
    wait_for_python(page)


def type_box(page, start, stop, low, high):
    for name, value in {"start": start, "stop": stop, "low": low, "high": high}.items():
        type_into(page.get_by_test_id(f"rl-{name}"), str(value))


# Python


def test_mask_arrives_as_painted_and_is_observed(clip):
    painter, seen, sent = MaskPainter(clip), [], []
    painter.send = lambda content, **_: sent.append(content)
    painter._handle_custom_msg({"kind": "ready"}, [])
    painter.observe(lambda change: seen.append(change["new"]), "mask")
    mask = np.zeros(SIZE, bool)
    mask[:10, :20] = True
    painter._handle_custom_msg({"kind": "mask"}, [memoryview(mask.astype(np.uint8).tobytes())])
    np.testing.assert_array_equal(painter.mask, mask)
    assert painter.mask.dtype == bool and as_mask(painter.mask, clip) is not None
    assert seen == [painter.mask] and [content["kind"] for content in sent] == ["clip"]  # no echo
    painter._handle_custom_msg({"kind": "mask"}, [bytes(512 * 512)])
    assert painter.mask is None and seen[1:] == [None]


@pytest.mark.parametrize("as_given", [np.array, lambda mask: Image.fromarray(mask), lambda mask: mask.astype(float)])
def test_mask_can_be_given_as_inpaint_takes_it(clip, as_given):
    mask = box_mask(clip, 1, 2)
    painter = MaskPainter(clip, as_given(mask))
    np.testing.assert_array_equal(painter.mask, mask)
    painter.mask = (1, 2, 300, 4_000)
    np.testing.assert_array_equal(painter.mask, box_mask(clip, 1, 2, low_hz=300, high_hz=4_000))
    painter.mask = None
    assert painter.mask is None


def test_mask_is_read_only_and_the_given_array_stays_free(clip):
    mask = box_mask(clip, 1, 2)
    painter = MaskPainter(clip, mask)
    mask[:] = False
    assert painter.mask.any()
    with pytest.raises(ValueError, match="read-only"):
        painter.mask[0, 0] = True


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (np.ones((512, 100)), ValueError, r"\(512, 100\).*\(512, 512\)"),
        (np.zeros(SIZE), ValueError, "empty.*white"),
        ("left half", TypeError, "left half.*box"),
        ((1, 99), ValueError, r"\(1, 99\).*5.12"),
        ((1, 2, 3), ValueError, r"\(1, 2, 3\).*low_hz"),
    ],
)
def test_wrong_mask_is_refused_by_name_and_the_last_stays(clip, value, error, words):
    painter = MaskPainter(clip, (1, 2))
    with pytest.raises(error, match=words):
        painter.mask = value
    np.testing.assert_array_equal(painter.mask, box_mask(clip, 1, 2))
    with pytest.raises(error, match=words):
        MaskPainter(clip, value)


def test_mask_of_a_wrong_size_from_the_browser_is_refused(clip):
    painter, sent = MaskPainter(clip, (1, 2)), []
    painter.send = lambda content, **_: sent.append(content)
    painter._handle_custom_msg({"kind": "mask"}, [bytes(7)])
    assert sent[0]["kind"] == "refused" and "7" in sent[0]["reason"] and "(512, 512)" in sent[0]["reason"]
    np.testing.assert_array_equal(painter.mask, box_mask(clip, 1, 2))


def test_another_clip_keeps_a_mask_that_fits(clip):
    painter = MaskPainter(clip, (1, 2))
    painter.clip = Clip.from_audio(chirp(100, 200), RATE)
    assert painter.mask.sum() == 512 * 100
    painter.clip = clip * 2
    assert painter.mask is None
    with pytest.raises(TypeError, match="MaskPainter shows a Clip, not the NoneType None"):
        painter.clip = None


def test_repr_and_figure(clip):
    painter = MaskPainter(clip, (0, 2.56))
    assert repr(painter) == "MaskPainter(Clip(5.12 s, 44100 Hz, mono))"
    figure = painter._figure_html()
    assert "50.0%" in figure and "<img src=x" not in figure and figure == painter._figure_html()


# JavaScript


def test_box_arrives_where_it_was_dragged(page, clip):
    painter = MaskPainter(clip)
    mount(page, painter)
    seen = []
    painter.observe(lambda change: seen.append(change["new"]), "mask")
    drag(page, (0.1, 0.05), (0.3, 0.25))  # up and left: early and high
    assert len(seen) == 1  # not at every move
    rows, columns = np.flatnonzero(painter.mask.any(axis=1)), np.flatnonzero(painter.mask.any(axis=0))
    pixel = 512 / min(area(page)["width"], area(page)["height"]) + 1
    assert (rows[0], rows[-1]) == pytest.approx((0.05 * 512, 0.25 * 512), abs=pixel)
    assert (columns[0], columns[-1]) == pytest.approx((0.1 * 512, 0.3 * 512), abs=pixel)
    assert painter.mask.sum() == len(rows) * len(columns)
    assert int(page.locator("#view0").get_attribute("data-marked")) == painter.mask.sum()
    drag(page, (0.5, 0.5), (0.5, 0.5))  # a click marks nothing
    assert len(seen) == 1


@pytest.mark.parametrize(
    "box",
    [(1, 2, 300, 4_000), (0, 5.12, 0, 10_000), (0.505, 0.525, 440, 460), (5, 5.12, 0, 50), (2.345, 3.335, 20, 99)],
)
def test_numbers_mark_what_box_mask_marks(page, clip, box):
    painter = MaskPainter(clip)
    mount(page, painter)
    type_box(page, *box)
    choose(page, "add-box")
    np.testing.assert_array_equal(painter.mask, as_mask(box, clip))


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((2, 1, 0, 9_000), "The box begins at 2 s, behind its end at 1 s: exchange Start and Stop"),
        ((1, 2, 900, 300), "The box reaches from 900 Hz down to 300 Hz: exchange Low and High"),
        ((1, 2, "", 900), "Low (Hz) must be a number"),
        (("", "", 0, 900), "Start (s) and Stop (s) must be a number"),
        ((1, 1.001, 0, 9_000), "The box holds no pixel: make it larger"),
        ((1, 2, 400, 400.5), "The box holds no pixel: make it larger"),
        ((6, 7, 0, 9_000), "The box is outside of the clip, which ends at 5.12 s"),
        ((1, 2, 20_000, 30_000), "The box is outside of the picture: 0 Hz to 10,000 Hz"),
    ],
)
def test_numbers_of_an_empty_box_are_refused_in_words(page, clip, box, words):
    painter = MaskPainter(clip)
    mount(page, painter)
    type_box(page, *box)
    press(page, "Enter")  # in the last of the fields
    assert painter.mask is None
    assert page.get_by_test_id("rl-status").text_content() == words


def test_keyboard_alone_marks(page, clip):
    painter = MaskPainter(clip)
    mount(page, painter)
    start_before(page)
    tab_to(page, "rl-picture")
    page.evaluate("window.leaked = []; document.addEventListener('keydown', ({key}) => leaked.push(key)); undefined")
    for key in ["ArrowLeft"] * 3 + ["ArrowUp"] * 2 + ["Shift+ArrowRight"] * 2 + ["Shift+ArrowDown"]:
        press(page, key)
    numbers = {
        name: float(page.get_by_test_id(f"rl-{name}").input_value()) for name in ("start", "stop", "low", "high")
    }
    assert numbers["start"] == pytest.approx(2.05 - 0.3) and numbers["stop"] == pytest.approx(3.07 - 0.3 + 0.2)
    status = page.get_by_test_id("rl-status").text_content()
    assert status.startswith("Box from 1.75 to 2.97 s, ") and status.endswith(f"{numbers['high']:,.0f} Hz")
    press(page, "Enter")
    expected = box_mask(clip, numbers["start"], numbers["stop"], low_hz=numbers["low"], high_hz=numbers["high"])
    np.testing.assert_array_equal(painter.mask, expected)
    for _ in range(60):
        press(page, "ArrowRight")  # to the edge and no further
    assert float(page.get_by_test_id("rl-stop").input_value()) == 5.12
    press(page, "Enter")
    assert painter.mask[:, -1].any() and painter.mask.sum() > expected.sum()
    press(page, "Control+z")
    np.testing.assert_array_equal(painter.mask, expected)
    press(page, "Delete")
    assert painter.mask is None
    press(page, "Control+z")
    np.testing.assert_array_equal(painter.mask, expected)
    press(page, "d")
    assert page.evaluate("leaked") == ["Control", "Control"]


TOOLS = ["box", "brush", "eraser", "size", "undo", "redo", "clear", "invert"]
CONTROLS = ["picture", *TOOLS, "start", "stop", "low", "high", "add-box"]


def test_tab_leads_through_every_control_and_out_again_both_ways(page, clip):
    mount(page, MaskPainter(clip))
    start_before(page)
    assert tab_through(page) == [f"rl-{name}" for name in CONTROLS]
    assert tab_through(page, back=True) == [f"rl-{name}" for name in CONTROLS[::-1]]


def test_every_control_is_used_by_keys(page, clip):
    painter = MaskPainter(clip)
    mount(page, painter)
    start_before(page)
    for tool, key in (("brush", "Enter"), ("eraser", "Space"), ("box", "Enter")):
        tab_to(page, f"rl-{tool}", back=tool == "box")
        press(page, key)
        assert page.locator("#view0").get_attribute("data-tool") == tool
    tab_to(page, "rl-size")
    press(page, "ArrowRight")
    press(page, "ArrowUp")
    assert page.get_by_test_id("rl-size").input_value() == "30"
    for name, value in {"start": "1.25", "stop": "2.5", "low": "300", "high": "4000"}.items():
        tab_to(page, f"rl-{name}")
        page.keyboard.type(value)  # Tab has selected what was there
        assert page.get_by_test_id(f"rl-{name}").input_value() == value
    press(page, "Enter")
    marked = box_mask(clip, 1.25, 2.5, low_hz=300, high_hz=4_000)
    np.testing.assert_array_equal(painter.mask, marked)
    tab_to(page, "rl-clear", back=True)
    press(page, "Space")
    assert painter.mask is None
    tab_to(page, "rl-add-box")
    press(page, "Space")
    np.testing.assert_array_equal(painter.mask, marked)
    tab_to(page, "rl-invert", back=True)
    press(page, "Enter")
    np.testing.assert_array_equal(painter.mask, ~marked)
    tab_to(page, "rl-undo", back=True)
    press(page, "Enter")
    np.testing.assert_array_equal(painter.mask, marked)
    tab_to(page, "rl-add-box")
    press(page, "Tab")
    assert focused(page) == "after"


def test_brush_is_round_on_the_screen_and_the_eraser_takes_away(page, clip):
    painter = MaskPainter(clip)
    mount(page, painter)
    choose(page, "brush")
    set_slider(page.get_by_test_id("rl-size"), 60)
    drag(page, (0.5, 0.5), (0.5, 0.5))
    rows, columns = np.flatnonzero(painter.mask.any(axis=1)), np.flatnonzero(painter.mask.any(axis=0))
    assert len(rows) == pytest.approx(60 / area(page)["height"] * 512, abs=2)
    assert len(columns) == pytest.approx(60 / area(page)["width"] * 512, abs=2)
    assert rows.mean() == pytest.approx(255.5, abs=1.5) and columns.mean() == pytest.approx(255.5, abs=1.5)
    assert painter.mask.sum() == pytest.approx(np.pi / 4 * len(rows) * len(columns), rel=0.03)
    drag(page, (0.2, 0.8), (0.8, 0.8))  # five moves, no holes between them
    row = painter.mask[int(0.8 * 512)]
    assert row[int(0.21 * 512) : int(0.79 * 512)].all()
    choose(page, "eraser")
    drag(page, (0.1, 0.8), (0.9, 0.8))
    assert not painter.mask[int(0.8 * 512)].any() and painter.mask[256, 256]
    choose(page, "undo")
    assert painter.mask[int(0.8 * 512)].any()


def test_a_finger_marks_a_box_and_paints_up_and_down(browser, clip):
    painter = MaskPainter(clip)
    with open_page(browser, has_touch=True, viewport={"width": 800, "height": 900}) as page:
        page.evaluate("document.body.style.paddingBottom = '2000px'")
        mount(page, painter)
        box, finger = area(page), Finger(page)
        place = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])  # noqa: E731
        finger.drag(place(0.1, 0.1), place(0.3, 0.3))
        wait_for_python(page)
        assert painter.mask[100, 100] and not painter.mask[200, 100]
        page.get_by_test_id("rl-brush").tap()
        finger.drag(place(0.7, 0.9), place(0.7, 0.2))
        wait_for_python(page)
        assert painter.mask[int(0.25 * 512) : int(0.85 * 512), int(0.7 * 512)].all()
        assert page.evaluate("scrollY") == 0
        page.get_by_test_id("rl-undo").tap()
        wait_for_python(page)
        assert not painter.mask[256, int(0.7 * 512)] and painter.mask[100, 100]


def test_undo_clear_and_invert(page, clip):
    painter = MaskPainter(clip)
    mount(page, painter)
    choose(page, "undo")
    assert page.get_by_test_id("rl-status").text_content() == "There is nothing to undo"
    drag(page, (0.1, 0.1), (0.2, 0.2))
    first = painter.mask
    choose(page, "invert")
    np.testing.assert_array_equal(painter.mask, ~first)
    choose(page, "clear")
    assert painter.mask is None
    assert page.get_by_test_id("rl-status").text_content() == "Nothing is marked"
    choose(page, "undo")
    choose(page, "undo")
    np.testing.assert_array_equal(painter.mask, first)
    choose(page, "undo")
    assert painter.mask is None


def test_redo_goes_forward_until_something_else_is_marked(page, clip):
    painter = MaskPainter(clip)
    mount(page, painter)
    choose(page, "redo")
    assert page.get_by_test_id("rl-status").text_content() == "There is nothing to redo"
    drag(page, (0.1, 0.1), (0.2, 0.2))
    first = painter.mask
    drag(page, (0.5, 0.5), (0.6, 0.6))
    second = painter.mask
    choose(page, "undo")
    choose(page, "undo")
    assert painter.mask is None
    choose(page, "redo")
    np.testing.assert_array_equal(painter.mask, first)
    press(page, "Control+Shift+z")
    np.testing.assert_array_equal(painter.mask, second)
    press(page, "Control+z")
    press(page, "Control+y")
    np.testing.assert_array_equal(painter.mask, second)
    press(page, "Control+z")
    drag(page, (0.7, 0.7), (0.8, 0.8))
    choose(page, "redo")
    assert page.get_by_test_id("rl-status").text_content() == "There is nothing to redo"


def test_python_marks_and_exchanges_the_clip(page, clip):
    painter = MaskPainter(clip, (0, 1))
    flush = mount(page, painter, n_views=2)
    marked = lambda view: int(page.locator(f"#view{view}").get_attribute("data-marked"))  # noqa: E731
    assert marked(0) == marked(1) == 512 * 100
    painter.mask = (1, 3)
    flush()
    assert marked(0) == marked(1) == 512 * 200
    choose(page, "undo", view=1)
    np.testing.assert_array_equal(painter.mask, box_mask(clip, 0, 1))
    painter.mask = None
    flush()
    assert marked(0) == 0
    painter.clip = clip[0:2]
    flush()
    choose(page, "invert")
    assert painter.mask.shape == (512, 200) and painter.mask.all()


def test_what_is_marked_is_seen(page, clip):
    mount(page, MaskPainter(clip, (0, 2.56)))
    left, right = page.evaluate("""() => {
        const canvas = document.querySelector("canvas");
        const at = (x) => [...canvas.getContext("2d").getImageData(x * canvas.width, canvas.height / 2, 1, 1).data];
        return [at(0.25), at(0.75)];
    }""")
    assert left == pytest.approx([64, 224, 208, 120], abs=2) and right[3] == 0


def test_html_in_a_title_stays_text(page, clip):
    mount(page, MaskPainter(clip))
    assert page.get_by_test_id("rl-title").text_content() == EVIL
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") is None
