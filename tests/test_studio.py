"""The studio without a browser: its buttons are pressed from here, and its panel is read."""

import html
import inspect
import os
import re
import sys
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import RATE, tone
from riffusion_lab import Clip, audio_to_audio, inpaint, load_pipeline, replay, text_to_audio
from riffusion_lab.widgets import MaskPainter, Studio, studio

WITHIN_S = 120
SHORT_S = 0.64  # the shortest picture that the U-Net takes: quick
KNOWN = {"prompt": "slow piano", "seed": 3}


@pytest.fixture
def panel(pipe, tmp_path):
    """A studio with a prompt, whose folder is still to be made."""
    with build(pipe, tmp_path / "clips") as panel:
        yield panel


class build:
    """A studio, for the length of a `with`."""

    def __init__(self, pipe, folder, **given):
        self.panel = Studio(pipe, folder=folder, **(KNOWN | given))
        self.panel.duration_s.value = SHORT_S

    def __enter__(self):
        return self.panel

    def __exit__(self, *_):
        self.panel.close()
        if self.panel._job:
            self.panel._job.result(WITHIN_S)


@pytest.fixture
def gate(monkeypatch, pipe):
    """Holds up every step of denoising at the U-Net until `gate.open` is set; then it may raise `gate.error`."""
    gate = SimpleNamespace(reached=threading.Event(), open=threading.Event(), n_steps=0, error=None)
    predict = type(pipe.unet).forward

    def forward(*given, **options):
        gate.n_steps += 1
        gate.reached.set()
        assert gate.open.wait(WITHIN_S)
        if gate.error:
            raise gate.error
        return predict(*given, **options)

    monkeypatch.setattr(type(pipe.unet), "forward", forward)
    yield gate
    gate.open.set()


def short(frequency_hz):
    return Clip.from_audio(tone(frequency_hz, round(SHORT_S * RATE)), RATE)


def finish(panel):
    """Wait until nothing is being made any more."""
    panel._job.result(WITHIN_S)
    assert not panel.generate.disabled and panel.cancel.disabled
    assert panel.progress.value == 0 and panel.preview.value == ""


def said(panel):
    """What the panel says, as its reader sees it: text, in which there is no HTML."""
    return html.unescape(re.fullmatch(r"<pre [^<>]*>([^<>]*)</pre>", panel.status.value)[1])


def make(panel):
    """Press the button, and return the clip that comes of it."""
    before = panel.clip
    panel.generate.click()
    finish(panel)
    assert panel.clip is not before, said(panel)
    assert panel._player.children[0].clip is panel.clip
    return panel.clip


def refuse(panel):
    """Press the button, and return why there is no clip; all else must be as before."""
    before, listed, files = panel.clip, names(panel), sorted(panel.folder.glob("*"))
    panel.generate.click()
    finish(panel)
    assert panel.clip is before and names(panel) == listed and sorted(panel.folder.glob("*")) == files
    return said(panel)


def names(panel):
    """What is written in the rows of the history."""
    return [row.children[1].description for row in panel._list.children]


# Clips


def test_clip_is_what_the_function_makes_and_is_kept(panel, pipe):
    heard = []
    panel.observe(lambda change: heard.append(change["new"]), "clip")
    panel.negative_prompt.value = "techno"
    panel.num_inference_steps.value = 4
    panel.guidance_scale.value = 3.5
    panel.duration_s.value = 1.28
    clip = make(panel)
    settings = {"num_inference_steps": 4, "guidance_scale": 3.5, "duration_s": 1.28}
    same = text_to_audio(pipe, "slow piano", seed=3, negative_prompt="techno", **settings)
    assert clip.recipe == same.recipe and clip.image.tobytes() == same.image.tobytes()
    assert heard == [clip] and panel.history == [clip]
    path = panel.folder / "slow-piano-seed-3.png"
    assert said(panel) == f"Saved as {path}"
    opened = Clip.from_image(path)
    assert opened.recipe == clip.recipe and replay(opened, pipe).image.tobytes() == clip.image.tobytes()


def test_next_seed_is_another_clip(panel):
    panel.next_seed.click()
    assert panel.seed.value == 4
    assert make(panel).recipe["seed"] == 4
    assert names(panel) == ["slow-piano-seed-4"]


def test_after_the_last_seed_comes_the_first(panel):
    panel.seed.value = 2**40
    assert panel.seed.value == 2**32 - 1
    panel.next_seed.click()
    assert panel.seed.value == 0


def test_no_file_is_overwritten(panel):
    panel.num_inference_steps.value = 1
    first = make(panel).image.tobytes()
    panel.num_inference_steps.value = 2
    make(panel)
    assert names(panel) == ["slow-piano-seed-3-2", "slow-piano-seed-3"]
    assert Clip.from_image(panel.folder / "slow-piano-seed-3.png").image.tobytes() == first


def test_model_and_its_words_set_the_panel(pipe, tmp_path):
    assert Studio(pipe, folder=tmp_path).duration_s.value == 5.12
    with build(pipe, tmp_path, words=True) as panel:
        assert (panel.num_inference_steps.value, panel.guidance_scale.value) == (3, 4.0)
        assert panel._script.groups == [
            ["styles", ["jazz", "techno"], []],
            ["tempo", ["slow", "94 bpm", "105 bpm", "141 bpm"], []],
            ["instruments", ["piano", "church bells"], ["bells"]],
        ]
        panel._script._handle_custom_msg({"kind": "word", "word": "techno"}, [])
        assert panel.prompt.value == "slow piano techno"
        assert repr(panel) == "Studio('slow piano techno', seed=3)"


def test_enter_makes_what_the_browser_shows(panel):
    """Not what ipywidgets has sent so far: it may hold back the last letters."""
    panel._script._handle_custom_msg({"kind": "enter", "texts": ["techno", "piano"]}, [])
    finish(panel)
    assert (panel.clip.recipe["prompt"], panel.clip.recipe["negative_prompt"]) == ("techno", "piano")
    assert (panel.prompt.value, panel.negative_prompt.value) == ("techno", "piano")


def test_source_is_restyled(pipe, tmp_path):
    sources = {name: short(hz) for name, hz in (("low", 220), ("high", 880))}
    with build(pipe, tmp_path, source=sources, strength=0.7, negative_prompt="jazz") as panel:
        panel.source.value = "high"
        clip = make(panel)
        same = audio_to_audio(pipe, sources["high"], "slow piano", strength=0.7, seed=3, negative_prompt="jazz")
        assert clip.recipe == same.recipe and clip.image.tobytes() == same.image.tobytes()
        panel.source.value = "the clip below"
        assert make(panel).recipe["source_sha256"] != clip.recipe["source_sha256"]
    with build(pipe, tmp_path / "other", source=sources["low"]) as panel:
        assert panel.source.value == "clip" and panel.strength.value == 0.75
        panel.source.value = "the clip below"
        assert "clip must be a Clip" in refuse(panel)
        panel.source.value, panel.strength.value = "clip", 0  # no step is taken
        assert make(panel).recipe["strength"] == 0


def test_marked_part_is_made_anew(pipe, tmp_path):
    painter = MaskPainter(short(441))
    with build(pipe, tmp_path, painter=painter) as panel:
        assert panel.go_on.disabled and panel.strength.value == 1
        panel.generate.click()
        assert panel._job is None and said(panel).startswith("Nothing is marked")
        painter.mask = (0.2, 0.4)
        clip = make(panel)
        same = inpaint(pipe, painter.clip, (0.2, 0.4), "slow piano", seed=3)
        assert clip.recipe == same.recipe and clip.image.tobytes() == same.image.tobytes()
        panel.go_on.click()
        assert painter.clip is clip and painter.mask is not None


# Buttons pressed while a clip is being made


def test_cancel_ends_the_work_at_the_next_step(panel, gate):
    panel.num_inference_steps.value = 50
    panel.generate.click()
    assert gate.reached.wait(WITHIN_S)
    assert panel.generate.disabled and not panel.cancel.disabled
    panel.cancel.click()
    gate.open.set()
    finish(panel)
    assert said(panel) == "Cancelled." and gate.n_steps == 1
    assert panel.clip is None and panel.history == [] and not panel.folder.exists()
    panel.num_inference_steps.value = 2
    make(panel)


def test_ten_quick_clicks_make_one_clip(panel, gate):
    for _ in range(10):
        panel.generate.click()
    assert said(panel).startswith("A clip is being made already")
    gate.open.set()
    finish(panel)
    assert len(panel.history) == 1 and gate.n_steps == 3


def test_hasty_clicks_never_get_stuck(panel):
    panel.num_inference_steps.value = 1
    for _ in range(10):
        panel.generate.click()
        panel.cancel.click()
        panel.next_seed.click()
    finish(panel)
    make(panel)


def test_order_stands_when_the_panel_is_changed(panel, gate):
    panel.generate.click()
    assert gate.reached.wait(WITHIN_S)
    panel.prompt.value, panel.seed.value = "techno", 9
    gate.open.set()
    finish(panel)
    assert (panel.clip.recipe["prompt"], panel.clip.recipe["seed"]) == ("slow piano", 3)


def test_progress_and_preview_are_seen(panel):
    seen = []
    panel.progress.observe(lambda change: seen.append(change["new"]), "value")
    panel.preview.observe(lambda change: seen.append(change["new"].partition(",")[0]), "value")
    panel.num_inference_steps.value = 4
    make(panel)
    picture = '<img alt="a first look at the picture" src="data:image/png;base64'
    assert seen == [0.25, 0.5, 0.75, picture, 1.0, 0.0, ""]


@torch.no_grad()
def test_the_preview_is_as_dark_as_the_picture():
    pipe, latents = load_pipeline(device="cpu"), torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    usual = np.asarray(studio._preview(pipe, latents), float)
    pipe.vae.register_to_config(scaling_factor=0.18215)  # as Riffusion v1's
    again = np.asarray(studio._preview(pipe, 0.18215 * latents), float)
    assert np.abs(again - usual).max() <= 1 and usual.std() > 10


def test_close_ends_the_work(pipe, tmp_path, gate):
    panel = Studio(pipe, folder=tmp_path / "clips", **KNOWN)
    panel.num_inference_steps.value = 50
    panel.generate.click()
    assert gate.reached.wait(WITHIN_S)
    panel.close()
    gate.open.set()
    panel._job.result(WITHIN_S)
    assert gate.n_steps == 1 and not panel.folder.exists()


def test_colab_waits_for_the_clip(panel, monkeypatch):
    """There, what a thread sends is shown only until the kernel has answered the click."""
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    panel.generate.click()
    assert panel._job.done() and panel.clip is not None


# What may go wrong


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "prompt is empty: ''; describe a sound, such as 'solo piano, slow'"),
        (" \n", "prompt is empty"),
        ("<b>" + "x" * 9_997, "'<b>xxx.*has 10,000 characters: give at most 4,000"),
    ],
)
def test_bad_prompt_is_refused_in_words(panel, prompt, words):
    make(panel)
    panel.prompt.value = prompt
    assert re.match(words, refuse(panel).removeprefix("prompt ") if prompt[:1] == "<" else refuse(panel))
    panel.prompt.value = "piano"
    make(panel)


def test_other_bad_values_are_refused_in_words(panel):
    panel.duration_s.value = 0
    assert refuse(panel) == "duration_s must be between 0.01 and 3600, not 0.0"
    panel.duration_s.value, panel.negative_prompt.value = SHORT_S, "x" * 5_000
    assert "negative_prompt" in refuse(panel)


def test_html_stays_text(panel):
    panel.prompt.value = "<img src=x onerror=alert(1)> $x^2$ piano"
    clip = make(panel)
    assert clip.title == panel.prompt.value
    assert names(panel) == ["img-src-x-onerror-alert-1-x-2-piano-seed-3"]
    assert "was not taught these words" in said(panel)  # which looks for tags


@pytest.mark.parametrize("error", [RuntimeError("<b>out of memory</b>"), ValueError("<b>not so</b>")])
def test_model_that_fails_is_said_and_forgiven(panel, gate, error):
    gate.open.set()
    make(panel)
    gate.error = error
    text = refuse(panel)
    assert str(error) in text and ("RuntimeError" in text) == isinstance(error, RuntimeError)
    gate.error = None
    make(panel)


def test_clip_that_cannot_be_saved_is_heard(pipe, tmp_path):
    (tmp_path / "file").touch()
    with build(pipe, tmp_path / "file") as panel:
        clip = make(panel)
        assert clip is panel.clip and said(panel).startswith("Not saved (")
        assert panel.history == []


def test_remarks_are_shown_in_the_panel_only(pipe, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        with build(pipe, tmp_path, prompt="pianos, 100 bpm (slow:-1)", negative_prompt="jaz") as panel:
            panel.guidance_scale.value = 1
            make(panel)
            text = said(panel)
        assert warnings.filters == filters  # which hold for the whole process
    assert [warning for warning in caught if warning.category is UserWarning] == []
    assert "'(slow:-1)' is a negative weight in other tools" in text
    assert "pianos (nearest: piano)" in text and "jaz (nearest: jazz)" in text and "105 bpm" in text
    assert "negative_prompt has no effect at guidance_scale=1" in text


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"prompt": 3}, TypeError),
        ({"negative_prompt": "x" * 5_000}, ValueError),
        ({"seed": -1}, ValueError),
        ({"seed": 0.5}, TypeError),
        ({"strength": 2}, ValueError),
        ({"source": {"a": "clip.wav"}}, TypeError),
        ({"painter": "clip"}, TypeError),
    ],
)
def test_wrong_argument_is_refused(pipe, tmp_path, given, kind):
    with pytest.raises(kind, match=next(iter(given)) if "source" not in given else "clip must be a Clip"):
        Studio(pipe, folder=tmp_path, **given)


def test_source_and_painter_exclude_each_other(pipe, tmp_path):
    clip = short(441)
    with pytest.raises(TypeError, match="no source"):
        Studio(pipe, folder=tmp_path, source=clip, painter=MaskPainter(clip))


def test_pipe_must_be_a_pipeline(tmp_path):
    with pytest.raises(TypeError, match="StableDiffusionPipeline"):
        Studio("riffling", folder=tmp_path)


# The history


def test_history_comes_back_from_the_folder(pipe, tmp_path):
    clip = text_to_audio(pipe, "piano", seed=5, num_inference_steps=1, duration_s=SHORT_S)
    for number in range(15):
        clip.save(tmp_path / f"clip-{number}.png")
        os.utime(tmp_path / f"clip-{number}.png", (number, number))
    short(441).save(tmp_path / "no-recipe.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "a-photograph.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "clip-0.png").read_bytes()[:5_000])
    (tmp_path / "empty.png").touch()
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    with build(pipe, tmp_path) as panel:
        assert names(panel) == [f"clip-{number}" for number in range(14, 2, -1)]
        assert panel.clip is None and len(panel.history) == 12
        panel._list.children[1].children[1].click()
        assert panel.clip is panel.history[1] and panel._player.children[0].clip is panel.clip
        assert panel.clip.recipe == clip.recipe and panel.clip.image.tobytes() == clip.image.tobytes()
        make(panel)
        assert names(panel)[:2] == ["slow-piano-seed-3", "clip-14"] and len(panel.history) == 12
        assert panel._player.children[0].clip is panel.clip
        in_full = repr(panel)
    with build(pipe, tmp_path / "empty") as panel:
        assert names(panel) == [] and repr(panel) == in_full == "Studio('slow piano', seed=3)"


def test_parts_are_those_of_ipywidgets_7():
    """7.7.1, which Google Colab has, knows neither `Stack` nor `TagsInput`, and no titles of a `Tab`."""
    used = set(re.findall(r"\bwidgets\.(\w+)", inspect.getsource(studio)))
    boxes = {"Box", "HBox", "VBox", "Widget"}
    assert used <= boxes | {"BoundedFloatText", "BoundedIntText", "Button", "Dropdown", "FloatProgress", "HTML", "Text"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what it does not know it warns of
        studio._button("a", print, disabled=True)
        studio._number("a", 1, 2, 1)
        studio._number("a", 0.5, 2.0, 1)
        studio._wrapped([], max_height="1px")
